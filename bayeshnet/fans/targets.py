"""Target tensors and their fans: how many units a weight tensor connects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bayeshnet.errors import ArgumentError

__all__ = ["PARAM_NAMES", "Target", "fan_in_and_out"]

PARAM_NAMES = ("weight", "bias", "bn_scale", "bn_shift", "cm_scale", "cm_shift", "embedding", None)
"""What a parameter tensor may be called by its ``name``; None if it is not known what it is."""


@dataclass(frozen=True, slots=True)
class Target:
    """One tensor that a hypernetwork produces, as far as its initialisation is concerned.

    Attributes:
        shape: The shape.
        name: What the tensor is, one of :data:`PARAM_NAMES`.
        fan_in, fan_out: The fans of a weight; for a bias those of the weight of its layer, or its own size if there is
            none.
        has_bias: For a weight, whether the bias of its layer is among the targets.

    Example:
        >>> Target((10, 5), "weight", *fan_in_and_out([10, 5])).fan_in
        5
    """

    shape: tuple[int, ...]
    name: str | None
    fan_in: int = 1
    fan_out: int = 1
    has_bias: bool = False


def fan_in_and_out(shape: Sequence[int], *, transposed: bool = False) -> tuple[int, int]:
    """Return the number of inputs that one output sums over, and the number of outputs that one input reaches.

    A kernel counts with all its positions, as in ``torch.nn.init``. A vector (or scalar) acts element by element: both
    fans are 1.

    Args:
        shape: Shape of the weight, ``[out, in, *kernel]``; for a transposed convolution ``[in, out, *kernel]``.
        transposed: Whether the weight is the kernel of a transposed convolution.

    Returns:
        Fan-in and fan-out, at least 1 each.

    Raises:
        ArgumentError: If the shape has an entry below 1.

    Example:
        >>> fan_in_and_out([10, 5]), fan_in_and_out([8, 3, 5, 5]), fan_in_and_out([3, 8, 5, 5], transposed=True)
        ((5, 10), (75, 200), (75, 200))
    """
    if any(size < 1 for size in shape):
        raise ArgumentError(
            f"shape: is {list(shape)}, with an entry below 1; pass the shape of a tensor with elements."
        )
    if len(shape) < 2:
        return 1, 1
    kernel = math.prod(shape[2:])
    out_size, in_size = (shape[1], shape[0]) if transposed else (shape[0], shape[1])
    return in_size * kernel, out_size * kernel
