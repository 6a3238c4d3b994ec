"""Variational families: the distributions that a guide may draw latents from."""

from __future__ import annotations

from bayeshnet.families._build import Mixture
from bayeshnet.families.block_gaussian import UnitGaussians, UnitLayout
from bayeshnet.families.implicit_weights import ImplicitWeights
from bayeshnet.families.low_rank import MultiplicativeLowRank
from bayeshnet.families.mixture import MixtureWeights

__all__ = [
    "ImplicitWeights",
    "Mixture",
    "MixtureWeights",
    "MultiplicativeLowRank",
    "UnitGaussians",
    "UnitLayout",
]
