"""A hypernetwork that makes the weights in chunks that follow the structure of the target network."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from bayeshnet.checks import shown
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.hnets.arguments import HyperInputs, check_input, check_sizes, no_embeddings, read_target_shapes
from bayeshnet.hnets.assembly import Assembler, AssemblyFct, trace_places
from bayeshnet.hnets.chunk_embeddings import ChunkEmbeddingHyperNet, chunk_rows
from bayeshnet.hnets.hyperfan_heads import HeadPart
from bayeshnet.hnets.hyperfan_parts import Places
from bayeshnet.hnets.mlp_hnet import HMLP
from bayeshnet.mnets.own_lists import kept_records
from bayeshnet.mnets.param_table import ParamRecord, num_weights, split_sizes
from bayeshnet.typing import Shapes

__all__ = ["StructuredHMLP"]

_LOGGER = logging.getLogger(__name__)

# What this class decides for its internal networks itself.
_OWN_ARGS = (
    "target_shapes",
    "uncond_in_size",
    "cond_in_size",
    "no_uncond_weights",
    "no_cond_weights",
    "num_cond_embs",
)


class StructuredHMLP(ChunkEmbeddingHyperNet):
    """Several :class:`~bayeshnet.hnets.mlp_hnet.HMLP`, each of which makes all chunks of one kind.

    A chunk is a list of tensors, such as kernel and bias of a layer. Network i makes ``num_per_chunk[i]`` chunks of the
    shapes ``chunk_shapes[i]``, told apart by learned chunk embeddings; ``assembly_fct`` puts the chunks together. So
    layers of equal shape can share a hypernetwork, and layers that are multiples of each other, too. All chunks of all
    samples of one kind are one call of its network.

    Linear internal networks without bias are soft weight sharing by templates (Savarese & Maire 2019,
    https://arxiv.org/abs/1902.09701): the rows of the output layer are the templates, the chunk embeddings their
    coefficients.

    Parameter table: the tables of the internal networks (extra key ``hnet_ind``; embeddings of conditions live in the
    first; ``layer`` is -1 in the others), then the chunk embeddings, condition by condition (extra keys ``info``,
    ``hnet_ind``, ``cond_id``, which is -1 if they are shared).

    Args:
        target_shapes: Shapes of the weights to produce.
        chunk_shapes: For each internal network the shapes of the tensors of a chunk.
        num_per_chunk: How many chunks each internal network makes.
        chunk_emb_sizes: Size of the chunk embeddings, one for all or one for each internal network; 0 for none, where
            there is one chunk. They start at N(0, 1).
        hmlp_kwargs: Further arguments of the internal networks: one dict for all, or a list. Sizes of inputs, number of
            embeddings and ``no_..._weights`` are those of this class.
        assembly_fct: ``assembly_fct(list_of_chunks)`` receives one list of tensors per chunk, for one sample, and
            returns tensors of the ``target_shapes``. It should move entries and not change them. It is vectorised over
            the samples of a batch if it allows that (:class:`~bayeshnet.hnets.assembly.Assembler`).
        cond_chunk_embs: Have chunk embeddings for each condition. Both input sizes may then be 0. With
            ``num_cond_embs=0`` they are passed as ``weights={"chunk_embs": [...]}``, ``[B, *shape]`` for each of
            :attr:`chunk_emb_shapes`.
        uncond_in_size: Size of the unconditional input.
        cond_in_size: Size of the conditional input.
        verbose: Log the size of the network at INFO.
        no_uncond_weights: Do not keep the unconditional weights.
        no_cond_weights: Do not keep the conditional weights.
        num_cond_embs: Number of conditions.

    Raises:
        ArgumentError: If numbers, sizes or keys do not fit together.
        ArgumentTypeError: If an argument is of another type.

    Example:
        >>> def assembly_fct(list_of_chunks):
        ...     (first,), (weight, bias), (weight2, bias2) = list_of_chunks
        ...     return [first, torch.cat([weight, weight2]), torch.cat([bias, bias2])]
        >>> hnet = StructuredHMLP([[3], [20, 5], [20]], [[[3]], [[10, 5], [10]]], [1, 2], 4, {"layers": [16]},
        ...                       assembly_fct, uncond_in_size=2, cond_in_size=0)
        >>> [tuple(w.shape) for w in hnet(torch.randn(7, 2), ret_format="stacked")]
        [(7, 3), (7, 20, 5), (7, 20)]
    """

    def __init__(
        self,
        target_shapes: Shapes,
        chunk_shapes: Sequence[Shapes],
        num_per_chunk: Sequence[int],
        chunk_emb_sizes: int | Sequence[int],
        hmlp_kwargs: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        assembly_fct: AssemblyFct,
        cond_chunk_embs: bool = False,
        uncond_in_size: int = 0,
        cond_in_size: int = 8,
        verbose: bool = True,
        no_uncond_weights: bool = False,
        no_cond_weights: bool = False,
        num_cond_embs: int = 1,
    ) -> None:
        super().__init__()
        target_shapes = read_target_shapes(target_shapes)
        check_sizes(uncond_in_size=uncond_in_size, cond_in_size=cond_in_size, num_cond_embs=num_cond_embs)
        shapes = [read_target_shapes(chunk, "chunk_shapes") for chunk in _read_list("chunk_shapes", chunk_shapes)]
        self._chunk_shapes = tuple(tuple(map(tuple, chunk)) for chunk in shapes)
        self._num_per_chunk = tuple(_read_list("num_per_chunk", num_per_chunk, len(shapes)))
        self._chunk_emb_sizes = tuple(
            [chunk_emb_sizes] * len(shapes)
            if isinstance(chunk_emb_sizes, int)
            else _read_list("chunk_emb_sizes", chunk_emb_sizes, len(shapes))
        )
        self._cond_chunk_embs = cond_chunk_embs
        self._check_chunks(uncond_in_size + cond_in_size)
        if cond_in_size == 0 and not cond_chunk_embs:
            num_cond_embs = no_embeddings(num_cond_embs)
        parts: list[HMLP] = []
        for i, given in enumerate(_read_kwargs(hmlp_kwargs, len(shapes))):
            kwargs: dict[str, Any] = {"verbose": False, **given}
            parts.append(
                HMLP(
                    shapes[i],
                    uncond_in_size + self._chunk_emb_sizes[i],
                    cond_in_size,
                    no_uncond_weights=no_uncond_weights,
                    no_cond_weights=no_cond_weights,
                    # Embeddings live in the first and are handed to the others.
                    num_cond_embs=num_cond_embs if i == 0 and cond_in_size else 0,
                    **kwargs,
                )
            )
        self._has_fc_out = self._has_linear_out = True
        self._assemble = Assembler(assembly_fct, [tuple(shape) for shape in target_shapes])
        self._extra_weight_keys = ("chunk_embs",) if cond_chunk_embs else ()
        self._compose(
            parts,
            [
                [replace(r, layer=r.layer if i == 0 else -1).with_extra(hnet_ind=i) for r in part.param_table]
                for i, part in enumerate(parts)
            ],
            self._chunk_records(num_cond_embs, not (no_cond_weights if cond_chunk_embs else no_uncond_weights)),
            target_shapes,
            num_known_conds=num_cond_embs,
            uncond_in_size=uncond_in_size,
            cond_in_size=cond_in_size,
            embedding_refs=range(num_cond_embs if cond_in_size else 0),
        )
        if verbose:
            made = sum(num * part.num_outputs for num, part in zip(self._num_per_chunk, parts, strict=True))
            _LOGGER.info(
                "Created StructuredHMLP: %d outputs from %d chunks (%d weights) of %d networks, %d weights.",
                num_weights(target_shapes),
                self.num_chunks,
                made,
                len(parts),
                self.num_params,
            )

    def _check_chunks(self, in_size: int) -> None:
        """Raise if numbers and sizes of chunks are impossible."""
        for i, (num, size) in enumerate(zip(self._num_per_chunk, self._chunk_emb_sizes, strict=True)):
            check_sizes(**{f"num_per_chunk[{i}]": num, f"chunk_emb_sizes[{i}]": size})
            if num == 0:
                raise ArgumentError(f"num_per_chunk[{i}]: is 0; pass at least 1 or leave the internal network out.")
            if size == 0 and num > 1:
                raise ArgumentError(
                    f"chunk_emb_sizes[{i}]: is 0, so that the {num} chunks of this network would be the same; pass at "
                    "least 1."
                )
            if size + in_size == 0:
                raise ArgumentError(
                    f"chunk_emb_sizes[{i}]: is 0, as are uncond_in_size and cond_in_size; the internal network needs "
                    "an input of some kind."
                )
        if self._cond_chunk_embs and not any(self._chunk_emb_sizes):
            raise ArgumentError("cond_chunk_embs: is True, but all chunk_emb_sizes are 0; pass a positive one.")
        if in_size == 0 and not self._cond_chunk_embs:
            raise ArgumentError(
                "uncond_in_size: and cond_in_size are both 0; a hypernetwork needs an input of some kind. To choose "
                "among sets of chunk embeddings, use cond_chunk_embs=True."
            )

    def _chunk_records(self, num_cond_embs: int, keep: bool) -> list[ParamRecord]:
        records: list[ParamRecord] = []
        for cond_id in range(num_cond_embs) if self._cond_chunk_embs else (-1,):
            for i, (num, size) in enumerate(zip(self._num_per_chunk, self._chunk_emb_sizes, strict=True)):
                if size:
                    extra = {"info": "chunk embeddings", "hnet_ind": i, "cond_id": cond_id}
                    conditional = self._cond_chunk_embs
                    records.append(ParamRecord((num, size), "embedding", 0, conditional, keep, extra, cond_id))
        return records

    # ------------------------------------------------------------------ arguments

    def _external_chunk_embs(self) -> str:
        return f"a list of tensors [batch, ...] of the shapes {self.chunk_emb_shapes}"

    def _read_extra(self, extra: Mapping[str, Any]) -> dict[str, int]:
        if "chunk_embs" not in extra:
            return {}
        given: Any = extra["chunk_embs"]
        shapes = self.chunk_emb_shapes
        if isinstance(given, Tensor) or not isinstance(given, Sequence) or len(given) != len(shapes):
            raise ArgumentError(
                f"weights['chunk_embs']: is {shown(given)}; pass a list of {len(shapes)} tensors [batch, ...] of the "
                f"shapes {shapes}."
            )
        sizes: dict[str, int] = {}
        for i, (tensor, shape) in enumerate(zip(given, shapes, strict=True)):
            name = f"weights['chunk_embs'][{i}]"
            check_input(name, tensor, None, dim=None)
            if list(tensor.shape[1:]) != shape:
                raise ArgumentError(f"{name}: has shape {list(tensor.shape)}; pass a tensor {['batch', *shape]}.")
            sizes[name] = tensor.shape[0]
        return sizes

    def _chunk_embs(self, inputs: HyperInputs, weights: list[Tensor]) -> list[Tensor | None]:
        """For each internal network its chunk embeddings ``[B or 1, num, size]``, None where it has none."""
        if "chunk_embs" in inputs.extra:
            found = list(inputs.extra["chunk_embs"])
        else:
            own, num = self._own_weights(weights), len(self.chunk_emb_shapes)
            ids = inputs.cond_id if self._cond_chunk_embs and inputs.cond_id is not None else (0,)
            sets = [own[i * num : (i + 1) * num] for i in ids]
            found = [e[0].unsqueeze(0) if len(ids) == 1 else torch.stack(e) for e in zip(*sets, strict=True)]
        rest = iter(found)
        return [next(rest) if size else None for size in self._chunk_emb_sizes]

    # ------------------------------------------------------------------ the map

    def _generate(self, inputs: HyperInputs, weights: list[Tensor]) -> list[Tensor]:
        cond = self._conditional_rows(inputs, weights)
        chunks: list[list[Tensor]] = []
        chunk_embs = self._chunk_embs(inputs, weights)
        for i, part in enumerate(self.internal_hnets):
            num = self._num_per_chunk[i]
            rows = chunk_rows(inputs.uncond_input, cond, chunk_embs[i], num)
            flat = part.call_rows(rows.flatten(0, 1), weights[self._slices[i]], inputs.condition)
            chunks += self._cut(i, flat.view(rows.shape[0], num, -1))
        return self._assemble(chunks)

    def _cut(self, i: int, flat: Tensor) -> list[list[Tensor]]:
        """The chunks of an internal network ``[B, num, size]`` as lists of tensors ``[B, *shape]``."""
        shapes = self._chunk_shapes[i]
        pieces = [flat] if len(shapes) == 1 else flat.split(split_sizes(shapes), dim=2)
        batch, num = flat.shape[:2]
        if num == 1:
            return [[piece.reshape(batch, *shape) for piece, shape in zip(pieces, shapes, strict=True)]]
        # One unbind per tensor: its backward stacks the gradients of all chunks at once.
        tensors = [piece.view(batch, num, *shape).unbind(1) for piece, shape in zip(pieces, shapes, strict=True)]
        return [list(chunk) for chunk in zip(*tensors, strict=True)]

    # ------------------------------------------------------------------ initialisation

    def init_parts(self, places: Sequence[Places]) -> list[HeadPart]:
        """See :meth:`bayeshnet.hnets.hyperfan_parts.Initialisable.init_parts`."""

        def assemble(tensors: Sequence[Tensor]) -> list[Tensor]:
            rest = iter(tensors)
            chunks: list[list[Tensor]] = []
            for shapes, num in zip(self._chunk_shapes, self._num_per_chunk, strict=True):
                # One head makes all chunks of a network, so that they share their marks.
                chunk = [next(rest) for _ in shapes]
                chunks += [list(chunk) for _ in range(num)]
            return self._assemble(chunks)

        kept = kept_records(self)
        shapes = [shape for chunk in self._chunk_shapes for shape in chunk]
        found = iter(trace_places(assemble, shapes, places, next((p.device for _, p in kept), None)))
        parts: list[HeadPart] = []
        for i, hnet in enumerate(self.internal_hnets):
            (part,) = hnet.init_parts([next(found) for _ in hnet.target_shapes])
            embs = [p for r, p in kept if r.extra.get("info") == "chunk embeddings" and r.extra["hnet_ind"] == i]
            parts.append(replace(part, chunk_emb_size=self._chunk_emb_sizes[i], chunk_embs=tuple(embs)))
        return parts

    # ------------------------------------------------------------------ interface

    @property
    def internal_hnets(self) -> list[HMLP]:
        """The internal networks, one for each entry of ``chunk_shapes``."""
        return cast("list[HMLP]", list(self._parts))

    @property
    def chunk_shapes(self) -> list[list[list[int]]]:
        """For each internal network the shapes of the tensors of a chunk."""
        return [[list(shape) for shape in chunk] for chunk in self._chunk_shapes]

    @property
    def num_per_chunk(self) -> list[int]:
        """How many chunks each internal network makes."""
        return list(self._num_per_chunk)

    @property
    def num_chunks(self) -> int:
        """Number of chunks that make up the output."""
        return sum(self._num_per_chunk)

    @property
    def assembly_fct(self) -> AssemblyFct:
        """The function that puts the chunks together."""
        return self._assemble.fct

    @property
    def chunk_emb_shapes(self) -> list[list[int]]:
        """Shape ``[num, size]`` of the chunk embeddings of each internal network that has some."""
        return [[n, size] for n, size in zip(self._num_per_chunk, self._chunk_emb_sizes, strict=True) if size]

    def get_chunk_embs(self, cond_id: int | None = None) -> list[Tensor]:
        """Return the chunk embeddings, one parameter for each of :attr:`chunk_emb_shapes`.

        Args:
            cond_id: The condition, for conditional chunk embeddings.

        Raises:
            ArgumentError: If ``cond_id`` is out of range, missing, or has no meaning.
            UsageError: If the network does not keep the chunk embeddings.

        Example:
            >>> hnet = StructuredHMLP([[3], [3]], [[[3]]], [2], 4, {}, lambda chunks: [c[0] for c in chunks])
            >>> [tuple(embs.shape) for embs in hnet.get_chunk_embs()]
            [(2, 4)]
        """
        return self._kept_chunk_embs("get_chunk_embs", len(self.chunk_emb_shapes), cond_id)


def _read_list(name: str, values: Any, length: int | None = None) -> list[Any]:
    """The values as a list, of this length."""
    if isinstance(values, (str, Mapping)) or not hasattr(values, "__iter__"):
        raise ArgumentTypeError(f"{name}: is {shown(values)}; pass a list.")
    listed = list(values)
    if length is not None and len(listed) != length:
        raise ArgumentError(f"{name}: has {len(listed)} entries; pass one for each of the {length} chunk_shapes.")
    if not listed:
        raise ArgumentError(f"{name}: is empty; describe at least one internal network.")
    return listed


def _read_kwargs(hmlp_kwargs: Any, length: int) -> list[dict[str, Any]]:
    """One dict per internal network, checked; what was passed is left as it is."""
    given = (
        [hmlp_kwargs] * length if isinstance(hmlp_kwargs, Mapping) else _read_list("hmlp_kwargs", hmlp_kwargs, length)
    )
    accepted = [name for name in inspect.signature(HMLP).parameters if name not in _OWN_ARGS]
    for kwargs in given:
        if not isinstance(kwargs, Mapping):
            raise ArgumentTypeError(f"hmlp_kwargs: is or has {shown(kwargs)}; pass a dict, or a list of dicts.")
        for key in kwargs:
            if key not in accepted:
                why = "is decided by StructuredHMLP, by its argument of this name" if key in _OWN_ARGS else "is unknown"
                raise ArgumentError(f"hmlp_kwargs: has the key {key!r}, which {why}; pass {', '.join(accepted)} only.")
    return [dict(kwargs) for kwargs in given]
