"""The steps of a fit, and all that happens between two of them."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pyro
from torch import Tensor

from bayeshnet.errors import BayeshnetError
from bayeshnet.models.capabilities import vectorises
from bayeshnet.sites.arguments import require_targets
from bayeshnet.sites.data_errors import call_error
from bayeshnet.training._batches import Batches
from bayeshnet.training._checks import checked_elbo
from bayeshnet.training._learned_state import copied, learned_tensors, write_back
from bayeshnet.training._random import RandomStates
from bayeshnet.training._trainer import Trainer
from bayeshnet.training.history import History
from bayeshnet.training.validation import Validation

if TYPE_CHECKING:
    from bayeshnet.training._resume import FitFile

__all__ = ["Loop"]


class Loop:
    """The steps of a fit.

    Args:
        trainer: Makes a step.
        batches: The data.
        history: Takes what is noted; the steps in it count as done.
        steps: Number of steps in all.
        stop: The stopping rule, or None.
        callbacks: Called after each step.
        validation: The held-out rows and the steps from one look at them to the next, or None.
        file: Where the state is written between steps, or None.
        check_elbo: Whether it is tried out in the first step if particles can be vectorised.

    Attributes:
        best_state: What was learned by the best look at the held-out rows, if it is to be restored.
        validation_start: Where the random numbers of each look begin.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro.infer import Trace_ELBO
        >>> from pyro.infer.autoguide import AutoNormal
        >>> from tqdm.auto import tqdm
        >>> model = lambda: pyro.sample("z", dist.Normal(1.0, 1.0))
        >>> trainer = Trainer(model, AutoNormal(model), Trace_ELBO(), 0.1, lambda step: 1.0, None, None)
        >>> loop = Loop(trainer, Batches((), model), History(), 3)
        >>> loop.run(tqdm(disable=True))
        >>> len(loop.history)
        3
    """

    def __init__(
        self,
        trainer: Trainer,
        batches: Batches,
        history: History,
        steps: int,
        *,
        stop: Callable[[list[float]], bool] | None = None,
        callbacks: Sequence[Callable[[int, History], bool | None]] = (),
        validation: tuple[Validation, int] | None = None,
        file: FitFile | None = None,
        check_elbo: bool = False,
    ) -> None:
        self.trainer, self.batches, self.history, self.steps = trainer, batches, history, steps
        self.stop, self.callbacks, self.validation, self.file = stop, callbacks, validation, file
        self.check_elbo = check_elbo
        self.validation_start = None if validation is None else RandomStates.now()
        self.best_state: dict[str, Tensor] | None = None

    def run(self, bar: Any) -> None:
        """Make the steps that are left.

        Args:
            bar: A progress bar of tqdm.
        """
        history, first = self.history, len(self.history)
        with contextlib.ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            # Pyro's warning of a NaN loss; an error that says more follows.
            warnings.filterwarnings("ignore", message="Encountered NaN", category=UserWarning)
            for step in range(first, self.steps):
                args, kwargs = next(self.batches)
                self._make(step, args, kwargs)
                if step == first:
                    # Pyro's checks are worth their time once; they are what a wrong model or guide fails on.
                    stack.enter_context(pyro.validation_enabled(False))
                    if self.file is not None:
                        self.file.check(self.trainer)
                bar.update()
                if step % 50 == 0:
                    bar.set_postfix_str(f"-ELBO {history.losses[-1]:.4g}", refresh=False)
                looked = self._look(step)
                ends = [callback(step, history) for callback in self.callbacks]  # all, even if one ends the fit
                if any(ends):
                    history.stopped = "callback"
                    return
                if self._stops(looked=looked):
                    return
                if self.file is not None and (step + 1) % self.file.every == 0 and step + 1 < self.steps:
                    self.file.write(self, finished=False)

    def restore_best(self) -> None:
        """Go back to the state of the best look at the held-out rows, if that was kept."""
        if self.best_state is not None:
            write_back(self._learned(), self.best_state)

    def _make(self, step: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Make a step, and note it in the history."""
        trainer, history = self.trainer, self.history
        require_targets(trainer.model, args, kwargs, "data")
        if step == 0 and self.check_elbo and not vectorises(trainer.model):
            elbo = checked_elbo(trainer.elbo, trainer.model, trainer.guide, args, kwargs)
            if elbo is not trainer.elbo:
                trainer.use(elbo)
        try:
            made = trainer.step(step, args, kwargs)
        except BayeshnetError:
            raise
        except TypeError as error:
            if (wrong := call_error(trainer.model, args, kwargs, "data")) is None:
                raise
            raise wrong from error
        history.losses.append(made.loss)
        history.lrs.append(made.rate)
        if made.log_likelihood is not None:
            history.log_likelihood.append(made.log_likelihood)
            history.kl.append(made.loss + made.log_likelihood)

    def _look(self, step: int) -> bool:
        """Look at the held-out rows, if it is time to."""
        if self.validation is None or self.validation_start is None:
            return False
        rows, every = self.validation
        if (step + 1) % every and step + 1 < self.steps:
            return False
        trainer, history = self.trainer, self.history
        history.validation.append(rows.score(trainer.model, trainer.guide, self.validation_start))
        history.validation_steps.append(step)
        if getattr(self.stop, "restore", False):
            best = getattr(self.stop, "best")(history.validation)  # noqa: B009 - of a rule that restores
            if best == len(history.validation) - 1:
                self.best_state = copied(self._learned())
                history.best_step = step
        return True

    def _stops(self, *, looked: bool) -> bool:
        if self.stop is None:
            return False
        by_rows = getattr(self.stop, "watches", "losses") == "validation"
        if by_rows and not looked:
            return False
        if not self.stop(self.history.validation if by_rows else self.history.losses):
            return False
        self.history.stopped = "validation" if by_rows else "flat"
        return True

    def _learned(self) -> dict[str, Tensor]:
        trainer = self.trainer
        return learned_tensors(trainer.model, trainer.guide, trainer.params)
