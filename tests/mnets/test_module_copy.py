"""Copies of networks without their weights."""

from __future__ import annotations

import pytest
from torch import nn

from bayeshnet.errors import ArgumentTypeError
from bayeshnet.mnets.functional import functional_copy


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


@pytest.mark.parametrize("kind", ["forward hook", "forward pre-hook"])
def test_a_hook_that_refers_to_the_network_is_refused(kind):
    """In a copy it kept the old weights: a difference of 5.3."""
    net = network()
    if kind == "forward hook":
        net[2].register_forward_hook(lambda module, inputs, out: out + net[0].weight.sum())
    else:
        net[2].register_forward_pre_hook(lambda module, inputs: (inputs[0] + net[0].weight.sum(),))
    with pytest.raises(ArgumentTypeError, match=f"module.2: has a {kind} that refers to 'net', a part of the network"):
        functional_copy(net)


def test_a_hook_that_uses_its_own_module_is_copied():
    net = network()
    net[2].register_forward_hook(lambda module, inputs, out: out + module.weight.sum())
    functional_copy(net)
