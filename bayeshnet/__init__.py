"""Hypernetworks as weight posteriors, on PyTorch and Pyro."""

from __future__ import annotations

from bayeshnet import entropy, families, hnets, init, mnets
from bayeshnet.distributions import ImplicitWeights
from bayeshnet.hnets import HMLP, HPerturbWrapper
from bayeshnet.infer import (
    AutoHypernet,
    AutoHypernetDelta,
    AutoHypernetNormal,
    FlatElbo,
    History,
    Prediction,
    diagnose,
    fit,
    importance_sample,
    load,
    log_evidence,
    predict,
    save,
    start_from,
)
from bayeshnet.mnets import ModuleMainNet, batched_forward
from bayeshnet.mnets.mlp import MLP
from bayeshnet.models import BayesianModel, flipout, likelihoods, local_reparameterisation, priors

__version__ = "0.1.0"

__all__ = [
    "HMLP",
    "MLP",
    "AutoHypernet",
    "AutoHypernetDelta",
    "AutoHypernetNormal",
    "BayesianModel",
    "FlatElbo",
    "HPerturbWrapper",
    "History",
    "ImplicitWeights",
    "ModuleMainNet",
    "Prediction",
    "batched_forward",
    "diagnose",
    "entropy",
    "families",
    "fit",
    "flipout",
    "hnets",
    "importance_sample",
    "init",
    "likelihoods",
    "load",
    "local_reparameterisation",
    "log_evidence",
    "mnets",
    "predict",
    "priors",
    "save",
    "start_from",
]
