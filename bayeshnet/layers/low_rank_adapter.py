"""A frozen linear layer or convolution with a learned correction of low rank."""

# A convolution is called with another kernel by the method that its forward calls.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["LowRankAdapter"]


class LowRankAdapter(nn.Module):
    r"""A linear layer or convolution whose weight is that of a frozen layer and a product of two small matrices.

    .. math:: W = W_0 + \frac{\alpha}{r} B A, \quad A \in R^{r \times n}, \; B \in R^{m \times r},

    for m outputs and n inputs (Hu et al., 2022, "LoRA"). Of a convolution A is a convolution with the layer's own
    kernel size, stride, padding, dilation and groups to r channels for each group, and B is one of size 1; n are then
    the numbers that one output sees, channels of its group times places of the kernel. The layer's bias stays.

    A starts at ``N(0, 1/n)`` from the global generator and B at 0, where the layer is the frozen one. If A has the
    prior ``N(0, 1/n)`` and B ``N(0, 1/r)``, which is what ``priors.Normal(scale="fan_in")`` gives them, the correction
    of a pre-activation has the prior standard deviation :math:`\alpha / r` for inputs of mean square 1.

    Args:
        layer: An ``nn.Linear``, ``nn.Conv1d``, ``nn.Conv2d`` or ``nn.Conv3d``; it is used as it is, not copied.
        rank: Number r, for each group.
        alpha: The factor :math:`\alpha`.

    Attributes:
        layer: The frozen layer.
        adapter_a: A, ``[r, in]`` or ``[groups * r, in / groups, *kernel_size]``.
        adapter_b: B, ``[out, r]``.

    Example:
        >>> layer = nn.Conv1d(4, 6, 3)
        >>> adapter = LowRankAdapter(layer, rank=2, alpha=2.0)
        >>> x = torch.randn(5, 4, 8)
        >>> torch.equal(adapter(x), layer(x)), adapter.adapter_a.shape, adapter.adapter_b.shape
        (True, torch.Size([2, 4, 3]), torch.Size([6, 2]))
    """

    layer: Any

    def __init__(self, layer: nn.Module, *, rank: int, alpha: float) -> None:
        super().__init__()
        self.layer = layer
        self.rank, self.alpha = rank, alpha
        weight: Tensor = self.layer.weight
        shape = (rank * self.groups, *weight.shape[1:])
        start = torch.randn(shape, dtype=weight.dtype, device=weight.device)
        self.adapter_a = nn.Parameter(start / math.sqrt(math.prod(shape[1:])))
        self.adapter_b = nn.Parameter(weight.new_zeros(len(weight), rank))

    @property
    def groups(self) -> int:
        """Groups of the convolution, 1 of a linear layer."""
        return getattr(self.layer, "groups", 1)

    @property
    def weight(self) -> Tensor:
        """The corrected weight, for code that uses the layer's weight and does not call it."""
        b = self.adapter_b.reshape(self.groups, -1, self.rank)
        a = self.adapter_a.reshape(self.groups, self.rank, -1)
        return self.layer.weight + (self.alpha / self.rank) * (b @ a).reshape(self.layer.weight.shape)

    @property
    def bias(self) -> Tensor | None:
        """The bias of the frozen layer."""
        return self.layer.bias

    def extra_repr(self) -> str:
        """Rank and factor."""
        return f"rank={self.rank}, alpha={self.alpha:g}"

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output and its correction, without the corrected weight.

        Args:
            x: Inputs, as the layer takes them.
        """
        if isinstance(self.layer, nn.Linear):
            change = functional.linear(functional.linear(x, self.adapter_a), self.adapter_b)
        else:
            places = (1,) * (self.adapter_a.dim() - 2)
            small = self.layer._conv_forward(x, self.adapter_a, None)
            convolution = (functional.conv1d, functional.conv2d, functional.conv3d)[len(places) - 1]
            change = convolution(small, self.adapter_b.reshape(-1, self.rank, *places), groups=self.groups)
        return self.layer(x) + (self.alpha / self.rank) * change

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """A copy of the layer with the corrected weight; frozen, as the layer is."""
        plain: Any = copy.deepcopy(self.layer)
        plain.weight.copy_(self.weight)
        return plain
