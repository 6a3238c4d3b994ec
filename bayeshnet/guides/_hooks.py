"""What an ``AutoHypernet`` needs before and after its training."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bayeshnet.inducing.resampling import CALIBRATION_ROWS
from bayeshnet.models.capabilities import has_network
from bayeshnet.sites.arguments import first_rows

if TYPE_CHECKING:
    from bayeshnet.guides.hypernet import AutoHypernet

__all__ = ["finish", "prepare", "stacklevel_of_user"]

_PACKAGE = str(Path(__file__).parents[1] / "_")[:-1]  # with the separator


def prepare(guide: AutoHypernet, model: Callable[..., Any], data: Any) -> None:
    """Give a guide what it lacks: a copy its model, inducing points their rows."""
    if has_network(model):
        guide.attach(model)  # it may be a copy of the one that the guide was built for
    if guide.wants_rows and (rows := first_rows(data, guide.wants_rows)) is not None:
        guide.place_inducing(*rows)


def finish(guide: AutoHypernet, data: Any) -> None:
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


def stacklevel_of_user() -> int:
    """The ``stacklevel`` of ``warnings.warn``, for the caller, with which the warning names a line outside the package.

    Example:
        >>> stacklevel_of_user()
        1
    """
    level, frame = 0, inspect.currentframe()
    while frame is not None and (level == 0 or frame.f_code.co_filename.startswith(_PACKAGE)):
        level, frame = level + 1, frame.f_back
    return level
