"""Independent Gaussian weights, with everything that does not change worked out once."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Size, Tensor

from bayeshnet.normal_density import LOG_2PI

__all__ = ["WeightNormal"]


class WeightNormal(dist.Independent):
    r"""``Normal(loc, scale).to_event()``, for a prior that is evaluated at every step.

    .. math:: \log p(w) = -\frac12 \sum_i ((w_i - \mathrm{loc}_i) / \mathrm{scale}_i)^2 + \mathrm{const}

    The constant and 1 / scale are kept, also by what :meth:`expand` makes: half of the operations of the plain form,
    which count for small tensors.

    Args:
        loc: Means ``[*shape]``.
        scale: Standard deviations ``[*shape]``.

    Example:
        >>> fn = WeightNormal(torch.zeros(3, 2), torch.full((3, 2), 0.5))
        >>> w = fn.sample((5,))
        >>> torch.allclose(fn.log_prob(w), dist.Normal(0.0, 0.5).log_prob(w).sum((-1, -2)), atol=1e-5)
        True
    """

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        super().__init__(dist.Normal(loc, scale), loc.dim())
        self._loc = loc if bool((loc != 0).any()) else None
        self._inverse = scale.reciprocal()
        self._const = -scale.log().sum() - 0.5 * scale.numel() * LOG_2PI

    def expand(self, batch_shape: Any, _instance: Any = None) -> WeightNormal:
        """The same distribution for every place of ``batch_shape``."""
        new = type(self).__new__(type(self)) if _instance is None else _instance
        new._loc, new._inverse, new._const = self._loc, self._inverse, self._const
        new.base_dist = self.base_dist.expand(Size(batch_shape) + self.event_shape)
        new.reinterpreted_batch_ndims = self.reinterpreted_batch_ndims
        dist.TorchDistribution.__init__(new, Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def scaled(self, log_factor: Tensor) -> WeightNormal:
        """The same with its standard deviations times ``exp(log_factor)``, differentiable with respect to the factor.

        Args:
            log_factor: Of a shape that expands to that of the weights: one number, or one for each input of a layer.
        """
        new = type(self).__new__(type(self))
        base: Any = self.base_dist
        new._loc = self._loc
        new._inverse = self._inverse * (-log_factor).exp()
        repeats = self.event_shape.numel() / max(1, log_factor.numel())
        new._const = self._const - repeats * log_factor.sum()
        new.base_dist = dist.Normal(base.loc, base.scale * log_factor.exp(), validate_args=False)
        new.reinterpreted_batch_ndims = self.reinterpreted_batch_ndims
        dist.TorchDistribution.__init__(new, Size(), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of weights ``[*batch, *shape]``: ``[*batch]``."""
        if self._validate_args:
            self._validate_sample(value)
        centred = value if self._loc is None else value - self._loc
        squares = (centred * self._inverse).square()
        dims = len(self.event_shape)
        total = squares.flatten(-dims).sum(-1) if dims else squares
        log_prob = self._const - 0.5 * total
        batch = self.batch_shape
        fits = not batch or log_prob.shape[-len(batch) :] == batch
        return log_prob if fits else log_prob.expand(torch.broadcast_shapes(log_prob.shape, batch))
