"""Numbers whose gradient does not exist, so that asking for it is an error and not a zero."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bayeshnet.errors import DensityError

__all__ = ["refuse_gradient"]


def refuse_gradient(value: Tensor, sources: Sequence[Tensor], message: str) -> Tensor:
    """Return the same numbers, whose backward pass raises if it is to reach one of the sources.

    Left out of the graph, a parameter would silently get no gradient where it has one.

    Args:
        value: Any tensor, with a graph of its own or none, through which gradients pass as before.
        sources: What the value depends on in a way that cannot be differentiated.
        message: What the error says.

    Raises:
        DensityError: In the backward pass.

    Example:
        >>> scale = torch.ones((), requires_grad=True)
        >>> refuse_gradient(torch.zeros(2), [scale], "scale: has no gradient here.").sum().backward()
        Traceback (most recent call last):
        ...
        bayeshnet.errors.DensityError: scale: has no gradient here.
    """
    wanted = [source for source in sources if source.requires_grad]
    if not wanted or not torch.is_grad_enabled():
        return value
    # Beside the graph of the value: a gradient that is asked for with respect to something else passes it by.
    return value + _Refusal.apply(message, value.detach(), *wanted)  # pyright: ignore[reportOperatorIssue]


class _Refusal(torch.autograd.Function):
    """A zero."""

    @staticmethod
    def forward(ctx: Any, message: str, like: Tensor, *sources: Tensor) -> Tensor:
        ctx.message = message
        return torch.zeros_like(like)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> None:
        raise DensityError(ctx.message)
