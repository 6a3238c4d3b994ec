"""What kinds of targets there are, and what is said of others."""

from __future__ import annotations

from abc import ABC

from pyro.infer.util import is_validation_enabled
from torch import Size, Tensor

from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.models.likelihoods.base import Likelihood
from bayeshnet.models.likelihoods.parameters import ParametricLikelihood

__all__ = ["Counts", "LocationLikelihood", "RealTargets", "refuse_outside"]


class RealTargets(Likelihood, ABC):
    """A likelihood of real numbers."""

    standardizes_targets = True

    def check_target(self, y: Tensor, event_shape: Size) -> None:
        """See :meth:`Likelihood.check_target`."""
        if not y.is_floating_point():
            kind = type(self).__name__
            raise ArgumentTypeError(f"y: has dtype {y.dtype}; a {kind} likelihood needs floating-point targets.")


class LocationLikelihood(RealTargets, ParametricLikelihood, ABC):
    """A likelihood whose outputs are the location of the targets, in their units."""

    def pseudo_targets(self, y: Tensor, num_outputs: int) -> Tensor | None:
        """See :meth:`Likelihood.pseudo_targets`: the targets themselves."""
        return y.double().reshape(len(y), -1)


class Counts(Likelihood, ABC):
    """A likelihood of whole numbers, 0 or more."""

    integer_targets = True

    def check_target(self, y: Tensor, event_shape: Size) -> None:
        """See :meth:`Likelihood.check_target`."""
        if y.is_complex():
            raise ArgumentTypeError(f"y: has dtype {y.dtype}; a {type(self).__name__} likelihood needs counts.")
        if is_validation_enabled():
            refuse_outside(y, (y < 0) | (y.floor() != y if y.is_floating_point() else y < 0), "counts 0, 1, 2, ...")


def refuse_outside(y: Tensor, bad: Tensor, wanted: str) -> None:
    """Raise if targets are no values of the likelihood; those that are NaN are looked at elsewhere.

    Args:
        y: Targets.
        bad: Which of them are not allowed.
        wanted: What is.

    Raises:
        ArgumentError: If there are some.
    """
    bad = bad & ~y.isnan()
    if bool(bad.any()):
        first = y[bad].flatten()[0].item()
        raise ArgumentError(f"y: {int(bad.sum())} of {y.numel()} entries, such as {first:g}, are none of {wanted}.")
