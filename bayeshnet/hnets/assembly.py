"""Putting produced tensors together by a function that the user wrote for one sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.func import vmap

from bayeshnet.checks import kind_of
from bayeshnet.errors import ArgumentError, ArgumentTypeError, UsageError

__all__ = ["Assembler", "AssemblyFct", "Pieces", "trace_assembly", "trace_places"]

AssemblyFct: TypeAlias = "Callable[..., list[Tensor]]"
"""Takes the pieces of one sample and returns its target tensors."""

Pieces: TypeAlias = "Tensor | list[Any]"
"""A tensor, or a list of pieces."""


class Assembler:
    """Applies an assembly function, which sees one sample, to all samples of a batch.

    One vectorised call (``torch.func.vmap``) where the function allows it; a loop over the samples where it does not
    (it branches on values, or writes into a tensor it made). Which of the two is found out once.

    Args:
        fct: The function.
        shapes: Shapes of the target tensors that it is to return.

    Raises:
        ArgumentTypeError: If it cannot be called.

    Example:
        >>> halves = Assembler(lambda pieces: [torch.cat(pieces)], [(4,)])
        >>> [tuple(t.shape) for t in halves([torch.ones(7, 2), torch.zeros(1, 2)])]
        [(7, 4)]
    """

    def __init__(self, fct: AssemblyFct, shapes: Sequence[tuple[int, ...]]) -> None:
        if not callable(fct):
            raise ArgumentTypeError(f"assembly_fct: is {kind_of(fct)}; pass a function.")
        self.fct = fct
        self._shapes = tuple(shapes)
        self._vectorises = True

    def __call__(self, *pieces: Pieces) -> list[Tensor]:
        """Assemble.

        Args:
            pieces: Nested lists of tensors ``[B, ...]``, or ``[1, ...]`` for what all samples share.

        Returns:
            One tensor ``[B, *shape]`` per target.

        Raises:
            ArgumentError: If the function returns tensors of other shapes or numbers.
            ArgumentTypeError: If it returns anything else than a list of tensors.
        """
        batch = max(_batch_sizes(list(pieces)), default=1)
        if batch == 1:
            return [tensor.unsqueeze(0) for tensor in self._check(self.fct(*_pick(list(pieces))))]
        whole = _expand(list(pieces), batch)
        if self._vectorises:
            try:
                out = vmap(self.fct, randomness="different")(*whole)
            except Exception:  # whatever was raised: the loop shows whether the function itself is at fault
                pass
            else:
                return self._check(out, (batch,))
        # One unbind per piece: its backward stacks all gradients at once.
        rows = _unbind(whole)
        samples = [self._check(self.fct(*_pick(rows, b))) for b in range(batch)]
        self._vectorises = False  # only now: what fails in the loop as well says nothing about vectorising
        return [torch.stack(tensors) for tensors in zip(*samples, strict=True)]

    def _check(self, out: object, lead: tuple[int, ...] = ()) -> list[Tensor]:
        if not isinstance(out, (list, tuple)) or not all(isinstance(tensor, Tensor) for tensor in out):
            what = f"a list with {[type(o).__name__ for o in out]}" if isinstance(out, list) else kind_of(out)
            raise ArgumentTypeError(f"assembly_fct: returned {what}; let it return a list of tensors.")
        tensors = list(out)
        got, wanted = [list(tensor.shape[len(lead) :]) for tensor in tensors], [list(shape) for shape in self._shapes]
        if got != wanted:
            if len(got) != len(wanted):
                raise ArgumentError(
                    f"assembly_fct: returned {len(got)} tensors of shapes {_short(got)}; let it return the "
                    f"{len(wanted)} target_shapes {_short(wanted)}."
                )
            i = next(i for i, shape in enumerate(wanted) if got[i] != shape)
            raise ArgumentError(
                f"assembly_fct: returned shape {got[i]} as tensor {i}; let it return {wanted[i]} (target_shapes)."
            )
        return tensors


def _short(shapes: list[list[int]], limit: int = 10) -> str:
    return str(shapes) if len(shapes) <= limit else f"{shapes[:limit]} and {len(shapes) - limit} more"


def _batch_sizes(pieces: list[Any]) -> list[int]:
    return [
        size
        for piece in pieces
        for size in ([piece.shape[0]] if isinstance(piece, Tensor) else _batch_sizes(list(piece)))
    ]


def _expand(pieces: list[Any], batch: int) -> list[Any]:
    return [
        (piece if piece.shape[0] == batch else piece.expand(batch, *piece.shape[1:]))
        if isinstance(piece, Tensor)
        else _expand(piece, batch)
        for piece in pieces
    ]


def _unbind(pieces: list[Any]) -> list[Any]:
    """Each tensor as a tuple of its samples."""
    return [piece.unbind(0) if isinstance(piece, Tensor) else _unbind(piece) for piece in pieces]


def _pick(pieces: list[Any], sample: int = 0) -> list[Any]:
    """The pieces of one sample; from tensors, the first and only one."""
    return [
        piece.squeeze(0)
        if isinstance(piece, Tensor)
        else piece[sample]
        if isinstance(piece, tuple)
        else _pick(piece, sample)
        for piece in pieces
    ]


# ---------------------------------------------------------------------- where each tensor goes


def trace_places(
    assemble: Callable[[Sequence[Tensor]], Sequence[Tensor]],
    shapes: Sequence[Sequence[int]],
    places: Sequence[Mapping[int, float]],
    device: torch.device | None = None,
) -> list[dict[int, float]]:
    """Find the final targets of each tensor, with the share of its elements in each.

    Args:
        assemble: Makes tensors from others, as for :func:`trace_assembly`.
        shapes: Shapes of the tensors that it takes.
        places: The final targets of the tensors that it makes, with shares likewise.
        device: Where to create the tensors.

    Raises:
        UsageError: If the function does more than move entries.

    Example:
        >>> trace_places(lambda tensors: [torch.cat(tensors, dim=1)], [[2], [3]], [{4: 1.0}])
        [{4: 1.0}, {4: 1.0}]
    """
    composed: list[dict[int, float]] = []
    for counts in trace_assembly(assemble, shapes, device):
        weights: dict[int, float] = {}
        for between, count in counts.items():
            for target, share in places[between].items():
                weights[target] = weights.get(target, 0.0) + count * share
        total = sum(weights.values())
        composed.append({target: weight / total for target, weight in weights.items()})
    return composed


def trace_assembly(
    assemble: Callable[[Sequence[Tensor]], Sequence[Tensor]],
    shapes: Sequence[Sequence[int]],
    device: torch.device | None = None,
) -> list[dict[int, int]]:
    """Find the targets that each tensor goes to, by one run on tensors filled with numbers of their own.

    Args:
        assemble: Makes the targets from tensors of these shapes, behind a batch dimension of 1.
        shapes: Shapes of these tensors.
        device: Where to create them.

    Returns:
        For each tensor the number of its elements in each target, by the index of the target.

    Raises:
        UsageError: If a target has entries that are neither an entry of a tensor nor constant.

    Example:
        >>> trace_assembly(lambda tensors: [torch.cat(tensors, dim=1)], [[2], [3]])
        [{0: 2}, {0: 3}]
    """
    # Two runs with different marks: what is the same in both is a constant that the function itself puts in. A private
    # generator: drawing marks does not move the user's.
    num = len(shapes)
    span = 2 ** max(14, (4 * num).bit_length())  # a power of 2: single precision has all of the marks exactly
    drawn = torch.randperm(span, generator=torch.Generator().manual_seed(0))[: 2 * num].float() / span + 1
    first, second = (half.sort().values.to(device) for half in drawn.split(num))
    runs = [
        assemble([mark.expand(1, *shape).clone() for mark, shape in zip(marks, shapes, strict=True)])
        for marks in (first, second)
    ]
    counts: list[dict[int, int]] = [{} for _ in shapes]
    for target, (one, two) in enumerate(zip(*runs, strict=True)):
        values, again = one.reshape(-1), two.reshape(-1)
        source = torch.searchsorted(first, values).clamp_(max=num - 1)
        moved = (first[source] == values) & (second[source] == again)
        if not bool((moved | (values == again)).all()):
            raise UsageError(
                f"init: the assembly function changes the weights of target {target} instead of moving them, so their "
                "variances cannot be set; initialise the networks inside (`internal_hnets`) one by one."
            )
        for i, count in enumerate(torch.bincount(source[moved], minlength=num).tolist()):
            if count:
                counts[i][target] = count
    return counts
