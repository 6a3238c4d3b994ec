"""Jacobians of functions that act on each row of a batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad

from bayeshnet.errors import UsageError
from bayeshnet.typing import Jacobians, NoiseBatch

__all__ = ["row_jacobian"]


def row_jacobian(fn: Callable[[Tensor], Tensor], z: NoiseBatch) -> Jacobians:
    """Forward-mode Jacobian of a row-wise function, all directions of all rows in one pass.

    Differentiable in turn, with respect to everything that ``fn`` uses.

    Args:
        fn: Maps ``[R, n]`` to ``[R, q]``, each row by itself.
        z: ``[S, n]``.

    Returns:
        ``J[s, i, j] = d fn_j(z_s) / d z_i``: ``[S, n, q]``.

    Raises:
        UsageError: If the output does not depend on z.

    Example:
        >>> row_jacobian(lambda z: z.square(), torch.tensor([[1.0, 2.0]]))
        tensor([[[2., 0.],
                 [0., 4.]]])
    """
    num, n = z.shape
    # Copies: a dual number may not share memory with another, as the rows of an expanded tensor do.
    inputs = z.repeat_interleave(n, dim=0)
    directions = torch.eye(n, dtype=z.dtype, device=z.device).repeat(num, 1)
    try:
        with warnings.catch_warnings(), forward_ad.dual_level():
            # torch loads its forward-mode rules on first use, by its own deprecated torch.jit.script.
            warnings.filterwarnings("ignore", message=r".*torch\.jit\.script", category=DeprecationWarning)
            out = fn(forward_ad.make_dual(inputs, directions))
            tangent = forward_ad.unpack_dual(out).tangent
    except NotImplementedError:  # an operation without a forward-mode rule
        jacobian = torch.func.vmap(torch.func.jacrev(lambda row: fn(row.unsqueeze(0)).squeeze(0)))(z)
        return jacobian.transpose(1, 2)
    if tangent is None:
        raise UsageError("fn: its output does not depend on its input, so it has no Jacobian there.")
    return tangent.reshape(num, n, -1)
