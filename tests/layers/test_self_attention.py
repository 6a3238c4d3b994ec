# pyright: reportOptionalOperand=false

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.layers import SelfAttnLayerV2
from bayeshnet.layers.self_attention import self_attention, self_attention_shapes


def draw(channels, **options):
    return [torch.randn(shape, **options) for shape in self_attention_shapes(channels)]


def test_shapes():
    assert self_attention_shapes(3) == [(1, 3, 1, 1), (1,), (1, 3, 1, 1), (1,), (3, 3, 1, 1), (3,), (1,)]
    assert self_attention_shapes(17)[:2] == [(2, 17, 1, 1), (2,)]
    layer = SelfAttnLayerV2(17, False)
    assert layer.param_shapes == layer.weight_shapes == [list(shape) for shape in self_attention_shapes(17)]
    assert [tuple(p.shape) for p in layer.parameters()] == self_attention_shapes(17)
    assert SelfAttnLayerV2(17, False, no_weights=True).weights is None


def test_definition_pixel_by_pixel(dtype, device):
    options = {"dtype": dtype, "device": device}
    x, weights = torch.randn(2, 9, 3, 4, **options), draw(9, **options)
    out, attention = self_attention(x, weights, ret_attention=True)
    query_w, query_b, key_w, key_b, value_w, value_b, gamma = weights
    query, key, value = (
        F.conv2d(x, w, b).flatten(2) for w, b in ((query_w, query_b), (key_w, key_b), (value_w, value_b))
    )
    for b in range(2):
        for i in range(12):
            scores = torch.stack([query[b, :, i] @ key[b, :, j] for j in range(12)])
            share = scores.exp() / scores.exp().sum()
            torch.testing.assert_close(attention[b, i], share, rtol=1e-4, atol=1e-5)
            mean = sum(share[j] * value[b, :, j] for j in range(12))
            expected = gamma * mean + x[b, :, i // 4, i % 4]
            torch.testing.assert_close(out[b, :, i // 4, i % 4], expected, rtol=1e-4, atol=1e-5)


def test_rows_of_the_attention_sum_to_one():
    _, attention = SelfAttnLayerV2(8, False)(torch.randn(3, 8, 4, 5), ret_attention=True)
    assert attention.shape == (3, 20, 20)
    torch.testing.assert_close(attention.sum(dim=2), torch.ones(3, 20))


def test_starts_as_the_identity_and_learns():
    layer, x = SelfAttnLayerV2(8, False), torch.randn(2, 8, 4, 4)
    assert torch.equal(layer(x), x)
    with torch.no_grad():
        layer.weights[-1].fill_(0.5)
    layer(x).square().sum().backward()
    grads = [param.grad for param in layer.parameters()]
    assert all(grad is not None and grad.isfinite().all() for grad in grads)
    # A key bias shifts all scores of a row alike, which softmax does not see.
    assert all(grad.abs().max() > 1e-6 for i, grad in enumerate(grads) if i != 3)
    assert grads[3].abs().max() < 1e-4


def test_external_weights_and_changes():
    weights, changes, x = draw(8), draw(8), torch.randn(2, 8, 4, 4)
    own = SelfAttnLayerV2(8, False, init_weights=weights)
    empty = SelfAttnLayerV2(8, False, no_weights=True)
    expected = self_attention(x, weights)
    torch.testing.assert_close(own(x), expected)
    torch.testing.assert_close(empty(x, weights=weights), expected)
    changed = self_attention(x, [w + d for w, d in zip(weights, changes, strict=True)])
    torch.testing.assert_close(own(x, dWeights=changes), changed)
    torch.testing.assert_close(empty(x, weights=weights, dWeights=changes), changed)
    torch.testing.assert_close(list(own.weights), [nn.Parameter(w) for w in weights])  # nothing was changed in place


@pytest.mark.parametrize("source", ["own", "external", "changed"])
@pytest.mark.parametrize("training", [False, True])
def test_spectral_norm(source, training):
    weights, x = draw(16), torch.randn(2, 16, 3, 3)
    layer = SelfAttnLayerV2(16, True, init_weights=weights).train(training)
    normed = [w / torch.linalg.matrix_norm(w.flatten(1), 2) if w.dim() > 1 else w for w in weights]
    if source == "changed":
        half = [w / 2 for w in weights]
        out = layer(x, weights=half, dWeights=half)
    else:
        out = layer(x, weights=None if source == "own" else weights)
    torch.testing.assert_close(out, self_attention(x, normed), rtol=1e-4, atol=1e-5)
    updated = any(buffer.any() for buffer in layer.buffers())
    assert updated == (training and source == "own")
    assert [tuple(p.shape) for p in layer.parameters()] == self_attention_shapes(16)


def test_inside_vmap():
    samples = [torch.randn(4, *shape) for shape in self_attention_shapes(8)]
    x = torch.randn(2, 8, 3, 3)
    for layer in (SelfAttnLayerV2(8, False, no_weights=True), SelfAttnLayerV2(8, True, no_weights=True)):
        out = torch.func.vmap(lambda ws, layer=layer: layer(x, weights=list(ws)))(tuple(samples))
        loop = torch.stack([layer(x, weights=[w[s] for w in samples]) for s in range(4)])
        torch.testing.assert_close(out, loop, rtol=1e-4, atol=1e-5)


def test_copies_and_state(dtype):
    layer = SelfAttnLayerV2(8, True, init_weights=draw(8)).to(dtype)
    x = torch.randn(2, 8, 3, 3, dtype=dtype)
    layer(x)
    fresh = SelfAttnLayerV2(8, True).to(dtype)
    fresh.load_state_dict(layer.state_dict())
    layer.eval()
    for other in (fresh, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.testing.assert_close(other.eval()(x), layer(x))
    assert len(layer.state_dict()) == 7 + 3


def test_same_as_the_reference():
    pytest.importorskip("hypnettorch")
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cls = importlib.import_module("hypnettorch.utils.self_attention_layer").SelfAttnLayerV2
        theirs = cls(16, False)
    # Double precision: a softmax of large scores enlarges rounding errors.
    weights, changes = draw(16, dtype=torch.float64), draw(16, dtype=torch.float64)
    x = torch.randn(3, 16, 4, 5, dtype=torch.float64)
    ours = SelfAttnLayerV2(16, False, no_weights=True)
    assert ours.weight_shapes == [list(shape) for shape in theirs.weight_shapes]
    for args in ({"weights": weights}, {"weights": weights, "dWeights": changes}):
        expected = theirs(x, ret_attention=True, **args)
        torch.testing.assert_close(ours(x, ret_attention=True, **args), expected, rtol=1e-8, atol=1e-8)


def test_errors():
    with pytest.raises(ArgumentError, match="in_dim: is 0; pass the number of channels"):
        SelfAttnLayerV2(0, False)
    with pytest.raises(ArgumentTypeError, match="in_dim: is a float"):
        SelfAttnLayerV2(8.0, False)
    with pytest.raises(ArgumentError, match="init_weights: the layer keeps no weights"):
        SelfAttnLayerV2(8, False, no_weights=True, init_weights=draw(8))
    with pytest.raises(ArgumentError, match=r"init_weights: have shapes \[\[1, 4, 1, 1\]"):
        SelfAttnLayerV2(8, False, init_weights=draw(4))
    layer, x = SelfAttnLayerV2(8, False, no_weights=True), torch.randn(1, 8, 2, 2)
    with pytest.raises(ArgumentError, match=r"x: has shape \[1, 4, 2, 2\]; this layer takes \[B, 8, H, W\]"):
        layer(torch.randn(1, 4, 2, 2), weights=draw(8))
    with pytest.raises(ArgumentError, match=r"x: has shape \[8, 2, 2\]; pass images"):
        self_attention(x[0], draw(8))
    with pytest.raises(ArgumentError, match=r"weights: this layer keeps none; pass tensors of the shapes \[\[1, 8"):
        layer(x)
    with pytest.raises(ArgumentError, match="weights: have shapes .* then gamma"):
        layer(x, weights=draw(8)[:-1])
    with pytest.raises(ArgumentError, match="dWeights: have shapes"):
        layer(x, weights=draw(8), dWeights=draw(8)[:-1])
