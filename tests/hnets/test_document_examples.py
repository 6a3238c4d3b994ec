"""The examples of the API document, as they stand there, with their numbers checked."""

from __future__ import annotations

import pytest
import torch

from bayeshnet.hnets import HMLP, HContainer, StructuredHMLP

SHAPES = [[3], [3], [10, 5], [10], [20, 5], [20]]

# ---------------------------------------------------------------------- StructuredHMLP


def test_first_chunking_of_the_document():
    """Only the two equal tensors share a network."""

    def assembly_fct(list_of_chunks):
        assert len(list_of_chunks) == 4
        ret = []
        for chunk in list_of_chunks:
            ret.extend(chunk)
        return ret

    hnet = StructuredHMLP(
        [[3], [3], [10, 5], [10], [20, 5], [20]],
        [[[3]], [[10, 5], [10]], [[20, 5], [20]]],
        [2, 1, 1],
        8,
        {"layers": [10, 10]},
        assembly_fct,
        cond_chunk_embs=True,
        uncond_in_size=0,
        cond_in_size=0,
        verbose=True,
        no_uncond_weights=False,
        no_cond_weights=False,
        num_cond_embs=1,
    )
    assert hnet.num_chunks == 4
    assert hnet.chunk_emb_shapes == [[2, 8], [1, 8], [1, 8]]
    vectors, layer, wide = hnet.internal_hnets
    one, two, three = hnet.get_chunk_embs(cond_id=0)
    out = hnet(cond_id=0)
    assert [list(t.shape) for t in out] == SHAPES
    expected = [*vectors(one[:1]), *vectors(one[1:]), *layer(two), *wide(three)]
    torch.testing.assert_close(out, expected)
    assert not torch.allclose(out[0], out[1])


def test_second_chunking_of_the_document():
    """The last layer is twice the one before, so that all layers come from one network."""

    def assembly_fct(list_of_chunks):
        assert len(list_of_chunks) == 5
        ret = [*list_of_chunks[0], *list_of_chunks[1], *list_of_chunks[2]]
        for t, tensor in enumerate(list_of_chunks[3]):
            ret.append(torch.cat([tensor, list_of_chunks[4][t]], dim=0))
        return ret

    hnet = StructuredHMLP(
        [[3], [3], [10, 5], [10], [20, 5], [20]],
        [[[3]], [[10, 5], [10]]],
        [2, 3],
        8,
        {"layers": [10, 10]},
        assembly_fct,
        cond_chunk_embs=True,
        uncond_in_size=0,
        cond_in_size=0,
        verbose=True,
        no_uncond_weights=False,
        no_cond_weights=False,
        num_cond_embs=1,
    )
    vectors, layers = hnet.internal_hnets
    one, two = hnet.get_chunk_embs(cond_id=0)
    assert (one.shape, two.shape) == ((2, 8), (3, 8))
    out = hnet(cond_id=0)
    made = [layers(two[j : j + 1]) for j in range(3)]
    torch.testing.assert_close(out[:4], [*vectors(one[:1]), *vectors(one[1:]), *made[0]])
    torch.testing.assert_close(out[4], torch.cat([made[1][0], made[2][0]]))
    torch.testing.assert_close(out[5], torch.cat([made[1][1], made[2][1]]))


@pytest.mark.parametrize("conditions", [1, 3])
def test_soft_sharing_by_templates(conditions):
    """Each layer is a linear combination of the templates, with its chunk embedding as coefficients."""
    s = [6, 4, 3, 3]

    def assembly_fct(list_of_chunks):
        assert len(list_of_chunks) == 3
        return [list_of_chunks[0][0], list_of_chunks[1][0], list_of_chunks[2][0]]

    hnet = StructuredHMLP(
        [s, s, s],
        [[s]],
        [3],
        2,
        {"layers": [], "use_bias": False},
        assembly_fct,
        cond_chunk_embs=True,
        uncond_in_size=0,
        cond_in_size=0,
        verbose=True,
        no_uncond_weights=False,
        no_cond_weights=False,
        num_cond_embs=conditions,
    )
    assert hnet.param_shapes == [[6 * 4 * 9, 2]] + [[3, 2]] * conditions
    templates = hnet.internal_params[0].view(*s, 2)
    for cond_id in range(conditions):
        (coefficients,) = hnet.get_chunk_embs(cond_id)
        for weight, alpha in zip(hnet(cond_id=cond_id), coefficients, strict=True):
            torch.testing.assert_close(weight, alpha[0] * templates[..., 0] + alpha[1] * templates[..., 1])
    # The gradient of a template is the sum over the layers of coefficient times the layer's gradient.
    out = hnet(cond_id=0)
    directions = [torch.randn(s) for _ in out]
    sum((w * d).sum() for w, d in zip(out, directions, strict=True)).backward()
    alphas = hnet.get_chunk_embs(0)[0].detach()
    expected = sum(d[..., None] * alpha for d, alpha in zip(directions, alphas, strict=True))
    torch.testing.assert_close(hnet.internal_params[0].grad.view(*s, 2), expected)


# ---------------------------------------------------------------------- HContainer

TARGETS = [[10, 5], [5], [5], [5], [5, 5]]


