"""Reading the arguments of a hypernetwork: shapes and sizes, inputs, condition ids."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, SupportsIndex

import numpy as np
from torch import Tensor

from bayeshnet.checks import kind_of, shown
from bayeshnet.errors import ArgumentError, ArgumentTypeError, BayeshnetWarning
from bayeshnet.typing import Activation, CondId, Shapes, WeightsArg

__all__ = [
    "HyperInputs",
    "broadcast_size",
    "check_activation",
    "check_input",
    "check_sizes",
    "expand_rows",
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

    Example:
        >>> HyperInputs(cond_id=(0, 2), batch_size=2).cond_id
        (0, 2)
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


# ---------------------------------------------------------------------- shapes


def read_target_shapes(target_shapes: Shapes, name: str = "target_shapes") -> list[list[int]]:
    """Check the shapes that a hypernetwork is to produce.

    Args:
        target_shapes: The shapes.
        name: Name of the argument, for the messages.

    Raises:
        ArgumentTypeError: If it is not a list of shapes.
        ArgumentError: If it is empty or a dimension is negative.

    Example:
        >>> read_target_shapes([(3, 2), np.array([3]), []])
        [[3, 2], [3], []]
    """
    try:
        shapes = [[operator.index(size) for size in shape] for shape in target_shapes]
    except TypeError:
        raise ArgumentTypeError(
            f"{name}: is {shown(target_shapes)}; pass a list of shapes such as [[10, 5], [10]]."
        ) from None
    if not shapes:
        raise ArgumentError(f"{name}: is empty; pass the shape of at least one tensor to produce.")
    if any(size < 0 for shape in shapes for size in shape):
        raise ArgumentError(f"{name}: is {shapes}, with negative sizes; pass sizes of 0 or more.")
    return shapes


def check_sizes(**sizes: int) -> None:
    """Raise unless all sizes are ints >= 0.

    Raises:
        ArgumentTypeError: If one is not an int.
        ArgumentError: If one is negative.

    Example:
        >>> check_sizes(cond_in_size=2.5)
        Traceback (most recent call last):
        ...
        bayeshnet.errors.ArgumentTypeError: cond_in_size: is 2.5, a float; pass an int.
    """
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, SupportsIndex):
            raise ArgumentTypeError(f"{name}: is {shown(size)}; pass an int.")
        if operator.index(size) < 0:
            raise ArgumentError(f"{name}: is {size}; pass 0 or more.")


def check_activation(activation_fn: Activation | None) -> Activation | None:
    """Return the activation function; raise if it cannot be one. None is the identity.

    Raises:
        ArgumentTypeError: If it cannot be called on a tensor.

    Example:
        >>> check_activation(None) is None
        True
    """
    if activation_fn is not None and (not callable(activation_fn) or isinstance(activation_fn, type)):
        raise ArgumentTypeError(
            f"activation_fn: is {shown(activation_fn)}; pass a function such as torch.relu, an instance such as "
            "nn.ReLU(), or None."
        )
    return activation_fn


def no_embeddings(num_cond_embs: int, *, stacklevel: int = 3) -> int:
    """Return 0, the number of embeddings of a conditional input of size 0; warn if several were asked for.

    One is the default, which every sampler fed with noise alone has, so it brings no warning.

    Args:
        num_cond_embs: What was asked for.
        stacklevel: Which caller the warning points to; 3 is the one of the constructor that calls this.

    Example:
        >>> no_embeddings(1)
        0
    """
    if num_cond_embs > 1:
        warnings.warn(
            f"num_cond_embs: is {num_cond_embs}, but cond_in_size is 0, so no embeddings are kept; leave it out.",
            BayeshnetWarning,
            stacklevel=stacklevel,
        )
    return 0


# ---------------------------------------------------------------------- inputs


def check_input(name: str, value: Tensor, size: int | None, *, dim: int | None = 2) -> None:
    """Raise unless an input is a floating-point tensor ``[B, size]``.

    Args:
        name: Its name, for the message.
        value: The input.
        size: The size it must have; None for any.
        dim: Number of dimensions; None for any number of leading ones.

    Raises:
        ArgumentTypeError: If it is not a floating-point tensor.
        ArgumentError: If it has another shape.

    Example:
        >>> check_input("cond_input", [1.0], 1)
        Traceback (most recent call last):
        ...
        bayeshnet.errors.ArgumentTypeError: cond_input: is a list; pass a tensor (see torch.as_tensor).
    """
    if not isinstance(value, Tensor):
        raise ArgumentTypeError(f"{name}: is {kind_of(value)}; pass a tensor (see torch.as_tensor).")
    if not value.is_floating_point():
        raise ArgumentTypeError(f"{name}: has dtype {value.dtype}; pass a floating-point tensor.")
    if dim is not None and value.dim() != dim:
        wanted = "size" if size is None else size
        hint = f" (add the batch dimension, {name}[None])" if value.dim() == 1 else ""
        raise ArgumentError(f"{name}: has shape {list(value.shape)}; pass a tensor [batch, {wanted}]{hint}.")
    if size == 0:
        raise ArgumentError(f"{name}: was given, but this hypernetwork takes none (its size is 0); leave it out.")
    if size is not None and (value.dim() == 0 or value.shape[-1] != size):
        raise ArgumentError(f"{name}: has shape {list(value.shape)}; pass a tensor with {size} as the last dimension.")


def parse_cond_id(cond_id: CondId, num_conds: int | None) -> tuple[int, ...]:
    """Bring a condition id, or one per sample, into the form of a tuple of ints.

    Args:
        cond_id: An int, a list or tuple of ints, or an integer array or tensor with at most one dimension.
        num_conds: Ids have to be below this; None for no bound.

    Raises:
        ArgumentTypeError: If it is none of these.
        ArgumentError: If it is empty, has more dimensions, or an id is out of range.

    Example:
        >>> parse_cond_id(np.array([2, 0]), 3), parse_cond_id(1, 3)
        ((2, 0), (1,))
    """
    accepted = "an int, a list of ints or an integer tensor [B]"
    if isinstance(cond_id, (Tensor, np.ndarray)):
        if cond_id.ndim > 1:
            raise ArgumentError(f"cond_id: has shape {list(cond_id.shape)}; pass {accepted}.")
        listed: Any = cond_id.tolist()
        items: Sequence[Any] = listed if isinstance(listed, list) else [listed]
    elif isinstance(cond_id, Sequence) and not isinstance(cond_id, str):
        items = cond_id
    else:
        items = [cond_id]
    if not all(isinstance(item, SupportsIndex) and not isinstance(item, bool) for item in items):
        raise ArgumentTypeError(f"cond_id: is {shown(cond_id)}; pass {accepted}.")
    ids = [operator.index(item) for item in items]
    if not ids:
        raise ArgumentError("cond_id: is empty; pass at least one condition.")
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
        ArgumentError: If two sizes differ and neither is 1.

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
    """Return the only row of ``[1, ...]`` repeated, as a view; other tensors as they are.

    Example:
        >>> expand_rows(Tensor([[1.0, 2.0]]), 3).shape
        torch.Size([3, 2])
    """
    return tensor.expand(batch_size, *tensor.shape[1:]) if tensor.shape[0] != batch_size else tensor
