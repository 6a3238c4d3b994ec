from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import autoguide
from torch import nn

from bayeshnet import (
    HMLP,
    MLP,
    AutoHypernet,
    AutoHypernetDelta,
    AutoHypernetNormal,
    BayesianModel,
    Posterior,
    entropy,
    families,
    fit,
    likelihoods,
    load,
    load_posterior,
    predict,
    priors,
    save,
)
from bayeshnet.configuration.configured import _KNOWN
from bayeshnet.errors import ArgumentError, ArgumentTypeError, CheckpointError, CheckpointWarning

ROOT = Path(__file__).parents[2]
X = torch.randn(30, 2, generator=torch.Generator().manual_seed(0))
Y = X[:, 0].sin()


def net(act=nn.Tanh, dtype=torch.float32, width=6, out=1):
    return nn.Sequential(nn.Linear(2, width), act(), nn.Linear(width, out)).to(dtype)


def model_of(network=None, prior=None, likelihood=None, **options):
    likelihood = likelihoods.Normal(scale=0.1) if likelihood is None else likelihood
    return BayesianModel(net() if network is None else network, prior, likelihood, **options)


def moved(*parts):
    """Another place than the start for all that is learned."""
    with torch.no_grad():
        for param in {id(p): p for part in parts for p in part.parameters()}.values():
            param.add_(0.05 * torch.randn_like(param))


def drawn(model, guide, x):
    torch.manual_seed(7)
    pred = predict(model, guide, x, num_samples=20)
    torch.manual_seed(8)
    return [pred.draws, pred.samples, torch.stack([value.sum() for value in guide.sample_posterior(3).values()])]


def check(tmp_path, model, guide, network, x=X, **given) -> Posterior:
    """Model and guide come back from the file, predict the same to the bit, and leave the random numbers alone."""
    moved(model, guide)
    save(tmp_path / "run", guide=guide)
    expected = drawn(model, guide, x)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    found = load_posterior(tmp_path / "run", network, **given)
    assert isinstance(found, Posterior)
    assert torch.equal(torch.get_rng_state(), before)
    # Why "auto" has chosen no conditional layer is not in the file, but that it has.
    assert repr(found.guide) == re.sub(r", conditional=None .*\)\)$", ")", repr(guide))
    assert repr(found.model) == repr(model) or " at 0x" in repr(model)
    for one, other in zip(drawn(*found, x), expected, strict=True):
        assert torch.equal(one, other)
    assert found.guide.original_model is found.model
    return found


SMALL = families.Hypernet(noise_dim=3, hidden_layers=[4])
GUIDES: dict[str, tuple[Any, dict[str, Any]]] = {
    "default": (AutoHypernet, {}),
    "hypernet": (AutoHypernet, {"family": SMALL, "conditional": None}),
    "wide": (AutoHypernet, {"conditional": None, "init_scale": 0.3, "whiten": False}),
    "independent": (AutoHypernet, {"family": families.Hypernet(noise="independent"), "conditional": None}),
    "estimator": (
        AutoHypernet,
        {"family": families.Hypernet(estimator=entropy.ChangeOfVariables(num_starts=3)), "conditional": None},
    ),
    "components": (AutoHypernet, {"family": families.Hypernet(num_components=2), "num_proposals": 3}),
    "all_layers": (AutoHypernet, {"conditional": "all", "num_inducing": 5}),
    "named_layers": (AutoHypernet, {"conditional": ["0", "2"], "num_inducing": 5}),
    "block_gaussian": (AutoHypernet, {"family": "block_gaussian"}),
    "two_blocks": (AutoHypernet, {"family": families.BlockGaussian(num_components=2), "conditional": None}),
    "mean_field": (AutoHypernet, {"family": "mean_field"}),
    "low_rank": (AutoHypernet, {"family": families.LowRank(3), "conditional": None}),
    "mixture": (AutoHypernet, {"family": families.Mixture("low_rank", 2)}),
    "mixed_mixtures": (AutoHypernet, {"family": families.Mixture(families.Mixture(), 2), "conditional": None}),
    "hypernets": (AutoHypernet, {"family": families.Mixture(SMALL, 2), "conditional": None}),
    "normal": (AutoHypernetNormal, {"std": "exp"}),
    "delta": (AutoHypernetDelta, {"whiten": False}),
}


