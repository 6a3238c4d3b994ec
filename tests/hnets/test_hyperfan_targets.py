"""What the targets of a hypernetwork are."""

from __future__ import annotations

import pytest
from torch import nn

from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.hnets import HMLP
from bayeshnet.hnets.hyperfan_targets import describe_targets
from bayeshnet.mnets import MLP, ModuleMainNet
from tests.fans.described import SHAPES, Described


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
