"""begin_fit and end_fit: what a training loop calls, be it fit or one's own."""

from __future__ import annotations

import copy
import gc
import io
import math
import warnings
import weakref

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import nn
from torch.optim import optimizer as torch_optimizer

from bayeshnet import AutoHypernet, AutoHypernetDelta, AutoHypernetNormal, BayesianModel, fit, likelihoods
from bayeshnet.deprecation import stacklevel_of_user
from bayeshnet.entropy.protocol import Diagnosis
from bayeshnet.errors import ArgumentError, FoldingWarning, UsageError
from bayeshnet.guides._decay import GroupDecay
from bayeshnet.guides.base import Guide
from bayeshnet.infer import start_from

Y = torch.tensor([1.0, 2.0])
DECAY, LR = 3.0, 0.01
SHRUNK = 1.0 - LR * DECAY


def model(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("data", len(y)):
        pyro.sample("obs", dist.Normal(mu, 1.0), obs=y)


class Decaying(Guide):
    """A guide of one's own. Optimisers leave ``idle`` alone, since its gradient is 0: what changes it is the decay."""

    def __init__(self, decay=DECAY):
        super().__init__(model, example=(Y,))
        self._modules["part"] = nn.Module()
        self.part.mean = nn.Parameter(torch.zeros(1))
        self.part.idle = nn.Parameter(torch.tensor([2.0, -1.0]))
        self.decay = decay

    def learned_modules(self):
        return {"part": self.part}

    def get_posterior(self, *args, **kwargs):
        return dist.Normal(self.part.mean + 0.0 * self.part.idle.sum(), 0.1).to_event(1)

    def move_to(self, mean, std=None, draws=None):
        self.part.mean.data.copy_(mean)

    def param_groups(self, lr):
        return [{"params": [self.part.mean], "lr": lr}, {"params": [self.part.idle], "lr": lr, "decay": self.decay}]

    def factor(self):
        """What ``idle`` was multiplied by."""
        ratio = self.part.idle.detach() / torch.tensor([2.0, -1.0])
        assert torch.allclose(ratio[0], ratio[1])
        return float(ratio[0])


def hooks():
    return len(torch_optimizer._global_optimizer_post_hooks), len(torch_optimizer._global_optimizer_pre_hooks)


@pytest.fixture(autouse=True)
def no_hook_is_left():
    before = hooks()
    yield
    assert hooks() == before


def own_loop(guide, optimizer, steps=4):
    loss = Trace_ELBO().differentiable_loss
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model, guide, Y).backward()
        optimizer.step()


# ---------------------------------------------------------------------- decay


@pytest.mark.parametrize(
    "make",
    [
        lambda groups: torch.optim.SGD(groups, lr=LR),
        lambda groups: torch.optim.Adam(groups, lr=LR),
        lambda groups: torch.optim.AdamW(groups, lr=LR, weight_decay=0.0),
        lambda groups: torch.optim.RMSprop(groups, lr=LR),
    ],
)
@pytest.mark.parametrize("grouped", [True, False])
def test_decay_in_a_loop_of_ones_own(make, grouped):
    """Over the guide's groups, and over parameters that know nothing of groups."""
    guide = Decaying()
    guide.begin_fit(model, (Y,))
    own_loop(guide, make(guide.param_groups(LR) if grouped else [{"params": list(guide.parameters())}]))
    guide.end_fit(model, (Y,))
    assert guide.factor() == pytest.approx(SHRUNK**4, rel=1e-6)
    own_loop(guide, make(guide.param_groups(LR)))
    assert guide.factor() == pytest.approx(SHRUNK**4, rel=1e-6)  # it has ended
    assert float(guide.part.mean.detach()) != 0.0


def test_decay_with_the_parameters_of_an_elbo():
    guide = Decaying()
    elbo = Trace_ELBO()(model, guide)
    elbo(Y)
    guide.begin_fit(model, (Y,))
    optimizer = torch.optim.Adam(elbo.parameters(), lr=LR)
    for _ in range(3):
        optimizer.zero_grad()
        elbo(Y).backward()
        optimizer.step()
    guide.end_fit(model, (Y,))
    assert guide.factor() == pytest.approx(SHRUNK**3, rel=1e-6)


@pytest.mark.parametrize(
    ("optimizer", "rates"),
    [
        (lambda: pyro.optim.ClippedAdam({"lr": LR, "lrd": 0.5}), [LR * 0.5**k for k in range(1, 5)]),
        (lambda: pyro.optim.Adam({"lr": LR}), [LR] * 4),
        (
            lambda: pyro.optim.ExponentialLR({"optimizer": torch.optim.SGD, "optim_args": {"lr": LR}, "gamma": 0.5}),
            [LR] * 4,
        ),
    ],
)
def test_decay_under_svi(optimizer, rates):
    """Pyro makes one torch optimiser for each parameter; the rate is that of the step."""
    guide = Decaying()
    svi = SVI(model, guide, optimizer(), Trace_ELBO())
    guide.begin_fit(model, (Y,))
    for _ in rates:
        svi.step(Y)
    guide.end_fit(model, (Y,))
    assert guide.factor() == pytest.approx(math.prod(1.0 - rate * DECAY for rate in rates), rel=1e-6)


