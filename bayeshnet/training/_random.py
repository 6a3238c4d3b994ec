"""States of random generators: torch's own ones, and those that a data set's loader has for itself."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

__all__ = ["RandomStates", "generators_of", "own_stream"]


@dataclass(frozen=True)
class RandomStates:
    """The states of all generators that a fit draws from.

    Attributes:
        cpu: That of torch's generator.
        cuda: Those of the generators of CUDA devices, if CUDA is in use.
        own: Those of the generators of the data.

    Example:
        >>> states = RandomStates.now()
        >>> first = torch.rand(3)
        >>> states.restore()
        >>> torch.equal(first, torch.rand(3))
        True
    """

    cpu: Tensor
    cuda: tuple[Tensor, ...] = ()
    own: tuple[Tensor, ...] = ()

    @classmethod
    def now(cls, generators: Sequence[torch.Generator] = ()) -> RandomStates:
        """Return the states as they are.

        Args:
            generators: Those of the data.
        """
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
        return cls(torch.get_rng_state(), tuple(cuda), tuple(generator.get_state() for generator in generators))

    def restore(self, generators: Sequence[torch.Generator] = ()) -> None:
        """Set all generators to these states.

        Args:
            generators: Those of the data, as many as before.
        """
        torch.set_rng_state(self.cpu)
        if self.cuda and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(list(self.cuda))
        for generator, state in zip(generators, self.own, strict=True):
            generator.set_state(state)


@contextmanager
def own_stream(start: RandomStates, generators: Sequence[torch.Generator] = ()) -> Generator[None]:
    """Draw random numbers from a given start in a block, and go on afterwards as if none had been drawn.

    Args:
        start: The states that the block begins with.
        generators: Others that the block may draw from; they go on likewise.

    Example:
        >>> start = RandomStates.now()
        >>> with own_stream(start):
        ...     first = torch.rand(3)
        >>> with own_stream(start):
        ...     torch.equal(first, torch.rand(3))
        True
    """
    before = RandomStates.now(generators)
    RandomStates(start.cpu, start.cuda).restore()
    try:
        yield
    finally:
        before.restore(generators)


def generators_of(data: Any) -> list[torch.Generator]:
    """Return the generators that a loader, its samplers and its data set have, each once.

    Example:
        >>> generator = torch.Generator()
        >>> len(generators_of(DataLoader([1, 2], shuffle=True, generator=generator)))
        1
    """
    found: dict[int, torch.Generator] = {}
    seen: set[int] = set()
    waiting: list[Any] = [data]
    while waiting:
        part = waiting.pop(0)
        if id(part) in seen:
            continue
        seen.add(id(part))
        for name, value in getattr(part, "__dict__", {}).items():
            if isinstance(value, torch.Generator):
                found.setdefault(id(value), value)
            elif isinstance(value, Sampler | DataLoader) or name in ("dataset", "sampler", "batch_sampler"):
                waiting.append(value)
    return list(found.values())
