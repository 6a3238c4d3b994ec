"""Weights with a location and a scale each, of a family that is not Gaussian."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Size, Tensor

__all__ = ["MixtureOfScales", "ScaledWeights", "scaled_by"]


class ScaledWeights(dist.Independent):
    """``family(loc, scale).to_event()``, whose scale can be multiplied.

    Args:
        family: From loc and scale, which broadcast, to the distribution of single numbers. A class or a ``partial`` of
            one can be pickled.
        loc: Centres ``[*shape]``.
        scale: Scales ``[*shape]``.

    Example:
        >>> fn = ScaledWeights(dist.Laplace, torch.zeros(3), torch.ones(3))
        >>> fn.scaled(torch.tensor(2.0).log()).base_dist.scale
        tensor([2., 2., 2.])
    """

    def __init__(self, family: Callable[[Tensor, Tensor], Any], loc: Tensor, scale: Tensor) -> None:
        super().__init__(family(loc, scale), loc.dim())
        self._parts = family, loc, scale

    def expand(self, batch_shape: Any, _instance: Any = None) -> ScaledWeights:
        """The same distribution for every place of ``batch_shape``."""
        new = type(self).__new__(type(self)) if _instance is None else _instance
        new._parts = self._parts
        new.base_dist = self.base_dist.expand(Size(batch_shape) + self.event_shape)
        new.reinterpreted_batch_ndims = self.reinterpreted_batch_ndims
        dist.TorchDistribution.__init__(new, Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def scaled(self, log_factor: Tensor) -> ScaledWeights:
        """The same with its scales times ``exp(log_factor)``, which expands to the shape of the weights."""
        family, loc, scale = self._parts
        return ScaledWeights(family, loc, scale * log_factor.exp())

    def scaled_by(self, factor: Tensor) -> dist.Independent:
        """The same with its scales times factors ``[*batch, *shape]`` or of a shape that expands to it."""
        family, loc, scale = self._parts
        return dist.Independent(family(loc, scale * factor), loc.dim())


def scaled_by(fn: Any, factor: Tensor) -> Any:
    """The prior of a parameter with its scale times factors ``[*batch, *shape]``, or of a shape that expands to it.

    Example:
        >>> scaled_by(dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1), torch.full((5, 1), 3.0)).batch_shape
        torch.Size([5])
    """
    own = getattr(fn, "scaled_by", None)
    if own is not None:
        return own(factor)
    base = fn.base_dist
    return dist.Normal(base.loc, base.scale * factor).to_event(len(fn.event_shape))


class MixtureOfScales(dist.TorchDistribution):
    r"""Numbers of a mixture of K Gaussians with one location, :math:`\sum_k p_k N(m, (s \sigma_k)^2)`.

    Args:
        loc: m.
        scale: s, which broadcasts with it.
        scales: The K standard deviations :math:`\sigma_k`, for s = 1.
        probs: Their K probabilities.

    Example:
        >>> fn = MixtureOfScales(torch.zeros(()), torch.ones(()), scales=(1.0, 3.0), probs=(0.5, 0.5))
        >>> fn.variance
        tensor(5.)
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 # pyright: ignore[reportIncompatibleMethodOverride]
    support: Any = constraints.real  # pyright: ignore[reportIncompatibleMethodOverride]

    def __init__(
        self,
        loc: Tensor,
        scale: Tensor,
        *,
        scales: tuple[float, ...],
        probs: tuple[float, ...],
        validate_args: Any = None,
    ) -> None:
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        self.scales, self.probs = scales, probs
        super().__init__(self.loc.shape, Size(), validate_args=validate_args)

    def _weights(self) -> tuple[Tensor, Tensor]:
        return self.scale.new_tensor(self.scales), self.scale.new_tensor(self.probs)

    def expand(self, batch_shape: Any, _instance: Any = None) -> MixtureOfScales:
        """The same distribution for every place of ``batch_shape``."""
        shape = Size(batch_shape)
        return MixtureOfScales(
            self.loc.expand(shape), self.scale.expand(shape), scales=self.scales, probs=self.probs, validate_args=False
        )

    def sample(self, sample_shape: Any = Size()) -> Tensor:
        """Draw numbers ``[*sample_shape, *batch_shape]``."""
        scales, probs = self._weights()
        shape = self._extended_shape(Size(sample_shape))
        with torch.no_grad():
            which = torch.multinomial(probs, shape.numel(), replacement=True).reshape(shape)
            return self.loc + self.scale * scales[which] * torch.randn(shape, dtype=scales.dtype, device=scales.device)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of numbers ``[*batch]``."""
        scales, probs = self._weights()
        each = dist.Normal(self.loc.unsqueeze(-1), self.scale.unsqueeze(-1) * scales, validate_args=False)
        return torch.logsumexp(each.log_prob(value.unsqueeze(-1)) + probs.log(), -1)

    @property
    def mean(self) -> Tensor:
        """Mean, of ``batch_shape``."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """Variance, of ``batch_shape``."""
        scales, probs = self._weights()
        return self.scale.square() * (scales.square() * probs).sum()
