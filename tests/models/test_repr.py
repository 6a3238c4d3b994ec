"""What a person sees of a model, its prior and its likelihood."""

from __future__ import annotations

import itertools

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from bayeshnet import BayesianModel, likelihoods, priors
from bayeshnet.mnets import MLP


def network(*sizes):
    pairs = itertools.pairwise(sizes)
    return nn.Sequential(*(part for i, o in pairs for part in (nn.Linear(i, o), nn.Tanh())))


NORMAL = likelihoods.Normal


@pytest.mark.parametrize(
    ("likelihood", "printed"),
    [
        (lambda: NORMAL(scale=0.1), "Normal(scale=0.1)"),
        (lambda: NORMAL(precision=4.0), "Normal(scale=0.5)"),
        (lambda: NORMAL(scale=torch.tensor([0.1, 0.25]), learn=True), "Normal(scale=learned, now [0.1, 0.25])"),
        (lambda: NORMAL(scale=torch.linspace(1.0, 3.0, 20)), "Normal(scale=f32[20] of 1..3)"),
        (lambda: NORMAL(scale=dist.Gamma(6.0, 0.1)), "Normal(scale~Gamma(6, 0.1))"),
        (likelihoods.Categorical, "Categorical()"),
        (lambda: likelihoods.Categorical(class_dim=1), "Categorical(class_dim=1)"),
    ],
)
def test_likelihoods(likelihood, printed):
    """A scale of 0.1 was printed as 0.09999999403953552."""
    assert repr(likelihood()) == printed


@pytest.mark.parametrize(
    ("prior", "printed"),
    [
        (priors.Normal(), "Normal(scale=1)"),
        (priors.Normal(scale="fan_in", loc=0.5), "Normal(scale='fan_in', loc=0.5)"),
        (priors.Normal(scale={"*.weight": "fan_in", "*": 0.1}), "Normal(scale={'*.weight': 'fan_in', '*': 0.1})"),
        (priors.Normal(scale=torch.ones(3, 5), learn="inputs"), "Normal(scale=f32[3,5], learn='inputs')"),
    ],
)
def test_priors(prior, printed):
    assert repr(prior) == printed


def test_a_model_says_what_it_is_made_of():
    model = BayesianModel(network(3, 4, 1), likelihood=NORMAL(scale=0.1), dataset_size=500)
    assert repr(model).splitlines() == [
        "BayesianModel(",
        "  net: Sequential(Linear, Tanh, Linear, Tanh), 21 weights in 4 tensors",
        "  prior: Normal(scale='fan_in')",
        "  likelihood: Normal(scale=0.1)",
        "  dataset_size=500",
        ")",
    ]


def test_other_networks_and_priors():
    def mine(name, record, *, like):
        return dist.Normal(like.new_zeros(record.shape), 1.0).to_event(len(record.shape))

    net = MLP(3, 1, (4,), verbose=False)
    assert "net: MLP, 21 weights in 4 tensors\n  prior: mine\n" in repr(BayesianModel(net, mine, NORMAL(scale=0.1)))
    net.internal_params[0].requires_grad_(False)
    text = repr(BayesianModel(net, dist.Laplace(0.0, 0.1), NORMAL(scale=0.1), flat=True))
    assert "net: MLP, 9 weights in 3 tensors, flat\n  prior: Laplace(0, 0.1)\n" in text
    assert "frozen=['0.weight']" in text


def test_long_lists_are_cut_short():
    net = network(*[2] * 12)
    for part in net[:16]:
        part.requires_grad_(False)
    lines = repr(BayesianModel(net, likelihood=NORMAL(scale=0.1))).splitlines()
    assert all(len(line) < 120 for line in lines)
    assert "..., Tanh), 18 weights" in lines[1]
    assert lines[-2].endswith(" and 10 more")
