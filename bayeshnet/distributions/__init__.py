"""Distributions over weights."""

from __future__ import annotations

from bayeshnet.families.block_gaussian import UnitGaussians, UnitLayout
from bayeshnet.families.implicit_weights import ImplicitWeights
from bayeshnet.families.low_rank import MultiplicativeLowRank
from bayeshnet.families.mixture import MixtureWeights
from bayeshnet.inducing.conditional_weights import ConditionalWeights, FlatLayout
from bayeshnet.inducing.layers import InducingLayers
from bayeshnet.inducing.linear_gaussian import LayerConditional

__all__ = [
    "ConditionalWeights",
    "FlatLayout",
    "ImplicitWeights",
    "InducingLayers",
    "LayerConditional",
    "MixtureWeights",
    "MultiplicativeLowRank",
    "UnitGaussians",
    "UnitLayout",
]
