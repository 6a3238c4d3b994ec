"""Hyperfan: the arithmetic in closed form, and the draws of an HMLP."""

# pyright: reportOptionalSubscript=false, reportOptionalIterable=false

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from bayeshnet.errors import ArgumentError, ArgumentTypeError, UsageError
from bayeshnet.hnets import HMLP
from bayeshnet.hnets.hyperfan import HeadInit, chunk_variances, head_inits, input_variance, read_overrides
from bayeshnet.hnets.hyperfan_chunked import chunk_embedding_variances, mean_target_variances
from bayeshnet.hnets.hyperfan_draw import draw_
from bayeshnet.hnets.hyperfan_targets import describe_targets
from bayeshnet.mnets import MLP, ModuleMainNet
from bayeshnet.mnets.mnet_interface import MainNetInterface
from bayeshnet.mnets.param_table import ParamRecord

SHAPES = [[10, 6], [10], [4, 10], [8, 3, 3, 3], [8]]  # a layer, a layer without bias, a convolution


class Described(nn.Module, MainNetInterface):
    """A main network that has a table and nothing else."""

    def __init__(self, *records):
        nn.Module.__init__(self)
        MainNetInterface.__init__(self)
        self._records = tuple(ParamRecord(tuple(shape), name, layer) for shape, name, layer in records)

    def distillation_targets(self):
        return None

    def forward(self, x, weights=None, distilled_params=None, condition=None):
        raise NotImplementedError


# ---------------------------------------------------------------------- targets


def test_targets_without_a_main_network():
    found = [(t.name, t.fan_in, t.fan_out, t.has_bias) for t in describe_targets([*SHAPES, [7], []])]
    assert found == [
        ("weight", 6, 10, True),
        ("bias", 6, 10, False),
        ("weight", 10, 4, False),
        ("weight", 27, 72, True),
        ("bias", 27, 72, False),
        ("bias", 7, 7, False),  # follows no weight
        ("bias", 1, 1, False),
    ]


def test_targets_of_a_main_network_are_paired_by_layer():
    net = Described(
        ([3], "bn_scale", 2), ([3], "bias", 1), ([5], "bias", 3), ([5, 3], "weight", 3), ([3, 2], "weight", 1)
    )
    found = [(t.name, t.fan_in, t.fan_out, t.has_bias) for t in describe_targets(net.param_shapes, net)]
    assert found == [
        ("bn_scale", 1, 1, False),
        ("bias", 2, 3, False),
        ("bias", 3, 5, False),
        ("weight", 3, 5, True),
        ("weight", 2, 3, True),
    ]


def test_layers_with_several_weights():
    net = ModuleMainNet(nn.RNN(3, 5))  # weights of input and state, then their biases
    weights = describe_targets(net.param_shapes, net)
    assert [t.name for t in weights] == ["weight", "weight", "bias", "bias"]
    assert [t.fan_in for t in weights[:2]] == [3, 5]
    one = Described(([6, 3], "weight", 1), ([6], "bias", 1), ([3, 6], "weight", 1), ([3], "bias", 1))
    assert [t.fan_in for t in describe_targets(one.param_shapes, one)] == [3, 3, 6, 6]


def test_transposed_kernels_have_their_fans():
    net = ModuleMainNet(nn.ConvTranspose2d(2, 5, 3))
    weight, bias = describe_targets(net.param_shapes, net)
    assert (weight.fan_in, weight.fan_out) == (18, 45) == (bias.fan_in, bias.fan_out)


def test_targets_may_be_what_a_main_network_does_not_keep():
    net = MLP(3, 2, [4], use_context_mod=True, context_mod_no_weights=True, verbose=False)
    assert [t.name for t in describe_targets(net.hyper_shapes_learned, net)] == ["cm_scale", "cm_shift"] * 2
    assert [t.name for t in describe_targets(net.param_shapes, net)][-1] == "bias"


