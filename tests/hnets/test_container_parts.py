"""Containers, wrappers and classes of others inside and around containers."""

from __future__ import annotations

import functools

import pytest
import torch

from bayeshnet.errors import ArgumentError
from bayeshnet.hnets import HContainer, HPerturbWrapper, StructuredHMLP

from .containers import SHAPES, build, chunks, each_of_one, flat, generated, noise
from .factories import everything
from .foreign import Foreign

# ---------------------------------------------------------------------- containers in containers


def nested():
    inner = build(hnets=[chunks()], cond_param_shapes=[[4]], target_shapes=SHAPES[2:])
    return build(target_shapes=[*SHAPES[2:], *SHAPES[:2], [2], [4]], hnets=[inner, generated()]), inner


def test_nested_containers():
    hnet, inner = nested()
    z, ids = noise(), [2, 0, 1, 1]
    out = hnet(z, cond_id=ids, ret_format="stacked")
    torch.testing.assert_close(out[:3], inner(z, cond_id=ids, ret_format="stacked"))
    torch.testing.assert_close(out[3:5], hnet.internal_hnets[1](z, cond_id=ids, ret_format="stacked"))
    assert hnet.num_known_conds == 3
    assert len(hnet.state_dict()) == len(hnet.param_shapes)
    # The keys of the outer container count.
    num, metas = len(inner.param_shapes), hnet.param_shapes_meta
    for mine, theirs in zip(metas[:num], inner.param_shapes_meta, strict=True):
        assert (mine["celement_type"], mine["celement_ind"]) == ("hnet", 0)
        assert "celement_cind" not in mine
        assert mine["celement_inner"] == {k: v for k, v in theirs.items() if k.startswith("celement_")}
        assert (mine["name"], mine["index"]) == (theirs["name"], theirs["index"])
    assert not any("celement_inner" in m for m in metas[num:])
    inner_kinds = [m["celement_inner"]["celement_type"] for m in metas[:num]]
    assert inner_kinds == ["hnet"] * (num - 4) + ["uncond"] + ["cond"] * 3
    # Three deep, each level is kept.
    third = HContainer([[4, 2], [2], [4], [3, 2], [3], [2], [4]], everything, [hnet], num_cond_embs=3)
    assert third.param_shapes_meta[0]["celement_inner"] == {
        "celement_type": "hnet",
        "celement_ind": 0,
        "celement_inner": {"celement_type": "hnet", "celement_ind": 0},
    }
    torch.testing.assert_close(flat(third, z, cond_id=ids), flat(hnet, z, cond_id=ids))


def test_weights_through_nested_containers():
    hnet, inner = nested()
    z = noise()
    embs = torch.randn(1, 3, 2, dtype=torch.float64)
    kept = chunks_of(inner)
    out = hnet(
        z,
        noise(1, 4),
        1,
        weights={"hnets": [{"hnets": [{"uncond_weights": [torch.zeros_like(p) for p in kept]}]}, None]},
        ret_format="stacked",
    )
    assert not out[0].any()
    assert out[3].any()
    full = [torch.randn(s, dtype=torch.float64) for s in hnet.param_shapes]
    num = len(inner.param_shapes)
    out = hnet(z, cond_id=1, weights=full, ret_format="stacked")
    torch.testing.assert_close(out[:3], inner(z, cond_id=1, weights=full[:num], ret_format="stacked"))
    with pytest.raises(ArgumentError, match="weights.'chunk_embs'.: excludes cond_id"):
        hnet(z, cond_id=1, weights={"hnets": [{"hnets": [{"chunk_embs": embs}]}, None]})


def chunks_of(container):
    return list(container.internal_hnets[0].unconditional_params)


# ---------------------------------------------------------------------- wrappers


def cut(start, size, **kwargs):
    return kwargs["uncond_input"][:, start : start + size], kwargs["cond_input"], kwargs["cond_id"]


def add(start, out, **kwargs):
    return out + 0.5 * kwargs["uncond_input"][:, start : start + out.shape[1]]


def test_independent_noise_for_each_part():
    parts = [
        HPerturbWrapper(
            generated(), input_handler=functools.partial(cut, 0, 2), output_handler=functools.partial(add, 2)
        ),
        HPerturbWrapper(
            chunks(uncond=3), input_handler=functools.partial(cut, 11, 3), output_handler=functools.partial(add, 14)
        ),
    ]
    hnet = build(hnets=parts)
    assert hnet.uncond_in_size is None
    z = noise(5, 2 + 9 + 3 + 8)
    out = flat(hnet, z, cond_id=1)
    one, two = (part.internal_hnet for part in parts)
    torch.testing.assert_close(out[:, :9], flat(one, z[:, :2], cond_id=1) + 0.5 * z[:, 2:11])
    torch.testing.assert_close(out[:, 9:17], flat(two, z[:, 11:14], cond_id=1) + 0.5 * z[:, 14:22])
    plain = list(hnet.internal_params)[-4:]
    torch.testing.assert_close(out[:, 17:], torch.cat([plain[0], plain[2]]).expand(5, 6))
    # Each block of noise moves its part only.
    moved = flat(hnet, z + torch.cat([torch.ones(11), torch.zeros(11)]), cond_id=1)
    assert not torch.isclose(moved[:, :9], out[:, :9]).any()
    assert torch.equal(moved[:, 9:], out[:, 9:])


