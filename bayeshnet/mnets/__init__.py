"""Networks that receive weights, and their evaluation for many weight samples at once."""

from __future__ import annotations

from bayeshnet.mnets.adapters import merged, with_adapters
from bayeshnet.mnets.batched import batched_forward
from bayeshnet.mnets.functional import functional_copy
from bayeshnet.mnets.mlp import MLP
from bayeshnet.mnets.mnet_interface import MainNetInterface
from bayeshnet.mnets.module_mainnet import ModuleMainNet
from bayeshnet.mnets.param_table import ParamRecord
from bayeshnet.mnets.resnet import ResNet
from bayeshnet.mnets.wide_resnet import WRN

__all__ = [
    "MLP",
    "WRN",
    "MainNetInterface",
    "ModuleMainNet",
    "ParamRecord",
    "ResNet",
    "batched_forward",
    "functional_copy",
    "merged",
    "with_adapters",
]
