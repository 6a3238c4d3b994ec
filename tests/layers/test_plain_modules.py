from __future__ import annotations

import types
from timeit import timeit

import pytest
import torch
from torch import nn
from torch.nn.modules import module as modules

from bayeshnet.layers.plain_modules import all_plain, has_hooks, has_own_hooks, is_plain

GLOBAL = {
    "forward": lambda: modules.register_module_forward_hook(lambda m, args, out: None),
    "forward pre": lambda: modules.register_module_forward_pre_hook(lambda m, args: None),
    "backward": lambda: modules.register_module_full_backward_hook(lambda m, gin, gout: None),
    "backward pre": lambda: modules.register_module_full_backward_pre_hook(lambda m, gout: None),
}
OWN = {
    "forward": lambda m: m.register_forward_hook(lambda m, args, out: None),
    "forward pre": lambda m: m.register_forward_pre_hook(lambda m, args: None),
    "backward": lambda m: m.register_full_backward_hook(lambda m, gin, gout: None),
    "backward pre": lambda m: m.register_full_backward_pre_hook(lambda m, gout: None),
}


@pytest.mark.parametrize("kind", GLOBAL)
def test_hooks_of_all_modules(kind):
    layer = nn.Linear(2, 1)
    assert is_plain(layer, nn.Linear.forward)
    handle = GLOBAL[kind]()
    try:
        assert has_hooks(layer)
        assert not has_own_hooks(layer)
        assert not is_plain(layer, nn.Linear.forward)
    finally:
        handle.remove()
    assert is_plain(layer, nn.Linear.forward)


@pytest.mark.parametrize("kind", OWN)
def test_hooks_of_one_module(kind):
    layer, other = nn.Linear(2, 1), nn.Linear(2, 1)
    handle = OWN[kind](layer)
    assert has_hooks(layer)
    assert has_own_hooks(layer)
    assert not is_plain(layer, nn.Linear.forward)
    assert is_plain(other, nn.Linear.forward)
    handle.remove()
    assert is_plain(layer, nn.Linear.forward)


def test_forward_that_was_replaced(monkeypatch):
    class Derived(nn.Linear):
        def forward(self, x):
            return -super().forward(x)

    assert not is_plain(Derived(2, 1), nn.Linear.forward)
    original = nn.Linear.forward
    layer = nn.Linear(2, 1)
    layer.forward = types.MethodType(Derived.forward, layer)
    assert not is_plain(layer, original)
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: x)
    assert not is_plain(nn.Linear(2, 1), original)


def test_all_of_several_modules_have_to_be_plain():
    layer, activation = nn.Linear(2, 1), nn.Tanh()
    calls = [(layer, nn.Linear.forward), (activation, nn.Tanh.forward)]
    assert all_plain(())
    assert all_plain(calls)
    for module in (layer, activation):
        handle = module.register_forward_hook(lambda m, args, out: None)
        assert not all_plain(calls)
        handle.remove()


def test_it_costs_microseconds():
    """A chain of ten layers is looked at in each step; on an idle machine one look takes half a microsecond."""
    layer = nn.Linear(2, 1)
    best = min(timeit(lambda: is_plain(layer, nn.Linear.forward), number=1000) for _ in range(10)) / 1000
    assert best < 5e-6
    assert torch.is_grad_enabled()


def test_many_in_one_call():
    layers = [nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 1)]
    known = [(layer, type(layer).forward) for layer in layers]
    assert all_plain(known)
    assert all_plain(())
    for kind, register in OWN.items():
        handle = register(layers[-1])
        assert not all_plain(known), kind
        handle.remove()
    for kind, register in GLOBAL.items():
        handle = register()
        assert not all_plain(known), kind
        handle.remove()
    assert all_plain(known)
    layers[1].forward = torch.neg
    assert not all_plain(known)
