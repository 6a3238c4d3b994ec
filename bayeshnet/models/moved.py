"""Distributions in the dtype and on the device of a network."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from bayeshnet.errors import ArgumentError

__all__ = ["moved"]


def moved(value: Any, like: Tensor) -> Any:
    """A distribution with all floating-point numbers in the dtype and on the device of ``like``, each still finite.

    Raises:
        ArgumentError: If a number is out of the range of the dtype.

    Example:
        >>> moved(torch.distributions.Laplace(0.0, 1.0), torch.zeros((), dtype=torch.float64)).scale.dtype
        torch.float64
    """
    if isinstance(value, Tensor):
        if not value.is_floating_point():
            return value.to(like.device)
        found = value.detach().to(like)
        lost = torch.isfinite(value) & (~torch.isfinite(found) | ((found == 0) & (value != 0)))
        if bool(lost.any()):
            raise ArgumentError(
                f"prior: has {float(value[lost].flatten()[0]):g}, which is {float(found[lost].flatten()[0]):g} in "
                f"{like.dtype}, the network's dtype; pass numbers in its range."
            )
        return found
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(moved(part, like) for part in value)
    if not isinstance(value, torch.distributions.Distribution | torch.distributions.Transform):
        return value
    made = copy.copy(value)
    vars(made).update({key: moved(part, like) for key, part in vars(value).items()})
    return made
