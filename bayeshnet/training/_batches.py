"""The batches of a fit, and whether their rows agree with the model's ``dataset_size``."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    default_collate,
)

from bayeshnet.checks import kind_of
from bayeshnet.deprecation import stacklevel_of_user
from bayeshnet.errors import ArgumentError, ArgumentTypeError, CheckpointError, DatasetSizeWarning, RowDataWarning
from bayeshnet.models.capabilities import has_rows
from bayeshnet.models.forms import is_single
from bayeshnet.sites.arguments import call_arguments, inputs_and_targets, require_targets
from bayeshnet.training._minibatches import Minibatches
from bayeshnet.training._random import RandomStates, generators_of

__all__ = ["Batches", "Position"]

_END: Any = object()


@dataclass(frozen=True, slots=True)
class _Rows:
    """What is known of the rows in the data.

    Attributes:
        total: Number of rows.
        accepted: Ranges of sizes of the data set, first and last, that do not contradict it.
        per_batch: Rows of the largest batch.
        exact: Whether ``total`` is the number of rows, or there may be more.
    """

    total: int
    accepted: tuple[tuple[int, int], ...]
    per_batch: int
    exact: bool = True


@dataclass(slots=True)
class Position:
    """A place in the data, and what was counted on the way.

    Attributes:
        passes: Passes that were completed.
        taken: Batches of the present one that were used.
        count: Whether rows are still counted.
        seen: Rows that were.
        num: Batches that were.
        largest: Rows of the largest of them.

    Example:
        >>> Position(passes=2, taken=3).taken
        3
    """

    passes: int = 0
    taken: int = 0
    count: bool = False
    seen: int = 0
    num: int = 0
    largest: int = 0


class Batches:
    """The arguments of the model at each step, without end.

    A warning says so where the ``dataset_size`` of a :class:`~bayeshnet.BayesianModel` is missing, or not that of the
    data: before the first step where lengths are known, else after the first pass, in which the rows are counted.

    Args:
        data: One batch (a tuple, a dict or one tensor), or an iterable of them.
        model: The model.

    Raises:
        ArgumentTypeError: If the data are neither.

    Example:
        >>> batches = iter(Batches([("first",), ("second",)], model=print))
        >>> [next(batches)[0] for _ in range(3)]
        [('first',), ('second',), ('first',)]
    """

    def __init__(self, data: Any, model: Any) -> None:
        self._single = is_single(data)
        if not self._single and (not isinstance(data, Iterable) or isinstance(data, str | bytes)):
            raise ArgumentTypeError(
                f"data: is {kind_of(data)}; pass the model's arguments as a tuple (x, y), or an iterable of "
                "batches such as a DataLoader."
            )
        if isinstance(data, Iterator):
            raise ArgumentTypeError(
                "data: is an iterator, which gives its batches once only; pass a list of batches or a DataLoader."
            )
        self._data: Any = data
        self._model = model if has_rows(model) else None
        self._arguments = call_arguments(data, "data", self._model) if self._single else None
        self._pass: Iterator[Any] | None = None
        self._random: RandomStates | None = None  # those at the start of the pass
        self._generators = generators_of(data)
        self._at = Position(count=self._model is not None)
        self._warned = False
        if self._model is not None and isinstance(data, tuple) and len(data) > 2 and _more_inputs(self._model, data[0]):
            warnings.warn(_third(data[2], self._model), RowDataWarning, stacklevel=stacklevel_of_user())

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if self._arguments is not None:
            return self._arguments
        at = self._at
        while True:
            if self._pass is None:
                self._random = RandomStates.now(self._generators)
                self._pass = iter(self._data)
            batch = next(self._pass, _END)
            if batch is not _END:
                break
            if at.taken == 0:
                raise ArgumentError("data: is an empty iterable; pass at least one batch.")
            if at.passes == 0:
                self.check_counted_size(whole=True)
            at.passes, at.taken, self._pass = at.passes + 1, 0, None
        at.taken += 1
        arguments = call_arguments(batch, "data", self._model)
        if len(arguments[0]) > 2 and not self._warned and self._model is not None:
            self._warned = True
            require_targets(self._model, *arguments, "data")
            warnings.warn(_third(arguments[0][2], self._model), RowDataWarning, stacklevel=stacklevel_of_user())
        if at.count:
            rows = _num_rows(arguments)
            at.seen, at.num, at.largest = at.seen + rows, at.num + 1, max(at.largest, rows)
        return arguments

    # ------------------------------------------------------------------ the place in the data

    def position(self) -> tuple[Position, RandomStates | None]:
        """Return how far the data were gone through, and the random states at the start of the pass."""
        return self._at, self._random

    def go_to(self, position: Position, random: RandomStates | None) -> None:
        """Go to a position in the data, by going through the batches before it in their pass.

        Random numbers are used up for that: set their states afterwards to those of the position.

        Args:
            position: What :meth:`position` returned, for the same data.
            random: The random states at the start of its pass; None if none was begun.

        Raises:
            CheckpointError: If the data have fewer batches.
        """
        self._at, self._random, self._pass = position, random, None
        if random is None:
            return
        random.restore(self._generators)
        self._pass = iter(self._data)
        for taken in range(position.taken):
            if next(self._pass, _END) is _END:
                raise CheckpointError(
                    f"data: end after {taken} batches, and {position.taken} of a pass were used before the file was "
                    "written; pass the data of that fit."
                )

    def random_states(self) -> RandomStates:
        """Return the random states as they are now, those of the data's own generators among them."""
        return RandomStates.now(self._generators)

    def restore_random_states(self, states: RandomStates) -> None:
        """Set all random states to those of :meth:`random_states`."""
        states.restore(self._generators)

    # ------------------------------------------------------------------ how many there are

    @property
    def per_pass(self) -> int | None:
        """Number of batches of a pass; None if it is not known."""
        if self._single:
            return 1
        try:
            return len(self._data)
        except (TypeError, NotImplementedError):  # a loader of a stream has the method, and no length
            return None

    def rows(self) -> tuple[int | None, int | None]:
        """Number of rows, and those of the largest batch, where they are known without going through the data."""
        if self._model is None:
            return None, None
        found = self._known_rows()
        return (None, None) if found is None else (found.total, found.per_batch)

    # ------------------------------------------------------------------ the size of the data set

    def check_known_size(self, *, steps: int) -> None:
        """Warn before the first step, where the number of rows is known without going through the data.

        Args:
            steps: Number of steps to come. A single one may be a part of a loop over batches outside.
        """
        if not self._at.count:
            return
        rows = self._known_rows()
        if rows is None and not self._single:
            return
        self._at.count = False
        one = rows is not None and rows.per_batch == rows.total
        if rows is not None and not (one and steps == 1):
            self._compare(rows)

    def _known_rows(self) -> _Rows | None:
        """What is known of the rows without going through the data."""
        data = self._data
        if isinstance(data, Minibatches):
            return _Rows(data.rows, ((data.rows, data.rows),), data.batch_size)
        if self._single or isinstance(data, list):
            return _rows_of_batches([data] if self._single else data, self._model)
        return _rows_of_loader(data) if isinstance(data, DataLoader) else None

    def check_counted_size(self, *, whole: bool) -> None:
        """Warn after the first pass through the data, or after the last step.

        Args:
            whole: Whether all rows were counted.
        """
        size = None if self._model is None else self._model.dataset_size
        at = self._at
        if not at.count or at.num < 2:
            # A single batch may be a part of a loop over batches outside, or a part of the data as a whole.
            at.count = at.count and not whole
            return
        at.count = False
        # Rows may have been left out to keep batches equal; batches of random sizes hold more or fewer than there are.
        accepted = [(at.seen, at.seen + at.largest - 1)]
        dataset = _length_of_dataset(self._data)
        if dataset is not None:
            accepted.append((dataset, dataset))
        if not whole and size is not None and size > at.seen:
            return  # the others may come later
        self._compare(_Rows(at.seen, tuple(accepted), at.largest, exact=False))

    def _compare(self, rows: _Rows) -> None:
        size = None if self._model is None else self._model.dataset_size
        more = "" if rows.exact else " or more"
        if size is None and rows.per_batch < rows.total:
            message = (
                f"The data come in batches of {rows.per_batch} out of {rows.total} rows{more}, and the model has no "
                "dataset_size: each batch is taken for the whole data set and the prior counts too much. Pass "
                f"BayesianModel(..., dataset_size={rows.total if rows.exact else '<rows of the whole data set>'})."
            )
        elif size is None or any(least <= size <= most for least, most in rows.accepted):
            return
        elif size < rows.per_batch:
            return  # the model refuses such a batch
        elif rows.per_batch == rows.total:
            message = (
                f"The data are one batch of {rows.total} rows, the same at every step, and the model's dataset_size is "
                f"{size}: these rows count as {size}, and the posterior is too narrow. Pass a DataLoader over all "
                f"rows or, if these are all, BayesianModel(..., dataset_size={rows.total})."
            )
        else:
            message = (
                f"The model's dataset_size is {size}, and a pass through the data has {rows.total} rows{more}: the "
                f"posterior is too {'narrow' if size > rows.total else 'wide'}. Pass BayesianModel(..., "
                f"dataset_size={rows.total if rows.exact else '<rows of the whole data set>'})."
            )
        warnings.warn(message, DatasetSizeWarning, stacklevel=stacklevel_of_user())


