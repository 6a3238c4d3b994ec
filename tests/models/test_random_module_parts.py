"""Networks in larger programs with priors that have latents of their own, and with parts that are points."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from bayeshnet import AutoHypernet, fit, priors
from bayeshnet.models import RandomModule
from tests.models.larger_programs import together_and_alone


def network():
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()


def program(f, x, y):
    def model():
        mean = f(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(mean, 1.0), obs=y)

    return model


OPTIONS = [
    {"prior": priors.Horseshoe()},
    {"prior": priors.StudentT()},
    {"bayesian": "last_layer"},
    {"bayesian": "last_layer", "others": "frozen"},
    {"bayesian": ["*.weight"], "others": "learned", "prior": priors.Horseshoe()},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_many_draws_in_one_call_have_the_densities_of_each_alone(options):
    pyro.set_rng_seed(0)
    x, y = torch.randn(6, 2).double(), torch.randn(6).double()
    model = program(RandomModule(network(), **options), x, y)
    torch.testing.assert_close(*together_and_alone(model, nesting=1), rtol=1e-9, atol=1e-9)


def test_points_of_two_networks_are_learned():
    pyro.set_rng_seed(0)
    x, y = torch.randn(6, 2).double(), torch.randn(6).double()
    f, g = (RandomModule(network(), name=name, bayesian="last_layer", others="learned") for name in "fg")
    before = [param.detach().clone() for one in (f, g) for param in one.parameters()]
    model = program(lambda x: f(x) + g(x), x, y)
    guide = AutoHypernet(model, example=(), family="mean_field")
    assert [site.name for site in guide.sites] == ["f.2.weight", "f.2.bias", "g.2.weight", "g.2.bias"]
    fit(model, guide, (), steps=3, num_particles=4, progress=False)
    after = [param for one in (f, g) for param in one.parameters()]
    assert len(after) == 4
    assert all(not torch.equal(one, other) for one, other in zip(before, after, strict=True))
