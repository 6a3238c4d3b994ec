"""Why a hypernetwork failed: what its inputs have to do with it. Nothing here runs while all is well."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from bayeshnet.errors import ArgumentError, ArgumentTypeError

__all__ = ["input_error"]


def input_error(
    inputs: Mapping[str, Tensor | None], weights: Collection[Tensor | None]
) -> ArgumentError | ArgumentTypeError | None:
    """What to raise instead of an error of torch, if a hypernetwork failed because of its inputs, else None.

    Args:
        inputs: The inputs by name, None where one is missing.
        weights: The weights that it worked with.

    Example:
        >>> print(input_error({"cond_input": torch.zeros(0, 2)}, [torch.zeros(3)]))
        cond_input: has no rows, and the hypernetwork fails on that; pass at least one.
    """
    dtype = next((w.dtype for w in weights if w is not None and w.is_floating_point()), None)
    for name, value in inputs.items():
        if value is None:
            continue
        if value.layout != torch.strided:
            return ArgumentTypeError(
                f"{name}: is a tensor of layout {value.layout}; pass a dense one, {name}.to_dense()."
            )
        if dtype is not None and value.dtype != dtype:
            return ArgumentTypeError(
                f"{name}: has dtype {value.dtype}, the hypernetwork's weights have {dtype}; convert one of them, e.g. "
                f"{name}.to({dtype})."
            )
        if not len(value):
            return ArgumentError(f"{name}: has no rows, and the hypernetwork fails on that; pass at least one.")
    return None
