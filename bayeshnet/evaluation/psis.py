"""Pareto-smoothed importance sampling: steadier importance weights, if they can be trusted, and resampling by them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from bayeshnet.checks import kind_of, require_count
from bayeshnet.errors import ArgumentError, ArgumentTypeError, BayeshnetWarning
from bayeshnet.formatting import array, number, with_error

__all__ = ["Estimate", "SmoothedWeights", "WeightedDraws", "fit_generalised_pareto", "pareto_smooth"]

# A tail of fewer weights says nothing about its shape.
_FEWEST_TAIL = 5
# The shape is shrunk towards 1/2 as by so many further observations (Vehtari et al., appendix G).
_PRIOR_COUNT, _PRIOR_SHAPE = 10.0, 0.5
_MOST_SITES = 3  # in a repr


class Estimate(NamedTuple):
    """A Monte Carlo estimate.

    Attributes:
        value: The estimate.
        error: Its standard error.

    Example:
        >>> estimate = Estimate(-12.3456, 0.0123)
        >>> estimate
        Estimate(-12.346 ± 0.012)
        >>> value, error = estimate
    """

    value: float
    error: float

    def __repr__(self) -> str:
        return f"Estimate({with_error(self.value, self.error)})"


@dataclass(frozen=True, repr=False)
class SmoothedWeights:
    """Importance weights, the largest of which are replaced by quantiles of a fitted tail.

    Attributes:
        log_weights: Smoothed log weights ``[S]`` in float64, in the order and on the scale of those given.
        k_hat: Shape of the tail: moments of the weights up to order ``1 / k_hat`` are finite. -inf if the weights have
            no tail, inf if it is too short for a fit (the weights are then left as they are).
        num_tail: Number of weights in the tail.

    Example:
        >>> weights = pareto_smooth(torch.linspace(-1.0, 1.0, 100))
        >>> weights.reliable, bool(weights.normalised.sum().isclose(torch.ones(()).double()))
        (True, True)
        >>> weights
        SmoothedWeights(f64[100], k_hat=..., ess=..., reliable)
    """

    log_weights: Tensor
    k_hat: float
    num_tail: int

    def __repr__(self) -> str:
        k_hat, ess = number(self.k_hat, digits=3), number(self.ess, digits=4)
        verdict = "reliable" if self.reliable else f"not reliable: k_hat above {number(self.threshold, digits=2)}"
        return f"SmoothedWeights({array(self.log_weights)}, k_hat={k_hat}, ess={ess}, {verdict})"

    @property
    def normalised(self) -> Tensor:
        """The weights ``[S]``, with sum 1."""
        return self.log_weights.softmax(0)

    @property
    def ess(self) -> float:
        """Effective sample size of the importance weights, ``1 / sum w^2`` of the normalised ones: 1 to S."""
        return float(1.0 / self.normalised.square().sum())

    @property
    def threshold(self) -> float:
        """Largest ``k_hat`` that can be trusted with S weights: ``min(1 - 1 / log10 S, 0.7)``."""
        num = len(self.log_weights)
        return min(1.0 - 1.0 / math.log10(num), 0.7) if num > 1 else -math.inf

    @property
    def reliable(self) -> bool:
        """Whether ``k_hat`` is at most :attr:`threshold`, so that means under the weights have a usable error."""
        return self.k_hat <= self.threshold

    @property
    def log_mean(self) -> Estimate:
        """Logarithm of the mean weight, and its standard error by the delta method.

        The error means something only if the weights are :attr:`reliable`.
        """
        num = len(self.log_weights)
        value = torch.logsumexp(self.log_weights, 0) - math.log(num)
        # Variance of the weights over the square of their mean, over S.
        relative = (num * self.normalised.square().sum() - 1.0).clamp(min=0.0) / max(num - 1, 1)
        return Estimate(float(value), float(relative.sqrt()))


@dataclass(frozen=True, repr=False)
class WeightedDraws:
    """Draws of a guide with their importance weights.

    Attributes:
        draws: ``[S, *shape]`` by latent site of the model.
        log_weights: ``log p(data, z) - log q(z)`` of each draw ``[S]``, float64.

    Example:
        >>> w = WeightedDraws({"mu": torch.zeros(100)}, torch.linspace(-1.0, 1.0, 100).double())
        >>> round(w.elbo.value, 6), w.iwae().value > w.elbo.value
        (0.0, True)
        >>> w
        WeightedDraws(100 draws of {'mu': f32[100]}, elbo=... ± 0.059, k_hat=..., ess=...)
    """

    draws: Mapping[str, Tensor]
    log_weights: Tensor

    def __repr__(self) -> str:
        listed = [f"{name!r}: {array(value)}" for name, value in list(self.draws.items())[:_MOST_SITES]]
        listed += [f"... {len(self.draws)} sites"] if len(self.draws) > _MOST_SITES else []
        k_hat, ess = number(self.smoothed.k_hat, digits=3), number(self.smoothed.ess, digits=4)
        return (
            f"WeightedDraws({len(self.log_weights)} draws of {{{', '.join(listed)}}}, elbo={with_error(*self.elbo)}, "
            f"k_hat={k_hat}, ess={ess})"
        )

    @cached_property
    def smoothed(self) -> SmoothedWeights:
        """The weights after Pareto smoothing, with k-hat and the effective sample size."""
        return pareto_smooth(self.log_weights)

    @property
    def elbo(self) -> Estimate:
        """The evidence lower bound, the mean log weight."""
        return _mean(self.log_weights)

    def iwae(self, num_inner: int | None = None) -> Estimate:
        """Importance-weighted lower bound on the log evidence.

        ``E log(1/K sum_k w_k)`` increases with K, from the ELBO at K = 1 to the log evidence.

        Source: Burda, Grosse and Salakhutdinov, Importance Weighted Autoencoders, ICLR 2016.

        Args:
            num_inner: K. By default all S draws: then there is one term, and the error is that of the logarithm of a
                mean; it is too small where k-hat is high.

        Raises:
            ArgumentError: If ``num_inner`` is below 1, or so large that S draws give fewer than two groups.
        """
        num = len(self.log_weights)
        if num_inner is None or num_inner == num:
            return SmoothedWeights(self.log_weights, math.nan, 0).log_mean
        if not 1 <= num_inner <= num // 2:
            raise ArgumentError(
                f"num_inner: is {num_inner}; pass 1 to {num // 2} (half of the {num} draws), or None for all of them."
            )
        groups = self.log_weights[: num - num % num_inner].reshape(-1, num_inner)
        return _mean(torch.logsumexp(groups, 1) - math.log(num_inner))

    @property
    def log_evidence(self) -> Estimate:
        """Log evidence from the smoothed weights."""
        return self.smoothed.log_mean

    def resample(self, num_samples: int) -> dict[str, Tensor]:
        """Resample the draws by their smoothed weights: what comes out is closer to the posterior than the guide.

        Systematic resampling: a draw with normalised weight v is taken ``num_samples * v`` times, up to rounding at
        random. Draws repeat, so take many times more from the guide than you resample.
        Pass them to :func:`~bayeshnet.predict` in place of the guide, for importance-corrected predictions.

        Args:
            num_samples: Number of draws to take.

        Returns:
            ``[num_samples, *shape]`` by site name.

        Raises:
            ArgumentError: If ``num_samples`` is not positive.
            ArgumentTypeError: If it is not a whole number.
        """
        require_count("num_samples", num_samples)
        self.warn_if_unreliable("The resampled draws", stacklevel=3)
        shares = self.smoothed.normalised.cumsum(0)
        places = (torch.arange(num_samples, dtype=shares.dtype) + torch.rand((), dtype=shares.dtype)) / num_samples
        # Rounding may leave the last share a little below 1.
        chosen = torch.searchsorted(shares, places.to(shares.device)).clamp(max=len(shares) - 1)
        return {name: value[chosen.to(value.device)] for name, value in self.draws.items()}

    def warn_if_unreliable(self, what: str, *, stacklevel: int = 2) -> None:
        """Warn if k-hat is too high for ``what`` to be trusted.

        Args:
            what: The beginning of the sentence: ``"The log evidence"``.
            stacklevel: As that of ``warnings.warn``.
        """
        smoothed = self.smoothed
        if not smoothed.reliable:
            warnings.warn(
                f"{what} cannot be trusted: k-hat is {smoothed.k_hat:.2f} (above {smoothed.threshold:.2f}) for "
                f"{len(self.log_weights)} draws, so a few of them carry nearly all the weight. Use a guide closer "
                "to the posterior; more draws help only where k-hat is near the limit.",
                BayeshnetWarning,
                stacklevel=stacklevel + 1,
            )


def pareto_smooth(log_weights: Tensor) -> SmoothedWeights:
    r"""Smooth the largest importance weights.

    The ``M = min(S / 5, 3 sqrt(S))`` largest weights are taken as draws of a generalised Pareto distribution above the
    next one, u. With its shape k and scale :math:`\sigma` fitted to ``w - u``, they become the quantiles

    .. math:: u + \frac{\sigma}{k} ((1 - p_m)^{-k} - 1), \quad p_m = \frac{m - 1/2}{M}, \quad m = 1..M

    in their order, truncated at the largest weight given. The estimate of k, shrunk a little towards 1/2, is the
    diagnostic: below 0.5 the weights have a variance, above 0.7 any number of draws is too few.

    Source: Vehtari, Simpson, Gelman, Yao and Gabry, Pareto Smoothed Importance Sampling, JMLR 25, 2024.

    Args:
        log_weights: ``[S]``, logarithms of unnormalised weights of independent draws; -inf for a weight of 0.

    Raises:
        ArgumentError: If the shape differs, an entry is NaN or +inf, or all are -inf.
        ArgumentTypeError: If it is not a tensor.

    Example:
        >>> e = torch.distributions.Exponential(1.0).sample((4000,))
        >>> pareto_smooth(0.2 * e).reliable  # exp(k e) has a Pareto distribution of shape k
        True
        >>> pareto_smooth(1.2 * e).reliable
        False
    """
    log_weights = _checked(log_weights)
    num = len(log_weights)
    top = log_weights.max()
    order = log_weights.argsort()
    # Rounded first: 3 sqrt(S) of a square number has to come out whole.
    num_tail = math.ceil(round(min(0.2 * num, 3.0 * math.sqrt(num)), 9))
    if num_tail < _FEWEST_TAIL:
        return SmoothedWeights(log_weights, math.inf, num_tail)
    # Relative to the largest weight; what underflows beside it is no part of the tail.
    weights = (log_weights - top).exp()
    cutoff = weights[order[-num_tail - 1]]
    tail = order[-num_tail:]
    tail = tail[weights[tail] > cutoff]
    if len(tail) == 0:
        return SmoothedWeights(log_weights, -math.inf, 0)
    if len(tail) < _FEWEST_TAIL:
        return SmoothedWeights(log_weights, math.inf, len(tail))
    n = len(tail)
    shape, scale = fit_generalised_pareto(weights[tail] - cutoff)
    shape = (n * shape + _PRIOR_COUNT * _PRIOR_SHAPE) / (n + _PRIOR_COUNT)
    levels = (torch.arange(n, dtype=torch.double, device=tail.device) + 0.5) / n
    exceedance = scale * _standard_quantile(levels, shape)
    smoothed = log_weights.clone()
    smoothed[tail] = (cutoff + exceedance).log().clamp(max=0.0) + top
    return SmoothedWeights(smoothed, shape, n)


def fit_generalised_pareto(exceedances: Tensor) -> tuple[float, float]:
    r"""Shape k and scale of a generalised Pareto distribution, ``P(X > x) = (1 + k x / scale)^(-1 / k)``.

    With :math:`\theta = -k / \sigma` the likelihood depends on one number,
    :math:`k(\theta) = \mathrm{mean} \log(1 - \theta x)`; the estimate is its posterior mean under a weakly informative
    prior, on a grid of :math:`30 + \sqrt n` points.

    Source: Zhang and Stephens, A New and Efficient Estimation Method for the Generalized Pareto Distribution,
    Technometrics 51, 2009 (whose k is minus this one).

    Args:
        exceedances: ``[n]`` positive numbers, at least 5.

    Raises:
        ArgumentError: If there are fewer, or one is not positive and finite.

    Example:
        >>> uniform = (torch.arange(1000, dtype=torch.double) + 0.5) / 1000
        >>> k, scale = fit_generalised_pareto(-torch.log1p(-uniform))  # quantiles of an exponential: shape 0
        >>> abs(k) < 0.02, abs(scale - 1.0) < 0.02
        (True, True)
    """
    x = exceedances.double().flatten().sort().values
    n = len(x)
    if n < _FEWEST_TAIL or not bool(((x > 0) & torch.isfinite(x)).all()):
        what = f"has {n} entries" if n < _FEWEST_TAIL else "has entries that are not positive and finite"
        raise ArgumentError(f"exceedances: {what}; pass at least {_FEWEST_TAIL} positive finite numbers, [n].")
    num_grid = 30 + math.isqrt(n)
    ranks = torch.arange(1, num_grid + 1, dtype=torch.double, device=x.device)
    quartile = x[math.floor(n / 4 + 0.5) - 1]
    theta = 1.0 / x[-1] + (1.0 - (num_grid / (ranks - 0.5)).sqrt()) / (3.0 * quartile)
    shapes = torch.log1p(-theta.unsqueeze(1) * x).mean(1)
    log_likelihood = n * ((-theta / shapes).log() - shapes - 1.0)
    # theta = 0, the exponential, is a removable singularity that the grid meets by chance only.
    weights = torch.nan_to_num(log_likelihood, nan=-math.inf).softmax(0)
    best = (weights * theta).sum()
    if float(best) == 0.0:
        return 0.0, float(x.mean())
    shape = torch.log1p(-best * x).mean()
    return float(shape), float(-shape / best)


def _standard_quantile(levels: Tensor, shape: float) -> Tensor:
    """Quantiles of the generalised Pareto distribution of scale 1."""
    exponential = -torch.log1p(-levels)
    return exponential if abs(shape) < 1e-12 else torch.expm1(shape * exponential) / shape


def _checked(log_weights: Tensor) -> Tensor:
    if not isinstance(log_weights, Tensor):
        raise ArgumentTypeError(f"log_weights: is {kind_of(log_weights)}; pass a tensor [S].")
    if log_weights.dim() != 1 or len(log_weights) == 0:
        raise ArgumentError(f"log_weights: has shape {tuple(log_weights.shape)}; pass one number per draw, [S].")
    bad = int((torch.isnan(log_weights) | (log_weights == math.inf)).sum())
    if bad:
        raise ArgumentError(f"log_weights: {bad} of {len(log_weights)} are NaN or +inf; pass finite numbers, or -inf.")
    if bool((log_weights == -math.inf).all()):
        raise ArgumentError("log_weights: all are -inf; pass at least one positive weight.")
    return log_weights.detach().double()


def _mean(values: Tensor) -> Estimate:
    return Estimate(float(values.mean()), float(values.std() / math.sqrt(len(values))))