def test_a_main_network_without_names_counts_as_none():
    net = Described(([3, 2], None, -1), ([3], None, -1))
    assert describe_targets(net.param_shapes, net) == describe_targets(net.param_shapes)


def test_a_main_network_that_does_not_fit():
    net = MLP(3, 2, [4], verbose=False)
    with pytest.raises(ArgumentError, match="mnet: its shapes are not those produced. The hypernetwork makes"):
        HMLP([[4, 2]]).apply_hyperfan_init(mnet=net)
    with pytest.raises(ArgumentTypeError, match="mnet: is a Linear; pass a network with the lists of MainNetInterface"):
        HMLP([[4, 2]]).apply_hyperfan_init(mnet=nn.Linear(2, 4))


# ---------------------------------------------------------------------- variances


@pytest.mark.parametrize(("use_xavier", "c"), [(False, 2), (True, 1)])
def test_head_variances(use_xavier, c):
    targets = describe_targets(SHAPES)
    fan_in = [c / (2 * 6), c / 2, c / 10, c / (2 * 27), c / 2]
    fan_out = [c / 10, c * (1 - 6 / 10), c / 4, c / 72, c * (1 - 27 / 72)]
    harmonic = [2 / (1 / a + 1 / b) for a, b in zip(fan_in, fan_out, strict=True)]
    for method, wanted in (("in", fan_in), ("out", fan_out), ("harmonic", harmonic)):
        heads = head_inits(targets, method, use_xavier)
        assert [head.out_var for head in heads] == pytest.approx(wanted)
        assert not any(head.needs_bias for head in heads)


def test_a_bias_with_more_inputs_than_outputs():
    """The reference divides by zero in the second case."""
    targets = describe_targets([[3, 5], [3]])
    assert head_inits(targets, "out")[1].out_var == 0
    assert head_inits(targets, "harmonic")[1].out_var == 0


def test_constant_targets():
    kinds = ["bn_scale", "bn_shift", "cm_scale", "cm_shift", "embedding", None]
    net = Described(([2, 2], "weight", 1), *(([2], kind, -1) for kind in kinds))
    heads = head_inits(describe_targets(net.param_shapes, net))
    one, zero = HeadInit(bias_mean=1.0), HeadInit()
    assert heads[1:] == [one, zero, one, zero, HeadInit(bias_var=1.0), HeadInit(out_var=1.0)]


def test_chunk_variances():
    targets = describe_targets(SHAPES)
    bias = [1 / 18, 1 / 81]
    assert chunk_variances(targets) == pytest.approx([2 / 6, bias[0], 2 / 10, 2 / 27, bias[1]])
    assert chunk_variances(targets, "out", True) == pytest.approx([1 / 10, bias[0], 1 / 4, 1 / 72, bias[1]])
    assert chunk_variances(targets, "harmonic")[0] == pytest.approx(2 / (6 / 2 + 10 / 2))
    given = [None, 5, None, None, None]
    assert chunk_variances(targets, target_vars=given)[:2] == pytest.approx([2 / 6, 5])
    assert given == [None, 5, None, None, None]
    net = Described(([2], "bn_scale", 1), ([2], None, -1))
    assert chunk_variances(describe_targets(net.param_shapes, net)) == [1, 1]


def test_input_variance():
    assert input_variance([(1, 4.0), (3, 2.0), (0, 9.0)]) == 2.5
    with pytest.raises(ArgumentError, match="uncond_var, cond_var: the variance of the hypernetwork's input is 0"):
        input_variance([(2, 0.0)])


def test_chunk_means_are_weighted_by_shares():
    # Chunks of 4: [0 0 0 1], [1 1 1 1], [2 -]; the surplus of the last one counts for nothing.
    assert mean_target_variances([3, 5, 1], [1.0, 5.0, 7.0], 4) == [2.0, 5.0, 7.0]
    assert mean_target_variances([3, 5, 1], [1.0, None, None], 4) == [1.0, None, None]
    assert mean_target_variances([2, 2, 2], [1.0, 2.0, 6.0], 100) == [3.0]


