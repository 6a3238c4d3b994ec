"""Pyro models of networks: priors over weights, likelihoods, and what brings them together."""

from __future__ import annotations

from bayeshnet.models import likelihoods, priors
from bayeshnet.models.bayesian_model import BayesianModel
from bayeshnet.models.columns import ColumnEmbedding, Columns
from bayeshnet.models.features import Features
from bayeshnet.models.local_reparam import flipout, local_reparameterisation
from bayeshnet.models.param_sites import ParamCapture, emit_param_sites
from bayeshnet.models.parts import Parts
from bayeshnet.models.random_module import DrawnModule, RandomModule
from bayeshnet.models.standardization import Standardization, Statistics

__all__ = [
    "BayesianModel",
    "ColumnEmbedding",
    "Columns",
    "DrawnModule",
    "Features",
    "ParamCapture",
    "Parts",
    "RandomModule",
    "Standardization",
    "Statistics",
    "emit_param_sites",
    "flipout",
    "likelihoods",
    "local_reparameterisation",
    "priors",
]
