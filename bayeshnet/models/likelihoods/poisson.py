"""Counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Size, Tensor

from bayeshnet.checks import require_flag
from bayeshnet.models.likelihoods._targets import Counts

__all__ = ["LogPoisson", "Poisson", "bounded_log"]


def bounded_log(f: Tensor) -> Tensor:
    """The logarithm of a number that is exp(f), and grows linearly where exp(f) is so large that its square overflows.

    Example:
        >>> bounded_log(torch.tensor([-200.0, 3.0, 1000.0]))
        tensor([-200.0000,    3.0000,   42.8721])
    """
    most = 36.0 if f.dtype != torch.float64 else 300.0
    return f.clamp(max=most) + torch.log1p((f - most).clamp(min=0.0))


class LogPoisson(dist.TorchDistribution):
    r"""The Poisson distribution by the logarithm of its rate, :math:`\log p(y) = y f - e^f - \log y!`.

    Args:
        log_rate: Logarithm of the rate.

    Example:
        >>> LogPoisson(torch.tensor(-300.0)).log_prob(torch.tensor([1, 2]))
        tensor([-300.0000, -600.6932])
    """

    arg_constraints: Any = {"log_rate": dist.constraints.real}  # noqa: RUF012 - as torch declares it
    support: Any = dist.constraints.nonnegative_integer  # pyright: ignore[reportIncompatibleMethodOverride]

    def __init__(self, log_rate: Tensor, validate_args: bool | None = None) -> None:
        self.log_rate = log_rate
        super().__init__(log_rate.shape, Size(), validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> LogPoisson:
        """The same distribution for every place of ``batch_shape``."""
        new = type(self)(self.log_rate.expand(Size(batch_shape)), validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        """The rate."""
        return self.log_rate.exp()

    @property
    def variance(self) -> Tensor:
        """The rate."""
        return self.log_rate.exp()

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-probability."""
        if self._validate_args:
            self._validate_sample(value)
        value = value.to(self.log_rate.dtype)
        return value * self.log_rate - self.log_rate.exp() - torch.lgamma(value + 1.0)

    def cdf(self, value: Tensor) -> Tensor:
        """Probability of at most this value."""
        value, rate = torch.broadcast_tensors(value.to(self.log_rate.dtype), self.log_rate.exp())
        below = torch.special.gammaincc((value.floor() + 1.0).clamp(min=1.0), rate)
        return torch.where(value < 0, torch.zeros_like(below), below)

    def sample(self, sample_shape: Any = Size()) -> Tensor:
        """Draws."""
        with torch.no_grad():
            return torch.poisson(self.log_rate.exp().expand(self._extended_shape(sample_shape)))


class Poisson(Counts):
    r"""Counts, :math:`y \sim \mathrm{Poisson}(t e^f)`, with the exposure t of the row (1 by default).

    Rates above :math:`e^{36}` (:math:`e^{300}` in float64) grow linearly with f, so that nothing overflows.

    Args:
        exposure: Whether each row comes with an exposure, the model's argument ``exposure``: the time, the area or the
            population over which was counted.

    Raises:
        ArgumentTypeError: If ``exposure`` is not True or False.

    Example:
        >>> Poisson().conditional(torch.zeros(7), {}, batch_dims=1).mean[0]
        tensor(1.)
    """

    def __init__(self, *, exposure: bool = False) -> None:
        super().__init__()
        require_flag("exposure", exposure)
        self.exposure = exposure
        self.row_data = ("exposure",) if exposure else ()

    def extra_repr(self) -> str:
        """Whether rows have an exposure, for ``repr``."""
        return "exposure=True" if self.exposure else ""

    def conditional(self, f: Tensor, params: Mapping[str, Tensor], *, batch_dims: int) -> TorchDistributionMixin:
        """See :meth:`Likelihood.conditional`."""
        log_rate = bounded_log(f)
        if self.exposure:
            log_rate = log_rate + params["exposure"].to(f.dtype).log()
        return LogPoisson(log_rate).to_event(f.dim() - batch_dims)

    def pseudo_targets(self, y: Tensor, num_outputs: int) -> Tensor | None:
        """See :meth:`Likelihood.pseudo_targets`: logarithms of the counts, of no use where exposures differ."""
        return None if self.exposure else (y.double().reshape(len(y), -1) + 0.5).log()

    def noise_level(self, y: Tensor) -> float:
        """See :meth:`Likelihood.noise_level`: the standard deviation of the logarithm of a typical count."""
        return float((y.double() + 0.5).mean().rsqrt())
