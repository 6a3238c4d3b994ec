"""What the main networks of this package share: parameters, batch norm and context modulation from one table."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from bayeshnet.checks import kind_of
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.fans import fan_in_and_out
from bayeshnet.layers.batch_norm import BatchNormLayer
from bayeshnet.layers.context_mod import ContextModLayer
from bayeshnet.mnets.mnet_interface import MainNetInterface
from bayeshnet.mnets.param_table import ParamRecord

__all__ = ["MainNet", "NetCall"]

_MOD_NAMES = ("cm_scale", "cm_shift")


@dataclass(frozen=True, slots=True)
class NetCall:
    """The parsed arguments of one call of a network.

    Attributes:
        weights: The tensors that are no gains and shifts, in table order.
        own_weights: Whether they are the internal ones.
        mods: Gains and shifts in table order; None for those of the layers themselves.
        mod_ckpt: Checkpoint of the context-modulation layers.
        statistics: Mean and variance for each batch-norm layer, or None for those that the layers keep.
        stats_id: Which of the sets that the layers keep.

    Example:
        >>> NetCall([torch.ones(2, 3)], True, [], None, [], None).own_weights
        True
    """

    weights: list[Tensor]
    own_weights: bool
    mods: Sequence[Tensor] | None
    mod_ckpt: int | None
    statistics: Sequence[Tensor] | None
    stats_id: int | None


class MainNet(nn.Module, MainNetInterface):
    """Base of the main networks of this package.

    A subclass calls :meth:`_build` with its table (gains and shifts first, then everything else), and in its
    ``forward`` :meth:`_parse_call`, :meth:`_modulate` and :meth:`_normalise`.

    Example:
        >>> from bayeshnet.mnets import MLP
        >>> isinstance(MLP(3, 1, (4,), verbose=False), MainNet)
        True
    """

    def __init__(self) -> None:
        nn.Module.__init__(self)
        MainNetInterface.__init__(self)

    # ------------------------------------------------------------------ construction

    def _build(
        self,
        records: Sequence[ParamRecord],
        *,
        no_weights: bool,
        mod_no_weights: bool,
        mod_options: Mapping[str, bool],
        track_stats: bool,
        distill_stats: bool,
    ) -> None:
        """Set the table and create parameters, context-modulation and batch-norm layers from it."""
        self._records = tuple(
            replace(r, internal=not (mod_no_weights if r.name in _MOD_NAMES else no_weights)) for r in records
        )
        scales = [record.shape for record in records if record.name == "cm_scale"]
        self._num_mods = 2 * len(scales)
        if scales:
            # Gains and shifts belong to their layers, which make checkpoints of them. They are registered first, so
            # that registration follows the table.
            self._context_mod_layers = nn.ModuleList(
                ContextModLayer(shape, no_weights=mod_no_weights, **mod_options) for shape in scales
            )
        if not no_weights:
            shapes = [record.shape for record in records[self._num_mods :]]
            self._internal_params = nn.ParameterList(nn.Parameter(torch.empty(shape)) for shape in shapes)
            self._reset_parameters()
        widths = [record.shape[0] for record in records if record.name == "bn_scale"]
        if widths:
            # Scales and shifts are in the table and not in the layers, so that they may be external.
            self._batchnorm_layers = nn.ModuleList(
                BatchNormLayer(width, affine=False, track_running_stats=track_stats) for width in widths
            )
            if distill_stats:
                self._hyper_shapes_distilled = [[width] for width in widths for _ in range(2)]

    def _reset_parameters(self) -> None:
        """PyTorch's default for linear and convolutional layers; batch norm the identity."""
        records, bound = self.param_table[self._num_mods :], 1.0
        for record, param in zip(records, super().internal_params or (), strict=True):
            if record.name == "weight":
                nn.init.kaiming_uniform_(param, a=math.sqrt(5))
                bound = 1 / math.sqrt(fan_in_and_out(record.shape)[0])
            elif record.name == "bias":
                nn.init.uniform_(param, -bound, bound)
            else:
                nn.init.constant_(param, 1.0 if record.name == "bn_scale" else 0.0)

    def _init_from(self, init_weights: Sequence[Tensor]) -> None:
        own = [record for record in self.param_table if record.internal]
        shapes = [list(weight.shape) for weight in init_weights]
        if not own or shapes != [list(record.shape) for record in own]:
            raise ArgumentError(
                f"init_weights: have shapes {shapes}; the internal parameters have {[list(r.shape) for r in own]}."
            )
        self.overwrite_internal_params(init_weights)

    # ------------------------------------------------------------------ parameters

    def _mod_layers(self) -> list[ContextModLayer]:
        layers: Any = self.context_mod_layers
        return [] if layers is None else list(layers)

    def _own_mods(self) -> list[Tensor]:
        return [param for layer in self._mod_layers() for param in layer.weights or ()]

    @property
    def internal_params(self) -> nn.ParameterList | None:
        """The parameters that the network keeps, in table order; None if it keeps none."""
        mods = self._own_mods()
        rest = super().internal_params
        return nn.ParameterList([*mods, *(rest or ())]) if mods else rest

    def distillation_targets(self) -> list[Tensor] | None:
        """The newest running statistics (mean and variance per batch-norm layer) with ``distill_bn_stats``, or None."""
        if self._hyper_shapes_distilled is None:
            return None
        layers: Any = self.batchnorm_layers
        return [statistic for layer in layers for statistic in layer.get_stats()]

    # ------------------------------------------------------------------ arguments of forward

    def _parse_call(self, weights: Any, distilled_params: Sequence[Tensor] | None, condition: Any) -> NetCall:
        mods, rest = self._split_weights(weights)
        stats_id, mod_ckpt = self._parse_condition(condition)
        if mod_ckpt is not None and mods is not None:
            raise ArgumentError(
                "condition: selects checkpointed gains and shifts ('cmod_ckpt_id'), but weights has some too; pass one "
                "of the two."
            )
        if distilled_params is not None:
            shapes = [list(p.shape) for p in distilled_params]
            if self._hyper_shapes_distilled is None:
                raise ArgumentError(
                    "distilled_params: this network has no statistics to distil; build it with use_batch_norm=True and "
                    "distill_bn_stats=True."
                )
            if shapes != self._hyper_shapes_distilled:
                raise ArgumentError(f"distilled_params: have shapes {shapes}; expected {self._hyper_shapes_distilled}.")
        own = rest is None
        rest = list(super().internal_params or ()) if rest is None else rest
        return NetCall(rest, own, mods, mod_ckpt, distilled_params, stats_id)

    def _split_weights(self, weights: Any) -> tuple[Sequence[Tensor] | None, list[Tensor] | None]:
        """Gains and shifts, and the other tensors; None where the network's own are to be used."""
        mods: Sequence[Tensor] | None = None
        rest: Sequence[Tensor] | None = None
        table, num = self.param_table, self._num_mods
        if isinstance(weights, Mapping):
            if not weights or not set(weights) <= {"internal_weights", "mod_weights"}:
                raise ArgumentError(
                    f"weights: has the keys {sorted(map(str, weights))}; accepted are 'internal_weights', "
                    "'mod_weights' or both."
                )
            mods, rest = weights.get("mod_weights"), weights.get("internal_weights")
            if mods and not num:
                raise ArgumentError("weights['mod_weights']: this network has no context modulation; leave it out.")
        elif isinstance(weights, Tensor):
            raise ArgumentTypeError(
                "weights: is one tensor; pass a list of tensors, such as flatten_params(w, net.param_shapes, "
                "unflatten=True), or use batched_forward for a matrix of weight samples."
            )
        elif weights is not None:
            given = list(weights)
            only_mods_own = num > 0 and table[0].internal and not table[-1].internal
            if len(given) == len(table):
                mods, rest = given[:num], given[num:]
            elif only_mods_own and len(given) == len(table) - num:
                rest = given
            elif num and len(given) == num:
                mods = given
            else:
                accepted = f"{len(table)} (param_shapes)" + (f" or {num} (gains and shifts)" if num else "")
                raise ArgumentError(f"weights: {len(given)} tensors were given; accepted are {accepted}.")
        self._check_weights(mods if num else None, rest)
        return (mods if num else None), (None if rest is None else list(rest))

    def _check_weights(self, mods: Sequence[Tensor] | None, rest: Sequence[Tensor] | None) -> None:
        table, num = self.param_table, self._num_mods
        for key, tensors, records in (("mod_weights", mods, table[:num]), ("internal_weights", rest, table[num:])):
            shapes = [list(record.shape) for record in records]
            if tensors is None:
                if records and not records[0].internal:
                    raise ArgumentError(
                        f"weights: the network was built without {'gains and shifts' if key[0] == 'm' else 'weights'} "
                        f"of its own; pass tensors of the shapes {shapes}, as a list or as {{{key!r}: [...]}}."
                    )
            elif len(tensors) != len(records):
                raise ArgumentError(f"weights[{key!r}]: {len(tensors)} tensors were given; expected {shapes}.")
            elif key == "internal_weights":  # gains and shifts may differ per sample: their layers look at them
                for i, (tensor, record) in enumerate(zip(tensors, records, strict=True)):
                    if tuple(tensor.shape) != record.shape:
                        raise ArgumentError(
                            f"weights: {record.name} {i} of {shapes} has shape {list(tensor.shape)}, expected "
                            f"{list(record.shape)}."
                        )

    def _parse_condition(self, condition: Any) -> tuple[int | None, int | None]:
        """Set of batch-norm statistics and checkpoint of context-modulation weights."""
        if not isinstance(condition, Mapping):
            try:
                return (None if condition is None else operator.index(condition)), None
            except TypeError:
                raise ArgumentTypeError(
                    f"condition: is {kind_of(condition)}; pass the number of a set of batch-norm statistics, or a dict."
                ) from None
        if not condition or not set(condition) <= {"bn_stats_id", "cmod_ckpt_id"}:
            raise ArgumentError(
                f"condition: has the keys {sorted(map(str, condition))}; accepted are 'bn_stats_id', 'cmod_ckpt_id' or "
                "both."
            )
        mod_ckpt = condition.get("cmod_ckpt_id")
        if mod_ckpt is not None and not self._num_mods:
            raise ArgumentError("condition: 'cmod_ckpt_id' needs a network with context modulation (use_context_mod).")
        return condition.get("bn_stats_id"), mod_ckpt

    # ------------------------------------------------------------------ layers

    def _modulate(self, call: NetCall, i: int, x: Tensor) -> Tensor:
        """Apply the i-th context-modulation layer."""
        layers: Any = self.context_mod_layers
        weights = None if call.mods is None else call.mods[2 * i : 2 * i + 2]
        return layers[i](x, weights=weights, ckpt_id=call.mod_ckpt)

    def _normalise(self, call: NetCall, i: int, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Apply the i-th batch-norm layer."""
        layers: Any = self.batchnorm_layers
        if call.statistics is not None:
            mean, var = call.statistics[2 * i : 2 * i + 2]
            return layers[i](x, mean, var, weight=scale, bias=shift)
        stats_id = call.stats_id
        if stats_id is None and layers[i].num_stats > 1:
            stats_id = layers[i].num_stats - 1  # the newest, the one that is being trained
        return layers[i](x, weight=scale, bias=shift, stats_id=stats_id)
