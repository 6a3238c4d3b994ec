from __future__ import annotations

import logging
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from torch import nn

from bayeshnet import AutoHypernet, AutoHypernetDelta, BayesianModel, fit, likelihoods, predict, priors
from bayeshnet.entropy import Linearised
from bayeshnet.entropy.experimental import SemiImplicit, SpectralStein
from bayeshnet.errors import ArgumentError, ArgumentTypeError, BayeshnetWarning, DensityError, UsageError
from bayeshnet.families import Hypernet
from bayeshnet.infer import importance_sample, log_evidence, pareto_smooth
from tests.problems import bnn
from tests.scenarios import PROBLEMS

Y = torch.tensor([1.3, 0.2, 2.1, 0.9], dtype=torch.double)


def conjugate(y):
    """mu ~ N(0, 4), y ~ N(mu, 1)."""
    mu = pyro.sample("mu", dist.Normal(y.new_zeros(()), 2.0))
    with pyro.plate("data", len(y)):
        pyro.sample("obs", dist.Normal(mu, 1.0), obs=y)


def exact(y):
    """Log evidence, and the posterior's mean and standard deviation."""
    n = len(y)
    covariance = torch.eye(n, dtype=y.dtype) + 4.0
    evidence = dist.MultivariateNormal(torch.zeros_like(y), covariance).log_prob(y)
    precision = n + 0.25
    return float(evidence), float(y.sum()) / precision, precision**-0.5


def guide_of(spread: float, shift: float = 0.0):
    """The exact posterior, its standard deviation times ``spread``."""
    _, mean, std = exact(Y)

    def guide(y):
        pyro.sample("mu", dist.Normal(y.new_tensor(mean + shift * std), spread * std))

    return guide


