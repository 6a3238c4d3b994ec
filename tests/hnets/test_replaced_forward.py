"""Hooks and replaced forwards of hypernetworks: no fast form stands for what a call no longer does."""

from __future__ import annotations

import types

import pytest
import torch
from torch import nn
from torch.nn.modules import module as modules

from bayeshnet.entropy._fused_mlp_draw import fused_mlp_draw
from bayeshnet.entropy.change_of_variables import ChangeOfVariables
from bayeshnet.entropy.sampler import NoisySampler
from bayeshnet.errors import ArgumentError, UsageError
from bayeshnet.hnets import HMLP, ChunkedHMLP, HPerturbWrapper, StructuredHMLP
from bayeshnet.hnets.activations import elementwise_derivative


def hmlp(cls=HMLP):
    return cls([[5]], uncond_in_size=2, cond_in_size=0, layers=(4,), activation_fn=nn.Tanh(), verbose=False)


def stretched(out):
    """Not linear in anything, and with a Jacobian of its own."""
    return torch.sinh(out) + 0.1 * out**3


def forward(self, *args, **kwargs):
    return stretched(type(self).forward(self, *args, **kwargs))


class Stretched(HMLP):
    def generate_rows(self, x, weights, condition=None):
        return stretched(super().generate_rows(x, weights, condition))


def replaced():
    hnet = hmlp()
    hnet.forward = types.MethodType(forward, hnet)
    return hnet


def hooked():
    hnet = hmlp()
    hnet.register_forward_hook(lambda module, args, out: stretched(out))
    return hnet


def rows_replaced():
    hnet = hmlp()
    hnet.generate_rows = types.MethodType(Stretched.generate_rows, hnet)
    return hnet


def activation_replaced():
    hnet = hmlp()
    hnet.activation_fn.forward = torch.sin
    return hnet


def activation_hooked():
    hnet = hmlp()
    hnet.activation_fn.register_forward_hook(lambda module, args, out: stretched(out))
    return hnet


CHANGED = {
    "forward": replaced,
    "hook": hooked,
    "derived class": lambda: hmlp(Stretched),
    "activation's forward": activation_replaced,
    "activation's hook": activation_hooked,
}


def brute_force_log_prob(wrapper, noise):
    """By the Jacobian of the whole map from noise to weights."""

    def weights(row):
        return wrapper(row.unsqueeze(0), ret_format="flattened").squeeze(0)

    jacobians = torch.stack([torch.autograd.functional.jacobian(weights, row) for row in noise])
    base = torch.distributions.Normal(0.0, 1.0).log_prob(noise).sum(-1)
    return base - torch.linalg.slogdet(jacobians).logabsdet


@pytest.mark.parametrize("name", CHANGED)
def test_draws_and_densities_follow_the_call(name):
    """Draws of the fused form differed from the wrapper's by 0.9 (hook) and 1.2 (forward)."""
    torch.manual_seed(0)
    hnet = CHANGED[name]().double()
    plain = hmlp().double()
    plain.load_state_dict(hnet.state_dict())
    wrapper = HPerturbWrapper(hnet, sigma_noise=0.3).double()
    sampler = NoisySampler(wrapper)
    assert fused_mlp_draw(sampler, 4) is None
    noise = torch.randn(4, 5, dtype=torch.float64)
    draw = sampler.place(noise[:, :2], noise)
    torch.testing.assert_close(draw.weights, wrapper(noise, ret_format="flattened"))
    unchanged = HPerturbWrapper(plain, sigma_noise=0.3).double()(noise, ret_format="flattened")
    assert (draw.weights - unchanged).abs().max() > 0.01
    log_prob = ChangeOfVariables().log_prob(sampler, draw)
    torch.testing.assert_close(log_prob, brute_force_log_prob(wrapper, noise), rtol=1e-6, atol=1e-6)


def test_a_forward_that_is_replaced_later_is_followed():
    hnet = hmlp()
    sampler = NoisySampler(HPerturbWrapper(hnet, sigma_noise=0.3))
    assert fused_mlp_draw(sampler, 2) is not None
    assert sampler.linear_head is hnet
    hnet.forward = types.MethodType(forward, hnet)
    assert fused_mlp_draw(sampler, 2) is None
    assert sampler.linear_head is None
    del hnet.forward
    assert fused_mlp_draw(sampler, 2) is not None


def test_a_class_of_torch_that_is_changed_is_noticed(monkeypatch):
    sampler = NoisySampler(HPerturbWrapper(hmlp(), sigma_noise=0.3))
    assert fused_mlp_draw(sampler, 2) is not None
    monkeypatch.setattr(nn.Tanh, "forward", lambda self, x: torch.sin(x))
    assert fused_mlp_draw(sampler, 2) is None


