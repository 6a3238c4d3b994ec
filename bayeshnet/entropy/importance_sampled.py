"""Density of a sampler with independent noise at any weights, by importance sampling, with its gradient."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from bayeshnet.checks import require_count
from bayeshnet.entropy.importance import Compressed, compress, gauss_newton
from bayeshnet.entropy.protocol import Diagnosis, LogDensity
from bayeshnet.entropy.sampler import Draw, NoisySampler, chunks, percent, require_values
from bayeshnet.errors import SearchWarning
from bayeshnet.normal_density import LOG_2PI
from bayeshnet.typing import LogDensities, WeightBatch

__all__ = ["ImportanceSampled"]

# An estimate from a smaller share of its samples is not trusted.
_FEWEST = 0.01
# Modes this many nats apart are different ones.
_APART = 1.0
_NUM_STEPS, _LENGTHS = 12, (1.0, 0.3, 0.1, 0.03, 0.01, 0.003)


class ImportanceSampled(LogDensity):
    r"""Importance sampling over the noise inputs, at any weights, for ``w = h(z) + sigma * e``.

    .. math::
        \log q(w) \approx \log \frac1M \sum_{m=1}^M \frac{N(w; h(z_m), \mathrm{diag}\, \sigma^2)\, N(z_m; 0, I)}{r(z_m)}

    The proposal r is a mixture of Gaussians, the sampler linearised at modes of p(z | w) that Gauss-Newton steps from
    random starts find; for a draw, also at its own noise. Independent noise gives every w a positive density, whatever
    the generator: so this is a density with full support, for a prior or a component of a mixture, where shared noise
    may leave holes.

    The mean of the ratios is unbiased for q(w). Its logarithm is below log q(w) on average, by about half the relative
    variance of the mean; two calls differ by that error. For a linear generator both the value and its gradient are
    exact. The gradient, with respect to the weights and all parameters, is that of the estimate,

    .. math:: \nabla_w \log q(w) = E_{p(z | w)} \left[ -(w - h(z)) / \sigma^2 \right]

    with self-normalised weights, and with z moving as the Gaussians of the proposal do, which takes most of the noise
    out of it.

    Where a mode was not found the value is too low, by any amount. Values of which a single start led to the best mode
    get four times as many. A value of which that is still so, or of which a share of less than 1 % of the samples
    counts, is not to be trusted: :class:`~bayeshnet.errors.SearchWarning` says how many there were. :meth:`diagnose`
    measures both on draws, whose noise is known.

    Args:
        num_inner: Importance samples per mode.
        num_starts: Starts of the search for modes per weight vector.

    Raises:
        ArgumentError: If a number is not positive.

    Example:
        >>> from bayeshnet.distributions import ImplicitWeights
        >>> from bayeshnet.hnets import HMLP, HPerturbWrapper
        >>> hnet = HMLP([[3]], uncond_in_size=2, cond_in_size=0, verbose=False)
        >>> prior = ImplicitWeights(
        ...     HPerturbWrapper(hnet, sigma_noise=0.5, noise="independent", verbose=False),
        ...     estimator=ImportanceSampled(),
        ... )
        >>> w = torch.zeros(4, 3, requires_grad=True)
        >>> torch.autograd.grad(prior.log_prob(w).sum(), w)[0].shape
        torch.Size([4, 3])
    """

    noise = "independent"
    everywhere = True

    def __init__(self, *, num_inner: int = 64, num_starts: int = 6) -> None:
        require_count("num_inner", num_inner)
        require_count("num_starts", num_starts, advice=", 6 where the generator may not be injective")
        self.num_inner = num_inner
        self.num_starts = num_starts

    def __repr__(self) -> str:
        return f"ImportanceSampled(num_inner={self.num_inner}, num_starts={self.num_starts})"

    def log_prob(self, sampler: NoisySampler, draw: Draw) -> LogDensities:
        """See :meth:`LogDensity.log_prob`."""
        return self._estimate(sampler, draw.weights, draw.z).log_prob.to(draw.weights.dtype)

    def log_prob_of(self, sampler: NoisySampler, weights: WeightBatch, draw: Draw) -> LogDensities:
        """See :meth:`LogDensity.log_prob_of`; estimated anew, its number differs from that of :meth:`log_prob`."""
        return self._estimate(sampler, weights, draw.z).log_prob.to(weights.dtype)

    def log_prob_at(self, sampler: NoisySampler, weights: WeightBatch) -> LogDensities:
        """See :meth:`LogDensity.log_prob_at`; differentiable with respect to the weights and the sampler.

        Raises:
            ArgumentError: If the weights have another dtype than the sampler, or one is NaN or infinite.
        """
        require_values(sampler, weights)
        found = self._estimate(sampler, weights, None)
        poor = int(found.poor.sum())
        if poor:
            warnings.warn(
                f"value: the density of {percent(poor / len(found.poor))} of the values is not to be trusted, and may "
                "be much too low: fewer than 1 % of the importance samples count, or a single start led to the best "
                f"mode. More of them tell: ImportanceSampled(num_inner={4 * self.num_inner}, "
                f"num_starts={4 * self.num_starts}); a larger noise scale helps.",
                SearchWarning,
                stacklevel=2,
            )
        return found.log_prob.to(weights.dtype)

    def _estimate(self, sampler: NoisySampler, weights: Tensor, own: Tensor | None) -> _Estimate:
        per_row = (sampler.event_dim + sampler.latent_dim) * self.num_inner * (self.num_starts + 1)
        rows_at_once = max(1, 20_000_000 // per_row)
        parts = [
            self._estimate_rows(sampler, weights[rows].double(), None if own is None else own[rows].detach().double())
            for rows in chunks(len(weights), rows_at_once)
        ]
        empty = weights.new_zeros(0, dtype=torch.double)
        return _Estimate(
            torch.cat([empty, *(part.log_prob for part in parts)]),
            torch.cat([empty, *(part.share for part in parts)]),
            torch.cat([empty.bool(), *(part.poor for part in parts)]),
        )

    def _estimate_rows(self, sampler: NoisySampler, weights: Tensor, own: Tensor | None) -> _Estimate:
        num, n, size = len(weights), sampler.latent_dim, sampler.event_dim
        log_sigma = sampler.log_sigma().double()
        constant = log_sigma.sum() + 0.5 * size * LOG_2PI
        if n == 0:
            scaled = (weights - sampler.generate(weights[:, :0].to(sampler.sigma.dtype)).double()) / log_sigma.exp()
            exact = -0.5 * scaled.square().sum(1) - constant
            return _Estimate(exact, torch.ones_like(exact), torch.zeros_like(exact, dtype=torch.bool))
        modes, alone = self._modes(sampler, weights.detach(), own)
        k = modes.shape[1]
        fit = _misfit(sampler, weights, log_sigma)
        mean, chol = fit.linearise(modes)
        # Where f bends at a mode, or no step was left to reach it, the mode is the better centre; it moves as the mean.
        mean = modes + (mean - mean.detach())
        e = torch.randn(num, k, self.num_inner, n, dtype=torch.double, device=weights.device)
        moved = torch.linalg.solve_triangular(chol.transpose(-1, -2), e.transpose(-1, -2), upper=True)
        z = (mean.unsqueeze(2) + moved.transpose(-1, -2)).reshape(num, k * self.num_inner, n)
        log_joint = -0.5 * (fit(z) + z.square().sum(-1) + n * LOG_2PI) - constant
        # Density of the whole mixture at every sample, whichever component drew it.
        scaled = (z.unsqueeze(1) - mean.unsqueeze(2)) @ chol
        log_det = chol.diagonal(dim1=-2, dim2=-1).log().sum(-1).unsqueeze(2)
        log_parts = -0.5 * (scaled.square().sum(-1) + n * LOG_2PI) + log_det
        log_weight = log_joint - (torch.logsumexp(log_parts, 1) - math.log(k))
        total = log_weight.shape[1]
        with torch.no_grad():
            share = 1.0 / torch.softmax(log_weight, 1).square().sum(1) / total
        return _Estimate(torch.logsumexp(log_weight, 1) - math.log(total), share, alone | (share < _FEWEST))

    @torch.no_grad()
    def _modes(self, sampler: NoisySampler, weights: Tensor, own: Tensor | None) -> tuple[Tensor, Tensor]:
        """Points to linearise at ``[S, k, n]``; and of which values a single start led to the best one ``[S]``."""
        compressed = compress(sampler)
        target, _ = compressed.target(weights)
        starts = self._random(weights, self.num_starts, compressed.latent_dim)
        if own is not None:  # the mode of a draw is found in any case
            modes, _ = _climb(compressed, target, torch.cat([own.unsqueeze(1), starts], 1))
            return modes, torch.zeros(len(weights), dtype=torch.bool, device=weights.device)
        modes, cost = _climb(compressed, target, starts)
        alone = _single(cost)
        if bool(alone.any()):
            some = target[alone]
            more, more_cost = _climb(compressed, some, self._random(some, 4 * self.num_starts, compressed.latent_dim))
            best = torch.cat([cost[alone], more_cost], 1).argsort(1)[:, : self.num_starts].unsqueeze(-1)
            kept = torch.cat([modes[alone], more], 1).gather(1, best.expand(-1, -1, modes.shape[2]))
            # Some may still be on their way to a mode that another has reached.
            modes[alone], cost = _climb(compressed, some, kept)
            alone[alone.clone()] = _single(cost)
        return modes, alone

    @staticmethod
    def _random(like: Tensor, each: int, n: int) -> Tensor:
        """Starts in pairs z, -z: of two modes that mirror each other none is missed by chance."""
        half = torch.randn(len(like), (each + 1) // 2, n, dtype=torch.double, device=like.device)
        return torch.cat([half, -half], 1)[:, :each]

    @torch.no_grad()
    def diagnose(self, sampler: NoisySampler, *, num_samples: int = 256, thorough: bool = True) -> Diagnosis:
        """Look at the importance weights of draws, and at what the search for modes misses.

        ``effective_share`` is the mean effective sample size over the number of importance samples, and
        ``log_q_bias`` by how much the estimate is below log q on average, in nats, to first order. If ``thorough``,
        ``search_missed`` is the share of draws whose log q comes out more than 1 nat lower if their noise is not known:
        so often the search for modes misses what counts, and log q comes out too low for values not sampled
        here.
        """
        draw = sampler.draw(num_samples)
        own = self._estimate(sampler, draw.weights, draw.z)
        total = self.num_inner * (self.num_starts + 1)
        values = {
            "effective_share": float(own.share.mean()),
            "log_q_bias": float((0.5 * (1.0 / own.share - 1.0) / total).mean()),
        }
        advice: list[str] = []
        if values["effective_share"] < 0.1 or values["log_q_bias"] > 0.1:
            advice.append(
                f"Importance sampling kept {values['effective_share']:.1%} of its samples, and log q is below its true "
                f"value by about {values['log_q_bias']:.2f} nats on average: raise num_inner, or use fewer noise "
                "dimensions or a larger noise scale."
            )
        if thorough:
            gap = own.log_prob - self._estimate(sampler, draw.weights, None).log_prob
            values["search_missed"] = missed = float((gap > _APART).double().mean())
            if missed > 0.01:
                advice.append(
                    f"Of {missed:.1%} of the draws log q comes out more than {_APART:g} nat lower when their noise is "
                    f"not told, so the search misses modes. Raise num_starts (now {self.num_starts}), or use a larger "
                    "noise scale."
                )
        return Diagnosis(values, advice, SearchWarning)


@dataclass(frozen=True, slots=True)
class _Estimate:
    """Estimates ``[S]``, effective share of their samples ``[S]``, and which are not to be trusted ``[S]``."""

    log_prob: Tensor
    share: Tensor
    poor: Tensor


def _climb(compressed: Compressed, target: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """Modes from each start ``[S, k, n]``, and minus their log-density up to a constant ``[S, k]``."""
    modes = gauss_newton(compressed, target, starts, _NUM_STEPS, _LENGTHS)
    embedded = compressed.embed(modes.reshape(-1, compressed.latent_dim)).reshape(*modes.shape[:2], -1)
    misfit = (embedded - target.unsqueeze(1)).square().sum(-1)
    return modes, 0.5 * (misfit + modes.square().sum(-1))


def _single(cost: Tensor) -> Tensor:
    """Rows of which one entry is below all others by more than what separates modes."""
    if cost.shape[1] == 1:
        return torch.zeros(len(cost), dtype=torch.bool, device=cost.device)
    two = cost.topk(2, dim=1, largest=False).values
    return two[:, 1] - two[:, 0] > _APART


@dataclass(frozen=True, slots=True)
class _Misfit:
    """``|(w - h(z)) / sigma|^2`` as ``c - 2 t f(z) + f(z) G f(z)``, with gradients to all that is in it.

    With a linear head f are the features, and G is their metric ``W^T diag(sigma)^-2 W``; without, f is h and G the
    diagonal ``sigma^-2``, given as a vector.
    """

    sampler: NoisySampler
    metric: Tensor
    pull: Tensor
    rest: Tensor

    def __call__(self, z: Tensor) -> Tensor:
        """For ``z [S, M, n]``: ``[S, M]``."""
        f = self._embed(z)
        return self.rest.unsqueeze(1) + (f * (self._apply(f) - 2.0 * self.pull.unsqueeze(1))).sum(-1)

    def linearise(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Mean ``[S, k, n]`` and Cholesky factor of the precision of p(z | w), f being linearised at ``z [S, k, n]``.

        f and its slope are held fixed.
        """
        num, k, n = z.shape
        flat = z.reshape(-1, n).to(self.sampler.sigma.dtype)
        with torch.no_grad():
            of_head = self.sampler.linear_head is not None
            slope = self.sampler.feature_jacobian(flat) if of_head else self.sampler.jacobian(flat)
            slope = slope.double().reshape(num, k, n, -1)
            f = self._embed(z)
        curvature = self._apply(slope) @ slope.transpose(-1, -2)
        curvature = 0.5 * (curvature + curvature.transpose(-1, -2))
        precision = curvature + torch.eye(n, dtype=z.dtype, device=z.device)
        force = (slope @ (self.pull.unsqueeze(1) - self._apply(f)).unsqueeze(-1)) + curvature @ z.unsqueeze(-1)
        chol = torch.linalg.cholesky(precision)
        return torch.cholesky_solve(force, chol).squeeze(-1), chol

    def _embed(self, z: Tensor) -> Tensor:
        flat = z.reshape(-1, z.shape[-1]).to(self.sampler.sigma.dtype)
        f = self.sampler.generate(flat) if self.sampler.linear_head is None else self.sampler.features(flat)
        return f.double().reshape(*z.shape[:-1], -1)

    def _apply(self, f: Tensor) -> Tensor:
        return f * self.metric if self.metric.dim() == 1 else f @ self.metric


def _misfit(sampler: NoisySampler, weights: Tensor, log_sigma: Tensor) -> _Misfit:
    inverse = (-log_sigma).exp()
    if sampler.linear_head is None:
        scaled = weights * inverse
        return _Misfit(sampler, inverse.square(), scaled * inverse, scaled.square().sum(1))
    weight, bias = sampler.linear_head.head()
    scaled_weight = weight.double() * inverse.unsqueeze(1)
    scaled = (weights if bias is None else weights - bias.double()) * inverse
    return _Misfit(sampler, scaled_weight.T @ scaled_weight, scaled @ scaled_weight, scaled.square().sum(1))
