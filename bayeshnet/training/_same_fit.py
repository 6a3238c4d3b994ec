"""What makes a fit the one that a file was written by, in plain data."""

from __future__ import annotations

import functools
import hashlib
import warnings
from collections.abc import Mapping, Sized
from types import FunctionType, MethodType
from typing import Any, cast

import torch
from pyro.poutine.messenger import unwrap
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from bayeshnet.configuration import Configured, Difference, described, differences
from bayeshnet.configuration.functions import described_function
from bayeshnet.deprecation import stacklevel_of_user
from bayeshnet.errors import CheckpointError, CheckpointWarning
from bayeshnet.training._minibatches import Minibatches
from bayeshnet.training._random import generators_of
from bayeshnet.training.validation import Validation

__all__ = ["describe_fit", "fingerprint", "named", "require_same"]


_MOST = 5  # differences in a message
_ADVICE = "pass model, guide, data and arguments of that fit, or another file."


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
        {'lr': 0.1, 'data': 'str', 'validation': None, 'model': 'print', 'guide': 'print'}
    """
    rows = None
    if looks is not None:
        rows = {"data": fingerprint(looks[0].data), "every": looks[1], "num_samples": looks[0].num_samples}
    found = {name: named(value) for name, value in options.items()}
    found |= {"data": fingerprint(data), "validation": rows}
    for name, part in (("model", unwrap(model)), ("guide", unwrap(guide))):
        # Pyro's own guides know models and data, and their traces.
        found[name] = _of_any_dtype(described(part)) if isinstance(part, Configured) else _class_of(part)
    return found


def _of_any_dtype(description: Any) -> Any:
    """The same for objects that differ in the dtype of their numbers alone: a fit may go on in another one."""
    if isinstance(description, Tensor):
        return description.float() if description.is_floating_point() else description
    if isinstance(description, list):
        return [_of_any_dtype(part) for part in cast("list[Any]", description)]
    if isinstance(description, dict):
        parts = cast("dict[str, Any]", description)
        return {key: _of_any_dtype(part) for key, part in parts.items() if key != "dtype"}
    return description


def _class_of(part: Any) -> str:
    return getattr(part, "__qualname__", type(part).__name__)


def named(value: Any) -> Any:
    """Describe an option of a fit: numbers as they are, classes by their names, objects by their repr.

    A function of the user's own is described by its name, its code and the numbers that it refers to.

    Example:
        >>> named(0.01), named(torch.optim.SGD), named(None)
        (0.01, 'SGD', None)
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if abs(value) < float("inf") else str(value)
    if isinstance(value, functools.partial):
        partial = cast("functools.partial[Any]", value)
        return f"{_class_of(partial.func)}({', '.join(f'{k}={v!r}' for k, v in sorted(partial.keywords.items()))})"
    if isinstance(value, FunctionType | MethodType):
        return described_function(value, _shallow)
    name = getattr(value, "__qualname__", None)
    if name is not None:
        return name
    return repr(value) if type(value).__repr__ is not object.__repr__ else type(value).__name__


def _shallow(value: Any) -> Any:
    """What a function refers to: numbers and strings as they are, anything else by the name of its class."""
    if isinstance(value, float) and abs(value) == float("inf"):
        return str(value)
    return value if value is None or isinstance(value, bool | int | float | str) else _class_of(value)


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
        batches: Any = loader.batch_sampler
        found: dict[str, Any] = {"sampler": _class_of(loader.sampler), "batch_sampler": _class_of(batches)}
        found |= {"batch_size": loader.batch_size, "drop_last": loader.drop_last}
        found |= {"collate_fn": _class_of(loader.collate_fn), "generators": len(generators_of(loader))}
        if isinstance(loader.sampler, list | tuple):  # the rows in their order
            found["rows_taken"] = fingerprint(loader.sampler)
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
        digest.update(str(named(value)).encode())


def _unlike(there: Any, here: Any) -> str:
    """What two descriptions of data say differently, if they are of one form."""
    if not isinstance(there, Mapping) or not isinstance(here, Mapping):
        return ""
    one, other = cast("Mapping[str, Any]", there), cast("Mapping[str, Any]", here)
    parts: list[str] = []
    for key in {**one, **other}:
        if one.get(key) != other.get(key):
            plain = not any(isinstance(part.get(key), Mapping) for part in (one, other))
            numbers = plain and key not in ("hash", "data", "rows_taken")
            parts.append(f"{key} is {one.get(key)!r} in the file and {other.get(key)!r} here" if numbers else key)
    return f" ({', '.join(parts)})"


def require_same(there: Mapping[str, Any], here: Mapping[str, Any], path: Any) -> None:
    """Raise unless two fits are described alike; warn where functions of the user have other code.

    Args:
        there: The description of the fit in the file.
        here: That of this one.
        path: The file.

    Raises:
        CheckpointError: Naming what differs.

    Example:
        >>> require_same({"steps": 20}, {"steps": 10}, "run")
        Traceback (most recent call last):
        ...
        bayeshnet.errors.CheckpointError: checkpoint: 'run' is of another fit: steps is 20 in the file and 10 here; ...
    """
    found: list[Difference] = []
    for name in {**there, **here}:
        if name in ("data", "validation"):
            if there.get(name) != here.get(name):
                what = _unlike(there.get(name), here.get(name))
                raise CheckpointError(
                    f"checkpoint: {str(path)!r} is of another fit: {name}: not the same{what}; {_ADVICE}"
                )
        else:
            found += differences(there.get(name), here.get(name), name)
    certain = [str(difference) for difference in found if difference.certain]
    if certain:
        more = f" and {len(certain) - _MOST} more" if len(certain) > _MOST else ""
        shown = "; ".join(certain[:_MOST])
        raise CheckpointError(f"checkpoint: {str(path)!r} is of another fit: {shown}{more}; {_ADVICE}")
    if found:
        warnings.warn(
            f"checkpoint: {'; '.join(map(str, found[:_MOST]))}. What comes may not be what the fit in the file would "
            "have come to.",
            CheckpointWarning,
            stacklevel=stacklevel_of_user(),
        )
