"""Chains of linear layers and element-wise functions, evaluated for many weight samples by batched matrix products.

The plainest networks are also those where the overhead of ``torch.func.vmap`` weighs most: it takes a linear layer
apart into four operations. Here it is one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bayeshnet.layers.plain_modules import is_plain
from bayeshnet.layers.torch_modes import own_gradients_apply, under_functorch

__all__ = ["Chain", "LinearStep", "batched_linear", "chain_of_modules", "is_dropout", "is_elementwise"]

_ELEMENTWISE_MODULES: tuple[type[nn.Module], ...] = (
    nn.CELU,
    nn.ELU,
    nn.GELU,
    nn.Hardswish,
    nn.Hardtanh,
    nn.Identity,
    nn.LeakyReLU,
    nn.LogSigmoid,
    nn.Mish,
    nn.ReLU,
    nn.ReLU6,
    nn.SELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Softplus,
    nn.Softsign,
    nn.Tanh,
    nn.Tanhshrink,
)
# What a call of each does: a class, too, can be given another forward.
_FORWARDS: dict[type[nn.Module], Any] = {
    cls: cls.forward for cls in (*_ELEMENTWISE_MODULES, nn.Dropout, nn.Flatten, nn.Linear, nn.Sequential)
}
_ELEMENTWISE_FUNCTIONS: set[Any] = {
    torch.relu,
    torch.sigmoid,
    torch.tanh,
    torch.sin,
    torch.cos,
    F.elu,
    F.gelu,
    F.leaky_relu,
    F.relu,
    F.selu,
    F.silu,
    F.softplus,
}
# Activations of so many bytes stay in the cache of a core (mostly 1 MB or more) from one layer to the next.
_ACTIVATION_BYTES = 768 * 1024
# Weights of so many bytes stay in the shared cache from their first use to the second.
_FETCH_BYTES = 3 * 1024 * 1024
_FEW_ROWS = 32


_IN_PLACE: dict[Any, Callable[[Tensor], Tensor]] = {
    nn.ReLU: torch.relu_,
    nn.Sigmoid: torch.sigmoid_,
    nn.Tanh: torch.tanh_,
    F.relu: torch.relu_,
    torch.relu: torch.relu_,
    torch.sigmoid: torch.sigmoid_,
    torch.tanh: torch.tanh_,
}


@dataclass(frozen=True, slots=True)
class LinearStep:
    """A linear layer, by the places of its weight and bias in the parameter table."""

    weight: int
    bias: int | None


Step: TypeAlias = "LinearStep | nn.Dropout | Callable[[Tensor], Tensor]"


@dataclass(frozen=True, slots=True)
class Chain:
    """Steps to be taken one after the other.

    Attributes:
        steps: Linear layers, dropout, element-wise functions; before the first linear layer any function.
    """

    steps: tuple[Step, ...]

    def forward(self, weights: Sequence[Tensor], x: Any) -> Tensor | None:
        """Evaluate the chain for all weight samples.

        Args:
            weights: ``[S, *shape]`` for each parameter.
            x: Inputs ``[B, ...]``.

        Returns:
            Outputs ``[S, B, n]``, or None if the inputs are not those of a chain: the caller then takes another way.
        """
        if not isinstance(x, Tensor):
            return None
        first = next(i for i, step in enumerate(self.steps) if isinstance(step, LinearStep | nn.Dropout))
        for step in self.steps[:first]:
            x = step(x)  # pyright: ignore[reportCallIssue]
        matrices = [weights[step.weight] for step in self.steps if isinstance(step, LinearStep)]
        widths = [x.shape[-1] if x.dim() == 2 else -1, *(matrix.shape[1] for matrix in matrices)]
        fits = all(matrix.shape[2] == width for matrix, width in zip(matrices, widths, strict=False))
        if not fits or any(w.dtype != x.dtype or w.device != x.device for w in weights):
            return None
        if x.device.type != "cpu":
            return self._run(self.steps[first:], weights, x, fetch=False)
        recorded = torch.is_grad_enabled() and (x.requires_grad or any(w.requires_grad for w in weights))
        size, fetch = _plan(matrices, rows=x.shape[0], recorded=recorded)
        if size >= len(matrices[0]):
            return self._run(self.steps[first:], weights, x, fetch=fetch)
        parts = zip(*(w.split(size) for w in weights), strict=True)
        return torch.cat([self._run(self.steps[first:], part, x, fetch=fetch) for part in parts])

    @staticmethod
    def _run(steps: Sequence[Step], weights: Sequence[Tensor], x: Tensor, *, fetch: bool) -> Tensor:
        h = x.expand(len(weights[0]), *x.shape)
        fresh = False  # whether nobody else knows or needs the memory of h
        for step in steps:
            if isinstance(step, LinearStep):
                if fetch:
                    weights[step.weight].sum()
                h = batched_linear(h, weights[step.weight], None if step.bias is None else weights[step.bias])
                fresh = not under_functorch()
                continue
            if isinstance(step, nn.Dropout):
                h = F.dropout(h, step.p, step.training)
            else:
                in_place = _in_place(step) if fresh else None
                h = step(h) if in_place is None else in_place(h)
            fresh = False
        return h


def _in_place(step: Any) -> Callable[[Tensor], Tensor] | None:
    """The function that overwrites its argument, for activations whose derivative follows from their output.

    A linear layer does not need its own output again, so one activation less is written and kept.
    """
    return _IN_PLACE.get(type(step) if isinstance(step, nn.Module) else step)


def _plan(matrices: Sequence[Tensor], rows: int, *, recorded: bool) -> tuple[int, bool]:
    """How many samples to take at once on a CPU, and whether to fetch matrices into the cache first.

    If they are ``recorded`` for a backward pass, that goes through the parts, too (a third less time at 16 samples of
    442 rows of a 10-50-1 network), but has to join the gradients of the weights: good if those are small.

    With few rows the time goes into reading the weights, and a matrix product does not read them in the order of
    memory. A sum does, at the full speed of the hardware's prefetching; the product then finds them in the cache.
    Measured: 15 to 20 % less time at 8 rows of a 784-400-400-10 network.
    """
    item = matrices[0].element_size()
    activations = item * rows * max(matrix.shape[1] for matrix in matrices)
    matrix = item * max(matrix.shape[1] * matrix.shape[2] for matrix in matrices)
    size = _ACTIVATION_BYTES // max(activations, 1)
    if recorded and activations < 4 * matrix:
        size = len(matrices[0])
    fetch = not recorded and rows <= _FEW_ROWS and _ACTIVATION_BYTES // 2 <= matrix <= _FETCH_BYTES
    if fetch:
        size = min(size, _FETCH_BYTES // matrix)
    return max(size, 1), fetch


def batched_linear(h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``h W^T + b`` for each sample.

    Args:
        h: Inputs ``[S, B, in]``.
        weight: ``[S, out, in]``.
        bias: ``[S, out]``, or None.

    Example:
        >>> batched_linear(torch.ones(2, 5, 3), torch.ones(2, 4, 3), None).shape
        torch.Size([2, 5, 4])
    """
    if not own_gradients_apply(h.device):
        return _affine(h, weight, bias)
    return _BatchedLinear.apply(h, weight, bias)  # pyright: ignore[reportReturnType]


