from __future__ import annotations

import math
import warnings

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor
from torch.distributions import MultivariateNormal

from bayeshnet.distributions import ImplicitWeights, MixtureWeights
from bayeshnet.entropy import Draw, ImportanceSampled, NoisySampler
from bayeshnet.errors import ArgumentError, SearchWarning
from bayeshnet.families import Hypernet
from bayeshnet.hnets import HMLP, HPerturbWrapper
from bayeshnet.infer import AutoHypernet
from tests.samplers import perturbed


def quadrature(hnet: HPerturbWrapper, weights: Tensor, points: int = 4001) -> Tensor:
    """log q by the trapezium rule over the noise inputs, one or two of them."""
    n = hnet.hnet_uncond_in_size or 0
    grid = torch.linspace(-8.0, 8.0, points)
    z = grid.unsqueeze(1) if n == 1 else torch.cartesian_prod(grid, grid)
    log_prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    made = hnet.internal_hnet.forward(uncond_input=z, ret_format="flattened")
    log_lik = torch.distributions.Normal(made, hnet.sigma).log_prob(weights.unsqueeze(1)).sum(-1)
    return torch.logsumexp(log_lik + log_prior, 1) + n * math.log(float(grid[1] - grid[0]))


def folding() -> HPerturbWrapper:
    """h(z) = (|z|, |z| / 2): two modes for each w."""
    hnet = HMLP([[2]], uncond_in_size=1, cond_in_size=0, layers=(2,), verbose=False)
    values = ([[1.0], [-1.0]], [0.0, 0.0], [[1.0, 1.0], [0.5, 0.5]], [0.0, 0.0])
    with torch.no_grad():
        for param, value in zip(hnet.internal_params, values, strict=True):
            param.copy_(torch.tensor(value))
    return HPerturbWrapper(hnet, sigma_noise=0.2, noise="independent", learn_sigma="scalar", verbose=False)


def samplers(name: str) -> HPerturbWrapper:
    if name == "folding":
        return folding()
    if name == "two_inputs":
        return perturbed(4, 2, noise="independent", sigma=0.3)
    if name == "skip":
        return perturbed(5, 1, noise="independent", sigma=0.2, linear_skip=True)
    if name == "sine":
        return perturbed(3, 1, noise="independent", sigma=0.3, kind="sine")
    return perturbed(3, 1, noise="independent", sigma=0.3)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("name", ["one_input", "two_inputs", "skip", "sine", "folding"])
def test_value_and_gradients_are_those_of_quadrature(name, known):
    """At draws and away from them, by the spread over repeated estimates."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(3)
    hnet = samplers(name)
    sampler, estimator = NoisySampler(hnet), ImportanceSampled(num_inner=500)
    draw = sampler.draw(6)
    value = draw.weights.detach() + (0.0 if known else 0.3) * torch.randn(6, hnet.num_outputs)
    value.requires_grad_()
    params = [value, *[p for p in hnet.parameters() if p.requires_grad]]

    def numbers(log_q: Tensor) -> list[Tensor]:
        grads = torch.autograd.grad(log_q.sum(), params, allow_unused=True)
        zeros = [torch.zeros_like(param) if grad is None else grad for grad, param in zip(grads, params, strict=True)]
        return [log_q.detach(), *zeros]

    def estimate() -> Tensor:
        if known:
            return estimator.log_prob(sampler, Draw(value, draw.z, draw.noise))
        return estimator.log_prob_at(sampler, value)

    expected = numbers(quadrature(hnet, value, 401 if name == "two_inputs" else 4001))
    repeats = [numbers(estimate()) for _ in range(16)]
    for i, wanted in enumerate(expected):
        found = torch.stack([repeat[i] for repeat in repeats])
        size = float(wanted.abs().max())
        # Four standard errors (of 16, so they are themselves known to a fifth: five); what the logarithm and the
        # self-normalised weights are biased by, and the error of quadrature at a kink, are below 0.5 % of the size.
        slack = 5.0 * found.std(0) / 4.0 + 0.005 * size + 1e-9
        assert bool(((found.mean(0) - wanted).abs() <= slack).all())
        assert float(found.std(0).max()) <= 0.3 * max(size, 1.0), "the comparison would mean nothing"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_outputs", [3, 7])
def test_value_and_gradients_are_exact_for_a_linear_generator(num_outputs, dtype):
    """A Gaussian, with more weights than noise inputs or as many; a few samples are enough."""
    torch.set_default_dtype(dtype)
    hnet = perturbed(num_outputs, 3, noise="independent", layers=(), sigma=0.5)
    q = ImplicitWeights(hnet, estimator=ImportanceSampled(num_inner=2, num_starts=2))
    weight, bias = hnet.internal_hnet.head()
    exact = MultivariateNormal(bias, weight @ weight.T + torch.diag(hnet.sigma.square()))
    value = (2.0 * torch.randn(8, num_outputs)).requires_grad_()
    params = [value, *[p for p in hnet.parameters() if p.requires_grad]]
    actual, expected = q.log_prob(value), exact.log_prob(value)
    single = dtype == torch.float32
    torch.testing.assert_close(actual, expected, rtol=1e-4 if single else 1e-9, atol=1e-4 if single else 1e-9)
    assert actual.dtype == dtype
    for one, other in zip(
        torch.autograd.grad(actual.sum(), params), torch.autograd.grad(expected.sum(), params), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-3 if single else 1e-8, atol=1e-3 if single else 1e-8)


def test_float32_is_close_to_float64():
    torch.manual_seed(0)
    hnet = perturbed(60, 4, noise="independent", sigma=0.2)
    value = NoisySampler(hnet).draw(10).weights.detach() + 0.1 * torch.randn(10, 60)
    single = ImplicitWeights(hnet, estimator=ImportanceSampled(num_inner=2000)).log_prob(value)
    double = ImplicitWeights(hnet.double(), estimator=ImportanceSampled(num_inner=2000)).log_prob(value.double())
    # Two independent estimates, of 10,000 samples each.
    torch.testing.assert_close(single.double(), double, rtol=0, atol=0.1)


def test_the_mean_score_of_draws_is_zero():
    """E grad log q = 0; the own noise of the draws is not used."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    hnet = folding()
    with torch.no_grad():
        values = NoisySampler(hnet).draw(3000).weights
    q = ImplicitWeights(hnet, estimator=ImportanceSampled(num_inner=32, num_starts=12))
    value = values.clone().requires_grad_()
    (score,) = torch.autograd.grad(q.log_prob(value).sum(), value)
    assert bool((score.mean(0).abs() < 4 * score.std(0) / math.sqrt(3000)).all())
    of_sigma = torch.stack(
        [torch.autograd.grad(q.log_prob(part).mean(), hnet.log_sigma_noise)[0] for part in values.split(100)]
    )
    assert abs(float(of_sigma.mean())) < 4 * float(of_sigma.std()) / math.sqrt(30) + 0.01


