"""Student's t: noise with heavy tails."""

from __future__ import annotations

from collections.abc import Mapping

import pyro.distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from bayeshnet.models.likelihoods._targets import LocationLikelihood
from bayeshnet.models.likelihoods.parameters import Learn, Positive

__all__ = ["StudentT"]


class StudentT(LocationLikelihood):
    """Noise with heavy tails, ``y = f + scale * t`` with t of Student's distribution: outliers weigh little.

    Its variance is ``scale^2 df / (df - 2)``, and infinite for ``df <= 2``.

    Args:
        scale: The scale: known (a number or ``[out]``), or a prior.
        df: Degrees of freedom, likewise.
        learn: Optimise both as parameters, or those that are named: ``learn=["scale"]``.
        per_row: Multiply ``scale`` by a number of each row, the model's argument ``noise``.

    Raises:
        ArgumentError: If a parameter is not positive, or is to be learned and has a prior.

    Example:
        >>> import torch
        >>> StudentT(scale=2.0, df=4.0).conditional(torch.zeros(7), {}, batch_dims=1).variance[0]
        tensor(8.)
    """

    noise_is_std = False

    def __init__(self, scale: Positive, df: Positive = 4.0, *, learn: Learn = False, per_row: bool = False) -> None:
        super().__init__(per_row=per_row)
        self.add_positive("scale", scale, learn=learn)
        self.add_positive("df", df, learn=learn)

    def conditional(self, f: Tensor, params: Mapping[str, Tensor], *, batch_dims: int) -> TorchDistributionMixin:
        """See :meth:`Likelihood.conditional`."""
        scale = self.parameter("scale", params, f, batch_dims)
        df = self.parameter("df", params, f, batch_dims)
        return dist.StudentT(df, f, scale).to_event(f.dim() - batch_dims)
