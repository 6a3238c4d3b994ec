"""Threads, Ctrl-C, and fits without gradients."""

from __future__ import annotations

import threading

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from pyro.poutine.runtime import _PYRO_STACK
from torch import nn

from bayeshnet import AutoHypernet, BayesianModel, diagnose, fit, importance_sample, likelihoods, predict
from bayeshnet.errors import UsageError
from bayeshnet.sites.one_thread import one_thread
from tests.problems import Y, bnn, normal_model


def in_a_thread(call):
    """What it returns or raises."""
    found = []

    def run() -> None:
        try:
            found.append(call())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    return found[0]


def test_a_second_thread_is_refused_while_one_fits():
    """Before: 5 of 5 pairs of fits failed in Pyro's stack, e.g. 'Multiple sample sites named ...'."""
    model, data = bnn()
    guide = AutoHypernet(model, example=data)
    refused = {}

    def callback(step, history):
        if step == 0:
            for name, call in (
                ("fit", lambda: fit(normal_model, AutoNormal(normal_model), (Y,), 2, progress=False)),
                ("predict", lambda: predict(model, guide, data[0], 5)),
                ("importance_sample", lambda: importance_sample(model, guide, data, 10)),
                ("diagnose", lambda: diagnose(model, guide, data, num_samples=100)),
                ("AutoHypernet", lambda: AutoHypernet(model, example=data)),
            ):
                refused[name] = in_a_thread(call)
        # The thread of the fit itself may do anything.
        predict(model, guide, data[0], 5)
        fit(normal_model, AutoNormal(normal_model), (Y,), 2, progress=False)

    history = fit(model, guide, data, 3, callbacks=[callback], progress=False)
    assert len(history) == 3
    for name, error in refused.items():
        assert isinstance(error, UsageError), (name, error)
        assert str(error).startswith(f"{name}: another thread is in fit"), error
    # The turn is given back.
    assert len(in_a_thread(lambda: fit(model, guide, data, 2, progress=False))) == 2


def test_predictions_in_threads_wait_for_each_other():
    """A network that is no chain holds one weight sample at a time: two threads at once would mix them up."""

    class Looped(nn.Module):
        """Cannot be vectorised, because it looks at a number."""

        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 8), nn.Linear(8, 1)

        def forward(self, x):
            h = torch.tanh(self.a(x))
            return self.b(h) * (1.0 if float(h.detach()[0, 0]) < 2.0 else 0.0)

    model = BayesianModel(Looped(), likelihood=likelihoods.Normal(scale=0.5))
    x = torch.randn(10, 2)
    guides = [AutoNormal(model, init_scale=1.0) for _ in range(2)]
    for guide in guides:
        guide(x, torch.zeros(10))
    draws = [{name: torch.randn(20, *shape) for name, shape in model.latent_shapes.items()} for _ in range(2)]
    expected = [predict(model, draw, x).draws for draw in draws]
    wrong = []

    def work(i):
        for _ in range(20):
            if not torch.equal(predict(model, draws[i], x).draws, expected[i]):
                wrong.append(i)
            predict(model, guides[i], x, 2)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong


def test_an_error_leaves_pyros_stack_as_it_was():
    with pyro.poutine.trace():
        depth = len(_PYRO_STACK)

        def fails():
            with one_thread("test"):
                pyro.poutine.trace().__enter__()
                raise KeyError

        with pytest.raises(KeyError):
            fails()
        assert len(_PYRO_STACK) == depth


# ---------------------------------------------------------------------- Ctrl-C


def interrupt(*_args, **_kwargs):
    raise KeyboardInterrupt


def resampling_problem():
    x = torch.randn(60, 2)
    net = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8).eval(), nn.Tanh(), nn.Linear(8, 1))
    model = BayesianModel(net, likelihood=likelihoods.Normal(scale=dist.Gamma(6.0, 6.0)))
    return model, (x, x[:, 0])


@pytest.mark.parametrize("where", ["log_likelihood", "best_exponent", "diagnosis"])
def test_ctrl_c_after_the_steps_keeps_the_history(monkeypatch, where):
    """Before: the history was lost, and the guide left with the power 1 that it is calibrated at."""
    model, data = resampling_problem()
    guide = AutoHypernet(model, example=data)
    assert guide.num_proposals > 1
    assert float(guide.tempering_exponent) == 0.0
    before = {name: module.training for name, module in model.named_modules()}
    if where == "log_likelihood":
        monkeypatch.setattr(BayesianModel, "log_likelihood", interrupt)
    elif where == "best_exponent":
        monkeypatch.setattr("bayeshnet.guides._family_guide.best_exponent", interrupt)
    else:
        monkeypatch.setattr(AutoHypernet, "diagnose", interrupt)
    state = torch.get_rng_state()
    history = fit(model, guide, data, 4, progress=False)
    assert len(history) == 4
    assert history.stopped == "interrupted"
    assert not torch.equal(state, torch.get_rng_state())
    if where != "diagnosis":
        assert float(guide.tempering_exponent) == 0.0
    assert {name: module.training for name, module in model.named_modules()} == before
    monkeypatch.undo()
    assert fit(model, guide, data, 2, progress=False).stopped == "steps"


def test_ctrl_c_while_inducing_points_are_placed(monkeypatch):
    model, (x, y) = resampling_problem()
    guide = AutoHypernet(model, example=(x[:10], y[:10]), num_inducing=20)
    assert guide.wants_rows == 20
    before = {name: value.clone() for name, value in guide.state_dict().items()}

    monkeypatch.setattr("bayeshnet.inducing.layers.InducingLayers.observed_part", interrupt)
    history = fit(model, guide, (x, y), 3, progress=False)
    assert (len(history), history.stopped) == (0, "interrupted")
    assert all(torch.equal(value, before[name]) for name, value in guide.state_dict().items())
    monkeypatch.undo()
    assert len(fit(model, guide, (x, y), 2, progress=False)) == 2
    assert guide.wants_rows == 0


# ---------------------------------------------------------------------- gradients


def test_gradients_are_on_in_a_fit():
    """Before: nothing was trained under ``no_grad``, and 100 steps reported."""
    moved = []
    for mode in (torch.no_grad(), torch.enable_grad()):
        pyro.set_rng_seed(0)
        guide = AutoHypernet(normal_model, example=(Y,))
        before = [p.detach().clone() for p in guide.parameters()]
        with mode:
            fit(normal_model, guide, (Y,), 5, progress=False)
            assert torch.is_grad_enabled() == isinstance(mode, torch.enable_grad)
        moved.append([p.detach() - q for p, q in zip(guide.parameters(), before, strict=True)])
    assert float(moved[0][0].abs().max()) > 0.0
    for without, with_ in zip(*moved, strict=True):
        assert torch.equal(without, with_)
    with torch.inference_mode(), pytest.raises(UsageError, match=r"fit: is called in torch.inference_mode"):
        fit(normal_model, guide, (Y,), 5, progress=False)
