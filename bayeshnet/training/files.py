"""Tensors and a description in plain data in one safetensors file, with a checksum of every bit of it.

Any reader of safetensors accepts the file. Its header begins with the entry ``__metadata__``, and that with the SHA-256
of the whole file, taken with zeros in the place of the checksum itself; the description, as JSON, follows.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from bayeshnet.checks import kind_of
from bayeshnet.errors import ArgumentTypeError, CheckpointError
from bayeshnet.training._replacing import replacing

__all__ = ["DTYPES", "has_checksum", "parsed_json", "read_file", "write_file"]

_BEGIN = b'{"__metadata__":{"sha256":"'
_PLACE = 8 + len(_BEGIN)  # of the checksum
_DIGITS = 64
_KEY = "description"
_PIECE = 2**20
_LARGEST_HEADER = 10**8  # as in the safetensors library
_DEEPEST = 100

_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "C64": "complex64",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}
DTYPES: dict[str, torch.dtype] = {key: getattr(torch, name) for key, name in _NAMES.items() if hasattr(torch, name)}
"""What safetensors can hold: torch's dtypes by its names."""

_KEYS = {dtype: key for key, dtype in DTYPES.items()}


def write_file(path: Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """Write tensors and their description to one file, in place of what is there.

    At any time the old file or the new one is there as a whole, see :func:`replacing`. No more than one tensor is
    copied at a time.

    Args:
        path: The file.
        tensors: Dense tensors of the dtypes in :data:`DTYPES`, by name.
        description: Plain data: dicts with string keys, lists, strings, finite numbers, booleans and None.

    Raises:
        ArgumentTypeError: If a tensor or the description cannot be held.
        OSError: If the file cannot be written.

    Example:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> write_file(Path(folder.name, "run"), {"w": torch.ones(2)}, {"step": 3})
        >>> read_file(Path(folder.name, "run"))
        ({'w': tensor([1., 1.])}, {'step': 3})
        >>> folder.cleanup()
    """
    header: dict[str, Any] = {"__metadata__": {"sha256": "0" * _DIGITS, _KEY: _plain_json(description)}}
    end = 0
    # The largest elements first, as the format's own writer does: all tensors lie at multiples of their size.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    for name in order:
        tensor = tensors[name]
        if name == "__metadata__":
            raise ArgumentTypeError(
                f"tensors: one has the name {name!r}, which the format keeps for itself; rename it."
            )
        if tensor.dtype not in _KEYS or tensor.layout != torch.strided or tensor.is_meta:
            raise ArgumentTypeError(
                f"tensors: {name!r} is of {tensor.dtype}, {tensor.layout} on {tensor.device}, which safetensors cannot "
                "hold; keep a dense tensor of a plain dtype."
            )
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _KEYS[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with replacing(path) as file:

        def write(data: Any) -> None:
            digest.update(data)
            file.write(data)

        write(len(text).to_bytes(8, "little"))
        write(text)
        for name in order:
            write(_bytes_of(tensors[name]))
        file.seek(_PLACE)
        file.write(digest.hexdigest().encode())


def read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`write_file` wrote, after all of it was checked.

    The description is plain data, but otherwise whatever the file says: it has to be checked by whoever uses it.

    Args:
        path: The file.

    Returns:
        Tensors by name, in memory of their own, and the description.

    Raises:
        CheckpointError: If a single bit differs from what was written, or it is no such file.
        OSError: If it is not there or cannot be read.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(_PLACE)
        if not _begins(start):
            raise CheckpointError(
                f"path: {path} is no file of this package or is damaged: it does not begin as one; save it again."
            )
        _check_sum(file, start, path)
        file.seek(8)
        length = int.from_bytes(start[:8], "little")
        if length > min(size - 8, _LARGEST_HEADER):
            raise CheckpointError(f"path: {path} is damaged (its header is longer than the file); save it again.")
        header = parsed_json(file.read(length), str(path))
        tensors = _read_tensors(file, header, size - 8 - length, path)
        metadata = header.get("__metadata__")
        text = metadata.get(_KEY) if isinstance(metadata, dict) else None
        if not isinstance(text, str):
            raise CheckpointError(f"path: {path} is damaged (it has no description); save it again.")
        return tensors, parsed_json(text, f"the description in {path}")


def has_checksum(path: Path) -> bool:
    """Whether a file begins as those of :func:`write_file` do; those of earlier versions do not."""
    with path.open("rb") as file:
        return _begins(file.read(_PLACE))


def parsed_json(text: bytes | str, what: str) -> dict[str, Any]:
    """Read a JSON object from a file that anyone may have written.

    Args:
        text: The JSON, bytes in UTF-8.
        what: What it is, for messages.

    Raises:
        CheckpointError: If it is no JSON object, or one with a key twice, numbers that are not finite, or nested more
            deeply than any that this package writes.

    Example:
        >>> parsed_json('{"a": [1]}', "it")
        {'a': [1]}
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a key is there twice")
        return found

    def constant(name: str) -> Any:
        raise ValueError(f"{name} is no number of JSON")

    def number(digits: str) -> float:
        value = float(digits)
        return value if math.isfinite(value) else constant(digits[:20])

    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        found = json.loads(text, object_pairs_hook=once, parse_constant=constant, parse_float=number)
        _check_depth(found)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise CheckpointError(f"path: {what} is damaged ({error}); save it again.") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"path: {what} is damaged (it holds {kind_of(found)}); save it again.")
    return cast("dict[str, Any]", found)


def _check_depth(value: Any) -> None:
    level: list[Any] = [value]
    for _ in range(_DEEPEST):
        parts: list[list[Any]] = [
            list(v.values()) if isinstance(v, dict) else v for v in level if type(v) in (dict, list)
        ]
        level = [inner for part in parts for inner in part]
        if not level:
            return
    raise ValueError(f"it is nested more than {_DEEPEST} times")


def _plain_json(description: Mapping[str, Any]) -> str:
    try:
        return json.dumps(dict(description), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ArgumentTypeError(
            f"description: is no plain data ({error}); pass numbers, strings, lists, dicts."
        ) from None


def _bytes_of(tensor: Tensor) -> Any:
    plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous()
    flat = plain.reshape(-1)
    if flat.stride(0) != 1:  # of one number that was expanded, which counts as contiguous
        flat = torch.empty_like(flat, memory_format=torch.contiguous_format).copy_(flat)
    numbers: Any = flat.view(torch.uint8).numpy()
    return memoryview(numbers)


def _begins(start: bytes) -> bool:
    return len(start) == _PLACE and start[8:] == _BEGIN


def _check_sum(file: BinaryIO, start: bytes, path: Path) -> None:
    """Raise unless the checksum is that of all that was written."""
    written = file.read(_DIGITS)
    digest = hashlib.sha256(start + b"0" * _DIGITS)
    while piece := file.read(_PIECE):
        digest.update(piece)
    if written != digest.hexdigest().encode():
        raise CheckpointError(
            f"path: {path} is damaged: its checksum is not that of its contents. Use another copy of it, or save it "
            "again."
        )


def _read_tensors(file: BinaryIO, header: Mapping[str, Any], size: int, path: Path) -> dict[str, Tensor]:
    """Read the tensors that follow the header, each into memory of its own."""
    found = {name: _entry(name, entry, path) for name, entry in header.items() if name != "__metadata__"}
    tensors: dict[str, Tensor] = {}
    place = 0
    for name, (dtype, shape, begin, end) in sorted(found.items(), key=lambda item: item[1][2:]):
        # No shape can ask for more memory than the file has bytes.
        if begin != place or end > size or end - begin != math.prod(shape) * dtype.itemsize:
            raise CheckpointError(
                f"path: {path} is damaged (tensor {name!r} is not where it should be); save it again."
            )
        try:
            tensor = torch.empty(shape, dtype=dtype)
        except (RuntimeError, TypeError, OverflowError) as error:
            raise CheckpointError(f"path: {path} has a tensor {name!r} that cannot be made ({error}).") from None
        if end > begin and cast("Any", file).readinto(_bytes_of(tensor)) < end - begin:
            raise CheckpointError(f"path: {path} has become shorter while it was read; save it again.")
        tensors[name], place = tensor, end
    if place != size:
        raise CheckpointError(f"path: {path} is damaged (bytes are left over); save it again.")
    return {name: tensors[name] for name in found}


def _entry(name: str, entry: Any, path: Path) -> tuple[torch.dtype, list[int], int, int]:
    if isinstance(entry, dict) and entry.keys() == {"dtype", "shape", "data_offsets"}:
        entry = cast("dict[str, Any]", entry)
        kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        numbers = [*shape, *offsets] if isinstance(shape, list) and isinstance(offsets, list) else [None]
        whole = all(type(number) is int and 0 <= number < 2**63 for number in numbers)
        if whole and len(offsets) == 2 and len(shape) <= 64 and isinstance(kind, str) and kind in DTYPES:
            return DTYPES[kind], shape, offsets[0], offsets[1]
    raise CheckpointError(
        f"path: {path} is damaged (of tensor {name!r} the header says {str(entry)[:80]}); save it again."
    )
