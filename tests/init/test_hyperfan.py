"""hyperfan_init: what comes out has the variances of the formulas, whatever the network is made of."""

from __future__ import annotations

import math

import pytest
import torch

from bayeshnet.errors import ArgumentError, UsageError
from bayeshnet.hnets import (
    HMLP,
    ChunkedHDeconv,
    ChunkedHMLP,
    HContainer,
    HDeconv,
    HPerturbWrapper,
    StructuredHMLP,
)
from bayeshnet.init import hyperfan_init
from bayeshnet.mnets import MLP
from tests.init.measure import assert_mean, over_inits, powers

SHAPES = [[8, 6], [8], [4, 8]]
VARS = {"in": [2 / 12, 1.0, 2 / 8], "out": [2 / 8, 2 * (1 - 6 / 8), 2 / 4]}
VARS["harmonic"] = [2 / (1 / a + 1 / b) for a, b in zip(VARS["in"], VARS["out"], strict=True)]


@pytest.mark.parametrize("method", ["in", "out", "harmonic"])
@pytest.mark.parametrize("use_xavier", [False, True])
def test_output_variances(method, use_xavier, dtype):
    hnet = HMLP(
        SHAPES,
        20,
        12,
        (40, 30),
        activation_fn=None if use_xavier else torch.relu,  # the assumption of the one and of the other
        num_cond_embs=1,
        verbose=False,
    ).to(dtype)

    def one():
        torch.nn.init.normal_(hnet.get_cond_in_emb(0), 0.0, math.sqrt(0.5))
        hyperfan_init(hnet, method, use_xavier, uncond_var=2.0, cond_var=0.5)
        return powers(hnet(math.sqrt(2) * torch.randn(10, 20, dtype=dtype), cond_id=0, ret_format="stacked"))

    # Xavier has half the gain of Kaiming.
    assert_mean(over_inits(one, 1000), [var * (0.5 if use_xavier else 1) for var in VARS[method]])


def test_output_variances_with_batch_norm():
    hnet = HMLP(SHAPES, 20, 0, (40, 30), use_batch_norm=True, verbose=False)

    def one():
        hyperfan_init(hnet, uncond_var=9.0)
        return powers(hnet(3 * torch.randn(100, 20), ret_format="stacked"))

    assert_mean(over_inits(one, 1000), VARS["in"])


def test_the_same_as_the_method():
    hnet = HMLP(SHAPES, 4, 3)
    options = {"method": "out", "use_xavier": True, "uncond_var": 0.5, "cond_var": 2.0, "b_var": {"bias": 0.1}}
    torch.manual_seed(0)
    hnet.apply_hyperfan_init(**options)
    before = [p.clone() for p in hnet.internal_params]
    wrapped = HPerturbWrapper(HPerturbWrapper(hnet, input_handler=lambda **kwargs: tuple(kwargs.values())), 0)
    torch.manual_seed(0)
    hyperfan_init(wrapped, **options)
    assert all(torch.equal(p, q) for p, q in zip(before, hnet.internal_params, strict=True))


def halves(chunks):
    (w, b), (w2, b2), (v,) = chunks
    return [torch.cat([w, w2], dim=1), torch.cat([b, b2]), v]


@pytest.mark.parametrize("use_bias", [True, False])
def test_structured_networks_have_the_fans_of_the_targets(use_bias):
    """A chunk of a matrix has half its columns: the fan-in of the chunk is not that of the target."""
    hnet = StructuredHMLP(
        SHAPES,
        [[[8, 3], [4]], [[4, 8]]],
        [2, 1],
        [12, 0],
        {"layers": (30,), "verbose": False, "use_bias": use_bias},
        halves,
        uncond_in_size=20,
        cond_in_size=0,
        verbose=False,
    )

    def one():
        torch.nn.init.normal_(hnet.get_chunk_embs()[0], 0.0, 2.0)
        hyperfan_init(hnet, uncond_var=0.25)
        return powers(hnet(0.5 * torch.randn(10, 20), ret_format="stacked"))

    assert_mean(over_inits(one, 1000), VARS["in"])


def test_a_head_for_several_targets_gets_averages():
    def assemble(chunks):
        return [chunks[0][0], torch.cat([chunk[0] for chunk in chunks[1:]], dim=1)]

    hnet = StructuredHMLP(
        [[4, 5], [4, 15]], [[[4, 5]]], [4], 16, {"layers": ()}, assemble, uncond_in_size=16, cond_in_size=0
    )

    def one():
        hyperfan_init(hnet)
        return [hnet(torch.randn(10, 16), ret_format="flattened").square().mean().item()]

    # Both come out with the same variance: a quarter of the elements asks for 2 / 5, the rest for 2 / 15.
    assert_mean(over_inits(one, 600), [0.25 * 2 / 5 + 0.75 * 2 / 15])


