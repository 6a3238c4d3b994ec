"""Variational families: settings that make trainable distributions over latents, and these distributions."""

from __future__ import annotations

from bayeshnet.families._blocks import BlockLayout
from bayeshnet.families.base import Family, Start, placed
from bayeshnet.families.block_gaussian import BlockGaussian, BlockGaussianWeights
from bayeshnet.families.hypernet import Hypernet
from bayeshnet.families.implicit_weights import ImplicitWeights
from bayeshnet.families.low_rank import LowRank, MultiplicativeLowRank
from bayeshnet.families.mean_field import MeanField
from bayeshnet.families.mixture import Mixture, MixtureWeights

__all__ = [
    "BlockGaussian",
    "BlockGaussianWeights",
    "BlockLayout",
    "Family",
    "Hypernet",
    "ImplicitWeights",
    "LowRank",
    "MeanField",
    "Mixture",
    "MixtureWeights",
    "MultiplicativeLowRank",
    "Start",
    "placed",
]
