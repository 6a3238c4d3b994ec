"""Main networks that are nothing but a parameter table."""

from __future__ import annotations

from torch import nn

from bayeshnet.mnets.mnet_interface import MainNetInterface
from bayeshnet.mnets.param_table import ParamRecord

SHAPES = [[10, 6], [10], [4, 10], [8, 3, 3, 3], [8]]  # a layer, a layer without bias, a convolution


class Described(nn.Module, MainNetInterface):
    """A main network that has a table and nothing else."""

    def __init__(self, *records):
        nn.Module.__init__(self)
        MainNetInterface.__init__(self)
        self._records = tuple(ParamRecord(tuple(shape), name, layer) for shape, name, layer in records)

    def distillation_targets(self):
        return None

    def forward(self, x, weights=None, distilled_params=None, condition=None):
        raise NotImplementedError
