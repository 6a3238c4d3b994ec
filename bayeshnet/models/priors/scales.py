"""Scales and locations of priors: how they are given, and what they are for a parameter."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from bayeshnet.checks import kind_of
from bayeshnet.configuration import Configured
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.fans import fan_in_and_out
from bayeshnet.mnets.param_table import ParamRecord

__all__ = [
    "RULES",
    "Learn",
    "Loc",
    "NetworkValues",
    "Scale",
    "check_learn",
    "check_loc",
    "check_scale",
    "check_scales",
    "entries",
    "expanded",
    "lookup",
    "matches",
    "scale_of_rule",
]

Scale: TypeAlias = "float | Tensor | str"
Loc: TypeAlias = "float | Tensor | Mapping[str, float | Tensor] | nn.Module | NetworkValues | str | None"
Learn: TypeAlias = "bool | Literal['inputs']"

RULES = ("fan_in", "xavier", "kaiming")


class NetworkValues(Configured):
    """The parameter values of a network, as the centre of a prior.

    Args:
        values: A tensor for each parameter, by name.

    Example:
        >>> NetworkValues({"weight": torch.zeros(2, 3)})
        <values of 1 parameter>
    """

    configured_as = "values"

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        self.values = {name: value.detach().clone() for name, value in values.items()}

    @classmethod
    def of(cls, net: nn.Module) -> NetworkValues:
        """Those of a network's parameters that are not frozen.

        Raises:
            ArgumentError: If it has none, or some are not finite.
        """
        names, kept = getattr(net, "param_names", None), getattr(net, "internal_params", None)
        pairs = zip(names, kept, strict=True) if names is not None and kept is not None else net.named_parameters()
        values = {name: param for name, param in pairs if param.requires_grad}
        if not values:
            raise ArgumentError(f"loc: the network {type(net).__name__} has no parameters that are not frozen.")
        for name, value in values.items():
            if not bool(torch.isfinite(value).all()):
                raise ArgumentError(f"loc: the network's parameter {name!r} has entries that are not finite.")
        return cls(values)

    def __repr__(self) -> str:
        return f"<values of {len(self.values)} parameter{'s' * (len(self.values) != 1)}>"

    def value(self, name: str) -> Tensor:
        """That of a parameter.

        Raises:
            ArgumentError: If the network had none of this name.
        """
        if name not in self.values:
            raise ArgumentError(
                f"loc: the network whose values are the centre has no parameter {name!r}, only {list(self.values)}; "
                "pass one of the same architecture, with requires_grad=True for what is a weight."
            )
        return self.values[name]


def scale_of_rule(rule: str, record: ParamRecord) -> float:
    """The standard deviation that a rule gives to a parameter: 1 for all but weights of two or more dimensions.

    ``"fan_in"`` is ``1 / sqrt(fan_in)`` (LeCun), ``"xavier"`` ``sqrt(2 / (fan_in + fan_out))`` (Glorot and Bengio,
    AISTATS 2010), ``"kaiming"`` ``sqrt(2 / fan_in)`` (He et al., ICCV 2015).

    Example:
        >>> [round(scale_of_rule(rule, ParamRecord((2, 8), "weight", 0)) ** 2, 6) for rule in RULES]
        [0.125, 0.2, 0.25]
    """
    if record.name != "weight" or len(record.shape) < 2:
        return 1.0
    fan_in, fan_out = fan_in_and_out(record.shape, transposed=bool(record.extra.get("transposed", False)))
    if rule == "fan_in":
        return 1.0 / math.sqrt(fan_in)
    return math.sqrt(2.0 / (fan_in + fan_out)) if rule == "xavier" else math.sqrt(2.0 / fan_in)


def check_scales(scale: object, loc: object, learn: object) -> None:
    """Raise unless scale, location and what is learned are numbers, rules, or mappings to these.

    Raises:
        ArgumentError: If a number is out of range, or a rule not known.
        ArgumentTypeError: If something is of another type.

    Example:
        >>> check_scales({"*": "fan_in"}, None, False)
    """
    for argument, given in (("scale", scale), ("loc", loc), ("learn", learn)):
        for key in given if isinstance(given, Mapping) else ():
            if not isinstance(key, str):
                raise ArgumentTypeError(
                    f"{argument}: has the key {key!r}, {kind_of(key)}; pass names of parameters or patterns."
                )
    for key, value in entries(scale):
        check_scale(value, f"scale[{key!r}]" if key else "scale")
    if not isinstance(loc, NetworkValues):
        for key, value in entries(0.0 if loc is None else loc):
            check_loc(value, f"loc[{key!r}]" if key else "loc")
    check_learn(learn)


def check_learn(learn: object) -> None:
    """Raise unless it is False, True or ``"inputs"``, or a mapping to these.

    Example:
        >>> check_learn({"*": "inputs"})
    """
    for _, value in entries(learn):
        if not (isinstance(value, bool) or value == "inputs"):
            raise ArgumentError(f"learn: is {value!r}; pass False, True or 'inputs', or a mapping to these.")


def entries(given: object) -> list[tuple[str, object]]:
    """The entries of a mapping, or the one value under no name.

    Example:
        >>> entries(1.0)
        [('', 1.0)]
    """
    return [(str(key), value) for key, value in given.items()] if isinstance(given, Mapping) else [("", given)]


def check_scale(value: object, where: str) -> None:
    """Raise unless it is a positive number, a tensor of these or a rule.

    Example:
        >>> check_scale("xavier", "scale")
    """
    if isinstance(value, str):
        if value not in RULES:
            raise ArgumentError(f"{where}: is {value!r}; the rules known by name are {', '.join(map(repr, RULES))}.")
    elif isinstance(value, Tensor):
        _check_real(value, where)
        if not bool((value > 0).all()) or not bool(torch.isfinite(value).all()):
            raise ArgumentError(f"{where}: a standard deviation has to be positive and finite everywhere.")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        if not (value > 0 and math.isfinite(value)):
            raise ArgumentError(f"{where}: is {value}; a standard deviation has to be positive and finite.")
    else:
        raise ArgumentTypeError(
            f"{where}: is {kind_of(value)}; pass a positive number, a tensor, 'fan_in', 'xavier', 'kaiming', or a "
            "mapping from parameter names to these."
        )


def check_loc(value: object, where: str) -> None:
    """Raise unless it is a finite number or a tensor of these.

    Example:
        >>> check_loc(0.5, "loc")
    """
    if not isinstance(value, int | float | Tensor) or isinstance(value, bool):
        also = ", a network, or 'net' for the values of the one that the model is built from" * (where == "loc")
        raise ArgumentTypeError(f"{where}: is {kind_of(value)}; pass a number or a tensor{also}.")
    if isinstance(value, Tensor):
        _check_real(value, where)
    finite = bool(torch.isfinite(value).all()) if isinstance(value, Tensor) else math.isfinite(value)
    if not finite:
        given = "has entries that are not finite" if isinstance(value, Tensor) else f"is {value}"
        raise ArgumentError(f"{where}: {given}; a mean has to be finite.")


def _check_real(value: Tensor, where: str) -> None:
    if value.is_complex() or value.dtype == torch.bool:
        raise ArgumentTypeError(f"{where}: is a tensor of {value.dtype}; pass real numbers.")


def lookup(value: object, name: str) -> float | Tensor | str | None:
    """What a parameter has: the value itself, or the entry of its name, or of the first pattern that fits.

    Example:
        >>> lookup({"*.bias": 2.0}, "0.bias"), lookup({"*.bias": 2.0}, "0.weight")
        (2.0, None)
    """
    if not isinstance(value, Mapping):
        return value  # pyright: ignore[reportReturnType]
    if name in value:
        return value[name]
    return next((v for pattern, v in value.items() if fnmatch.fnmatchcase(name, pattern)), None)


def matches(patterns: tuple[str, ...], name: str) -> bool:
    """Whether a parameter's name fits one of some patterns.

    Example:
        >>> matches(("*.weight",), "0.weight")
        True
    """
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def expanded(value: float | Tensor | str, name: str, record: ParamRecord, like: Tensor, argument: str) -> Tensor:
    """A scale or location as a tensor of the parameter's shape, dtype and device.

    Raises:
        ArgumentError: If it does not broadcast, or is out of the range of the dtype.

    Example:
        >>> expanded(2.0, "bias", ParamRecord((2,)), torch.zeros(()), "loc")
        tensor([2., 2.])
    """
    tensor = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    # 1e300 is infinite in float32 and 1e-60 is 0; of 1e-40 the reciprocal, by which weights are whitened, is infinite.
    usable = torch.isfinite(tensor) if argument == "loc" else torch.isfinite(tensor) & torch.isfinite(1.0 / tensor)
    if not bool(usable.all()):
        given = torch.as_tensor(value, dtype=torch.float64, device=like.device)[~usable].flatten()[0]
        raise ArgumentError(
            f"{argument}: {float(given):g} for parameter {name!r} is out of the range of {like.dtype}, the network's "
            "dtype; pass numbers in its range, or convert the network to float64."
        )
    try:
        return tensor.expand(record.shape)
    except RuntimeError:
        raise ArgumentError(
            f"{argument}: the tensor for parameter {name!r} has shape {tuple(tensor.shape)}, which does not broadcast "
            f"to the parameter's {record.shape}."
        ) from None
