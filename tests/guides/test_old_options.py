"""Options and attributes of version 0.1: they work, and name the new ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bayeshnet import AutoHypernet, BayesianModel, families, likelihoods
from bayeshnet.errors import ArgumentError
from bayeshnet.hnets import HMLP
from bayeshnet.infer import Mixture as OldMixture


@pytest.fixture
def data():
    torch.manual_seed(0)
    x = torch.randn(12, 2)
    return x, x[:, 0]


@pytest.fixture
def model():
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
    return BayesianModel(net, likelihood=likelihoods.Normal(scale=0.1))


def old_mixture(*args, **kwargs):
    with pytest.warns(FutureWarning, match=r"families.Mixture\(of, num_components\)"):
        return OldMixture(*args, **kwargs)


CASES = {
    "units": (
        {"body": "units", "num_components": 2},
        {"family": families.BlockGaussian(2)},
        r"family=families.BlockGaussian\(num_components=2\)",
    ),
    "short form": ({"body": "low_rank"}, {"family": "low_rank"}, "family='low_rank'"),
    "mixture": (
        {"body": "mixture", "num_components": 3},
        {"family": families.Mixture(num_components=3)},
        r"use AutoHypernet\(family=families.Mixture\(MeanField\(\), 3\)\)",
    ),
    "components": (
        {"num_components": 2},
        {"family": families.Hypernet(num_components=2)},
        r"Hypernet\(num_components=2\)",
    ),
    "noise_dim": ({"noise_dim": 3}, {"family": families.Hypernet(noise_dim=3)}, r"families.Hypernet\(noise_dim=3\)"),
    "with hnet": (
        {"noise": "shared", "hnet": lambda shapes: HMLP(shapes, 3, 0, (4,), False)},
        {"family": families.Hypernet(lambda shapes: HMLP(shapes, 3, 0, (4,), False), noise="shared")},
        r"families.Hypernet\(hnet='<lambda>', noise='shared'\)",
    ),
    "candidates": ({"num_candidates": 3}, {"num_proposals": 3}, "num_proposals=3"),
}


@pytest.mark.parametrize("name", CASES)
def test_old_options_make_the_same_guide(name, model, data):
    old, new, message = CASES[name]
    torch.manual_seed(1)
    expected = AutoHypernet(model, example=data, **new)
    torch.manual_seed(1)
    with pytest.warns(FutureWarning, match=message) as caught:
        guide = AutoHypernet(model, example=data, **old)
    assert [warning.filename for warning in caught] == [__file__]
    assert repr(guide) == repr(expected)
    for key, value in expected.state_dict().items():
        assert torch.equal(guide.state_dict()[key], value), key


@pytest.mark.parametrize("of", ["units", "mean_field", "low_rank", "hypernet"])
def test_the_old_mixture(of, model, data):
    mixture = old_mixture(2, of=of)
    assert isinstance(mixture, families.Mixture)
    assert mixture.num_components == 2
    assert repr(old_mixture()) == "Mixture(MeanField(), 4)"
    with pytest.warns(FutureWarning, match="family="):
        guide = AutoHypernet(model, example=data, body=mixture, conditional=None)
    assert len(guide.family.components) == 2


def test_options_of_the_hypernetworks_of_an_old_mixture(model, data):
    with pytest.warns(FutureWarning):
        guide = AutoHypernet(model, example=data, body=old_mixture(2, of="hypernet"), conditional=None, noise_dim=3)
    assert [part.sampler.latent_dim for part in guide.family.components] == [3, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"body": "mean_field", "noise_dim": 2}, "body, noise_dim: noise_dim belongs to a hypernetwork"),
        ({"family": "low_rank", "noise_dim": 2}, "family, noise_dim: both were given"),
        ({"body": "mean_field", "num_components": 2}, "num_components: belongs to a mixture"),
        ({"num_candidates": 2, "num_proposals": 3}, "num_proposals, num_candidates: both were given"),
    ],
)
def test_old_options_that_exclude_each_other(options, message, model, data):
    with pytest.raises(ArgumentError, match=message):
        AutoHypernet(model, example=data, **options)


def test_unknown_options_are_python_errors(model, data):
    with pytest.raises(TypeError, match="unexpected keyword argument 'famly'"):
        AutoHypernet(model, example=data, famly="low_rank")


def test_the_old_attribute(model, data):
    guide = AutoHypernet(model, example=data)
    with pytest.warns(FutureWarning, match=r"AutoHypernet.family"):
        assert guide.body is guide.family
    with pytest.warns(FutureWarning, match="tempering_exponent") as caught:
        guide.candidate_power = torch.tensor(0.5)
    assert [warning.filename for warning in caught] == [__file__]
    assert float(guide.tempering_exponent) == 0.5
    with pytest.warns(FutureWarning, match="num_proposals") as caught:
        guide.num_candidates = 2
    assert [warning.filename for warning in caught] == [__file__]
    assert guide.num_proposals == 2


def test_the_old_short_form(model, data):
    with pytest.warns(FutureWarning, match="use family='block_gaussian'"):
        guide = AutoHypernet(model, example=data, family="units")
    assert isinstance(guide.family, families.BlockGaussian)
