r"""Variances of chunk embeddings: how the chunks of one shared head get scales of their own.

One head makes all target tensors, so it cannot know their fans; the chunk embedding can (after Meyerson & Miikkulainen
2019, https://arxiv.org/abs/1906.00097). With all layers fan-in initialised, the last one with gain 1, the variance that
a chunk embedding c of size n_c and other inputs (size n_i, variance v) make is their weighted mean. Solved for c:

.. math:: \mathrm{Var}(c_j) = \frac{(n_i + n_c) t_j - n_i v}{n_c}

with t_j the mean of the target variances in chunk j, weighted by their share of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

__all__ = ["chunk_embedding_variances", "mean_target_variances"]


def mean_target_variances(
    sizes: Sequence[int], target_vars: Sequence[float | None], chunk_size: int
) -> list[float | None]:
    """Return t_j: for each chunk the mean of the target variances in it, weighted by their share.

    Args:
        sizes: Number of elements of each target tensor.
        target_vars: Variance of each target; None for one that does not count, like the surplus of the last chunk.
        chunk_size: Number of elements of a chunk.

    Returns:
        One mean per chunk; None if nothing in it counts.

    Example:
        >>> mean_target_variances([3, 3], [1.0, 4.0], 4)
        [1.75, 4.0]
    """
    num = -(-sum(sizes) // chunk_size)
    totals, counts = [0.0] * num, [0] * num
    for j, size, var in _pieces(sizes, target_vars, chunk_size):
        if var is not None:
            totals[j] += size * var
            counts[j] += size
    return [total / count if count else None for total, count in zip(totals, counts, strict=True)]


def _pieces(
    sizes: Sequence[int], target_vars: Sequence[float | None], chunk_size: int
) -> Iterator[tuple[int, int, float | None]]:
    """Chunk, number of elements and variance of each piece of a target that lies in one chunk."""
    start = 0
    for size, var in zip(sizes, target_vars, strict=True):
        end = start + size
        while start < end:
            j = start // chunk_size
            stop = min(end, (j + 1) * chunk_size)
            yield j, stop - start, var
            start = stop


def chunk_embedding_variances(
    chunk_vars: Sequence[float | None], inputs: Sequence[tuple[int, float]], chunk_emb_size: int, eps: float
) -> tuple[list[float], int, float]:
    """Return the variances of the chunk embeddings.

    Args:
        chunk_vars: t_j, from :func:`mean_target_variances`.
        inputs: Size and variance of each part of the other input.
        chunk_emb_size: n_c.
        eps: The least variance; also that of a chunk in which nothing counts.

    Returns:
        The variances, how many of them were clipped, and the largest v that clips none (infinite if there is no other
        input).

    Example:
        >>> chunk_embedding_variances([0.5, 0.1], [(4, 0.25)], 4, 1e-5)
        ([0.75, 1e-05], 1, 0.19999)
    """
    n_i, n_c = sum(size for size, _ in inputs), chunk_emb_size
    power = sum(size * var for size, var in inputs)  # n_i v
    wanted = [None if t is None else ((n_i + n_c) * t - power) / n_c for t in chunk_vars]
    clipped = sum(var is not None and var < eps for var in wanted)
    least = min((t for t in chunk_vars if t is not None), default=math.inf)
    bound = ((n_i + n_c) * least - n_c * eps) / n_i if n_i else math.inf
    return [eps if var is None else max(eps, var) for var in wanted], clipped, bound
