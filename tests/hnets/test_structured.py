"""Structured hypernetworks: chunk by chunk they are what their networks make, and what they refuse."""

from __future__ import annotations

import copy
import logging

import numpy as np
import pytest
import torch
from torch import nn

from bayeshnet.errors import ArgumentError, ArgumentTypeError, BayeshnetWarning, UsageError
from bayeshnet.hnets import HMLP, HPerturbWrapper, StructuredHMLP

from .factories import double, each

SHAPES = [[3], [3], [10, 5], [10], [20, 5], [20]]


def flat(hnet, *args, **kwargs):
    return hnet(*args, **kwargs, ret_format="flattened")


def noise(batch=4):
    return torch.randn(batch, 2, dtype=torch.float64)


def build(**kwargs):
    """Two kinds of chunks: a vector, twice, and a layer, three times."""
    options = {
        "target_shapes": SHAPES,
        "chunk_shapes": [[[3]], [[10, 5], [10]]],
        "num_per_chunk": [2, 3],
        "chunk_emb_sizes": [4, 2],
        "hmlp_kwargs": [{"layers": [6], "activation_fn": torch.tanh}, {"layers": []}],
        "assembly_fct": double,
        **kwargs,
    }
    return StructuredHMLP(**options).double()


def by_hand(hnet, uncond, cond, chunk_embs):
    """One call of an internal network for each chunk of each sample; ``chunk_embs[b][i]`` are those of network i."""
    samples = []
    for b, embs in enumerate(chunk_embs):
        chunks = []
        for part, num, own in zip(hnet.internal_hnets, hnet.num_per_chunk, embs, strict=True):
            for j in range(num):
                pieces = [*([] if uncond is None else [uncond[b]]), *([] if own is None else [own[j]])]
                u = torch.cat(pieces)[None] if pieces else None
                chunks.append(part(u, None if cond is None else cond[b][None]))
        samples.append(torch.cat([t.flatten() for t in hnet.assembly_fct(chunks)]))
    return torch.stack(samples)


# ---------------------------------------------------------------------- the map


@pytest.mark.parametrize(("uncond", "cond"), [(2, 0), (0, 3), (2, 3)])
@pytest.mark.parametrize("options", [{}, {"use_spectral_norm": True}, {"use_batch_norm": True}, {"dropout_rate": 0.5}])
def test_chunk_by_chunk(uncond, cond, options):
    kwargs = [{"layers": [6], **options}, {"layers": [3], "use_bias": False}]
    hnet = build(hmlp_kwargs=kwargs, uncond_in_size=uncond, cond_in_size=cond, num_cond_embs=3 if cond else 1).eval()
    z, ids = noise() if uncond else None, [2, 0, 1, 1]
    embs = [hnet.get_chunk_embs()] * 4
    if cond:
        inputs = [hnet.get_cond_in_emb(i) for i in ids]
        torch.testing.assert_close(flat(hnet, z, cond_id=ids), by_hand(hnet, z, inputs, embs))
        inputs = torch.randn(4, 3, dtype=torch.float64)
        torch.testing.assert_close(flat(hnet, z, inputs), by_hand(hnet, z, inputs, embs))
    else:
        torch.testing.assert_close(flat(hnet, z), by_hand(hnet, z, None, embs))


@pytest.mark.parametrize(("uncond", "cond"), [(0, 0), (2, 0), (0, 3), (2, 3)])
def test_chunk_by_chunk_with_conditional_chunk_embeddings(uncond, cond):
    hnet = build(cond_chunk_embs=True, uncond_in_size=uncond, cond_in_size=cond, num_cond_embs=3)
    z, ids = noise() if uncond else None, [2, 0, 1, 1]
    inputs = [hnet.get_cond_in_emb(i) for i in ids] if cond else None
    embs = [hnet.get_chunk_embs(i) for i in ids]
    torch.testing.assert_close(flat(hnet, z, cond_id=ids), by_hand(hnet, z, inputs, embs))
    given = [torch.randn(4, *shape, dtype=torch.float64) for shape in hnet.chunk_emb_shapes]
    inputs = torch.randn(4, 3, dtype=torch.float64) if cond else None
    out = flat(hnet, z, inputs, weights={"chunk_embs": given})
    torch.testing.assert_close(out, by_hand(hnet, z, inputs, list(zip(*given, strict=True))))
    # A batch of 1 is broadcast, one of the lists included.
    mixed = [given[0][:1], given[1]]
    out = flat(hnet, z, inputs, weights={"chunk_embs": mixed})
    torch.testing.assert_close(out, by_hand(hnet, z, inputs, [(given[0][0], e) for e in given[1]]))


