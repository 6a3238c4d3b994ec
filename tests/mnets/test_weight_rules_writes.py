"""Modules that write to the weights they are given, and modules that are refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bayeshnet.errors import ArgumentTypeError, UsageError
from bayeshnet.mnets import batched_forward, functional_copy
from tests.mnets.weight_samples import expected_of, outputs, weights_near


class Clamped(nn.Linear):
    """A constraint on the weight that is kept in place, from its ``start``-th call on."""

    start, calls = 0, 0

    def forward(self, x):
        self.calls += 1
        if self.calls > self.start:
            with torch.no_grad():
                self.weight.clamp_(-0.1, 0.1)
        return super().forward(x)


@pytest.mark.parametrize("loop", [False, True])
def test_weights_are_not_written_to(loop):
    """They were: by .93."""
    net = nn.Sequential(Clamped(3, 4), nn.LayerNorm(4)).double()
    weights, x = weights_near(net, spread=1.0), torch.randn(5, 3, dtype=torch.float64)
    expected, before = expected_of(net, weights, x), weights.clone()
    for _ in range(3):
        torch.testing.assert_close(outputs(net, weights, x, loop=loop).detach(), expected)
        assert torch.equal(weights, before)
    live = weights.clone().requires_grad_()
    torch.testing.assert_close(outputs(net, live, x, loop=loop).detach(), expected)


def test_a_first_write_after_others_is_an_error():
    net = nn.Sequential(Clamped(3, 4), nn.LayerNorm(4))
    net[0].start = 1
    weights, x = weights_near(net, spread=1.0), torch.randn(5, 3)
    batched_forward(net, weights, x)
    with pytest.raises(UsageError, match="weights: the network wrote into the weights"):
        batched_forward(net, weights, x)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize_per_tensor")
def test_compiled_and_quantised_modules():
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    quantised = [torch.ao.nn.quantized.dynamic.Linear(3, 4)]
    with pytest.raises(ArgumentTypeError, match=r"module.0 is a quantised Linear.*floating-point module"):
        functional_copy(nn.Sequential(quantised[0], net[1]))
    with pytest.raises(ArgumentTypeError, match=r"module.0 was compiled by torch.compile.*`module.0._orig_mod`"):
        functional_copy(nn.Sequential(torch.compile(net[0]), net[1]))
    with pytest.raises(ArgumentTypeError, match="module.0 is a ScriptModule"):
        functional_copy(nn.Sequential(torch.jit.script(net[0]), net[1]))
