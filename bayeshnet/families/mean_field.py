"""Independent Gaussians."""

from __future__ import annotations

import math
from typing import cast

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions.transforms import AffineTransform, Transform

from bayeshnet.families.base import Family, Start, assign, placed

__all__ = ["MeanField"]


class MeanField(Family, short_form="mean_field"):
    """Family of independent Gaussians.

    Example:
        >>> MeanField().build(Start([[3, 2]], torch.zeros(6))).distribution().rsample((5,)).shape
        torch.Size([5, 6])
    """

    def init_parameters(self, start: Start) -> None:
        """See :meth:`Family.init_parameters`."""
        self.loc = nn.Parameter(start.mean())
        self.log_scale = nn.Parameter(torch.full_like(start.like, math.log(start.scale)))

    def num_parameters(self, start: Start) -> int:
        """See :meth:`Family.num_parameters`: two for each latent."""
        return 2 * start.size

    def distribution(self, loc: Tensor | None = None, scale: Tensor | None = None) -> TorchDistribution:
        """See :meth:`Family.distribution`."""
        mean, std = placed(self.loc, self.log_scale.exp(), loc, scale)
        return cast("TorchDistribution", dist.Normal(mean, std, validate_args=False).to_event(1))

    def noise_transform(self, loc: Tensor, scale: Tensor) -> Transform:
        """See :meth:`Family.noise_transform`."""
        return AffineTransform(*placed(self.loc, self.log_scale.exp(), loc, scale), event_dim=1)

    def warm_start(self, mean: Tensor, std: Tensor) -> None:
        """See :meth:`Family.warm_start`."""
        assign(self.loc, mean)
        assign(self.log_scale, std.log())
