"""Quantiles and the distribution function of a mixture over the first dimension of a batch: of all sampled networks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Normal

from bayeshnet.sites.quantiles import in_order, sample_quantiles

__all__ = ["class_quantiles", "count_quantiles", "draw_quantiles", "mixture_cdf", "mixture_quantiles"]

_MOST_STEPS = 200


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
    if _differs(base.support):
        return None
    try:
        ends = samples.aminmax(dim=0)
        known = [mixture_cdf(base, end) is not None and base.log_prob(end).shape == samples.shape for end in ends]
    except ValueError:  # Pyro's validation: what is possible for one network is not for another
        return None
    if not all(known):
        return None
    starts = sample_quantiles(samples, levels)
    found: list[Tensor] = []
    with torch.no_grad():
        both = _cdf_and_density(base)
        low, high = samples.aminmax(dim=0)
        below, above = both(low)[0], both(high)[0]
    for level, start in zip(levels.tolist(), starts, strict=True):
        with torch.no_grad():
            ends = low, high
            if not bool(((below < level) & (above >= level)).all()):
                ends = _bracket(base, level, low, high)
            x = _solved(both, level, start, *ends)
        if torch.is_grad_enabled():
            cdf = base.cdf(x).mean(0)
            if cdf.requires_grad:  # one more step of Newton's method, whose derivative is that of the quantile
                x = x - (cdf - level) / base.log_prob(x).exp().mean(0).detach()
        found.append(x)
    return torch.stack(found)


def _cdf_and_density(base: Any) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Distribution function and density of the mixture; those of Gaussians are written out, at half the time."""
    if not isinstance(base, Normal) or type(base).cdf is not Normal.cdf:
        return lambda x: (base.cdf(x).mean(0), base.log_prob(x).exp().mean(0))
    loc, precision = base.loc, base.scale.reciprocal()
    least = math.log(torch.finfo(loc.dtype).tiny) + 8.0  # below are subnormal numbers, which take ten times as long

    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        z = (x - loc).mul_(precision)
        cdf = torch.special.ndtr(z).mean(0)
        return cdf, z.square_().mul_(-0.5).clamp_(min=least).exp_().mul_(precision).mean(0) / math.sqrt(2 * math.pi)

    return both


def _bounds(support: Any) -> tuple[Any, Any]:
    """The ends of an interval on which there are observations, None where there is none."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    ends = [getattr(support, name, None) for name in ("lower_bound", "upper_bound")]
    low, high = (end.reshape(-1)[0] if isinstance(end, Tensor) else end for end in ends)
    return low, high


def _differs(support: Any) -> bool:
    """Whether the networks disagree on which observations are possible: densities are then not comparable."""
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    ends = [getattr(support, name, None) for name in ("lower_bound", "upper_bound")]
    return any(isinstance(end, Tensor) and bool((end != end.reshape(-1)[0]).any()) for end in ends)


def _bracket(base: Any, level: float, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Ends that have the quantile between them, where it is beyond the range of the samples."""
    width = torch.maximum(high - low, 1e-3 * torch.maximum(high.abs(), low.abs())).clamp(min=1e-6)
    below, above = _bounds(base.support)
    return _widened(base, level, low, width, below, -1), _widened(base, level, high, width, above, 1)


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


def _solved(
    both: Callable[[Tensor], tuple[Tensor, Tensor]], level: float, x: Tensor, low: Tensor, high: Tensor
) -> Tensor:
    x = torch.minimum(torch.maximum(x, low), high)
    eps, width = torch.finfo(x.dtype).eps, high - low
    # The error after a step of Newton's method is about the square of the step.
    enough, narrow = 0.1 * math.sqrt(eps) * width, 4 * eps * torch.maximum(high.abs(), low.abs()) + eps * width
    done, last = torch.zeros_like(x, dtype=torch.bool), width
    for _ in range(_MOST_STEPS):
        cdf, density = both(x)
        reached = cdf >= level
        high, low = torch.where(reached & ~done, x, high), torch.where(reached | done, low, x)
        newton = x - (cdf - level) / density
        # Not so where it is NaN, or goes back and forth, at a jump for instance.
        usable = (newton >= low) & (newton <= high) & ((newton - x).abs() <= 0.5 * last)
        moved = torch.where(done, x, torch.where(usable, newton, low + 0.5 * (high - low)))
        last = (moved - x).abs()
        x, done = moved, done | (usable & (last <= enough)) | (high - low <= narrow)
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


def count_quantiles(base: Any, samples: Tensor, levels: Tensor) -> Tensor | None:
    """Quantiles of a mixture of distributions of whole numbers ``[Q, B, ...]``: the smallest with ``F >= level``.

    Args:
        base: Its components ``[S, B, ...]``.
        samples: A draw of each ``[S, B, ...]``, where the search starts.
        levels: ``[Q]`` between 0 and 1, both excluded.

    Returns:
        The quantiles, or None if the distribution function is not known.

    Example:
        >>> rates = torch.distributions.Poisson(torch.tensor([[2.0]]))
        >>> rates.cdf = lambda value: torch.special.gammaincc(value.unsqueeze(0) + 1.0, rates.rate)
        >>> count_quantiles(rates, torch.tensor([[9.0]]), torch.tensor([0.5, 0.95]))
        tensor([[2.],
                [5.]])
    """
    least, most = (end.floor() for end in samples.aminmax(dim=0))
    try:
        if mixture_cdf(base, most) is None:
            return None
    except ValueError:  # Pyro's validation of the value
        return None
    slack = 64 * torch.finfo(samples.dtype).eps  # of a sum that is the level
    found: list[Tensor] = []
    with torch.no_grad():
        for level in levels.tolist():

            def reached(value: Tensor, level: float = level) -> Tensor:
                return base.cdf(value).mean(0) >= level - slack

            low, high, width = least, most, (most - least).clamp(min=1.0)
            for _ in range(64):
                missed = ~reached(high)
                if not bool(missed.any()):
                    break
                high, width = torch.where(missed, high + width, high), 2 * width
            width = (most - least).clamp(min=1.0)
            for _ in range(64):
                missed = reached(low)
                if not bool(missed.any()):
                    break
                low, width = torch.where(missed, low - width, low), 2 * width
            while bool((high - low > 1.0).any()):
                middle = ((low + high) / 2).floor()
                if bool(((middle <= low) | (middle >= high)).logical_and(high - low > 1.0).any()):
                    break  # numbers so large that not every whole one is there
                enough = reached(middle)
                low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
            found.append(high)
    return torch.stack(found)


def draw_quantiles(samples: Tensor, levels: Tensor) -> Tensor:
    """Quantiles of whole numbers ``[S, B, ...]``: for each level the smallest draw that so many do not exceed.

    Example:
        >>> draw_quantiles(torch.tensor([[0.0], [1.0], [3.0], [4.0]]), torch.tensor([0.5, 0.6]))
        tensor([[1.],
                [3.]])
    """
    ordered = in_order(samples)
    num = len(samples)
    places = (levels.double() * num - 1e-9).ceil().long().clamp(1, num) - 1
    return ordered[places.to(ordered.device)]
