"""Chunking: one hypernetwork makes a flat target vector piece by piece."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from bayeshnet.errors import ArgumentError
from bayeshnet.hnets.arguments import (
    HyperInputs,
    check_input,
    check_sizes,
    no_embeddings,
    read_target_shapes,
)
from bayeshnet.hnets.chunk_embeddings import ChunkEmbeddingHyperNet, chunk_rows
from bayeshnet.hnets.full import FullHyperNet
from bayeshnet.hnets.hyperfan import chunked_hyperfan_init
from bayeshnet.hnets.hyperfan_chunks import ChunkedPart
from bayeshnet.hnets.hyperfan_parts import Places, inner_parts
from bayeshnet.mnets.param_table import ParamRecord, num_weights
from bayeshnet.typing import Shapes

__all__ = ["ChunkedHyperNet"]

_LOGGER = logging.getLogger(__name__)


class ChunkedHyperNet(ChunkEmbeddingHyperNet):
    r"""Base of the chunked hypernetworks: the same wrapper around any full one.

    The flat vector of all target weights is cut into C = ``ceil(num_outputs / chunk_size)`` pieces. A full hypernetwork
    h makes each of them from the input u, the condition e and a learned embedding of the piece:

    .. math:: w = [h(u, c_1, e), \dots, h(u, c_C, e)]_{1:D}

    All pieces of all samples go through h in one call; what the last piece has too much is dropped. With batch norm in
    h the statistics are those over samples and pieces.

    Parameter table: that of h, then the chunk embeddings ``[C, chunk_emb_size]``, one record, or one per condition.

    Args:
        make_hnet: Called with the sizes of unconditional and conditional input, and the number of embeddings that the
            full hypernetwork keeps; makes it. It has one target, a vector of the chunk size.
        target_shapes: Shapes of the weights to produce.
        chunk_emb_size: Size of a chunk embedding.
        cond_chunk_embs: Have chunk embeddings for each condition.
        uncond_in_size: Size of u.
        cond_in_size: Size of e.
        no_uncond_weights: Do not keep the unconditional weights.
        no_cond_weights: Do not keep the conditional weights.
        num_cond_embs: Number of conditions.
        verbose: Log the size of the network at INFO.

    Raises:
        ArgumentError: If a size is out of range, or there is no input of any kind.

    Example:
        >>> from bayeshnet.hnets import ChunkedHMLP
        >>> hnet = ChunkedHMLP([[10, 5], [10]], 25, uncond_in_size=2, cond_in_size=0)
        >>> isinstance(hnet, ChunkedHyperNet), hnet.num_chunks
        (True, 3)
    """

    def __init__(
        self,
        make_hnet: Callable[[int, int, int], FullHyperNet],
        target_shapes: Shapes,
        *,
        chunk_emb_size: int,
        cond_chunk_embs: bool,
        uncond_in_size: int,
        cond_in_size: int,
        no_uncond_weights: bool,
        no_cond_weights: bool,
        num_cond_embs: int,
        verbose: bool,
    ) -> None:
        super().__init__()
        target_shapes = read_target_shapes(target_shapes)
        check_sizes(uncond_in_size=uncond_in_size, cond_in_size=cond_in_size, num_cond_embs=num_cond_embs)
        check_sizes(chunk_emb_size=chunk_emb_size)
        if chunk_emb_size == 0:
            raise ArgumentError("chunk_emb_size: is 0, so that all chunks would be the same; pass at least 1.")
        if uncond_in_size + cond_in_size == 0 and not cond_chunk_embs:
            raise ArgumentError(
                "uncond_in_size: and cond_in_size are both 0; a hypernetwork needs an input of some kind. To choose "
                "among sets of chunk embeddings, use cond_chunk_embs=True."
            )
        if cond_in_size == 0 and not cond_chunk_embs:
            num_cond_embs = no_embeddings(num_cond_embs, stacklevel=4)
        hnet = make_hnet(uncond_in_size + chunk_emb_size, cond_in_size, num_cond_embs if cond_in_size else 0)
        num_chunks = -(-num_weights(target_shapes) // hnet.num_outputs)
        record = ParamRecord((num_chunks, chunk_emb_size), "embedding", 0, extra={"info": "chunk embeddings"})
        if cond_chunk_embs:
            record = replace(record, conditional=True, internal=not no_cond_weights)
            own = [replace(record, condition=i) for i in range(num_cond_embs)]
        else:
            own = [replace(record, internal=not no_uncond_weights)]
        self._chunk_emb_size = chunk_emb_size
        self._num_chunks = num_chunks
        self._cond_chunk_embs = cond_chunk_embs
        self._extra_weight_keys = ("chunk_embs",) if cond_chunk_embs else ()
        self._has_fc_out, self._has_linear_out = hnet.has_fc_out, hnet.has_linear_out
        self._compose(
            [hnet],
            [hnet.param_table],
            own,
            target_shapes,
            num_known_conds=num_cond_embs,
            uncond_in_size=uncond_in_size,
            cond_in_size=cond_in_size,
            embedding_refs=range(num_cond_embs if cond_in_size else 0),
        )
        if verbose:
            _LOGGER.info(
                "Created %s: %d outputs from %d chunks of %d, %d weights.",
                type(self).__name__,
                self.num_outputs,
                num_chunks,
                hnet.num_outputs,
                self.num_params,
            )

    # ------------------------------------------------------------------ arguments

    def _external_chunk_embs(self) -> str:
        return f"a tensor [batch, {self._num_chunks}, {self._chunk_emb_size}]"

    def _read_extra(self, extra: Mapping[str, Any]) -> dict[str, int]:
        if "chunk_embs" not in extra:
            return {}
        given, shape = extra["chunk_embs"], (self._num_chunks, self._chunk_emb_size)
        check_input("weights['chunk_embs']", given, None, dim=None)
        if given.dim() != 3 or given.shape[1:] != shape:
            raise ArgumentError(
                f"weights['chunk_embs']: has shape {list(given.shape)}; pass a tensor [batch, {shape[0]}, {shape[1]}]."
            )
        return {"weights['chunk_embs']": given.shape[0]}

    def _chunk_rows(self, inputs: HyperInputs, weights: list[Tensor]) -> Tensor:
        """The chunk embeddings ``[B or 1, C, chunk_emb_size]``."""
        if "chunk_embs" in inputs.extra:
            return inputs.extra["chunk_embs"]
        own = self._own_weights(weights)
        if not self._cond_chunk_embs or inputs.cond_id is None:
            return own[0].unsqueeze(0)
        if len(inputs.cond_id) == 1:
            return own[inputs.cond_id[0]].unsqueeze(0)
        return torch.stack([own[i] for i in inputs.cond_id])

    # ------------------------------------------------------------------ the map

    def _generate(self, inputs: HyperInputs, weights: list[Tensor]) -> Tensor:
        cond = self._conditional_rows(inputs, weights)
        uncond = inputs.uncond_input
        rows = chunk_rows(uncond, cond, self._chunk_rows(inputs, weights), self._num_chunks)
        out = self.internal_hnet.call_rows(rows.flatten(0, 1), weights[self._slices[0]], inputs.condition)
        out = out.reshape(rows.shape[0], -1)
        return out if out.shape[1] == self.num_outputs else out[:, : self.num_outputs]

    # ------------------------------------------------------------------ initialisation

    apply_chunked_hyperfan_init = chunked_hyperfan_init

    def init_parts(self, places: Sequence[Places]) -> list[ChunkedPart]:
        """See :meth:`bayeshnet.hnets.hyperfan_parts.Initialisable.init_parts`."""
        (core,) = inner_parts(self.internal_hnet, [{0: 1.0}])
        sizes = self.uncond_in_size, self.cond_in_size
        return [ChunkedPart(self, tuple(places), *sizes, self.chunk_size, tuple(self._own or ()), core)]

    # ------------------------------------------------------------------ interface

    @property
    def internal_hnet(self) -> FullHyperNet:
        """The full hypernetwork that makes the chunks."""
        return cast("FullHyperNet", self._parts[0])

    @property
    def chunk_size(self) -> int:
        """Number of weights in a chunk."""
        return self.internal_hnet.num_outputs

    @property
    def num_chunks(self) -> int:
        """Number of chunks that make up the output."""
        return self._num_chunks

    @property
    def chunk_emb_size(self) -> int:
        """Size of a chunk embedding."""
        return self._chunk_emb_size

    def get_chunk_emb(self, chunk_id: int | None = None, cond_id: int | None = None) -> Tensor:
        """Return the embeddings of the chunks.

        Args:
            chunk_id: From 0 to ``num_chunks - 1``; all by default.
            cond_id: The condition, for conditional chunk embeddings.

        Returns:
            The parameter ``[num_chunks, chunk_emb_size]``, or a row of it.

        Raises:
            ArgumentError: If an id is out of range, or ``cond_id`` is missing or has no meaning.
            ArgumentTypeError: If an id is not an int.
            UsageError: If the network does not keep the chunk embeddings.

        Example:
            >>> from bayeshnet.hnets import ChunkedHMLP
            >>> hnet = ChunkedHMLP([[7]], 4, chunk_emb_size=2)
            >>> hnet.get_chunk_emb().shape, hnet.get_chunk_emb(chunk_id=1).shape
            (torch.Size([2, 2]), torch.Size([2]))
        """
        (embeddings,) = self._kept_chunk_embs("get_chunk_emb", 1, cond_id)
        if chunk_id is None:
            return embeddings
        check_sizes(chunk_id=chunk_id)
        if chunk_id >= self._num_chunks:
            raise ArgumentError(f"chunk_id: is {chunk_id}; pass a chunk in 0..{self._num_chunks - 1}.")
        return embeddings[chunk_id]

    def distillation_targets(self) -> list[Tensor] | None:
        """Return the statistics of the full hypernetwork."""
        return self.internal_hnet.distillation_targets()
