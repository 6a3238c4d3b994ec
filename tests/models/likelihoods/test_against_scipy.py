"""Each likelihood against scipy, in float64 to 1e-6: a row per likelihood and kind of parameter."""

from __future__ import annotations

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import Tensor

from bayeshnet import likelihoods as lik

F = torch.tensor([[-1.5, 0.0, 0.7], [2.0, -0.3, 0.1]], dtype=torch.float64)  # [S, B]
PER_OUTPUT = torch.tensor([0.4, 1.3], dtype=torch.float64)


def column(likelihood, f: Tensor = F, **params: Tensor):
    return likelihood.conditional(f, params, batch_dims=2)


def numbers(value: Tensor) -> np.ndarray:
    return value.detach().double().numpy()


def same(found: Tensor, expected, tol: float = 1e-6) -> None:
    np.testing.assert_allclose(numbers(found), np.asarray(expected), rtol=tol, atol=tol)


f = numbers(F)
LATENT = dist.Gamma(torch.tensor(6.0, dtype=torch.float64), 6.0)
half = torch.tensor(0.5, dtype=torch.float64)
third = torch.tensor([0.5, 2.0], dtype=torch.float64)  # one draw of a latent for each sample
s = numbers(third)[:, None]

# likelihood, draws of its latents, the frozen distribution of scipy, values at which densities are compared
CONTINUOUS = {
    "Normal known": (lik.Normal(scale=half), {}, stats.norm(f, 0.5)),
    "Normal precision": (lik.Normal(precision=4.0), {}, stats.norm(f, 0.5)),
    "Normal learned": (lik.Normal(scale=half, learn=True), {}, stats.norm(f, 0.5)),
    "Normal latent": (lik.Normal(scale=LATENT), {"scale": third}, stats.norm(f, s)),
    "Normal latent precision": (lik.Normal(precision=LATENT), {"precision": third}, stats.norm(f, s**-0.5)),
    "Normal per row": (
        lik.Normal(scale=half, per_row=True),
        {"noise": torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)},
        stats.norm(f, 0.5 * np.array([1.0, 2.0, 3.0])),
    ),
    "StudentT known": (lik.StudentT(scale=half, df=5.0), {}, stats.t(5.0, f, 0.5)),
    "StudentT latent": (lik.StudentT(scale=LATENT, df=LATENT), {"scale": third, "df": 4 * third}, stats.t(4 * s, f, s)),
    "StudentT learned": (lik.StudentT(scale=half, df=3.0, learn=["df"]), {}, stats.t(3.0, f, 0.5)),
    "Laplace known": (lik.Laplace(scale=half), {}, stats.laplace(f, 0.5)),
    "Laplace latent": (lik.Laplace(scale=LATENT), {"scale": third}, stats.laplace(f, s)),
    "TruncatedNormal": (
        lik.TruncatedNormal(scale=half, lower=-1.0, upper=1.5),
        {},
        stats.truncnorm((-1.0 - f) / 0.5, (1.5 - f) / 0.5, f, 0.5),
    ),
    "TruncatedNormal below": (
        lik.TruncatedNormal(scale=LATENT, lower=0.25),
        {"scale": third},
        stats.truncnorm((0.25 - f) / s, np.inf, f, s),
    ),
}


@pytest.mark.parametrize("name", CONTINUOUS)
def test_continuous(name):
    likelihood, params, expected = CONTINUOUS[name]
    made = column(likelihood, **params)
    assert (made.batch_shape, made.event_shape) == ((2, 3), ())
    same(made.mean, expected.mean())
    if "StudentT latent" not in name:  # of which one draw has 2 degrees of freedom, no variance
        same(made.variance, expected.var())
    y = torch.tensor([0.3, 1.1, -0.2], dtype=torch.float64) if "Trunc" not in name else torch.tensor([0.3, 1.1, 0.9])
    same(made.log_prob(y.double()), expected.logpdf(numbers(y)))
    if "StudentT" not in name:
        same(made.cdf(y.double()), expected.cdf(numbers(y)))
        q = torch.tensor([0.05, 0.5, 0.9], dtype=torch.float64)
        same(made.icdf(q), expected.ppf(numbers(q)))
    torch.manual_seed(0)
    draws = made.sample((4000,)).detach()
    if "StudentT" not in name:
        error = (draws.mean(0) - made.mean) / (made.variance / 4000).sqrt()
        assert float(error.detach().abs().max()) < 4.5
    # The uniform probability of the draws has mean 1/2 and variance 1/12.
    u = expected.cdf(numbers(draws))
    assert np.abs(u.mean(0) - 0.5).max() < 4.5 * (1 / 12 / 4000) ** 0.5


