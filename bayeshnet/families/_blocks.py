"""Which weights belong to the same unit of a network."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bayeshnet.mnets.param_table import ParamRecord

__all__ = ["BlockLayout"]


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """Which entries of a vector belong to the same unit.

    Attributes:
        order: Where each entry lies when the entries of a unit lie together ``[D]``.
        blocks: Number of units and of entries of each, for one layer after the other; what follows them, up to D, is
            independent.

    Example:
        >>> layout = BlockLayout.of([(3, 2), (3,), (5,)], [(0, 1)])
        >>> layout.blocks, layout.order.tolist()
        (((3, 3),), [0, 1, 3, 4, 6, 7, 2, 5, 8, 9, 10, 11, 12, 13])
    """

    order: Tensor
    blocks: tuple[tuple[int, int], ...]

    @classmethod
    def of(
        cls, shapes: Sequence[Sequence[int]], layers: Sequence[tuple[int, int | None]], *, largest: int = 16
    ) -> BlockLayout:
        """The layout of tensors that lie in the vector one after the other.

        Args:
            shapes: Their shapes.
            layers: For each layer of units the places in ``shapes`` of weight ``[units, ...]`` and bias, or None.
            largest: Entries of larger units stay independent. Their correlations are many numbers, each of which adds
                its gradient's noise to a weight; on layers of 30 x 31 that cost more than it gave.
        """
        sizes = [math.prod(shape) for shape in shapes]
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        parts: list[Tensor] = []
        blocks: list[tuple[int, int]] = []
        taken: set[int] = set()
        for weight, bias in layers:
            units = shapes[weight][0]
            size = sizes[weight] // units + (bias is not None)
            if not 2 <= size <= largest:
                continue
            rows = starts[weight] + torch.arange(sizes[weight]).reshape(units, -1)
            if bias is not None:
                rows = torch.cat([rows, starts[bias] + torch.arange(units).unsqueeze(1)], dim=1)
            parts.append(rows.reshape(-1))
            blocks.append((units, size))
            taken |= {weight} if bias is None else {weight, bias}
        rest = [starts[i] + torch.arange(sizes[i]) for i in range(len(sizes)) if i not in taken]
        place = torch.cat([*parts, *rest])
        return cls(torch.argsort(place), tuple(blocks))

    @classmethod
    def of_network(cls, records: Sequence[ParamRecord], conditional: Collection[int], rest: int) -> BlockLayout:
        """Return the layout of the weights of a network, without those that are drawn conditionally.

        Args:
            records: The network's parameter table.
            conditional: Places in it of what is drawn elsewhere.
            rest: Number of latents that follow the weights.
        """
        drawn = [record for i, record in enumerate(records) if i not in conditional]
        layers: list[tuple[int, int | None]] = []
        for place, weight in enumerate(drawn):
            if weight.name != "weight" or len(weight.shape) < 2 or weight.extra.get("transposed", False):
                continue
            biases = [
                i
                for i, other in enumerate(drawn)
                if other.name == "bias" and other.layer == weight.layer and other.shape == weight.shape[:1]
            ]
            layers.append((place, biases[0] if len(biases) == 1 else None))
        return cls.of([*(record.shape for record in drawn), (rest,)], layers)
