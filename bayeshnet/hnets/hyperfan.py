"""Arithmetic of hyperfan initialisation: with which means and variances the heads of a hypernetwork start.

Nothing is drawn here; see :mod:`bayeshnet.hnets.hyperfan_draw`. With c = 2 (Kaiming) or 1 (Xavier), k inputs of mean
square v to a linear head, and the fans of the *target* weight, the variances of the head's rows are (Chang et al. 2020,
"Principled Weight Initialization for Hypernetworks", https://openreview.net/forum?id=H1lma24tPB)

================  ============================  ========================================
head of           fan-in                        fan-out
================  ============================  ========================================
target weight     c / (b f_in k v)              c / (f_out k v)
target bias       c / (2 k v)                   max(0, c (1 - f_in / f_out) / (k v))
================  ============================  ========================================

where b is 2 if the target layer has a bias that is produced too, else 1. The functions here give these numbers times
k v: the variance of what the head puts out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.hnets.hyperfan_targets import Target
from bayeshnet.mnets.param_table import PARAM_NAMES

__all__ = [
    "METHODS",
    "HeadInit",
    "Overrides",
    "check_number",
    "check_variance",
    "chunk_variances",
    "counted_variance",
    "gain",
    "head_inits",
    "input_variance",
    "read_overrides",
]

METHODS = ("in", "out", "harmonic")
"""The accepted values of ``method``."""

Overrides: TypeAlias = "Sequence[float | None] | Mapping[str, float] | None"
"""One number per target tensor (None: the default), or one per name of tensors."""

_SCALES = ("bn_scale", "cm_scale")


# ---------------------------------------------------------------------- variances


def gain(use_xavier: bool) -> float:
    """The constant c: 2 for Kaiming (half of what a ReLU passes on), 1 for Xavier."""
    return 1.0 if use_xavier else 2.0


def check_variance(name: str, value: float) -> float:
    """Refuse what is no variance.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is negative or not finite.
    """
    number = check_number(name, value)
    if number < 0:
        raise ArgumentError(f"{name}: {value} was given; a variance is 0 or positive.")
    return number


def counted_variance(name: str, value: float, size: int) -> float:
    """The variance of an input, which counts only where there is such an input.

    Args:
        name: Name of the argument, for messages.
        value: The variance; anything if ``size`` is 0.
        size: Number of entries of the input.

    Returns:
        The variance; 1 if there is no input, which then counts for nothing.

    Raises:
        TypeError: If there is such an input and the value is no number.
        ValueError: If it is negative or not finite.

    Example:
        >>> counted_variance("uncond_var", 0.25, 8), counted_variance("uncond_var", -1, 0)
        (0.25, 1.0)
    """
    return check_variance(name, value) if size else 1.0


def input_variance(parts: Iterable[tuple[int, float]]) -> float:
    """The mean variance of the entries of a concatenated input.

    Args:
        parts: Size and variance of each part.

    Raises:
        ValueError: If it is 0, so that no head could make a variance of it.

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


def _harmonic(a: float, b: float) -> float:
    return 2 / (1 / a + 1 / b) if a and b else 0.0


def _choose(method: str, fan_in: float, fan_out: float) -> float:
    return {"in": fan_in, "out": fan_out, "harmonic": _harmonic(fan_in, fan_out)}[method]


def _check_method(method: str) -> None:
    if method not in METHODS:
        raise ArgumentError(f"method: {method!r} is unknown; use one of {', '.join(map(repr, METHODS))}.")


def _row_variance(target: Target, method: str, c: float) -> float:
    """Variance of a target that the rows of its head make: the table above, times k v."""
    if target.name == "weight":
        b = 2 if target.has_bias else 1
        return _choose(method, c / (b * target.fan_in), c / target.fan_out)
    if target.name == "bias":
        return _choose(method, c / 2, max(0.0, c * (1 - target.fan_in / target.fan_out)))
    return 1.0 if target.name is None else 0.0


def chunk_variances(
    targets: Sequence[Target], method: str = "in", use_xavier: bool = False, target_vars: Overrides = None
) -> list[float]:
    """Variance of each target of a network whose outputs share one head; see ``apply_chunked_hyperfan_init``.

    Args:
        targets: The targets.
        method: One of :data:`METHODS`.
        use_xavier: Xavier rather than Kaiming.
        target_vars: Variances that replace those computed.

    Returns:
        ``c / f_in``, ``c / f_out`` or their harmonic mean for a weight, ``1 / (3 f_in)`` (PyTorch's default) for a
        bias, 1 for everything else.

    Raises:
        ValueError: If the method is unknown or ``target_vars`` do not fit.

    Example:
        >>> from bayeshnet.hnets.hyperfan_targets import describe_targets
        >>> chunk_variances(describe_targets([[10, 5], [10]]))
        [0.4, 0.06666666666666667]
    """
    _check_method(method)
    c = gain(use_xavier)

    def default(target: Target) -> float:
        if target.name == "weight":
            return _choose(method, c / target.fan_in, c / target.fan_out)
        return 1 / (3 * target.fan_in) if target.name == "bias" else 1.0

    given = read_overrides("target_vars", target_vars, targets, variance=True)
    return [default(target) if var is None else var for target, var in zip(targets, given, strict=True)]


# ---------------------------------------------------------------------- heads


