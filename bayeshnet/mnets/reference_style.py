"""The compatibility layer: what classes written for the reference's two interfaces use beyond the documented API.

Such a class derives from ``(nn.Module, MainNetInterface)`` or ``(nn.Module, HyperNetInterface)``, calls both
constructors, fills private lists (``_param_shapes``, ``_internal_params``, ``_layer_weight_tensors``, ...) that start
as None, and checks them by ``_is_properly_setup()``. Both interfaces derive from the classes of this file, so that it
runs once ``hypnettorch`` is replaced by ``bayeshnet`` in its imports. Differences: a wrong set-up raises a
:class:`~bayeshnet.errors.UsageError` that names the attribute and the fix, where the reference fails an ``assert``; and
what is missing is created (an empty list, a ``ModuleList``) where only one value is possible.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor, nn

from bayeshnet.errors import ArgumentError, ArgumentTypeError, UsageError
from bayeshnet.layers.batch_norm import BatchNormLayer
from bayeshnet.layers.context_mod import ContextModLayer
from bayeshnet.mnets.own_lists import (
    add_tensors,
    check_flags,
    check_lists,
    check_refs,
    check_shapes,
    first_set,
    own_list,
    table_from_lists,
    wrong,
)
from bayeshnet.typing import RetFormat

if TYPE_CHECKING:
    from bayeshnet.mnets.param_table import ParamRecord

__all__ = ["ReferenceHyperNet", "ReferenceMainNet"]

# Attributes that the constructors of the interfaces set to None. On the instance: a class attribute would hide the
# submodule that nn.Module registers under the same name.
_MAIN_ATTRIBUTES = (
    *("_internal_params", "_param_shapes", "_param_shapes_meta", "_hyper_shapes_learned", "_hyper_shapes_learned_ref"),
    *("_hyper_shapes_distilled", "_has_bias", "_has_fc_out", "_mask_fc_out", "_has_linear_out"),
    *("_layer_weight_tensors", "_layer_bias_vectors", "_batchnorm_layers", "_context_mod_layers"),
    *("_num_params", "_num_internal_params", "_hyper_shapes", "_all_shapes", "_weights"),
)
_HYPER_ATTRIBUTES = (
    "_unconditional_param_shapes_ref",
    "_unconditional_params_ref",
    "_target_shapes",
    "_num_known_conds",
)


class ReferenceMainNet:
    """The helpers of a main network that keeps its lists itself.

    Example:
        >>> from bayeshnet.mnets import MainNetInterface
        >>> class Line(nn.Module, MainNetInterface):
        ...     def __init__(self, n_in):
        ...         nn.Module.__init__(self)
        ...         MainNetInterface.__init__(self)
        ...         self._internal_params = nn.ParameterList()
        ...         self._param_shapes, self._param_shapes_meta = [], []
        ...         self._has_bias = self._has_fc_out = self._mask_fc_out = self._has_linear_out = True
        ...         self._add_fc_layers([n_in], [1], no_weights=False, fc_layers=[1])
        ...         self._is_properly_setup()
        ...     def distillation_targets(self):
        ...         return None
        ...     def forward(self, x, weights=None, distilled_params=None, condition=None):
        ...         return nn.functional.linear(x, *(self.internal_params if weights is None else weights))
        >>> Line(3).param_shapes
        [[1, 3], [1]]
    """

    _records: tuple[ParamRecord, ...] | None = None

    def __init__(self) -> None:
        super().__init__()
        _start_as_none(self, _MAIN_ATTRIBUTES)

    def _is_properly_setup(self, check_has_bias: bool = True) -> None:
        """Check the lists; to be called at the end of the constructor.

        Args:
            check_has_bias: Whether ``_has_bias`` has to be set and, if True, to mean a bias for each layer weight.

        Raises:
            UsageError: If an attribute is missing or contradicts another; it names both and the fix.
        """
        if self._records is not None:
            if first_set(self, "_param_shapes") is not None:
                wrong(self, "_param_shapes", "is set beside `_records`, the table", "keep one of the two")
            return
        _read_deprecated(self, "_param_shapes", "_all_shapes")
        _read_deprecated(self, "_hyper_shapes_learned", "_hyper_shapes")
        net: Any = self
        old, new = getattr(self, "_weights", None), getattr(self, "_internal_params", None)
        if old is not None and new is not None and old is not new:
            wrong(self, "_weights", "is set beside `_internal_params`", "keep the latter, which replaces it")
        if old is not None and new is None:
            net._internal_params = old
        check_lists(self)
        check_flags(self, check_has_bias=check_has_bias)

    # ------------------------------------------------------------------ building blocks

    @staticmethod
    def _parse_context_mod_args(cm_kwargs: dict[str, Any]) -> list[str]:
        """Complete context-modulation options by the defaults of ``MLP``.

        Args:
            cm_kwargs: Keyword arguments; completed in place.

        Returns:
            The keys that are no arguments of ``MLP`` at all.
        """
        from bayeshnet.mnets.mlp import MLP  # noqa: PLC0415 - MLP implements the interface

        known = inspect.signature(MLP.__init__).parameters
        for name in (name for name in known if "context_mod" in name):
            cm_kwargs.setdefault(name, known[name].default)
        return [name for name in cm_kwargs if name == "self" or name not in known]

    def _add_context_mod_layers(
        self, cm_shapes: Sequence[Sequence[int]], cm_layers: Sequence[int] | None = None
    ) -> None:
        """Add context-modulation layers, and their tensors to the lists.

        The options are the attributes ``_context_mod_no_weights``, ``_context_mod_gain_offset`` and
        ``_context_mod_gain_softplus``. Meta data are added if ``_param_shapes_meta`` is a list.

        Args:
            cm_shapes: Shape of gain and shift of each layer.
            cm_layers: The numbers of the layers, for the meta data.

        Raises:
            UsageError: If an option is not set.
        """
        options: dict[str, bool] = {}
        for key in ("no_weights", "gain_offset", "gain_softplus"):
            value: bool | None = first_set(self, f"_context_mod_{key}")
            if value is None:
                wrong(self, f"_context_mod_{key}", "is not set", "set it before `_add_context_mod_layers`")
            options[key if key == "no_weights" else f"apply_{key}"] = value
        for shape, number in zip(cm_shapes, _layer_numbers("cm_layers", cm_layers, len(cm_shapes)), strict=True):
            layer = ContextModLayer(shape, **options)
            own_list(self, "_context_mod_layers", nn.ModuleList).append(layer)
            names = ["cm_scale" if kind == "gain" else "cm_shift" for kind in layer.param_shapes_meta]
            add_tensors(self, layer.param_shapes, names, layer.weights, number)

    def _num_context_mod_shapes(self) -> int:
        """Number of the entries of ``param_shapes`` that belong to context modulation."""
        layers: Any = getattr(self, "_context_mod_layers", None)
        return sum(len(layer.param_shapes) for layer in layers or ())

    def _add_batchnorm_layers(
        self,
        bn_sizes: Sequence[int],
        bn_no_weights: bool,
        bn_layers: Sequence[int] | None = None,
        distill_bn_stats: bool = False,
        bn_track_stats: bool = True,
    ) -> None:
        """Add batch-norm layers, and their tensors to the lists.

        Args:
            bn_sizes: Number of features of each layer.
            bn_no_weights: Whether scales and shifts are external.
            bn_layers: The numbers of the layers, for the meta data.
            distill_bn_stats: Enter the running statistics into ``_hyper_shapes_distilled``.
            bn_track_stats: Keep running statistics.
        """
        numbers = _layer_numbers("bn_layers", bn_layers, len(bn_sizes))
        for size, number in zip(bn_sizes, numbers, strict=True):
            layer = BatchNormLayer(size, affine=not bn_no_weights, track_running_stats=bn_track_stats)
            own_list(self, "_batchnorm_layers", nn.ModuleList).append(layer)
            add_tensors(self, layer.param_shapes, ["bn_scale", "bn_shift"], layer.weights, number)
            if distill_bn_stats:
                own_list(self, "_hyper_shapes_distilled").extend(list(stat.shape) for stat in layer.get_stats(0))

    def _add_fc_layers(
        self,
        in_sizes: Sequence[int],
        out_sizes: Sequence[int],
        no_weights: bool,
        fc_layers: Sequence[int] | None = None,
    ) -> None:
        """Add the tensors of fully-connected layers, with biases if ``_has_bias``, to the lists.

        Those that are kept start as those of ``nn.Linear`` do.

        Args:
            in_sizes: Number of inputs of each layer.
            out_sizes: Number of outputs of each layer.
            no_weights: Whether they are external.
            fc_layers: The numbers of the layers, for the meta data.
        """
        if len(in_sizes) != len(out_sizes):
            raise ArgumentError(f"out_sizes: has {len(out_sizes)} entries for {len(in_sizes)} in_sizes; give one each.")
        weights = own_list(self, "_layer_weight_tensors", nn.ParameterList)
        biases = own_list(self, "_layer_bias_vectors", nn.ParameterList)
        has_bias = bool(getattr(self, "_has_bias", None))
        numbers = _layer_numbers("fc_layers", fc_layers, len(in_sizes))
        for n_in, n_out, number in zip(in_sizes, out_sizes, numbers, strict=True):
            shapes = [[n_out, n_in], [n_out]][: 1 + has_bias]
            params = None
            if not no_weights:
                params = [nn.Parameter(torch.empty(shape)) for shape in shapes]
                nn.init.kaiming_uniform_(params[0], a=math.sqrt(5))
                weights.append(params[0])
                if has_bias:
                    nn.init.uniform_(params[1], -1 / math.sqrt(n_in), 1 / math.sqrt(n_in))
                    biases.append(params[1])
            add_tensors(self, shapes, ["weight", "bias"][: 1 + has_bias], params, number)


class ReferenceHyperNet(ReferenceMainNet):
    """The helpers of a hypernetwork that keeps its lists itself.

    Example:
        >>> from bayeshnet.hnets import HMLP
        >>> isinstance(HMLP([[2, 2]], verbose=False), ReferenceHyperNet)
        True
    """

    def __init__(self) -> None:
        super().__init__()
        _start_as_none(self, _HYPER_ATTRIBUTES)

    def _is_properly_setup(self, check_has_bias: bool = True) -> None:
        """Check the lists, at the end of the constructor, and set ``_unconditional_params_ref`` if it is None.

        Raises:
            UsageError: If an attribute is missing or contradicts another; it names both and the fix.
        """
        super()._is_properly_setup(check_has_bias)
        if self._records is not None:
            return
        net: Any = self
        num_conds = getattr(self, "_num_known_conds", None)
        if isinstance(num_conds, bool) or not isinstance(num_conds, int) or num_conds < 0:
            wrong(self, "_num_known_conds", f"is {num_conds!r}", "set it to the number of conditions, 0 for none")
        if getattr(self, "_unconditional_param_shapes_ref", None) is None:
            wrong(
                self,
                "_unconditional_param_shapes_ref",
                "is None",
                "list the places in `_param_shapes` that all conditions share",
            )
        check_shapes(self, "_target_shapes", getattr(self, "_target_shapes", None))
        own = getattr(self, "_unconditional_params_ref", None)
        if own is not None:
            num = len(net.internal_params or ())
            check_refs(self, "_unconditional_params_ref", own, num, "_internal_params")
        table_from_lists(self)
        net._unconditional_params_ref = net.unconditional_params_ref

    def _preprocess_forward_args(
        self,
        _input_required: bool = True,
        _parse_cond_id_fct: Callable[[Any, list[int], Any], Tensor] | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor | None, Tensor | None, Any, Any]:
        """Read the arguments of ``forward``.

        Args:
            _input_required: Refuse a call without any input.
            _parse_cond_id_fct: ``fct(self, cond_ids, cond_weights)`` makes the conditional input of a list of
                conditions; by default the conditional weights, one per condition, are stacked.
            kwargs: The arguments of ``forward``, by name.

        Returns:
            Unconditional input, conditional input (the one passed or that of the conditions asked for), unconditional
            weights and conditional weights (internal ones, where none were passed). A batch of 1 on one side is
            expanded to that of the other.

        Raises:
            ArgumentError: If an argument is not accepted or weights are missing.
            UsageError: If there is no input at all, or conditions do not say which weights are their input.
        """
        net: Any = self
        ret_format = kwargs.get("ret_format", "squeezed")
        if ret_format not in get_args(RetFormat):
            raise ArgumentError(f"ret_format: {ret_format!r} is unknown; use one of {get_args(RetFormat)}.")
        uncond_weights, cond_weights = _read_given_weights(self, kwargs.get("weights"))
        uncond, cond, cond_id = (kwargs.get(name) for name in ("uncond_input", "cond_input", "cond_id"))
        if _input_required and uncond is None and cond is None and cond_id is None:
            raise UsageError("forward: no input was given; pass uncond_input, cond_input or cond_id.")
        if cond is not None and cond_id is not None:
            raise ArgumentError("cond_id: excludes cond_input; pass one of the two.")
        if cond is not None and cond.dim() < 2:
            raise ArgumentError(f"cond_input: has shape {list(cond.shape)}; pass a batch, [1, ...] for one sample.")
        if cond_id is not None:
            ids = self._read_cond_ids(cond_id, bounded=_parse_cond_id_fct is None)
            if _parse_cond_id_fct is not None:
                cond = _parse_cond_id_fct(self, ids, cond_weights)
            else:
                num, known = len(cond_weights or ()), net.num_known_conds
                if num != known:
                    raise UsageError(
                        f"cond_id: {known} conditions have {num} conditional tensors here, so that none is known to be "
                        "the input of a condition; pass cond_input, or weights, or give `_parse_cond_id_fct`."
                    )
                cond = torch.stack([cond_weights[i] for i in ids])
        if cond is not None and uncond is not None:
            if uncond.dim() < 2:
                raise ArgumentError(f"uncond_input: has shape {list(uncond.shape)}; pass a batch, [1, ...] for one.")
            if 1 not in (len(cond), len(uncond)) and len(cond) != len(uncond):
                raise ArgumentError(
                    f"uncond_input: has {len(uncond)} rows, the conditional input {len(cond)}; 1 or equal."
                )
            rows = max(len(cond), len(uncond)) if min(len(cond), len(uncond)) else 0
            cond, uncond = (x if len(x) == rows else x.expand(rows, *x.shape[1:]) for x in (cond, uncond))
        return uncond, cond, uncond_weights, cond_weights

    def _read_cond_ids(self, cond_id: Any, *, bounded: bool) -> list[int]:
        raise NotImplementedError

    def _flat_to_ret_format(self, flat_out: Tensor, ret_format: str) -> Any:
        """Bring a flat output ``[B, num_outputs]`` into the format asked for."""
        net: Any = self
        return net.convert_out_format(flat_out, "flattened", ret_format)


# ---------------------------------------------------------------------- lists


def _start_as_none(net: object, names: Sequence[str]) -> None:
    known = {*net.__dict__, *net.__dict__.get("_modules", ()), *net.__dict__.get("_parameters", ())}
    for name in names:
        if name not in known:  # a second call of the constructor takes nothing away
            setattr(net, name, None)


def _read_deprecated(net: object, name: str, deprecated: str) -> None:
    old = first_set(net, deprecated)
    if first_set(net, name) is None and old is not None:
        what = f"{type(net).__name__}.{deprecated}"
        warnings.warn(f"{what} is deprecated; set `{name}`.", DeprecationWarning, stacklevel=4)
        setattr(net, name, old)


def _layer_numbers(argument: str, layers: Sequence[int] | None, num: int) -> Sequence[int]:
    if layers is not None and len(layers) != num:
        raise ArgumentError(f"{argument}: has {len(layers)} entries for {num} layers; give each its number.")
    return [-1] * num if layers is None else layers


def _read_given_weights(net: Any, given: Any) -> tuple[Any, Any]:
    """Complete lists of unconditional and conditional weights, None where there are none."""
    refs = {"uncond_weights": net.unconditional_param_shapes_ref, "cond_weights": net.conditional_param_shapes_ref}
    found = {"uncond_weights": net.unconditional_params, "cond_weights": net.conditional_params}
    if isinstance(given, Mapping):
        if not any(key in given for key in refs):
            raise ArgumentError(f"weights: has the keys {list(given)}; pass 'uncond_weights' or 'cond_weights'.")
        for key, places in refs.items():
            found[key] = given.get(key, found[key])
            if key in given and len(given[key]) != len(places):
                raise ArgumentError(f"weights[{key!r}]: has {len(given[key])} tensors; pass {len(places)}.")
    elif isinstance(given, Tensor):
        raise ArgumentTypeError("weights: is one tensor; pass a list of tensors or a dict.")
    elif given is not None:
        complete = list(given)
        num, learned = len(net.param_shapes), net.hyper_shapes_learned or ()
        if len(complete) == len(learned) and len(complete) != num:
            params, external = list(net.internal_params or ()), list(net.hyper_shapes_learned_ref)
            indices = [entry["index"] for entry in net.param_shapes_meta]
            complete = [
                complete[external.index(i)] if i in external else params[index] for i, index in enumerate(indices)
            ]
        if len(complete) != num:
            raise ArgumentError(
                f"weights: {len(complete)} tensors were given; {num} (param_shapes) or {len(learned)} "
                "(hyper_shapes_learned) are expected."
            )
        found = {key: [complete[i] for i in places] or None for key, places in refs.items()}
    if len(found["uncond_weights"] or ()) != len(refs["uncond_weights"]):
        shapes = net.hyper_shapes_learned
        raise ArgumentError(f"weights: the network does not keep all of its own; pass those of the shapes {shapes}.")
    return found["uncond_weights"], found["cond_weights"]
