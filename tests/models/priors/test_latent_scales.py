"""Hierarchical scales and horseshoes: densities, posteriors, guides, predictions."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, Predictive
from pyro.infer.autoguide import AutoNormal
from torch import nn

from bayeshnet import (
    AutoHypernet,
    AutoHypernetDelta,
    AutoHypernetNormal,
    BayesianModel,
    fit,
    importance_sample,
    likelihoods,
    predict,
    priors,
)
from bayeshnet.evaluation import ensemble_draws
from bayeshnet.models.prior_draws import prior_draws

NOISE = likelihoods.Normal(scale=0.5)


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))


def log_prior(model, values):
    trace = poutine.trace(poutine.condition(model.sample_latents, data=values)).get_trace()
    trace.compute_log_prob()
    return {name: trace.nodes[name]["log_prob"].detach() for name in values}


@pytest.mark.parametrize("by", ["network", "layer", "tensor", "unit", "input", "weight"])
@pytest.mark.parametrize("flat", [False, True])
def test_hierarchical_density(by, flat):
    torch.manual_seed(0)
    prior = priors.Hierarchical(dist.HalfNormal(2.0), by=by, base=priors.Normal(0.5))
    model = BayesianModel(net().double(), prior, NOISE)
    draws = {name: value[0] for name, value in prior_draws(model, 2).items()}
    scale_of = {
        "network": lambda layer, kind: draws["prior.scale"],
        "layer": lambda layer, kind: draws[f"prior.{layer}.scale"],
        "tensor": lambda layer, kind: draws[f"prior.{layer}.{kind}.scale"],
        "unit": lambda layer, kind: draws[f"prior.{layer}.{kind}.scale"].reshape(-1, *[1] * (kind == "weight")),
        "input": lambda layer, kind: draws[f"prior.{layer}.{kind}.scale"],
        "weight": lambda layer, kind: draws[f"prior.{layer}.{kind}.scale"],
    }[by]
    expected = 0.0
    for name in ("0.weight", "0.bias", "2.weight", "2.bias"):
        scale = (0.5 * scale_of(*name.split("."))).numpy()
        expected += scipy.stats.norm.logpdf(draws[name].numpy(), 0.0, scale).sum()
    own = [name for name in draws if name.startswith("prior.")]
    scales = sum(scipy.stats.halfnorm.logpdf(draws[name].numpy(), 0.0, 2.0).sum() for name in own)
    assert list(draws)[: len(own)] == own
    if flat:
        model = BayesianModel(net().double(), prior, NOISE, flat=True)
        weights = [draws.pop(name).reshape(-1) for name in ("0.weight", "0.bias", "2.weight", "2.bias")]
        draws["weights"] = torch.cat(weights)
    found = log_prior(model, draws)
    np.testing.assert_allclose(sum(float(found[name]) for name in found if name in own), scales, rtol=1e-10)
    np.testing.assert_allclose(sum(float(found[name]) for name in found if name not in own), expected, rtol=1e-10)


@pytest.mark.parametrize("slab", [None, (4.0, 2.0)])
def test_horseshoe_density(slab):
    torch.manual_seed(0)
    model = BayesianModel(nn.Linear(6, 2).double(), priors.Horseshoe(0.3, slab=slab), NOISE)
    draws = {name: value[0] for name, value in prior_draws(model, 2).items()}
    found = log_prior(model, draws)
    whole, local = draws["prior.weight.global"], draws["prior.weight.local"]
    scale = whole * local
    if slab is not None:
        c2 = draws["prior.weight.slab"]
        exact = scipy.stats.invgamma.logpdf(float(c2), 2.0, scale=8.0)
        assert float(found["prior.weight.slab"]) == pytest.approx(exact, rel=1e-10)
        scale = whole * (c2 * local**2 / (c2 + whole**2 * local**2)).sqrt()
    exact = scipy.stats.norm.logpdf(draws["weight"].numpy(), 0.0, scale.numpy()).sum()
    assert float(found["weight"]) == pytest.approx(exact, rel=1e-10)
    exact = scipy.stats.halfcauchy.logpdf(local.numpy()).sum()
    assert float(found["prior.weight.local"]) == pytest.approx(exact, rel=1e-10)
    assert float(found["prior.weight.global"]) == pytest.approx(scipy.stats.halfcauchy.logpdf(float(whole), 0, 0.3))


def test_moments_of_prior_draws():
    """With a scale of a half-normal the variance of a weight is its second moment times that of the base."""
    torch.manual_seed(0)
    prior = priors.Hierarchical(dist.HalfNormal(1.5), base=priors.Laplace(1.0))
    draws = prior_draws(BayesianModel(nn.Linear(2, 1).double(), prior, NOISE), 40_000)["weight"][:, 0, 0]
    second, fourth = 1.5**2 * 2.0, 3 * 1.5**4 * 24.0
    assert abs(float(draws.square().mean()) - second) < 4 * math.sqrt((fourth - second**2) / 40_000)


def linear_problem():
    """Three weights with one scale, and the exact posterior means of scale and weights by quadrature."""
    torch.manual_seed(3)
    x = torch.randn(12, 3, dtype=torch.float64)
    y = x @ torch.tensor([1.5, -0.5, 0.2], dtype=torch.float64) + torch.randn(12, dtype=torch.float64)
    prior = priors.Hierarchical(dist.HalfNormal(1.0), base=priors.Normal(1.0))
    model = BayesianModel(nn.Linear(3, 1, bias=False).double(), prior, likelihoods.Normal(scale=1.0))
    taus = (torch.arange(2000, dtype=torch.float64) + 0.5) * (8.0 / 2000)
    logs, means = [], []
    for tau in taus:
        cov = tau**2 * x @ x.T + torch.eye(12, dtype=torch.float64)
        logs.append(torch.distributions.MultivariateNormal(torch.zeros_like(y), cov).log_prob(y))
        means.append(tau**2 * x.T @ torch.linalg.solve(cov, y))
    log = torch.stack(logs) + dist.HalfNormal(torch.ones((), dtype=torch.float64)).log_prob(taus)
    weight = torch.softmax(log, 0)
    second = float((weight * taus**2).sum())
    mean = float((weight * taus).sum())
    return model, x, y, (mean, math.sqrt(second - mean**2)), (weight[:, None] * torch.stack(means)).sum(0)


def test_hierarchical_posterior_against_quadrature():
    model, x, y, (mean, std), weights = linear_problem()
    torch.manual_seed(0)
    draws = prior_draws(model, 100_000)
    p = torch.softmax(model.log_likelihood(x, y, draws), 0)
    size = float(1.0 / p.square().sum())
    assert size > 500
    assert abs(float((p * draws["prior.weight.scale"]).sum()) - mean) < 4 * std / math.sqrt(size)
    found = (p[:, None] * draws["weight"][:, 0]).sum(0)
    assert float((found - weights).abs().max()) < 4 * 0.35 / math.sqrt(size)


@pytest.mark.slow
def test_hierarchical_posterior_of_nuts_and_of_a_guide():
    model, x, y, (mean, std), weights = linear_problem()
    pyro.set_rng_seed(0)
    mcmc = MCMC(NUTS(model), num_samples=800, warmup_steps=300, disable_progbar=True)
    mcmc.run(x, y)
    draws = mcmc.get_samples()
    assert abs(float(draws["prior.weight.scale"].mean()) - mean) < 5 * std / math.sqrt(200)
    assert float((draws["weight"].mean(0)[0] - weights).abs().max()) < 0.1
    assert predict(model, mcmc, x).draws.shape == (800, 12)
    guide = AutoHypernet(model, example=(x, y))
    fit(model, guide, (x, y), steps=1500, progress=False)
    made = guide.sample_posterior(4000)
    assert abs(float(made["prior.weight.scale"].mean()) - mean) < 0.2 * std
    assert float((made["weight"].mean(0)[0] - weights).abs().max()) < 0.1


PRIORS = [priors.Hierarchical(by="unit"), priors.Horseshoe(0.3, slab=(4.0, 2.0))]


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("prior", PRIORS, ids=["hierarchical", "horseshoe"])
def test_guides_and_what_follows(prior, flat):
    torch.manual_seed(0)
    pyro.set_rng_seed(0)
    x = torch.randn(15, 2)
    y = x[:, 0]
    model = BayesianModel(net(), prior, NOISE, flat=flat)
    guides = [AutoHypernet(model, example=(x, y)), AutoNormal(model)]
    if not flat:
        guides += [AutoHypernetNormal(model, example=(x, y)), AutoHypernetDelta(model, example=(x, y))]
    for guide in guides:
        history = fit(model, guide, (x, y), steps=4, progress=False)
        assert all(math.isfinite(loss) for loss in history.losses)
        assert predict(model, guide, x, 6).draws.shape == (6, 15)
    guide = guides[0]
    weighted = importance_sample(model, guide, (x, y), 50)
    assert set(weighted.draws) == set(model.latent_shapes)
    assert bool(torch.isfinite(weighted.log_weights).all())
    new = model.updated(guide)
    assert list(new.latent_shapes) == ["weights"]
    assert new(x).shape == (15,)
    assert model.updated(guides[1]).prior.origin == "the Gaussian of AutoNormal"
    assert Predictive(model, num_samples=7, parallel=True)(x)["obs"].shape == (7, 15)
    # Predictions depend on the weights alone.
    draws = {name: value for name, value in guide.sample_posterior(4).items() if not name.startswith("prior.")}
    assert predict(model, draws, x).draws.shape == (4, 15)
    networks = [net() for _ in range(3)]
    assert predict(model, networks, x).draws.shape == (3, 15)
    assert len(ensemble_draws(model, networks)) == (1 if flat else 4)


def test_vectorised_particles_are_the_density_of_each():
    torch.manual_seed(0)
    model = BayesianModel(net().double(), priors.Horseshoe(0.3, slab=(4.0, 2.0)), NOISE)
    draws = prior_draws(model, 5)
    placed = {name: value.unsqueeze(1) for name, value in draws.items()}

    def program():
        with pyro.plate("particles", 5, dim=-2):
            model.sample_latents()

    trace = poutine.trace(poutine.condition(program, data=placed)).get_trace()
    trace.compute_log_prob()
    for i in range(5):
        single = log_prior(model, {name: value[i] for name, value in draws.items()})
        for name, value in single.items():
            torch.testing.assert_close(trace.nodes[name]["log_prob"][i, 0], value)


@pytest.mark.slow
def test_a_horseshoe_finds_the_relevant_coefficients():
    torch.manual_seed(0)
    pyro.set_rng_seed(0)
    x = torch.randn(100, 20)
    truth = torch.zeros(20)
    truth[[2, 7, 11]] = torch.tensor([2.0, -1.5, 1.0])
    y = x @ truth + 0.5 * torch.randn(100)
    model = BayesianModel(nn.Linear(20, 1, bias=False), priors.Horseshoe(0.05, slab=(4.0, 2.0)), NOISE)
    guide = AutoHypernet(model, example=(x, y))
    fit(model, guide, (x, y), steps=2500, progress=False)
    w = guide.sample_posterior(2000)["weight"][:, 0]
    relevant = truth != 0
    assert float((w.mean(0) - truth)[relevant].abs().max()) < 0.2
    assert float(w.mean(0)[~relevant].abs().max()) < 0.1
    # Narrower than least squares where nothing is, whose standard error is 0.5 / sqrt(100).
    assert float(w.std(0)[~relevant].mean()) < 0.04
