"""A step that would leave parameters that are not finite is refused, and leaves everything as it was."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import RenyiELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import nn

from bayeshnet import (
    AutoHypernet,
    AutoHypernetDelta,
    AutoHypernetNormal,
    BayesianModel,
    fit,
    likelihoods,
    predict,
    priors,
)
from bayeshnet.errors import ArgumentError, NonFiniteLossError
from bayeshnet.sites.kept_state import KeptBuffers, restored
from tests.problems import Y, bnn, normal_model

X, TARGETS = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)), torch.linspace(-1.0, 1.0, 20)


class RootUnderWhere(nn.Module):
    """Its loss is finite and its gradient NaN, once ``broken``: the branch that is not chosen has an infinite slope."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1)
        self.norm = nn.BatchNorm1d(1, affine=False)
        self.broken = False

    def forward(self, x):
        h = self.norm(self.linear(x))
        zero = h - h.detach()
        return torch.where(zero > 0, torch.sqrt(zero), h) if self.broken else h


GUIDES = {
    "AutoHypernet": lambda model: AutoHypernet(model, example=(X, TARGETS)),
    "no conditional layers": lambda model: AutoHypernet(model, example=(X, TARGETS), conditional=None),
    "mean field": lambda model: AutoHypernet(model, example=(X, TARGETS), conditional=None, family="mean_field"),
    "AutoNormal": AutoNormal,
    "AutoHypernetNormal": lambda model: AutoHypernetNormal(model, example=(X, TARGETS)),
    "AutoHypernetDelta": lambda model: AutoHypernetDelta(model, example=(X, TARGETS)),
}


def broken_fit(model, guide, *, at: int, steps: int, **options):
    """Fits, and breaks the network after step ``at - 1``; the error, and the state right before."""
    before = {}

    def callback(step, history):
        if step == at - 1:
            model.net.module.broken = True
            before.update({(i, k): v.clone() for i, p in enumerate((model, guide)) for k, v in p.state_dict().items()})

    with pytest.raises(NonFiniteLossError) as caught:
        fit(model, guide, (X, TARGETS), steps, callbacks=[callback], progress=False, **options)
    return str(caught.value), before


@pytest.mark.parametrize("name", GUIDES)
def test_a_gradient_that_is_nan_updates_nothing(name):
    """Before: at the last step ``fit`` returned, and all six guides were NaN."""
    pyro.set_rng_seed(0)
    net = RootUnderWhere()
    model = BayesianModel(net, likelihood=likelihoods.Normal(scale=0.5, learn=True))
    guide = GUIDES[name](model)
    message, before = broken_fit(model, guide, at=4, steps=5)
    assert message.startswith("step 4: the loss is ")
    for part in ("are NaN", "of the latents", "'linear.weight'", "is Sqrt (", "torch.sqrt(zero)", "torch.where"):
        assert part in message, part
    assert "lower lr" not in message
    for i, module in enumerate((model, guide)):
        for key, value in module.state_dict().items():
            assert torch.equal(value, before[i, key]), key  # parameters, and the running statistics of the batch norm
    assert all(p.grad is None for module in (model, guide) for p in module.parameters())
    # It goes on from there.
    model.net.module.broken = False
    assert math.isfinite(fit(model, guide, (X, TARGETS), 2, progress=False).losses[-1])
    assert bool(torch.isfinite(predict(model, guide, X, 5).draws).all())


@pytest.mark.parametrize("clip_norm", [None, 1.0, math.inf])
@pytest.mark.parametrize("loss", [RenyiELBO(num_particles=2), TraceMeanField_ELBO()], ids=lambda e: type(e).__name__)
def test_other_objectives_and_bounds(loss, clip_norm):
    model = BayesianModel(RootUnderWhere(), likelihood=likelihoods.Normal(scale=0.5))
    guide = GUIDES["mean field"](model)
    message, before = broken_fit(model, guide, at=98, steps=100, loss=loss, clip_norm=clip_norm)
    assert message.startswith("step 98: ")
    assert all(torch.equal(value, before[1, key]) for key, value in guide.state_dict().items())