@pytest.mark.parametrize("name", GUIDES)
def test_every_guide_comes_back(name, tmp_path):
    kind, options = GUIDES[name]
    prior = priors.Normal(scale="fan_in", learn="inputs")
    model = model_of(prior=prior, likelihood=likelihoods.Normal(scale=dist.Gamma(6.0, 6.0)), dataset_size=30)
    guide = kind(model, example=(X, Y), **options)
    if name == "default":
        guide.tempering_exponent.fill_(0.3)
    model_again, again = check(tmp_path, model, guide, net())
    if name != "independent":  # whose density is not exact, which a fit warns of
        assert len(fit(model_again, again, (X, Y), 2, num_particles=2, progress=False)) == 2


MODELS: dict[str, dict[str, Any]] = {
    "learned_noise": {"likelihood": likelihoods.Normal(scale=0.3, learn=True)},
    "noise_of_each": {"likelihood": likelihoods.Normal(scale=torch.tensor([0.3]))},
    "precision": {"likelihood": likelihoods.Normal(precision=dist.Gamma(2.0, 3.0).expand([1]).to_event(1))},
    "flat": {"flat": True, "prior": priors.Normal(2.0, loc={"*.bias": 1.0, "*": 0.0}, learn=True)},
    "laplace": {"prior": dist.Laplace(0.0, 0.5)},
    "by_name": {"prior": priors.Normal({"2.*": torch.tensor(0.5), "*": "fan_in"}, learn={"0.*": True, "*": False})},
    "column": {"target_shape": (1,)},
    "tempered": {"kl_weight": 0.5, "missing": "ignore"},
}


LIKELIHOODS: dict[str, tuple[Any, int]] = {
    "Bernoulli": (likelihoods.Bernoulli(), 1),
    "Beta": (likelihoods.Beta(dist.Gamma(6.0, 2.0)), 1),
    "Categorical": (likelihoods.Categorical(class_weights=[1.0, 2.0, 3.0], ignore_index=-100), 3),
    "CensoredNormal": (likelihoods.CensoredNormal(dist.Gamma(6.0, 6.0), upper=torch.tensor(3.0)), 1),
    "HeteroscedasticNormal": (likelihoods.HeteroscedasticNormal(), 2),
    "Laplace": (likelihoods.Laplace(0.5, learn=True), 1),
    "MultivariateNormal": (likelihoods.MultivariateNormal(torch.tensor([[1.0, 0.2], [0.2, 1.0]])), 2),
    "MultivariateNormal_inferred": (
        likelihoods.MultivariateNormal(scale=0.3, correlation=dist.LKJCholesky(2, torch.tensor(1.0))),
        2,
    ),
    "NegativeBinomial": (likelihoods.NegativeBinomial(0.5), 1),
    "Normal": (likelihoods.Normal(scale=0.3), 1),
    "NormalMixture": (likelihoods.NormalMixture(3), 9),
    "Ordinal": (likelihoods.Ordinal(torch.tensor([-1.0, 0.0, 1.0]), learn=True), 1),
    "Poisson": (likelihoods.Poisson(), 1),
    "StudentT": (likelihoods.StudentT(0.5, df=dist.Gamma(2.0, 0.1)), 1),
    "TruncatedNormal": (likelihoods.TruncatedNormal(0.5, lower=0.0, upper=4.0), 1),
}
BASES = {"FromFunction", "Likelihood", "ParametricLikelihood"}


def test_every_likelihood_of_the_package_is_tried():
    classes = {name for name in likelihoods.__all__ if isinstance(getattr(likelihoods, name), type)}
    assert {name.partition("_")[0] for name in LIKELIHOODS} == classes - BASES


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_every_likelihood_comes_back(name, tmp_path):
    likelihood, out = LIKELIHOODS[name]
    model = model_of(net(out=out), likelihood=likelihood)
    y = model(X).detach()
    check(tmp_path, model, AutoHypernet(model, example=(X, y), family="mean_field"), net(out=out))


@pytest.mark.parametrize("name", MODELS)
def test_every_model_comes_back(name, tmp_path):
    model = model_of(**MODELS[name])
    y = Y.unsqueeze(-1) if name == "column" else Y
    check(tmp_path, model, AutoHypernet(model, example=(X, y)), net())


def test_double_precision_and_moves(tmp_path):
    model = model_of(net(dtype=torch.float64))
    found = check(
        tmp_path, model, AutoHypernet(model, example=(X.double(), Y.double())), net(dtype=torch.float64), X.double()
    )
    assert found.guide.loc.dtype == torch.float64
    with pytest.raises(CheckpointError, match="model.dtype is float64 in the file and float32 here"):
        load_posterior(tmp_path / "run", net())
    model = model_of()
    guide = AutoHypernet(model, example=(X, Y))
    single = check(tmp_path, model, guide, net())
    for part in single:
        part.double().to("cpu")
    assert drawn(*single, X.double())[0].dtype == torch.float64
    save(tmp_path / "moved", **single._asdict())
    again = load_posterior(tmp_path / "moved", net(dtype=torch.float64))
    for one, other in zip(drawn(*single, X.double()), drawn(*again, X.double()), strict=True):
        assert torch.equal(one, other)


