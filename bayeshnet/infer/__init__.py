"""Inference: guides, fitting, predictions and checkpoints."""

from __future__ import annotations

from bayeshnet.deprecation import renamed_attributes
from bayeshnet.entropy.diagnosis import Diagnosis
from bayeshnet.evaluation._diagnose import diagnose
from bayeshnet.evaluation._predict import posterior_draws, predict
from bayeshnet.evaluation.importance import importance_sample, log_evidence
from bayeshnet.evaluation.prediction import Prediction
from bayeshnet.evaluation.psis import Estimate, SmoothedWeights, WeightedDraws, pareto_smooth
from bayeshnet.guides._old_options import old_mixture as Mixture
from bayeshnet.guides.delta import AutoHypernetDelta
from bayeshnet.guides.hypernet import AutoHypernet
from bayeshnet.guides.normal import AutoHypernetNormal
from bayeshnet.guides.warm_start import start_from
from bayeshnet.training._fit import fit, flat_then_cosine
from bayeshnet.training.checkpoint import load, save
from bayeshnet.training.history import FlatElbo, History

__all__ = [
    "AutoHypernet",
    "AutoHypernetDelta",
    "AutoHypernetNormal",
    "Diagnosis",
    "Estimate",
    "FlatElbo",
    "History",
    "Mixture",
    "Prediction",
    "SmoothedWeights",
    "WeightedDraws",
    "diagnose",
    "fit",
    "flat_then_cosine",
    "importance_sample",
    "load",
    "log_evidence",
    "pareto_smooth",
    "posterior_draws",
    "predict",
    "save",
    "start_from",
]

__getattr__ = renamed_attributes(__name__, {"Report": "bayeshnet.evaluation.Diagnosis"})
