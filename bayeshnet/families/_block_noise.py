"""Trainable Gaussian noise that correlates the weights of each unit."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bayeshnet.families._blocks import BlockLayout
from bayeshnet.families.base import Start, assign

__all__ = ["BlockNoise"]


class BlockNoise(nn.Module):
    """Means, scales and the correlations within units, for each of C components; without correlations at the start.

    Args:
        starts: Start of the means ``[n]`` of each component.
        start_scale: Start of the standard deviations.
        layout: Which latents belong to the same unit.
    """

    def __init__(self, starts: Sequence[Tensor], start_scale: float, layout: BlockLayout) -> None:
        super().__init__()
        first = starts[0]
        self.blocks = layout.blocks
        self.register_buffer("order", layout.order.to(first.device))
        self.register_buffer("place", torch.argsort(self.order))
        self.order: Tensor
        self.place: Tensor
        self.loc = nn.Parameter(torch.stack([start.detach()[self.place] for start in starts]))
        self.log_scale = nn.Parameter(torch.full_like(self.loc, math.log(start_scale)))
        self.factors = nn.ParameterList(
            first.new_zeros(len(starts), units, size, size) for units, size in layout.blocks
        )

    def params(self, loc: Tensor | None, scale: Tensor | None) -> tuple[Tensor, Tensor, list[Tensor], BlockLayout]:
        """Means, log-scales, factors and layout of ``loc + scale * u``."""
        means, log_scale = self.loc, self.log_scale
        if scale is not None:
            by_unit = scale.expand(means.shape[1])[self.place]
            means, log_scale = means * by_unit, log_scale + by_unit.log()
        if loc is not None:
            means = means + loc.expand(means.shape[1])[self.place]
        return means, log_scale, list(self.factors), BlockLayout(self.order, self.blocks)

    @classmethod
    def start(cls, start: Start, num_components: int) -> BlockNoise:
        """Return the noise of so many components, which start in different places."""
        starts = [start.mean() for _ in range(num_components)]
        if not bool(torch.as_tensor(start.spread).any()):  # all in the place that was asked for
            starts = [starts[0], *(each + start.apart * start.noise() for each in starts[1:])]
        return cls(starts, start.scale, start.blocks or BlockLayout.of(start.shapes, []))

    @torch.no_grad()
    def warm_start(self, mean: Tensor, std: Tensor) -> None:
        """Give each component these means and standard deviations, without correlations; NaN leaves what is there."""
        for factor in self.factors:
            factor.zero_()
        for k in range(len(self.loc)):
            assign(self.loc[k], mean[self.place])
            assign(self.log_scale[k], std.log()[self.place])
