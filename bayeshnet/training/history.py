"""The record of a fit, and when to stop one."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch

from bayeshnet.errors import ArgumentError

__all__ = ["FlatElbo", "History", "loss_slope"]

StopReason = Literal["steps", "flat", "callback", "interrupted"]


@dataclass
class History:
    """What happened while fitting.

    Attributes:
        losses: The loss of each step, an estimate of minus the ELBO in nats.
        lrs: The learning rate of each step.
        seconds: Wall-clock time of the steps.
        stopped: Why it ended: ``"steps"`` (all were done), ``"flat"`` (the ELBO's slope vanished in its error),
            ``"callback"`` or ``"interrupted"`` (by Ctrl-C).
    """

    losses: list[float] = field(default_factory=list[float])
    lrs: list[float] = field(default_factory=list[float])
    seconds: float = 0.0
    stopped: StopReason = "steps"

    def __len__(self) -> int:
        return len(self.losses)

    def elbo(self, *, last: int = 100) -> tuple[float, float]:
        """Mean ELBO of the last steps and its standard error, in nats.

        Example:
            >>> History(losses=[3.0, 2.0, 1.0, 1.0]).elbo(last=2)
            (-1.0, 0.0)
        """
        tail = torch.tensor(self.losses[-last:], dtype=torch.double)
        if tail.numel() == 0:
            raise ArgumentError("history: is empty, no step was made.")
        error = float(tail.std() / math.sqrt(tail.numel())) if tail.numel() > 1 else math.nan
        return -float(tail.mean()), error


def loss_slope(losses: list[float]) -> tuple[float, float]:
    """Least-squares slope of a series per step, and its standard error.

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
        window: Number of last steps that the slope is taken of.
        min_steps: Not before so many steps.
        every: How often to look.
        tolerance: Slopes below this many standard errors count as flat.

    Raises:
        ValueError: If a number is too small.
    """

    window: int = 500
    min_steps: int = 500
    every: int = 50
    tolerance: float = 1.0

    def __post_init__(self) -> None:
        if self.window < 10 or self.every < 1 or self.tolerance <= 0:
            raise ArgumentError(
                f"window, every, tolerance: are {self.window}, {self.every}, {self.tolerance}; pass at least 10, at "
                "least 1, and a positive number."
            )

    def __call__(self, losses: list[float]) -> bool:
        """Whether the series of losses so far is flat at its end."""
        steps = len(losses)
        if steps < max(self.window, self.min_steps) or steps % self.every:
            return False
        slope, error = loss_slope(losses[-self.window :])
        return -slope <= self.tolerance * error
