"""Hypernetworks as weight posteriors, on PyTorch and Pyro."""

from __future__ import annotations

from bayeshnet import distributions as distributions
from bayeshnet import entropy, families, hnets, init, mnets
from bayeshnet import infer as infer  # as distributions: the places of version 0.1
from bayeshnet.evaluation import (
    Prediction,
    PredictionSummary,
    diagnose,
    freeze,
    importance_sample,
    log_evidence,
    predict,
    predict_summary,
    prior_predictive,
    sample_networks,
)
from bayeshnet.families import ImplicitWeights
from bayeshnet.guides import AutoHypernet, AutoHypernetDelta, AutoHypernetNormal, start_from
from bayeshnet.hnets import HMLP, HPerturbWrapper
from bayeshnet.mnets import ModuleMainNet, batched_forward
from bayeshnet.mnets.mlp import MLP
from bayeshnet.models import BayesianModel, RandomModule, flipout, likelihoods, local_reparameterisation, priors
from bayeshnet.sampling import Refined, refine
from bayeshnet.training import (
    EarlyStopping,
    FlatElbo,
    History,
    Posterior,
    Validation,
    fit,
    load,
    load_posterior,
    save,
)

__version__ = "0.2.0"

__all__ = [
    "HMLP",
    "MLP",
    "AutoHypernet",
    "AutoHypernetDelta",
    "AutoHypernetNormal",
    "BayesianModel",
    "EarlyStopping",
    "FlatElbo",
    "HPerturbWrapper",
    "History",
    "ImplicitWeights",
    "ModuleMainNet",
    "Posterior",
    "Prediction",
    "PredictionSummary",
    "RandomModule",
    "Refined",
    "Validation",
    "batched_forward",
    "diagnose",
    "entropy",
    "families",
    "fit",
    "flipout",
    "freeze",
    "hnets",
    "importance_sample",
    "init",
    "likelihoods",
    "load",
    "load_posterior",
    "local_reparameterisation",
    "log_evidence",
    "mnets",
    "predict",
    "predict_summary",
    "prior_predictive",
    "priors",
    "refine",
    "sample_networks",
    "save",
    "start_from",
]
