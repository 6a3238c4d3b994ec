"""The record of a fit."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch

from bayeshnet.checks import require_count
from bayeshnet.errors import ArgumentError
from bayeshnet.formatting import number, with_error

__all__ = ["History"]

StopReason = Literal["steps", "flat", "validation", "callback", "interrupted"]


@dataclass(repr=False)
class History:
    """The record of a fit.

    Attributes:
        losses: The loss of each step, an estimate of minus the ELBO in nats.
        lrs: The learning rate of each step, that of the first parameter group.
        seconds: Wall-clock time of the steps.
        stopped: Why it ended: ``"steps"`` (all were done), ``"flat"`` or ``"validation"`` (by the stopping rule, of the
            losses or of the held-out rows), ``"callback"`` or ``"interrupted"`` (by Ctrl-C).
        log_likelihood: The part of each step's ELBO that the observations have, in nats: the sum over all observed
            sites, scaled and weighted as it counts in the loss. Empty for an ELBO that does not tell, see :func:`fit`.
        kl: The other part: ``losses = kl - log_likelihood``, the (estimated) divergence of the guide from the prior.
        validation: Minus the mean log predictive density of the held-out rows, in nats per row, each time that it was
            evaluated; see :class:`~bayeshnet.Validation`.
        validation_steps: The step after which each of them was.
        best_step: The step whose state was restored in the end; None unless the stopping rule keeps the best one.
        rows: Number of rows of the data; None where it is not known.
        batch_size: Rows of the largest batch; None where it is not known.
        num_particles: Posterior samples of a step; None for an ELBO that does not tell.
        resumed_from: Number of steps that were read from a file, the last time that the fit went on; None if it began.

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
    log_likelihood: list[float] = field(default_factory=list[float])
    kl: list[float] = field(default_factory=list[float])
    validation: list[float] = field(default_factory=list[float])
    validation_steps: list[int] = field(default_factory=list[int])
    best_step: int | None = None
    rows: int | None = None
    batch_size: int | None = None
    resumed_from: int | None = None
    num_particles: int | None = None

    def __len__(self) -> int:
        return len(self.losses)

    def __repr__(self) -> str:
        parts = [f"steps={len(self)}"]
        if self.rows is not None and self.batch_size is not None and self.batch_size < self.rows:
            parts.append(f"batch={self.batch_size} of {self.rows} rows")
        if self.num_particles not in (None, 16):
            parts.append(f"num_particles={self.num_particles}")
        if self.losses:
            mean, error = self.elbo()
            parts.append(f"elbo={number(mean, digits=4) if math.isnan(error) else with_error(mean, error)}")
        if self.validation:
            looked_at = self.validation[-1]
            if self.best_step in self.validation_steps:
                looked_at = self.validation[self.validation_steps.index(self.best_step)]
            parts.append(f"validation={number(looked_at, digits=4)}")
        if self.best_step is not None:
            parts.append(f"best_step={self.best_step}")
        if self.resumed_from is not None:
            parts.append(f"resumed_from={self.resumed_from}")
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
