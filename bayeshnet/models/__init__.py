"""Pyro models of networks: priors over weights, likelihoods, and what brings them together."""

from __future__ import annotations

from bayeshnet.models import likelihoods, priors
from bayeshnet.models.bayesian_model import BayesianModel
from bayeshnet.models.param_sites import ParamCapture, emit_param_sites

__all__ = ["BayesianModel", "ParamCapture", "emit_param_sites", "likelihoods", "priors"]
