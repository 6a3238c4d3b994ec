"""What the initialisations are for: signals keep their scale in a 5-layer ReLU network."""

from __future__ import annotations

import pytest
import torch

from bayeshnet.hnets import HMLP, ChunkedHMLP
from bayeshnet.init import chunked_hyperfan_init, hyperfan_init
from bayeshnet.mnets import MLP

NET = MLP(32, 32, hidden_layers=(96, 64, 96, 64), no_weights=True, verbose=False)
NUM = 200


def hmlp(method):
    hnet = HMLP(NET.param_shapes, cond_in_size=64, layers=(64,), verbose=False)
    if method is not None:
        hyperfan_init(hnet, method, mnet=NET)
    return hnet


def chunked(method):
    hnet = ChunkedHMLP(NET.param_shapes, 1024, chunk_emb_size=64, cond_in_size=64, layers=(64,), verbose=False)
    if method is not None:
        with torch.no_grad():
            hnet.get_cond_in_emb(0).mul_(0.1)
        chunked_hyperfan_init(hnet, method, cond_var=0.01, mnet=NET)
    return hnet


def ratios(make, method):
    """Last over first activation variance, and first over last gradient variance: medians over initialisations."""
    x = torch.randn(100, 32)
    found = []
    for _ in range(NUM):
        layers, hidden = [], x
        weights = [weight.detach().requires_grad_() for weight in make(method)(cond_id=0)]
        for matrix, bias in zip(weights[::2], weights[1::2], strict=True):
            layers.append(hidden @ matrix.T + bias)
            hidden = layers[-1].relu()
        grads = torch.autograd.grad(layers[-1], layers, torch.randn_like(layers[-1]))
        pairs = [(layers[-1], layers[0]), (grads[0], grads[-1])]
        found.append([(one.detach().var() / two.detach().var()).item() for one, two in pairs])
    return torch.tensor(found).median(0).values.tolist()


@pytest.mark.parametrize("make", [hmlp, chunked])
def test_fan_in_keeps_activations(make):
    assert 0.6 <= ratios(make, "in")[0] <= 1.6


@pytest.mark.parametrize("make", [hmlp, chunked])
def test_fan_out_keeps_gradients(make):
    assert 0.6 <= ratios(make, "out")[1] <= 1.6


@pytest.mark.parametrize("make", [hmlp, chunked])
def test_the_default_keeps_neither(make):
    activations, gradients = ratios(make, None)
    assert not 0.6 <= activations <= 1.6
    assert not 0.6 <= gradients <= 1.6