def _affine(h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    transposed = weight.transpose(1, 2)
    return torch.bmm(h, transposed) if bias is None else torch.baddbmm(bias.unsqueeze(1), h, transposed)


class _BatchedLinear(torch.autograd.Function):
    """Batched linear layer whose weight gradients have the layout of the weights.

    PyTorch's own backward pass makes them transposed; putting them into place then costs more than all its arithmetic.
    """

    @staticmethod
    def forward(ctx: Any, h: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(h, weight)
        ctx.save_for_forward(h, weight)
        return _affine(h, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (grad,) = grad_outputs
        h, weight = ctx.saved_tensors
        for_h, for_weight, for_bias = ctx.needs_input_grad
        return (
            # For one output the product is an outer one.
            (grad * weight if grad.shape[2] == 1 else torch.bmm(grad, weight)) if for_h else None,
            _weight_gradient(grad, h) if for_weight else None,
            grad.sum(1) if for_bias else None,
        )

    @staticmethod
    def jvp(ctx: Any, *grad_inputs: Tensor | None) -> Tensor:
        dh, dweight, dbias = grad_inputs
        h, weight = ctx.saved_tensors
        out = torch.zeros_like(h[..., :1]).expand(*h.shape[:2], weight.shape[1])
        if dh is not None:
            out = out + _affine(dh, weight, None)
        if dweight is not None:
            out = out + _affine(h, dweight, None)
        return out if dbias is None else out + dbias.unsqueeze(1)


def _weight_gradient(grad: Tensor, h: Tensor) -> Tensor:
    """``grad^T h`` for each sample: ``[S, out, in]``."""
    if 2 * h.shape[2] <= grad.shape[2]:
        # MKL is up to four times slower where the result is narrow than where it is flat.
        return torch.bmm(h.transpose(1, 2), grad).transpose(1, 2).contiguous()
    return torch.bmm(grad.transpose(1, 2), h)


def is_elementwise(fn: Any) -> bool:
    """Whether a function is known to act on each element by itself.

    Example:
        >>> is_elementwise(nn.ReLU()), is_elementwise(torch.tanh), is_elementwise(nn.Softmax(1))
        (True, True, False)
    """
    if isinstance(fn, nn.Module):
        return type(fn) in _ELEMENTWISE_MODULES and is_plain(fn, _FORWARDS[type(fn)])
    return fn in _ELEMENTWISE_FUNCTIONS


def is_dropout(fn: Any) -> bool:
    """Whether it is PyTorch's dropout of single elements, as it comes."""
    return type(fn) is nn.Dropout and is_plain(fn, _FORWARDS[nn.Dropout])


def chain_of_modules(module: nn.Module, index: Mapping[tuple[int, str], int]) -> Chain | None:
    """A module as a chain, or None if it is not one.

    Only modules of exactly the known classes count, without hooks and with the ``forward`` of their class: anything
    else may do anything. This is looked at in each call, since all of it can change after the module was built.

    Args:
        module: The module.
        index: Place in the parameter table of each ``(id(module), key)``.
    """
    steps: list[Step] = []
    linear = False
    for part in _flat(module):
        if type(part) not in _FORWARDS or not is_plain(part, _FORWARDS[type(part)]):
            return None
        if type(part) is nn.Linear:
            weight, bias = index.get((id(part), "weight")), index.get((id(part), "bias"))
            if weight is None or (bias is None and getattr(part, "bias", None) is not None):
                return None  # one of them is fixed
            steps.append(LinearStep(weight, bias))
            linear = True
        elif type(part) is nn.Flatten:
            if part.start_dim != 1 or part.end_dim != -1 or linear or any(isinstance(s, nn.Dropout) for s in steps):
                return None
            steps.append(part)
        elif not linear and getattr(part, "inplace", False):
            return None  # it would change the inputs, and once more if they turn out not to fit
        else:
            steps.append(part)
    return Chain(tuple(steps)) if linear else None


def _flat(module: nn.Module) -> list[nn.Module]:
    if type(module) is nn.Sequential and is_plain(module, _FORWARDS[nn.Sequential]):
        return [part for child in module for part in _flat(child)]
    return [module]
