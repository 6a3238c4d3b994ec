from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import MultivariateNormal

from bayeshnet.distributions import ImplicitWeights
from bayeshnet.entropy import NoisySampler
from bayeshnet.entropy.experimental import SpectralStein, spectral_score
from bayeshnet.errors import ArgumentError, DensityError, EntropyGapWarning, SpreadWarning
from bayeshnet.families import Hypernet
from bayeshnet.infer import AutoHypernet, fit
from tests.samplers import perturbed
from tests.targets import TARGETS, histogram_kl, target_model

NOISES = ["shared", "independent"]


def test_equals_the_expansion_written_out():
    """Eigenfunctions and their derivatives one by one, by automatic differentiation."""
    torch.set_default_dtype(torch.float64)
    samples, points, share = torch.randn(30, 2) * torch.tensor([1.0, 5.0]) + 3.0, torch.randn(4, 2), 0.9
    std = samples.std(0)
    x = samples / std
    distances = (x.unsqueeze(1) - x).norm(dim=-1)
    pairs = torch.stack([distances[i, j] for i in range(30) for j in range(i)])
    width = pairs.median()

    def kernel(a, b):
        return torch.exp(-(a - b).square().sum(-1) / (2 * width**2))

    values, vectors = torch.linalg.eigh(kernel(x.unsqueeze(1), x))
    expected, total = torch.zeros(4, 2), 0.0
    for value, vector in zip(values.flip(0), vectors.flip(1).T, strict=True):

        def psi(point, value=value, vector=vector):
            return math.sqrt(30) / value * (vector * kernel(point, x)).sum()

        beta = -torch.stack([torch.func.grad(psi)(row) for row in x]).mean(0)
        expected += torch.stack([psi(row) for row in points / std]).unsqueeze(1) * beta
        total += float(value / values.sum())
        if total >= share:
            break
    torch.testing.assert_close(spectral_score(samples, points, share=share), expected / std)


def test_score_of_a_gaussian():
    """The relative error is small, and falls as samples are added: by half at least for eight times as many."""
    torch.set_default_dtype(torch.float64)
    normal = MultivariateNormal(torch.tensor([1.0, -2.0]), torch.tensor([[1.0, 0.6], [0.6, 2.0]]))
    errors = {}
    for num in (100, 800):
        relative = []
        for _ in range(10):
            points = normal.sample((200,))
            score = torch.linalg.solve(normal.covariance_matrix, (normal.mean - points).T).T
            found = spectral_score(normal.sample((num,)), points, share=0.99)
            relative.append((found - score).square().sum() / score.square().sum())
        relative = torch.stack(relative)
        errors[num] = (float(relative.mean()), float(relative.std() / math.sqrt(10)))
    # Each of J = 9 coefficients is a mean over M samples of a function with mean square of the order of J, so the
    # relative error is of the order J^2 / 2M = 0.05 for M = 800.
    assert errors[800][0] + 4 * errors[800][1] < 0.1
    assert errors[800][0] + 4 * errors[800][1] < 0.5 * errors[100][0]


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_is_that_of_the_entropy(noise, dtype):
    torch.set_default_dtype(dtype)
    hnet = perturbed(2, 2, noise=noise, layers=(), sigma=0.8)
    sampler = NoisySampler(hnet)
    weight, bias = hnet.internal_hnet.head()
    factor = weight + torch.diag(hnet.sigma)
    cov = factor @ factor.T if noise == "shared" else weight @ weight.T + torch.diag(hnet.sigma.square())
    params = [*hnet.internal_hnet.internal_params, hnet.log_sigma_noise]
    entropy = -MultivariateNormal(bias, cov).entropy()
    expected = torch.autograd.grad(entropy, params, allow_unused=True)
    estimator = SpectralStein(num_samples=512)
    repeats = [
        torch.autograd.grad(estimator.log_prob(sampler, sampler.draw(500)).mean(), params, allow_unused=True)
        for _ in range(40)
    ]
    for i, param in enumerate(params):
        found = torch.stack([grads[i] for grads in repeats])
        wanted = torch.zeros_like(param) if expected[i] is None else expected[i]
        error = found.std(0) / math.sqrt(len(repeats))
        # Besides the Monte Carlo error a bias: 1 % of the eigenvalues are left out, about 5 % of the score.
        assert bool(((found.mean(0) - wanted).abs() <= 4 * error + 0.05 * (1 + wanted.abs())).all())
        assert float(error.max()) < 0.06
        assert found.dtype == dtype


