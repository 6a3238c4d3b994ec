"""What may be given as ``prior=``. Before, all of these ended in a raw ``TypeError: ... 'like'`` or worse."""

from __future__ import annotations

import copy
import math
import re
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, Predictive
from torch import nn

from bayeshnet import (
    AutoHypernet,
    AutoHypernetDelta,
    AutoHypernetNormal,
    BayesianModel,
    fit,
    likelihoods,
    predict,
    priors,
    start_from,
)
from bayeshnet.distributions import ImplicitWeights
from bayeshnet.entropy import ImportanceSampled
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.hnets import HMLP, HPerturbWrapper
from bayeshnet.mnets import batched_forward
from bayeshnet.models.weight_normal import WeightNormal
from bayeshnet.sites.latents import latent_sites


def net():
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def build(prior, **options):
    return BayesianModel(net(), prior=prior, likelihood=likelihoods.Normal(scale=0.5), **options)


def wrapped():
    hnet = HMLP([[21]], uncond_in_size=3, cond_in_size=0, layers=(4,), verbose=False)
    return HPerturbWrapper(hnet, verbose=False)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("fn", [dist.Laplace(0.0, 2.0), dist.Normal(0.5, 2.0), dist.StudentT(5.0, 0.0, 2.0)])
def test_a_plain_distribution_is_that_of_every_weight(fn, dtype, flat):
    model = BayesianModel(net().to(dtype), prior=fn, likelihood=likelihoods.Normal(scale=0.5), flat=flat)
    shapes = model.latent_shapes
    assert [tuple(s) for s in shapes.values()] == ([(21,)] if flat else [(4, 3), (4,), (1, 4), (1,)])
    for name, prior in model.weight_priors().items():
        w = torch.randn(5, *shapes[name], dtype=dtype)
        assert prior.sample().dtype == dtype
        torch.testing.assert_close(prior.log_prob(w), fn.log_prob(w).flatten(1).sum(1).to(dtype), rtol=1e-5, atol=1e-5)


def test_a_plain_normal_is_priors_normal():
    ours, plain = build(priors.Normal(scale=0.5)).weight_priors(), build(dist.Normal(0.0, 0.5)).weight_priors()
    for name, prior in plain.items():
        assert isinstance(prior, WeightNormal)
        w = torch.randn(prior.event_shape)
        assert torch.equal(prior.log_prob(w), ours[name].log_prob(w))
    x, y = torch.randn(8, 3), torch.randn(8)
    assert "conditional=[2.weight]" in repr(AutoHypernet(build(dist.Normal(0.0, 0.5)), example=(x, y)))


def test_a_distribution_of_the_right_shape_is_taken_as_it_is():
    linear = nn.Linear(3, 2, bias=False)
    for fn in (
        dist.MultivariateNormal(torch.zeros(6), 2.0 * torch.eye(6)),
        dist.Laplace(torch.zeros(6), 1.0).to_event(1),
    ):
        model = BayesianModel(linear, prior=fn, likelihood=likelihoods.Normal(scale=0.5), flat=True)
        w = torch.randn(6)
        torch.testing.assert_close(model.weight_priors()["weights"].log_prob(w), fn.log_prob(w))
    for fn in (dist.Laplace(torch.zeros(2, 3), 1.0).to_event(2), dist.Laplace(torch.zeros(2, 3), 1.0)):
        model = BayesianModel(linear, prior=fn, likelihood=likelihoods.Normal(scale=0.5))
        assert model.weight_priors()["weight"].event_shape == (2, 3)


def test_with_a_laplace_prior_everything_works():
    torch.manual_seed(0)
    x, y = torch.randn(20, 3), torch.randn(20)
    model = build(dist.Laplace(0.0, 1.0))
    guide = AutoHypernet(model, example=(x, y))
    assert "conditional=None" in repr(guide)  # not Gaussian: it says so
    start_from(guide, net())
    fit(model, guide, (x, y), steps=20, progress=False)
    assert predict(copy.deepcopy(model), guide, x, 7).mean.shape == (20,)
    chain = MCMC(NUTS(model), num_samples=3, warmup_steps=2, disable_progbar=True)
    chain.run(x, y)
    assert predict(model, chain.get_samples(), x).draws.shape == (3, 20)