def test_networks_without_chunk_embeddings():
    hnet = build(
        target_shapes=[[3], [3], [10, 5], [10]],
        num_per_chunk=[2, 1],
        chunk_emb_sizes=[4, 0],
        assembly_fct=each,
        uncond_in_size=2,
        cond_in_size=3,
        num_cond_embs=2,
    )
    assert hnet.chunk_emb_shapes == [[2, 4]]
    assert [meta["hnet_ind"] for meta in hnet.param_shapes_meta if meta.get("info")] == [0]
    z = noise()
    (embs,) = hnet.get_chunk_embs()
    expected = by_hand(hnet, z, [hnet.get_cond_in_emb(1)] * 4, [(embs, None)] * 4)
    torch.testing.assert_close(flat(hnet, z, cond_id=1), expected)
    # None at all: as good as one full hypernetwork.
    hnet = build(
        target_shapes=[[10, 5], [10]],
        chunk_shapes=[[[10, 5], [10]]],
        num_per_chunk=[1],
        chunk_emb_sizes=0,
        hmlp_kwargs={},
        assembly_fct=each,
    )
    assert hnet.get_chunk_embs() == []
    torch.testing.assert_close(flat(hnet, cond_id=0), flat(hnet.internal_hnets[0], cond_id=0))


def test_all_chunks_of_a_kind_go_through_in_one_call():
    hnet = build(uncond_in_size=2, cond_in_size=0)
    rows = []
    for part in hnet.internal_hnets:
        inner = part.generate_rows
        part.generate_rows = lambda x, *args, inner=inner: rows.append(x.shape[0]) or inner(x, *args)
    hnet(noise(7))
    assert rows == [2 * 7, 3 * 7]


def test_batch_norm_sees_all_samples_and_chunks():
    hnet = build(hmlp_kwargs={"layers": [6], "use_batch_norm": True}, uncond_in_size=2, cond_in_size=0)
    assert len(hnet.batchnorm_layers) == 2
    inner, z = copy.deepcopy(hnet.internal_hnets), noise()
    hnet(z)
    for part, embs in zip(inner, hnet.get_chunk_embs(), strict=True):
        part(torch.cat([torch.cat([u.expand(len(embs), 2), embs], dim=1) for u in z]))
    for ours, theirs in zip(hnet.batchnorm_layers, (part.batchnorm_layers[0] for part in inner), strict=True):
        torch.testing.assert_close(ours.get_stats(), theirs.get_stats())


@pytest.mark.parametrize("noise_kind", ["shared", "independent"])
def test_wrapped(noise_kind):
    inner = build(uncond_in_size=2, cond_in_size=0)
    hnet = HPerturbWrapper(inner, sigma_noise=0.5, noise=noise_kind).double()
    z = torch.randn(3, hnet.uncond_in_size, dtype=torch.float64)
    torch.testing.assert_close(flat(hnet, z), flat(inner, z[:, :2]) + 0.5 * z[:, -inner.num_outputs :])
    assert [list(t.shape) for t in hnet(z, ret_format="stacked")] == [[3, *shape] for shape in SHAPES]


# ---------------------------------------------------------------------- table and attributes


def test_the_table():
    hnet = build(cond_chunk_embs=True, cond_in_size=3, num_cond_embs=2)
    first, second = hnet.internal_hnets
    assert all(isinstance(part, HMLP) for part in (first, second))
    assert (first.num_known_conds, second.num_known_conds) == (2, 0)
    assert (first.uncond_in_size, second.uncond_in_size) == (4, 2)
    assert hnet.param_shapes == [*first.param_shapes, *second.param_shapes, *[[2, 4], [3, 2]] * 2]
    metas = hnet.param_shapes_meta
    assert [m["hnet_ind"] for m in metas] == [0] * 6 + [1] * 2 + [0, 1, 0, 1]
    assert [m["layer"] for m in metas] == [0, 0, 1, 1, 3, 3, -1, -1, 0, 0, 0, 0]
    assert [m["cond_id"] for m in metas[8:]] == [0, 0, 1, 1]
    assert all(m["info"] == "chunk embeddings" for m in metas[8:])
    assert not any("info" in m for m in metas[:8])
    shared = build(cond_in_size=3, num_cond_embs=2)
    assert [m["cond_id"] for m in shared.param_shapes_meta if "cond_id" in m] == [-1, -1]
    assert (hnet.has_fc_out, hnet.mask_fc_out, hnet.has_linear_out) == (True, False, True)
    assert hnet.chunk_shapes == [[[3]], [[10, 5], [10]]]
    assert (hnet.num_per_chunk, hnet.num_chunks, hnet.assembly_fct) == ([2, 3], 5, double)
    assert (hnet.uncond_in_size, hnet.cond_in_size, hnet.num_known_conds) == (0, 3, 2)
    assert hnet.has_bias
    assert not build(hmlp_kwargs=[{}, {"use_bias": False}]).has_bias


