"""Distributions over weights under one name, as in version 0.1.

The places of these names are :mod:`bayeshnet.families` and :mod:`bayeshnet.inducing`.
"""

from __future__ import annotations

from bayeshnet.deprecation import renamed_attributes
from bayeshnet.families import ImplicitWeights, MixtureWeights, MultiplicativeLowRank
from bayeshnet.inducing import ConditionalWeights, FlatLayout, InducingLayers, LayerConditional

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
