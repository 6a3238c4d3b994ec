"""The model around local reparameterisation and flipout: predictions, copies, errors."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive, Trace_ELBO, TraceMeanField_ELBO
from torch import nn

from bayeshnet import (
    AutoHypernetNormal,
    BayesianModel,
    flipout,
    likelihoods,
    local_reparameterisation,
    predict,
)
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.mnets import batched
from tests.models.per_row_problems import WRAPPERS, problem


@pytest.mark.parametrize("method", WRAPPERS)
def test_predictions_are_of_whole_networks(method):
    model, guide, (x, y) = problem("mlp")
    wrapped = WRAPPERS[method](model)
    same = torch.cat([x[:1]] * 3)
    for draws in (
        predict(wrapped, guide, same, num_samples=50).draws,
        wrapped.evaluate(same, guide.sample_posterior(50))[0],
    ):
        torch.testing.assert_close(draws[:, 0], draws[:, 1])
    exact = BayesianModel(nn.Linear(3, 1), likelihood=likelihoods.Normal(scale=1e-7))
    own = AutoHypernetNormal(exact, example=(x, y[:, 0]))
    for parallel in (False, True):
        out = Predictive(WRAPPERS[method](exact), guide=own, num_samples=20, parallel=parallel)(same)["obs"]
        torch.testing.assert_close(out[:, 0], out[:, 1], rtol=0, atol=1e-5)
    trace = poutine.trace(guide).get_trace(x, y)
    drawn = poutine.trace(poutine.replay(wrapped, trace=trace)).get_trace(same)
    f = drawn.nodes["obs"]["fn"].base_dist.loc
    torch.testing.assert_close(f[0], f[1])


def test_it_is_the_same_model():
    model, guide, args = problem("mlp")
    wrapped = flipout(local_reparameterisation(model))
    assert isinstance(wrapped, BayesianModel)
    assert wrapped.net is model.net
    wrapped.eval()
    assert not model.training
    for other in (copy.deepcopy(wrapped), pickle.loads(pickle.dumps(wrapped))):
        assert other.net is not model.net
        assert math.isfinite(Trace_ELBO().loss(other, guide, *args))
    model.double()
    assert next(iter(wrapped.weight_priors().values())).base_dist.loc.dtype == torch.float64


def test_errors():
    class Own(BayesianModel):
        pass

    own = Own(nn.Linear(1, 1), likelihood=likelihoods.Normal(scale=1.0))
    for wrap in WRAPPERS.values():
        with pytest.raises(ArgumentTypeError, match="model: is a Linear"):
            wrap(nn.Linear(1, 1))
        with pytest.raises(ArgumentTypeError, match="model: is an Own"):
            wrap(own)
    with pytest.raises(ArgumentError, match="positions: is 'all'"):
        local_reparameterisation(problem("mlp")[0], positions="all")


def test_what_is_known_of_a_network_lasts_longer_than_a_step(monkeypatch):
    """A network that is built anew for each step is looked at once, not each time."""
    copied = []
    original = batched._Call.__call__
    monkeypatch.setattr(
        batched._Call, "__call__", lambda self, *args: copied.append(self.protect) or original(self, *args)
    )
    x, y = torch.randn(6, 3), torch.randn(6)
    model = BayesianModel(nn.Linear(3, 1), likelihood=likelihoods.Normal(scale=0.5))
    guide = AutoHypernetNormal(model, example=(x, y))
    copied.clear()
    elbo = TraceMeanField_ELBO(num_particles=3, vectorize_particles=True)
    for _ in range(3):
        elbo.loss(local_reparameterisation(model), guide, x, y)
    assert copied == [False] * 4  # one more to count the plates
    assert batched._WRITES[model.net] == {(True, True, True): False}
