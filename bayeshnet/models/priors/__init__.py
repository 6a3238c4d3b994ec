"""Priors over the weights of a network."""

from __future__ import annotations

from bayeshnet.models.priors.base import Prior
from bayeshnet.models.priors.filters import CorrelatedFilters
from bayeshnet.models.priors.hierarchical import Hierarchical
from bayeshnet.models.priors.horseshoe import Horseshoe
from bayeshnet.models.priors.joint import JointPrior
from bayeshnet.models.priors.laplace import Laplace
from bayeshnet.models.priors.matched import MatchedPrior, matching
from bayeshnet.models.priors.normal import Normal
from bayeshnet.models.priors.scale_mixture import ScaleMixture
from bayeshnet.models.priors.scaled import ScaledPrior
from bayeshnet.models.priors.student_t import StudentT

__all__ = [
    "CorrelatedFilters",
    "Hierarchical",
    "Horseshoe",
    "JointPrior",
    "Laplace",
    "MatchedPrior",
    "Normal",
    "Prior",
    "ScaleMixture",
    "ScaledPrior",
    "StudentT",
    "matching",
]