def test_chunk_embedding_variances():
    variances, clipped, bound = chunk_embedding_variances([0.5, 0.1, None], [(3, 0.2), (1, 0.6)], 2, 0.01)
    v = (3 * 0.2 + 0.6) / 4
    assert variances == pytest.approx([(6 * 0.5 - 4 * v) / 2, 0.01, 0.01])
    assert (clipped, bound) == (1, pytest.approx((6 * 0.1 - 2 * 0.01) / 4))
    # At the bound nothing is clipped.
    assert chunk_embedding_variances([0.5, 0.1], [(4, bound)], 2, 0.01 - 1e-12)[1] == 0
    assert chunk_embedding_variances([0.5], [], 2, 0.01) == ([0.5], 0, math.inf)


def test_averages_of_heads():
    heads = [HeadInit(out_var=1.0, bias_mean=2.0), HeadInit(row_mean=4.0, bias_var=8.0)]
    assert HeadInit.average(heads, {0: 0.75, 1: 0.25}) == HeadInit(1.0, 0.0, 0.75, 1.5, 2.0)
    assert HeadInit.average(heads, {}) == HeadInit()


# ---------------------------------------------------------------------- overrides


def test_partial_overrides_keep_the_other_defaults():
    """The reference ignores the mean of a weight unless all four arguments are given."""
    targets = describe_targets(SHAPES)
    plain = head_inits(targets)
    heads = head_inits(targets, w_val={"weight": 3}, b_var=[None, 0.5, None, None, 0])
    assert heads[0] == HeadInit(row_mean=3.0, out_var=plain[0].out_var)
    assert heads[1] == HeadInit(out_var=plain[1].out_var, bias_var=0.5)
    assert heads[4] == plain[4]
    assert head_inits(targets, w_var={"bias": 0.25})[1] == HeadInit(row_var=0.25)
    net = Described(([2], "bn_scale", 1))
    assert head_inits(describe_targets([[2]], net), b_var={"bn_scale": 0.1}) == [HeadInit(bias_mean=1.0, bias_var=0.1)]


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"method": "both"}, ArgumentError, "method: 'both' is unknown; use one of 'in', 'out', 'harmonic'."),
        ({"w_val": [0.0]}, ArgumentError, "w_val: has 1 entries; one for each of the 2 targets is expected."),
        ({"b_val": {"wieght": 1}}, ArgumentError, "b_val: has the keys ['wieght']; names of tensors are 'weight', "),
        ({"w_var": {"weight": -1}}, ArgumentError, "w_var['weight']: -1 was given; a variance is 0 or positive."),
        ({"b_var": [None, -0.5]}, ArgumentError, "b_var[1]: -0.5 was given; a variance is 0 or positive."),
        ({"w_val": [None, math.inf]}, ArgumentError, "w_val[1]: inf was given; a finite number is expected."),
        ({"w_val": 0.5}, ArgumentTypeError, "w_val: is a float; pass a list with one number or None per target"),
        ({"w_val": "ab"}, ArgumentTypeError, "w_val: is a str; pass a list"),
        ({"w_val": ["a", None]}, ArgumentTypeError, "w_val[0]: a number is expected, not 'a'."),
        ({"cond_var": -1.0}, ArgumentError, "cond_var: -1.0 was given; a variance is 0 or positive."),
        ({"cond_var": math.nan}, ArgumentError, "cond_var: nan was given; a finite number is expected."),
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
    with pytest.raises(UsageError, match=r"shape \[3\] is to start with mean 1 .* HMLP has no biases. Build it with"):
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


def test_names_may_be_none_in_a_dict():
    net = Described(([2, 2], "weight", 1), ([3], None, -1))
    assert read_overrides("w_var", {None: 0.5}, describe_targets(net.param_shapes, net)) == [None, 0.5]