def test_the_estimate_is_below_log_q_on_average_by_half_its_relative_variance():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    hnet = perturbed(3, 1, noise="independent", sigma=0.1, kind="sine")
    with torch.no_grad():
        hnet.internal_hnet.internal_params[0].mul_(6.0)  # bends within the reach of the noise
        value = NoisySampler(hnet).draw(1).weights
        expected = float(quadrature(hnet, value))
        found = ImportanceSampled(num_inner=5, num_starts=30)._estimate(
            NoisySampler(hnet), value.expand(4000, -1), None
        )
    ratio = (found.log_prob - expected).exp()
    assert float(ratio.mean()) == pytest.approx(1.0, abs=4 * float(ratio.std()) / math.sqrt(4000) + 0.01)
    assert float(found.log_prob.mean()) < expected


def test_there_is_a_density_where_shared_noise_leaves_a_hole():
    """Below 0, where h(z) = |z| reaches nothing; finite, and with a gradient that leads back."""
    torch.set_default_dtype(torch.float64)
    q = ImplicitWeights(folding(), estimator=ImportanceSampled())
    value = torch.full((3, 2), -1.0, requires_grad=True)
    log_q = q.log_prob(value)
    (score,) = torch.autograd.grad(log_q.sum(), value)
    assert bool(log_q.isfinite().all())
    assert bool((score > 0).all())


