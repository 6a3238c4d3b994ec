"""Estimators of log q for hypernetworks with noise, exchangeable behind one protocol.

Those that do not serve the weights of networks are in :mod:`bayeshnet.entropy.experimental`.
"""

from __future__ import annotations

from bayeshnet.deprecation import renamed_attributes
from bayeshnet.entropy.change_of_variables import ChangeOfVariables
from bayeshnet.entropy.importance import ImportanceEstimate, importance_log_density
from bayeshnet.entropy.importance_sampled import ImportanceSampled
from bayeshnet.entropy.linearised import Linearised
from bayeshnet.entropy.path_gradient import PathGradient
from bayeshnet.entropy.preimages import Preimages, find_preimages
from bayeshnet.entropy.protocol import Diagnosis, LogDensity
from bayeshnet.entropy.sampler import Draw, NoisySampler
from bayeshnet.entropy.support import has_full_support

__all__ = [
    "ChangeOfVariables",
    "Diagnosis",
    "Draw",
    "ImportanceEstimate",
    "ImportanceSampled",
    "Linearised",
    "LogDensity",
    "NoisySampler",
    "PathGradient",
    "Preimages",
    "find_preimages",
    "has_full_support",
    "importance_log_density",
]

__getattr__ = renamed_attributes(
    __name__,
    {
        name: f"bayeshnet.entropy.experimental.{name}"
        for name in ("Adversarial", "SemiImplicit", "SpectralStein", "spectral_score")
    },
)
