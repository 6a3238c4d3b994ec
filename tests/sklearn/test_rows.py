"""Rows with weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bayeshnet.errors import ArgumentError
from bayeshnet.models import Standardization
from bayeshnet.sklearn._rows import merged, standardization_of


def test_repeated_rows_and_weights_are_the_same_to_the_bit():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((20, 3)), rng.standard_normal((20, 2))
    times = rng.integers(0, 4, 20)
    order = rng.permutation(20)
    of_weights = merged(x[order], y[order], times[order].astype(float))
    of_copies = merged(x.repeat(times, axis=0), y.repeat(times, axis=0), np.ones(times.sum()))
    for one, other in zip(of_weights, of_copies, strict=True):
        assert np.array_equal(one, other)
    assert len(of_weights[2]) == (times > 0).sum()
    assert of_weights[2].sum() == times.sum()


def test_equal_inputs_with_other_targets_stay_apart():
    x, y, weight = merged(np.ones((3, 1)), np.array([1.0, 0.0, 1.0]), np.ones(3))
    assert (y.tolist(), weight.tolist(), x.shape) == ([0.0, 1.0], [1.0, 2.0], (2, 1))


@pytest.mark.parametrize(("weight", "message"), [([1.0, -1.0], "1 are negative"), ([0.0, 0.0], "all are 0")])
def test_weights_that_are_none(weight, message):
    with pytest.raises(ArgumentError, match=f"^sample_weight: .*{message}"):
        merged(np.zeros((2, 1)), np.zeros(2), np.array(weight))


def test_statistics_are_those_of_the_repeated_rows():
    rng = np.random.default_rng(1)
    x = np.column_stack([1e6 + rng.standard_normal(50), np.full(50, 0.1)])
    y, times = rng.standard_normal((50, 2)), rng.integers(1, 4, 50)
    found = standardization_of(x, y, times.astype(float))
    copies = Standardization.of(*(torch.tensor(part.repeat(times, axis=0)) for part in (x, y)))
    torch.testing.assert_close(found.inputs[0].loc, copies.inputs[0].loc)
    assert found.inputs[0].scale[1] == copies.inputs[0].scale[1] == 1.0, "a constant column is only shifted"
    torch.testing.assert_close(found.inputs[0].scale, copies.inputs[0].scale)
    torch.testing.assert_close(found.targets.scale, copies.targets.scale)
    torch.testing.assert_close(found.targets.loc, copies.targets.loc)
    assert standardization_of(x, None, np.ones(50)).targets is None
