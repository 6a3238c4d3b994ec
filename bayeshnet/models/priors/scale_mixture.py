"""Mixtures of Gaussians with one centre."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from bayeshnet.checks import kind_of
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.mnets.param_table import ParamRecord
from bayeshnet.models.priors.scaled import ScaledPrior
from bayeshnet.models.priors.scales import Learn, Loc, Scale
from bayeshnet.models.weight_scaled import MixtureOfScales, ScaledWeights

__all__ = ["ScaleMixture"]


class ScaleMixture(ScaledPrior):
    r"""Independent weights of a mixture of Gaussians, :math:`\sum_k p_k N(\mathrm{loc}, (s \sigma_k)^2)`.

    With a wide and a narrow one it is the spike and slab of Blundell et al. (ICML 2015).

    Args:
        scales: The standard deviations :math:`\sigma_k` of two or more Gaussians.
        probs: Their probabilities; equal by default.
        scale: What all of them are multiplied by, s: as for :class:`~bayeshnet.models.priors.ScaledPrior`, like ``loc``
            and ``learn``. A rule such as ``"fan_in"`` gives the standard deviation of the mixture.

    Raises:
        ArgumentError: If there are fewer than two, one is not positive, or probabilities do not sum to 1.
        ArgumentTypeError: If they are not numbers.

    Example:
        >>> import torch
        >>> prior = ScaleMixture((1.0, 0.1), probs=(0.25, 0.75))
        >>> prior
        ScaleMixture(scale=1, scales=(1.0, 0.1), probs=(0.25, 0.75))
        >>> prior.distribution("bias", ParamRecord((2,)), like=torch.zeros(())).variance
        tensor([0.2575, 0.2575])
    """

    def __init__(
        self,
        scales: Sequence[float] = (1.0, 0.1),
        *,
        probs: Sequence[float] | None = None,
        scale: float | Tensor | str | Mapping[str, Scale] = 1.0,
        loc: Loc = None,
        learn: Learn | Mapping[str, Learn] = False,
    ) -> None:
        super().__init__(scale, loc=loc, learn=learn)
        self.scales = _numbers("scales", scales)
        self.probs = (1.0 / len(self.scales),) * len(self.scales) if probs is None else _numbers("probs", probs)
        if len(self.scales) < 2:
            raise ArgumentError(f"scales: is {self.scales}; pass two or more, or use Normal.")
        if len(self.probs) != len(self.scales):
            raise ArgumentError(f"probs: are {len(self.probs)} for {len(self.scales)} scales; pass as many of each.")
        if not math.isclose(sum(self.probs), 1.0, abs_tol=1e-6):
            raise ArgumentError(f"probs: sum to {sum(self.probs):g}; pass probabilities that sum to 1.")

    def _printed_options(self) -> str:
        return f", scales={self.scales}, probs={self.probs}"

    @property
    def unit_std(self) -> float:
        """See :attr:`ScaledPrior.unit_std`."""
        return math.sqrt(sum(p * s * s for p, s in zip(self.probs, self.scales, strict=True)))

    def made(self, loc: Tensor, scale: Tensor, record: ParamRecord) -> TorchDistributionMixin:
        """See :meth:`ScaledPrior.made`."""
        return ScaledWeights(partial(MixtureOfScales, scales=self.scales, probs=self.probs), loc, scale)


def _numbers(name: str, given: Sequence[float]) -> tuple[float, ...]:
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise ArgumentTypeError(f"{name}: is {kind_of(given)}; pass positive numbers in a tuple.")
    for value in given:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ArgumentTypeError(f"{name}: holds {kind_of(value)}; pass positive numbers in a tuple.")
        if not (value > 0 and math.isfinite(value)):
            raise ArgumentError(f"{name}: holds {value}; pass positive finite numbers.")
    return tuple(float(value) for value in given)
