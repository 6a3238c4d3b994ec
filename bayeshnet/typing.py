"""Type aliases that several rooms share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

__all__ = ["Activation", "CondId", "NestedWeights", "RetFormat", "Shape", "Shapes", "WeightsArg"]

Shape: TypeAlias = Sequence[int]
"""The shape of one tensor."""

Shapes: TypeAlias = Sequence[Sequence[int]]
"""The shapes of an ordered collection of tensors, such as a network's parameters."""

Activation: TypeAlias = Callable[[Tensor], Tensor]
"""A nonlinearity: ``torch.tanh``, an ``nn.ReLU()`` instance, ..."""

CondId: TypeAlias = "int | Sequence[int] | torch.Tensor"
"""One condition, or one per row of the batch."""

RetFormat: TypeAlias = Literal["flattened", "sequential", "squeezed", "stacked"]
"""How a hypernetwork returns the weights."""

NestedWeights: TypeAlias = "list[Tensor] | list[list[Tensor]]"
"""Target weights as lists: those of one sample, or of each sample of a batch."""

WeightsArg: TypeAlias = "Sequence[Tensor] | Mapping[str, Any]"
"""External weights as the ``weights`` argument of ``forward`` takes them."""
