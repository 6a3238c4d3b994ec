from __future__ import annotations

import copy
import math

import pyro
import pytest
import torch
from pyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import nn
from torch.distributions import MultivariateNormal

from bayeshnet.distributions import ImplicitWeights
from bayeshnet.entropy import NoisySampler
from bayeshnet.entropy.experimental import Adversarial
from bayeshnet.errors import ArgumentError, DensityError, DiscriminatorWarning, NonFiniteLossError, UsageError
from bayeshnet.families import Hypernet
from bayeshnet.hnets import HMLP, HPerturbWrapper
from bayeshnet.infer import AutoHypernet, diagnose, fit, importance_sample, load, predict, save
from tests.problems import bnn
from tests.samplers import perturbed
from tests.targets import TARGETS, histogram_kl, target_model


def correlated(dtype: torch.dtype = torch.float32) -> tuple[HPerturbWrapper, MultivariateNormal]:
    """A Gaussian sampler of correlation 0.7, and its density."""
    hnet = perturbed(2, 1, noise="independent", layers=(), sigma=0.8).to(dtype)
    with torch.no_grad():
        hnet.internal_hnet.internal_params[0].copy_(torch.tensor([[1.5], [1.0]]))
        hnet.log_sigma_noise.copy_(torch.tensor([0.8, 0.9]).log())
    weight, bias = hnet.internal_hnet.head()
    return hnet, MultivariateNormal(bias, weight @ weight.T + torch.diag(hnet.sigma.square()))


def trained(hnet: HPerturbWrapper) -> tuple[Adversarial, NoisySampler]:
    estimator, sampler = Adversarial(hidden=(64, 64)), NoisySampler(hnet)
    estimator.train_discriminator(sampler, 400)
    estimator._optimizer = torch.optim.Adam(estimator.discriminator.parameters(), lr=2e-4)  # to settle
    estimator.train_discriminator(sampler, 200)
    return estimator.eval(), sampler


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_ratio_and_gradient_of_a_gaussian(dtype):
    torch.set_default_dtype(dtype)
    hnet, exact = correlated(dtype)
    estimator, sampler = trained(hnet)
    draw = sampler.draw(4000)
    log_q = estimator.log_prob(sampler, draw)
    assert log_q.dtype == dtype
    with torch.no_grad():
        contrast = torch.distributions.Normal(estimator.mean, estimator.variance.sqrt())
        log_contrast = contrast.log_prob(draw.weights).sum(-1)
        true_ratio = exact.log_prob(draw.weights) - log_contrast
        error = (log_q - log_contrast) - true_ratio
        # A logit of mean weight p (1 - p) = 1/4, fitted to the last 5 * 10^4 draws or so with about 20 effective
        # parameters, has an error of sqrt(20 / (5 * 10^4 / 4)) = 0.04; the optimiser's noise adds as much again.
        assert float(error.square().mean().sqrt()) < 0.15
        assert float(true_ratio.std()) > 0.5, "nothing to learn"
    params = [*hnet.internal_hnet.internal_params, hnet.log_sigma_noise]
    expected = torch.autograd.grad(-exact.entropy(), params, allow_unused=True)
    found = torch.autograd.grad(log_q.mean(), params)
    for actual, wanted in zip(found, expected, strict=True):
        want = torch.zeros_like(actual) if wanted is None else wanted
        # 4000 draws of a score of size 1: a standard error of 0.016, and 0.1 for the error of the ratio's slope.
        assert float((actual - want).abs().max()) < 4 * 0.016 + 0.1


def test_density_at_foreign_weights_integrates_to_one():
    torch.set_default_dtype(torch.float64)
    hnet, exact = correlated(torch.float64)
    estimator, _ = trained(hnet)
    q = ImplicitWeights(hnet, estimator=estimator)
    grid = torch.linspace(-8, 8, 161)
    points = torch.cartesian_prod(grid, grid) + exact.mean.detach()
    mass = q.log_prob(points).exp().sum() * (grid[1] - grid[0]) ** 2
    # T is off by 0.1 at most where the mass is.
    assert float(mass.detach()) == pytest.approx(1.0, abs=0.1)
    point = torch.zeros(2, requires_grad=True)
    (slope,) = torch.autograd.grad(q.log_prob(point), point)
    (wanted,) = torch.autograd.grad(exact.log_prob(point), point)
    # Slopes of size 1, off by about 0.1 each way.
    torch.testing.assert_close(slope, wanted, rtol=0, atol=0.4)


def test_starts_as_the_moment_matched_gaussian():
    torch.set_default_dtype(torch.float64)
    sampler = NoisySampler(perturbed(5, 2))
    estimator = Adversarial()
    estimator.check(sampler)
    draw = sampler.draw(7)
    with torch.no_grad():  # no gradient, no training
        normal = torch.distributions.Normal(estimator.mean, estimator.variance.sqrt())
        torch.testing.assert_close(estimator.log_prob(sampler, draw), normal.log_prob(draw.weights).sum(-1))