def test_containers():
    net = MLP(6, 4, [8], no_weights=True, use_batch_norm=True, verbose=False)

    def assemble(hnets, uncond, cond):
        ((w,), (b, lower)) = hnets
        return [*uncond, w, b, torch.cat([lower, cond[0]]), cond[1]]

    hnet = HContainer(
        net.param_shapes,
        assemble,
        hnets=[HMLP([[8, 6]], 16, 0, (30,), verbose=False), HMLP([[8], [2, 8]], 16, 0, (30, 30), verbose=False)],
        uncond_param_shapes=[[8], [8]],
        cond_param_shapes=[[2, 8], [4]],
        num_cond_embs=3,
        verbose=False,
    )

    def one():
        hyperfan_init(hnet, mnet=net)
        outputs = [hnet(torch.randn(1, 16), cond_id=i, ret_format="stacked") for i in range(3)]
        assert all(bool((out[0] == 1).all()) and not out[1].any() for out in outputs)
        return [sum(power) / 3 for power in zip(*(powers(out[2:]) for out in outputs), strict=True)]

    # A half of the last matrix is a plain weight: all its entries have the target's fan-in.
    assert_mean(over_inits(one, 800), [2 / 12, 1.0, 2 / 16, 1.0], largest_error=0.15)


def test_nested_containers():
    inner = HContainer([[8, 6]], lambda hnets, _, __: hnets[0], hnets=[HMLP([[8, 6]], 16, 0, (30,))])
    hnet = HContainer([[16, 6]], lambda hnets, uncond, _: [torch.cat([hnets[0][0], uncond[0]])], [inner], [[8, 6]])

    def one():
        hyperfan_init(hnet, "out")
        out = hnet(torch.randn(10, 16), ret_format="stacked")[0]
        return powers([out[:, :8], out[:, 8:]])

    assert_mean(over_inits(one, 800), [2 / 16, 2 / 16])  # the fan-out is 16, not 8


def test_overrides_of_plain_weights():
    hnet = HContainer([[50, 60], [50]], lambda _, uncond, __: uncond, uncond_param_shapes=[[50, 60], [50]])
    hyperfan_init(hnet, b_val=[0.5, None], b_var={"bias": 0.0}, w_var={"weight": 0.0})
    weight, bias = hnet.internal_params
    # Plain weights have no rows: what is said of those is not for them.
    assert abs(weight.mean() - 0.5) < 4 * math.sqrt(2 / 120 / 3000)
    assert abs(weight.var() / (2 / 120) - 1) < 4 * math.sqrt(0.8 / 3000)
    assert abs(bias.var() - 1) < 4 * math.sqrt(0.8 / 50)


def test_overrides_of_structured_networks():
    hnet = StructuredHMLP(
        SHAPES, [[[8, 3], [4]], [[4, 8]]], [2, 1], [12, 0], {"layers": ()}, halves, uncond_in_size=20, cond_in_size=0
    )
    hyperfan_init(hnet, w_val=[1.0, None, None], w_var={"weight": 0.0}, b_val={"bias": 7.0})
    first, second = hnet.internal_hnets
    weight, bias = first.head()
    assert bool((weight[:24] == 1).all())
    assert bool((bias[24:] == 7).all())
    assert not bias[:24].any()
    assert not second.head()[0].any()


def test_what_has_no_heads():
    with pytest.raises(
        UsageError, match="hyperfan_init: all targets of a ChunkedHMLP come from one head.*use chunked_"
    ):
        hyperfan_init(ChunkedHMLP([[3]], 2))
    with pytest.raises(UsageError, match="hyperfan_init: all targets of a ChunkedHDeconv come from one head"):
        hyperfan_init(HPerturbWrapper(ChunkedHDeconv([[30]], (4, 4), 2, 0, num_layers=2, num_filters=[2]), 0))
    with pytest.raises(UsageError, match="a plain HDeconv makes all its targets by the same kernels"):
        hyperfan_init(HDeconv([[3]], (4, 4), num_layers=2, num_filters=[2]))


def test_external_weights():
    with pytest.raises(UsageError, match="hyperfan_init: this HMLP does not keep its unconditional weights"):
        hyperfan_init(HMLP([[3]], no_uncond_weights=True))
    hnet = HContainer([[3]], lambda _, uncond, __: uncond, uncond_param_shapes=[[3]], no_uncond_weights=True)
    with pytest.raises(UsageError, match="hyperfan_init: the container does not keep its plain weights"):
        hyperfan_init(hnet)
    hnet = HContainer([[3]], lambda _, __, cond: cond, cond_param_shapes=[[3]], no_cond_weights=True, num_cond_embs=2)
    hyperfan_init(hnet)  # conditional weights are the caller's, as embeddings are


def test_errors_come_before_the_first_draw():
    good, bad = HMLP([[3]], 2, 0), HMLP([[3]], 2, 0, use_spectral_norm=True)
    hnet = HContainer([[3], [3]], lambda hnets, _, __: [*hnets[0], *hnets[1]], hnets=[good, bad])
    before = [p.clone() for p in good.internal_params]
    with pytest.raises(UsageError, match="use_spectral_norm=False"):
        hyperfan_init(hnet)
    with pytest.raises(ArgumentError, match="method: is 'all', a str; pass"):
        hyperfan_init(good, "all")
    with pytest.raises(ArgumentError, match="uncond_var: is -1.0; pass"):
        hyperfan_init(good, uncond_var=-1.0)
    assert all(torch.equal(p, q) for p, q in zip(before, good.internal_params, strict=True))