def test_frozen_parameters_and_statistics(tmp_path):
    def built(seed):
        torch.manual_seed(seed)
        made = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.LayerNorm(4), nn.Linear(4, 1))
        made[0].requires_grad_(False)
        return made

    model = model_of(built(0))
    check(tmp_path, model, AutoHypernet(model, example=(X, Y)), built(1))
    with pytest.raises(CheckpointError, match=r"module.0.frozen is \['bias', 'weight'\] in the file and \[\]"):
        load_posterior(tmp_path / "run", built(1).requires_grad_(True))


def test_a_main_network_of_the_package(tmp_path):
    def built(act=torch.tanh):
        return MLP(2, 1, (5,), activation_fn=act, verbose=False)

    model = model_of(built())
    check(tmp_path, model, AutoHypernet(model, example=(X, Y)), built())
    with pytest.raises(CheckpointError, match="model.net.activation_fn is tanh in the file and sin here"):
        load_posterior(tmp_path / "run", built(torch.sin))


@pytest.mark.parametrize("example", ["positional", "keywords", "labels", "weights", "embedded"])
def test_whatever_the_example_was(example, tmp_path):
    network, x = net(), X
    options: dict[str, Any] = {}
    if example == "labels":
        network, options["likelihood"] = net(out=3), likelihoods.Categorical()
    if example == "embedded":
        network, x = nn.Sequential(nn.Embedding(7, 3), nn.Flatten(), nn.Linear(6, 1)), torch.randint(7, (30, 2))
    model = model_of(copy.deepcopy(network), **options)
    y = torch.randint(3, (30,)) if example == "labels" else Y
    given = {
        "positional": (x, y),
        "keywords": {"x": x, "y": y},
        "weights": {"x": x, "y": y, "weight": torch.ones(30)},
    }.get(example, (x, y))
    check(tmp_path, model, AutoHypernet(model, example=given), network, x)


def test_units_and_statistics_of_batch_norm(tmp_path):
    x, y = 100.0 + 20.0 * X, 250_000.0 + 1e4 * Y

    def built():
        return nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 1))

    model = model_of(built(), standardize=(x, y), reference_rows=10)
    guide = AutoHypernet(model, example=(x, y), family="mean_field")
    found = check(tmp_path, model, guide, built(), x)
    assert float(predict(*found, x, num_samples=20).mean.mean()) == pytest.approx(250_000.0, rel=0.2)
    # Other data: the numbers come from the file; but not whether there are any.
    other = model_of(built(), standardize=(2.0 * x, y + 1.0), reference_rows=10)
    load(tmp_path / "run", model=other)
    assert torch.equal(other.units.target_scale, model.units.target_scale)
    with pytest.raises(CheckpointError, match="model.standardize is Standardization.* in the file and None here"):
        load(tmp_path / "run", model=model_of(built(), reference_rows=10))
    with pytest.raises(CheckpointError, match="model.reference_rows is 10 in the file and 256 here"):
        load(tmp_path / "run", model=model_of(built(), standardize=(x, y)))


# ---------------------------------------------------------------------- what is the user's own


def own_prior(name, record, *, like):
    return dist.Normal(like.new_zeros(record.shape), 2.0).to_event(len(record.shape))


class Wide(priors.Prior):
    def distribution(self, name, record, *, like):
        return own_prior(name, record, like=like)


class Thick(likelihoods.Likelihood):
    def __init__(self, df=3.0):
        super().__init__()
        self.df = df

    def conditional(self, f, params, *, batch_dims):
        return dist.StudentT(self.df, f, 1.0).to_event(f.dim() - batch_dims)


class Diagonal(families.Family):
    def init_parameters(self, start):
        self.loc = nn.Parameter(start.mean())

    def distribution(self, loc=None, scale=None):
        std = torch.full_like(self.loc, 0.1)
        return dist.Normal(*families.placed(self.loc, std, loc, scale)).to_event(1)


def noisy(shapes, act=nn.Tanh):
    return HMLP(shapes, uncond_in_size=4, cond_in_size=0, layers=(5,), activation_fn=act(), verbose=False)


def quiet(shapes):
    return HMLP(shapes, cond_in_size=2, layers=(5,), verbose=False)


