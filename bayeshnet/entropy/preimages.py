"""Which noise vectors lead to given weights, for a sampler with shared noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bayeshnet.entropy.sampler import NoisySampler, chunks

__all__ = ["Preimages", "find_preimages"]


@dataclass(frozen=True, slots=True)
class Preimages:
    """Preimages of each of S weight vectors.

    Attributes:
        log_prob: Log of the summed density ``[S]``; -inf where none was found.
        count: Number of distinct preimages found ``[S]``.
    """

    log_prob: Tensor
    count: Tensor


def find_preimages(
    sampler: NoisySampler,
    weights: Tensor,
    *,
    log_abs_det: Callable[[NoisySampler, Tensor], Tensor],
    known: Tensor | None = None,
    num_starts: int = 16,
    num_steps: int = 40,
    rows_at_once: int = 4096,
) -> Preimages:
    """Solve ``h(u)_i + sigma_i u_i = w_i``, i <= n, from many starts, and sum the densities of the solutions.

    Args:
        sampler: A sampler with shared noise.
        weights: ``[S, D]``.
        log_abs_det: Log of the absolute determinant of the sampler's Jacobian at ``u``.
        known: Preimages known already ``[S, n]``, such as the noise that made the weights.
        num_starts: Starting points per weight vector, drawn from N(0, I).
        num_steps: Newton steps, with halving where the residual does not fall.
        rows_at_once: Bound on ``S * num_starts`` handled together.
    """
    num, n = weights.shape[0], sampler.latent_dim
    parts: list[tuple[Tensor, Tensor]] = []
    starts_each = num_starts + (known is not None)
    for rows in chunks(num, max(1, rows_at_once // starts_each)):
        target = weights[rows]
        starts = torch.randn(target.shape[0], num_starts, n, dtype=target.dtype, device=target.device)
        if known is not None:
            starts = torch.cat([known[rows].unsqueeze(1), starts], 1)
        u, residual = _newton(sampler, target, starts, num_steps)
        parts.append(_summed_density(sampler, target, u, residual, log_abs_det))
    return Preimages(torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts]))


@torch.no_grad()
def _newton(sampler: NoisySampler, target: Tensor, starts: Tensor, num_steps: int) -> tuple[Tensor, Tensor]:
    num, k, n = starts.shape
    sigma = sampler.sigma[:n]
    goal = target[:, None, :n].expand(num, k, n).reshape(-1, n)

    def residual_of(u: Tensor) -> Tensor:
        return sampler.generate(u)[:, :n] + sigma * u - goal

    u = starts.reshape(-1, n)
    residual = residual_of(u)
    for _ in range(num_steps if n else 0):
        jacobian = sampler.jacobian(u, rows=n).transpose(1, 2) + torch.diag_embed(sigma)
        # lstsq-like damping keeps singular Jacobians from ending the search
        step, _ = torch.linalg.solve_ex(jacobian.double(), residual.double().unsqueeze(-1))
        step = torch.nan_to_num(step.squeeze(-1).to(u.dtype), nan=0.0, posinf=0.0, neginf=0.0)
        norm = residual.norm(dim=-1, keepdim=True)
        length = torch.ones_like(norm)
        best_u, best_residual, best_norm = u, residual, norm
        for _ in range(6):
            trial = u - length * step
            trial_residual = residual_of(trial)
            trial_norm = trial_residual.norm(dim=-1, keepdim=True)
            better = trial_norm < best_norm
            best_u = torch.where(better, trial, best_u)
            best_residual = torch.where(better, trial_residual, best_residual)
            best_norm = torch.where(better, trial_norm, best_norm)
            if bool(better.all()):
                break
            length = torch.where(best_norm < norm, length, length / 2)
        if bool((best_norm >= norm * (1 - 1e-6)).all()):
            break
        u, residual = best_u, best_residual
    return u.reshape(num, k, n), residual.reshape(num, k, n)


def _summed_density(
    sampler: NoisySampler,
    target: Tensor,
    u: Tensor,
    residual: Tensor,
    log_abs_det: Callable[[NoisySampler, Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    num, k, n = u.shape
    tolerance = torch.finfo(u.dtype).eps ** 0.5 * 10
    scale = 1.0 + target[:, None, :n].abs().amax(-1) if n else torch.ones(num, 1, dtype=u.dtype, device=u.device)
    solved = residual.norm(dim=-1) <= tolerance * scale
    # A solution counts once: those that lie next to an earlier one are dropped.
    distance = torch.cdist(u, u)
    near = distance <= 100 * tolerance * (1.0 + u.norm(dim=-1, keepdim=True))
    earlier = torch.ones(k, k, dtype=torch.bool, device=u.device).tril(-1)
    repeated = (near & earlier & solved.unsqueeze(1)).any(-1)
    distinct = solved & ~repeated

    # Only of solutions: elsewhere the Jacobian may be singular, whose gradient would spoil that of the others.
    goal = target.unsqueeze(1).expand(num, k, -1)[distinct]
    found = _with_gradient(sampler, goal[:, :n], u[distinct])
    rest = (goal - sampler.generate(found))[:, n:] / sampler.sigma[n:]
    log_density = sampler.log_base_density(torch.cat([found, rest], 1)) - log_abs_det(sampler, found)
    each = torch.full_like(residual[..., 0], -torch.inf) if n else target.new_full((num, k), -torch.inf)
    each = each.masked_scatter(distinct, log_density)
    some = distinct.any(1)
    total = torch.logsumexp(each.masked_fill(~some.unsqueeze(1), 0.0), 1)
    return total.masked_fill(~some, -torch.inf), distinct.sum(1)


def _with_gradient(sampler: NoisySampler, goal: Tensor, u: Tensor) -> Tensor:
    """One Newton step more, through which the solution follows the weights and the sampler.

    By the implicit function theorem its gradient is that of the exact solution.
    """
    n = u.shape[1]
    if n == 0 or not torch.is_grad_enabled():
        return u
    residual = sampler.generate(u)[:, :n] + sampler.sigma[:n] * u - goal
    with torch.no_grad():
        jacobian = sampler.jacobian(u, rows=n).transpose(1, 2) + torch.diag_embed(sampler.sigma[:n])
        inverse, _ = torch.linalg.inv_ex(jacobian.double())
        inverse = torch.nan_to_num(inverse, nan=0.0, posinf=0.0, neginf=0.0).to(u.dtype)
    return u - (inverse @ residual.unsqueeze(-1)).squeeze(-1)
