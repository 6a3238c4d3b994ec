"""Two-dimensional densities that no Gaussian fits, with known normalisation."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor


class Banana(dist.TorchDistribution):
    """w1 ~ N(0, 1), w2 | w1 ~ N(w1^2 - 1, 0.4^2)."""

    arg_constraints = {}  # noqa: RUF012 - the form that torch prescribes
    support = constraints.real_vector

    def __init__(self):
        super().__init__(torch.Size(), torch.Size((2,)), validate_args=False)

    def expand(self, batch_shape, _instance=None):
        new = type(self)()
        dist.TorchDistribution.__init__(new, torch.Size(batch_shape), torch.Size((2,)), validate_args=False)
        return new

    def sample(self, sample_shape=torch.Size()):
        shape = torch.Size(sample_shape) + self.batch_shape
        first = torch.randn(shape)
        return torch.stack([first, first.square() - 1 + 0.4 * torch.randn(shape)], -1)

    def log_prob(self, value):
        first, second = value.unbind(-1)
        return dist.Normal(0.0, 1.0).log_prob(first) + dist.Normal(first.square() - 1, 0.4).log_prob(second)


def cross() -> dist.TorchDistribution:
    """Two crossed Gaussians of correlation +-0.9."""
    cov = torch.tensor([[[1.0, 0.9], [0.9, 1.0]], [[1.0, -0.9], [-0.9, 1.0]]])
    parts = dist.MultivariateNormal(torch.zeros(2, 2), cov)
    return dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), parts)


def two_modes() -> dist.TorchDistribution:
    """Two Gaussians, 3 apart with standard deviation 0.6."""
    loc = torch.tensor([[-1.5, 0.0], [1.5, 0.0]])
    parts = dist.Normal(loc, 0.6).to_event(1)
    return dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), parts)


TARGETS: dict[str, Callable[[], dist.TorchDistribution]] = {"banana": Banana, "cross": cross, "two_modes": two_modes}


def target_model(name: str) -> Callable[[], None]:
    """The target as the prior of a Pyro model without data."""

    def model():
        pyro.sample("w", TARGETS[name]())

    return model


def histogram_kl(
    draws: Tensor, log_target: Callable[[Tensor], Tensor], *, limit: float = 6.0, bins: int = 240
) -> float:
    """KL of the distribution of 2-D draws from a density, by a histogram of fixed range, Miller-Madow corrected.

    The plug-in entropy of N draws in K occupied cells is too low by (K - 1) / 2N on average.
    """
    draws = draws.double()
    edges = torch.linspace(-limit, limit, bins + 1, dtype=torch.double)
    inside = draws.abs().amax(1) < limit
    cells = torch.bucketize(draws[inside].contiguous(), edges) - 1
    counts = torch.bincount(cells[:, 0] * bins + cells[:, 1], minlength=bins * bins).double()
    share = counts / draws.shape[0]
    centres = 0.5 * (edges[1:] + edges[:-1])
    # The mean of the target over a cell, by 3 x 3 points in it.
    width = 2 * limit / bins
    mass = torch.zeros(bins, bins, dtype=torch.double)
    for dx in (-1 / 3, 0.0, 1 / 3):
        for dy in (-1 / 3, 0.0, 1 / 3):
            grid = torch.cartesian_prod(centres + dx * width, centres + dy * width)
            mass += log_target(grid.float()).double().exp().reshape(bins, bins) / 9
    log_mass = (mass.reshape(-1) * width**2).clamp_min(1e-300).log()
    used = counts > 0
    kl = (share[used] * (share[used].log() - log_mass[used])).sum()
    return float(kl - (int(used.sum()) - 1) / (2 * draws.shape[0]))