OWN: dict[str, tuple[dict[str, Any], Any, dict[str, Any], dict[str, Any]]] = {
    "prior_function": ({"prior": own_prior}, AutoHypernet, {}, {"prior": own_prior}),
    "prior_class": ({"prior": Wide()}, AutoHypernet, {}, {"prior": Wide()}),
    "likelihood_class": ({"likelihood": Thick()}, AutoHypernet, {}, {"likelihood": Thick()}),
    "family_class": ({}, AutoHypernet, {"family": Diagonal()}, {"family": Diagonal()}),
    "family_of_a_generator": ({}, AutoHypernet, {"hnet": noisy}, {"family": families.Hypernet(noisy)}),
    "mixture_of_generators": (
        {},
        AutoHypernet,
        {"family": families.Mixture(families.Hypernet(noisy), 2), "conditional": None},
        {"family": families.Mixture(families.Hypernet(noisy), 2)},
    ),
    "hnet": ({}, AutoHypernet, {"hnet": noisy}, {"hnet": noisy}),
    "hnet_of_normal": ({}, AutoHypernetNormal, {"hnet": quiet}, {"hnet": quiet}),
    "hnet_of_delta": ({}, AutoHypernetDelta, {"hnet": quiet}, {"hnet": quiet}),
}


@pytest.mark.parametrize("name", OWN)
def test_what_is_the_users_own_has_to_be_passed(name, tmp_path):
    of_model, kind, of_guide, given = OWN[name]
    model = model_of(**of_model)
    guide = kind(model, example=(X, Y), **of_guide)
    moved(model, guide)
    save(tmp_path / "run", model=model, guide=guide)
    argument = "hnet" if name.startswith("hnet_of") else next(iter(given)) if name != "hnet" else "family"
    with pytest.raises(CheckpointError, match=f"^{argument}: that of the .* cannot be made .*net, {argument}=...\\)"):
        load_posterior(tmp_path / "run", net())
    check(tmp_path, model, guide, net(), **given)


def test_what_is_passed_has_to_be_what_was_saved(tmp_path):
    model = model_of(likelihood=Thick(3.0))
    save(tmp_path / "run", guide=AutoHypernet(model, example=(X, Y), hnet=noisy))
    own = {"likelihood": Thick(3.0), "hnet": noisy}

    def refused(text, network=None, **given):
        with pytest.raises(CheckpointError, match=text):
            load_posterior(tmp_path / "run", net() if network is None else network, **{**own, **given})

    refused("model.likelihood.df is 3.0 in the file and 4.0 here", likelihood=Thick(4.0))
    refused("model.likelihood is Thick.* in the file and Normal", likelihood=likelihoods.Normal(scale=1.0))
    refused("model.prior.scale is 'fan_in' in the file and 3.0 here", prior=priors.Normal(3.0))
    refused("model.net.module.1 is Tanh in the file and ReLU here", net(nn.ReLU))
    refused("model.net.module.0.out_features is 6 in the file and 7 here", net(width=7))
    refused("activation_fn is Tanh in the file and ReLU here", hnet=lambda shapes: noisy(shapes, nn.ReLU))
    load_posterior(tmp_path / "run", net(), **own)


def test_load_refuses_the_same(tmp_path):
    """Before, all of these loaded without a word."""
    model = model_of(prior=priors.Normal(1.0))
    guide = AutoHypernet(model, example=(X, Y), hnet=noisy)
    save(tmp_path / "run", model=model, guide=guide)

    def refused(text, fits=True, **options):
        other = model_of(**{"prior": priors.Normal(1.0), **options})
        with pytest.raises(CheckpointError, match=text):
            load(tmp_path / "run", model=other)
        if fits:
            with pytest.warns(CheckpointWarning, match=text):
                load(tmp_path / "run", strict=False, model=other)

    refused("model.net.module.1 is Tanh in the file and ReLU here", network=net(nn.ReLU))
    refused("model.prior.scale is 1.0 in the file and 3.0 here", prior=priors.Normal(3.0))
    refused("model.likelihood.scale is 0.1 in the file and 0.2 here", likelihood=likelihoods.Normal(scale=0.2))
    refused("model.likelihood is Normal", fits=False, likelihood=Thick())
    refused("model.target_shape is None in the file", target_shape=(1,))
    before = copy.deepcopy(guide.state_dict())
    other = AutoHypernet(model, example=(X, Y), hnet=lambda shapes: noisy(shapes, nn.ELU))
    with pytest.raises(CheckpointError, match="guide.family.*activation_fn is Tanh in the file and ELU here"):
        load(tmp_path / "run", guide=other)
    save(tmp_path / "other", guide=AutoHypernet(model, example=(X, Y), num_proposals=2))
    with pytest.raises(CheckpointError, match="guide.num_proposals is 2 in the file and 3 here"):
        load(tmp_path / "other", guide=AutoHypernet(model, example=(X, Y), num_proposals=3))
    assert all(torch.equal(value, before[key]) for key, value in guide.state_dict().items())