def linear_regression():
    """A linear network with a known noise level, and its exact evidence, posterior mean and covariance."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(20, 3, generator=generator, dtype=torch.double)
    y = x @ torch.tensor([1.0, -0.5, 0.2]).double() + 0.3 + 0.4 * torch.randn(20, generator=generator).double()
    model = BayesianModel(
        nn.Linear(3, 1).double(),
        prior=priors.Normal(scale=0.8),
        likelihood=likelihoods.Normal(scale=torch.tensor(0.4).double()),
    )
    design = torch.cat([x, torch.ones(20, 1, dtype=torch.double)], 1)
    covariance = 0.16 * torch.eye(20).double() + 0.64 * design @ design.T
    evidence = float(torch.distributions.MultivariateNormal(torch.zeros(20).double(), covariance).log_prob(y))
    posterior = torch.linalg.inv(design.T @ design / 0.16 + torch.eye(4).double() / 0.64)
    return model, x, y, evidence, posterior @ design.T @ y / 0.16, posterior


def test_the_exact_posterior_weighs_all_draws_alike():
    evidence, _, _ = exact(Y)
    weighted = importance_sample(conjugate, guide_of(1.0), (Y,), 300)
    torch.testing.assert_close(weighted.log_weights, torch.full((300,), evidence, dtype=torch.double))
    assert weighted.elbo.value == pytest.approx(evidence)
    assert weighted.smoothed.ess == pytest.approx(300)


@pytest.mark.parametrize(("spread", "reliable"), [(1.5, True), (0.8, True), (0.3, False)])
def test_over_and_under_dispersed_guides(spread, reliable):
    """Weights of N(m, spread^2 s^2) against N(m, s^2) have a tail of shape 1 - spread^2, and none if it is wide."""
    weighted = importance_sample(conjugate, guide_of(spread), (Y,), 4000)
    evidence, _, _ = exact(Y)
    divergence = -math.log(spread) + (spread**2 - 1) / 2
    assert abs(weighted.elbo.value - (evidence - divergence)) < 4 * weighted.elbo.error
    smoothed = weighted.smoothed
    assert smoothed.reliable == reliable
    if reliable:
        for found in (weighted.log_evidence, weighted.iwae()):
            assert abs(found.value - evidence) < 4 * found.error
            assert 0 < found.error < 0.03
    else:
        assert 0.7 < smoothed.k_hat < 1.1
    # Bounds rise with the number of draws in them.
    assert weighted.elbo.value < weighted.iwae(8).value < weighted.iwae(100).value
    assert weighted.iwae(8).value < evidence + 4 * weighted.iwae(8).error


def test_the_iwae_bound_is_the_known_one():
    """K = 2, against 400,000 pairs of weights written out."""
    weighted = importance_sample(conjugate, guide_of(1.5), (Y,), 4000)
    evidence, _, _ = exact(Y)
    z = torch.randn(2, 400_000, dtype=torch.double, generator=torch.Generator().manual_seed(5))
    log_ratio = math.log(1.5) + 0.5 * z.square() - 0.5 * (1.5 * z).square()
    pairs = evidence + torch.logsumexp(log_ratio, 0) - math.log(2)
    found = weighted.iwae(2)
    assert abs(found.value - float(pairs.mean())) < 4 * found.error


def test_standard_error_of_the_evidence():
    """The errors claimed agree with the scatter over 60 repetitions, known to 1 / sqrt(120) = 9 %."""
    found = [log_evidence(conjugate, guide_of(1.4, 0.3), (Y,), 500) for _ in range(60)]
    values, errors = torch.tensor(found, dtype=torch.double).T
    assert float(values.std() / errors.mean()) == pytest.approx(1.0, abs=4 / math.sqrt(120))
    assert abs(float(values.mean()) - exact(Y)[0]) < 4 * float(errors.mean()) / math.sqrt(60)


@pytest.mark.parametrize("method", ["psis", "iwae"])
def test_linear_regression(method):
    model, x, y, evidence, _, _ = linear_regression()
    guide = AutoNormal(model)
    fit(model, guide, (x, y), steps=400, lr=0.03, num_particles=8, progress=False)
    found = log_evidence(model, guide, (x, y), 2000, method=method)
    assert abs(found.value - evidence) < 4 * found.error
    assert found.error < 0.05


def test_resampled_predictions_are_those_of_the_exact_posterior():
    """From a guide with a shifted mean and twice the spread; the error is that of self-normalised weights."""
    model, x, y, _, mean, covariance = linear_regression()
    std = covariance.diagonal().sqrt()

    def guide(x, y=None):
        pyro.sample("weight", dist.Normal((mean + std)[:3].view(1, 3), 2.0 * std[:3].view(1, 3)).to_event(2))
        pyro.sample("bias", dist.Normal((mean + std)[3:], 2.0 * std[3:]).to_event(1))

    weighted = importance_sample(model, guide, (x, y), 20_000)
    assert weighted.smoothed.reliable
    x_test = torch.randn(6, 3, dtype=torch.double)
    design = torch.cat([x_test, torch.ones(6, 1, dtype=torch.double)], 1)
    exact_mean, exact_std = design @ mean, (design @ covariance @ design.T).diagonal().sqrt()
    plain = predict(model, guide, x_test, num_samples=2000)
    pred = predict(model, weighted.resample(2000), x_test)
    error = exact_std * (1.0 / weighted.smoothed.ess + 1.0 / 2000) ** 0.5
    assert ((pred.mean - exact_mean).abs() < 4 * error).all()
    assert ((pred.epistemic / exact_std - 1).abs() < 4 * (error / exact_std)).all()
    assert ((plain.mean - exact_mean).abs() > 8 * error).any()
    assert (plain.epistemic > 1.3 * exact_std).all()


@pytest.mark.parametrize("name", [name for name in PROBLEMS if name != "minibatch bnn"])
@pytest.mark.parametrize("kind", ["hypernet", "AutoNormal", "AutoMultivariateNormal"])
def test_mean_weight_is_the_elbo(name, kind):
    """Against Pyro's own ELBO, with constrained latents, plates and auxiliary sites."""
    model, args = PROBLEMS[name]()
    if kind == "hypernet":
        guide = AutoHypernet(model, example=args)
    else:
        guide = {"AutoNormal": AutoNormal, "AutoMultivariateNormal": AutoMultivariateNormal}[kind](model)
        guide(*args)
    weighted = importance_sample(model, guide, args, 600)
    elbo = pyro.infer.Trace_ELBO()
    with torch.no_grad():
        losses = -torch.tensor([elbo.loss(model, guide, *args) for _ in range(150)], dtype=torch.double)
    error = math.hypot(weighted.elbo.error, float(losses.std()) / math.sqrt(150))
    assert abs(weighted.elbo.value - float(losses.mean())) < 4 * error
    trace = pyro.poutine.trace(guide).get_trace(*args)
    for site, value in weighted.draws.items():
        assert value.shape == (600, *trace.nodes[site]["value"].shape)
        assert not torch.equal(value[0], value[1])


