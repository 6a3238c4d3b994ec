"""Which piece of a hypernetwork makes which target."""

from __future__ import annotations

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
from bayeshnet.hnets.hyperfan_parts import ChunkedPart, HeadPart, PlainPart, average, split_parts, trace_assembly


def test_tracing_an_assembly():
    def assemble(tensors):
        a, b, c, _ = tensors
        first = torch.cat([a, b.flatten(1), torch.zeros(1, 3)], dim=1)  # constants come from nowhere
        return [first, c.transpose(1, 2), torch.cat([a, a], dim=1)]

    assert trace_assembly(assemble, [[2], [2, 2], [3, 4], [5]]) == [{0: 2, 2: 4}, {0: 4}, {1: 12}, {}]


def test_constants_do_not_look_like_weights():
    assert trace_assembly(lambda t: [torch.cat([t[0], torch.linspace(0, 2, 100)[None]], dim=1)], [[2]]) == [{0: 2}]


def test_an_assembly_that_computes():
    for assemble in (
        lambda t: [2 * t[0]],
        lambda t: [t[0] + t[1]],
        lambda t: [(t[0] + t[1]) / 2],
        lambda t: [t[0] - t[1], t[0]],
    ):
        with pytest.raises(UsageError, match="changes the weights of target 0 instead of moving them"):
            trace_assembly(assemble, [[2], [2]])


def test_tracing_leaves_the_generator_alone():
    state = torch.get_rng_state()
    trace_assembly(lambda t: t, [[2], [2]])
    assert torch.equal(torch.get_rng_state(), state)


def test_wrappers_are_looked_through():
    hnet = HMLP([[3]], 2, 0)
    (part,) = split_parts(HPerturbWrapper(HPerturbWrapper(hnet)))
    assert part == HeadPart(hnet, ({0: 1.0},))


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

    with pytest.raises(ArgumentTypeError, match="hnet: is a Other; the networks of bayeshnet.hnets can be"):
        split_parts(Other())
    with pytest.raises(UsageError, match="a plain HDeconv makes all its targets by the same kernels"):
        split_parts(HDeconv([[3]], (4, 4), num_layers=2, num_filters=[2]))
