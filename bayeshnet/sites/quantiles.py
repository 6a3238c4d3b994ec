"""Quantiles of samples."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bayeshnet.errors import ArgumentError, ArgumentTypeError

__all__ = ["checked_level", "checked_levels", "in_order", "sample_quantiles"]


def checked_level(argument: str, level: Any) -> float:
    """Return the probability of an interval.

    Args:
        argument: Name of the argument.
        level: What was given.

    Raises:
        ArgumentError: Unless it is between 0 and 1, both excluded.
        ArgumentTypeError: If it is not a number.

    Example:
        >>> checked_level("level", torch.tensor(0.5))
        0.5
        >>> checked_level("level", 90)
        Traceback (most recent call last):
        ...
        bayeshnet.errors.ArgumentError: level: is 90; pass a number between 0 and 1, such as 0.9.
    """
    if not isinstance(level, numbers.Real) and not (isinstance(level, Tensor) and level.numel() == 1):
        raise ArgumentTypeError(f"{argument}: is {level!r}; pass a number between 0 and 1, such as 0.9.")
    number = float(level)
    if not 0.0 < number < 1.0:
        raise ArgumentError(f"{argument}: is {level}; pass a number between 0 and 1, such as 0.9.")
    return number


def checked_levels(argument: str, levels: Sequence[float] | Tensor) -> Tensor:
    """Return the levels of quantiles ``[Q]``, in float64.

    Args:
        argument: Name of the argument.
        levels: What was given.

    Raises:
        ArgumentError: Unless they are a list of numbers from 0 to 1.
        ArgumentTypeError: If they are not numbers.

    Example:
        >>> checked_levels("quantiles", [0.25, 0.5])
        tensor([0.2500, 0.5000], dtype=torch.float64)
    """
    try:
        checked = torch.as_tensor(levels, dtype=torch.double)
    except (TypeError, ValueError):
        raise ArgumentTypeError(f"{argument}: is {levels!r}; pass a list of numbers between 0 and 1.") from None
    if checked.dim() != 1 or not bool(((checked >= 0) & (checked <= 1)).all()):
        raise ArgumentError(f"{argument}: is {levels}; pass a list of numbers between 0 and 1.")
    return checked


def sample_quantiles(samples: Tensor, levels: Tensor) -> Tensor:
    """Return quantiles over the first dimension, linearly interpolated.

    Unlike ``torch.quantile`` not limited to 16 million numbers.

    Args:
        samples: ``[S, ...]``.
        levels: ``[Q]`` between 0 and 1.

    Returns:
        ``[Q, ...]``.

    Example:
        >>> sample_quantiles(torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.tensor([0.0, 0.5, 1.0]))
        tensor([0.0000, 1.5000, 3.0000])
    """
    ordered = in_order(samples)
    place = levels.to(torch.double) * (samples.shape[0] - 1)
    below = place.floor().long().clamp(max=samples.shape[0] - 1)
    above = (below + 1).clamp(max=samples.shape[0] - 1)
    fraction = (place - below).to(samples).reshape((-1,) + (1,) * (samples.dim() - 1))
    return torch.lerp(ordered[below], ordered[above], fraction)


def in_order(samples: Tensor) -> Tensor:
    """Return samples sorted over the first dimension.

    NumPy's sort of a contiguous last dimension, where it may be used, takes a tenth of the time of PyTorch's.

    Args:
        samples: ``[S, ...]``.

    Example:
        >>> in_order(torch.tensor([[2.0, 0.0], [1.0, 3.0]]))
        tensor([[1., 0.],
                [2., 3.]])
    """
    needs_graph = torch.is_grad_enabled() and samples.requires_grad
    if needs_graph or samples.device.type != "cpu" or samples.dtype not in (torch.float32, torch.float64):
        return samples.sort(dim=0).values
    rows = samples.detach().reshape(len(samples), -1).mT.clone(memory_format=torch.contiguous_format)
    rows.numpy().sort(axis=-1)
    return rows.mT.reshape(samples.shape)
