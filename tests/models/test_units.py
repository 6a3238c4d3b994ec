"""A model of raw data is the model of data standardised by hand, in other units."""

from __future__ import annotations

import copy
import math
import pickle
import re
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from pyro.infer import MCMC, NUTS, Predictive
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bayeshnet import (
    AutoHypernet,
    AutoHypernetNormal,
    BayesianModel,
    diagnose,
    fit,
    importance_sample,
    likelihoods,
    predict,
)
from bayeshnet.errors import ArgumentError, ArgumentTypeError, UnitsWarning
from bayeshnet.models import Standardization, Statistics
from bayeshnet.models.likelihoods import Likelihood
from bayeshnet.models.local_reparam import local_reparameterisation
from bayeshnet.sites.shown_data import show_data


def raw(rows=60, seed=0, dtype=torch.float64):
    """Years, areas, a proportion, and prices near 250,000."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(rows, 3, generator=generator, dtype=torch.float64)
    x = z * torch.tensor([10.0, 500.0, 0.02]) + torch.tensor([1990.0, 2000.0, 0.1])
    y = torch.sin(2.0 * z[:, 0]) + 0.6 * z[:, 1] + 0.4 * torch.randn(rows, generator=generator, dtype=torch.float64)
    return x.to(dtype), (250_000.0 + 80_000.0 * y).to(dtype)


def by_hand(x, y):
    return (x - x.mean(0)) / x.std(0, correction=0), (y - y.mean()) / y.std(correction=0)


def network(inputs=3, outputs=1, dtype=torch.float64):
    return nn.Sequential(nn.Linear(inputs, 10), nn.Tanh(), nn.Linear(10, outputs)).to(dtype)


NOISES = {
    "known": lambda: likelihoods.Normal(scale=0.4),
    "learned": lambda: likelihoods.Normal(scale=0.4, learn=True),
    "latent": lambda: likelihoods.Normal(
        scale=dist.Gamma(torch.tensor(6.0, dtype=torch.float64), torch.tensor(12.0, dtype=torch.float64))
    ),
}


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("conditional", ["auto", None])
def test_the_same_fit_draw_by_draw(noise, conditional):
    """Inducing points, placement, calibration, learned and latent noise: all of it is in standardised units."""
    x, y = raw()
    found = []
    for standardize in (True, False):
        data = (x, y) if standardize else by_hand(x, y)
        pyro.set_rng_seed(0)
        model = BayesianModel(network(), likelihood=NOISES[noise](), standardize=data if standardize else None)
        guide = AutoHypernet(model, example=data, conditional=conditional)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the guide is hardly trained
            history = fit(model, guide, data, 10, num_particles=4, progress=False)
            report = diagnose(model, guide, data, num_samples=100, thorough=False)
        if conditional is not None:
            guide.calibrate(*data)
        weighted = importance_sample(model, guide, data, 50)
        pyro.set_rng_seed(1)
        draws = guide.sample_posterior(40)
        observed = model.conditional(data[0], draws)[1]
        found.append((history.losses, draws, observed, weighted, report, guide))
    (ours, draws, observed, weighted, report, guide), (theirs, draws2, observed2, weighted2, report2, guide2) = found
    jacobian = len(y) * math.log(float(y.std(correction=0)))
    np.testing.assert_allclose(ours, np.array(theirs) + jacobian, rtol=1e-8)
    for name, value in draws.items():
        torch.testing.assert_close(value, draws2[name], rtol=1e-6, atol=1e-8)
    scale, loc = y.std(correction=0), y.mean()
    torch.testing.assert_close(observed.mean, loc + scale * observed2.mean, rtol=1e-8, atol=0)
    torch.testing.assert_close(observed.variance, scale**2 * observed2.variance, rtol=1e-6, atol=0)
    torch.testing.assert_close(
        observed.log_prob(y), observed2.log_prob((y - loc) / scale) - scale.log(), rtol=1e-6, atol=1e-6
    )
    torch.testing.assert_close(weighted.log_weights, weighted2.log_weights - jacobian, rtol=1e-6, atol=1e-6)
    if guide.inducing is not None:
        torch.testing.assert_close(guide.inducing.inputs, guide2.inducing.inputs, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(guide.tempering_exponent, guide2.tempering_exponent)
    if noise == "latent":  # in the units of the data
        assert report.values["noise"] == pytest.approx(report2.values["noise"] * float(scale), rel=1e-6)
        assert report.values["noise_ratio"] == pytest.approx(report2.values["noise_ratio"], rel=1e-6)
    else:
        assert report.values["elbo"] == pytest.approx(report2.values["elbo"] - jacobian, rel=1e-6)


def test_density_of_observations_is_scipys():
    """Two outputs of different units; the joint density contains the Jacobian once for each row and output."""
    torch.manual_seed(0)
    x, _ = raw()
    y = torch.stack([1e5 + 1e4 * torch.randn(60), 0.01 * torch.randn(60)], dim=1).double()
    model = BayesianModel(
        network(outputs=2), likelihood=likelihoods.Normal(scale=torch.tensor([0.5, 0.2])), standardize=(x, y)
    )
    trace = pyro.poutine.trace(model).get_trace(x, y)
    weights = {name: trace.nodes[name]["value"] for name in model.latent_shapes}
    z, _ = by_hand(x, y[:, 0])
    f = torch.func.functional_call(network(outputs=2), weights, (z,))
    scale = y.std(0, correction=0)
    exact = scipy.stats.norm((y.mean(0) + scale * f).numpy(), (scale * torch.tensor([0.5, 0.2])).numpy())
    trace.compute_log_prob()
    np.testing.assert_allclose(trace.nodes["obs"]["log_prob"], exact.logpdf(y).sum(1), rtol=1e-6)
    drawn = Predictive(model, num_samples=2000, parallel=True)(x)["obs"]
    assert drawn.shape == (2000, 60, 2)
    assert ((drawn.mean((0, 1)) - y.mean(0)).abs() < 3.0 * scale).all()


def test_noise_of_rows_is_in_the_units_of_the_data():
    x, y = raw()
    noise = 40_000.0 * torch.rand(60, dtype=torch.float64) + 1000.0
    model = BayesianModel(network(), likelihood=likelihoods.Normal(1.0, per_row=True), standardize=(x, y))
    draws = {name: torch.randn(3, *shape, dtype=torch.float64) for name, shape in model.latent_shapes.items()}
    observed = model.conditional(x, draws, noise=noise)[1]
    torch.testing.assert_close(observed.variance, noise.square().expand(3, 60), rtol=1e-6, atol=0)


def test_counts_labels_and_own_likelihoods_standardise_inputs_only():
    class Counts(Likelihood):
        def conditional(self, f, params, *, batch_dims):
            return dist.Poisson(f.exp()).to_event(f.dim() - batch_dims)

    class Own(Likelihood):
        standardizes_targets = True

        def conditional(self, f, params, *, batch_dims):
            return dist.Laplace(f, 0.5).to_event(f.dim() - batch_dims)

    x, y = raw()
    for likelihood, targets, outputs in (
        (likelihoods.Categorical(), torch.arange(60) % 3, 3),
        (Counts(), (torch.arange(60) % 5).double(), 1),
        (likelihoods.Beta(concentration=3.0), torch.linspace(0.1, 0.9, 60).double(), 1),
        (likelihoods.Ordinal(3), torch.arange(60) % 3, 1),
        (likelihoods.CensoredNormal(scale=1.0, lower=0.0), torch.linspace(0.0, 9.0, 60).double(), 1),
        (likelihoods.TruncatedNormal(scale=1.0, lower=0.0), torch.linspace(0.0, 9.0, 60).double(), 1),
    ):
        model = BayesianModel(network(outputs=outputs), likelihood=likelihood, standardize=(x, targets))
        assert model.units.target_scale is None
        assert model.units.takes_any_float(0)
        assert "targets as they are" in repr(model)
        assert torch.isfinite(model(x, targets)).all()
    own = BayesianModel(network(), likelihood=Own(), standardize=(x, y))
    assert float(own.units.target_scale) == pytest.approx(float(y.std(correction=0)))
    with pytest.raises(ArgumentError, match="not one of a location and a scale"):
        BayesianModel(network(), likelihood=Counts(), standardize=Standardization(targets=Statistics(1.0, 2.0)))


@pytest.mark.parametrize("latent", [False, True])
def test_single_outputs_of_a_joint_distribution_keep_their_quantiles(latent):
    """Before: quantiles and cdf of correlated outputs in the units of the data were those of a sample."""
    x, _ = raw()
    y = 1000.0 * torch.randn(60, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 5000.0
    covariance = torch.tensor([[1.0, 0.6], [0.6, 0.5]], dtype=torch.float64)
    joint = likelihoods.MultivariateNormal(covariance)
    if latent:
        joint = likelihoods.MultivariateNormal(scale=dist.Gamma(6.0, 6.0), correlation=dist.LKJCholesky(2, 2.0))
    net = nn.Linear(x.shape[1], 2).double()
    model = BayesianModel(net, likelihood=joint, standardize=(x, y))
    plain = BayesianModel(net, likelihood=joint)
    statistics = model.units.standardization
    assert statistics is not None
    inputs, targets = statistics.inputs[0], statistics.targets
    assert inputs is not None
    assert targets is not None
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = {k: v[:, 0] for k, v in ((k, torch.randn(9, 1, *s).double()) for k, s in plain.latent_shapes.items())}
        for name, prior in joint.priors().items():
            draws[f"likelihood.{name}"] = prior.sample((9,)).double()
    levels = (0.05, 0.5, 0.95)
    pred = predict(model, draws, x)
    by_hand = predict(plain, draws, (x - inputs.loc) / inputs.scale)
    torch.testing.assert_close(pred.quantile(levels), targets.loc + targets.scale * by_hand.quantile(levels))
    torch.testing.assert_close(pred.cdf(y), by_hand.cdf((y - targets.loc) / targets.scale))
    assert "likelihood=MultivariateNormal" in repr(pred)


def test_inputs_of_several_kinds():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.linear = nn.Embedding(5, 3), nn.Linear(2, 3)

        def forward(self, ids, x):
            return (self.embed(ids) * self.linear(x)).sum(1, keepdim=True)

    ids, x = torch.arange(20) % 5, 100.0 + 7.0 * torch.randn(20, 2)
    y = torch.randn(20) * 1e3
    model = BayesianModel(Two(), likelihood=likelihoods.Normal(scale=0.5), standardize=((ids, x), y))
    given = model.standardized_inputs((ids, x))
    assert torch.equal(given[0], ids)
    torch.testing.assert_close(given[1].std(0, correction=0), torch.ones(2))
    assert torch.isfinite(model((ids, x), y)).all()
    images = BayesianModel(
        nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(3, 2)),
        likelihood=likelihoods.Categorical(),
        standardize=(255.0 * torch.rand(20, 2, 3, 3), torch.arange(20) % 2),
    )
    assert "inputs by channel" in repr(images)
    with pytest.raises(ArgumentError, match="was standardised by 2 channels"):
        images(torch.rand(20, 3, 3, 3))


def test_data_with_more_bits_than_the_network():
    """Subtracted before it is rounded."""
    x = 1e9 + torch.arange(40.0, dtype=torch.float64).unsqueeze(1)
    y = 1e12 + torch.arange(40.0, dtype=torch.float64)
    model = BayesianModel(network(1, dtype=torch.float32), likelihood=likelihoods.Normal(scale=0.5), standardize=(x, y))
    inside = model.standardized_inputs(x)
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside[:, 0].double(), by_hand(x[:, 0], y)[0], rtol=1e-6, atol=1e-6)
    guide = AutoHypernet(model, example=(x, y))
    fit(model, guide, (x, y), 3, progress=False, num_particles=2)
    observed = model.conditional(x, guide.sample_posterior(3))[1]
    assert observed.mean.dtype == torch.float64
    assert observed.log_prob(y).dtype == torch.float32


def test_a_loader_is_its_data_and_the_state_is_saved():
    x, y = raw()
    loader = DataLoader(TensorDataset(x, y), batch_size=7, shuffle=True)
    net = network()
    state = torch.get_rng_state()
    model = BayesianModel(net, likelihood=likelihoods.Normal(scale=0.4), standardize=loader)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(model.units.targets_loc, y.mean(), rtol=1e-12, atol=0)
    draws = {name: torch.randn(3, *shape, dtype=torch.float64) for name, shape in model.latent_shapes.items()}
    mean = model.conditional(x, draws)[1].mean
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other.conditional(x, draws)[1].mean, mean)
    again = BayesianModel(network(), likelihood=likelihoods.Normal(scale=0.4), standardize=model.units.standardization)
    assert torch.equal(again.conditional(x, draws)[1].mean, mean)
    fresh = BayesianModel(network(), likelihood=likelihoods.Normal(scale=0.4), standardize=(x + 1.0, 2.0 * y))
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh.conditional(x, draws)[1].mean, mean)
    assert model.float().units.targets_loc.dtype == torch.float32


def test_local_reparameterisation_and_a_chain():
    x, y = raw(30)
    z, t = by_hand(x, y)
    losses = []
    for standardize in (True, False):
        pyro.set_rng_seed(0)
        data = (x, y) if standardize else (z, t)
        model = BayesianModel(
            nn.Linear(3, 1).double(),
            likelihood=likelihoods.Normal(scale=0.5),
            standardize=data if standardize else None,
        )
        guide = AutoHypernetNormal(model, example=data)
        losses.append(fit(local_reparameterisation(model), guide, data, 5, num_particles=3, progress=False).losses)
        pyro.set_rng_seed(1)
        chain = MCMC(NUTS(model, max_tree_depth=4), num_samples=10, warmup_steps=10, disable_progbar=True)
        chain.run(*data)
        losses[-1].append(float(chain.get_samples()["weight"].sum()))
    jacobian = 30 * math.log(float(y.std(correction=0)))
    np.testing.assert_allclose(losses[0][:-1], np.array(losses[1][:-1]) + jacobian, rtol=1e-8)
    assert losses[0][-1] == pytest.approx(losses[1][-1], rel=1e-4)


def test_refused():
    x, y = raw()
    normal = likelihoods.Normal(scale=0.4)
    for wrong in (True, False, 3, "auto", x, {"x": x}, (x, y, y)):
        with pytest.raises(ArgumentTypeError, match=r"standardize: is.*standardize=\(x_train, y_train\)"):
            BayesianModel(network(), likelihood=normal, standardize=wrong)


# ---------------------------------------------------------------------- warnings


def model_of(inputs=3, outputs=1, dtype=torch.float64, **options):
    return BayesianModel(network(inputs, outputs, dtype), likelihood=likelihoods.Normal(scale=0.4), **options)


def test_raw_data_are_warned_of_with_numbers_and_the_fix():
    x, y = raw()
    with pytest.warns(UnitsWarning) as caught:
        AutoHypernet(model_of(), example=(x, y))
    inputs, targets = (str(warning.message) for warning in caught)
    assert re.match(r"x: column [01] has mean (19|20)\d\d and standard deviation \d", inputs)
    assert "(and 1 more are as far off)" in inputs
    assert "y: has mean 2.613e+05 and standard deviation 7.49e+04, and the prior predictive has mean" in targets
    assert "standardize=(x_train, y_train)" in targets
    assert caught[0].filename == __file__
    z, t = by_hand(x, y)
    model = model_of()
    guide = AutoHypernet(model, example=(z, t))
    with pytest.warns(UnitsWarning, match="y: has mean"):  # of the data of a fit, too
        fit(model, guide, (z, y), 1, progress=False)
    loader = DataLoader(TensorDataset(z, y), batch_size=10)
    with pytest.warns(UnitsWarning, match="y: has mean"):
        show_data(model, loader)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda z, t: (z + 100.0, t), "column 0 has mean"),
        (lambda z, t: (1e-4 * z, t), "column . has mean"),
        (lambda z, t: (z, t + 60.0), "y: has mean"),
        (lambda z, t: (z, 1000.0 * t), "y: has mean"),
        (lambda z, t: (z, 1e-4 * t), "vary .* times less"),
        (lambda z, t: (z, torch.stack([t, 1e5 + t], 1)), "in output 1"),
    ],
)
def test_each_kind_is_warned_of(change, message):
    x, y = change(*by_hand(*raw()))
    outputs = y.shape[1] if y.dim() > 1 else 1
    with pytest.warns(UnitsWarning, match=message):
        model_of(outputs=outputs).prepare(x, y)


@pytest.mark.parametrize(
    "change",
    [
        lambda z, t: (z, t),
        lambda z, t: (3.0 * z + 5.0, 2.0 * t - 3.0),
        lambda z, t: (0.2 * z, 0.2 * t),
        lambda z, t: (torch.cat([z[:, :2], torch.ones(60, 1)], 1), t),  # a constant column
        lambda z, t: (torch.cat([z[:, :2], torch.zeros(60, 1)], 1), torch.zeros(60)),
        lambda z, t: ((z > 1.5).double(), t),
        lambda z, t: (z, torch.where(t > 1, torch.nan, t)),
    ],
)
def test_reasonable_data_are_not(change):
    x, y = change(*by_hand(*raw()))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnitsWarning)
        model = model_of()
        show_data(model, (x, y.to(x)))
    x, y = raw()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnitsWarning)
        show_data(model_of(standardize=(x, y)), (x, y))


def test_a_network_that_normalises_its_inputs_may_have_any():
    x, y = raw()
    net = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1)).double()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UnitsWarning)
        BayesianModel(net, likelihood=likelihoods.Normal(scale=0.4)).prepare(x, by_hand(x, y)[1])


def test_looking_leaves_the_random_stream():
    x, y = by_hand(*raw())
    model = model_of()
    state = torch.get_rng_state()
    show_data(model, (x, y))
    show_data(model, DataLoader(TensorDataset(x, y), batch_size=7, shuffle=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_statistics_of_other_data_are_said_to_be():
    x, y = raw()
    with pytest.warns(UnitsWarning, match="of other data"):
        model_of(standardize=(x, y)).prepare(x, y / 1000.0)
