"""Which noise vectors lead to given weights, for a sampler with shared noise."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from bayeshnet.entropy.implicit_noise import implicit_solution
from bayeshnet.entropy.root_search import RootEquation, bracket, follow, newton
from bayeshnet.entropy.sampler import NoisySampler, chunks, percent, require_values
from bayeshnet.errors import SearchWarning
from bayeshnet.normal_density import log_standard_normal

__all__ = ["Preimages", "find_preimages"]

# Curves followed for a row without a solution, one after the other.
_CURVES = 4


@dataclass(frozen=True, slots=True)
class Preimages:
    """Preimages of each of S weight vectors.

    Attributes:
        log_prob: Log of the summed density ``[S]``; -inf where none was found.
        count: Number of distinct preimages found ``[S]``.

    Example:
        >>> Preimages(log_prob=torch.zeros(5), count=torch.ones(5, dtype=torch.long)).count.sum()
        tensor(5)
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
    warn: bool = True,
) -> Preimages:
    """Solve ``h(u)_i + sigma_i u_i = w_i``, i <= n, from many starts, and sum the densities of the solutions.

    All rows are solved by Newton's method from ``num_starts`` places and, for n = 1, by a bracket. Rows without a
    solution get three times as many starts, and then curves of solutions that a decreasing amount of additional noise
    leads to (:func:`~bayeshnet.entropy.root_search.follow`), which for a bounded generator end at a solution.

    The sum is over those found. Where a sampler folds many times there may be more, and the density is higher; the sum
    of a value can only grow with ``num_starts``.

    Args:
        sampler: A sampler with shared noise.
        weights: ``[S, D]``.
        log_abs_det: Log of the absolute determinant of the sampler's Jacobian at ``u``.
        known: Preimages known already ``[S, n]``, such as the noise that made the weights.
        num_starts: Starting points per weight vector, drawn from N(0, I).
        num_steps: Newton steps, with halving where the residual does not fall.
        rows_at_once: Bound on ``S * num_starts`` handled together.
        warn: Warn where no solution was found.

    Raises:
        ArgumentError: If the weights have another dtype than the sampler, or one is NaN or infinite.

    Example:
        >>> from torch import nn
        >>> from bayeshnet.entropy import ChangeOfVariables
        >>> from bayeshnet.hnets import HMLP, HPerturbWrapper
        >>> hnet = HMLP([[3]], uncond_in_size=2, cond_in_size=0, activation_fn=nn.Tanh())
        >>> sampler = NoisySampler(HPerturbWrapper(hnet, sigma_noise=1.0))
        >>> log_abs_det = lambda sampler, u: ChangeOfVariables().slogdet(sampler, u)[1]
        >>> find_preimages(sampler, torch.zeros(4, 3), log_abs_det=log_abs_det).count
        tensor([1, 1, 1, 1])
    """
    require_values(sampler, weights)
    roots = _search(sampler, weights, known, num_starts, num_steps, rows_at_once)
    sums = [
        _summed_density(sampler, weights[rows], roots.of(rows), log_abs_det)
        for rows in chunks(len(weights), max(1, rows_at_once // (num_starts + 1)))
    ]
    log_prob = torch.cat([weights.new_zeros(0), *(part[0] for part in sums)])
    count = torch.cat([roots.row[:0], *(part[1] for part in sums)])
    missed = int((count == 0).sum())
    if warn and missed:
        warnings.warn(
            f"value: no noise was found for {percent(missed / len(count))} of the values, and their log-density is "
            "-inf. Either the hypernetwork with shared noise does not reach them (its generator is not bounded), or "
            f"the search missed it: more starts tell, ChangeOfVariables(num_starts={10 * num_starts}). Where the "
            "support has to be everything, use independent noise: HPerturbWrapper(..., noise='independent') with "
            "ImportanceSampled().",
            SearchWarning,
            stacklevel=2,
        )
    return Preimages(log_prob, count)


@dataclass(frozen=True, slots=True)
class _Roots:
    """Solutions of all rows in one list.

    Attributes:
        row: Which row of the weights each belongs to ``[P]``.
        u: ``[P, n]``.
        error: How far off they may be ``[P]``.
    """

    row: Tensor
    u: Tensor
    error: Tensor

    def of(self, rows: slice) -> _Roots:
        """The solutions of some of the rows, which are then numbered from 0."""
        inside = (self.row >= rows.start) & (self.row < rows.stop)
        return _Roots(self.row[inside] - rows.start, self.u[inside], self.error[inside])


@torch.no_grad()
def _search(
    sampler: NoisySampler, weights: Tensor, known: Tensor | None, num_starts: int, num_steps: int, rows_at_once: int
) -> _Roots:
    """All solutions found, in stages: each takes up only the rows that the one before has left."""
    num, n = len(weights), sampler.latent_dim
    every = torch.arange(num, device=weights.device)
    if n == 0 or num == 0:
        return _Roots(every, weights[:, :n].double(), torch.zeros_like(every, dtype=torch.double))
    equation = RootEquation(sampler)
    goal = weights[:, :n].double()
    found: list[_Roots] = []
    solved = torch.zeros(num, dtype=torch.bool, device=weights.device)

    def take(row: Tensor, u: Tensor, *, trusted: bool = False) -> Tensor:
        """Polish points and keep those that are solutions; return all residuals."""
        residuals: list[Tensor] = []
        for part in chunks(len(row), rows_at_once):
            end, residual = newton(equation, goal[row[part]], u[part], num_steps)
            roots = _accept(equation, goal, row[part], end, residual, trusted=trusted)
            found.append(roots)
            solved[roots.row] = True
            residuals.append(residual)
        return torch.cat(residuals) if residuals else goal.new_zeros(0)

    def random(count: int) -> Tensor:
        return torch.randn(count, n, dtype=weights.dtype, device=weights.device).double()

    if known is not None:
        take(every, known.double(), trusted=True)
    for part in chunks(num, max(1, rows_at_once // num_starts)):
        row = every[part].repeat_interleave(num_starts)
        take(row, random(len(row)))
    if n == 1:
        for part in chunks(num, max(1, rows_at_once // 4)):
            row, root = bracket(equation, goal[part])
            take(row + part.start, root)
    left = every[~solved]
    if len(left):
        each = 3 * num_starts
        row, starts = left.repeat_interleave(each), random(len(left) * each)
        residual = take(row, starts).reshape(-1, each)
        # From where Newton's method came closest first, and not again where a curve ran to infinity: a hole is likely.
        best = starts.reshape(-1, each, n)[torch.arange(len(left), device=left.device), residual.argmin(1)]
        row, starts = left, best
        for _ in range(_CURVES):
            going = ~solved[row]
            row, starts = row[going], starts[going]
            again: list[Tensor] = []
            for part in chunks(len(row), rows_at_once):
                end, escaped = follow(equation, goal[row[part]], starts[part])
                ended = end.isfinite().all(1)
                take(row[part][ended], end[ended])
                again.append(row[part][~escaped])
            row = torch.cat(again) if again else row
            starts = random(len(row))
    return _Roots(*(torch.cat([getattr(roots, name) for roots in found]) for name in ("row", "u", "error")))


def _accept(equation: RootEquation, goal: Tensor, row: Tensor, u: Tensor, residual: Tensor, *, trusted: bool) -> _Roots:
    """The points that are solutions.

    A small residual is not enough, as it may be the least there is; the next Newton step has to be short, too.
    """
    eps = torch.finfo(equation.dtype).eps
    fits = residual <= 10.0 * eps**0.5 * (1.0 + goal[row].abs().amax(-1))
    row, u = row[fits], u[fits]
    if not len(row):
        return _Roots(row, u, residual[fits])
    jacobian = equation.jacobian(u)
    off = (equation(u) - goal[row]).unsqueeze(-1)
    step = torch.linalg.solve_ex(jacobian, off)[0].squeeze(-1).norm(dim=-1).nan_to_num(nan=torch.inf)
    short = step <= 0.5 * eps**0.25 * (1.0 + u.norm(dim=-1))
    if trusted:
        return _Roots(row, u, torch.where(short, step, 0.0))
    return _Roots(row[short], u[short], step[short])


def _distinct(roots: _Roots, num: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows and solutions, each solution once: those that lie next to an earlier one are dropped."""
    order = torch.argsort(roots.row, stable=True)
    row, u, error = roots.row[order], roots.u[order], roots.error[order]
    counts = torch.bincount(row, minlength=num)
    place = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
    most = int(counts.max()) if len(row) else 0
    padded = u.new_full((num, most, u.shape[1]), torch.nan)
    errors = u.new_zeros(num, most)
    padded[row, place], errors[row, place] = u, error
    distance = torch.cdist(padded, padded, compute_mode="donot_use_mm_for_euclid_dist")
    slack = 3.0 * torch.finfo(dtype).eps ** 0.5 * (1.0 + padded.norm(dim=-1, keepdim=True))
    near = distance <= slack + 2.0 * (errors.unsqueeze(1) + errors.unsqueeze(2))  # false for the padding
    earlier = torch.ones(most, most, dtype=torch.bool, device=row.device).tril(-1)
    repeated = (near & earlier).any(-1)[row, place]
    return row[~repeated], u[~repeated]


def _summed_density(
    sampler: NoisySampler, target: Tensor, roots: _Roots, log_abs_det: Callable[[NoisySampler, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    num, n = target.shape[0], sampler.latent_dim
    row, u = _distinct(roots, num, target.dtype)
    count = torch.bincount(row, minlength=num)
    # Only of solutions: elsewhere the Jacobian may be singular, whose gradient would spoil that of the others.
    goal = target[row]
    found = implicit_solution(sampler, goal[:, :n], u.to(target.dtype))
    rest = (goal - sampler.generate(found))[:, n:] / sampler.sigma[n:]
    log_density = log_standard_normal(torch.cat([found, rest], 1)) - log_abs_det(sampler, found)
    place = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
    each = target.new_full((num, max(1, int(count.max()) if num else 1)), -torch.inf)
    each = each.index_put((row, place), log_density)
    some = count > 0
    total = torch.logsumexp(each.masked_fill(~some.unsqueeze(1), 0.0), 1)
    return total.masked_fill(~some, -torch.inf), count
