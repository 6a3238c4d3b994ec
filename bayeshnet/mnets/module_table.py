"""The parameter table of any ``nn.Module``: which parameters it has, what they are, and where they sit."""

# A module's parameters are exchanged in place.
# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from bayeshnet.checks import kind_of
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.layers.batch_norm import BatchNormLayer
from bayeshnet.layers.context_mod import ContextModLayer
from bayeshnet.layers.low_rank_adapter import LowRankAdapter
from bayeshnet.mnets.mnet_interface import MainNetInterface
from bayeshnet.mnets.own_lists import kept_params
from bayeshnet.mnets.param_table import ParamRecord

__all__ = ["ParamSlots", "module_table"]

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_LINEAR = (nn.Linear, nn.Bilinear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)
_NORMS = (
    nn.modules.batchnorm._NormBase,  # batch and instance norm of any dimension
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)
_WEIGHT_AND_BIAS = {"weight": "weight", "bias": "bias"}
_KINDS: tuple[tuple[Any, dict[str, str]], ...] = (
    (_LINEAR, _WEIGHT_AND_BIAS),
    (_NORMS, {"weight": "bn_scale", "bias": "bn_shift"}),
    (BatchNormLayer, {"scale": "bn_scale", "bias": "bn_shift"}),
    (ContextModLayer, {"gain": "cm_scale", "shift": "cm_shift"}),
    (LowRankAdapter, {"adapter_a": "weight", "adapter_b": "weight"}),
    ((nn.Embedding, nn.EmbeddingBag), {"weight": "embedding"}),
    (
        nn.MultiheadAttention,
        {
            "in_proj_weight": "weight",
            "q_proj_weight": "weight",
            "k_proj_weight": "weight",
            "v_proj_weight": "weight",
            "in_proj_bias": "bias",
        },
    ),
)
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_QUANTISED = (
    "torch.ao.nn.quantized",
    "torch.ao.nn.intrinsic.quantized",
    "torch.ao.nn.sparse.quantized",
    "torch.nn.quantized",
    "torch.nn.intrinsic.quantized",
)
_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


@dataclass(frozen=True, slots=True)
class ParamSlots:
    """The places of one parameter: more than one where it is tied.

    Attributes:
        names: Its dotted names; the first is its own, the others are aliases.
        places: For each the module that has it and the key there.

    Example:
        >>> layer = nn.Linear(3, 1)
        >>> slot = ParamSlots(("weight",), ((layer, "weight"),))
        >>> slot.name, slot.read() is layer.weight
        ('weight', True)
    """

    names: tuple[str, ...]
    places: tuple[tuple[nn.Module, str], ...]

    @property
    def name(self) -> str:
        """Its own dotted name."""
        return self.names[0]

    def read(self) -> nn.Parameter | None:
        """The parameter there, None if it was taken out."""
        module, key = self.places[0]
        return module._parameters[key]

    def write(self, tensor: Tensor | None) -> None:
        """Put a tensor in every place."""
        for module, key in self.places:
            module._parameters[key] = tensor  # pyright: ignore[reportArgumentType]

    def to_buffer(self) -> None:
        """Make a buffer of the parameter: moved and saved with the module, and out of reach of optimisers."""
        value = self.places[0][0]._parameters[self.places[0][1]]
        for module, key in self.places:
            module._parameters.pop(key, None)  # gone if the module itself has two places
            module._buffers[key] = None if value is None else value.detach()

    def to_parameter(self) -> None:
        """Make a frozen parameter of what :meth:`to_buffer` has made a buffer, if it is one."""
        value = self.places[0][0]._buffers.get(self.places[0][1])
        if value is None:
            return
        param = nn.Parameter(value, requires_grad=False)
        for module, key in self.places:
            module._buffers.pop(key, None)
            module._parameters[key] = param


