"""Reading the argument ``weights`` of a hypernetwork: what it keeps, completed by what it is given."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard, cast

from torch import Tensor

from bayeshnet.checks import kind_of
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.mnets.param_table import ParamRecord, param_names
from bayeshnet.typing import WeightsArg

__all__ = ["WeightLayout", "check_tensors", "merge_weights", "missing_weights_error"]


@dataclass(frozen=True, slots=True)
class WeightLayout:
    """Which entries of a parameter table are what: computed once, so that ``forward`` does not.

    Attributes:
        records: The table.
        shapes: Shape of each record.
        internal, external, uncond, cond: Indices of the records of that kind.

    Example:
        >>> WeightLayout.of([ParamRecord((3,), "embedding", conditional=True), ParamRecord((2,), "bias")]).cond
        (0,)
    """

    records: tuple[ParamRecord, ...]
    shapes: tuple[tuple[int, ...], ...]
    internal: tuple[int, ...]
    external: tuple[int, ...]
    uncond: tuple[int, ...]
    cond: tuple[int, ...]

    @classmethod
    def of(cls, records: Sequence[ParamRecord]) -> WeightLayout:
        """Return the layout of a table.

        Example:
            >>> WeightLayout.of([ParamRecord((3,), "bias"), ParamRecord((2,), "weight", internal=False)]).external
            (1,)
        """
        kinds = [(record.internal, record.conditional) for record in records]
        return cls(
            tuple(records),
            tuple(record.shape for record in records),
            tuple(i for i, (internal, _) in enumerate(kinds) if internal),
            tuple(i for i, (internal, _) in enumerate(kinds) if not internal),
            tuple(i for i, (_, conditional) in enumerate(kinds) if not conditional),
            tuple(i for i, (_, conditional) in enumerate(kinds) if conditional),
        )


def check_tensors(
    name: str, tensors: object, layout: WeightLayout, refs: Sequence[int]
) -> TypeGuard[Collection[Tensor]]:
    """Raise unless external tensors have the shapes of these records.

    Raises:
        ArgumentTypeError: If an entry is not a tensor.
        ArgumentError: If an entry has another shape.

    Example:
        >>> check_tensors("weights", [Tensor([1.0])], WeightLayout.of([ParamRecord((1,), "bias")]), [0])
        True
    """
    for i, (tensor, ref) in enumerate(zip(cast("Collection[object]", tensors), refs, strict=True)):
        if not isinstance(tensor, Tensor):
            raise ArgumentTypeError(f"{name}[{i}]: is {kind_of(tensor)}; pass a tensor.")
        if tensor.shape != layout.shapes[ref]:
            raise ArgumentError(
                f"{name}[{i}]: has shape {list(tensor.shape)}; pass the tensor {_describe(layout, [ref])}."
            )
    return True


def merge_weights(
    weights: WeightsArg | None, internal: Sequence[Tensor], layout: WeightLayout, extra_keys: Sequence[str] = ()
) -> list[Tensor | None]:
    """Complete external weights by internal ones; the argument is not modified.

    Args:
        weights: The argument ``weights`` of ``forward``.
        internal: The internal parameters.
        layout: The table.
        extra_keys: Keys of a dict that the class reads itself.

    Returns:
        One tensor per record, None where the network keeps none and none was given.

    Raises:
        ArgumentTypeError: If it is neither a list of tensors nor a dict of such lists.
        ArgumentError: If lengths, keys or shapes are wrong.

    Example:
        >>> layout = WeightLayout.of([ParamRecord((1,), "weight"), ParamRecord((1,), "bias", internal=False)])
        >>> merge_weights([Tensor([2.0])], [Tensor([1.0])], layout)
        [tensor([1.]), tensor([2.])]
    """
    merged: list[Tensor | None] = [None] * len(layout.records)
    for ref, param in zip(layout.internal, internal, strict=True):
        merged[ref] = param
    if weights is None:
        return merged
    if isinstance(weights, Mapping):
        groups = _groups_of_dict(weights, layout, extra_keys)
    elif _is_collection(weights):
        groups = [("weights", weights, _refs_of_list(len(weights), layout))]
    else:
        raise ArgumentTypeError(f"weights: is {kind_of(weights)}; pass a list of tensors or a dict.")
    for name, tensors, refs in groups:
        if check_tensors(name, tensors, layout, refs):
            for ref, tensor in zip(refs, tensors, strict=True):
                merged[ref] = tensor
    return merged


def _groups_of_dict(
    weights: Mapping[str, Any], layout: WeightLayout, extra_keys: Sequence[str]
) -> list[tuple[str, Any, tuple[int, ...]]]:
    """The complete lists of a dict, with their names and the records that they are for."""
    keys = {"uncond_weights": layout.uncond, "cond_weights": layout.cond}
    accepted = [*keys, *extra_keys]
    if not weights or not set(weights) <= set(accepted):
        raise ArgumentError(
            f"weights: is a dict with the keys {list(weights)}; pass at least one of {accepted} and nothing else."
        )
    groups: list[tuple[str, Any, tuple[int, ...]]] = []
    for key, refs in keys.items():
        if key not in weights:
            continue
        tensors, name = weights[key], f"weights[{key!r}]"
        if not _is_collection(tensors):
            raise ArgumentTypeError(f"{name}: is {kind_of(tensors)}; pass a list of tensors.")
        if len(tensors) != len(refs):
            complete = f" ({_describe(layout, refs)})" if refs else ""
            raise ArgumentError(f"{name}: has {len(tensors)} tensors; pass the complete list of {len(refs)}{complete}.")
        groups.append((name, tensors, refs))
    return groups


def _refs_of_list(length: int, layout: WeightLayout) -> tuple[int, ...]:
    """The records that a list of this length is for."""
    if length == len(layout.records):
        return tuple(range(length))
    if layout.external and length == len(layout.external):
        return layout.external
    accepted = f"{len(layout.records)} tensors (param_shapes)"
    if layout.external:
        accepted += f" or {len(layout.external)} (hyper_shapes_learned: {_describe(layout, layout.external)})"
    raise ArgumentError(f"weights: is a list of {length} tensors; pass a list of {accepted}.")


def missing_weights_error(layout: WeightLayout, refs: Sequence[int]) -> ArgumentError:
    """Return the error that names the external weights that were left out.

    Args:
        layout: The table.
        refs: Indices of the missing records.

    Example:
        >>> layout = WeightLayout.of([ParamRecord((3,), "bias", 1, internal=False)])
        >>> print(str(missing_weights_error(layout, [0]))[:51])
        weights: the hypernetwork does not keep 1.bias [3];
    """
    lacks_uncond = any(not layout.records[ref].conditional for ref in refs)
    lacks_cond = any(layout.records[ref].conditional for ref in refs)
    keys = " and ".join(["weights['uncond_weights']"] * lacks_uncond + ["weights['cond_weights']"] * lacks_cond)
    return ArgumentError(
        f"weights: the hypernetwork does not keep {_describe(layout, refs)}; pass them as {keys}, "
        "or as a list like `hyper_shapes_learned`."
    )


def _is_collection(value: object) -> TypeGuard[Collection[Any]]:
    # An nn.ParameterList is a collection but no Sequence; a tensor would be cut along its first dimension.
    return hasattr(value, "__len__") and hasattr(value, "__iter__") and not isinstance(value, (Tensor, str, Mapping))


def _describe(layout: WeightLayout, refs: Sequence[int], limit: int = 8) -> str:
    names = param_names(layout.records)
    parts = [f"{names[ref]} {list(layout.shapes[ref])}" for ref in refs[:limit]]
    return ", ".join(parts) + (f" and {len(refs) - limit} more" if len(refs) > limit else "")
