"""Learning rates by step: a function to a factor, or a scheduler of torch."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, TypeAlias, cast

import torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from bayeshnet.checks import kind_of, shown
from bayeshnet.errors import ArgumentError, ArgumentTypeError, BayeshnetError, CheckpointError, UsageError

__all__ = ["SCHEDULE", "LearningRates", "Schedule", "flat_then_cosine", "makes_scheduler"]

Schedule: TypeAlias = (
    "Callable[[int], float] | Callable[[torch.optim.Optimizer], LRScheduler] | type[LRScheduler] | LRScheduler"
)

_FROM_OPTIMIZER = "lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 100)"
SCHEDULE = (
    "a function from the step to a factor of lr, lambda step: 0.999**step, or from the optimiser to a scheduler, "
    f"{_FROM_OPTIMIZER}"
)
"""What can be passed as ``lr_schedule``, for messages."""


def flat_then_cosine(steps: int, *, flat: float = 0.4, final: float = 0.02) -> Callable[[int], float]:
    """Return a schedule: a factor of 1 for a share of the steps, then a cosine down to ``final``.

    Args:
        steps: Number of steps.
        flat: Share of the steps with a factor of 1.
        final: Factor of the last step.

    Returns:
        A function from the step to the factor, for ``lr_schedule`` of :func:`fit`.

    Example:
        >>> schedule = flat_then_cosine(1000)
        >>> schedule(0), schedule(399), round(schedule(999), 3)
        (1.0, 1.0, 0.02)
    """

    def factor(step: int) -> float:
        start = flat * steps
        if step < start or steps <= 1:
            return 1.0
        progress = min(1.0, (step - start) / max(1.0, steps - 1 - start))
        return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))

    return factor


def makes_scheduler(given: Any) -> bool:
    """Whether a value is a class of torch schedulers, or a ``functools.partial`` of one.

    Example:
        >>> makes_scheduler(torch.optim.lr_scheduler.StepLR), makes_scheduler(lambda step: 1.0)
        (True, False)
    """
    made: Any = cast("Any", given).func if isinstance(given, functools.partial) else given
    return isinstance(made, type) and issubclass(made, LRScheduler)


class LearningRates:
    """The learning rates of an optimiser's groups, step by step.

    What is given is looked at in the first step, when there is an optimiser. A function is called with the step, as one
    that returns factors is at every step; if it cannot take a number, it is called with the optimiser.

    Args:
        given: A function from the step to a factor, a function from the optimiser to a scheduler of torch, a class of
            schedulers or a partial of one, or a scheduler of the very optimiser that is used.

    Example:
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.8)
        >>> rates = LearningRates(lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5))
        >>> used = []
        >>> for step in range(3):
        ...     used.append(rates.set(optimizer, step))
        ...     optimizer.step()
        ...     rates.advance(loss=0.0, step=step)
        >>> used
        [0.8, 0.4, 0.2]
    """

    def __init__(self, given: Schedule) -> None:
        self._given: Any = given
        self._scheduler: LRScheduler | None = None
        self._begun = False

    def set(self, optimizer: torch.optim.Optimizer, step: int) -> float:
        """Set the rates of a step, before its update.

        Args:
            optimizer: The optimiser, the same at every step.
            step: Number of the step.

        Returns:
            The rate of the first group.

        Raises:
            ArgumentError: If a factor or a rate is negative or not finite, or a scheduler cannot be made, or is one of
                another optimiser.
            ArgumentTypeError: If what was given is neither a schedule nor a scheduler, or does not make one.
        """
        factor = None if self._begun else self.begin(optimizer, step)
        if self._scheduler is None:
            value = _checked_factor(self._given(step) if factor is None else factor, step)
            for group in optimizer.param_groups:
                group["lr"] = group.setdefault("full_lr", group["lr"]) * value
        else:
            self._check_rates(self._scheduler, step)
        return float(optimizer.param_groups[0]["lr"])

    def advance(self, loss: float, step: int) -> None:
        """Step the scheduler, if there is one, after the update.

        Args:
            loss: The loss of the step, for ``ReduceLROnPlateau``.
            step: Number of the step.

        Raises:
            ArgumentError: If the scheduler fails, as one that is made for fewer steps does.
        """
        scheduler = self._scheduler
        try:
            if isinstance(scheduler, ReduceLROnPlateau):
                scheduler.step(loss)
            elif scheduler is not None:
                scheduler.step()
        except (ValueError, TypeError, RuntimeError) as error:
            raise ArgumentError(
                f"lr_schedule: {type(scheduler).__name__} fails after step {step} ({error}); pass a scheduler that is "
                "made for all steps of the fit."
            ) from error

    def state(self) -> dict[str, Any] | None:
        """The state of the scheduler of torch, if there is one; a function of the step has none."""
        return None if self._scheduler is None else self._scheduler.state_dict()

    def load(self, state: dict[str, Any] | None) -> None:
        """Give the scheduler the state of :meth:`state`, after :meth:`begin` has made it.

        Raises:
            CheckpointError: If there is one here and none there, or the other way round.
        """
        if (self._scheduler is None) != (state is None):
            raise CheckpointError(
                "checkpoint: lr_schedule is a function of the step, and a scheduler of torch in the file, or the other "
                "way round; pass that of the fit."
            )
        if self._scheduler is not None and state is not None:
            self._scheduler.load_state_dict(state)

    def refuse_new(self, names: list[str], step: int) -> None:
        """Raise if parameters appear that the scheduler does not know.

        Args:
            names: The parameters that are new.
            step: Number of the step.

        Raises:
            UsageError: If there is a scheduler, which has seen the groups of the first step only.
        """
        if self._scheduler is not None:
            raise UsageError(
                f"lr_schedule: {type(self._scheduler).__name__} knows the parameters of the first step only, and "
                f"{', '.join(map(repr, names[:4]))} appeared at step {step}; pass a function from the step to a "
                "factor, or make all parameters in the first step."
            )

    # ------------------------------------------------------------------ what is given

    def begin(self, optimizer: torch.optim.Optimizer, step: int) -> Any:
        """Find out what was given: note the scheduler, or return the first factor.

        Args:
            optimizer: The optimiser.
            step: Number of the first step.
        """
        self._begun = True
        made = self._given
        if makes_scheduler(made):
            made = _scheduler_from(made, optimizer)
        elif not isinstance(made, LRScheduler):
            try:
                made = made(step)
            except BayeshnetError:
                raise
            except Exception as error:  # whatever a function of the optimiser makes of a number
                made = _scheduler_from(self._given, optimizer, error)
        if not isinstance(made, LRScheduler):
            return made
        if getattr(made, "optimizer", None) is not optimizer:
            raise ArgumentError(
                f"lr_schedule: is {kind_of(made)} of another optimiser than that of the fit; pass a function of the "
                f"optimiser, {_FROM_OPTIMIZER}, or return the scheduler's optimiser from optimizer=."
            )
        self._scheduler = made
        return None

    @staticmethod
    def _check_rates(scheduler: LRScheduler, step: int) -> None:
        for group in scheduler.optimizer.param_groups:
            rate = float(group["lr"])
            if not 0.0 <= rate < math.inf:
                raise ArgumentError(
                    f"lr_schedule: {type(scheduler).__name__} sets a learning rate of {rate:g} at step {step}; pass a "
                    "scheduler whose rates are finite and 0 or more."
                )


def _checked_factor(made: Any, step: int) -> float:
    """What a schedule has returned, if a learning rate can be multiplied by it."""
    try:
        value = float(made)
    except (TypeError, ValueError, RuntimeError):
        raise ArgumentTypeError(f"lr_schedule: returned {shown(made)} at step {step}; pass {SCHEDULE}.") from None
    if not 0.0 <= value < math.inf:
        raise ArgumentError(f"lr_schedule: is {value:g} at step {step}; return a finite factor, 0 or more.")
    return value


def _scheduler_from(given: Any, optimizer: torch.optim.Optimizer, first: Exception | None = None) -> LRScheduler:
    """Make a scheduler of the optimiser.

    Args:
        given: A class, a partial or a function.
        optimizer: The optimiser.
        first: What a function raised that was called with a step.

    Raises:
        ArgumentError: If that fails.
        ArgumentTypeError: If it fails by a wrong call, or something else is returned.
    """
    try:
        made = given(optimizer)
    except BayeshnetError:
        raise
    except Exception as error:
        if first is not None and not isinstance(first, TypeError | AttributeError):
            raise first from None  # an error of a function of the step
        kind = ArgumentTypeError if isinstance(error, TypeError) else ArgumentError
        also = "" if first is None else f"fails for a step ({first}), and "
        raise kind(f"lr_schedule: {also}fails for the optimiser ({error}); pass {SCHEDULE}.") from error
    if isinstance(made, LRScheduler):
        return made
    raise ArgumentTypeError(f"lr_schedule: returned {shown(made)} for the optimiser; pass {SCHEDULE}.") from first
