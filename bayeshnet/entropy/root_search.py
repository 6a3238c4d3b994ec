"""Solutions u of ``h(u)_i + sigma_i u_i = w_i``, i <= n, for many rows at once: Newton, continuation, a bracket."""

from __future__ import annotations

import torch
from torch import Tensor

from bayeshnet.entropy.sampler import NoisySampler
from bayeshnet.typing import LogDensities, NoiseBatch

__all__ = ["RootEquation", "bracket", "follow", "newton"]

# How the slope far out is found, and up to what condition number it is used.
_DIRECTIONS, _FAR, _CONDITION = 32, 1e4, 1e3


class RootEquation:
    """The left-hand side ``G(u) = h(u)_{1:n} + sigma_{1:n} u`` of a sampler with shared noise, in float64.

    What the network itself computes has the precision of its parameters.

    Args:
        sampler: A sampler with shared noise.

    Example:
        >>> from bayeshnet.hnets import HMLP, HPerturbWrapper
        >>> hnet = HMLP([[3]], uncond_in_size=2, cond_in_size=0, activation_fn=torch.tanh)
        >>> equation = RootEquation(NoisySampler(HPerturbWrapper(hnet, sigma_noise=1.0)))
        >>> equation(torch.zeros(4, 2).double()).shape, equation.jacobian(torch.zeros(4, 2).double()).shape
        (torch.Size([4, 2]), torch.Size([4, 2, 2]))
    """

    def __init__(self, sampler: NoisySampler) -> None:
        self.sampler = sampler
        self.size = sampler.latent_dim
        self.sigma = sampler.sigma[: self.size].double()
        self.dtype = sampler.sigma.dtype
        head = sampler.linear_head
        # Of D outputs only n enter.
        self._head = None if head is None else head.head(rows=self.size)

    def __call__(self, u: Tensor) -> Tensor:
        """``G(u)`` for ``u [R, n]``: ``[R, n]``."""
        low = u.to(self.dtype)
        if self._head is None:
            out = self.sampler.generate(low)[:, : self.size]
        else:
            weight, bias = self._head
            out = torch.nn.functional.linear(self.sampler.features(low), weight, bias)
        return out.double() + self.sigma * u

    def jacobian(self, u: Tensor) -> Tensor:
        """``J[r, i, j] = d G_i(u_r) / d u_j``: ``[R, n, n]``."""
        low = u.to(self.dtype)
        if self._head is None:
            rows = self.sampler.jacobian(low, rows=self.size)
        else:
            rows = self.sampler.feature_jacobian(low) @ self._head[0].T
        return rows.transpose(1, 2).double() + torch.diag_embed(self.sigma)

    def far_slope(self) -> Tensor:
        """The slope of G far out ``[n, n]``, scaled to a least singular value of 1; the identity where it has none.

        It is the linear part of G, of which a bounded remainder is left: ``diag(sigma)``, and the skip's weight if
        there is one.
        """
        like = self.sigma
        generator = torch.Generator().manual_seed(0)  # any directions will do; no draw of the user's is used up
        away = torch.randn(_DIRECTIONS, self.size, generator=generator, dtype=like.dtype).to(like.device)
        away = _FAR * torch.nn.functional.normalize(away, dim=1)
        slope = self.jacobian(torch.cat([away, -away])).mean(0)
        eye = torch.eye(self.size, dtype=like.dtype, device=like.device)
        if not bool(slope.isfinite().all()):
            return eye
        values = torch.linalg.svdvals(slope)
        return slope / values[-1] if bool(values[0] < _CONDITION * values[-1]) else eye

    def precision(self, goal: Tensor, u: Tensor) -> Tensor:
        """How closely ``G(u) = goal`` can be met in the precision of the network: ``[R]``."""
        terms = goal.abs().amax(-1) + (self.sigma * u).abs().amax(-1)
        return torch.finfo(self.dtype).eps * terms


def _solve(matrix: Tensor, right: Tensor) -> Tensor:
    """Solution ``[R, n]``; zeros where the matrix is singular, so that one row does not end the search of all."""
    found, _ = torch.linalg.solve_ex(matrix, right.unsqueeze(-1))
    return torch.nan_to_num(found.squeeze(-1), nan=0.0, posinf=0.0, neginf=0.0)


