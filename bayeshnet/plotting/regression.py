"""The picture of a regression over one input."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from bayeshnet.errors import ArgumentError
from bayeshnet.plotting._inputs import Array, ArrayLike, PredictionLike, check_draws, draw_legend, to_array, use_axes

__all__ = ["regression_band"]


def regression_band(
    x: ArrayLike,
    prediction: PredictionLike | ArrayLike,
    *,
    function_draws: ArrayLike | None = None,
    train: tuple[ArrayLike, ArrayLike] | None = None,
    levels: Sequence[float] = (0.9,),
    color: str = "C0",
    label: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Mean, band of the functions (epistemic) and band of the observations (epistemic and noise) over one input.

    Args:
        x: Input that is varied, ``[B]``, in any order.
        prediction: What ``bayeshnet.predict`` returns, or predictive draws of observations ``[S, B]``.
        function_draws: Draws of functions ``[S, B]``, where ``prediction`` is an array; without them the band of the
            functions is not drawn.
        train: Training inputs and targets ``[N]`` to draw as points.
        levels: Probabilities inside the bands, each between 0 and 1.
        color: Colour of line and bands; bands are translucent, so two predictions can share axes.
        label: Name of the prediction, put before the entries of the legend.
        ax: Axes to draw on; by default those of a new figure.

    Returns:
        The axes, with a legend. Show or save it with ``ax.figure``.

    Raises:
        ArgumentError: If shapes do not fit, a level is out of range, or functions are given twice.
        ArgumentTypeError: If an argument is not an array of numbers.

    Example:
        >>> import torch
        >>> x = torch.linspace(-1.0, 1.0, 20)
        >>> functions = torch.randn(100, 1) * x
        >>> ax = regression_band(x, functions + 0.1 * torch.randn(100, 20), function_draws=functions)
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['mean', '90 % of functions', '90 % of observations']
    """
    inputs = to_array("x", x, ndim=1)
    for level in levels:
        if not 0.0 < level < 1.0:
            raise ArgumentError(f"levels: holds {level}; pass numbers between 0 and 1, such as levels=(0.5, 0.9).")
    mean, functions, observations = _parts(prediction, function_draws, inputs.size)
    ax = use_axes(ax, size=(6.4, 4.0))
    order = np.argsort(inputs, kind="stable")
    prefix = "" if label is None else f"{label}: "
    if train is not None:
        points = to_array("train[0]", train[0], ndim=1), to_array("train[1]", train[1], ndim=1)
        if points[0].shape != points[1].shape:
            raise ArgumentError(
                f"train: holds {points[0].size} inputs and {points[1].size} targets; pass as many of each."
            )
        ax.plot(
            *points, "o", color="0.25", markersize=3.5, markeredgewidth=0, alpha=0.65, zorder=1.5, label="training data"
        )
    ax.plot(inputs[order], mean[order], color=color, linewidth=1.8, zorder=3, label=f"{prefix}mean")
    bands = [(observations, 0.16, "observations", 1.0)]
    if functions is not None:
        bands.insert(0, (functions, 0.38, "functions", 2.0))
    for draws, alpha, of_what, zorder in bands:
        for level in sorted(levels):
            lower, upper = np.quantile(draws, [0.5 - level / 2, 0.5 + level / 2], axis=0)
            ax.fill_between(
                inputs[order],
                lower[order],
                upper[order],
                color=color,
                alpha=alpha,
                linewidth=0,
                zorder=zorder,
                label=f"{prefix}{100 * level:g} % of {of_what}",
            )
    ax.margins(x=0)
    ax.set_xlabel(ax.get_xlabel() or "x")
    ax.set_ylabel(ax.get_ylabel() or "y")
    draw_legend(ax, "best")
    return ax


def _parts(
    prediction: PredictionLike | ArrayLike, function_draws: ArrayLike | None, num_rows: int
) -> tuple[Array, Array | None, Array]:
    """Mean ``[B]``, functions ``[S, B]`` if known, and observations ``[S, B]``."""
    if isinstance(prediction, PredictionLike):
        if function_draws is not None:
            raise ArgumentError("function_draws: is given, and prediction has draws of its own; pass one of the two.")
        mean = to_array("prediction.mean", prediction.mean, ndim=1)
        # Outputs need not be functions: of counts they are logarithms of rates.
        found = getattr(prediction, "functions", prediction.draws)
        functions = check_draws("prediction.functions", found, num_rows, "x")
        return mean, functions, check_draws("prediction.samples", prediction.samples, num_rows, "x")
    observations = check_draws("prediction", prediction, num_rows, "x")
    if function_draws is None:
        return observations.mean(0), None, observations
    functions = check_draws("function_draws", function_draws, num_rows, "x")
    # The noise averages out in both; the mean of functions is the smoother estimate.
    return functions.mean(0), functions, observations
