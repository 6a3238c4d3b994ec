"""Initialisation of hypernetworks that produce means and standard deviations of a Gaussian over weights."""

from __future__ import annotations

from bayeshnet.hnets.hyperfan_gauss import gauss_hyperfan_init

__all__ = ["gauss_hyperfan_init"]