def test_hooks_of_a_dropout_of_rate_0_are_followed():
    """The fused form passed them by."""
    hnet = HMLP([[5]], 2, 0, (4,), activation_fn=nn.Tanh(), dropout_rate=0.0, verbose=False)
    sampler = NoisySampler(HPerturbWrapper(hnet, sigma_noise=0.3))
    assert fused_mlp_draw(sampler, 2) is not None
    hnet.dropout.register_forward_hook(lambda module, args, out: stretched(out))
    assert fused_mlp_draw(sampler, 2) is None


def test_parameters_of_a_layer_that_become_plain_tensors_are_followed():
    hnet = hmlp()
    sampler = NoisySampler(HPerturbWrapper(hnet, sigma_noise=0.3))
    doubled = {name: 2.0 * param.detach() for name, param in hnet.named_parameters()}
    torch.manual_seed(0)
    with torch.nn.utils.stateless._reparametrize_module(hnet, doubled):
        draw = ChangeOfVariables().draw(sampler, 3)
        expected = hnet(draw.z, ret_format="flattened") + 0.3 * draw.noise
    torch.testing.assert_close(draw.weights, expected)


def test_features_of_a_changed_network_are_refused():
    for make in (replaced, hooked, rows_replaced, lambda: hmlp(Stretched)):
        hnet = make()
        assert not hnet.has_linear_head
        assert hnet.tanh_layers() is None
        with pytest.raises(UsageError, match="features: the network has hooks, or computes its output otherwise"):
            hnet.features(torch.zeros(3, 2))
    assert hmlp().has_linear_head


def test_global_hooks_switch_the_fast_form_off():
    sampler = NoisySampler(HPerturbWrapper(hmlp(), sigma_noise=0.3))
    assert fused_mlp_draw(sampler, 2) is not None
    handle = modules.register_module_forward_hook(
        lambda module, args, out: stretched(out) if isinstance(module, HMLP) else None
    )
    try:
        assert fused_mlp_draw(sampler, 2) is None
        assert sampler.linear_head is None
        z = torch.randn(3, 2)
        torch.testing.assert_close(sampler.generate(z), sampler.generator(z, ret_format="flattened"))
    finally:
        handle.remove()
    assert (sampler.generate(z) - stretched(sampler.generate(z))).abs().max() > 1e-3
    assert sampler.linear_head is not None


def test_a_changed_wrapper_is_refused():
    class Derived(HPerturbWrapper):
        def forward(self, *args, **kwargs):
            return forward(self, *args, **kwargs)

    with pytest.raises(ArgumentError, match="hnet: the wrapper has a forward of its own, so how noise"):
        NoisySampler(Derived(hmlp(), sigma_noise=0.3))
    wrapper = HPerturbWrapper(hmlp(), sigma_noise=0.3)
    sampler = NoisySampler(wrapper)
    handle = wrapper.register_forward_hook(lambda module, args, out: out)
    for draw in (lambda: sampler.draw(2), lambda: ChangeOfVariables().draw(sampler, 2)):
        with pytest.raises(ArgumentError, match="hnet: the wrapper has hooks"):
            draw()
    handle.remove()
    assert sampler.draw(2).weights.shape == (2, 5)


def test_derivatives_of_changed_activations_are_not_known():
    for kind in (nn.Tanh, nn.Sigmoid, nn.ReLU):
        activation = kind()
        assert elementwise_derivative(activation) is not None
        activation.forward = torch.sin
        assert elementwise_derivative(activation) is None


@pytest.mark.parametrize("cond", [0, 3])
@pytest.mark.parametrize("kind", ["hook", "forward"])
def test_networks_inside_chunked_ones_are_called(kind, cond):
    torch.manual_seed(0)
    options = {"uncond_in_size": 2, "cond_in_size": cond, "layers": (4,), "verbose": False}
    if cond:
        options["num_cond_embs"] = 2
    chunked = ChunkedHMLP([[7]], 3, chunk_emb_size=2, **options)
    z, ids = torch.randn(2, 2), {"cond_id": [0, 1]} if cond else {}
    before = chunked(z, ret_format="flattened", **ids)
    inner = chunked.internal_hnet
    if kind == "hook":
        inner.register_forward_hook(lambda module, args, out: 2.0 * out)
    else:
        inner.forward = types.MethodType(lambda self, *a, **k: 2.0 * HMLP.forward(self, *a, **k), inner)
    torch.testing.assert_close(chunked(z, ret_format="flattened", **ids), 2.0 * before)


def test_networks_inside_structured_ones_are_called():
    hnet = StructuredHMLP(
        [[3], [3]], [[[3]]], [2], [2], {"layers": [4]}, lambda chunks: [t for c in chunks for t in c], False, 2, 0
    )
    z = torch.randn(4, 2)
    before = hnet(z, ret_format="flattened")
    hnet.internal_hnets[0].register_forward_hook(lambda module, args, out: 2.0 * out)
    torch.testing.assert_close(hnet(z, ret_format="flattened"), 2.0 * before)