rate = np.exp(f)
exposure = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
t = numbers(exposure)


def nbinom(mean, dispersion):
    return stats.nbinom(1 / dispersion, 1 / (1 + dispersion * mean))


DISCRETE = {
    "Bernoulli": (lik.Bernoulli(), {}, stats.bernoulli(1 / (1 + np.exp(-f))), [0, 1]),
    "Poisson": (lik.Poisson(), {}, stats.poisson(rate), [0, 1, 7]),
    "Poisson exposure": (lik.Poisson(exposure=True), {"exposure": exposure}, stats.poisson(t * rate), [0, 1, 7]),
    "NegativeBinomial known": (lik.NegativeBinomial(half), {}, nbinom(rate, 0.5), [0, 1, 7]),
    "NegativeBinomial learned": (lik.NegativeBinomial(half, learn=True), {}, nbinom(rate, 0.5), [0, 1, 7]),
    "NegativeBinomial latent": (lik.NegativeBinomial(LATENT), {"dispersion": third}, nbinom(rate, s), [0, 1, 7]),
    "NegativeBinomial exposure": (
        lik.NegativeBinomial(half, exposure=True),
        {"exposure": exposure},
        nbinom(t * rate, 0.5),
        [0, 1, 7],
    ),
    "NegativeBinomial series": (
        lik.NegativeBinomial(torch.tensor(0.02, dtype=torch.float64)),
        {},
        nbinom(rate, 0.02),
        [0, 1, 7, 60],
    ),
}


@pytest.mark.parametrize("name", DISCRETE)
@pytest.mark.parametrize("dtype", [torch.int64, torch.float64])
def test_discrete(name, dtype):
    likelihood, params, expected, values = DISCRETE[name]
    made = column(likelihood, **params)
    same(made.mean, expected.mean())
    same(made.variance, expected.var())
    for value in values:
        same(made.log_prob(torch.tensor(value, dtype=dtype)), expected.logpmf(value))
    torch.manual_seed(0)
    draws = made.sample((4000,))
    assert bool((draws == draws.round()).all())
    error = (draws.mean(0) - made.mean) / (made.variance / 4000).sqrt()
    assert float(error.detach().abs().max()) < 4.5
    if name == "Bernoulli":
        same(made.entropy(), expected.entropy())
        same(made.cdf(torch.tensor(0.0, dtype=torch.float64)), expected.cdf(0))
        assert made.enumerate_support().shape == (2, 2, 3)
    if name.startswith("Poisson"):
        same(made.cdf(torch.tensor(2.0, dtype=torch.float64)), expected.cdf(2))


def test_beta():
    mean = 1 / (1 + np.exp(-f))
    for likelihood, params, c in (
        (lik.Beta(concentration=3.0), {}, 3.0),
        (lik.Beta(concentration=3.0, learn=True), {}, 3.0),
        (lik.Beta(concentration=LATENT), {"concentration": third}, s),
    ):
        made, expected = column(likelihood, **params), stats.beta(mean * c, (1 - mean) * c)
        same(made.mean, mean)
        same(made.variance, expected.var())
        same(made.log_prob(torch.tensor(0.3, dtype=torch.float64)), expected.logpdf(0.3))
        same(made.entropy(), expected.entropy())


