"""Layers drawn conditionally on inducing points."""

from __future__ import annotations

from bayeshnet.inducing.conditional_weights import ConditionalWeights
from bayeshnet.inducing.flat_layout import FlatLayout
from bayeshnet.inducing.layers import InducingLayers
from bayeshnet.inducing.linear_gaussian import LayerConditional

__all__ = [
    "ConditionalWeights",
    "FlatLayout",
    "InducingLayers",
    "LayerConditional",
]
