"""Posteriors of two latents that no Gaussian fits, and the KL of any distribution of draws from them.

Every target is a Pyro model with one latent ``w`` of two numbers. Its density is normalised on a grid, from the model's
own joint density.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

__all__ = ["TARGETS", "Grid", "Target", "grid_kl"]


@dataclass(frozen=True, slots=True)
class Target:
    """A model and where its posterior lies.

    Attributes:
        model: A Pyro model without arguments whose only latent is ``w [2]``.
        limit: The posterior lies in ``[-limit, limit]^2``, but for a mass that does not matter.
        title: For the picture.
    """

    model: Callable[[], None]
    limit: float
    title: str

    def log_joint(self, w: Tensor) -> Tensor:
        """The model's log joint density at ``w [N, 2]``: ``[N]``."""
        with pyro.plate("points", len(w), dim=-2), poutine.condition(data={"w": w.unsqueeze(1)}):
            trace = poutine.trace(self.model).get_trace()
        trace.compute_log_prob()
        parts = [node["log_prob"] for node in trace.nodes.values() if node["type"] == "sample" and "log_prob" in node]
        return torch.stack([part.reshape(len(w), -1).sum(1) for part in parts if part.numel() >= len(w)]).sum(0)


# ---------------------------------------------------------------------- the models


def _density(log_density: Callable[[Tensor], Tensor]) -> Callable[[], None]:
    """A given density, written as a flat prior and a factor: Pyro's guides accept no mixture as a prior."""

    def model() -> None:
        prior = dist.Normal(torch.zeros(2), 3.0).to_event(1)
        w = pyro.sample("w", prior)
        pyro.factor("density", log_density(w) - prior.log_prob(w))

    return model


def _banana(w: Tensor) -> Tensor:
    """w1 ~ N(0, 1), w2 | w1 ~ N(w1^2 - 1, 0.4^2)."""
    first, second = w.unbind(-1)
    return dist.Normal(0.0, 1.0).log_prob(first) + dist.Normal(first.square() - 1.0, 0.4).log_prob(second)


def _cross() -> dist.TorchDistribution:
    cov = torch.tensor([[[1.0, 0.9], [0.9, 1.0]], [[1.0, -0.9], [-0.9, 1.0]]])
    return _equal_parts(dist.MultivariateNormal(torch.zeros(2, 2), cov))


def _two_modes() -> dist.TorchDistribution:
    return _equal_parts(dist.Normal(torch.tensor([[-1.5, 0.0], [1.5, 0.0]]), 0.6).to_event(1))


def _equal_parts(parts: dist.TorchDistribution) -> dist.TorchDistribution:
    return dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), parts)