def test_a_gradient_of_the_model_alone():
    class Learned(likelihoods.Normal):
        """Its learned scale has an infinite slope."""

        def conditional(self, f, params, *, batch_dims):
            zero = self.log_scale - self.log_scale.detach()
            extra = torch.where(zero > 0, zero.sqrt(), torch.zeros_like(zero))
            made = super().conditional(f, params, batch_dims=batch_dims)
            return dist.Normal(
                made.base_dist.loc if hasattr(made, "base_dist") else made.loc, (self.log_scale + extra).exp()
            )

    model = BayesianModel(nn.Linear(3, 1), likelihood=Learned(scale=0.5, learn=True))
    guide = GUIDES["mean field"](model)
    before = guide.family.loc.detach().clone()
    with pytest.raises(
        NonFiniteLossError, match=r"step 0: .* the gradients of 'likelihood.log_scale' are NaN\. .*Sqrt"
    ):
        fit(model, guide, (X, TARGETS), 3, progress=False)
    assert torch.equal(guide.family.loc.detach(), before)
    assert math.isfinite(float(model.likelihood.log_scale.detach()))


def test_a_gradient_that_is_infinite():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.factor("root", ((mu - mu.detach()) ** 2).sqrt().sqrt() if mu.dim() else (mu - mu.detach()).sqrt())

    guide = AutoNormal(model)
    with pytest.raises(NonFiniteLossError, match=r"step 0: the loss is .* are (infinite|NaN), from those of .*'mu'"):
        fit(model, guide, (Y,), 3, num_particles=1, progress=False)
    assert all(bool(torch.isfinite(p).all()) for p in guide.parameters())


def test_parameters_of_pyros_store_are_named():
    pyro.clear_param_store()

    def guide(y):
        loc = pyro.param("my_loc", torch.tensor(0.5))
        zero = loc - loc.detach()
        pyro.sample("mu", dist.Normal(loc + torch.where(zero > 0, zero.sqrt(), zero), 1.0))

    with pytest.raises(NonFiniteLossError, match="the gradients of 'my_loc' are NaN"):
        fit(normal_model, guide, (Y,), 3, progress=False)
    assert float(pyro.param("my_loc").detach()) == 0.5
    pyro.clear_param_store()


@pytest.mark.parametrize("steps", [1, 2, 50])
def test_an_update_that_overflows_is_undone(steps):
    """Before: after one step ``fit`` returned with parameters that are infinite; after two they were lost."""
    guide = AutoHypernet(normal_model, example=(Y,))
    before = [p.detach().clone() for p in guide.parameters()]
    match = r"step \d+: .*a parameter is not finite after the last update: lower lr.* set back to those before step 0"

    def optimizer(groups):
        return torch.optim.SGD([{**group, "lr": math.inf} for group in groups], lr=math.inf)

    with pytest.raises(NonFiniteLossError, match=match):
        fit(normal_model, guide, (Y,), steps, optimizer=optimizer, clip_norm=math.inf, progress=False)
    assert all(torch.equal(p.detach(), q) for p, q in zip(guide.parameters(), before, strict=True))


def test_a_long_gradient_whose_square_overflows_is_bounded():
    """Before: its norm was infinite in float32, and the bound made it 0."""

    class Guide(nn.Module):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(2))

        def forward(self):
            pyro.module("guide", self)
            pyro.sample("z", dist.Delta(self.loc, event_dim=1))

    def model():
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.factor("long", (z * torch.tensor([3e20, 4e20])).sum())

    pyro.clear_param_store()
    guide = Guide()
    fit(
        model,
        guide,
        (),
        1,
        num_particles=1,
        lr=1.0,
        optimizer=lambda groups: torch.optim.SGD(groups, lr=1.0),
        clip_norm=1.0,
        progress=False,
    )
    torch.testing.assert_close(guide.loc.detach(), torch.tensor([0.6, 0.8]))
    pyro.clear_param_store()


def test_a_loss_that_is_nan_leaves_running_statistics():
    _, (x, y) = bnn()
    net = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    model = BayesianModel(net, likelihood=likelihoods.Normal(scale=0.5), dataset_size=90)
    model.set_reference_rows(x)  # fit would take them of all batches
    guide = AutoHypernet(model, example=(x, y))
    bad = torch.full_like(x, math.nan)
    kept = {}

    def callback(step, history):
        kept.update({name: buffer.clone() for name, buffer in model.named_buffers()})

    with pytest.raises(NonFiniteLossError, match="step 2"):
        fit(model, guide, [(x, y), (x, y.clone()), (bad, y.clone())], 3, callbacks=[callback], progress=False, lr=1e-3)
    assert all(torch.equal(buffer, kept[name]) for name, buffer in model.named_buffers())


