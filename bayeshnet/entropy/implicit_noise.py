"""Noise behind given weights as a function of these and of the sampler, by the implicit function theorem."""

from __future__ import annotations

import torch

from bayeshnet.entropy.sampler import Draw, NoisySampler
from bayeshnet.typing import NoiseBatch, WeightBatch

__all__ = ["implicit_solution", "known_noise"]


def known_noise(sampler: NoisySampler, weights: WeightBatch, draw: Draw) -> WeightBatch:
    r"""Return the noise ``[S, D]`` of an earlier draw of a sampler with shared noise, as a function of its weights.

    The numbers are those of the draw. The gradients are those of the solution z of
    :math:`h(z_{1:n}) + \sigma z = w` with respect to w and to the sampler.

    Args:
        sampler: The sampler that made the draw, unchanged since then.
        weights: What it drew ``[S, D]``, up to rounding, as constants or with a graph of their own.
        draw: The draw.

    Example:
        >>> from bayeshnet.hnets import HMLP, HPerturbWrapper
        >>> hnet = HPerturbWrapper(HMLP([[3]], uncond_in_size=1, cond_in_size=0, verbose=False), verbose=False)
        >>> sampler = NoisySampler(hnet)
        >>> with torch.no_grad():
        ...     draw = sampler.draw(5)
        >>> noise = known_noise(sampler, draw.weights, draw)
        >>> torch.equal(noise, draw.noise), noise.requires_grad
        (True, True)
    """
    n = sampler.latent_dim
    if not torch.is_grad_enabled():
        return draw.noise
    fixed = draw.noise.detach()
    z = implicit_solution(sampler, weights[:, :n], fixed[:, :n])
    rest = (weights - sampler.generate(z))[:, n:] / sampler.sigma[n:]
    return torch.cat([z, fixed[:, n:] + (rest - rest.detach())], 1)


def implicit_solution(sampler: NoisySampler, goal: NoiseBatch, z: NoiseBatch) -> NoiseBatch:
    r"""Return a solution z ``[S, n]`` of :math:`h(z)_{1:n} + \sigma_{1:n} z = w_{1:n}` with its gradients.

    .. math:: dz = -(\partial_z r)^{-1} \, dr, \quad r = h(z)_{1:n} + \sigma_{1:n} z - w_{1:n}

    Derivatives of first order only.

    Args:
        sampler: A sampler with shared noise.
        goal: w ``[S, n]``.
        z: The solution, whose numbers are kept.

    Example:
        >>> from bayeshnet.hnets import HMLP, HPerturbWrapper
        >>> sampler = NoisySampler(HPerturbWrapper(HMLP([[3]], uncond_in_size=2, cond_in_size=0)))
        >>> draw = sampler.draw(5)
        >>> z = implicit_solution(sampler, draw.weights[:, :2].detach(), draw.z)
        >>> torch.equal(z, draw.z), z.requires_grad
        (True, True)
    """
    n = z.shape[1]
    if n == 0 or not torch.is_grad_enabled():
        return z
    sigma = sampler.sigma[:n]
    residual = sampler.generate(z)[:, :n] + sigma * z - goal
    with torch.no_grad():
        jacobian = sampler.jacobian(z, rows=n).transpose(1, 2) + torch.diag_embed(sigma)
        inverse, _ = torch.linalg.inv_ex(jacobian.double())
        # Singular right on a fold only, where no derivative exists.
        inverse = torch.nan_to_num(inverse, nan=0.0, posinf=0.0, neginf=0.0).to(z.dtype)
    moved = (inverse @ (residual - residual.detach()).unsqueeze(-1)).squeeze(-1)
    return z - moved
