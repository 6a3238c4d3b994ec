"""Where users of hypnettorch look for what has to do with distributions over weights."""

from __future__ import annotations

from bayeshnet.probabilistic.gauss_hnet_init import gauss_hyperfan_init

__all__ = ["gauss_hyperfan_init"]
