"""The estimators inside of scikit-learn's tools: pipelines, frames, searches, processes."""

from __future__ import annotations

import importlib
import sys

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import TransformedTargetRegressor, make_column_transformer
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from bayeshnet.sklearn import BayesianClassifier, BayesianRegressor

FEW = {"hidden_layers": (8,), "steps": 5, "num_particles": 2, "num_samples": 20, "random_state": 0}


def frame(rows=48):
    rng = np.random.default_rng(0)
    found = pd.DataFrame({"area": rng.normal(90.0, 30.0, rows), "year": rng.integers(1900, 2020, rows)})
    found["place"] = np.array(["coast", "hills", "town"])[np.arange(rows) % 3]
    price = 2_000.0 * found["area"] + 50_000.0 * (found["place"] == "coast") + 10_000.0 * rng.standard_normal(rows)
    return found, price.rename("price")


def columns():
    return make_column_transformer((OneHotEncoder(sparse_output=False), ["place"]), remainder="passthrough")


def test_a_pipeline_takes_a_frame():
    x, y = frame()
    pipeline = make_pipeline(columns(), BayesianRegressor(**{**FEW, "steps": 60, "learning_rate": 0.03})).set_output(
        transform="pandas"
    )
    mean, std, low, high = pipeline.fit(x, y).predict(x, return_std=True, return_interval=0.9)
    assert (low < mean).all()
    assert (mean < high).all()
    assert 1e3 < std.mean() < 1e5
    assert pipeline.score(x, y) > 0.7
    assert pipeline[-1].feature_names_in_.tolist()[-2:] == ["remainder__area", "remainder__year"]
    assert pipeline[-1].sample_y(pipeline[:-1].transform(x), 4).shape == (48, 4)


def test_frames_of_numbers_and_their_names():
    x, y = frame()
    numbers = x[["area", "year"]]
    found = BayesianRegressor(**FEW).fit(numbers, y)
    assert found.feature_names_in_.tolist() == ["area", "year"]
    assert np.array_equal(
        found.predict(numbers), BayesianRegressor(**FEW).fit(numbers.to_numpy(), y).predict(numbers.to_numpy())
    )
    with pytest.raises(ValueError, match="feature names"):
        found.predict(numbers[["year", "area"]])
    with pytest.raises(ValueError, match="could not convert string"):
        BayesianRegressor(**FEW).fit(x, y)


def test_a_search_over_parameters():
    x, y = frame()
    search = GridSearchCV(
        make_pipeline(columns(), BayesianRegressor(**FEW)),
        {"bayesianregressor__hidden_layers": [(4,), ()], "bayesianregressor__guide": ["mean_field"]},
        cv=2,
        scoring="r2",
    )
    search.fit(x, y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert len(search.cv_results_["params"]) == 2


def test_log_densities_are_a_score_of_models():
    x, y = frame()
    search = GridSearchCV(
        BayesianRegressor(**FEW), {"num_samples": [5, 20]}, cv=2, scoring=lambda e, x, y: e.log_prob(x, y).mean()
    )
    search.fit(x[["area"]], y)
    assert search.best_score_ < -8.0, "densities of prices in dollars, near -log(60000)"


def test_targets_may_be_transformed_outside():
    x, y = frame()
    inner = BayesianRegressor(**{**FEW, "steps": 40, "learning_rate": 0.03})
    found = TransformedTargetRegressor(
        make_pipeline(columns(), StandardScaler(), inner), func=np.log, inverse_func=np.exp
    )
    assert found.fit(x, y).score(x, y) > 0.5


@pytest.mark.slow  # processes that import torch anew
def test_processes_give_the_same_numbers():
    x, y = frame()
    labels = x["place"].to_numpy()
    for estimator, target in ((BayesianRegressor(**FEW), y), (BayesianClassifier(**FEW), labels)):
        alone = cross_val_score(estimator, x[["area", "year"]], target, cv=2)
        together = cross_val_score(estimator, x[["area", "year"]], target, cv=2, n_jobs=2)
        np.testing.assert_allclose(together, alone, rtol=1e-6)


def test_without_scikit_learn_the_room_says_which_extra_has_it(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("bayeshnet.sklearn")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(
        ImportError, match=r"bayeshnet\.sklearn needs scikit-learn\. Try: pip install 'bayeshnet\[sklearn\]'"
    ):
        importlib.import_module("bayeshnet.sklearn")
