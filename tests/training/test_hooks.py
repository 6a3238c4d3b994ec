"""What ``fit`` asks of a guide, whatever its class: hooks, a bound on the gradient, parameter groups."""

from __future__ import annotations

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from bayeshnet import AutoHypernet, fit
from bayeshnet.errors import NonFiniteLossError
from bayeshnet.models import emit_param_sites
from tests.problems import Y, bnn, normal_model


class Guide(nn.Module):
    """No class of ours or Pyro's; it notes which of its hooks are called."""

    def __init__(self, interrupt: str = ""):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(()))
        self.calls: list[str] = []
        self.interrupt = interrupt

    def forward(self, y):
        emit_param_sites("guide", self)
        pyro.sample("mu", dist.Normal(self.loc, 0.1))

    def _note(self, name, model, data):
        assert model is normal_model
        assert data[0] is Y or name == "begin"
        self.calls.append(name)
        if self.interrupt == name:
            raise KeyboardInterrupt

    def begin_fit(self, model, data):
        self._note("begin", model, data)

    def end_fit(self, model, data):
        self._note("end", model, data)

    def cancel_fit(self):
        self.calls.append("cancel")


def interrupted(step, history):
    if step == 1:
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("interrupt", "callbacks", "calls", "steps", "stopped"),
    [
        ("", [], ["begin", "end"], 3, "steps"),
        ("", [lambda step, history: step == 1], ["begin", "end"], 2, "callback"),
        ("", [interrupted], ["begin", "end"], 2, "interrupted"),
        ("begin", [], ["begin", "cancel"], 0, "interrupted"),
        ("end", [], ["begin", "end", "cancel"], 3, "interrupted"),
    ],
    ids=["whole", "callback", "Ctrl-C", "Ctrl-C at first", "Ctrl-C at last"],
)
def test_hooks_of_a_fit(interrupt, callbacks, calls, steps, stopped):
    guide = Guide(interrupt)
    history = fit(normal_model, guide, (Y,), 3, callbacks=callbacks, progress=False)
    assert guide.calls == calls
    assert (len(history), history.stopped) == (steps, stopped)


def test_a_fit_that_fails_is_cancelled():
    guide = Guide()
    bad = (torch.full((3,), math.nan),)
    with pytest.raises(NonFiniteLossError):
        fit(normal_model, guide, bad, 3, progress=False)
    assert guide.calls == ["begin", "cancel"]


def test_a_guide_without_hooks_that_is_a_function():
    def guide(y):
        pyro.sample("mu", dist.Normal(pyro.param("loc", torch.zeros(())), 0.1))

    assert len(fit(normal_model, guide, (Y,), 3, progress=False)) == 3
    pyro.clear_param_store()


@pytest.mark.parametrize("at", ["step", "failure", "end"])
def test_the_decay_of_a_guide_of_ours_ends_with_the_fit(at):
    """Whatever the fit ends by, another optimiser then leaves the parameters alone."""
    model, (x, y) = bnn()
    guide = AutoHypernet(model, example=(x, y))
    decayed = [param for group in guide.param_groups(1.0) if group.get("decay") for param in group["params"]]
    assert decayed

    def callback(step, history):
        if at == "failure":
            raise ZeroDivisionError
        if at == "step":
            raise KeyboardInterrupt

    try:
        fit(model, guide, (x, y), 2, callbacks=[callback], progress=False)
    except ZeroDivisionError:
        assert at == "failure"
    before = [param.detach().clone() for param in decayed]
    torch.optim.SGD(decayed, lr=0.1).step()
    assert all(torch.equal(a, b) for a, b in zip(before, decayed, strict=True))


def test_a_warning_at_the_end_names_the_users_line():
    guide = AutoHypernet(normal_model, example=(Y,))
    guide.diagnose = lambda **_: Finding()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(normal_model, guide, (Y,), 1, progress=False)
    assert [(str(w.message), w.filename) for w in caught] == [("look here", __file__)]


class Finding:
    advice = ("look here",)
    category = UserWarning
