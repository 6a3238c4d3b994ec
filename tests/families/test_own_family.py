"""Families from outside the package that a guide cannot use are refused by name when it is built."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from bayeshnet import AutoHypernet, fit
from bayeshnet.errors import ArgumentError, ArgumentTypeError, UsageError
from bayeshnet.families import Family, placed
from tests.problems import bnn


class Diagonal(Family):
    """The members of a usable family; those below change one thing."""

    def init_parameters(self, start):
        self.loc = nn.Parameter(start.mean())

    def normal(self, loc=None, scale=None):
        return dist.Normal(*placed(self.loc, torch.ones_like(self.loc), loc, scale))

    def distribution(self, loc=None, scale=None):
        return self.normal(loc, scale).to_event(1)


class Independent(Diagonal):
    def distribution(self, loc=None, scale=None):
        return self.normal(loc, scale)


class Batch(Diagonal):
    def distribution(self, loc=None, scale=None):
        return self.normal(loc, scale).expand((2, len(self.loc))).to_event(1)


class Short(Diagonal):
    def distribution(self, loc=None, scale=None):
        return dist.Normal(self.loc[1:], 1.0).to_event(1)


class Discrete(Diagonal):
    def distribution(self, loc=None, scale=None):
        return dist.Poisson(self.loc.exp()).to_event(1)


class OfTorch(Diagonal):
    def distribution(self, loc=None, scale=None):
        return torch.distributions.Independent(torch.distributions.Normal(self.loc, 1.0), 1)


class Nothing(Diagonal):
    def distribution(self, loc=None, scale=None):
        return None


class BuildsNothing(Diagonal):
    def build(self, start):
        return None


class BuildsItself(Diagonal):
    def build(self, start):
        self.init_parameters(start)
        return self


class NoParameters(Family):
    def distribution(self, loc=None, scale=None):
        raise NotImplementedError


class NoConstructor(Diagonal):
    def __init__(self):
        pass


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [
        (
            Independent,
            ArgumentError,
            r"Independent.distribution has batch shape \(26,\) and event shape \(\); they have",
        ),
        (Batch, ArgumentError, r"batch shape \(2,\) and event shape \(26,\); they have to be \(\) and \(26,\)"),
        (Short, ArgumentError, r"event shape \(25,\)"),
        (Discrete, ArgumentError, "whose draws are not differentiable .has_rsample is False."),
        (OfTorch, ArgumentTypeError, "OfTorch.distribution returned an Independent; return a distribution of pyro"),
        (Nothing, ArgumentTypeError, "Nothing.distribution returned a NoneType"),
        (BuildsNothing, ArgumentTypeError, "BuildsNothing.build returned a NoneType; return a new BuildsNothing"),
        (BuildsItself, ArgumentTypeError, "BuildsItself.build returned itself; return a new BuildsItself"),
        (NoParameters, UsageError, r"NoParameters has no init_parameters\(start\); write it, or build"),
        (NoConstructor, UsageError, r"NoConstructor whose constructor does not call super\(\).__init__\(\)"),
    ],
)
def test_what_a_guide_cannot_use_is_refused(kind, error, message):
    model, data = bnn()
    with pytest.raises(error, match=message):
        AutoHypernet(model, example=data, family=kind(), conditional=None)


class OwnBuild(Diagonal):
    """A family with a build of its own instead of init_parameters."""

    def build(self, start):
        made = OwnBuild()
        made.loc = nn.Parameter(start.mean())
        return made


@pytest.mark.parametrize("conditional", ["auto", None])
def test_a_build_of_its_own(conditional):
    model, data = bnn()
    family = OwnBuild()
    guides = [AutoHypernet(model, example=data, family=family, conditional=conditional) for _ in range(2)]
    assert guides[0].family.loc is not guides[1].family.loc
    before = guides[0].family.loc.detach().clone()
    history = fit(model, guides[0], data, steps=3, num_particles=8, progress=False)
    assert all(math.isfinite(loss) for loss in history.losses)
    assert bool((guides[0].family.loc != before).all())
    with pytest.raises(UsageError, match="is a OwnBuild that is not built yet; pass it to a guide"):
        family.distribution()
