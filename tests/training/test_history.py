"""The record of a fit, and the rule that ends one."""

from __future__ import annotations

import math

import pytest
import torch
from pyro.infer.autoguide import AutoNormal

from bayeshnet import FlatElbo, fit
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.training.history import History
from bayeshnet.training.stopping import loss_slope
from tests.problems import Y, normal_model


def test_the_slope_of_losses():
    torch.manual_seed(0)
    noise = torch.randn(400, dtype=torch.double)
    slope, error = loss_slope((0.05 * torch.arange(400) + noise).tolist())
    # The standard error of the slope of n points with unit noise is sqrt(12 / n^3).
    assert error == pytest.approx(math.sqrt(12 / 400**3), rel=0.2)
    assert slope == pytest.approx(0.05, abs=4 * error)
    assert loss_slope([1.0, 2.0]) == (1.0, math.inf)


@pytest.mark.parametrize(
    ("history", "text"),
    [
        (History(stopped="interrupted"), "History(steps=0, seconds=0.0, stopped='interrupted')"),
        (History([12.5], [0.1], 1.26), "History(steps=1, elbo=-12.5, seconds=1.3, stopped='steps')"),
        (History([1.0] * 5, [0.1] * 5), "History(steps=5, elbo=-1 ± 0, seconds=0.0, stopped='steps')"),
        # The mean is 1000, the standard deviation 10.05 and the error of 100 steps a tenth of that.
        (History([990.0, 1010.0] * 400, []), "History(steps=800, elbo=-1000.0 ± 1.0, seconds=0.0, stopped='steps')"),
        (History([math.nan, 1.0]), "History(steps=2, elbo=nan, seconds=0.0, stopped='steps')"),
        (History([1e6, 3e6]), "History(steps=2, elbo=-2000000 ± 1000000, seconds=0.0, stopped='steps')"),
    ],
)
def test_the_repr_is_short(history, text):
    assert repr(history) == text


def test_the_repr_of_a_long_fit():
    history = fit(normal_model, AutoNormal(normal_model), (Y,), 200, num_particles=1, progress=False)
    assert len(repr(history)) < 100
    assert "stopped='steps'" in repr(history)
    assert len(history.losses) == len(history.lrs) == 200


def test_the_mean_of_the_last_steps():
    history = History(losses=[9.0, 3.0, 1.0])
    mean, error = history.elbo(last=2)
    assert (mean, error) == (-2.0, pytest.approx(1.0))
    assert history.elbo()[0] == pytest.approx(-13.0 / 3.0)
    assert math.isnan(history.elbo(last=1)[1])
    with pytest.raises(ArgumentError, match="history: is empty"):
        History().elbo()
    with pytest.raises(ArgumentError, match="^last: is 0; pass a whole number, 1 or more"):
        history.elbo(last=0)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"window": 2}, ArgumentError, "window: is 2; pass a whole number, 10 or more"),
        ({"every": 0}, ArgumentError, "every: is 0; pass"),
        ({"min_steps": -1}, ArgumentError, "min_steps: is -1; pass"),
        ({"tolerance": 0.0}, ArgumentError, "tolerance: is 0.0; pass a positive number"),
        ({"window": "500"}, ArgumentTypeError, "window: is '500', a str; pass"),
        ({"tolerance": None}, ArgumentTypeError, "tolerance: is None, a NoneType; pass"),
    ],
)
def test_rules_that_cannot_be(options, error, match):
    """Before: a TypeError of '<'."""
    with pytest.raises(error, match=f"^{match}"):
        FlatElbo(**options)