def test_value_is_a_gaussians_and_has_no_gradient_of_its_own():
    torch.set_default_dtype(torch.float64)
    sampler = NoisySampler(perturbed(3, 2))
    estimator = SpectralStein(num_samples=100)
    draw = sampler.draw(5)
    torch.manual_seed(2)
    log_q = estimator.log_prob(sampler, draw)
    torch.manual_seed(2)
    with torch.no_grad():
        silent = estimator.log_prob(sampler, draw)
    torch.manual_seed(2)
    fresh = sampler.draw(100).weights.detach()
    normal = torch.distributions.Normal(fresh.mean(0), fresh.std(0))
    expected = normal.log_prob(draw.weights).sum(-1).detach()
    torch.testing.assert_close(log_q, expected)
    torch.testing.assert_close(silent, expected)
    assert not silent.requires_grad
    (gradient,) = torch.autograd.grad(log_q.sum(), draw.weights)
    torch.testing.assert_close(gradient, spectral_score(fresh, draw.weights.detach(), share=0.99))


def test_score_at_any_point():
    estimator, hnet = SpectralStein(), perturbed(2, 2, layers=(), sigma=1.0)
    score = estimator.score(NoisySampler(hnet), torch.zeros(4, 2))
    assert score.shape == (4, 2)
    assert not score.requires_grad
    assert torch.isfinite(score).all()


@pytest.mark.slow
def test_collapse_of_the_spread_is_reproduced_and_diagnosed():
    """100 standard normal latents: an exact density gives their spread, this estimator a fraction, as it predicts."""

    def model():
        pyro.sample("w", dist.Normal(0.0, 1.0).expand([100]).to_event(1))

    options = {"steps": 600, "lr": 0.02, "num_particles": 16, "progress": False}
    guide = AutoHypernet(model, example=(), init_scale=0.1, family=Hypernet(estimator=SpectralStein(num_samples=64)))
    with pytest.warns(SpreadWarning) as caught:
        fit(model, guide, (), **options)
    assert "too narrow" in str(caught[0].message)
    assert "The reported ELBO is none" in guide.diagnose().advice[-1]
    measured = float(guide.sample_posterior(4000)["w"].std(0).mean())
    exact = AutoHypernet(model, example=(), init_scale=0.1)
    fit(model, exact, (), **options)
    # Spreads of 100 latents from 4000 draws each: a standard error of 0.001.
    assert measured < 0.7
    assert float(exact.sample_posterior(4000)["w"].std(0).mean()) == pytest.approx(1.0, abs=0.1)
    assert guide.diagnose().values["spread"] == pytest.approx(measured, abs=0.1)


def test_collapse_across_a_curve_is_diagnosed():
    """Draws along a parabola, with little noise: much of their spread counts, that of the noise for nothing."""
    torch.set_default_dtype(torch.float64)
    hnet = perturbed(2, 1, noise="independent", layers=(), sigma=0.02)
    inner = hnet.internal_hnet
    inner.forward = _parabola
    sampler = NoisySampler(hnet)
    assert sampler.linear_head is None  # its forward was replaced
    with torch.no_grad():
        hnet.log_sigma_noise.fill_(math.log(0.02))
    diagnosis = SpectralStein(share=0.999).diagnose(sampler)
    assert diagnosis.values["spread"] > 0.5
    assert diagnosis.values["noise_share"] < 0.1
    assert diagnosis.category is SpreadWarning
    assert any("for the noise scale" in advice and "too narrow across" in advice for advice in diagnosis.advice)


