"""Data and steps that would ruin a guide leave it as it was; guides of other models are refused before a step."""

from __future__ import annotations

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bayeshnet import AutoHypernet, BayesianModel, diagnose, fit, importance_sample, likelihoods, predict
from bayeshnet.errors import ArgumentError, NonFiniteLossError


def problem(rows: int = 200, **options):
    torch.manual_seed(0)
    x = torch.randn(rows, 3)
    y = x[:, 0].sin() + 0.1 * torch.randn(rows)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    return BayesianModel(net, likelihood=likelihoods.Normal(scale=0.1), **options), x, y


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["x", "y"])
def test_bad_rows_never_become_inducing_points(bad, where):
    """Before, one such row in a loader was placed, and the guide was lost for every later fit."""
    model, x, y = problem(dataset_size=200)
    guide = AutoHypernet(model, example=(x[:16], y[:16]))
    assert guide.wants_rows
    before = copy.deepcopy(guide.state_dict())
    broken = {"x": x.clone(), "y": y.clone()}
    broken[where][7] = bad
    loader = DataLoader(TensorDataset(broken["x"], broken["y"]), batch_size=32)
    with pytest.raises(
        ArgumentError, match=rf"data: {where} holds NaN or infinite numbers in 1 of the \d+ rows .*\[7\]"
    ):
        fit(model, guide, loader, steps=3, progress=False)
    assert all(torch.equal(value, before[key]) for key, value in guide.state_dict().items())
    fit(model, guide, DataLoader(TensorDataset(x, y), batch_size=32), steps=3, progress=False)
    with pytest.raises(ArgumentError, match=f"data: {where} holds NaN"):
        guide.calibrate(broken["x"], broken["y"])


def test_a_density_that_is_lost_goes_back_to_the_last_copy():
    """Parameters may be finite and their features not: before, they stayed where predictions fail."""
    model, x, y = problem()
    guide = AutoHypernet(model, example=(x, y))
    fit(model, guide, (x, y), steps=5, progress=False)
    with pytest.raises(NonFiniteLossError, match=r"step \d+: .*were set back to those before step \d+"):
        fit(model, guide, (x, y), steps=20, lr=1e4, progress=False)
    assert bool(torch.isfinite(predict(model, guide, x, num_samples=20).draws).all())


def test_a_guide_that_lacks_a_latent_is_refused_before_the_first_step():
    """Before: ``KeyError: 'likelihood.scale'`` after the training."""
    model, x, y = problem()
    guide = AutoHypernet(model, example=(x, y))
    other = BayesianModel(
        nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)),
        likelihood=likelihoods.Normal(scale=dist.Gamma(6.0, 6.0)),
    )
    with pytest.raises(ArgumentError, match=r"lacks the model's latents \['likelihood.scale'\]"):
        fit(other, guide, (x, y), steps=2, progress=False)


def test_forgotten_observations_are_no_latents():
    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(w * x[:, 0], 1.0), obs=y)

    x = torch.randn(20, 3)
    guide = AutoHypernet(model, example=(x, x[:, 0]))
    with pytest.raises(ArgumentError, match=r"lacks the model's latents \['obs'\]"):
        fit(model, guide, (x,), steps=2, progress=False)
    fit(model, guide, (x, x[:, 0]), steps=2, progress=False)


def test_evaluations_on_fewer_rows_are_no_minibatches():
    """Each of these warned that a batch came after a larger one."""
    model, x, y = problem()
    guide = AutoHypernet(model, example=(x, y))
    fit(model, guide, (x, y), steps=3, progress=False)
    importance_sample(model, guide, (x[:30], y[:30]), 10)
    diagnose(model, guide, (x[:30], y[:30]), num_samples=100, thorough=False)
    fit(model, guide, (x[:60], y[:60]), steps=3, progress=False)


def test_an_interrupt_among_pyros_plates_leaves_no_plate_behind(monkeypatch):
    """Before, every later fit of the process failed: ``ValueError: duplicate plate 'data'``."""
    from pyro.poutine.runtime import _DIM_ALLOCATOR  # noqa: PLC0415

    model, x, y = problem()
    guide = AutoHypernet(model, example=(x, y))
    free, calls = type(_DIM_ALLOCATOR).free, [0]

    def interrupted(self, *args):
        calls[0] += 1
        if calls[0] == 5:
            raise KeyboardInterrupt
        return free(self, *args)

    monkeypatch.setattr(type(_DIM_ALLOCATOR), "free", interrupted)
    assert fit(model, guide, (x, y), steps=20, progress=False).stopped == "interrupted"
    monkeypatch.undo()
    assert fit(model, guide, (x, y), steps=2, progress=False).stopped == "steps"
