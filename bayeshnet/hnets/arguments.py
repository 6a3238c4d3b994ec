"""Reading the arguments of a hypernetwork's ``forward``: inputs, condition ids, external weights."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, SupportsIndex, TypeGuard, cast

import numpy as np
from torch import Tensor

from bayeshnet.errors import ArgumentError, ArgumentTypeError, BayeshnetWarning
from bayeshnet.mnets.param_table import ParamRecord, param_names
from bayeshnet.typing import Activation, CondId, Shapes, WeightsArg

__all__ = [
    "HyperInputs",
    "WeightLayout",
    "broadcast_size",
    "check_activation",
    "check_input",
    "check_sizes",
    "check_tensors",
    "expand_rows",
    "merge_weights",
    "missing_weights_error",
    "no_embeddings",
    "parse_cond_id",
    "read_target_shapes",
]


@dataclass(frozen=True, slots=True)
class HyperInputs:
    """The arguments of one call, checked.

    Attributes:
        uncond_input: ``[B, n]`` or ``[1, n]``, or None.
        cond_input: ``[B, c]`` or ``[1, c]`` if it was passed as such, or None.
        cond_id: The conditions asked for, one or B, or None.
        batch_size: B.
        weights: The argument as it was passed.
        distilled_params: The argument as it was passed.
        condition: The argument as it was passed.
        cond_id_arg: ``cond_id`` as it was passed.
        extra: What was passed under the keys of ``weights`` that the class reads itself.
    """

    uncond_input: Tensor | None = None
    cond_input: Tensor | None = None
    cond_id: tuple[int, ...] | None = None
    batch_size: int = 1
    weights: WeightsArg | None = None
    distilled_params: Any = None
    condition: Any = None
    cond_id_arg: CondId | None = None
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class WeightLayout:
    """Which entries of a parameter table are what: computed once, so that ``forward`` does not.

    Attributes:
        records: The table.
        shapes: Shape of each record.
        internal, external, uncond, cond: Indices of the records of that kind.
    """

    records: tuple[ParamRecord, ...]
    shapes: tuple[tuple[int, ...], ...]
    internal: tuple[int, ...]
    external: tuple[int, ...]
    uncond: tuple[int, ...]
    cond: tuple[int, ...]

    @classmethod
    def of(cls, records: Sequence[ParamRecord]) -> WeightLayout:
        """Sort the records of a table."""
        kinds = [(record.internal, record.conditional) for record in records]
        return cls(
            tuple(records),
            tuple(record.shape for record in records),
            tuple(i for i, (internal, _) in enumerate(kinds) if internal),
            tuple(i for i, (internal, _) in enumerate(kinds) if not internal),
            tuple(i for i, (_, conditional) in enumerate(kinds) if not conditional),
            tuple(i for i, (_, conditional) in enumerate(kinds) if conditional),
        )


# ---------------------------------------------------------------------- shapes


def read_target_shapes(target_shapes: Shapes, name: str = "target_shapes") -> list[list[int]]:
    """Check the shapes that a hypernetwork is to produce.

    Args:
        target_shapes: The shapes.
        name: Name of the argument, for the messages.

    Raises:
        TypeError: If it is no list of shapes.
        ValueError: If it is empty or a dimension is negative.

    Example:
        >>> read_target_shapes([(3, 2), np.array([3]), []])
        [[3, 2], [3], []]
    """
    try:
        shapes = [[operator.index(size) for size in shape] for shape in target_shapes]
    except TypeError:
        raise ArgumentTypeError(
            f"{name}: a list of shapes such as [[10, 5], [10]] is expected, not {target_shapes!r}."
        ) from None
    if not shapes:
        raise ArgumentError(f"{name}: is empty; give the shape of at least one tensor to produce.")
    if any(size < 0 for shape in shapes for size in shape):
        raise ArgumentError(f"{name}: {shapes} has negative sizes.")
    return shapes


def check_sizes(**sizes: int) -> None:
    """Refuse sizes and numbers that are no ints of at least 0.

    Raises:
        TypeError: If one is no int.
        ValueError: If one is negative.
    """
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, SupportsIndex):
            raise ArgumentTypeError(f"{name}: an int is expected, not {size!r}.")
        if operator.index(size) < 0:
            raise ArgumentError(f"{name}: {size} was given; 0 or more is expected.")


def check_activation(activation_fn: Activation | None) -> Activation | None:
    """Refuse what is no activation function; None is the identity.

    Raises:
        TypeError: If it cannot be called on a tensor.
    """
    if activation_fn is not None and (not callable(activation_fn) or isinstance(activation_fn, type)):
        raise ArgumentTypeError(
            f"activation_fn: a function such as torch.relu, an instance such as nn.ReLU() or None is expected, not "
            f"{activation_fn!r}."
        )
    return activation_fn


def no_embeddings(num_cond_embs: int, *, stacklevel: int = 3) -> int:
    """The number of embeddings where the conditional input has size 0: none, with a warning if several were asked for.

    Every sampler fed with noise alone has the default of one, so that is no mistake.

    Args:
        num_cond_embs: What was asked for.
        stacklevel: Which caller the warning points to; 3 is the one of the constructor that calls this.
    """
    if num_cond_embs > 1:
        warnings.warn(
            f"num_cond_embs: {num_cond_embs} embeddings were asked for, but cond_in_size is 0: none are kept.",
            BayeshnetWarning,
            stacklevel=stacklevel,
        )
    return 0


# ---------------------------------------------------------------------- inputs


def check_input(name: str, value: Tensor, size: int | None, *, dim: int | None = 2) -> None:
    """Refuse an input that is not a floating-point tensor ``[B, size]``.

    Args:
        name: Its name, for the message.
        value: The input.
        size: The size it must have; None for any.
        dim: Number of dimensions; None for any number of leading ones.

    Raises:
        TypeError: If it is no floating-point tensor.
        ValueError: If it has another shape.
    """
    if not isinstance(value, Tensor):
        raise ArgumentTypeError(f"{name}: a tensor is expected, not {type(value).__name__}; see torch.as_tensor.")
    if not value.is_floating_point():
        raise ArgumentTypeError(f"{name}: a floating-point tensor is expected, not {value.dtype}.")
    if dim is not None and value.dim() != dim:
        wanted = "size" if size is None else size
        hint = f"; add the batch dimension, {name}[None]" if value.dim() == 1 else ""
        raise ArgumentError(f"{name}: has shape {list(value.shape)}, but [batch, {wanted}] is expected{hint}.")
    if size == 0:
        raise ArgumentError(f"{name}: was given, but this hypernetwork takes none (its size is 0); leave it out.")
    if size is not None and (value.dim() == 0 or value.shape[-1] != size):
        raise ArgumentError(f"{name}: has shape {list(value.shape)}, but the last dimension has to be {size}.")


def parse_cond_id(cond_id: CondId, num_conds: int | None) -> tuple[int, ...]:
    """Bring a condition id, or one per sample, into the form of a tuple of ints.

    Args:
        cond_id: An int, a list or tuple of ints, or an integer array or tensor with at most one dimension.
        num_conds: Ids have to be below this; None for no bound.

    Raises:
        TypeError: If it is none of these.
        ValueError: If it is empty, has more dimensions, or an id is out of range.

    Example:
        >>> parse_cond_id(np.array([2, 0]), 3), parse_cond_id(1, 3)
        ((2, 0), (1,))
    """
    accepted = "an int, a list of ints or an integer tensor [B]"
    if isinstance(cond_id, (Tensor, np.ndarray)):
        if cond_id.ndim > 1:
            raise ArgumentError(f"cond_id: has shape {list(cond_id.shape)}; {accepted} is expected.")
        listed: Any = cond_id.tolist()
        items: Sequence[Any] = listed if isinstance(listed, list) else [listed]
    elif isinstance(cond_id, Sequence) and not isinstance(cond_id, str):
        items = cond_id
    else:
        items = [cond_id]
    if not all(isinstance(item, SupportsIndex) and not isinstance(item, bool) for item in items):
        raise ArgumentTypeError(f"cond_id: {accepted} is expected, not {cond_id!r}.")
    ids = [operator.index(item) for item in items]
    if not ids:
        raise ArgumentError("cond_id: is empty; give at least one condition.")
    if num_conds is not None:
        for i in ids:
            if not 0 <= i < num_conds:
                known = f"has the conditions 0..{num_conds - 1}" if num_conds else "knows no conditions (num_cond_embs)"
                raise ArgumentError(f"cond_id: {i} does not exist; this hypernetwork {known}.")
    return tuple(ids)


def broadcast_size(sizes: Mapping[str, int]) -> int:
    """The common batch size of several arguments, where a batch of 1 fits every other.

    Args:
        sizes: Batch size of each argument, by name.

    Raises:
        ValueError: If two sizes differ and neither is 1.

    Example:
        >>> broadcast_size({"uncond_input": 1, "cond_id": 3})
        3
    """
    others = set(sizes.values()) - {1}
    if len(others) > 1:
        given = ", ".join(f"{name} has {size}" for name, size in sizes.items())
        raise ArgumentError(f"The batch sizes do not match ({given}); they have to agree or be 1.")
    return others.pop() if others else 1


def expand_rows(tensor: Tensor, batch_size: int) -> Tensor:
    """Repeat the only row of ``[1, ...]``, as a view; other tensors stay as they are."""
    return tensor.expand(batch_size, *tensor.shape[1:]) if tensor.shape[0] != batch_size else tensor


# ---------------------------------------------------------------------- weights


def check_tensors(
    name: str, tensors: object, layout: WeightLayout, refs: Sequence[int]
) -> TypeGuard[Collection[Tensor]]:
    """Refuse external tensors that do not have the shapes of these records.

    Raises:
        TypeError: If an entry is no tensor.
        ValueError: If an entry has another shape.
    """
    for i, (tensor, ref) in enumerate(zip(cast("Collection[object]", tensors), refs, strict=True)):
        if not isinstance(tensor, Tensor):
            raise ArgumentTypeError(f"{name}[{i}]: a tensor is expected, not {type(tensor).__name__}.")
        if tensor.shape != layout.shapes[ref]:
            raise ArgumentError(
                f"{name}[{i}]: has shape {list(tensor.shape)}, but {_describe(layout, [ref])} is expected."
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
        TypeError: If it is neither a list of tensors nor a dict of such lists.
        ValueError: If lengths, keys or shapes are wrong.
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
        raise ArgumentTypeError(f"weights: a list of tensors or a dict is expected, not {type(weights).__name__}.")
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
            f"weights: a dict with the keys {list(weights)} was given; at least one of {accepted} and nothing else is "
            "accepted."
        )
    groups: list[tuple[str, Any, tuple[int, ...]]] = []
    for key, refs in keys.items():
        if key not in weights:
            continue
        tensors, name = weights[key], f"weights[{key!r}]"
        if not _is_collection(tensors):
            raise ArgumentTypeError(f"{name}: a list of tensors is expected, not {type(tensors).__name__}.")
        if len(tensors) != len(refs):
            complete = f" ({_describe(layout, refs)})" if refs else ""
            raise ArgumentError(
                f"{name}: has {len(tensors)} tensors; the complete list of {len(refs)}{complete} is expected."
            )
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
    raise ArgumentError(f"weights: a list of {length} tensors was given; pass a list of {accepted}.")


def missing_weights_error(layout: WeightLayout, refs: Sequence[int]) -> ArgumentError:
    """The error that names the external weights which were left out."""
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
