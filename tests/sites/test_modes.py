"""Whatever evaluates a network leaves each of its submodules in the mode it was in."""

from __future__ import annotations

import copy
import threading
import warnings

import pyro
import pytest
import torch
from torch import nn

from bayeshnet import AutoHypernet, BayesianModel, diagnose, fit, importance_sample, likelihoods, log_evidence, predict
from bayeshnet.errors import BayeshnetWarning
from bayeshnet.infer import start_from
from bayeshnet.sites.modes import evaluating


def batch_norm_net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 1))


def chain_net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 1))


def all_eval(net: nn.Sequential) -> nn.Sequential:
    return net.eval()


def frozen_norm(net: nn.Sequential) -> nn.Sequential:
    net[1].eval()
    return net


def frozen_dropout(net: nn.Sequential) -> nn.Sequential:
    net[-2].eval()
    return net


def modes(*parts: nn.Module) -> list[dict[str, bool]]:
    return [{name: module.training for name, module in part.named_modules()} for part in parts]


X = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
Y = X[:, 0] + 0.1


@pytest.mark.parametrize(
    ("make", "prepare"),
    [
        (batch_norm_net, all_eval),
        (batch_norm_net, frozen_norm),
        (batch_norm_net, frozen_dropout),
        (chain_net, all_eval),
        (chain_net, frozen_dropout),
    ],
)
def test_every_call_leaves_the_modes(make, prepare):
    """Before: a network in ``eval()`` came back from the calibration of ``fit`` with all submodules training."""
    pyro.set_rng_seed(0)
    given = prepare(make())
    model = BayesianModel(given, likelihood=likelihoods.Normal(scale=0.5))
    assert [m.training for m in model.net.module.modules()] == [m.training for m in given.modules()]
    expected = modes(model)
    guide = AutoHypernet(model, example=(X, Y))
    before = modes(model, guide)
    assert before[:1] == expected
    data = (X, Y)
    chain = 20 if (make, prepare) == (chain_net, frozen_dropout) else 0  # it takes long
    calls = {
        "fit": lambda: fit(model, guide, data, 3, progress=False),
        "predict": lambda: predict(model, guide, X, 5, batch_size=7),
        "importance_sample": lambda: importance_sample(model, guide, data, 10),
        "log_evidence": lambda: log_evidence(model, guide, data, 100),
        "diagnose": lambda: diagnose(model, guide, data, num_samples=100, nuts=chain, thorough=False),
        "start_from": lambda: start_from(guide, guide, num_samples=20),
        "calibrate": lambda: guide.calibrate(X, Y),
        "place_inducing": lambda: guide.place_inducing(X, Y),
        "wrapped": lambda: importance_sample(pyro.poutine.scale(model, 1.0), guide, data, 10),
    }
    for name, call in calls.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", BayeshnetWarning)  # the guide is hardly trained
            call()
        assert modes(model, guide) == before, name


def test_running_statistics_of_a_network_in_eval_stay():
    """Before: the running mean moved by 2.47 in the second fit."""
    pyro.set_rng_seed(0)
    model = BayesianModel(batch_norm_net().eval(), likelihood=likelihoods.Normal(scale=0.5))
    before = copy.deepcopy(dict(model.named_buffers()))
    guide = AutoHypernet(model, example=(X, Y))
    for _ in range(2):
        fit(model, guide, (X, Y), 3, progress=False)
        pyro.set_rng_seed(1)
        first = predict(model, guide, X, 5).draws
        pyro.set_rng_seed(1)
        assert torch.equal(predict(model, guide, X, 5).draws, first)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_a_network_in_training_mode_trains_and_predicts_without_dropout():
    pyro.set_rng_seed(0)
    model = BayesianModel(batch_norm_net(), likelihood=likelihoods.Normal(scale=0.5), batch_norm="running")
    guide = AutoHypernet(model, example=(X, Y))
    before = model.net.module[1].running_mean.clone()
    fit(model, guide, (X, Y), 3, progress=False)
    after = model.net.module[1].running_mean.clone()
    assert not torch.equal(before, after)
    draws = guide.sample_posterior(3)
    assert torch.equal(predict(model, draws, X).draws, predict(model, draws, X).draws)
    assert torch.equal(model.net.module[1].running_mean, after)


def test_modes_come_back_after_an_error():
    class Fails(nn.Linear):
        fails = False

        def forward(self, x):
            if self.fails:
                raise KeyError("on purpose")
            return super().forward(x)

    net = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6).eval(), Fails(6, 1))
    model = BayesianModel(net, likelihood=likelihoods.Normal(scale=0.5))
    guide = AutoHypernet(model, example=(X, Y), conditional=None)
    before = modes(model)
    model.net.module[2].fails = True
    for call in (lambda: predict(model, guide, X, 5), lambda: importance_sample(model, guide, (X, Y), 10)):
        with pytest.raises(KeyError, match="on purpose"):
            call()
        assert modes(model) == before


def test_threads_share_a_module():
    """The second block to open must not take the first one's evaluation mode for the module's own."""
    net = batch_norm_net()
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with evaluating(net):
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with evaluating(net):
        thread.start()
        assert entered.wait(10)
    assert not any(module.training for module in net.modules())  # still evaluated by the other thread
    leave.set()
    thread.join()
    assert all(module.training for module in net.modules())


def test_modules_that_do_more_on_a_change_of_mode():
    class Merging(nn.Module):
        """Merges weights for evaluation, as adapters do."""

        def __init__(self):
            super().__init__()
            self.inner = nn.BatchNorm1d(2).eval()
            self.merged = False

        def train(self, mode=True):
            self.merged = not mode
            return super().train(mode)

    module = Merging()
    with evaluating(module):
        assert module.merged
    assert not module.merged
    assert module.training
    assert not module.inner.training
