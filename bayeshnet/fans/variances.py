"""Variances of hyperfan: how large the produced tensors start.

With c = 2 (Kaiming) or 1 (Xavier), k inputs of mean square v to a linear head, and the fans of the *target* weight, the
variances of the head's rows are (Chang et al. 2020, "Principled Weight Initialization for Hypernetworks",
https://openreview.net/forum?id=H1lma24tPB)

================  ============================  ========================================
head of           fan-in                        fan-out
================  ============================  ========================================
target weight     c / (b f_in k v)              c / (f_out k v)
target bias       c / (2 k v)                   max(0, c (1 - f_in / f_out) / (k v))
================  ============================  ========================================

where b is 2 if the target layer has a bias that is produced too, else 1. :func:`row_variance` gives these numbers times
k v: the variance of what the head puts out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bayeshnet.checks import shown
from bayeshnet.errors import ArgumentError
from bayeshnet.fans.overrides import Overrides, read_overrides
from bayeshnet.fans.targets import Target

__all__ = ["METHODS", "chunk_variances", "gain", "input_variance", "require_method", "row_variance"]

METHODS = ("in", "out", "harmonic")
"""The accepted values of ``method``."""


def gain(use_xavier: bool) -> float:
    """Return the constant c: 2 for Kaiming (a ReLU passes half of the power on), 1 for Xavier.

    Example:
        >>> gain(use_xavier=False)
        2.0
    """
    return 1.0 if use_xavier else 2.0


def require_method(method: str) -> None:
    """Raise unless ``method`` is one of :data:`METHODS`.

    Raises:
        ArgumentError: If it is not.

    Example:
        >>> require_method("both")
        Traceback (most recent call last):
        ...
        bayeshnet.errors.ArgumentError: method: is 'both', a str; pass 'in', 'out' or 'harmonic'.
    """
    if method not in METHODS:
        raise ArgumentError(f"method: is {shown(method)}; pass 'in', 'out' or 'harmonic'.")


def input_variance(parts: Iterable[tuple[int, float]]) -> float:
    """Return the mean variance of the entries of a concatenated input.

    Args:
        parts: Size and variance of each part.

    Raises:
        ArgumentError: If the mean is 0: no scale of a head could turn that into a positive variance.

    Example:
        >>> input_variance([(2, 1.0), (6, 0.2)])
        0.4
    """
    parts = list(parts)
    num, total = sum(size for size, _ in parts), sum(size * var for size, var in parts)
    if num and not total:
        raise ArgumentError(
            "uncond_var, cond_var: the variance of the hypernetwork's input is 0, so its outputs cannot vary; pass the "
            "variances that the inputs have."
        )
    return total / num if num else 0.0


def row_variance(target: Target, method: str, c: float) -> float:
    """Return the variance that the rows of a head give to its target: the table above, times k v.

    Args:
        target: The target.
        method: One of :data:`METHODS`.
        c: The gain, squared.

    Example:
        >>> row_variance(Target((10, 5), "weight", 5, 10, has_bias=True), "in", c=2.0)  # c / (b f_in)
        0.2
    """
    if target.name == "weight":
        b = 2 if target.has_bias else 1
        return _choose(method, c / (b * target.fan_in), c / target.fan_out)
    if target.name == "bias":
        return _choose(method, c / 2, max(0.0, c * (1 - target.fan_in / target.fan_out)))
    return 1.0 if target.name is None else 0.0


def chunk_variances(
    targets: Sequence[Target], method: str = "in", use_xavier: bool = False, target_vars: Overrides = None
) -> list[float]:
    """Return the variance of each target of a network whose outputs share one head.

    Args:
        targets: The targets.
        method: One of :data:`METHODS`.
        use_xavier: Xavier rather than Kaiming.
        target_vars: Variances that replace the computed ones.

    Returns:
        ``c / f_in``, ``c / f_out`` or their harmonic mean for a weight, ``1 / (3 f_in)`` (PyTorch's default) for a
        bias, 1 for everything else.

    Raises:
        ArgumentError: If the method is unknown or ``target_vars`` do not fit.
        ArgumentTypeError: If ``target_vars`` are not a list or dict of numbers.

    Example:
        >>> chunk_variances([Target((10, 5), "weight", 5, 10, has_bias=True), Target((10,), "bias", 5, 10)])
        [0.4, 0.06666666666666667]
    """
    require_method(method)
    c = gain(use_xavier)

    def default(target: Target) -> float:
        if target.name == "weight":
            return _choose(method, c / target.fan_in, c / target.fan_out)
        return 1 / (3 * target.fan_in) if target.name == "bias" else 1.0

    given = read_overrides("target_vars", target_vars, targets, variance=True)
    return [default(target) if var is None else var for target, var in zip(targets, given, strict=True)]


def _choose(method: str, fan_in: float, fan_out: float) -> float:
    harmonic = 2 / (1 / fan_in + 1 / fan_out) if fan_in and fan_out else 0.0
    return {"in": fan_in, "out": fan_out, "harmonic": harmonic}[method]
