"""Importance resampling: draws that are resampled from proposals by the targets of the inducing points."""

from __future__ import annotations

import copy
import math
import pickle
from itertools import pairwise

import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch import nn

from bayeshnet import AutoHypernet, BayesianModel, fit, likelihoods, priors
from bayeshnet.errors import ArgumentError, ArgumentTypeError, UsageError
from bayeshnet.families import Mixture
from bayeshnet.inducing.resampling import best_exponent, score_proposals
from bayeshnet.infer import importance_sample

KNOWN = {"scale": 0.3}
LATENT = {"precision": dist.Gamma(2.0, 0.2)}


def problem(noise=None, rows=8, outputs=1, seed=0):
    """A small regression in float64, and its data."""
    torch.manual_seed(seed)
    x = torch.linspace(-1.0, 1.0, rows, dtype=torch.float64).unsqueeze(1)
    y = (2.0 * x).sin().expand(-1, outputs) + 0.3 * torch.randn(rows, outputs, dtype=torch.float64)
    net = nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, outputs)).double()
    return BayesianModel(net, likelihood=likelihoods.Normal(**(noise or KNOWN)), target_shape=(outputs,)), (x, y)


def scores(model, guide, args):
    return score_proposals(model, guide.get_posterior(), guide.sites, *args)


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("family", ["hypernet", "block_gaussian", "mean_field"])
def test_targets_at_all_rows_know_the_evidence(family, outputs):
    """With every row an inducing point, the weight of a proposal is its weight in importance sampling."""
    model, args = problem(outputs=outputs)
    guide = AutoHypernet(model, example=args, family=family)
    ratios, weights = scores(model, guide, args)
    assert torch.allclose(ratios, weights, atol=1e-6)
    assert guide.calibrate(*args) == 1.0


def test_noise_that_is_inferred_is_followed():
    """The same with latent noise, up to its prior, which the weight takes for a Gaussian."""
    model, args = problem(LATENT)
    guide = AutoHypernet(model, example=args, family="mean_field", num_proposals=2)
    with torch.no_grad():
        guide.family.log_scale[-1] = -12.0  # one value of the noise: then its prior is a constant
        guide.tempering_exponent.fill_(1.0)
    ratios, weights = scores(model, guide, args)
    difference = ratios - weights
    assert float(difference.std()) < 1e-3
    assert float(weights.std()) > 0.1


@pytest.mark.parametrize("flat", [False, True])
def test_prior_scales_that_are_learned_are_followed(flat):
    """The exact weights again, of the model with its scales as they have become."""
    _, args = problem()
    net = nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    prior = priors.Normal(scale="fan_in", learn={"0.*": True})
    model = BayesianModel(net, prior, likelihoods.Normal(**KNOWN), flat=flat, target_shape=(1,))
    guide = AutoHypernet(model, example=args, family="mean_field")
    with torch.no_grad():
        model.learned_scales.log_factor.copy_(torch.tensor([-1.0, 0.7]))
        ratios, weights = scores(model, guide, args)
    assert torch.allclose(ratios, weights, atol=1e-6)


def test_elbo_rises_with_proposals_and_the_evidence_stays():
    model, args = problem()
    guide = AutoHypernet(model, example=args, family="mean_field", init_scale=0.7)
    fit(model, guide, args, steps=300, lr=0.03, num_particles=8, progress=False)  # else weights have no variance
    elbos, evidences = [], []
    for num in (1, 4, 16):
        guide.num_proposals = num
        torch.manual_seed(1)
        log_weights = importance_sample(model, guide, args, 4000).log_weights.double()
        weights = (log_weights - log_weights.max()).exp()
        evidences.append(
            (float(weights.mean().log() + log_weights.max()), float(weights.std() / weights.mean()) / 63.2)
        )
        elbos.append((float(log_weights.mean()), float(log_weights.std()) / 63.2))
    # Each mean over 4000 draws is known to its standard error; bounds rise by more than 4 of them...
    for (low, low_error), (high, high_error) in pairwise(elbos):
        assert high - low > 4 * math.hypot(low_error, high_error)
    # ...and stay below the evidence, which all estimate without bias.
    best, error = evidences[-1]
    for evidence, other in evidences:
        assert abs(evidence - best) < 4.5 * math.hypot(error, other)
    assert elbos[-1][0] < best + 4 * error


def test_proposals_that_weigh_the_same_are_not_made():
    """At an exponent of 0 any of them has the distribution of all: draws and density are those of one."""
    model, args = problem(LATENT)
    guide = AutoHypernet(model, example=args, num_proposals=8)
    assert float(guide.tempering_exponent) == 0.0
    found = []
    with torch.no_grad():
        for num in (8, 1):
            guide.num_proposals = num
            posterior = guide.get_posterior()
            torch.manual_seed(5)
            draws = posterior.rsample((6,))
            found.append((draws, posterior.log_prob(draws), guide.get_posterior().log_prob(draws)))
    assert all(torch.equal(several, one) for several, one in zip(*found, strict=True))


