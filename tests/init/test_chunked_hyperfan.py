"""chunked_hyperfan_init: variances per chunk, with fully-connected and deconvolutional networks inside."""

from __future__ import annotations

import math
import re
import warnings

import pytest
import torch

from bayeshnet.errors import ArgumentError, ArgumentTypeError, BayeshnetWarning, UsageError
from bayeshnet.hnets import (
    HMLP,
    ChunkedHDeconv,
    ChunkedHMLP,
    HContainer,
    HPerturbWrapper,
    StructuredHMLP,
)
from bayeshnet.init import chunked_hyperfan_init
from bayeshnet.mnets import MLP
from tests.hnets.reference import quiet, reference
from tests.init.measure import assert_mean, over_inits, powers

# Chunks of 40: the matrix [40, 4], the bias, the matrix [2, 40] are 4, 1 and 2 of them.
SHAPES = [[40, 4], [40], [2, 40]]
BIAS = 1 / (3 * 4)


@pytest.mark.parametrize("method", ["in", "out", "harmonic"])
@pytest.mark.parametrize("use_xavier", [False, True])
def test_output_variances(method, use_xavier, dtype):
    hnet = ChunkedHMLP(
        SHAPES,
        40,
        chunk_emb_size=24,
        uncond_in_size=10,
        cond_in_size=6,
        layers=(40, 30),
        activation_fn=None if use_xavier else torch.relu,
        verbose=False,
    ).to(dtype)

    def one():
        torch.nn.init.normal_(hnet.get_cond_in_emb(0), 0.0, math.sqrt(0.01))
        chunked_hyperfan_init(hnet, method, use_xavier, uncond_var=0.02, cond_var=0.01)
        z = math.sqrt(0.02) * torch.randn(10, 10, dtype=dtype)
        return powers(hnet(z, cond_id=0, ret_format="stacked"))

    c = 1 if use_xavier else 2
    fan_in, fan_out = [c / 4, c / 40], [c / 40, c / 2]
    harmonic = [2 / (1 / a + 1 / b) for a, b in zip(fan_in, fan_out, strict=True)]
    first, last = {"in": fan_in, "out": fan_out, "harmonic": harmonic}[method]
    assert_mean(over_inits(one, 1500), [first, BIAS, last])


def test_chunks_that_several_targets_share():
    hnet = ChunkedHMLP(
        [[6, 5], [10]], 25, chunk_emb_size=16, uncond_in_size=0, cond_in_size=16, layers=(30,), verbose=False
    )

    def one():
        torch.nn.init.zeros_(hnet.get_cond_in_emb(0))
        chunked_hyperfan_init(hnet, cond_var=0.0)
        out = hnet(cond_id=0, ret_format="flattened")
        return powers([out[:, :25], out[:, 25:]])

    # The second chunk: 5 entries of the matrix, 10 of a bias of fan-in 5, and 10 that are thrown away.
    assert_mean(over_inits(one, 1500), [2 / 5, (5 * 2 / 5 + 10 / (3 * 5)) / 15])


@pytest.mark.parametrize(
    "options",
    [
        {"hyper_img_shape": (10, 8), "num_layers": 4, "num_filters": [16, 8, 8], "kernel_size": 5},
        {"hyper_img_shape": (4, 10, 2), "num_layers": 3, "num_filters": [16, 8], "kernel_size": [3, (4, 2)]},
        {"hyper_img_shape": (16, 5), "num_layers": 2, "num_filters": [16], "sa_units": (0,)},
    ],
)
def test_transposed_convolutions_keep_the_mean_over_pixels(options, dtype):
    hnet = ChunkedHDeconv(
        [[80, 4], [80]], chunk_emb_size=24, uncond_in_size=24, cond_in_size=0, verbose=False, **options
    ).to(dtype)
    assert hnet.chunk_size == 80
    with torch.no_grad():
        for param in hnet.internal_params:
            param.fill_(0.3)  # attention units included: the initialisation makes them the identity

    def one():
        chunked_hyperfan_init(hnet, uncond_var=0.01)
        return powers(hnet(0.1 * torch.randn(10, 24, dtype=dtype), ret_format="stacked"))

    # All pixels of a chunk are used, so that their mean is what is asked for. Kernels are few: it takes more draws.
    assert_mean(over_inits(one, 700), [2 / 4, 1 / 12], largest_error=0.25)


