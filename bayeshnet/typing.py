"""Type aliases that several packages share.

The aliases of tensors have a shape: a letter is the same size throughout a signature, ``*out`` any number of sizes.
Type checkers read them as ``Tensor``, and nothing is checked at run time; ``make test-shapes`` does that. Without
jaxtyping, which is optional, they are ``Tensor`` with a note.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor

if TYPE_CHECKING:
    from typing import Annotated as Float
    from typing import Annotated as Inexact
    from typing import Annotated as Integer
else:
    try:
        from jaxtyping import Float, Inexact, Integer
    except ImportError:  # the shape is then a note that nobody reads
        from typing import Annotated as Float
        from typing import Annotated as Inexact
        from typing import Annotated as Integer

__all__ = [
    "Activation",
    "ClassProbabilities",
    "CondId",
    "FeatureBatch",
    "HeadWeight",
    "InputRows",
    "Jacobians",
    "Labels",
    "LogDensities",
    "NestedWeights",
    "NoiseBatch",
    "OutputDraws",
    "OutputRows",
    "RetFormat",
    "RowDensities",
    "RowValues",
    "Scalar",
    "Shape",
    "Shapes",
    "Targets",
    "WeightBatch",
    "WeightSamples",
    "Weights",
    "WeightsArg",
]

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

# ---------------------------------------------------------------------- tensors: S samples of D weights

Scalar: TypeAlias = Float[Tensor, ""]
"""One number."""

Weights: TypeAlias = Float[Tensor, "D"]
"""All weights of one network, or one number for each weight."""

WeightBatch: TypeAlias = Float[Tensor, "S D"]
"""S samples of all D weights."""

NoiseBatch: TypeAlias = Float[Tensor, "S n"]
"""The n noise inputs of S samples."""

FeatureBatch: TypeAlias = Float[Tensor, "S q"]
"""The q features below the output layer of a hypernetwork, for S samples."""

LogDensities: TypeAlias = Float[Tensor, "S"]
"""A log-density of each sample."""

Jacobians: TypeAlias = Float[Tensor, "S n q"]
"""For each sample the derivatives of q values with respect to n inputs, inputs first."""

HeadWeight: TypeAlias = Float[Tensor, "D q"]
"""The weight of a hypernetwork's output layer."""

InputRows: TypeAlias = Float[Tensor, "R n"]
"""R inputs of a hypernetwork; each is handled by itself."""

OutputRows: TypeAlias = Float[Tensor, "R D"]
"""What a hypernetwork makes of :data:`InputRows`."""

WeightSamples: TypeAlias = Inexact[Tensor, "S D"] | Sequence[Tensor] | Mapping[str, Tensor]
"""S samples of all weights, real or complex: a matrix, or ``[S, *shape]`` for each tensor."""

# ---------------------------------------------------------------------- tensors: B rows of data

Targets: TypeAlias = Float[Tensor, "B *out"]
"""What was observed or predicted for B rows, ``[B]`` or ``[B, out]``."""

OutputDraws: TypeAlias = Float[Tensor, "S B *out"]
"""S draws of :data:`Targets`."""

RowValues: TypeAlias = Float[Tensor, "B"]
"""A number for each row."""

RowDensities: TypeAlias = Float[Tensor, "S B"]
"""A log-density of each row under each sample."""

ClassProbabilities: TypeAlias = Float[Tensor, "B C"]
"""The probability of each of C classes for B rows."""

Labels: TypeAlias = Integer[Tensor, "B"]
"""The class of each row, from 0 to C - 1."""
