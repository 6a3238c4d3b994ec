"""The fast form of chains stands for the network only as long as the network is one; inputs are left alone."""

from __future__ import annotations

import copy
import types

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules import module as modules

from bayeshnet.errors import ArgumentTypeError
from bayeshnet.mnets import MLP, ModuleMainNet, batched, batched_forward, functional_copy
from bayeshnet.mnets.chain import is_dropout, is_elementwise


def chain():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 1))


def looped(net, weights, x):
    """One call of the network for each sample."""
    net = ModuleMainNet(net) if not hasattr(net, "param_table") else net
    rows = [net.flatten_params(w, net.param_shapes, unflatten=True) for w in weights]
    return torch.stack([net(x, weights=row) for row in rows])


def samples(net, num=4):
    return torch.randn(num, sum(p.numel() for p in net.parameters()))


def method(module, function):
    module.forward = types.MethodType(function, module)


CHANGES = {
    "linear layer": lambda net: method(net[0], lambda self, x: 2.0 * F.linear(x, self.weight, self.bias)),
    "activation": lambda net: setattr(net[1], "forward", torch.sin),
    "inner sequence": lambda net: method(net[2], lambda self, x: -nn.Sequential.forward(self, x)),
    "network": lambda net: method(net, lambda self, x: 3.0 * nn.Sequential.forward(self, x)),
    "class": lambda net: setattr(net[1], "__class__", type("Mine", (nn.Tanh,), {"forward": lambda self, x: x})),
}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", CHANGES)
def test_a_replaced_forward_is_followed(name, when):
    """Differences were up to 1.8; what is replaced may be replaced after the first call, too."""
    net, x = chain(), torch.randn(5, 3)
    weights = samples(net)
    plain = looped(chain(), weights, x)
    if when == "after":
        assert ModuleMainNet(net).as_chain() is not None
        batched_forward(net, weights, x)
    CHANGES[name](net)
    expected = looped(net, weights, x)
    assert (expected - plain).abs().max() > 0.1
    assert ModuleMainNet(net).as_chain() is None
    torch.testing.assert_close(batched_forward(net, weights, x), expected)
    torch.testing.assert_close(batched_forward(functional_copy(net), weights, x), expected)


def test_a_forward_put_on_the_wrapper_is_followed():
    for target in (ModuleMainNet(chain()), functional_copy(chain()), MLP(3, 1, (4,), verbose=False)):
        weights, x = torch.randn(4, target.num_params), torch.randn(5, 3)
        method(target, lambda self, x, weights=None, **kwargs: 2.0 * type(self).forward(self, x, weights=weights))
        expected = looped(target, weights, x)
        assert target.as_chain() is None
        torch.testing.assert_close(batched_forward(target, weights, x), expected)
        torch.testing.assert_close(batched_forward(functional_copy(target), weights, x), expected)


def test_a_derived_class_of_the_wrapper_keeps_its_forward():
    """Its functional copy was a plain wrapper: a difference of 2.8."""

    class Twice(ModuleMainNet):
        def forward(self, *args, **kwargs):
            return 2.0 * super().forward(*args, **kwargs)

    net, x = Twice(nn.Linear(3, 2)), torch.randn(5, 3)
    weights = torch.randn(4, 8)
    copied = functional_copy(net)
    assert type(copied) is Twice
    assert list(copied.parameters()) == []
    torch.testing.assert_close(batched_forward(copied, weights, x), batched_forward(net, weights, x))


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kind", ["forward", "forward pre"])
@pytest.mark.parametrize("make", [chain, lambda: MLP(3, 1, (4,), verbose=False)])
def test_global_hooks_run(make, kind, when):
    """A hook of all modules was ignored: a difference of 3.9."""

    def double(module, args, out=None):
        if isinstance(module, nn.Tanh | nn.ReLU):
            return 2.0 * args[0] if out is None else 2.0 * out
        return None

    net = make() if when == "after" else None
    register = {
        "forward": modules.register_module_forward_hook,
        "forward pre": modules.register_module_forward_pre_hook,
    }[kind]
    x = torch.randn(5, 3)
    handle = register(double)
    try:
        net = make() if net is None else net
        weights = samples(net)
        expected = looped(net, weights, x)
        torch.testing.assert_close(batched_forward(net, weights, x), expected)
    finally:
        handle.remove()
    assert (batched_forward(net, weights, x) - expected).abs().max() > 0.01
    assert functional_copy(net).as_chain() is not None


