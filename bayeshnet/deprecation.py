"""Old public names, which keep working for one version."""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyro
import torch

__all__ = ["renamed_attributes", "stacklevel_of_user", "warn_renamed"]

_NOT_THE_USERS = (
    "<frozen importlib",
    *(str(Path(module.__path__[0]) / "_")[:-1] for module in (pyro, torch)),  # with the separator
    str(Path(__file__).parent / "_")[:-1],
)


def warn_renamed(old: str, new: str) -> None:
    """Warn that a name is old, at the line of the user.

    Args:
        old: What was used, as the user wrote it: ``"AutoHypernet(body=...)"``.
        new: What to write instead.

    Example:
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     warn_renamed("old_name", "new_name")
        >>> print(caught[0].message)
        old_name: is renamed and will be removed in the next version; use new_name.
    """
    warnings.warn(
        f"{old}: is renamed and will be removed in the next version; use {new}.",
        FutureWarning,
        stacklevel=stacklevel_of_user(),
    )


def stacklevel_of_user() -> int:
    """The ``stacklevel`` of ``warnings.warn``, for the caller, that names a line outside of this package and its bases.

    Classes of torch and Pyro call ours when an attribute is set or an object is made.

    Example:
        >>> stacklevel_of_user()
        1
    """
    level, frame = 0, inspect.currentframe()
    while frame is not None and (level == 0 or frame.f_code.co_filename.startswith(_NOT_THE_USERS)):
        level, frame = level + 1, frame.f_back
    return level


def renamed_attributes(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """Make a module-level ``__getattr__`` that finds renamed objects, with a ``FutureWarning``.

    Args:
        module: ``__name__`` of the module with the old names.
        names: From each old name to the dotted path of the object now, ``"bayeshnet.families.BlockGaussian"``.

    Returns:
        The function to assign to ``__getattr__``.

    Example:
        >>> find = renamed_attributes("bayeshnet", {"OldMLP": "bayeshnet.mnets.mlp.MLP"})
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     find("OldMLP").__name__
        'MLP'
    """

    def getattr_(name: str) -> Any:
        path = names.get(name)
        if path is None:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warn_renamed(f"{module}.{name}", path)
        place, _, attribute = path.rpartition(".")
        return getattr(importlib.import_module(place), attribute)

    return getattr_
