"""Rows with weights: equal ones merged, means and standard deviations of what is left."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from bayeshnet.errors import ArgumentError
from bayeshnet.models import Standardization, Statistics

__all__ = ["Array", "RowWeights", "merged", "standardization_of"]

Array: TypeAlias = npt.NDArray[Any]
RowWeights: TypeAlias = npt.NDArray[np.float64]

# A column whose spread is below so many roundings of its largest entry is constant.
_ROUNDINGS = 16.0


def merged(x: Array, y: Array, weight: RowWeights) -> tuple[Array, Array, RowWeights]:
    """Different rows only, each with the sum of the weights of its copies.

    The likelihood stays what it is, and a row with weight 3 is the same as three rows, to the bit: what comes back is
    in an order that depends on values alone.

    Args:
        x: Inputs ``[n, K]``.
        y: Targets ``[n]`` or ``[n, T]``; numbers, or codes of labels.
        weight: RowWeights ``[n]``, 0 or more; rows of weight 0 are left out.

    Returns:
        Inputs, targets and weights of m rows, m at most n.

    Raises:
        ArgumentError: If a weight is negative, or all are 0.

    Example:
        >>> x, y = np.array([[2.0], [1.0], [2.0]]), np.array([0, 1, 0])
        >>> [part.tolist() for part in merged(x, y, np.array([1.0, 5.0, 2.0]))]
        [[[1.0], [2.0]], [1, 0], [5.0, 3.0]]
    """
    if (weight < 0).any():
        raise ArgumentError(f"sample_weight: {int((weight < 0).sum())} are negative; pass numbers of 0 or more.")
    x, y, weight = x[weight > 0], y[weight > 0], weight[weight > 0]
    if not len(weight):
        raise ArgumentError("sample_weight: all are 0; pass at least one row with a weight.")
    columns = np.column_stack([x, y])
    order = np.lexsort(columns.T[::-1])
    columns = columns[order]
    new = np.concatenate([[True], (columns[1:] != columns[:-1]).any(axis=1)])
    first = order[new]
    return x[first], y[first], np.add.reduceat(weight[order], np.flatnonzero(new))


def standardization_of(x: Array, y: Array | None, weight: RowWeights) -> Standardization:
    """Weighted means and standard deviations, one for each column and target.

    Args:
        x: Inputs ``[n, K]``.
        y: Targets ``[n]`` or ``[n, T]``; None to leave them as they are.
        weight: RowWeights ``[n]``.

    Example:
        >>> found = standardization_of(np.array([[0.0, 7.0], [3.0, 7.0]]), None, np.array([1.0, 2.0]))
        >>> found.inputs[0].loc.tolist(), found.inputs[0].scale.tolist()
        ([2.0, 7.0], [1.4142135623730951, 1.0])
    """
    return Standardization(
        inputs=[_statistics(x, weight, "column")],
        targets=None if y is None else _statistics(y, weight, "all" if y.ndim == 1 else "output"),
    )


def _statistics(values: Array, weight: RowWeights, what: str) -> Statistics:
    values = values.astype(np.float64)
    loc = np.average(values, axis=0, weights=weight)
    scale = np.sqrt(np.average((values - loc) ** 2, axis=0, weights=weight))
    constant = scale <= _ROUNDINGS * np.finfo(np.float64).eps * np.abs(values).max(axis=0)
    return Statistics(torch.as_tensor(loc), torch.as_tensor(np.where(constant, 1.0, scale)), what)
