"""What the target tensors of a hypernetwork are, read off the main network that receives them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bayeshnet.checks import kind_of
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.fans import Target, fan_in_and_out
from bayeshnet.mnets.mnet_interface import MainNetInterface
from bayeshnet.mnets.param_table import ParamRecord, records_from_lists
from bayeshnet.typing import Shapes

__all__ = ["describe_targets"]


def describe_targets(target_shapes: Shapes, mnet: MainNetInterface | None = None) -> tuple[Target, ...]:
    """Return what each target is, with its fans.

    Args:
        target_shapes: Shapes of the targets.
        mnet: The network that receives them, any that has the lists of the interface. Its ``param_shapes`` or its
            ``hyper_shapes_learned`` are the targets.
            Without it (or if it names no parameter) tensors of two and more dimensions are weights, all others biases,
            each of the weight just before it.

    Raises:
        ArgumentTypeError: If ``mnet`` has no such lists.
        ArgumentError: If its shapes are not the targets.

    Example:
        >>> [(t.name, t.fan_in, t.has_bias) for t in describe_targets([[10, 5], [10], [3, 10]])]
        [('weight', 5, True), ('bias', 5, False), ('weight', 10, False)]
    """
    shapes = [tuple(int(size) for size in shape) for shape in target_shapes]
    records = [ParamRecord(shape, "weight" if len(shape) > 1 else "bias") for shape in shapes]
    table, refs = records, list(range(len(records)))
    if mnet is not None:
        known, known_refs = _match(shapes, mnet)
        if any(record.name is not None for record in known):
            table, refs = known, known_refs
    weight_of = {ref: _weight_of_bias(table, refs, i) for i, ref in enumerate(refs) if table[ref].name == "bias"}
    return tuple(_describe(table, ref, weight_of) for ref in refs)


def _match(shapes: Sequence[tuple[int, ...]], mnet: Any) -> tuple[list[ParamRecord], list[int]]:
    """The table of the main network, and where in it the targets are."""
    table, learned = _table_of(mnet)
    for refs in (list(range(len(table))), learned):
        if [table[ref].shape for ref in refs] == list(shapes):
            return table, refs
    raise ArgumentError(
        f"mnet: its shapes are not those produced. The hypernetwork makes {[list(shape) for shape in shapes]}; the "
        f"main network has param_shapes {mnet.param_shapes} and hyper_shapes_learned {mnet.hyper_shapes_learned}. "
        "Pass the network that receives the weights, or leave mnet out."
    )


def _table_of(mnet: Any) -> tuple[list[ParamRecord], list[int]]:
    """Records of all parameters, and which of them are learned by a hypernetwork, of any network with the lists."""
    if isinstance(mnet, MainNetInterface):
        return list(mnet.param_table), mnet.hyper_shapes_learned_ref or []
    if not all(hasattr(mnet, name) for name in ("param_shapes", "hyper_shapes_learned")):
        raise ArgumentTypeError(
            f"mnet: is {kind_of(mnet)}; pass a network with the lists of MainNetInterface (`param_shapes`, "
            "`hyper_shapes_learned`, `param_shapes_meta`); ModuleMainNet makes one of any nn.Module."
        )
    shapes = mnet.param_shapes
    refs: Any = _optional(mnet, "hyper_shapes_learned_ref")
    if refs is None:  # those of all shapes, if these are what is learned, or else unknown
        refs = range(len(shapes)) if mnet.hyper_shapes_learned == shapes else ()
    refs = [ref for ref in refs if ref >= 0]
    meta: Any = _optional(mnet, "param_shapes_meta")
    if meta is not None and len(meta) != len(shapes):
        raise ArgumentError(
            f"mnet: its param_shapes_meta has {len(meta)} entries for {len(shapes)} param_shapes; one for each is due."
        )
    return list(records_from_lists(shapes, meta, refs, ())), refs


def _optional(mnet: Any, name: str) -> Any:
    """A list that a network need not have; the reference raises an error then."""
    try:
        return getattr(mnet, name, None)
    except NotImplementedError:
        return None


def _weight_of_bias(table: Sequence[ParamRecord], refs: Sequence[int], i: int) -> int | None:
    """Where in the table the weight is that the bias ``refs[i]`` belongs to; None if there is none."""
    ref, layer = refs[i], table[refs[i]].layer
    if layer < 0:
        before = refs[i - 1] if i else None
        return before if before is not None and table[before].name == "weight" else None
    same = [j for j, record in enumerate(table) if record.name == "weight" and record.layer == layer]
    # A layer may have several weights (recurrent and attention layers): a bias follows its own.
    return max((j for j in same if j < ref), default=min(same, default=None))


def _describe(table: Sequence[ParamRecord], ref: int, weight_of: Mapping[int, int | None]) -> Target:
    record = table[ref]
    if record.name not in ("weight", "bias"):
        return Target(record.shape, record.name)
    of = weight_of.get(ref, ref)
    if of is None:
        size = max(1, record.numel)
        return Target(record.shape, record.name, size, size)
    shape = [max(1, size) for size in table[of].shape]  # an empty tensor has no fans, and needs none
    fan_in, fan_out = fan_in_and_out(shape, transposed=bool(table[of].extra.get("transposed", False)))
    return Target(record.shape, record.name, fan_in, fan_out, has_bias=ref in weight_of.values())
