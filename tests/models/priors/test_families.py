"""Densities and moments of the families, learned scales, rules, centres, checkpoints."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from torch import nn

from bayeshnet import AutoHypernet, BayesianModel, fit, likelihoods, load, load_posterior, priors, save
from bayeshnet.errors import ArgumentError, ArgumentTypeError, UsageError
from bayeshnet.mnets.param_table import ParamRecord

LIKE = torch.zeros((), dtype=torch.float64)
WEIGHT = ParamRecord((6, 4), "weight", 0)
FILTERS = ParamRecord((3, 2, 3, 3), "weight", 0)
NOISE = likelihoods.Normal(scale=0.3)


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))


def mixture(w):
    return np.log(0.25 * scipy.stats.norm.pdf(w, 0.3, 2.0 * 1.5) + 0.75 * scipy.stats.norm.pdf(w, 0.3, 2.0 * 0.2))


FAMILIES = {
    "normal": (priors.Normal(2.0, loc=0.3), lambda w: scipy.stats.norm.logpdf(w, 0.3, 2.0)),
    "laplace": (priors.Laplace(2.0, loc=0.3), lambda w: scipy.stats.laplace.logpdf(w, 0.3, 2.0)),
    "student_t": (priors.StudentT(2.0, df=5.0, loc=0.3), lambda w: scipy.stats.t.logpdf(w, 5.0, 0.3, 2.0)),
    "mixture": (priors.ScaleMixture((1.5, 0.2), probs=(0.25, 0.75), scale=2.0, loc=0.3), mixture),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_density_and_moments(name):
    torch.manual_seed(0)
    prior, log_pdf = FAMILIES[name]
    fn = prior.distribution("0.weight", WEIGHT, like=LIKE)
    w = 3.0 * torch.randn(5, 6, 4, dtype=torch.float64)
    np.testing.assert_allclose(fn.log_prob(w), log_pdf(w.numpy()).sum((-1, -2)), rtol=1e-10)
    assert fn.batch_shape == ()
    assert fn.expand((5, 1)).log_prob(w.unsqueeze(1)).shape == (5, 1)
    draws = fn.sample((20_000,))
    n = draws.numel()
    error = float(fn.stddev.flatten()[0]) / math.sqrt(n)
    assert abs(float(draws.mean()) - 0.3) < 4 * error
    kurtosis = float(scipy.stats.kurtosis(draws.numpy(), axis=None, fisher=False))
    relative = math.sqrt((kurtosis - 1.0) / n)
    assert abs(float(draws.var() / fn.variance.flatten()[0]) - 1.0) < 4 * relative


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("rule", "variance"), [("fan_in", 1 / 4), ("xavier", 2 / 10), ("kaiming", 2 / 4)])
def test_rules_give_the_standard_deviation(name, rule, variance):
    prior = copy.copy(FAMILIES[name][0])
    prior.scale = rule
    fn = prior.distribution("0.weight", WEIGHT, like=LIKE)
    torch.testing.assert_close(fn.variance, torch.full((6, 4), variance, dtype=torch.float64))


def test_correlated_filters():
    torch.manual_seed(0)
    prior = priors.CorrelatedFilters(0.5, length_scale=1.5, loc=0.2)
    fn = prior.distribution("0.weight", FILTERS, like=LIKE)
    places = np.array([(i, j) for i in range(3) for j in range(3)], dtype=float)
    covariance = 0.25 * np.exp(-np.linalg.norm(places[:, None] - places[None], axis=-1) / 1.5)
    exact = scipy.stats.multivariate_normal(np.full(9, 0.2), covariance)
    w = fn.sample((4000,))
    np.testing.assert_allclose(fn.log_prob(w[:7]), exact.logpdf(w[:7].reshape(7, 6, 9)).sum(-1), rtol=1e-9)
    rows = w.reshape(-1, 9).numpy()
    assert np.abs(np.cov(rows.T) - covariance).max() < 5 * 0.25 * math.sqrt(2 / len(rows))
    channels = np.corrcoef(w[:, :, :, 1, 1].reshape(4000, 6).numpy().T) - np.eye(6)
    assert np.abs(channels).max() < 5 / math.sqrt(4000)
    other = prior.distribution("1.weight", WEIGHT, like=LIKE)
    torch.testing.assert_close(other.variance, torch.full((6, 4), 0.25, dtype=torch.float64))
    for kernel in ((5,), (2, 2, 2)):
        fn = prior.distribution("0.weight", ParamRecord((3, 2, *kernel), "weight", 0), like=LIKE)
        assert fn.log_prob(fn.sample((2,))).shape == (2,)


def test_a_function_of_name_and_shape():
    def prior(name, shape):
        return dist.Laplace(0.0, 2.0) if "weight" in name else dist.Normal(torch.zeros(shape), 1.0).to_event(len(shape))

    made = BayesianModel(net(), prior, NOISE).weight_priors()
    w = torch.randn(4, 2)
    expected = scipy.stats.laplace.logpdf(w.numpy(), 0.0, 2.0).sum()
    assert float(made["0.weight"].log_prob(w)) == pytest.approx(expected, rel=1e-5)
    assert made["0.bias"].event_shape == (4,)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("cls", [priors.Normal, priors.Laplace, priors.StudentT])
def test_centred_on_a_network(cls, flat):
    given = net()
    by_name = cls("fan_in", loc="net")
    for prior in (by_name, cls.centred_on(given, scale="fan_in")):
        model = BayesianModel(given, prior, NOISE, flat=flat)
        means = torch.cat([fn.mean.reshape(-1) for fn in model.weight_priors().values()])
        torch.testing.assert_close(means, torch.cat([p.detach().reshape(-1) for p in given.parameters()]))
    assert by_name.loc == "net"  # the same prior serves another network
    with pytest.raises(UsageError, match="'net' is the network that a model is built from"):
        by_name.distribution("0.weight", WEIGHT, like=LIKE)
    with pytest.raises(ArgumentError, match="has no parameter '2.weight'"):
        BayesianModel(given, cls(loc=nn.Sequential(nn.Linear(2, 4))), NOISE)


@pytest.mark.parametrize("flat", [False, True])
def test_flat_has_the_same_density(flat):
    w = {name: torch.randn(3, *p.shape) for name, p in net().named_parameters()}
    for prior in (priors.Laplace("fan_in"), priors.StudentT(df=3.0), priors.ScaleMixture()):
        model = BayesianModel(net(), prior, NOISE, flat=flat)
        single = BayesianModel(net(), prior, NOISE).weight_priors()
        expected = sum(single[name].log_prob(value) for name, value in w.items())
        made = model.weight_priors()
        vector = torch.cat([value.flatten(1) for value in w.values()], 1)
        found = made["weights"].log_prob(vector) if flat else sum(made[k].log_prob(v) for k, v in w.items())
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("prior", [priors.Laplace(1.0, learn=True), priors.StudentT(1.0, df=8.0, learn=True)])
def test_learned_scale_is_recovered(prior):
    """Means of 300 weights, each observed with little noise: the marginal likelihood is that of the weights."""
    torch.manual_seed(1)
    truth = prior.distribution("weight", ParamRecord((1, 300), "weight", 0), like=torch.zeros(()))
    w = 3.0 * truth.sample().reshape(300)
    model = BayesianModel(nn.Linear(300, 1, bias=False), prior, likelihoods.Normal(scale=0.05))
    names, x = list(model.latent_shapes), torch.eye(300)
    optimiser = torch.optim.Adam(model.learned_scales.parameters(), lr=0.05)
    for _ in range(200):
        optimiser.zero_grad()
        (-model.weight_priors()[names[0]].log_prob(w.reshape(1, 300))).backward()
        optimiser.step()
    fitted = float(model.scale_factors["weight"])
    if isinstance(prior, priors.Laplace):
        assert fitted == pytest.approx(float(w.abs().mean()), rel=1e-3)  # the maximum of the likelihood
    assert abs(fitted / 3.0 - 1.0) < 4 / math.sqrt(300)
    assert model(x).shape == (300,)


EVERY = {
    "laplace": lambda: priors.Laplace("kaiming", learn=True),
    "student_t": lambda: priors.StudentT(0.5, df=3.0),
    "mixture": lambda: priors.ScaleMixture((1.0, 0.3, 0.1)),
    "filters": lambda: priors.CorrelatedFilters("fan_in"),
    "hierarchical": lambda: priors.Hierarchical(dist.HalfCauchy(0.5), by="unit", base=priors.Laplace("xavier")),
    "horseshoe": lambda: priors.Horseshoe(0.3, slab=(4.0, 2.0), others=priors.Normal(0.5)),
    "centred": lambda: priors.Normal("fan_in", loc="net"),
}


@pytest.mark.parametrize("name", EVERY)
def test_checkpoints_copies_and_pickles(name, tmp_path):
    torch.manual_seed(0)
    x = torch.randn(20, 2)
    data = x, x[:, 0]
    model = BayesianModel(net(), EVERY[name](), NOISE)
    guide = AutoHypernet(model, example=data)
    fit(model, guide, data, steps=3, progress=False)
    save(tmp_path / "fit.pt", model=model, guide=guide)
    posterior = load_posterior(tmp_path / "fit.pt", net=net())
    assert repr(posterior.model.prior) == repr(model.prior)
    for again in (posterior.model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        for (key, fn), other in zip(model.weight_priors().items(), again.weight_priors().values(), strict=True):
            w = torch.randn(2, *fn.event_shape)
            assert torch.equal(fn.log_prob(w), other.log_prob(w)), key
        assert again.latent_shapes == model.latent_shapes
    own = BayesianModel(net(), model.prior, NOISE)
    load(tmp_path / "fit.pt", model=own, guide=AutoHypernet(own, example=data))


def test_the_last_layer_is_conditional_where_its_prior_is_gaussian():
    data = torch.randn(20, 2), torch.randn(20)
    for prior, reason in (
        (priors.Laplace("fan_in"), "the layer's prior is not Gaussian with a known scale"),
        (priors.Hierarchical(by="layer"), "the prior has latents of its own, prior.0.scale, prior.2.scale"),
    ):
        guide = AutoHypernet(BayesianModel(net(), prior, NOISE), example=data)
        assert guide.inducing is None
        assert reason in repr(guide)
    mixed = priors.Hierarchical(by="layer", where="0.*")
    with pytest.raises(ArgumentError, match="conditional: 'last' is not possible here.*latents of its own"):
        AutoHypernet(BayesianModel(net(), mixed, NOISE), example=data, conditional="last")


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: priors.Laplace(-1.0), ArgumentError, "scale: is -1.0"),
        (lambda: priors.Laplace("fan"), ArgumentError, "rules known by name are 'fan_in', 'xavier', 'kaiming'"),
        (lambda: priors.StudentT(df=0.0), ArgumentError, "df: is 0"),
        (lambda: priors.ScaleMixture((1.0,)), ArgumentError, "scales: is .*; pass two or more"),
        (lambda: priors.ScaleMixture((1.0, 2.0), probs=(0.5, 0.6)), ArgumentError, "probs: sum to 1.1"),
        (lambda: priors.ScaleMixture((1.0, 2.0), probs=(1.0,)), ArgumentError, "probs: are 1 for 2 scales"),
        (lambda: priors.ScaleMixture(3.0), ArgumentTypeError, "scales: is a float"),
        (lambda: priors.CorrelatedFilters(length_scale=-1.0), ArgumentError, "length_scale"),
        (lambda: priors.Hierarchical(1.0), ArgumentTypeError, "scale: is a float; pass a distribution"),
        (lambda: priors.Hierarchical(dist.Normal(0.0, 1.0)), ArgumentError, "scale"),
        (lambda: priors.Hierarchical(by="row"), ArgumentError, "by: is 'row'"),
        (lambda: priors.Hierarchical(base=dist.Normal(0.0, 1.0)), ArgumentTypeError, "base: is a Normal"),
        (lambda: priors.Hierarchical(base=priors.Normal(learn=True)), ArgumentError, "base: has learn="),
        (lambda: priors.Horseshoe(0.0), ArgumentError, "scale"),
        (lambda: priors.Horseshoe(by="tensor"), ArgumentError, "by: is 'tensor'"),
        (lambda: priors.Horseshoe(slab=3.0), ArgumentTypeError, "slab: is 3.0"),
        (lambda: BayesianModel(net(), priors.Horseshoe(where="x.*"), NOISE), ArgumentError, "where: .*fits none"),
    ],
)
def test_wrong_arguments(make, error, match):
    with pytest.raises(error, match=match):
        make()
