"""What is in a checkpoint, of this version or of an earlier one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from bayeshnet.configuration import unpacked
from bayeshnet.errors import CheckpointError
from bayeshnet.training.files import has_checksum, parsed_json, read_file

__all__ = ["CONFIGURATION", "FORMAT", "Contents", "Entry", "old_description", "read_contents", "tensors_file"]

FORMAT = 3
_OLD = (1, 2)  # a JSON file beside the tensors; 1 is that of version 0.1, whose names differ
CONFIGURATION = "configuration/"
"""What the names of tensors begin with that belong to the description of an object."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What a checkpoint says of one module.

    Attributes:
        class_name: The name of its class.
        configuration: What it is, see :mod:`bayeshnet.configuration`; None in files of earlier versions.
        tensors: Its state.
        model: Of a guide the name of its model in the file, if that is there.
        example: Of a guide shapes and dtypes of the arguments that it was built from, if it can be built again.
    """

    class_name: str
    configuration: Any
    tensors: dict[str, Tensor]
    model: str | None = None
    example: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Contents:
    """What is in a checkpoint.

    Attributes:
        format: Number of its format.
        entries: Its modules by name.
    """

    format: int
    entries: dict[str, Entry]


def tensors_file(target: Path) -> Path:
    """The file that belongs to the path of a checkpoint without its ending."""
    return target.with_name(target.name + ".safetensors")


def read_contents(target: Path) -> Contents:
    """Read a checkpoint.

    Args:
        target: The path without an ending.

    Raises:
        CheckpointError: If it is damaged, or no checkpoint of a format that is known.
        OSError: If there is none, or it cannot be read.
    """
    path, old = tensors_file(target), _old_file(target)
    if not has_checksum(path) and old.exists():
        return _read_old(path, old)
    tensors, description = read_file(path)
    if type(description.get("format")) is int and description["format"] > FORMAT:
        raise CheckpointError(
            f"path: {path} is of format {description['format']}, which a later version of the package has written; "
            "read it with that version."
        )
    modules = description.get("modules")
    if description.get("format") != FORMAT or not isinstance(modules, dict):
        raise CheckpointError(f"path: {path} is not a checkpoint: it describes no modules; pass a file of save.")
    return Contents(FORMAT, {name: _entry(name, entry, tensors) for name, entry in modules.items()})


def _entry(name: str, entry: Any, tensors: Mapping[str, Tensor]) -> Entry:
    entry = cast("dict[str, Any]", entry if isinstance(entry, dict) else {})
    class_name, model, example = entry.get("class"), entry.get("model"), entry.get("example")
    wrong = not isinstance(class_name, str)
    wrong |= not (model is None or isinstance(model, str)) or not (example is None or isinstance(example, dict))
    if wrong:
        raise CheckpointError(f"{name}: the description of it in the file is damaged; save it again.")
    configuration = unpacked(entry.get("configuration"), tensors, CONFIGURATION)
    return Entry(cast("str", class_name), configuration, _of(name, tensors), model, example)


def _of(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefix = f"{name}."
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


# ---------------------------------------------------------------------- formats 1 and 2


def _old_file(target: Path) -> Path:
    return target.with_name(target.name + ".json")


def old_description(target: Path) -> Path | None:
    """The description that an earlier version has written beside the tensors, if there is one."""
    path = _old_file(target)
    try:
        _checked_old(path)
    except (CheckpointError, OSError):
        return None
    return path


def _checked_old(path: Path) -> dict[str, Any]:
    description = parsed_json(path.read_bytes(), str(path))
    modules, tensors = description.get("modules"), description.get("tensors")
    known = description.get("format") in _OLD and isinstance(modules, dict) and isinstance(tensors, dict)
    if not known or not all(isinstance(value, str) for value in cast("dict[str, Any]", modules).values()):
        raise CheckpointError(
            f"path: {path} is not a description in one of this package's earlier formats {_OLD}; save it again, or "
            "read it with the version that wrote it."
        )
    return description


def _read_old(path: Path, old: Path) -> Contents:
    description = _checked_old(old)
    try:
        tensors = load_file(path)
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"path: {path} is damaged ({error}); save it again.") from error
    said = description["tensors"]
    if said != {key: {"shape": list(t.shape), "dtype": str(t.dtype)} for key, t in tensors.items()}:
        raise CheckpointError(f"path: {path} does not have the tensors that {old} describes; save it again.")
    entries = {name: Entry(cls, None, _of(name, tensors)) for name, cls in description["modules"].items()}
    return Contents(description["format"], entries)