def _num_rows(arguments: tuple[tuple[Any, ...], dict[str, Any]]) -> int:
    """Number of targets; 0 where there are none, which the model will refuse."""
    _, y = inputs_and_targets(*arguments)
    return len(y) if isinstance(y, Tensor) and y.dim() > 0 else 0


def _rows_of_batches(batches: list[Any], model: Any) -> _Rows | None:
    """Rows of batches in memory; a batch that comes twice counts once."""
    known: dict[int, int] = {}
    for batch in batches:
        if not isinstance(batch, Tensor | Mapping | tuple | list):
            return None
        arguments = call_arguments(batch, "data", model)
        known[id(_raw_targets(batch))] = _num_rows(arguments)
    total = sum(known.values())
    return _Rows(total, ((total, total),), max(known.values())) if total else None


def _raw_targets(batch: Any) -> Any:
    """What makes a batch another one: its targets, or its last part."""
    if isinstance(batch, Mapping):
        return batch.get("y", batch)
    return batch[1] if isinstance(batch, tuple | list) and len(batch) > 1 else batch


def _more_inputs(model: Any, first: Any) -> bool:
    """Whether what follows inputs ``first`` may be one that the network's forward takes and does not require."""
    wanted = getattr(model, "inputs_taken", None)
    if wanted is None or wanted.chosen or isinstance(first, tuple | list | Mapping):
        return False
    return wanted.num == 1 and len(wanted.names) > 1


