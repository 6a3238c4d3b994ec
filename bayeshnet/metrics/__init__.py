"""Scores of predictive distributions, as functions of tensors and as torchmetrics metrics for many batches.

``docs/metrics.md`` says which one to use when, and what each does not tell. Needs the extra ``metrics``:
``pip install 'bayeshnet[metrics]'``.
"""

from __future__ import annotations

try:
    import torchmetrics as _torchmetrics  # noqa: F401  # pyright: ignore[reportUnusedImport]
except ModuleNotFoundError as error:
    raise ImportError("bayeshnet.metrics needs torchmetrics. Try: pip install 'bayeshnet[metrics]'") from error

from bayeshnet.metrics.classification import (
    BrierScore,
    ExpectedCalibrationError,
    brier_score,
    classification_scores,
    expected_calibration_error,
)
from bayeshnet.metrics.intervals import (
    IntervalCoverage,
    IntervalWidth,
    central_interval,
    interval_coverage,
    interval_width,
)
from bayeshnet.metrics.regression import (
    CRPS,
    RMSE,
    NegativeLogLikelihood,
    crps,
    log_predictive_density,
    negative_log_likelihood,
    regression_scores,
    rmse,
)

__all__ = [
    "CRPS",
    "RMSE",
    "BrierScore",
    "ExpectedCalibrationError",
    "IntervalCoverage",
    "IntervalWidth",
    "NegativeLogLikelihood",
    "brier_score",
    "central_interval",
    "classification_scores",
    "crps",
    "expected_calibration_error",
    "interval_coverage",
    "interval_width",
    "log_predictive_density",
    "negative_log_likelihood",
    "regression_scores",
    "rmse",
]
