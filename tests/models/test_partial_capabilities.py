"""Models with a part of what belongs together are treated as models without it."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from bayeshnet import AutoHypernet, fit, predict
from bayeshnet.errors import ArgumentTypeError

Y = torch.randn(12, generator=torch.Generator().manual_seed(0)) + 1.0


class Own:
    """A model of the user's own, with some attributes."""

    def __init__(self, **attributes):
        vars(self).update(attributes)

    def __call__(self, y):
        mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


@pytest.mark.parametrize(
    "attributes",
    [
        {"check_observations": lambda x, y: None},
        {"weight_priors": dict},
        {"weight_priors": {}},
        {"weight_priors": dict, "net": None},
        {"max_plate_nesting": None},
        {"conditional": True},
    ],
    ids=", ".join,
)
def test_a_part_counts_as_nothing(attributes):
    model = Own(**attributes)
    guide = AutoHypernet(model, example=(Y,))
    losses = fit(model, guide, [(Y,), (Y,)], steps=4, num_particles=4, progress=False).losses
    assert all(math.isfinite(loss) for loss in losses)
    with pytest.raises(ArgumentTypeError, match="model: is an Own"):
        predict(model, guide, Y, 5)
