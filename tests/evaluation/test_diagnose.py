from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from torch import nn

from bayeshnet import AutoHypernet, BayesianModel, diagnose, fit, likelihoods, priors
from bayeshnet.entropy import Diagnosis
from bayeshnet.entropy.experimental import SemiImplicit, SpectralStein
from bayeshnet.errors import ArgumentError, ArgumentTypeError, UsageError
from bayeshnet.evaluation._chain import check_spread
from bayeshnet.families import Hypernet
from tests.entropy.test_change_of_variables import folding_hnet
from tests.evaluation.test_importance import Y, conjugate, exact, guide_of, linear_regression
from tests.problems import EFFECTS, ERRORS, bnn, eight_schools
from tests.samplers import perturbed


def posterior_guide(mean, covariance, spread=1.0):
    """The exact posterior of a linear network with three inputs, its standard deviations times ``spread``."""
    scale_tril = spread * torch.linalg.cholesky(covariance)

    def guide(x, y=None):
        joint = dist.MultivariateNormal(mean, scale_tril=scale_tril)
        w = pyro.sample("_w", joint, infer={"is_auxiliary": True})
        pyro.sample("weight", dist.Delta(w[..., :3].unsqueeze(-2), event_dim=2))
        pyro.sample("bias", dist.Delta(w[..., 3:], event_dim=1))

    return guide


def posterior_draws_of(mean, covariance, num, spread=1.0):
    w = dist.MultivariateNormal(mean, scale_tril=spread * torch.linalg.cholesky(covariance)).sample((num,))
    return {"weight": w[:, None, :3], "bias": w[:, 3:]}


def about(report: Diagnosis, words: str) -> list[str]:
    return [sentence for sentence in report.advice if words in sentence]


def test_the_exact_posterior_is_healthy():
    report = diagnose(conjugate, guide_of(1.0), (Y,))
    assert report.healthy
    assert report.values["elbo"] == pytest.approx(exact(Y)[0])
    assert report.values["evidence_gap"] == pytest.approx(0.0, abs=1e-6)
    assert report.values["ess"] == pytest.approx(2000)
    assert "none: no problem was found" in str(report)
    assert str(report).startswith("guide, 2000 draws\n")


@pytest.mark.parametrize("spread", [0.3, 1.3])
def test_gap_is_the_divergence_where_k_hat_allows(spread):
    report = diagnose(conjugate, guide_of(spread), (Y,), num_samples=4000)
    values, divergence = report.values, -math.log(spread) + (spread**2 - 1) / 2
    if spread > 1:
        assert report.healthy
        assert values["k_hat"] < 0.5
        error = math.hypot(values["elbo_error"], values["log_evidence_error"])
        assert abs(values["evidence_gap"] - divergence) < 4 * error
        assert abs(values["log_evidence"] - exact(Y)[0]) < 4 * values["log_evidence_error"]
    else:
        assert values["k_hat"] > 0.7
        assert len(report.advice) == 1
        assert f"k-hat is {values['k_hat']:.2f}, above 0.70" in report.advice[0]


def test_few_effective_draws():
    """A guide four standard deviations wide of three shifted ones: bounded weights, most of them tiny."""
    report = diagnose(conjugate, guide_of(8.0, 6.0), (Y,), num_samples=500)
    assert report.values["k_hat"] < 0.6
    assert report.values["ess"] < 100
    assert about(
        report, f"effective sample size of the importance weights is {report.values['ess']:.0f}; raise num_samples"
    )


def test_folding_is_in_the_report():
    def model():
        pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    guide = AutoHypernet(model, example=(), hnet=lambda shapes: folding_hnet())
    report = diagnose(model, guide, ())
    assert report.values["preimages"] > 1.2
    assert report.values["entropy_excess"] > 0.1
    assert about(report, "The sampler folds")
    assert str(report).startswith("AutoHypernet(latent_dim=2")
    quick = diagnose(model, guide, (), thorough=False)
    assert "preimages" not in quick.values
    assert quick.values["sign_mismatch"] > 0.05


