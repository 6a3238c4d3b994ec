"""The record of a fit, and when to stop one."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch

from bayeshnet.checks import require_count, require_positive
from bayeshnet.errors import ArgumentError
from bayeshnet.formatting import number, with_error

__all__ = ["FlatElbo", "History", "loss_slope"]

StopReason = Literal["steps", "flat", "callback", "interrupted"]


@dataclass(repr=False)
class History:
    """The record of a fit.

    Attributes:
        losses: The loss of each step, an estimate of minus the ELBO in nats.
        lrs: The learning rate of each step, that of the first parameter group.
        seconds: Wall-clock time of the steps.
        stopped: Why it ended: ``"steps"`` (all were done), ``"flat"`` (the ELBO's slope was within its error),
            ``"callback"`` or ``"interrupted"`` (by Ctrl-C).

    Example:
        >>> history = History(losses=[3.0, 2.5, 2.0, 2.5], lrs=[0.01] * 4, seconds=0.25)
        >>> history
        History(steps=4, elbo=-2.50 ± 0.20, seconds=0.2, stopped='steps')
        >>> len(history)
        4
    """

    losses: list[float] = field(default_factory=list[float])
    lrs: list[float] = field(default_factory=list[float])
    seconds: float = 0.0
    stopped: StopReason = "steps"

    def __len__(self) -> int:
        return len(self.losses)

    def __repr__(self) -> str:
        parts = [f"steps={len(self)}"]
        if self.losses:
            mean, error = self.elbo()
            parts.append(f"elbo={number(mean, digits=4) if math.isnan(error) else with_error(mean, error)}")
        parts += [f"seconds={self.seconds:.1f}", f"stopped={self.stopped!r}"]
        return f"History({', '.join(parts)})"

    def elbo(self, *, last: int = 100) -> tuple[float, float]:
        """Mean ELBO of the last steps and its standard error, in nats.

        Args:
            last: Number of steps; all if there are fewer.

        Returns:
            Mean and standard error, which is NaN for a single step.

        Raises:
            ArgumentError: If no step was made, or ``last`` is not positive.
            ArgumentTypeError: If ``last`` is not an integer.

        Example:
            >>> History(losses=[3.0, 2.0, 1.0, 1.0]).elbo(last=2)
            (-1.0, 0.0)
        """
        require_count("last", last)
        tail = torch.tensor(self.losses[-last:], dtype=torch.double)
        if tail.numel() == 0:
            raise ArgumentError("history: is empty, no step was made; pass that of a fit with one step or more.")
        error = float(tail.std() / math.sqrt(tail.numel())) if tail.numel() > 1 else math.nan
        return -float(tail.mean()), error


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
