"""Probabilities of intervals of the standard normal, and what is left of it in them, however far out they are."""

from __future__ import annotations

import torch
from torch import Tensor

from bayeshnet.normal_density import LOG_2PI

__all__ = ["log_between", "log_density", "quantile_between", "standardised"]


def standardised(limit: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """``(limit - loc) / scale``, without a gradient where the limit is infinite: it would be infinite or NaN.

    Example:
        >>> standardised(torch.tensor([1.0, torch.inf]), torch.tensor(0.0), torch.tensor(2.0))
        tensor([0.5000,    inf])
    """
    endless = torch.isinf(limit)
    return torch.where(endless, limit, (torch.where(endless, torch.zeros_like(limit), limit) - loc) / scale)


def log_density(z: Tensor) -> Tensor:
    """Logarithm of the standard normal density.

    Example:
        >>> log_density(torch.tensor(0.0))
        tensor(-0.9189)
    """
    return -0.5 * (z * z + LOG_2PI)


def log_between(low: Tensor, high: Tensor) -> Tensor:
    """Logarithm of the probability that a standard normal variable lies between two numbers, which may be infinite.

    Example:
        >>> log_between(torch.tensor([-torch.inf, 40.0]), torch.tensor([0.0, torch.inf]))
        tensor([-6.9315e-01, -8.0461e+02])
    """
    low, high = _to_the_left(low, high)
    log_high, log_low = torch.special.log_ndtr(high), torch.special.log_ndtr(low.clamp(min=-1e18))
    gap = torch.where(torch.isinf(low), torch.full_like(log_high, torch.inf), log_high - log_low)
    return log_high + _log1mexp(gap)


def quantile_between(low: Tensor, high: Tensor, u: Tensor) -> Tensor:
    """The number below which a standard normal variable that lies between two others is with probability ``u``.

    Example:
        >>> quantile_between(torch.tensor(30.0).double(), torch.tensor(torch.inf).double(), torch.tensor(0.5).double())
        tensor(30.0231, dtype=torch.float64)
    """
    flip = low + high > 0
    left, right = _to_the_left(low, high)
    u = torch.where(flip, 1.0 - u, u)
    log_high, log_low = torch.special.log_ndtr(right), torch.special.log_ndtr(left.clamp(min=-1e18))
    share = torch.where(torch.isinf(left), torch.zeros_like(log_high), (log_low - log_high).exp())
    log_p = log_high + torch.log(share + u * (1.0 - share))
    z = _log_ndtri(log_p).clamp(min=left, max=right)
    return torch.where(flip, -z, z)


def _to_the_left(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The interval, mirrored if most of it is to the right of 0: differences are then taken of small numbers."""
    flip = low + high > 0
    return torch.where(flip, -high, low), torch.where(flip, -low, high)


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(-x)) for x > 0."""
    x = x.clamp(min=torch.finfo(x.dtype).tiny)
    near = x < 0.6931471805599453
    small = torch.where(near, x, torch.ones_like(x))
    return torch.where(near, torch.log(-torch.expm1(-small)), torch.log1p(-torch.exp(-torch.where(near, 1.0, x))))


def _log_ndtri(log_p: Tensor) -> Tensor:
    """The number z with log Phi(z) = log_p: directly, and by Newton's method where Phi underflows."""
    z = torch.special.ndtri(log_p.exp().clamp(max=1.0))
    far = log_p < -30.0
    if bool(far.any()):
        start = torch.where(far, log_p, torch.full_like(log_p, -40.0))
        w = -torch.sqrt(-2.0 * start)
        for _ in range(6):
            value = torch.special.log_ndtr(w)
            w = w - (value - start) * torch.exp(value - log_density(w))
        z = torch.where(far, w, z)
    return z
