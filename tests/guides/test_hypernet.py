from __future__ import annotations

import copy
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoGuideList, AutoNormal, init_to_value
from torch import nn

from bayeshnet import AutoHypernet, fit, predict
from bayeshnet.entropy import ChangeOfVariables, Linearised
from bayeshnet.errors import ArgumentError, ArgumentTypeError, DensityError
from bayeshnet.families import Hypernet, Mixture
from bayeshnet.hnets import HMLP, HPerturbWrapper
from tests.problems import EFFECTS, ERRORS, bnn, eight_schools, eight_schools_moments
from tests.samplers import SineHyperNet
from tests.scenarios import PREDICTIVE, PROBLEMS, assert_elbos_agree


@pytest.mark.filterwarnings("ignore::bayeshnet.errors.DatasetSizeWarning")  # one minibatch, again and again
@pytest.mark.filterwarnings("ignore::bayeshnet.errors.EntropyGapWarning")  # after so few steps, with independent noise
@pytest.mark.parametrize("noise", ["shared", "independent"])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_elbos_agree(problem, noise):
    model, args = PROBLEMS[problem]()
    guide = AutoHypernet(model, example=args, family=Hypernet(noise=noise))
    fit(model, guide, args, steps=60, progress=False)
    assert_elbos_agree(model, guide, args, loops=120)


@pytest.mark.parametrize("name", ["eight schools", "constrained"])
def test_density_of_constrained_sites_by_hand(name):
    """log q of the guide's trace: the sampler's density and the bijections' Jacobians."""
    model, args = PROBLEMS[name]()
    guide = AutoHypernet(model, example=args)
    trace = poutine.trace(guide).get_trace(*args)
    latent = trace.nodes["_AutoHypernet_latent"]
    expected = latent["fn"].log_prob(latent["value"])
    for site in guide.sites:
        if site.transform is not None:
            part = dict(
                zip((s.name for s in guide.sites), latent["value"].split([s.numel for s in guide.sites]), strict=True)
            )[site.name]
            unconstrained = part.reshape(site.shape)
            value = site.constrain(unconstrained)
            expected = expected - site.transform.log_abs_det_jacobian(unconstrained, value).sum()
            torch.testing.assert_close(trace.nodes[site.name]["value"], value)
    torch.testing.assert_close(trace.log_prob_sum(), expected)


@pytest.mark.parametrize(("problem", "parallel"), PREDICTIVE)
def test_predictive(problem, parallel):
    model, args = PROBLEMS[problem]()
    guide = AutoHypernet(model, example=args)
    inputs = args if problem == "constrained" else args[:1]
    out = Predictive(model, guide=guide, num_samples=6, parallel=parallel)(*inputs)
    assert out["obs"].shape == (6, len(args[-1]))
    for site in guide.sites:
        assert out[site.name].shape[0] == 6


def test_plain_svi_and_subsampled_plates():
    y = torch.randn(40) + 2.0

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        with pyro.plate("data", len(y), subsample_size=10) as rows:
            pyro.sample("obs", dist.Normal(mu, 1.0), obs=y[rows])

    guide = AutoHypernet(model, example=(y,))
    optimizer = pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.01 ** (1 / 1000)})
    svi = SVI(model, guide, optimizer, Trace_ELBO(num_particles=8, vectorize_particles=True))
    losses = [svi.step(y) for _ in range(1000)]
    assert sum(losses[-50:]) < sum(losses[:50])
    draws = guide.sample_posterior(2000)["mu"]
    # Exact posterior: mean 0.9990 ybar, standard deviation 0.158; noise of subsampling widens the tolerance.
    assert abs(float(draws.mean()) - float(y.mean())) < 0.2
    assert not list(pyro.get_param_store().keys())  # parameters live in the module


def test_local_latents_in_plates_and_guide_lists():
    model, args = eight_schools, (ERRORS, EFFECTS)
    guide = AutoGuideList(model)
    guide.append(AutoNormal(poutine.block(model, expose=["mu"])))
    guide.append(AutoHypernet(poutine.block(model, hide=["mu"]), example=args))
    loss = Trace_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1).loss(model, guide, *args)
    assert math.isfinite(loss)


