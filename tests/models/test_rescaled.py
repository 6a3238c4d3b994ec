"""A distribution in other units against scipy, closed forms, and the chain rule."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch

from bayeshnet.errors import ArgumentError
from bayeshnet.models.likelihoods.multivariate_normal import GappyNormal
from bayeshnet.models.rescaled import Rescaled, rescaled

LOC = torch.tensor([250_000.0, -3.0], dtype=torch.float64)
SCALE = torch.tensor([80_000.0, 0.01], dtype=torch.float64)


def base(kind: str) -> tuple[torch.distributions.Distribution, object]:
    """A distribution ``[5, 7, 2]`` and scipy's of the same, with location and scale left out."""
    torch.manual_seed(0)
    loc, scale = torch.randn(5, 7, 2).double(), torch.rand(5, 7, 2).double() + 0.1
    theirs = {"loc": (LOC + SCALE * loc).numpy(), "scale": (SCALE * scale).numpy()}
    if kind == "normal":
        return dist.Normal(loc, scale), scipy.stats.norm(**theirs)
    if kind == "laplace":
        return dist.Laplace(loc, scale), scipy.stats.laplace(**theirs)
    return dist.StudentT(torch.tensor(5.0).double(), loc, scale), scipy.stats.t(5.0, **theirs)


@pytest.mark.parametrize("kind", ["normal", "laplace", "student"])
def test_density_and_moments_are_scipys(kind):
    inner, theirs = base(kind)
    ours = rescaled(inner.to_event(1), LOC, SCALE)
    assert (ours.batch_shape, ours.event_shape) == ((5, 7), (2,))
    y = ours.sample()
    np.testing.assert_allclose(ours.log_prob(y), theirs.logpdf(y).sum(-1), rtol=1e-9)
    np.testing.assert_allclose(ours.mean, theirs.mean(), rtol=1e-12)
    np.testing.assert_allclose(ours.variance, theirs.var(), rtol=1e-12)
    np.testing.assert_allclose(ours.mode, theirs.mean(), rtol=1e-12)
    if kind != "student":  # torch has no quantiles and entropy of it
        level = torch.rand(5, 7, 2).double()
        np.testing.assert_allclose(ours.base_dist.icdf(level), theirs.ppf(level), rtol=1e-9)
        np.testing.assert_allclose(ours.base_dist.cdf(y), theirs.cdf(y), rtol=1e-9)
        np.testing.assert_allclose(ours.entropy(), theirs.entropy().sum(-1), rtol=1e-9)


def test_jacobian_of_an_event_by_hand():
    scale = torch.tensor([80.0, 0.5], dtype=torch.float64)
    inner = dist.MultivariateNormal(torch.zeros(7, 2).double(), torch.tensor([[1.0, 0.5], [0.5, 2.0]]).double())
    y = rescaled(inner, LOC, scale).sample()
    ours = rescaled(inner, LOC, scale)
    by_hand = inner.log_prob((y - LOC) / scale) - math.log(80.0 * 0.5)
    torch.testing.assert_close(ours.log_prob(y), by_hand, rtol=1e-12, atol=0)
    scaled = torch.diag(scale) @ inner.covariance_matrix[0] @ torch.diag(scale)
    exact = scipy.stats.multivariate_normal(LOC.numpy(), scaled.numpy())
    np.testing.assert_allclose(ours.log_prob(y), exact.logpdf(y), rtol=1e-9)
    np.testing.assert_allclose(ours.entropy(), exact.entropy(), rtol=1e-9)
    # One scale for all outputs counts once for each.
    one = Rescaled(inner, torch.tensor(1.0).double(), torch.tensor(10.0).double())
    torch.testing.assert_close(one.log_prob(y), inner.log_prob((y - 1.0) / 10.0) - 2.0 * math.log(10.0))


def test_gradient_is_that_of_the_chain_rule():
    loc = torch.randn(7, 2).double().requires_grad_()
    y = LOC + SCALE * torch.randn(7, 2).double()
    rescaled(dist.Normal(loc, 0.5).to_event(1), LOC, SCALE).log_prob(y).sum().backward()
    torch.testing.assert_close(loc.grad, ((y - LOC) / SCALE - loc.detach()) / 0.25, rtol=1e-9, atol=1e-12)
    draws = rescaled(dist.Normal(loc, 0.5).to_event(1), LOC, SCALE).rsample()
    (slope,) = torch.autograd.grad(draws.sum(), loc)
    torch.testing.assert_close(slope, SCALE.expand(7, 2))


