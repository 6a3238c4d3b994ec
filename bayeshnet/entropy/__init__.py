"""Estimators of log q for hypernetworks with noise, exchangeable behind one protocol."""

from __future__ import annotations

from bayeshnet.entropy.adversarial import Adversarial
from bayeshnet.entropy.change_of_variables import ChangeOfVariables
from bayeshnet.entropy.importance import ImportanceEstimate, importance_log_density
from bayeshnet.entropy.importance_sampled import ImportanceSampled
from bayeshnet.entropy.linearised import Linearised
from bayeshnet.entropy.preimages import Preimages, find_preimages
from bayeshnet.entropy.protocol import Diagnosis, LogDensity
from bayeshnet.entropy.sampler import Draw, NoisySampler
from bayeshnet.entropy.semi_implicit import SemiImplicit
from bayeshnet.entropy.spectral_stein import SpectralStein, spectral_score
from bayeshnet.entropy.support import has_full_support

__all__ = [
    "Adversarial",
    "ChangeOfVariables",
    "Diagnosis",
    "Draw",
    "ImportanceEstimate",
    "ImportanceSampled",
    "Linearised",
    "LogDensity",
    "NoisySampler",
    "Preimages",
    "SemiImplicit",
    "SpectralStein",
    "find_preimages",
    "has_full_support",
    "importance_log_density",
    "spectral_score",
]
