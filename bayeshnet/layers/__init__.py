"""Building blocks whose weights may come from outside."""

from __future__ import annotations

from bayeshnet.layers.batch_norm import BatchNormLayer
from bayeshnet.layers.context_mod import ContextModLayer
from bayeshnet.layers.low_rank_adapter import LowRankAdapter
from bayeshnet.layers.self_attention import SelfAttnLayerV2
from bayeshnet.layers.spectral_norm import SpectralNorm

__all__ = ["BatchNormLayer", "ContextModLayer", "LowRankAdapter", "SelfAttnLayerV2", "SpectralNorm"]
