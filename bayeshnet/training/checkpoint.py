"""Saving and loading of modules by safetensors and JSON, without pickle."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from pyro.infer.autoguide import AutoCallable, AutoGuide
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bayeshnet.checks import kind_of
from bayeshnet.errors import ArgumentError, ArgumentTypeError, CheckpointError, CheckpointWarning, UsageError
from bayeshnet.models.bayesian_model import BayesianModel
from bayeshnet.models.capabilities import has_network, latents_of
from bayeshnet.training._old_keys import renamed_class, renamed_state

__all__ = ["load", "save"]

_FORMAT = 2
_READABLE = (1, 2)  # format 1 is that of version 0.1, whose names differ


def save(path: str | os.PathLike[str], **modules: nn.Module) -> Path:
    """Write the parameters and buffers of modules to ``PATH.safetensors`` and their description to ``PATH.json``.

    Nothing is pickled: reading the files runs no code. To read them, build the same objects again and call
    :func:`load`; with the same seed they then predict the same to the bit.

    Args:
        path: Where to; an ending ``.safetensors`` or ``.json`` is dropped.
        modules: Any modules by a name of your choice: ``save("run", guide=guide, model=model)``. A guide is saved with
            its model where that has learned anything, prior scales or the noise; a warning says so if it is not.

    Returns:
        The path of the safetensors file.

    Raises:
        ArgumentError: If no module is given, the path names no file, or a module is lazy or on the meta device.
        ArgumentTypeError: If something is not an ``nn.Module``, or has tensors that safetensors cannot hold.
        UsageError: If a guide was never called, so that it has no parameters yet.
        OSError: If the files cannot be written.

    Example:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> net = nn.Linear(3, 2)
        >>> save(f"{folder.name}/net", net=net).name
        'net.safetensors'
        >>> load(f"{folder.name}/net", net=nn.Linear(3, 2))
        >>> folder.cleanup()
    """
    target = _stem(path)
    _check_modules(modules, "save it")
    _warn_of_models_left_out(modules, stacklevel=3)
    tensors: dict[str, Tensor] = {}
    for name, module in modules.items():
        for key, value in _tensors(module, name).items():
            _check_savable(name, key, value)
            # A copy each: safetensors refuses tensors that share memory, such as views of one buffer.
            tensors[f"{name}.{key}"] = value.detach().cpu().contiguous().clone()
    target.parent.mkdir(parents=True, exist_ok=True)
    description: dict[str, Any] = {
        "format": _FORMAT,
        "torch": str(torch.__version__),
        "modules": {name: type(module).__name__ for name, module in modules.items()},
        "tensors": {key: {"shape": list(t.shape), "dtype": str(t.dtype)} for key, t in tensors.items()},
    }
    tensors_file = target.with_name(target.name + ".safetensors")
    try:
        save_file(tensors, tensors_file)
    except SafetensorError as error:
        raise OSError(f"path: {tensors_file} cannot be written ({error}).") from error
    text = json.dumps(description, indent=1) + "\n"
    target.with_name(target.name + ".json").write_text(text, encoding="utf-8")
    return tensors_file


def load(path: str | os.PathLike[str], **modules: nn.Module) -> None:
    """Read what :func:`save` wrote into modules of the same structure, in place.

    Everything is checked before anything is changed. Files of version 0.1 can be read too: build the modules with the
    new arguments that replace the ones they were saved with.

    Args:
        path: As given to :func:`save`.
        modules: The modules to fill, under the names they were saved with; some may be left out. A guide alone
            predicts what it did only with its model as it was: load that as well if it has learned anything.

    Raises:
        FileNotFoundError: If a file is missing.
        CheckpointError: If the files are damaged, or a module differs in class, names, shapes or dtypes.
        ArgumentError: If no module is given, or the path names no file.
        ArgumentTypeError: If something is not an ``nn.Module``.
        UsageError: If a guide was never called, so that there is nothing yet to fill; or a module was made under
            ``torch.inference_mode()`` and is filled outside of it.

    Example:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> net, other = nn.Linear(3, 2), nn.Linear(3, 2)
        >>> file = save(f"{folder.name}/net", net=net)
        >>> load(file, net=other)
        >>> torch.equal(net.weight, other.weight)
        True
        >>> folder.cleanup()
    """
    target = _stem(path)
    _check_modules(modules, "load")
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
                f"{name}: is not in the checkpoint; pass the modules by the names {list(description['modules'])}."
            )
        if type(module).__name__ not in (saved_class, renamed_class(saved_class)):
            raise CheckpointError(
                f"{name}: is {kind_of(module)}, and the file has one of class {saved_class} under this name; pass a "
                f"{renamed_class(saved_class)} built with the same arguments as when it was saved."
            )
        prefix = f"{name}."
        state = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        state = renamed_state(module, state)
        _check_state(name, _tensors(module, name), state)
        states[name] = state
    for name, module in modules.items():
        module.load_state_dict(states[name])


def _check_modules(modules: dict[str, nn.Module], purpose: str) -> None:
    if not modules:
        raise ArgumentError("modules: none was given; pass them by name, such as guide=guide, model=model.")
    for name, module in modules.items():
        if not isinstance(module, nn.Module):
            raise ArgumentTypeError(f"{name}: is {kind_of(module)}; pass an nn.Module.")
        is_model = latents_of(module) is not None
        for reserved, wrong, what in (
            ("model", isinstance(module, AutoGuide), "a guide"),
            ("guide", is_model, "a model"),
        ):
            if name == reserved and wrong:
                raise ArgumentTypeError(f"{name}: is {what} ({type(module).__name__}); pass model=model, guide=guide.")
        if "." in name:
            raise ArgumentError(f"{name}: has a dot in its name, as names of submodules have; pass it without the dot.")
        for part in module.modules():
            if isinstance(part, AutoGuide) and not isinstance(part, AutoCallable) and part.prototype_trace is None:
                raise UsageError(
                    f"{name}: is a guide ({type(part).__name__}) that was never called, so it has no parameters yet; "
                    f"call it once with the model's arguments, {name}(x, y), then {purpose}."
                )
        if hasattr(module, "_pyro_name") and not module.state_dict():
            raise UsageError(
                f"{name}: is {kind_of(module)} without parameters or buffers of its own. If it makes them at "
                f"its first call, call it once, then {purpose}; those of pyro.param are in Pyro's parameter store."
            )


def _warn_of_models_left_out(modules: dict[str, nn.Module], *, stacklevel: int) -> None:
    """Warn of a guide whose model has learned something and is not saved with it."""
    saved = {id(part) for module in modules.values() for part in module.modules()}
    for name, module in modules.items():
        for model in _models_of(module):
            learned = [key for key, param in model.named_parameters() if param.requires_grad]
            if learned and id(model) not in saved:
                warnings.warn(
                    f"{name}: is saved without its model, whose learned parameters {learned[:4]} it needs to predict "
                    f"the same; save both, save(path, {name}={name}, model=model).",
                    CheckpointWarning,
                    stacklevel=stacklevel,
                )


def _models_of(guide: nn.Module) -> list[BayesianModel]:
    """Return the Bayesian network that a guide was made for, if it still knows it."""
    if not isinstance(guide, AutoGuide):
        return []
    # Pyro's guides keep their model bound to a function that chooses where it starts.
    known = (getattr(guide, "original_model", None), guide.model, *getattr(guide.model, "args", ()))
    return list({id(model): model for model in known if has_network(model)}.values())


def _check_savable(name: str, key: str, value: Tensor) -> None:
    """Raise if a tensor has no values yet, or safetensors cannot hold it."""
    if value.is_meta:
        raise ArgumentError(f"{name}: {key!r} is on the meta device and has no values; move it with to_empty, fill it.")
    if value.layout != torch.strided or value.is_quantized:
        kind = "quantised" if value.is_quantized else f"of layout {value.layout}"
        raise ArgumentTypeError(f"{name}: {key!r} is {kind}, which safetensors cannot hold; keep a dense float tensor.")
    if value.dtype == torch.complex128:
        raise ArgumentTypeError(
            f"{name}: {key!r} has dtype {value.dtype}, which safetensors cannot hold; keep its real and imaginary part."
        )


def _tensors(module: nn.Module, name: str) -> dict[str, Tensor]:
    state = module.state_dict()
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise ArgumentTypeError(
                f"{name}: its state has {kind_of(value)} under {key!r}, which cannot be saved without pickle; "
                "keep it in a buffer."
            )
        if is_lazy(value):
            raise ArgumentError(
                f"{name}: {key!r} has no shape yet (a lazy module); run one forward pass with example data first."
            )
    return state


def _stem(path: str | os.PathLike[str]) -> Path:
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise ArgumentTypeError(f"path: is {kind_of(path)}; pass a file name, such as 'run'.")
    text, path = os.fspath(path), Path(path)
    folder = text.endswith(tuple(sep for sep in (os.sep, os.altsep) if sep))
    if folder or "\0" in text or path.name in ("", ".", "..", ".safetensors", ".json"):
        raise ArgumentError(f"path: is {text!r}, which names no file; pass a file name, such as 'run' or 'folder/run'.")
    return path.with_suffix("") if path.suffix in (".safetensors", ".json") else path


def _read_description(target: Path) -> dict[str, Any]:
    try:
        description = json.loads(target.with_name(target.name + ".json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"path: {target}.json is damaged ({error}); save it again.") from error
    if (
        not isinstance(description, dict)
        or description.get("format") not in _READABLE
        or not isinstance(description.get("modules"), dict)
    ):
        raise CheckpointError(
            f"path: {target}.json is not a description in one of this package's formats {_READABLE}; save it again, or "
            "read it with the version that wrote it."
        )
    return description


def _check_state(name: str, own: dict[str, Tensor], saved: dict[str, Tensor]) -> None:
    missing, surplus = sorted(own.keys() - saved.keys()), sorted(saved.keys() - own.keys())
    if missing or surplus:
        raise CheckpointError(
            f"{name}: differs in structure from what was saved: the file lacks {missing[:5]} and also has "
            f"{surplus[:5]}. Build it with the same arguments as when it was saved."
        )
    for key, value in own.items():
        if value.is_meta:
            raise CheckpointError(f"{name}: {key!r} is on the meta device and cannot be filled; use to_empty first.")
        if value.is_inference() and not torch.is_inference_mode_enabled():
            raise UsageError(
                f"{name}: {key!r} was made under torch.inference_mode() and cannot be changed outside of it; build the "
                "module outside, or load inside."
            )
        if value.shape != saved[key].shape or value.dtype != saved[key].dtype:
            raise CheckpointError(
                f"{name}: tensor {key!r} is {value.dtype} {tuple(value.shape)}, the saved one is {saved[key].dtype} "
                f"{tuple(saved[key].shape)}. Build it with the same arguments as when it was saved."
            )