def test_a_large_offset_costs_no_accuracy_in_single_precision():
    """A Normal around 1e6 + f has its mean rounded to .06; subtracting first leaves the residual exact."""
    f, y = torch.randn(1000), (1e6 + torch.randint(-3, 4, (1000,))).float()
    found = rescaled(dist.Normal(f, 0.5), torch.tensor(1e6), torch.tensor(1.0)).log_prob(y).double()
    exact = dist.Normal(f.double(), 0.5).log_prob(y.double() - 1e6)
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-5)
    fused = dist.Normal(1e6 + f, 0.5).log_prob(y).double()
    assert (fused - exact).abs().max() > 0.01
    # Data of more bits than the network: only the rest is rounded.
    wide = rescaled(
        dist.Normal(f, 0.5),
        torch.tensor(1e12, dtype=torch.float64),
        torch.ones((), dtype=torch.float64),
        dtype=torch.float32,
    )
    assert wide.log_prob(1e12 + f.double()).dtype == torch.float32
    torch.testing.assert_close(
        wide.log_prob(1e12 + f.double()), dist.Normal(0.0, 0.5).log_prob(torch.zeros(1000)), rtol=1e-3, atol=1e-3
    )


def test_draws_expand_plates_and_masks():
    torch.manual_seed(0)
    ours = rescaled(dist.Normal(torch.zeros(7, 2).double(), 1.0).to_event(1), LOC, SCALE)
    draws = ours.sample((20_000,))
    # Five standard errors of a mean and of a standard deviation.
    assert ((draws.mean((0, 1)) - LOC).abs() < 5 * SCALE / 140_000**0.5).all()
    assert ((draws.flatten(0, 1).std(0) / SCALE - 1).abs() < 5 / 280_000**0.5).all()
    y = draws[0]
    wide = ours.expand((3, 7))
    assert wide.mean.shape == (3, 7, 2)
    torch.testing.assert_close(wide.log_prob(y), ours.log_prob(y).expand(3, 7))

    def program():
        with pyro.plate("samples", 3, dim=-2), pyro.plate("rows", 7, dim=-1):
            pyro.sample("obs", ours, obs=y)

    torch.testing.assert_close(
        pyro.poutine.trace(program).get_trace().log_prob_sum(), 3.0 * ours.log_prob(y).sum(), rtol=1e-12, atol=0
    )
    masked = ours.mask(torch.arange(7) < 3)
    torch.testing.assert_close(masked.log_prob(y).sum(), ours.log_prob(y)[:3].sum())
    assert not ours.has_enumerate_support


def test_support_and_arguments():
    bounded = Rescaled(dist.Uniform(torch.zeros(3), 1.0), torch.tensor(10.0), torch.tensor(5.0))
    assert bounded.support.check(torch.tensor([9.0, 12.0, 16.0])).tolist() == [False, True, False]
    assert Rescaled(dist.Normal(torch.zeros(3), 1.0), torch.tensor(1.0), torch.tensor(2.0)).support is (
        torch.distributions.constraints.real
    )
    for loc, scale in (
        (torch.zeros(()), torch.tensor(-1.0)),
        (torch.zeros(4), torch.ones(())),
        (torch.zeros(2, 3),) * 2,
    ):
        with pytest.raises(ArgumentError, match="expand to"):
            Rescaled(dist.Normal(torch.zeros(3), 1.0), loc, scale)
    assert "loc=10" in repr(bounded)


def test_gaps_have_no_units():
    """Entries that are integrated out contribute no Jacobian."""
    covariance = torch.tensor([[1.0, 0.5], [0.5, 2.0]], dtype=torch.float64)
    ours = rescaled(GappyNormal(torch.zeros(2).double(), covariance_matrix=covariance), LOC, SCALE)
    assert ours.marginalises
    y = torch.tensor([[300_000.0, torch.nan], [torch.nan, -2.99], [torch.nan, torch.nan]], dtype=torch.float64)
    exact = [
        scipy.stats.norm(250_000.0, 80_000.0).logpdf(300_000.0),
        scipy.stats.norm(-3.0, 0.01 * 2.0**0.5).logpdf(-2.99),
        0.0,
    ]
    np.testing.assert_allclose(ours.log_prob(y), exact, rtol=1e-9, atol=1e-12)
