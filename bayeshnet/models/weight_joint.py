"""All weights in one vector, with the prior of each parameter for its part."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Size, Tensor

__all__ = ["JointWeights"]


class JointWeights(dist.TorchDistribution):
    """Independent parameters of any real priors, one after the other in a vector ``[D]``.

    Args:
        parts: The prior of each parameter, over real numbers; batch shapes broadcast.

    Example:
        >>> parts = [dist.Laplace(torch.zeros(2, 3), 1.0).to_event(2), dist.Normal(torch.zeros(2), 1.0).to_event(1)]
        >>> fn = JointWeights(parts)
        >>> w = fn.sample()
        >>> torch.allclose(fn.log_prob(w), parts[0].log_prob(w[:6].reshape(2, 3)) + parts[1].log_prob(w[6:]))
        True
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 # pyright: ignore[reportIncompatibleMethodOverride]
    support: Any = constraints.real_vector  # pyright: ignore[reportIncompatibleMethodOverride]

    def __init__(self, parts: Sequence[Any], *, batch_shape: Any = None, validate_args: Any = None) -> None:
        self.parts = list(parts)
        self._sizes = [math.prod(part.event_shape) for part in self.parts]
        batch = (
            torch.broadcast_shapes(*(part.batch_shape for part in self.parts)) if batch_shape is None else batch_shape
        )
        super().__init__(Size(batch), Size((sum(self._sizes),)), validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> JointWeights:
        """The same distribution for every place of ``batch_shape``."""
        return JointWeights(self.parts, batch_shape=batch_shape, validate_args=False)

    def scaled(self, log_factor: Tensor) -> JointWeights:
        """The same with its scales times ``exp(log_factor)`` ``[D]``; a part without a scale stays as it is."""
        pieces = zip(self.parts, log_factor.split(self._sizes), strict=True)
        made = [
            part.scaled(piece.reshape(part.event_shape)) if hasattr(part, "scaled") else part for part, piece in pieces
        ]
        return JointWeights(made, batch_shape=self.batch_shape, validate_args=False)

    def _flat(self, values: list[Tensor], lead: Size) -> Tensor:
        pairs = zip(values, self.parts, strict=True)
        return torch.cat([value.expand(lead + part.event_shape).reshape(*lead, -1) for value, part in pairs], -1)

    def sample(self, sample_shape: Any = Size()) -> Tensor:
        """Draw vectors ``[*sample_shape, *batch_shape, D]``."""
        drawn = [part.expand(self.batch_shape).sample(Size(sample_shape)) for part in self.parts]
        return self._flat(drawn, Size(sample_shape) + self.batch_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of vectors ``[*batch, D]``."""
        pieces = zip(self.parts, value.split(self._sizes, -1), strict=True)
        terms = [part.log_prob(piece.reshape(*piece.shape[:-1], *part.event_shape)) for part, piece in pieces]
        total = torch.stack(torch.broadcast_tensors(*terms)).sum(0)
        return total.expand(torch.broadcast_shapes(total.shape, self.batch_shape))

    @property
    def mean(self) -> Tensor:
        """Mean ``[*batch_shape, D]``."""
        return self._flat([part.mean for part in self.parts], self.batch_shape)

    @property
    def variance(self) -> Tensor:
        """Variance ``[*batch_shape, D]``."""
        return self._flat([part.variance for part in self.parts], self.batch_shape)
