"""Scales that are found for functions of a range and length scale."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from bayeshnet import BayesianModel, likelihoods, priors
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.evaluation import prior_predictive
from bayeshnet.models import Standardization

LINE = torch.linspace(-2, 2, 40)[:, None]


def mlp(act, d=1, width=20):
    return nn.Sequential(nn.Linear(d, width), act(), nn.Linear(width, 1))


def inputs(d):
    return LINE if d == 1 else torch.randn(100, d, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(
    ("act", "d", "length"), [(nn.Tanh, 1, 0.5), (nn.Tanh, 3, 1.0), (nn.ReLU, 1, 2.0), (nn.ReLU, 3, 3.0)]
)
def test_std_and_length_scale_are_achieved(act, d, length):
    """By functions of a model with that prior, whose slopes are taken between neighbours."""
    net, x = mlp(act, d), inputs(d)
    found = priors.matching(net, x, std=2.0, length_scale=length, generator=torch.Generator().manual_seed(0))
    model = BayesianModel(net, found.prior, likelihoods.Normal(scale=0.1))
    u = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    near = x + 0.01 * u / u.norm(dim=1, keepdim=True)
    both = prior_predictive(model, torch.cat([x, near]), 3000, generator=torch.Generator().manual_seed(1)).draws
    f, g = both.double().chunk(2, dim=1)
    std = float(f.square().mean().sqrt())
    ell = 0.01 * float((f.square().mean() / (f - g).square().mean()).sqrt())
    # What is found has the Monte Carlo error of 1000 draws, and this that of 3000.
    assert abs(std - 2.0) < 4 * found.error["std"] * math.sqrt(1 + 1 / 3)
    assert abs(ell - length) < 4 * found.error["length_scale"] * math.sqrt(1 + 1 / 3)
    assert found.error["length_scale"] < 0.07 * length
    assert found.error["std"] < 0.07 * 2.0
    for name, wanted in (("std", 2.0), ("length_scale", length)):
        assert abs(found.achieved[name] - wanted) < 4 * math.sqrt(2) * found.error[name]


def test_a_range_in_units_of_the_data():
    x = 100.0 + 10.0 * LINE
    y = 500.0 + 50.0 * torch.randn(40, generator=torch.Generator().manual_seed(0))
    units = Standardization.of(x, y)
    net = mlp(nn.Tanh)
    found = priors.matching(
        net,
        x,
        output_range=(300.0, 600.0),
        standardize=units,
        length_scale=8.0,
        generator=torch.Generator().manual_seed(0),
    )
    model = BayesianModel(net, found.prior, likelihoods.Normal(scale=0.1), standardize=units)
    both = prior_predictive(model, torch.cat([x, x + 0.02]), 3000, generator=torch.Generator().manual_seed(1)).functions
    f, near = both.double().chunk(2, dim=1)
    inside = ((f > 300.0) & (f < 600.0)).double().mean(1)
    error = found.error["share in range"]
    assert abs(float(inside.mean()) - 0.9) < 4 * error * math.sqrt(1 + 1 / 3)
    assert abs(float(f.mean()) - 450.0) < 4 * 90.0 / math.sqrt(3000)
    slope = (near - f) / 0.02
    around = f - 450.0
    ell = float((around.square().mean() / slope.square().mean()).sqrt())
    assert abs(ell - 8.0) < 4 * found.error["length_scale"] * math.sqrt(1 + 1 / 3)


def test_a_spread_in_units_of_the_data_is_around_the_mean_of_the_targets():
    x = 1000.0 + 100.0 * LINE
    y = 100_000.0 + 2_000.0 * torch.randn(40, generator=torch.Generator().manual_seed(0))
    net = mlp(nn.Tanh)
    found, by_numbers, of_a_dict = (
        priors.matching(net, x, std=3000.0, standardize=units, generator=torch.Generator().manual_seed(0))
        for units in ((x, y), Standardization.of(x, y), Standardization.of({"input": x}, y))
    )
    assert found.prior.loc is None
    assert found.prior.scale == by_numbers.prior.scale == of_a_dict.prior.scale
    model = BayesianModel(net, found.prior, likelihoods.Normal(scale=0.1), standardize=(x, y))
    f = prior_predictive(model, x, 3000, generator=torch.Generator().manual_seed(1)).functions.double()
    f = f[:, torch.linspace(0, 39, 32).round().long()]  # the inputs that are looked at
    middle = float(y.double().mean())
    assert abs(float(f.mean()) - middle) < 4 * float(f.mean(1).std()) / math.sqrt(3000)
    assert abs(float((f - middle).square().mean().sqrt()) - 3000.0) < 4 * found.error["std"] * math.sqrt(1 + 1 / 3)


def test_the_same_for_the_same_seed():
    one, other = (
        priors.matching(mlp(nn.Tanh), LINE, std=1.0, num_draws=50, generator=torch.Generator().manual_seed(7))
        for _ in range(2)
    )
    assert one.prior.scale == other.prior.scale
    assert (one.achieved, one.error) == (other.achieved, other.error)
    net, before = mlp(nn.Tanh), torch.get_rng_state()
    priors.matching(net, LINE, std=1.0, num_draws=50, generator=torch.Generator().manual_seed(7))
    assert torch.equal(before, torch.get_rng_state())
    assert repr(one).startswith("MatchedPrior(std: wanted 1, achieved ")


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (
            lambda: priors.matching(mlp(nn.ReLU), LINE, std=1.0, length_scale=0.05),
            ArgumentError,
            "0.05 is not possible",
        ),
        (lambda: priors.matching(mlp(nn.ReLU), LINE), ArgumentError, "std, output_range: pass one"),
        (lambda: priors.matching(nn.Linear(1, 1), LINE, std=1.0), ArgumentError, "a first and another last layer"),
        (lambda: priors.matching(mlp(nn.ReLU), LINE, std=-1.0), ArgumentError, "std"),
        (lambda: priors.matching(mlp(nn.ReLU), LINE, output_range=(2.0, 1.0)), ArgumentError, "the smaller one first"),
        (lambda: priors.matching(mlp(nn.ReLU), [1.0], std=1.0), ArgumentTypeError, "x: is a list"),
        (
            lambda: priors.matching(mlp(nn.ReLU), LINE, std=1.0, standardize=Standardization.of((LINE, LINE), LINE)),
            ArgumentError,
            "for networks of one",
        ),
        (
            lambda: priors.matching(mlp(nn.ReLU), LINE, std=1.0, standardize=True),
            ArgumentTypeError,
            "standardize: is True",
        ),
        (
            lambda: priors.matching(nn.Sequential(*mlp(nn.ReLU), nn.Sigmoid()), LINE, std=2.0),
            ArgumentError,
            "not linear in its last layer",
        ),
    ],
)
def test_refused(make, error, match):
    torch.manual_seed(0)
    with pytest.raises(error, match=match):
        make()
