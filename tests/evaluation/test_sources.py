"""Where predictions come from: guides, chains, ensembles, sites of plain Pyro models; and gradients of them."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import nn

from bayeshnet import BayesianModel, ModuleMainNet, likelihoods, predict
from bayeshnet.errors import ArgumentError, ArgumentTypeError, UsageError
from bayeshnet.evaluation import ensemble_draws
from bayeshnet.mnets.mlp import MLP
from tests.problems import bnn, eight_schools


def seeded(number=0):
    return torch.Generator().manual_seed(number)


def nets(num=3):
    return [nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)) for _ in range(num)]


@pytest.mark.parametrize("flat", [False, True])
def test_an_ensemble(flat):
    torch.manual_seed(0)
    networks, x = nets(), torch.randn(5, 2)
    model = BayesianModel(networks[0], likelihood=likelihoods.Normal(scale=0.1), flat=flat)
    pred = predict(model, networks, x)
    torch.testing.assert_close(pred.draws, torch.stack([net(x).squeeze(-1) for net in networks]))
    assert not pred.draws.requires_grad
    mains = [MLP(2, 1, (4,), verbose=False) for _ in range(3)]
    main = BayesianModel(mains[0], likelihood=likelihoods.Normal(scale=0.1))
    torch.testing.assert_close(predict(main, mains, x).draws, torch.stack([net(x).squeeze(-1) for net in mains]))
    wrapped = BayesianModel(ModuleMainNet(networks[0]), likelihood=likelihoods.Normal(scale=0.1))
    torch.testing.assert_close(predict(wrapped, networks, x).draws, pred.draws)


def test_an_ensemble_that_does_not_fit():
    networks, x = nets(), torch.randn(5, 2)
    model = BayesianModel(networks[0], likelihood=likelihoods.Normal(scale=0.1))
    for given, error, match in (
        ([], ArgumentError, "guide: is an empty list"),
        ([3], ArgumentTypeError, r"guide\[0\]: is an int"),
        ([networks[0], nn.Linear(2, 1)], ArgumentError, r"guide\[1\]: is another architecture.*'0.weight'"),
    ):
        with pytest.raises(error, match=match):
            predict(model, given, x)
    inferred, _ = bnn()
    with pytest.raises(ArgumentError, match=r"no draws of the likelihood's latents \['likelihood.scale'\]"):
        ensemble_draws(inferred, [nn.Linear(2, 1)])
    frozen = nets(2)
    for net in frozen:
        net[0].weight.requires_grad_(False)
    model = BayesianModel(frozen[0], likelihood=likelihoods.Normal(scale=0.1))
    assert predict(model, frozen[:1], x).draws.shape == (1, 5)
    with pytest.raises(ArgumentError, match=r"guide\[1\]: has other frozen parameters or buffers.*'0.weight'"):
        predict(model, frozen, x)


def test_a_chain_that_has_run():
    class Chain:  # what is used of pyro.infer.MCMC
        def __init__(self, draws):
            self.get_samples = lambda: draws

    model, (x, _) = bnn()
    draws = {name: torch.rand(4, *shape) for name, shape in model.latent_shapes.items()}
    assert torch.equal(predict(model, Chain(draws), x).draws, predict(model, draws, x).draws)
    by_chain = {name: value.reshape(2, 2, *value.shape[1:]) for name, value in draws.items()}
    with pytest.raises(ArgumentError, match="without group_by_chain"):
        predict(model, Chain(by_chain), x)


PARTS = {
    "mean": lambda pred: pred.mean,
    "std": lambda pred: pred.std,
    "quantile": lambda pred: pred.quantile([0.1, 0.7]),
    "log_prob": lambda pred: pred.log_prob(torch.full((3,), 0.3, dtype=torch.float64)),
}


@pytest.mark.parametrize("part", PARTS)
def test_gradients_with_respect_to_inputs(part):
    """Against central differences."""
    model, _ = bnn(dtype=torch.float64)
    torch.manual_seed(0)
    draws = {name: torch.rand(6, *shape, dtype=torch.float64) for name, shape in model.latent_shapes.items()}
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)

    def value(x):
        return PARTS[part](predict(model, draws, x, differentiable=True, generator=seeded())).sum()

    (found,) = torch.autograd.grad(value(x), x)
    for place in ((0, 0), (2, 1)):
        step = torch.zeros_like(x)
        step[place] = 1e-5
        with torch.no_grad():
            slope = (value(x + step) - value(x - step)) / 2e-5
        # A quantile is the solution of an equation, exact to 1e-10 or so: an error of 1e-5 in the difference.
        torch.testing.assert_close(found[place], slope, rtol=1e-5, atol=1e-5)
    assert not predict(model, draws, x).draws.requires_grad


def two_kinds(x, y=None):
    """A plain model with two observed sites, and one outside of the plate."""
    slope = pyro.sample("slope", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.1))
    pyro.deterministic("twice", 2 * scale)
    with pyro.plate("data", len(x)):
        f = (slope * x).sum(-1)
        pyro.sample("obs", dist.Normal(f, scale), obs=y)
        pyro.sample("count", dist.Poisson(f.exp()))


def test_sites_of_a_plain_model():
    torch.manual_seed(0)
    x = torch.randn(5, 2)
    draws = {"slope": torch.randn(30, 2), "scale": torch.rand(30) + 0.5}

    def predicted(**options):
        return predict(two_kinds, draws, (x,), sites=("obs", "count", "twice"), generator=seeded(), **options)

    found, looped = predicted(), predicted(parallel=False)
    f = draws["slope"] @ x.T
    torch.testing.assert_close(found["obs"].functions, f)
    torch.testing.assert_close(found["obs"].aleatoric, draws["scale"].square().mean().sqrt().expand(5))
    torch.testing.assert_close(found["count"].mean, f.exp().mean(0))
    torch.testing.assert_close(found["twice"].mean, 2 * draws["scale"].mean())
    y = torch.randn(5)
    expected = torch.logsumexp(dist.Normal(f, draws["scale"][:, None]).log_prob(y), 0) - torch.tensor(30.0).log()
    torch.testing.assert_close(found["obs"].log_prob(y), expected)
    for name in found:
        torch.testing.assert_close(looped[name].functions, found[name].functions)
        torch.testing.assert_close(looped[name].std, found[name].std)


def test_sites_with_guides():
    guide = AutoNormal(eight_schools)
    errors = torch.tensor([15.0, 10.0, 16.0])
    guide(errors, errors)
    found = predict(eight_schools, guide, (errors,), 50, sites=["obs"], generator=seeded())["obs"]
    again = predict(eight_schools, guide, (errors,), 50, sites=["obs"], generator=seeded())["obs"]
    assert found.draws.shape == (50, 3)
    assert torch.equal(found.samples, again.samples)
    torch.testing.assert_close(found.aleatoric, errors)


def test_sites_that_are_not_there():
    draws, x = {"slope": torch.randn(3, 2), "scale": torch.rand(3)}, torch.randn(5, 2)
    for given, sites, error, match in (
        (
            draws,
            ("none",),
            ArgumentError,
            r"sites: \['none'\] are not in the model; it has \['twice', 'obs', 'count'\]",
        ),
        (draws, "obs", ArgumentTypeError, "sites: is 'obs'; pass names of sites"),
        ({"slope": torch.randn(3, 5)}, ("obs",), ArgumentError, r"its draws of 'slope' have shape \(3, 5\)"),
        ({"other": torch.randn(3)}, ("obs",), ArgumentError, "none of which is a site"),
        ({"scale": torch.rand(3), "slope": torch.randn(4, 2)}, ("obs",), ArgumentError, "different numbers of draws"),
        (nets(), ("obs",), ArgumentTypeError, "guide: is a list"),
    ):
        with pytest.raises(error, match=match):
            predict(two_kinds, given, (x,), sites=sites)

    def not_for_batches(x):
        slope = pyro.sample("slope", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("obs", dist.Normal(x @ slope[:2].reshape(2), 1.0).to_event(1))

    with pytest.raises(UsageError, match="cannot be run for all draws at once.*parallel=False"):
        predict(not_for_batches, {"slope": draws["slope"]}, (x,), sites=("obs",))
    looped = predict(not_for_batches, {"slope": draws["slope"]}, (x,), sites=("obs",), parallel=False)
    torch.testing.assert_close(looped["obs"].draws, draws["slope"] @ x.T)