def test_weights_belong_to_their_draws():
    model, (x, y) = bnn(dtype=torch.float64)
    guide = AutoMultivariateNormal(model)
    guide(x, y)
    guide.requires_grad_(False)
    weighted = importance_sample(model, guide, (x, y), 300)  # two chunks
    posterior = guide.get_posterior()
    for s in (0, 149, 150, 299):
        values = {name: value[s] for name, value in weighted.draws.items()}
        log_p = pyro.poutine.trace(pyro.poutine.condition(model, data=values)).get_trace(x, y).log_prob_sum()
        scale = values["likelihood.scale"]
        flat = torch.cat([v.reshape(-1) for n, v in values.items() if n != "likelihood.scale"] + [scale.log().view(1)])
        log_q = posterior.log_prob(flat) - scale.log()
        assert float(log_p - log_q) == pytest.approx(float(weighted.log_weights[s]), rel=1e-9)


def scalars_only(y):
    """Fails with a batch of latents: it asks a tensor for a number."""
    mu = pyro.sample("mu", dist.Normal(y.new_zeros(()), 2.0))
    centre = y.new_tensor(float(mu))
    pyro.sample("obs", dist.Normal(centre, 1.0).expand([len(y)]).to_event(1), obs=y)


def mixes_draws(y):
    """Runs with a batch of latents, and gives each the mean of all."""
    mu = pyro.sample("mu", dist.Normal(y.new_zeros(()), 2.0))
    with pyro.plate("data", len(y)):
        pyro.sample("obs", dist.Normal(mu.mean(), 1.0), obs=y)


@pytest.mark.parametrize("model", [scalars_only, mixes_draws])
def test_models_that_cannot_be_vectorised(model, caplog):
    evidence, _, _ = exact(Y)
    with caplog.at_level(logging.INFO, logger="bayeshnet"):
        weighted = importance_sample(model, guide_of(1.4), (Y,), 300)
    assert "cannot be vectorised" in caplog.text
    found = weighted.log_evidence
    assert abs(found.value - evidence) < 4 * found.error
    assert found.error < 0.1


def test_a_guide_with_noise_of_its_own_is_not_vectorised():
    """Noise that is no sample site is the same for all draws of one call."""

    def guide(y):
        eps = torch.randn((), dtype=y.dtype)
        log_q = dist.Normal(0.0, 1.0).log_prob(eps)
        pyro.sample("mu", dist.Delta(1.0 + eps, log_density=log_q))

    weighted = importance_sample(conjugate, guide, (Y,), 200)
    assert len(weighted.draws["mu"].unique()) == 200
    assert abs(weighted.log_evidence.value - exact(Y)[0]) < 4 * weighted.log_evidence.error


def test_auxiliary_sites_are_counted():
    """mu = a + b of two normals: the density of mu is the sum of those of a and, given a, of mu."""
    _, mean, std = exact(Y)

    def guide(y):
        a = pyro.sample("a", dist.Normal(y.new_tensor(2.0 * mean), 2.0 * std), infer={"is_auxiliary": True})
        pyro.sample("mu", dist.Delta(a / 2.0, log_density=math.log(2.0)))

    weighted = importance_sample(conjugate, guide, (Y,), 100)
    torch.testing.assert_close(weighted.log_weights, torch.full((100,), exact(Y)[0], dtype=torch.double))


def test_semi_implicit_weights_are_unbiased():
    """Its log q is a bound, but the mean weight over fresh noise is the evidence itself."""
    guide = AutoHypernet(
        conjugate, example=(Y.float(),), family=Hypernet(noise="independent", estimator=SemiImplicit(num_fresh=20))
    )
    fit(conjugate, guide, (Y.float(),), steps=300, progress=False)
    found = log_evidence(conjugate, guide, (Y.float(),), 4000)
    assert abs(found.value - exact(Y)[0]) < 4 * found.error
    assert found.error < 0.02


def test_random_numbers():
    """The same seed gives the same draws, and the trial does not take from the caller's stream."""
    model, (x, y) = bnn()
    guide = AutoHypernet(model, example=(x, y))
    states, draws = [], []
    for _ in range(2):
        pyro.set_rng_seed(7)
        draws.append(importance_sample(model, guide, (x, y), 20))
        states.append(torch.get_rng_state())
    assert torch.equal(draws[0].log_weights, draws[1].log_weights)
    assert torch.equal(*states)
    pyro.set_rng_seed(7)
    with torch.no_grad(), pyro.plate("particles", 20, dim=-2):  # with gradients a draw has one candidate only
        expected = guide(x, y)
    assert torch.equal(draws[0].draws["0.weight"], expected["0.weight"].reshape(20, 6, 2))
    assert torch.equal(torch.get_rng_state(), states[0])


