"""Densities, moments and gradients far out: finite, and right where scipy tells them."""

from __future__ import annotations

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import special, stats

from bayeshnet import likelihoods as lik
from bayeshnet.models.likelihoods._gaussian_tails import log_between, quantile_between

EXTREME = [-1e3, -80.0, -20.0, 0.0, 20.0, 80.0, 1e3]
CASES = {
    "Normal": (lambda: lik.Normal(scale=0.5), 1.0),
    "HeteroscedasticNormal": (lambda: lik.HeteroscedasticNormal(scale=0.5), 1.0),
    "StudentT": (lambda: lik.StudentT(scale=0.5), 1.0),
    "Laplace": (lambda: lik.Laplace(scale=0.5), 1.0),
    "Bernoulli": (lik.Bernoulli, 1.0),
    "Ordinal": (lambda: lik.Ordinal(torch.tensor([-1.0, 1.0])), 1),
    "Poisson": (lik.Poisson, 3.0),
    "NegativeBinomial": (lambda: lik.NegativeBinomial(dispersion=0.5), 3.0),
    "Beta": (lambda: lik.Beta(concentration=5.0), 0.3),
    "CensoredNormal": (lambda: lik.CensoredNormal(scale=0.5, lower=0.0), 0.0),
    "TruncatedNormal": (lambda: lik.TruncatedNormal(scale=0.5, lower=0.0), 1.0),
    "NormalMixture": (lambda: lik.NormalMixture(1), 1.0),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_far_out_everything_is_finite(name, dtype):
    make, y = CASES[name]
    likelihood = make()
    n = likelihood.outputs_per_target
    raw = torch.tensor(EXTREME, dtype=dtype)
    f = (raw if n == 1 else torch.stack([raw] * n, -1)).requires_grad_()
    made = likelihood.conditional(f, {}, batch_dims=1)
    log_prob = made.log_prob(torch.tensor(y, dtype=torch.int64 if name == "Ordinal" else dtype))
    assert log_prob.dtype == dtype
    assert bool(torch.isfinite(log_prob).all())
    (grad,) = torch.autograd.grad(log_prob.sum(), f)
    assert bool(torch.isfinite(grad).all())
    for part in (made.mean, made.variance):
        assert bool(torch.isfinite(part).all())
        assert part.dtype == dtype
    assert bool((made.variance >= 0).all())
    torch.manual_seed(0)
    assert bool(torch.isfinite(made.sample((10,))).all())


def test_probabilities_of_intervals_in_the_tails():
    low = np.array([-np.inf, -40.0, 5.0, 30.0, -3.0, 0.0, 38.0])
    high = np.array([-35.0, -39.5, 5.001, np.inf, 2.0, np.inf, 38.1])
    found = log_between(torch.tensor(low), torch.tensor(high)).numpy()
    left, right = np.where(low + high > 0, -high, low), np.where(low + high > 0, -low, high)
    a, b = special.log_ndtr(left), special.log_ndtr(right)
    expected = b + np.log(-np.expm1(np.minimum(a - b, -1e-300)))
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    # Quantiles, put into the distribution function again.
    for u in (1e-6, 0.3, 0.999):
        z = quantile_between(torch.tensor(low), torch.tensor(high), torch.tensor(u, dtype=torch.float64))
        share = log_between(torch.tensor(low), z) - torch.tensor(found)
        np.testing.assert_allclose(share.exp().numpy(), u, rtol=1e-5)


def test_truncation_far_from_the_mean():
    """30 standard deviations out the distribution is nearly exponential; scipy's moments are exact there."""
    made = lik.TruncatedNormal(scale=1.0, lower=0.0).conditional(torch.tensor([-30.0]).double(), {}, batch_dims=1)
    expected = stats.truncnorm(30.0, np.inf, -30.0, 1.0)
    np.testing.assert_allclose(made.mean.numpy(), expected.mean(), rtol=1e-6)
    np.testing.assert_allclose(made.icdf(torch.tensor(0.5).double()).numpy(), expected.ppf(0.5), rtol=1e-6)
    y = torch.tensor(0.05, dtype=torch.float64)
    np.testing.assert_allclose(made.log_prob(y).numpy(), expected.logpdf(0.05), rtol=1e-9)
    torch.manual_seed(0)
    u = expected.cdf(made.sample((4000,)).numpy())
    assert abs(u.mean() - 0.5) < 4.5 * (1 / 12 / 4000) ** 0.5


@pytest.mark.parametrize("dispersion", [1e-8, 1e-4, 0.03, 0.04, 1.0, 100.0])
def test_dispersion_down_to_poisson(dispersion):
    """In float32 the plain formula is off by more than 1 for 1e-8."""
    y = torch.tensor([0.0, 3.0, 40.0, 500.0])
    value = torch.tensor(dispersion, dtype=torch.float64)
    single = lik.NegativeBinomial(dispersion=value).conditional(torch.full((4,), 2.0), {}, batch_dims=1)
    double = lik.NegativeBinomial(dispersion=value).conditional(torch.full((4,), 2.0).double(), {}, batch_dims=1)
    r = 1 / dispersion
    expected = stats.nbinom(r, r / (r + np.exp(2.0))).logpmf(y.numpy()) if dispersion > 1e-5 else None
    if expected is None:
        expected = stats.poisson(np.exp(2.0)).logpmf(y.numpy())
        np.testing.assert_allclose(double.log_prob(y.double()).numpy(), expected, rtol=1e-4)
    else:
        np.testing.assert_allclose(double.log_prob(y.double()).numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(single.log_prob(y).numpy(), double.log_prob(y.double()).numpy(), rtol=1e-4)


def test_gradients_of_parameters_with_infinite_limits():
    for make in (lik.CensoredNormal, lik.TruncatedNormal):
        likelihood = make(scale=0.5, lower=torch.tensor([0.0, -torch.inf]), learn=True)
        f = torch.zeros(3, 2, requires_grad=True)
        log_prob = likelihood.conditional(f, {}, batch_dims=1).log_prob(torch.full((3, 2), 0.7)).sum()
        for grad in torch.autograd.grad(log_prob, [f, likelihood.log_scale]):
            assert bool(torch.isfinite(grad).all())
            assert bool((grad != 0).any())


def test_a_latent_covariance_of_one_output():
    one = lik.MultivariateNormal(torch.tensor([[4.0]]))
    made = one.conditional(torch.zeros(7), {}, batch_dims=1)
    torch.testing.assert_close(made.log_prob(torch.ones(7)), dist.Normal(0.0, 2.0).log_prob(torch.ones(7)))
