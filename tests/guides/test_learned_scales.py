"""Guides for models whose prior scales are learned."""

from __future__ import annotations

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Predictive, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn

from bayeshnet import (
    AutoHypernet,
    AutoHypernetDelta,
    AutoHypernetNormal,
    BayesianModel,
    fit,
    likelihoods,
    load,
    local_reparameterisation,
    predict,
    priors,
    save,
)
from tests.problems import bnn

NOISE = 0.5


def linear(*, flat=False, scale=1.0):
    """Linear regression, with weights of scale 0.1 and a bias of 2 in truth."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(60, 12, generator=generator)
    w = 0.1 * torch.randn(12, generator=generator)
    y = x @ w + 2.0 + NOISE * torch.randn(60, generator=generator)
    prior = priors.Normal(scale=scale, learn=True)
    return BayesianModel(nn.Linear(12, 1), prior, likelihoods.Normal(scale=NOISE), flat=flat), (x, y)


def evidence(x, y, weight_scale, bias_scale):
    """Exact log marginal likelihood."""
    x, y = x.double(), y.double()
    cov = weight_scale**2 * x @ x.T + bias_scale**2 + NOISE**2 * torch.eye(len(x), dtype=torch.float64)
    return float(torch.distributions.MultivariateNormal(torch.zeros_like(y), cov).log_prob(y))


def best_evidence(x, y):
    grid = torch.logspace(-2, 1, 121).tolist()
    weight = max(grid, key=lambda s: evidence(x, y, s, 2.0))
    bias = max(grid, key=lambda s: evidence(x, y, weight, s))
    return max(evidence(x, y, s, bias) for s in grid)


@pytest.mark.parametrize(("flat", "scale"), [(False, 0.3), (True, 3.0)])
def test_scales_reach_maximum_marginal_likelihood(flat, scale):
    """A conditional layer is exact for a linear model, so the ELBO's maximum is that of the evidence.

    The start is far off in either direction. With Adam at its last learning rates (0.02 times 0.03) the factors are
    within about 0.05 of the optimum, and the evidence is quadratic there with a curvature below 2 x 12: 0.05 nats.
    """
    torch.manual_seed(0)
    model, (x, y) = linear(flat=flat, scale=scale)
    assert best_evidence(x, y) - evidence(x, y, scale, scale) > 1.0  # something is there to be learned
    guide = AutoHypernet(model, example=(x, y))
    assert guide.inducing is not None
    fit(model, guide, (x, y), steps=500, lr=0.03, num_particles=8, progress=False)
    factors = model.scale_factors
    found = evidence(x, y, scale * float(factors["weight"]), scale * float(factors["bias"]))
    assert best_evidence(x, y) - found < 0.05


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("family", ["hypernet", "mean_field", "low_rank"])
def test_every_family_accepts_and_trains_them(family, flat):
    model, data = learned_bnn(flat=flat)
    guide = AutoHypernet(model, example=data, family=family)
    assert guide.inducing is not None
    scale = guide.scale.clone()
    first = fit(model, guide, data, steps=20, num_particles=4, progress=False)
    assert bool((model.learned_scales.log_factor != 0.0).all())
    # The guide keeps the coordinates that it was built with.
    assert torch.equal(guide.scale, scale)
    assert math.isfinite(first.losses[-1])
    assert not list(pyro.get_param_store().keys())
    assert predict(model, guide, data[0], num_samples=3).draws.shape == (3, 30)
    assert Predictive(model, guide=guide, num_samples=3, parallel=True)(data[0])["obs"].shape[0] == 3


def learned_bnn(*, flat=False):
    plain, data = bnn(flat=flat)
    net = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1))
    return BayesianModel(net, priors.Normal(scale="fan_in", learn="inputs"), plain.likelihood, flat=flat), data


def test_closed_form_kl_and_other_guides():
    """Guides with plain Normal sites: the KL of the mean-field ELBO has a gradient for the scales too."""
    for make in (lambda m, d: AutoHypernetNormal(m, example=d), lambda m, d: AutoNormal(m)):
        model, data = learned_bnn()
        loss = TraceMeanField_ELBO(num_particles=4, vectorize_particles=True)
        fit(local_reparameterisation(model), make(model, data), data, steps=5, loss=loss, progress=False)
        assert bool((model.learned_scales.log_factor != 0.0).all())
        pyro.clear_param_store()


def test_checkpoint(tmp_path):
    model, data = learned_bnn()
    guide = AutoHypernet(model, example=data)
    fit(model, guide, data, steps=5, num_particles=2, progress=False)
    save(tmp_path / "run", model=model, guide=guide)
    other, _ = learned_bnn()
    other_guide = AutoHypernet(other, example=data)
    load(tmp_path / "run", model=other, guide=other_guide)
    assert torch.equal(other.learned_scales.log_factor, model.learned_scales.log_factor)
    draws = guide.sample_posterior(4)
    for name, fn in model.weight_priors().items():
        torch.testing.assert_close(other.weight_priors()[name].log_prob(draws[name]), fn.log_prob(draws[name]))


def test_a_guide_built_later_starts_at_the_learned_scales():
    model, data = learned_bnn(flat=True)
    with torch.no_grad():
        model.learned_scales.log_factor.fill_(math.log(3.0))
    plain, _ = bnn(flat=True)
    guide, other = (AutoHypernet(m, example=data) for m in (model, plain))
    torch.testing.assert_close(guide.scale[:-1], 3.0 * other.scale[:-1])
    assert not guide.scale.requires_grad


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("make", [AutoHypernet, AutoHypernetNormal, AutoHypernetDelta])
def test_copies(make, flat):
    """Nothing kept in a guide or its model hangs in a graph of gradients; a copy trains on its own."""
    model, data = learned_bnn(flat=flat)
    guide = make(model, example=data)
    for _ in range(2):
        alone = copy.deepcopy(guide)
        other, other_guide = copy.deepcopy((model, guide))
        fit(model, guide, data, steps=2, num_particles=2, progress=False)  # and once more, fitted
    before = [param.detach().clone() for param in guide.parameters()]
    for part in (alone, other_guide):
        assert math.isfinite(fit(other, part, data, steps=3, num_particles=2, progress=False).losses[-1])
        assert not all(torch.equal(*pair) for pair in zip(before, part.parameters(), strict=True))
    assert all(torch.equal(*pair) for pair in zip(before, guide.parameters(), strict=True))
    assert not torch.equal(other.learned_scales.log_factor, model.learned_scales.log_factor)


@pytest.mark.parametrize("make", [AutoHypernet, AutoHypernetNormal, AutoHypernetDelta])
def test_copies_where_a_plain_models_prior_is_learned(make):
    """Also of a distribution within others; and the model may need gradients of its own."""

    def model(y):
        spread = pyro.param("spread", torch.tensor(2.0), constraint=dist.constraints.positive)
        base = dist.TransformedDistribution(dist.Normal(0.0, spread), [dist.transforms.AffineTransform(0.0, spread)])
        mu = pyro.sample("mu", base.expand([3]).to_event(1))
        t = torch.ones((), requires_grad=True)
        (slope,) = torch.autograd.grad(t.square(), t)
        pyro.sample("obs", dist.Normal(mu * slope, 1.0).to_event(1), obs=y)
        return mu

    y = torch.tensor([1.0, 2.0, 4.0])
    guide = make(model, example=(y,))
    other = copy.deepcopy(guide)
    assert math.isfinite(fit(model, other, (y,), steps=2, num_particles=1, progress=False).losses[-1])
    pyro.clear_param_store()


class BeforeNormal(priors.Prior):
    """A prior for the hidden layer, and a Normal one for the last."""

    def __init__(self, hidden: priors.Prior) -> None:
        self.hidden, self.last = hidden, priors.Normal(scale=0.5)

    def distribution(self, name, record, *, like):
        return (self.hidden if name.startswith("0") else self.last).distribution(name, record, like=like)

    def factor_shape(self, name, record):
        return self.hidden.factor_shape(name, record) if name.startswith("0") else None


@pytest.mark.parametrize(
    "hidden", [priors.Laplace(0.5, learn=True), priors.StudentT(0.5, df=1.5, learn=True)], ids=repr
)
def test_what_hidden_layers_have_learned_is_a_factor_whatever_their_prior(hidden, tmp_path):
    """The ratio to the prior at the start, of priors whose spread is no standard deviation, or that have none.

    Before, the ratio was that of a standard deviation to a spread by quartiles of draws: 1.4 for a Laplace prior that
    had learned nothing, infinite for two degrees of freedom or less.
    """

    def built():
        torch.manual_seed(0)
        x = torch.randn(30, 2)
        net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
        model = BayesianModel(net, BeforeNormal(hidden), likelihood=likelihoods.Normal(scale=0.3))
        return model, (x, x[:, 0].sin())

    def ratio(guide):
        return guide.get_posterior().prior_scale

    model, data = built()
    guide = AutoHypernet(model, example=data)
    with torch.no_grad():
        assert torch.equal(ratio(guide), torch.ones(12))
        model.learned_scales.log_factor.copy_(torch.tensor([2.0, 3.0]).log())
        expected = torch.tensor([2.0] * 8 + [3.0] * 4)
        torch.testing.assert_close(ratio(guide), expected)
        torch.testing.assert_close(ratio(copy.deepcopy(guide)), expected)
        later = AutoHypernet(model, example=data)
        torch.testing.assert_close(ratio(later), torch.ones(12))
        model.learned_scales.log_factor.add_(math.log(1.5))
        save(tmp_path / "run", model=model, guide=later)
        other, _ = built()
        loaded = AutoHypernet(other, example=data)
        load(tmp_path / "run", model=other, guide=loaded)
        torch.testing.assert_close(ratio(loaded), torch.full((12,), 1.5))
    assert math.isfinite(fit(model, guide, data, steps=3, progress=False).losses[-1])
