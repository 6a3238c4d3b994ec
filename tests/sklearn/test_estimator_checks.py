"""scikit-learn's own checks of what an estimator is, all of them, without an exception."""

from __future__ import annotations

import pytest
from sklearn.utils.estimator_checks import check_estimator

from bayeshnet.sklearn import BayesianClassifier, BayesianRegressor

# Few steps: what the checks ask of predictions is an R^2 of 0.5 and an accuracy of 0.83.
FEW = {"hidden_layers": (10,), "steps": 25, "num_particles": 4, "num_samples": 20, "learning_rate": 0.05}


@pytest.mark.slow
@pytest.mark.parametrize(
    "estimator", [BayesianRegressor(**FEW), BayesianClassifier(**FEW)], ids=["regressor", "classifier"]
)
def test_all_checks(estimator):
    found = check_estimator(estimator, on_skip=None)
    # The check of array API input needs an environment variable; it is none of an estimator that takes numpy arrays.
    others = {result["check_name"] for result in found if result["status"] != "passed"}
    assert others <= {"check_array_api_input"}
    assert len(found) > 45
