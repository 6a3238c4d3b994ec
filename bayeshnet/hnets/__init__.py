"""Networks that produce the weights of other networks."""

from __future__ import annotations

from bayeshnet.hnets.base import HyperNet
from bayeshnet.hnets.hnet_interface import HyperNetInterface
from bayeshnet.hnets.hnet_perturbation_wrapper import HPerturbWrapper
from bayeshnet.hnets.linear_head import LinearHeadHyperNet
from bayeshnet.hnets.mlp_hnet import HMLP

__all__ = ["HMLP", "HPerturbWrapper", "HyperNet", "HyperNetInterface", "LinearHeadHyperNet"]
