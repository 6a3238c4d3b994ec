"""Fitting a guide, its history, checkpoints."""

from __future__ import annotations

from bayeshnet.training._fit import fit, flat_then_cosine
from bayeshnet.training._posterior import Posterior, load_posterior
from bayeshnet.training.checkpoint import load, save
from bayeshnet.training.history import FlatElbo, History

__all__ = [
    "FlatElbo",
    "History",
    "Posterior",
    "fit",
    "flat_then_cosine",
    "load",
    "load_posterior",
    "save",
]
