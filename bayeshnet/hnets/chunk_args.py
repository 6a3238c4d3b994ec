"""What chunked and structured networks share: rows of input for chunks, and whose chunk embeddings are meant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bayeshnet.errors import ArgumentError
from bayeshnet.typing import CondId

__all__ = ["check_cond_id_of_chunks", "check_needed_chunk_embs", "chunk_rows"]


def chunk_rows(uncond: Tensor | None, cond: Tensor | None, chunk_embs: Tensor | None, num_chunks: int) -> Tensor:
    """Input rows ``[u, c_j, e]`` for each chunk j of each sample.

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


def check_cond_id_of_chunks(cond_chunk_embs: bool, cond_id: int | None) -> None:
    """Refuse a condition where chunk embeddings have none, and its absence where they do.

    Raises:
        ArgumentError: In these two cases.
    """
    if cond_chunk_embs and cond_id is None:
        raise ArgumentError("cond_id: is required; each condition has chunk embeddings of its own.")
    if not cond_chunk_embs and cond_id is not None:
        raise ArgumentError("cond_id: was given, but all conditions share the chunk embeddings; leave it out.")


def check_needed_chunk_embs(cond_id: CondId | None, extra: Mapping[str, Any], num_conds: int, wanted: str) -> None:
    """Refuse a call in which conditional chunk embeddings are given twice or not at all.

    Args:
        cond_id: As passed to ``forward``.
        extra: Entries of its ``weights`` that the class reads itself.
        num_conds: Number of conditions.
        wanted: Description of ``weights["chunk_embs"]``, for the message.

    Raises:
        ArgumentError: In these two cases.
    """
    if "chunk_embs" in extra:
        if cond_id is not None:
            raise ArgumentError("weights['chunk_embs']: excludes cond_id; pass one of the two.")
    elif cond_id is None:
        which = f"cond_id (0..{num_conds - 1}) or " if num_conds else ""
        raise ArgumentError(
            f"cond_id: the chunk embeddings are conditional; pass {which}weights={{'chunk_embs': ...}}, {wanted}."
        )