@pytest.mark.slow
def test_eight_schools_as_by_quadrature():
    guide = AutoHypernet(eight_schools, example=(ERRORS, EFFECTS))
    fit(eight_schools, guide, (ERRORS, EFFECTS), steps=2000, num_particles=64, progress=False)
    found = guide.sample_posterior(20_000)
    found["theta"] = found["mu"].unsqueeze(-1) + found["tau"].unsqueeze(-1) * found["eta"]
    for name, (mean, std) in eight_schools_moments().items():
        torch.testing.assert_close(found[name].mean(0), mean.float(), rtol=0.15, atol=0)
        torch.testing.assert_close(found[name].std(0), std.float(), rtol=0.15, atol=0)


@pytest.mark.parametrize("support", ["simplex", "mixture", "improper"])
def test_unusual_latents(support):
    def model():
        if support == "simplex":
            pyro.sample("w", dist.Dirichlet(torch.ones(4)))
        elif support == "mixture":
            parts = dist.Normal(torch.tensor([-2.0, 2.0]), 0.5)
            pyro.sample("w", dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), parts))
        else:
            w = pyro.sample("w", dist.ImproperUniform(dist.constraints.positive, (), (3,)))
            pyro.sample("obs", dist.Normal(w, 1.0).to_event(1), obs=torch.ones(3))

    guide = AutoHypernet(model, example=())
    history = fit(model, guide, (), steps=50, progress=False)
    assert math.isfinite(history.losses[-1])
    assert guide.sample_posterior(3)["w"].shape[0] == 3


def test_quantiles_and_median():
    model, args = eight_schools, (ERRORS, EFFECTS)
    guide = AutoHypernet(model, example=args)
    draws = guide.sample_posterior(20_000)
    median, quantiles = guide.median(num_samples=20_000), guide.quantiles([0.1, 0.5, 0.9], num_samples=20_000)
    for name, values in draws.items():
        assert quantiles[name].shape == (3, *values.shape[1:])
        # The error of a median is 1.25 std / sqrt(n) = 0.009 std, on both sides.
        close = (median[name] - values.median(0).values).abs() < 0.06 * values.std(0)
        assert bool(close.all())
        assert bool((quantiles[name][0] < quantiles[name][2]).all())
    with pytest.raises(ArgumentError, match="quantiles: is"):
        guide.quantiles([1.5])


def test_init_loc_fn_and_noise_options():
    model, args = eight_schools, (ERRORS, EFFECTS)
    start = {"mu": torch.tensor(4.0), "tau": torch.tensor(2.0), "eta": torch.full((8,), 0.5)}
    guide = AutoHypernet(model, example=args, init_loc_fn=init_to_value(values=start), init_scale=1e-3)
    median = guide.median()
    for name, value in start.items():
        # The start's spread: 0.1 of the prior's by the linear part.
        torch.testing.assert_close(median[name], value, atol=0.5, rtol=0.2)
    assert guide.latent_dim == 10
    assert guide.hnet.hnet_uncond_in_size == 10
    assert AutoHypernet(model, example=args, family=Hypernet(noise_dim=3)).hnet.hnet_uncond_in_size == 3
    assert isinstance(AutoHypernet(model, example=args, family=Hypernet(noise="independent")).estimator, Linearised)
    assert isinstance(guide.estimator, ChangeOfVariables)
    assert "noise_dim=10" in repr(guide)


