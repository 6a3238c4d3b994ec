"""The regressor: exact where there is a formula, shapes, units, draws, weights, likelihoods."""

from __future__ import annotations

import pickle

import numpy as np
import pyro
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from sklearn.base import clone
from sklearn.exceptions import DataConversionWarning
from torch import nn

from bayeshnet import families, likelihoods, predict, priors
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.sklearn import BayesianRegressor

FEW = {"hidden_layers": (8,), "steps": 8, "num_particles": 2, "num_samples": 30, "random_state": 0}


def data(rows=40, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, 2)) * [10.0, 0.1] + [1990.0, 3.0]
    y = 250_000.0 + 60_000.0 * np.sin((x[:, 0] - 1990.0) / 10.0) + 20_000.0 * rng.standard_normal(rows)
    return x, y


@pytest.fixture(scope="module")
def fitted():
    return BayesianRegressor(**FEW).fit(*data())


def test_linear_regression_is_exact():
    """Weights N(0, 1/2), bias N(0, 1), known noise: the posterior predictive is Gaussian, with a formula."""
    x, y = data(30)
    noise, num = 0.5, 1000
    found = BayesianRegressor(
        (), likelihood=likelihoods.Normal(scale=noise), steps=300, learning_rate=0.03, num_samples=num, random_state=0
    ).fit(x, y)
    z = np.column_stack([(x - x.mean(0)) / x.std(0), np.ones(30)])
    t = (y - y.mean()) / y.std()
    covariance = np.linalg.inv(z.T @ z / noise**2 + np.diag([2.0, 2.0, 1.0]))
    mean = z @ (covariance @ z.T @ t / noise**2)
    spread = np.sqrt(np.einsum("ni,ij,nj->n", z, covariance, z))
    got_mean, got_std = found.predict(x, return_std=True)
    # Five Monte Carlo errors of the mean, and of a standard deviation; a tenth of the spread for the fit itself.
    error = np.abs((got_mean - y.mean()) / y.std() - mean) / spread
    assert error.max() < 5.0 / np.sqrt(num) + 0.1
    np.testing.assert_allclose(got_std / y.std(), np.hypot(spread, noise), rtol=0.02)
    functions = found.sample_y(x, num, noise=False) / y.std()
    np.testing.assert_allclose(functions.std(axis=1), spread, rtol=0.1 + 5.0 / np.sqrt(2 * num))


def test_what_is_predicted_agrees(fitted):
    x, y = data(7, seed=1)
    mean, std, low, high = fitted.predict(x, return_std=True, return_interval=0.8)
    assert np.array_equal(mean, fitted.predict(x))
    assert np.array_equal(low, fitted.predict_interval(x, 0.8)[0])
    quantiles = fitted.predict_quantiles(x, [0.1, 0.5, 0.9])
    assert quantiles.shape == (7, 3)
    np.testing.assert_allclose(quantiles[:, [0, 2]], np.column_stack([low, high]), rtol=1e-9)
    pred = predict(fitted.model_, fitted.draws_, torch.tensor(x))
    np.testing.assert_allclose(mean, pred.mean, rtol=1e-12)
    np.testing.assert_allclose(std, pred.std, rtol=1e-9)
    np.testing.assert_allclose(fitted.log_prob(x, y), pred.log_prob(torch.tensor(y)), rtol=1e-9)
    assert mean.dtype == np.float64
    assert 1e5 < mean.mean() < 4e5


def test_rows_are_predicted_by_themselves(fitted):
    x, _ = data(50, seed=2)
    parts = [fitted.predict(x[i : i + 7], return_std=True) for i in range(0, 50, 7)]
    for whole, part in zip(fitted.predict(x, return_std=True), zip(*parts, strict=True), strict=True):
        np.testing.assert_allclose(np.concatenate(part), whole, rtol=1e-12)


def test_samples(fitted):
    x, _ = data(5, seed=3)
    first = fitted.sample_y(x, 400, random_state=1)
    assert first.shape == (5, 400)
    assert np.array_equal(first, fitted.sample_y(x, 400, random_state=1))
    assert not np.array_equal(first[:, :9], fitted.sample_y(x, 9, random_state=2))
    functions = fitted.sample_y(x, 400, random_state=1, noise=False)
    mean, std = fitted.predict(x, return_std=True)
    # 30 networks predict, so that their mean is uncertain, too.
    error = functions.std(axis=1) / np.sqrt(30) + std / np.sqrt(400)
    assert (np.abs(first.mean(axis=1) - mean) < 5.0 * error).all()
    assert (functions.std(axis=1) < first.std(axis=1)).all()


