from __future__ import annotations

import copy
import math
import pickle

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from bayeshnet.distributions import ImplicitWeights, MixtureWeights, MultiplicativeLowRank
from bayeshnet.entropy import ChangeOfVariables, ImportanceSampled, Linearised
from bayeshnet.entropy.experimental import Adversarial, SemiImplicit, SpectralStein
from bayeshnet.errors import ArgumentError, ArgumentTypeError, DensityError
from bayeshnet.hnets import HMLP, HPerturbWrapper
from tests.samplers import exact_shared_log_prob, perturbed

MEANS = torch.tensor([[-1.0, 0.0, 0.5], [1.0, 2.0, 0.0], [0.0, -1.0, 1.0]])
STDS = torch.tensor([[0.5, 1.0, 0.3], [0.7, 0.4, 1.0], [1.0, 0.2, 0.6]])
SHARES = torch.tensor([0.5, 0.2, 0.3])


def gaussians(shares=None, **options):
    parts = [dist.Normal(mean, std).to_event(1) for mean, std in zip(MEANS, STDS, strict=True)]
    return MixtureWeights(parts, weights=shares, **options)


def reference(shares=None):
    return dist.MixtureSameFamily(
        dist.Categorical(torch.ones(3) if shares is None else shares), dist.Normal(MEANS, STDS).to_event(1)
    )


def injective(size=2, noise_dim=2, *, shift=0.0):
    """A sampler that bends but cannot fold: a triangular matrix with a positive diagonal inside of tanh, plus noise."""
    hnet = HMLP([[size]], uncond_in_size=noise_dim, cond_in_size=0, layers=(noise_dim,), activation_fn=nn.Tanh())
    with torch.no_grad():
        weight, bias, head, offset = hnet.internal_params
        weight.copy_(torch.randn(noise_dim, noise_dim).tril(-1) + torch.eye(noise_dim))
        bias.zero_()
        head.copy_(torch.randn(size, noise_dim).tril(-1))
        head.diagonal().fill_(0.8)
        offset.fill_(shift)
    return HPerturbWrapper(hnet, sigma_noise=0.4, noise="shared", learn_sigma="per_weight", verbose=False)


@pytest.mark.parametrize("shares", [None, SHARES])
@pytest.mark.parametrize("stratified", [False, True])
def test_density_of_gaussians(shares, stratified):
    q = gaussians(shares, stratified=stratified).expand((4,))
    draws = q.rsample((5,))
    assert draws.shape == (5, 4, 3)
    expected = reference(shares).log_prob(draws)
    torch.testing.assert_close(q.log_prob(draws), expected)
    torch.testing.assert_close(q.log_prob(draws + 0.5), reference(shares).log_prob(draws + 0.5))


@pytest.mark.parametrize("shares", [None, SHARES])
@pytest.mark.parametrize("stratified", [False, True])
def test_every_place_of_a_call_has_the_whole_distribution(shares, stratified):
    """Also where draws are shared out: calls of 4 draws, each place by itself."""
    torch.manual_seed(0)
    calls = 3000
    q = gaussians(shares, stratified=stratified)
    draws = torch.stack([q.rsample((4,)) for _ in range(calls)]).detach()
    exact = reference(shares)
    # The places are dependent within a call, not between calls: four standard errors of the mean of `calls` numbers.
    for place in range(4):
        error = draws[:, place].std(0) / math.sqrt(calls)
        assert bool(((draws[:, place].mean(0) - exact.mean).abs() < 4 * error).all())
        squares = draws[:, place].square()
        second = exact.variance + exact.mean.square()
        assert bool(((squares.mean(0) - second).abs() < 4 * squares.std(0) / math.sqrt(calls)).all())


def test_stratified_means_vary_less():
    torch.manual_seed(0)
    spread = {}
    for stratified in (False, True):
        q = gaussians(stratified=stratified)
        spread[stratified] = torch.stack([q.rsample((6,)).mean(0) for _ in range(1000)]).var(0)
    # What remains is the variance within components; the relative error of a variance is sqrt(2 / 1000).
    within = STDS.square().mean(0) / 6
    torch.testing.assert_close(spread[True], within, rtol=4 * math.sqrt(2 / 1000), atol=0)
    assert bool((spread[True] < spread[False]).all())


