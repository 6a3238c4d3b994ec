"""Counts that vary more than by Poisson's law."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Size, Tensor

from bayeshnet.checks import require_flag
from bayeshnet.models.likelihoods._targets import Counts
from bayeshnet.models.likelihoods.parameters import ParametricLikelihood, Positive
from bayeshnet.models.likelihoods.poisson import bounded_log

__all__ = ["LogNegativeBinomial", "NegativeBinomial"]


class LogNegativeBinomial(dist.TorchDistribution):
    r"""The negative binomial distribution by the logarithms of its mean m and of its size r = 1 / dispersion.

    .. math:: \log p(y) = \log\Gamma(y + r) - \log\Gamma(r) - \log y! + r \log\frac{r}{r + m} + y \log\frac{m}{r + m}

    For large r the difference of the first two is taken by Stirling's series, so that nothing cancels: the Poisson
    distribution is the limit.

    Args:
        log_mean: Logarithm of the mean.
        log_size: Logarithm of r.

    Example:
        >>> fn = LogNegativeBinomial(torch.tensor(0.0), torch.tensor(0.0))
        >>> fn.log_prob(torch.arange(3)).exp()
        tensor([0.5000, 0.2500, 0.1250])
    """

    arg_constraints: Any = {  # noqa: RUF012 - as torch declares it
        "log_mean": dist.constraints.real,
        "log_size": dist.constraints.real,
    }
    support: Any = dist.constraints.nonnegative_integer  # pyright: ignore[reportIncompatibleMethodOverride]

    def __init__(self, log_mean: Tensor, log_size: Tensor, validate_args: bool | None = None) -> None:
        self.log_mean, self.log_size = torch.broadcast_tensors(log_mean, log_size)
        super().__init__(self.log_mean.shape, Size(), validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> LogNegativeBinomial:
        """The same distribution for every place of ``batch_shape``."""
        shape = Size(batch_shape)
        new = type(self)(self.log_mean.expand(shape), self.log_size.expand(shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        """The mean m."""
        return self.log_mean.exp()

    @property
    def variance(self) -> Tensor:
        """``m + m^2 / r``."""
        return self.log_mean.exp() + (2.0 * self.log_mean - self.log_size).exp()

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-probability."""
        if self._validate_args:
            self._validate_sample(value)
        y = value.to(self.log_mean.dtype)
        ratio = self.log_mean - self.log_size
        size = self.log_size.exp()
        small = size.clamp(max=_LARGE)
        log_total = torch.logaddexp(self.log_mean, self.log_size)
        exact = (
            torch.lgamma(y + small)
            - torch.lgamma(small)
            - small * torch.nn.functional.softplus(ratio)
            + y * (self.log_mean - log_total)
        )
        large = size.clamp(min=_LARGE)
        log_ratio = torch.log1p(y / large)
        series = (
            (large - 0.5) * log_ratio
            - y
            - large * torch.nn.functional.softplus(ratio)
            + y * (self.log_mean + log_ratio - torch.nn.functional.softplus(ratio))
            + _series(y + large)
            - _series(large)
        )
        return torch.where(size > _LARGE, series, exact) - torch.lgamma(y + 1.0)

    def sample(self, sample_shape: Any = Size()) -> Tensor:
        """Draws: Poisson, of rates that are Gamma."""
        with torch.no_grad():
            size = self.log_size.exp()
            rate = dist.Gamma(size, (self.log_size - self.log_mean).exp()).sample(sample_shape)
            return torch.poisson(rate)


_LARGE = 30.0


def _series(x: Tensor) -> Tensor:
    """What Stirling's formula lacks of the logarithm of Gamma(x)."""
    inverse = x.reciprocal()
    square = inverse * inverse
    return inverse * (1.0 / 12.0 - square * (1.0 / 360.0 - square * (1.0 / 1260.0 - square / 1680.0)))


class NegativeBinomial(Counts, ParametricLikelihood):
    r"""Counts of mean :math:`m = t e^f` and variance :math:`m + \mathrm{dispersion} \cdot m^2`.

    t is the exposure of the row, 1 by default. Without dispersion it would be Poisson's law. Means are bounded as in
    :class:`Poisson`.

    Args:
        dispersion: How much they vary beyond Poisson's law: known (a number or ``[out]``), or a prior.
        learn: Optimise it as a parameter.
        exposure: Whether each row comes with an exposure, the model's argument ``exposure``.

    Raises:
        ArgumentError: If the dispersion is not positive, or is to be learned and has a prior.

    Example:
        >>> NegativeBinomial(dispersion=0.5).conditional(torch.zeros(7), {}, batch_dims=1).variance[0]
        tensor(1.5000)
    """

    def __init__(self, dispersion: Positive, *, learn: bool = False, exposure: bool = False) -> None:
        super().__init__()
        require_flag("exposure", exposure)
        self.add_positive("dispersion", dispersion, learn=learn)
        self.exposure = exposure
        self.row_data = ("exposure",) if exposure else ()

    def extra_repr(self) -> str:
        """The dispersion, and whether rows have an exposure, for ``repr``."""
        return super().extra_repr() + ", exposure=True" * self.exposure

    def conditional(self, f: Tensor, params: Mapping[str, Tensor], *, batch_dims: int) -> TorchDistributionMixin:
        """See :meth:`Likelihood.conditional`."""
        log_mean = bounded_log(f)
        if self.exposure:
            log_mean = log_mean + params["exposure"].to(f.dtype).log()
        log_size = -self.parameter("dispersion", params, f, batch_dims).log()
        return LogNegativeBinomial(log_mean, log_size).to_event(f.dim() - batch_dims)

    def pseudo_targets(self, y: Tensor, num_outputs: int) -> Tensor | None:
        """See :meth:`Likelihood.pseudo_targets`: logarithms of the counts, of no use where exposures differ."""
        return None if self.exposure else (y.double().reshape(len(y), -1) + 0.5).log()

    def noise_level(self, y: Tensor) -> float:
        """See :meth:`Likelihood.noise_level`: the spread of the logarithm of a count around a typical one."""
        return max(float((y.double() + 0.5).mean().rsqrt()), 0.5)