def _labels() -> Callable[[], None]:
    """The means of a mixture of two Gaussians, from 15 rows: exchanging the means changes nothing."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(15, generator=generator) + torch.where(torch.arange(15) < 8, -1.3, 1.3)

    def model() -> None:
        means = pyro.sample("w", dist.Normal(torch.zeros(2), 2.0).to_event(1))
        parts = dist.Normal(means, 1.0)  # which row belongs to which mean is summed out
        with pyro.plate("rows", len(y)):
            pyro.sample("obs", _equal_parts(parts), obs=y)

    return model


def _network(activation: Callable[[Tensor], Tensor], slope: float, noise: float) -> Callable[[], None]:
    """A network of one hidden unit without biases, y = w2 a(w1 x): both signs may change together."""
    generator = torch.Generator().manual_seed(1)
    x = torch.linspace(-2.0, 2.0, 10)
    y = slope * activation(x) + noise * torch.randn(10, generator=generator)

    def model() -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.5).to_event(1))
        out = w[..., 1] * activation(w[..., 0] * x)
        with pyro.plate("rows", len(y)):
            pyro.sample("obs", dist.Normal(out, noise), obs=y)

    return model


TARGETS: dict[str, Target] = {
    "banana": Target(_density(_banana), 12.0, "banana"),
    "cross": Target(_density(_cross().log_prob), 5.0, "two crossed Gaussians"),
    "two_modes": Target(_density(_two_modes().log_prob), 5.0, "two modes"),
    "labels": Target(_labels(), 7.0, "means of a mixture (label switching)"),
    "linear_net": Target(_network(lambda h: h, 0.8, 0.8), 6.0, "linear network, y = w2 w1 x"),
    "tanh_net": Target(_network(torch.tanh, 1.0, 0.4), 7.0, "network, y = w2 tanh(w1 x)"),
}


# ---------------------------------------------------------------------- the measure


class Grid:
    """A target's probability of each cell of a fine grid, and of all that lies outside.

    Args:
        target: The target.
        bins: Cells per axis.
    """

    def __init__(self, target: Target, bins: int = 240) -> None:
        self.limit, self.bins = target.limit, bins
        width = 2.0 * target.limit / bins
        edges = torch.linspace(-target.limit, target.limit, bins + 1, dtype=torch.double)
        self.centres = 0.5 * (edges[1:] + edges[:-1])
        mass = torch.zeros(bins * bins, dtype=torch.double)
        # The mean density of a cell, by Gauss-Legendre points of order 3 along each axis.
        nodes = ((-math.sqrt(0.6), 5 / 18), (0.0, 8 / 18), (math.sqrt(0.6), 5 / 18))
        for dx, weight_x in nodes:
            for dy, weight_y in nodes:
                points = torch.cartesian_prod(self.centres + 0.5 * dx * width, self.centres + 0.5 * dy * width)
                mass += weight_x * weight_y * target.log_joint(points.float()).double().exp()
        inside = mass * width**2
        outer = self._outer_mass(target)
        self.evidence = float(inside.sum()) + outer
        self.probability = inside / self.evidence
        self.outside = max(outer / self.evidence, 1e-9)

    @staticmethod
    def _outer_mass(target: Target) -> float:
        """Mass between the grid and one three times as wide, by a coarse sum."""
        line = torch.linspace(-3.0 * target.limit, 3.0 * target.limit, 601)
        points = torch.cartesian_prod(line, line)
        beyond = points[points.abs().amax(1) > target.limit]
        width = float(line[1] - line[0])
        return float(target.log_joint(beyond).double().exp().sum()) * width**2


def grid_kl(draws: Tensor, grid: Grid) -> tuple[float, float]:
    """KL of the distribution of draws ``[N, 2]`` from a target, and its standard error, in nats.

    Both are taken cell by cell, and what lies outside of the grid is one cell more. The plug-in entropy of N draws in K
    occupied cells is too low by ``(K - 1) / 2N`` on average (Miller and Madow), which is corrected. That holds for
    cells with more than a few draws, so that a block of 4 x 4 cells is one cell where neither the draws nor the target
    would give each of them ten.

    Args:
        draws: Of any origin; those that are not finite count as outside.
        grid: The target's cells.
    """
    num, bins = len(draws), grid.bins
    draws = draws.double()
    inside = (draws.abs().amax(1) < grid.limit) & torch.isfinite(draws).all(1)
    cells = ((draws[inside] + grid.limit) * (bins / (2.0 * grid.limit))).long().clamp(0, bins - 1)
    counts = torch.bincount(cells[:, 0] * bins + cells[:, 1], minlength=bins**2).double()
    fine = torch.stack([counts, num * grid.probability]).reshape(2, bins, bins)
    blocks = fine.reshape(2, bins // 4, 4, bins // 4, 4).sum((2, 4))
    split = blocks.amax(0) >= 16 * 10
    whole = split.repeat_interleave(4, 0).repeat_interleave(4, 1)
    outside = fine.new_tensor([[float((~inside).sum())], [num * grid.outside]])
    found, expected = torch.cat([fine[:, whole], blocks[:, ~split], outside], 1)
    used = found > 0
    share = found[used] / num
    ratio = found[used].log() - expected[used].clamp_min(1e-300).log()
    kl = float((share * ratio).sum())
    variance = float((share * ratio.square()).sum()) - kl**2
    return kl - (int(used.sum()) - 1) / (2.0 * num), math.sqrt(max(variance, 0.0) / num)