def test_gradients_are_those_of_single_draws():
    model, args = problem()
    grads = []
    for num in (1, 8):
        torch.manual_seed(2)
        guide = AutoHypernet(model, example=args, num_proposals=num)
        torch.manual_seed(3)
        Trace_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1).loss_and_grads(model, guide, *args)
        grads.append([param.grad for param in guide.parameters()])
    assert all((a is None and b is None) or torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_density_at_values_not_sampled_here_is_estimated():
    """The estimate is a density: relative to that of single proposals its mean over those is 1."""
    model, args = problem()
    guide = AutoHypernet(model, example=args, family="mean_field", init_scale=0.5, num_proposals=4)
    torch.manual_seed(4)
    means: list[float] = []
    with torch.no_grad():
        for _ in range(100):  # values of one call share the other proposals, so only calls are independent
            guide.num_proposals = 1
            single = guide.get_posterior()
            draws = single.rsample((200,))
            guide.num_proposals = 4
            excess = guide.get_posterior().log_prob(draws) - single.log_prob(draws)
            assert float(excess.max()) <= math.log(4) + 1e-9  # no value gains more than being chosen always
            means.append(float(excess.exp().mean()))
        posterior = guide.get_posterior()
        draws = posterior.rsample((200,))
        own = posterior.log_prob(draws)
        assert torch.equal(own, posterior.log_prob(draws.clone()))  # equal values are recognised
        # What comes with a draw counts the actual other proposals too, so on average it is above the density.
        assert float(own.mean()) > float(guide.get_posterior().log_prob(draws + 1e-9).mean())
    found = torch.tensor(means)
    assert abs(float(found.mean()) - 1.0) < 4.0 * float(found.std()) / 10.0


def test_tempering_exponent_is_chosen_by_the_elbo():
    torch.manual_seed(0)
    exact = 3.0 * torch.randn(512)
    assert best_exponent(exact, exact, 8) == 1.0
    assert best_exponent(exact, torch.randn(512), 8) <= 0.1
    assert 0.3 <= best_exponent(exact, 2.0 * exact, 8) <= 0.7


def test_fit_calibrates_and_leaves_random_numbers_alone():
    model, args = problem(rows=60)
    guide = AutoHypernet(model, example=args, num_inducing=3)
    torch.manual_seed(5)
    fit(model, guide, args, steps=30, num_particles=2, progress=False)
    after = torch.get_rng_state()
    assert 0.0 <= float(guide.tempering_exponent) <= 1.0
    assert "tempering_exponent" in guide.state_dict()
    torch.manual_seed(5)
    alone = AutoHypernet(model, example=args, num_inducing=3, num_proposals=1)
    alone.load_state_dict(guide.state_dict())
    torch.manual_seed(5)
    fit(model, alone, args, steps=30, num_particles=2, progress=False)
    assert torch.equal(after, torch.get_rng_state())


def test_default_number_falls_with_the_cost():
    nums = []
    for rows, widths in ((20, (10,)), (400, (50,)), (400, (300,)), (40, (100, 100))):
        x = torch.randn(rows, 2)
        layers = [part for a, b in pairwise((2, *widths)) for part in (nn.Linear(a, b), nn.Tanh())]
        net = nn.Sequential(*layers, nn.Linear(widths[-1], 1))
        model = BayesianModel(net, likelihood=likelihoods.Normal(scale=0.1))
        guide = AutoHypernet(model, example=(x, x[:, 0]))
        nums.append(guide.num_proposals)
        assert f"num_proposals={nums[-1]}" in repr(guide)
    assert nums == [32, 16, 4, 8]


def test_none_where_nothing_chooses_or_it_would_cost_too_much():
    model, args = problem(LATENT)
    mixture = Mixture("hypernet", 2)
    assert AutoHypernet(model, example=args, family=mixture).num_proposals == 1
    assert AutoHypernet(model, example=args, family=mixture, num_proposals=3).num_proposals == 3
    assert AutoHypernet(model, example=args, conditional=None).num_proposals == 1
    several = BayesianModel(
        nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 2)).double(),
        likelihood=likelihoods.Normal(scale=dist.Gamma(6.0, 6.0).expand([2]).to_event(1)),
    )
    x, y = args[0], args[1].expand(-1, 2)
    assert AutoHypernet(several, example=(x, y)).num_proposals == 1


def test_errors():
    model, args = problem()
    with pytest.raises(ArgumentError, match="num_proposals: is 0; pass a whole number, 1 or more"):
        AutoHypernet(model, example=args, num_proposals=0)
    with pytest.raises(ArgumentTypeError, match="num_proposals: is 2.5, a float; pass a whole number"):
        AutoHypernet(model, example=args, num_proposals=2.5)
    with pytest.raises(ArgumentError, match="num_proposals: is 4, and no conditional layer gives proposals a weight"):
        AutoHypernet(model, example=args, conditional=None, num_proposals=4)
    with pytest.raises(UsageError, match="calibrate: the guide has no conditional layers"):
        AutoHypernet(model, example=args, conditional=None).calibrate(*args)


def test_a_number_that_is_set_is_checked():
    """Before, 0 was taken, and predict failed with a ZeroDivisionError."""
    model, args = problem()
    guide = AutoHypernet(model, example=args, num_proposals=4)
    for bad, error in ((0, ArgumentError), (2.5, ArgumentTypeError), (True, ArgumentTypeError)):
        with pytest.raises(error, match=f"^num_proposals: is {bad}"):
            guide.num_proposals = bad
    assert guide.num_proposals == 4
    guide.num_proposals = 3
    for other in (copy.deepcopy(guide), pickle.loads(pickle.dumps(guide))):
        assert other.num_proposals == 3
        other.num_proposals = 2
        assert "num_proposals=2" in repr(other)
    alone = AutoHypernet(model, example=args, conditional=None)
    with pytest.raises(ArgumentError, match="no conditional layer gives proposals a weight"):
        alone.num_proposals = 2
