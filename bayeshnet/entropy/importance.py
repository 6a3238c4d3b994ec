"""Density of a sampler with independent noise by importance sampling over its noise inputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bayeshnet.entropy.sampler import Draw, NoisySampler, chunks
from bayeshnet.normal_density import LOG_2PI

__all__ = ["ImportanceEstimate", "importance_log_density"]


@dataclass(frozen=True, slots=True)
class ImportanceEstimate:
    """An estimate of ``q(w) = int N(w; h(z), diag sigma^2) N(z; 0, I) dz`` for S weight vectors.

    Attributes:
        log_prob: Its logarithm ``[S]``.
        effective_share: Effective sample size over the number of importance samples ``[S]``, in 0..1.

    Example:
        >>> ImportanceEstimate(log_prob=torch.zeros(5), effective_share=torch.ones(5)).log_prob.shape
        torch.Size([5])
    """

    log_prob: Tensor
    effective_share: Tensor


@torch.no_grad()
def importance_log_density(
    sampler: NoisySampler, draw: Draw, *, num_inner: int = 64, num_starts: int = 5, num_steps: int = 12
) -> ImportanceEstimate:
    """Estimate log q by importance sampling with a mixture of linearisations as the proposal.

    One component is the sampler linearised at the z that made w; the others are linearised at modes of p(z | w) found
    by Gauss-Newton steps from random starts, so that a sampler that is not injective is seen not to be. If it is
    linear, all components agree and all importance weights are equal: the proposal is its own control variate.

    Args:
        sampler: A sampler with independent noise.
        draw: S draws of it.
        num_inner: Importance samples per component.
        num_starts: Random starts per draw.
        num_steps: Gauss-Newton steps from each.

    Example:
        >>> from bayeshnet.hnets import HMLP, HPerturbWrapper
        >>> hnet = HPerturbWrapper(HMLP([[3]], uncond_in_size=2, cond_in_size=0, layers=()), noise="independent")
        >>> sampler = NoisySampler(hnet)
        >>> found = importance_log_density(sampler, sampler.draw(5))
        >>> bool((found.effective_share > 0.999).all())  # a linear generator: exact
        True
    """
    compressed = compress(sampler)
    num = draw.z.shape[0]
    rows_at_once = max(1, 20_000_000 // (compressed.size * num_inner * (num_starts + 1)))
    parts: list[ImportanceEstimate] = []
    for rows in chunks(num, rows_at_once):
        part = Draw(draw.weights[rows], draw.z[rows], draw.noise[rows])
        parts.append(_estimate(compressed, part, num_inner, num_starts, num_steps))
    log_prob = torch.cat([p.log_prob for p in parts]) - sampler.log_sigma().double().sum()
    return ImportanceEstimate(log_prob, torch.cat([p.effective_share for p in parts]))


@dataclass(frozen=True, slots=True)
class Compressed:
    """The likelihood of z in as few coordinates as it has: ``|(w - h(z)) / sigma|^2 = |t(w) - a(z)|^2 + c(w)``.

    With a linear head ``h(z) = W f(z) + b`` and ``diag(1 / sigma) W = Q R`` these are ``a = R f``, ``t = Q^T (w - b) /
    sigma``, q numbers instead of D.

    Example:
        >>> from bayeshnet.hnets import HMLP, HPerturbWrapper
        >>> hnet = HMLP([[30]], uncond_in_size=2, cond_in_size=0, layers=(4,))
        >>> compress(NoisySampler(HPerturbWrapper(hnet, noise="independent"))).size
        4
    """

    embed: Callable[[Tensor], Tensor]
    jacobian: Callable[[Tensor], Tensor]
    target: Callable[[Tensor], tuple[Tensor, Tensor]]
    size: int
    latent_dim: int


def compress(sampler: NoisySampler) -> Compressed:
    """Return the likelihood of a sampler with independent noise in as few coordinates as it has.

    Example:
        >>> from bayeshnet.hnets import HMLP, HPerturbWrapper
        >>> hnet = HMLP([[30]], uncond_in_size=2, cond_in_size=0, layers=(4,))
        >>> compressed = compress(NoisySampler(HPerturbWrapper(hnet, noise="independent")))
        >>> compressed.embed(torch.zeros(5, 2)).shape
        torch.Size([5, 4])
    """
    sigma = sampler.sigma.double()
    dtype = sampler.sigma.dtype
    head = sampler.linear_head
    weight, bias = (None, None) if head is None else head.head()
    if head is None or weight is None or weight.shape[1] >= weight.shape[0]:

        def target(weights: Tensor) -> tuple[Tensor, Tensor]:
            return weights.double() / sigma, torch.zeros(weights.shape[0], dtype=torch.double, device=sigma.device)

        return Compressed(
            lambda z: sampler.generate(z.to(dtype)).double() / sigma,
            lambda z: sampler.jacobian(z.to(dtype)).double() / sigma,
            target,
            sampler.event_dim,
            sampler.latent_dim,
        )
    q, r = torch.linalg.qr(weight.double() / sigma.unsqueeze(1))
    offset = torch.zeros_like(sigma) if bias is None else bias.double()

    def target_of_head(weights: Tensor) -> tuple[Tensor, Tensor]:
        scaled = (weights.double() - offset) / sigma
        inner = scaled @ q
        return inner, scaled.square().sum(-1) - inner.square().sum(-1)

    return Compressed(
        lambda z: sampler.features(z.to(dtype)).double() @ r.T,
        lambda z: sampler.feature_jacobian(z.to(dtype)).double() @ r.T,
        target_of_head,
        weight.shape[1],
        sampler.latent_dim,
    )


def _estimate(
    compressed: Compressed, draw: Draw, num_inner: int, num_starts: int, num_steps: int
) -> ImportanceEstimate:
    num, n = draw.z.shape
    target, rest = compressed.target(draw.weights)
    # Components: the noise that made the draw, and modes reached from elsewhere.
    own = draw.z.double().unsqueeze(1)
    starts = torch.randn(num, num_starts, n, dtype=torch.double, device=own.device)
    k = num_starts + 1
    modes = torch.cat([own, gauss_newton(compressed, target, starts, num_steps)], 1).reshape(-1, n)
    mean, precision = _linearise(compressed, target.repeat_interleave(k, 0), modes)
    chol = torch.linalg.cholesky(precision)
    e = torch.randn(num * k, n, num_inner, dtype=torch.double, device=own.device)
    z = mean.unsqueeze(1) + torch.linalg.solve_triangular(chol.transpose(1, 2), e, upper=True).transpose(1, 2)
    z = z.reshape(num, k * num_inner, n)
    a = compressed.embed(z.reshape(-1, n)).reshape(num, k * num_inner, -1)
    misfit = (a - target.unsqueeze(1)).square().sum(-1) + rest.unsqueeze(1) + draw.weights.shape[1] * LOG_2PI
    log_joint = -0.5 * (misfit + z.square().sum(-1) + n * LOG_2PI)
    # Density of the whole mixture at every sample, whichever component drew it.
    offset = z.unsqueeze(1) - mean.reshape(num, k, 1, n)
    scaled = offset @ chol.reshape(num, k, n, n)
    log_det = chol.diagonal(dim1=-2, dim2=-1).log().sum(-1).reshape(num, k, 1)
    log_parts = -0.5 * (scaled.square().sum(-1) + n * LOG_2PI) + log_det
    log_weight = log_joint - (torch.logsumexp(log_parts, 1) - math.log(k))
    total = log_weight.shape[1]
    share = 1.0 / torch.softmax(log_weight, 1).square().sum(1) / total
    return ImportanceEstimate(torch.logsumexp(log_weight, 1) - math.log(total), share)


def _linearise(compressed: Compressed, target: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and precision of p(z | w) for the sampler linearised at z."""
    jacobian = compressed.jacobian(z)
    curvature = jacobian @ jacobian.transpose(1, 2)
    precision = curvature + torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
    pull = (jacobian @ (target - compressed.embed(z)).unsqueeze(-1)) + curvature @ z.unsqueeze(-1)
    return torch.linalg.solve(precision, pull).squeeze(-1), precision


