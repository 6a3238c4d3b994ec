"""Guides, fitting, predictions and checkpoints under one name, as in version 0.1.

The places of these names are :mod:`bayeshnet.guides`, :mod:`bayeshnet.training` and :mod:`bayeshnet.evaluation`.
"""

from __future__ import annotations

from bayeshnet.deprecation import renamed_attributes
from bayeshnet.evaluation import (
    Diagnosis,
    Estimate,
    Prediction,
    SmoothedWeights,
    WeightedDraws,
    diagnose,
    importance_sample,
    log_evidence,
    pareto_smooth,
    posterior_draws,
    predict,
)
from bayeshnet.guides import AutoHypernet, AutoHypernetDelta, AutoHypernetNormal, start_from
from bayeshnet.guides import old_mixture as Mixture
from bayeshnet.training import FlatElbo, History, fit, flat_then_cosine, load, save

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
