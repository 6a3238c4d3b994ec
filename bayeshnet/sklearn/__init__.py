"""Bayesian neural networks as estimators of scikit-learn: arrays and frames in, arrays out.

Needs the extra ``sklearn``: ``pip install 'bayeshnet[sklearn]'``.
"""

from __future__ import annotations

try:
    import sklearn as _  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError("bayeshnet.sklearn needs scikit-learn. Try: pip install 'bayeshnet[sklearn]'") from error

from bayeshnet.sklearn.classifier import BayesianClassifier
from bayeshnet.sklearn.regressor import BayesianRegressor

__all__ = ["BayesianClassifier", "BayesianRegressor"]