def test_heteroscedastic_and_outputs_in_blocks():
    raw = torch.tensor([[[0.0, 1.0, -2.0, 3.0]]], dtype=torch.float64)  # [S, B, n K]: two locations, two raw scales
    likelihood = lik.HeteroscedasticNormal(scale=half)
    arranged = likelihood.arrange(raw, batch_dims=2)
    assert arranged.shape == (1, 1, 2, 2)
    made = column(likelihood, arranged)
    assert made.event_shape == (2,)
    scale = 0.5 * (np.log1p(np.exp(np.array([-2.0, 3.0]) + np.log(np.e - 1))) + 1e-4)
    same(made.mean[0, 0], [0.0, 1.0])
    same(made.variance[0, 0], scale**2)
    y = torch.tensor([0.2, 0.4], dtype=torch.float64)
    same(made.log_prob(y)[0, 0], stats.norm([0.0, 1.0], scale).logpdf(numbers(y)).sum())


def test_censored_normal():
    """Mean and variance of the observed value, by integrating over the hidden one."""
    lower, upper = -1.0, 1.2
    hidden = np.linspace(-14, 14, 2_000_001)[:, None]
    for scale, params, likelihood in (
        (np.array([[0.5], [0.5]]), {}, lik.CensoredNormal(half, lower=lower, upper=upper)),
        (s, {"scale": third}, lik.CensoredNormal(LATENT, lower=lower, upper=upper)),
    ):
        made = column(likelihood, **params)
        for i in range(2):
            density = stats.norm(f[i], scale[i, 0]).pdf(hidden) * (hidden[1] - hidden[0])
            seen = hidden.clip(lower, upper)
            mean = (density * seen).sum(0)
            same(made.mean[i], mean)
            same(made.variance[i], (density * (seen - mean) ** 2).sum(0))
        normal = stats.norm(f, scale)
        same(made.log_prob(torch.tensor(lower).double()), normal.logcdf(lower))
        same(made.log_prob(torch.tensor(upper).double()), normal.logsf(upper))
        same(made.log_prob(torch.tensor(0.3).double()), normal.logpdf(0.3))
        assert bool((made.log_prob(torch.tensor(2.0).double()) == -torch.inf).all())
        same(made.cdf(torch.tensor(0.3).double()), normal.cdf(0.3))
        assert float(made.cdf(torch.tensor(upper).double()).min()) == 1.0
        same(made.icdf(torch.tensor(0.3).double()), normal.ppf(0.3).clip(lower, upper))
        torch.manual_seed(0)
        draws = made.sample((4000,))
        assert float(((draws.mean(0) - made.mean) / (made.variance / 4000).sqrt()).abs().max()) < 4.5
        assert float(draws.min()) == lower
        assert float(draws.max()) == pytest.approx(upper)


def test_ordinal():
    cuts = torch.tensor([-1.0, 0.2, 1.5], dtype=torch.float64)
    below = stats.logistic.cdf(numbers(cuts) - f[..., None])
    probs = np.diff(np.concatenate([np.zeros((2, 3, 1)), below, np.ones((2, 3, 1))], -1), axis=-1)
    prior = dist.Normal(torch.zeros(3, dtype=torch.float64), 1.0).to_event(1)
    for likelihood, params in (
        (lik.Ordinal(cuts), {}),
        (lik.Ordinal(cuts, learn=True), {}),
        (lik.Ordinal(prior), {"cutpoints": cuts.expand(2, 3)}),
    ):
        made = column(likelihood, **params)
        same(made.probs, probs)
        mean = (probs * np.arange(4)).sum(-1)
        same(made.mean, mean)
        same(made.variance, (probs * (np.arange(4) - mean[..., None]) ** 2).sum(-1))
        same(made.log_prob(torch.tensor(2)), np.log(probs[..., 2]))
        same(made.cdf(torch.tensor(1)), probs[..., :2].sum(-1))
        same(made.entropy(), -(probs * np.log(probs)).sum(-1))
        assert made.enumerate_support().shape == (4, 2, 3)


