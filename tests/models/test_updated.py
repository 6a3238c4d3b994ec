"""A posterior as the prior of the next data."""

from __future__ import annotations

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from torch import nn
from torch.distributions import biject_to

from bayeshnet import AutoHypernet, BayesianModel, fit, likelihoods, load, load_posterior, predict, priors, save
from bayeshnet.errors import ArgumentError, ArgumentTypeError, CheckpointError, UsageError
from bayeshnet.models.updated import PosteriorPrior

NOISE = 0.25  # exact in float32, which the likelihood keeps it in


def rows(num, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num, 2, generator=generator, dtype=torch.float64)
    return x, x @ torch.tensor([1.0, -0.5], dtype=torch.float64) + NOISE * torch.randn(
        num, generator=generator
    ).double()


FIRST, SECOND, THIRD = rows(7, 0), rows(5, 1), rows(9, 2)
ALL = tuple(torch.cat(parts) for parts in zip(FIRST, SECOND, THIRD, strict=True))


def regression():
    net = nn.Linear(2, 1).double()
    return BayesianModel(net, prior=priors.Normal(scale=1.0), likelihood=likelihoods.Normal(scale=NOISE))


def exact(data, mean=None, cov=None):
    """The posterior of the two weights and the bias by the textbook, from this prior."""
    x, y = data
    mean = torch.zeros(3, dtype=torch.float64) if mean is None else mean
    cov = torch.eye(3, dtype=torch.float64) if cov is None else cov
    design = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    precision = cov.inverse() + design.T @ design / NOISE**2
    return torch.linalg.solve(precision, cov.inverse() @ mean + design.T @ y / NOISE**2), precision.inverse()


def exact_guide(model, data, moments):
    guide = AutoMultivariateNormal(model)
    guide(*data)
    factor = torch.linalg.cholesky(moments[1])
    guide.loc.data.copy_(moments[0])
    guide.scale = factor.diagonal().clone()
    guide.scale_tril = factor / factor.diagonal()[:, None]
    return guide


def log_joint(model, data, sites):
    trace = pyro.poutine.trace(pyro.poutine.condition(model, data=sites)).get_trace(*data)
    return float(trace.log_prob_sum().detach())


