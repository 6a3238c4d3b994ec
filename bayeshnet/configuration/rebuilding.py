"""From a description to an object: of this package's classes and Pyro's distributions, and nothing else.

A file can name no other class or function, so that no code runs because of what it says but the constructors of these.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import transforms

from bayeshnet.configuration.comparing import shortly
from bayeshnet.configuration.configured import known_class

__all__ = ["NotRebuiltError", "rebuilt"]

_DISTRIBUTIONS = {
    name: value
    for name, value in vars(dist).items()
    if isinstance(value, type) and issubclass(value, TorchDistributionMixin) and not name.startswith("_")
}
_TRANSFORMS = {name: vars(transforms)[name] for name in transforms.__all__ if isinstance(vars(transforms)[name], type)}
_DTYPES = {str(value).removeprefix("torch."): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
_MOST = 10**6  # an integer that is a size, of which memory is taken


class NotRebuiltError(Exception):
    """A description of something that no file can bring.

    Attributes:
        reason: What it is and why not, for a message.

    Example:
        >>> NotRebuiltError("it is a function").reason
        'it is a function'
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def rebuilt(description: Any) -> Any:
    """Make the object that a description says.

    Raises:
        NotRebuiltError: If it is neither plain data, nor of a class of this package, nor a distribution of Pyro; or if
            its constructor refuses the arguments.

    Example:
        >>> from bayeshnet.configuration import described
        >>> rebuilt(described(dist.Gamma(6.0, 3.0))).rate
        tensor(3.)
        >>> rebuilt({"kind": "function", "name": "os.system"})
        Traceback (most recent call last):
        ...
        bayeshnet.configuration.rebuilding.NotRebuiltError: system is a function, which no file can bring
    """
    if description is None or isinstance(description, bool | int | float | str):
        return description
    if isinstance(description, list):
        return [rebuilt(part) for part in description]
    kind = description.get("kind") if isinstance(description, dict) else None
    make = _MAKERS.get(kind) if isinstance(kind, str) else None
    if make is None:
        what = (
            f"{shortly(description)} is a {kind}" if isinstance(kind, str) else "it is nothing that this version knows"
        )
        raise NotRebuiltError(f"{what}, which no file can bring")
    try:
        return make(description)
    except NotRebuiltError:
        raise
    except Exception as error:  # whatever a constructor makes of arguments that anyone may have written
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise NotRebuiltError(f"{shortly(description)} cannot be made ({reason})") from error


def _float(description: dict[str, Any]) -> float:
    return {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}[description["value"]]


def _tensor(description: dict[str, Any]) -> Tensor:
    value = description["value"]
    if not isinstance(value, Tensor):
        raise NotRebuiltError("a tensor is missing")
    return value.clone()


def _mapping(description: dict[str, Any]) -> dict[str, Any]:
    return {key: rebuilt(part) for key, part in description["items"].items()}


def _pairs(description: dict[str, Any]) -> dict[Any, Any]:
    return {rebuilt(key): rebuilt(part) for key, part in description["items"]}


def _sequence(kind: Callable[[list[Any]], Any]) -> Callable[[dict[str, Any]], Any]:
    return lambda description: kind([rebuilt(part) for part in description["items"]])


def _made_of(classes: dict[str, Any]) -> Callable[[dict[str, Any]], Any]:
    def make(description: dict[str, Any]) -> Any:
        cls = classes.get(description["class"])
        if cls is None:
            raise NotRebuiltError(f"{shortly(description)} is of a class of your own")
        arguments = {key: rebuilt(part) for key, part in description["arguments"].items()}
        if any(isinstance(part, int) and part > _MOST for part in arguments.values()):
            raise NotRebuiltError(f"{shortly(description)} is of a size that no file can ask for")
        made = cls(**arguments)
        for key in {"probs", "logits"} & arguments.keys():  # normalised again, they differ in the last digit
            vars(made).update({name: arguments[key] for name in (key, "_param") if name in vars(made)})
        return made

    return make


def _configured(description: dict[str, Any]) -> Any:
    cls = cast("Any", known_class(str(description["of"]), str(description["class"])))
    if cls is None or "own" in description:
        raise NotRebuiltError(f"{shortly(description)} is of a class of your own, which no file can bring")
    return cls(**{key: rebuilt(part) for key, part in description["arguments"].items()})


_MAKERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "float": _float,
    "tensor": _tensor,
    "dtype": lambda description: _DTYPES[description["name"]],
    "mapping": _mapping,
    "pairs": _pairs,
    "tuple": _sequence(tuple),
    "set": _sequence(set),
    "distribution": _made_of(_DISTRIBUTIONS),
    "transform": _made_of(_TRANSFORMS),
    "configured": _configured,
}