def test_as_a_prior_under_vectorised_particles():
    """A conjugate model: the prior is linear and so a Gaussian, and the guide's ELBO at the posterior its evidence."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    hnet = perturbed(2, 2, noise="independent", layers=(), sigma=0.5)
    for param in hnet.parameters():
        param.requires_grad_(False)
    prior = ImplicitWeights(hnet, estimator=ImportanceSampled(num_inner=4))
    weight, bias = hnet.internal_hnet.head()
    covariance = weight @ weight.T + torch.diag(hnet.sigma.square())
    y = torch.tensor([0.5, -0.2])

    def model() -> None:
        w = pyro.sample("w", prior)
        pyro.sample("y", pyro.distributions.Normal(w, 0.3).to_event(1), obs=y)

    precision = covariance.inverse() + torch.eye(2) / 0.09
    mean = torch.linalg.solve(precision, torch.linalg.solve(covariance, bias) + y / 0.09)
    evidence = MultivariateNormal(bias, covariance + 0.09 * torch.eye(2)).log_prob(y)
    loc = torch.zeros(2, requires_grad=True)

    def guide() -> None:
        pyro.sample("w", pyro.distributions.MultivariateNormal(loc, precision_matrix=precision))

    loss = Trace_ELBO(num_particles=64, vectorize_particles=True).differentiable_loss(model, guide)
    (gradient,) = torch.autograd.grad(loss, loc)
    # The ELBO falls short by half the squared distance of the means; its gradient is exact but for the draws.
    assert float(loss.detach()) == pytest.approx(float(-evidence + 0.5 * mean @ precision @ mean), rel=0.3)
    torch.testing.assert_close(gradient, -precision @ mean, rtol=0.5, atol=0.5 * float((precision @ mean).abs().max()))
    with torch.no_grad():
        loc.copy_(mean)
    at_best = Trace_ELBO(num_particles=64, vectorize_particles=True).loss(model, guide)
    assert at_best == pytest.approx(-float(evidence), abs=1e-6)


def test_as_a_guide_and_as_a_component_of_a_mixture():
    torch.manual_seed(0)

    def model() -> None:
        pyro.sample("w", pyro.distributions.Normal(torch.ones(2), 0.5).to_event(1))

    guide = AutoHypernet(
        model, example=(), family=Hypernet(noise="independent", estimator=ImportanceSampled(num_inner=8))
    )
    assert "ImportanceSampled(num_inner=8, num_starts=6)" in repr(guide)
    optim = pyro.optim.Adam({"lr": 0.02})
    svi = SVI(model, guide, optim, Trace_ELBO(num_particles=16, vectorize_particles=True))
    losses = [svi.step() for _ in range(100)]
    # KL 0 is reached but for the guide's noise.
    assert sum(losses[-20:]) / 20 < 0.2 < losses[0]
    parts = [ImplicitWeights(folding(), estimator=ImportanceSampled(num_inner=500), loc=c) for c in (0.0, -3.0)]
    q = MixtureWeights(parts)
    value = q.rsample((5,))
    torch.testing.assert_close(
        q.log_prob(value.detach() + 0.0),
        torch.logsumexp(torch.stack([part.log_prob(value.detach()) for part in parts]), 0) - math.log(2),
        rtol=0,
        atol=0.2,  # two estimates of 2500 samples each, some of them at a kink
    )


def test_without_noise_inputs_it_is_a_gaussian():
    hnet = HMLP([[4]], uncond_in_size=0, cond_in_size=2, num_cond_embs=1, verbose=False)
    wrapper = HPerturbWrapper(hnet, sigma_noise=0.5, noise="independent", verbose=False)
    q = ImplicitWeights(wrapper, cond_id=0, estimator=ImportanceSampled())
    expected = torch.distributions.Normal(q.sampler.generate(torch.zeros(1, 0)), 0.5).log_prob(torch.ones(3, 4))
    torch.testing.assert_close(q.log_prob(torch.ones(3, 4)), expected.sum(-1))


def test_what_is_not_to_be_trusted_is_said():
    """Modes beyond number: the slope of the sine is 100 times its noise."""
    torch.manual_seed(0)
    hnet = perturbed(30, 8, noise="independent", kind="sine", sigma=0.01)
    q = ImplicitWeights(hnet, estimator=ImportanceSampled(num_inner=8))
    with pytest.warns(SearchWarning, match=r"value: the density of .* % of the values .*num_inner=32, num_starts=24"):
        q.log_prob(3.0 * torch.randn(6, 30))
    diagnosis = q.diagnose(num_samples=50)
    assert not diagnosis.healthy
    assert diagnosis.values["search_missed"] > 0.01
    assert "the search misses modes" in diagnosis.advice[-1]
    assert diagnosis.category is SearchWarning


def test_a_smooth_sampler_is_diagnosed_healthy():
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        diagnosis = ImplicitWeights(
            perturbed(6, 2, noise="independent", sigma=0.5), estimator=ImportanceSampled()
        ).diagnose(num_samples=100)
    assert diagnosis.healthy, diagnosis
    assert diagnosis.values["effective_share"] > 0.5
    assert diagnosis.values["search_missed"] == 0.0


def test_errors():
    with pytest.raises(ArgumentError, match="num_inner: is 0"):
        ImportanceSampled(num_inner=0)
    with pytest.raises(ArgumentError, match="num_starts: is 0"):
        ImportanceSampled(num_starts=0)
    with pytest.raises(ArgumentError, match="ImportanceSampled applies to independent noise"):
        ImplicitWeights(perturbed(), estimator=ImportanceSampled())
    q = ImplicitWeights(perturbed(noise="independent"), estimator=ImportanceSampled())
    with pytest.raises(ArgumentError, match="value: 1 of 2 weight vectors have entries that are NaN or infinite"):
        q.estimator.log_prob_at(q.sampler, torch.stack([torch.zeros(12), torch.full((12,), torch.nan)]))
