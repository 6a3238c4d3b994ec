"""Derivatives of activation functions, for Jacobians without automatic differentiation."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn

from bayeshnet.layers.plain_modules import is_plain
from bayeshnet.typing import Activation

__all__ = ["elementwise_derivative", "is_bounded"]

Derivative: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def elementwise_derivative(activation: Activation) -> Derivative | None:
    """The derivative as a function of input and output, or None if it is not known for this activation.

    Example:
        >>> derivative = elementwise_derivative(nn.Tanh())
        >>> derivative(torch.zeros(1), torch.zeros(1))
        tensor([1.])
    """
    if not isinstance(activation, nn.Module):
        return _KNOWN.get(activation)
    # The exact class, with its own forward and without hooks: anything else may compute something else.
    known = _KNOWN.get(type(activation))
    return known if known is not None and is_plain(activation, _FORWARDS[type(activation)]) else None


def is_bounded(activation: Activation) -> bool:
    """Whether an activation is known to have bounded values.

    Example:
        >>> is_bounded(nn.Sigmoid()), is_bounded(nn.ReLU())
        (True, False)
    """
    kind = type(activation) if isinstance(activation, nn.Module) else activation
    return kind in _BOUNDED


def _tanh(_: Tensor, out: Tensor) -> Tensor:
    return 1.0 - out * out


def _sigmoid(_: Tensor, out: Tensor) -> Tensor:
    return out * (1.0 - out)


def _relu(inp: Tensor, _: Tensor) -> Tensor:
    return (inp > 0).to(inp.dtype)


_KNOWN: dict[object, Derivative] = {
    nn.Tanh: _tanh,
    torch.tanh: _tanh,
    nn.Sigmoid: _sigmoid,
    torch.sigmoid: _sigmoid,
    nn.ReLU: _relu,
    torch.relu: _relu,
    nn.functional.relu: _relu,
}
_FORWARDS: dict[object, object] = {cls: cls.forward for cls in (nn.Tanh, nn.Sigmoid, nn.ReLU)}

_BOUNDED: frozenset[object] = frozenset(
    {
        nn.Tanh,
        torch.tanh,
        nn.functional.tanh,
        nn.Sigmoid,
        torch.sigmoid,
        nn.functional.sigmoid,
        nn.Softsign,
        nn.functional.softsign,
        nn.Hardtanh,
        nn.ReLU6,
        torch.sin,
        torch.cos,
    }
)