def test_evaluation_mode_is_used_and_restored():
    net = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    model = BayesianModel(net, likelihood=likelihoods.Normal(scale=0.5)).train()
    x, y = torch.randn(9, 2), torch.randn(9)
    guide = AutoNormal(model)
    guide(x, y)
    guide.requires_grad_(False)
    weighted = importance_sample(model, guide, (x, y), 10)
    assert model.training
    model.eval()
    for s in (0, 9):
        values = {name: value[s] for name, value in weighted.draws.items()}
        log_p = pyro.poutine.trace(pyro.poutine.condition(model, data=values)).get_trace(x, y).log_prob_sum()
        log_q = pyro.poutine.trace(pyro.poutine.condition(guide, data=_latents(guide, values))).get_trace(x, y)
        assert float(log_p - log_q.log_prob_sum()) == pytest.approx(float(weighted.log_weights[s]), abs=1e-3)


def _latents(guide, values):
    return {f"{name}_unconstrained": value for name, value in values.items()}


def test_log_evidence_warns_where_it_cannot_be_trusted():
    with pytest.warns(BayeshnetWarning, match=r"log evidence and its error cannot be trusted: k-hat is"):
        log_evidence(conjugate, guide_of(0.2), (Y,), 2000)


@pytest.mark.parametrize("estimator", [SpectralStein(), Linearised(form="entropy")])
def test_estimators_without_a_density(estimator):
    guide = AutoHypernet(conjugate, example=(Y.float(),), family=Hypernet(noise="independent", estimator=estimator))
    with pytest.raises(DensityError, match="gives no density of a draw.*ChangeOfVariables"):
        importance_sample(conjugate, guide, (Y.float(),), 100)


@pytest.mark.parametrize("make", [AutoDelta, lambda model: AutoHypernetDelta(model, example=(Y.float(),))])
def test_points(make):
    with pytest.raises(UsageError, match="guide: gives the same latents at every call"):
        importance_sample(conjugate, make(conjugate), (Y.float(),), 100)


def test_errors():
    model, (x, y) = bnn(dataset_size=90)
    guide = AutoNormal(model)
    guide(x, y)
    with pytest.raises(ArgumentError, match=r"data: are 30 of 90 rows \(plate 'data'\).*Pass all rows"):
        importance_sample(model, guide, (x, y))
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=10)
    with pytest.raises(ArgumentTypeError, match="data: is a DataLoader, and importance weights need all"):
        importance_sample(model, guide, loader)
    with pytest.raises(ArgumentError, match="data: has no targets"):
        importance_sample(model, guide, (x,))
    with pytest.raises(ArgumentTypeError, match="guide: is a dict"):
        importance_sample(model, {}, (x, y))
    with pytest.raises(ArgumentError, match="num_samples: is 1"):
        importance_sample(conjugate, guide_of(1.0), (Y,), 1)
    with pytest.raises(ArgumentError, match="method: is 'vi'"):
        log_evidence(conjugate, guide_of(1.0), (Y,), method="vi")
    with pytest.raises(ArgumentError, match=r"guide: lacks the model's latents \['mu'\], and has sites \['nu'\]"):
        importance_sample(conjugate, lambda y: pyro.sample("nu", dist.Normal(0.0, 1.0)), (Y,))


def test_undefined_weights():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(y.new_zeros(()), 2.0))
        pyro.factor("odd", torch.where(mu > 1.0, torch.nan, 0.0))

    with pyro.validation_enabled(False), pytest.raises(UsageError, match="draws is NaN or infinite.*log p is nan"):
        importance_sample(model, guide_of(1.0), (Y,), 200)


def test_draws_outside_of_the_support_weigh_nothing():
    """A prior on positive numbers under a guide on all of them: half of the draws have weight 0."""

    def model(y):
        pyro.sample("mu", dist.HalfNormal(y.new_tensor(1.0)))

    def guide(y):
        pyro.sample("mu", dist.Normal(y.new_zeros(()), 1.0))

    with pyro.validation_enabled(False):
        weighted = importance_sample(model, guide, (Y,), 2000)
    log_weights = weighted.log_weights
    assert set(log_weights.exp().round(decimals=9).tolist()) == {0.0, 2.0}
    assert pareto_smooth(log_weights).k_hat == -math.inf
    assert abs(weighted.log_evidence.value) < 4 * weighted.log_evidence.error
