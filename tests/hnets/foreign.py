"""A hypernetwork as others write it, which knows no more of this package than the interface."""

from __future__ import annotations

import torch
from torch import nn

from bayeshnet.hnets import HyperNetInterface


class Foreign(nn.Module, HyperNetInterface):
    """Private lists, no broadcasting, ids as ints or lists of ints only: ``w = W u + b_i``."""

    def __init__(self, target_shapes, in_size, num_conds=2):
        nn.Module.__init__(self)
        HyperNetInterface.__init__(self)
        self._target_shapes = target_shapes
        self._num_known_conds = num_conds
        num = self.shapes_to_num_weights(target_shapes)
        self._param_shapes = [[num]] * num_conds + [[num, in_size]]
        self._unconditional_param_shapes_ref = [num_conds]
        self._internal_params = nn.ParameterList([nn.Parameter(torch.randn(shape)) for shape in self._param_shapes])

    def distillation_targets(self):
        return None

    def forward(
        self,
        uncond_input=None,
        cond_input=None,
        cond_id=None,
        weights=None,
        distilled_params=None,
        condition=None,
        ret_format="squeezed",
    ):
        assert isinstance(cond_id, (int, list))
        assert ret_format in ("flattened", "sequential", "squeezed")
        assert isinstance(cond_id, int) or len(uncond_input) == len(cond_id)
        params = list(self.internal_params)
        if isinstance(weights, dict):
            params = [*weights.get("cond_weights", params[:-1]), *weights.get("uncond_weights", params[-1:])]
        elif weights is not None:
            params = weights
        offsets = torch.stack([params[i] for i in ([cond_id] if isinstance(cond_id, int) else cond_id)])
        flat = uncond_input @ params[-1].T + offsets
        return self.convert_out_format(flat, "flattened", ret_format)
