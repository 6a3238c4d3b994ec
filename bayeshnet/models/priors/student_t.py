"""Student-t priors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

import pyro.distributions as dist
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from bayeshnet.checks import require_positive
from bayeshnet.formatting import number
from bayeshnet.mnets.param_table import ParamRecord
from bayeshnet.models.priors.scaled import ScaledPrior
from bayeshnet.models.priors.scales import Learn, Loc, Scale
from bayeshnet.models.weight_scaled import ScaledWeights

__all__ = ["StudentT"]


class StudentT(ScaledPrior):
    r"""Independent weights ``loc + scale * t``, with t of a Student-t distribution: heavy tails.

    With more than 2 degrees of freedom the standard deviation is :math:`\mathrm{scale} \sqrt{\nu / (\nu - 2)}`: a rule
    such as ``"fan_in"`` gives that, a number is the scale itself; with 2 or fewer both are the scale.

    Args:
        scale: As for :class:`~bayeshnet.models.priors.ScaledPrior`, like ``loc`` and ``learn``.
        df: Degrees of freedom, a positive number; 1 is a Cauchy distribution.

    Example:
        >>> import torch
        >>> StudentT(2.0, df=4.0).distribution("bias", ParamRecord((2,)), like=torch.zeros(())).variance
        tensor([8., 8.])
    """

    def __init__(
        self,
        scale: float | Tensor | str | Mapping[str, Scale] = 1.0,
        *,
        df: float = 4.0,
        loc: Loc = None,
        learn: Learn | Mapping[str, Learn] = False,
    ) -> None:
        super().__init__(scale, loc=loc, learn=learn)
        require_positive("df", df)
        self.df = float(df)

    def _printed_options(self) -> str:
        return f", df={number(self.df)}"

    @property
    def unit_std(self) -> float:
        """See :attr:`ScaledPrior.unit_std`."""
        return math.sqrt(self.df / (self.df - 2.0)) if self.df > 2.0 else 1.0

    def made(self, loc: Tensor, scale: Tensor, record: ParamRecord) -> TorchDistributionMixin:
        """See :meth:`ScaledPrior.made`."""
        return ScaledWeights(partial(dist.StudentT, loc.new_tensor(self.df)), loc, scale)
