"""Saving and loading of modules in one safetensors file, without pickle."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pyro.infer.autoguide import AutoCallable, AutoGuide
from pyro.poutine.messenger import unwrap
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bayeshnet.checks import kind_of
from bayeshnet.configuration import Configured, Difference, described, differences, packed
from bayeshnet.deprecation import stacklevel_of_user
from bayeshnet.errors import ArgumentError, ArgumentTypeError, CheckpointError, CheckpointWarning, UsageError
from bayeshnet.guides.base import Guide
from bayeshnet.models.bayesian_model import BayesianModel
from bayeshnet.models.capabilities import has_network, latents_of
from bayeshnet.training._contents import CONFIGURATION, FORMAT, Entry, old_description, read_contents, tensors_file
from bayeshnet.training._old_keys import renamed_class, renamed_state
from bayeshnet.training._stand_in import example_shapes
from bayeshnet.training.files import write_file

__all__ = ["check_and_fill", "load", "save", "stem"]

_MOST = 5  # differences that a message names


def save(path: str | os.PathLike[str], *unnamed: nn.Module, **modules: nn.Module) -> Path:
    """Write the parameters and buffers of modules, and what the modules are, to ``PATH.safetensors``.

    Nothing is pickled: reading the file runs no code. To read it, build the same objects again and call :func:`load`,
    or let :func:`~bayeshnet.load_posterior` build them; with the same seed they then predict the same to the bit.

    The file is written beside the one that is there and takes its place as a whole: whatever happens, the old or the
    new one is there. A checksum covers every bit of it.

    Args:
        path: Where to; an ending ``.safetensors`` or ``.json`` is dropped. Folders are made.
        unnamed: Refused: modules need names.
        modules: Any modules by a name of your choice: ``save("run", guide=guide, model=model)``. The model that a guide
            was built for is saved with it, also if it is not named.

    Returns:
        The path of the file.

    Raises:
        ArgumentError: If no module is given, the path names no file, or a module is lazy or on the meta device.
        ArgumentTypeError: If something is not an ``nn.Module``, or has tensors that safetensors cannot hold.
        UsageError: If a guide was never called, so that it has no parameters yet.
        OSError: If the file cannot be written.

    Example:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> net = nn.Linear(3, 2)
        >>> save(f"{folder.name}/net", net=net).name
        'net.safetensors'
        >>> load(f"{folder.name}/net", net=nn.Linear(3, 2))
        >>> folder.cleanup()
    """
    target = stem(path)
    _refuse_unnamed(unnamed)
    _check_modules(modules, "save it")
    modules, models = _with_models(modules)
    tensors: dict[str, Tensor] = {}
    for name, module in modules.items():
        for key, value in _tensors(module, name).items():
            _check_savable(name, key, value)
            tensors[f"{name}.{key}"] = value
        _warn_of_numbers(name, module)
    entries = {
        name: {"class": type(module).__name__, "configuration": packed(_described(module), tensors, CONFIGURATION)}
        for name, module in modules.items()
    }
    for name, model in models.items():
        entries[name]["model"] = model
        entries[name]["example"] = _example(modules[name], modules[model])
    target.parent.mkdir(parents=True, exist_ok=True)
    path = tensors_file(target)
    write_file(path, tensors, {"format": FORMAT, "torch": str(torch.__version__), "modules": entries})
    if (old := old_description(target)) is not None:  # of an earlier version, and of what was there before
        old.unlink()
    return path


def load(path: str | os.PathLike[str], *unnamed: nn.Module, strict: bool = True, **modules: nn.Module) -> None:
    """Read what :func:`save` wrote into modules of the same structure, in place.

    Everything is checked before anything is changed: the checksum of the file, and that each module is what was saved,
    in all that changes its results: the activations of a network, the prior, the likelihood, the settings of a family.
    Files of earlier versions say less, and can be read as well: build the modules with the new arguments that replace
    the ones they were saved with.

    Args:
        path: As given to :func:`save`.
        unnamed: Refused, as in :func:`save`.
        strict: Refuse modules that are not what was saved. False: warn of the differences, and load what fits.
        modules: The modules to fill, under the names they were saved with; some may be left out. A guide comes with its
            model: if that is not among the modules, the model that the guide was built for is filled as well.

    Raises:
        FileNotFoundError: If the file is missing.
        CheckpointError: If the file is damaged, or a module is not what was saved, or differs in names, shapes or
            dtypes.
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
    target = stem(path)
    _refuse_unnamed(unnamed)
    _check_modules(modules, "load")
    contents = read_contents(target)
    found: dict[str, tuple[Entry, nn.Module]] = {}
    for name, module in modules.items():
        if name not in contents.entries:
            raise CheckpointError(
                f"{name}: is not in the checkpoint; pass the modules by the names {list(contents.entries)}."
            )
        found[name] = (contents.entries[name], module)
    known = {id(part) for module in modules.values() for part in module.modules()}
    for name, module in modules.items():
        own, model = _models_of(module), contents.entries[name].model
        if own and id(own[0]) not in known and model in contents.entries and model not in found:
            found[model] = (contents.entries[model], own[0])
    check_and_fill(found, strict=strict)