def scale_mixture():
    return dist.MixtureSameFamily(
        dist.Categorical(torch.tensor([0.3, 0.7])), dist.Normal(torch.zeros(2), torch.tensor([0.1, 1.0]))
    )


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("make", [AutoHypernet, AutoHypernetNormal, AutoHypernetDelta])
def test_a_scale_mixture_is_a_prior_over_the_reals(make, flat):
    """Guides ended in ``NotImplementedError: Cannot transform MixtureSameFamilyConstraint constraints``."""
    torch.manual_seed(0)
    x, y = torch.randn(20, 3), torch.randn(20)
    model = build(scale_mixture(), flat=flat)
    for name, prior in model.weight_priors().items():
        w = torch.randn(prior.event_shape)
        expected = torch.stack([p * dist.Normal(0.0, s).log_prob(w).exp() for p, s in [(0.3, 0.1), (0.7, 1.0)]]).sum(0)
        torch.testing.assert_close(prior.log_prob(w), expected.log().sum(), rtol=1e-4, atol=1e-4)
        assert name in model.latent_shapes
    guide = make(model, example=(x, y))
    fit(model, guide, (x, y), steps=3, progress=False)
    trace = poutine.trace(model).get_trace(x, y)
    assert all(site.transform is None for site in latent_sites(trace))  # the identity, as for a Normal
    assert predict(model, guide, x, 3).mean.shape == (20,)


def test_a_mixture_of_positive_components_is_positive():
    fn = dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Gamma(torch.ones(2), torch.tensor([1.0, 5.0])))
    x, y = torch.randn(20, 3), torch.randn(20)
    draws = AutoHypernet(build(fn), example=(x, y))(x, y)
    assert all(bool((draws[name] > 0).all()) for name in ("0.weight", "2.bias"))


def test_a_positive_prior_is_allowed():
    assert all(bool((fn.sample() > 0).all()) for fn in build(dist.Gamma(2.0, 2.0)).weight_priors().values())


NO_PRIORS = [
    (wrapped, "is a HPerturbWrapper, a module, which has no density; a prior is one of bayeshnet.priors"),
    (lambda: HMLP([[21]], verbose=False), "is a HMLP, a module"),
    (lambda: dist.Laplace, r"is the class Laplace; pass Laplace\(...\), an instance"),
    (lambda: priors.Normal, r"is the class Normal; pass Normal\(\)"),
    (lambda: "fan_in", r"is a str \(priors.Normal\(scale='fan_in'\) may be meant\)"),
    (lambda: 0.5, r"is a float \(priors.Normal\(scale=0.5\)"),
    (lambda: {"*": 1.0}, "is a dict"),
    (lambda: [dist.Normal(0.0, 1.0)], "is a list; a prior is"),
    (lambda: torch.distributions.Normal(0.0, 1.0), "is a Normal of torch.distributions, which is no sample site"),
    (lambda: lambda: None, r"the function takes \(\), but is called as prior\(name, record, like=tensor\)"),
    (lambda: lambda name, record, more: None, "missing a required argument: 'more'"),
    (lambda: lambda name, shape: None, "gives a NoneType for parameter '0.weight'; it has to return a distribution"),
    (lambda: lambda n, r, *, like: None, "gives a NoneType for parameter '0.weight'; it has to return a distribution"),
    (lambda: lambda n, r, *, like: torch.zeros(r.shape), "gives a Tensor for parameter '0.weight'"),
    (
        lambda: lambda n, r, *, like: dist.Normal(torch.zeros(r.shape).double(), 1.0).to_event(len(r.shape)),
        "parameter '0.weight' has numbers of torch.float64, the network's weights have torch.float32",
    ),
    (
        lambda: (
            lambda n, r, *, like: torch.distributions.Independent(
                torch.distributions.Normal(torch.zeros(r.shape), 1.0), len(r.shape)
            )
        ),
        "gives parameter '0.weight' an Independent of torch.distributions",
    ),
]


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(("make", "match"), NO_PRIORS)
def test_what_is_no_prior_is_told_what_one_is(make, match, flat):
    with pytest.raises(ArgumentTypeError, match=f"^prior: .*{match}"):
        build(make(), flat=flat)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (
            lambda: dist.MultivariateNormal(torch.zeros(3), torch.eye(3)),
            "neither those of one number nor those of para",
        ),
        (lambda: dist.Bernoulli(0.5), "is discrete"),
        (lambda: dist.Delta(torch.tensor(0.0)), "'0.weight' is a Delta, a point that has no density; freeze"),
        (
            lambda: lambda n, r, *, like: dist.Delta(like.new_zeros(r.shape), event_dim=len(r.shape)),
            "'0.weight' is a Delta",
        ),
        (lambda: dist.Delta(torch.tensor(0.0)).mask(True), "is made of a Delta"),
        (
            lambda: dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Delta(torch.zeros(2))),
            "is made of a Delta",
        ),
        (lambda: lambda n, r, *, like: dist.Poisson(torch.ones(r.shape)).to_event(len(r.shape)), "is discrete"),
        (lambda: lambda n, r, *, like: dist.Normal(0.0, 1.0), r"batch shape \(\) and event shape \(\); expected"),
        (lambda: dist.Laplace(0.0, torch.tensor(1e300, dtype=torch.float64)), "which is inf in torch.float32"),
        (lambda: dist.Normal(0.0, torch.tensor(1e-60, dtype=torch.float64)), "has 1e-60, which is 0 in torch.float32"),
        (lambda: dist.Laplace(math.inf, 1.0), "its loc is inf"),
    ],
)
def test_distributions_that_cannot_be_a_prior(make, match):
    with pytest.raises(ArgumentError, match=f"^prior: .*({match})"):
        build(make())


