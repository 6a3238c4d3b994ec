"""Frozen parameters stay what they are: plain modules and main networks."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from bayeshnet.errors import ArgumentError
from bayeshnet.mnets import MLP, ModuleMainNet, batched_forward, functional_copy
from tests.mnets.networks import ByRecords


def network():
    """Its first weight is frozen at 7, and so is the bias of its last layer."""
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    with torch.no_grad():
        net[0].weight.fill_(7.0)
        net[2].bias.fill_(-3.0)
    net[0].weight.requires_grad_(False)
    net[2].bias.requires_grad_(False)
    return net


def mlp():
    net = MLP(3, 1, (4,), activation_fn=nn.Tanh(), verbose=False)
    with torch.no_grad():
        net.internal_params[0].fill_(7.0)
        net.internal_params[3].fill_(-3.0)
    for i in (0, 3):
        net.internal_params[i].requires_grad_(False)
    return net


def expected(weights, x):
    """Of samples of the first bias and the last weight."""
    hidden = torch.tanh(7.0 * x.sum(-1, keepdim=True) + weights[:, None, :4])
    return (hidden * weights[:, None, 4:]).sum(-1, keepdim=True) - 3.0


@pytest.mark.parametrize("make", [network, mlp])
def test_frozen_parameters_are_no_weights(make):
    """They were drawn: a frozen 7 was a number near 0."""
    net, x, weights = make(), torch.randn(5, 3), torch.randn(6, 8)
    bare = functional_copy(net)
    assert bare.param_names == (["0.bias", "2.weight"] if make is network else ["0.bias", "1.weight"])
    assert bare.param_shapes == bare.hyper_shapes_learned == [[4], [1, 4]]
    assert bare.num_params == 8
    assert bare.frozen_names == (("0.weight", "2.bias") if make is network else ("0.weight", "1.bias"))
    assert f"frozen={list(bare.frozen_names)}" in repr(bare)
    assert list(bare.parameters()) == []
    torch.testing.assert_close(batched_forward(bare, weights, x), expected(weights, x))
    if make is network:
        wrapped = ModuleMainNet(net)
        assert wrapped.param_names == bare.param_names
        assert wrapped.frozen_names == bare.frozen_names
        assert [p is q for p, q in zip(wrapped.internal_params, (net[0].bias, net[2].weight), strict=True)] == [
            True
        ] * 2
        torch.testing.assert_close(batched_forward(net, weights, x), expected(weights, x))
        torch.testing.assert_close(wrapped(x), net(x))
        assert net[0].weight.eq(7.0).all()
        assert not net[0].weight.requires_grad
        torch.testing.assert_close(batched_forward(functional_copy(wrapped), weights, x), expected(weights, x))
    # What happens to the network given does not matter any more.
    with torch.no_grad():
        for param in net.parameters():
            param.zero_()
            param.requires_grad_()
    torch.testing.assert_close(batched_forward(bare, weights, x), expected(weights, x))


@pytest.mark.parametrize("make", [network, mlp])
def test_copies_and_states_have_the_frozen_values(make):
    x, weights = torch.randn(5, 3), torch.randn(6, 8)
    bare, other = functional_copy(make()), make()
    with torch.no_grad():
        for param in other.parameters():
            param.fill_(1.0)
    loaded = functional_copy(other)
    loaded.load_state_dict(bare.state_dict())
    for twin in (copy.deepcopy(bare), pickle.loads(pickle.dumps(bare)), functional_copy(bare), loaded):
        torch.testing.assert_close(batched_forward(twin, weights, x), expected(weights, x))
        assert twin.frozen_names == bare.frozen_names
    double = batched_forward(bare.double(), weights.double(), x.double())
    torch.testing.assert_close(double, expected(weights.double(), x.double()))


def test_only_what_is_frozen_at_the_beginning_counts():
    net = network()
    wrapped = ModuleMainNet(net)
    for param in net.parameters():
        param.requires_grad_()
    assert wrapped.param_names == functional_copy(wrapped).param_names == ["0.bias", "2.weight"]
    assert ModuleMainNet(net).num_params == 21


def test_tied_frozen_parameters():
    net = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    net["b"].weight = net["a"].weight
    net["a"].weight.requires_grad_(False)
    net.forward = None
    bare = functional_copy(nn.Sequential(net["a"], net["b"]))
    assert bare.frozen_names == ("0.weight",)
    assert list(bare.state_dict()) == ["module.0.weight"]
    fresh = copy.deepcopy(bare)
    with torch.no_grad():
        fresh.module[0].weight.zero_()
    fresh.load_state_dict(bare.state_dict())
    assert torch.equal(fresh.module[1].weight, bare.module[0].weight)


def test_pretrained_embeddings():
    table = torch.randn(5, 2)
    net = nn.Sequential(nn.Embedding.from_pretrained(table, padding_idx=0), nn.Linear(2, 1))
    weights, x = torch.randn(4, 3), torch.tensor([0, 3])
    out = batched_forward(functional_copy(net), weights, x)
    torch.testing.assert_close(out, table[x] @ weights[:, :2].unsqueeze(-1) + weights[:, None, 2:])


def test_errors():
    with pytest.raises(ArgumentError, match=r"all parameters of Linear are frozen .*; call requires_grad_"):
        functional_copy(nn.Linear(3, 1).requires_grad_(False))
    with pytest.raises(ArgumentError, match="all parameters of MLP are frozen"):
        functional_copy(MLP(3, 1, (4,), verbose=False).requires_grad_(False))
    net, x = functional_copy(network()), torch.randn(5, 3)
    named = {"0.weight": torch.randn(6, 4, 3), "0.bias": torch.randn(6, 4), "2.weight": torch.randn(6, 1, 4)}
    with pytest.raises(ArgumentError, match=r"unknown names \['0.weight'\].*Frozen .*leave them"):
        batched_forward(net, named, x)
    with pytest.raises(ArgumentError, match=r"expected \[S, 8\].*Frozen .*: \['0.weight', '2.bias'\]"):
        batched_forward(network(), torch.randn(6, 21), x)
    with pytest.raises(ArgumentError, match=r"Frozen .*: \['0.weight'\]"):
        net(x, weights={name: value[0] for name, value in named.items()})
    with pytest.raises(ArgumentError, match=r"weights: pass a list of tensors with the shapes \[\[4\], \[1, 4\]\]"):
        functional_copy(mlp())(x)


def test_networks_of_other_classes():
    net = ByRecords()
    net._internal_params[1].requires_grad_(False)
    bare, x, weights = functional_copy(net), torch.randn(5, 3), torch.randn(6, 16)
    assert bare.param_names == ["1.weight", "2.weight"]
    bias = net._internal_params[1]
    rows = [net(x, weights=[w[:12].view(4, 3), bias, w[12:].view(1, 4)]) for w in weights]
    torch.testing.assert_close(batched_forward(bare, weights, x), torch.stack(rows))


def test_a_frozen_layer_at_two_places():
    """Its parameters were taken out twice, which is a KeyError."""
    layer = nn.Linear(3, 3).requires_grad_(False)
    net = nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(3, 1))
    bare, x = functional_copy(net), torch.randn(5, 3)
    assert bare.frozen_names == ("0.weight", "0.bias")
    weights = [torch.randn(1, 3), torch.randn(1)]
    made = bare.with_weights(weights)
    torch.testing.assert_close(bare(x, weights=weights), made(x))
    assert made[0] is made[2]
    assert torch.equal(made[2].weight, layer.weight)
    assert list(made.state_dict()) == list(net.state_dict())