def test_a_hook_that_looks_at_numbers_runs_in_the_loop():
    seen = []
    handle = modules.register_module_forward_hook(lambda module, args, out: seen.append(float(out.sum())))
    try:
        net, x = nn.Sequential(nn.Linear(3, 1), nn.ReLU()), torch.randn(5, 3)
        batched_forward(net, samples(net, 2), x)
    finally:
        handle.remove()
    assert len(seen) >= 2 * 3


def test_parts_of_an_mlp_that_were_changed():
    """A forward or hook on its dropout was ignored: 1.6."""
    for change in (
        lambda net: setattr(net.dropout, "forward", lambda h: 3.0 * h),
        lambda net: net.dropout.register_forward_hook(lambda module, args, out: 3.0 * out),
        lambda net: setattr(net.activation_fn, "forward", torch.cos),
    ):
        net = MLP(3, 1, (4,), activation_fn=nn.ReLU(), dropout_rate=0.5, verbose=False).eval()
        assert net.as_chain() is not None
        change(net)
        weights, x = torch.randn(4, net.num_params), torch.randn(5, 3)
        assert net.as_chain() is None
        torch.testing.assert_close(batched_forward(net, weights, x), looped(net, weights, x))


def test_known_functions():
    relu, dropout = nn.ReLU(), nn.Dropout()
    assert is_elementwise(relu)
    assert is_dropout(dropout)
    assert not is_dropout(nn.Dropout1d())
    assert not is_dropout(relu)
    relu.forward = dropout.forward = torch.neg
    assert not is_elementwise(relu)
    assert not is_dropout(dropout)


def test_frozen_layers_are_no_steps():
    """The bias of a chain's layer would be left out if it were taken for one."""
    x = torch.randn(5, 3)
    for name in ("0.weight", "0.bias", "3.bias"):
        net = chain()
        net.get_parameter(name).requires_grad_(False)
        with torch.no_grad():
            net.get_parameter(name).fill_(7.0)
        weights = torch.randn(4, sum(p.numel() for p in net.parameters() if p.requires_grad))
        expected = looped(net, weights, x)
        for target in (net, functional_copy(net)):
            torch.testing.assert_close(batched_forward(target, weights, x), expected)


# ---------------------------------------------------------------------- copies of functions


def test_a_forward_that_refers_to_the_original_is_refused_in_copies():
    """A copy called the original with its old weights: 1.6. In place it is right."""
    net, x = chain(), torch.randn(5, 3)
    weights, original, layer = samples(net), net[0].forward, net[0]
    scale = nn.Parameter(torch.tensor(2.0))  # of no part of the network
    for function, name in (
        (lambda x: 2.0 * original(x), "original"),
        (lambda x: 2.0 * F.linear(x, layer.weight), "layer"),
        (lambda x, weight=layer.weight: 2.0 * F.linear(x, weight), "a default argument"),
        (lambda x, *, net=net: 2.0 * F.linear(x, net[0].weight), "net"),
    ):
        net[0].forward = function
        with pytest.raises(ArgumentTypeError, match=rf"module.0.forward: .* refers to '{name}'.*types.MethodType"):
            functional_copy(net)
    net[0].forward = lambda x: 2.0 * original(x)
    torch.testing.assert_close(batched_forward(net, weights, x), looped(net, weights, x))
    net[0].forward = types.MethodType(lambda self, x: scale * F.linear(x, self.weight, self.bias), net[0])
    copied = functional_copy(net)
    torch.testing.assert_close(batched_forward(copied, weights, x), looped(net, weights, x))
    torch.testing.assert_close(batched_forward(copy.deepcopy(copied), weights, x), looped(net, weights, x))


