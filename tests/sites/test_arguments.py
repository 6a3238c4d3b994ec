"""What is refused of the arguments of a model."""

from __future__ import annotations

import math
import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from bayeshnet import AutoHypernet, AutoHypernetDelta, AutoHypernetNormal, BayesianModel, likelihoods
from bayeshnet.errors import ArgumentError
from tests.problems import bnn

GUIDES = [AutoHypernet, AutoHypernetNormal, AutoHypernetDelta]
Y = torch.tensor([1.0, 2.0, 4.0])


def plain(x, y):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("obs", dist.Normal(slope * x, 1.0), obs=y)


def with_first(tensor, value):
    tensor = tensor.clone()
    tensor.view(-1)[0] = value
    return tensor


@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("guide", GUIDES)
def test_data_that_are_not_finite_are_refused_in_a_network(guide, value, validate):
    torch.manual_seed(0)  # one draw of the weights in 64 makes 0 of an infinite input in each of these units
    net = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 1))
    model, (x, y) = BayesianModel(net, likelihood=likelihoods.Normal(scale=0.1)), bnn()[1]
    kind = "NaN" if math.isnan(value) else "inf"
    with pyro.validation_enabled(validate):
        guide(model, example=(x, y))
        for example, match in (
            ((with_first(x, value), y), rf"{kind} in example\[0\] \(1 of 60 entries\)"),
            ((x, with_first(y, value)), rf"{kind} in example\[1\] \(1 of 30 entries\)"),
            ({"x": x, "y": with_first(y, value)}, rf"{kind} in example\['y'\] \(1 of 30 entries\)"),
        ):
            with pytest.raises(ArgumentError, match=rf"^example: .*from {match}"):
                guide(model, example=example)


@pytest.mark.parametrize("guide", GUIDES)
def test_data_that_are_not_finite_are_refused_in_a_plain_model(guide):
    for bad, kind, found in ((math.nan, "NaN", "NaN"), (math.inf, "inf", "infinite")):
        match = f"example: the log-probability of the observed site 'obs' is {found}, from {kind} in example[1]"
        with pytest.raises(ArgumentError, match=re.escape(match)):
            guide(plain, example=(Y, with_first(Y, bad)))
        # Data that are no arguments.
        data = with_first(Y, bad)
        match = f"from {kind} in the values observed at 'obs' (1 of 3 entries)"
        with pytest.raises(ArgumentError, match=re.escape(match)):
            guide(lambda data=data: plain(Y, data), example=())
    with pytest.raises(ArgumentError, match=r"Pyro says|is NaN, from NaN in example\[0\]"):
        guide(plain, example=(with_first(Y, math.nan), Y))
    with pytest.raises(ArgumentError, match=re.escape("NaN in example[0]['y'] (1 of 3 entries)")):
        guide(lambda data: plain(data["x"], data["y"]), example=({"x": Y, "y": with_first(Y, math.nan)},))

    def strict(y):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        pyro.sample("obs", dist.Normal(loc, 1.0, validate_args=True).expand([3]).to_event(1), obs=y)

    with pytest.raises(ArgumentError, match="the log-probability of the observed site 'obs' is NaN"):
        guide(strict, example=(with_first(Y, math.nan),))


def test_what_a_model_can_deal_with_is_accepted():
    def masked(y):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)), pyro.poutine.mask(mask=~y.isnan()):
            pyro.sample("obs", dist.Normal(loc, 1.0), obs=y)

    def bounded(y, bounds):
        high = pyro.sample("high", dist.Uniform(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("obs", dist.Uniform(bounds.min(), high, validate_args=False), obs=y)  # of density 0

    with pyro.validation_enabled(False):
        AutoHypernet(masked, example=(with_first(Y, math.nan),))
        guide = AutoHypernet(bounded, example=(Y, torch.tensor([0.0, math.inf])))
    assert "obs" not in guide.prototype_trace
    assert guide.sample_posterior(3)["high"].shape == (3,)
