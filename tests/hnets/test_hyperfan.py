"""Hyperfan: the draws of an HMLP, and what is refused."""

# pyright: reportOptionalSubscript=false, reportOptionalIterable=false

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from bayeshnet.errors import ArgumentError, ArgumentTypeError, UsageError
from bayeshnet.hnets import HMLP
from bayeshnet.hnets.hyperfan_parts import draw_
from bayeshnet.mnets import MLP, ModuleMainNet
from tests.fans.described import Described


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"method": "both"}, ArgumentError, "method: is 'both', a str; pass 'in', 'out' or 'harmonic'."),
        ({"w_val": [0.0]}, ArgumentError, "w_val: has 1 entries; pass one for each of the 2 targets."),
        ({"b_val": {"wieght": 1}}, ArgumentError, "b_val: has the keys ['wieght']; pass names of tensors, 'weight', "),
        ({"w_var": {"weight": -1}}, ArgumentError, "w_var['weight']: is -1; pass a variance, 0 or more."),
        ({"b_var": [None, -0.5]}, ArgumentError, "b_var[1]: is -0.5; pass a variance, 0 or more."),
        ({"w_val": [None, math.inf]}, ArgumentError, "w_val[1]: is inf; pass a finite number."),
        ({"w_val": 0.5}, ArgumentTypeError, "w_val: is a float; pass a list with one number or None per target"),
        ({"w_val": "ab"}, ArgumentTypeError, "w_val: is a str; pass a list"),
        ({"w_val": ["a", None]}, ArgumentTypeError, "w_val[0]: is 'a', a str; pass a number."),
        ({"cond_var": -1.0}, ArgumentError, "cond_var: is -1.0; pass a variance, 0 or more."),
        ({"cond_var": math.nan}, ArgumentError, "cond_var: is nan; pass a finite number."),
        ({"cond_var": 0.0}, ArgumentError, "uncond_var, cond_var: the variance of the hypernetwork's input is 0"),
    ],
)
def test_errors(kwargs, error, message):
    hnet = HMLP([[3, 2], [3]], layers=(4,))
    before = [p.clone() for p in hnet.internal_params]
    with pytest.raises(error) as caught:
        hnet.apply_hyperfan_init(**kwargs)
    assert message in str(caught.value)
    assert all(torch.equal(p, q) for p, q in zip(before, hnet.internal_params, strict=True))


def test_networks_that_cannot_be_initialised():
    with pytest.raises(UsageError, match="does not keep its unconditional weights \\(no_uncond_weights=True\\)"):
        HMLP([[3]], no_uncond_weights=True).apply_hyperfan_init()
    with pytest.raises(UsageError, match="build it with use_spectral_norm=False"):
        HMLP([[3]], use_spectral_norm=True).apply_hyperfan_init()
    HMLP([[3]], no_cond_weights=True).apply_hyperfan_init()


def test_constants_need_a_bias():
    net = Described(([3, 2], "weight", 1), ([3], "bn_scale", 2), ([3], "bn_shift", 2))
    hnet = HMLP(net.param_shapes, use_bias=False)
    before = [p.clone() for p in hnet.internal_params]
    with pytest.raises(UsageError, match=r"shape \[3\] is to start with mean 1 .* HMLP has no biases; build it with"):
        hnet.apply_hyperfan_init(mnet=net)
    assert all(torch.equal(p, q) for p, q in zip(before, hnet.internal_params, strict=True))
    hnet.apply_hyperfan_init(mnet=net, b_val={"bn_scale": 0}, w_var={"bn_scale": 0.1})
    assert 0 < hnet.head()[0][6:9].abs().max() <= math.sqrt(0.3)
    assert not hnet.head()[0][9:].any()


# ---------------------------------------------------------------------- draws


def test_draws_are_uniform_with_mean_and_variance(dtype):
    x = torch.empty(100_000, dtype=dtype)
    draw_(x, 3.0, 0.5)
    half = math.sqrt(1.5)
    assert 3 - half <= x.min() < 3 - 0.99 * half
    assert 3 + 0.99 * half < x.max() <= 3 + half
    # Variance of the sample variance of a uniform distribution: (9/5 - 1) var^2 / n.
    assert abs(x.double().var() - 0.5) < 4 * 0.5 * math.sqrt(0.8 / 100_000)
    assert abs(x.double().mean() - 3) < 4 * math.sqrt(0.5 / 100_000)
    draw_(x, 2.0, 0.0)
    assert bool((x == 2).all())


def rows_of(hnet):
    weight, bias = hnet.head()
    sizes = [math.prod(shape) for shape in hnet.target_shapes]
    return weight.detach().split(sizes), None if bias is None else bias.detach().split(sizes)


