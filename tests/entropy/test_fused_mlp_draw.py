"""The closed-form draw of an MLP with shared noise: its numbers and gradients are those of the general form."""

from __future__ import annotations

import contextlib
import math
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from bayeshnet import AutoHypernet, BayesianModel, fit, likelihoods
from bayeshnet.entropy import ChangeOfVariables, NoisySampler
from bayeshnet.entropy._fused_mlp_draw import fused_mlp_draw, tanh_jacobian
from bayeshnet.errors import ArgumentError
from bayeshnet.hnets import HMLP, HPerturbWrapper

SHAPES = [[4, 3], [4]]


def sampler(
    *, wrapper: dict[str, Any] | None = None, dtype: torch.dtype = torch.float64, **options: Any
) -> NoisySampler:
    chosen: dict[str, Any] = {"uncond_in_size": 3, "cond_in_size": 0, "layers": (6, 5), "activation_fn": nn.Tanh()}
    hnet = HMLP(SHAPES, verbose=False, **(chosen | options))
    made = HPerturbWrapper(hnet, verbose=False, **({"sigma_noise": 0.7} if wrapper is None else wrapper)).to(dtype)
    return NoisySampler(made)


def loss(weights: Tensor, log_q: Tensor) -> Tensor:
    return (weights.sin() * torch.arange(1.0, 17.0, dtype=weights.dtype)).sum() + (log_q * log_q).sum()


def both(made: NoisySampler) -> list[tuple[Tensor, Tensor]]:
    """Weights and log q by the closed form and by the general one, from the same noise."""
    estimator = ChangeOfVariables()
    results: list[tuple[Tensor, Tensor]] = []
    for draw_of in (fused_mlp_draw, NoisySampler.draw):
        torch.manual_seed(5)
        draw = draw_of(made, 7)
        assert draw is not None
        assert (draw.log_det is not None) == (draw_of is fused_mlp_draw)
        results.append((draw.weights, estimator.log_prob(made, draw)))
    return results


CASES = {
    "default guide": {"linear_skip": True, "wrapper": {"sigma_noise": 1.0}},
    "scale per weight": {"linear_skip": True, "wrapper": {"sigma_noise": 0.5, "learn_sigma": "per_weight"}},
    "one learned scale": {"wrapper": {"sigma_noise": 0.5, "learn_sigma": "scalar"}},
    "one layer": {"layers": (6,), "linear_skip": True},
    "three layers": {"layers": (6, 5, 4)},
    "no hidden layer": {"layers": ()},
    "no hidden layer, skip": {"layers": (), "linear_skip": True, "wrapper": {"learn_sigma": "scalar"}},
    "no bias": {"use_bias": False, "linear_skip": True},
    "function": {"activation_fn": torch.tanh},
    "as many inputs as weights": {"uncond_in_size": 16},
}


@pytest.mark.parametrize("case", CASES)
def test_numbers_and_gradients_are_those_of_the_general_form(case: str) -> None:
    torch.manual_seed(0)
    made = sampler(**CASES[case])
    (weights, log_q), (expected, expected_log_q) = both(made)
    torch.testing.assert_close(weights, expected)
    torch.testing.assert_close(log_q, expected_log_q)
    params = list(made.hnet.parameters())
    found = torch.autograd.grad(loss(weights, log_q), params)
    wanted = torch.autograd.grad(loss(expected, expected_log_q), params)
    for grad, other in zip(found, wanted, strict=True):
        assert other.abs().max() > 0
        torch.testing.assert_close(grad, other)


def test_float32() -> None:
    torch.manual_seed(0)
    made = sampler(dtype=torch.float32, linear_skip=True, wrapper={"learn_sigma": "per_weight", "sigma_noise": 0.5})
    (weights, log_q), (expected, expected_log_q) = both(made)
    assert weights.dtype == log_q.dtype == torch.float32
    params = list(made.hnet.parameters())
    found = torch.autograd.grad(loss(weights, log_q), params)
    wanted = torch.autograd.grad(loss(expected, expected_log_q), params)
    for grad, other in zip(found, wanted, strict=True):
        # Rounding of 6e-8, times the condition of M, a few hundred at most; over 20 seeds it was below 4e-5.
        torch.testing.assert_close(grad, other, rtol=0.0, atol=1e-4 * float(other.abs().max()))


def test_second_derivatives() -> None:
    torch.manual_seed(0)
    made = sampler(linear_skip=True, wrapper={"learn_sigma": "per_weight", "sigma_noise": 0.5})
    params = list(made.hnet.parameters())
    seconds: list[tuple[Tensor, ...]] = []
    for weights, log_q in both(made):
        firsts = torch.autograd.grad(loss(weights, log_q), params, create_graph=True)
        seconds.append(torch.autograd.grad(torch.stack([grad.square().sum() for grad in firsts]).sum(), params))
    for grad, other in zip(*seconds, strict=True):
        torch.testing.assert_close(grad, other)


