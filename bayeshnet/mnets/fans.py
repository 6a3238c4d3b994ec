"""How many units a weight tensor connects: the arithmetic behind scaled priors and initialisations."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bayeshnet.errors import ArgumentError

__all__ = ["fan_in_and_out"]


def fan_in_and_out(shape: Sequence[int], *, transposed: bool = False) -> tuple[int, int]:
    """Number of inputs that one output sums over, and number of outputs that one input reaches.

    A kernel counts with all its positions, as in ``torch.nn.init``. A vector (or scalar) acts element by element: both
    are 1.

    Args:
        shape: Shape of the weight, ``[out, in, *kernel]``; for a transposed convolution ``[in, out, *kernel]``.
        transposed: Whether it is the kernel of a transposed convolution.

    Returns:
        Fan-in and fan-out, at least 1 each.

    Raises:
        ArgumentError: If the shape has an entry below 1.

    Example:
        >>> fan_in_and_out([10, 5]), fan_in_and_out([8, 3, 5, 5]), fan_in_and_out([3, 8, 5, 5], transposed=True)
        ((5, 10), (75, 200), (75, 200))
    """
    if any(size < 1 for size in shape):
        raise ArgumentError(f"shape: {list(shape)} has an entry below 1; pass the shape of a tensor with elements.")
    if len(shape) < 2:
        return 1, 1
    kernel = math.prod(shape[2:])
    out_size, in_size = (shape[1], shape[0]) if transposed else (shape[0], shape[1])
    return in_size * kernel, out_size * kernel
