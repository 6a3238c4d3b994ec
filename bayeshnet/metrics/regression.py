"""Scores of predictive distributions over real numbers, from draws or from log densities."""

from __future__ import annotations

import math
from typing import Literal

import torch

from bayeshnet.errors import ArgumentError
from bayeshnet.metrics._checks import check_draws, check_log_density, check_same_shape, check_tensor
from bayeshnet.metrics._streaming import MeanMetric
from bayeshnet.metrics.intervals import central_interval, interval_coverage, interval_width
from bayeshnet.typing import OutputDraws, RowDensities, RowValues, Scalar, Targets

__all__ = [
    "CRPS",
    "RMSE",
    "NegativeLogLikelihood",
    "crps",
    "log_predictive_density",
    "negative_log_likelihood",
    "regression_scores",
    "rmse",
]


def rmse(mean: Targets, y: Targets) -> Scalar:
    """Root of the mean squared error of a point prediction, in the units of the target.

    Args:
        mean: Predictive means ``[B]`` or ``[B, out]``.
        y: Targets, same shape.

    Returns:
        A scalar; with several outputs, over all of them.

    Raises:
        ArgumentError: If shapes differ (``[B, 1]`` and ``[B]`` do) or an entry is not finite.

    Example:
        >>> import torch
        >>> rmse(torch.tensor([0.0, 0.0]), torch.tensor([3.0, -3.0])).item()
        3.0
    """
    mean, y = check_tensor("mean", mean), check_tensor("y", y)
    check_same_shape("mean", mean, y)
    return (mean - y).square().mean().sqrt()


def log_predictive_density(log_densities: RowDensities) -> RowValues:
    """Log density of the predictive mixture, ``log (1/S) sum_s p(y | w_s)``, from the log density under each draw.

    The mean of the *densities*, not of their logs: the mean of logs is lower by Jensen's inequality and scores the
    average network, not the average of the networks.

    Args:
        log_densities: ``log p(y_b | w_s)`` as ``[S, B]``, summed over the outputs of a row.

    Returns:
        ``[B]``.

    Raises:
        ArgumentError: If the shape is not ``[S, B]`` or an entry is NaN.

    Example:
        >>> import torch
        >>> log_predictive_density(torch.tensor([[0.2, 0.5], [0.6, 0.5]]).log()).exp()
        tensor([0.4000, 0.5000])
    """
    log_densities = check_log_density("log_densities", log_densities, ndim=2)
    return torch.logsumexp(log_densities, 0) - math.log(log_densities.shape[0])


def negative_log_likelihood(log_density: RowValues) -> Scalar:
    """Mean negative log predictive density over the rows, in nats.

    Args:
        log_density: Log predictive density of each row ``[B]``, as :func:`log_predictive_density` gives it. It depends
            on the units of the target: if the targets were divided by ``std``, add ``log(std)`` to the result.

    Returns:
        A scalar; lower is better.

    Raises:
        ArgumentError: If the shape is not ``[B]`` or an entry is NaN.

    Example:
        >>> import torch
        >>> negative_log_likelihood(torch.tensor([-1.0, -2.0])).item()
        1.5
    """
    return -check_log_density("log_density", log_density, ndim=1).mean()


def crps(draws: OutputDraws, y: Targets, *, reduction: Literal["mean", "none"] = "mean") -> Scalar | Targets:
    r"""Continuous ranked probability score of predictive draws, in the units of the target.

    .. math::
        \mathrm{CRPS}(F, y) = \int (F(t) - 1[t \ge y])^2 \, dt
            = \mathrm{E} |X - y| - \tfrac{1}{2} \mathrm{E} |X - X'|,
        \qquad X, X' \sim F \text{ independent}

    The two means are taken over draws, the second over pairs of *different* draws (Gneiting & Raftery, 2007, and Ferro,
    2014, who calls it fair): its expected value is the score of the distribution itself for any number of draws, so
    results with different S compare. The more usual mean over all S^2 pairs (torchmetrics' too) is greater by
    ``E|X - X'| / (2 S)``. Sorting makes the second term linear, so time is O(S log S) and memory O(S) for each target.

    Args:
        draws: Predictive draws of observations ``[S, B]`` or ``[S, B, out]``, S at least 2.
        y: Targets ``[B]`` or ``[B, out]``.
        reduction: ``"mean"``, or ``"none"`` for the score of each target (for standard errors and paired comparisons).

    Returns:
        A scalar, or the shape of ``y``. Lower is better. A single score of few draws can be below zero.

    Raises:
        ArgumentError: If shapes do not fit, an entry is not finite, there is one draw only, or ``reduction`` unknown.

    Example:
        >>> import torch
        >>> crps(torch.tensor([[0.0], [1.0]]), torch.tensor([3.0])).item()
        2.0
    """
    if reduction not in ("mean", "none"):
        raise ArgumentError(f"reduction: is {reduction!r}; pass 'mean' or 'none'.")
    draws, y = check_draws(draws, y, at_least=2)
    # Both terms only know differences; taken from y first, a large common offset costs no digits.
    ordered = (draws - y).sort(0).values
    num_draws = draws.shape[0]
    ranks = torch.arange(num_draws, dtype=draws.dtype, device=draws.device)
    # The sum of x_(j) - x_(i) over i < j has draw k as the larger k times and as the smaller S - 1 - k times.
    signs = (2 * ranks - (num_draws - 1)) / (num_draws * (num_draws - 1))
    scores = ordered.abs().mean(0) - torch.tensordot(signs, ordered, dims=1)
    return scores.mean() if reduction == "mean" else scores


