"""Latent sites of a Pyro model: flattening, arguments, traces of model and guide."""

from __future__ import annotations

__all__: list[str] = []
