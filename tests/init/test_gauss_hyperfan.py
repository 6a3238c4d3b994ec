"""gauss_hyperfan_init: means and rhos have the means and variances that were asked for."""

from __future__ import annotations

import math

import pytest
import torch

from bayeshnet.errors import ArgumentError, ArgumentTypeError, BayeshnetWarning, UsageError
from bayeshnet.hnets import (
    HMLP,
    ChunkedHDeconv,
    ChunkedHMLP,
    HContainer,
    HDeconv,
    HPerturbWrapper,
    StructuredHMLP,
)
from bayeshnet.hnets.hyperfan_heads import measure_moments
from bayeshnet.hnets.hyperfan_parts import split_parts
from bayeshnet.init import gauss_hyperfan_init
from bayeshnet.mnets import MLP
from tests.init.measure import assert_mean, over_inits, powers

SHAPES = [[40, 30], [40]]


def assert_uniform(values, mean, var):
    """Independent draws with this mean and variance, and within the bounds of the uniform distribution."""
    values = values.detach().double().flatten()
    half = math.sqrt(3 * var)
    assert (values - mean).abs().max() <= half * (1 + 1e-5)
    assert abs(values.mean() - mean) < 4 * math.sqrt(var / values.numel())
    # The variance of a sample variance is (9/5 - 1) var^2 / n.
    assert abs(values.var() / var - 1) < 4 * math.sqrt(0.8 / values.numel())


@pytest.mark.parametrize("rho_mean", [0.0, -3.0])
def test_defaults(rho_mean, dtype):
    hnet = HMLP([*SHAPES, *SHAPES], 8, 0, (20,)).to(dtype)
    gauss_hyperfan_init(HPerturbWrapper(hnet), rho_mean=rho_mean)
    out = hnet(torch.randn(3, 8, dtype=dtype), ret_format="stacked")
    for i, tensor in enumerate(out):
        assert torch.equal(tensor[0], tensor[1])  # the rows are 0: all inputs give the same Gaussian
        assert_uniform(tensor[0], *((0.0, 0.003) if i < 2 else (rho_mean, 0.083)))


def test_means_by_hyperfan():
    net = MLP(30, 40, [], no_weights=True, verbose=False)
    hnet = HMLP([*SHAPES, *SHAPES], 16, 8, (30,), verbose=False)

    def one():
        torch.nn.init.normal_(hnet.get_cond_in_emb(0), 0.0, 2.0)
        gauss_hyperfan_init(hnet, net, rho_var=0.5, uncond_var=0.25, cond_var=4.0, keep_hyperfan_mean=True)
        out = hnet(0.5 * torch.randn(10, 16), cond_id=0, ret_format="stacked")
        assert_uniform(out[2][0], 0.0, 0.5)
        return powers(out[:2])

    assert_mean(over_inits(one, 1500), [2 / 60, 1.0])


def test_means_of_scales_are_around_1():
    net = MLP(3, 2, [200], no_weights=True, use_batch_norm=True, verbose=False)
    hnet = HMLP(net.param_shapes * 2, 8, 0, (20,))
    draws = []
    for _ in range(60):
        gauss_hyperfan_init(hnet, net, mean_var=0.01)
        out = hnet(torch.randn(1, 8))
        draws.append([out[0], out[1], out[6]])  # each target has 200 numbers a time, which are independent
    for tensors, mean, var in zip(zip(*draws, strict=True), (1.0, 0.0, 0.0), (0.01, 0.01, 0.083), strict=True):
        assert_uniform(torch.stack(tensors), mean, var)


def both(chunks):
    (w, b), (rho_w,), (rho_b,) = chunks
    return [w, b, rho_w, rho_b]


def test_structured_networks():
    hnet = StructuredHMLP(
        [*SHAPES, *SHAPES],
        [SHAPES, SHAPES[:1], SHAPES[1:]],
        [1, 1, 1],
        4,
        {"layers": (10,)},
        both,
        uncond_in_size=3,
        cond_in_size=0,
    )
    gauss_hyperfan_init(hnet, mean_var=0.5, rho_var=2.0, rho_mean=1.5)
    out = hnet(torch.randn(2, 3), ret_format="stacked")
    for i, tensor in enumerate(out):
        assert_uniform(tensor[0], *((0.0, 0.5) if i < 2 else (1.5, 2.0)))


def test_a_head_for_means_and_rhos_gets_their_average():
    def assemble(chunks):
        return [chunks[0][0], chunks[1][0]]

    hnet = StructuredHMLP([[40, 30]] * 2, [SHAPES[:1]], [2], 4, {}, assemble, uncond_in_size=3, cond_in_size=0)
    gauss_hyperfan_init(hnet, mean_var=0.5, rho_var=1.5)
    assert_uniform(hnet(torch.randn(1, 3))[0], 0.0, 1.0)
    with pytest.raises(UsageError, match="rho_mean: one head makes means and rhos alike.* add -2 to the rhos"):
        gauss_hyperfan_init(hnet, rho_mean=-2.0)


