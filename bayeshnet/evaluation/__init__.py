"""What a fitted guide says: predictions, importance weights, diagnosis."""

from __future__ import annotations

from bayeshnet.evaluation._diagnose import Report, diagnose
from bayeshnet.evaluation._predict import posterior_draws, predict
from bayeshnet.evaluation.importance import importance_sample, log_evidence
from bayeshnet.evaluation.prediction import Prediction
from bayeshnet.evaluation.psis import Estimate, SmoothedWeights, WeightedDraws, pareto_smooth

__all__ = [
    "Estimate",
    "Prediction",
    "Report",
    "SmoothedWeights",
    "WeightedDraws",
    "diagnose",
    "importance_sample",
    "log_evidence",
    "pareto_smooth",
    "posterior_draws",
    "predict",
]
