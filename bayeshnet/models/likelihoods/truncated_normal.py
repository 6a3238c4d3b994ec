"""Gaussian observations of which only those between limits exist."""

from __future__ import annotations

from typing import Any

import torch
from torch import Size, Tensor

from bayeshnet.models.likelihoods._gaussian_tails import log_between, log_density, quantile_between, standardised
from bayeshnet.models.likelihoods.limits import LimitedLikelihood, NormalWithLimits

__all__ = ["BoundedNormal", "TruncatedNormal"]


class BoundedNormal(NormalWithLimits):
    r"""The normal distribution between two limits, :math:`p(y) \propto N(y; m, s^2)` for :math:`l < y < u`.

    Computed in float64, and by logarithms of the normal distribution function, so that the limits may be far in the
    tails of the normal.

    Args:
        loc: Means m of the normal.
        scale: Its standard deviations s.
        lower: Lower limits l, which may be infinite.
        upper: Upper limits u.

    Example:
        >>> fn = BoundedNormal(torch.tensor(0.0), torch.tensor(1.0), torch.tensor(0.0), torch.tensor(torch.inf))
        >>> fn.mean, fn.variance
        (tensor(0.7979), tensor(0.3634))
    """

    def _ends(self) -> tuple[Tensor, Tensor]:
        """The limits in standard deviations from the mean, in float64."""
        loc, scale = self.loc.double(), self.scale.double()
        return standardised(self.lower.double(), loc, scale), standardised(self.upper.double(), loc, scale)

    def _slopes(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Ends, and the density at each; a limit that is infinite has density 0 and counts as 0."""
        low, high = self._ends()
        log_total = log_between(low, high)
        at = [torch.where(torch.isinf(z), torch.zeros_like(z), (log_density(z) - log_total).exp()) for z in (low, high)]
        ends = [torch.where(torch.isinf(z), torch.zeros_like(z), z) for z in (low, high)]
        return ends[0], ends[1], at[0], at[1]

    @property
    def mean(self) -> Tensor:
        """The mean."""
        _, _, at_low, at_high = self._slopes()
        mean = self.loc.double() + self.scale.double() * (at_low - at_high)
        return mean.clamp(min=self.lower.double(), max=self.upper.double()).to(self.loc)

    @property
    def variance(self) -> Tensor:
        """The variance."""
        low, high, at_low, at_high = self._slopes()
        shift = at_low - at_high
        variance = (1.0 + low * at_low - high * at_high - shift.square()).clamp(min=0.0)
        return (variance * self.scale.double().square()).to(self.loc)

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density; minus infinity beyond the limits."""
        z = (value.double() - self.loc.double()) / self.scale.double()
        log_prob = log_density(z) - self.scale.double().log() - log_between(*self._ends())
        outside = (value < self.lower) | (value > self.upper)
        return torch.where(outside, torch.full_like(log_prob, -torch.inf), log_prob).to(self.loc)

    def cdf(self, value: Tensor) -> Tensor:
        """Probability of at most this value."""
        low, high = self._ends()
        z = ((value.double() - self.loc.double()) / self.scale.double()).clamp(min=low, max=high)
        part = (log_between(low, z) - log_between(low, high)).exp()
        part = torch.where(z <= low, torch.zeros_like(part), torch.where(z >= high, torch.ones_like(part), part))
        return part.to(self.loc)

    def icdf(self, value: Tensor) -> Tensor:
        """Quantiles."""
        z = quantile_between(*self._ends(), value.double())
        found = self.loc.double() + self.scale.double() * z
        return found.clamp(min=self.lower.double(), max=self.upper.double()).to(self.loc)

    def sample(self, sample_shape: Any = Size()) -> Tensor:
        """Draws, by quantiles."""
        with torch.no_grad():
            shape = self._extended_shape(sample_shape)
            return self.icdf(torch.rand(shape, dtype=torch.float64, device=self.loc.device))


class TruncatedNormal(LimitedLikelihood):
    r"""Gaussian observations of which only those between limits exist, :math:`p(y) \propto N(y; f, \mathrm{scale}^2)`.

    What lies beyond the limits was never recorded; where it was recorded as the limit, use :class:`CensoredNormal`.

    Args:
        scale: The standard deviation of the normal: known (a number or ``[out]``), or a prior.
        lower: The lower limit, one for all outputs or ``[out]``; None for none.
        upper: The upper limit.
        learn: Optimise ``scale`` as a parameter.
        per_row: Multiply ``scale`` by a number of each row, the model's argument ``noise``.

    Raises:
        ArgumentError: If there is no limit, limits are in the wrong order, or as for :class:`Normal`.

    Example:
        >>> likelihood = TruncatedNormal(scale=1.0, lower=0.0)
        >>> likelihood.conditional(torch.zeros(7), {}, batch_dims=1).mean[0]
        tensor(0.7979)
    """

    distribution = BoundedNormal
