"""What a fitted guide says: predictions, importance weights, diagnosis."""

from __future__ import annotations

from bayeshnet.deprecation import renamed_attributes
from bayeshnet.entropy.diagnosis import Diagnosis
from bayeshnet.evaluation._diagnose import diagnose
from bayeshnet.evaluation._predict import predict
from bayeshnet.evaluation._prior_predictive import prior_predictive
from bayeshnet.evaluation._sources import ensemble_draws, posterior_draws
from bayeshnet.evaluation._stream import predict_summary
from bayeshnet.evaluation.importance import importance_sample, log_evidence
from bayeshnet.evaluation.networks import FrozenPosterior, freeze, sample_networks
from bayeshnet.evaluation.prediction import Prediction
from bayeshnet.evaluation.psis import Estimate, SmoothedWeights, WeightedDraws, pareto_smooth
from bayeshnet.evaluation.summary import PredictionSummary

__all__ = [
    "Diagnosis",
    "Estimate",
    "FrozenPosterior",
    "Prediction",
    "PredictionSummary",
    "SmoothedWeights",
    "WeightedDraws",
    "diagnose",
    "ensemble_draws",
    "freeze",
    "importance_sample",
    "log_evidence",
    "pareto_smooth",
    "posterior_draws",
    "predict",
    "predict_summary",
    "prior_predictive",
    "sample_networks",
]

__getattr__ = renamed_attributes(__name__, {"Report": "bayeshnet.evaluation.Diagnosis"})
