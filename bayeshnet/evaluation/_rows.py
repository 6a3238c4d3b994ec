"""Rows of inputs and targets, from tensors, arrays or batches, in blocks of one size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from bayeshnet.checks import kind_of
from bayeshnet.errors import ArgumentError, ArgumentTypeError

__all__ = ["Rows", "num_rows", "rows_of"]


def num_rows(x: Any) -> int:
    """Number of rows of inputs: a tensor, or a tuple of a network's arguments.

    Example:
        >>> num_rows((torch.zeros(3, 2), 1.0))
        3
    """
    return int((x[0] if isinstance(x, tuple) else x).shape[0])


def rows_of(x: Any, chosen: slice) -> Any:
    """Some rows of inputs; arguments without rows are handed on.

    Raises:
        ArgumentTypeError: If the inputs are sparse.

    Example:
        >>> rows_of((torch.zeros(3, 2), 1.0), slice(0, 2))[0].shape
        torch.Size([2, 2])
    """
    first = x[0] if isinstance(x, tuple) else x
    if isinstance(first, Tensor) and first.layout != torch.strided:
        raise ArgumentTypeError(
            f"x: is a tensor of layout {first.layout}, which cannot be sliced; pass x.to_dense(), or batch_size=None."
        )
    if not isinstance(x, tuple):
        return x[chosen]
    rows = num_rows(x)
    return tuple(arg[chosen] if isinstance(arg, Tensor) and arg.shape[:1] == (rows,) else arg for arg in x)


class Rows:
    """Inputs, and targets if they are wanted, row by row in their order.

    Args:
        data: A tensor or array ``[B, ...]``; a tuple of the network's arguments; a dict with ``x``; or an iterable of
            batches, whose batches are a tensor of inputs, a pair ``(x, y, ...)`` or a dict with ``x`` and ``y``.
        targets: Targets ``[B, ...]`` of a tensor of inputs; True for those in the data.
        like: Arrays become tensors of its dtype.

    Attributes:
        total: Number of rows, None if it is not known before.

    Raises:
        ArgumentTypeError: If data or targets are something else.
        ArgumentError: If numbers of rows differ.

    Example:
        >>> blocks = Rows([(torch.zeros(3, 2), torch.ones(3)), (torch.zeros(2, 2), torch.ones(2))], True, torch.ones(1))
        >>> [(x.shape[0], y.shape[0]) for x, y in blocks.blocks(4)]
        [(4, 4), (1, 1)]
    """

    def __init__(self, data: Any, targets: Any, like: Tensor) -> None:
        self._like, self._targets = like, targets
        self._wanted = targets is not None and targets is not False
        self._whole = isinstance(data, Tensor | tuple | Mapping) or hasattr(data, "__array__")
        if not self._whole and (not isinstance(data, Iterable) or isinstance(data, str | bytes)):
            raise ArgumentTypeError(
                f"data: is {kind_of(data)}; pass inputs [B, ...], a tuple of the network's arguments, or an iterable "
                "of batches such as a DataLoader."
            )
        if not self._whole and isinstance(targets, Tensor):
            raise ArgumentTypeError(
                "targets: is a tensor, and data are batches; pass targets=True for those in the batches (x, y)."
            )
        self._data: Any = [data] if self._whole else iter(data)
        self.total: int | None = None
        if self._whole:
            self.total = num_rows(self._pair(data)[0])
        elif isinstance(data, DataLoader):
            dataset: Any = data.dataset
            whole = data.batch_size is not None and not data.drop_last and hasattr(dataset, "__len__")
            self.total = len(dataset) if whole and type(data.sampler).__name__ == "SequentialSampler" else None

    def _pair(self, batch: Any) -> tuple[Any, Any]:
        """Inputs and targets of a batch; of inputs that are given as a whole, a tuple is the network's arguments."""
        y: Any = None
        if isinstance(batch, Mapping):
            if "x" not in batch:
                raise ArgumentError(f"data: has the keys {list(batch)}; pass inputs as 'x', and targets as 'y'.")
            x, y = batch["x"], batch.get("y")
        elif not self._whole and isinstance(batch, list | tuple):
            if not batch:
                raise ArgumentError("data: has an empty batch; pass inputs, or pairs (x, y).")
            x, y = batch[0], batch[1] if len(batch) > 1 else None
        else:
            x = batch
        x = tuple(self._tensor(part) for part in x) if isinstance(x, tuple) else self._tensor(x)
        first = x[0] if isinstance(x, tuple) and x else x
        if not isinstance(first, Tensor):
            raise ArgumentTypeError(f"data: inputs are {kind_of(first)}; pass a tensor or an array [B, ...].")
        if not first.dim():
            raise ArgumentError("data: inputs are a single number; pass a tensor or an array [B, ...].")
        y = self._targets if self._wanted and self._targets is not True else y
        if not self._wanted:
            return x, None
        y = self._tensor(y)
        if not isinstance(y, Tensor):
            raise ArgumentTypeError(
                f"targets: are {kind_of(y)}; pass a tensor [B, ...], or batches (x, y) and targets=True."
            )
        if y.dim() == 0 or len(y) != len(first):
            raise ArgumentError(f"targets: have shape {tuple(y.shape)} for {len(first)} rows; pass one for each row.")
        return x, y

    def _tensor(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(self._like.device)
        if not hasattr(value, "__array__"):
            return value
        made = torch.as_tensor(value, device=self._like.device)
        return made.to(self._like.dtype) if made.is_floating_point() else made

    def first(self, num: int) -> Any:
        """The inputs of some of the first rows.

        Raises:
            ArgumentError: If there is none.
        """
        batches = iter(self._data)
        for batch in batches:
            self._data = chain([batch], batches)
            x, _ = self._pair(batch)
            if num_rows(x):
                return rows_of(x, slice(0, num)) if num < num_rows(x) else x
        raise ArgumentError("data: have no rows; pass at least one.")

    def blocks(self, size: int) -> Iterator[tuple[Any, Tensor | None]]:
        """Blocks of ``size`` rows; the last one may be smaller. Can be gone through once."""
        waiting: list[tuple[Any, Tensor | None]] = []
        count = 0
        for batch in self._data:
            x, y = self._pair(batch)
            start, rows = 0, num_rows(x)
            while rows - start >= size - count:
                taken = slice(start, start + size - count)
                waiting.append((rows_of(x, taken), None if y is None else y[taken]))
                yield _joined(waiting)
                start, waiting, count = taken.stop, [], 0
            if start < rows:
                rest = slice(start, rows)
                waiting.append((rows_of(x, rest), None if y is None else y[rest]))
                count += rows - start
        if waiting:
            yield _joined(waiting)


def _joined(pieces: list[tuple[Any, Tensor | None]]) -> tuple[Any, Tensor | None]:
    if len(pieces) == 1:
        return pieces[0]
    targets = [y for _, y in pieces if y is not None]
    inputs = [x for x, _ in pieces]
    first = inputs[0]
    if not isinstance(first, tuple):
        return torch.cat(inputs), torch.cat(targets) if targets else None
    columns = list(zip(*inputs, strict=True))
    rows = num_rows(first)
    joined = [
        torch.cat(column) if isinstance(column[0], Tensor) and column[0].shape[:1] == (rows,) else column[0]
        for column in columns
    ]
    return tuple(joined), torch.cat(targets) if targets else None
