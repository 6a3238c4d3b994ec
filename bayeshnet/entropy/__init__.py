"""Estimators of log q for hypernetworks with noise, exchangeable behind one protocol."""

from __future__ import annotations

from bayeshnet.entropy.change_of_variables import ChangeOfVariables
from bayeshnet.entropy.importance import ImportanceEstimate, importance_log_density
from bayeshnet.entropy.linearised import Linearised
from bayeshnet.entropy.preimages import Preimages, find_preimages
from bayeshnet.entropy.protocol import Diagnosis, LogDensity
from bayeshnet.entropy.sampler import Draw, NoisySampler

__all__ = [
    "ChangeOfVariables",
    "Diagnosis",
    "Draw",
    "ImportanceEstimate",
    "Linearised",
    "LogDensity",
    "NoisySampler",
    "Preimages",
    "find_preimages",
    "importance_log_density",
]
