"""Inference: guides, fitting, predictions and checkpoints."""

from __future__ import annotations

from bayeshnet.infer.auto_hypernet import AutoHypernet
from bayeshnet.infer.build_body import Mixture
from bayeshnet.infer.checkpoint import load, save
from bayeshnet.infer.delta_hypernet import AutoHypernetDelta
from bayeshnet.infer.diagnose import Report, diagnose
from bayeshnet.infer.evidence import importance_sample, log_evidence
from bayeshnet.infer.fit import fit, flat_then_cosine
from bayeshnet.infer.gauss_hypernet import AutoHypernetNormal
from bayeshnet.infer.history import FlatElbo, History
from bayeshnet.infer.predict import posterior_draws, predict
from bayeshnet.infer.prediction import Prediction
from bayeshnet.infer.psis import Estimate, SmoothedWeights, WeightedDraws, pareto_smooth
from bayeshnet.infer.starting_points import start_from

__all__ = [
    "AutoHypernet",
    "AutoHypernetDelta",
    "AutoHypernetNormal",
    "Estimate",
    "FlatElbo",
    "History",
    "Mixture",
    "Prediction",
    "Report",
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
