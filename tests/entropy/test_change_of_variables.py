from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from bayeshnet.distributions import ImplicitWeights
from bayeshnet.entropy import ChangeOfVariables, NoisySampler, find_preimages
from bayeshnet.errors import ArgumentError, DensityError, FoldingWarning
from bayeshnet.hnets import HMLP, HPerturbWrapper
from bayeshnet.infer import AutoHypernet, fit
from tests.samplers import assert_gradients, exact_shared_log_prob, perturbed
from tests.targets import TARGETS, histogram_kl, target_model

CASES = [
    {},
    {"linear_skip": True},
    {"activation_fn": nn.ReLU()},
    {"activation_fn": nn.GELU()},  # no derivative known: automatic differentiation
    {"activation_fn": None},
    {"layers": ()},
    {"layers": (), "linear_skip": True},
    {"use_bias": False},
    {"use_spectral_norm": True},
    {"kind": "sine"},  # no linear head
    {"num_outputs": 4},  # as many weights as noise inputs
    {"num_outputs": 90, "noise_dim": 1},
]


@pytest.mark.parametrize("options", CASES, ids=str)
def test_equals_full_jacobian_log_determinant(options):
    torch.set_default_dtype(torch.float64)
    hnet = perturbed(**options)
    sampler = NoisySampler(hnet)
    draw = sampler.draw(9)
    torch.testing.assert_close(
        ChangeOfVariables().log_prob(sampler, draw), exact_shared_log_prob(hnet, draw.noise), rtol=0, atol=1e-8
    )


def test_float32_is_close_to_float64():
    hnet = perturbed(200, 20)
    sampler = NoisySampler(hnet)
    draw = sampler.draw(8)
    single = ChangeOfVariables().log_prob(sampler, draw)
    double = exact_shared_log_prob(hnet.double(), draw.noise.double())
    torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=1e-3)


def test_gradient_equals_finite_difference():
    torch.set_default_dtype(torch.float64)
    hnet = perturbed(6, 2, linear_skip=True)
    sampler = NoisySampler(hnet)
    noise = torch.randn(5, 6)

    def log_q() -> torch.Tensor:
        return ChangeOfVariables().log_prob(sampler, sampler.place(noise[:, :2], noise)).sum()

    assert_gradients(hnet, log_q)