def test_self_weight_is_in_the_report():
    model, data = bnn()
    hnet = perturbed(26, 20, noise="independent", sigma=0.01)
    guide = AutoHypernet(model, example=data, family=Hypernet(lambda shapes: hnet, estimator=SemiImplicit()))
    report = diagnose(model, guide, data, num_samples=200)
    assert report.values["self_weight"] > 0.9
    assert about(report, "own noise carries")


def test_a_guide_without_a_density():
    """Its own diagnosis and the noise are there; what needs log q is not, and the report says why."""
    model, data = bnn()
    guide = AutoHypernet(
        model, example=data, conditional=None, family=Hypernet(noise="independent", estimator=SpectralStein())
    )
    report = diagnose(model, guide, data, num_samples=300)
    assert {"spread", "noise_ratio"} <= set(report.values)
    assert not {"elbo", "k_hat"} & set(report.values)
    assert about(report, "There are no ELBO, k-hat and log evidence. guide: its estimator SpectralStein")


def test_a_guide_of_pyro_for_any_model():
    guide = AutoNormal(eight_schools)
    fit(eight_schools, guide, (ERRORS, EFFECTS), steps=600, lr=0.02, progress=False)
    report = diagnose(eight_schools, guide, {"errors": ERRORS, "effects": EFFECTS})
    # A centred grid over mu and log tau, eta integrated out: -31.5.
    mu, log_tau = torch.linspace(-25, 25, 401).double(), torch.linspace(-9, 6, 601).double()
    tau = log_tau.exp().unsqueeze(1)
    total = (tau.square().unsqueeze(-1) + ERRORS.double().square()).sqrt()
    log_p = dist.Normal(mu.view(1, -1, 1), total).log_prob(EFFECTS.double()).sum(-1)
    log_p = log_p + dist.Normal(0.0, 5.0).log_prob(mu) + dist.HalfCauchy(5.0).log_prob(tau) + log_tau.unsqueeze(1)
    evidence = float(torch.logsumexp(log_p.flatten(), 0) + math.log(50 / 400) + math.log(15 / 600))
    assert abs(report.values["log_evidence"] - evidence) < 4 * report.values["log_evidence_error"] + 0.02
    assert report.values["elbo"] < evidence
    assert "spread_ratio" not in report.values


@pytest.mark.parametrize(("spread", "words"), [(1.0, None), (0.5, "posterior is too narrow"), (2.0, "is too wide")])
def test_spread_against_exact_draws(spread, words):
    """Draws of the exact posterior in place of a chain."""
    model, x, y, _, mean, covariance = linear_regression()
    model(x, y)
    report = Diagnosis({})
    chain = posterior_draws_of(mean, covariance, 1000)
    check_spread(report, model, posterior_draws_of(mean, covariance, 1000, spread), chain, x)
    ratio, error = report.values["spread_ratio"], report.values["spread_ratio_error"]
    assert abs(ratio - spread) < 4 * error
    # At most that of one standard deviation from 1000 draws, for each of the two; less by averaging over inputs. The
    # error's own error, from ten blocks, is a quarter.
    assert 0.005 < error / spread < 2.0 * math.sqrt(2 / 2000)
    assert report.values["chain_rhat"] < 1.02
    assert report.values["chain_ess"] > 500
    assert [words is not None and words in sentence for sentence in report.advice] == [True] * (words is not None)


def test_a_chain_that_has_not_settled():
    model, x, y, _, mean, covariance = linear_regression()
    model(x, y)
    chain = posterior_draws_of(mean, covariance, 100)
    chain["bias"] = chain["bias"] + torch.linspace(-2.0, 2.0, 100).unsqueeze(1)
    report = Diagnosis({})
    check_spread(report, model, posterior_draws_of(mean, covariance, 100), chain, x)
    assert report.values["chain_rhat"] > 1.5
    assert about(report, "The chain has not converged")


