"""States of optimisers and schedulers as plain data beside tensors, so that reading them runs no code."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor

from bayeshnet.checks import kind_of
from bayeshnet.errors import ArgumentTypeError, CheckpointError

__all__ = ["packed", "unpacked"]


def packed(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Describe a value by plain data; its tensors are put beside it.

    Args:
        value: Numbers, strings, None and tensors, in dicts, lists and tuples.
        name: Its name, for the names of its tensors.
        tensors: Takes the tensors.

    Raises:
        ArgumentTypeError: If there is anything else in it.

    Example:
        >>> import torch
        >>> tensors = {}
        >>> packed({"state": {0: (torch.ones(2), math.inf)}}, "adam", tensors)
        {'dict': [['state', {'dict': [[0, {'tuple': [{'tensor': 'adam.state.0.0'}, {'float': 'inf'}]}]]}]]}
        >>> list(tensors)
        ['adam.state.0.0']
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Tensor):
        tensors[name] = value.detach()
        return {"tensor": name}
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": str(float(value))}
    if isinstance(value, list | tuple):
        parts = [packed(part, f"{name}.{i}", tensors) for i, part in enumerate(cast("list[Any]", value))]
        return parts if isinstance(value, list) else {"tuple": parts}
    if isinstance(value, Mapping):
        items = cast("Mapping[Any, Any]", value).items()
        pairs = [[packed(key, name, tensors), packed(part, f"{name}.{key}", tensors)] for key, part in items]
        return {"counter" if isinstance(value, Counter) else "dict": pairs}
    raise ArgumentTypeError(
        f"checkpoint: {name!r} is {kind_of(value)}, which cannot be written without pickle; use an optimiser and a "
        "scheduler whose state_dict holds numbers and tensors, or leave checkpoint out."
    )


def unpacked(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return what :func:`packed` has described.

    Args:
        value: The description.
        tensors: The tensors by name.

    Raises:
        CheckpointError: If it is none.

    Example:
        >>> tensors = {}
        >>> unpacked(packed({3: [math.inf, (1, None)]}, "it", tensors), tensors)
        {3: [inf, (1, None)]}
    """
    if isinstance(value, list):
        return [unpacked(part, tensors) for part in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    try:
        ((kind, content),) = cast("dict[str, Any]", value).items()
        if kind == "tensor":
            return tensors[content]
        if kind == "float":
            return {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}[content]
        if kind == "tuple":
            return tuple(unpacked(part, tensors) for part in content)
        made = {unpacked(key, tensors): unpacked(part, tensors) for key, part in content}
        return {"dict": dict[Any, Any], "counter": Counter[Any]}[kind](made)
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"checkpoint: {str(value)[:80]} describes nothing; the file is damaged.") from None
