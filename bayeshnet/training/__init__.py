"""Fitting a guide, its history, checkpoints."""

from __future__ import annotations

from bayeshnet.training._fit import fit
from bayeshnet.training._posterior import Posterior, load_posterior
from bayeshnet.training._schedule import flat_then_cosine
from bayeshnet.training.checkpoint import load, save
from bayeshnet.training.history import History
from bayeshnet.training.loggers import CsvLogger, TensorBoardLogger
from bayeshnet.training.stopping import EarlyStopping, FlatElbo
from bayeshnet.training.validation import Validation

__all__ = [
    "CsvLogger",
    "EarlyStopping",
    "FlatElbo",
    "History",
    "Posterior",
    "TensorBoardLogger",
    "Validation",
    "fit",
    "flat_then_cosine",
    "load",
    "load_posterior",
    "save",
]