def test_get_chunk_embs():
    hnet = build(cond_chunk_embs=True, num_cond_embs=2)
    assert [p is q for p, q in zip(hnet.get_chunk_embs(1), hnet.internal_params[-2:], strict=True)] == [True, True]
    assert all(isinstance(p, nn.Parameter) for p in hnet.get_chunk_embs(0))
    shared = build()
    assert [p is q for p, q in zip(shared.get_chunk_embs(), shared.internal_params[-2:], strict=True)] == [True, True]


def test_arguments_are_left_as_they_are():
    kwargs = {"layers": [3]}
    build(hmlp_kwargs=kwargs)
    assert kwargs == {"layers": [3]}
    listed = [{"layers": [3]}, {"use_bias": False}]
    hnet = build(hmlp_kwargs=listed, num_per_chunk=np.array([2, 3]), chunk_emb_sizes=(4, 2))
    assert listed == [{"layers": [3]}, {"use_bias": False}]
    hnet.num_per_chunk.append(9)
    hnet.chunk_shapes[0].append([9])
    assert (hnet.num_chunks, hnet.chunk_shapes[0]) == (5, [[3]])


def test_it_logs_at_info_if_verbose(caplog, capsys):
    with caplog.at_level(logging.INFO):
        hnet = build()
        build(verbose=False)
        build(hmlp_kwargs={"verbose": True}, verbose=False)
    assert [r.message for r in caplog.records] == [
        f"Created StructuredHMLP: 186 outputs from 5 chunks (186 weights) of 2 networks, {hnet.num_params} weights.",
        "Created HMLP: 3 outputs, 11703 unconditional and 8 conditional weights.",
        "Created HMLP: 60 outputs, 17260 unconditional and 0 conditional weights.",
    ]
    assert capsys.readouterr() == ("", "")
    with pytest.warns(BayeshnetWarning, match="num_cond_embs: is 3, but cond_in_size is 0, so no embeddings are kept"):
        build(uncond_in_size=2, cond_in_size=0, num_cond_embs=3)


# ---------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"chunk_shapes": [[3], [10, 5]]}, ArgumentTypeError, r"chunk_shapes: is \[3\], a list; pass a list of shapes"),
        ({"chunk_shapes": []}, ArgumentError, "chunk_shapes: is empty; describe at least one internal network"),
        ({"chunk_shapes": 3}, ArgumentTypeError, "chunk_shapes: is 3, an int; pass a list"),
        (
            {"chunk_shapes": [[[3]]]},
            ArgumentError,
            "num_per_chunk: has 2 entries; pass one for each of the 1 chunk_shapes",
        ),
        ({"num_per_chunk": 2}, ArgumentTypeError, "num_per_chunk: is 2, an int; pass a list"),
        (
            {"num_per_chunk": [2]},
            ArgumentError,
            "num_per_chunk: has 1 entries; pass one for each of the 2 chunk_shapes",
        ),
        ({"num_per_chunk": [2, 0]}, ArgumentError, r"num_per_chunk\[1\]: is 0; pass at least 1"),
        ({"num_per_chunk": [2, 1.5]}, ArgumentTypeError, r"num_per_chunk\[1\]: is .*; pass an int"),
        ({"chunk_emb_sizes": [4]}, ArgumentError, "chunk_emb_sizes: has 1 entries; pass one for each of the 2"),
        (
            {"chunk_emb_sizes": 0},
            ArgumentError,
            r"chunk_emb_sizes\[0\]: is 0, so that the 2 chunks .* would be the same",
        ),
        ({"chunk_emb_sizes": [4, -1]}, ArgumentError, r"chunk_emb_sizes\[1\]: is -1; pass 0 or more"),
        ({"chunk_emb_sizes": 2.5}, ArgumentTypeError, "chunk_emb_sizes: is 2.5, a float; pass a list"),
        ({"hmlp_kwargs": None}, ArgumentTypeError, "hmlp_kwargs: is None, a NoneType; pass a list"),
        ({"hmlp_kwargs": [{}]}, ArgumentError, "hmlp_kwargs: has 1 entries; pass one for each of the 2"),
        (
            {"hmlp_kwargs": [{}, 3]},
            ArgumentTypeError,
            "hmlp_kwargs: is or has 3, an int; pass a dict, or a list of dicts",
        ),
        *(
            (
                {"hmlp_kwargs": {key: 1}},
                ArgumentError,
                f"hmlp_kwargs: has the key '{key}', which is decided by StructuredHMLP, by its argument",
            )
            for key in ("uncond_in_size", "cond_in_size", "no_uncond_weights", "no_cond_weights", "num_cond_embs")
        ),
        (
            {"hmlp_kwargs": {"layrs": 3}},
            ArgumentError,
            "hmlp_kwargs: has the key 'layrs', which is unknown; pass layers, ",
        ),
        ({"assembly_fct": None}, ArgumentTypeError, "assembly_fct: is a NoneType; pass a function"),
        (
            {"cond_in_size": 0},
            ArgumentError,
            "uncond_in_size: and cond_in_size are both 0; .* use cond_chunk_embs=True",
        ),
        ({"uncond_in_size": -1}, ArgumentError, "uncond_in_size: is -1; pass 0 or more"),
        (
            {"cond_chunk_embs": True, "chunk_emb_sizes": 0, "num_per_chunk": [1, 1]},
            ArgumentError,
            "cond_chunk_embs: is True, but all chunk_emb_sizes are 0",
        ),
        (
            {"cond_chunk_embs": True, "chunk_emb_sizes": [4, 0], "num_per_chunk": [1, 1], "cond_in_size": 0},
            ArgumentError,
            r"chunk_emb_sizes\[1\]: is 0, as are uncond_in_size and cond_in_size; .* needs an input of some kind",
        ),
    ],
)
def test_refused_configurations(kwargs, error, message):
    with pytest.raises(error, match=message):
        build(**kwargs)