def _parabola(uncond_input=None, **_):
    return torch.cat([uncond_input, uncond_input.square() - 1.0], 1)


def test_too_many_eigenfunctions_for_the_samples_are_diagnosed():
    """Few samples and nearly all eigenfunctions: outside of the samples the score is too large."""
    torch.set_default_dtype(torch.float64)
    diagnosis = SpectralStein(num_samples=128, share=0.999).diagnose(
        NoisySampler(perturbed(10, 2, layers=(), sigma=1.0))
    )
    assert diagnosis.values["spread"] > 1.1
    assert diagnosis.category is SpreadWarning
    assert "too wide" in diagnosis.advice[0]
    assert "lower share" in diagnosis.advice[0]


@pytest.mark.parametrize("noise", NOISES)
def test_healthy_in_two_dimensions(noise):
    torch.set_default_dtype(torch.float64)
    # Without correlations, so that the Gaussian value is the density too.
    hnet = perturbed(2, 2, noise=noise, layers=(), sigma=1.0)
    with torch.no_grad():
        hnet.internal_hnet.internal_params[0].zero_()
    diagnosis = SpectralStein(num_samples=512).diagnose(NoisySampler(hnet), num_samples=1000)
    assert diagnosis.healthy, diagnosis.advice
    assert diagnosis.values["noise_share"] == pytest.approx(1.0, abs=0.15)
    assert abs(diagnosis.values["elbo_excess"]) < 0.05


def test_value_that_is_off_is_diagnosed():
    """Correlated draws: log q of independent Gaussians is too low by their mutual information."""
    torch.set_default_dtype(torch.float64)
    hnet = perturbed(2, 1, noise="independent", layers=(), sigma=1.0)
    with torch.no_grad():
        hnet.internal_hnet.internal_params[0].fill_(1.5)
        hnet.log_sigma_noise.zero_()
    diagnosis = SpectralStein(num_samples=512).diagnose(NoisySampler(hnet), num_samples=2000)
    correlation = 1.5**2 / (1.5**2 + 1.0)
    error = 4 * diagnosis.values["elbo_excess_error"]
    # Beside it the error of fitted moments, D / M.
    assert diagnosis.values["elbo_excess"] == pytest.approx(-0.5 * math.log(1 - correlation**2), abs=error + 0.02)
    assert diagnosis.category is EntropyGapWarning
    assert "The reported ELBO is none" in diagnosis.advice[-1]


def test_errors():
    with pytest.raises(ArgumentError, match="num_samples: is 1"):
        SpectralStein(num_samples=1)
    with pytest.raises(ArgumentError, match="share: is 0"):
        SpectralStein(share=0.0)
    q = ImplicitWeights(perturbed(), estimator=SpectralStein())
    with pytest.raises(DensityError, match="not its value"):
        q.log_prob(torch.zeros(12))
    with pytest.raises(DensityError, match="batch norm"):
        ImplicitWeights(perturbed(use_batch_norm=True), estimator=SpectralStein())
    assert repr(SpectralStein(num_samples=9, share=0.5)) == "SpectralStein(num_samples=9, share=0.5)"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The (reported ELBO|estimated):bayeshnet.errors.BayeshnetWarning")
def test_fits_a_banana_with_enough_eigenfunctions_and_collapses_without():
    model, target = target_model("banana"), TARGETS["banana"]()
    measured, noise_share = {}, {}
    for share in (0.95, 0.999):
        guide = AutoHypernet(model, example=(), init_scale=0.1, family=Hypernet(estimator=SpectralStein(share=share)))
        fit(model, guide, (), steps=400, num_particles=64, progress=False)
        with torch.no_grad():
            draws = guide.get_posterior().rsample((200_000,))
        measured[share] = histogram_kl(draws, target.log_prob, bins=120)
        noise_share[share] = guide.diagnose().values["noise_share"]
    # No Gaussian comes nearer than 0.5 nats.
    assert measured[0.999] < 0.25
    assert measured[0.95] > 1.0
    assert noise_share[0.95] < 0.75 < noise_share[0.999]