# ---------------------------------------------------------------------- inputs


class AddsOne(nn.Module):
    def forward(self, x):
        return x.add_(1.0)


class AddsToDict(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(self, parts, more):
        parts["a"].mul_(2.0)
        more[0].add_(1.0)
        return self.linear(parts["a"] + more[0])


FIRST = {
    "relu": lambda: [nn.ReLU(inplace=True), nn.Linear(3, 4)],
    "flatten, relu": lambda: [nn.Flatten(), nn.ReLU(inplace=True), nn.Linear(3, 4)],
    "identity, relu": lambda: [nn.Identity(), nn.ELU(inplace=True), nn.Linear(3, 4)],
    "dropout": lambda: [nn.Dropout(0.5, inplace=True), nn.Linear(3, 4)],
    "nested": lambda: [nn.Sequential(nn.Sequential(nn.ReLU(inplace=True))), nn.Linear(3, 4)],
    "adds": lambda: [AddsOne(), nn.Linear(3, 4)],
    "adds, no chain": lambda: [AddsOne(), nn.Linear(3, 4), nn.LayerNorm(4)],
}


@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize("name", FIRST)
def test_inputs_are_left_alone(name, loop):
    """A layer that works in place changed them, by up to 3.3, and in a loop once more for each sample."""
    net = nn.Sequential(*FIRST[name]()).train("dropout" in name)
    x = torch.randn(5, 3) - 1.0
    before, weights = x.clone(), samples(net)
    if loop:
        batched._KNOWN[net] = {tuple(m.training for m in net.modules()): False}
    out = batched_forward(net, weights, x)
    assert torch.equal(x, before)
    if name != "dropout":
        rows = [torch.func.functional_call(net, named(net, w), (x.clone(),)) for w in weights]
        torch.testing.assert_close(out, torch.stack(rows))
    assert torch.equal(batched_forward(net.eval(), weights[:1], x), batched_forward(net, weights[:1], x))
    assert torch.equal(x, before)


def named(net, weights):
    own = dict(net.named_parameters())
    parts = weights.split([p.numel() for p in own.values()])
    return {name: part.view(p.shape) for (name, p), part in zip(own.items(), parts, strict=True)}


@pytest.mark.parametrize("loop", [False, True])
def test_structured_inputs_are_left_alone(loop):
    net = AddsToDict()
    x = ({"a": torch.ones(5, 3)}, [torch.ones(5, 3)])
    if loop:
        batched._KNOWN[net] = {tuple(m.training for m in net.modules()): False}
    weights = samples(net)
    out = batched_forward(net, weights, x)
    assert x[0]["a"].eq(1).all()
    assert x[1][0].eq(1).all()
    torch.testing.assert_close(
        out, torch.stack([F.linear(torch.full((5, 3), 4.0), w[:12].view(4, 3), w[12:]) for w in weights])
    )


def test_gradients_reach_the_inputs():
    net, x = nn.Sequential(AddsOne(), nn.Linear(3, 4)), torch.randn(5, 3, requires_grad=True)
    (grad,) = torch.autograd.grad(batched_forward(net, samples(net), x).sum(), x)
    assert grad.abs().min() > 0


def test_copies_of_inputs_give_the_same_numbers_to_the_bit():
    """A product with inputs that require gradients is another one, also where none are recorded."""
    net = nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8))
    weights, x = samples(net, 7), torch.randn(30, 3, requires_grad=True)
    parts = ModuleMainNet(net)
    rows = [w.view(-1, *r.shape) for w, r in zip(weights.split([24, 8, 8, 8], 1), parts.param_table, strict=True)]
    with torch.no_grad():
        direct = torch.func.vmap(lambda *w: parts(x, weights=list(w)))(*rows)
        assert torch.equal(batched_forward(net, weights, x), direct)
