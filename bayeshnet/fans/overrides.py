"""Numbers that a user gives in place of the defaults: one per target, or one per kind of tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from bayeshnet.checks import kind_of, shown
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.fans.targets import PARAM_NAMES, Target

__all__ = ["Overrides", "counted_variance", "read_number", "read_overrides", "read_variance"]

Overrides: TypeAlias = "Sequence[float | None] | Mapping[str, float] | None"
"""One number per target tensor (None: the default), or one per name of tensors."""


def read_number(argument: str, value: Any) -> float:
    """Return a finite number as a float.

    Raises:
        ArgumentTypeError: If it is not a number.
        ArgumentError: If it is not finite.

    Example:
        >>> read_number("rho_mean", -3)
        -3.0
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ArgumentTypeError(f"{argument}: is {shown(value)}; pass a number.") from None
    if not math.isfinite(number):
        raise ArgumentError(f"{argument}: is {value}; pass a finite number.")
    return number


def read_variance(argument: str, value: Any) -> float:
    """Return a variance as a float.

    Raises:
        ArgumentTypeError: If it is not a number.
        ArgumentError: If it is negative or not finite.

    Example:
        >>> read_variance("eps", -1)
        Traceback (most recent call last):
        ...
        bayeshnet.errors.ArgumentError: eps: is -1; pass a variance, 0 or more.
    """
    number = read_number(argument, value)
    if number < 0:
        raise ArgumentError(f"{argument}: is {value}; pass a variance, 0 or more.")
    return number


def counted_variance(argument: str, value: Any, size: int) -> float:
    """Return the variance of an input, which counts only where there is such an input.

    Args:
        argument: Name of the argument.
        value: The variance; anything if ``size`` is 0.
        size: Number of entries of the input.

    Returns:
        The variance; 1 if there is no input, which then counts for nothing.

    Raises:
        ArgumentTypeError: If there is such an input and the value is not a number.
        ArgumentError: If it is negative or not finite.

    Example:
        >>> counted_variance("uncond_var", 0.25, 8), counted_variance("uncond_var", -1, 0)
        (0.25, 1.0)
    """
    return read_variance(argument, value) if size else 1.0


def read_overrides(
    argument: str, given: Overrides, targets: Sequence[Target], *, variance: bool = False
) -> list[float | None]:
    """Return one number per target from a list or a dict; None where the default stays.

    Args:
        argument: Name of the argument.
        given: One entry per target, or a number by the name of tensors.
        targets: The targets.
        variance: Whether negative numbers are refused.

    Raises:
        ArgumentError: If the length is wrong, a name does not exist, or a number is not accepted.
        ArgumentTypeError: If it is neither a list nor a dict, or an entry is not a number.

    Example:
        >>> targets = (Target((10, 5), "weight", 5, 10, has_bias=True), Target((10,), "bias", 5, 10))
        >>> read_overrides("b_val", {"bias": 0.5}, targets)
        [None, 0.5]
    """
    if given is None:
        return [None] * len(targets)
    read = read_variance if variance else read_number
    if isinstance(given, Mapping):
        unknown = [key for key in given if key not in PARAM_NAMES]
        if unknown:
            raise ArgumentError(
                f"{argument}: has the keys {unknown}; pass names of tensors, {', '.join(map(repr, PARAM_NAMES[:-1]))}."
            )
        numbers: dict[str | None, float] = {key: read(f"{argument}[{key!r}]", value) for key, value in given.items()}
        return [numbers.get(target.name) for target in targets]
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise ArgumentTypeError(
            f"{argument}: is {kind_of(given)}; pass a list with one number or None per target tensor, or a dict from "
            "names of tensors to numbers."
        )
    if len(given) != len(targets):
        raise ArgumentError(f"{argument}: has {len(given)} entries; pass one for each of the {len(targets)} targets.")
    return [None if value is None else read(f"{argument}[{i}]", value) for i, value in enumerate(given)]
