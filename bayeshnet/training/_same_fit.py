"""What makes a fit the one that a file was written by, in plain data."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sized
from typing import Any, cast

import torch
from pyro.poutine.messenger import unwrap
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from bayeshnet.errors import CheckpointError
from bayeshnet.training._minibatches import Minibatches
from bayeshnet.training.validation import Validation

__all__ = ["describe_fit", "described", "fingerprint", "require_same"]


_HASH = 64  # digits


def describe_fit(
    model: Any, guide: Any, data: Any, looks: tuple[Validation, int] | None, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Describe a fit.

    Args:
        model: The model.
        guide: The guide.
        data: The data as they are used.
        looks: The held-out rows and the steps between looks at them, if there are any.
        options: Its other arguments by name.

    Example:
        >>> describe_fit(print, print, "none", None, {"lr": 0.1})
        {'model': 'print', 'guide': 'print', 'data': 'str', 'validation': None, 'lr': 0.1}
    """
    parts = {name: unwrap(part) for name, part in (("model", model), ("guide", guide))}
    names = {name: getattr(part, "__qualname__", type(part).__name__) for name, part in parts.items()}
    rows = None
    if looks is not None:
        rows = {"data": fingerprint(looks[0].data), "every": looks[1], "num_samples": looks[0].num_samples}
    others = {name: described(value) for name, value in options.items()}
    return {**names, "data": fingerprint(data), "validation": rows, **others}


def described(value: Any) -> Any:
    """Describe an option of a fit: numbers as they are, functions by their names, objects by their repr.

    Example:
        >>> described(0.01), described(torch.optim.SGD), described(None)
        (0.01, 'SGD', None)
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if abs(value) < float("inf") else str(value)
    if isinstance(value, functools.partial):
        partial = cast("functools.partial[Any]", value)
        return f"{described(partial.func)}({', '.join(f'{k}={v!r}' for k, v in sorted(partial.keywords.items()))})"
    name = getattr(value, "__qualname__", None)
    if name is not None:
        return name
    return repr(value) if type(value).__repr__ is not object.__repr__ else type(value).__name__


def fingerprint(data: Any) -> Any:
    """Describe data: a hash of what is in memory, which is the same in every floating-point dtype; else their sizes.

    Example:
        >>> fingerprint((torch.ones(2),)) == fingerprint((torch.ones(2, dtype=torch.float64),))
        True
        >>> fingerprint((torch.ones(2),)) == fingerprint((torch.zeros(2),))
        False
    """
    if isinstance(data, Minibatches):
        return {"rows": data.rows, "batch_size": data.batch_size, "hash": fingerprint(data.whole)}
    if isinstance(data, DataLoader):
        loader = cast("DataLoader[Any]", data)
        dataset: Any = loader.dataset
        found: dict[str, Any] = {"loader": type(loader.sampler).__name__, "batch_size": loader.batch_size}
        found["rows"] = len(dataset) if isinstance(dataset, Sized) else type(dataset).__name__
        if isinstance(dataset, TensorDataset):
            found["hash"] = fingerprint(dataset.tensors)
        return found
    if not isinstance(data, Tensor | Mapping | tuple | list):
        return type(data).__name__
    digest = hashlib.sha256()
    _hash(data, digest)
    return digest.hexdigest()


def _hash(value: Any, digest: Any) -> None:
    if isinstance(value, Tensor):
        plain = value.detach().cpu()
        plain = plain.double() if plain.is_floating_point() else plain
        digest.update(str(tuple(plain.shape)).encode())
        digest.update(memoryview(cast("Any", plain.contiguous().reshape(-1).view(torch.uint8).numpy())))
    elif isinstance(value, Mapping):
        for key, part in cast("Mapping[Any, Any]", value).items():
            digest.update(str(key).encode())
            _hash(part, digest)
    elif isinstance(value, list | tuple):
        for part in cast("list[Any]", value):
            _hash(part, digest)
    else:
        digest.update(str(described(value)).encode())


def require_same(here: Mapping[str, Any], there: Mapping[str, Any], path: Any) -> None:
    """Raise unless two fits are described alike.

    Args:
        here: The description of this one.
        there: That of the one in the file.
        path: The file.

    Raises:
        CheckpointError: Naming all that differs.

    Example:
        >>> require_same({"steps": 10}, {"steps": 20}, "run")
        Traceback (most recent call last):
        ...
        bayeshnet.errors.CheckpointError: checkpoint: 'run' is of another fit: steps is 10 here and 20 in the file; ...
    """
    different = [name for name in {**here, **there} if here.get(name) != there.get(name)]
    if different:
        parts = [_difference(name, here.get(name), there.get(name)) for name in different]
        raise CheckpointError(
            f"checkpoint: {str(path)!r} is of another fit: {'; '.join(parts)}; pass model, guide, data and arguments "
            "of that fit, or another file."
        )


def _difference(name: str, here: Any, there: Any) -> str:
    if any(isinstance(value, dict | list) or len(str(value)) == _HASH for value in (here, there)):
        return f"{name}: not the same"
    return f"{name} is {here!r} here and {there!r} in the file"