@dataclass(frozen=True, slots=True)
class HeadInit:
    """How the rows and the bias entries of one head are drawn.

    The fields are means and variances, so that of a head which serves several targets they are averages.

    Attributes:
        row_mean: Mean of the rows' entries.
        row_var: Their variance, in addition to that by ``out_var``.
        out_var: Variance that the rows give to the output: ``out_var / (k v)`` of their own.
        bias_mean, bias_var: Mean and variance of the bias entries.
    """

    row_mean: float = 0.0
    row_var: float = 0.0
    out_var: float = 0.0
    bias_mean: float = 0.0
    bias_var: float = 0.0

    @property
    def needs_bias(self) -> bool:
        """Whether it asks for something else than a bias of 0."""
        return self.bias_mean != 0 or self.bias_var != 0

    @classmethod
    def average(cls, heads: Sequence[HeadInit], shares: Mapping[int, float]) -> HeadInit:
        """Average field by field.

        Args:
            heads: What to average.
            shares: The share of each, by its index.
        """
        names = [field.name for field in fields(cls)]
        return cls(*(sum(share * getattr(heads[i], name) for i, share in shares.items()) for name in names))


def head_inits(
    targets: Sequence[Target],
    method: str = "in",
    use_xavier: bool = False,
    *,
    w_val: Overrides = None,
    w_var: Overrides = None,
    b_val: Overrides = None,
    b_var: Overrides = None,
) -> list[HeadInit]:
    """The hyperfan initialisation of the head of each target.

    Weights and biases get the variances of the table through their rows. Scales of batch norm and context modulation
    start at 1, their shifts at 0, embeddings with variance 1, all through the head's bias; a tensor of unknown kind
    gets variance 1 through the rows.

    Args:
        targets: The targets.
        method: One of :data:`METHODS`.
        use_xavier: Xavier rather than Kaiming.
        w_val: Means of the rows, in place of the defaults.
        w_var: Variances of the rows.
        b_val: Means of the bias entries.
        b_var: Variances of the bias entries.

    Raises:
        ValueError: If the method is unknown, or an override does not fit.
        TypeError: If an override is no list or dict of numbers.

    Example:
        >>> from bayeshnet.hnets.hyperfan_targets import describe_targets
        >>> head_inits(describe_targets([[10, 5], [10]]), w_var={"bias": 0})[1]
        HeadInit(row_mean=0.0, row_var=0.0, out_var=0.0, bias_mean=0.0, bias_var=0.0)
    """
    _check_method(method)
    row_means = read_overrides("w_val", w_val, targets)
    row_vars = read_overrides("w_var", w_var, targets, variance=True)
    bias_means = read_overrides("b_val", b_val, targets)
    bias_vars = read_overrides("b_var", b_var, targets, variance=True)
    heads: list[HeadInit] = []
    for i, target in enumerate(targets):
        row_var, bias_mean, bias_var = row_vars[i], bias_means[i], bias_vars[i]
        heads.append(
            HeadInit(
                row_means[i] or 0.0,
                row_var or 0.0,
                _row_variance(target, method, gain(use_xavier)) if row_var is None else 0.0,
                (1.0 if target.name in _SCALES else 0.0) if bias_mean is None else bias_mean,
                (1.0 if target.name == "embedding" else 0.0) if bias_var is None else bias_var,
            )
        )
    return heads


# ---------------------------------------------------------------------- overrides


def read_overrides(
    name: str, given: Overrides, targets: Sequence[Target], *, variance: bool = False
) -> list[float | None]:
    """One number per target from a list or a dict; None where nothing is said.

    Args:
        name: Name of the argument, for messages.
        given: One entry per target, or a number by the name of tensors.
        targets: The targets.
        variance: Whether negative numbers are refused.

    Raises:
        ValueError: If the length is wrong, a name does not exist, or a number is not accepted.
        TypeError: If it is neither list nor dict, or an entry is no number.

    Example:
        >>> from bayeshnet.hnets.hyperfan_targets import describe_targets
        >>> read_overrides("b_val", {"bias": 0.5}, describe_targets([[10, 5], [10]]))
        [None, 0.5]
    """
    if given is None:
        return [None] * len(targets)
    read = check_variance if variance else check_number
    if isinstance(given, Mapping):
        unknown = [key for key in given if key not in PARAM_NAMES]
        if unknown:
            raise ArgumentError(
                f"{name}: has the keys {unknown}; names of tensors are {', '.join(map(repr, PARAM_NAMES[:-1]))}."
            )
        numbers: dict[str | None, float] = {key: read(f"{name}[{key!r}]", value) for key, value in given.items()}
        return [numbers.get(target.name) for target in targets]
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise ArgumentTypeError(
            f"{name}: is a {type(given).__name__}; pass a list with one number or None per target tensor, or a dict "
            "from names of tensors to numbers."
        )
    if len(given) != len(targets):
        raise ArgumentError(
            f"{name}: has {len(given)} entries; one for each of the {len(targets)} targets is expected."
        )
    return [None if value is None else read(f"{name}[{i}]", value) for i, value in enumerate(given)]


def check_number(name: str, value: Any) -> float:
    """Refuse what is no finite number.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is not finite.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ArgumentTypeError(f"{name}: a number is expected, not {value!r}.") from None
    if not math.isfinite(number):
        raise ArgumentError(f"{name}: {value} was given; a finite number is expected.")
    return number
