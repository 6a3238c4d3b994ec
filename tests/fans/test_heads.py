"""Heads: means and variances of rows and biases in closed form."""

from __future__ import annotations

import pytest

from bayeshnet.errors import ArgumentError
from bayeshnet.fans import HeadInit, Moments, bias_free_head, head_inits
from bayeshnet.hnets.hyperfan_targets import describe_targets
from tests.fans.described import SHAPES, Described


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


def test_averages_of_heads():
    heads = [HeadInit(out_var=1.0, bias_mean=2.0), HeadInit(row_mean=4.0, bias_var=8.0)]
    assert HeadInit.average(heads, {0: 0.75, 1: 0.25}) == HeadInit(1.0, 0.0, 0.75, 1.5, 2.0)
    assert HeadInit.average(heads, {}) == HeadInit()


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


def test_bias_free_heads():
    moments = Moments(sum_mean=2.0, sum_var=0.5, power=4.0, num=1000)
    head = bias_free_head(HeadInit(out_var=0.25, bias_mean=-3.0, bias_var=2.0), moments, [3])
    assert head == HeadInit(-1.5, (2.0 - 1.5**2 * 0.5) / 4.0, 0.25, 0.0, 0.0)
    assert bias_free_head(HeadInit(out_var=0.25), moments, [3]) == HeadInit(out_var=0.25)
    least = 1.5**2 * 0.5
    with pytest.raises(ArgumentError, match=f"makes a variance of {least:.4g}, the smallest feasible one; ask for at"):
        bias_free_head(HeadInit(bias_mean=-3.0, bias_var=0.999 * least), moments, [3])
    assert bias_free_head(HeadInit(bias_mean=-3.0, bias_var=least), moments, [3]).row_var == 0
