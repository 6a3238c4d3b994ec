"""Where the weights of a network lie in the vector of all latents, and which are drawn conditionally."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bayeshnet.deprecation import warn_renamed

__all__ = ["FlatLayout"]


@dataclass(frozen=True, slots=True)
class FlatLayout:
    """Where the tensors lie in the flat vector of all latents.

    Attributes:
        shapes: Shape of each tensor of the network, in table order, as it lies in the vector.
        rest: Number of latents that follow the network's weights.
        layers: For each conditional layer the indices of its weight and bias (or None).
        sizes: Number of elements of each part of the vector: the tensors, then the rest.
        conditional: Indices of the tensors that are drawn conditionally.
        unconditional_sizes: Number of elements of each of the other parts, the rest among them.
        unconditional_spans: Begin and end of the runs of these parts in the vector.

    Example:
        >>> layout = FlatLayout(((5, 2), (5,), (1, 5), (1,)), 1, ((2, 3),))
        >>> layout.sizes, layout.unconditional_sizes, layout.unconditional_spans
        ((10, 5, 5, 1, 1), (10, 5, 1), ((0, 15), (21, 22)))
    """

    shapes: tuple[tuple[int, ...], ...]
    rest: int
    layers: tuple[tuple[int, int | None], ...]
    sizes: tuple[int, ...] = field(init=False, repr=False, compare=False)
    conditional: frozenset[int] = field(init=False, repr=False, compare=False)
    unconditional_sizes: tuple[int, ...] = field(init=False, repr=False, compare=False)
    unconditional_spans: tuple[tuple[int, int], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        sizes = (*(math.prod(shape) for shape in self.shapes), self.rest)
        conditional = frozenset(i for layer in self.layers for i in layer if i is not None)
        spans: list[tuple[int, int]] = []
        start = 0
        for i, size in enumerate(sizes):
            if i not in conditional and (size or not spans):
                if spans and spans[-1][1] == start:
                    spans[-1] = (spans[-1][0], start + size)
                else:
                    spans.append((start, start + size))
            start += size
        # Computed once; a draw looks at them several times.
        object.__setattr__(self, "sizes", sizes)
        object.__setattr__(self, "conditional", conditional)
        object.__setattr__(self, "unconditional_sizes", tuple(s for i, s in enumerate(sizes) if i not in conditional))
        object.__setattr__(self, "unconditional_spans", tuple(spans))

    def unconditional(self, flat: Tensor) -> Tensor:
        """Return the entries of vectors of all latents ``[*, D]`` that are not drawn conditionally ``[*, n]``."""
        return torch.cat([flat[..., begin:end] for begin, end in self.unconditional_spans], dim=-1)

    @property
    def body_sizes(self) -> list[int]:
        """The old name of :attr:`unconditional_sizes`."""
        warn_renamed("FlatLayout.body_sizes", "FlatLayout.unconditional_sizes")
        return list(self.unconditional_sizes)
