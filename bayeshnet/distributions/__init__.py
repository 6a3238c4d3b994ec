"""Distributions over weights."""

from __future__ import annotations

from bayeshnet.distributions.conditional_layer import LayerConditional
from bayeshnet.distributions.conditional_weights import ConditionalWeights, FlatLayout
from bayeshnet.distributions.implicit_weights import ImplicitWeights
from bayeshnet.distributions.inducing import InducingLayers
from bayeshnet.distributions.low_rank import MultiplicativeLowRank
from bayeshnet.distributions.mixture import MixtureWeights
from bayeshnet.distributions.unit_gaussians import UnitGaussians, UnitLayout

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