def test_learns_only_in_training_and_by_itself():
    hnet = perturbed(5, 2)
    estimator = Adversarial(steps=3)
    q = ImplicitWeights(hnet, estimator=estimator)

    def moved_by(call):
        before = copy.deepcopy(estimator.state_dict())
        call()
        return {k for k, v in estimator.state_dict().items() if not torch.equal(v, before[k])}

    assert not moved_by(q.diagnose)
    with torch.no_grad():
        assert not moved_by(lambda: q.log_prob(q.rsample((3,))))
    estimator.eval()
    assert not moved_by(lambda: q.log_prob(q.rsample((3,))).sum().backward())
    estimator.train()
    assert not moved_by(lambda: q.log_prob(q.rsample((3,))))  # before: an evaluation with gradients enabled trained it
    backward = moved_by(lambda: q.log_prob(q.rsample((3,))).sum().backward())
    assert backward >= {"mean", "variance", "discriminator.0.weight"}
    assert not any(p.requires_grad or p.grad is not None for p in estimator.parameters())
    # The sampler does not learn from the discriminator's steps.
    hnet.zero_grad()
    estimator.train_discriminator(q.sampler, 2)
    assert all(p.grad is None for p in hnet.parameters())


def test_calls_before_the_backward_pass_do_not_disturb_it():
    q = ImplicitWeights(perturbed(4, 2), estimator=Adversarial())
    total = sum(q.log_prob(q.rsample((3,))).sum() for _ in range(3))
    total.backward()
    assert all(torch.isfinite(p.grad).all() for p in q.sampler.hnet.parameters() if p.grad is not None)


def test_evaluating_the_elbo_changes_nothing():
    """Before: the largest change of the guide's state was 0.024 by ``Trace_ELBO().loss``, with gradients enabled."""
    model, data = bnn()
    guide = AutoHypernet(model, example=data, conditional=None, family=Hypernet(estimator=Adversarial(hidden=(16,))))
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
    evaluations = {
        "loss": lambda: Trace_ELBO(num_particles=4).loss(model, guide, *data),
        "differentiable_loss": lambda: Trace_ELBO().differentiable_loss(model, guide, *data),
        "TraceMeanField_ELBO": lambda: TraceMeanField_ELBO().loss(model, guide, *data),
        "RenyiELBO": lambda: RenyiELBO(num_particles=2).loss(model, guide, *data),
        "evaluate_loss": lambda: svi.evaluate_loss(*data),
        "importance_sample": lambda: importance_sample(model, guide, data, 10),
        "diagnose": lambda: diagnose(model, guide, data, num_samples=100),
        "predict": lambda: predict(model, guide, data[0], 5),
    }
    before = copy.deepcopy(guide.state_dict())
    for name, evaluate in evaluations.items():
        evaluate()
        assert all(torch.equal(value, before[key]) for key, value in guide.state_dict().items()), name
        assert guide.estimator._optimizer is None, name
    Trace_ELBO().differentiable_loss(model, guide, *data).backward()
    assert guide.estimator._optimizer is not None
    assert any(not torch.equal(value, before[key]) for key, value in guide.state_dict().items())


def test_draws_that_are_not_finite_do_not_reach_the_discriminator():
    hnet = perturbed(5, 2)
    estimator = Adversarial(hidden=(16,))
    q = ImplicitWeights(hnet, estimator=estimator)
    estimator.train_discriminator(q.sampler, 2)
    before = copy.deepcopy(estimator.state_dict())
    with torch.no_grad():
        hnet.internal_hnet.internal_params[0].fill_(math.inf)
    with pytest.raises(NonFiniteLossError, match=r"its discriminator is nan .*256 draws of which \d+ are not finite"):
        estimator.train_discriminator(q.sampler, 1)
    assert all(torch.equal(value, before[key]) for key, value in estimator.state_dict().items())


