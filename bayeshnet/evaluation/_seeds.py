"""Random numbers that depend on a seed and a place, not on the order or size of the parts in which they are drawn."""

from __future__ import annotations

from collections.abc import Generator as Yields
from contextlib import contextmanager
from typing import Any

import torch

from bayeshnet.checks import kind_of
from bayeshnet.errors import ArgumentTypeError

__all__ = ["base_seed", "check_generator", "seeded"]

_SEEDS = 2**32  # PyTorch's generator of the CPU looks at the lower 32 bits


def check_generator(generator: Any) -> None:
    """Raise unless it is a generator of PyTorch, or None.

    Raises:
        ArgumentTypeError: If it is something else.

    Example:
        >>> check_generator(torch.Generator())
    """
    if generator is not None and not isinstance(generator, torch.Generator):
        raise ArgumentTypeError(
            f"generator: is {kind_of(generator)}; pass a torch.Generator, such as torch.Generator().manual_seed(0), or "
            "None for the global one."
        )


def base_seed(generator: torch.Generator | None) -> int:
    """A seed from a generator, which moves on by one number; from the global one if it is None.

    Example:
        >>> base_seed(torch.Generator().manual_seed(0)) == base_seed(torch.Generator().manual_seed(0))
        True
    """
    device = "cpu" if generator is None else generator.device
    return int(torch.randint(_SEEDS, (), generator=generator, device=device))


@contextmanager
def seeded(seed: int, place: int, device: torch.device | None = None) -> Yields[None]:
    """Seed the global generator within a block, and leave it as it was: Pyro's distributions draw from no other.

    Args:
        seed: Of the whole call.
        place: The number of the block among those of the call.
        device: Where numbers are drawn, beside the CPU.

    Example:
        >>> with seeded(0, 1):
        ...     first = torch.randn(())
        >>> with seeded(0, 1):
        ...     second = torch.randn(())
        >>> bool(first == second)
        True
    """
    number = (seed + place) % _SEEDS
    gpu = device if device is not None and device.type == "cuda" else None
    with torch.random.fork_rng(devices=[] if gpu is None else [gpu]):
        torch.set_rng_state(torch.Generator().manual_seed(number).get_state())
        if gpu is not None:
            torch.cuda.set_rng_state(torch.Generator(gpu).manual_seed(number).get_state(), gpu)
        yield
