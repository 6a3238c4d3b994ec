"""What chunked and structured networks share: embeddings of chunks, and rows of input with them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bayeshnet.errors import ArgumentError, UsageError
from bayeshnet.hnets.composite import CompositeHyperNet
from bayeshnet.typing import CondId

__all__ = ["ChunkEmbeddingHyperNet", "chunk_rows"]


def chunk_rows(uncond: Tensor | None, cond: Tensor | None, chunk_embs: Tensor | None, num_chunks: int) -> Tensor:
    """Return input rows ``[u, c_j, e]`` for each chunk j of each sample.

    Args:
        uncond: u, ``[B or 1, n]``, or None.
        cond: e, ``[B or 1, c]``, or None.
        chunk_embs: c, ``[B or 1, num_chunks, k]``, or None.
        num_chunks: Number of chunks.

    Returns:
        ``[B, num_chunks, n + k + c]``; B is 1 if all arguments are the same for all samples.

    Example:
        >>> chunk_rows(torch.zeros(2, 3), None, torch.ones(1, 5, 4), 5).shape
        torch.Size([2, 5, 7])
    """
    parts = [None if uncond is None else uncond.unsqueeze(1), chunk_embs, None if cond is None else cond.unsqueeze(1)]
    given = [part for part in parts if part is not None]
    if len(given) == 1 and given[0].shape[1] == num_chunks:
        return given[0]
    batch = max(part.shape[0] for part in given)
    return torch.cat([part.expand(batch, num_chunks, -1) for part in given], dim=2)


class ChunkEmbeddingHyperNet(CompositeHyperNet):
    """Base of the networks that make the weights in chunks, told apart by learned embeddings.

    Example:
        >>> from bayeshnet.hnets import ChunkedHMLP
        >>> hnet = ChunkedHMLP([[7]], 4, chunk_emb_size=2)
        >>> isinstance(hnet, ChunkEmbeddingHyperNet), hnet.cond_chunk_embs
        (True, False)
    """

    _cond_chunk_embs: bool

    @property
    def uncond_in_size(self) -> int:
        """Size of the unconditional input."""
        return self._uncond_in_size or 0

    @property
    def cond_in_size(self) -> int:
        """Size of the conditional input."""
        return self._cond_in_size or 0

    @property
    def cond_chunk_embs(self) -> bool:
        """Whether each condition has chunk embeddings of its own."""
        return self._cond_chunk_embs

    @abstractmethod
    def _external_chunk_embs(self) -> str:
        """Describe ``weights["chunk_embs"]``, for messages."""

    def _kept_chunk_embs(self, method: str, num: int, cond_id: int | None) -> list[Tensor]:
        """Return the chunk embeddings of a condition, or of all.

        Args:
            method: Name of the caller, for messages.
            num: Number of tensors that they are.
            cond_id: The condition; None if all share them.

        Raises:
            ArgumentError: If ``cond_id`` is out of range, missing, or has no meaning.
            UsageError: If the network does not keep them.
        """
        if num and self._own is None:
            option = "no_cond_weights" if self._cond_chunk_embs else "no_uncond_weights"
            raise UsageError(f"{method}: with {option}=True the chunk embeddings are kept by the caller.")
        if self._cond_chunk_embs and cond_id is None:
            raise ArgumentError("cond_id: is None, but each condition has chunk embeddings of its own; pass one.")
        if not self._cond_chunk_embs and cond_id is not None:
            raise ArgumentError(f"cond_id: is {cond_id}, but all conditions share the chunk embeddings; leave it out.")
        start = 0 if cond_id is None else num * self._one_cond_id(cond_id)
        return list(self._own or ())[start : start + num]

    def _check_conditional_args(
        self, cond_input: Tensor | None, cond_id: CondId | None, extra: Mapping[str, Any]
    ) -> tuple[int, ...] | None:
        if "chunk_embs" in extra:
            if cond_id is not None:
                raise ArgumentError("weights['chunk_embs']: excludes cond_id; pass one of the two.")
        elif self._cond_chunk_embs and cond_id is None:
            which = f"cond_id (0..{self._num_known_conds - 1}) or " if self._num_known_conds else ""
            raise ArgumentError(
                f"cond_id: is None, but the chunk embeddings are conditional; pass {which}"
                f"weights={{'chunk_embs': ...}}, {self._external_chunk_embs()}."
            )
        return super()._check_conditional_args(cond_input, cond_id, extra)
