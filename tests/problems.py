"""Pyro models that guides are tried on."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from bayeshnet import BayesianModel, likelihoods, priors
from bayeshnet.models import emit_param_sites

EFFECTS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


def eight_schools(errors, effects=None):
    """Rubin's eight schools, without centring; all schools share a mean far from 0."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(errors)):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        return pyro.sample("obs", dist.Normal(mu + tau * eta, errors), obs=effects)


def away_from_zero(y):
    """Constrained latents whose Jacobians do not average out."""
    scale = pyro.sample("scale", dist.LogNormal(1.0, 0.5))
    share = pyro.sample("share", dist.Dirichlet(torch.tensor([2.0, 3.0, 4.0])))
    with pyro.plate("data", len(y)):
        return pyro.sample("obs", dist.Normal(3.0 + share[..., 0], scale), obs=y)


def bnn(*, dataset_size=None, flat=False, dtype=torch.float32):
    """A small network with an inferred noise level, and data."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 2, generator=generator, dtype=dtype)
    y = x[:, 0].sin() + 0.1 * torch.randn(30, generator=generator, dtype=dtype)
    net = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1)).to(dtype)
    prior = dist.Gamma(torch.tensor(6.0, dtype=dtype), torch.tensor(6.0, dtype=dtype))
    model = BayesianModel(
        net,
        prior=priors.Normal(scale="fan_in"),
        likelihood=likelihoods.Normal(scale=prior),
        dataset_size=dataset_size,
        flat=flat,
    )
    return model, (x, y)


Y = torch.tensor([1.0, 2.0, 4.0])


def normal_model(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("data", len(y)):
        pyro.sample("obs", dist.Normal(mu, 1.0), obs=y)


class Decaying(nn.Module):
    """A guide with a parameter that nothing but its decay changes."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(()))
        self.idle = nn.Parameter(torch.tensor([2.0, -1.0]))

    def forward(self, y):
        emit_param_sites("guide", self)
        pyro.sample("mu", dist.Normal(self.loc + 0.0 * self.idle.sum(), 0.1))

    def param_groups(self, lr):
        return [{"params": [self.loc], "lr": lr}, {"params": [self.idle], "lr": 0.5 * lr, "decay": 3.0}]