def test_multivariate_normal_and_its_marginals():
    covariance = np.array([[1.0, 0.6, 0.1], [0.6, 2.0, -0.3], [0.1, -0.3, 0.5]])
    given = torch.tensor(covariance)
    scale = given.diagonal().sqrt()
    factor = torch.linalg.cholesky(given / scale / scale[:, None])
    latent = lik.MultivariateNormal(
        scale=dist.HalfNormal(torch.ones(3, dtype=torch.float64)).to_event(1),
        correlation=dist.LKJCholesky(3, torch.tensor(2.0, dtype=torch.float64)),
    )
    for likelihood, params in (
        (lik.MultivariateNormal(given), {}),
        (lik.MultivariateNormal(given, learn=True), {}),
        (latent, {"scale": scale.expand(2, 3), "correlation": factor.expand(2, 3, 3)}),
    ):
        made = column(likelihood, F.unsqueeze(-1) + torch.arange(3.0), **params)
        assert (made.batch_shape, made.event_shape) == ((2, 3), (3,))
        y = torch.tensor([[0.3, 1.0, 2.5]], dtype=torch.float64).repeat(3, 1)
        mean = f[..., None] + np.arange(3)
        expected = [
            [stats.multivariate_normal(mean[i, j], covariance).logpdf(y[j].numpy()) for j in range(3)] for i in range(2)
        ]
        same(made.log_prob(y), expected)
        same(made.variance, np.broadcast_to(covariance.diagonal(), (2, 3, 3)))
        y[0, 1] = torch.nan
        y[1, :] = torch.nan
        found = made.log_prob(y)
        keep = [0, 2]
        for i in range(2):
            marginal = stats.multivariate_normal(mean[i, 0, keep], covariance[np.ix_(keep, keep)])
            same(found[i, 0], marginal.logpdf(y[0, keep].numpy()))
            same(found[i, 1], 0.0)
            same(found[i, 2], expected[i][2])


def test_normal_mixture():
    raw = torch.randn(2, 3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    likelihood = lik.NormalMixture(2, scale=0.5)
    made = column(likelihood, likelihood.arrange(raw, batch_dims=2).squeeze(2))
    loc, scale, logits = numbers(raw).reshape(2, 3, 3, 2).swapaxes(0, 2).swapaxes(1, 2)
    scale = 0.5 * (np.log1p(np.exp(scale + np.log(np.e - 1))) + 1e-4)
    weight = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    parts = stats.norm(loc, scale)
    mean = (weight * loc).sum(-1)
    same(made.mean, mean)
    same(made.variance, (weight * (scale**2 + loc**2)).sum(-1) - mean**2)
    same(made.log_prob(torch.tensor(0.4).double()), np.log((weight * parts.pdf(0.4)).sum(-1)))
    same(made.cdf(torch.tensor(0.4).double()), (weight * parts.cdf(0.4)).sum(-1))


@pytest.mark.parametrize("name", ["Normal", "StudentT", "Laplace", "Beta", "NegativeBinomial", "Censored", "Truncated"])
def test_a_parameter_for_each_output(name):
    make = {
        "Normal": lambda v: lik.Normal(scale=v),
        "StudentT": lambda v: lik.StudentT(scale=v),
        "Laplace": lambda v: lik.Laplace(scale=v),
        "Beta": lambda v: lik.Beta(concentration=v),
        "NegativeBinomial": lambda v: lik.NegativeBinomial(dispersion=v),
        "Censored": lambda v: lik.CensoredNormal(scale=v, upper=torch.tensor([2.0, 3.0])),
        "Truncated": lambda v: lik.TruncatedNormal(scale=v, upper=torch.tensor([2.0, 3.0])),
    }[name]
    two = torch.stack([F, F], -1)
    both = make(PER_OUTPUT).conditional(two, {}, batch_dims=2)
    assert (both.batch_shape, both.event_shape) == ((2, 3), (2,))
    y = torch.tensor([0.2, 0.6], dtype=torch.float64) if name != "NegativeBinomial" else torch.tensor([1.0, 3.0])
    parts = 0.0
    for i in range(2):
        single = make(PER_OUTPUT[i])
        if hasattr(single, "upper"):
            single.upper = single.upper[i]
        one = single.conditional(F, {}, batch_dims=2)
        torch.testing.assert_close(both.mean[..., i], one.mean)
        torch.testing.assert_close(both.variance[..., i], one.variance)
        parts = parts + one.log_prob(y[i].double())
    torch.testing.assert_close(both.log_prob(y.double()), parts)
