"""The four formats in which a hypernetwork returns weights, and the way from each to every other.

======================  =====================================================================
``"flattened"``         one tensor ``[B, num_outputs]``
``"stacked"``           a list with one tensor ``[B, *shape]`` per target
``"sequential"``        a list of B lists, each with one tensor ``[*shape]`` per target
``"squeezed"``          as sequential; the list of tensors itself if B is 1
======================  =====================================================================

From ``"flattened"`` everything is a view: one ``split``, so that the backward pass writes each gradient once, whatever
the number of tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast, get_args

import torch
from torch import Tensor

from bayeshnet.checks import kind_of
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.mnets.param_table import split_sizes
from bayeshnet.typing import NestedWeights, RetFormat, Shapes

__all__ = ["RET_FORMATS", "TargetLayout", "check_ret_format", "convert_format", "format_output"]

RET_FORMATS: tuple[str, ...] = get_args(RetFormat)
"""The accepted values of ``ret_format``."""


@dataclass(frozen=True, slots=True)
class TargetLayout:
    """Where each target tensor lies in the flat output.

    Attributes:
        shapes: Shape of each target.
        sizes: Number of elements of each target.
        num_outputs: Their sum.

    Example:
        >>> TargetLayout.of([[10, 5], [10], []]).sizes
        (50, 10, 1)
    """

    shapes: tuple[tuple[int, ...], ...]
    sizes: tuple[int, ...]
    num_outputs: int

    @classmethod
    def of(cls, target_shapes: Shapes) -> TargetLayout:
        """Return the layout of tensors of these shapes, one after the other.

        Example:
            >>> TargetLayout.of([[2, 2], [2]]).num_outputs
            6
        """
        sizes = tuple(split_sizes(target_shapes))
        return cls(tuple(tuple(int(n) for n in shape) for shape in target_shapes), sizes, sum(sizes))


def check_ret_format(ret_format: str, argument: str = "ret_format") -> None:
    """Raise unless a format is one of :data:`RET_FORMATS`.

    Raises:
        ArgumentError: If it is not.

    Example:
        >>> check_ret_format("stacked")
    """
    if ret_format not in RET_FORMATS:
        raise ArgumentError(f"{argument}: is {ret_format!r}; pass one of {', '.join(map(repr, RET_FORMATS))}.")


def format_output(out: Tensor | list[Tensor], layout: TargetLayout, ret_format: str) -> Tensor | NestedWeights:
    """Bring what a hypernetwork computed into the format asked for, without copies unless tensors are to be flattened.

    Args:
        out: Flat output ``[B, num_outputs]``, or one tensor ``[B, *shape]`` per target.
        layout: Where the targets lie.
        ret_format: One of :data:`RET_FORMATS`, already checked.

    Example:
        >>> out = format_output(torch.zeros(3, 6), TargetLayout.of([[2, 2], [2]]), "stacked")
        >>> [tuple(tensor.shape) for tensor in out]
        [(3, 2, 2), (3, 2)]
    """
    if not isinstance(out, Tensor):
        return _cut_stacked(out, ret_format)
    if ret_format == "flattened":
        return out
    batch = out.shape[0]
    if batch == 1 and ret_format != "stacked":
        parts = out.squeeze(0).split(layout.sizes)
        single = [part.reshape(shape) for part, shape in zip(parts, layout.shapes, strict=True)]
        return single if ret_format == "squeezed" else [single]
    parts = out.split(layout.sizes, dim=1)
    stacked = [part.reshape(batch, *shape) for part, shape in zip(parts, layout.shapes, strict=True)]
    return _cut_stacked(stacked, ret_format)


def _cut_stacked(stacked: list[Tensor], ret_format: str) -> Tensor | NestedWeights:
    """From one tensor ``[B, *shape]`` per target to any format."""
    if ret_format == "stacked":
        return stacked
    batch = stacked[0].shape[0]
    if ret_format == "flattened":
        flat = [tensor.reshape(batch, -1) for tensor in stacked]
        return flat[0] if len(flat) == 1 else torch.cat(flat, dim=1)
    if batch == 1 and ret_format == "squeezed":
        return [tensor.squeeze(0) for tensor in stacked]
    # One unbind per target: its backward stacks B gradients at once.
    rows = [tensor.unbind(0) for tensor in stacked]
    return [[row[b] for row in rows] for b in range(batch)]


def convert_format(hnet_out: Any, layout: TargetLayout, src_format: str, trgt_format: str) -> Tensor | NestedWeights:
    """Bring the output of a hypernetwork from one format to another.

    Args:
        hnet_out: Output in the format ``src_format``.
        layout: Where the targets lie.
        src_format: One of :data:`RET_FORMATS`.
        trgt_format: One of :data:`RET_FORMATS`.

    Raises:
        ArgumentError: If a format is unknown or the output does not have the shapes of the targets.
        ArgumentTypeError: If the output does not have the structure of ``src_format``.

    Example:
        >>> layout = TargetLayout.of([[2, 2], [2]])
        >>> convert_format([torch.ones(2, 2), torch.zeros(2)], layout, "squeezed", "flattened")
        tensor([[1., 1., 1., 1., 0., 0.]])
    """
    check_ret_format(src_format, "src_format")
    check_ret_format(trgt_format, "trgt_format")
    if src_format == "flattened":
        if not isinstance(hnet_out, Tensor):
            raise _structure_error(src_format, "one tensor [B, num_outputs]", hnet_out)
        if hnet_out.dim() != 2 or hnet_out.shape[1] != layout.num_outputs:
            raise ArgumentError(
                f"hnet_out: has shape {tuple(hnet_out.shape)}; pass 'flattened' output of this hypernetwork, "
                f"[B, {layout.num_outputs}]."
            )
        return format_output(hnet_out, layout, trgt_format)
    if src_format == "stacked":
        return _from_stacked(hnet_out, layout, trgt_format)
    samples = _as_samples(hnet_out, layout, src_format)
    if trgt_format == "sequential":
        return samples
    if trgt_format == "squeezed":
        return samples[0] if len(samples) == 1 else samples
    if trgt_format == "stacked":
        return [torch.stack(tensors) for tensors in zip(*samples, strict=True)]
    return torch.stack([torch.cat([tensor.reshape(-1) for tensor in sample]) for sample in samples])


def _from_stacked(hnet_out: Any, layout: TargetLayout, trgt_format: str) -> Tensor | NestedWeights:
    if not _is_list(hnet_out) or not all(isinstance(tensor, Tensor) for tensor in hnet_out):
        raise _structure_error("stacked", "a list with one tensor [B, *shape] per target", hnet_out)
    stacked = list(cast("Sequence[Tensor]", hnet_out))
    batch = stacked[0].shape[0] if stacked and stacked[0].dim() else 0
    _check_shapes(stacked, [(batch, *shape) for shape in layout.shapes], "stacked")
    return _cut_stacked(stacked, trgt_format)


def _as_samples(hnet_out: Any, layout: TargetLayout, src_format: str) -> list[list[Tensor]]:
    expected = "a list of B lists of tensors"
    if not _is_list(hnet_out) or not hnet_out:
        raise _structure_error(src_format, expected, hnet_out)
    if src_format == "squeezed" and isinstance(hnet_out[0], Tensor):
        hnet_out = [hnet_out]
    for sample in hnet_out:
        if not _is_list(sample) or not all(isinstance(tensor, Tensor) for tensor in sample):
            raise _structure_error(src_format, expected, sample)
        _check_shapes(sample, layout.shapes, src_format)
    return [list(sample) for sample in hnet_out]


def _check_shapes(tensors: Sequence[Tensor], shapes: Shapes, src_format: str) -> None:
    if [tuple(tensor.shape) for tensor in tensors] != [tuple(shape) for shape in shapes]:
        raise ArgumentError(
            f"hnet_out: has tensors of shapes {[list(tensor.shape) for tensor in tensors]}; pass {src_format!r} output "
            f"of this hypernetwork, of shapes {[list(shape) for shape in shapes]}."
        )


def _is_list(value: object) -> bool:
    return isinstance(value, (list, tuple))


def _structure_error(src_format: str, expected: str, got: object) -> ArgumentTypeError:
    return ArgumentTypeError(
        f"hnet_out: is or contains {kind_of(got)}; with src_format={src_format!r} pass {expected}."
    )
