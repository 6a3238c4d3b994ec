"""Functions in plain data: by name, and those of the user also by their code and what they refer to."""

from __future__ import annotations

import dis
import hashlib
import inspect
import platform
import sys
from collections.abc import Callable
from contextlib import suppress
from types import CodeType, FunctionType
from typing import Any

__all__ = ["code_of_class", "described_function", "is_of_library", "name_of"]

_LIBRARIES = {"bayeshnet", "pyro", "torch", "numpy", *sys.stdlib_module_names} - {"__main__"}
_SCALARS = (bool, int, float, str)


def is_of_library(module: str | None) -> bool:
    """Whether something belongs to Python, torch, Pyro or this package, and not to the user.

    Example:
        >>> is_of_library("torch.nn.modules.linear"), is_of_library("__main__")
        (True, False)
    """
    return (module or "builtins").split(".")[0] in _LIBRARIES


def name_of(thing: Any) -> str:
    """Module and qualified name of a class or function.

    Example:
        >>> name_of(hashlib.sha256), name_of(CodeType)
        ('_hashlib.openssl_sha256', 'builtins.code')
    """
    name = getattr(thing, "__qualname__", type(thing).__qualname__)
    return f"{getattr(thing, '__module__', None) or 'builtins'}.{name}"


def described_function(function: Any, inner: Callable[[Any], Any]) -> dict[str, Any]:
    """Say in plain data what a function is.

    Of a function of the user's own that is its code, which can only be compared under the same version of Python, what
    its closure and its defaults hold, and the numbers and strings among the global names that it mentions.

    Args:
        function: Any function or method.
        inner: What describes the values that it refers to.

    Example:
        >>> described_function(max, lambda value: value)
        {'kind': 'function', 'name': 'builtins.max'}
    """
    found: dict[str, Any] = {"kind": "function", "name": name_of(function)}
    owner = getattr(function, "__self__", None)
    if owner is not None and not inspect.ismodule(owner) and not inspect.isbuiltin(function):
        found["of"] = inner(owner)
    plain = inspect.unwrap(getattr(function, "__func__", function))
    if not isinstance(plain, FunctionType) or is_of_library(plain.__module__):
        return found
    defaults = {
        name: inner(parameter.default)
        for name, parameter in inspect.signature(plain).parameters.items()
        if parameter.default is not parameter.empty
    }
    names = _names(plain.__code__)
    scalars = {name: plain.__globals__[name] for name in sorted(names) if type(plain.__globals__.get(name)) in _SCALARS}
    closure: dict[str, Any] = {}
    for name, cell in zip(plain.__code__.co_freevars, plain.__closure__ or (), strict=True):
        with suppress(ValueError):  # not filled yet
            closure[name] = inner(cell.cell_contents)
    parts = {"defaults": defaults, "closure": closure, "globals": {key: inner(value) for key, value in scalars.items()}}
    return {**found, **_with_version([plain]), **{name: part for name, part in parts.items() if part}}


def code_of_class(cls: type) -> dict[str, str]:
    """Return a digest of the methods of a class of the user's own, and of those of its bases that are the user's.

    Example:
        >>> class Own:
        ...     def double(self, x):
        ...         return 2 * x
        >>> Own.__module__ = "mine"
        >>> sorted(code_of_class(Own))
        ['code', 'python']
    """
    methods: list[FunctionType] = []
    for base in cls.__mro__:
        if not is_of_library(base.__module__):
            for _, member in sorted(vars(base).items()):
                function = getattr(member, "fget", None) or getattr(member, "__func__", member)
                if isinstance(function, FunctionType) and function.__code__.co_name != "__init__":
                    methods.append(inspect.unwrap(function))
    return _with_version(methods) if methods else {}


def _with_version(functions: list[Any]) -> dict[str, str]:
    digest = hashlib.sha256()
    for function in functions:
        _update(digest, function.__code__)
    version = f"{platform.python_implementation()} {sys.version_info.major}.{sys.version_info.minor}"
    return {"code": digest.hexdigest()[:16], "python": version}


def _update(digest: Any, code: CodeType) -> None:
    """Add what the instructions say, and not where constants lie, which a docstring changes."""
    for instruction in dis.get_instructions(code):
        value = instruction.arg if instruction.opcode in dis.haslocal else instruction.argval
        if isinstance(value, CodeType):
            _update(digest, value)
            value = None
        elif isinstance(value, frozenset):
            value = sorted(map(repr, value))
        digest.update(f"{instruction.opname} {value!r};".encode())


def _names(code: CodeType) -> set[str]:
    inner = [_names(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return set(code.co_names).union(*inner)
