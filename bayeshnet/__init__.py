"""Hypernetworks as weight posteriors, on PyTorch and Pyro."""

from __future__ import annotations

from bayeshnet import entropy, hnets, init, mnets
from bayeshnet.distributions import ImplicitWeights
from bayeshnet.hnets import HMLP, HPerturbWrapper
from bayeshnet.infer import AutoHypernet, FlatElbo, History, Prediction, fit, load, predict, save
from bayeshnet.mnets import ModuleMainNet, batched_forward
from bayeshnet.mnets.mlp import MLP
from bayeshnet.models import BayesianModel, likelihoods, priors

__version__ = "0.1.0"

__all__ = [
    "HMLP",
    "MLP",
    "AutoHypernet",
    "BayesianModel",
    "FlatElbo",
    "HPerturbWrapper",
    "History",
    "ImplicitWeights",
    "ModuleMainNet",
    "Prediction",
    "batched_forward",
    "entropy",
    "fit",
    "hnets",
    "init",
    "likelihoods",
    "load",
    "mnets",
    "predict",
    "priors",
    "save",
]
