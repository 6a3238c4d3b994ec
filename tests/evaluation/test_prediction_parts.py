"""Every part of a prediction against closed forms and ``scipy.stats``, in float64."""

from __future__ import annotations

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import nn

from bayeshnet import BayesianModel, Prediction, likelihoods, predict
from bayeshnet.errors import ArgumentError, ArgumentTypeError, UsageError

S, B = 7, 4
LEVELS = [0.03, 0.5, 0.9]


def outputs(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(conditional, f=None):
    torch.manual_seed(1)
    return Prediction(conditional.mean if f is None else f, conditional.sample(), conditional)


# Pyro's distribution and SciPy's for each network and row; parameters [S, B].
F, G = outputs(S, B), outputs(S, B, seed=1).exp()
CONTINUOUS = {
    "Normal": (dist.Normal(F, G), stats.norm(F, G)),
    "Laplace": (dist.Laplace(F, G), stats.laplace(F, G)),
    "Gamma": (dist.Gamma(1.0 + G, F.exp()), stats.gamma(1.0 + G, scale=(-F).exp())),
    "LogNormal": (dist.LogNormal(F, 0.5), stats.lognorm(0.5, scale=F.exp())),
}
DISCRETE = {
    "Poisson": (dist.Poisson(G), stats.poisson(G)),
    "NegativeBinomial": (dist.NegativeBinomial(3.0, logits=F), stats.nbinom(3.0, (-F).sigmoid())),
    "Binomial": (dist.Binomial(5, logits=F), stats.binom(5, F.sigmoid())),
    "Bernoulli": (dist.Bernoulli(logits=F), stats.bernoulli(F.sigmoid())),
}
# Each network has another support.
ALL = {**CONTINUOUS, **DISCRETE, "Uniform": (dist.Uniform(F, F + G), stats.uniform(F, G))}


def close(found, expected, tol=1e-6):
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=tol, atol=tol)


@pytest.mark.parametrize("name", ALL)
def test_moments(name):
    conditional, known = ALL[name]
    pred = made(conditional)
    close(pred.functions, known.mean())
    close(pred.mean, known.mean().mean(0))
    close(pred.epistemic, known.mean().std(0))
    close(pred.aleatoric, np.sqrt(known.var().mean(0)))
    second = (known.var() + known.mean() ** 2).mean(0)
    close(pred.std, np.sqrt(second - known.mean().mean(0) ** 2))


@pytest.mark.parametrize("name", [*CONTINUOUS, *DISCRETE])
def test_log_density_of_the_mixture(name):
    conditional, known = ALL[name]
    pred = made(conditional)
    density = known.pdf if name in CONTINUOUS else known.pmf
    y = pred.samples[0]
    close(pred.log_prob(y), np.log(density(y.numpy()).mean(0)))


@pytest.mark.parametrize("name", CONTINUOUS)
def test_quantiles_of_the_mixture(name):
    conditional, known = CONTINUOUS[name]
    found = made(conditional).quantile(LEVELS)
    for level, quantile in zip(LEVELS, found, strict=True):
        close(known.cdf(quantile.numpy()).mean(0), np.full(B, level), tol=1e-9)
    low, high = made(conditional).interval(0.9)
    close(known.cdf(high.numpy()).mean(0) - known.cdf(low.numpy()).mean(0), np.full(B, 0.9), tol=1e-9)
    close(made(conditional).cdf(low), np.full(B, 0.05), tol=1e-9)


def test_quantiles_of_far_tails_and_narrow_noise():
    """Beyond the range of few samples, and of a mixture that is nearly a step function."""
    f = torch.tensor([[250_000.0], [250_001.0]], dtype=torch.float64)
    for scale in (1e-3, 1.0, 100.0):
        found = made(dist.Normal(f, scale)).quantile([1e-6, 0.3, 1 - 1e-6])
        expected = stats.norm(f.numpy(), scale).cdf(found.numpy()[:, None]).mean(1)[:, 0]
        close(expected, [1e-6, 0.3, 1 - 1e-6], tol=1e-7)
    f = torch.zeros(3, 1, dtype=torch.float64)
    close(Prediction(f, f, dist.Normal(f, 1.0)).quantile(0.975), stats.norm.ppf([0.975]))  # samples all the same


