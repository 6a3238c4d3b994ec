r"""Hyperfan initialisation of chunked hypernetworks, by the variances of their chunk embeddings.

One head makes all target tensors, so it cannot know their fans; the chunk embedding can (after Meyerson & Miikkulainen
2019, https://arxiv.org/abs/1906.00097). With all layers fan-in initialised, the last one with gain 1, the variance of
what a chunk embedding c of size n_c and other inputs (size n_i, variance v) make is their weighted mean. Solved for c:

.. math:: \mathrm{Var}(c_j) = \frac{(n_i + n_c) t_j - n_i v}{n_c}

with t_j the mean of the target variances in chunk j, weighted by their share of it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from bayeshnet.errors import ArgumentTypeError, BayeshnetWarning, UsageError
from bayeshnet.hnets.deconv_geometry import Axis, plan_deconvs
from bayeshnet.hnets.deconv_hnet import HDeconv
from bayeshnet.hnets.hyperfan import HeadInit, Overrides, check_variance, chunk_variances, counted_variance, gain
from bayeshnet.hnets.hyperfan_draw import check_initialisable, draw_, fan_in_, init_hmlp
from bayeshnet.hnets.hyperfan_targets import describe_targets
from bayeshnet.hnets.mlp_hnet import HMLP
from bayeshnet.mnets.mnet_interface import MainNetInterface
from bayeshnet.mnets.param_table import split_sizes

if TYPE_CHECKING:
    from bayeshnet.hnets.chunked import ChunkedHyperNet

__all__ = [
    "check_chunked",
    "chunk_embedding_variances",
    "chunked_net_hyperfan_init",
    "init_chunked",
    "mean_target_variances",
]


# ---------------------------------------------------------------------- arithmetic


def mean_target_variances(
    sizes: Sequence[int], target_vars: Sequence[float | None], chunk_size: int
) -> list[float | None]:
    """t_j: for each chunk the mean of the target variances in it, weighted by their share.

    Args:
        sizes: Number of elements of each target tensor.
        target_vars: Its variance; None for one that counts for nothing, as the surplus of the last chunk does.
        chunk_size: Number of elements of a chunk.

    Returns:
        One mean per chunk; None if nothing in it counts.

    Example:
        >>> mean_target_variances([3, 3], [1.0, 4.0], 4)
        [1.75, 4.0]
    """
    num = -(-sum(sizes) // chunk_size)
    totals, counts = [0.0] * num, [0] * num
    for j, size, var in _pieces(sizes, target_vars, chunk_size):
        if var is not None:
            totals[j] += size * var
            counts[j] += size
    return [total / count if count else None for total, count in zip(totals, counts, strict=True)]


def _pieces(
    sizes: Sequence[int], target_vars: Sequence[float | None], chunk_size: int
) -> Iterator[tuple[int, int, float | None]]:
    """Chunk, number of elements and variance of each piece of a target that lies in one chunk."""
    start = 0
    for size, var in zip(sizes, target_vars, strict=True):
        end = start + size
        while start < end:
            j = start // chunk_size
            stop = min(end, (j + 1) * chunk_size)
            yield j, stop - start, var
            start = stop


def chunk_embedding_variances(
    chunk_vars: Sequence[float | None], inputs: Sequence[tuple[int, float]], chunk_emb_size: int, eps: float
) -> tuple[list[float], int, float]:
    """Variances of the chunk embeddings.

    Args:
        chunk_vars: t_j, from :func:`mean_target_variances`.
        inputs: Size and variance of each part of the other input.
        chunk_emb_size: n_c.
        eps: The least variance; also that of a chunk in which nothing counts.

    Returns:
        The variances, how many of them were clipped, and the largest v that clips none (infinite if there is no other
        input).

    Example:
        >>> chunk_embedding_variances([0.5, 0.1], [(4, 0.25)], 4, 1e-5)
        ([0.75, 1e-05], 1, 0.19999)
    """
    n_i, n_c = sum(size for size, _ in inputs), chunk_emb_size
    power = sum(size * var for size, var in inputs)  # n_i v
    wanted = [None if t is None else ((n_i + n_c) * t - power) / n_c for t in chunk_vars]
    clipped = sum(var is not None and var < eps for var in wanted)
    least = min((t for t in chunk_vars if t is not None), default=math.inf)
    bound = ((n_i + n_c) * least - n_c * eps) / n_i if n_i else math.inf
    return [eps if var is None else max(eps, var) for var in wanted], clipped, bound


# ---------------------------------------------------------------------- drawing


def check_chunked(hnet: ChunkedHyperNet, method: str) -> None:
    """Refuse a network whose chunk embeddings are elsewhere or have no effect on the variance of the output.

    Raises:
        RuntimeError: In these cases, and as :func:`~bayeshnet.hnets.hyperfan_draw.check_initialisable`.
    """
    name = type(hnet).__name__
    check_initialisable(hnet, method)
    if hnet.batchnorm_layers is not None:
        raise UsageError(
            f"{method}: batch norm in this {name} takes the variance of the chunk embeddings away again; build it with "
            "use_batch_norm=False."
        )
    embs = [record for record in hnet.param_table if record.extra.get("info") == "chunk embeddings"]
    if not embs or not all(record.internal for record in embs):
        raise UsageError(
            f"{method}: this {name} does not keep its chunk embeddings (no_cond_weights=True or num_cond_embs=0), "
            "whose variances are what the method sets; build it with embeddings of its own."
        )


def init_chunked(
    hnet: ChunkedHyperNet,
    target_vars: Sequence[float | None],
    inputs: Sequence[tuple[int, float]],
    *,
    use_xavier: bool = False,
    eps: float = 1e-5,
    normal: bool = False,
) -> None:
    """Draw the layers and the chunk embeddings of a chunked hypernetwork.

    Args:
        hnet: The network.
        target_vars: Variance of each of its targets; None for one that counts for nothing.
        inputs: Size and variance of each part of its input.
        use_xavier: Xavier rather than Kaiming in the hidden layers.
        eps: The least variance of a chunk embedding.
        normal: Draw chunk embeddings from normal rather than uniform distributions.

    Raises:
        RuntimeError: With batch norm or spectral norm, or if weights or chunk embeddings are external.
    """
    check_chunked(hnet, "chunked hyperfan")
    chunk_vars = mean_target_variances(split_sizes(hnet.target_shapes), target_vars, hnet.chunk_size)
    variances, clipped, bound = chunk_embedding_variances(chunk_vars, inputs, hnet.chunk_emb_size, eps)
    if clipped:
        n_i, power = sum(size for size, _ in inputs), sum(size * var for size, var in inputs)
        fix = (
            f"the inputs' variance v = {power / n_i:.3g} may be {bound:.3g} at most. Make the inputs smaller "
            "(init_conditional_embeddings, or the scale of the noise) and say so by uncond_var and cond_var."
            if n_i and bound > 0
            else "no variance of the inputs avoids it; choose a smaller eps."
        )
        warnings.warn(
            f"chunked hyperfan: the variances of {clipped} of {len(variances)} chunk embeddings would be below eps and "
            f"were set to {eps:g}: their weights start too large; {fix}",
            BayeshnetWarning,
            stacklevel=4,
        )
    _init_internal(hnet, use_xavier)
    with torch.no_grad():
        for cond_id in range(hnet.num_known_conds) if hnet.cond_chunk_embs else (None,):
            for row, var in zip(hnet.get_chunk_emb(cond_id=cond_id), variances, strict=True):
                if normal:
                    nn.init.normal_(row, 0.0, math.sqrt(var))
                else:
                    draw_(row, 0.0, var)


def _init_internal(hnet: ChunkedHyperNet, use_xavier: bool) -> None:
    """Let the variance of the input pass to the output unchanged."""
    internal = hnet.internal_hnet
    if isinstance(internal, HMLP):
        n = internal.uncond_in_size + internal.cond_in_size
        init_hmlp(internal, [HeadInit(out_var=1.0)], [(n, 1.0)], use_xavier)
    elif isinstance(internal, HDeconv):
        _init_deconv(internal, use_xavier)
    else:
        raise ArgumentTypeError(
            f"hnet: the full hypernetwork in this {type(hnet).__name__} is a {type(internal).__name__}; for HMLP and "
            "HDeconv the method is known."
        )


@torch.no_grad()
def _init_deconv(hnet: HDeconv, use_xavier: bool) -> None:
    """Fan-in initialisation with the mean over pixels of what they sum over; attention units are the identity."""
    kernels: list[Tensor] = []
    for record, param in zip((r for r in hnet.param_table if r.internal), hnet.internal_params or (), strict=True):
        if record.extra.get("info") == "self-attention":
            if record.name is None:  # the scale of the residual
                param.zero_()
        elif record.name == "weight":
            kernels.append(param)
        elif record.name == "bias":
            param.zero_()
    first, *rest = kernels
    width, height, channels = hnet.hyper_img_shape
    sizes = [(kernel.shape[2], kernel.shape[3]) for kernel in rest]
    _, layers = plan_deconvs(width, height, [*(kernel.shape[0] for kernel in rest), channels], sizes)
    fan_in_(first, gain(use_xavier))
    x, y = [1.0] * layers[0].x.in_size, [1.0] * layers[0].y.in_size
    for i, (layer, kernel) in enumerate(zip(layers, rest, strict=True)):
        x, y = _spread(layer.x, x), _spread(layer.y, y)
        mean_x, mean_y = fmean(x), fmean(y)
        c = 1.0 if i == len(layers) - 1 else gain(use_xavier)
        fan_in_(kernel, c, layer.in_channels * mean_x * mean_y)
        x, y = [value / mean_x for value in x], [value / mean_y for value in y]


def _spread(axis: Axis, power: Sequence[float]) -> list[float]:
    """For each output pixel the sum of the mean squares of the pixels that go into it, along one dimension.

    Pixels at the edges are sums of fewer terms and go into fewer of the next layer: the layers' mean numbers of terms
    alone would not keep the mean over the pixels.
    """
    out = [0.0] * axis.out_size
    for i, value in enumerate(power):
        start = i * axis.stride - axis.padding
        for j in range(max(start, 0), min(start + axis.kernel, axis.out_size)):
            out[j] += value
    return out


def chunked_net_hyperfan_init(
    hnet: ChunkedHyperNet,
    method: str = "in",
    use_xavier: bool = False,
    uncond_var: float = 1.0,
    cond_var: float = 1.0,
    eps: float = 1e-5,
    cemb_normal_init: bool = False,
    mnet: MainNetInterface | None = None,
    target_vars: Overrides = None,
) -> None:
    """See :meth:`~bayeshnet.hnets.chunked.ChunkedHyperNet.apply_chunked_hyperfan_init`."""
    targets = describe_targets(hnet.target_shapes, mnet)
    inputs = [
        (hnet.uncond_in_size, counted_variance("uncond_var", uncond_var, hnet.uncond_in_size)),
        (hnet.cond_in_size, counted_variance("cond_var", cond_var, hnet.cond_in_size)),
    ]
    variances = chunk_variances(targets, method, use_xavier, target_vars)
    eps = check_variance("eps", eps)
    init_chunked(hnet, variances, inputs, use_xavier=use_xavier, eps=eps, normal=cemb_normal_init)
