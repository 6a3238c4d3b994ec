"""What a hypernetwork makes as the prior of all weights."""

from __future__ import annotations

import copy

import pyro.distributions as dist
import pyro.optim
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import nn

from bayeshnet import (
    HMLP,
    AutoHypernet,
    BayesianModel,
    HPerturbWrapper,
    ImplicitWeights,
    fit,
    likelihoods,
    load,
    predict,
    priors,
    save,
)
from bayeshnet.entropy import ImportanceSampled
from bayeshnet.errors import ArgumentError, ArgumentTypeError, CheckpointError, UsageError

NOISE = likelihoods.Normal(scale=0.3)


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 1))


def implicit(*, layers=()) -> ImplicitWeights:
    hnet = HMLP([[3, 1], [3], [1, 3], [1]], layers=layers, uncond_in_size=2, cond_in_size=0, verbose=False)
    wrapped = HPerturbWrapper(hnet, noise="independent", sigma_noise=0.4, verbose=False)
    return ImplicitWeights(wrapped, estimator=ImportanceSampled())


def test_a_linear_hypernetwork_is_a_gaussian_prior():
    """Without hidden layers w = A z + b + sigma e, so that the density is that of a low-rank Gaussian."""
    torch.manual_seed(0)
    q = implicit()
    z = torch.cat([torch.zeros(1, 2), torch.eye(2)])
    with torch.no_grad():
        made = q.sampler.generator(uncond_input=z, ret_format="flattened")
    exact = dist.LowRankMultivariateNormal(made[0], (made[1:] - made[0]).T, torch.full((10,), 0.16))
    model = BayesianModel(net(), q, NOISE, flat=True)
    w = exact.sample((20,))
    found = model.weight_priors()["weights"].log_prob(w)
    # The estimator draws 1000 or more proposals near the preimage; its error is far below that of a wrong density.
    torch.testing.assert_close(found, exact.log_prob(w), atol=0.1, rtol=0)
    draws = model.weight_priors()["weights"].sample((20_000,))
    assert float((draws.mean(0) - exact.mean).abs().max()) < 5 * float(exact.stddev.max()) / 20_000**0.5
    torch.testing.assert_close(draws.var(0), exact.variance, rtol=5 * (2 / 20_000) ** 0.5, atol=0)


@pytest.mark.parametrize("learn", [False, True])
def test_fit_predict_save(learn, tmp_path):
    torch.manual_seed(0)
    q = implicit(layers=(4,))
    model = BayesianModel(net(), priors.JointPrior(q, learn=learn), NOISE, flat=True)
    x = torch.linspace(-1, 1, 12)[:, None]
    data = x, x[:, 0]
    guide = AutoHypernet(model, example=data)
    assert guide.inducing is None
    before = copy.deepcopy(dict(model.prior.named_parameters()))
    given = copy.deepcopy(q.sampler.generator.state_dict())
    fit(model, guide, data, steps=3, progress=False)
    moved = any(not torch.equal(before[name], value) for name, value in model.prior.named_parameters())
    assert moved is learn
    assert all(torch.equal(given[name], value) for name, value in q.sampler.generator.state_dict().items())
    assert predict(model, guide, x, 5).draws.shape == (5, 12)
    save(tmp_path / "fit.pt", model=model, guide=guide)
    own = BayesianModel(net(), priors.JointPrior(implicit(layers=(4,)), learn=learn), NOISE, flat=True)
    load(tmp_path / "fit.pt", model=own, guide=AutoHypernet(own, example=data))
    for name, value in model.prior.named_parameters():
        assert torch.equal(value, dict(own.prior.named_parameters())[name]), name
    w = torch.randn(2, 10)
    torch.manual_seed(1)
    first = model.weight_priors()["weights"].log_prob(w)
    torch.manual_seed(1)
    assert torch.equal(first, own.weight_priors()["weights"].log_prob(w))
    other = BayesianModel(net(), priors.JointPrior(implicit(layers=(5,)), learn=learn), NOISE, flat=True)
    with pytest.raises(CheckpointError):
        load(tmp_path / "fit.pt", model=other, guide=AutoHypernet(other, example=data))


def test_a_plain_step_of_pyro_trains_what_is_learned():
    torch.manual_seed(0)
    model = BayesianModel(net(), priors.JointPrior(implicit(), learn=True), NOISE, flat=True)
    x = torch.linspace(-1, 1, 12)[:, None]
    guide = AutoHypernet(model, example=(x, x[:, 0]))
    before = next(model.prior.parameters()).detach().clone()
    SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step(x, x[:, 0])
    assert not torch.equal(before, next(model.prior.parameters()))


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: BayesianModel(net(), implicit(), NOISE), ArgumentError, "over all weights jointly; pass flat=True"),
        (lambda: BayesianModel(nn.Linear(2, 1), implicit(), NOISE, flat=True), ArgumentError, "over 10 weights, and"),
        (lambda: priors.JointPrior(nn.Linear(2, 1)), ArgumentTypeError, "weights: is a Linear"),
        (lambda: priors.JointPrior(dist.Normal(0.0, 1.0)), ArgumentError, "over one vector"),
        (
            lambda: priors.JointPrior(dist.Normal(torch.zeros(3), 1.0).to_event(1), learn=True),
            ArgumentError,
            "learn: is True, and the distribution has no parameters",
        ),
        (lambda: priors.JointPrior(implicit()).distribution("w", None, like=None), UsageError, "pass flat=True"),
    ],
)
def test_wrong_arguments(make, error, match):
    with pytest.raises(error, match=match):
        make()
