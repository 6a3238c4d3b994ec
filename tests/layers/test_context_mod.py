# pyright: reportOptionalOperand=false

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.nn import functional as F

from bayeshnet.errors import ArgumentError, UsageError
from bayeshnet.layers import ContextModLayer


def test_starts_as_identity():
    x = torch.randn(4, 3)
    for options in ({}, {"apply_gain_offset": True}, {"no_gains": True}, {"no_shifts": True}):
        torch.testing.assert_close(ContextModLayer(3, **options)(x), x)


@pytest.mark.parametrize(
    ("options", "factor"),
    [
        ({}, lambda g: g),
        ({"apply_gain_offset": True}, lambda g: 1 + g),
        ({"apply_gain_softplus": True, "softplus_scale": 2.0}, lambda g: F.softplus(2 * g) / 2),
    ],
)
def test_formula(options, factor, dtype):
    layer = ContextModLayer(3, no_weights=True, **options)
    x, gain, shift = (torch.randn(s, dtype=dtype) for s in ((4, 3), (3,), (3,)))
    torch.testing.assert_close(layer(x, weights=[gain, shift]), x * factor(gain) + shift)


def test_weights_per_sample():
    layer = ContextModLayer((2, 1, 1), no_weights=True)
    x, gain, shift = torch.randn(4, 2, 5, 5), torch.randn(4, 2, 1, 1), torch.randn(2, 1, 1)
    torch.testing.assert_close(layer(x, weights=[gain, shift]), x * gain + shift)
    layer = ContextModLayer(2, no_weights=True, no_shifts=True)
    x, gain = torch.randn(7, 4, 2), torch.randn(4, 2)
    torch.testing.assert_close(layer(x, weights=[gain], bs_dim=1), x * gain)
    x = torch.randn(4, 7, 2)
    torch.testing.assert_close(layer(x, weights=[gain]), x * gain[:, None])


def test_checkpoints():
    layer = ContextModLayer(2)
    with torch.no_grad():
        layer.gain.copy_(torch.tensor([2.0, 3.0]))
    layer.checkpoint_weights()
    assert layer.num_ckpts == 1
    torch.testing.assert_close(layer.get_weights(), (layer.gain, layer.shift))
    assert layer.gain.eq(1).all()
    x = torch.ones(1, 2)
    torch.testing.assert_close(layer(x, ckpt_id=0), torch.tensor([[2.0, 3.0]]))
    torch.testing.assert_close(layer(x, ckpt_id=1), x)
    layer.checkpoint_weights(device="cpu", no_reinit=True)
    fresh = ContextModLayer(2)
    fresh.load_state_dict(layer.state_dict())
    assert fresh.num_ckpts == 2
    for other in (fresh, pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        torch.testing.assert_close(other(x, ckpt_id=0), torch.tensor([[2.0, 3.0]]))


def test_initialisations():
    for offset, neutral in ((False, 1.0), (True, 0.0)):
        layer = ContextModLayer(1000, apply_gain_offset=offset)
        layer.normal_init(std=0.1)
        assert abs(layer.gain.mean() - neutral) < 0.02
        assert abs(layer.shift.std() - 0.1) < 0.02
        layer.uniform_init(width=0.1)
        assert 0.08 < (layer.gain - neutral).abs().max() <= 0.1
        layer.sparse_init(0.8)
        assert (layer.preprocess_gain(layer.gain) == 0).sum() == 800
        assert layer.shift.eq(0).all()


def test_description():
    layer = ContextModLayer([2, 1, 1], no_gains=True)
    assert layer.param_shapes == [[2, 1, 1]]
    assert layer.param_shapes_meta == ["shift"]
    assert not layer.has_gains
    assert layer.has_shifts
    assert not layer.gain_offset_applied
    assert not layer.gain_softplus_applied
    assert len(layer.weights) == 1
    assert ContextModLayer(2, no_weights=True).weights is None
    assert "shift" in repr(layer)


def test_errors():
    for options, match in (
        ({"num_features": 0}, "num_features: is 0"),
        ({"no_gains": True, "no_shifts": True}, "nothing is left"),
        ({"apply_gain_offset": True, "apply_gain_softplus": True}, "exclude each other"),
        ({"softplus_scale": 0.0}, "softplus_scale: is 0"),
    ):
        with pytest.raises(ArgumentError, match=match):
            ContextModLayer(**{"num_features": 3, **options})
    bare, layer, x = ContextModLayer(3, no_weights=True), ContextModLayer(3), torch.randn(4, 3)
    with pytest.raises(ArgumentError, match=r"weights: this layer keeps none; pass gain and shift of shape \[3\]"):
        bare(x)
    with pytest.raises(ArgumentError, match="1 tensors were given"):
        layer(x, weights=[torch.ones(3)])
    with pytest.raises(ArgumentError, match=r"the gain has shape \[2\]; expected \[3\], or \[4, 3\]"):
        layer(x, weights=[torch.ones(2), torch.ones(3)])
    with pytest.raises(ArgumentError, match=r"ckpt_id: 1 is not in 0\.\.0"):
        layer(x, ckpt_id=1)
    with pytest.raises(ArgumentError, match="sparsity: is 2"):
        layer.sparse_init(2)
    for method in (bare.checkpoint_weights, bare.normal_init, bare.uniform_init, bare.sparse_init):
        with pytest.raises(UsageError, match="keeps no weights"):
            method()
