from __future__ import annotations

import math

import pytest
import torch
from torchmetrics import MetricCollection
from torchmetrics.functional.classification import multiclass_calibration_error

from bayeshnet import metrics
from bayeshnet.errors import ArgumentError, ArgumentTypeError


def some_predictions(rows: int = 300, classes: int = 4, **options) -> tuple[torch.Tensor, torch.Tensor]:
    probs = (2 * torch.randn(rows, classes, **options)).softmax(-1)
    return probs, torch.multinomial(probs, 1).squeeze(-1)  # calibrated: the labels follow the probabilities


def test_brier_score_equals_its_definition(dtype, device):
    probs, labels = some_predictions(dtype=dtype, device=device)
    one_hot = torch.nn.functional.one_hot(labels, 4).to(dtype)
    expected = (probs - one_hot).square().sum(-1)
    torch.testing.assert_close(metrics.brier_score(probs, labels, reduction="none"), expected)
    torch.testing.assert_close(metrics.brier_score(probs, labels), expected.mean())


@pytest.mark.parametrize("num_bins", [1, 10, 15])
def test_calibration_error_equals_torchmetrics(num_bins, dtype, device):
    probs, labels = some_predictions(dtype=dtype, device=device)
    probs = probs.square() / probs.square().sum(-1, keepdim=True)  # over-confident, so the error is not about 0
    expected = multiclass_calibration_error(probs, labels, num_classes=4, n_bins=num_bins, norm="l1")
    result = metrics.expected_calibration_error(probs, labels, num_bins=num_bins)
    torch.testing.assert_close(result, expected, check_dtype=False, atol=1e-5, rtol=1e-5)
    assert result.dtype == dtype


def test_calibration_error_of_calibrated_and_overconfident_predictions():
    probs, labels = some_predictions(rows=40_000, classes=2)
    # Each bin's gap is a mean of Bernoulli variables; E|gap| summed over bins is below sqrt(bins / rows) / 2.
    assert metrics.expected_calibration_error(probs, labels).item() < 2 * math.sqrt(15 / 40_000) / 2
    certain = torch.nn.functional.one_hot(probs.argmax(-1), 2).float()
    wrong = (certain.argmax(-1) != labels).float().mean().item()
    assert metrics.expected_calibration_error(certain, labels).item() == pytest.approx(wrong, abs=1e-6)


def test_metrics_over_batches_equal_the_functions_over_all_rows(dtype, device):
    probs, labels = some_predictions(dtype=dtype, device=device)
    streaming = MetricCollection([metrics.BrierScore(), metrics.ExpectedCalibrationError(num_bins=10)]).to(device)
    for rows in (slice(0, 7), slice(7, 200), slice(200, 300)):
        streaming.update(probs[rows], labels[rows])
    scores = metrics.classification_scores(probs, labels, num_bins=10)
    result = streaming.compute()
    assert result["BrierScore"].item() == pytest.approx(scores["brier"], rel=1e-5)
    assert result["ExpectedCalibrationError"].item() == pytest.approx(scores["ece"], rel=1e-5)
    assert result["ExpectedCalibrationError"].dtype == dtype


def test_classification_scores():
    probs, labels = some_predictions()
    scores = metrics.classification_scores(probs, labels)
    assert list(scores) == ["accuracy", "nll", "brier", "ece"]
    assert scores["accuracy"] == pytest.approx((probs.argmax(-1) == labels).float().mean().item())
    assert scores["nll"] == pytest.approx(torch.nn.functional.nll_loss(probs.log(), labels).item(), rel=1e-5)


def test_a_class_ruled_out_that_occurs_has_infinite_nll():
    scores = metrics.classification_scores(torch.tensor([[1.0, 0.0]]), torch.tensor([1]))
    assert scores["nll"] == math.inf
    assert scores["brier"] == 2.0


PROBS = torch.tensor([[0.5, 0.5], [0.1, 0.9], [1.0, 0.0]])
LABELS = torch.tensor([0, 1, 0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.brier_score(PROBS.expand(4, 3, 2), LABELS), r"probs\.mean\(0\)"),
        (lambda: metrics.brier_score(PROBS[:, 0], LABELS), r"pass \[B, C\]"),
        (lambda: metrics.brier_score(PROBS, LABELS[:2]), r"labels of shape \[3\]"),
        (lambda: metrics.brier_score(PROBS, LABELS.unsqueeze(-1)), "labels: has shape"),
        (lambda: metrics.brier_score(PROBS, LABELS + 1), "range from 1 to 2, .* numbered from 0 to 1"),
        (lambda: metrics.brier_score(PROBS, LABELS - 1), "range from -1 to 0"),
        (lambda: metrics.brier_score(PROBS.log1p(), LABELS), r"probs\.softmax\(-1\)"),
        (lambda: metrics.brier_score(2 * PROBS - 0.5, LABELS), "sum to 1"),
        (lambda: metrics.brier_score(PROBS * math.nan, LABELS), "probs: has 6 of 6 entries NaN"),
        (lambda: metrics.brier_score(PROBS, LABELS, reduction="sum"), "'mean' or 'none'"),
        (lambda: metrics.expected_calibration_error(PROBS, LABELS, num_bins=0), "num_bins: is 0"),
        (lambda: metrics.ExpectedCalibrationError(num_bins=-3), "num_bins: is -3"),
        (lambda: metrics.BrierScore().update(PROBS, LABELS[:2]), "labels of shape"),
    ],
)
def test_bad_input_is_named_with_its_fix(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.brier_score(PROBS, LABELS.float()), r"labels\.long\(\)"),
        (lambda: metrics.brier_score(PROBS, [0, 1, 0]), r"torch\.as_tensor\(labels\)"),
        (lambda: metrics.brier_score([[1.0, 0.0]], LABELS), "probs: is a list"),
    ],
)
def test_bad_types_are_named_with_their_fix(call, message):
    with pytest.raises(ArgumentTypeError, match=message):
        call()
