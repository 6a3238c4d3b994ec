"""Initialisations that give the produced weights, rather than those of the hypernetwork, a sensible scale."""

from __future__ import annotations

from bayeshnet.init.chunked_hyperfan import chunked_hyperfan_init
from bayeshnet.init.gauss_hyperfan import gauss_hyperfan_init
from bayeshnet.init.hyperfan import hyperfan_init

__all__ = ["chunked_hyperfan_init", "gauss_hyperfan_init", "hyperfan_init"]