@torch.no_grad()
def newton(
    equation: RootEquation, goal: NoiseBatch, starts: NoiseBatch, num_steps: int
) -> tuple[NoiseBatch, LogDensities]:
    """Newton steps, halved up to five times where the residual does not fall; rows that are done cost nothing more.

    Args:
        equation: The equation.
        goal: Its right-hand side ``[R, n]``.
        starts: ``[R, n]``.
        num_steps: Steps at most.

    Returns:
        Where each row ended ``[R, n]``, and the norm of its residual ``[R]``.

    Example:
        >>> from bayeshnet.hnets import HMLP, HPerturbWrapper
        >>> hnet = HMLP([[3]], uncond_in_size=2, cond_in_size=0, activation_fn=torch.tanh)
        >>> equation = RootEquation(NoisySampler(HPerturbWrapper(hnet, sigma_noise=1.0)))
        >>> root, residual = newton(equation, torch.zeros(1, 2).double(), torch.zeros(1, 2).double(), num_steps=40)
        >>> bool(residual < 1e-6)
        True
    """
    u = starts.clone()
    residual = equation(u) - goal
    norm = residual.norm(dim=-1)
    active = torch.arange(len(u), device=u.device)
    for _ in range(num_steps):
        if not len(active):
            break
        here, aim, before = u[active], goal[active], norm[active]
        step = _solve(equation.jacobian(here), residual[active])
        best_u, best_residual, best_norm = here.clone(), residual[active], before.clone()
        left, length = torch.arange(len(active), device=u.device), 1.0
        for _ in range(6):
            trial = here[left] - length * step[left]
            trial_residual = equation(trial) - aim[left]
            trial_norm = trial_residual.norm(dim=-1)
            better = trial_norm < best_norm[left]
            hit = left[better]
            best_u[hit], best_residual[hit], best_norm[hit] = trial[better], trial_residual[better], trial_norm[better]
            left, length = left[~better], length / 2
            if not len(left):
                break
        u[active], residual[active], norm[active] = best_u, best_residual, best_norm
        going = (best_norm < before * (1 - 1e-3)) & (best_norm > equation.precision(aim, best_u))
        active = active[going]
    return u, norm


@torch.no_grad()
def follow(
    equation: RootEquation, goal: NoiseBatch, starts: NoiseBatch, *, num_steps: int = 300
) -> tuple[Tensor, Tensor]:
    r"""Follow the solution of ``G(u) + k M (u - u_0) = w`` from a large k, where there is one, down to k = 0.

    M is the slope of G far out, the identity for a bounded generator and equal scales: noise of a scale that makes the
    map a bijection. The curve of solutions in (u, k) may turn back in k, and is followed by its arc length, so a turn
    does not end it. If G is a bijective linear map and a bounded rest, all solutions lie in a ball, and for almost
    every u_0 the curve leads to one at k = 0 (Chow, Mallet-Paret & Yorke, Math. Comp. 1978). Steps of finite length may
    lose it; and for other generators it may run to infinity, as it has to in a hole.

    Args:
        equation: The equation.
        goal: w, ``[R, n]``.
        starts: u_0, ``[R, n]``.
        num_steps: Steps along the curve at most, three Newton steps each.

    Returns:
        Where each curve crossed k = 0, to be polished by :func:`newton`, and NaN where it did not ``[R, n]``; whether
        it ran to infinity ``[R]``.

    Example:
        >>> from bayeshnet.hnets import HMLP, HPerturbWrapper
        >>> hnet = HMLP([[3]], uncond_in_size=2, cond_in_size=0, activation_fn=torch.tanh)
        >>> equation = RootEquation(NoisySampler(HPerturbWrapper(hnet, sigma_noise=1.0)))
        >>> root, escaped = follow(equation, torch.zeros(1, 2).double(), torch.zeros(1, 2).double())
        >>> root.shape, escaped
        (torch.Size([1, 2]), tensor([False]))
    """
    num, n = starts.shape
    slope = equation.far_slope()
    scale = 1.5 * torch.linalg.matrix_norm(equation.jacobian(starts), 2).clamp(min=torch.finfo(equation.dtype).eps)
    # k = unit * y_n: an arc of length 3 leads from the start to the end where u need not move.
    unit = (scale / 3.0).unsqueeze(1)
    u = starts.clone()
    for _ in range(10):
        off = equation(u) + scale.unsqueeze(1) * ((u - starts) @ slope.T) - goal
        u = u - _solve(equation.jacobian(u) + scale[:, None, None] * slope, off)
    y = torch.cat([u, torch.full_like(unit, 3.0)], 1)
    tangent = torch.zeros_like(y)
    tangent[:, -1] = -1.0
    length = torch.full_like(scale, 0.3)
    found = torch.full_like(starts, torch.nan)
    escaped = torch.zeros(num, dtype=torch.bool, device=starts.device)
    far = 1e3 + 10.0 * (equation(starts) - goal).abs().amax(1) / equation.sigma.min()
    active = torch.arange(num, device=starts.device)
    for _ in range(num_steps):
        if not len(active):
            break
        here, anchor, aim, c, step = y[active], starts[active], goal[active], unit[active], length[active]

        def extended(y: Tensor, c: Tensor = c, anchor: Tensor = anchor) -> Tensor:
            square = equation.jacobian(y[:, :n]) + (c * y[:, n:]).unsqueeze(-1) * slope
            return torch.cat([square, (c * ((y[:, :n] - anchor) @ slope.T)).unsqueeze(-1)], 2)

        def value(y: Tensor, c: Tensor = c, anchor: Tensor = anchor, aim: Tensor = aim) -> Tensor:
            return equation(y[:, :n]) + c * y[:, n:] * ((y[:, :n] - anchor) @ slope.T) - aim

        ahead = torch.zeros_like(here)
        ahead[:, -1] = 1.0
        # The kernel of the n x (n + 1) matrix, on the side of the last direction.
        along = _solve(torch.cat([extended(here), tangent[active].unsqueeze(1)], 1), ahead)
        along = torch.nn.functional.normalize(along, dim=1)
        guess = here + step.unsqueeze(1) * along
        trial = guess
        for _ in range(3):
            off = torch.cat([value(trial), ((trial - guess) * along).sum(1, keepdim=True)], 1)
            trial = trial - _solve(torch.cat([extended(trial), along.unsqueeze(1)], 1), off)
        moved = (trial - guess).norm(dim=1)
        close = value(trial).norm(dim=1) <= 1e-5 * scale[active] + 30.0 * equation.precision(aim, trial[:, :n])
        kept = close & (moved < 0.5 * step)
        y[active[kept]], tangent[active[kept]] = trial[kept], along[kept]
        longer = torch.where(moved < 0.15 * step, 1.6 * step, step)
        length[active] = torch.where(kept, longer, 0.4 * step)
        crossed = kept & (trial[:, n] <= 0)
        share = (here[:, n:] / (here[:, n:] - trial[:, n:])).clamp(0.0, 1.0)
        found[active[crossed]] = (here + share * (trial - here))[crossed, :n]
        away = kept & (trial[:, :n].norm(dim=1) > far[active])
        escaped[active[away & ~crossed]] = True
        active = active[~(crossed | away | (length[active] < 1e-5))]
    return found, escaped


