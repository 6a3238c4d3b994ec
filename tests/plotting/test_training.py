from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.plotting import elbo_trace


def test_running_mean_looks_back_and_starts_short():
    ax = elbo_trace(SimpleNamespace(losses=[4.0, 2.0, 6.0, 4.0]), window=2, label="a")
    raw, mean = ax.lines
    assert raw.get_xydata().tolist() == [[1, 4], [2, 2], [3, 6], [4, 4]]
    assert mean.get_ydata().tolist() == [4, 3, 4, 5]
    assert mean.get_label() == "a: mean of 2 steps"
    assert ax.get_ylabel() == "loss (negative ELBO)"


def test_losses_that_are_not_finite_are_marked_and_left_out_of_the_mean():
    ax = elbo_trace([2.0, math.nan, math.inf, 4.0], window=2)
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), [2.0, 2.0, math.nan, 4.0])
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["mean of 2 steps", "2 steps not finite"]


def test_high_first_steps_are_cut_off_and_said_to_be():
    steps = np.arange(1000)
    losses = 100 + 1e5 * np.exp(-steps / 10) + np.cos(steps)
    ax = elbo_trace(losses)
    assert ax.get_ylim()[1] < 200
    assert "cut off: losses up to 1e+05" in [text.get_text() for text in ax.get_legend().get_texts()]
    # A second fit on the same axes widens the view to hold its bulk too, and the note is not repeated.
    elbo_trace(losses + 500, color="C1", ax=ax)
    low, high = ax.get_ylim()
    assert low < 100
    assert high > 600
    assert sum(text.get_text().startswith("cut off") for text in ax.get_legend().get_texts()) == 1


def test_flat_and_single_losses_can_be_rendered():
    for losses in ([3.0], [3.0] * 200, np.linspace(5, 4, 200)):
        ax = elbo_trace(losses)
        ax.figure.canvas.draw()
        low, high = ax.get_ylim()
        assert low < min(losses) <= max(losses) < high


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: elbo_trace([math.nan, math.inf]), "no finite loss"),
        (lambda: elbo_trace([1.0, 2.0], window=0), "window: is 0"),
        (lambda: elbo_trace(np.zeros((3, 2))), r"history: has shape \[3, 2\]"),
        (lambda: elbo_trace([]), "not empty"),
    ],
)
def test_bad_input_is_named_with_its_fix(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()


def test_what_is_no_history_is_named():
    with pytest.raises(ArgumentTypeError, match="history: is an object"):
        elbo_trace(object())