def test_code_that_has_changed_is_warned_of(tmp_path):
    def with_prior(text):
        found = {"__name__": "mine", "dist": dist}
        exec(
            "def f(name, record, *, like):\n"
            f"    return dist.Normal(like.new_zeros(record.shape), {text}).to_event(len(record.shape))",
            found,
        )
        return found["f"]

    save(tmp_path / "run", model=model_of(prior=with_prior("1.0")))
    load(tmp_path / "run", model=model_of(prior=with_prior("1.0")))
    with pytest.warns(CheckpointWarning, match="the code of model.prior is .* may not give the same results here"):
        load(tmp_path / "run", model=model_of(prior=with_prior("3.0")))


# ---------------------------------------------------------------------- what cannot be


def test_files_that_hold_no_guide_or_one_that_is_not_known(tmp_path):
    model = model_of()

    def refused(text, **modules):
        save(tmp_path / "run", **modules)
        with pytest.raises(CheckpointError, match=text):
            load_posterior(tmp_path / "run", net())

    guide = AutoHypernet(model, example=(X, Y))
    refused("holds no guide of this package.*use load", model=model)
    refused("holds several guides of this package", one=guide, two=AutoHypernetDelta(model, example=(X, Y)))
    theirs = autoguide.AutoNormal(model)
    theirs(X, Y)
    refused("holds no guide of this package: .*AutoNormal", guide=theirs)
    blocked = AutoHypernet(poutine.block(model, hide=["2.bias"]), example=(X, Y), conditional=None)
    refused("guide: was not built for a BayesianModel itself", guide=blocked)

    class Mine(AutoHypernet):
        pass

    refused("guide: is of the class Mine, which is not one of this package", guide=Mine(model, example=(X, Y)))

    class MyModel(BayesianModel):
        pass

    mine = MyModel(net(), likelihood=likelihoods.Normal(scale=0.1))
    refused("model: is of the class MyModel", guide=AutoHypernet(mine, example=(X, Y)))
    save(tmp_path / "run", guide=guide)
    with pytest.raises(ArgumentTypeError, match="net: is a dict"):
        load_posterior(tmp_path / "run", {})
    with pytest.raises(ArgumentError, match="family, hnet: both were given"):
        load_posterior(tmp_path / "run", net(), family="low_rank", hnet=noisy)
    with pytest.raises(FileNotFoundError):
        load_posterior(tmp_path / "nothing", net())
    with pytest.raises(CheckpointError, match="model: cannot be built from .* this network .*no param"):
        load_posterior(tmp_path / "run", nn.Tanh())


# ---------------------------------------------------------------------- a fresh process

FRESH = """
import torch
from torch import nn
from bayeshnet import load_posterior, predict
torch.set_num_threads(1)
model, guide = load_posterior({path!r}, nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1)))
torch.manual_seed(7)
pred = predict(model, guide, torch.load({x!r}), num_samples=20)
torch.save((pred.draws, pred.samples), {out!r})
"""


@pytest.mark.slow
def test_a_fresh_process_predicts_the_same_to_the_bit(tmp_path):
    model = model_of(
        likelihood=likelihoods.Normal(scale=dist.Gamma(6.0, 6.0)), prior=priors.Normal("fan_in", learn=True)
    )
    guide = AutoHypernet(model, example=(X, Y))
    fit(model, guide, (X, Y), 20, progress=False)
    save(tmp_path / "run", guide=guide)
    draws, samples, _ = drawn(model, guide, X)
    names = {key: str(tmp_path / key) for key in ("x", "out")}
    torch.save(X, names["x"])
    code = FRESH.format(path=str(tmp_path / "run"), **names)
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    found = torch.load(names["out"])
    assert torch.equal(found[0], draws)
    assert torch.equal(found[1], samples)


def test_the_classes_that_can_be_made_are_known():
    for kind, room in (("family", families), ("prior", priors), ("likelihood", likelihoods), ("estimator", entropy)):
        for name in room.__all__:
            cls = getattr(room, name)
            if isinstance(cls, type) and getattr(cls, "configured_as", None) == kind:
                assert _KNOWN[kind, name] is cls
    assert json.dumps(sorted(map(str, _KNOWN)))
