"""Old public names, which keep working for one version."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["renamed_attributes", "warn_renamed"]


def warn_renamed(old: str, new: str, *, stacklevel: int = 2) -> None:
    """Warn that a name is old.

    Args:
        old: What was used, as the user wrote it: ``"AutoHypernet(body=...)"``.
        new: What to write instead.
        stacklevel: As that of ``warnings.warn``, as seen from the caller of this function.

    Example:
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     warn_renamed("old_name", "new_name")
        >>> print(caught[0].message)
        old_name: is renamed and goes in the next version; use new_name.
    """
    warnings.warn(
        f"{old}: is renamed and goes in the next version; use {new}.", FutureWarning, stacklevel=stacklevel + 1
    )


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
        warn_renamed(f"{module}.{name}", path, stacklevel=2)
        place, _, attribute = path.rpartition(".")
        return getattr(importlib.import_module(place), attribute)

    return getattr_