@torch.no_grad()
def bracket(equation: RootEquation, goal: Tensor, *, num_steps: int = 50) -> tuple[Tensor, Tensor]:
    """For n = 1: a solution in each interval of a grid over whose ends ``G - w`` changes sign.

    One grid serves all rows, since G does not depend on w. Only two solutions within one interval are missed; a bounded
    generator has a change of sign for every w.

    Args:
        equation: An equation with n = 1.
        goal: w, ``[R, 1]``.
        num_steps: Bisections.

    Returns:
        For each solution its row ``[P]``, and the solution ``[P, 1]``.

    Example:
        >>> from bayeshnet.hnets import HMLP, HPerturbWrapper
        >>> hnet = HMLP([[3]], uncond_in_size=1, cond_in_size=0, activation_fn=torch.tanh)
        >>> equation = RootEquation(NoisySampler(HPerturbWrapper(hnet, sigma_noise=1.0)))
        >>> row, root = bracket(equation, torch.zeros(1, 1).double())
        >>> bool(equation(root).abs().max() < 1e-6)
        True
    """
    inner = torch.linspace(-8.0, 8.0, 1601, dtype=goal.dtype, device=goal.device)
    reach = float((equation(inner.unsqueeze(1)).abs().amax() + goal.abs().amax()) / equation.sigma.min())
    outer = 8.0 * max(2.0, reach / 4.0) ** torch.linspace(0.0, 1.0, 401, dtype=goal.dtype, device=goal.device)[1:]
    grid = torch.cat([-outer.flip(0), inner, outer])
    sign = equation(grid.unsqueeze(1)).squeeze(1) > goal
    rows, cell = (sign[:, 1:] != sign[:, :-1]).nonzero(as_tuple=True)
    low, high = grid[cell], grid[cell + 1]
    low_sign, aim = sign[rows, cell], goal[rows, 0]
    for _ in range(num_steps if len(rows) else 0):
        middle = 0.5 * (low + high)
        same = (equation(middle.unsqueeze(1)).squeeze(1) > aim) == low_sign
        low, high = torch.where(same, middle, low), torch.where(same, high, middle)
    return rows, (0.5 * (low + high)).unsqueeze(1)
