"""Estimators of log q that fail for the weights of networks: for a few latents, and to compare."""

from __future__ import annotations

from bayeshnet.entropy.experimental.adversarial import Adversarial
from bayeshnet.entropy.experimental.semi_implicit import SemiImplicit
from bayeshnet.entropy.experimental.spectral_stein import SpectralStein, spectral_score

__all__ = ["Adversarial", "SemiImplicit", "SpectralStein", "spectral_score"]