def test_fit_decays_as_a_loop_does():
    guide = Decaying()
    fit(model, guide, (Y,), 4, lr=LR, lr_schedule=lambda step: 0.5**step, progress=False)
    assert guide.factor() == pytest.approx(math.prod(1.0 - LR * 0.5**step * DECAY for step in range(4)), rel=1e-6)


def test_a_factor_is_never_negative():
    guide = Decaying(decay=1e3)
    guide.begin_fit(model, (Y,))
    own_loop(guide, torch.optim.SGD(guide.param_groups(LR)), 1)
    guide.end_fit(model, (Y,))
    assert guide.part.idle.tolist() == [0.0, 0.0]


def test_one_decay_for_each_update():
    """An optimiser that calls the step of another, or that of its base class, runs torch's hooks twice."""

    class Louder(torch.optim.SGD):
        def step(self, closure=None):
            return super().step(closure)

    class Wrapper(torch.optim.Optimizer):
        def __init__(self, inner):
            super().__init__(inner.param_groups, {})
            self.inner = inner

        def step(self, closure=None):
            return self.inner.step(closure)

    for make in (Louder, lambda groups: Wrapper(torch.optim.SGD(groups))):
        guide = Decaying()
        guide.begin_fit(model, (Y,))
        own_loop(guide, make(guide.param_groups(LR)))
        guide.end_fit(model, (Y,))
        assert guide.factor() == pytest.approx(SHRUNK**4, rel=1e-6)


def test_a_step_that_fails_changes_nothing_for_the_next():
    guide = Decaying()
    optimizer = torch.optim.SGD(guide.param_groups(LR))
    guide.begin_fit(model, (Y,))

    def fails():
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        optimizer.step(fails)
    assert guide.factor() == 1.0
    own_loop(guide, optimizer, 2)
    guide.end_fit(model, (Y,))
    assert guide.factor() == pytest.approx(SHRUNK**2, rel=1e-6)


def test_two_guides_at_once():
    first, second = Decaying(), Decaying(decay=2.0)
    optimizers = [torch.optim.SGD(guide.param_groups(LR)) for guide in (first, second)]
    first.begin_fit(model, (Y,))
    second.begin_fit(model, (Y,))
    own_loop(first, optimizers[0], 2)
    assert second.factor() == 1.0
    first.end_fit(model, (Y,))
    own_loop(first, optimizers[0], 2)
    own_loop(second, optimizers[1], 3)
    second.end_fit(model, (Y,))
    assert first.factor() == pytest.approx(SHRUNK**2, rel=1e-6)
    assert second.factor() == pytest.approx((1.0 - 2.0 * LR) ** 3, rel=1e-6)


def test_begin_twice_and_end_twice():
    guide = Decaying()
    guide.end_fit(model, (Y,))  # without a beginning
    guide.cancel_fit()
    guide.begin_fit(model, (Y,))
    guide.begin_fit(model, (Y,))
    own_loop(guide, torch.optim.SGD(guide.param_groups(LR)))
    guide.end_fit(model, (Y,))
    guide.end_fit(model, (Y,))
    assert guide.factor() == pytest.approx(SHRUNK**4, rel=1e-6)
    guide.begin_fit(model, (Y,))
    guide.cancel_fit()
    own_loop(guide, torch.optim.SGD(guide.param_groups(LR)))
    assert guide.factor() == pytest.approx(SHRUNK**4, rel=1e-6)


