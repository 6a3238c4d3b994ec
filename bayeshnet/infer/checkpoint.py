"""Saving and loading of modules by safetensors and JSON, without pickle."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bayeshnet.errors import ArgumentError, ArgumentTypeError, CheckpointError

__all__ = ["load", "save"]

_FORMAT = 1


def save(path: str | os.PathLike[str], **modules: nn.Module) -> Path:
    """Write the parameters and buffers of modules to ``PATH.safetensors`` and their description to ``PATH.json``.

    Nothing is pickled: reading the files runs no code. To read them, build the same objects again and call
    :func:`load`; with the same seed they then predict the same to the bit.

    Args:
        path: Where to; an ending ``.safetensors`` or ``.json`` is dropped.
        modules: Any modules by a name of your choice: ``save("run", guide=guide, model=model)``.

    Returns:
        The path of the safetensors file.

    Raises:
        ValueError: If no module is given.
        TypeError: If something is not an ``nn.Module``.

    Example:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> net = nn.Linear(3, 2)
        >>> save(f"{folder.name}/net", net=net).name
        'net.safetensors'
        >>> load(f"{folder.name}/net", net=nn.Linear(3, 2))
        >>> folder.cleanup()
    """
    _check_modules(modules)
    tensors: dict[str, Tensor] = {}
    for name, module in modules.items():
        for key, value in _tensors(module, name).items():
            # A copy each: safetensors refuses tensors that share memory, such as views of one buffer.
            tensors[f"{name}.{key}"] = value.detach().cpu().contiguous().clone()
    target = _stem(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    description: dict[str, Any] = {
        "format": _FORMAT,
        "torch": str(torch.__version__),
        "modules": {name: type(module).__name__ for name, module in modules.items()},
        "tensors": {key: {"shape": list(t.shape), "dtype": str(t.dtype)} for key, t in tensors.items()},
    }
    tensors_file = target.with_name(target.name + ".safetensors")
    save_file(tensors, tensors_file)
    text = json.dumps(description, indent=1) + "\n"
    target.with_name(target.name + ".json").write_text(text, encoding="utf-8")
    return tensors_file


def load(path: str | os.PathLike[str], **modules: nn.Module) -> None:
    """Read what :func:`save` wrote into modules of the same structure, in place.

    Everything is checked before anything is changed.

    Args:
        path: As given to :func:`save`.
        modules: The modules to fill, under the names they were saved with; some may be left out.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If the files are damaged, or a module differs in class, names, shapes or dtypes.
        TypeError: If something is not an ``nn.Module``.
    """
    _check_modules(modules)
    target = _stem(path)
    description = _read_description(target)
    try:
        tensors = load_file(target.with_name(target.name + ".safetensors"))
    except SafetensorError as error:
        raise CheckpointError(f"path: {target}.safetensors is damaged ({error}); save it again.") from error
    states: dict[str, dict[str, Tensor]] = {}
    for name, module in modules.items():
        saved_class = description["modules"].get(name)
        if saved_class is None:
            raise CheckpointError(
                f"{name}: the checkpoint has no module of this name; it has {list(description['modules'])}."
            )
        if saved_class != type(module).__name__:
            raise CheckpointError(
                f"{name}: is a {type(module).__name__}, but a {saved_class} was saved under this name."
            )
        prefix = f"{name}."
        state = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        _check_state(name, _tensors(module, name), state)
        states[name] = state
    for name, module in modules.items():
        module.load_state_dict(states[name])


def _check_modules(modules: dict[str, nn.Module]) -> None:
    if not modules:
        raise ArgumentError("modules: none was given; pass them by name, such as guide=guide, model=model.")
    for name, module in modules.items():
        if not isinstance(module, nn.Module):
            raise ArgumentTypeError(f"{name}: is a {type(module).__name__}; pass an nn.Module.")


def _tensors(module: nn.Module, name: str) -> dict[str, Tensor]:
    state = module.state_dict()
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise ArgumentTypeError(
                f"{name}: its state has a {type(value).__name__} under {key!r}, which cannot be saved without pickle; "
                "keep it in a buffer."
            )
    return state


def _stem(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    return path.with_suffix("") if path.suffix in (".safetensors", ".json") else path


def _read_description(target: Path) -> dict[str, Any]:
    try:
        description = json.loads(target.with_name(target.name + ".json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"path: {target}.json is damaged ({error}); save it again.") from error
    if not isinstance(description, dict) or description.get("format") != _FORMAT or "modules" not in description:
        raise CheckpointError(f"path: {target}.json is not a description of this package's format {_FORMAT}.")
    return description


def _check_state(name: str, own: dict[str, Tensor], saved: dict[str, Tensor]) -> None:
    missing, surplus = sorted(own.keys() - saved.keys()), sorted(saved.keys() - own.keys())
    if missing or surplus:
        raise CheckpointError(
            f"{name}: differs in structure from what was saved: the file lacks {missing[:5]}, and has besides "
            f"{surplus[:5]}. Build it with the same arguments as when it was saved."
        )
    for key, value in own.items():
        if value.shape != saved[key].shape or value.dtype != saved[key].dtype:
            raise CheckpointError(
                f"{name}: tensor {key!r} is {value.dtype} {tuple(value.shape)}, the saved one is {saved[key].dtype} "
                f"{tuple(saved[key].shape)}. Build it with the same arguments as when it was saved."
            )
