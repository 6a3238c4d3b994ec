"""What a fitted guide says: predictions, importance weights, diagnosis."""

from __future__ import annotations

from bayeshnet.deprecation import renamed_attributes
from bayeshnet.entropy.diagnosis import Diagnosis
from bayeshnet.evaluation._diagnose import diagnose
from bayeshnet.evaluation._predict import posterior_draws, predict
from bayeshnet.evaluation.importance import importance_sample, log_evidence
from bayeshnet.evaluation.prediction import Prediction
from bayeshnet.evaluation.psis import Estimate, SmoothedWeights, WeightedDraws, pareto_smooth

__all__ = [
    "Diagnosis",
    "Estimate",
    "Prediction",
    "SmoothedWeights",
    "WeightedDraws",
    "diagnose",
    "importance_sample",
    "log_evidence",
    "pareto_smooth",
    "posterior_draws",
    "predict",
]

__getattr__ = renamed_attributes(__name__, {"Report": "bayeshnet.evaluation.Diagnosis"})