COND, EMBS = torch.ones(4, 3, dtype=torch.float64), [torch.ones(4, 2, 4), torch.ones(4, 3, 2)]


@pytest.mark.parametrize(
    ("kwargs", "embs", "error", "message"),
    [
        (
            {},
            None,
            ArgumentError,
            r"chunk embeddings are conditional; pass cond_id \(0..2\) or weights",
        ),
        (
            {"cond_input": COND},
            None,
            ArgumentError,
            r"a list of tensors \[batch, ...\] of the shapes \[\[2, 4\], \[3, 2\]\]",
        ),
        ({"cond_id": 3}, None, ArgumentError, "cond_id: 3 does not exist"),
        ({"cond_id": 1}, EMBS, ArgumentError, "weights.'chunk_embs'.: excludes cond_id"),
        ({}, EMBS, ArgumentError, "cond_input: a condition is required"),
        ({"cond_input": COND}, EMBS[0], ArgumentError, "weights.'chunk_embs'.: is .*; pass a list of 2 tensors"),
        ({"cond_input": COND}, EMBS[:1], ArgumentError, "weights.'chunk_embs'.: is .*; pass a list of 2 tensors"),
        (
            {"cond_input": COND},
            [EMBS[0], EMBS[1][0]],
            ArgumentError,
            r"weights\['chunk_embs'\]\[1\]: has shape \[3, 2\]; pass a tensor \['batch', 3, 2\]",
        ),
        ({"cond_input": COND}, [EMBS[0], 3], ArgumentTypeError, r"'chunk_embs'\]\[1\]: is an int; pass a tensor"),
        (
            {"cond_input": COND},
            [EMBS[0], EMBS[1][:2]],
            ArgumentError,
            r"do not match \(weights\['chunk_embs'\]\[0\] has 4",
        ),
    ],
)
def test_refused_chunk_embeddings(kwargs, embs, error, message):
    hnet = build(cond_chunk_embs=True, uncond_in_size=2, cond_in_size=3, num_cond_embs=3)
    with pytest.raises(error, match=message):
        hnet(noise(), **kwargs, weights=None if embs is None else {"chunk_embs": embs})


def test_other_refusals():
    shared = build(num_cond_embs=3)
    with pytest.raises(ArgumentError, match=r"weights: is a dict with the keys \['chunk_embs'\]; pass"):
        shared(cond_id=0, weights={"chunk_embs": EMBS})
    with pytest.raises(ArgumentError, match="cond_id: is .*, but all conditions share the chunk embeddings"):
        shared.get_chunk_embs(0)
    conditional = build(cond_chunk_embs=True, num_cond_embs=3)
    with pytest.raises(ArgumentError, match="cond_id: is None, but each condition has chunk embeddings of its own"):
        conditional.get_chunk_embs()
    with pytest.raises(ArgumentError, match="cond_id: 5 does not exist"):
        conditional.get_chunk_embs(5)
    with pytest.raises(ArgumentError, match="cond_id: has 2 conditions; pass one"):
        conditional.get_chunk_embs([0, 1])
    with pytest.raises(UsageError, match="get_chunk_embs: with no_uncond_weights=True .* kept by the caller"):
        build(no_uncond_weights=True).get_chunk_embs()
    with pytest.raises(UsageError, match="get_chunk_embs: with no_cond_weights=True"):
        build(no_cond_weights=True, cond_chunk_embs=True).get_chunk_embs(0)
    with pytest.raises(ArgumentError, match=r"assembly_fct: returned 8 tensors .* the 6 target_shapes"):
        build(assembly_fct=each)(cond_id=0)
