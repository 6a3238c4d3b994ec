"""When to stop a fit: by its losses, or by rows that are held out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from bayeshnet.checks import require_count, require_flag, require_positive

__all__ = ["EarlyStopping", "FlatElbo", "loss_slope"]


def loss_slope(losses: list[float]) -> tuple[float, float]:
    """Return the least-squares slope of a series per step, and its standard error.

    Example:
        >>> loss_slope([3.0, 2.0, 1.0])
        (-1.0, 0.0)
    """
    y = torch.tensor(losses, dtype=torch.double)
    t = torch.arange(len(losses), dtype=torch.double)
    t = t - t.mean()
    spread = t.square().sum()
    slope = (t * y).sum() / spread
    residual = y - y.mean() - slope * t
    error = (residual.square().sum() / (len(losses) - 2) / spread).sqrt() if len(losses) > 2 else torch.tensor(math.inf)
    return float(slope), float(error)


@dataclass(frozen=True)
class FlatElbo:
    """Stop when the ELBO no longer rises: its slope over a window is within its standard error.

    Args:
        window: Number of last steps that the slope is taken over, 10 or more.
        min_steps: Fewest steps before the fit may end.
        every: Number of steps from one look to the next.
        tolerance: Slopes below this many standard errors count as flat.

    Raises:
        ArgumentError: If a number is too small.
        ArgumentTypeError: If an argument is not a number.

    Example:
        >>> stop = FlatElbo(window=10, min_steps=20, every=1)
        >>> stop
        FlatElbo(window=10, min_steps=20, every=1, tolerance=1.0)
        >>> stop([100.0 - step for step in range(30)]), stop([100.0] * 30), stop([100.0] * 10)
        (False, True, False)
    """

    window: int = 500
    min_steps: int = 500
    every: int = 50
    tolerance: float = 1.0

    def __post_init__(self) -> None:
        require_count("window", self.window, least=10)
        require_count("min_steps", self.min_steps, least=0)
        require_count("every", self.every)
        require_positive("tolerance", self.tolerance)

    def __call__(self, losses: list[float]) -> bool:
        """Return whether the series of losses so far is flat at its end."""
        steps = len(losses)
        if steps < max(self.window, self.min_steps) or steps % self.every:
            return False
        slope, error = loss_slope(losses[-self.window :])
        return -slope <= self.tolerance * error


@dataclass(frozen=True)
class EarlyStopping:
    """Stop when held-out rows are predicted no better, and go back to the state that predicted them best.

    For ``fit(..., validation=..., stop=EarlyStopping())``; the curve is ``history.validation``, see
    :class:`~bayeshnet.Validation`.

    Args:
        patience: Number of looks at the held-out rows without a new best one after which the fit ends.
        min_delta: A new best one is lower by more than this, in nats per row.
        restore: Set parameters and buffers of model and guide back to those of the best look, ``history.best_step``,
            whatever the fit ends by (an error apart).

    Raises:
        ArgumentError: If a number is too small.
        ArgumentTypeError: If an argument is of another type.

    Example:
        >>> stop = EarlyStopping(patience=2)
        >>> stop([3.0, 2.0, 2.5]), stop([3.0, 2.0, 2.5, 2.1])
        (False, True)
        >>> stop.best([3.0, 2.0, 2.5, 2.1])
        1
    """

    patience: int = 10
    min_delta: float = 0.0
    restore: bool = True

    watches: ClassVar[str] = "validation"
    """The series of the history that the rule is called with; ``"losses"`` for a rule without this."""

    def __post_init__(self) -> None:
        require_count("patience", self.patience)
        if self.min_delta != 0.0:
            require_positive("min_delta", self.min_delta)
        require_flag("restore", self.restore)

    def best(self, values: Sequence[float]) -> int | None:
        """Return which of these values is the best so far; None if there is none that is a number.

        Example:
            >>> EarlyStopping(min_delta=0.5).best([3.0, 2.9, 2.0])
            2
        """
        found = None
        for i, value in enumerate(values):
            if not math.isnan(value) and (found is None or value < values[found] - self.min_delta):
                found = i
        return found

    def __call__(self, values: Sequence[float]) -> bool:
        """Return whether the best of these values is ``patience`` looks old."""
        best = self.best(values)
        return len(values) - 1 - (-1 if best is None else best) >= self.patience
