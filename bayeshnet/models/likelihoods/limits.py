"""Limits of what is observed: one number for all targets, or one for each output."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bayeshnet.checks import kind_of
from bayeshnet.errors import ArgumentError, ArgumentTypeError

__all__ = ["checked_limits", "limits_repr"]


def checked_limits(lower: Any, upper: Any) -> tuple[Tensor, Tensor]:
    """Lower and upper limits as tensors, infinite where there are none.

    Args:
        lower: A number, a tensor ``[out]``, or None.
        upper: Likewise.

    Raises:
        ArgumentTypeError: If one is of another type.
        ArgumentError: If there are none, or lower limits are not below the upper ones.

    Example:
        >>> checked_limits(0.0, None)
        (tensor(0.), tensor(inf))
    """
    if lower is None and upper is None:
        raise ArgumentError("lower, upper: neither was given; pass at least one limit.")
    made: list[Tensor] = []
    for name, given, default in (("lower", lower, -math.inf), ("upper", upper, math.inf)):
        value: Any = default if given is None else given
        if not isinstance(value, int | float | Tensor) or isinstance(value, bool):
            raise ArgumentTypeError(f"{name}: is {kind_of(value)}; pass a number, a tensor [out] or None.")
        value = torch.as_tensor(value, dtype=None if isinstance(value, Tensor) else torch.get_default_dtype())
        if value.dim() > 1 or bool(value.isnan().any()):
            raise ArgumentError(f"{name}: is {given}; pass one number for all outputs or one for each.")
        made.append(value.detach().clone())
    if not bool((made[0] < made[1]).all()):
        raise ArgumentError(f"lower, upper: are {lower} and {upper}; pass lower limits below the upper ones.")
    return made[0], made[1]


def limits_repr(lower: Tensor, upper: Tensor) -> str:
    """The limits, for ``repr``.

    Example:
        >>> limits_repr(torch.tensor(0.0), torch.tensor(torch.inf))
        'lower=0'
    """
    parts: list[str] = []
    for name, value in (("lower", lower), ("upper", upper)):
        if bool(torch.isfinite(value).any()):
            numbers = [f"{v:.6g}" for v in value.reshape(-1).tolist()]
            parts.append(f"{name}={numbers[0] if value.dim() == 0 else '[' + ', '.join(numbers) + ']'}")
    return ", ".join(parts)