def test_noise_against_that_of_a_chain():
    model, (x, y) = bnn()
    model(x, y)
    draws = {name: torch.randn(200, *shape) for name, shape in model.latent_shapes.items()}
    draws["likelihood.scale"] = torch.full((200,), 0.3)
    report = Diagnosis({})
    check_spread(report, model, {**draws, "likelihood.scale": torch.full((200,), 0.6)}, draws, x)
    assert report.values["chain_noise_ratio"] == pytest.approx(2.0)
    assert about(report, "observation noise is 2.00 times that of NUTS")


@pytest.mark.slow
def test_a_short_chain():
    """A guide with half of the exact spread."""
    model, x, y, _, mean, covariance = linear_regression()
    report = diagnose(model, posterior_guide(mean, covariance, 0.5), (x, y), nuts=200)
    assert report.values["chain_ess"] > 75
    assert report.values["spread_ratio_error"] < 0.06
    assert abs(report.values["spread_ratio"] - 0.5) < 4 * report.values["spread_ratio_error"]
    assert about(report, "posterior is too narrow")


@pytest.mark.slow
def test_a_short_chain_of_a_classifier_and_of_noise():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(40, 2, generator=generator)
    model = BayesianModel(nn.Linear(2, 2), likelihood=likelihoods.Categorical())
    data = (x, (x[:, 0] + 0.5 * torch.randn(40, generator=generator) > 0).long())
    guide = AutoMultivariateNormal(model)
    fit(model, guide, data, steps=1000, lr=0.02, progress=False)
    model.train()
    report = diagnose(model, guide, data, nuts=100)
    assert model.training
    # The guide is all but exact. The chain's functions move together: 1.00 to 1.26 were seen with 200 draws.
    assert report.values["evidence_gap"] < 0.1
    assert abs(report.values["spread_ratio"] - 1.0) < 4 * report.values["spread_ratio_error"]
    assert not about(report, "functions spread")
    assert "noise" not in report.values
    model, (x, y) = bnn()
    guide = AutoNormal(model)
    fit(model, guide, (x, y), steps=300, lr=0.02, progress=False)
    report = diagnose(model, guide, (x, y), nuts=20)
    assert 0.02 < report.values["chain_noise"] < 0.5
    assert report.values["chain_noise_ratio"] == pytest.approx(
        report.values["noise"] / report.values["chain_noise"], rel=1e-6
    )


def noisy_regression(prior):
    _, x, y, _, _, _ = linear_regression()
    likelihood = likelihoods.Normal(**prior)
    return BayesianModel(nn.Linear(3, 1).double(), prior=priors.Normal(scale=0.8), likelihood=likelihood), x, y


@pytest.mark.parametrize("kind", ["scale", "precision"])
@pytest.mark.parametrize("jitter", [0.01, 0.5])
def test_noise_over_estimation(kind, jitter):
    """Weights that scatter, with the noise that is best for them: the root of the mean squared error."""
    prior = dist.Gamma(torch.tensor(2.0).double(), torch.tensor(2.0).double())
    model, x, y = noisy_regression({kind: prior})
    design = torch.cat([x, torch.ones(20, 1).double()], 1)
    best = torch.linalg.lstsq(design, y.unsqueeze(1)).solution.squeeze(1)
    residual = float((y - design @ best).square().mean().sqrt())
    scatter = float((design.square().sum(1) * jitter**2).mean())
    level = math.sqrt(residual**2 + scatter)

    def guide(x, y=None):
        pyro.sample("weight", dist.Normal(best[:3].view(1, 3), jitter).to_event(2))
        pyro.sample("bias", dist.Normal(best[3:], jitter).to_event(1))
        value = torch.tensor(level if kind == "scale" else level**-2).double()
        pyro.sample(f"likelihood.{kind}", dist.LogNormal(value.log(), 0.02))

    report = diagnose(model, guide, (x, y))
    assert report.values["noise"] == pytest.approx(level, rel=0.01)
    assert report.values["residual_std"] == pytest.approx(residual, rel=0.05)
    assert report.values["noise_ratio"] == pytest.approx(level / residual, rel=0.05)
    assert bool(about(report, "The observation noise is")) == (jitter == 0.5)


