"""Hypernetworks made of other hypernetworks and of tensors of their own."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from bayeshnet.errors import ArgumentError
from bayeshnet.hnets.base import HyperNet
from bayeshnet.hnets.hnet_interface import HyperNetInterface
from bayeshnet.layers.batch_norm import BatchNormLayer
from bayeshnet.layers.context_mod import ContextModLayer
from bayeshnet.mnets.own_lists import kept_params
from bayeshnet.mnets.param_table import ParamRecord
from bayeshnet.typing import CondId, Shapes

__all__ = ["CompositeHyperNet"]


class CompositeHyperNet(HyperNet):
    """Base of the chunked, structured and container networks.

    Its table is the tables of the parts, one after the other, and then the records of its own tensors (chunk
    embeddings, plain weights). Each parameter is registered once: in its part, or here.

    Example:
        >>> from bayeshnet.hnets import ChunkedHMLP
        >>> isinstance(ChunkedHMLP([[7]], 4, chunk_emb_size=2), CompositeHyperNet)
        True
    """

    _parts: nn.ModuleList
    _own: nn.ParameterList | None
    _slices: tuple[slice, ...]

    def _compose(
        self,
        parts: Sequence[HyperNetInterface],
        part_records: Sequence[Sequence[ParamRecord]],
        own_records: Sequence[ParamRecord],
        target_shapes: Shapes,
        **description: Any,
    ) -> None:
        """Set parts and table; in place of :meth:`_describe` and :meth:`_create_params`.

        Args:
            parts: The hypernetworks, modules all of them.
            part_records: The records of each in the table of this network.
            own_records: The records of the other tensors. Those that are kept start at N(0, 1).
            target_shapes: What is produced.
            description: Further arguments of :meth:`_describe`.
        """
        self._parts = nn.ModuleList(cast("Sequence[nn.Module]", parts))
        kept = [nn.Parameter(torch.randn(record.shape)) for record in own_records if record.internal]
        self._own = nn.ParameterList(kept) if kept else None
        ends = [0]
        for records in part_records:
            ends.append(ends[-1] + len(records))
        self._slices = tuple(slice(start, end) for start, end in pairwise(ends))
        table = [record for records in part_records for record in records] + list(own_records)
        self._describe(table, target_shapes, **description)

    def _own_weights(self, weights: Sequence[Tensor]) -> Sequence[Tensor]:
        """The entries of a complete list of weights that belong to the tensors of this network itself."""
        return weights[self._slices[-1].stop if self._slices else 0 :]

    def _one_cond_id(self, cond_id: CondId) -> int:
        ids = self._parse_cond_id(cond_id)
        if len(ids) != 1:
            raise ArgumentError(f"cond_id: has {len(ids)} conditions; pass one.")
        return ids[0]

    def _internal_list(self) -> list[Tensor]:
        tensors: list[Tensor] = []
        for part in self._parts:
            tensors += part._internal_list() if isinstance(part, HyperNet) else kept_params(cast("Any", part))
        # nn.ParameterList looks each entry up by name; reading its dict is ten times faster.
        return tensors if self._own is None else [*tensors, *self._own.__dict__["_parameters"].values()]

    @property
    def internal_params(self) -> nn.ParameterList | None:
        """The parameters that the network keeps, in table order; None if it keeps none."""
        tensors = self._internal_list()
        return nn.ParameterList(tensors) if tensors else None

    @property
    def has_bias(self) -> bool:
        """Whether all parts have bias vectors."""
        parts = cast("Sequence[HyperNetInterface]", self._parts)
        return len(parts) > 0 and all(part.has_bias for part in parts)

    @property
    def batchnorm_layers(self) -> Sequence[BatchNormLayer] | nn.ModuleList | None:
        """The batch-norm layers of all parts, or None."""
        parts = cast("Sequence[HyperNetInterface]", self._parts)
        return [layer for part in parts for layer in cast("Sequence[Any]", part.batchnorm_layers or ())] or None

    @property
    def context_mod_layers(self) -> Sequence[ContextModLayer] | nn.ModuleList | None:
        """The context-modulation layers of all parts, or None."""
        parts = cast("Sequence[HyperNetInterface]", self._parts)
        return [layer for part in parts for layer in cast("Sequence[Any]", part.context_mod_layers or ())] or None

    def _own_named(self, name: str) -> list[Tensor]:
        """The tensors of this network itself that have this name and are kept."""
        start = self._slices[-1].stop if self._slices else 0
        records = [record for record in self._layout.records[start:] if record.internal]
        return [param for param, record in zip(self._own or (), records, strict=True) if record.name == name]

    # Parts that keep lists themselves need not have names for what is in them.

    @property
    def layer_weight_tensors(self) -> list[Tensor]:
        """The weight tensors of all parts, and the plain ones."""
        parts = cast("Sequence[HyperNetInterface]", self._parts)
        return [tensor for part in parts for tensor in part.layer_weight_tensors] + self._own_named("weight")

    @property
    def layer_bias_vectors(self) -> list[Tensor]:
        """The bias vectors of all parts, and the plain ones."""
        parts = cast("Sequence[HyperNetInterface]", self._parts)
        return [tensor for part in parts for tensor in part.layer_bias_vectors] + self._own_named("bias")
