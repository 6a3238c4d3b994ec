"""How a chunked hypernetwork is initialised: by the variances of its chunk embeddings.

The formulas are in :mod:`bayeshnet.fans.chunks`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor, nn

from bayeshnet.errors import BayeshnetWarning, UsageError
from bayeshnet.fans import HeadInit, chunk_embedding_variances, gain, mean_target_variances
from bayeshnet.hnets.deconv_geometry import Deconv
from bayeshnet.hnets.hnet_interface import HyperNetInterface
from bayeshnet.hnets.hyperfan_parts import InitPlan, Part, Places, average, draw_, fan_in_, require_own_weights
from bayeshnet.mnets.param_table import split_sizes

__all__ = ["ChunkedPart", "DeconvPart"]


@dataclass(frozen=True, slots=True)
class ChunkedPart(Part):
    """A chunked network.

    Attributes:
        hnet: The network.
        places: For each of its tensors the targets.
        uncond_in_size: Size of the unconditional input, without chunk embeddings.
        cond_in_size: Size of the conditional input.
        chunk_size: Number of weights in a chunk.
        chunk_embs: The chunk embeddings ``[num_chunks, chunk_emb_size]`` that are kept: one tensor, or one per
            condition.
        core: The part that makes the chunks.

    Example:
        >>> from bayeshnet.hnets import ChunkedHMLP
        >>> (part,) = ChunkedHMLP([[7]], 4, chunk_emb_size=2).init_parts([{0: 1.0}])
        >>> part.in_sizes, [tuple(embs.shape) for embs in part.chunk_embs]
        ((0, 8), [(2, 2)])
    """

    hnet: HyperNetInterface
    places: tuple[Places, ...]
    uncond_in_size: int
    cond_in_size: int
    chunk_size: int
    chunk_embs: tuple[Tensor, ...]
    core: Part

    @property
    def in_sizes(self) -> tuple[int, int]:
        """See :attr:`Part.in_sizes`."""
        return self.uncond_in_size, self.cond_in_size

    def check(self, method: str, plan: InitPlan) -> None:
        """See :meth:`Part.check`."""
        name = type(self.hnet).__name__
        require_own_weights(self.hnet, method)
        if self.hnet.batchnorm_layers is not None:
            raise UsageError(
                f"{method}: batch norm in this {name} takes the variance of the chunk embeddings away again; build it "
                "with use_batch_norm=False."
            )
        if not self.chunk_embs:
            raise UsageError(
                f"{method}: this {name} does not keep its chunk embeddings (no_cond_weights=True or num_cond_embs=0), "
                "whose variances are what the method sets; build it with embeddings of its own."
            )

    def draw(self, plan: InitPlan) -> None:
        """See :meth:`Part.draw`."""
        wanted = [average(plan.chunk_vars, places) for places in self.places]
        inputs = [(self.uncond_in_size, plan.uncond_var), (self.cond_in_size, plan.cond_var)]
        chunk_vars = mean_target_variances(split_sizes(self.hnet.target_shapes), wanted, self.chunk_size)
        emb_size = self.chunk_embs[0].shape[1]
        variances, clipped, bound = chunk_embedding_variances(chunk_vars, inputs, emb_size, plan.eps)
        if clipped:
            _warn_of_clipping(clipped, len(variances), inputs, bound, plan.eps)
        # The variance of the input passes to the output unchanged.
        self.core.draw(InitPlan([HeadInit(out_var=1.0)], use_xavier=plan.use_xavier))
        with torch.no_grad():
            for embs in self.chunk_embs:
                for row, var in zip(embs, variances, strict=True):
                    if plan.normal:
                        nn.init.normal_(row, 0.0, math.sqrt(var))
                    else:
                        draw_(row, 0.0, var)


def _warn_of_clipping(clipped: int, num: int, inputs: Sequence[tuple[int, float]], bound: float, eps: float) -> None:
    n_i, power = sum(size for size, _ in inputs), sum(size * var for size, var in inputs)
    fix = (
        f"the inputs' variance v = {power / n_i:.3g} may be {bound:.3g} at most. Make the inputs smaller "
        "(init_conditional_embeddings, or the scale of the noise) and say so by uncond_var and cond_var."
        if n_i and bound > 0
        else "no variance of the inputs avoids it; choose a smaller eps."
    )
    warnings.warn(
        f"chunked_hyperfan_init: the variances of {clipped} of {num} chunk embeddings would be below eps and were set "
        f"to {eps:g}: their weights start too large; {fix}",
        BayeshnetWarning,
        stacklevel=5,
    )


@dataclass(frozen=True, slots=True)
class DeconvPart(Part):
    """A deconvolutional network, which can be initialised as the core of a chunked one only.

    Attributes:
        hnet: The network.
        deconvs: Its transposed convolutions.

    Example:
        >>> from bayeshnet.hnets import HDeconv
        >>> (part,) = HDeconv([[7]], (4, 4), num_layers=2, num_filters=[2]).init_parts([{0: 1.0}])
        >>> len(part.deconvs)
        1
    """

    hnet: HyperNetInterface
    deconvs: tuple[Deconv, ...]

    def check(self, method: str, plan: InitPlan) -> None:
        """See :meth:`Part.check`."""
        raise UsageError(
            f"{method}: a plain {type(self.hnet).__name__} makes all its targets by the same kernels, so none of them "
            "can have a variance of its own; use a ChunkedHDeconv, whose chunk embeddings set the variances "
            "(chunked_hyperfan_init)."
        )

    @torch.no_grad()
    def draw(self, plan: InitPlan) -> None:
        """Draw fan-in, with the mean over pixels of what they sum over; attention units become the identity."""
        kernels: list[Tensor] = []
        records = [record for record in self.hnet.param_table if record.internal]
        for record, param in zip(records, self.hnet.internal_params or (), strict=True):
            if record.extra.get("info") == "self-attention":
                if record.name is None:  # the scale of the residual
                    param.zero_()
            elif record.name == "weight":
                kernels.append(param)
            elif record.name == "bias":
                param.zero_()
        first, *rest = kernels
        fan_in_(first, gain(plan.use_xavier))
        # Pixels at the edges are sums of fewer terms and go into fewer of the next layer: the layers' mean numbers of
        # terms alone would not keep the mean over the pixels.
        x, y = [1.0] * self.deconvs[0].x.in_size, [1.0] * self.deconvs[0].y.in_size
        for i, (deconv, kernel) in enumerate(zip(self.deconvs, rest, strict=True)):
            x, y = deconv.x.spread(x), deconv.y.spread(y)
            mean_x, mean_y = fmean(x), fmean(y)
            c = 1.0 if i == len(self.deconvs) - 1 else gain(plan.use_xavier)
            fan_in_(kernel, c, deconv.in_channels * mean_x * mean_y)
            x, y = [value / mean_x for value in x], [value / mean_y for value in y]
