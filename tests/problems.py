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


def eight_schools_moments():
    """Exact posterior means and standard deviations, by quadrature over tau; mu and theta given tau are Gaussian."""
    y, variance = EFFECTS.double(), ERRORS.double().square()
    log_tau = torch.linspace(-12.0, 10.0, 20_001, dtype=torch.float64)
    tau = log_tau.exp().unsqueeze(-1)
    spread = tau.square() + variance  # of a school's effect around mu, [tau, school]
    precision = 1.0 / 25.0 + (1.0 / spread).sum(-1)
    mu = (y / spread).sum(-1) / precision  # given tau
    fit = dist.Normal(0.0, spread.sqrt()).log_prob(y).sum(-1) + 0.5 * precision * mu.square() - 0.5 * precision.log()
    weight = (fit + dist.HalfCauchy(5.0).log_prob(tau[:, 0]) + log_tau).softmax(0)
    shrink = tau.square() / spread  # theta given mu and tau has mean mu + shrink (y - mu)
    theta = shrink * y + (1.0 - shrink) * mu.unsqueeze(-1)
    inner = shrink * variance + ((1.0 - shrink).square().T / precision).T
    moments = {}
    for name, mean, var in (("mu", mu, 1.0 / precision), ("tau", tau[:, 0], 0.0 * precision), ("theta", theta, inner)):
        of_all = torch.tensordot(weight, mean, 1)
        moments[name] = of_all, (torch.tensordot(weight, var + mean.square(), 1) - of_all.square()).sqrt()
    return moments


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