def test_random_numbers_are_its_own():
    x, y = data()
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002 - whether it is left alone
    one = BayesianRegressor(**FEW).fit(x, y)
    drawn = one.predict(x), one.sample_y(x)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert not pyro.get_param_store().keys()
    torch.rand(3)
    other = clone(one).fit(x, y)
    assert np.array_equal(other.predict(x), drawn[0])
    assert np.array_equal(other.sample_y(x), drawn[1])
    assert not np.array_equal(clone(one).set_params(random_state=1).fit(x, y).predict(x), drawn[0])
    state = np.random.RandomState(5)
    assert not np.array_equal(*(clone(one).set_params(random_state=state).fit(x, y).predict(x) for _ in range(2)))


def test_a_pickle_predicts_the_same(fitted):
    x, _ = data(5, seed=4)
    again = pickle.loads(pickle.dumps(fitted))
    assert np.array_equal(again.predict(x), fitted.predict(x))
    assert np.array_equal(again.sample_y(x), fitted.sample_y(x))
    assert again.history_.losses == fitted.history_.losses


def test_several_targets():
    x, y = data()
    both = np.column_stack([y, -1e-3 * y])
    found = BayesianRegressor(**FEW).fit(x, both)
    mean, std = found.predict(x[:3], return_std=True)
    assert mean.shape == std.shape == (3, 2)
    assert (std[:, 0] > 100.0 * std[:, 1]).all()
    assert found.predict_quantiles(x[:3]).shape == (3, 2, 3)
    assert found.sample_y(x[:3], 4).shape == (3, 2, 4)
    assert found.log_prob(x, both).shape == (40,)
    with pytest.warns(DataConversionWarning):
        assert BayesianRegressor(**FEW).fit(x, y[:, None]).predict(x[:3]).shape == (3,)


def test_weights_count_rows():
    x, y = data()
    times = np.arange(40) % 3
    weighted = BayesianRegressor(**FEW).fit(x, y, sample_weight=times)
    repeated = BayesianRegressor(**FEW).fit(x.repeat(times, axis=0), y.repeat(times))
    assert np.array_equal(weighted.predict(x), repeated.predict(x))
    assert not np.array_equal(weighted.predict(x), BayesianRegressor(**FEW).fit(x, y).predict(x))
    with pytest.raises(ArgumentError, match="^sample_weight: "):
        BayesianRegressor(**FEW).fit(x, y, sample_weight=-times)


def heads(inputs, outputs):
    return nn.Sequential(nn.Linear(inputs, 6), nn.GELU(), nn.Linear(6, outputs))


