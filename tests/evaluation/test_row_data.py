"""Noise and exposure of rows in predictions, and in what compares a guide with its data."""

from __future__ import annotations

import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from bayeshnet import (
    AutoHypernet,
    BayesianModel,
    diagnose,
    fit,
    importance_sample,
    likelihoods,
    predict,
    predict_summary,
)
from bayeshnet.errors import ArgumentError, ArgumentTypeError, UnitsWarning

X = torch.linspace(-1.0, 1.0, 150, dtype=torch.float64).unsqueeze(-1)
NOISE = torch.linspace(0.1, 2.0, 150, dtype=torch.float64)
Y = torch.linspace(0.0, 5.0, 150, dtype=torch.float64).round()
DRAWS = {
    "weight": torch.tensor([[[0.5]], [[-0.3]], [[1.0]]], dtype=torch.float64),
    "bias": torch.tensor([[0.1], [0.2], [0.3]], dtype=torch.float64),
}
F = (DRAWS["weight"][:, 0] * X[:, 0] + DRAWS["bias"]).numpy()


def seeded(number=0):
    return torch.Generator().manual_seed(number)


def linear(likelihood, **options):
    return BayesianModel(nn.Linear(1, 1).double(), likelihood=likelihood, **options)


class Dicts(Dataset):
    def __init__(self, **columns):
        self.columns = columns

    def __len__(self):
        return len(self.columns["x"])

    def __getitem__(self, i):
        return {name: column[i] for name, column in self.columns.items()}


def cases():
    numbers, spread = Y.numpy(), NOISE.numpy()
    yield "noise", likelihoods.Normal(scale=2.0, per_row=True), stats.norm(F, 2 * spread), stats.norm.logpdf
    yield "noise", likelihoods.Laplace(scale=2.0, per_row=True), stats.laplace(F, 2 * spread), None
    yield "noise", likelihoods.StudentT(df=5.0, scale=2.0, per_row=True), stats.t(5, F, 2 * spread), None
    yield "exposure", likelihoods.Poisson(exposure=True), stats.poisson(np.exp(F) * spread), numbers


@pytest.mark.parametrize(("name", "likelihood", "expected", "_"), list(cases()))
def test_every_part_against_scipy(name, likelihood, expected, _):
    model, given = linear(likelihood), {name: NOISE}
    pred = predict(model, DRAWS, X, **given, generator=seeded())
    log_prob = expected.logpdf(Y.numpy()) if hasattr(expected.dist, "logpdf") else expected.logpmf(Y.numpy())
    log_prob = torch.from_numpy(np.logaddexp.reduce(log_prob, 0) - math.log(3))
    torch.testing.assert_close(pred.mean, torch.from_numpy(expected.mean().mean(0)))
    variance = torch.from_numpy(expected.var().mean(0) + expected.mean().var(0))
    torch.testing.assert_close(pred.std, variance.sqrt())
    torch.testing.assert_close(pred.log_prob(Y), log_prob)
    assert torch.equal(predict(model, DRAWS, X, **given, batch_size=7, generator=seeded()).samples, pred.samples)
    loader = DataLoader(Dicts(x=X, y=Y, **given), batch_size=23)
    unused = torch.zeros(150)
    parts = (X, Y, unused, NOISE) if name == "noise" else (X, Y, unused, unused, NOISE)
    for data, options in (
        (X, {**given, "targets": Y}),
        (X, {name: NOISE.numpy(), "targets": Y}),
        ({"x": X, "y": Y, **given}, {"targets": True}),
        (loader, {"targets": True}),
        (DataLoader(TensorDataset(*parts), batch_size=23), {"targets": True}),
    ):
        summary = predict_summary(model, DRAWS, data, **options, generator=seeded(), batch_size=40)
        torch.testing.assert_close(summary.mean, pred.mean)
        torch.testing.assert_close(summary.std, pred.std)
        torch.testing.assert_close(summary.quantiles, pred.quantile((0.05, 0.5, 0.95)))
        torch.testing.assert_close(summary.log_prob, log_prob)


def test_noise_of_rows_and_outputs():
    model = BayesianModel(nn.Linear(1, 2).double(), likelihood=likelihoods.Normal(scale=1.0, per_row=True))
    draws = {"weight": torch.zeros(2, 2, 1, dtype=torch.float64), "bias": torch.zeros(2, 2, dtype=torch.float64)}
    noise = torch.stack([NOISE, 3 * NOISE], dim=1)
    torch.testing.assert_close(predict(model, draws, X, noise=noise, batch_size=11).std, noise)
    torch.testing.assert_close(predict_summary(model, draws, X, noise=noise, batch_size=11).std, noise)
    torch.testing.assert_close(predict(model, draws, X, noise=NOISE).std, NOISE.unsqueeze(-1).expand(150, 2))


