"""The classifier: exact where quadrature is possible, labels of any type, weights of classes, draws."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split

from bayeshnet.errors import ArgumentError
from bayeshnet.sklearn import BayesianClassifier

FEW = {
    "hidden_layers": (8,),
    "steps": 25,
    "num_particles": 2,
    "num_samples": 30,
    "learning_rate": 0.05,
    "random_state": 0,
}


def data(rows=60, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(rows) % classes
    return rng.standard_normal((rows, 2)) + 3.0 * np.column_stack([np.cos(2.0 * y), np.sin(2.0 * y)]), y


NAMES = np.array(["ash", "birch", "cedar"])


@pytest.fixture(scope="module")
def fitted():
    x, y = data()
    return BayesianClassifier(**FEW).fit(x, NAMES[y])


def test_logistic_regression_as_by_quadrature():
    """Two classes, one input: the difference of the logits is a + b z, with a ~ N(0, 2), b ~ N(0, 2)."""
    x = np.linspace(-2.0, 2.0, 12)[:, None]
    y = (x[:, 0] + np.sin(9.0 * x[:, 0]) > 0).astype(int)
    found = BayesianClassifier((), steps=200, learning_rate=0.05, num_samples=500, random_state=0).fit(x, y)
    z = (x[:, 0] - x.mean()) / x.std()
    a, b = np.meshgrid(np.linspace(-6.0, 6.0, 201), np.linspace(-6.0, 12.0, 301), indexing="ij")
    logits = a[..., None] + b[..., None] * z
    log_density = -(a**2 + b**2) / 4.0 - np.logaddexp(0.0, np.where(y == 1, -logits, logits)).sum(-1)
    weight = np.exp(log_density - log_density.max())
    exact = (weight[..., None] / (1.0 + np.exp(-logits))).sum((0, 1)) / weight.sum()
    # A Monte Carlo error is at most 0.5 / sqrt(500) = .022; the guide is an approximation.
    np.testing.assert_allclose(found.predict_proba(x)[:, 1], exact, atol=0.04)


def test_names_are_labels(fitted):
    x, y = data(30, seed=1)
    assert fitted.classes_.tolist() == NAMES.tolist()
    probs = fitted.predict_proba(x)
    np.testing.assert_allclose(probs.sum(axis=1), 1.0, rtol=1e-12)
    assert fitted.predict(x).tolist() == NAMES[probs.argmax(axis=1)].tolist()
    assert fitted.score(x, NAMES[y]) > 0.9
    np.testing.assert_allclose(fitted.log_prob(x, NAMES[y]), np.log(probs[np.arange(30), y]), rtol=1e-9)
    assert np.array_equal(fitted.predict_log_proba(x), np.log(probs))
    with pytest.raises(ArgumentError, match=r"^y: has labels that fit has not seen, \['fir'\]"):
        fitted.log_prob(x, np.where(y == 0, "fir", "ash"))


def test_samples_have_the_probabilities(fitted):
    x, _ = data(6, seed=2)
    drawn = fitted.sample_y(x, 500, random_state=3)
    assert drawn.shape == (6, 500)
    shares = np.stack([(drawn == name).mean(axis=1) for name in NAMES], axis=1)
    # Shares of 500 draws, and 30 networks that predict.
    np.testing.assert_allclose(shares, fitted.predict_proba(x), atol=4.0 * (0.5 / 500**0.5 + 0.1 / 30**0.5))
    assert np.array_equal(drawn, fitted.sample_y(x, 500, random_state=3))


@pytest.mark.parametrize(
    "labels", [np.array([5, -3]), np.array([True, False]), np.array([0.0, 2.0]), pd.Series(["no", "yes"])], ids=str
)
def test_other_labels(labels):
    x, y = data(classes=2)
    given = labels[y] if isinstance(labels, np.ndarray) else labels.iloc[y]
    found = BayesianClassifier(**FEW).fit(x, given)
    assert found.predict_proba(x).shape == (60, 2)
    assert found.predict(x).dtype == found.classes_.dtype
    assert found.score(x, given) > 0.9


def test_one_class_and_numbers_are_refused():
    x, y = data()
    with pytest.raises(ArgumentError, match="^y: has one class, 1"):
        BayesianClassifier(**FEW).fit(x, np.ones(60, dtype=int))
    with pytest.raises(ValueError, match="Unknown label type: continuous"):
        BayesianClassifier(**FEW).fit(x, y + 0.5)


def test_weights_of_classes():
    x, y = data(classes=2)
    x, y = x[y * np.arange(60) < 20], y[y * np.arange(60) < 20]  # 30 and 10 rows
    by_name = BayesianClassifier(**FEW, class_weight={0: 2.0 / 3.0, 1: 2.0}).fit(x, y)
    balanced = BayesianClassifier(**FEW, class_weight="balanced").fit(x, y)
    np.testing.assert_allclose(balanced.predict_proba(x), by_name.predict_proba(x), rtol=1e-4)
    plain = BayesianClassifier(**FEW).fit(x, y)
    assert balanced.predict_proba(x)[:, 1].mean() > plain.predict_proba(x)[:, 1].mean()


def test_a_pickle_predicts_the_same_and_leaves_random_numbers_alone(fitted):
    x, _ = data(5, seed=4)
    state = torch.get_rng_state()
    again = pickle.loads(pickle.dumps(fitted))
    assert np.array_equal(again.predict_proba(x), fitted.predict_proba(x))
    assert np.array_equal(again.sample_y(x, 3), fitted.sample_y(x, 3))
    assert torch.equal(torch.get_rng_state(), state)


def test_real_data():
    x, y = load_breast_cancer(return_X_y=True)
    train, test, y_train, y_test = train_test_split(x, y, test_size=0.5, random_state=0)
    found = BayesianClassifier((10,), steps=80, num_particles=4, learning_rate=0.05, num_samples=50, random_state=0)
    found.fit(train, y_train)
    assert found.score(test, y_test) > 0.94
    assert -found.log_prob(test, y_test).mean() < 0.15
