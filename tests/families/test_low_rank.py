from __future__ import annotations

import math

import pytest
import torch

from bayeshnet.distributions import MultiplicativeLowRank
from bayeshnet.errors import ArgumentError, DensityError


@pytest.fixture
def q():
    left, right = 0.7 * torch.randn(6, 2).double(), 0.7 * torch.randn(6, 2).double()
    return MultiplicativeLowRank(torch.randn(6).double(), 0.3 * torch.randn(6).double(), left, right)


def dense(q):
    factor = torch.diag(q.log_scale.exp()) @ (torch.eye(6).double() + q.left @ q.right.T)
    return torch.distributions.MultivariateNormal(q.loc, factor @ factor.T)


def test_density_is_that_of_the_dense_gaussian(q):
    values = torch.randn(5, 6).double()
    torch.testing.assert_close(q.log_prob(values), dense(q).log_prob(values))
    own = q.rsample((5, 3))
    torch.testing.assert_close(q.log_prob(own), dense(q).log_prob(own))
    torch.testing.assert_close(q.variance, dense(q).variance)
    torch.testing.assert_close(q.expand((4,)).mean, q.loc.expand(4, 6))


def test_moments_of_draws(q):
    num = 200_000
    draws, exact = q.rsample((num,)), dense(q)
    std = exact.variance.sqrt()
    assert bool(((draws.mean(0) - q.loc).abs() < 4 * std / math.sqrt(num)).all())
    error = ((std[:, None] * std).square() + exact.covariance_matrix.square()).sqrt() / math.sqrt(num)
    assert bool(((torch.cov(draws.T) - exact.covariance_matrix).abs() < 5 * error).all())


def test_gradient_of_the_entropy(q):
    """d H / d theta of the reparameterised estimate is that of the closed form, whatever the draw."""
    leaves = [t.clone().requires_grad_() for t in (q.loc, q.log_scale, q.left, q.right)]
    made = MultiplicativeLowRank(*leaves)
    estimate = torch.autograd.grad(-made.log_prob(made.rsample((4,))).mean(), leaves)
    core = torch.eye(2).double() + leaves[3].T @ leaves[2]
    exact = torch.autograd.grad(leaves[1].sum() + torch.linalg.slogdet(core)[1], leaves, allow_unused=True)
    for one, two in zip(estimate, exact, strict=True):
        torch.testing.assert_close(one, torch.zeros_like(one) if two is None else two, rtol=1e-8, atol=1e-8)


def test_expanded_in_float32():
    q = MultiplicativeLowRank(torch.zeros(4), torch.zeros(4), torch.zeros(4, 1), torch.ones(4, 1)).expand((3,))
    draw = q.rsample((2,))
    assert draw.shape == (2, 3, 4)
    assert draw.dtype == q.log_prob(draw).dtype == torch.float32
    torch.testing.assert_close(q.log_prob(draw), torch.distributions.Normal(0.0, 1.0).log_prob(draw).sum(-1))


def test_errors():
    with pytest.raises(ArgumentError, match=r"loc, log_scale, left, right: have shapes \[4\], \[3\]"):
        MultiplicativeLowRank(torch.zeros(4), torch.zeros(3), torch.zeros(4, 1), torch.zeros(4, 1))
    singular = MultiplicativeLowRank(torch.zeros(2), torch.zeros(2), -torch.ones(2, 1), torch.full((2, 1), 0.5))
    with pytest.raises(DensityError, match="singular or not finite"):
        singular.log_prob(torch.zeros(2))