def test_first_scenario_of_the_document():
    """The first layer is generated, batch norm shared, the output layer specific to the condition."""
    fl_hnet = HMLP([[10, 5], [5]], num_cond_embs=5)

    def assembly_fct(list_of_hnet_tensors, uncond_tensors, cond_tensors):
        assert len(list_of_hnet_tensors) == 1
        return list_of_hnet_tensors[0] + uncond_tensors + cond_tensors

    hnet = HContainer(
        [[10, 5], [5], [5], [5], [5, 5]],
        assembly_fct,
        hnets=[fl_hnet],
        uncond_param_shapes=[[5], [5]],
        cond_param_shapes=[[5, 5]],
        uncond_param_names=["bn_scale", "bn_shift"],
        cond_param_names=["weight"],
        num_cond_embs=5,
    )
    num = len(fl_hnet.param_shapes)
    assert hnet.param_shapes == [*fl_hnet.param_shapes, [5], [5], *[[5, 5]] * 5]
    metas = hnet.param_shapes_meta
    assert [m["celement_type"] for m in metas] == ["hnet"] * num + ["uncond"] * 2 + ["cond"] * 5
    assert [m["name"] for m in metas[num:]] == ["bn_scale", "bn_shift"] + ["weight"] * 5
    assert [m["celement_cind"] for m in metas[num + 2 :]] == [0, 1, 2, 3, 4]
    assert [m["layer"] for m in metas] == [m["layer"] for m in fl_hnet.param_shapes_meta] + [-1] * 7
    assert (hnet.num_known_conds, len(hnet.conditional_params), hnet.internal_hnets) == (5, 10, [fl_hnet])
    plain = list(hnet.internal_params)[num:]
    for cond_id in range(5):
        out = hnet(cond_id=cond_id)
        torch.testing.assert_close(out, [*fl_hnet(cond_id=cond_id), *plain[:2], plain[2 + cond_id]])
        assert [list(t.shape) for t in out] == TARGETS
    # A step on condition 3 reaches the generated layer's network, the shared tensors and the output layer of 3.
    sum(t.square().sum() for t in hnet(cond_id=3)).backward()
    touched = [i for i, p in enumerate(plain) if p.grad is not None and p.grad.any()]
    assert touched == [0, 1, 2 + 3]
    assert fl_hnet.get_cond_in_emb(3).grad.any()
    batch = hnet(cond_id=[4, 0], ret_format="stacked")
    torch.testing.assert_close(batch[4], torch.stack([plain[6], plain[2]]))
    assert [list(t.shape) for t in batch] == [[2, *shape] for shape in TARGETS]


def test_second_scenario_of_the_document():
    """Two networks: for the first layer and for the output layer; batch norm is shared."""
    fl_hnet = HMLP([[10, 5], [5]], num_cond_embs=5)
    ll_hnet = HMLP([[5, 5]], num_cond_embs=5)

    def assembly_fct(list_of_hnet_tensors, uncond_tensors, cond_tensors):
        assert len(list_of_hnet_tensors) == 2
        return list_of_hnet_tensors[0] + uncond_tensors + list_of_hnet_tensors[1]

    hnet = HContainer(
        [[10, 5], [5], [5], [5], [5, 5]],
        assembly_fct,
        hnets=[fl_hnet, ll_hnet],
        uncond_param_shapes=[[5], [5]],
        uncond_param_names=["bn_scale", "bn_shift"],
        num_cond_embs=5,
    )
    nums = [len(part.param_shapes) for part in (fl_hnet, ll_hnet)]
    assert [m.get("celement_ind") for m in hnet.param_shapes_meta] == [0] * nums[0] + [1] * nums[1] + [None] * 2
    assert len(hnet.conditional_params) == 10
    shared = list(hnet.internal_params)[-2:]
    for cond_id in range(5):
        expected = [*fl_hnet(cond_id=cond_id), *shared, *ll_hnet(cond_id=cond_id)]
        torch.testing.assert_close(hnet(cond_id=cond_id), expected)
    embeddings = torch.randn(3, 8)
    out = hnet(cond_input=embeddings, ret_format="stacked")
    torch.testing.assert_close(out[0], fl_hnet(cond_input=embeddings, ret_format="stacked")[0])
    torch.testing.assert_close(out[4], ll_hnet(cond_input=embeddings, ret_format="stacked")[0])
    torch.testing.assert_close(out[2], shared[0].expand(3, 5))


def test_the_example_for_assembly_functions():
    """Networks with outputs [3] and [3], [10, 5]; one conditional tensor, no shared ones."""
    seen = []

    def assembly_fct(list_of_hnet_tensors, uncond_tensors, cond_tensors):
        seen.append([[[list(t.shape) for t in part] for part in list_of_hnet_tensors], uncond_tensors])
        return [*list_of_hnet_tensors[0], *list_of_hnet_tensors[1], *cond_tensors]

    parts = [HMLP([[3]], num_cond_embs=2), HMLP([[3], [10, 5]], num_cond_embs=2)]
    hnet = HContainer([[3], [3], [10, 5], [5]], assembly_fct, hnets=parts, cond_param_shapes=[[5]], num_cond_embs=2)
    for cond_id in (1, [0, 1]):  # one sample at a time, whatever the batch
        hnet(cond_id=cond_id)
        assert seen.pop() == [[[[3]], [[3], [10, 5]]], []]
    assert hnet.param_shapes_meta[-1]["name"] == "bias"  # the default for one dimension
