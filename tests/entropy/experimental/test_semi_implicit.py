from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from bayeshnet.distributions import ImplicitWeights
from bayeshnet.entropy import NoisySampler
from bayeshnet.entropy.experimental import SemiImplicit
from bayeshnet.errors import ArgumentError, DensityError, SelfWeightWarning
from bayeshnet.families import Hypernet
from bayeshnet.hnets import HPerturbWrapper
from bayeshnet.infer import AutoHypernet, fit
from tests.problems import bnn
from tests.samplers import perturbed
from tests.targets import TARGETS, histogram_kl, target_model

DTYPES = [torch.float32, torch.float64]


def linear_sampler(size: int = 2, *, sigma: float = 0.8) -> tuple[HPerturbWrapper, NoisySampler]:
    """h(z) = W z + b: the draws are Gaussian."""
    hnet = perturbed(size, size, noise="independent", layers=(), sigma=sigma)
    return hnet, NoisySampler(hnet)


def exact(hnet: HPerturbWrapper) -> MultivariateNormal:
    weight, bias = hnet.internal_hnet.head()
    return MultivariateNormal(bias, weight @ weight.T + torch.diag(hnet.sigma.square()))


@pytest.mark.parametrize("kind", ["mlp", "sine"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_equals_the_mixture_written_out(kind, dtype):
    torch.set_default_dtype(dtype)
    hnet = perturbed(5, 3, noise="independent", kind=kind)
    sampler = NoisySampler(hnet)
    draw = sampler.draw(7)
    torch.manual_seed(4)
    actual = SemiImplicit(num_fresh=6).log_prob(sampler, draw)
    torch.manual_seed(4)
    fresh = torch.randn(6, 3)
    for s in range(7):
        inputs = torch.cat([draw.z[s : s + 1], fresh])
        parts = torch.distributions.Normal(sampler.generate(inputs), hnet.sigma).log_prob(draw.weights[s]).sum(-1)
        torch.testing.assert_close(actual[s], parts.exp().mean().log(), rtol=1e-4, atol=1e-4)
    assert actual.dtype == dtype


def test_is_above_the_density_on_average_and_tightens():
    """The excess is chi^2 / 2K to first order, with chi^2 + 1 the mean of N(w; h(z), sigma^2) / q(w) over draws."""
    torch.set_default_dtype(torch.float64)
    hnet, sampler = linear_sampler(sigma=1.0)
    with torch.no_grad():
        draw = sampler.draw(40_000)
        log_q = exact(hnet).log_prob(draw.weights)
        own = torch.distributions.Normal(sampler.generate(draw.z), hnet.sigma).log_prob(draw.weights).sum(-1)
        chi_square = float((own - log_q).exp().mean() - 1.0)
        excesses = {}
        for num_fresh in (1, 10, 100):
            # Fresh inputs are shared by the draws of a call; the error is therefore taken over calls.
            rows = [slice(i, i + 400) for i in range(0, 40_000, 400)]
            means = torch.stack(
                [
                    (
                        SemiImplicit(num_fresh=num_fresh).log_prob(sampler, sampler.place(draw.z[r], draw.noise[r]))
                    ).mean()
                    - log_q[r].mean()
                    for r in rows
                ]
            )
            excesses[num_fresh] = (float(means.mean()), float(means.std() / math.sqrt(len(rows))))
    for mean, error in excesses.values():
        assert mean > -4 * error
    assert excesses[1][0] - excesses[10][0] > 4 * (excesses[1][1] + excesses[10][1])
    assert excesses[10][0] - excesses[100][0] > 4 * (excesses[10][1] + excesses[100][1])
    mean, error = excesses[100]
    assert mean == pytest.approx(chi_square / 200, abs=4 * error + (chi_square / 100) ** 2)
    assert error < 0.3 * mean, "the comparison would mean nothing"


def test_gradient_is_that_of_the_entropy():
    torch.set_default_dtype(torch.float64)
    hnet, sampler = linear_sampler(sigma=1.0)
    params = [*hnet.internal_hnet.internal_params, hnet.log_sigma_noise]
    expected = torch.autograd.grad(-exact(hnet).entropy(), params, allow_unused=True)
    estimator = SemiImplicit(num_fresh=1000)
    repeats = [
        torch.autograd.grad(estimator.log_prob(sampler, sampler.draw(200)).mean(), params, allow_unused=True)
        for _ in range(100)
    ]
    for i, param in enumerate(params):
        found = torch.stack([torch.zeros_like(param) if grads[i] is None else grads[i] for grads in repeats])
        wanted = torch.zeros_like(param) if expected[i] is None else expected[i]
        error = found.std(0) / math.sqrt(len(repeats))
        # The excess of the bound, chi^2 / 2K with chi^2 < 2 here, is below 0.001, and its gradient of that size.
        assert bool(((found.mean(0) - wanted).abs() <= 4 * error + 0.002).all())
        assert float(error.max()) < 0.05


def test_among_many_weights_the_own_one_takes_all_and_the_diagnosis_says_so():
    torch.set_default_dtype(torch.float64)
    q = ImplicitWeights(perturbed(151, 20, noise="independent", sigma=0.05), estimator=SemiImplicit())
    diagnosis = q.diagnose(thorough=False)
    assert diagnosis.values["self_weight"] > 0.99
    assert diagnosis.category is SelfWeightWarning
    assert "carries 100.0% of the weight" in diagnosis.advice[0]
    assert "Linearised()" in diagnosis.advice[0]
    with torch.no_grad():
        value = q.rsample((50,))
        noise = (
            torch.distributions.Normal(0.0, q.sampler.sigma).log_prob(q.sampler.sigma * q.last_made_of.noise).sum(-1)
        )
        torch.testing.assert_close(q.log_prob(value), noise - math.log(101), rtol=0, atol=1e-3)


def test_among_few_weights_the_diagnosis_is_clean():
    torch.set_default_dtype(torch.float64)
    hnet, _ = linear_sampler()
    diagnosis = ImplicitWeights(hnet, estimator=SemiImplicit(num_fresh=400)).diagnose(num_samples=1000)
    assert diagnosis.healthy
    # For a linear generator importance sampling is exact: the gap is minus the excess of the bound.
    gap, error = diagnosis.values["entropy_gap"], diagnosis.values["entropy_gap_error"]
    assert -0.05 - 4 * error < gap < 4 * error
    assert diagnosis.values["self_weight"] < 0.1


def test_fit_warns_when_it_is_saturated():
    model, data = bnn()
    family = Hypernet(noise="independent", estimator=SemiImplicit())
    guide = AutoHypernet(model, example=data, conditional=None, family=family, init_scale=0.01)
    with pytest.warns(SelfWeightWarning, match="own noise carries"):
        fit(model, guide, data, steps=2, progress=False)


@pytest.mark.parametrize("dtype", DTYPES)
def test_density_at_foreign_weights(dtype):
    torch.set_default_dtype(dtype)
    hnet, _ = linear_sampler(4)
    q = ImplicitWeights(hnet, estimator=SemiImplicit())
    points = exact(hnet).sample((30,))
    found = q.log_prob(points)
    assert found.dtype == dtype
    torch.testing.assert_close(found, exact(hnet).log_prob(points).detach(), rtol=1e-4, atol=1e-3)


def test_density_at_foreign_weights_is_refused_where_it_is_not_known():
    torch.set_default_dtype(torch.float64)
    hnet, _ = linear_sampler()
    q = ImplicitWeights(hnet, estimator=SemiImplicit())
    log_q = q.log_prob(torch.zeros(3, 2, requires_grad=True))
    with pytest.raises(DensityError, match="SemiImplicit.* has none"):
        log_q.sum().backward()
    bent = ImplicitWeights(perturbed(30, 8, noise="independent", kind="sine", sigma=0.01), estimator=SemiImplicit())
    with pytest.raises(DensityError, match=r"for \d+ of 6 weights importance sampling kept fewer than 1%"):
        bent.log_prob(3.0 * torch.randn(6, 30))


def test_errors():
    with pytest.raises(ArgumentError, match="num_fresh: is 0"):
        SemiImplicit(num_fresh=0)
    with pytest.raises(ArgumentError, match="SemiImplicit applies to independent noise"):
        ImplicitWeights(perturbed(), estimator=SemiImplicit())
    assert repr(SemiImplicit(num_fresh=7)) == "SemiImplicit(num_fresh=7)"


@pytest.mark.slow
def test_fits_two_modes():
    model, target = target_model("two_modes"), TARGETS["two_modes"]()
    guide = AutoHypernet(
        model, example=(), init_scale=0.1, family=Hypernet(noise="independent", estimator=SemiImplicit())
    )
    history = fit(model, guide, (), steps=400, num_particles=64, progress=False)
    with torch.no_grad():
        measured = histogram_kl(guide.get_posterior().rsample((200_000,)), target.log_prob, bins=120)
    # The best Gaussian is 0.5 nats away or has one mode only (log 2 = 0.69).
    assert measured < 0.1
    # The loss is an upper bound of the KL, above it by the slack of the bound.
    losses = torch.tensor(history.losses[-50:])
    assert float(losses.mean()) > measured - 4 * float(losses.std()) / math.sqrt(50)
