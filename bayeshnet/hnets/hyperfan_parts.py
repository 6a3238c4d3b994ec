"""Taking a hypernetwork apart: which of its pieces makes which target.

An assembly function moves weights from the tensors that are produced to the targets. Run once on tensors filled with
numbers of their own, it shows where each of them goes; a tensor that serves several targets starts with the averages of
what they ask for, weighted by numbers of elements.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from bayeshnet.errors import ArgumentTypeError, UsageError
from bayeshnet.hnets.assembly import Assembler
from bayeshnet.hnets.chunked import ChunkedHyperNet
from bayeshnet.hnets.full import FullHyperNet
from bayeshnet.hnets.hnet_container import HContainer
from bayeshnet.hnets.hnet_interface import HyperNetInterface
from bayeshnet.hnets.hnet_perturbation_wrapper import HPerturbWrapper
from bayeshnet.hnets.hyperfan import counted_variance
from bayeshnet.hnets.mlp_hnet import HMLP
from bayeshnet.hnets.structured_mlp_hnet import StructuredHMLP
from bayeshnet.mnets.own_lists import kept_params
from bayeshnet.mnets.param_table import ParamRecord

__all__ = [
    "ChunkedPart",
    "HeadPart",
    "Part",
    "Places",
    "PlainPart",
    "average",
    "counted_variances",
    "split_parts",
    "trace_assembly",
]

Places: TypeAlias = Mapping[int, float]
"""The targets that a tensor goes to, by index, with the share of its elements; empty if it goes nowhere."""


@dataclass(frozen=True, slots=True)
class HeadPart:
    """A network with one head per tensor.

    Attributes:
        hnet: The network.
        places: For each of its tensors the targets.
        chunk_emb_size: How many entries of its input are a chunk embedding.
        chunk_embs: The chunk embeddings ``[num, chunk_emb_size]``, as far as they are kept.
    """

    hnet: HMLP
    places: tuple[Places, ...]
    chunk_emb_size: int = 0
    chunk_embs: tuple[Tensor, ...] = ()

    def inputs(self, uncond_var: float, cond_var: float) -> list[tuple[int, float]]:
        """Size and mean square of each part of the input."""
        embs = self.chunk_embs
        # The embeddings there are decide the scale, whatever it is that they were drawn from.
        power = torch.cat([e.detach().flatten() for e in embs]).square().mean().item() if embs else 1.0
        return [
            (self.hnet.uncond_in_size - self.chunk_emb_size, uncond_var),
            (self.chunk_emb_size, power),
            (self.hnet.cond_in_size, cond_var),
        ]


@dataclass(frozen=True, slots=True)
class ChunkedPart:
    """A chunked network.

    Attributes:
        hnet: The network.
        places: For each of its tensors the targets.
    """

    hnet: ChunkedHyperNet
    places: tuple[Places, ...]


@dataclass(frozen=True, slots=True)
class PlainPart:
    """A tensor that is a weight itself, once for all conditions or once for each.

    Attributes:
        record: What it is.
        params: The parameters, none if they are external.
        places: The targets.
    """

    record: ParamRecord
    params: tuple[Tensor, ...]
    places: Places


Part: TypeAlias = "HeadPart | ChunkedPart | PlainPart"


def counted_variances(parts: Sequence[Part], uncond_var: float, cond_var: float) -> tuple[float, float]:
    """The variances of the inputs; they count only where a part has such an input.

    Raises:
        TypeError: If there is such an input and its variance is no number.
        ValueError: If it is negative or not finite.
    """
    sizes = [0, 0]
    for part in parts:
        if not isinstance(part, PlainPart):
            own = part.hnet.uncond_in_size - (part.chunk_emb_size if isinstance(part, HeadPart) else 0)
            sizes = [max(sizes[0], own), max(sizes[1], part.hnet.cond_in_size)]
    return counted_variance("uncond_var", uncond_var, sizes[0]), counted_variance("cond_var", cond_var, sizes[1])


def average(values: Sequence[float], places: Places) -> float | None:
    """The mean of what the targets ask for, None if there are none.

    Example:
        >>> average([1.0, 5.0], {0: 0.5, 1: 0.5})
        3.0
    """
    return sum(share * values[i] for i, share in places.items()) if places else None


def split_parts(hnet: HyperNetInterface) -> list[Part]:
    """The pieces of a hypernetwork that are initialised one by one.

    Args:
        hnet: Any hypernetwork of this package, wrapped and nested in any way.

    Raises:
        TypeError: If there is another kind of hypernetwork in it.
        RuntimeError: If there is one for which there is no method, or an assembly function does more than move weights.

    Example:
        >>> [type(part).__name__ for part in split_parts(HMLP([[3, 2], [3]]))]
        ['HeadPart']
    """
    return list(_split(hnet, [{i: 1.0} for i in range(len(hnet.target_shapes))]))


def _split(hnet: HyperNetInterface, places: Sequence[Places]) -> Iterator[Part]:
    if isinstance(hnet, HPerturbWrapper):
        yield from _split(hnet.internal_hnet, places)
    elif isinstance(hnet, HMLP):
        yield HeadPart(hnet, tuple(places))
    elif isinstance(hnet, ChunkedHyperNet):
        yield ChunkedPart(hnet, tuple(places))
    elif isinstance(hnet, StructuredHMLP):
        yield from _split_structured(hnet, places)
    elif isinstance(hnet, HContainer):
        yield from _split_container(hnet, places)
    elif isinstance(hnet, FullHyperNet):
        raise UsageError(
            f"init: a plain {type(hnet).__name__} makes all its targets by the same kernels, so none of them can have "
            "a variance of its own. A ChunkedHDeconv can, by its chunk embeddings: see chunked_hyperfan_init."
        )
    else:
        raise ArgumentTypeError(
            f"hnet: is a {type(hnet).__name__}; the networks of bayeshnet.hnets can be initialised, alone or inside "
            "each other."
        )


def _split_structured(hnet: StructuredHMLP, places: Sequence[Places]) -> Iterator[Part]:
    put_together = Assembler(hnet.assembly_fct, [tuple(shape) for shape in hnet.target_shapes])

    def assemble(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        rest = iter(tensors)
        chunks: list[list[Tensor]] = []
        for shapes, num in zip(hnet.chunk_shapes, hnet.num_per_chunk, strict=True):
            # One head makes all chunks of a network, so that they share their marks.
            chunk = [next(rest) for _ in shapes]
            chunks += [list(chunk) for _ in range(num)]
        return put_together(chunks)

    made = trace_assembly(assemble, [shape for shapes in hnet.chunk_shapes for shape in shapes], _device(hnet))
    found = iter(_compose(made, places))
    embs = [(r, param) for r, param in _kept(hnet) if r.extra.get("info") == "chunk embeddings"]
    for i, part in enumerate(hnet.internal_hnets):
        yield HeadPart(
            part,
            tuple(next(found) for _ in part.target_shapes),
            part.uncond_in_size - hnet.uncond_in_size,
            tuple(param for record, param in embs if record.extra["hnet_ind"] == i),
        )


def _split_container(hnet: HContainer, places: Sequence[Places]) -> Iterator[Part]:
    plain = {kind: _plain_tensors(hnet, kind) for kind in ("uncond", "cond")}
    sizes = [len(part.target_shapes) for part in hnet.internal_hnets]

    put_together = Assembler(hnet.assembly_fct, [tuple(shape) for shape in hnet.target_shapes])

    def assemble(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
        rest = iter(tensors)
        made = [[next(rest) for _ in range(size)] for size in sizes]
        return put_together(made, *[[next(rest) for _ in plain[kind]] for kind in ("uncond", "cond")])

    shapes = [shape for part in hnet.internal_hnets for shape in part.target_shapes]
    shapes += [list(record.shape) for kind in ("uncond", "cond") for record, _ in plain[kind]]
    found = iter(_compose(trace_assembly(assemble, shapes, _device(hnet)), places))
    for part, size in zip(hnet.internal_hnets, sizes, strict=True):
        yield from _split(part, [next(found) for _ in range(size)])
    for kind in ("uncond", "cond"):
        for record, params in plain[kind]:
            yield PlainPart(record, params, next(found))


def _plain_tensors(hnet: HContainer, kind: str) -> list[tuple[ParamRecord, tuple[Tensor, ...]]]:
    """The plain weights of one condition (any), each with the parameters that it is in all conditions."""
    records = [record for record in hnet.param_table if record.extra.get("celement_type") == kind]
    params = [param for record, param in _kept(hnet) if record.extra.get("celement_type") == kind]
    num = len(records) // max(1, len({record.extra.get("celement_cind") for record in records}))
    return [(record, tuple(params[i::num])) for i, record in enumerate(records[:num])]


# ---------------------------------------------------------------------- where things go


def _kept(hnet: HyperNetInterface) -> list[tuple[ParamRecord, Tensor]]:
    """The records of what is kept, with the parameters."""
    return list(zip((r for r in hnet.param_table if r.internal), kept_params(hnet), strict=True))


def _device(hnet: HyperNetInterface) -> torch.device | None:
    return next((param.device for _, param in _kept(hnet)), None)


def _compose(made: Sequence[Mapping[int, int]], places: Sequence[Places]) -> list[Places]:
    """The final targets of each tensor, from those in between and theirs."""
    composed: list[Places] = []
    for counts in made:
        weights: dict[int, float] = {}
        for between, count in counts.items():
            for target, share in places[between].items():
                weights[target] = weights.get(target, 0.0) + count * share
        total = sum(weights.values())
        composed.append({target: weight / total for target, weight in weights.items()})
    return composed


def trace_assembly(
    assemble: Callable[[Sequence[Tensor]], Sequence[Tensor]],
    shapes: Sequence[Sequence[int]],
    device: torch.device | None = None,
) -> list[dict[int, int]]:
    """Find the targets that each tensor goes to.

    Args:
        assemble: Makes the targets from tensors of these shapes, behind a batch dimension of 1.
        shapes: Shapes of the tensors that are produced.
        device: Where to make them.

    Returns:
        For each tensor the number of its elements in each target, by the index of the target.

    Raises:
        RuntimeError: If a target has entries that are no entry of a tensor, nor constant.

    Example:
        >>> trace_assembly(lambda tensors: [torch.cat(tensors, dim=1)], [[2], [3]])
        [{0: 2}, {0: 3}]
    """
    # Two runs with different marks: what is the same in both is a constant that the function itself puts in. A private
    # generator: drawing marks does not move the user's.
    num = len(shapes)
    span = 2 ** max(14, (4 * num).bit_length())  # a power of 2: single precision has all of the marks exactly
    drawn = torch.randperm(span, generator=torch.Generator().manual_seed(0))[: 2 * num].float() / span + 1
    first, second = (half.sort().values.to(device) for half in drawn.split(num))
    runs = [
        assemble([mark.expand(1, *shape).clone() for mark, shape in zip(marks, shapes, strict=True)])
        for marks in (first, second)
    ]
    counts: list[dict[int, int]] = [{} for _ in shapes]
    for target, (one, two) in enumerate(zip(*runs, strict=True)):
        values, again = one.reshape(-1), two.reshape(-1)
        source = torch.searchsorted(first, values).clamp_(max=num - 1)
        moved = (first[source] == values) & (second[source] == again)
        if not bool((moved | (values == again)).all()):
            raise UsageError(
                f"init: the assembly function changes the weights of target {target} instead of moving them, so their "
                "variances cannot be set; initialise the networks inside (`internal_hnets`) one by one."
            )
        for i, count in enumerate(torch.bincount(source[moved], minlength=num).tolist()):
            if count:
                counts[i][target] = count
    return counts
