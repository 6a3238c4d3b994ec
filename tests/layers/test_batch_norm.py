# pyright: reportOptionalIterable=false, reportPossiblyUnboundVariable=false

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bayeshnet.errors import ArgumentError, UsageError
from bayeshnet.layers import BatchNormLayer


@pytest.mark.parametrize("shape", [(8, 3), (8, 3, 5), (8, 3, 4, 4)])
def test_is_pytorchs_batch_norm(shape, dtype, device):
    layer = BatchNormLayer(3, momentum=0.3).to(device, dtype)
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[len(shape)]
    peer = kind(3, momentum=0.3).to(device, dtype)
    for _ in range(3):
        x = torch.randn(shape, dtype=dtype, device=device)
        torch.testing.assert_close(layer(x), peer(x))
    torch.testing.assert_close(layer.get_stats(), (peer.running_mean, peer.running_var))
    torch.testing.assert_close(layer.eval()(x), peer.eval()(x))


def test_sets_of_statistics_are_kept_apart():
    layer = BatchNormLayer(2)
    first = torch.randn(50, 2) + 5
    layer(first)
    kept = [statistic.clone() for statistic in layer.get_stats(0)]
    layer.checkpoint_stats()
    assert layer.num_stats == 2
    torch.testing.assert_close(layer.get_stats(), (torch.zeros(2), torch.ones(2)))
    layer(torch.randn(50, 2) - 5, stats_id=1)
    torch.testing.assert_close(list(layer.get_stats(0)), kept)
    assert (layer.get_stats(1)[0] < 0).all()
    layer.eval()
    expected = F.batch_norm(first, *layer.get_stats(0), *layer.weights)
    torch.testing.assert_close(layer(first, stats_id=0), expected)
    torch.testing.assert_close(layer(first, stats_id=torch.tensor(0)), expected)


def test_checkpoints_follow_dtype():
    layer = BatchNormLayer(2).double()
    layer.checkpoint_stats(device="cpu")
    assert {b.dtype for b in layer.buffers()} == {torch.float64}


def test_state_dict_round_trip_with_checkpoints():
    layer = BatchNormLayer(2)
    layer.checkpoint_stats()
    layer(torch.randn(9, 2), stats_id=1)
    fresh = nn.Sequential(BatchNormLayer(2))
    fresh.load_state_dict(nn.Sequential(layer).state_dict())
    assert fresh[0].num_stats == 2
    torch.testing.assert_close(fresh[0].get_stats(1), layer.get_stats(1))
    for other in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        torch.testing.assert_close(other.get_stats(1), layer.get_stats(1))
    with pytest.raises(RuntimeError, match="mean_1"):
        layer.load_state_dict(BatchNormLayer(2).state_dict())


def test_given_statistics_have_priority():
    layer = BatchNormLayer(2, affine=False)
    mean, var = torch.tensor([1.0, 2.0]), torch.tensor([4.0, 9.0])
    x = torch.randn(6, 2)
    layer.eval()
    torch.testing.assert_close(layer(x, mean, var), (x - mean) / (var + 1e-5).sqrt())
    scale, shift = torch.randn(2), torch.randn(2)
    torch.testing.assert_close(layer(x, mean, var, scale, shift), (x - mean) / (var + 1e-5).sqrt() * scale + shift)
    layer.train()
    layer(x, mean, var)
    torch.testing.assert_close(mean, 0.9 * torch.tensor([1.0, 2.0]) + 0.1 * x.mean(0))


def test_gradients_reach_given_statistics():
    layer = BatchNormLayer(2).eval()
    mean, var = torch.zeros(2, requires_grad=True), torch.ones(2, requires_grad=True)
    x = torch.randn(6, 2, 3)
    out = layer(x, mean, var)
    torch.testing.assert_close(out, F.batch_norm(x, mean.detach(), var.detach()))
    grads = torch.autograd.grad(out.square().sum(), (mean, var))
    assert all(grad.abs().sum() > 0 for grad in grads)
    layer.train()
    layer(x, mean, var)
    assert mean.eq(0).all()  # part of a graph: not written to


def test_frozen_statistics_do_nothing():
    layer = BatchNormLayer(2, affine=False, track_running_stats=False, frozen_stats=True)
    x = 3 + torch.randn(6, 2)
    torch.testing.assert_close(layer(x), x / (1 + 1e-5) ** 0.5)
    assert layer.get_stats()[0].eq(0).all()


def test_learnable_statistics_are_parameters():
    layer = BatchNormLayer(2, affine=False, track_running_stats=False, learnable_stats=True)
    x = torch.randn(6, 2)
    torch.testing.assert_close(layer(x), x / (1 + 1e-5) ** 0.5)
    layer(x).square().sum().backward()
    assert [p.grad is not None for p in layer.parameters()] == [True, True]


def test_batch_statistics_without_tracking():
    layer = BatchNormLayer(2, affine=False, track_running_stats=False).eval()
    x = 3 + torch.randn(6, 2)
    torch.testing.assert_close(layer(x), F.batch_norm(x, None, None, training=True))
    assert layer.num_stats == 0
    assert layer.weights is None
    assert layer.param_shapes == [[2], [2]]


def test_under_vmap_in_evaluation():
    layer = BatchNormLayer(2, affine=False).eval()
    x, scale, shift = torch.randn(6, 2), torch.randn(4, 2), torch.randn(4, 2)
    out = torch.func.vmap(lambda s, b: layer(x, weight=s, bias=b))(scale, shift)
    torch.testing.assert_close(
        out, torch.stack([layer(x, weight=s, bias=b) for s, b in zip(scale, shift, strict=True)])
    )


def test_errors():
    for options, match in (
        ({"num_features": 0}, "num_features: is 0"),
        ({"momentum": None}, "momentum: is None"),
        ({"frozen_stats": True}, "frozen_stats: excludes tracking"),
        ({"learnable_stats": True}, "learnable_stats: excludes tracking"),
        ({"learnable_stats": True, "frozen_stats": True, "track_running_stats": False}, "pass one of the two"),
    ):
        with pytest.raises(ArgumentError, match=match):
            BatchNormLayer(**{"num_features": 3, **options})
    layer = BatchNormLayer(3)
    x = torch.randn(4, 3)
    with pytest.raises(ArgumentError, match=r"inputs: has shape \(3,\); this layer takes \[B, 3"):
        layer(x[0])
    with pytest.raises(ArgumentError, match="inputs: has shape"):
        layer(x[:, :2])
    with pytest.raises(ArgumentError, match="only one of the two"):
        layer(x, running_mean=torch.zeros(3))
    with pytest.raises(ArgumentError, match=r"stats_id: 1 is not in 0\.\.0"):
        layer(x, stats_id=1)
    layer.checkpoint_stats()
    with pytest.raises(ArgumentError, match="stats_id: is needed, because this layer has 2 sets"):
        layer(x)
    with pytest.raises(UsageError, match="track_running_stats=True"):
        BatchNormLayer(3, track_running_stats=False).checkpoint_stats()
    with pytest.raises(UsageError, match="keeps no statistics"):
        BatchNormLayer(3, track_running_stats=False).get_stats()
    assert "num_stats=2" in repr(layer)