# ---------------------------------------------------------------------- the model's own words


def classes(bad: bool = False):
    labels = torch.arange(20) % 4
    if bad:
        labels[5] = -100
    return labels


@pytest.mark.parametrize("prior", [None, priors.Normal(scale=1.0, learn=True)], ids=["", "learned"])
def test_errors_of_the_model_are_not_replaced(prior):
    """Before: 'index -100 is out of bounds for dimension 1 with size 4'."""
    model = BayesianModel(
        nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4)), prior=prior, likelihood=likelihoods.Categorical()
    )
    guide = AutoHypernet(model, example=(X, classes()))
    match = r"^y: holds labels -100\.\.3; the network gives 4 logits"
    with pytest.raises(ArgumentError, match=match):
        fit(model, guide, (X, classes(bad=True)), 3, progress=False)
    # In later batches too, though values are looked at in the first step only.
    model.dataset_size = 40
    with pytest.raises(ArgumentError, match=match):
        fit(model, guide, [(X, classes()), (X, classes(bad=True))], 3, progress=False)


def test_targets_are_checked_before_anything_is_made_of_them():
    """Before: 'Class values must be non-negative', and a guide that was calibrated on them without a word."""
    model = BayesianModel(
        nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 4)), likelihood=likelihoods.Categorical()
    )
    guide = AutoHypernet(model, example=(X[:8], classes()[:8]), num_inducing=16)
    before = {name: value.clone() for name, value in guide.state_dict().items()}
    bad = classes(bad=True)
    for call in (
        lambda: guide.place_inducing(X, bad),
        lambda: guide.calibrate(X, bad),
        lambda: fit(model, guide, (X, bad), 2, progress=False),  # it places them first
    ):
        with pytest.raises(ArgumentError, match=r"^y: holds labels -100\.\.3"):
            call()
    for x, y, match in ((X, classes()[:5], r"^y: has shape \(5,\)"), (X.double(), classes(), "^x: has dtype")):
        for call in (guide.place_inducing, guide.calibrate):
            with pytest.raises((ArgumentError, TypeError), match=match):
                call(x, y)
    assert all(torch.equal(value, before[name]) for name, value in guide.state_dict().items())


def test_a_models_own_error_while_a_guide_looks_at_its_prior():
    calls = []

    def model(y):
        calls.append(1)
        if len(calls) > 1:
            raise ArgumentError("level: is 3; pass 2.")
        return normal_model(y)

    with pytest.raises(ArgumentError, match=r"^level: is 3; pass 2\."):
        AutoHypernet(model, example=(Y,))
    # Whatever else a prior fails on in its second draw, the first one serves.
    calls.clear()

    def fragile(y):
        calls.append(1)
        if len(calls) > 1:
            raise ZeroDivisionError
        return normal_model(y)

    assert AutoHypernet(fragile, example=(Y,)).latent_dim == 1


# ---------------------------------------------------------------------- tensors that get their values back


def test_restored():
    x = torch.zeros(2)
    with restored([x], on_error=True):
        x.fill_(1.0)
    assert x.tolist() == [1.0, 1.0]

    def fails():
        with restored([x], on_error=True):
            x.fill_(2.0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fails()
    assert x.tolist() == [1.0, 1.0]


def test_buffers_that_a_step_writes_to():
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("fixed", torch.ones(1))
            self.register_buffer("written", torch.zeros(1))
            self.register_buffer("replaced", torch.zeros(1))
            self.register_buffer("none", None)

        def step(self):
            self.written += 1.0
            self.replaced = self.replaced + 1.0

    module = Counts()
    kept = KeptBuffers(module, "no module")
    for _ in range(3):
        kept.keep()
        module.step()
    kept.restore()
    assert [float(b) for b in (module.fixed, module.written, module.replaced)] == [1.0, 2.0, 2.0]
    assert {saved.key for saved in kept._saved} == {"written", "replaced"}
