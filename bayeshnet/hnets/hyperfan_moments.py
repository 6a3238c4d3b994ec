"""Heads without biases that have a mean all the same, by the measured moments of their inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bayeshnet.errors import ArgumentError
from bayeshnet.hnets.hyperfan import HeadInit
from bayeshnet.hnets.hyperfan_draw import linear_layers
from bayeshnet.hnets.hyperfan_parts import HeadPart

__all__ = ["Moments", "bias_free_head", "measure_moments"]

_BATCHES, _ROWS = 20, 1000


@dataclass(frozen=True, slots=True)
class Moments:
    """Moments of the input x of a head over the inputs of the hypernetwork.

    Attributes:
        sum_mean: E[sum_j x_j].
        sum_var: Var(sum_j x_j).
        power: E[sum_j x_j^2].
        num: Number of draws that they were measured with.
    """

    sum_mean: float
    sum_var: float
    power: float
    num: int


@torch.no_grad()
def measure_moments(part: HeadPart, uncond_var: float, cond_var: float) -> Moments:
    """Measure the moments by drawing inputs: normal ones, and the chunk embeddings that there are.

    Args:
        part: The network, its hidden layers drawn, without biases.
        uncond_var: Variance of the unconditional input.
        cond_var: Variance of the conditional input.

    Example:
        >>> from bayeshnet.hnets.mlp_hnet import HMLP
        >>> hnet = HMLP([[3]], uncond_in_size=4, cond_in_size=0, layers=(), use_bias=False)
        >>> moments = measure_moments(HeadPart(hnet, ({0: 1.0},)), 0.25, 1.0)
        >>> 0.9 < moments.power < 1.1  # 4 entries of variance 0.25
        True
    """
    hnet = part.hnet
    hidden, head, _ = linear_layers(hnet)
    batchnorm: Any = hnet.batchnorm_layers or [None] * len(hidden)
    sums: list[Tensor] = []
    powers: list[Tensor] = []
    for _ in range(_BATCHES):
        x = _draw_inputs(part, head, uncond_var, cond_var)
        for matrix, norm in zip(hidden, batchnorm, strict=True):
            x = F.linear(x, matrix)
            if norm is not None:
                x = F.batch_norm(x, None, None, training=True)
            if hnet.activation_fn is not None:
                x = hnet.activation_fn(x)
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


def bias_free_head(head: HeadInit, moments: Moments, shape: Sequence[int]) -> HeadInit:
    r"""Let the rows H make what a bias w would have made.

    .. math::
        E[H] = \frac{E[w]}{E[\sum_j x_j]} \qquad
        \mathrm{Var}(H) = \frac{\mathrm{Var}(w) - E[H]^2 \mathrm{Var}(\sum_j x_j)}{E[\sum_j x_j^2]}

    Args:
        head: With a bias.
        moments: Those of x.
        shape: Shape of the target, for the message.

    Raises:
        ValueError: If the mean alone makes a larger variance than is asked for.

    Example:
        >>> head = bias_free_head(HeadInit(bias_mean=1.0, bias_var=0.5), Moments(2.0, 1.0, 4.0, 1000), [3])
        >>> head.row_mean, head.row_var
        (0.5, 0.0625)
    """
    if not head.needs_bias:
        return head
    mean = 0.0
    if head.bias_mean:
        error = math.sqrt(moments.sum_var / moments.num)
        if abs(moments.sum_mean) <= 4 * error:
            raise ArgumentError(
                f"gauss_hyperfan_init: a target of shape {list(shape)} is to have the mean {head.bias_mean:g}, but the "
                "network has no biases and the input of its head has mean 0, so that no rows can make one. Build it "
                "with use_bias=True, or give it hidden layers whose activations have a mean (ReLU)."
            )
        mean = head.bias_mean / moments.sum_mean
    least = mean**2 * moments.sum_var
    if least > head.bias_var:
        raise ArgumentError(
            f"gauss_hyperfan_init: a target of shape {list(shape)} is to have mean {head.bias_mean:g} and variance "
            f"{head.bias_var:g}, but the network has no biases, and the mean alone makes a variance of {least:.4g}, "
            "the smallest feasible one. Ask for at least that, for a smaller mean, or build it with use_bias=True."
        )
    var = (head.bias_var - least) / moments.power
    return HeadInit(head.row_mean + mean, head.row_var + var, head.out_var, 0.0, 0.0)
