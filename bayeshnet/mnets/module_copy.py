"""Copies of modules without their weights."""

# Hooks of modules are looked at in place.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from bayeshnet.checks import kind_of
from bayeshnet.errors import ArgumentTypeError
from bayeshnet.mnets.weight_rules import computed_tensors

__all__ = ["copy_without"]


def copy_without(
    what: Any,
    module: nn.Module,
    params: Iterable[nn.Parameter | None],
    *,
    replaced: Mapping[int, nn.Module] | None = None,
) -> Any:
    """A deep copy in which None stands wherever one of the parameters was; their values are not copied.

    Args:
        what: What to copy: the module, or a tuple of it and what refers to it.
        module: The module.
        params: Its parameters to be left out.
        replaced: Modules that stand in the copy, themselves, wherever one of the modules was, by the ``id`` of that.

    Raises:
        ArgumentTypeError: If it cannot be copied, or its copy would still call the original.

    Example:
        >>> layer = nn.Linear(3, 1)
        >>> copied = copy_without(layer, layer, [layer.weight])
        >>> copied.weight is None, copied.bias.shape
        (True, torch.Size([1]))
    """
    _check_own_forwards(module)
    for path, part in module.named_modules():
        if isinstance(part, nn.RNNBase) and parametrize.is_parametrized(part):
            raise ArgumentTypeError(
                f"module.{path} is {kind_of(part)} with parametrised weights, which it computes when it is "
                "moved or copied and so cannot be without; remove the parametrisation, or loop over an "
                "RNN cell (nn.LSTMCell, ...) whose weights are parametrised."
            )
    memo: dict[int, Any] = {id(param): None for param in params if param is not None} | dict(replaced or {})
    # Made anew at each call.
    memo.update((id(owner.__dict__.get(name)), None) for owner, name in computed_tensors(module.modules()))
    try:
        return copy.deepcopy(what, memo)
    except (RuntimeError, TypeError) as error:
        raise ArgumentTypeError(
            f"module: cannot be copied ({error}). A module that keeps computed tensors as attributes cannot; compute "
            "them in forward, or use torch.nn.utils.parametrizations."
        ) from error


def _check_own_forwards(module: nn.Module) -> None:
    """Raise if a hook, or a ``forward`` in place of that of its class, would belong to the original in a copy.

    Methods are bound to the copy; functions are not copied, and what they refer to is what it was.
    """
    inside = {id(part) for part in module.modules()} | {id(param) for param in module.parameters()}
    for path, part in module.named_modules():
        own = part.__dict__.get("forward")
        found = [] if own is None else [("forward", own)]
        found += [("a forward hook", hook) for hook in part._forward_hooks.values()]
        found += [("a forward pre-hook", hook) for hook in part._forward_pre_hooks.values()]
        for kind, function in found:
            for name, value in _references(function):
                target = value.__self__ if isinstance(value, types.MethodType) else value
                if id(target) in inside:
                    raise _refers_to_original(f"module.{path}" if path else "module", kind, name)


def _refers_to_original(where: str, kind: str, name: str) -> ArgumentTypeError:
    what = f"{where}.forward: is a function" if kind == "forward" else f"{where}: has {kind}"
    return ArgumentTypeError(
        f"{what} that refers to {name!r}, a part of the network itself, and a copy would still call that with its old "
        "weights. Bind a forward to the module, layer.forward = types.MethodType(function, layer) with "
        "self for the layer; let a hook use the module that it is given; or derive a class."
    )


def _references(function: Any) -> Iterator[tuple[str, Any]]:
    """Names and values of modules, methods of modules and parameters that a function refers to from outside."""
    if isinstance(function, types.MethodType):
        function = function.__func__  # what it is bound to is copied with it
    elif isinstance(function, functools.partial):
        function = function.func  # likewise its arguments
    if not isinstance(function, types.FunctionType):
        return
    code = function.__code__
    cells: list[Any] = [_content(cell) for cell in function.__closure__ or ()]
    defaults = [(name, value) for name, value in (function.__kwdefaults__ or {}).items()]
    defaults += [("a default argument", value) for value in function.__defaults__ or ()]
    named = list(zip(code.co_freevars, cells, strict=True)) + defaults
    named += [(name, function.__globals__[name]) for name in code.co_names if name in function.__globals__]
    for name, value in named:
        target = value.__self__ if isinstance(value, types.MethodType) else value
        if isinstance(target, nn.Module | Tensor):
            yield name, value
            if isinstance(target, nn.Module):
                yield from ((name, part) for part in target.modules())
        elif isinstance(value, types.FunctionType) and value is not function and value.__closure__:
            yield from _references(value)


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None
