"""Distributions over weights, as Pyro distributions."""

from __future__ import annotations

from bayeshnet.distributions.implicit_weights import ImplicitWeights

__all__ = ["ImplicitWeights"]
