"""Moments, entropy and divergences of a hypernetwork's distribution, against closed forms."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import constraints, kl_divergence

from bayeshnet import ImplicitWeights
from bayeshnet.entropy import Linearised
from bayeshnet.entropy.experimental import SpectralStein
from bayeshnet.errors import ArgumentError, ArgumentTypeError, DensityError
from bayeshnet.hnets import HMLP, HPerturbWrapper

NOISES = ("shared", "independent")


def linear(noise: str, *, size: int = 5, noise_dim: int = 2) -> tuple[ImplicitWeights, dist.MultivariateNormal]:
    """A sampler that is linear in its noise, and the Gaussian that it is."""
    torch.manual_seed(1)
    hnet = HMLP([[size]], uncond_in_size=noise_dim, cond_in_size=0, layers=(), verbose=False)
    wrapper = HPerturbWrapper(hnet, sigma_noise=0.5, noise=noise, learn_sigma="per_weight", verbose=False).double()
    with torch.no_grad():
        wrapper.log_sigma_noise.add_(0.3 * torch.randn(size, dtype=torch.float64))
    loc, scale = torch.randn(size).double(), 0.5 + torch.rand(size).double()
    q = ImplicitWeights(wrapper, loc=loc, scale=scale)
    weight, bias = (param.detach() for param in hnet.internal_params)
    root = torch.diag(wrapper.sigma.detach())
    if noise == "shared":
        root[:, :noise_dim] += weight
    else:
        root = torch.cat([weight, root], 1)
    root = scale.unsqueeze(1) * root
    return q, dist.MultivariateNormal(loc + scale * bias, root @ root.T)


@pytest.mark.parametrize("noise", NOISES)
def test_mean_and_variance(noise):
    q, exact = linear(noise)
    error = exact.stddev / math.sqrt(4096)
    # 4.5 standard errors of 5 numbers. The perturbation adds none to the mean.
    assert bool(((q.mean - exact.mean).abs() < 4.5 * error).all())
    assert bool(((q.variance / exact.variance - 1.0).abs() < 4.5 * math.sqrt(2.0 / 4096)).all())
    assert q.expand((3, 1)).mean.shape == q.expand((3, 1)).variance.shape == (3, 1, 5)
    assert q.stddev.shape == (5,)


def test_moments_of_no_noise_input_are_exact():
    hnet = HMLP([[4]], uncond_in_size=0, cond_in_size=2, verbose=False)
    q = ImplicitWeights(HPerturbWrapper(hnet, sigma_noise=0.2, verbose=False), cond_id=0)
    torch.testing.assert_close(q.mean, hnet(cond_id=0, ret_format="flattened")[0])
    torch.testing.assert_close(q.variance, torch.full((4,), 0.04))


def test_many_weights_take_fewer_draws():
    hnet = HMLP([[2**20]], uncond_in_size=1, cond_in_size=0, layers=(), verbose=False)
    q = ImplicitWeights(HPerturbWrapper(hnet, verbose=False))
    with torch.no_grad():
        assert q.mean.shape == (2**20,)  # of 64 draws: 256 MB, not 16 GB


@pytest.mark.parametrize("noise", NOISES)
def test_entropy(noise):
    q, exact = linear(noise)
    # log q of a Gaussian has variance D / 2.
    error = math.sqrt(5 / 2 / 4000)
    assert float(q.entropy(num_samples=4000).detach()) == pytest.approx(float(exact.entropy()), abs=4.0 * error)
    assert q.expand((2, 3)).entropy(num_samples=10).shape == (2, 3)


@pytest.mark.parametrize("noise", NOISES)
def test_entropy_has_the_gradient_of_the_entropy(noise):
    """d H / d log sigma of all weights at once, for a sampler that is its noise alone: D."""
    q, _ = linear(noise)
    with torch.no_grad():
        q.sampler.generator.internal_params[0].zero_()
    (gradient,) = torch.autograd.grad(q.entropy(num_samples=2000), q.sampler.hnet.log_sigma_noise)
    torch.testing.assert_close(gradient, torch.ones_like(gradient), rtol=0, atol=4.0 * math.sqrt(2.0 / 2000))


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("kind", ["independent", "full", "low_rank"])
def test_divergence_from_gaussians(noise, kind):
    q, exact = linear(noise)
    torch.manual_seed(2)
    mean, std = torch.randn(5).double(), 0.5 + torch.rand(5).double()
    p = {
        "independent": lambda: dist.Normal(mean, std).to_event(1),
        "full": lambda: dist.MultivariateNormal(mean, torch.diag(std) + 0.1),
        "low_rank": lambda: dist.LowRankMultivariateNormal(mean, torch.ones(5, 1).double(), std),
    }[kind]()
    full = torch.distributions.MultivariateNormal(
        p.mean, p.covariance_matrix if kind != "independent" else torch.diag(std**2)
    )
    right = kl_divergence(exact, full)
    w = exact.sample((4000,))
    error = float((exact.log_prob(w) - full.log_prob(w)).std()) / math.sqrt(1000)
    assert float(kl_divergence(q, p).detach()) == pytest.approx(float(right), abs=4.0 * error)


def test_divergence_broadcasts_and_refuses():
    q, exact = linear("shared")
    p = dist.Normal(torch.zeros(3, 1, 5).double(), 1.0).to_event(1)
    assert kl_divergence(q.expand((2,)), p).shape == (3, 2)
    # Of the distribution itself there is no Monte Carlo error at all.
    assert float(q.divergence_from(exact, num_samples=10).detach()) == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(ArgumentError, match=r"other: has event shape \(\); it has to be \(5,\)"):
        q.divergence_from(dist.Normal(torch.zeros(5), 1.0))
    with pytest.raises(ArgumentError, match="num_samples: is 0"):
        q.entropy(num_samples=0)
    with pytest.raises(ArgumentTypeError, match="num_samples: is 1.5"):
        q.divergence_from(exact, num_samples=1.5)


def test_estimators_without_a_value():
    hnet = HPerturbWrapper(HMLP([[3]], uncond_in_size=2, cond_in_size=0, verbose=False), verbose=False)
    q = ImplicitWeights(hnet, estimator=SpectralStein(num_samples=20))
    with pytest.raises(DensityError, match="estimates the gradient of log q and not its value"):
        q.entropy()
    with pytest.raises(NotImplementedError):  # Pyro's ELBOs then go by their draws
        kl_divergence(q, dist.Normal(torch.zeros(3), 1.0).to_event(1))
    noisy = HPerturbWrapper(
        HMLP([[3]], uncond_in_size=2, cond_in_size=0, verbose=False), noise="independent", verbose=False
    )
    assert ImplicitWeights(noisy, estimator=Linearised(form="entropy")).entropy().shape == ()


def test_summaries_leave_the_last_draw_alone():
    """The density of a draw is the cheap one whatever was asked for in between."""
    hnet = HMLP([[4]], uncond_in_size=2, cond_in_size=0, activation_fn=nn.Tanh(), verbose=False)
    q = ImplicitWeights(HPerturbWrapper(hnet, sigma_noise=0.5, verbose=False))
    w = q.rsample((5,))
    before = q.last_made_of
    _ = q.mean, q.variance, q.entropy(), kl_divergence(q, dist.Normal(torch.zeros(4), 1.0).to_event(1))
    assert q.last_made_of is before
    assert q.log_prob(w).requires_grad


def test_support():
    q, _ = linear("shared")
    assert q.support is constraints.real_vector
    assert bool(q.support.check(q.sample((3,))).all())


@pytest.mark.parametrize("noise", NOISES)
def test_density_without_a_noise_input(noise):
    """An exact Gaussian; with independent noise it failed: ``uncond_input: was given``."""
    hnet = HMLP([[4]], uncond_in_size=0, cond_in_size=2, verbose=False)
    q = ImplicitWeights(HPerturbWrapper(hnet, sigma_noise=0.2, noise=noise, verbose=False), cond_id=0)
    w = q.rsample((5,))
    exact = dist.Normal(hnet(cond_id=0, ret_format="flattened")[0], 0.2).to_event(1)
    torch.testing.assert_close(q.log_prob(w), exact.log_prob(w), rtol=1e-4, atol=1e-4)
    assert q.entropy(num_samples=10).shape == ()
