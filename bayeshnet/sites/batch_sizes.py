"""How many rows a training step has, where nobody says it."""

from __future__ import annotations

__all__ = ["MOST_ROWS", "default_batch_size"]

MOST_ROWS = 10_000
"""Number of rows up to which a step has all of them."""

_ROWS = 1_000


def default_batch_size(rows: int, dataset_size: int | None) -> int:
    """Return the rows of a step for so many rows in memory: all up to 10,000; of more 1,000, if there are no others.

    Args:
        rows: Number of rows in memory.
        dataset_size: Number of rows that the model is told of; None for none.

    Example:
        >>> [default_batch_size(n, n) for n in (128, 10_000, 60_000)], default_batch_size(60_000, None)
        ([128, 10000, 1000], 60000)
    """
    return _ROWS if rows > MOST_ROWS and dataset_size == rows else rows
