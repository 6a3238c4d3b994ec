"""Chains of linear layers and element-wise functions, evaluated for many weight samples by batched matrix products.

The plainest networks are also those where the overhead of ``torch.func.vmap`` weighs most: it takes a linear layer
apart into four operations. Here it is one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bayeshnet.layers.plain_modules import all_plain, is_plain
from bayeshnet.layers.torch_modes import own_gradients_apply, under_functorch
from bayeshnet.mnets._fused_linear import batched_linear, fused_linear, plain_linear

__all__ = [
    "Chain",
    "LinearStep",
    "batched_linear",
    "chain_of_modules",
    "fused_linear",
    "is_dropout",
    "is_elementwise",
    "plain_linear",
]

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
# Functions that overwrite their argument, for activations whose derivative follows from their output. A linear layer
# does not need its own output again, so one activation less is written and kept.
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
    """A linear layer, by the places of its weight and bias in the parameter table.

    Example:
        >>> LinearStep(weight=0, bias=1)
        LinearStep(weight=0, bias=1)
    """

    weight: int
    bias: int | None


Step: TypeAlias = "LinearStep | nn.Dropout | Callable[[Tensor], Tensor]"


@dataclass(frozen=True, slots=True)
class Chain:
    """Steps to be taken one after the other.

    Attributes:
        steps: Linear layers, dropout, element-wise functions; before the first linear layer any function.
        shapes: Shape of each parameter in the table, which :meth:`forward` needs.

    Example:
        >>> chain = Chain((LinearStep(0, None), torch.tanh), shapes=((4, 3),))
        >>> chain.forward([torch.ones(2, 4, 3)], torch.ones(5, 3)).shape
        torch.Size([2, 5, 4])
    """

    steps: tuple[Step, ...]
    shapes: tuple[tuple[int, ...], ...] = ()

    @property
    def takes_vectors(self) -> bool:
        """Whether an input is a vector: nothing before the first linear layer changes its shape."""
        first = next(i for i, step in enumerate(self.steps) if isinstance(step, LinearStep))
        return all(is_elementwise(step) or is_dropout(step) for step in self.steps[:first])

    def forward(self, weights: Tensor | Sequence[Tensor], x: Any, *, paired: bool = False) -> Tensor | None:
        """Evaluate the chain for all weight samples.

        Args:
            weights: ``[S, *shape]`` for each parameter, or a matrix ``[S, D]`` of all of them.
            x: Inputs ``[B, ...]``.
            paired: Whether each sample has inputs of its own, ``[S, B, ...]``.

        Returns:
            Outputs ``[S, B, n]``, or None if weights or inputs are not those of a chain: the caller then takes another
            way, which also says what is wrong.
        """
        tensors = _fitting(weights, self.shapes)
        if tensors is None or not isinstance(x, Tensor) or (paired and (x.dim() < 3 or len(x) != len(tensors[0]))):
            return None
        first = next(i for i, step in enumerate(self.steps) if isinstance(step, LinearStep | nn.Dropout))
        samples = x.shape[: int(paired)]
        x = x.flatten(0, 1) if paired and first else x  # what comes before the first layer sees rows
        for step in self.steps[:first]:
            x = step(x)  # pyright: ignore[reportCallIssue]
        x = x.reshape(*samples, -1, *x.shape[1:]) if paired and first else x
        matrices = [tensors[step.weight] for step in self.steps if isinstance(step, LinearStep)]
        width = x.shape[-1] if x.dim() == 2 + paired else -1
        for matrix in matrices:
            if matrix.shape[2] != width:
                return None
            width = matrix.shape[1]
        if any(w.dtype != x.dtype or w.device != x.device for w in tensors):
            return None
        if x.device.type != "cpu":
            return self._run(self.steps[first:], tensors, x, fetch=False, paired=paired)
        recorded = torch.is_grad_enabled() and (x.requires_grad or any(w.requires_grad for w in tensors))
        size, fetch = _plan(matrices, rows=x.shape[int(paired)], recorded=recorded)
        if size >= len(matrices[0]):
            return self._run(self.steps[first:], tensors, x, fetch=fetch, paired=paired)
        parts = list(zip(*(w.split(size) for w in tensors), strict=True))
        inputs = x.split(size) if paired else [x] * len(parts)
        made = zip(parts, inputs, strict=True)
        return torch.cat([self._run(self.steps[first:], part, h, fetch=fetch, paired=paired) for part, h in made])

    @staticmethod
    def _run(steps: Sequence[Step], weights: Sequence[Tensor], x: Tensor, *, fetch: bool, paired: bool) -> Tensor:
        # Asked once for all layers: nothing in between changes it.
        own_gradients = own_gradients_apply(x.device)
        overwrites = own_gradients or not under_functorch()
        linear = fused_linear if own_gradients else plain_linear
        h = x if paired else x.expand(len(weights[0]), *x.shape)
        fresh = False  # whether nobody else knows or needs the memory of h
        for step in steps:
            if isinstance(step, LinearStep):
                if fetch:
                    weights[step.weight].sum()
                h = linear(h, weights[step.weight], None if step.bias is None else weights[step.bias])
                fresh = overwrites
                continue
            if isinstance(step, nn.Dropout):
                h = F.dropout(h, step.p, step.training)
            else:
                in_place = _IN_PLACE.get(type(step) if isinstance(step, nn.Module) else step) if fresh else None
                h = step(h) if in_place is None else in_place(h)
            fresh = False
        return h


def _fitting(weights: Tensor | Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> Sequence[Tensor] | None:
    """Weights ``[S, *shape]`` for each parameter, or None if they are something else."""
    if isinstance(weights, Tensor):
        sizes = [math.prod(shape) for shape in shapes]
        if weights.dim() != 2 or len(weights) == 0 or weights.shape[1] != sum(sizes):
            return None
        return [part.view(-1, *shape) for part, shape in zip(weights.split(sizes, dim=1), shapes, strict=True)]
    if not isinstance(weights, Sequence) or len(weights) != len(shapes):
        return None
    num = -1
    for tensor, shape in zip(weights, shapes, strict=True):
        if not isinstance(tensor, Tensor) or tensor.dim() == 0 or tensor.shape[1:] != shape:
            return None
        num = len(tensor) if num < 0 else num
        if len(tensor) != num or num == 0:
            return None
    return weights


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
    """Whether it is PyTorch's dropout of single elements, as it comes.

    Example:
        >>> is_dropout(nn.Dropout()), is_dropout(nn.Dropout1d())
        (True, False)
    """
    return type(fn) is nn.Dropout and is_plain(fn, _FORWARDS[nn.Dropout])


def chain_of_modules(
    module: nn.Module,
    index: Mapping[tuple[int, str], int],
    shapes: tuple[tuple[int, ...], ...],
    *,
    around: tuple[nn.Module, Any] | None = None,
) -> Chain | None:
    """A module as a chain, or None if it is not one.

    Only modules of exactly the known classes count, without hooks and with the ``forward`` of their class: anything
    else may do anything. This is looked at in each call, since all of it can change after the module was built.

    Args:
        module: The module.
        index: Place in the parameter table of each ``(id(module), key)``.
        shapes: Shape of each parameter in the table.
        around: A module that calls this one, with the ``forward`` that it is known to have.

    Example:
        >>> layer = nn.Linear(3, 4)
        >>> index = {(id(layer), "weight"): 0, (id(layer), "bias"): 1}
        >>> chain_of_modules(nn.Sequential(layer, nn.ReLU()), index, ((4, 3), (4,))).steps
        (LinearStep(weight=0, bias=1), ReLU())
    """
    seen: list[tuple[nn.Module, Any]] = [] if around is None else [around]
    parts: list[nn.Module] = []
    pending = [module]
    while pending:
        part = pending.pop()
        if type(part) not in _FORWARDS:
            return None
        seen.append((part, _FORWARDS[type(part)]))
        if type(part) is nn.Sequential:
            pending.extend(list(part)[::-1])
        else:
            parts.append(part)
    if not all_plain(seen):
        return None
    steps: list[Step] = []
    linear = False
    for part in parts:
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
    return Chain(tuple(steps), shapes) if linear else None