def gauss_newton(
    compressed: Compressed,
    target: Tensor,
    starts: Tensor,
    num_steps: int,
    lengths: tuple[float, ...] = (1.0, 0.3, 0.1, 0.03),
) -> Tensor:
    """Find modes ``[S, k, n]`` of p(z | w) from each start, by Gauss-Newton steps shortened where they do not help.

    Args:
        compressed: The likelihood.
        target: t(w) ``[S, q]``.
        starts: ``[S, k, n]``.
        num_steps: Steps from each start.
        lengths: Lengths of a step to try, one after the other.

    Example:
        >>> from bayeshnet.hnets import HMLP, HPerturbWrapper
        >>> hnet = HMLP([[30]], uncond_in_size=2, cond_in_size=0, layers=(4,))
        >>> compressed = compress(NoisySampler(HPerturbWrapper(hnet, noise="independent")))
        >>> target, _ = compressed.target(torch.zeros(5, 30))
        >>> gauss_newton(compressed, target, torch.randn(5, 6, 2).double(), num_steps=3).shape
        torch.Size([5, 6, 2])
    """
    num, k, n = starts.shape
    goal = target.repeat_interleave(k, 0)

    def cost_of(z: Tensor) -> Tensor:
        return (compressed.embed(z) - goal).square().sum(-1) + z.square().sum(-1)

    z = starts.reshape(-1, n)
    cost = cost_of(z)
    for _ in range(num_steps if k else 0):
        mean, _ = _linearise(compressed, goal, z)
        for length in lengths:
            trial = z + length * (mean - z)
            trial_cost = cost_of(trial)
            better = trial_cost < cost
            z = torch.where(better.unsqueeze(1), trial, z)
            cost = torch.where(better, trial_cost, cost)
            if bool(better.all()):
                break
    return z.reshape(num, k, n)
