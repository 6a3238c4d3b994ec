"""From an object to plain data that say what it is: numbers, strings, lists and dicts, and the tensors among them."""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions.transforms import Transform

from bayeshnet.configuration.functions import code_of_class, described_function, is_of_library, name_of

__all__ = ["Described", "described"]

_MODULE_STATE = frozenset({*vars(nn.Module()), "_recorded"})
_DEEPEST = 6  # attributes of attributes
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


@dataclass(frozen=True, slots=True)
class Described:
    """What is described already.

    Example:
        >>> described(Described([1]))
        [1]
    """

    data: Any


def described(value: Any) -> Any:
    """Say in plain data what an object is.

    Numbers, strings and None stay what they are. Anything else is a dict with a ``"kind"``: tuples and mappings,
    tensors, distributions by their class and parameters, functions by their name, code and closure, modules as the tree
    of their parts, objects of a :class:`Configured` class by the arguments of their constructor, and other objects by
    their class and attributes. Parameters and registered buffers of modules are left out: they have values of their
    own in a file.

    Example:
        >>> described({"scale": (1.0, float("inf"))})
        {'kind': 'mapping', 'items': {'scale': {'kind': 'tuple', 'items': [1.0, {'kind': 'float', 'value': 'inf'}]}}}
        >>> described(nn.Sequential(nn.Tanh()))["modules"]["0"]
        {'class': 'torch.nn.modules.activation.Tanh', 'attributes': {}}
        >>> described(torch.distributions.Exponential(torch.tensor(2.0)))
        {'kind': 'distribution', 'class': 'Exponential', 'arguments': {'rate': {'kind': 'tensor', 'value': tensor(2.)}}}
    """
    return _described(value, ())


def _described(value: Any, above: tuple[int, ...]) -> Any:
    for kind, describe in _SIMPLE.items():
        if type(value) is kind or (kind is Tensor and isinstance(value, Tensor)):
            return describe(value)
    if id(value) in above or len(above) > _DEEPEST:
        return {"kind": "object", "class": name_of(type(value))}
    deeper = (*above, id(value))

    def inner(part: Any) -> Any:
        return _described(part, deeper)

    if isinstance(value, Mapping):
        return _mapping(value, inner)
    if isinstance(value, list):
        return [inner(part) for part in value]
    if isinstance(value, tuple):
        return {"kind": "tuple", "items": [inner(part) for part in value]}
    if isinstance(value, set | frozenset):
        return {"kind": "set", "items": [inner(part) for part in sorted(value, key=repr)]}
    return _object(value, inner)


def _mapping(value: Mapping[Any, Any], inner: Callable[[Any], Any]) -> dict[str, Any]:
    if all(isinstance(key, str) for key in value):
        return {"kind": "mapping", "items": {key: inner(part) for key, part in value.items()}}
    return {"kind": "pairs", "items": [[inner(key), inner(part)] for key, part in value.items()]}


def _object(value: Any, inner: Callable[[Any], Any]) -> Any:
    cls = type(value)
    if isinstance(value, type):
        return {"kind": "class", "name": name_of(value)}
    if hasattr(cls, "configured_as"):
        return _configured(value, inner)
    if isinstance(value, torch.distributions.Distribution):
        return {"kind": "distribution", "class": cls.__name__, "arguments": _parameters(value, inner)}
    if isinstance(value, Transform):
        return {"kind": "transform", "class": cls.__name__, "arguments": _parameters(value, inner)}
    if isinstance(value, nn.Module):
        return {"kind": "module", "modules": _tree(value, inner)}
    if isinstance(value, partial):
        parts = {"function": value.func, "given": list(value.args), "keywords": value.keywords}
        return {"kind": "partial", **{name: inner(part) for name, part in parts.items()}}
    if inspect.isroutine(value):
        return described_function(value, inner)
    return _any_object(value, inner)


def _any_object(value: Any, inner: Callable[[Any], Any]) -> Any:
    found: dict[str, Any] = {"kind": "object", "class": name_of(type(value))}
    if not is_of_library(type(value).__module__):
        own = getattr(value, "__dict__", {})
        found["attributes"] = {key: _digested(inner(part)) for key, part in own.items()}
        found.update(code_of_class(type(value)))
    return found


def _configured(value: Any, inner: Callable[[Any], Any]) -> dict[str, Any]:
    # By the class: a network may have attributes of these names.
    cls = type(value)
    found: dict[str, Any] = {"kind": "configured", "of": cls.configured_as, "class": cls.__name__}
    if isinstance(value, nn.Module) and "_modules" not in vars(value):
        return found  # its constructor was not run; whoever uses it says so
    found["arguments"] = {name: inner(part) for name, part in cls.configuration(value).items()}
    if cls.__module__.split(".")[0] != "bayeshnet":
        found.update({"own": name_of(cls), **code_of_class(cls), "attributes": _own_attributes(value, inner)})
    facts = {name: inner(part) for name, part in cls.facts(value).items()}
    skipped = [name for name in cls.not_compared(value) if name in found["arguments"]]
    return {**found, **({"facts": facts} if facts else {}), **({"not_compared": skipped} if skipped else {})}


def _own_attributes(value: Any, inner: Callable[[Any], Any]) -> dict[str, Any]:
    """What an object of a class of the user's own is beside its arguments."""
    if value.configured_as in ("guide", "model"):  # which know traces, data and each other
        return {}
    if isinstance(value, nn.Module):
        children = {name: inner(part) for name, part in _children(value)}
        return {**_facts(value, inner)["attributes"], **children}
    return {key: _digested(inner(part)) for key, part in vars(value).items() if key not in _MODULE_STATE}