def test_quantiles_of_single_precision_and_of_several_outputs():
    conditional = dist.Normal(F.float()[..., None].expand(S, B, 2), 0.3).to_event(1)
    pred = made(conditional)
    expected = made(dist.Normal(F, 0.3)).quantile(LEVELS)
    assert pred.quantile(LEVELS).shape == (3, B, 2)
    close(pred.quantile(LEVELS)[..., 1], expected, tol=1e-5)
    joint = dist.MultivariateNormal(F[..., None].expand(S, B, 2), 0.09 * torch.eye(2, dtype=torch.float64))
    close(made(joint).quantile(LEVELS)[..., 0], expected)
    close(made(joint).aleatoric, np.full((B, 2), 0.3))


def test_quantiles_at_jumps():
    """Of a mixture with atoms, as a censored observation has: the smallest value that reaches the level."""

    class Step(dist.Normal):
        """A Normal whose negative values are 0."""

        def cdf(self, value):
            return torch.where(value < 0, torch.zeros_like(value), super().cdf(value))

        def sample(self, *args):
            return super().sample(*args).clamp(min=0.0)

    f = torch.zeros(S, 1, dtype=torch.float64)
    conditional = Step(f, 1.0)
    found = Prediction(f, conditional.sample(), conditional).quantile([0.2, 0.5 + 1e-3, 0.8])
    close(found[:, 0], [0.0, stats.norm.ppf(0.5 + 1e-3), stats.norm.ppf(0.8)])


@pytest.mark.parametrize("name", ["Bernoulli", "Binomial"])
def test_classes_that_are_numbers(name):
    conditional, known = DISCRETE[name]
    pred = made(conditional)
    values = np.arange(2 if name == "Bernoulli" else 6)
    each = np.stack([known.pmf(value) for value in values], -1)
    close(pred.probs, each.mean(0))
    close(pred.probs.sum(-1), np.ones(B))
    close(pred.entropy, stats.entropy(each.mean(0), axis=-1))
    close(pred.mutual_information, stats.entropy(each.mean(0), axis=-1) - stats.entropy(each, axis=-1).mean(0))
    reached = (each.mean(0).cumsum(-1)[None] >= np.array(LEVELS)[:, None, None]).argmax(-1)
    close(pred.quantile(LEVELS), values[reached])
    assert pred.is_classification
    assert pred.log_prob(torch.ones(B, dtype=torch.long)).shape == (B,)


def test_labels():
    logits = outputs(S, B, 2, 3)
    pred = made(dist.Categorical(logits=logits).to_event(1), logits)
    each = np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(-1, keepdims=True)
    close(pred.functions, each)
    close(pred.mean, each.mean(0))
    close(pred.entropy, stats.entropy(each.mean(0), axis=-1))
    close(pred.aleatoric, stats.entropy(each, axis=-1).mean(0))
    close(pred.epistemic, pred.entropy - pred.aleatoric)
    for call in (lambda: pred.std, lambda: pred.quantile(0.5), pred.interval, lambda: pred.cdf(pred.samples[0])):
        with pytest.raises(UsageError, match="labels have"):
            call()


def test_a_class_of_ordered_labels_is_one_of_numbers():
    class Ordered(dist.Categorical):
        @property
        def mean(self):
            return (self.probs * torch.arange(3.0, dtype=self.probs.dtype)).sum(-1)

        @property
        def variance(self):
            return (self.probs * torch.arange(3.0, dtype=self.probs.dtype).square()).sum(-1) - self.mean.square()

    logits = outputs(S, B, 3)
    pred = made(Ordered(logits=logits), logits)
    p = logits.softmax(-1).mean(0)
    close(pred.mean, p[:, 1] + 2 * p[:, 2])
    close(pred.std.square(), p[:, 1] + 4 * p[:, 2] - pred.mean.square())
    close(pred.quantile(0.5), (p.cumsum(-1) < 0.5).sum(-1))


def test_counts_have_quantiles_of_their_draws():
    torch.manual_seed(0)
    conditional = dist.Poisson(torch.full((20_000, 2), 4.0, dtype=torch.float64))
    pred = Prediction(conditional.mean, conditional.sample(), conditional)
    assert not pred.is_classification
    # The distribution function steps by .14 and more there, the Monte Carlo error is .004.
    assert pred.quantile([0.05, 0.5, 0.95]).tolist() == [[1.0, 1.0], [4.0, 4.0], [8.0, 8.0]]
    with pytest.raises(UsageError, match="probs: is for classifications"):
        _ = pred.probs


