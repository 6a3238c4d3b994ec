"""Pyro guides whose draws come from hypernetworks."""

from __future__ import annotations

from bayeshnet.guides._decay import GroupDecay
from bayeshnet.guides._old_options import old_mixture as old_mixture  # for bayeshnet.infer
from bayeshnet.guides.delta import AutoHypernetDelta
from bayeshnet.guides.hypernet import AutoHypernet
from bayeshnet.guides.normal import AutoHypernetNormal
from bayeshnet.guides.size_summary import GuideSummary
from bayeshnet.guides.warm_start import start_from

__all__ = [
    "AutoHypernet",
    "AutoHypernetDelta",
    "AutoHypernetNormal",
    "GroupDecay",
    "GuideSummary",
    "start_from",
]
