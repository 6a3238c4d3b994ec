"""How numbers, tensors and distributions are printed in reprs: short, for people."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

__all__ = ["array", "number", "span", "value", "with_error"]

# Names of dtypes as equinox and jaxtyping write them.
_KINDS = (("bfloat", "bf"), ("float", "f"), ("uint", "u"), ("int", "i"), ("complex", "c"))


def number(x: Any, *, digits: int = 6) -> str:
    """A number to so many significant digits, whole numbers in full.

    Args:
        x: A number, or a tensor or array with one entry.
        digits: Significant digits; 6 are what float32 keeps of a decimal.

    Example:
        >>> number(torch.tensor(0.1)), number(6.0), number(1_000_000), number(1 / 3, digits=3)
        ('0.1', '6', '1000000', '0.333')
    """
    x = x.item() if hasattr(x, "item") else x
    return f"{x:.{digits}g}" if isinstance(x, float | complex) else str(x)


def array(t: Any) -> str:
    """The dtype and shape of a tensor or array, or its number if it has no dimensions.

    Example:
        >>> array(torch.zeros(500, 12)), array(torch.arange(3)), array(torch.tensor(0.1))
        ('f32[500,12]', 'i64[3]', '0.1')
    """
    if len(t.shape) == 0 and getattr(t, "device", None) != torch.device("meta"):
        return number(t)
    name = str(t.dtype).rpartition(".")[2]
    for long, short in _KINDS:
        if name.startswith(long):
            name = short + name.removeprefix(long)
            break
    return f"{name}[{','.join(map(str, t.shape))}]"


def span(t: Tensor, *, digits: int = 3) -> str:
    """The smallest and the largest entry of a tensor, or the one number that all entries are.

    Example:
        >>> span(torch.tensor([0.25, -1.0, 3.14159])), span(torch.full((4,), 0.1)), span(torch.zeros(0))
        ('-1..3.14', '0.1', 'empty')
    """
    if t.numel() == 0:
        return "empty"
    low, high = (number(end, digits=digits) for end in t.detach().aminmax())
    return low if low == high else f"{low}..{high}"


def with_error(x: float, error: float) -> str:
    """A number with as many digits as its standard error supports, and the error.

    Example:
        >>> with_error(-12.3456, 0.0123), with_error(1234567.0, 4321.0), with_error(0.5, 0.0)
        ('-12.346 ± 0.012', '1234567 ± 4321', '0.5 ± 0')
    """
    if not (math.isfinite(x) and math.isfinite(error) and error > 0):
        return f"{number(x, digits=4)} ± {number(error, digits=2)}"
    digits = min(10, max(0, 1 - math.floor(math.log10(error))))
    return f"{x:.{digits}f} ± {error:.{digits}f}"


def value(x: Any) -> str:
    """Anything that stands in a repr: numbers and tensors short, distributions with their parameters, the rest as is.

    Example:
        >>> import pyro.distributions as dist
        >>> value(dist.Gamma(6.0, 0.1)), value((1, torch.zeros(2, 3))), value({"scale": 0.1}), value("fan_in")
        ('Gamma(6, 0.1)', '(1, f32[2,3])', "{'scale': 0.1}", "'fan_in'")
    """
    if isinstance(x, bool) or x is None or isinstance(x, str):
        return repr(x)
    if isinstance(x, numbers.Number):
        return number(x)
    if hasattr(x, "dtype") and hasattr(x, "shape"):
        return array(x)
    if isinstance(x, torch.distributions.Distribution):
        return _distribution(x)
    if isinstance(x, Mapping):
        return "{" + ", ".join(f"{k!r}: {value(v)}" for k, v in cast("Mapping[Any, Any]", x).items()) + "}"
    if type(x) in (list, tuple):
        inner = ", ".join(map(value, x))
        return f"[{inner}]" if isinstance(x, list) else f"({inner}{',' if len(x) == 1 else ''})"
    return repr(x)


def _distribution(x: torch.distributions.Distribution) -> str:
    if isinstance(x, torch.distributions.Independent):
        return f"{_distribution(x.base_dist)}.to_event({x.reinterpreted_batch_ndims})"
    constraints = cast("Mapping[str, Any]", x.arg_constraints)
    if not constraints and isinstance(x, torch.distributions.TransformedDistribution):
        return f"{type(x).__name__}({value(x.base_dist)}, {value(x.transforms)})"
    # What was given: of two forms of one parameter, probs and logits, the other is computed when it is asked for.
    names = [name for name in constraints if name in vars(x)] or list(constraints)
    names = [name for name in names if name != "logits" or "probs" not in names]
    return f"{type(x).__name__}({', '.join(value(getattr(x, name)) for name in names)})"
