"""Factors of the weight matrices of an HMLP: the same map from other parameters."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from bayeshnet.entropy import ChangeOfVariables, NoisySampler
from bayeshnet.errors import ArgumentError, UsageError
from bayeshnet.hnets import HMLP, HPerturbWrapper

GAINS = [0.5, 0.25, 0.1, 2.0]


def made(gains=None, seed=0):
    torch.manual_seed(seed)
    options = {"uncond_in_size": 3, "cond_in_size": 0, "layers": (5, 4), "activation_fn": nn.Tanh(), "verbose": False}
    return HMLP([[4, 2]], linear_skip=True, gains=gains, **options).double()


def test_it_starts_as_the_map_without():
    plain, scaled = made(), made(GAINS)
    z = torch.randn(7, 3, dtype=torch.float64)
    torch.testing.assert_close(scaled(z, ret_format="flattened"), plain(z, ret_format="flattened"), atol=1e-6, rtol=0)
    torch.testing.assert_close(scaled.head()[0], plain.head()[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(scaled.feature_jacobian(z), plain.feature_jacobian(z), atol=1e-6, rtol=0)
    torch.testing.assert_close(scaled.far_slope(), plain.far_slope(), atol=1e-6, rtol=0)
    matrices = [p for p in scaled.internal_params if p.dim() == 2]
    plain_matrices = [p for p in plain.internal_params if p.dim() == 2]
    for gain, matrix, before in zip(GAINS, matrices, plain_matrices, strict=True):
        torch.testing.assert_close(gain * matrix, before, atol=1e-6, rtol=0)


def test_a_step_of_adam_moves_the_matrix_by_its_gain():
    scaled = made(GAINS)
    head = scaled.head()[0].detach().clone()
    optimizer = torch.optim.Adam(scaled.parameters(), lr=0.01)
    scaled(torch.randn(7, 3, dtype=torch.float64), ret_format="flattened").square().sum().backward()
    optimizer.step()
    moved = (scaled.head()[0] - head).abs()
    expected = torch.cat([torch.full((8, 4), 0.01 * 0.1), torch.full((8, 3), 0.01 * 2.0)], 1).double()
    torch.testing.assert_close(moved, expected, rtol=1e-4, atol=0)


def test_states_saved_without_gains_stand_for_the_same_map():
    plain, scaled = made(seed=1), made(GAINS, seed=2)
    state = plain.state_dict()
    kept = copy.deepcopy(state)
    scaled.load_state_dict(state)
    z = torch.randn(7, 3, dtype=torch.float64)
    with torch.no_grad():
        difference = scaled(z, ret_format="flattened") - plain(z, ret_format="flattened")
    assert float(difference.abs().max()) < 1e-12
    assert all(torch.equal(state[key], value) for key, value in kept.items())  # what was given stays as it is
    again = made(GAINS, seed=3)
    again.load_state_dict(scaled.state_dict())
    assert torch.equal(again(z, ret_format="flattened"), scaled(z, ret_format="flattened"))


def test_the_fused_draw_is_that_of_the_general_form():
    wrapper = HPerturbWrapper(made(GAINS), sigma_noise=1.0, learn_sigma="per_weight", verbose=False)
    sampler, estimator = NoisySampler(wrapper), ChangeOfVariables()
    draws, grads = [], []
    for draw in (estimator.draw, lambda sampler, num: sampler.draw(num)):
        torch.manual_seed(4)
        wrapper.zero_grad()
        found = draw(sampler, 6)
        (found.weights.sum() + estimator.log_prob(sampler, found).sum()).backward()
        draws.append(found.weights.detach())
        grads.append([param.grad.clone() for param in wrapper.parameters()])
    torch.testing.assert_close(*draws)
    for fused, general in zip(*grads, strict=True):
        torch.testing.assert_close(fused, general)


@pytest.mark.parametrize("gains", [[1.0], [1.0, 1.0, 0.0, 1.0], [1.0, 1.0, -1.0, 1.0], [1.0, 1.0, float("nan"), 1.0]])
def test_gains_that_are_none(gains):
    with pytest.raises(ArgumentError, match="gains: is .* pass 4 positive numbers"):
        made(gains)


def test_hyperfan_is_refused():
    with pytest.raises(UsageError, match="an HMLP with gains"):
        made(GAINS).apply_hyperfan_init()
