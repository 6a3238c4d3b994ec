"""Tensors that get their values back after a block."""

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
    """Parameters and buffers of those parts that are modules."""
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
    """The buffers that a training step writes to, running statistics for instance, as they were before the step.

    Which they are shows in the first step; the others cost nothing after that.

    Args:
        parts: Modules; what is none has no buffers.
    """

    def __init__(self, *parts: Any) -> None:
        roots = [part for part in parts if isinstance(part, nn.Module)]
        modules = {id(module): module for root in roots for module in root.modules()}
        self._places = [(module, key) for module in modules.values() for key in module._buffers]
        self._saved: list[_Saved] = []
        self._steps = 0

    def keep(self) -> None:
        """Call this before each step."""
        if self._steps == 1:
            self._places = [(saved.module, saved.key) for saved in self._saved if saved.changed()]
        self._steps += 1
        self._saved = [
            _Saved(*place, buffer) for place in self._places if (buffer := place[0]._buffers[place[1]]) is not None
        ]

    def restore(self) -> None:
        """Undo what the step wrote."""
        for saved in self._saved:
            saved.module._buffers[saved.key] = saved.buffer
        _write([saved.buffer for saved in self._saved], [saved.value for saved in self._saved])


class _Saved:
    """A buffer, its value, and how often it was written to."""

    __slots__ = ("buffer", "key", "module", "value", "version")

    def __init__(self, module: nn.Module, key: str, buffer: Tensor) -> None:
        self.module, self.key, self.buffer = module, key, buffer
        self.value = buffer.detach().clone()
        self.version = None if buffer.is_inference() else buffer._version

    def changed(self) -> bool:
        now = self.module._buffers.get(self.key)
        return now is not self.buffer or self.version is None or now._version != self.version