@pytest.mark.parametrize(
    ("size", "options", "expected"),
    [
        (64, {}, 64),
        (65, {}, 20),
        (64, {"family": Hypernet(noise="independent")}, 20),
        (64, {"family": Mixture("hypernet", 2)}, 20),
    ],
)
def test_as_many_noise_inputs_as_latents_where_these_are_few(size, options, expected):
    def model():
        pyro.sample("w", dist.Normal(torch.zeros(size), 1.0).to_event(1))

    guide = AutoHypernet(model, example=(), **options)
    assert f"noise_dim={expected}" in repr(guide)
    clipped = expected == size
    assert guide.clip_norm == (10.0 if clipped else None)


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("kind", ["mlp", "sine"])
def test_own_hypernetwork(kind, wrap):
    model, args = bnn()
    shapes_seen: list[list[list[int]]] = []

    def build(shapes):
        shapes_seen.append(shapes)
        size = sum(math.prod(s) for s in shapes)
        hnet = SineHyperNet(size, 5) if kind == "sine" else HMLP(shapes, 5, 0, (8,), False)
        return HPerturbWrapper(hnet, learn_sigma="scalar", noise="independent", verbose=False) if wrap else hnet

    guide = AutoHypernet(model, example=args, hnet=build)
    assert shapes_seen == [[[6, 2], [6], [1, 6], [1], []]]
    history = fit(model, guide, args, steps=60, progress=False)
    assert sum(history.losses[-10:]) < sum(history.losses[:10])


def test_state_dict_has_each_tensor_once_and_copies_work():
    model, args = bnn()
    guide = AutoHypernet(model, example=args)
    pointers = [t.data_ptr() for t in guide.state_dict().values()]
    assert len(pointers) == len(set(pointers))
    assert len(guide.state_dict()) == len(list(guide.parameters())) + len(list(guide.buffers()))
    fit(model, guide, args, steps=3, progress=False)
    duplicate = copy.deepcopy(guide)
    torch.manual_seed(0)
    first = guide.sample_posterior(2)["0.weight"]
    torch.manual_seed(0)
    assert torch.equal(first, duplicate.sample_posterior(2)["0.weight"])
    with torch.no_grad():
        next(duplicate.parameters()).add_(1.0)
    assert not torch.equal(next(guide.parameters()), next(duplicate.parameters()))
    assert "family" in pickle.loads(pickle.dumps(guide))._modules
    assert callable(guide.model)  # copying leaves the original whole


@pytest.mark.filterwarnings("ignore::bayeshnet.errors.FoldingWarning")  # three steps of 0.1
def test_two_guides_share_nothing():
    model, args = bnn()
    first, second = AutoHypernet(model, example=args), AutoHypernet(model, example=args, family=Hypernet(noise_dim=3))
    before = {k: v.clone() for k, v in second.state_dict().items()}
    svi = SVI(model, first, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO(num_particles=2, vectorize_particles=True))
    for _ in range(3):
        svi.step(*args)
    fit(model, first, args, steps=3, progress=False)
    assert all(torch.equal(v, before[k]) for k, v in second.state_dict().items())
    assert math.isfinite(SVI(model, second, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO()).step(*args))


def test_same_seed_same_fit():
    results = []
    for _ in range(2):
        pyro.set_rng_seed(3)
        model, args = bnn()
        guide = AutoHypernet(model, example=args)
        history = fit(model, guide, args, steps=20, progress=False)
        results.append((history.losses, predict(model, guide, args[0], num_samples=5).draws))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])


def test_float64():
    model, args = bnn(dtype=torch.float64)
    guide = AutoHypernet(model, example=args)
    fit(model, guide, args, steps=3, progress=False)
    assert guide()["0.weight"].dtype == torch.float64


def test_a_mask_and_missing_data_are_fine():
    y = torch.tensor([1.0, float("nan"), 2.0])

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        seen = ~torch.isnan(y)
        with pyro.plate("data", len(y)), poutine.mask(mask=seen):
            pyro.sample("obs", dist.Normal(mu, 1.0), obs=torch.where(seen, y, torch.zeros(())))

    assert math.isfinite(fit(model, AutoHypernet(model, example=(y,)), (y,), steps=2, progress=False).losses[-1])


