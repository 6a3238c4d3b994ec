"""The table of parameters: the one description of what a network receives or keeps.

Every list of :class:`~bayeshnet.mnets.mnet_interface.MainNetInterface` (shapes, meta data, references) is computed from
a tuple of records, so that no two lists can disagree.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bayeshnet.fans import PARAM_NAMES

__all__ = [
    "PARAM_NAMES",
    "ParamRecord",
    "num_weights",
    "number_conditions",
    "param_names",
    "records_from_lists",
    "split_sizes",
]


@dataclass(frozen=True, slots=True)
class ParamRecord:
    """One parameter tensor of a network.

    Attributes:
        shape: Its shape; empty for a scalar.
        name: What it is, one of :data:`~bayeshnet.fans.PARAM_NAMES`.
        layer: The layer it belongs to, -1 if unknown.
        conditional: Whether it is specific to one condition (an embedding of a task, say).
        internal: Whether the network keeps it; if not, it has to be passed to ``forward``.
        extra: Further keys of its entry in ``param_shapes_meta``.
        condition: Which condition it is specific to, -1 if it is not or that is unknown.

    Example:
        >>> ParamRecord((5, 3), "weight", 1).numel
        15
    """

    shape: tuple[int, ...]
    name: str | None = None
    layer: int = -1
    conditional: bool = False
    internal: bool = True
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])
    condition: int = -1

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def with_extra(self, **extra: Any) -> ParamRecord:
        """The same record with further meta keys, which win over those it had."""
        return replace(self, extra={**self.extra, **extra})


def num_weights(shapes: Iterable[Sequence[int]]) -> int:
    """Number of elements of tensors with these shapes.

    Example:
        >>> num_weights([[10, 5], [10], []])
        61
    """
    return sum(math.prod(shape) for shape in shapes)


def split_sizes(shapes: Iterable[Sequence[int]]) -> list[int]:
    """Return the number of elements of each tensor, as ``Tensor.split`` takes them.

    Example:
        >>> split_sizes([[2, 3], [2]])
        [6, 2]
    """
    return [math.prod(shape) for shape in shapes]


def param_names(records: Sequence[ParamRecord]) -> list[str]:
    """A unique dotted name for every record: ``"1.weight"``, or ``"param_3"`` where nothing is known.

    Example:
        >>> param_names([ParamRecord((5, 3), "weight", 1), ParamRecord((5,), "bias", 1), ParamRecord((2,))])
        ['1.weight', '1.bias', 'param_2']
    """
    names: list[str] = []
    taken: set[str] = set()
    for i, record in enumerate(records):
        dotted = record.extra.get("dotted_name")
        if dotted is None:
            known = record.name is not None and record.layer >= 0
            dotted = f"{record.layer}.{record.name}" if known else f"param_{i}"
        unique, count = dotted, 1
        while unique in taken:
            count += 1
            unique = f"{dotted}_{count}"
        taken.add(unique)
        names.append(unique)
    return names


def number_conditions(records: Iterable[ParamRecord], num_conds: int) -> tuple[ParamRecord, ...]:
    """The same table, with the conditions filled in where their order tells: one conditional record for each.

    Example:
        >>> table = number_conditions([ParamRecord((3,), conditional=True)] * 2, 2)
        >>> [record.condition for record in table]
        [0, 1]
    """
    table = list(records)
    conditional = [i for i, record in enumerate(table) if record.conditional]
    if len(conditional) == num_conds and all(table[i].condition < 0 for i in conditional):
        for condition, i in enumerate(conditional):
            table[i] = replace(table[i], condition=condition)
    return tuple(table)


def records_from_lists(
    param_shapes: Sequence[Sequence[int]],
    param_shapes_meta: Sequence[Mapping[str, Any]] | None,
    external_refs: Iterable[int],
    conditional_refs: Iterable[int],
    num_conds: int = 0,
) -> tuple[ParamRecord, ...]:
    """Return the table of a network that keeps parallel lists, as third-party classes do.

    Example:
        >>> table = records_from_lists([[2, 3], [2]], None, external_refs=[0], conditional_refs=())
        >>> [record.internal for record in table]
        [False, True]
    """
    external, conditional = set(external_refs), set(conditional_refs)
    records: list[ParamRecord] = []
    for i, shape in enumerate(param_shapes):
        meta = dict(param_shapes_meta[i]) if param_shapes_meta is not None else {}
        meta.pop("index", None)
        records.append(
            ParamRecord(
                tuple(shape),
                meta.pop("name", None),
                meta.pop("layer", -1),
                conditional=i in conditional,
                internal=i not in external,
                extra=meta,
            )
        )
    return number_conditions(records, num_conds)