def test_entropies_by_monte_carlo():
    torch.manual_seed(0)
    f = torch.randn(2000, 3, dtype=torch.float64)
    pred = Prediction(f, dist.Normal(f, 0.5).sample(), dist.Normal(f, 0.5))
    # The mixture is Normal(0, 1.25). 200 draws of log p, of standard deviation sqrt(1/2): error .05.
    close(pred.entropy, np.full(3, 0.5 * math.log(2 * math.pi * math.e * 1.25)), tol=4 * 0.05)
    close(pred.mutual_information, np.full(3, 0.5 * math.log(5.0)), tol=4 * 0.05)


def test_what_does_not_exist_is_refused():
    pred = made(dist.StudentT(torch.tensor(2.0, dtype=torch.float64), F, 1.0), F)
    close(pred.mean, F.mean(0))
    for part in ("std", "aleatoric"):
        with pytest.raises(UsageError, match="aleatoric: is infinite or NaN at 4 of 4 places.*StudentT.*quantile"):
            getattr(pred, part)
    assert pred.interval(0.9)[0].shape == (B,)
    with pytest.raises(UsageError, match="mean: is infinite or NaN"):
        _ = made(dist.Cauchy(F, 1.0), F).mean
    exact = made(dist.Cauchy(F, 1.0), F).quantile(0.75)
    close(stats.cauchy(F.numpy(), 1.0).cdf(exact.numpy()).mean(0), np.full(B, 0.75))


def test_quantiles_where_networks_disagree_on_what_is_possible():
    pred = made(ALL["Uniform"][0])
    close(pred.quantile(LEVELS), np.quantile(pred.samples.numpy(), LEVELS, axis=0))


def test_without_formulas_the_samples_are_used():
    class Bare(dist.TorchDistribution):
        support = torch.distributions.constraints.real
        arg_constraints = {}  # noqa: RUF012

        def sample(self, sample_shape=()):
            return F

        def log_prob(self, value):
            return dist.Normal(F, 1.0).log_prob(value)

    pred = Prediction(F, F, Bare((S, B)))
    close(pred.mean, F.mean(0))
    close(pred.std, F.std(0, unbiased=False))
    close(pred.quantile(LEVELS), np.quantile(F.numpy(), LEVELS, axis=0))
    close(pred.cdf(torch.zeros(B, dtype=torch.float64)), (F <= 0).double().mean(0))
    for part in ("functions", "epistemic", "aleatoric"):
        with pytest.raises(UsageError, match="Bare has no formula"):
            getattr(pred, part)
    assert "of samples" in repr(pred)


def test_arguments():
    pred = made(CONTINUOUS["Normal"][0])
    for bad in (0.0, 1.0, [0.5, 1.0], -0.1):
        with pytest.raises(ArgumentError, match="level"):
            pred.quantile(bad)
    with pytest.raises(ArgumentTypeError, match="levels"):
        pred.quantile("median")
    assert pred.quantile(torch.tensor([0.1, 0.9])).shape == (2, B)
    with pytest.raises(ArgumentError, match=r"y: has shape \(4, 1\); pass \(4,\)"):
        pred.cdf(torch.zeros(B, 1))


@pytest.mark.parametrize("exposed", [1.0, 1e5])
@pytest.mark.parametrize("outputs", [1, 2])
def test_quantiles_of_counts_are_those_of_the_mixture(exposed, outputs):
    """Before: those of one draw for each network, off by several counts for the outer ones."""
    model = BayesianModel(nn.Linear(1, outputs).double(), likelihood=likelihoods.Poisson(exposure=True))
    generator = torch.Generator().manual_seed(0)
    draws = {
        "weight": torch.randn(20, outputs, 1, dtype=torch.float64, generator=generator),
        "bias": torch.randn(20, outputs, dtype=torch.float64, generator=generator),
    }
    x, exposure = torch.linspace(-1.0, 2.0, 9, dtype=torch.float64).unsqueeze(-1), torch.full((9,), exposed)
    pred = predict(model, draws, x, exposure=exposure)
    rates = pred.functions.numpy()
    for level in (1e-6, 0.05, 0.5, 0.95, 1.0 - 1e-6):
        found = pred.quantile(level).numpy()
        assert (stats.poisson(rates).cdf(found).mean(0) >= level - 1e-13).all()
        assert ((stats.poisson(rates).cdf(found - 1).mean(0) < level) | (found == 0)).all()
