"""Tensors that are restored after a block, or after a step that failed."""

# A module's buffers are looked at in place.
# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["KeptBuffers", "restored", "tensors_of"]


def tensors_of(*parts: Any) -> list[Tensor]:
    """Return the parameters and buffers of those parts that are modules.

    Example:
        >>> [tuple(tensor.shape) for tensor in tensors_of(nn.Linear(2, 1), lambda x: x)]
        [(1, 2), (1,)]
    """
    modules = [part for part in parts if isinstance(part, nn.Module)]
    return [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]


@torch.no_grad()
def _write(tensors: Iterable[Tensor], values: Iterable[Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)


@contextmanager
def restored(tensors: Iterable[Tensor], *, on_error: bool = False) -> Generator[None, None, None]:
    """Restore tensors after a block, in place.

    Args:
        tensors: What to restore.
        on_error: Only if the block raises, Ctrl-C included.

    Example:
        >>> x = torch.zeros(2)
        >>> with restored([x]):
        ...     _ = x.fill_(1.0)
        >>> x
        tensor([0., 0.])
    """
    tensors = list(tensors)
    saved = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    except BaseException:
        _write(tensors, saved)
        raise
    if not on_error:
        _write(tensors, saved)


class KeptBuffers:
    """Values from before a training step of what it writes to besides the optimiser, running statistics for instance.

    These are buffers, and parameters that require no gradient. The first step shows which of them are written to; the
    others cost nothing after that.

    Args:
        parts: Modules; anything else is ignored.

    Example:
        >>> norm = nn.BatchNorm1d(2)
        >>> buffers = KeptBuffers(norm)
        >>> buffers.keep()
        >>> _ = norm(torch.ones(4, 2))
        >>> buffers.changed()
        True
        >>> buffers.restore()
        >>> norm.running_mean
        tensor([0., 0.])
    """

    def __init__(self, *parts: Any) -> None:
        roots = [part for part in parts if isinstance(part, nn.Module)]
        modules = {id(module): module for root in roots for module in root.modules()}.values()
        places: list[dict[str, Any]] = [place for m in modules for place in (m._buffers, m._parameters)]
        self._places = [(place, key) for place in places for key in place]
        self._saved: list[_Saved] = []
        self._steps = 0

    def keep(self) -> None:
        """Store the values; call this before each step."""
        if self._steps == 1:
            self._places = [(saved.place, saved.key) for saved in self._saved if saved.changed()]
        self._steps += 1
        found = [(place, key, place.get(key)) for place, key in self._places]
        kept = [(place, key, tensor) for place, key, tensor in found if tensor is not None and not tensor.requires_grad]
        self._saved = [_Saved(place, key, tensor) for place, key, tensor in kept]

    def changed(self) -> bool:
        """Return whether anything was written to since the last :meth:`keep`."""
        return any(saved.changed() for saved in self._saved)

    def restore(self) -> None:
        """Undo what the step wrote."""
        for saved in self._saved:
            saved.place[saved.key] = saved.tensor
        _write([saved.tensor for saved in self._saved], [saved.value for saved in self._saved])


class _Saved:
    """A tensor, its value, and how often it was written to."""

    __slots__ = ("key", "place", "tensor", "value", "version")

    def __init__(self, place: dict[str, Any], key: str, tensor: Tensor) -> None:
        self.place, self.key, self.tensor = place, key, tensor
        self.value = tensor.detach().clone()
        self.version = None if tensor.is_inference() else tensor._version

    def changed(self) -> bool:
        return self.place.get(self.key) is not self.tensor or self.version != self.tensor._version
