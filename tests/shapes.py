"""Shapes in annotations, checked while the tests run: ``make test-shapes``.

An import hook decorates every function and dataclass of the package whose annotations name a tensor alias of
``bayeshnet/typing.py``. The values are checked when the function has *returned*: a function that refuses a wrong shape
with an error of its own has done what it should, and the tests of those errors stay valid; one that accepts a shape has
to mean it. jaxtyping binds the sizes of one call, beartype walks through unions, tuples and lists.
"""

from __future__ import annotations

import ast
import functools
import inspect
import sys
import types
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from typing import Any

from beartype.door import is_bearable
from jaxtyping import AbstractArray, jaxtyped
from torch import Tensor


class ShapeError(BaseException):
    """A tensor that does not fit its annotation.

    No ``Exception``: code that tries another way when one fails would hide it.
    """


@functools.cache
def tensor_aliases() -> set[str]:
    """The names of ``bayeshnet/typing.py`` that stand for tensors of a shape, read off its source."""
    (location,) = PathFinder.find_spec("bayeshnet").submodule_search_locations
    tree = ast.parse(Path(location, "typing.py").read_text(encoding="utf-8"))
    found = {"Float", "Inexact", "Integer"}
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and _names(ast.unparse(node.value)) & found:
            found.add(node.target.id)  # an alias of those before it is one too
    return found


def checked(fn: Any) -> Any:
    """The function, followed by a check of its arguments and its result against the annotations that have a shape.

    Of a dataclass, its ``__init__``.
    """
    if isinstance(fn, type):
        fn.__init__ = checked(fn.__init__)
        return fn
    signature = inspect.signature(fn)
    check = functools.partial(_check, fn, signature, _Hints(fn))

    def call(*args: Any, **kwargs: Any) -> Any:
        result = fn(*args, **kwargs)
        check(args, kwargs, result)
        return result

    # With the globals of the function: doctest tells by them which module a function belongs to.
    own = types.FunctionType(call.__code__, fn.__globals__, fn.__name__, None, call.__closure__)
    return functools.update_wrapper(own, fn)


class _Hints:
    """The annotations of a function that have a shape, evaluated when all of its module is there."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        self._fn = fn
        self._hints: dict[str, Any] | None = None

    def __call__(self) -> dict[str, Any]:
        if self._hints is None:
            texts = {name: text for name, text in self._fn.__annotations__.items() if isinstance(text, str)}
            given = {name: text for name, text in texts.items() if _names(text) & tensor_aliases()}
            self._hints = {name: eval(text, self._fn.__globals__) for name, text in given.items()}
        return self._hints


def _names(annotation: str) -> set[str]:
    tree = ast.parse(annotation, mode="eval")
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def _check(
    fn: Callable[..., Any],
    signature: inspect.Signature,
    hints: _Hints,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    result: Any,
) -> None:
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    values = {**bound.arguments, "return": result}
    with jaxtyped("context"):
        for name, hint in hints().items():
            if not is_bearable(values[name], hint):
                seen = ", ".join(f"{key} {_shown(values[key])}" for key in hints())
                raise ShapeError(f"{fn.__module__}.{fn.__qualname__}: `{name}` is no {_text(hint)}; given: {seen}")


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return f"({', '.join(map(_shown, value))})" if isinstance(value, list | tuple) else type(value).__name__


def _text(hint: Any) -> str:
    is_class = isinstance(hint, type) and issubclass(hint, AbstractArray)
    return hint.__name__ if is_class else str(hint).replace("jaxtyping.", "")


class _Loader(SourceFileLoader):
    """Decorates what has shapes in its signature; nothing is read from or written to the cache of byte code."""

    def get_code(self, fullname: str) -> types.CodeType:
        path = self.get_filename(fullname)
        tree, aliases = ast.parse(self.get_data(path), path), tensor_aliases()
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef | ast.ClassDef) or not _annotations(node) & aliases:
                continue
            decorator = ast.parse("__import__('tests.shapes', fromlist=['checked']).checked", mode="eval").body
            # The last one is called first. It sees a function before that is a property, a class when it is complete.
            place = len(node.decorator_list) if isinstance(node, ast.FunctionDef) else 0
            node.decorator_list.insert(place, ast.copy_location(decorator, node))
        return compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)


def _annotations(node: ast.FunctionDef | ast.ClassDef) -> set[str]:
    """The names in the annotations of a function, or of a dataclass's fields."""
    if isinstance(node, ast.FunctionDef):
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        found = [*(argument.annotation for argument in arguments), node.returns]
    elif any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        found = [field.annotation for field in node.body if isinstance(field, ast.AnnAssign)]
    else:
        found = []
    return {name for annotation in found if annotation is not None for name in _names(ast.unparse(annotation))}


class _Finder(MetaPathFinder):
    def __init__(self, package: str) -> None:
        self._package = package

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] != self._package:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


def install(package: str = "bayeshnet") -> Callable[[], None]:
    """Check the shapes of a package that is imported from now on.

    Returns:
        A function that ends it for what is imported later.

    Raises:
        RuntimeError: If the package has been imported already.
    """
    if package in sys.modules:
        raise RuntimeError(f"{package} is imported already; its functions can no longer be decorated.")
    finder = _Finder(package)
    sys.meta_path.insert(0, finder)
    return lambda: sys.meta_path.remove(finder)
