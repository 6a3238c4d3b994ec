"""The interface of a network that keeps its weights, receives them, or both."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from bayeshnet.errors import ArgumentError, ArgumentTypeError, UsageError
from bayeshnet.mnets.configured_network import ConfiguredNetwork
from bayeshnet.mnets.output_layer import output_refs
from bayeshnet.mnets.own_lists import check_shapes, first_set, kept_params, table_from_lists
from bayeshnet.mnets.param_table import ParamRecord, num_weights, param_names
from bayeshnet.mnets.reference_style import ReferenceMainNet

if TYPE_CHECKING:
    from bayeshnet.layers.batch_norm import BatchNormLayer
    from bayeshnet.layers.context_mod import ContextModLayer

__all__ = ["MainNetInterface"]


class MainNetInterface(ReferenceMainNet, ConfiguredNetwork, ABC):
    """What every main network and every hypernetwork offers.

    A plain mix-in: a network is ``class MyNet(nn.Module, MainNetInterface)``. A class of this package describes its
    parameters once, by ``self._records`` (the table) and ``self._internal_params`` (the internal ones in table order).
    A class written for the reference, which keeps the attributes ``_param_shapes``, ``_param_shapes_meta``,
    ``_hyper_shapes_learned``, ``_internal_params``, ``_layer_weight_tensors`` and so on instead, works as well: the
    properties give its own lists, and its table is made from them (:mod:`bayeshnet.mnets.reference_style`).

    Example:
        >>> class Line(nn.Module, MainNetInterface):
        ...     def __init__(self):
        ...         nn.Module.__init__(self)
        ...         MainNetInterface.__init__(self)
        ...         self._internal_params = nn.ParameterList([nn.Parameter(torch.ones(1, 2))])
        ...         self._records = (ParamRecord((1, 2), "weight", 1),)
        ...     def distillation_targets(self):
        ...         return None
        ...     def forward(self, x, weights=None, distilled_params=None, condition=None):
        ...         weight, = self.internal_params if weights is None else weights
        ...         return x @ weight.T
        >>> net = Line()
        >>> net.param_shapes, net.num_params, net.hyper_shapes_learned
        ([[1, 2]], 2, None)
        >>> net(torch.ones(1, 2))
        tensor([[2.]], grad_fn=<MmBackward0>)
    """

    _hyper_shapes_distilled: list[list[int]] | None = None
    _has_bias: bool = False
    _has_fc_out: bool = False
    _mask_fc_out: bool = False
    _has_linear_out: bool = False
    # No defaults in the class for these: they would hide the submodules that nn.Module registers under the same names.
    _internal_params: nn.ParameterList | None
    _batchnorm_layers: Sequence[BatchNormLayer] | nn.ModuleList | None
    _context_mod_layers: Sequence[ContextModLayer] | nn.ModuleList | None

    # ------------------------------------------------------------------ to be implemented

    @abstractmethod
    def forward(
        self,
        x: Tensor,
        weights: Any = None,
        distilled_params: Any = None,
        condition: Any = None,
    ) -> Any:
        """Compute the output.

        Args:
            x: Inputs ``[B, ...]``.
            weights: External weights: a list that matches :attr:`hyper_shapes_learned` or :attr:`param_shapes`, or a
                dict where the class documents one. Required unless all weights are internal.
            distilled_params: Statistics made by :meth:`distillation_targets`, if the class has any.
            condition: Selects condition-specific state, such as a set of batch-norm statistics.
        """

    @abstractmethod
    def distillation_targets(self) -> list[Tensor] | None:
        """Statistics that a hypernetwork should learn to reproduce after training, or None."""

    # ------------------------------------------------------------------ the table and its views

    @property
    def param_table(self) -> tuple[ParamRecord, ...]:
        """The records of all parameters, internal or not, in order.

        Raises:
            UsageError: If a class that keeps lists itself has not filled them, or they contradict each other.
        """
        return self._records if self._records is not None else table_from_lists(self)

    @property
    def param_names(self) -> list[str]:
        """A unique dotted name for each entry of :attr:`param_shapes`, used for Pyro sites."""
        return param_names(self.param_table)

    @property
    def param_shapes(self) -> list[list[int]]:
        """Shape of every parameter tensor, internal or external, in table order."""
        if self._records is not None:
            return [list(record.shape) for record in self._records]
        own = first_set(self, "_param_shapes", "_all_shapes")
        if own is None:
            raise UsageError(
                f"{type(self).__name__} has not described its parameters: set `_records` (a tuple of ParamRecord) or "
                "`_param_shapes` in its constructor."
            )
        return _own_shapes(self, "_param_shapes", own)

    @property
    def param_shapes_meta(self) -> list[dict[str, Any]]:
        """One dict per entry of :attr:`param_shapes` with the keys ``name``, ``index`` and ``layer``.

        ``index`` is the position in :attr:`internal_params`, -1 for an external tensor.
        """
        if self._records is None and (own := first_set(self, "_param_shapes_meta")) is not None:
            return own
        meta: list[dict[str, Any]] = []
        index = 0
        for record in self.param_table:
            meta.append(
                {**record.extra, "name": record.name, "index": index if record.internal else -1, "layer": record.layer}
            )
            index += record.internal
        return meta

    @property
    def internal_params(self) -> nn.ParameterList | None:
        """The parameters that the network keeps, in table order; None if it keeps none.

        A class that keeps lists itself may have another order; the key ``index`` of :attr:`param_shapes_meta` tells it.
        """
        return first_set(self, "_internal_params", "_weights")

    @property
    def internal_params_ref(self) -> list[int] | None:
        """For each internal parameter its index in :attr:`param_shapes`; None if there are none."""
        internal = self.internal_params
        if internal is None or len(internal) == 0:
            return None
        refs = [-1] * len(internal)
        for i, entry in enumerate(self.param_shapes_meta):
            if entry["index"] >= 0:
                refs[entry["index"]] = i
        return refs

    @property
    def hyper_shapes_learned(self) -> list[list[int]] | None:
        """Shapes of the external parameters, those to be passed to ``forward``; None if all are internal."""
        if self._records is None:
            own = first_set(self, "_hyper_shapes_learned", "_hyper_shapes")
            return own if own is None else _own_shapes(self, "_hyper_shapes_learned", own)
        return [list(record.shape) for record in self.param_table if not record.internal] or None

    @property
    def hyper_shapes_learned_ref(self) -> list[int] | None:
        """Indices of :attr:`hyper_shapes_learned` in :attr:`param_shapes`, or None."""
        if self._records is None:
            own = first_set(self, "_hyper_shapes_learned_ref")
            if own is not None or self.hyper_shapes_learned is None:
                return own
        return [i for i, record in enumerate(self.param_table) if not record.internal] or None

    @property
    def hyper_shapes_distilled(self) -> list[list[int]] | None:
        """Shapes of the statistics given by :meth:`distillation_targets`, or None."""
        return self._hyper_shapes_distilled

    @property
    def num_params(self) -> int:
        """Number of weights, internal and external."""
        return num_weights(self.param_shapes)

    @property
    def num_internal_params(self) -> int:
        """Number of weights that the network keeps."""
        return sum(param.numel() for param in self.internal_params or ())

    @property
    def weights(self) -> nn.ParameterList | None:
        """Deprecated alias of :attr:`internal_params`."""
        return self.internal_params

    # ------------------------------------------------------------------ flags

    @property
    def has_bias(self) -> bool:
        """Whether the layers have bias vectors."""
        return bool(self._has_bias)

    @property
    def has_fc_out(self) -> bool:
        """Whether the last layer is fully-connected."""
        return bool(self._has_fc_out)

    @property
    def mask_fc_out(self) -> bool:
        """Whether output neurons may be masked by :meth:`get_output_weight_mask`."""
        return bool(self._mask_fc_out)

    @property
    def has_linear_out(self) -> bool:
        """Whether the output is linear in the last layer's activations."""
        return bool(self._has_linear_out)

    # ------------------------------------------------------------------ views for initialisation

    @property
    def layer_weight_tensors(self) -> list[Tensor]:
        """The internal weight matrices and kernels, in table order; the list of a class that keeps one."""
        own = first_set(self, "_layer_weight_tensors")
        return _kept_named(self, "weight") if own is None else own

    @property
    def layer_bias_vectors(self) -> list[Tensor]:
        """The internal bias vectors, in table order; the list of a class that keeps one, which may contain None."""
        own = first_set(self, "_layer_bias_vectors")
        return _kept_named(self, "bias") if own is None else own

    @property
    def batchnorm_layers(self) -> Sequence[BatchNormLayer] | nn.ModuleList | None:
        """The batch-norm layers, or None."""
        return getattr(self, "_batchnorm_layers", None)

    @property
    def context_mod_layers(self) -> Sequence[ContextModLayer] | nn.ModuleList | None:
        """The context-modulation layers, or None."""
        return getattr(self, "_context_mod_layers", None)

    # ------------------------------------------------------------------ helpers

    @staticmethod
    def shapes_to_num_weights(shapes: Sequence[Sequence[int]]) -> int:
        """Number of elements of tensors with these shapes."""
        return num_weights(shapes)

    @staticmethod
    def flatten_params(
        params: Sequence[Tensor] | Tensor,
        param_shapes: Sequence[Sequence[int]] | None = None,
        unflatten: bool = False,
    ) -> Tensor | list[Tensor]:
        """Concatenate tensors into one vector, or cut a vector into tensors.

        Args:
            params: List of tensors; with ``unflatten`` a vector ``[D]``.
            param_shapes: Shapes to cut into; required with ``unflatten``.
            unflatten: Direction.

        Returns:
            The vector ``[D]``, or the list of tensors (views of the vector).

        Raises:
            ArgumentError: If ``param_shapes`` is missing or does not fit.

        Example:
            >>> flat = MainNetInterface.flatten_params([torch.ones(2, 2), torch.zeros(3)])
            >>> [p.shape for p in MainNetInterface.flatten_params(flat, [[2, 2], [3]], unflatten=True)]
            [torch.Size([2, 2]), torch.Size([3])]
        """
        if not unflatten:
            if isinstance(params, Tensor):
                raise ArgumentTypeError("params: a single tensor was given; pass a list of tensors to flatten.")
            return torch.cat([p.reshape(-1) for p in params])
        if not isinstance(params, Tensor):
            raise ArgumentTypeError(f"params: with unflatten=True one vector is expected, not {type(params).__name__}.")
        if param_shapes is None:
            raise ArgumentError("param_shapes: is required with unflatten=True; pass the shapes to cut into.")
        if params.dim() != 1 or params.numel() != num_weights(param_shapes):
            raise ArgumentError(
                f"params: has shape {tuple(params.shape)}, but param_shapes ask for [{num_weights(param_shapes)}]."
            )
        parts = params.split([math.prod(shape) for shape in param_shapes])
        return [part.view(tuple(shape)) for part, shape in zip(parts, param_shapes, strict=True)]

    def overwrite_internal_params(self, new_params: Sequence[Tensor]) -> None:
        """Copy values into the internal parameters, in place.

        Args:
            new_params: One tensor per entry of :attr:`internal_params`, of the same shape.

        Raises:
            ArgumentError: If number or shapes differ.
        """
        internal = self.internal_params
        num = 0 if internal is None else len(internal)
        if len(new_params) != num:
            raise ArgumentError(f"new_params: {len(new_params)} tensors were given, the network keeps {num}.")
        pairs = list(zip(internal or [], new_params, strict=True))
        for i, (param, new) in enumerate(pairs):
            if param.shape != new.shape:
                raise ArgumentError(
                    f"new_params[{i}]: has shape {tuple(new.shape)}, the parameter has {tuple(param.shape)}."
                )
        with torch.no_grad():
            for param, new in pairs:
                param.copy_(new)

    @torch.no_grad()
    def custom_init(self, normal_init: bool = False, normal_std: float = 0.02, zero_bias: bool = True) -> None:
        """Initialise the internal weights: Xavier uniform, or normal with zero mean.

        Weights and biases are those of :attr:`layer_weight_tensors` and :attr:`layer_bias_vectors`, or, if these are
        empty, those with such a name in :attr:`param_shapes_meta`. Batch norm becomes the identity, and context
        modulation starts as its layers do. Other tensors (embeddings) keep their values.

        Args:
            normal_init: Draw weights from ``N(0, normal_std^2)``.
            normal_std: That standard deviation.
            zero_bias: Set bias vectors to 0; otherwise they keep their values.

        Raises:
            UsageError: If the network keeps parameters, but neither lists nor names say what any of them is.
        """
        weights: Any = list(self.layer_weight_tensors) or _kept_named(self, "weight")
        biases: Any = list(self.layer_bias_vectors) or _kept_named(self, "bias")
        constants = {"bn_scale": 1.0, "bn_shift": 0.0, "cm_scale": 1.0, "cm_shift": 0.0}
        named = [(param, value) for name, value in constants.items() for param in _kept_named(self, name)]
        norms: Any = self.batchnorm_layers or ()
        # Scale, then shift.
        named += [(p, 1.0 - i) for layer in norms for i, p in enumerate(getattr(layer, "weights", None) or ())]
        mods = [layer for layer in cast("Any", self.context_mod_layers) or () if hasattr(layer, "reset_parameters")]
        known = [*weights, *(bias for bias in biases if bias is not None), *named, *mods]
        if not known and any(record.internal and record.name is None for record in self.param_table):
            raise UsageError(
                f"custom_init: {type(self).__name__} keeps {self.num_internal_params} weights and does not say what "
                "they are, so nothing would be initialised; fill `_layer_weight_tensors` and `_layer_bias_vectors`, or "
                "set `_param_shapes_meta` with names."
            )
        for weight in weights:
            if normal_init or weight.dim() < 2:
                nn.init.normal_(weight, mean=0.0, std=normal_std)
            else:
                nn.init.xavier_uniform_(weight)
        for bias in biases:
            if zero_bias and bias is not None:
                bias.zero_()
        for param, value in named:
            param.fill_(value)
        for layer in mods:
            layer.reset_parameters()  # with an offset, a gain of 0 does nothing

    def get_output_weight_mask(
        self, out_inds: Sequence[int] | None = None, device: torch.device | str | int | None = None
    ) -> list[Tensor | None]:
        """Select the weights of some output neurons.

        Args:
            out_inds: Indices of the output neurons; all by default.
            device: Where to create the masks.

        Returns:
            One entry per tensor of :attr:`param_shapes`: a boolean mask of that shape for the weight matrix and bias
            vector of the fully-connected output layer, None (the tensor is not masked) for every other.

        Raises:
            UsageError: If the output layer cannot be masked (:attr:`has_fc_out`, :attr:`mask_fc_out`), or nothing
                tells which tensors are its.
            ArgumentError: If an index is out of range.
        """
        if not (self.has_fc_out and self.mask_fc_out):
            raise UsageError(
                f"{type(self).__name__} has no fully-connected output layer whose neurons can be masked "
                f"(has_fc_out={self.has_fc_out}, mask_fc_out={self.mask_fc_out}); a class that has one sets "
                "`_has_fc_out` and `_mask_fc_out`."
            )
        table, chosen = self.param_table, output_refs(self)
        masks: list[Tensor | None] = [None] * len(table)
        num_out = table[chosen[0]].shape[0]
        inds = list(range(num_out)) if out_inds is None else [int(i) for i in out_inds]
        if any(not 0 <= i < num_out for i in inds):
            raise ArgumentError(f"out_inds: {inds} has entries outside 0..{num_out - 1}, the output neurons.")
        for i in chosen:
            mask = torch.zeros(table[i].shape, dtype=torch.bool, device=device)
            mask[inds] = True
            masks[i] = mask
        return masks


def _own_shapes(net: object, attribute: str, own: Any) -> list[list[int]]:
    """The list itself, to which a constructor may append; a copy if its entries are no lists of ints."""
    if isinstance(own, list) and all(isinstance(shape, list) for shape in own):  # pyright: ignore[reportUnknownVariableType]
        return own  # pyright: ignore[reportUnknownVariableType]
    return check_shapes(net, attribute, own)


def _kept_named(net: MainNetInterface, name: str) -> list[Tensor]:
    """The internal parameters that the table calls so."""
    records = [record for record in net.param_table if record.internal]
    return [param for param, record in zip(kept_params(net), records, strict=True) if record.name == name]
