from __future__ import annotations

import math

import pytest
import torch

from bayeshnet.entropy import NoisySampler
from bayeshnet.entropy.root_search import RootEquation, bracket, follow, newton
from bayeshnet.hnets import HMLP, HPerturbWrapper
from tests.samplers import perturbed


def equation(*, linear_skip: bool = False, **options) -> RootEquation:
    hnet = perturbed(8, 3, sigma=0.05, linear_skip=linear_skip, **options)
    with torch.no_grad():
        for param in hnet.internal_hnet.internal_params:
            param.mul_(2.0)  # steep enough to fold
    return RootEquation(NoisySampler(hnet))


@pytest.mark.parametrize("kind", ["mlp", "sine"])
def test_the_jacobian_is_that_of_the_equation(kind):
    torch.set_default_dtype(torch.float64)
    made = RootEquation(NoisySampler(perturbed(8, 3, kind=kind)))
    u = torch.randn(5, 3)
    expected = torch.func.vmap(torch.func.jacfwd(lambda row: made(row[None])[0]))(u)
    torch.testing.assert_close(made.jacobian(u), expected)


def test_newton_ends_at_the_only_solution_of_a_linear_equation():
    torch.set_default_dtype(torch.float64)
    made = RootEquation(NoisySampler(perturbed(8, 3, layers=())))
    u = torch.randn(6, 3)
    with torch.no_grad():
        end, residual = newton(made, made(u), torch.randn(6, 3), 5)
    torch.testing.assert_close(end, u)
    assert float(residual.max()) < 1e-12


def test_newton_leaves_a_row_with_a_singular_jacobian_where_it_is_and_solves_the_others():
    torch.set_default_dtype(torch.float64)
    hnet = HMLP([[1]], uncond_in_size=1, cond_in_size=0, layers=(), verbose=False)
    with torch.no_grad():
        hnet.internal_params[0].fill_(-0.5)
    singular = RootEquation(NoisySampler(HPerturbWrapper(hnet, sigma_noise=0.5, verbose=False)))
    end, residual = newton(singular, torch.full((2, 1), 3.0), torch.tensor([[1.0], [2.0]]), 10)
    assert bool(end.isfinite().all())
    assert bool((residual > 1.0).all())


@pytest.mark.parametrize("linear_skip", [False, True])
def test_the_curve_leads_to_a_solution_from_nearly_every_start(linear_skip):
    """The theorem promises almost every start; steps of finite length lose a few. Newton's method alone solves half."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    made = equation(linear_skip=linear_skip)
    with torch.no_grad():
        goal = made(torch.randn(200, 3)) + 0.2 * torch.randn(200, 3)
        end, escaped = follow(made, goal, torch.randn(200, 3))
        ended = end.isfinite().all(1)
        _, residual = newton(made, goal[ended], end[ended], 20)
        _, alone = newton(made, goal, torch.randn(200, 3), 40)
    assert float(ended.double().mean()) >= 0.98
    assert float((residual < 1e-10).double().mean()) >= 0.99
    assert not bool(escaped.any())
    assert float((alone < 1e-10).double().mean()) < 0.9


def test_a_curve_into_a_hole_runs_to_infinity():
    """h(u) = |u| with sigma 0.02 reaches nothing below 0. A few curves end at the kink."""
    torch.set_default_dtype(torch.float64)
    made = RootEquation(NoisySampler(absolute()))
    end, escaped = follow(made, torch.full((20, 1), -0.5), torch.randn(20, 1))
    assert bool(end.isnan().all())
    assert float(escaped.double().mean()) > 0.5


def absolute(sigma: float = 0.02) -> HPerturbWrapper:
    """h(u) = |u|, from two rectified units."""
    hnet = HMLP([[1]], uncond_in_size=1, cond_in_size=0, layers=(2,), verbose=False)
    with torch.no_grad():
        for param, value in zip(hnet.internal_params, ([[1.0], [-1.0]], [0.0, 0.0], [[1.0, 1.0]], [0.0]), strict=True):
            param.copy_(torch.tensor(value))
    return HPerturbWrapper(hnet, sigma_noise=sigma, verbose=False)


def test_a_bracket_finds_all_solutions():
    """-sin(4 u) + 0.1 u = w, counted on a grid a hundred times as fine, as far as the density is not 0."""
    torch.set_default_dtype(torch.float64)
    hnet = perturbed(1, 1, kind="sine", sigma=0.1)
    with torch.no_grad():
        hnet.internal_hnet.internal_params[0].fill_(4.0)
        hnet.internal_hnet.internal_params[1].fill_(math.pi)
        hnet.log_sigma_noise.fill_(math.log(0.1))
        made = RootEquation(NoisySampler(hnet))
        goal = torch.linspace(-1.5, 1.5, 31).unsqueeze(1)
        rows, root = bracket(made, goal)
        grid = torch.linspace(-8, 8, 160_001)
        over = (-torch.sin(4 * grid) + 0.1 * grid) > goal
        expected = (over[:, 1:] != over[:, :-1]).sum(1)
    assert torch.equal(torch.bincount(rows[root.abs().squeeze(1) < 8], minlength=31), expected)
    torch.testing.assert_close(made(root), goal[rows])
