"""Laplace priors."""

from __future__ import annotations

import math

import pyro.distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from bayeshnet.mnets.param_table import ParamRecord
from bayeshnet.models.priors.scaled import ScaledPrior
from bayeshnet.models.weight_scaled import ScaledWeights

__all__ = ["Laplace"]


class Laplace(ScaledPrior):
    r"""Independent weights of density :math:`p(w) = \exp(-|w - \mathrm{loc}| / b) / 2b`, with scale b.

    Its standard deviation is :math:`\sqrt 2 b`: a rule such as ``"fan_in"`` gives that, a number is b itself. At the
    mode it is the lasso (Williams, Neural Computation 1995). Arguments are those of
    :class:`~bayeshnet.models.priors.ScaledPrior`.

    Example:
        >>> import torch
        >>> Laplace(0.5).distribution("bias", ParamRecord((2,)), like=torch.zeros(())).log_prob(torch.zeros(2))
        tensor(0.)
    """

    @property
    def unit_std(self) -> float:
        """See :attr:`ScaledPrior.unit_std`."""
        return math.sqrt(2.0)

    def made(self, loc: Tensor, scale: Tensor, record: ParamRecord) -> TorchDistributionMixin:
        """See :meth:`ScaledPrior.made`."""
        return ScaledWeights(dist.Laplace, loc, scale)