@pytest.mark.parametrize("noise", ["shared", "independent"])
def test_in_a_guide(noise, tmp_path):
    model, data = bnn()

    def build():
        return AutoHypernet(
            model, example=data, conditional=None, family=Hypernet(noise=noise, estimator=Adversarial(hidden=(16,)))
        )

    guide = build()
    with pytest.warns(DiscriminatorWarning):  # 2 steps are not enough
        fit(model, guide, data, steps=2, progress=False)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO(num_particles=2))
    before = guide.estimator.discriminator[0].weight.clone()
    assert math.isfinite(svi.step(*data))
    assert not torch.equal(before, guide.estimator.discriminator[0].weight)
    assert "estimator=Adversarial(hidden=(16,), steps=2, lr=0.003, batch_size=256)" in repr(guide)
    # Saved, loaded and copied with the guide; a copy learns on its own.
    save(tmp_path / "run", guide=guide)
    other = build()
    load(tmp_path / "run", guide=other)
    for a, b in zip(guide.estimator.state_dict().values(), other.estimator.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    duplicate = copy.deepcopy(guide)
    posterior = duplicate.get_posterior()
    log_q = posterior.log_prob(posterior.rsample((4,)))
    assert torch.isfinite(log_q).all()
    log_q.sum().backward()
    assert not torch.equal(duplicate.estimator.discriminator[0].weight, guide.estimator.discriminator[0].weight)


def test_change_of_precision():
    hnet, estimator = perturbed(4, 2), Adversarial()
    q = ImplicitWeights(hnet, estimator=estimator)
    q.log_prob(q.rsample((3,)))
    hnet.double()
    estimator.double()
    assert q.log_prob(q.rsample((3,))).dtype == torch.float64


def test_saturation_is_diagnosed():
    """A thin curve in 100 dimensions: no draw of the Gaussian comes near."""
    hnet = perturbed(100, 1, noise="independent", kind="sine", sigma=0.02)
    estimator, sampler = Adversarial(), NoisySampler(hnet)
    estimator.train_discriminator(sampler, 150)
    diagnosis = estimator.diagnose(sampler)
    assert diagnosis.values["accuracy"] > 0.97
    assert diagnosis.category is DiscriminatorWarning
    assert "100 weights are too many" in diagnosis.advice[0]
    # And its entropy is far from the truth.
    assert diagnosis.values["entropy_gap"] > 10


def test_calibration_is_diagnosed():
    hnet, _ = correlated()
    estimator, sampler = trained(hnet)
    assert estimator.diagnose(sampler, num_samples=1000).healthy
    assert abs(estimator.diagnose(sampler, num_samples=1000).values["log_mass"]) < 0.05
    with torch.no_grad():
        estimator.discriminator[-1].weight.mul_(5.0)
        estimator.discriminator[-1].bias.mul_(5.0)
    diagnosis = estimator.diagnose(sampler, num_samples=1000)
    assert diagnosis.values["overconfidence"] > 0.05
    assert any("is not calibrated" in advice for advice in diagnosis.advice)


def test_lack_of_training_is_diagnosed():
    """A discriminator that has learned nothing is calibrated; the entropy gives it away: minus the information."""
    hnet, _ = correlated()
    estimator, sampler = Adversarial(), NoisySampler(hnet)
    diagnosis = estimator.diagnose(sampler, num_samples=1000)
    assert diagnosis.values["overconfidence"] == pytest.approx(0.0, abs=4 * diagnosis.values["overconfidence_error"])
    covariance = torch.tensor([[1.5**2 + 0.64, 1.5], [1.5, 1.0 + 0.81]])
    information = 0.5 * float(covariance.diagonal().log().sum() - torch.logdet(covariance))
    error = 4 * diagnosis.values["entropy_gap_error"]
    # Moments from 256 draws: D / 256 more.
    assert diagnosis.values["entropy_gap"] == pytest.approx(information, abs=error + 0.02)
    assert "Train the discriminator more" in diagnosis.advice[-1]


def test_one_estimator_per_sampler():
    first, second = perturbed(4, 2), perturbed(4, 2)
    estimator = Adversarial()
    ImplicitWeights(first, estimator=estimator)
    ImplicitWeights(first, estimator=estimator)  # the same draws again
    with pytest.raises(ArgumentError, match="another hypernetwork or condition"):
        ImplicitWeights(second, estimator=estimator)
    conditional = HPerturbWrapper(
        HMLP([[6]], uncond_in_size=2, cond_in_size=3, num_cond_embs=2, verbose=False), verbose=False
    )
    estimator = Adversarial()
    ImplicitWeights(conditional, cond_id=0, estimator=estimator)
    with pytest.raises(ArgumentError, match="another hypernetwork or condition"):
        ImplicitWeights(conditional, cond_id=1, estimator=estimator)
    estimator = Adversarial()
    ImplicitWeights(conditional, cond_input=torch.ones(3), estimator=estimator)
    ImplicitWeights(conditional, cond_input=torch.ones(3), estimator=estimator)
    with pytest.raises(ArgumentError, match="another hypernetwork or condition"):
        ImplicitWeights(conditional, cond_input=torch.zeros(3), estimator=estimator)


def test_errors():
    with pytest.raises(ArgumentError, match="hidden: is"):
        Adversarial(hidden=(8, 0))
    with pytest.raises(ArgumentError, match="steps: is 0"):
        Adversarial(steps=0)
    for lr in (0.0, math.inf):
        with pytest.raises(ArgumentError, match="lr: is"):
            Adversarial(lr=lr)
    with pytest.raises(ArgumentError, match="batch_size: is 1"):
        Adversarial(batch_size=1)
    with pytest.raises(UsageError, match="has no discriminator yet"):
        Adversarial().log_prob_at(NoisySampler(perturbed()), torch.zeros(1, 12))
    with pytest.raises(DensityError, match="dropout"):
        ImplicitWeights(perturbed(dropout_rate=0.1), estimator=Adversarial())
    assert isinstance(Adversarial(), nn.Module)


@pytest.mark.slow
def test_fits_a_cross():
    model, target = target_model("cross"), TARGETS["cross"]()
    guide = AutoHypernet(model, example=(), family=Hypernet(noise="independent", estimator=Adversarial(steps=3)))
    fit(model, guide, (), steps=400, num_particles=64, progress=False)
    with torch.no_grad():
        measured = histogram_kl(guide.get_posterior().rsample((200_000,)), target.log_prob, bins=120)
    # The best Gaussian is 0.5 nats away.
    assert measured < 0.25
