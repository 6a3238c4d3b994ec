"""Chains started from a guide."""

from __future__ import annotations

from bayeshnet.sampling._refine import refine
from bayeshnet.sampling.convergence import nested_rhat
from bayeshnet.sampling.hmc import ChEES, Transition
from bayeshnet.sampling.log_joint import LogJoint
from bayeshnet.sampling.refined import Refined

__all__ = ["ChEES", "LogJoint", "Refined", "Transition", "nested_rhat", "refine"]
