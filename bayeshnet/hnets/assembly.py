"""Putting produced tensors together by a function that the user wrote for one sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.func import vmap

from bayeshnet.errors import ArgumentError, ArgumentTypeError

__all__ = ["Assembler", "AssemblyFct", "Pieces"]

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
        TypeError: If it cannot be called.

    Example:
        >>> halves = Assembler(lambda pieces: [torch.cat(pieces)], [(4,)])
        >>> [tuple(t.shape) for t in halves([torch.ones(7, 2), torch.zeros(1, 2)])]
        [(7, 4)]
    """

    def __init__(self, fct: AssemblyFct, shapes: Sequence[tuple[int, ...]]) -> None:
        if not callable(fct):
            raise ArgumentTypeError(f"assembly_fct: a function is expected, not {type(fct).__name__}.")
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
            ValueError: If the function returns tensors of other shapes or numbers.
            TypeError: If it returns anything else than a list of tensors.
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
            what = f"a list with {[type(o).__name__ for o in out]}" if isinstance(out, list) else type(out).__name__
            raise ArgumentTypeError(f"assembly_fct: returned {what}; a list of tensors is expected.")
        tensors = list(out)
        got, wanted = [list(tensor.shape[len(lead) :]) for tensor in tensors], [list(shape) for shape in self._shapes]
        if got != wanted:
            if len(got) != len(wanted):
                raise ArgumentError(
                    f"assembly_fct: returned {len(got)} tensors of shapes {_short(got)}; the {len(wanted)} "
                    f"target_shapes are {_short(wanted)}."
                )
            i = next(i for i, shape in enumerate(wanted) if got[i] != shape)
            raise ArgumentError(f"assembly_fct: returned shape {got[i]} as tensor {i}; target_shapes has {wanted[i]}.")
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
