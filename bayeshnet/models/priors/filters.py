"""Correlated convolution filters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Size, Tensor

from bayeshnet.checks import require_positive
from bayeshnet.formatting import number
from bayeshnet.mnets.param_table import ParamRecord
from bayeshnet.models.priors.scaled import ScaledPrior
from bayeshnet.models.priors.scales import Learn, Loc, Scale
from bayeshnet.models.weight_normal import WeightNormal
from bayeshnet.normal_density import LOG_2PI

__all__ = ["CorrelatedFilters", "FilterNormal"]


class CorrelatedFilters(ScaledPrior):
    r"""Gaussian weights, those of a convolution's filter correlated between neighbouring places.

    .. math:: \mathrm{Cov}(w_{oip}, w_{oiq}) = s^2 \exp(-\|p - q\| / \ell)

    for the places p, q of the kernel, in pixels; different channels are independent, and so is everything that is no
    convolution. Filters of trained networks are like that (Fortuin et al., ICLR 2022).

    Args:
        scale: The standard deviation s: as for :class:`~bayeshnet.models.priors.ScaledPrior`, like ``loc`` and
            ``learn``.
        length_scale: The distance l in pixels over which the correlation falls to 1/e, a positive number.

    Example:
        >>> prior = CorrelatedFilters(1.0, length_scale=2.0)
        >>> fn = prior.distribution("0.weight", ParamRecord((2, 1, 3, 3), "weight", 0), like=torch.zeros(()))
        >>> (fn.correlation_tril @ fn.correlation_tril.T)[0, :3]
        tensor([1.0000, 0.6065, 0.3679])
    """

    def __init__(
        self,
        scale: float | Tensor | str | Mapping[str, Scale] = "fan_in",
        *,
        length_scale: float = 1.0,
        loc: Loc = None,
        learn: Learn | Mapping[str, Learn] = False,
    ) -> None:
        super().__init__(scale, loc=loc, learn=learn)
        require_positive("length_scale", length_scale)
        self.length_scale = float(length_scale)

    def _printed_options(self) -> str:
        return f", length_scale={number(self.length_scale)}"

    def made(self, loc: Tensor, scale: Tensor, record: ParamRecord) -> TorchDistributionMixin:
        """See :meth:`ScaledPrior.made`."""
        kernel = record.shape[2:]
        if record.name != "weight" or math.prod(kernel) < 2:
            return WeightNormal(loc, scale)
        places = torch.cartesian_prod(*(torch.arange(size, dtype=torch.float64) for size in kernel))
        places = places.reshape(math.prod(kernel), -1)
        correlation = (-torch.cdist(places, places) / self.length_scale).exp()
        return FilterNormal(loc, scale, torch.linalg.cholesky(correlation).to(loc))


class FilterNormal(dist.TorchDistribution):
    r"""Filters ``loc + scale * (L e)`` with independent standard normal ``e``, L over the K places of the kernel.

    Args:
        loc: Means ``[out, in, *kernel]``.
        scale: Standard deviations, ``[*batch, out, in, *kernel]``.
        correlation_tril: L ``[K, K]``, of the correlation matrix.
        event_dim: Number of dimensions of the weights; those of ``loc``.

    Example:
        >>> loc = torch.zeros(2, 1, 3)
        >>> fn = FilterNormal(loc, torch.ones_like(loc), torch.eye(3))
        >>> torch.allclose(fn.log_prob(loc), dist.Normal(0.0, 1.0).log_prob(loc).sum())
        True
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 # pyright: ignore[reportIncompatibleMethodOverride]
    has_rsample = True

    def __init__(self, loc: Tensor, scale: Tensor, correlation_tril: Tensor, *, batch_shape: Any = None) -> None:
        self.loc, self.scale, self.correlation_tril = loc, scale, correlation_tril
        batch = scale.shape[: scale.dim() - loc.dim()] if batch_shape is None else Size(batch_shape)
        super().__init__(batch, loc.shape, validate_args=False)

    @property
    def support(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        """All real filters."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(self, batch_shape: Any, _instance: Any = None) -> FilterNormal:
        """The same distribution for every place of ``batch_shape``."""
        return FilterNormal(self.loc, self.scale, self.correlation_tril, batch_shape=batch_shape)

    def scaled(self, log_factor: Tensor) -> FilterNormal:
        """The same with its scales times ``exp(log_factor)``, which expands to the shape of the weights."""
        return FilterNormal(self.loc, self.scale * log_factor.exp(), self.correlation_tril)

    def scaled_by(self, factor: Tensor) -> FilterNormal:
        """The same with its scales times factors ``[*batch, *shape]``, or of a shape that expands to it."""
        scale = self.scale * factor
        return FilterNormal(self.loc, scale, self.correlation_tril)

    def rsample(self, sample_shape: Any = Size()) -> Tensor:
        """Draw filters ``[*sample_shape, *batch_shape, out, in, *kernel]``."""
        shape = self._extended_shape(Size(sample_shape))
        noise = torch.randn((*shape[: len(shape) - len(self.event_shape) + 2], len(self.correlation_tril))).to(self.loc)
        return self.loc + self.scale * (noise @ self.correlation_tril.T).reshape(shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of filters ``[*batch, out, in, *kernel]``: ``[*batch]``."""
        dims = len(self.event_shape)
        standard = (value - self.loc) / self.scale
        rows = standard.flatten(standard.dim() - dims + 2).flatten(-3, -2) if dims > 2 else standard
        noise = torch.linalg.solve_triangular(self.correlation_tril, rows.transpose(-1, -2), upper=False)
        filters = self.event_shape[0] * self.event_shape[1]
        log_scale = self.scale.log().flatten(self.scale.dim() - dims).sum(-1)
        const = filters * self.correlation_tril.diagonal().log().sum() + 0.5 * self.event_shape.numel() * LOG_2PI
        total = -0.5 * noise.square().flatten(-2).sum(-1) - log_scale - const
        return total.expand(torch.broadcast_shapes(total.shape, self.batch_shape))

    @property
    def mean(self) -> Tensor:
        """Mean ``[*batch_shape, out, in, *kernel]``."""
        return self.loc.expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        """Variance of each weight, of the same shape."""
        return self.scale.square().expand(self.batch_shape + self.event_shape)
