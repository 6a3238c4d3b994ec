"""Quantiles and the distribution function of a mixture over the first dimension of a batch: of all sampled networks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bayeshnet.sites.quantiles import sample_quantiles

__all__ = ["class_quantiles", "draw_quantiles", "mixture_cdf", "mixture_quantiles"]

_MOST_STEPS = 100
_EVERY = 3  # steps in which the bracket has to become half as wide


def mixture_cdf(base: Any, value: Tensor) -> Tensor | None:
    """``mean_s F(value | f_s)``; None if the distribution function is not known number by number.

    Example:
        >>> mixture_cdf(torch.distributions.Normal(torch.tensor([[0.0], [0.0]]), 1.0), torch.zeros(1))
        tensor([0.5000])
    """
    try:
        found = base.cdf(value)
    except (NotImplementedError, AttributeError):
        return None
    return found.mean(0) if found.shape[1:] == value.shape else None


def mixture_quantiles(base: Any, samples: Tensor, levels: Tensor) -> Tensor | None:
    """Quantiles of a mixture of continuous distributions ``[Q, B, ...]``, to the precision of its numbers.

    Newton's method on the distribution function, started at the quantile of the samples, within a bracket.

    Args:
        base: Its components ``[S, B, ...]``, with ``cdf`` and ``log_prob`` number by number.
        samples: A draw of each ``[S, B, ...]``.
        levels: ``[Q]`` between 0 and 1, both excluded.

    Returns:
        The quantiles, or None if the distribution function is not known.

    Example:
        >>> two = torch.distributions.Normal(torch.tensor([[-1.0], [1.0]]), 1.0)
        >>> float(mixture_quantiles(two, torch.tensor([[-1.5], [1.0]]), torch.tensor([0.5])).abs()) < 1e-6
        True
    """
    if mixture_cdf(base, samples[0]) is None or base.log_prob(samples[0]).shape != samples.shape:
        return None
    starts = sample_quantiles(samples, levels)
    low, high = samples.aminmax(dim=0)
    # Beyond the range of few samples, or of samples that are all the same, the ends are looked for.
    width = torch.maximum(high - low, 1e-3 * torch.maximum(high.abs(), low.abs())).clamp(min=1e-30)
    below, above = _bounds(base.support)
    found: list[Tensor] = []
    for level, start in zip(levels.tolist(), starts, strict=True):
        with torch.no_grad():
            ends = _widened(base, level, low, width, below, -1), _widened(base, level, high, width, above, 1)
            x = _solved(base, level, start, *ends)
        cdf = base.cdf(x).mean(0) if torch.is_grad_enabled() else x
        if cdf.requires_grad:  # one more step of Newton's method, whose derivative is that of the quantile
            x = x - (cdf - level) / base.log_prob(x).exp().mean(0).detach()
        found.append(x)
    return torch.stack(found)


def _bounds(support: Any) -> tuple[Any, Any]:
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return getattr(support, "lower_bound", None), getattr(support, "upper_bound", None)


def _widened(base: Any, level: float, end: Tensor, width: Tensor, bound: Any, sign: int) -> Tensor:
    """An end of a bracket of the quantile: moved away by steps that double, towards the bound of the support if any."""
    for _ in range(64):
        cdf = base.cdf(end).mean(0)
        missed = cdf >= level if sign < 0 else cdf < level
        if bound is not None:
            missed = missed & (end != bound)
        if not bool(missed.any()):
            break
        moved = end + sign * width
        if bound is not None:  # which need not be in the support itself
            moved = torch.where((moved - bound) * sign >= 0, bound + (end - bound) * 1e-3, moved)
        end, width = torch.where(missed, moved, end), 2 * width
    return end


def _solved(base: Any, level: float, x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    x = torch.minimum(torch.maximum(x, low), high)
    tolerance = 4 * torch.finfo(x.dtype).eps * torch.maximum(high - low, torch.maximum(high.abs(), low.abs()))
    width = high - low
    for step in range(_MOST_STEPS):
        cdf = base.cdf(x).mean(0)
        reached = cdf >= level
        high, low = torch.where(reached, x, high), torch.where(reached, low, x)
        newton = x - (cdf - level) / base.log_prob(x).exp().mean(0)
        usable = (newton >= low) & (newton <= high)  # not so where it is NaN
        if step % _EVERY == _EVERY - 1:
            usable, width = usable & (high - low <= 0.5 * width), high - low
        moved = torch.where(usable, newton, low + 0.5 * (high - low))
        done = ((moved - x).abs() <= tolerance) | (high - low <= tolerance)
        x = moved
        if bool(done.all()):
            break
    return x


def class_quantiles(values: Tensor, probs: Tensor, levels: Tensor) -> Tensor:
    """The smallest of ordered classes at which the sum of probabilities reaches each level ``[Q, B, ...]``.

    Args:
        values: The classes ``[C]`` in order.
        probs: Their probabilities ``[B, ..., C]``.
        levels: ``[Q]``.

    Example:
        >>> class_quantiles(torch.tensor([0.0, 1.0]), torch.tensor([[0.7, 0.3]]), torch.tensor([0.5, 0.9]))
        tensor([[0.],
                [1.]])
    """
    summed = probs.double().cumsum(-1)
    slack = 1e-6  # sums of probabilities in float32 are off by some 1e-7
    places = [(summed < float(level) - slack).sum(-1).clamp(max=len(values) - 1) for level in levels]
    return values[torch.stack(places)]


def draw_quantiles(samples: Tensor, levels: Tensor) -> Tensor:
    """Quantiles of whole numbers ``[S, B, ...]``: for each level the smallest draw that so many do not exceed.

    Example:
        >>> draw_quantiles(torch.tensor([[0.0], [1.0], [3.0], [4.0]]), torch.tensor([0.5, 0.6]))
        tensor([[1.],
                [3.]])
    """
    ordered = samples.sort(dim=0).values
    num = len(samples)
    places = (levels.double() * num - 1e-9).ceil().long().clamp(1, num) - 1
    return ordered[places.to(ordered.device)]