@pytest.mark.filterwarnings("ignore::bayeshnet.errors.SearchWarning")
def test_a_hypernetwork_as_a_prior_as_the_documentation_has_it():
    """The message gave ``batched_forward(net, w, x)``, which takes no ``[D]``; the page's block is run here."""
    page = (Path(__file__).parents[2] / "docs" / "estimators.md").read_text(encoding="utf-8")
    (code,) = [b for b in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "pyro.sample" in b]
    torch.manual_seed(0)
    x = torch.linspace(-1.0, 1.0, 20).unsqueeze(1)
    y = torch.sin(3.0 * x).squeeze(1)
    space = {"nn": nn, "pyro": pyro, "dist": dist, "x": x, "y": y, "batched_forward": batched_forward}
    space |= {"HMLP": HMLP, "HPerturbWrapper": HPerturbWrapper, "AutoHypernet": AutoHypernet}
    space |= {"ImplicitWeights": ImplicitWeights, "ImportanceSampled": ImportanceSampled}
    exec(code, space)
    model, guide = space["model"], space["guide"]
    assert model(x).shape == (20,)
    fit(model, guide, (x, y), steps=3, num_particles=4, progress=False)  # it would warn if it were not vectorised
    for parallel in (False, True):
        assert Predictive(model, guide=guide, num_samples=5, parallel=parallel)(x)["obs"].shape == (5, 20)
    w = torch.randn(13)
    trace = poutine.trace(poutine.condition(model, {"weights": w})).get_trace(x, y)
    torch.testing.assert_close(trace.nodes["obs"]["fn"].loc, batched_forward(space["net"], w[None], x)[0, :, 0])


def test_an_error_inside_of_a_prior_function_is_its_own():
    with pytest.raises(ZeroDivisionError):
        build(lambda n, r, *, like: 1 / 0)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        # Before: Pyro's "Expected parameter loc ... to satisfy the constraint Real()", or an infinite loss.
        ({"loc": math.nan}, ArgumentError, "loc: is nan"),
        ({"loc": {"0.weight": math.inf}}, ArgumentError, r"loc\['0.weight'\]: is inf"),
        ({"loc": torch.tensor([math.nan])}, ArgumentError, "loc: has entries that are not finite"),
        ({"loc": 1e300}, ArgumentError, "loc: 1e\\+300 for parameter '0.weight' is out of the range of torch.float32"),
        ({"scale": 1e300}, ArgumentError, "scale: 1e\\+300 for .* out of the range"),
        ({"scale": 1e-60}, ArgumentError, "scale: 1e-60 for .* out of the range"),
        ({"scale": 1e-40}, ArgumentError, "scale: 1e-40 for .* out of the range"),  # its reciprocal is infinite
        ({"scale": torch.tensor(1e300, dtype=torch.float64)}, ArgumentError, "out of the range"),
        ({"scale": torch.tensor(True)}, ArgumentTypeError, "scale: is a tensor of torch.bool"),
        ({"loc": torch.tensor(1j)}, ArgumentTypeError, "loc: is a tensor of torch.complex64"),
        ({"loc": True}, ArgumentTypeError, "loc: is a bool"),
        ({"scale": {3: 1.0}}, ArgumentTypeError, "scale: has the key 3, an int"),
    ],
)
def test_numbers_of_a_normal_prior(options, error, match):
    with pytest.raises(error, match=match):
        build(priors.Normal(**options))


def test_numbers_out_of_the_range_of_float32_are_in_that_of_float64():
    model = BayesianModel(
        nn.Linear(3, 1).double(), prior=priors.Normal(scale=1e-60, loc=1e60), likelihood=likelihoods.Normal(scale=1.0)
    )
    assert float(model.weight_priors()["weight"].mean.max()) == 1e60


def test_a_mixture_of_gammas_is_a_prior_for_the_noise():
    """It was refused as "not restricted to positive numbers"."""
    gammas = dist.MixtureSameFamily(
        dist.Categorical(torch.ones(2)), dist.Gamma(torch.ones(2), torch.tensor([1.0, 5.0]))
    )
    model = BayesianModel(net(), likelihood=likelihoods.Normal(precision=gammas))
    x, y = torch.randn(20, 3), torch.randn(20)
    assert AutoHypernet(model, example=(x, y))(x, y)["likelihood.precision"].item() > 0
    with pytest.raises(ArgumentError, match="not restricted to positive"):
        likelihoods.Normal(precision=scale_mixture())
