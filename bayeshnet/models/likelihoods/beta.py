"""Fractions between 0 and 1."""

from __future__ import annotations

from collections.abc import Mapping

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.infer.util import is_validation_enabled
from torch import Size, Tensor

from bayeshnet.models.likelihoods._targets import RealTargets, refuse_outside
from bayeshnet.models.likelihoods.parameters import ParametricLikelihood, Positive

__all__ = ["Beta"]


class Beta(RealTargets, ParametricLikelihood):
    r"""Fractions between 0 and 1, :math:`y \sim \mathrm{Beta}(\mu c, (1 - \mu) c)` with :math:`\mu = 1 / (1 + e^{-f})`.

    The mean is :math:`\mu`, the variance :math:`\mu (1 - \mu) / (1 + c)`.

    Args:
        concentration: The number c: known (a number or ``[out]``), or a prior. The larger, the less noise.
        learn: Optimise it as a parameter.

    Raises:
        ArgumentError: If the concentration is not positive, or is to be learned and has a prior.

    Example:
        >>> Beta(concentration=3.0).conditional(torch.zeros(7), {}, batch_dims=1).variance[0]
        tensor(0.0625)
    """

    standardizes_targets = False  # fractions are between 0 and 1

    def __init__(self, concentration: Positive, *, learn: bool = False) -> None:
        super().__init__()
        self.add_positive("concentration", concentration, learn=learn)

    def conditional(self, f: Tensor, params: Mapping[str, Tensor], *, batch_dims: int) -> TorchDistributionMixin:
        """See :meth:`Likelihood.conditional`."""
        concentration = self.parameter("concentration", params, f, batch_dims)
        least = torch.finfo(f.dtype).tiny  # a density needs both positive
        one, zero = torch.sigmoid(f) * concentration, torch.sigmoid(-f) * concentration
        return dist.Beta(one.clamp(min=least), zero.clamp(min=least)).to_event(f.dim() - batch_dims)

    def check_target(self, y: Tensor, event_shape: Size) -> None:
        """See :meth:`Likelihood.check_target`."""
        super().check_target(y, event_shape)
        if is_validation_enabled():
            n = y.numel()
            wanted = f"the numbers between 0 and 1; of n fractions with exact 0 or 1 pass (y * ({n} - 1) + 0.5) / {n}"
            refuse_outside(y, (y <= 0) | (y >= 1), wanted)

    def pseudo_targets(self, y: Tensor, num_outputs: int) -> Tensor | None:
        """See :meth:`Likelihood.pseudo_targets`: the logits of the fractions."""
        return torch.logit(y.double().reshape(len(y), -1), eps=1e-3)

    def noise_level(self, y: Tensor) -> float:
        """See :meth:`Likelihood.noise_level`: half of the spread of the logits."""
        return 0.5 * float(torch.logit(y.double(), eps=1e-3).std()) if y.numel() > 1 else 1.0