class TestParameters:
    @pytest.mark.parametrize("net", [heads, heads(2, 1)], ids=["function", "module"])
    def test_a_network_of_ones_own(self, net):
        found = BayesianRegressor(**{**FEW, "net": net}).fit(*data())
        assert found.model_.net.param_shapes[0] == [6, 2]
        assert found.predict(data()[0]).shape == (40,)
        assert clone(found).fit(*data()).predict(data()[0]).tolist() == found.predict(data()[0]).tolist()

    @pytest.mark.parametrize("guide", ["mean_field", families.LowRank(rank=2), lambda model, _: AutoNormal(model)])
    def test_guides(self, guide):
        found = BayesianRegressor(**{**FEW, "guide": guide}).fit(*data())
        assert found.predict(data()[0]).shape == (40,)
        assert found.sample_y(data()[0], 3).shape == (40, 3)
        assert not pyro.get_param_store().keys()

    @pytest.mark.parametrize(
        ("likelihood", "outputs"),
        [
            (likelihoods.HeteroscedasticNormal(0.5), 2),
            (likelihoods.StudentT(df=4.0, scale=0.5), 1),
            (likelihoods.Normal(scale=0.5, learn=True), 1),
        ],
        ids=["HeteroscedasticNormal", "StudentT", "learned"],
    )
    def test_likelihoods(self, likelihood, outputs):
        state = {name: value.clone() for name, value in likelihood.state_dict().items()}
        found = BayesianRegressor(**{**FEW, "likelihood": likelihood}).fit(*data())
        assert found.model_.net.param_shapes[-1] == [outputs]
        mean, std = found.predict(data()[0], return_std=True)
        assert 1e3 < std.min() < std.max() < 3e5
        assert 1e5 < mean.mean() < 4e5
        assert all(torch.equal(value, state[name]) for name, value in likelihood.state_dict().items())

    def test_counts(self):
        rng = np.random.default_rng(0)
        x = rng.standard_normal((60, 1))
        y = rng.poisson(np.exp(1.0 + x[:, 0]))
        found = BayesianRegressor(
            **{**FEW, "likelihood": likelihoods.Poisson(), "steps": 40, "learning_rate": 0.05}
        ).fit(x, y)
        assert found.score(x, y) > 0.5
        assert found.predict_interval(x)[0].min() >= 0.0

    def test_precision_and_prior(self):
        found = BayesianRegressor(**FEW, dtype="float64", prior=priors.Normal(scale=0.5), standardize=True)
        assert found.fit(*data()).predict(data()[0]).shape == (40,)
        assert "scale=0.5" in repr(found.model_)

    def test_data_that_are_standardised_already(self):
        x, y = data()
        x, y = (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()
        found = BayesianRegressor(**{**FEW, "standardize": False, "steps": 60, "learning_rate": 0.05}).fit(x, y)
        assert found.model_.units.standardization is None
        assert found.score(x, y) > 0.5

    @pytest.mark.parametrize(
        ("parameters", "error", "message"),
        [
            ({"hidden_layers": (0,)}, ArgumentError, "hidden_layers: is 0"),
            ({"hidden_layers": "50"}, ArgumentTypeError, "hidden_layers: is '50'"),
            ({"activation": "relu6"}, ArgumentError, "activation: is 'relu6'"),
            ({"net": 3}, ArgumentTypeError, "net: is an int"),
            ({"net": lambda *_: None}, ArgumentTypeError, "net: returns a NoneType"),
            ({"guide": 3}, ArgumentTypeError, "guide: is 3"),
            ({"guide": "nonsense"}, ArgumentError, "family: "),
            ({"dtype": "float16"}, ArgumentError, "dtype: is 'float16'"),
            ({"num_samples": 0}, ArgumentError, "num_samples: is 0"),
            ({"standardize": "no"}, ArgumentTypeError, "standardize: is 'no'"),
            ({"steps": 0}, ArgumentError, "steps: is 0"),
            ({"epochs": 2}, ArgumentError, "steps, epochs: both"),
            ({"likelihood": likelihoods.Normal(1.0, per_row=True)}, ArgumentError, "likelihood: Normal takes noise"),
        ],
    )
    def test_wrong_ones(self, parameters, error, message):
        with pytest.raises(error, match=f"^{message}"):
            BayesianRegressor(**{**FEW, **parameters}).fit(*data())

    def test_wrong_arguments_of_predictions(self, fitted):
        x, y = data()
        with pytest.raises(ArgumentError, match="^level: is 90"):
            fitted.predict(x, return_interval=90)
        with pytest.raises(ArgumentError, match="^quantiles: is empty"):
            fitted.predict_quantiles(x, [])
        with pytest.raises(ArgumentTypeError, match="^return_std: "):
            fitted.predict(x, return_std="yes")
        with pytest.raises(ArgumentError, match="^n_samples: is 0"):
            fitted.sample_y(x, 0)
        with pytest.raises(ArgumentError, match="^targets: |^y: "):
            fitted.log_prob(x, y[:5])


def test_arrays_that_run_backwards_or_are_of_another_byte_order(fitted):
    """Before, torch refused the views."""
    x, y = data()
    expected = fitted.predict(x)
    assert np.array_equal(fitted.predict(x[::-1]), fitted.predict(x[::-1].copy()))
    assert np.array_equal(fitted.predict(x.astype(">f8")), expected)
    one, other = (BayesianRegressor(steps=3, random_state=0) for _ in range(2))
    weight = np.ones(len(y))
    one.fit(x[::-1], y[::-1], sample_weight=weight[::-1])
    other.fit(x[::-1].copy(), y[::-1].copy(), sample_weight=weight)
    assert np.array_equal(one.predict(x), other.predict(x))
