"""Pictures of calibration: does what is claimed with probability p happen in a share p of the cases?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes

from bayeshnet.checks import require_count
from bayeshnet.errors import ArgumentError
from bayeshnet.plotting._inputs import Array, ArrayLike, PredictionLike, check_draws, draw_legend, to_array, use_axes

__all__ = ["calibration_curve", "reliability_diagram"]

# Of the standard normal: the share of test sets inside the band of sampling error.
_Z95 = 1.959964


def calibration_curve(
    prediction: PredictionLike | ArrayLike,
    y: ArrayLike,
    *,
    levels: Sequence[float] | None = None,
    color: str = "C0",
    label: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Observed against expected coverage of the central prediction intervals of a regression.

    Below the diagonal, intervals are too narrow (over-confident); above, too wide. The grey band is where 95 % of the
    test sets of this size fall, level by level, if the model is calibrated and rows are independent: a curve inside it
    is no evidence of miscalibration.

    Args:
        prediction: What ``bayeshnet.predict`` returns, or predictive draws of observations ``[S, B]``.
        y: Targets ``[B]``.
        levels: Expected coverages, each between 0 and 1; by default 0.05, 0.1, ..., 0.95.
        color: Colour of the curve.
        label: Name of the prediction in the legend.
        ax: Axes to draw on; by default those of a new figure. Further curves share the diagonal of the first.

    Returns:
        The axes, with a legend.

    Raises:
        ArgumentError: If shapes do not fit or a level is out of range.
        ArgumentTypeError: If an argument is not an array of numbers.

    Example:
        >>> import torch
        >>> ax = calibration_curve(torch.randn(200, 50), torch.randn(50), label="standard normal")
        >>> ax.get_xlabel(), ax.get_ylabel()
        ('expected coverage', 'observed coverage')
    """
    targets = to_array("y", y, ndim=1)
    source = prediction.samples if isinstance(prediction, PredictionLike) else prediction
    draws = check_draws("prediction", source, targets.size, "y")
    expected = np.linspace(0.05, 0.95, 19) if levels is None else np.sort(to_array("levels", levels, ndim=1))
    if expected[0] <= 0 or expected[-1] >= 1:
        raise ArgumentError(
            f"levels: range from {expected[0]:g} to {expected[-1]:g}; pass numbers between 0 and 1, ends excluded."
        )
    lower = np.quantile(draws, 0.5 - expected / 2, axis=0)
    upper = np.quantile(draws, 0.5 + expected / 2, axis=0)
    observed = ((lower <= targets) & (targets <= upper)).mean(axis=1)
    ax = use_axes(ax, size=(4.4, 4.4))
    if _draw_diagonal(ax):
        grid = np.linspace(0, 1, 101)
        error = _Z95 * np.sqrt(grid * (1 - grid) / targets.size)
        ax.fill_between(
            grid,
            np.clip(grid - error, 0, 1),
            np.clip(grid + error, 0, 1),
            color="0.88",
            linewidth=0,
            zorder=0,
            label=f"sampling error, {targets.size} rows",
        )
    ax.plot(expected, observed, "o-", color=color, markersize=3.5, linewidth=1.6, zorder=3, label=label)
    ax.set_xlabel("expected coverage")
    ax.set_ylabel("observed coverage")
    draw_legend(ax, "upper left")
    return ax


