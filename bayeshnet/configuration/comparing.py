"""Where two descriptions differ."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor

from bayeshnet.configuration.configured import known_class
from bayeshnet.configuration.describing import described
from bayeshnet.configuration.functions import is_of_library

__all__ = ["Difference", "differences", "shortly"]

_MOST = 8  # numbers of a tensor in a message
_NOTHING: Any = {"kind": "nothing"}


@dataclass(frozen=True, slots=True)
class Difference:
    """A place at which two descriptions differ.

    Attributes:
        place: Where, as a path of arguments, attributes and submodules.
        saved: What the file has there, in short.
        own: What is there instead.
        certain: Whether it makes a difference for sure: the code of a function may have changed without an effect.

    Example:
        >>> print(Difference("prior.scale", "1.0", "3.0"))
        prior.scale is 1.0 in the file and 3.0 here
    """

    place: str
    saved: str
    own: str
    certain: bool = True

    def __str__(self) -> str:
        return f"{self.place} is {self.saved} in the file and {self.own} here"


def differences(saved: Any, own: Any, place: str) -> list[Difference]:
    """Find where two descriptions of :func:`described` differ.

    Lists and tuples of the same parts are the same, and whole numbers and the floats that equal them. What the
    constructor of a class of this package has learned since a file was written counts where it is not the default.

    Args:
        saved: The description in a file; anything may be in it.
        own: That of the object at hand.
        place: Its name, which the places of differences begin with.

    Example:
        >>> print(*differences(described({"a": 1.0}), described({"a": 3.0}), "scale"))
        scale.a is 1.0 in the file and 3.0 here
        >>> print(*differences(described(torch.nn.Sequential(torch.nn.Tanh())),
        ...                    described(torch.nn.Sequential(torch.nn.ReLU())), "net"))
        net.0 is Tanh in the file and ReLU here
    """
    return list(_compared(saved, own, place))


def _compared(saved: Any, own: Any, place: str) -> Iterator[Difference]:
    one, other = _items(saved), _items(own)
    if one is not None and other is not None and len(one) == len(other):
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            yield from _compared(a, b, f"{place}[{i}]")
        return
    kind = _kind(saved)
    if kind is None or kind != _kind(own):
        if not (_is_scalar(saved) and _is_scalar(own) and saved == own):
            yield Difference(place, shortly(saved), shortly(own))
        return
    if kind == "tensor":
        if not _same_tensor(saved["value"], own["value"]):
            yield Difference(place, shortly(saved), shortly(own))
    elif kind == "digest":
        if saved != own:
            yield Difference(place, shortly(saved), shortly(own))
    elif kind == "mapping":
        yield from _of_keys(saved.get("items"), own.get("items"), place, ordered=True)
    elif kind == "configured":
        yield from _configured(saved, own, place)
    elif kind == "module":
        yield from _modules(saved.get("modules"), own.get("modules"), place)
    elif kind == "function":
        yield from _functions(saved, own, place)
    else:
        yield from _parts(saved, own, place)


def _parts(saved: Mapping[str, Any], own: Mapping[str, Any], place: str) -> Iterator[Difference]:
    """Anything with a class or name, and parts by name."""
    for key in ("class", "name"):
        if _last(saved.get(key)) != _last(own.get(key)):
            yield Difference(place, shortly(saved), shortly(own))
            return
    yield from _code(saved, own, place)
    rest = {"kind", "class", "name", "code", "python", "arguments", "attributes"}
    for key in ("arguments", "attributes"):
        yield from _of_keys(saved.get(key, {}), own.get(key, {}), place)
    one, other = ({k: v for k, v in part.items() if k not in rest} for part in (saved, own))
    yield from _of_keys(one, other, place)


def _of_keys(saved: Any, own: Any, place: str, *, ordered: bool = False) -> Iterator[Difference]:
    if not isinstance(saved, dict) or not isinstance(own, dict):
        yield Difference(place, shortly(saved), shortly(own))
        return
    for key in {**own, **saved}:
        yield from _compared(saved.get(key, _NOTHING), own.get(key, _NOTHING), f"{place}.{key}" if key else place)
    if ordered and saved.keys() == own.keys() and list(saved) != list(own):
        yield Difference(f"the order of {place}", str(list(saved)), str(list(own)))


def _configured(saved: Mapping[str, Any], own: Mapping[str, Any], place: str) -> Iterator[Difference]:
    names = [part.get("class") for part in (saved, own)]
    if names[0] != names[1] or ("own" in saved) != ("own" in own):
        yield Difference(place, shortly(saved), shortly(own))
        return
    yield from _code(saved, own, place)
    skipped = {*_strings(saved.get("not_compared")), *_strings(own.get("not_compared"))}
    arguments = [part.get("arguments") for part in (saved, own)]
    given, mine = ({k: v for k, v in part.items() if k not in skipped} for part in map(_dict, arguments))
    yield from _of_keys({**{k: v for k, v in _defaults(own).items() if k in mine}, **given}, mine, place)
    yield from _of_keys(saved.get("attributes", {}), own.get("attributes", {}), place)
    yield from _of_keys(saved.get("facts", {}), own.get("facts", {}), place)


def _defaults(own: Mapping[str, Any]) -> dict[str, Any]:
    """Descriptions of the defaults of a constructor of this package: what earlier versions did without saying so."""
    cls = None if "own" in own else known_class(str(own.get("of")), str(own.get("class")))
    if cls is None:
        return {}
    parameters = inspect.signature(cls.__init__).parameters.values()
    return {p.name: described(p.default) for p in parameters if p.default is not p.empty}


def _modules(saved: Any, own: Any, place: str) -> Iterator[Difference]:
    if not isinstance(saved, dict) or not isinstance(own, dict):
        yield Difference(place, shortly(saved), shortly(own))
        return
    for name in {**own, **saved}:
        where = f"{place}.{name}" if name else place
        one, other = saved.get(name, _NOTHING), own.get(name, _NOTHING)
        if not isinstance(one, dict) or "kind" in one or "kind" in other:
            yield from _compared(one, other, where)
        elif _last(one.get("class")) != _last(other.get("class")):
            yield Difference(where, shortly(one), shortly(other))
        else:
            yield from _code(one, other, where)
            a, b = one.get("attributes"), other.get("attributes")
            if is_of_library(other["class"]) and isinstance(a, dict):  # versions of a library have others
                a, b = ({key: part[key] for key in a if key in b} for part in (a, b))
            yield from _of_keys(a, b, where)
            for key in ("frozen", "hooks"):
                yield from _compared(one.get(key, []), other.get(key, []), f"{where}.{key}")


def _functions(saved: Mapping[str, Any], own: Mapping[str, Any], place: str) -> Iterator[Difference]:
    names = [str(part.get("name")) for part in (saved, own)]
    same = names[0] == names[1] if is_of_library(names[1]) else _last(names[0]) == _last(names[1])
    if not same:
        yield Difference(place, shortly(saved), shortly(own))
        return
    yield from _code(saved, own, place)
    yield from _compared(saved.get("of", _NOTHING), own.get("of", _NOTHING), place)
    for key in ("defaults", "closure", "globals"):
        yield from _of_keys(saved.get(key, {}), own.get(key, {}), place)


def _code(saved: Mapping[str, Any], own: Mapping[str, Any], place: str) -> Iterator[Difference]:
    """The code of functions can be compared under one version of Python only."""
    if saved.get("python") == own.get("python") and saved.get("code") != own.get("code"):
        yield Difference(f"the code of {place}", shortly(saved.get("code")), shortly(own.get("code")), certain=False)


# ---------------------------------------------------------------------- parts of descriptions


def _kind(value: Any) -> str | None:
    kind = value.get("kind") if isinstance(value, dict) else None
    return kind if isinstance(kind, str) else None


def _items(value: Any) -> list[Any] | None:
    items = value.get("items") if _kind(value) in ("tuple", "set", "pairs") else value
    return items if isinstance(items, list) else None


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def _same_tensor(one: Any, other: Any) -> bool:
    same = _is_tensor(one) and _is_tensor(other) and one.dtype == other.dtype and one.shape == other.shape
    return bool(same and torch.equal(one, other))


def _is_tensor(value: Any) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor)


def _last(name: Any) -> str:
    return str(name).rpartition(".")[2]


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _strings(value: Any) -> list[str]:
    return [part for part in value if isinstance(part, str)] if isinstance(value, list) else []


def shortly(value: Any) -> str:
    """A description in a few words, for messages.

    Example:
        >>> shortly(described(torch.distributions.Normal(0.0, 1.0)))
        'Normal(loc=0.0, scale=1.0)'
    """
    text = _shortly(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _shortly(value: Any) -> str:
    items = value if isinstance(value, list) else _items(value)
    if items is not None:
        return f"[{', '.join(map(_shortly, items[:_MOST]))}{', ...' * (len(items) > _MOST)}]"
    if not isinstance(value, dict):
        return repr(value)
    kind, number = _kind(value), value.get("value")
    if isinstance(number, Tensor):
        return f"{number.tolist()}" if number.numel() <= _MOST else f"a tensor {tuple(number.shape)} of other numbers"
    if kind == "nothing":
        return "not there"
    if kind == "digest":
        return f"a tensor {value.get('shape')} (SHA-256 {str(value.get('sha256'))[:6]})"
    if kind == "module":
        return _last(_dict(_dict(value.get("modules")).get("")).get("class"))
    inner = value.get("items" if kind == "mapping" else "arguments")
    parts = ", ".join(f"{key}={_shortly(part)}" for key, part in _dict(inner).items())
    if kind == "mapping":
        return f"{{{parts}}}"
    name = _last(value.get("class", value.get("name", value.get("value", kind))))
    return f"{name}({parts})" if isinstance(inner, dict) else name
