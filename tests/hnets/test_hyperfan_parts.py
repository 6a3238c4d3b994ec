"""Which piece of a hypernetwork makes which target."""

from __future__ import annotations

import math

import pytest
import torch

from bayeshnet.errors import ArgumentTypeError, UsageError
from bayeshnet.hnets import (
    HMLP,
    ChunkedHMLP,
    HContainer,
    HDeconv,
    HPerturbWrapper,
    HyperNet,
    StructuredHMLP,
)
from bayeshnet.hnets.hyperfan import hyperfan_init
from bayeshnet.hnets.hyperfan_chunks import ChunkedPart, DeconvPart
from bayeshnet.hnets.hyperfan_heads import HeadPart
from bayeshnet.hnets.hyperfan_parts import PlainPart, average, split_parts
from bayeshnet.mnets.param_table import ParamRecord


def test_wrappers_are_looked_through():
    hnet = HMLP([[3]], 2, 0)
    (part,) = split_parts(HPerturbWrapper(HPerturbWrapper(hnet)))
    assert part == HeadPart(hnet, ({0: 1.0},), 2, 0, hnet.activation_fn)


def halves(chunks):
    (w, b), (w2, b2), (v,) = chunks
    return [torch.cat([w, w2]), torch.cat([b, b2]), v]


def test_structured():
    hnet = StructuredHMLP(
        [[4, 5], [4], [3]], [[[2, 5], [2]], [[3]]], [2, 1], [6, 0], {}, halves, uncond_in_size=2, cond_in_size=3
    )
    one, two = split_parts(hnet)
    assert [one.hnet, two.hnet] == hnet.internal_hnets
    assert one.places == ({0: 1.0}, {1: 1.0})
    assert two.places == ({2: 1.0},)
    assert (one.chunk_emb_size, two.chunk_emb_size) == (6, 0)
    assert one.chunk_embs[0] is hnet.get_chunk_embs()[0]
    with torch.no_grad():
        one.chunk_embs[0].fill_(2.0)
    assert one.inputs(0.5, 0.25) == [(2, 0.5), (6, 4.0), (3, 0.25)]
    assert two.inputs(0.5, 0.25) == [(2, 0.5), (0, 1.0), (3, 0.25)]


def test_conditional_chunk_embeddings():
    hnet = StructuredHMLP(
        [[4, 5], [4], [3]],
        [[[2, 5], [2]], [[3]]],
        [2, 1],
        6,
        {},
        halves,
        cond_chunk_embs=True,
        cond_in_size=0,
        num_cond_embs=3,
    )
    one, two = split_parts(hnet)
    for c in range(3):
        assert one.chunk_embs[c] is hnet.get_chunk_embs(c)[0]
        assert two.chunk_embs[c] is hnet.get_chunk_embs(c)[1]


def test_a_head_for_several_targets():
    def assemble(chunks):
        return [chunks[0][0], torch.cat([chunk[0] for chunk in chunks[1:]])]

    hnet = StructuredHMLP([[2, 5], [6, 5]], [[[2, 5]]], [4], 6, {}, assemble, uncond_in_size=2, cond_in_size=0)
    (part,) = split_parts(hnet)
    assert part.places == ({0: 0.25, 1: 0.75},)
    assert average([1.0, 5.0], part.places[0]) == 4.0
    assert average([1.0, 5.0], {}) is None


def test_nested_containers():
    def inner_fct(hnets, uncond, cond):
        return [*hnets[0], torch.cat([uncond[0], cond[0]])]

    def outer_fct(hnets, uncond, cond):
        (a, b), (c, d) = hnets
        return [a, torch.cat([b, d[:1]]), d[1:], c, *uncond]

    inner = HContainer(
        [[2, 3], [5]],
        inner_fct,
        hnets=[HMLP([[2, 3]], num_cond_embs=4)],
        uncond_param_shapes=[[3]],
        cond_param_shapes=[[2]],
        num_cond_embs=4,
    )
    chunked = ChunkedHMLP([[2], [4]], 3, num_cond_embs=4)
    hnet = HContainer(
        [[2, 3], [6], [3], [2], [7, 7]],
        outer_fct,
        hnets=[inner, HPerturbWrapper(chunked, input_handler=lambda **kwargs: tuple(kwargs.values()))],
        uncond_param_shapes=[[7, 7]],
        num_cond_embs=4,
    )
    head, shared, own, chunks, plain = split_parts(hnet)
    assert isinstance(head, HeadPart)
    assert head.places == ({0: 1.0},)
    assert isinstance(shared, PlainPart)
    assert (len(shared.params), shared.places) == (1, {1: 1.0})
    assert isinstance(own, PlainPart)
    assert [tuple(p.shape) for p in own.params] == [(2,)] * 4
    assert len({id(p) for p in own.params}) == 4
    assert own.places == {1: 1.0}
    assert isinstance(chunks, ChunkedPart)
    assert chunks.hnet is chunked
    assert chunks.places == ({3: 1.0}, {1: 0.25, 2: 0.75})
    assert (plain.record.shape, plain.places) == ((7, 7), {4: 1.0})
    known = {id(p) for p in hnet.internal_params}
    assert all(id(p) in known for part in (shared, own, plain) for p in part.params)


def test_what_is_not_known():
    class Other(HyperNet):
        def __init__(self):
            super().__init__()
            self._describe([], [[3]])

        def _generate(self, inputs, weights):
            return torch.zeros(1, 3)

    with pytest.raises(ArgumentTypeError, match="hnet: is an Other; pass a network of bayeshnet.hnets, alone or"):
        split_parts(Other())
    (part,) = split_parts(HDeconv([[3]], (4, 4), num_layers=2, num_filters=[2]))
    assert isinstance(part, DeconvPart)
    with pytest.raises(UsageError, match="hyperfan_init: a plain HDeconv makes all its targets by the same kernels"):
        hyperfan_init(part.hnet)


def test_a_network_of_ones_own():
    """A class outside the package says what it consists of, and is initialised by the same functions."""

    class Own(HyperNet):
        def __init__(self):
            super().__init__()
            self._describe([ParamRecord((500,), "bias")], [[500]])
            self._create_params()

        def init_parts(self, places):
            return [PlainPart(self.param_table[0], (self.internal_params[0],), places[0])]

        def _generate(self, inputs, weights):
            return weights[0].unsqueeze(0)

    hnet = Own()
    hyperfan_init(hnet, b_val={"bias": 3.0}, b_var={"bias": 0.25})
    spread = math.sqrt(3 * (0.25 + 2 / 2))  # the variance of a bias by hyperfan is added
    assert 0.9 * spread < (hnet.internal_params[0] - 3.0).abs().max() <= spread
