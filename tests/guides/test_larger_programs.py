"""Guides of programs with networks in them: all latents together, parts, local and amortised latents, predictions."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive, Trace_ELBO, TraceEnum_ELBO
from pyro.infer.autoguide import AutoGuideList, AutoNormal
from torch import nn

from bayeshnet import AutoHypernet, fit, predict
from bayeshnet.models import RandomModule

ROWS = 12


@pytest.fixture(autouse=True)
def seed():
    pyro.set_rng_seed(0)


def mlp(inputs=1, outputs=1):
    return nn.Sequential(nn.Linear(inputs, 3), nn.Tanh(), nn.Linear(3, outputs))


def rows():
    x = torch.linspace(-1.0, 1.0, ROWS).unsqueeze(-1)
    return x, x.squeeze(-1).sin() + 0.1 * torch.randn(ROWS)


@pytest.mark.slow
def test_the_posterior_of_two_linear_networks_and_a_shift_is_the_exact_one():
    """Everything is Gaussian: y = f(u) + g(v) + shift + noise, five latents, the evidence in closed form."""
    f, g = RandomModule(nn.Linear(2, 1), name="f"), RandomModule(nn.Linear(1, 1, bias=False), name="g")
    u, v = torch.randn(ROWS, 2), torch.randn(ROWS, 1)
    y = u @ torch.tensor([1.0, -0.5]) + 0.5 * v.squeeze(-1) + 0.3 + 0.5 * torch.randn(ROWS)

    def model(u, v, y=None):
        shift = pyro.sample("shift", dist.Normal(0.0, 2.0))
        mean = (f(u) + g(v)).squeeze(-1) + shift
        with pyro.plate("data", len(u)):
            pyro.sample("obs", dist.Normal(mean, 0.5), obs=y)

    guide = AutoHypernet(model, example=(u, v, y), family="low_rank")
    fit(model, guide, (u, v, y), steps=1000, progress=False)

    design = torch.cat([torch.ones(ROWS, 1), u, torch.ones(ROWS, 1), v], 1).double()  # shift, f.weight, f.bias, g
    prior = torch.tensor([4.0, 0.5, 0.5, 1.0, 1.0]).double()
    assert [site.name for site in guide.sites] == ["shift", "f.weight", "f.bias", "g.weight"]
    covariance = torch.linalg.inv(design.T @ design / 0.25 + torch.diag(1.0 / prior))
    mean = covariance @ design.T @ y.double() / 0.25
    marginal = design @ torch.diag(prior) @ design.T + 0.25 * torch.eye(ROWS).double()
    evidence = float(torch.distributions.MultivariateNormal(torch.zeros(ROWS).double(), marginal).log_prob(y.double()))

    num = 20000
    elbo = -Trace_ELBO(num_particles=num, vectorize_particles=True, max_plate_nesting=1).loss(model, guide, u, v, y)
    assert evidence - 0.05 < elbo < evidence + 0.05  # of which 0.02 are Monte Carlo error
    draws = guide.sample_posterior(num)
    found = torch.cat([draws[site.name].reshape(num, -1) for site in guide.sites], 1).double()
    error = covariance.diagonal().sqrt()
    assert float(((found.mean(0) - mean) / error).abs().max()) < 0.1
    assert float((found.std(0) / error - 1.0).abs().max()) < 0.1
    pred = predict(model, guide, (u, v), num_samples=4000, sites=("obs",))["obs"]
    spread = (design @ covariance @ design.T).diagonal().sqrt()
    assert float((pred.epistemic.double() / spread - 1.0).abs().max()) < 0.15
    assert torch.equal(pred.aleatoric, torch.full((ROWS,), 0.5))


def local_latents(f):
    def model(x, y=None):
        with pyro.plate("data", len(x)):
            shift = pyro.sample("shift", dist.Normal(0.0, 0.3))
        mean = pyro.deterministic("mean", f(x).squeeze(-1))
        with pyro.plate("rows", len(x)):
            pyro.sample("obs", dist.Normal(mean + shift, 0.2), obs=y)

    return model


@pytest.mark.parametrize("family", ["hypernet", "block_gaussian", "mean_field", "low_rank", "mixture"])
def test_predictions_of_all_draws_in_one_call_are_those_of_each(family):
    f, (x, y) = RandomModule(mlp()), rows()
    model = local_latents(f)
    guide = AutoHypernet(model, example=(x, y), family=family)
    assert guide.latent_dim == ROWS + 10
    fit(model, guide, (x, y), steps=3, num_particles=4, progress=False)
    draws = guide.sample_posterior(6)
    sites = ("mean", "obs")
    together, alone = (predict(model, draws, (x,), sites=sites, parallel=parallel) for parallel in (True, False))
    for name in sites:
        torch.testing.assert_close(together[name].mean, alone[name].mean)
    again = Predictive(model, draws, parallel=True)(x)["mean"]
    torch.testing.assert_close(again.reshape(6, ROWS).mean(0), together["mean"].mean)


def test_a_guide_in_parts():
    """A hypernetwork for the weights, independent Gaussians for the rest; log q is that of both."""
    f, (x, y) = RandomModule(mlp()), rows()
    model = local_latents(f)
    guide = AutoGuideList(model)
    guide.append(AutoHypernet(poutine.block(model, hide=["shift"]), example=(x, y)))
    guide.append(AutoNormal(poutine.block(model, expose=["shift"])))
    history = fit(model, guide, (x, y), steps=20, num_particles=4, progress=False)
    assert len(history) == 20
    found = predict(model, guide, (x,), num_samples=5, sites=("mean",))["mean"]
    assert found.samples.shape == (5, ROWS)


def test_amortised_latents_beside_a_hypernetwork():
    """A decoder with random weights on codes whose posterior an encoder gives for each row, in minibatches."""
    decoder, encoder = RandomModule(mlp(1, 2), name="decoder"), nn.Linear(2, 2)
    data = torch.randn(40, 1) @ torch.tensor([[1.0, -1.0]]) + 0.1 * torch.randn(40, 2)

    def model(chosen):
        decode = decoder.sample()
        with pyro.plate("rows", 40, subsample=chosen):
            code = pyro.sample("code", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("obs", dist.Normal(decode(code), 0.3).to_event(1), obs=data[chosen])

    weights = AutoHypernet(poutine.block(model, hide=["code"]), example=(torch.arange(8),))

    class Amortised(nn.Module):
        def __init__(self):
            super().__init__()
            self.weights, self.encoder = weights, encoder

        def forward(self, chosen):
            self.weights(chosen)
            pyro.module("encoder", self.encoder)
            loc, log_scale = self.encoder(data[chosen]).chunk(2, -1)
            with pyro.plate("rows", 40, subsample=chosen):
                pyro.sample("code", dist.Normal(loc, log_scale.exp()).to_event(1))

    guide, before = Amortised(), encoder.weight.detach().clone()
    batches = [(part,) for part in torch.arange(40).split(8)]
    history = fit(model, guide, batches, steps=100, num_particles=4, progress=False)
    assert not torch.equal(encoder.weight, before)
    # One step has a standard deviation of some 60 nats by its batch and draws; the mean of 20 a quarter of that.
    assert math.fsum(history.losses[-20:]) / 20 < math.fsum(history.losses[:20]) / 20 - 60.0


@pytest.mark.slow
def test_an_enumerated_latent_beside_a_network():
    """Each row is an outlier or not: the hypernetwork has the other latents, and the ELBO sums the labels out."""
    f, (x, y) = RandomModule(mlp()), rows()
    y[3] += 4.0

    def model(x, y=None):
        share = pyro.sample("share", dist.Beta(1.0, 9.0))
        mean = pyro.deterministic("mean", f(x).squeeze(-1))
        with pyro.plate("data", len(x)):
            outlier = pyro.sample("outlier", dist.Bernoulli(share), infer={"enumerate": "parallel"})
            pyro.sample("obs", dist.Normal(mean, torch.where(outlier > 0, 3.0, 0.1)), obs=y)

    guide = AutoHypernet(poutine.block(model, hide=["outlier"]), example=(x, y))
    elbo = TraceEnum_ELBO(num_particles=8, vectorize_particles=True, max_plate_nesting=1)
    fit(model, guide, (x, y), steps=600, loss=elbo, progress=False)
    found = predict(model, guide, (x,), num_samples=400, sites=("mean",))["mean"].mean
    others = torch.arange(ROWS) != 3
    assert float((found - x.squeeze(-1).sin())[others].square().mean().sqrt()) < 0.15
    # Where each label is drawn: the posterior odds of the label of that row, at draws of everything else.
    draws = guide.sample_posterior(200)
    mean = torch.stack([_mean_at(f, {name: value[i] for name, value in draws.items()}, x) for i in range(200)])
    odds = [
        dist.Normal(mean, scale).log_prob(y) + share.log().unsqueeze(-1)
        for scale, share in ((0.1, 1.0 - draws["share"]), (3.0, draws["share"]))
    ]
    probability = torch.sigmoid(odds[1] - odds[0]).mean(0)
    assert float(probability[3]) > 0.99
    assert float(probability[others].max()) < 0.3


def _mean_at(f, values, x):
    return poutine.condition(f, data=values)(x).squeeze(-1).detach()
