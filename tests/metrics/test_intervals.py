from __future__ import annotations

import math

import pytest
import torch

from bayeshnet import metrics
from bayeshnet.errors import ArgumentError


@pytest.mark.parametrize("shape", [(2, 3), (51, 7), (100, 4, 2)])
@pytest.mark.parametrize("level", [0.1, 0.5, 0.9, 0.999])
def test_interval_ends_are_the_quantiles_of_torch(shape, level, dtype, device):
    draws = torch.randn(shape, dtype=dtype, device=device)
    lower, upper = metrics.central_interval(draws, level=level)
    torch.testing.assert_close(lower, draws.quantile(0.5 - level / 2, dim=0))
    torch.testing.assert_close(upper, draws.quantile(0.5 + level / 2, dim=0))


def test_more_draws_than_older_torch_quantile_takes():
    draws = torch.linspace(-1.0, 1.0, 101).unsqueeze(-1).expand(101, 170_000)  # 17 million, over 2^24
    lower, upper = metrics.central_interval(draws, level=0.5)
    assert lower[0].item() == pytest.approx(-0.5, abs=1e-6)
    assert upper[-1].item() == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_coverage_and_width_of_a_calibrated_gaussian(level):
    rows, num_draws = 4000, 500
    loc = 3 * torch.randn(rows, dtype=torch.float64)
    y = loc + torch.randn(rows, dtype=torch.float64)
    draws = loc + torch.randn(num_draws, rows, dtype=torch.float64)
    lower, upper = metrics.central_interval(draws, level=level)
    # The share is binomial; that of intervals from S draws is lower by level * 2 / (S + 1).
    error = math.sqrt(level * (1 - level) / rows)
    assert abs(metrics.interval_coverage(lower, upper, y).item() - level) < 4 * error + 2 * level / num_draws
    normal = torch.distributions.Normal(0.0, 1.0)
    q = normal.icdf(torch.tensor(0.5 + level / 2, dtype=torch.float64)).item()
    # Standard error of a sample quantile, twice for the two ends, over the root of the rows; the bias is O(1/S).
    density = math.exp(normal.log_prob(torch.tensor(q)).item())
    error = 2 * math.sqrt((1 - level) / 2 * (1 + level) / 2 / num_draws) / density
    assert abs(metrics.interval_width(lower, upper).item() - 2 * q) < 4 * error / math.sqrt(rows) + 4 * q / num_draws


def test_too_narrow_intervals_are_seen():
    y = torch.randn(3000)
    lower, upper = metrics.central_interval(0.5 * torch.randn(300, 3000), level=0.9)
    # The truth is P(|z| < 0.5 * 1.645) = 0.589.
    assert metrics.interval_coverage(lower, upper, y).item() == pytest.approx(0.589, abs=0.04)


def test_ends_count_as_inside():
    ends = torch.tensor([1.0, 2.0])
    assert metrics.interval_coverage(ends, ends, ends).item() == 1.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.central_interval(torch.zeros(5)), r"\[S, B\] or \[S, B, out\]"),
        (lambda: metrics.central_interval(torch.zeros(1, 5)), "S >= 2"),
        (lambda: metrics.central_interval(torch.zeros(3, 5), level=90), r"level: is 90; .* such as 0\.9"),
        (lambda: metrics.IntervalCoverage(level=1.0), "level: is 1.0"),
        (lambda: metrics.IntervalWidth(level=0.0), "level: is 0.0"),
        (lambda: metrics.interval_coverage(torch.zeros(3), torch.ones(2), torch.zeros(3)), "upper: has shape"),
        (lambda: metrics.interval_coverage(torch.zeros(3), torch.ones(3), torch.zeros(3, 1)), r"y\.squeeze\(-1\)"),
        (lambda: metrics.interval_width(torch.ones(3), torch.zeros(3)), "3 of 3 intervals; pass the lower ends first"),
        (lambda: metrics.interval_width(torch.tensor([math.nan]), torch.zeros(1)), "lower: has 1 of 1"),
        (lambda: metrics.IntervalWidth().update(torch.zeros(3, 5), torch.zeros(5, 1)), r"y\.squeeze\(-1\)"),
    ],
)
def test_bad_input_is_named_with_its_fix(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()