@pytest.mark.parametrize("method", ["in", "out", "harmonic"])
@pytest.mark.parametrize("use_xavier", [False, True])
def test_rows_have_the_variances_of_the_table(method, use_xavier, dtype):
    shapes = [[60, 50], [60], [40, 60]]
    net = MLP(50, 40, [60], no_weights=True, verbose=False)
    hnet = HMLP(shapes, 6, 4, (50, 100), num_cond_embs=2, verbose=False).to(dtype)
    embs = [emb.clone() for emb in hnet.conditional_params]
    hnet.apply_hyperfan_init(method, use_xavier, uncond_var=0.5, cond_var=2.0)
    assert all(torch.equal(one, two) for one, two in zip(embs, hnet.conditional_params, strict=True))
    c, kv = (1 if use_xavier else 2), 100 * (6 * 0.5 + 4 * 2.0) / 10
    fan_in, fan_out = [c / 100, c / 2, c / 60], [c / 60, c * (1 - 50 / 60), c / 40]
    rows, bias = rows_of(hnet)
    for i, (a, b) in enumerate(zip(fan_in, fan_out, strict=True)):
        var = {"in": a, "out": b, "harmonic": 2 / (1 / a + 1 / b)}[method] / kv
        # Uniform: the largest of n draws is below the bound, by a share of about 1 / n of it.
        assert 1 - 30 / rows[i].numel() < rows[i].abs().max() / math.sqrt(3 * var) <= 1 + 1e-6
        assert abs(rows[i].var() / var - 1) < 4 * math.sqrt(0.8 / rows[i].numel())
        assert not bias[i].any()
    for i, (fan, width) in enumerate([(10, 50), (50, 100)]):
        matrix, vector = hnet.layer_weight_tensors[i], hnet.layer_bias_vectors[i]
        assert abs(matrix.var() / (c / fan) - 1) < 4 * math.sqrt(0.8 / (fan * width))
        assert not vector.any()
    assert hnet.head()[0].dtype == dtype
    # With the main network, the last layer has a bias too (which is not produced here), so nothing fits.
    with pytest.raises(ArgumentError, match="mnet"):
        hnet.apply_hyperfan_init(mnet=net)


def test_batch_norm_decides_the_mean_square():
    for use_xavier, c, v in ((False, 2, 0.5), (True, 1, 1.0)):
        hnet = HMLP([[100, 50]], 4, 0, (30,), use_batch_norm=True)
        with torch.no_grad():
            for param in hnet.internal_params[:2]:
                param.fill_(7.0)
        hnet.apply_hyperfan_init(use_xavier=use_xavier, uncond_var=123.0)
        rows, _ = rows_of(hnet)
        var = c / (50 * 30 * v)
        assert 0.99 < rows[0].abs().max() / math.sqrt(3 * var) <= 1
        assert bool((hnet.internal_params[0] == 1).all())
        assert not hnet.internal_params[1].any()
    # Without hidden layers there is no batch norm, whatever the option says.
    hnet = HMLP([[100, 50]], 4, 0, (), use_batch_norm=True)
    hnet.apply_hyperfan_init(uncond_var=0.25)
    assert 0.98 < rows_of(hnet)[0][0].abs().max() / math.sqrt(3 * 2 / (50 * 4 * 0.25)) <= 1


def test_the_skip_connection_starts_at_0():
    for use_bias in (True, False):
        hnet = HMLP([[100, 50]], 4, 0, (30,), use_bias=use_bias, linear_skip=True)
        hnet.apply_hyperfan_init()
        weight, _ = hnet.head()
        assert not weight[:, 30:].any()
        assert 0.98 < weight[:, :30].abs().max() / math.sqrt(3 * 2 / (50 * 30)) <= 1


def test_constants_of_the_main_network_come_out_exactly(dtype):
    net = MLP(5, 3, [4], no_weights=True, use_batch_norm=True, use_context_mod=True, verbose=False)
    hnet = HMLP(net.param_shapes, 6, 0, (7,)).to(dtype)
    hnet.apply_hyperfan_init(mnet=net)
    weights = hnet(torch.randn(3, 6, dtype=dtype), ret_format="stacked")
    for weight, record in zip(weights, net.param_table, strict=True):
        if record.name in ("bn_scale", "cm_scale"):
            assert bool((weight == 1).all())
        if record.name in ("bn_shift", "cm_shift"):
            assert bool((weight == 0).all())


def test_embeddings_come_out_with_variance_1():
    net = ModuleMainNet(nn.Embedding(300, 50))
    hnet = HMLP(net.param_shapes, 6, 0, (7,))
    hnet.apply_hyperfan_init(mnet=net)
    out = hnet(torch.randn(2, 6), ret_format="flattened")
    assert torch.equal(out[0], out[1])
    assert abs(out[0].var() - 1) < 4 * math.sqrt(0.8 / 15_000)


def test_empty_and_scalar_targets():
    hnet = HMLP([[3, 0], [], [2, 3]], 6, 0, (7,))
    hnet.apply_hyperfan_init()
    assert [tuple(w.shape) for w in hnet(torch.randn(1, 6))] == [(3, 0), (), (2, 3)]


def test_draws_follow_the_generator():
    hnet = HMLP([[3, 2], [3]], 6, 0, (7,))
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        hnet.apply_hyperfan_init()
        states.append([p.clone() for p in hnet.internal_params])
    assert all(torch.equal(one, two) for one, two in zip(states[0], states[1], strict=True))
    assert not torch.equal(states[0][0], states[2][0])
