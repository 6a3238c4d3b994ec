"""Distributions over weights."""

from __future__ import annotations

from bayeshnet.deprecation import renamed_attributes
from bayeshnet.families.implicit_weights import ImplicitWeights
from bayeshnet.families.low_rank import MultiplicativeLowRank
from bayeshnet.families.mixture import MixtureWeights
from bayeshnet.inducing.conditional_weights import ConditionalWeights
from bayeshnet.inducing.flat_layout import FlatLayout
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
]

__getattr__ = renamed_attributes(
    __name__,
    {
        "UnitGaussians": "bayeshnet.families.BlockGaussianWeights",
        "UnitLayout": "bayeshnet.families.BlockLayout",
    },
)
