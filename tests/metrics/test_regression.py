from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics import MetricCollection
from torchmetrics.functional.regression import continuous_ranked_probability_score

from bayeshnet import metrics
from bayeshnet.errors import ArgumentError, ArgumentTypeError


def gaussian_crps(loc: torch.Tensor, scale: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Gneiting & Raftery (2007), equation 21."""
    z = (y - loc) / scale
    standard = torch.distributions.Normal(0.0, 1.0)
    return scale * (z * (2 * standard.cdf(z) - 1) + 2 * standard.log_prob(z).exp() - 1 / math.sqrt(math.pi))


def crps_by_definition(draws: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The mean over all pairs of different draws, one by one."""
    num_draws = draws.shape[0]
    pairs = (draws.unsqueeze(0) - draws.unsqueeze(1)).abs().sum((0, 1)) / (num_draws * (num_draws - 1))
    return (draws - y).abs().mean(0) - pairs / 2


@pytest.mark.parametrize("num_draws", [2, 5, 400])
def test_crps_of_gaussian_draws_has_the_closed_form_as_its_mean_for_any_number_of_draws(num_draws, device):
    # Every row is an independent estimate of the same number, so the standard error comes from the rows themselves.
    rows = 40_000 // num_draws * 10
    loc, scale, y = (torch.tensor(value, dtype=torch.float64, device=device) for value in (0.3, 1.7, -1.1))
    draws = loc + scale * torch.randn(num_draws, rows, dtype=torch.float64, device=device)
    scores = metrics.crps(draws, y.expand(rows), reduction="none")
    error = scores.std() / rows**0.5
    assert abs(scores.mean() - gaussian_crps(loc, scale, y)) < 4 * error
    assert error < 0.02


def test_crps_sorted_form_equals_the_mean_over_pairs(dtype, device):
    draws = torch.randn(30, 6, 2, dtype=dtype, device=device) * 3
    y = torch.randn(6, 2, dtype=dtype, device=device)
    torch.testing.assert_close(metrics.crps(draws, y, reduction="none"), crps_by_definition(draws, y))
    torch.testing.assert_close(metrics.crps(draws, y), crps_by_definition(draws, y).mean())


def test_crps_differs_from_torchmetrics_by_the_documented_term():
    draws, y = torch.randn(20, 8, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    spread = (draws - y).abs().mean(0) - metrics.crps(draws, y, reduction="none")  # half of E|X - X'|
    expected = metrics.crps(draws, y) + spread.mean() / 20
    torch.testing.assert_close(continuous_ranked_probability_score(draws.T, y), expected)


def test_crps_keeps_its_digits_under_a_large_common_offset():
    draws, y = torch.randn(50, 4, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    shifted = metrics.crps(draws.float() + 4096, y.float() + 4096)
    # Adding 4096 rounds every number to 2^-12 / 2; the score must not lose more than that.
    assert abs(shifted.double() - metrics.crps(draws, y)) < 2.0**-12


@settings(max_examples=25, deadline=None)
@given(shift=st.floats(-10, 10), scale=st.floats(0.1, 10), seed=st.integers(0, 1000))
def test_crps_moves_with_the_units(shift, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(10, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(3, generator=generator, dtype=torch.float64)
    expected = scale * metrics.crps(draws, y)
    torch.testing.assert_close(metrics.crps(shift + scale * draws, shift + scale * y), expected, atol=1e-9, rtol=1e-9)


def test_crps_prefers_the_true_spread():
    y = torch.randn(4000)
    scores = {scale: metrics.crps(scale * torch.randn(200, 4000), y).item() for scale in (0.4, 1.0, 2.5)}
    assert min(scores, key=scores.__getitem__) == 1.0


def test_rmse_and_log_predictive_density(dtype, device):
    mean = torch.randn(50, dtype=dtype, device=device)
    y = mean + 2.0
    torch.testing.assert_close(metrics.rmse(mean, y), torch.tensor(2.0, dtype=dtype, device=device))
    log_densities = torch.randn(7, 5, dtype=dtype, device=device) - 200  # whose exponential is 0 in float32
    density = metrics.log_predictive_density(log_densities)
    expected = (log_densities + 200).exp().mean(0).log() - 200
    torch.testing.assert_close(density, expected)
    torch.testing.assert_close(metrics.negative_log_likelihood(density), -density.mean())


def test_log_density_may_be_minus_infinity():
    assert metrics.negative_log_likelihood(torch.tensor([0.0, -math.inf])) == math.inf
    assert metrics.log_predictive_density(torch.tensor([[-math.inf], [0.0]])).item() == pytest.approx(-math.log(2))


@pytest.mark.parametrize("out", [None, 3])
def test_metrics_over_batches_equal_the_functions_over_all_rows(out, dtype, device):
    shape = (25,) if out is None else (25, out)
    draws = torch.randn(40, *shape, dtype=dtype, device=device)
    y = torch.randn(shape, dtype=dtype, device=device)
    streaming = MetricCollection(
        [
            metrics.RMSE(),
            metrics.CRPS(),
            metrics.IntervalCoverage(level=0.8),
            metrics.IntervalWidth(level=0.8),
        ]
    ).to(device)
    for rows in (slice(0, 10), slice(10, 13), slice(13, 25)):  # batches of different sizes count by their rows
        streaming.update(draws[:, rows], y[rows])
    scores = metrics.regression_scores(draws, y, level=0.8)
    for name, key in (("RMSE", "rmse"), ("CRPS", "crps"), ("IntervalCoverage", "coverage"), ("IntervalWidth", "width")):
        result = streaming.compute()[name]
        assert result.dtype == dtype
        assert result.item() == pytest.approx(scores[key], rel=1e-5)


def test_metric_states_reset_and_negative_log_likelihood_streams():
    metric = metrics.NegativeLogLikelihood()
    for _ in range(2):
        metric.update(torch.tensor([-1.0, -2.0]))
        metric.update(torch.tensor([-6.0]))
        assert metric.compute().item() == 3.0
        metric.reset()


def test_regression_scores_has_nll_only_with_a_density():
    draws, y = torch.randn(100, 9), torch.randn(9)
    assert list(metrics.regression_scores(draws, y)) == ["rmse", "crps", "coverage", "width"]
    scores = metrics.regression_scores(draws, y, log_density=torch.full((9,), -1.5))
    assert scores["nll"] == 1.5
    assert list(scores) == ["rmse", "nll", "crps", "coverage", "width"]
    assert all(type(value) is float for value in scores.values())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.rmse(torch.zeros(5, 1), torch.zeros(5)), r"mean: has shape \[5, 1\].*mean\.squeeze\(-1\)"),
        (lambda: metrics.rmse(torch.zeros(5), torch.zeros(5, 1)), r"y\.squeeze\(-1\)"),
        (lambda: metrics.rmse(torch.zeros(4), torch.zeros(5)), "same rows"),
        (lambda: metrics.crps(torch.zeros(3, 5, 1), torch.zeros(5)), r"\[S >= 2, 5\].*draws\.squeeze\(-1\)"),
        (lambda: metrics.crps(torch.zeros(3, 5), torch.zeros(5, 1)), r"y\.squeeze\(-1\)"),
        (lambda: metrics.crps(torch.zeros(5), torch.zeros(5)), r"draws\.unsqueeze\(0\)"),
        (lambda: metrics.crps(torch.zeros(5, 3), torch.zeros(5)), "same rows"),
        (lambda: metrics.crps(torch.zeros(1, 5), torch.zeros(5)), r"draws: holds 1 of them; pass at least 2"),
        (lambda: metrics.crps(torch.zeros(3, 5), torch.zeros(5), reduction="sum"), "'mean' or 'none'"),
        (lambda: metrics.rmse(torch.full((2,), math.nan), torch.zeros(2)), "mean: has 2 of 2 entries NaN or infinite"),
        (lambda: metrics.rmse(torch.zeros(2), torch.tensor([0.0, math.nan])), "y: has 1 of 2 entries"),
        (lambda: metrics.rmse(torch.zeros(0), torch.zeros(0)), "empty"),
        (lambda: metrics.log_predictive_density(torch.zeros(3)), r"pass \[S, B\]"),
        (lambda: metrics.negative_log_likelihood(torch.zeros(3, 2)), "log_predictive_density"),
        (lambda: metrics.negative_log_likelihood(torch.tensor([math.nan])), "NaN"),
        (
            lambda: metrics.regression_scores(torch.randn(3, 5), torch.zeros(5), log_density=torch.zeros(4)),
            "log_density: has 4 entries, and y has 5 rows",
        ),
        (lambda: metrics.RMSE().update(torch.zeros(3, 5, 1), torch.zeros(5)), r"draws\.squeeze\(-1\)"),
    ],
)
def test_bad_input_is_named_with_its_fix(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.rmse([0.0], torch.zeros(1)), r"mean: is a list.*torch\.as_tensor\(mean\)"),
        (lambda: metrics.crps(torch.zeros(3, 2), torch.zeros(2, dtype=torch.long)), r"y: has dtype torch\.int64"),
    ],
)
def test_bad_types_are_named_with_their_fix(call, message):
    with pytest.raises(ArgumentTypeError, match=message):
        call()
