"""Quantiles, and what is accepted as their levels."""

from __future__ import annotations

import pytest
import torch

from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.sites.quantiles import checked_level, checked_levels, sample_quantiles


def test_quantiles_are_those_of_torch():
    samples, levels = torch.randn(101, 3, 2), torch.tensor([0.0, 0.1, 0.25, 0.5, 0.999, 1.0])
    torch.testing.assert_close(sample_quantiles(samples, levels), torch.quantile(samples, levels, dim=0))


def test_level():
    assert checked_level("level", 0.9) == 0.9
    assert checked_level("level", torch.tensor([0.5])) == 0.5
    for bad in (0.0, 1.0, 90, float("nan"), -0.1):
        with pytest.raises(ArgumentError, match=f"level: is {bad}; pass a number between 0 and 1"):
            checked_level("level", bad)
    for bad in ("0.9", None, [0.1, 0.9], torch.zeros(2)):
        with pytest.raises(ArgumentTypeError, match="level: is .*; pass a number between 0 and 1"):
            checked_level("level", bad)


def test_levels():
    assert checked_levels("quantiles", [0.0, 0.25, 1.0]).tolist() == [0.0, 0.25, 1.0]
    assert checked_levels("quantiles", torch.tensor([0.5])).dtype == torch.double
    for bad in ([1.5], [-0.1], [float("nan")], 0.5, [[0.5]]):
        with pytest.raises(ArgumentError, match="quantiles: is .*; pass a list of numbers between 0 and 1"):
            checked_levels("quantiles", bad)
    for bad in ("half", ["half"], None):
        with pytest.raises(ArgumentTypeError, match="quantiles: is .*; pass a list of numbers between 0 and 1"):
            checked_levels("quantiles", bad)