class RMSE(MeanMetric):
    """Root mean squared error of the mean of predictive draws, over any number of batches.

    Example:
        >>> import torch
        >>> metric = RMSE()
        >>> metric.update(torch.tensor([[1.0, 5.0], [3.0, 5.0]]), torch.tensor([2.0, 1.0]))
        >>> metric.update(torch.tensor([[1.0, 5.0], [3.0, 5.0]]), torch.tensor([2.0, 5.0]))
        >>> metric.compute().item()
        2.0
    """

    higher_is_better = False

    def update(self, draws: OutputDraws, y: Targets) -> None:
        """Add a batch: draws ``[S, B]`` or ``[S, B, out]``, targets ``[B]`` or ``[B, out]``."""
        draws, y = check_draws(draws, y)
        self.add((draws.mean(0) - y).square())

    def compute(self) -> Scalar:
        """The root of the mean over everything seen."""
        return super().compute().sqrt()


class CRPS(MeanMetric):
    """Mean of :func:`crps` over any number of batches.

    Example:
        >>> import torch
        >>> metric = CRPS()
        >>> metric.update(torch.tensor([[0.0], [1.0]]), torch.tensor([3.0]))
        >>> metric.compute().item()
        2.0
    """

    higher_is_better = False

    def update(self, draws: OutputDraws, y: Targets) -> None:
        """Add a batch: draws ``[S, B]`` or ``[S, B, out]``, targets ``[B]`` or ``[B, out]``."""
        self.add(crps(draws, y, reduction="none"))


class NegativeLogLikelihood(MeanMetric):
    """Mean negative log predictive density over any number of batches, in nats.

    Example:
        >>> import torch
        >>> metric = NegativeLogLikelihood()
        >>> metric.update(torch.tensor([-1.0, -3.0]))
        >>> metric.compute().item()
        2.0
    """

    higher_is_better = False

    def update(self, log_density: RowValues) -> None:
        """Add a batch: the log predictive density of each row, ``[B]``."""
        self.add(-check_log_density("log_density", log_density, ndim=1))


def regression_scores(
    draws: OutputDraws, y: Targets, *, log_density: RowValues | None = None, level: float = 0.9
) -> dict[str, float]:
    """The usual scores of a regression at once, as plain numbers for a table.

    Args:
        draws: Predictive draws of observations ``[S, B]`` or ``[S, B, out]``, S at least 2 and better 500.
        y: Targets ``[B]`` or ``[B, out]``.
        log_density: Log predictive density of each row ``[B]``; without it there is no ``"nll"``.
        level: Probability inside the intervals.

    Returns:
        ``"rmse"`` (of the mean of the draws), ``"nll"`` (if ``log_density`` is given), ``"crps"``, ``"coverage"`` and
        ``"width"`` (of the central interval of ``level``).

    Raises:
        ArgumentError: If shapes do not fit, an entry is not finite, or ``level`` is out of range.

    Example:
        >>> import torch
        >>> scores = regression_scores(torch.tensor([[0.0], [1.0]]), torch.tensor([0.5]))
        >>> {name: round(value, 3) for name, value in scores.items()}
        {'rmse': 0.0, 'crps': 0.0, 'coverage': 1.0, 'width': 0.9}
    """
    draws, y = check_draws(draws, y, at_least=2)
    scores = {"rmse": rmse(draws.mean(0), y).item()}
    if log_density is not None:
        log_density = check_log_density("log_density", log_density, ndim=1)
        if log_density.shape[0] != y.shape[0]:
            raise ArgumentError(
                f"log_density: has {log_density.shape[0]} entries, and y has {y.shape[0]} rows; pass one entry per row."
            )
        scores["nll"] = negative_log_likelihood(log_density).item()
    lower, upper = central_interval(draws, level=level)
    scores["crps"] = crps(draws, y).item()
    scores["coverage"] = interval_coverage(lower, upper, y).item()
    scores["width"] = interval_width(lower, upper).item()
    return scores
