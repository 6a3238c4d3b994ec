"""The picture of functions that a prior gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from bayeshnet.checks import kind_of, require_count
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.evaluation import prior_predictive
from bayeshnet.plotting._inputs import draw_legend, to_array, use_axes

__all__ = ["prior_functions"]


def prior_functions(
    model: Any,
    x: Tensor,
    *,
    column: int = 0,
    output: int = 0,
    num_functions: int = 12,
    num_samples: int = 500,
    num_points: int = 200,
    level: float = 0.9,
    generator: torch.Generator | None = None,
    color: str = "C0",
    label: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Functions drawn from the prior along one input, and the band that holds most of them.

    The input is varied over the range that it has in ``x``; the others, if there are any, stay at their medians: a
    slice.

    Args:
        model: The Bayesian network.
        x: Inputs ``[B, K]``.
        column: The input that is varied.
        output: The output that is drawn, of several.
        num_functions: Number of functions that are drawn as lines.
        num_samples: Number of functions for the bands.
        num_points: Number of places of each function.
        level: Probability inside the bands of functions and of observations.
        generator: Where random numbers come from; the global one by default.
        color: Colour of lines and bands.
        label: Name of the prior, put before the entries of the legend.
        ax: Axes to draw on; by default those of a new figure.

    Returns:
        The axes, with a legend.

    Raises:
        ArgumentError: If a number is out of range, or inputs are not finite.
        ArgumentTypeError: If inputs are no floating-point tensor ``[B, K]``.

    Example:
        >>> from torch import nn
        >>> from bayeshnet import BayesianModel, likelihoods, priors
        >>> net = nn.Sequential(nn.Linear(1, 20), nn.Tanh(), nn.Linear(20, 1))
        >>> model = BayesianModel(net, priors.Normal(1.0), likelihoods.Normal(scale=0.1))
        >>> ax = prior_functions(model, torch.linspace(-1.0, 1.0, 20)[:, None])
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['12 functions', '90 % of functions', '90 % of observations']
    """
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() != 2:
        raise ArgumentTypeError(f"x: is {kind_of(x)}; pass a floating-point tensor of inputs [B, K].")
    if not bool(torch.isfinite(x).all()) or not len(x):
        raise ArgumentError("x: is empty or has entries that are not finite; pass finite inputs.")
    if not 0 <= column < x.shape[1]:
        raise ArgumentError(f"column: is {column}, and x has {x.shape[1]} columns; pass one of 0 to {x.shape[1] - 1}.")
    require_count("num_functions", num_functions)
    require_count("num_samples", num_samples, least=2)
    require_count("num_points", num_points, least=2)
    if not 0.0 < level < 1.0:
        raise ArgumentError(f"level: is {level}; pass a number between 0 and 1.")
    grid = x.median(0).values.repeat(num_points, 1)
    grid[:, column] = torch.linspace(float(x[:, column].min()), float(x[:, column].max()), num_points)
    pred = prior_predictive(model, grid, max(num_samples, num_functions), generator=generator)
    functions = _of_output("functions", pred.functions, output)
    observations = None if pred.is_classification else _of_output("samples", pred.samples, output)
    ax = use_axes(ax, size=(6.4, 4.0))
    inputs = to_array("x", grid[:, column], ndim=1)
    prefix = "" if label is None else f"{label}: "
    lines = ax.plot(inputs, functions[:num_functions].T, color=color, linewidth=1.0, alpha=0.8, zorder=3)
    lines[0].set_label(f"{prefix}{num_functions} function{'s' * (num_functions != 1)}")
    bands = [(functions, 0.3, "functions", 2.0), (observations, 0.14, "observations", 1.0)]
    for draws, alpha, of_what, zorder in bands:
        if draws is not None:
            lower, upper = np.quantile(draws, [0.5 - level / 2, 0.5 + level / 2], axis=0)
            name = f"{prefix}{100 * level:g} % of {of_what}"
            ax.fill_between(inputs, lower, upper, color=color, alpha=alpha, linewidth=0, zorder=zorder, label=name)
    ax.margins(x=0)
    others = "" if x.shape[1] == 1 else f" (input {column}, the others at their medians)"
    ax.set_xlabel(ax.get_xlabel() or f"x{others}")
    ax.set_ylabel(ax.get_ylabel() or "f(x)")
    draw_legend(ax, "best")
    return ax


def _of_output(name: str, value: Tensor, output: int) -> Any:
    flat = value.reshape(*value.shape[:2], -1)
    if not 0 <= output < flat.shape[2]:
        raise ArgumentError(
            f"output: is {output}, and there are {flat.shape[2]}; pass one of 0 to {flat.shape[2] - 1}."
        )
    return to_array(name, flat[..., output], ndim=2)
