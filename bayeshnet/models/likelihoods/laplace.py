"""Laplace noise: that of the absolute error."""

from __future__ import annotations

from collections.abc import Mapping

import pyro.distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from bayeshnet.models.likelihoods._targets import LocationLikelihood
from bayeshnet.models.likelihoods.parameters import Positive

__all__ = ["Laplace"]


class Laplace(LocationLikelihood):
    """Laplace noise, density ``exp(-|y - f| / scale) / (2 scale)``; its variance is ``2 scale^2``.

    Args:
        scale: The scale: known (a number or ``[out]``), or a prior.
        learn: Optimise it as a parameter.
        per_row: Multiply ``scale`` by a number of each row, the model's argument ``noise``.

    Raises:
        ArgumentError: If the scale is not positive, or is to be learned and has a prior.

    Example:
        >>> import torch
        >>> Laplace(scale=2.0).conditional(torch.zeros(7), {}, batch_dims=1).variance[0]
        tensor(8.)
    """

    noise_is_std = False

    def __init__(self, scale: Positive, *, learn: bool = False, per_row: bool = False) -> None:
        super().__init__(per_row=per_row)
        self.add_positive("scale", scale, learn=learn)

    def conditional(self, f: Tensor, params: Mapping[str, Tensor], *, batch_dims: int) -> TorchDistributionMixin:
        """See :meth:`Likelihood.conditional`."""
        return dist.Laplace(f, self.parameter("scale", params, f, batch_dims)).to_event(f.dim() - batch_dims)
