"""Access to the conditional parameters and chunk embeddings of any hypernetwork, whatever it is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch
from torch import nn

from bayeshnet.checks import kind_of
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.hnets.arguments import parse_cond_id
from bayeshnet.hnets.chunked import ChunkedHyperNet
from bayeshnet.hnets.hnet_container import HContainer
from bayeshnet.hnets.hnet_interface import HyperNetInterface
from bayeshnet.hnets.hnet_perturbation_wrapper import HPerturbWrapper
from bayeshnet.mnets.own_lists import kept_records
from bayeshnet.mnets.param_table import ParamRecord

__all__ = ["get_conditional_parameters", "init_chunk_embeddings", "init_conditional_embeddings"]

InitFct: TypeAlias = Callable[..., Any]


def get_conditional_parameters(hnet: HyperNetInterface, cond_id: int) -> list[nn.Parameter]:
    """The internal parameters that belong to one condition.

    Args:
        hnet: Any hypernetwork.
        cond_id: The condition, from 0 to ``hnet.num_known_conds - 1``.

    Returns:
        A subset of ``hnet.conditional_params``, in its order; empty if none is kept.

    Raises:
        ArgumentError: If there is no such condition, or it is not known which parameters belong to it.
        ArgumentTypeError: If ``hnet`` is not a hypernetwork.

    Example:
        >>> from bayeshnet.hnets import HMLP
        >>> hnet = HMLP([[3]], cond_in_size=4, num_cond_embs=2)
        >>> get_conditional_parameters(hnet, 1)[0] is hnet.get_cond_in_emb(1)
        True
    """
    _check_hnet(hnet)
    ids = parse_cond_id(cond_id, hnet.num_known_conds or None)
    if len(ids) != 1:
        raise ArgumentError(f"cond_id: has {len(ids)} conditions; pass one.")
    return [param for record, param in kept_records(hnet) if record.conditional and _condition_of(record) == ids[0]]


def init_conditional_embeddings(
    hnet: HyperNetInterface, normal_mean: float = 0.0, normal_std: float = 1.0, init_fct: InitFct | None = None
) -> None:
    """Initialise the embeddings that are the conditional inputs of a hypernetwork, in place.

    Only the embeddings that the network keeps; chunk embeddings, conditional or not, are left alone (see
    :func:`init_chunk_embeddings`).

    Args:
        hnet: Any hypernetwork. Without such embeddings nothing happens.
        normal_mean: Mean of the normal distribution of the embeddings.
        normal_std: Its standard deviation.
        init_fct: Called as ``init_fct(cond_emb, cond_id)`` for each embedding instead, to change it in place.

    Raises:
        ArgumentError: If ``normal_std`` is negative.
        ArgumentTypeError: If ``hnet`` is not a hypernetwork or ``init_fct`` not a function.

    Example:
        >>> from bayeshnet.hnets import HMLP
        >>> hnet = HMLP([[3]], cond_in_size=4, num_cond_embs=2)
        >>> init_conditional_embeddings(hnet, init_fct=lambda emb, cond_id: emb.fill_(cond_id))
        >>> hnet.get_cond_in_emb(1).tolist()
        [1.0, 1.0, 1.0, 1.0]
    """
    _check_hnet(hnet)
    _check_init(normal_std, init_fct)
    with torch.no_grad():
        for record, param in kept_records(hnet):
            # Plain weights of a container may be called embeddings too, but they are outputs and no inputs.
            if not record.conditional or record.name != "embedding" or _is_chunk_emb(record) or _is_plain(record):
                continue
            if init_fct is None:
                param.normal_(normal_mean, normal_std)
            else:
                init_fct(param, _condition_of(record))


def init_chunk_embeddings(
    hnet: HyperNetInterface, normal_mean: float = 0.0, normal_std: float = 1.0, init_fct: InitFct | None = None
) -> None:
    """Initialise the chunk embeddings that a hypernetwork keeps, in place.

    Args:
        hnet: Any hypernetwork. Without chunk embeddings nothing happens.
        normal_mean: Mean of the normal distribution of the embeddings.
        normal_std: Its standard deviation.
        init_fct: Called as ``init_fct(chunk_emb, chunk_id, cond_id=None)`` instead, to change ``chunk_emb`` in place:
            for a chunked network with each single embedding, for a structured one with each tensor of
            ``chunk_emb_shapes``, ``chunk_id`` being its place there. ``cond_id`` is the condition, None where all
            conditions share the chunk embeddings.

    Raises:
        ArgumentError: If ``normal_std`` is negative.
        ArgumentTypeError: If ``hnet`` is not a hypernetwork or ``init_fct`` not a function.

    Example:
        >>> from bayeshnet.hnets import ChunkedHMLP
        >>> hnet = ChunkedHMLP([[7]], 4, chunk_emb_size=2)
        >>> init_chunk_embeddings(hnet, init_fct=lambda emb, chunk_id, cond_id=None: emb.fill_(chunk_id))
        >>> hnet.get_chunk_emb().tolist()
        [[0.0, 0.0], [1.0, 1.0]]
    """
    _check_hnet(hnet)
    _check_init(normal_std, init_fct)
    with torch.no_grad():
        for leaf in _leaves(hnet):
            seen: dict[int, int] = {}
            for record, param in kept_records(leaf):
                if not _is_chunk_emb(record):
                    continue
                condition = record.condition if record.conditional else None
                chunk_id = seen.get(record.condition, 0)
                seen[record.condition] = chunk_id + 1
                if init_fct is None:
                    param.normal_(normal_mean, normal_std)
                elif isinstance(leaf, ChunkedHyperNet):
                    for i, row in enumerate(param):
                        init_fct(row, i, cond_id=condition)
                else:
                    init_fct(param, chunk_id, cond_id=condition)


def _leaves(hnet: HyperNetInterface) -> Iterator[HyperNetInterface]:
    """The hypernetworks inside containers and wrappers."""
    if isinstance(hnet, HPerturbWrapper):
        yield from _leaves(hnet.internal_hnet)
    elif isinstance(hnet, HContainer):
        for part in hnet.internal_hnets:
            yield from _leaves(part)
    else:
        yield hnet


def _condition_of(record: ParamRecord) -> int:
    """The condition that a parameter belongs to."""
    if record.condition < 0:
        raise ArgumentError(
            "hnet: has conditional parameters and does not tell which condition they belong to; give its ParamRecords "
            "a `condition`, or have one conditional parameter per condition."
        )
    return record.condition


def _is_chunk_emb(record: ParamRecord) -> bool:
    return record.extra.get("info") == "chunk embeddings"


def _is_plain(record: ParamRecord) -> bool:
    innermost = record.extra.get("celement_inner", record.extra)
    while "celement_inner" in innermost:
        innermost = innermost["celement_inner"]
    return innermost.get("celement_type") in ("uncond", "cond")


def _check_hnet(hnet: object) -> None:
    if not isinstance(hnet, HyperNetInterface):
        raise ArgumentTypeError(f"hnet: is {kind_of(hnet)}; pass a hypernetwork (HyperNetInterface).")


def _check_init(normal_std: float, init_fct: object) -> None:
    if init_fct is not None and not callable(init_fct):
        raise ArgumentTypeError(f"init_fct: is {kind_of(init_fct)}; pass a function.")
    if normal_std < 0:
        raise ArgumentError(f"normal_std: is {normal_std}; pass 0 or more.")