def _tensor(value: Tensor) -> dict[str, Any]:
    if value.is_meta or value.layout != torch.strided or value.is_quantized or value.dtype == torch.complex128:
        return {"kind": "object", "class": f"a tensor of {value.dtype}, {value.layout}"}
    return {"kind": "tensor", "value": value.detach().cpu().clone()}


def _digested(description: Any) -> Any:
    """A description with digests in place of tensors, for what is only compared."""
    if isinstance(description, list):
        return [_digested(part) for part in description]
    if not isinstance(description, dict):
        return description
    if isinstance(description.get("value"), Tensor):
        return _digest(description["value"])
    return {key: _digested(part) for key, part in description.items()}


def _digest(value: Tensor) -> dict[str, Any]:
    """A tensor that is only compared."""
    found = _tensor(value)
    if "value" not in found:
        return found
    numbers: Tensor = found["value"].resolve_conj().resolve_neg()
    flat: Any = torch.empty(numbers.shape, dtype=numbers.dtype).copy_(numbers).reshape(-1).view(torch.uint8).numpy()
    digest = hashlib.sha256(memoryview(flat)).hexdigest()
    return {"kind": "digest", "shape": list(value.shape), "dtype": str(value.dtype), "sha256": digest}


def _parameters(value: Any, inner: Callable[[Any], Any]) -> dict[str, Any]:
    """Arguments of the constructor of a distribution or transform, read off its attributes."""
    found: dict[str, Any] = {}
    try:
        names = list(inspect.signature(type(value).__init__).parameters)[1:]
    except (TypeError, ValueError):
        return found
    own = vars(value)
    for name, attribute in (("base_distribution", "base_dist"), ("fn", "base_dist"), ("parts", "transforms")):
        if name in names and hasattr(value, attribute):
            found[name] = inner(getattr(value, attribute))
    for group in (("probs", "logits"), ("scale_tril", "covariance_matrix", "precision_matrix")):
        if set(group) <= set(names):  # one of them was given; the others are made when they are asked for
            given = [name for name in group if name in own and (name == "scale_tril" or own[name] is own.get("_param"))]
            given = given or [name for name in group if name in own] or [group[0]]
            names = [name for name in names if name not in group or name == given[0]]
    for name in names:
        if name in found or name in ("validate_args", "cache_size", "args", "kwargs"):
            continue
        # Of a masked distribution the mask is hidden, and a method has its name.
        for attribute in (name, f"_{name}"):
            with suppress(NotImplementedError, AttributeError):
                part = getattr(value, attribute)
                if not callable(part) or isinstance(part, torch.distributions.Distribution | Transform):
                    found[name] = inner(part)
                    break
    return found


# ---------------------------------------------------------------------- modules


def _tree(module: nn.Module, inner: Callable[[Any], Any]) -> dict[str, Any]:
    """What each part of a module is, by its dotted name; a module that has several places stands at each of them."""
    found: dict[str, Any] = {}

    def add(part: nn.Module, name: str, above: tuple[int, ...]) -> None:
        if hasattr(type(part), "configured_as"):
            found[name] = inner(part)
            return
        found[name] = _facts(part, inner)
        if id(part) not in above:
            for key, child in _children(part):
                add(child, f"{name}.{key}" if name else key, (*above, id(part)))

    add(module, "", ())
    return found


def _children(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Submodules at all of their places; ``named_children`` names a module once."""
    return [(name, part) for name, part in vars(module).get("_modules", {}).items() if part is not None]


def _facts(part: nn.Module, inner: Callable[[Any], Any]) -> dict[str, Any]:
    """Class and attributes of a module without its submodules, parameters and buffers."""
    attributes: dict[str, Any] = {}
    library = is_of_library(type(part).__module__)
    for key, value in vars(part).items():
        if key in _MODULE_STATE or (library and key.startswith("_")):
            continue
        attributes[key] = _digest(value) if isinstance(value, Tensor) else _digested(inner(value))
    if "_parameters" not in vars(part):  # its constructor was not run; whoever uses it says so
        return {"class": name_of(type(part)), "attributes": attributes}
    hidden = part._non_persistent_buffers_set  # pyright: ignore[reportPrivateUsage]
    buffers, parameters = dict(part.named_buffers(recurse=False)), dict(part.named_parameters(recurse=False))
    attributes.update({key: _digest(buffers[key]) for key in sorted(hidden) if key in buffers})
    found: dict[str, Any] = {"class": name_of(type(part)), "attributes": attributes}
    frozen = sorted(key for key, param in parameters.items() if not param.requires_grad)
    hooks = [name_of(hook) for place in _HOOKS for hook in vars(part).get(place, {}).values()]
    return {
        **found,
        **({} if library else code_of_class(type(part))),
        **({"frozen": frozen} if frozen else {}),
        **({"hooks": hooks} if hooks else {}),
    }


def _same(value: Any) -> Any:
    return value


_SIMPLE: dict[type, Callable[[Any], Any]] = {
    type(None): _same,
    bool: _same,
    int: _same,
    str: _same,
    float: lambda value: value if math.isfinite(value) else {"kind": "float", "value": repr(value)},
    Tensor: _tensor,
    torch.dtype: lambda value: {"kind": "dtype", "name": str(value).removeprefix("torch.")},
    Described: lambda value: value.data,
}
