"""Variances of hyperfan in closed form."""

from __future__ import annotations

import pytest

from bayeshnet.errors import ArgumentError
from bayeshnet.fans import chunk_variances, input_variance
from bayeshnet.hnets.hyperfan_targets import describe_targets
from tests.fans.described import SHAPES, Described


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