def pickled(guide):
    buffer = io.BytesIO()
    torch.save(guide, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_copies_are_in_no_fit(copied):
    guide = Decaying()
    guide.begin_fit(model, (Y,))
    before = hooks()
    twin = copied(guide)
    assert hooks() == before
    own_loop(twin, torch.optim.SGD(twin.param_groups(LR)))
    assert twin.factor() == 1.0
    twin.end_fit(model, (Y,))  # has no say in the original's
    own_loop(guide, torch.optim.SGD(guide.param_groups(LR)))
    guide.end_fit(model, (Y,))
    assert guide.factor() == pytest.approx(SHRUNK**4, rel=1e-6)


def test_hooks_keep_no_guide_alive():
    guide = Decaying()
    guide.begin_fit(model, (Y,))
    decay, gone = guide._decay, weakref.ref(guide)
    idle = guide.part.idle
    handles = decay._handles
    del guide, decay
    gc.collect()
    assert gone() is None
    torch.optim.SGD([idle], lr=LR).step()  # its parameter outlives it
    assert idle.tolist() == [2.0, -1.0]
    for handle in handles:
        handle.remove()


def test_without_decay_there_are_no_hooks():
    before = hooks()
    decay = GroupDecay([{"params": [nn.Parameter(torch.ones(2))]}])
    assert hooks() == before
    decay.remove()


# ---------------------------------------------------------------------- what the guides of the package do


def network(hidden=8):
    torch.manual_seed(0)
    x = torch.randn(30, 3)
    net = nn.Sequential(nn.Linear(3, hidden), nn.Tanh(), nn.Linear(hidden, 1))
    return BayesianModel(net, likelihood=likelihoods.Normal(scale=0.3)), (x, x[:, 0].sin())


@pytest.mark.parametrize("kind", [AutoHypernetNormal, AutoHypernetDelta])
def test_hooks_of_explicit_guides(kind):
    guide = kind(model, example=(Y,))
    assert guide.clip_norm is None
    before = {key: value.clone() for key, value in guide.state_dict().items()}
    guide.begin_fit(model, (Y,))
    guide.end_fit(model, (Y,))
    assert all(torch.equal(value, before[key]) for key, value in guide.state_dict().items())
    grouped = {id(p) for group in guide.param_groups(LR) for p in group["params"]}
    assert grouped == {id(p) for p in guide.parameters()}


def test_a_guide_groups_all_its_parameters_by_default():
    guide = Decaying()
    guide.part.idle.requires_grad_(False)
    (group,) = Guide.param_groups(guide, 0.1)
    assert group["lr"] == 0.1
    assert [id(p) for p in group["params"]] == [id(guide.part.mean)]


def test_an_own_loop_gets_what_fit_does():
    """A copy its model, inducing points the rows of the data, importance resampling its exponent, and the decay."""
    bnn, (x, y) = network()
    guide = AutoHypernet(bnn, example=(x[:4], y[:4]), num_inducing=10)
    guide = copy.deepcopy(guide)
    assert guide.original_model is None
    assert guide.wants_rows == 10
    decaying = [p for group in guide.param_groups(LR) if group.get("decay") for p in group["params"]]
    assert decaying
    elbo = Trace_ELBO(num_particles=4, vectorize_particles=True, max_plate_nesting=1)
    guide.begin_fit(bnn, (x, y))
    assert guide.original_model is bnn
    assert guide.wants_rows == 0
    assert all(any(torch.equal(row, other) for other in x) for row in guide.inducing.inputs.to(x))
    optimizer = torch.optim.Adam(guide.param_groups(LR))
    for _ in range(5):
        optimizer.zero_grad()
        elbo.differentiable_loss(bnn, guide, x, y).backward()
        optimizer.step()
    state = torch.get_rng_state()
    guide.end_fit(bnn, (x, y))
    assert torch.equal(torch.get_rng_state(), state)  # what it draws is none of the caller's affair
    optimizer.zero_grad()
    kept = [p.detach().clone() for p in decaying]
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(kept, decaying, strict=True))


def test_inducing_points_of_a_loader():
    bnn, (x, y) = network()
    guide = AutoHypernet(bnn, example=(x[:4], y[:4]), num_inducing=10)
    guide.begin_fit(bnn, [(x[:8], y[:8]), (x[8:], y[8:])])
    guide.cancel_fit()
    assert guide.wants_rows == 0
    assert len({tuple(row.tolist()) for row in guide.inducing.inputs}) == 10


def test_warnings_name_the_line_of_the_user(monkeypatch):
    bnn, data = network()
    guide = AutoHypernet(bnn, example=data, conditional=None)
    monkeypatch.setattr(AutoHypernet, "diagnose", lambda self, **_: Diagnosis({}, ["It folds."], FoldingWarning))
    guide.begin_fit(bnn, data)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        guide.end_fit(bnn, data)
    assert [(str(w.message), w.category, w.filename) for w in caught] == [("It folds.", FoldingWarning, __file__)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(bnn, guide, data, 2, progress=False, num_particles=2)
    assert [w.filename for w in caught if w.category is FoldingWarning] == [__file__]
    assert stacklevel_of_user() == 1


def test_mean_field_elbo_sees_the_sites():
    guide = Decaying()
    assert math.isfinite(TraceMeanField_ELBO().loss(model, guide, Y))


def test_start_from_moves_any_guide():
    guide = Decaying()
    start_from(guide, {"mu": torch.tensor(3.0)})
    assert guide.part.mean.tolist() == [3.0]
    assert float(guide.sample_posterior(400)["mu"].mean()) == pytest.approx(3.0, abs=0.03)


def test_moving_conditional_layers_without_draws():
    """The mean is one draw; the result is that of start_from."""
    bnn, data = network()
    guides = [AutoHypernet(bnn, example=data, num_proposals=1) for _ in range(2)]
    guides[1].load_state_dict(guides[0].state_dict())
    values = {name: torch.randn(shape) for name, shape in bnn.latent_shapes.items()}
    torch.manual_seed(1)
    start_from(guides[0], values)
    torch.manual_seed(1)
    guides[1].move_to(torch.cat([value.flatten() for value in values.values()]))
    pairs = zip(guides[0].state_dict().values(), guides[1].state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    with pytest.raises(ArgumentError, match="mean: is NaN for some weights"):
        guides[1].move_to(torch.full_like(guides[1].loc, torch.nan))
    twin = copy.deepcopy(guides[1])
    with pytest.raises(UsageError, match=r"call guide.attach\(model\) first"):
        twin.move_to(torch.zeros_like(twin.loc))