def test_in_the_units_of_the_data():
    model = linear(likelihoods.Normal(scale=1.0, per_row=True), standardize=(X, 1000.0 * Y))
    pred = predict(model, DRAWS, X, noise=100.0 * NOISE)
    torch.testing.assert_close(pred.aleatoric, 100.0 * NOISE)


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({}, ArgumentError, "noise: the likelihood Normal needs it"),
        ({"noise": NOISE[:149]}, ArgumentError, r"noise: has shape \(149,\) for 150 rows"),
        ({"noise": NOISE[0]}, ArgumentError, r"noise: has shape \(\) for 150 rows"),
        ({"noise": NOISE.repeat(2, 1).T}, ArgumentError, r"noise: has shape \(\d+, 2\)"),
        ({"noise": 0.1}, ArgumentTypeError, "noise: is a float"),
        ({"noise": -NOISE}, ArgumentError, "noise: .* entries are no finite positive numbers"),
        ({"noise": NOISE, "exposure": NOISE}, ArgumentError, "exposure: the likelihood Normal does not take it"),
    ],
)
def test_what_is_refused(given, error, match):
    model = linear(likelihoods.Normal(scale=1.0, per_row=True))
    for call in (predict, predict_summary):
        for size in (None, 10):
            with pytest.raises(error, match=match):
                call(model, DRAWS, X, **given, batch_size=size)


def test_rows_in_batches_come_with_their_noise():
    model = linear(likelihoods.Normal(scale=1.0, per_row=True))
    with pytest.raises(ArgumentTypeError, match="noise: is given, and data are batches; put it into them"):
        predict_summary(model, DRAWS, [X], noise=NOISE)
    with pytest.raises(ArgumentError, match="noise: is for networks"):
        predict(lambda x: None, DRAWS, (X,), noise=NOISE, sites=("obs",))


def data(units=1.0):
    torch.manual_seed(0)
    x = torch.randn(80, 1)
    noise = 0.1 + 0.4 * torch.rand(80)
    return {"x": x, "y": units * (x[:, 0].sin() + 2.0 * noise * torch.randn(80)), "noise": units * noise}


@pytest.mark.slow
@pytest.mark.parametrize("units", [None, 1000.0])
def test_a_fit_and_what_is_said_of_it(units):
    """The factor of the noise is 2 in the data; residuals in units of the noise of their rows say so, too."""
    known = data(units or 1.0)
    net = nn.Sequential(nn.Linear(1, 10), nn.Tanh(), nn.Linear(10, 1))
    likelihood = likelihoods.Normal(scale=dist.LogNormal(0.0, 1.0), per_row=True)
    model = BayesianModel(net, likelihood=likelihood, standardize=units and (known["x"], known["y"]))
    guide = AutoHypernet(model, example=known)
    fit(model, guide, known, steps=300, progress=False)
    report = diagnose(model, guide, known, num_samples=200, nuts=20, thorough=False)
    assert report.values["noise"] == pytest.approx(2.0, abs=4 * 2.0 / 160**0.5)
    assert report.values["residual_std"] == pytest.approx(2.0, abs=4 * 2.0 / 160**0.5)
    assert math.isfinite(report.values["log_evidence"])
    scale = guide.sample_posterior(5)["likelihood.scale"]
    assert scale.shape[0] == 5
    assert importance_sample(model, guide, known, 10).log_weights.isfinite().all()


def test_raw_units_are_seen_where_rows_have_noise():
    known = data(1000.0)
    known["y"] = known["y"] + 250_000.0
    model = BayesianModel(nn.Linear(1, 1), likelihood=likelihoods.Normal(scale=1.0, per_row=True))
    with pytest.warns(UnitsWarning, match="y: has mean 2.5"):
        AutoHypernet(model, example=known)


def test_residuals_leave_out_what_is_missing_and_count_by_weight():
    torch.manual_seed(0)
    x = torch.randn(60, 1)
    y = 0.3 * torch.randn(60)
    y[:10] = torch.nan
    y[10:20] = 50.0
    weight = torch.ones(60)
    weight[10:20] = 0.0
    likelihood = likelihoods.Normal(scale=dist.Gamma(6.0, 20.0))
    model = BayesianModel(nn.Linear(1, 1), likelihood=likelihood, missing="ignore")
    guide = AutoHypernet(model, example=(x, y, weight))
    fit(model, guide, (x, y, weight), steps=300, progress=False)
    report = diagnose(model, guide, (x, y, weight), num_samples=200, thorough=False)
    assert report.values["residual_std"] == pytest.approx(float(y[20:].std()), rel=0.15)