def test_containers():
    hnet = HContainer(
        [*SHAPES, *SHAPES],
        lambda hnets, uncond, cond: [*hnets[0], *uncond, *cond],
        [HMLP(SHAPES, 4, 0)],
        uncond_param_shapes=[[40, 30]],
        cond_param_shapes=[[40]],
        num_cond_embs=30,
    )
    gauss_hyperfan_init(hnet, mean_var=0.5, rho_var=0.125, rho_mean=-1.0)
    outputs = [hnet(torch.randn(1, 4), cond_id=i) for i in range(30)]
    for i, wanted in enumerate([(0.0, 0.5), (0.0, 0.5), (-1.0, 0.125)]):
        assert_uniform(outputs[0][i], *wanted)
    assert_uniform(torch.cat([out[3] for out in outputs]), -1.0, 0.125)


def test_chunked_networks():
    # Chunks of 40: 30 + 1 for the means, as many for the rhos.
    hnet = ChunkedHMLP(
        [*SHAPES, *SHAPES], 40, chunk_emb_size=24, uncond_in_size=16, cond_in_size=0, layers=(30,), verbose=False
    )

    def one():
        gauss_hyperfan_init(hnet, mean_var=0.02, uncond_var=0.01)
        return powers(hnet(0.1 * torch.randn(10, 16), ret_format="stacked"))

    assert_mean(over_inits(one, 800), [0.02, 0.02, 0.083, 0.083], largest_error=0.15)

    def hyperfan():
        gauss_hyperfan_init(hnet, uncond_var=0.001, keep_hyperfan_mean=True)
        return powers(hnet(math.sqrt(0.001) * torch.randn(10, 16), ret_format="stacked"))

    assert_mean(over_inits(hyperfan, 800), [2 / 30, 1 / 90, 0.083, 0.083], largest_error=0.15)
    with pytest.warns(BayeshnetWarning, match="62 of 62 chunk embeddings would be below eps and were set to 0.5"):
        gauss_hyperfan_init(hnet, uncond_var=0.001, eps=0.5)


def test_chunked_deconvolutional_networks():
    hnet = ChunkedHDeconv(
        [[80], [80]], (10, 8), 16, uncond_in_size=16, cond_in_size=0, num_layers=3, num_filters=[8, 8], verbose=False
    )

    def one():
        gauss_hyperfan_init(hnet, mean_var=0.02, uncond_var=0.01)
        return powers(hnet(0.1 * torch.randn(10, 16), ret_format="stacked"))

    assert_mean(over_inits(one, 700), [0.02, 0.083], largest_error=0.3)


# ---------------------------------------------------------------------- without biases


@pytest.mark.parametrize("layers", [(100,), (60, 50)])
def test_without_biases(layers, dtype):
    hnet = HMLP([[10, 9], [10], [10, 9], [10]], 12, 8, layers, use_bias=False, verbose=False).to(dtype)

    def one():
        torch.nn.init.normal_(hnet.get_cond_in_emb(0), 0.0, math.sqrt(2))
        gauss_hyperfan_init(hnet, mean_var=0.3, rho_var=0.5, rho_mean=-1.0, uncond_var=0.5, cond_var=2.0)
        # Fresh embeddings for each input: the moments are those over all inputs.
        z, e = torch.randn(50, 12, dtype=dtype), torch.randn(50, 8, dtype=dtype)
        out = hnet(math.sqrt(0.5) * z, math.sqrt(2) * e, ret_format="stacked")
        return [
            *powers(out[:2]),
            *(-tensor.mean().item() for tensor in out[2:]),
            *((tensor + 1).square().mean().item() for tensor in out[2:]),
        ]

    assert_mean(over_inits(one, 150), [0.3, 0.3, 1.0, 1.0, 0.5, 0.5], largest_error=0.2)


def test_without_biases_with_batch_norm():
    hnet = HMLP([[20], [20]], 12, 0, (40,), use_bias=False, use_batch_norm=True, verbose=False)

    def one():
        gauss_hyperfan_init(hnet, mean_var=0.3, rho_var=0.5, rho_mean=-1.0)
        mean, rho = hnet(torch.randn(1000, 12), ret_format="stacked")
        return [mean.square().mean().item(), -rho.mean().item(), (rho + 1).square().mean().item()]

    assert_mean(over_inits(one, 150), [0.3, 1.0, 0.5], largest_error=0.2)
    # Measuring leaves the statistics of the batch norm alone.
    fresh = HMLP([[20], [20]], 12, 0, (40,), use_bias=False, use_batch_norm=True)
    gauss_hyperfan_init(fresh, rho_var=0.5)
    assert not fresh.batchnorm_layers[0].get_stats()[0].any()


def test_structured_without_biases():
    hnet = StructuredHMLP(
        [[10, 9], [10, 9]],
        [[[10, 9]], [[10, 9]]],
        [1, 1],
        4,
        {"layers": (60,), "use_bias": False, "verbose": False},
        lambda chunks: [chunks[0][0], chunks[1][0]],
        uncond_in_size=12,
        cond_in_size=0,
        verbose=False,
    )

    def one():
        gauss_hyperfan_init(hnet, mean_var=0.3, rho_var=0.5, rho_mean=-1.0)
        mean, rho = hnet(torch.randn(50, 12), ret_format="stacked")
        return [mean.square().mean().item(), -rho.mean().item(), (rho + 1).square().mean().item()]

    assert_mean(over_inits(one, 150), [0.3, 1.0, 0.5], largest_error=0.2)


