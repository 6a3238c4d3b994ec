"""Inference: guides, fitting, predictions and checkpoints."""

from __future__ import annotations

from bayeshnet.infer.auto_hypernet import AutoHypernet
from bayeshnet.infer.checkpoint import load, save
from bayeshnet.infer.fit import fit, flat_then_cosine
from bayeshnet.infer.history import FlatElbo, History
from bayeshnet.infer.predict import posterior_draws, predict
from bayeshnet.infer.prediction import Prediction

__all__ = [
    "AutoHypernet",
    "FlatElbo",
    "History",
    "Prediction",
    "fit",
    "flat_then_cosine",
    "load",
    "posterior_draws",
    "predict",
    "save",
]
