from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes

from bayeshnet import metrics
from bayeshnet.errors import ArgumentError
from bayeshnet.plotting import calibration_curve, reliability_diagram


def curve_of(ax: Axes, label: str) -> np.ndarray:
    (line,) = (line for line in ax.lines if line.get_label() == label)
    return np.asarray(line.get_xydata())


def test_curve_is_the_coverage_of_metrics_at_each_level():
    draws, y = torch.randn(101, 60, dtype=torch.float64), torch.randn(60, dtype=torch.float64)
    ax = calibration_curve(draws, y, levels=[0.9, 0.3], label="a")
    for level, observed in curve_of(ax, "a"):
        expected = metrics.interval_coverage(*metrics.central_interval(draws, level=level), y)
        assert observed == pytest.approx(expected.item())
    assert curve_of(ax, "a")[:, 0].tolist() == [0.3, 0.9]


def test_calibrated_curve_lies_in_the_band_and_a_narrow_one_below_it():
    rows = 2000
    y = torch.randn(rows)
    prediction = SimpleNamespace(draws=torch.zeros(500, rows), samples=torch.randn(500, rows), mean=torch.zeros(rows))
    ax = calibration_curve(prediction, y, label="calibrated")
    calibration_curve(0.5 * prediction.samples, y, label="narrow", color="C1", ax=ax)
    expected, observed = curve_of(ax, "calibrated").T
    # 19 correlated levels: 4 standard errors, and S = 500 draws lose 2 p / (S + 1).
    assert (abs(observed - expected) < 4 * np.sqrt(expected * (1 - expected) / rows) + 2 * expected / 501).all()
    expected, observed = curve_of(ax, "narrow").T
    assert (observed < expected).all()
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["perfect calibration", "sampling error, 2000 rows", "calibrated", "narrow"]  # the diagonal once


def test_reliability_diagram_has_the_error_of_metrics_in_its_legend():
    logits = 3 * torch.randn(500, 3)
    probs, y = logits.softmax(-1), torch.multinomial((logits / 2).softmax(-1), 1).squeeze(-1)
    ax = reliability_diagram(probs, y, label="model", num_bins=8)
    error = metrics.expected_calibration_error(probs, y, num_bins=8).item()
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert f"model: ECE {error:.3f}" in labels
    # Bars are shares of all rows.
    assert sum(bar.get_height() for bar in ax.patches) == pytest.approx(1.0)
    points = ax.containers[-1].lines[0].get_xydata()
    assert ((points >= 0) & (points <= 1)).all()
    reliability_diagram(probs, y, ax=ax, color="C1")
    assert sum(line.get_label() == "perfect calibration" for line in ax.lines) == 1


def test_reliability_diagram_of_certain_predictions_can_be_rendered():
    ax = reliability_diagram([[1.0, 0.0], [0.0, 1.0]], np.array([0, 1]))
    ax.figure.canvas.draw()
    (segment,) = ax.containers[-1].lines[2][0].get_segments()
    # Two hits of two: Wilson's interval goes from 1 / (1 + 1.96^2 / 2) up to 1.
    np.testing.assert_allclose(segment[:, 1], [1 / (1 + 1.959964**2 / 2), 1.0], rtol=1e-6)


PROBS = torch.tensor([[0.5, 0.5], [0.1, 0.9]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: calibration_curve(torch.zeros(9, 4), torch.zeros(5)), r"y has 5 rows; pass \[S >= 2, 5\]"),
        (lambda: calibration_curve(torch.zeros(9, 4), torch.zeros(4), levels=[0.5, 1.0]), "from 0.5 to 1"),
        (lambda: calibration_curve(torch.full((9, 4), math.nan), torch.zeros(4)), "prediction: has 36 of 36"),
        (lambda: reliability_diagram(PROBS, [0, 1, 1]), "labels: has 3 entries"),
        (lambda: reliability_diagram(PROBS, [0, 2]), "range from 0 to 2"),
        (lambda: reliability_diagram(PROBS, [0, 0.5]), "integers"),
        (lambda: reliability_diagram(2 * PROBS, [0, 1]), r"probs\.softmax\(-1\)"),
        (lambda: reliability_diagram(PROBS, [0, 1], num_bins=0), "num_bins: is 0"),
    ],
)
def test_bad_input_is_named_with_its_fix(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()
