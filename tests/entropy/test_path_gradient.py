"""Gradients through the draws alone: the score, what is left out, and when nothing is."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, Trace_ELBO
from torch import Tensor, nn

from bayeshnet import AutoHypernet, fit
from bayeshnet.entropy import ChangeOfVariables, NoisySampler
from bayeshnet.entropy._fused_mlp_draw import fused_mlp_draw
from bayeshnet.entropy.path_gradient import PathGradient
from bayeshnet.families import Hypernet, Mixture
from bayeshnet.hnets import HMLP, HPerturbWrapper
from tests.problems import EFFECTS, ERRORS

SIZE = 7


def sampler(*, learn_sigma: Any = "per_weight", **options: Any) -> NoisySampler:
    """With so much noise that it does not fold: a foreign value has one preimage."""
    chosen: dict[str, Any] = {"uncond_in_size": 3, "cond_in_size": 0, "layers": (6, 5), "activation_fn": nn.Tanh()}
    hnet = HMLP([[SIZE]], verbose=False, **(chosen | options))
    wrapper = HPerturbWrapper(hnet, sigma_noise=2.0, learn_sigma=learn_sigma, verbose=False)
    return NoisySampler(wrapper.double())


CASES: dict[str, dict[str, Any]] = {
    "default guide": {"linear_skip": True},
    "no linear part": {},
    "one scale": {"learn_sigma": "scalar"},
    "no bias": {"use_bias": False},
    "one layer": {"layers": (6,), "linear_skip": True},
    "no hidden layer": {"layers": ()},
    "no hidden layer, skip": {"layers": (), "linear_skip": True},
    "as many inputs as weights": {"uncond_in_size": SIZE, "linear_skip": True},
}


def model_score(weights: Tensor) -> Tensor:
    return -weights * torch.arange(1.0, SIZE + 1.0, dtype=weights.dtype)


def gradients(
    made: NoisySampler, path: PathGradient | None, num: int, seed: int, scale: Tensor | float = 1.0
) -> Tensor:
    """Of the mean of ``scale * log q - log p`` for a Gaussian p, as one vector."""
    torch.manual_seed(seed)
    made.path_gradient = path
    draw = fused_mlp_draw(made, num)
    assert draw is not None
    log_p = 0.5 * (draw.weights * model_score(draw.weights)).sum(1)
    loss = (scale * ChangeOfVariables().log_prob(made, draw) - log_p).mean()
    grads = torch.autograd.grad(loss, list(made.hnet.parameters()))
    return torch.cat([grad.reshape(-1) for grad in grads])


def share_of(value: float, num: int) -> PathGradient:
    number = torch.tensor(1.0, dtype=torch.float64)
    return PathGradient(value * number, (1.0 - value) * number, number, number / num)


@pytest.mark.parametrize("case", CASES)
def test_what_is_left_out_is_the_gradient_at_fixed_draws(case: str) -> None:
    """With all of it left out the gradient is that of T alone, with the score of log q at foreign values."""
    torch.manual_seed(0)
    made = sampler(**CASES[case])
    found = gradients(made, share_of(1.0, 5), 5, seed=3)
    torch.manual_seed(3)
    made.path_gradient = None
    draw = made.draw(5)
    value = draw.weights.detach().requires_grad_()
    score = torch.autograd.grad(ChangeOfVariables().log_prob_at(made, value).sum(), value)[0]
    loss = (draw.weights * (score - model_score(value.detach()))).sum() / 5
    grads = torch.autograd.grad(loss, list(made.hnet.parameters()), allow_unused=True, materialize_grads=True)
    torch.testing.assert_close(found, torch.cat([grad.reshape(-1) for grad in grads]), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_the_mean_is_the_same(share: float) -> None:
    """Differences of 400 pairs of gradients with the same noise, in units of their standard error."""
    torch.manual_seed(0)
    made = sampler(linear_skip=True)
    parts = [gradients(made, None, 64, i) - gradients(made, share_of(share, 64), 64, i) for i in range(400)]
    pairs = torch.stack(parts)
    error = pairs.std(0) / len(pairs) ** 0.5
    assert error.min() > 0
    # The largest of fewer than 200 normal numbers is above 4.5 once in 700 times.
    assert float((pairs.mean(0) / error).abs().max()) < 4.5


def test_no_noise_at_the_posterior() -> None:
    """A linear sampler of the posterior itself: nothing is left to learn, in any draw."""
    torch.manual_seed(0)
    made = sampler(layers=(), uncond_in_size=3)
    with torch.no_grad():
        for param in made.hnet.internal_params or ():
            param.zero_()
        assert made.hnet.log_sigma_noise is not None
        made.hnet.log_sigma_noise.copy_(-0.5 * torch.arange(1.0, SIZE + 1.0, dtype=torch.float64).log())
    assert float(gradients(made, None, 8, 1).abs().max()) > 0.1
    path = PathGradient()
    for seed in (2, 3):
        gradients(made, path, 8, seed)
    assert float(path.share) == pytest.approx(1.0)
    assert float(gradients(made, path, 8, 1).abs().max()) < 1e-12


def test_no_share_where_scores_disagree() -> None:
    path = PathGradient()
    score = torch.randn(64, 3)
    for _ in range(20):
        path.mix(score, torch.randn(64, 3) / 64, torch.full((64,), 1 / 64))
    assert float(path.share) < 0.1
    for _ in range(60):
        path.mix(score, -score / 64, torch.full((64,), 1 / 64))
    assert float(path.share) > 0.99


def test_importance_weights_leave_the_gradient_as_it_is() -> None:
    torch.manual_seed(0)
    made = sampler(linear_skip=True)
    weights = torch.rand(8, dtype=torch.float64) + 0.5
    plain = gradients(made, None, 8, 1, weights)
    assert torch.equal(gradients(made, share_of(1.0, 8), 8, 1, weights), plain)
    # One draw at a time: a coefficient that differs from the last one's tells.
    other = gradients(made, share_of(1.0, 1), 1, 1, 0.7)
    assert torch.equal(other, gradients(made, None, 1, 1, 0.7))


def test_scores_that_are_not_finite_are_left_out() -> None:
    path = share_of(0.5, 4)
    score = torch.full((4, 2), torch.inf, dtype=torch.float64)
    for_draws, for_log_q = torch.ones(4, 2, dtype=torch.float64), torch.full((4,), 0.25, dtype=torch.float64)
    mixed, rest = path.mix(score, for_draws, for_log_q)
    assert torch.equal(mixed, for_draws)
    assert torch.equal(rest, for_log_q)
    assert float(path.share) == 0.5


def test_a_guide_may_be_converted_between_steps() -> None:
    path = PathGradient()
    for dtype in (torch.float32, torch.float64):
        score = torch.randn(8, 3, dtype=dtype)
        for _ in range(3):
            mixed, rest = path.mix(score, -score / 8, torch.full((8,), 1 / 8, dtype=dtype))
        assert mixed.dtype == rest.dtype == dtype
        assert float(path.share) == pytest.approx(1.0)


# ---------------------------------------------------------------------- guides


def curved() -> None:
    first = pyro.sample("first", dist.Normal(0.0, 1.0))
    pyro.sample("second", dist.Normal(first.square() - 1.0, 0.4))


@pytest.mark.parametrize("share", [True, False])
def test_a_guide_learns_a_share(share: bool) -> None:
    pyro.set_rng_seed(0)
    guide = AutoHypernet(curved, example=())
    loss = None if share else RenyiELBO(num_particles=16, vectorize_particles=True, max_plate_nesting=0)
    fit(curved, guide, (), steps=200, lr=0.03, loss=loss, progress=False)
    path = guide.family.sampler.path_gradient  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
    assert (float(path.share) > 0.3) == share


def centred() -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(ERRORS)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("obs", dist.Normal(theta, ERRORS), obs=EFFECTS)


def test_a_mixture_and_an_estimator_that_says_so_have_none() -> None:
    for chosen in (Mixture("hypernet", 2), Hypernet(estimator=ChangeOfVariables(path_gradients=False))):
        family: Any = AutoHypernet(curved, example=(), family=chosen).family
        for part in family.parts() if isinstance(family, Mixture) else [family]:
            assert part.sampler.path_gradient is None
    assert repr(ChangeOfVariables(path_gradients=False)) == "ChangeOfVariables(path_gradients=False)"


def test_a_component_without_a_draw() -> None:
    guide = AutoHypernet(curved, example=(), family=Mixture("hypernet", 3))
    fit(curved, guide, (), steps=3, num_particles=2, progress=False)
    q = AutoHypernet(curved, example=()).get_posterior()
    w = q.rsample(torch.Size([0]))
    (w.sum() + q.log_prob(w).sum()).backward()


def test_it_pays() -> None:
    """Eight schools, centred; the error of the difference is below 0.02, and on two seeds it was 0.35 (2000 steps)."""
    elbos: dict[bool, float] = {}
    for with_path in (True, False):
        pyro.set_rng_seed(0)
        guide = AutoHypernet(
            centred, example=(), family=Hypernet(estimator=ChangeOfVariables(path_gradients=with_path))
        )
        fit(centred, guide, (), steps=1000, progress=False)
        elbo = Trace_ELBO(num_particles=1000, vectorize_particles=True, max_plate_nesting=1)
        elbos[with_path] = -sum(elbo.loss(centred, guide) for _ in range(20)) / 20
    assert elbos[True] > elbos[False] + 0.1