def test_errors():
    model, (x, y) = bnn()
    args = (ERRORS, EFFECTS)

    def discrete():
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("mu", dist.Normal(z, 1.0))

    def nothing(y):
        pyro.sample("obs", dist.Normal(0.0, 1.0), obs=y)

    cases = [
        (
            lambda: AutoHypernet(eight_schools, example=args, family=Hypernet(noise_dim=11)),
            ArgumentError,
            "noise_dim: is 11",
        ),
        (
            lambda: AutoHypernet(eight_schools, example=args, family=Hypernet(noise_dim=0)),
            ArgumentError,
            "noise_dim: is 0",
        ),
        (lambda: AutoHypernet(discrete, example=()), ArgumentError, "site 'z'.*is discrete"),
        (lambda: AutoHypernet(nothing, example=(y[0],)), ArgumentError, "has no latent variables"),
        (lambda: AutoHypernet(model, example=(x,)), ArgumentError, "example: has no targets"),
        (lambda: AutoHypernet(model, example=x), ArgumentError, "example: has no targets"),
        (lambda: AutoHypernet(model, example=5), ArgumentTypeError, "example: is an int"),
        (lambda: AutoHypernet(None, example=()), ArgumentTypeError, "model: is a NoneType"),
        (lambda: AutoHypernet(model, example=(x, y), family=Hypernet(noise="none")), ArgumentError, "noise: is 'none'"),
        (lambda: AutoHypernet(model, example=(x, y), init_scale=0.0), ArgumentError, "init_scale: is 0.0"),
        (
            lambda: AutoHypernet(model, example=(x, y), family=Hypernet(estimator=Linearised())),
            ArgumentError,
            "independent noise",
        ),
        (
            lambda: AutoHypernet(model, example=(x, y), family=Hypernet(estimator="exact")),
            ArgumentTypeError,
            "estimator: is a str",
        ),
        (
            lambda: AutoHypernet(model, example=(x, y), family=Hypernet(lambda s: HMLP(s, 4, 0), noise_dim=4)),
            ArgumentError,
            "hnet, noise_dim: both",
        ),
        (
            lambda: AutoHypernet(
                model,
                example=(x, y),
                family=Hypernet(lambda s: HPerturbWrapper(HMLP(s, 4, 0), verbose=False), noise="shared"),
            ),
            ArgumentError,
            "hnet, noise: both",
        ),
        (
            lambda: AutoHypernet(model, example=(x, y), hnet=lambda s: nn.Linear(1, 1)),
            ArgumentTypeError,
            "hnet: returned",
        ),
        (
            lambda: AutoHypernet(model, example=(x, y), hnet=lambda s: HMLP([[3]], 2, 0, verbose=False)),
            ArgumentError,
            "hnet: produces 3 numbers",
        ),
        (
            lambda: AutoHypernet(
                model, example=(x, y), hnet=lambda s: HMLP(s, 4, 0, use_batch_norm=True, verbose=False)
            ),
            DensityError,
            "batch norm",
        ),
        (
            lambda: AutoHypernet(model, example=(x, y), hnet=lambda s: HMLP(s, 4, 0, dropout_rate=0.1, verbose=False)),
            DensityError,
            "dropout",
        ),
    ]
    for call, error, match in cases:
        with pytest.raises(error, match=match):
            call()
    with pytest.raises(ArgumentError, match="num_samples: is 0"):
        AutoHypernet(eight_schools, example=args).sample_posterior(0)


def test_a_prior_that_is_a_shifted_normal_keeps_its_place():
    """Its base distribution is not the prior of the unconstrained value."""

    def model(y):
        shifted = dist.TransformedDistribution(dist.Normal(0.0, 1.0), dist.transforms.AffineTransform(50.0, 2.0))
        mu = pyro.sample("mu", shifted)
        pyro.sample("obs", dist.Normal(mu, 1.0), obs=y)

    guide = AutoHypernet(model, example=(torch.tensor(50.0),))
    # Median and spread of 48 prior draws: standard errors 1.25 * 2 / sqrt(48) and 2 * 0.17.
    assert abs(float(guide.loc) - 50.0) < 4 * 0.36
    assert 0.6 < float(guide.scale) < 3.4