def test_chunk_embeddings_of_every_condition():
    hnet = ChunkedHMLP(
        SHAPES, 40, chunk_emb_size=500, cond_chunk_embs=True, uncond_in_size=0, cond_in_size=0, num_cond_embs=3
    )
    variances = [2 / 4] * 4 + [BIAS] + [2 / 40] * 2
    for normal in (False, True):
        chunked_hyperfan_init(hnet, cemb_normal_init=normal)
        for i in range(3):
            for row, var in zip(hnet.get_chunk_emb(cond_id=i), variances, strict=True):
                # The variance of a sample variance is (kurtosis - 1) var^2 / n: kurtosis 3 and 9/5.
                assert abs(row.var() / var - 1) < 4 * math.sqrt((2 if normal else 0.8) / 500)
                assert normal or row.abs().max() <= math.sqrt(3 * var) * (1 + 1e-6)
        assert (hnet.get_chunk_emb(cond_id=0).abs().max() > math.sqrt(3 / 2)) == normal


def test_clipping_is_said_and_the_bound_is_right():
    hnet = ChunkedHMLP(SHAPES, 40, chunk_emb_size=8, uncond_in_size=4, cond_in_size=4)
    with pytest.warns(BayeshnetWarning) as caught:
        chunked_hyperfan_init(hnet, eps=0.001)
    message = str(caught[0].message)
    assert "the variances of 7 of 7 chunk embeddings would be below eps and were set to 0.001" in message
    bound = (16 * 2 / 40 - 8 * 0.001) / 8
    assert f"variance v = 1 may be {bound:.3g} at most. Make the inputs smaller" in message
    assert caught[0].filename == __file__
    for factor, clips in ((0.999, False), (1.001, True)):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            hnet.apply_chunked_hyperfan_init(uncond_var=2 * factor * bound, cond_var=0.0, eps=0.001)
        assert (len(seen) == 1) is clips
        assert all(warning.filename == __file__ for warning in seen)
    with pytest.warns(
        BayeshnetWarning, match="the variances of 2 of 7 .*no variance of the inputs avoids it; choose a"
    ):
        chunked_hyperfan_init(hnet, uncond_var=0.0, cond_var=0.0, eps=0.11)


def test_target_variances():
    hnet = ChunkedHMLP(SHAPES, 40, chunk_emb_size=500, cond_chunk_embs=True, cond_in_size=0)
    given = [None, 0.5, None]
    hnet.apply_chunked_hyperfan_init(target_vars=given)
    assert given == [None, 0.5, None]  # the reference writes into it
    assert abs(hnet.get_chunk_emb(4, 0).var() / 0.5 - 1) < 4 * math.sqrt(0.8 / 500)
    hnet.apply_chunked_hyperfan_init(target_vars={"weight": 0.25})
    assert abs(hnet.get_chunk_emb(0, 0).var() / 0.25 - 1) < 4 * math.sqrt(0.8 / 500)
    assert abs(hnet.get_chunk_emb(4, 0).var() / BIAS - 1) < 4 * math.sqrt(0.8 / 500)


def test_the_main_network_names_the_targets():
    net = MLP(4, 2, [40], no_weights=True, use_batch_norm=True, verbose=False)
    hnet = ChunkedHMLP(net.param_shapes, 40, chunk_emb_size=500, cond_chunk_embs=True, cond_in_size=0)
    hnet.apply_chunked_hyperfan_init(mnet=net)
    for j, var in enumerate([1, 1, 2 / 4, 2 / 4, 2 / 4, 2 / 4, BIAS]):
        assert abs(hnet.get_chunk_emb(j, 0).var() / var - 1) < 4 * math.sqrt(0.8 / 500)


def test_chunked_networks_in_containers_and_wrappers():
    """The chunked network makes half of each matrix; a plain weight and an HMLP the rest."""

    def assemble(hnets, uncond, _):
        ((a, b, c), (d,)) = hnets
        return [torch.cat([a, d], dim=1), b, torch.cat([c, uncond[0]], dim=1)]

    chunked = ChunkedHMLP([[40, 2], [40], [2, 20]], 40, chunk_emb_size=24, uncond_in_size=16, cond_in_size=0)
    hnet = HContainer(
        SHAPES,
        assemble,
        [
            HPerturbWrapper(chunked, input_handler=lambda **k: tuple(k.values()), output_handler=lambda x, **_: x),
            HMLP([[40, 2]], 16, 0, (30,)),
        ],
        uncond_param_shapes=[[2, 20]],
    )

    def one():
        chunked_hyperfan_init(hnet, uncond_var=0.01)
        w, b, v = hnet(0.1 * torch.randn(10, 16), ret_format="stacked")
        return powers([w[..., :2], w[..., 2:], b, v[..., :20], v[..., 20:]])

    # Fan-ins are those of the targets. Of a layer with a bias, hyperfan gives half to the weights of the HMLP.
    assert_mean(over_inits(one, 700), [2 / 4, 1 / 4, BIAS, 2 / 40, 2 / 40], largest_error=0.2)


