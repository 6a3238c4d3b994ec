"""Rows of inputs and targets, from tensors, arrays or batches, in blocks of one size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from bayeshnet.checks import kind_of
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.models.forms import (
    as_numbers,
    as_tensor,
    fit_together,
    is_single,
    joined,
    leaves,
    mapped,
    num_rows,
    rows_of,
)
from bayeshnet.sites.arguments import call_arguments, inputs_and_targets, row_arguments

__all__ = ["Rows", "checked_row_data", "spanned", "taken_inputs"]


_Block: TypeAlias = "tuple[Any, Tensor | None, dict[str, Tensor]]"  # inputs, targets, what else is given by name


def taken_inputs(model: Any, x: Any) -> Any:
    """Inputs in the form that the model evaluates its network with: ``model.as_inputs(x)``, if it has that.

    Example:
        >>> taken_inputs(print, (1, 2))
        (1, 2)
    """
    own = getattr(model, "as_inputs", None)
    return x if own is None else own(x)


def spanned(of_rows: Mapping[str, Tensor], chosen: slice) -> dict[str, Tensor]:
    """What is given with each row, of some rows.

    Example:
        >>> spanned({"noise": torch.arange(4)}, slice(1, 3))
        {'noise': tensor([1, 2])}
    """
    return {name: value[chosen] for name, value in of_rows.items()}


def checked_row_data(rows: int, device: torch.device, **given: Any) -> dict[str, Tensor]:
    """What is given with each row, without what is not; whether the likelihood takes it, the model says.

    Args:
        rows: Number of rows.
        device: Where to bring it.
        given: Tensors ``[B, ...]`` by name, or None.

    Raises:
        ArgumentTypeError: If something is no tensor.
        ArgumentError: If there is not one entry for each row.

    Example:
        >>> checked_row_data(2, torch.device("cpu"), noise=torch.ones(2), exposure=None)
        {'noise': tensor([1., 1.])}
    """
    found: dict[str, Tensor] = {}
    for name, one in given.items():
        if one is None:
            continue
        value = as_numbers(one, name, torch.zeros((), device=device), keep=True)
        if not isinstance(value, Tensor):
            raise ArgumentTypeError(f"{name}: is {kind_of(value)}; pass a tensor [B], one number for each row.")
        if value.shape[:1] != (rows,):
            raise ArgumentError(f"{name}: has shape {tuple(value.shape)} for {rows} rows; pass one for each row.")
        found[name] = value.to(device)
    return found


class Rows:
    """Inputs, and targets if they are wanted, row by row in their order.

    Args:
        data: Inputs in the forms of :mod:`bayeshnet.models.forms`; a dict with ``x``; or an iterable of batches, whose
            batches are inputs, ``(x, y, ...)`` or a dict with ``x`` and ``y``.
        targets: Targets ``[B, ...]`` of inputs that are given as a whole; True for those in the data.
        like: Arrays become tensors of its dtype.
        model: The model that they are for, which may know more forms.
        wants: Names of what the likelihood needs of each row beside them, which is taken from dicts and batches.
        of_rows: Such values ``[B, ...]`` by name, or None, for inputs that are given as a whole.

    Attributes:
        total: Number of rows, None if it is not known before.

    Raises:
        ArgumentTypeError: If data or targets are something else.
        ArgumentError: If numbers of rows differ.

    Example:
        >>> blocks = Rows([(torch.zeros(3, 2), torch.ones(3)), (torch.zeros(2, 2), torch.ones(2))], True, torch.ones(1))
        >>> [(x.shape[0], y.shape[0]) for x, y, _ in blocks.blocks(4)]
        [(4, 4), (1, 1)]
    """

    def __init__(
        self,
        data: Any,
        targets: Any,
        like: Tensor,
        *,
        model: Any = None,
        wants: Sequence[str] = (),
        **of_rows: Any,
    ) -> None:
        self._like, self._targets, self._wants, self._model = like, targets, wants, model
        self._of_rows = {name: value for name, value in of_rows.items() if value is not None}
        self._wanted = targets is not None and targets is not False
        self._whole = is_single(data)
        if not self._whole and (not isinstance(data, Iterable) or isinstance(data, str | bytes)):
            raise ArgumentTypeError(
                f"data: is {kind_of(data)}; pass inputs [B, ...], a tuple of the network's arguments, or an iterable "
                "of batches such as a DataLoader."
            )
        if not self._whole and isinstance(targets, Tensor):
            raise ArgumentTypeError(
                "targets: is a tensor, and data are batches; pass targets=True for those in the batches (x, y)."
            )
        for name in () if self._whole else self._of_rows:
            raise ArgumentTypeError(
                f"{name}: is given, and data are batches; put it into them: {{'x': ..., {name!r}: ...}}."
            )
        self._data: Any = [data] if self._whole else iter(data)
        self.total: int | None = None
        if self._whole:
            self.total = num_rows(self._pair(data)[0])
        elif isinstance(data, DataLoader):
            dataset: Any = data.dataset
            whole = data.batch_size is not None and not data.drop_last and hasattr(dataset, "__len__")
            self.total = len(dataset) if whole and type(data.sampler).__name__ == "SequentialSampler" else None

    def _pair(self, batch: Any) -> _Block:
        """The rows of a batch; of inputs that are given as a whole, a tuple is the network's arguments."""
        y: Any = None
        given: dict[str, Any] = {}
        named = isinstance(batch, Mapping) and ("x" in batch or "y" in batch or not self._of_network(batch))
        if named or (not self._whole and isinstance(batch, list | tuple)):
            if not batch:
                raise ArgumentError("data: has an empty batch; pass inputs, or pairs (x, y).")
            args, kwargs = call_arguments(batch, "data", self._model)
            x, y = inputs_and_targets(args, kwargs)
            if x is None:
                raise ArgumentError(f"data: has the keys {list(batch)}; pass inputs as 'x', and targets as 'y'.")
            given = {name: value for name, value in row_arguments(args, kwargs).items() if name in self._wants}
        else:
            x = taken_inputs(self._model, batch)
        x = mapped(x, lambda _, part: self._tensor(part, as_tensor))
        first = next((part for _, part in leaves(x)), None)
        if not isinstance(first, Tensor):
            raise ArgumentTypeError(f"data: inputs are {kind_of(first)}; pass a tensor or an array [B, ...].")
        if not first.dim():
            raise ArgumentError("data: inputs are a single number; pass a tensor or an array [B, ...].")
        given = {name: self._tensor(value) for name, value in {**given, **self._of_rows}.items()}
        of_rows = checked_row_data(len(first), self._like.device, **given)
        y = self._targets if self._wanted and self._targets is not True else y
        if not self._wanted:
            return x, None, of_rows
        y = self._tensor(y)
        if not isinstance(y, Tensor):
            raise ArgumentTypeError(
                f"targets: are {kind_of(y)}; pass a tensor [B, ...], or batches (x, y) and targets=True."
            )
        if y.dim() == 0 or len(y) != len(first):
            raise ArgumentError(f"targets: have shape {tuple(y.shape)} for {len(first)} rows; pass one for each row.")
        return x, y, of_rows

    def _of_network(self, batch: Mapping[str, Any]) -> bool:
        """Whether a dict holds inputs by the names that they have in the network."""
        taken = getattr(self._model, "inputs_taken", None)
        return taken is not None and (taken.takes_one or set(batch) <= set(taken.names))

    def _tensor(self, value: Any, take: Callable[..., Any] = as_numbers) -> Any:
        found = take(value, "data", self._like)
        return found.to(self._like.device) if isinstance(found, Tensor) else found

    def first(self, num: int) -> tuple[Any, dict[str, Tensor]]:
        """The inputs of some of the first rows, and what is given with them.

        Raises:
            ArgumentError: If there is none.
        """
        batches = iter(self._data)
        for batch in batches:
            self._data = chain([batch], batches)
            x, _, given = self._pair(batch)
            if num_rows(x):
                return (rows_of(x, slice(0, num)) if num < num_rows(x) else x), spanned(given, slice(0, num))
        raise ArgumentError("data: have no rows; pass at least one.")

    def blocks(self, size: int) -> Iterator[_Block]:
        """Blocks of ``size`` rows; the last one may be smaller. Can be gone through once."""
        waiting: list[_Block] = []
        count = 0
        for batch in self._data:
            block = self._pair(batch)
            x = block[0]
            if waiting and not fit_together(waiting[0][0], x):  # padded to another length
                yield _joined(waiting)
                waiting, count = [], 0
            start, rows = 0, num_rows(x)
            while rows - start >= size - count:
                taken = slice(start, start + size - count)
                waiting.append(_part(block, taken))
                yield _joined(waiting)
                start, waiting, count = taken.stop, [], 0
            if start < rows:
                waiting.append(_part(block, slice(start, rows)))
                count += rows - start
        if waiting:
            yield _joined(waiting)


def _part(block: _Block, chosen: slice) -> _Block:
    x, y, given = block
    return rows_of(x, chosen), None if y is None else y[chosen], spanned(given, chosen)


def _joined(pieces: list[_Block]) -> _Block:
    if len(pieces) == 1:
        return pieces[0]
    targets = [y for _, y, _ in pieces if y is not None]
    y = torch.cat(targets) if targets else None
    given = {name: torch.cat([piece[2][name] for piece in pieces]) for name in pieces[0][2]}
    return joined([x for x, _, _ in pieces]), y, given