def check_and_fill(found: Mapping[str, tuple[Entry, nn.Module]], *, strict: bool = True) -> None:
    """Fill modules with what a checkpoint has of them, after all of them were checked.

    Args:
        found: What the file has of a module, and the module, by name.
        strict: As for :func:`load`.
    """
    states: dict[str, dict[str, Tensor]] = {}
    differing: list[Difference] = []
    for name, (entry, module) in found.items():
        if type(module).__name__ not in (entry.class_name, renamed_class(entry.class_name)):
            raise CheckpointError(
                f"{name}: is {kind_of(module)}, and the file has one of class {entry.class_name} under this name; pass "
                f"a {renamed_class(entry.class_name)} built with the same arguments as when it was saved."
            )
        if entry.configuration is not None:
            differing += differences(entry.configuration, _described(module), name)
    _report(differing, strict)
    for name, (entry, module) in found.items():
        state = renamed_state(module, entry.tensors)
        _check_state(name, module, state)
        states[name] = state
    for name, (_, module) in found.items():
        module.load_state_dict(states[name])


def _report(differing: list[Difference], strict: bool) -> None:
    """Refuse what differs for sure; warn of code, which may have changed without an effect."""
    certain = [difference for difference in differing if difference.certain]
    for found, refused in ((certain, strict), ([d for d in differing if not d.certain], False)):
        if not found:
            continue
        more = f"; and {len(found) - _MOST} more" if len(found) > _MOST else ""
        text = f"{'; '.join(map(str, found[:_MOST]))}{more}."
        if refused:
            raise CheckpointError(
                f"{text} Build it as it was when it was saved, or pass load(..., strict=False) if it is meant to "
                "differ."
            )
        warnings.warn(
            f"{text} What was saved may not give the same results here.",
            CheckpointWarning,
            stacklevel=stacklevel_of_user(),
        )


def _described(module: nn.Module) -> Any:
    if isinstance(module, AutoGuide) and not isinstance(module, Configured):
        return {"kind": "object", "class": type(module).__name__}  # one of Pyro's, which know models and data
    return described(module)


def _with_models(modules: Mapping[str, nn.Module]) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Modules with the models that their guides were built for, and by the name of a guide that of its model."""
    whole, models = dict(modules), dict[str, str]()
    for name, module in modules.items():
        for model in _models_of(module)[:1]:
            names = [key for key, other in whole.items() if other is model]
            if not names:
                names = [key for key in ("model", f"{name}_model", f"model_of_{name}") if key not in whole][:1]
                whole[names[0]] = model
            models[name] = names[0]
    return whole, models


def _example(guide: nn.Module, model: nn.Module) -> dict[str, Any] | None:
    """Shapes of what a guide was built from, if it was built for the model itself, without handlers around it."""
    if not isinstance(guide, Guide) or guide.original_model is not model:
        return None
    return example_shapes(model, *guide.example_arguments())


def _warn_of_numbers(name: str, module: nn.Module) -> None:
    wrong = [key for key, param in module.named_parameters() if not bool(torch.isfinite(param.detach()).all())]
    wrong += [key for key, buffer in module.named_buffers() if bool(torch.isnan(buffer).any())]
    if wrong:
        warnings.warn(
            f"{name}: is saved with NaN or infinite numbers in {wrong[:4]}; load an earlier file, or fit it again.",
            CheckpointWarning,
            stacklevel=stacklevel_of_user(),
        )


def _refuse_unnamed(unnamed: Sequence[Any]) -> None:
    """Raise if modules are given without a name: Python's own error says nothing of names."""
    if unnamed:
        raise ArgumentTypeError(
            f"modules: {len(unnamed)} given without a name, the first is {kind_of(unnamed[0])}; pass each by name: "
            "model=model, guide=guide."
        )


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
        if "." in name or "/" in name:
            raise ArgumentError(
                f"{name}: has a dot or a slash in its name, as names in the file have; pass it without."
            )
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


def _models_of(guide: nn.Module) -> list[BayesianModel]:
    """Return the Bayesian network that a guide was made for, if it still knows it."""
    if not isinstance(guide, AutoGuide):
        return []
    # Pyro's guides keep their model bound to a function that chooses where it starts.
    known = (getattr(guide, "original_model", None), guide.model, *getattr(guide.model, "args", ()))
    found = [unwrap(model) for model in known if model is not None]
    return list({id(model): model for model in found if has_network(model)}.values())


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


def stem(path: str | os.PathLike[str]) -> Path:
    """The path of a checkpoint without the ending of its file; other dots belong to its name.

    Raises:
        ArgumentError: If it names no file.
        ArgumentTypeError: If it is no path.

    Example:
        >>> stem("run.v1.5.safetensors").name, stem("run.v1.5").name
        ('run.v1.5', 'run.v1.5')
    """
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise ArgumentTypeError(f"path: is {kind_of(path)}; pass a file name, such as 'run'.")
    text, path = os.fspath(path), Path(path)
    folder = text.endswith(tuple(sep for sep in (os.sep, os.altsep) if sep))
    if folder or "\0" in text or path.name in ("", ".", "..", ".safetensors", ".json"):
        raise ArgumentError(f"path: is {text!r}, which names no file; pass a file name, such as 'run' or 'folder/run'.")
    return path.with_suffix("") if path.suffix in (".safetensors", ".json") else path


def _check_state(name: str, module: nn.Module, saved: dict[str, Tensor]) -> None:
    own = _tensors(module, name)
    # Buffers whose number and shape are themselves a part of the state: the module makes room for them.
    free = tuple(
        f"{path}.{key}".lstrip(".")
        for path, part in module.named_modules()
        for key in getattr(part, "free_buffers", ())
    )
    if free:
        own, saved = ({k: v for k, v in part.items() if not k.startswith(free)} for part in (own, saved))
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
