"""How a fully-connected hypernetwork with one head per tensor is initialised."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bayeshnet.errors import UsageError
from bayeshnet.fans import HeadInit, Moments, bias_free_head, gain, input_variance
from bayeshnet.hnets.hnet_interface import HyperNetInterface
from bayeshnet.hnets.hyperfan_parts import InitPlan, Part, Places, draw_, fan_in_, require_own_weights
from bayeshnet.mnets.param_table import split_sizes
from bayeshnet.typing import Activation

__all__ = ["HeadPart", "measure_moments"]

_BATCHES, _ROWS = 20, 1000


@dataclass(frozen=True, slots=True)
class HeadPart(Part):
    """A fully-connected network with one head per tensor.

    Attributes:
        hnet: The network.
        places: For each of its tensors the targets.
        uncond_in_size: Size of its unconditional input, chunk embeddings included.
        cond_in_size: Size of its conditional input.
        activation_fn: The nonlinearity of its hidden layers.
        chunk_emb_size: How many entries of the unconditional input are a chunk embedding.
        chunk_embs: The chunk embeddings ``[num, chunk_emb_size]`` that are kept.

    Example:
        >>> from bayeshnet.hnets import HMLP
        >>> (part,) = HMLP([[3]], uncond_in_size=2, cond_in_size=4).init_parts([{0: 1.0}])
        >>> part.inputs(uncond_var=0.5, cond_var=0.25)
        [(2, 0.5), (0, 1.0), (4, 0.25)]
    """

    hnet: HyperNetInterface
    places: tuple[Places, ...]
    uncond_in_size: int
    cond_in_size: int
    activation_fn: Activation | None = None
    chunk_emb_size: int = 0
    chunk_embs: tuple[Tensor, ...] = ()

    @property
    def in_sizes(self) -> tuple[int, int]:
        """See :attr:`Part.in_sizes`."""
        return self.uncond_in_size - self.chunk_emb_size, self.cond_in_size

    def inputs(self, uncond_var: float, cond_var: float) -> list[tuple[int, float]]:
        """Return size and mean square of each part of the input: unconditional, chunk embedding, conditional."""
        embs = self.chunk_embs
        # The embeddings that are there set the scale, whatever distribution they were drawn from.
        power = torch.cat([e.detach().flatten() for e in embs]).square().mean().item() if embs else 1.0
        uncond_size, cond_size = self.in_sizes
        return [(uncond_size, uncond_var), (self.chunk_emb_size, power), (cond_size, cond_var)]

    def layers(self) -> tuple[list[Tensor], Tensor, Tensor | None]:
        """Return the matrices of the hidden layers, of the head, and of the skip connection."""
        names = [record for record in self.hnet.param_table if record.name == "weight"]
        matrices = self.hnet.layer_weight_tensors
        # The skip shares the number of the output layer, of which it is a part.
        if len(names) > 1 and names[-1].layer == names[-2].layer:
            return matrices[:-2], matrices[-2], matrices[-1]
        return matrices[:-1], matrices[-1], None

    def check(self, method: str, plan: InitPlan) -> None:
        """See :meth:`Part.check`."""
        require_own_weights(self.hnet, method)
        if self.hnet.has_bias or plan.spare_biases:
            return
        for head, target in zip(self._heads(plan), self.hnet.target_shapes, strict=True):
            if head.needs_bias:
                raise UsageError(
                    f"{method}: a target of shape {target} is to start with mean {head.bias_mean:g} and variance "
                    f"{head.bias_var:g} through the bias of its head, but this {type(self.hnet).__name__} has no "
                    "biases; build it with use_bias=True, or override: b_val=0, b_var=0 and a w_var for this tensor."
                )

    def draw(self, plan: InitPlan) -> None:
        """See :meth:`Part.draw`.

        Fan-in initialisation passes the mean square v of the input on to the head. Batch norm replaces it: a whitened
        activation has mean square 1, and half of it behind a ReLU.

        Raises:
            ArgumentError: If the input does not vary.
        """
        inputs, heads = self.inputs(plan.uncond_var, plan.cond_var), self._heads(plan)
        has_norm = self.hnet.batchnorm_layers is not None
        v = 1 / gain(plan.use_xavier) if has_norm else input_variance(inputs)
        self._draw_hidden_layers(plan.use_xavier)
        sizes = split_sizes(self.hnet.target_shapes)
        if not self.hnet.has_bias and any(head.needs_bias for head in heads):
            moments = measure_moments(self, plan.uncond_var, plan.cond_var)
            shapes = self.hnet.target_shapes
            heads = [bias_free_head(head, moments, shape) for head, shape in zip(heads, shapes, strict=True)]
        matrix = self.layers()[1]
        moment = matrix.shape[1] * v
        bias = self.hnet.layer_bias_vectors[-1].split(sizes) if self.hnet.has_bias else None
        for i, rows in enumerate(matrix.split(sizes)):
            head = heads[i]
            draw_(rows, head.row_mean, head.row_var + head.out_var / moment)
            if bias is not None:
                draw_(bias[i], head.bias_mean, head.bias_var)

    def _heads(self, plan: InitPlan) -> list[HeadInit]:
        return [HeadInit.average(plan.heads, places) for places in self.places]

    @torch.no_grad()
    def _draw_hidden_layers(self, use_xavier: bool) -> None:
        """Fan-in initialisation of all layers but the last; biases and the skip are 0, batch norm the identity."""
        hidden, _, skip = self.layers()
        for matrix in hidden:
            fan_in_(matrix, gain(use_xavier))
        for bias in self.hnet.layer_bias_vectors:
            bias.zero_()
        if skip is not None:
            skip.zero_()
        records = [record for record in self.hnet.param_table if record.internal]
        for record, param in zip(records, self.hnet.internal_params or (), strict=True):
            if record.name in ("bn_scale", "bn_shift"):
                param.fill_(1.0 if record.name == "bn_scale" else 0.0)


@torch.no_grad()
def measure_moments(part: HeadPart, uncond_var: float, cond_var: float) -> Moments:
    """Measure the moments of the input of a head with normal inputs, and the chunk embeddings that there are.

    Args:
        part: The network, its hidden layers drawn, without biases.
        uncond_var: Variance of the unconditional input.
        cond_var: Variance of the conditional input.

    Example:
        >>> from bayeshnet.hnets import HMLP
        >>> hnet = HMLP([[3]], uncond_in_size=4, cond_in_size=0, layers=(), use_bias=False)
        >>> moments = measure_moments(hnet.init_parts([{0: 1.0}])[0], 0.25, 1.0)
        >>> 0.9 < moments.power < 1.1  # 4 entries of variance 0.25
        True
    """
    hidden, head, _ = part.layers()
    batchnorm: Any = part.hnet.batchnorm_layers or [None] * len(hidden)
    sums: list[Tensor] = []
    powers: list[Tensor] = []
    for _ in range(_BATCHES):
        x = _draw_inputs(part, head, uncond_var, cond_var)
        for matrix, norm in zip(hidden, batchnorm, strict=True):
            x = F.linear(x, matrix)
            if norm is not None:
                x = F.batch_norm(x, None, None, training=True)
            if part.activation_fn is not None:
                x = part.activation_fn(x)
        sums.append(x.double().sum(1))
        powers.append(x.double().square().sum(1))
    total = torch.cat(sums)
    return Moments(total.mean().item(), total.var().item(), torch.cat(powers).mean().item(), total.numel())


def _draw_inputs(part: HeadPart, like: Tensor, uncond_var: float, cond_var: float) -> Tensor:
    """Input rows ``[rows, n]``."""
    (n_u, _), (n_c, _), (n_e, _) = part.inputs(uncond_var, cond_var)
    like = like.detach()
    u = like.new_empty(_ROWS, n_u).normal_(0.0, math.sqrt(uncond_var))
    e = like.new_empty(_ROWS, n_e).normal_(0.0, math.sqrt(cond_var))
    if part.chunk_embs:
        rows = torch.cat([embs.detach() for embs in part.chunk_embs])
        c = rows[torch.randint(rows.shape[0], (_ROWS,), device=rows.device)]
    else:
        c = like.new_empty(_ROWS, n_c).normal_()
    return torch.cat([u, c, e], dim=1)
