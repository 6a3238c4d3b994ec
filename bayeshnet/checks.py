"""Checks of arguments that several subpackages share."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sized
from typing import Any, cast

import torch
from torch import Tensor

from bayeshnet.errors import ArgumentError, ArgumentTypeError, UsageError

__all__ = ["kind_of", "require_count", "require_flag", "require_positive", "require_trainable", "shown"]

_LONGEST = 80  # characters of a value in a message


def kind_of(value: Any) -> str:
    """The name of a value's class with its article, for messages.

    Example:
        >>> kind_of(3), kind_of("three")
        ('an int', 'a str')
    """
    name = type(value).__name__
    return f"{'an' if name[0] in 'AEIOaeio' else 'a'} {name}"


def shown(value: Any) -> str:
    """A value and its class, for messages; of tensors, arrays and long values only the class and the size.

    Example:
        >>> shown(3.0), shown(torch.zeros(30, 1)), shown([torch.zeros(99)])
        ('3.0, a float', 'a Tensor of shape (30, 1)', 'a list of length 1')
    """
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and not isinstance(value, type):
        return f"{kind_of(value)} of shape {tuple(cast('tuple[Any, ...]', shape))}"
    text = repr(value)
    if len(text) <= _LONGEST and "\n" not in text and "tensor(" not in text:
        return f"{text}, {kind_of(value)}"
    return f"{kind_of(value)} of length {len(value)}" if isinstance(value, Sized) else kind_of(value)


def require_count(argument: str, value: Any, *, least: int = 1, advice: str = "") -> None:
    """Raise unless ``value`` is an integer >= ``least``.

    Args:
        argument: Name of the argument.
        value: What was given.
        least: The smallest number that is accepted.
        advice: What else is accepted, for the message.

    Raises:
        ArgumentTypeError: If it is not an integer.
        ArgumentError: If it is too small.

    Example:
        >>> require_count("steps", 3.0)
        Traceback (most recent call last):
        ...
        bayeshnet.errors.ArgumentTypeError: steps: is 3.0, a float; pass a whole number, 1 or more.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise ArgumentTypeError(f"{argument}: is {shown(value)}; pass a whole number, {least} or more{advice}.")
    if value < least:
        raise ArgumentError(f"{argument}: is {value}; pass a whole number, {least} or more{advice}.")


def require_positive(argument: str, value: Any) -> None:
    """Raise unless ``value`` is a positive finite number, or a tensor of one.

    Args:
        argument: Name of the argument.
        value: What was given.

    Raises:
        ArgumentTypeError: If it is not a number.
        ArgumentError: If it is not positive or not finite.

    Example:
        >>> require_positive("lr", 0.01)
        >>> require_positive("lr", 0.0)
        Traceback (most recent call last):
        ...
        bayeshnet.errors.ArgumentError: lr: is 0.0; pass a positive number.
    """
    value = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ArgumentTypeError(f"{argument}: is {shown(value)}; pass a positive number.")
    if not 0.0 < float(value) < math.inf:
        raise ArgumentError(f"{argument}: is {value}; pass a positive number.")


def require_flag(argument: str, value: Any) -> None:
    """Raise unless ``value`` is True or False: a string such as ``"no"`` would count as true.

    Args:
        argument: Name of the argument.
        value: What was given.

    Raises:
        ArgumentTypeError: If it is something else.

    Example:
        >>> require_flag("progress", "no")
        Traceback (most recent call last):
        ...
        bayeshnet.errors.ArgumentTypeError: progress: is 'no', a str; pass True or False.
    """
    if not isinstance(value, bool):
        raise ArgumentTypeError(f"{argument}: is {shown(value)}; pass True or False.")


def require_trainable(what: str) -> None:
    """Raise where tensors cannot be trained, under ``torch.inference_mode()``.

    Args:
        what: What is built, for the message.

    Raises:
        UsageError: Under ``torch.inference_mode()``.

    Example:
        >>> with torch.inference_mode():
        ...     require_trainable("Guide")
        Traceback (most recent call last):
        ...
        bayeshnet.errors.UsageError: Guide: is built under torch.inference_mode(), whose ...; build it outside...
    """
    if torch.is_inference_mode_enabled():
        raise UsageError(
            f"{what}: is built under torch.inference_mode(), whose tensors can never be trained; build it outside, or "
            "under torch.inference_mode(False). Predictions may be made inside."
        )