def test_gradient_leads_back_what_lies_beyond_a_fold():
    """Determinants of the rarer sign: the value of the formula, the opposite gradient; all others as they are."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    hnet = perturbed(1, 1, kind="sine", sigma=0.3)
    sampler, estimator = NoisySampler(hnet), ChangeOfVariables()
    draw = sampler.draw(64)
    sign, log_det = estimator.slogdet(sampler, draw.z)
    rarer = sign != (1.0 if float(sign.detach().sum()) >= 0 else -1.0)
    assert 0 < int(rarer.sum()) < 32
    log_q = estimator.log_prob(sampler, draw)
    torch.testing.assert_close(log_q, exact_shared_log_prob(hnet, draw.noise), rtol=0, atol=1e-8)
    weight = hnet.internal_hnet.internal_params[0]
    for chosen, expected in ((rarer, 1.0), (~rarer, -1.0)):
        (found,) = torch.autograd.grad(log_q[chosen].sum(), weight, retain_graph=True)
        (of_log_det,) = torch.autograd.grad(log_det[chosen].sum(), weight, retain_graph=True)
        torch.testing.assert_close(found, expected * of_log_det)


def test_density_at_foreign_weights_integrates_to_one():
    torch.set_default_dtype(torch.float64)
    q = ImplicitWeights(perturbed(2, 1, sigma=0.5))
    grid = torch.linspace(-8, 8, 161)
    points = torch.cartesian_prod(grid, grid)
    mass = q.log_prob(points).exp().sum() * (grid[1] - grid[0]) ** 2
    # The trapezium rule on a smooth density that vanishes at the border.
    assert float(mass.detach()) == pytest.approx(1.0, abs=5e-3)


def folding_hnet() -> HPerturbWrapper:
    """w1 = -z1 + 0.3 z1 + ... folds: h(z) = 2 tanh(-2 z) + 0.5 z is not monotone."""
    hnet = HMLP([[2]], uncond_in_size=1, cond_in_size=0, layers=(1,), activation_fn=nn.Tanh(), verbose=False)
    with torch.no_grad():
        for param, value in zip(hnet.internal_params, ([[2.0]], [0.0], [[-1.0], [0.0]], [0.0, 0.0]), strict=True):
            param.copy_(torch.tensor(value))
    return HPerturbWrapper(hnet, sigma_noise=0.5, verbose=False)


def test_folding_is_diagnosed_and_the_density_sums_over_preimages():
    torch.set_default_dtype(torch.float64)
    hnet = folding_hnet().double()
    diagnosis = ImplicitWeights(hnet).diagnose(num_samples=400)
    assert diagnosis.values["sign_mismatch"] > 0.05
    assert diagnosis.values["preimages"] > 1.2
    assert diagnosis.values["entropy_excess"] > 0.1
    assert not diagnosis.healthy
    assert "folds" in diagnosis.advice[0]
    # At w1 = 0 the solutions of -tanh(2 z) + z / 2 = 0 are 0 and a pair +-z*.
    sampler = NoisySampler(hnet)
    found = find_preimages(
        sampler, torch.zeros(1, 2), log_abs_det=lambda s, z: ChangeOfVariables().slogdet(s, z)[1], num_starts=40
    )
    assert int(found.count) == 3


def _squared(uncond_input=None, **_):
    """z -> z^2 of complex numbers z = z1 + i z2."""
    first, second = uncond_input.unbind(1)
    return torch.stack([first.square() - second.square(), 2 * first * second], 1)


def test_folding_with_determinants_of_one_sign_is_found_by_preimages():
    """z^2 + sigma z covers the plane twice, and its determinant, |2 z + sigma|^2, is nowhere negative."""
    torch.set_default_dtype(torch.float64)
    hnet = perturbed(2, 2, layers=(), sigma=0.01)
    hnet.internal_hnet.forward = _squared
    with torch.no_grad():
        hnet.log_sigma_noise.fill_(math.log(0.01))
    sampler = NoisySampler(hnet)
    assert ChangeOfVariables().diagnose(sampler, thorough=False).healthy
    diagnosis = ChangeOfVariables().diagnose(sampler)
    assert diagnosis.values["sign_mismatch"] == 0.0
    assert diagnosis.values["preimages"] == pytest.approx(2.0, abs=0.02)
    # z and -z - sigma are equally likely up to sigma.
    assert diagnosis.values["entropy_excess"] == pytest.approx(math.log(2.0), abs=0.03)
    assert "2.00 noise vectors" in diagnosis.advice[0]
    assert diagnosis.category is FoldingWarning


def test_injective_sampler_is_diagnosed_healthy():
    diagnosis = ImplicitWeights(perturbed(6, 2, sigma=1.0, layers=())).diagnose()
    assert diagnosis.healthy
    assert diagnosis.values["preimages"] == pytest.approx(1.0)
    assert diagnosis.values["entropy_excess"] == pytest.approx(0.0, abs=1e-4)


def test_refuses_independent_noise_and_layers_without_density():
    with pytest.raises(ArgumentError, match="estimator: ChangeOfVariables applies to shared noise"):
        ImplicitWeights(perturbed(noise="independent"), estimator=ChangeOfVariables())
    for options, word in (({"use_batch_norm": True}, "batch norm"), ({"dropout_rate": 0.1}, "dropout")):
        q = ImplicitWeights(perturbed(**options))
        draw = q.rsample((3,))  # sampling is possible
        with pytest.raises(DensityError, match=word):
            q.log_prob(draw)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TARGETS))
def test_claimed_kl_is_the_measured_one(name):
    model, target = target_model(name), TARGETS[name]()
    # The measure itself, on exact draws of the target: 0 within its discretisation.
    assert abs(histogram_kl(target.sample((1_000_000,)), target.log_prob)) < 0.01
    guide = AutoHypernet(model, example=())
    fit(model, guide, (), steps=1500, num_particles=64, progress=False)
    posterior = guide.get_posterior()
    with torch.no_grad():
        draws = posterior.rsample((200_000,))
        gaps = posterior.log_prob(draws) - target.log_prob(draws)
        measured = histogram_kl(posterior.rsample((1_000_000,)), target.log_prob)
    claimed = float(gaps.mean())
    assert abs(claimed - measured) <= 0.05
    # Monte Carlo error of the claim, to be sure that the comparison means something.
    assert float(gaps.std()) / math.sqrt(len(gaps)) < 0.005
    # No Gaussian comes near: 0.5 nats and more for these targets.
    assert measured < 0.15
