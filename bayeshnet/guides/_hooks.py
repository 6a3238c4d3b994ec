"""What a guide with conditional layers needs before and after its training."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from bayeshnet.deprecation import stacklevel_of_user
from bayeshnet.inducing.resampling import CALIBRATION_ROWS
from bayeshnet.models.capabilities import has_network
from bayeshnet.sites.arguments import first_rows

if TYPE_CHECKING:
    from bayeshnet.guides._family_guide import FamilyGuide

__all__ = ["finish", "prepare"]


def prepare(guide: FamilyGuide, model: Callable[..., Any], data: Any) -> None:
    """Give a guide what it lacks: a copy its model, inducing points their rows."""
    if has_network(model):
        guide.attach(model)  # it may be a copy of the one that the guide was built for
    if guide.wants_rows and (rows := first_rows(data, guide.wants_rows)) is not None:
        guide.place_inducing(*rows)


def finish(guide: FamilyGuide, data: Any) -> None:
    """Calibrate importance resampling, check the density, and warn of what is wrong with it.

    Both draw random numbers; the caller's stream goes on as if they had not.
    """
    if guide.num_proposals > 1 and guide.inducing is not None:
        with torch.random.fork_rng(devices=[]):
            rows = first_rows(data, CALIBRATION_ROWS)
            if rows is not None and has_network(guide.original_model):
                guide.calibrate(*rows)
    with torch.random.fork_rng(devices=[]):
        diagnosis = guide.diagnose(num_samples=64, thorough=False)
    for advice in diagnosis.advice:
        warnings.warn(advice, diagnosis.category, stacklevel=stacklevel_of_user())
