"""Initialisations that give the produced weights, rather than those of the hypernetwork, a sensible scale."""

from __future__ import annotations

from bayeshnet.hnets.hyperfan import chunked_hyperfan_init, hyperfan_init
from bayeshnet.hnets.hyperfan_gauss import gauss_hyperfan_init

__all__ = ["chunked_hyperfan_init", "gauss_hyperfan_init", "hyperfan_init"]