def test_moments():
    """A linear network: x is the input, of 6 entries of variance 0.5 and 2 of variance 3."""
    hnet = HMLP([[3]], 6, 2, (), use_bias=False)
    (part,) = split_parts(hnet)
    moments = measure_moments(part, 0.5, 3.0)
    assert moments.num == 20_000
    var = 6 * 0.5 + 2 * 3
    assert abs(moments.sum_mean) < 4 * math.sqrt(var / moments.num)
    assert abs(moments.sum_var / var - 1) < 4 * math.sqrt(2 / moments.num)
    assert abs(moments.power / var - 1) < 4 * math.sqrt((6 * 2 * 0.5**2 + 2 * 2 * 3**2) / moments.num) / var


def test_the_smallest_feasible_variance():
    hnet = HMLP([[20], [20]], 12, 0, (40,), use_bias=False)
    with pytest.raises(ArgumentError, match=r"mean -50 and variance 0.083, .* the mean alone makes a variance of"):
        gauss_hyperfan_init(hnet, rho_mean=-50.0)
    linear = HMLP([[20], [20]], 12, 0, (), use_bias=False)
    with pytest.raises(ArgumentError, match="the input of its head has mean 0, so no rows can produce one"):
        gauss_hyperfan_init(linear, rho_mean=-1.0)
    gauss_hyperfan_init(linear)


# ---------------------------------------------------------------------- errors


def test_chunked_networks_have_no_rho_mean():
    for hnet in (
        ChunkedHMLP([[3], [3]], 2),
        ChunkedHDeconv([[3], [3]], (4, 4), num_layers=2, num_filters=[2]),
    ):
        before = [p.clone() for p in hnet.internal_params]
        with pytest.raises(UsageError, match=f"rho_mean: a {type(hnet).__name__} has one head.*add -3 to the rhos in"):
            gauss_hyperfan_init(hnet, rho_mean=-3.0)
        assert all(torch.equal(p, q) for p, q in zip(before, hnet.internal_params, strict=True))
    # One that makes means only is no obstacle.
    means, rhos = ChunkedHMLP([[3]], 2, uncond_in_size=4, cond_in_size=0), HMLP([[3]], 4, 0)
    hnet = HContainer([[3], [3]], lambda hnets, _, __: [*hnets[0], *hnets[1]], [means, rhos])
    gauss_hyperfan_init(hnet, rho_mean=-3.0, rho_var=0.0, mean_var=0.1, uncond_var=0.01)
    assert bool((hnet(torch.randn(1, 4))[1] == -3).all())


def test_networks_that_cannot_be_initialised():
    with pytest.raises(UsageError, match="a plain HDeconv makes all its targets by the same kernels"):
        gauss_hyperfan_init(HDeconv([[3], [3]], (4, 4), num_layers=2, num_filters=[2]))
    with pytest.raises(UsageError, match="gauss_hyperfan_init: this HMLP does not keep its unconditional weights"):
        gauss_hyperfan_init(HMLP([[3], [3]], no_uncond_weights=True))
    with pytest.raises(UsageError, match="gauss_hyperfan_init: with use_spectral_norm=True"):
        gauss_hyperfan_init(HMLP([[3], [3]], use_spectral_norm=True))
    with pytest.raises(UsageError, match="gauss_hyperfan_init: batch norm in this ChunkedHMLP"):
        gauss_hyperfan_init(ChunkedHMLP([[3], [3]], 2, use_batch_norm=True))


@pytest.mark.parametrize("shapes", [[[3]], [[3], [4]], [[3], [2], [3]]])
def test_targets_that_are_no_means_and_rhos(shapes):
    with pytest.raises(ArgumentError, match=r"hnet: its targets have the shapes .*\[means..., rhos...\]"):
        gauss_hyperfan_init(HMLP(shapes))


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"mean_var": -1.0}, ArgumentError, "mean_var: is -1.0; pass a variance, 0 or more."),
        ({"rho_var": -1.0}, ArgumentError, "rho_var: is -1.0; pass"),
        ({"cond_var": -1.0}, ArgumentError, "cond_var: is -1.0; pass"),
        ({"eps": -1.0}, ArgumentError, "eps: is -1.0; pass"),
        ({"rho_mean": math.inf}, ArgumentError, "rho_mean: is inf; pass a finite number."),
        ({"rho_mean": "low"}, ArgumentTypeError, "rho_mean: is 'low', a str; pass a number."),
        ({"mnet": MLP(3, 2, verbose=False)}, ArgumentError, "mnet: its shapes are not those produced"),
    ],
)
def test_wrong_arguments(kwargs, error, message):
    with pytest.raises(error) as caught:
        gauss_hyperfan_init(HMLP([*SHAPES, *SHAPES]), **kwargs)
    assert message in str(caught.value)