def test_noise_of_several_outputs():
    """The worst one is reported: the guide's noise is right for the first output, twice too large for the second."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(400, 1, generator=generator)
    y = torch.randn(400, 2, generator=generator) * torch.tensor([0.1, 0.3])
    prior = dist.Gamma(torch.tensor([2.0, 2.0]), torch.tensor([2.0, 2.0])).to_event(1)
    model = BayesianModel(nn.Linear(1, 2), likelihood=likelihoods.Normal(scale=prior))

    def guide(x, y=None):
        pyro.sample("weight", dist.Normal(torch.zeros(2, 1), 0.001).to_event(2))
        pyro.sample("bias", dist.Normal(torch.zeros(2), 0.001).to_event(1))
        pyro.sample("likelihood.scale", dist.LogNormal(torch.tensor([0.1, 0.6]).log(), 0.01).to_event(1))

    report = diagnose(model, guide, (x, y), num_samples=200)
    # A standard deviation from 400 numbers has an error of 3.5 %.
    assert report.values["residual_std"] == pytest.approx(0.3, rel=0.14)
    assert report.values["noise_ratio"] == pytest.approx(2.0, rel=0.15)


def test_the_corrected_mean_is_used_where_the_weights_allow():
    """A guide off centre: plain residuals would be larger than those of the posterior mean."""
    prior = dist.Gamma(torch.tensor(20.0).double(), torch.tensor(50.0).double())
    model, x, y = noisy_regression({"scale": prior})
    _, _, _, _, mean, covariance = linear_regression()
    off = mean + 1.25 * torch.linalg.cholesky(covariance).sum(1)

    def guide(x, y=None):
        joint = dist.MultivariateNormal(off, scale_tril=2.0 * torch.linalg.cholesky(covariance))
        w = pyro.sample("_w", joint, infer={"is_auxiliary": True})
        pyro.sample("weight", dist.Delta(w[..., :3].unsqueeze(-2), event_dim=2))
        pyro.sample("bias", dist.Delta(w[..., 3:], event_dim=1))
        pyro.sample("likelihood.scale", dist.LogNormal(off.new_tensor(math.log(0.4)), 0.35))

    report = diagnose(model, guide, (x, y), num_samples=20_000)
    assert report.values["k_hat"] < 0.7
    design = torch.cat([x, torch.ones(20, 1).double()], 1)
    at_mean, at_guide = ((y - design @ w).square().mean().sqrt() for w in (mean, off))
    assert at_guide > 1.1 * at_mean
    # The posterior mean with the noise unknown differs a little from that at 0.4.
    assert report.values["residual_std"] == pytest.approx(float(at_mean), rel=0.03)


def test_random_numbers_are_left_alone():
    state = torch.get_rng_state()
    first = diagnose(conjugate, guide_of(1.3), (Y,), num_samples=200)
    assert torch.equal(torch.get_rng_state(), state)
    assert diagnose(conjugate, guide_of(1.3), (Y,), num_samples=200).values == first.values


def test_errors():
    model, (x, y) = bnn()
    guide = AutoNormal(model)
    guide(x, y)
    with pytest.raises(ArgumentError, match="num_samples: is 50; pass a whole number, 100 or more"):
        diagnose(model, guide, (x, y), num_samples=50)
    with pytest.raises(ArgumentError, match="nuts: is 5; pass True, False"):
        diagnose(model, guide, (x, y), nuts=5)
    with pytest.raises(ArgumentError, match="nuts: compares the functions of a network, and model is a function"):
        diagnose(conjugate, guide_of(1.0), (Y,), nuts=True)
    wide = BayesianModel(nn.Linear(50, 50), likelihood=likelihoods.Normal(scale=0.1))
    with pytest.raises(ArgumentError, match="nuts: the model has 2550 latents"):
        diagnose(wide, guide, (x, y), nuts=True)
    with pytest.raises(ArgumentTypeError, match="data: is a list"):
        diagnose(model, guide, [(x, y)])
    point = AutoDelta(model)
    with pytest.raises(UsageError, match="guide: gives the same latents"):
        diagnose(model, point, (x, y))