def module_table(
    module: nn.Module,
) -> tuple[tuple[ParamRecord, ...], tuple[ParamSlots, ...], tuple[ParamSlots, ...]]:
    """Describe the parameters of a module, tied ones once, in the order of ``named_parameters()``.

    Returns:
        The records (with the extra keys ``dotted_name``, and ``transposed=True`` for kernels of transposed
        convolutions), for each where the parameter sits, and where the frozen ones (``requires_grad=False``) sit,
        which have no records.

    Raises:
        ArgumentTypeError: If it is no ``nn.Module``, or one whose parameters cannot be exchanged.
        ArgumentError: If there are no parameters or all are frozen, or some have no shape yet.

    Example:
        >>> records, _, _ = module_table(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))
        >>> [(r.extra["dotted_name"], r.name, r.layer) for r in records]
        [('0.weight', 'weight', 1), ('0.bias', 'bias', 1), ('1.weight', 'bn_scale', 2), ('1.bias', 'bn_shift', 2)]
    """
    _check_module(module)
    known = _names_from_tables(module)
    found: dict[int, tuple[ParamRecord | None, list[str], list[tuple[nn.Module, str]]]] = {}
    layers: dict[str, int] = {}
    for path, owner, submodule, key, param in _walk(module):
        name = f"{path}.{key}" if path else key
        if id(param) in found:
            _, names, places = found[id(param)]
            names.append(name)
            places.append((submodule, key))
            continue
        layer = layers.setdefault(owner, len(layers) + 1)
        if not param.requires_grad:
            found[id(param)] = (None, [name], [(submodule, key)])
            continue
        kind, transposed = known.get(id(param)), False
        if kind is None:
            kind, transposed = _classify(module.get_submodule(owner), submodule, path, key)
        extra: dict[str, Any] = {"dotted_name": name} | ({"transposed": True} if transposed else {})
        record = ParamRecord(tuple(param.shape), kind, layer, extra=extra)
        found[id(param)] = (record, [name], [(submodule, key)])
    if not found:
        raise ArgumentError(
            f"module: {type(module).__name__} has no parameters, so there are no weights to pass to it. Layers in a "
            "plain list do not count; use nn.ModuleList."
        )
    slots = [(record, ParamSlots(tuple(names), tuple(places))) for record, names, places in found.values()]
    frozen = tuple(slot for record, slot in slots if record is None)
    if len(frozen) == len(slots):
        raise ArgumentError(
            f"module: all parameters of {type(module).__name__} are frozen (requires_grad=False), so that there are no "
            "weights to pass to it; call requires_grad_(True) on those that should be weights."
        )
    records = tuple(record for record, _ in slots if record is not None)
    return records, tuple(slot for record, slot in slots if record is not None), frozen


def _check_module(module: nn.Module) -> None:
    if not isinstance(module, nn.Module):
        raise ArgumentTypeError(f"module: is {kind_of(module)}; pass an nn.Module.")
    for path, submodule in module.named_modules():
        where = f"module.{path}" if path else "module"
        if isinstance(submodule, _PARALLEL):
            raise ArgumentTypeError(
                f"module: {where} is {kind_of(submodule)}, whose replicas keep weights of their own; pass the "
                f"network in it, `{where}.module`, and parallelise around the whole."
            )
        if isinstance(submodule, torch.jit.ScriptModule):
            raise ArgumentTypeError(
                f"module: {where} is a ScriptModule, whose weights are compiled in; pass the Python module that it was "
                "made from."
            )
        _check_kind(submodule, where)
        for key, tensor in [*submodule._parameters.items(), *submodule._buffers.items()]:
            if tensor is not None and is_lazy(tensor):
                raise ArgumentError(
                    f"module: {where}.{key} has no shape yet ({type(submodule).__name__}); run one forward pass with "
                    "example data first."
                )


def _check_kind(module: nn.Module, where: str) -> None:
    """Raise for modules whose weights are no tensors, or are compiled into something."""
    if type(module).__module__.startswith(_QUANTISED):
        raise ArgumentTypeError(
            f"module: {where} is a quantised {type(module).__name__}, whose weights are packed integers; pass the "
            "floating-point module that it was made from."
        )
    if type(module).__name__ == "OptimizedModule" and hasattr(module, "_orig_mod"):
        raise ArgumentTypeError(
            f"module: {where} was compiled by torch.compile, with its weights; pass the module that it was made from, "
            f"`{where}._orig_mod`."
        )
    padded = isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.padding_idx is not None
    if padded and parametrize.is_parametrized(module, "weight"):
        raise ArgumentTypeError(
            f"module: {where} has a padding_idx and a parametrised weight, of which no row can be kept; build it with "
            "padding_idx=None, or remove the parametrisation."
        )


def _walk(module: nn.Module) -> Iterator[tuple[str, str, nn.Module, str, nn.Parameter]]:
    """Path, path of the layer it belongs to, module, key and parameter, of every place that has one."""
    for path, submodule in module.named_modules(remove_duplicate=False):
        owner = path
        head, found, _ = f".{path}.".partition(".parametrizations.")
        if found and parametrize.is_parametrized(module.get_submodule(head[1:])):
            owner = head[1:]
        for key, param in submodule._parameters.items():
            if param is not None:
                yield path, owner, submodule, key, param


def _names_from_tables(module: nn.Module) -> dict[int, str | None]:
    """What main networks in the module say about their own parameters."""
    known: dict[int, str | None] = {}
    for submodule in module.modules():
        if isinstance(submodule, MainNetInterface):
            internal = [record for record in submodule.param_table if record.internal]
            known.update((id(p), r.name) for p, r in zip(kept_params(submodule), internal, strict=True))
    return known


def _classify(owner: nn.Module, submodule: nn.Module, path: str, key: str) -> tuple[str | None, bool]:
    """Return the kind of a parameter, and whether it is a kernel of a transposed convolution."""
    if submodule is not owner:
        # The one raw tensor behind a parametrised weight takes its place; parts of a decomposition do not.
        if not isinstance(submodule, parametrize.ParametrizationList) or key != "original":
            return None, False
        key = path.rpartition(".")[2]
    if isinstance(owner, _RECURRENT):
        return _WEIGHT_AND_BIAS.get(key.partition("_")[0]), False
    for classes, names in _KINDS:
        if isinstance(owner, classes):
            return names.get(key), isinstance(owner, _TRANSPOSED) and key == "weight"
    return None, False
