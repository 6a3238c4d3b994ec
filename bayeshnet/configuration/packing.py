"""Descriptions with their tensors among those of a file, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor

from bayeshnet.errors import CheckpointError

__all__ = ["packed", "unpacked"]


def packed(description: Any, tensors: dict[str, Tensor], prefix: str) -> Any:
    """Return a description without tensors, which are added to ``tensors`` under names that begin with ``prefix``.

    Example:
        >>> import torch
        >>> tensors = {}
        >>> packed([{"kind": "tensor", "value": torch.ones(2)}], tensors, "c/"), tensors
        ([{'kind': 'tensor', 'value': 'c/0'}], {'c/0': tensor([1., 1.])})
    """
    if isinstance(description, list):
        return [packed(part, tensors, prefix) for part in description]
    if isinstance(description, dict):
        return {key: packed(part, tensors, prefix) for key, part in description.items()}
    if isinstance(description, Tensor):
        name = f"{prefix}{sum(key.startswith(prefix) for key in tensors)}"
        tensors[name] = description
        return name
    return description


def unpacked(description: Any, tensors: Mapping[str, Tensor], prefix: str) -> Any:
    """Return what :func:`packed` was given.

    Raises:
        CheckpointError: If a tensor is missing.

    Example:
        >>> import torch
        >>> unpacked({"kind": "tensor", "value": "c/0"}, {"c/0": torch.ones(2)}, "c/")
        {'kind': 'tensor', 'value': tensor([1., 1.])}
    """
    if isinstance(description, list):
        return [unpacked(part, tensors, prefix) for part in description]
    if not isinstance(description, dict):
        return description
    name = description.get("value")
    if description.keys() == {"kind", "value"} and isinstance(name, str) and name.startswith(prefix):
        if name not in tensors:
            raise CheckpointError(f"path: the description refers to a tensor {name[:40]!r} that is not in the file.")
        return {"kind": "tensor", "value": tensors[name]}
    return {key: unpacked(part, tensors, prefix) for key, part in cast("dict[str, Any]", description).items()}
