"""Central prediction intervals: how often they hold the target, and how wide they are."""

from __future__ import annotations

import torch
from torch import Tensor

from bayeshnet.errors import ArgumentError
from bayeshnet.metrics._checks import check_draws, check_same_shape, check_tensor
from bayeshnet.metrics._streaming import MeanMetric
from bayeshnet.sites.quantiles import checked_level
from bayeshnet.typing import OutputDraws, Scalar, Targets

__all__ = ["IntervalCoverage", "IntervalWidth", "central_interval", "interval_coverage", "interval_width"]


def central_interval(draws: OutputDraws, *, level: float = 0.9) -> tuple[Targets, Targets]:
    """Central interval of the draws: between their quantiles at (1 - level) / 2 and (1 + level) / 2.

    Args:
        draws: Predictive draws ``[S, B]`` or ``[S, B, out]``, S at least 2. Draws of *observations*, noise included: an
            interval of functions alone does not claim to hold observations.
        level: Probability inside the interval, between 0 and 1.

    Returns:
        Lower and upper ends, each ``[B]`` or ``[B, out]``. Quantiles are interpolated linearly between draws, as
        ``torch.quantile`` does. With S draws an interval of level p holds about p (S - 1) / (S + 1): use hundreds.

    Raises:
        ArgumentError: If ``draws`` has less than two dimensions or draws, is not finite, or ``level`` is out of range.

    Example:
        >>> import torch
        >>> low, high = central_interval(torch.linspace(0.0, 1.0, 101).unsqueeze(-1), level=0.9)
        >>> round(low.item(), 4), round(high.item(), 4)
        (0.05, 0.95)
    """
    draws = check_tensor("draws", draws)
    level = checked_level("level", level)
    if draws.ndim < 2 or draws.shape[0] < 2:
        raise ArgumentError(
            f"draws: has shape {list(draws.shape)}; pass [S, B] or [S, B, out] with S >= 2, the draws first."
        )
    # Older torch.quantile (2.6 is allowed) refuses more than 2^24 elements: 500 draws at 40 000 rows. Sorting does not.
    ordered = draws.sort(0).values
    return _quantile(ordered, 0.5 - level / 2), _quantile(ordered, 0.5 + level / 2)


def interval_coverage(lower: Targets, upper: Targets, y: Targets) -> Scalar:
    """Share of targets inside their interval, ends included.

    Close to the interval's level for a calibrated model, within ``sqrt(level * (1 - level) / B)`` (one standard error).

    Args:
        lower: Lower ends ``[B]`` or ``[B, out]``.
        upper: Upper ends, same shape.
        y: Targets, same shape.

    Returns:
        A scalar between 0 and 1; with several outputs, the average over them.

    Raises:
        ArgumentError: If shapes differ, an entry is not finite, or a lower end is above its upper end.

    Example:
        >>> import torch
        >>> interval_coverage(torch.tensor([0.0, 0.0]), torch.tensor([1.0, 1.0]), torch.tensor([0.5, 2.0])).item()
        0.5
    """
    lower, upper = _check_ends(lower, upper)
    y = check_tensor("y", y)
    check_same_shape("lower", lower, y)
    return ((lower <= y) & (y <= upper)).to(lower.dtype).mean()


def interval_width(lower: Targets, upper: Targets) -> Scalar:
    """Mean width of the intervals, in the units of the target; at equal coverage, narrower is better.

    Args:
        lower: Lower ends ``[B]`` or ``[B, out]``.
        upper: Upper ends, same shape.

    Returns:
        A scalar.

    Raises:
        ArgumentError: If shapes differ, an entry is not finite, or a lower end is above its upper end.

    Example:
        >>> import torch
        >>> interval_width(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 4.0])).item()
        2.0
    """
    lower, upper = _check_ends(lower, upper)
    return (upper - lower).mean()


class IntervalCoverage(MeanMetric):
    """Coverage of the central intervals of predictive draws, over any number of batches.

    Args:
        level: Probability inside the interval, between 0 and 1.

    Example:
        >>> import torch
        >>> metric = IntervalCoverage(level=0.5)
        >>> metric.update(torch.linspace(0.0, 1.0, 101).expand(2, 101).T, torch.tensor([0.5, 0.9]))
        >>> metric.compute().item()
        0.5
    """

    level: float

    def __init__(self, *, level: float = 0.9) -> None:
        super().__init__()
        self.level = checked_level("level", level)

    def update(self, draws: OutputDraws, y: Targets) -> None:
        """Add a batch: draws ``[S, B]`` or ``[S, B, out]`` of observations, targets ``[B]`` or ``[B, out]``."""
        draws, y = check_draws(draws, y, at_least=2)
        lower, upper = central_interval(draws, level=self.level)
        self.add(((lower <= y) & (y <= upper)).to(draws.dtype))


class IntervalWidth(MeanMetric):
    """Mean width of the central intervals of predictive draws, over any number of batches.

    Args:
        level: Probability inside the interval, between 0 and 1.

    Example:
        >>> import torch
        >>> metric = IntervalWidth(level=0.5)
        >>> metric.update(torch.linspace(0.0, 1.0, 101).expand(2, 101).T, torch.tensor([0.5, 0.9]))
        >>> round(metric.compute().item(), 4)
        0.5
    """

    higher_is_better = False
    level: float

    def __init__(self, *, level: float = 0.9) -> None:
        super().__init__()
        self.level = checked_level("level", level)

    def update(self, draws: OutputDraws, y: Targets) -> None:
        """Add a batch; the targets are there so that it can share a ``MetricCollection`` with the other scores."""
        draws, _ = check_draws(draws, y, at_least=2)
        lower, upper = central_interval(draws, level=self.level)
        self.add(upper - lower)


def _check_ends(lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    lower, upper = check_tensor("lower", lower), check_tensor("upper", upper)
    if lower.shape != upper.shape:
        raise ArgumentError(
            f"upper: has shape {list(upper.shape)}, and lower has shape {list(lower.shape)}; pass one shape for both, "
            "[B] or [B, out]."
        )
    if (lower > upper).any():
        raise ArgumentError(
            f"lower: is above upper in {int((lower > upper).sum())} of {lower.numel()} intervals; pass the lower ends "
            "first."
        )
    return lower, upper


def _quantile(ordered: Tensor, q: float) -> Tensor:
    """Quantile q along the first dimension, which is sorted."""
    position = q * (ordered.shape[0] - 1)
    below = min(int(position), ordered.shape[0] - 2)
    return torch.lerp(ordered[below], ordered[below + 1], position - below)
