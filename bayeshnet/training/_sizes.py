"""Sizes that a description may ask for: no larger than what the file itself holds."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from bayeshnet.errors import CheckpointError

__all__ = ["check_sizes"]

_FREE = 10**5  # numbers that anything may have


def check_sizes(description: Any, total: int, what: str) -> None:
    """Raise if objects made from a description could be much larger than the tensors of a file.

    Whole numbers are sizes of something, such as a rank or a number of components, which multiply from one level to
    the next; numbers that stand side by side are widths of layers, which multiply, too.

    Args:
        description: The description.
        total: Number of numbers in the file.
        what: What it is of, for the message.

    Raises:
        CheckpointError: If it asks for more.

    Example:
        >>> check_sizes({"rank": 3, "layers": [32, 32]}, 100, "guide")
        >>> check_sizes({"layers": [10**6, 10**6]}, 100, "guide")
        Traceback (most recent call last):
        ...
        bayeshnet.errors.CheckpointError: guide: the file asks for sizes of 1000000000000, and holds 100 numbers; ...
    """
    largest = max(_sizes(description), default=0)
    if largest > max(_FREE, 100 * total):
        raise CheckpointError(
            f"{what}: the file asks for sizes of {largest}, and holds {total} numbers; it is damaged, save it again."
        )


def _sizes(description: Any) -> Iterator[int]:
    """Products of the whole numbers along each way into a description."""
    if isinstance(description, dict):
        parts = list(description.values())
        own = max((abs(part) for part in parts if type(part) is int), default=1)
        yield own
        yield from (max(1, own) * size for part in parts if type(part) is not int for size in _sizes(part))
    elif isinstance(description, list):
        numbers = [abs(part) for part in description if type(part) is int]
        yield from numbers
        yield from (a * b for a, b in pairwise(numbers))
        yield from (size for part in description if type(part) is not int for size in _sizes(part))