def test_only_the_density_or_only_the_draw_is_used() -> None:
    torch.manual_seed(0)
    made = sampler(linear_skip=True)
    params = list(made.hnet.parameters())
    for part in (0, 1):
        found, wanted = (torch.autograd.grad(result[part].sum(), params, allow_unused=True) for result in both(made))
        for grad, other in zip(found, wanted, strict=True):
            expected = torch.zeros_like(grad) if other is None else other
            torch.testing.assert_close(grad, expected)


def test_frozen_parameters() -> None:
    torch.manual_seed(0)
    made = sampler(linear_skip=True, wrapper={"learn_sigma": "per_weight", "sigma_noise": 0.5})
    params = list(made.hnet.parameters())
    params[0].requires_grad_(False)
    (weights, log_q), (expected, expected_log_q) = both(made)
    found = torch.autograd.grad(loss(weights, log_q), params[1:])
    wanted = torch.autograd.grad(loss(expected, expected_log_q), params[1:])
    for grad, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(grad, other)


@pytest.mark.parametrize(
    "options",
    [
        {"activation_fn": nn.ReLU()},
        {"activation_fn": None},
        {"use_spectral_norm": True},
        {"cond_in_size": 2},
        {"wrapper": {"noise": "independent"}},
        {"uncond_in_size": 0, "cond_in_size": 2},
    ],
    ids=str,
)
def test_what_it_does_not_cover_takes_the_general_form(options: dict[str, Any]) -> None:
    assert fused_mlp_draw(sampler(**options), 3) is None


def test_where_pytorch_has_rules_of_its_own_it_takes_the_general_form() -> None:
    made, inside = sampler(), list[object]()

    def drawn(x: Tensor) -> Tensor:
        inside.append(fused_mlp_draw(made, 3))
        return x

    with torch.autocast("cpu", dtype=torch.bfloat16):
        drawn(torch.zeros(2))
    torch.func.vmap(drawn)(torch.zeros(2))
    assert inside == [None, None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_without_gradients_the_numbers_are_those_of_the_general_form_to_the_last_digit(
    case: str, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    made = sampler(dtype=dtype, **CASES[case])
    with torch.no_grad():
        torch.manual_seed(5)
        draw = fused_mlp_draw(made, 7)
        torch.manual_seed(5)
        expected = made.draw(7)
    assert draw is not None
    assert draw.log_det is None
    assert torch.equal(draw.weights, expected.weights)
    assert torch.equal(draw.noise, expected.noise)
    found, wanted = tanh_jacobian(made, draw.z), made.jacobian(draw.z, rows=made.latent_dim)
    assert found is not None
    assert torch.equal(found, wanted)
    params = list(made.hnet.parameters())
    grads = [torch.autograd.grad(jacobian.sin().sum(), params, allow_unused=True) for jacobian in (found, wanted)]
    for grad, other in zip(*grads, strict=True):
        assert grad is other is None or (grad is not None and other is not None and torch.equal(grad, other))


def test_with_a_condition_the_general_form_says_what_is_wrong() -> None:
    hnet = sampler().hnet
    for given in ({"cond_id": 0}, {"cond_input": torch.zeros(2)}):
        made = NoisySampler(hnet, **given)
        assert fused_mlp_draw(made, 3) is None
        assert tanh_jacobian(made, torch.zeros(3, 3)) is None
        with pytest.raises(ArgumentError, match="cond_"):
            ChangeOfVariables().draw(made, 3)


@pytest.mark.parametrize("conditional", ["auto", None])
def test_a_guide_trains_under_autocast(conditional: Literal["auto"] | None) -> None:
    losses: list[list[float]] = []
    for mode in (torch.autocast("cpu", dtype=torch.bfloat16), contextlib.nullcontext()):
        torch.manual_seed(0)
        x = torch.randn(40, 3)
        net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
        model = BayesianModel(net, likelihood=likelihoods.Normal(scale=0.3))
        guide = AutoHypernet(model, example=(x, x[:, 0]), conditional=conditional)
        with mode:
            losses.append(fit(model, guide, (x, x[:, 0]), steps=60, progress=False).losses)
    mixed, full = losses
    assert math.isclose(mixed[0], full[0], rel_tol=2.0**-8)  # bfloat16 keeps 8 bits
    assert sum(mixed[-10:]) < sum(mixed[:10])


def test_a_derived_class_takes_the_general_form() -> None:
    class Own(HMLP):
        pass

    hnet = Own(SHAPES, uncond_in_size=3, cond_in_size=0, layers=(6,), activation_fn=nn.Tanh(), verbose=False)
    assert fused_mlp_draw(NoisySampler(HPerturbWrapper(hnet, verbose=False)), 3) is None