@pytest.mark.parametrize("kind", ["shared", "independent"])
def test_a_wrapper_around(kind):
    inner = build()
    hnet = HPerturbWrapper(inner, sigma_noise=0.5, noise=kind, learn_sigma="per_weight").double()
    assert hnet.uncond_in_size == (23 if kind == "shared" else 25)
    z = noise(4, hnet.uncond_in_size)
    torch.testing.assert_close(flat(hnet, z, cond_id=2), flat(inner, z[:, :2], cond_id=2) + 0.5 * z[:, -23:])
    assert hnet.param_shapes_meta == inner.param_shapes_meta


def test_wrapped_parts_in_a_wrapped_container():
    part = HPerturbWrapper(generated(), sigma_noise=0.1)  # nine inputs
    hnet = HPerturbWrapper(build(hnets=[part], target_shapes=[*SHAPES[:2], [2], [4]]), sigma_noise=0.5).double()
    z = noise(4, hnet.num_outputs)
    expected = flat(part.internal_hnet, z[:, :2], cond_id=0) + 0.1 * z[:, :9] + 0.5 * z[:, :9]
    torch.testing.assert_close(flat(hnet, z, cond_id=0)[:, :9], expected)


# ---------------------------------------------------------------------- classes of others


def test_a_foreign_part():
    part = Foreign([[3, 2], [3]], 2, num_conds=3)
    hnet = build(hnets=[part, chunks()])
    z, ids = noise(), [2, 0, 1, 1]
    out = flat(hnet, z, cond_id=tuple(ids))
    torch.testing.assert_close(out[:, :9], flat(part, z, cond_id=ids))
    # It broadcasts nothing itself.
    torch.testing.assert_close(flat(hnet, z[:1], cond_id=ids), flat(hnet, z[:1].expand(4, 2), cond_id=ids))
    torch.testing.assert_close(flat(hnet, z, cond_id=torch.tensor(1)), flat(hnet, z, cond_id=[1] * 4))
    out.sum().backward()
    assert all(p.grad.any() for p in part.parameters())
    metas = hnet.param_shapes_meta[:4]
    assert [(m["celement_type"], m["celement_ind"]) for m in metas] == [("hnet", 0)] * 4
    assert [r.condition for r in hnet.param_table[:4]] == [0, 1, 2, -1]
    full = [torch.randn(s, dtype=torch.float64) for s in hnet.param_shapes]
    torch.testing.assert_close(
        flat(hnet, z, cond_id=1, weights=full)[:, :9], flat(part, z, cond_id=1, weights=full[:4])
    )


def test_a_foreign_part_in_wrappers_and_containers():
    part = Foreign([[3, 2], [3]], 2, num_conds=3)
    wrapped = HPerturbWrapper(part, 2, sigma_noise=0.5)
    hnet = HContainer([[3, 2], [3]], each_of_one, [HContainer([[3, 2], [3]], each_of_one, [wrapped])]).double()
    assert hnet.num_known_conds == 3
    z = noise(1, 9)
    out = flat(hnet, z, cond_id=[0, 2])
    torch.testing.assert_close(out, flat(part, z[:, :2].expand(2, 2), cond_id=[0, 2]) + 0.5 * z)
    # A container does not know the size of a foreign network's input, so a wrapper has to be told.
    bare = HContainer([[3, 2], [3]], each_of_one, [part]).double()
    with pytest.raises(ArgumentError, match="hnet_uncond_in_size: HContainer does not tell the size"):
        HPerturbWrapper(bare)
    around = HPerturbWrapper(bare, 2, sigma_noise=0.5).double()
    torch.testing.assert_close(flat(around, z, cond_id=1), flat(part, z[:, :2], cond_id=1) + 0.5 * z)


def test_parts_of_every_class():
    def layer(list_of_chunks):
        return list_of_chunks[0]

    structured = StructuredHMLP([[3]], [[[3]]], [1], 2, {}, layer, uncond_in_size=2, cond_in_size=4, num_cond_embs=3)
    shapes = [*SHAPES[:3], [3]]
    hnet = build(
        target_shapes=shapes,
        hnets=[generated(), chunks(), structured],
        uncond_param_shapes=None,
        cond_param_shapes=None,
    )
    z = noise()
    expected = [t for part in hnet.internal_hnets for t in part(z, cond_id=2, ret_format="stacked")]
    torch.testing.assert_close(hnet(z, cond_id=2, ret_format="stacked"), expected)