def test_stratified_counts():
    q = gaussians(SHARES, stratified=True)
    assert q._counts(10) == [5, 2, 3]
    assert sum(q._counts(7)) == 7
    assert q._counts(0) == [0, 0, 0]
    assert q.rsample((0,)).shape == (0, 3)


def test_gradient_of_the_elbo_is_unbiased():
    """Against the exact gradient of the entropy of a mixture in one dimension, by a sum on a grid."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    mean = torch.tensor([-0.8, 0.7], requires_grad=True)
    log_std = torch.tensor([-0.5, 0.2], requires_grad=True)
    x = torch.linspace(-12.0, 12.0, 20_001).unsqueeze(1)

    def mixture():
        return MixtureWeights(
            [dist.Normal(m[None], s.exp()[None]).to_event(1) for m, s in zip(mean, log_std, strict=True)],
            stratified=True,
        )

    log_q = mixture().log_prob(x)
    entropy = -(log_q.exp() * log_q).sum() * float(x[1] - x[0])
    exact = torch.cat(torch.autograd.grad(entropy, [mean, log_std]))
    found = []
    for _ in range(1500):
        q = mixture()
        found.append(torch.cat(torch.autograd.grad(-q.log_prob(q.rsample((3,))).mean(), [mean, log_std])))
    gradients = torch.stack(found)
    error = gradients.std(0) / math.sqrt(1500)
    assert bool(((gradients.mean(0) - exact).abs() < 4 * error).all())


def test_density_of_hypernetworks():
    torch.set_default_dtype(torch.float64)
    hnets = [injective(), injective(shift=0.7)]
    q = MixtureWeights([ImplicitWeights(hnet) for hnet in hnets])
    draws = q.rsample((9,))
    own = q.log_prob(draws)
    fresh = MixtureWeights([ImplicitWeights(hnet) for hnet in hnets])  # it has drawn nothing yet
    torch.testing.assert_close(fresh.log_prob(draws), own, rtol=1e-6, atol=1e-6)
    line = torch.linspace(-7.0, 7.0, 57)
    with torch.no_grad():
        one_root = [ImplicitWeights(hnet, estimator=ChangeOfVariables(num_starts=3)) for hnet in hnets]
        density = MixtureWeights(one_root).log_prob(torch.cartesian_prod(line, line)).exp()
    # A sum over a grid finer than the noise, of scale 0.4, is right to more digits; the mass beyond 7 decides.
    assert float(density.sum()) * float(line[1] - line[0]) ** 2 == pytest.approx(1.0, abs=1e-3)
    # Component by component, from the definition, at draws of the first.
    noise = torch.randn(6, 2)
    first = hnets[0].forward(noise, ret_format="flattened")
    with_both = fresh.log_prob(first).exp()
    other = ImplicitWeights(hnets[1]).log_prob(first).exp()
    torch.testing.assert_close(with_both, 0.5 * (exact_shared_log_prob(hnets[0], noise).exp() + other))


@pytest.mark.parametrize("size", [2, 4])
def test_gradient_of_hypernetworks_equals_finite_difference(size):
    """The density at the draws of the other component follows both samplers."""
    torch.set_default_dtype(torch.float64)
    hnets = [injective(size), injective(size, shift=0.4)]

    def loss():
        torch.manual_seed(1)
        q = MixtureWeights([ImplicitWeights(hnet) for hnet in hnets])
        return q.log_prob(q.rsample((6,))).sum()

    for hnet in hnets:
        params = [p for p in hnet.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(loss(), params)
        for param, gradient in zip(params, gradients, strict=True):
            direction = torch.randn_like(param)
            with torch.no_grad():
                param.add_(1e-6 * direction)
                up = loss()
                param.sub_(2e-6 * direction)
                down = loss()
                param.add_(1e-6 * direction)
            torch.testing.assert_close((gradient * direction).sum(), (up - down) / 2e-6, rtol=1e-5, atol=1e-5)


def test_components_of_different_kinds():
    torch.set_default_dtype(torch.float64)
    low_rank = MultiplicativeLowRank(torch.ones(2), torch.zeros(2), torch.randn(2, 1), torch.randn(2, 1))
    implicit = ImplicitWeights(injective())
    q = MixtureWeights([dist.Normal(torch.zeros(2), 1.0).to_event(1), low_rank, implicit], weights=[1.0, 2.0, 1.0])
    draws = q.rsample((12,))
    parts = torch.stack([part.log_prob(draws) for part in (q.components[0], low_rank, implicit)])
    expected = (parts.exp() * torch.tensor([0.25, 0.5, 0.25]).unsqueeze(1)).sum(0).log()
    torch.testing.assert_close(q.log_prob(draws), expected, rtol=1e-6, atol=1e-6)
    assert torch.isfinite(torch.autograd.grad(q.log_prob(draws).sum(), implicit.sampler.hnet.log_sigma_noise)[0]).all()


def test_copies_forget_the_last_draw():
    q = gaussians()
    draws = (q.rsample((3,)) * torch.ones(3, requires_grad=True)).detach()
    for other in (copy.deepcopy(q), pickle.loads(pickle.dumps(q))):
        torch.testing.assert_close(other.log_prob(draws), q.log_prob(draws))
    assert "3 x Independent" in repr(q)


# ---------------------------------------------------------------------- where there is no density


@pytest.mark.parametrize(
    ("estimator", "noise", "message"),
    [
        (ChangeOfVariables(), "shared", None),
        (ImportanceSampled(num_inner=8), "independent", None),
        (Linearised(), "independent", "with independent noise the density elsewhere is an integral"),
        (SemiImplicit(num_fresh=4), "independent", r"SemiImplicit\(num_fresh=4\) has none"),
        (SpectralStein(num_samples=20), "shared", "SpectralStein estimates the gradient of log q, not its value"),
        (Adversarial(), "shared", None),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_foreign_values_under_each_estimator(estimator, noise, message):
    """Either a density with a gradient, or an error that says why there is none."""
    q = ImplicitWeights(perturbed(3, 2, noise=noise), estimator=estimator)
    q.log_prob(q.rsample((5,)))
    value = torch.randn(4, 3, requires_grad=True)
    if message is None:
        (gradient,) = torch.autograd.grad(q.log_prob(value).sum(), value)
        assert bool(torch.isfinite(gradient).all())
        assert bool((gradient != 0).any())
    else:
        with pytest.raises(DensityError, match=message):
            q.log_prob(value).sum().backward()
    if estimator.everywhere:
        MixtureWeights([q, q])
    else:
        with pytest.raises(ArgumentError, match=rf"number 0 has the estimator {type(estimator).__name__}\("):
            MixtureWeights([q, q])


def test_a_value_out_of_reach_has_density_zero_and_harms_no_gradient():
    """Beside a component that has no preimage of a draw found, the other alone counts."""
    torch.set_default_dtype(torch.float64)
    hnet = injective()
    with torch.no_grad():  # everything lands near one place, in float64 too far from the draws of the other
        hnet.log_sigma_noise.fill_(-60.0)
        hnet.internal_hnet.internal_params[2].zero_()
    normal = dist.Normal(torch.full((2,), 5.0), 0.1).to_event(1)
    q = MixtureWeights([normal, ImplicitWeights(hnet)])
    value = (5.0 + 0.1 * torch.randn(3, 2)).requires_grad_()
    log_q = q.log_prob(value)
    torch.testing.assert_close(log_q, normal.log_prob(value) - math.log(2))
    assert bool(torch.isfinite(torch.autograd.grad(log_q.sum(), value)[0]).all())


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: MixtureWeights([]), ArgumentError, "components: is empty"),
        (lambda: MixtureWeights([3.0]), ArgumentTypeError, "components: number 0 is a float"),
        (lambda: MixtureWeights([dist.Normal(torch.zeros(2), 1.0)]), ArgumentError, r"has batch shape \(2,\)"),
        (lambda: gaussians([1.0, 2.0]), ArgumentError, r"weights: is \[1.0, 2.0\]; pass 3 positive numbers"),
        (lambda: gaussians([1.0, 0.0, 2.0]), ArgumentError, "pass 3 positive numbers"),
        (lambda: gaussians(torch.ones(3, requires_grad=True)), ArgumentError, "weights: requires a gradient"),
        (lambda: gaussians().log_prob(torch.zeros(2)), ArgumentError, "its last dimension has to be 3"),
        (lambda: ChangeOfVariables(num_starts=0), ArgumentError, "num_starts: is 0"),
    ],
)
def test_errors(build, error, message):
    with pytest.raises(error, match=message):
        build()
