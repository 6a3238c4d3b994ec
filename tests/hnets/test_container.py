"""Containers: what is in them comes out, their table, and what they refuse."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from bayeshnet.errors import ArgumentError, ArgumentTypeError, UsageError
from bayeshnet.hnets import HMLP, HContainer, HPerturbWrapper

from .containers import SHAPES, build, chunks, each_of_one, flat, generated, noise
from .factories import everything

# ---------------------------------------------------------------------- the map


def test_sample_by_sample():
    hnet, z, ids = build(), noise(), [2, 0, 1, 1]
    first, second = hnet.internal_hnets
    plain = list(hnet.internal_params)[-4:]
    for b, sample in enumerate(hnet(z, cond_id=ids, ret_format="sequential")):
        u, i = z[b : b + 1], ids[b]
        torch.testing.assert_close(sample, [*first(u, cond_id=i), *second(u, cond_id=i), plain[0], plain[1 + i]])
    # A condition for all samples is the same as that condition for each.
    torch.testing.assert_close(flat(hnet, z, cond_id=1), flat(hnet, z, cond_id=[1] * 4))


def test_a_batch_of_one_from_one_part_serves_all_samples():
    hnet = build(
        hnets=[generated(uncond=2, cond=0), chunks(uncond=0)], cond_param_shapes=None, target_shapes=SHAPES[:4]
    )
    z = noise()
    out = hnet(z, cond_id=1, ret_format="stacked")
    torch.testing.assert_close(out[0], hnet.internal_hnets[0](z, ret_format="stacked")[0])
    torch.testing.assert_close(out[2], hnet.internal_hnets[1](cond_id=1)[0].expand(4, 4, 2))
    torch.testing.assert_close(out[3], hnet.internal_params[-1].expand(4, 2))
    out = hnet(z[:1], cond_id=[0, 1, 2], ret_format="stacked")
    assert [t.shape[0] for t in out] == [3] * 4
    torch.testing.assert_close(out[0][2], hnet.internal_hnets[0](z[:1])[0])


def test_a_condition_given_twice():
    """The id is for the plain weights and for networks without conditional input, the input for the others."""
    hnet = build(hnets=[generated(), generated(cond=0)], target_shapes=[*SHAPES[:2] * 2, *SHAPES[3:]])
    z, cond = noise(3), noise(3, 4)
    out = hnet(z, cond, [0, 2, 2], ret_format="stacked")
    torch.testing.assert_close(out[0], hnet.internal_hnets[0](z, cond, ret_format="stacked")[0])
    torch.testing.assert_close(out[2], hnet.internal_hnets[1](z, ret_format="stacked")[0])
    plain = list(hnet.internal_params)[-3:]
    torch.testing.assert_close(out[-1], torch.stack([plain[0], plain[2], plain[2]]))
    torch.testing.assert_close(flat(hnet, z, cond, 1), flat(hnet, z, cond, [1, 1, 1]))
    torch.testing.assert_close(flat(hnet, z[:1], cond[:1], [0, 1]), flat(hnet, z[:1].expand(2, 2), cond[:1], [0, 1]))
    with pytest.raises(ArgumentError, match=r"batch sizes do not match \(.*cond_id has 2.*\)"):
        hnet(z, cond, [0, 1])


def test_plain_weights_alone():
    hnet = HContainer([[2], [3]], everything, uncond_param_shapes=[[2]], cond_param_shapes=[[3]], num_cond_embs=2)
    assert (hnet.internal_hnets, hnet.num_known_conds, hnet.has_bias) == ([], 2, False)
    shared, zero, one = hnet.internal_params
    torch.testing.assert_close(
        hnet(cond_id=[1, 0], ret_format="stacked"), [shared.expand(2, 2), torch.stack([one, zero])]
    )
    hnet = HContainer([[2]], everything, uncond_param_shapes=[[2]])
    torch.testing.assert_close(hnet(), list(hnet.internal_params))


def test_plain_weights_start_small():
    hnet = HContainer([[300, 100]] * 2, everything, uncond_param_shapes=[[300, 100]], cond_param_shapes=[[300, 100]])
    for values in (p.detach() for p in hnet.internal_params):
        # 30 000 draws: standard errors 0.0058 and 0.0041 of the standard deviation
        assert abs(float(values.mean())) < 4 * 0.0058 * 0.02
        assert abs(float(values.std()) / 0.02 - 1) < 4 * 0.0041


def test_condition_reaches_batch_norm_and_modes_reach_dropout():
    hnet = build(hnets=[generated(use_batch_norm=True), chunks(dropout_rate=0.5)])
    assert len(hnet.batchnorm_layers) == 1
    z = noise(8)
    assert not torch.equal(flat(hnet, z, cond_id=1), flat(hnet, z, cond_id=1))
    hnet.batchnorm_layers[0].checkpoint_stats()
    hnet(3 * z, cond_id=1, condition=1)
    hnet.eval()
    assert torch.equal(flat(hnet, z, cond_id=1, condition=0), flat(hnet, z, cond_id=1, condition=0))
    assert not torch.allclose(flat(hnet, z, cond_id=1, condition=0), flat(hnet, z, cond_id=1, condition=1))


# ---------------------------------------------------------------------- weights from outside


def test_weights_for_the_networks_inside():
    hnet, z = build(cond_param_shapes=None, target_shapes=SHAPES[:4]), noise()
    first, second = hnet.internal_hnets
    embs, cond = torch.randn(4, 3, 2, dtype=torch.float64), noise(4, 4)
    weights = {"hnets": [None, {"chunk_embs": embs}]}
    out = hnet(z, cond, weights=weights, ret_format="stacked")
    torch.testing.assert_close(out[0], first(z, cond, ret_format="stacked")[0])
    torch.testing.assert_close(out[2], second(z, weights={"chunk_embs": embs}, ret_format="stacked")[0])
    assert weights.keys() == {"hnets"}
    assert weights["hnets"][0] is None
    # They are added to the lists for the whole, and win over them.
    lists = {
        "uncond_weights": [torch.randn(s, dtype=torch.float64) for s in hnet.unconditional_param_shapes],
        "cond_weights": [torch.randn(s, dtype=torch.float64) for s in hnet.conditional_param_shapes],
    }
    out = hnet(z, cond, weights={**lists, **weights}, ret_format="stacked")
    own = {"uncond_weights": lists["uncond_weights"][:4], "cond_weights": lists["cond_weights"][:3]}
    torch.testing.assert_close(out[0], first(z, cond, weights=own, ret_format="stacked")[0])
    theirs = {"uncond_weights": lists["uncond_weights"][4:8], "chunk_embs": embs}
    torch.testing.assert_close(out[2], second(z, weights=theirs, ret_format="stacked")[0])
    torch.testing.assert_close(out[3], lists["uncond_weights"][8].expand(4, 2))
    other = [torch.randn(s, dtype=torch.float64) for s in first.param_shapes[3:]]
    given = {**lists, "hnets": [{"uncond_weights": other}, {"chunk_embs": embs}]}
    out = hnet(z, cond, weights=given, ret_format="stacked")
    own["uncond_weights"] = other
    torch.testing.assert_close(out[0], first(z, cond, weights=own, ret_format="stacked")[0])


def test_a_tuple_of_dicts_and_empty_dicts():
    hnet, z = build(), noise()
    expected = flat(hnet, z, cond_id=1)
    for given in ((None, None), [{}, {}], [None, {}]):
        torch.testing.assert_close(flat(hnet, z, cond_id=1, weights={"hnets": given}), expected)


# ---------------------------------------------------------------------- table and attributes


def test_the_table():
    hnet = build(uncond_param_shapes=[[2, 1], [], [2]], target_shapes=[*SHAPES[:3], [2, 1], [], [2], [4]])
    metas = hnet.param_shapes_meta
    parts = hnet.internal_hnets
    start = sum(len(part.param_shapes) for part in parts)
    assert [m["celement_ind"] for m in metas[:start]] == [i for i, part in enumerate(parts) for _ in part.param_shapes]
    assert [m["name"] for m in metas[start:]] == ["weight", "bias", "bias", "bias", "bias", "bias"]
    assert [m["celement_type"] for m in metas[start:]] == ["uncond"] * 3 + ["cond"] * 3
    assert [m["celement_cind"] for m in metas[start + 3 :]] == [0, 1, 2]
    assert [r.condition for r in hnet.param_table[start:]] == [-1, -1, -1, 0, 1, 2]
    first = len(parts[0].param_shapes)
    assert [m["layer"] for m in metas] == [m["layer"] for m in parts[0].param_shapes_meta] + [-1] * (len(metas) - first)
    assert metas[start - 1]["info"] == "chunk embeddings"
    assert hnet.assembly_fct is everything
    assert hnet.uncond_in_size == 2
    assert hnet.cond_in_size == 4
    with pytest.raises(UsageError, match="get_cond_in_emb: HContainer has no conditional input of its own"):
        hnet.get_cond_in_emb(0)


def test_flags():
    assert [getattr(build(), name) for name in ("has_fc_out", "mask_fc_out", "has_linear_out")] == [False] * 3
    bare = HContainer(SHAPES[:2], each_of_one, [generated()])
    assert [getattr(bare, name) for name in ("has_fc_out", "mask_fc_out", "has_linear_out")] == [True, False, True]
    assert bare.has_bias
    assert not HContainer(SHAPES[:2], each_of_one, [generated(use_bias=False)]).has_bias


def test_conditions_of_the_whole():
    noise_only = HMLP(SHAPES[:2], 2, 0)
    assert HContainer(SHAPES[:2], each_of_one, [noise_only]).num_known_conds == 0
    assert HContainer(SHAPES[:2], each_of_one, [generated()]).num_known_conds == 3
    # A network that knows no conditions goes with those that do.
    hnet = build(hnets=[noise_only, generated()], target_shapes=[*SHAPES[:2] * 2, *SHAPES[3:]])
    assert hnet.num_known_conds == 3
    z = noise(2)
    torch.testing.assert_close(flat(hnet, z, cond_id=[0, 1])[:, :9], flat(noise_only, z))


def test_it_logs_at_info_if_verbose(caplog, capsys):
    parts = [generated(), chunks()]
    with caplog.at_level(logging.INFO):
        build(hnets=parts)
        build(hnets=parts, verbose=False)
    message = "Created HContainer: 23 outputs from 2 hypernetworks, 1 shared and 1 conditional plain tensors."
    assert [r.message for r in caplog.records] == [message]
    assert capsys.readouterr() == ("", "")


# ---------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"hnets": generated()}, ArgumentTypeError, r"hnets: is one hypernetwork; pass a list, \[hnet\]"),
        ({"hnets": 3}, ArgumentTypeError, "hnets: is an int; pass a list of hypernetworks"),
        ({"hnets": [generated(), nn.Linear(2, 2)]}, ArgumentTypeError, r"hnets\[1\]: is a Linear; pass an nn.Module"),
        ({"hnets": [generated()] * 2}, ArgumentError, "hnets: an instance stands in it twice"),
        (
            {"hnets": None, "uncond_param_shapes": None, "cond_param_shapes": None},
            ArgumentError,
            "hnets: is empty, as are uncond_param_shapes and cond_param_shapes",
        ),
        ({"num_cond_embs": 4}, ArgumentError, r"num_cond_embs: is 4, and hnets know \[3, 3\] conditions"),
        ({"num_cond_embs": -1}, ArgumentError, "num_cond_embs: is -1; pass 0 or more"),
        ({"uncond_param_names": ["weight"] * 2}, ArgumentError, "uncond_param_names: has 2 entries; .* the 1 shapes"),
        ({"cond_param_names": ["weigth"]}, ArgumentError, "cond_param_names: has the entry 'weigth'; pass names from"),
        (
            {"uncond_param_names": "weight"},
            ArgumentTypeError,
            "uncond_param_names: is 'weight', a str; pass a list of names",
        ),
        ({"cond_param_names": 3}, ArgumentTypeError, "cond_param_names: is 3, an int; pass a list of names"),
        (
            {"uncond_param_shapes": None, "uncond_param_names": ["weight"]},
            ArgumentError,
            r"uncond_param_names: is \['weight'\] without uncond_param_shapes; pass both",
        ),
        ({"uncond_param_shapes": [2]}, ArgumentTypeError, "uncond_param_shapes: is .*; pass a list of shapes"),
        ({"cond_param_shapes": [[-1]]}, ArgumentError, r"cond_param_shapes: is \[\[-1\]\], with negative sizes; pass"),
        ({"assembly_fct": None}, ArgumentTypeError, "assembly_fct: is a NoneType; pass a function"),
        ({"target_shapes": []}, ArgumentError, "target_shapes: is empty"),
        (
            {"hnets": [generated(), chunks(uncond=3)]},
            ArgumentError,
            r"hnets: take unconditional inputs of the sizes \['2', '3'\], .* an input_handler that cuts it",
        ),
    ],
)
def test_refused_configurations(kwargs, error, message):
    with pytest.raises(error, match=message):
        build(**kwargs)


@pytest.mark.parametrize(
    "around",
    [HPerturbWrapper, lambda h: HContainer(SHAPES[:2], each_of_one, [h])],
    ids=["wrapper", "container"],
)
def test_an_instance_twice_in_disguise(around):
    part = generated()
    with pytest.raises(ArgumentError, match="hnets: an instance stands in it twice, .* counted twice"):
        build(hnets=[part, around(part)])


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({}, ArgumentError, r"cond_id: is required \(0..2\); it selects the plain weights of a condition"),
        ({"cond_input": noise(4, 4)}, ArgumentError, r"cond_id: is required \(0..2\)"),
        ({"cond_id": 3}, ArgumentError, "cond_id: 3 does not exist"),
        ({"cond_id": -1}, ArgumentError, "cond_id: -1 does not exist"),
        ({"cond_id": [0, 1]}, ArgumentError, r"batch sizes do not match \(uncond_input has 4, cond_id has 2\)"),
        ({"cond_id": 1, "uncond_input": None}, ArgumentError, r"uncond_input: is required; pass a tensor \[batch, 2\]"),
        ({"cond_id": 1, "uncond_input": noise()[0]}, ArgumentError, r"uncond_input\[None\]"),
        (
            {"cond_id": 1, "weights": {"hnets": 3}},
            ArgumentError,
            r"weights\['hnets'\]: is .*; pass a list of 2 dicts \(or None\)",
        ),
        (
            {"cond_id": 1, "weights": {"hnets": [None]}},
            ArgumentError,
            r"weights\['hnets'\]: is .*; pass a list of 2 dicts",
        ),
        ({"cond_id": 1, "weights": {"hnets": {}}}, ArgumentError, r"weights\['hnets'\]: is .*; pass a list of 2 dicts"),
        (
            {"cond_id": 1, "weights": {"hnets": [None, 3]}},
            ArgumentTypeError,
            r"weights\['hnets'\]\[1\]: is an int; pass a dict or None",
        ),
        ({"cond_id": 1, "weights": {"hnets": [{"a": 3}, None]}}, ArgumentError, r"weights: .* keys \['a'\]; pass"),
        ({"cond_id": 1, "weights": {"chunk_embs": 3}}, ArgumentError, r"at least one of .*'hnets'\]"),
    ],
)
def test_refused_calls(kwargs, error, message):
    with pytest.raises(error, match=message):
        build()(**{"uncond_input": noise(), **kwargs})


def test_missing_weights_are_named():
    hnet = build(no_uncond_weights=True)
    with pytest.raises(ArgumentError, match=r"does not keep param_\d+ \[2\]; pass them as weights\['uncond_weights'\]"):
        hnet(noise(), cond_id=1)
    hnet = build(no_cond_weights=True)
    with pytest.raises(ArgumentError, match=r"does not keep .*\[4\].*; pass them as weights\['cond_weights'\]"):
        hnet(noise(), cond_id=1)
    hnet = build(hnets=[generated(no_uncond_weights=True), chunks()])
    with pytest.raises(ArgumentError, match=r"does not keep 1.weight \[5, 6\], 1.bias \[5\], 3.weight"):
        hnet(noise(), cond_id=1)


def test_no_condition_where_a_network_needs_one():
    hnet = build(cond_param_shapes=None, target_shapes=SHAPES[:4])
    with pytest.raises(ArgumentError, match="cond_input: a condition is required"):
        hnet(noise())
    with pytest.raises(ArgumentError, match="cond_id: is None, but the chunk embeddings are conditional"):
        hnet(noise(), noise(4, 4))
    with pytest.raises(ArgumentError, match="assembly_fct: returned 5 tensors .*; let it return the 1 target_shapes"):
        build(target_shapes=[[3]])(noise(), cond_id=1)
