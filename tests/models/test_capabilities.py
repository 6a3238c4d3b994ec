"""A model is asked what it can do; what it is does not matter."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import nn

from bayeshnet import AutoHypernetNormal, BayesianModel, fit, likelihoods
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.models.capabilities import (
    has_bounded_density,
    has_network,
    has_rows,
    is_predictive,
    latents_of,
    plate_nesting,
    requires_targets,
    vectorises,
)
from bayeshnet.training import _loop

YES_OR_NO = (vectorises, requires_targets, has_bounded_density, has_rows, has_network, is_predictive)


def plain(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x), dim=-1):
        return pyro.sample("obs", dist.Normal(w * x, 0.1), obs=y)


class Line(nn.Module):
    """A user's own model that says what is known of it."""

    max_plate_nesting = 1
    vectorises = True
    requires_targets = True

    @property
    def latent_shapes(self):
        return {"w": torch.Size()}

    def forward(self, x, y=None):
        return plain(x, y)


def test_a_network_answers_everything():
    model = BayesianModel(nn.Linear(2, 1), likelihood=likelihoods.Normal(scale=dist.Gamma(6.0, 6.0)))
    assert plate_nesting(model) == 1
    assert all(question(model) for question in YES_OR_NO)
    assert latents_of(model) == {"weight": (1, 2), "bias": (1,), "likelihood.scale": ()}


@pytest.mark.parametrize("model", [plain, nn.Linear(2, 1), AutoNormal(plain), pyro.poutine.scale(plain, scale=2.0)])
def test_of_anything_else_nothing_is_known(model):
    assert plate_nesting(model) == math.inf
    assert not any(question(model) for question in YES_OR_NO)
    assert latents_of(model) is None


def test_a_model_of_ones_own_that_answers_is_treated_likewise(monkeypatch):
    tried = []
    monkeypatch.setattr(_loop, "checked_elbo", lambda elbo, *rest: tried.append(1) or elbo)
    x = torch.linspace(-1.0, 1.0, 20)
    data = x, 2.0 * x
    for model, trials in ((Line(), 0), (plain, 1)):
        guide = AutoHypernetNormal(model, example=data)
        tried.clear()
        history = fit(model, guide, data, steps=3, num_particles=2, progress=False)
        assert len(history.losses) == 3
        assert len(tried) == trials
    with pytest.raises(ArgumentError, match="data: has no targets"):
        fit(Line(), guide, (x,), steps=1, progress=False)
    with pytest.raises(ArgumentTypeError, match="guide: is a model"):
        fit(plain, Line(), data, steps=1, progress=False)