def test_target_variances_in_containers():
    hnet = HContainer(
        [[40], [40, 5]],
        lambda hnets, _, __: [*hnets[0], *hnets[1]],
        [ChunkedHMLP([[40]], 40, uncond_in_size=4, cond_in_size=0), HMLP([[40, 5]], 4, 0, ())],
    )
    chunked_hyperfan_init(hnet, uncond_var=0.01, target_vars=[None, 0.125])
    weight, _ = hnet.internal_hnets[1].head()
    assert 0.98 < weight.abs().max() / math.sqrt(3 * 0.125 / (4 * 0.01)) <= 1


def test_errors():
    with pytest.raises(UsageError, match="there is no chunked network in this HMLP; use hyperfan_init"):
        chunked_hyperfan_init(HMLP([[3]]))
    with pytest.raises(UsageError, match="no chunked network in this StructuredHMLP"):
        chunked_hyperfan_init(StructuredHMLP([[3]], [[[3]]], [1], 2, {}, lambda chunks: chunks[0]))
    for make in (
        lambda **kwargs: ChunkedHMLP([[3]], 2, **kwargs),
        lambda **kwargs: ChunkedHDeconv([[3]], (4, 4), num_layers=2, num_filters=[2], **kwargs),
    ):
        name = type(make()).__name__
        with pytest.raises(UsageError, match=f"batch norm in this {name} takes the variance"):
            chunked_hyperfan_init(make(use_batch_norm=True))
        with pytest.raises(UsageError, match=f"with use_spectral_norm=True the weights of this {name}"):
            make(use_spectral_norm=True).apply_chunked_hyperfan_init()
        with pytest.raises(UsageError, match=f"this {name} does not keep its unconditional weights"):
            chunked_hyperfan_init(make(no_uncond_weights=True))
        with pytest.raises(UsageError, match=f"this {name} does not keep its chunk embeddings"):
            make(no_cond_weights=True, cond_chunk_embs=True).apply_chunked_hyperfan_init()


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"method": "both"}, ArgumentError, "method: is 'both', a str; pass"),
        ({"eps": -1.0}, ArgumentError, "eps: is -1.0; pass a variance, 0 or more."),
        ({"cond_var": -1.0}, ArgumentError, "cond_var: is -1.0; pass"),
        ({"target_vars": [1.0]}, ArgumentError, "target_vars: has 1 entries; pass one for each of the 3 targets"),
        ({"target_vars": {"weights": 1.0}}, ArgumentError, "target_vars: has the keys ['weights']"),
        ({"target_vars": [None, -1.0, None]}, ArgumentError, "target_vars[1]: is -1.0; pass a variance, 0 or"),
        ({"target_vars": 1.0}, ArgumentTypeError, "target_vars: is a float; pass a list"),
        ({"mnet": MLP(3, 2, verbose=False)}, ArgumentError, "mnet: its shapes are not those produced"),
    ],
)
def test_wrong_arguments(kwargs, error, message):
    hnet = ChunkedHMLP(SHAPES, 40)
    before = [p.clone() for p in hnet.internal_params]
    for init in (hnet.apply_chunked_hyperfan_init, lambda **kwargs: chunked_hyperfan_init(hnet, **kwargs)):
        with pytest.raises(error, match=re.escape(message)):
            init(**kwargs)
    assert all(torch.equal(p, q) for p, q in zip(before, hnet.internal_params, strict=True))


# ---------------------------------------------------------------------- the reference


@pytest.mark.parametrize("method", ["in", "out"])
@pytest.mark.parametrize("use_xavier", [False, True])
@pytest.mark.parametrize("num_cond_embs", [0, 1])
def test_same_draws_as_the_reference(method, use_xavier, num_cond_embs):
    """The same seed gives the same parameters, apart from the gain of the output layer, which is 1 here."""
    kwargs = {"chunk_emb_size": 5, "uncond_in_size": 3, "cond_in_size": 2, "layers": (8,)}
    # One condition: with several, rows are drawn in another order there.
    kwargs |= {"cond_chunk_embs": num_cond_embs > 0, "num_cond_embs": num_cond_embs}
    theirs = quiet(reference("chunked_mlp_hnet", "ChunkedHMLP"), SHAPES, 40, **kwargs)
    ours = ChunkedHMLP(SHAPES, 40, **kwargs)
    for hnet in (theirs, ours):
        torch.manual_seed(3)
        quiet(hnet.apply_chunked_hyperfan_init, method, use_xavier, uncond_var=0.01, cond_var=0.02)
    last = [r.name for r in ours.param_table].index("weight") + 2
    for i, (one, two) in enumerate(zip(theirs.internal_params, ours.internal_params, strict=True)):
        if ours.param_table[i].name == "embedding" and ours.param_table[i].extra.get("info") is None:
            continue  # not touched, here as there
        factor = 1 if i != last or use_xavier else math.sqrt(2)
        torch.testing.assert_close(two * factor, one)
