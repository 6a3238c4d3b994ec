from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from bayeshnet.distributions import ImplicitWeights
from bayeshnet.entropy import Linearised, NoisySampler, importance_log_density
from bayeshnet.errors import ArgumentError, DensityError
from tests.samplers import assert_gradients, generator_jacobian, perturbed

CASES = [
    {},
    {"linear_skip": True},
    {"activation_fn": nn.GELU()},
    {"layers": ()},
    {"use_bias": False},
    {"kind": "sine"},
    {"num_outputs": 3, "noise_dim": 5},  # more noise inputs than weights
]


@pytest.mark.parametrize("form", ["density", "entropy"])
@pytest.mark.parametrize("options", CASES, ids=str)
def test_equals_full_jacobian_form(options, form):
    torch.set_default_dtype(torch.float64)
    hnet = perturbed(noise="independent", **options)
    sampler = NoisySampler(hnet)
    draw = sampler.draw(9)
    jacobian = generator_jacobian(hnet, draw.z)
    cov = jacobian @ jacobian.transpose(1, 2) + torch.diag(hnet.sigma.square())
    mean = draw.weights - hnet.sigma * draw.noise - (jacobian @ draw.z.unsqueeze(-1)).squeeze(-1)
    gaussian = torch.distributions.MultivariateNormal(mean, cov)
    expected = gaussian.log_prob(draw.weights) if form == "density" else -gaussian.entropy()
    torch.testing.assert_close(Linearised(form=form).log_prob(sampler, draw), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("form", ["density", "entropy"])
@pytest.mark.parametrize("kind", ["mlp", "sine"])
def test_gradient_equals_finite_difference(kind, form):
    """With the noise held fixed; "sine" has no linear head and takes the other way through the algebra."""
    torch.set_default_dtype(torch.float64)
    hnet = perturbed(6, 2, noise="independent", kind=kind)
    sampler = NoisySampler(hnet)
    held = sampler.draw(5)
    estimator = Linearised(form=form)

    def log_q() -> torch.Tensor:
        return estimator.log_prob(sampler, sampler.place(held.z, held.noise)).sum()

    assert_gradients(hnet, log_q)


@pytest.mark.parametrize("form", ["density", "entropy"])
def test_gradient_of_a_linear_generator_is_that_of_the_entropy(form):
    torch.set_default_dtype(torch.float64)
    hnet = perturbed(4, 2, noise="independent", layers=())
    sampler = NoisySampler(hnet)
    weight, bias = hnet.internal_hnet.head()
    params = [*hnet.internal_hnet.internal_params, hnet.log_sigma_noise]
    exact = torch.distributions.MultivariateNormal(bias, weight @ weight.T + torch.diag(hnet.sigma.square()))
    wanted = torch.autograd.grad(-exact.entropy(), params, allow_unused=True)
    estimator = Linearised(form=form)
    repeats = [
        torch.autograd.grad(estimator.log_prob(sampler, sampler.draw(500)).mean(), params, allow_unused=True)
        for _ in range(40)
    ]
    for i, param in enumerate(params):
        found = torch.stack([torch.zeros_like(param) if grads[i] is None else grads[i] for grads in repeats])
        expected = torch.zeros_like(param) if wanted[i] is None else wanted[i]
        error = found.std(0) / math.sqrt(len(repeats))
        # "entropy" has no error here, "density" that of 20,000 draws.
        assert bool(((found.mean(0) - expected).abs() <= 4 * error + 1e-10).all())
        assert float(error.max()) < (1e-10 if form == "entropy" else 0.05)


def test_exact_for_a_linear_generator():
    """A linear generator makes a Gaussian: both forms are its density and its entropy."""
    torch.set_default_dtype(torch.float64)
    hnet = perturbed(6, 3, noise="independent", layers=())
    weight, bias = hnet.internal_hnet.head()
    exact = torch.distributions.MultivariateNormal(bias, weight @ weight.T + torch.diag(hnet.sigma.square()))
    q = ImplicitWeights(hnet)
    draws = q.rsample((50,))
    torch.testing.assert_close(q.log_prob(draws), exact.log_prob(draws))
    sampler = NoisySampler(hnet)
    entropy = -Linearised(form="entropy").log_prob(sampler, sampler.draw(3))
    torch.testing.assert_close(entropy, exact.entropy().expand(3))
    estimate = importance_log_density(sampler, q.last_made_of)
    torch.testing.assert_close(estimate.log_prob, exact.log_prob(draws).detach())
    torch.testing.assert_close(estimate.effective_share, torch.ones(50))


def test_importance_sampling_agrees_with_quadrature():
    torch.set_default_dtype(torch.float64)
    hnet = perturbed(3, 1, noise="independent", sigma=0.3)
    sampler = NoisySampler(hnet)
    draw = sampler.draw(20)
    z = torch.linspace(-9, 9, 20001).unsqueeze(1)
    with torch.no_grad():
        log_lik = (
            torch.distributions.Normal(sampler.generate(z), hnet.sigma).log_prob(draw.weights.unsqueeze(1)).sum(-1)
        )
        log_joint = log_lik + torch.distributions.Normal(0.0, 1.0).log_prob(z.squeeze(1))
        expected = torch.logsumexp(log_joint, 1) + math.log(18 / 20000)
    estimate = importance_log_density(sampler, draw, num_inner=500)
    assert float(estimate.effective_share.min()) > 0.3
    # Relative error of the mean of weights is about sqrt((1 / share - 1) / n) = 0.03 at the worst.
    torch.testing.assert_close(estimate.log_prob, expected, rtol=0, atol=0.12)


def test_compressed_and_full_coordinates_agree():
    """With many weights the estimate runs in the coordinates of the features; the numbers are the same."""
    torch.set_default_dtype(torch.float64)
    hnet = perturbed(40, 2, noise="independent", layers=(6,))
    sampler = NoisySampler(hnet)
    draw = sampler.draw(5)
    torch.manual_seed(1)
    compressed = importance_log_density(sampler, draw)
    sampler._may_have_head = None
    torch.manual_seed(1)
    full = importance_log_density(sampler, draw)
    torch.testing.assert_close(compressed.log_prob, full.log_prob)


def test_a_generator_that_folds_is_diagnosed():
    """h(z) = a |z|: two z for each w, so the linearised entropy is log 2 too high."""
    torch.set_default_dtype(torch.float64)
    hnet = perturbed(5, 1, noise="independent", layers=(2,), activation_fn=nn.ReLU(), sigma=0.05)
    with torch.no_grad():
        first, bias, head, head_bias = hnet.internal_hnet.internal_params
        first.copy_(torch.tensor([[1.0], [-1.0]]))
        bias.zero_()
        head.copy_(torch.ones(5, 2))
        head_bias.zero_()
        hnet.log_sigma_noise.fill_(math.log(0.05))
    diagnosis = ImplicitWeights(hnet).diagnose(num_samples=400)
    assert diagnosis.values["effective_share"] > 0.1
    assert diagnosis.values["entropy_gap"] == pytest.approx(math.log(2.0), abs=0.1)
    assert "importance sampling" in diagnosis.advice[0]


def test_smooth_generator_is_diagnosed_healthy():
    hnet = perturbed(12, 3, noise="independent", layers=())
    assert ImplicitWeights(hnet).diagnose().healthy


def test_errors():
    with pytest.raises(ArgumentError, match="form: is 'full'"):
        Linearised(form="full")
    with pytest.raises(ArgumentError, match="Linearised applies to independent noise"):
        ImplicitWeights(perturbed(), estimator=Linearised())
    q = ImplicitWeights(perturbed(noise="independent"))
    with pytest.raises(DensityError, match="value: these weights were not drawn"):
        q.log_prob(torch.zeros(12))