def test_linear_regression_in_three_parts_is_that_of_all_rows():
    model, moments = regression(), None
    for data in (FIRST, SECOND, THIRD):
        moments = exact(data, *(moments or ()))
        model = model.updated(exact_guide(model, data, moments))
    mean, cov = exact(ALL)
    prior = model.prior.weights()
    torch.testing.assert_close(prior.mean, mean, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(prior.covariance_matrix, cov, atol=1e-9, rtol=1e-9)


def test_the_joint_density_is_that_of_all_rows_up_to_the_evidence():
    model = regression()
    after = model.updated(exact_guide(model, FIRST, exact(FIRST)))
    both = tuple(torch.cat(parts) for parts in zip(FIRST, SECOND, strict=True))
    torch.manual_seed(0)
    differences = []
    for _ in range(5):
        w = torch.randn(3, dtype=torch.float64)
        together = log_joint(model, both, {"weight": w[:2].reshape(1, 2), "bias": w[2:]})
        differences.append(log_joint(after, SECOND, {"weights": w}) - together)
    assert max(differences) - min(differences) < 1e-6


@pytest.mark.slow
def test_the_default_guide_of_a_linear_regression():
    """Its draws are exact, given its inducing points at all rows; their moments are off by the Monte Carlo error."""
    pyro.set_rng_seed(0)
    model = regression()
    guide = AutoHypernet(model, example=FIRST, num_inducing=7)
    fit(model, guide, FIRST, 400, num_particles=4, progress=False)
    after = model.updated(guide)
    assert "moments of 2000 draws" in repr(after)
    second = AutoHypernet(after, example=SECOND, family="low_rank")
    fit(after, second, SECOND, 600, lr=0.02, num_particles=8, progress=False)
    both = tuple(torch.cat(parts) for parts in zip(FIRST, SECOND, strict=True))
    mean, cov = exact(both)
    draws = second.sample_posterior(4000)["weights"].reshape(4000, 3)
    std = cov.diagonal().sqrt()
    # 2,000 draws give means to 0.022 and standard deviations to 0.016 of one; the rest is left to two optimisers.
    assert float(((draws.mean(0) - mean) / std).abs().max()) < 0.15
    assert float((draws.std(0) / std).log().abs().max()) < 0.15


def noisy(flat=False):
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    prior = dist.Gamma(torch.tensor([6.0, 6.0]).double(), torch.tensor([6.0, 6.0]).double()).to_event(1)
    return BayesianModel(net, likelihood=likelihoods.Normal(scale=prior), flat=flat)


def scalar_noise():
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    prior = dist.Gamma(torch.tensor(6.0).double(), torch.tensor(6.0).double())
    return BayesianModel(net, likelihood=likelihoods.Normal(scale=prior))


def low_rank(prior):
    """The same Gaussian, plus noise in each direction, as one of low rank; and its covariance."""
    size = len(prior.loc)
    lower = PosteriorPrior(size, prior._sites, rank=size).double()
    lower.loc, lower.factor, lower.diag = prior.loc, prior.scale_tril, torch.full_like(prior.loc, 0.1)
    return lower, prior.scale_tril @ prior.scale_tril.T + torch.diag(lower.diag)


@pytest.mark.parametrize("make", [noisy, scalar_noise])
@pytest.mark.parametrize("form", ["full", "low rank"])
def test_the_noise_stays_correlated_with_the_weights(make, form):
    """The prior's density is that of the Gaussian, and of the transformation of the noise."""
    torch.manual_seed(0)
    model = make()
    x = FIRST[0]
    y = torch.stack([FIRST[1], -FIRST[1]], 1) if make is noisy else FIRST[1]
    guide = AutoMultivariateNormal(model)
    guide(x, y)
    size = len(guide.loc)
    factor = torch.randn(size, size, dtype=torch.float64).tril(-1) * 0.3 + torch.eye(size, dtype=torch.float64)
    guide.loc.data.copy_(torch.randn(size, dtype=torch.float64))
    guide.scale, guide.scale_tril = torch.full((size,), 0.4, dtype=torch.float64), factor
    after = model.updated(guide)
    expected = guide.get_posterior()
    if form == "low rank":
        after.prior, covariance = low_rank(after.prior)
        expected = dist.MultivariateNormal(after.prior.loc, covariance)
    num = after.prior.num_weights
    noise_shape = after.latent_shapes["likelihood.scale"]
    for sample in ((), (4, 1)):  # alone, and as for vectorised particles
        u = torch.randn((*sample, size), dtype=torch.float64)
        transform = biject_to(dist.constraints.positive)
        noise = transform(u[..., num:]).reshape((*sample, *noise_shape))
        with pyro.plate("particles", 4, dim=-2) if sample else pyro.poutine.block():
            program = pyro.poutine.condition(after.sample_latents, {"weights": u[..., :num], "likelihood.scale": noise})
            trace = pyro.poutine.trace(program).get_trace()
        trace.compute_log_prob()
        found = sum(site["log_prob"] for site in trace.nodes.values() if site["type"] == "sample" and "log_prob" in site
                    and site["name"] in ("weights", "likelihood.scale"))  # fmt: skip
        log_det = transform.log_abs_det_jacobian(u[..., num:], transform(u[..., num:])).sum(-1)
        torch.testing.assert_close(found, expected.log_prob(u) - log_det, atol=1e-6, rtol=1e-9)


def test_draws_of_the_prior_have_the_moments_of_the_posterior():
    torch.manual_seed(0)
    model = scalar_noise()
    guide = AutoNormal(model)
    guide(*FIRST)
    after = model.updated(guide)
    assert repr(after.prior) == "PosteriorPrior(14 latents, with likelihood.scale, the Gaussian of AutoNormal)"
    with pyro.plate("samples", 20_000, dim=-2):
        draws, params = after.sample_latents()
    u = torch.cat([draws["weights"].reshape(20_000, -1), params["scale"].reshape(20_000, 1).log()], 1)
    expected = torch.cat([guide.median()["likelihood.scale"].log().reshape(1)])
    assert float(u[:, -1].mean()) == pytest.approx(float(expected.detach()), abs=0.005)  # scale 0.1 / sqrt(20,000)
    # Standard deviations to 0.5 % each, the largest of 14 to three times that.
    assert float((u.std(0) / 0.1).log().abs().max()) < 0.015


def test_many_latents_keep_variances_and_the_largest_directions():
    torch.manual_seed(0)
    model = BayesianModel(nn.Linear(2500, 1), likelihood=likelihoods.Normal(scale=1.0))
    direction = torch.randn(2501)
    draws = torch.randn(400, 1) * direction + 0.5 * torch.randn(400, 2501)
    after = model.updated({"weight": draws[:, :2500].unsqueeze(1), "bias": draws[:, 2500:]})
    prior = after.prior.weights()
    torch.testing.assert_close(prior.variance, draws.var(0), rtol=1e-3, atol=1e-6)
    covariance = after.prior.factor[:5] @ after.prior.factor[:5].T
    outer = direction[:5, None] * direction[:5]
    # A covariance of 400 draws is off by the product of the standard deviations over 20; four times that.
    assert float((covariance - outer).fill_diagonal_(0.0).abs().max()) < 4 * float(draws[:, :5].var(0).max()) / 20


def test_what_may_be_done_with_an_updated_model(tmp_path):
    torch.manual_seed(0)
    model = scalar_noise()
    guide = AutoHypernet(model, example=FIRST)
    after = model.updated(guide, dataset_size=5)
    assert (model.flat, after.flat, after.dataset_size) == (False, True, 5)
    assert list(after.latent_shapes) == ["weights", "likelihood.scale"]
    second = AutoHypernet(after, example=SECOND)
    fit(after, second, SECOND, 5, progress=False)
    torch.manual_seed(1)
    mean = predict(after, second, SECOND[0], 20).mean
    twin = copy.deepcopy(after)
    torch.manual_seed(1)
    assert torch.equal(predict(twin, second, SECOND[0], 20).mean, mean)
    assert after.updated(second).updated(AutoHypernet(after, example=SECOND)).prior.num_weights == 13
    save(tmp_path / "after", model=after, guide=second)
    other = model.updated(AutoHypernet(model, example=FIRST), dataset_size=5)
    load(tmp_path / "after", model=other)
    assert torch.equal(other.prior.weights().mean, after.prior.weights().mean)
    found = load_posterior(tmp_path / "after", nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double())
    torch.manual_seed(1)
    assert torch.equal(predict(found.model, found.guide, SECOND[0], 20).mean, mean)
    assert repr(found.model.prior) == repr(after.prior)
    with pytest.raises(CheckpointError, match="prior is"):
        load(tmp_path / "after", model=model)
    single = after.to(torch.float32)
    assert single(SECOND[0].float()).dtype == torch.float32
    assert math.isfinite(float(single.prior.weights().log_prob(torch.zeros(13))))


def test_an_independent_posterior_keeps_conditional_layers():
    torch.manual_seed(0)
    model = regression()
    guide = AutoHypernet(model, example=FIRST, family="mean_field", conditional=None)
    after = model.updated(guide)
    assert "the Gaussian of AutoHypernet" in repr(after)
    assert AutoHypernet(after, example=SECOND).inducing is not None
    correlated = model.updated(exact_guide(model, FIRST, exact(FIRST)))
    assert "prior is not Gaussian with a known scale" in repr(AutoHypernet(correlated, example=SECOND))


def test_what_is_refused():
    model = regression()
    point = AutoDelta(model)
    point(*FIRST)
    with pytest.raises(ArgumentError, match="guide: has no spread"):
        model.updated(point)
    with pytest.raises(ArgumentTypeError, match="guide: is an int"):
        model.updated(3)
    with pytest.raises(ArgumentError, match="gives no draws of 'bias'"):
        model.updated({"weight": torch.randn(50, 1, 2)})
    with pytest.raises(ArgumentError, match="num_samples: is 1"):
        model.updated(AutoHypernet(model, example=FIRST), num_samples=1)


def test_guides_of_other_models_and_guides_without_parameters():
    model, other = (
        BayesianModel(
            nn.Sequential(nn.Linear(*sizes), nn.Linear(sizes[1], 1)), likelihood=likelihoods.Normal(scale=0.1)
        )
        for sizes in ((2, 4), (4, 2))
    )
    with pytest.raises(UsageError, match="guide: is a AutoNormal that was never called; fit it first"):
        model.updated(AutoNormal(model))
    draws = {name: torch.randn(50, *shape) for name, shape in other.latent_shapes.items()}
    with pytest.raises(ArgumentError, match=r"gives draws \(50, 2, 4\) of '0.weight', and those .* \(50, 4, 2\)"):
        model.updated(draws)