def reliability_diagram(
    probs: ArrayLike,
    labels: ArrayLike,
    *,
    num_bins: int = 10,
    color: str = "C0",
    label: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Accuracy against confidence of a classifier, in bins of equal width, and the share of the rows in each bin.

    The vertical bars are 95 % Wilson intervals of each accuracy: bins of few rows say little. The legend has the
    expected calibration error over the same bins.

    Args:
        probs: Predictive probabilities ``[B, C]``, averaged over draws.
        labels: Classes ``[B]``, whole numbers from 0 to C - 1.
        num_bins: Number of bins between 0 and 1.
        color: Colour of the points.
        label: Name of the prediction in the legend.
        ax: Axes to draw on; by default those of a new figure.

    Returns:
        The axes, with a legend.

    Raises:
        ArgumentError: If shapes do not fit, rows do not sum to one, or a label or ``num_bins`` is out of range.
        ArgumentTypeError: If an argument is not an array of numbers.

    Example:
        >>> import torch
        >>> probs = torch.randn(200, 3).softmax(-1)
        >>> ax = reliability_diagram(probs, torch.multinomial(probs, 1).squeeze(-1))
        >>> ax.get_xlabel(), ax.get_ylabel()
        ('confidence', 'accuracy')
    """
    require_count("num_bins", num_bins)
    table, classes = _check_classes(probs, labels)
    confidence = table.max(1)
    correct = table.argmax(1) == classes
    edges = np.linspace(0, 1, num_bins + 1)
    # Bins hold their lower edge and not their upper one, except the last, which holds 1 too.
    bins = np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, num_bins - 1)
    count = np.bincount(bins, minlength=num_bins)
    used = count > 0
    rows = count[used]
    hits = np.bincount(bins, weights=correct, minlength=num_bins)[used]
    mean_confidence = np.bincount(bins, weights=confidence, minlength=num_bins)[used] / rows
    accuracy = hits / rows
    error = float(np.abs(accuracy - mean_confidence) @ rows / rows.sum())
    lower, upper = _wilson(hits, rows)
    ax = use_axes(ax, size=(4.4, 4.4))
    if _draw_diagonal(ax):
        share = count / count.sum()
        ax.bar(
            edges[:-1],
            share,
            width=1 / num_bins,
            align="edge",
            color="0.9",
            edgecolor="white",
            zorder=0,
            label="share of rows",
        )
    name = f"ECE {error:.3f}" if label is None else f"{label}: ECE {error:.3f}"
    ax.errorbar(
        mean_confidence,
        accuracy,
        # Rounding can put an end past the accuracy itself by 1e-17, which matplotlib refuses.
        yerr=np.maximum([accuracy - lower, upper - accuracy], 0),
        fmt="o-",
        color=color,
        markersize=4.5,
        linewidth=1.6,
        elinewidth=1.0,
        zorder=3,
        label=name,
    )
    ax.set_xlabel("confidence")
    ax.set_ylabel("accuracy")
    draw_legend(ax, "upper left")
    return ax


def _draw_diagonal(ax: Axes) -> bool:
    """Draw the line of perfect calibration unless an earlier call did; tells whether it was drawn now."""
    mark = "bayeshnet:diagonal"
    if any(line.get_gid() == mark for line in ax.lines):
        return False
    (line,) = ax.plot([0, 1], [0, 1], "--", color="0.45", linewidth=1.0, zorder=1, label="perfect calibration")
    line.set_gid(mark)
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    return True


def _wilson(hits: npt.NDArray[Any], rows: npt.NDArray[Any]) -> tuple[Array, Array]:
    """Interval of a binomial share, inside [0, 1] and of some width where all or none are hits (Wilson, 1927)."""
    z2 = _Z95**2
    centre = (hits + z2 / 2) / (rows + z2)
    half = _Z95 / (rows + z2) * np.sqrt(hits * (rows - hits) / rows + z2 / 4)
    return centre - half, centre + half


def _check_classes(probs: ArrayLike, labels: ArrayLike) -> tuple[Array, Array]:
    table = to_array("probs", probs, ndim=2)
    classes = to_array("labels", labels, ndim=1)
    if classes.size != table.shape[0]:
        raise ArgumentError(
            f"labels: has {classes.size} entries, and probs has shape {list(table.shape)}; pass one label per row."
        )
    if (table < 0).any() or (abs(table.sum(1) - 1) > 1e-3).any():
        raise ArgumentError(
            f"probs: has entries from {table.min():.3g} to {table.max():.3g}, and rows that sum to "
            f"{table.sum(1).min():.3g}..{table.sum(1).max():.3g}; pass probabilities from 0 to 1 with rows that sum "
            "to 1. For logits: probs.softmax(-1)."
        )
    if (classes % 1 != 0).any() or classes.min() < 0 or classes.max() >= table.shape[1]:
        raise ArgumentError(
            f"labels: range from {classes.min():g} to {classes.max():g}, and probs has {table.shape[1]} columns; pass "
            f"integers from 0 to {table.shape[1] - 1}."
        )
    return table, classes
