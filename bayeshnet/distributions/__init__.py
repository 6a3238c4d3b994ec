"""Distributions over weights, as Pyro distributions."""

from bayeshnet.distributions.implicit_weights import ImplicitWeights

__all__ = ["ImplicitWeights"]
