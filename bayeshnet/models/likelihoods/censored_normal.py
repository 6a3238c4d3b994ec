"""Gaussian observations by an instrument with limits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Size, Tensor

from bayeshnet.models.likelihoods._gaussian_tails import log_between, log_density, standardised
from bayeshnet.models.likelihoods.limits import LimitedLikelihood, NormalWithLimits

__all__ = ["CensoredNormal", "ClampedNormal"]


class ClampedNormal(NormalWithLimits):
    r"""A normal variable that is shown as the limit where it lies beyond one: :math:`y = \min(\max(z, l), u)`.

    At the limits it has the probabilities :math:`\Phi((l - m) / s)` and :math:`\Phi((m - u) / s)`, between them the
    normal density. Mean and variance are those of the observed value.

    Args:
        loc: Means m of z.
        scale: Standard deviations s of z.
        lower: Lower limits l, which may be infinite.
        upper: Upper limits u.

    Example:
        >>> fn = ClampedNormal(torch.tensor(0.0), torch.tensor(1.0), torch.tensor(0.0), torch.tensor(torch.inf))
        >>> fn.mean, fn.log_prob(torch.tensor(0.0)).exp()
        (tensor(0.3989), tensor(0.5000))
    """

    def _ends(self) -> tuple[Tensor, Tensor]:
        """The limits in standard deviations from the mean."""
        return standardised(self.lower, self.loc, self.scale), standardised(self.upper, self.loc, self.scale)

    @property
    def mean(self) -> Tensor:
        """Mean of the observed value."""
        return self._moments()[0]

    @property
    def variance(self) -> Tensor:
        """Variance of the observed value."""
        return self._moments()[1]

    def _moments(self) -> tuple[Tensor, Tensor]:
        # Of how far the observed value is from the limit nearer to the mean, or from the mean, in standard deviations.
        low, high = (end.double() for end in self._ends())
        origin = torch.zeros_like(low).clamp(min=low, max=high)
        below, above = torch.special.ndtr(low), torch.special.ndtr(-high)
        between = log_between(low, high).exp()
        at_low, at_high = (log_density(end).exp() for end in (low, high))
        first, last = (torch.where(torch.isinf(end), torch.zeros_like(end), end) for end in (low, high))
        mean = below * (first - origin) + above * (last - origin) + at_low - at_high - origin * between
        inner = between * (1.0 + origin.square()) + (first - 2.0 * origin) * at_low - (last - 2.0 * origin) * at_high
        second = below * (first - origin).square() + above * (last - origin).square() + inner
        scale = self.scale.double()
        variance = (second - mean.square()).clamp(min=0.0) * scale.square()
        return (self.loc.double() + scale * (origin + mean)).to(self.loc), variance.to(self.loc)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density between the limits, log-probability at them."""
        low, high = self._ends()
        at_low, at_high = value <= self.lower, value >= self.upper
        inside = torch.where(at_low | at_high, self.loc, value.to(self.loc.dtype))
        zero = torch.zeros_like(low)
        below = torch.special.log_ndtr(torch.where(at_low, low, zero))
        above = torch.special.log_ndtr(torch.where(at_high, -high, zero))
        density = log_density((inside - self.loc) / self.scale) - self.scale.log()
        log_prob = torch.where(at_low, below, torch.where(at_high, above, density))
        outside = (value < self.lower) | (value > self.upper)
        return torch.where(outside, torch.full_like(log_prob, -torch.inf), log_prob)

    def cdf(self, value: Tensor) -> Tensor:
        """Probability of at most this value."""
        inside = torch.special.ndtr((value - self.loc) / self.scale)
        zero, one = torch.zeros_like(inside), torch.ones_like(inside)
        return torch.where(value < self.lower, zero, torch.where(value >= self.upper, one, inside))

    def icdf(self, value: Tensor) -> Tensor:
        """Quantiles."""
        return (self.loc + self.scale * torch.special.ndtri(value)).clamp(min=self.lower, max=self.upper)

    def sample(self, sample_shape: Any = Size()) -> Tensor:
        """Draws."""
        with torch.no_grad():
            shape = self._extended_shape(sample_shape)
            noise = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
            return (self.loc + self.scale * noise).clamp(min=self.lower, max=self.upper)


class CensoredNormal(LimitedLikelihood):
    r"""Gaussian observations with limits: what lies beyond is shown as the limit (Tobit model).

    :math:`y = \min(\max(f + \mathrm{scale} \cdot e, \mathrm{lower}), \mathrm{upper})`. Targets at a limit are censored:
    all that is known is on which side they are. The mean of a prediction is that of the observed value.

    Args:
        scale: The noise's standard deviation: known (a number or ``[out]``), or a prior.
        lower: The lower limit, one for all outputs or ``[out]``; None for none.
        upper: The upper limit.
        learn: Optimise ``scale`` as a parameter.
        per_row: Multiply ``scale`` by a number of each row, the model's argument ``noise``.

    Raises:
        ArgumentError: If there is no limit, limits are in the wrong order, or as for :class:`Normal`.

    Example:
        >>> likelihood = CensoredNormal(scale=1.0, lower=0.0)
        >>> likelihood.conditional(torch.zeros(7), {}, batch_dims=1).mean[0]
        tensor(0.3989)
    """

    distribution = ClampedNormal
