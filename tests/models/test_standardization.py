"""Means and standard deviations of data, as plain data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.models.standardization import Standardization, Statistics


def test_columns_channels_outputs():
    torch.manual_seed(0)
    x = torch.randn(50, 3).double() * torch.tensor([1.0, 10.0, 0.01]).double() + 5.0
    y = torch.randn(50, 2).double() * 3.0 - 2.0
    found = Standardization.of(x, y)
    np.testing.assert_allclose(found.inputs[0].loc, x.numpy().mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.inputs[0].scale, x.numpy().std(0), rtol=1e-12)
    np.testing.assert_allclose(found.targets.scale, y.numpy().std(0), rtol=1e-12)
    assert found.inputs[0].what == "column"
    assert found.targets.what == "output"
    images = Standardization.of(torch.rand(20, 3, 4, 4), torch.randint(3, (20,)))
    assert images.inputs[0].loc.shape == (3, 1, 1)
    assert images.inputs[0].what == "channel"
    assert images.targets is None
    sequences = torch.rand(20, 6, 4)
    assert Standardization.of(sequences).inputs[0].loc.shape == ()
    assert Standardization.of(sequences, feature_dim=-1).inputs[0].loc.shape == (4,)
    assert Standardization.of(sequences, feature_dim=1).inputs[0].loc.shape == (6, 1)
    # Targets [B, 1] and [B] have the same.
    assert Standardization.of(x, y[:, :1]).targets.loc.shape == ()


def test_what_is_left_as_it_is():
    ids, mask = torch.randint(5, (20, 7)), torch.rand(7, 7)
    found = Standardization.of((ids, torch.randn(20, 2), mask, None), torch.arange(20))
    assert [part is None for part in found.inputs] == [True, False, True, True]
    assert found.targets is None


def test_constant_columns_and_missing_targets():
    x = torch.cat([torch.randn(30, 1), torch.full((30, 1), 0.1), torch.zeros(30, 1)], dim=1)
    found = Standardization.of(x).inputs[0]
    torch.testing.assert_close(found.scale[1:], torch.ones(2))
    torch.testing.assert_close(found.loc[1:], torch.tensor([0.1, 0.0]))
    y = torch.tensor([1.0, torch.nan, 3.0])
    found = Standardization.of(torch.randn(3, 1), y).targets
    assert (float(found.loc), float(found.scale)) == (2.0, 1.0)


def test_large_offsets_in_single_precision():
    torch.manual_seed(0)
    z = torch.randint(-3, 4, (10_000, 1)).float()
    found = Standardization.of(1e6 + z).inputs[0]
    exact = 1e6 + z.double()
    assert abs(float(found.loc) - float(exact.mean())) <= 1e6 * torch.finfo(torch.float32).eps
    assert float(found.scale) == pytest.approx(float(exact.std(correction=0)), rel=1e-6)
    assert found.loc.dtype == torch.float32


def test_batches_are_one_set_and_leave_the_random_stream():
    torch.manual_seed(0)
    x, y = 1e5 + torch.randn(101, 3).double(), 7.0 * torch.randn(101).double()
    whole = Standardization.of(x, y)
    loader = DataLoader(TensorDataset(x, y), batch_size=10, shuffle=True)
    state = torch.get_rng_state()
    parts = Standardization.of_batches(loader)
    assert torch.equal(torch.get_rng_state(), state)
    dicts = Standardization.of_batches([{"x": x[:60], "y": y[:60]}, {"x": x[60:], "y": y[60:]}])
    for found in (parts, dicts):
        torch.testing.assert_close(found.inputs[0].loc, whole.inputs[0].loc, rtol=1e-12, atol=0)
        torch.testing.assert_close(found.inputs[0].scale, whole.inputs[0].scale, rtol=1e-9, atol=0)
        torch.testing.assert_close(found.targets.scale, whole.targets.scale, rtol=1e-9, atol=0)


def test_refused():
    x = torch.randn(5, 2)
    with pytest.raises(ArgumentError, match="NaN or infinite"):
        Standardization.of(torch.full((5, 2), torch.nan))
    with pytest.raises(ArgumentError, match="infinite"):
        Standardization.of(x, torch.full((5,), torch.inf))
    with pytest.raises(ArgumentError, match="two rows"):
        Standardization.of(x[:1])
    with pytest.raises(ArgumentError, match="feature_dim: is 3"):
        Standardization.of(x, feature_dim=3)
    with pytest.raises(ArgumentTypeError, match="x: is a ndarray of dtype object, which holds no numbers"):
        Standardization.of(x.numpy().astype(object))
    with pytest.raises(ArgumentTypeError, match="y: is"):
        Standardization.of(x, [1.0] * 5)
    with pytest.raises(ArgumentError, match="not positive"):
        Statistics(0.0, 0.0)
    with pytest.raises(ArgumentError, match="have shapes"):
        Statistics(torch.zeros(2), torch.ones(3))
    with pytest.raises(ArgumentTypeError, match="int64"):
        Statistics(torch.zeros(2).long(), torch.ones(2))
    with pytest.raises(ArgumentTypeError, match="pass Statistics"):
        Standardization(targets=3.0)