def _third(value: Any, model: Any) -> str:
    return (
        f"The third part of a batch, {value.dtype} {list(value.shape)}, is taken for weights of the rows. Say so by "
        "name, {'x': ..., 'y': ..., 'weight': ...}; leave it out if it is something else, batch[:2]; or, if it is an "
        f"input of the network (it has inputs: {model.inputs_taken}), pass BayesianModel(..., inputs=2)."
        if isinstance(value, Tensor)
        else "The third part of a batch is taken for weights of the rows; say so by name."
    )


def _rows_of_loader(loader: DataLoader[Any]) -> _Rows | None:
    """Rows of a loader, from the lengths of its parts; None where only counting can tell."""
    dataset, batches = _length_of_dataset(loader), loader.batch_sampler
    # What else puts batches together may make several rows of an entry.
    if dataset is None or type(batches) is not BatchSampler or loader.collate_fn is not default_collate:
        return None
    sampler = batches.sampler
    drawn = len(sampler) if isinstance(sampler, Sized) else dataset
    size = batches.batch_size
    whole = drawn - drawn % size if batches.drop_last else drawn
    accepted = [(whole, drawn)]
    # These may take a part of the rows at each pass, or each row several times.
    partial = isinstance(sampler, RandomSampler | WeightedRandomSampler | DistributedSampler)
    total = dataset if partial or drawn > dataset else drawn
    if not isinstance(sampler, SubsetRandomSampler):
        accepted.append((dataset, dataset))
    return _Rows(total, tuple(accepted), min(size, drawn))


def _length_of_dataset(data: Any) -> int | None:
    """Number of rows in the data set behind a loader that puts them into batches."""
    dataset = getattr(data, "dataset", None)
    if not isinstance(data, DataLoader) or data.batch_sampler is None or isinstance(dataset, IterableDataset):
        return None
    return len(dataset) if isinstance(dataset, Sized) else None
