"""Callbacks that write the course of a fit elsewhere."""

from __future__ import annotations

import csv
import math
import os
from pathlib import Path
from typing import Any

from bayeshnet.checks import kind_of, require_count
from bayeshnet.errors import ArgumentTypeError
from bayeshnet.training.history import History

__all__ = ["CsvLogger", "TensorBoardLogger"]

_COLUMNS = ("step", "loss", "log_likelihood", "kl", "lr", "validation")


def _values(step: int, history: History) -> dict[str, float]:
    """What is known of a step, by name."""
    found = {"loss": history.losses[-1], "lr": history.lrs[-1]}
    if history.kl:
        found |= {"log_likelihood": history.log_likelihood[-1], "kl": history.kl[-1]}
    if history.validation_steps and history.validation_steps[-1] == step:
        found["validation"] = history.validation[-1]
    return found


class CsvLogger:
    """A callback that writes a line for each step to a CSV file.

    Columns are ``step``, ``loss``, ``log_likelihood``, ``kl``, ``lr`` and ``validation``; what is not known at a step
    is left empty. Each line is in the file once it is written, whatever happens afterwards. The first step of a fit
    begins the file anew; a fit that is resumed from a checkpoint goes on with it.

    Args:
        path: The file.
        every: Number of steps from one line to the next; a step with held-out rows is always written.

    Raises:
        ArgumentTypeError: If an argument is of another type.
        ArgumentError: If ``every`` is not positive.

    Example:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> log = CsvLogger(f"{folder.name}/fit.csv")
        >>> log(0, History(losses=[2.5], lrs=[0.01], log_likelihood=[-1.5], kl=[1.0]))
        >>> print(Path(folder.name, "fit.csv").read_text().strip())
        step,loss,log_likelihood,kl,lr,validation
        0,2.5,-1.5,1.0,0.01,
        >>> folder.cleanup()
    """

    def __init__(self, path: str | os.PathLike[str], *, every: int = 1) -> None:
        if not isinstance(path, str | os.PathLike):
            raise ArgumentTypeError(f"path: is {kind_of(path)}; pass a file name, such as 'fit.csv'.")
        require_count("every", every)
        self.path, self.every = Path(path), every
        self._next: int | None = None  # the step after the last one that was seen

    def __call__(self, step: int, history: History) -> None:
        """Write a step."""
        if step != self._next:
            self._begin(step)
        self._next = step + 1
        known = _values(step, history)
        if step % self.every == 0 or "validation" in known:
            self._append([step, *(known.get(name, "") for name in _COLUMNS[1:])])

    def _begin(self, step: int) -> None:
        """Begin the file, or drop the lines that come after a step that a fit went back to."""
        kept: list[list[str]] = []
        if step > 0 and self.path.exists():
            with self.path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.reader(file))[1:]
            # A line that was cut off by the death of its process is left out, and whatever else is none of a step.
            kept = [row for row in rows if len(row) == len(_COLUMNS) and row[0].isdecimal() and int(row[0]) < step]
        with self.path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([_COLUMNS, *kept])

    def _append(self, row: list[Any]) -> None:
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerow(row)


class TensorBoardLogger:
    """A callback that gives the course of a fit to a writer of TensorBoard.

    Scalars are ``loss``, ``lr``, and ``log_likelihood``, ``kl`` and ``validation`` where they are known.

    Args:
        writer: A ``torch.utils.tensorboard.SummaryWriter``, or anything else with ``add_scalar(tag, value, step)``.
        every: Number of steps from one point to the next; held-out rows are always written.
        prefix: Start of the tags.

    Raises:
        ArgumentTypeError: If an argument is of another type.
        ArgumentError: If ``every`` is not positive.

    Example:
        >>> class Writer:
        ...     def add_scalar(self, tag, value, step):
        ...         print(step, tag, value)
        >>> log = TensorBoardLogger(Writer())
        >>> log(0, History(losses=[2.5], lrs=[0.01]))
        0 fit/loss 2.5
        0 fit/lr 0.01
    """

    def __init__(self, writer: Any, *, every: int = 1, prefix: str = "fit/") -> None:
        if not callable(getattr(writer, "add_scalar", None)):
            raise ArgumentTypeError(
                f"writer: is {kind_of(writer)}, which has no add_scalar; pass a SummaryWriter of TensorBoard."
            )
        require_count("every", every)
        self.writer, self.every, self.prefix = writer, every, prefix

    def __call__(self, step: int, history: History) -> None:
        """Write a step."""
        known = _values(step, history)
        if step % self.every:
            known = {name: value for name, value in known.items() if name == "validation"}
        for name, value in known.items():
            if not math.isnan(value):
                self.writer.add_scalar(f"{self.prefix}{name}", value, step)
