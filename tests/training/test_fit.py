from __future__ import annotations

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal
from torch.utils.data import DataLoader, TensorDataset

from bayeshnet import AutoHypernet, FlatElbo, fit, likelihoods
from bayeshnet.errors import (
    ArgumentError,
    ArgumentTypeError,
    ConvergenceWarning,
    DatasetSizeWarning,
    NonFiniteLossError,
    UsageError,
)
from bayeshnet.infer import flat_then_cosine
from bayeshnet.models import BayesianModel
from bayeshnet.training.stopping import loss_slope
from tests.problems import Decaying, Y, bnn, normal_model


@pytest.mark.parametrize("data", [(Y,), {"y": Y}, Y, [(Y,)], [Y], [{"y": Y}]], ids=repr)
def test_forms_of_data(data):
    history = fit(normal_model, AutoHypernet(normal_model, example=Y), data, steps=3, progress=False)
    assert len(history) == 3
    assert history.stopped == "steps"
    assert history.seconds > 0


def test_a_conjugate_posterior():
    guide = AutoHypernet(normal_model, example=(Y,))
    fit(normal_model, guide, (Y,), steps=1000, progress=False)
    draws = guide.sample_posterior(20_000)["mu"]
    precision = 3.0 + 1.0 / 25.0
    # Monte Carlo error of the mean 0.004, of the standard deviation 0.003; the rest is left to the optimiser.
    assert float(draws.mean()) == pytest.approx(7.0 / precision, abs=0.03)
    assert float(draws.std()) == pytest.approx(precision**-0.5, abs=0.03)


def test_minibatches_from_a_loader():
    model, (x, y) = bnn(dataset_size=30)
    loader = DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True)
    guide = AutoHypernet(model, example=(x, y))
    history = fit(model, guide, loader, steps=120, progress=False)
    assert sum(history.losses[-20:]) < sum(history.losses[:20])
    unsized, _ = bnn()
    with pytest.warns(DatasetSizeWarning, match="dataset_size=30"):
        fit(unsized, guide, DataLoader(TensorDataset(x, y), batch_size=10), steps=1, progress=False)


def test_pyros_own_guides_and_elbos():
    model, args = bnn()
    guide = AutoNormal(model)
    history = fit(model, guide, args, steps=60, progress=False)
    assert sum(history.losses[-10:]) < sum(history.losses[:10])
    elbo = TraceMeanField_ELBO(num_particles=4, vectorize_particles=True)
    fit(model, AutoHypernet(model, example=args), args, steps=2, loss=elbo, progress=False)


def test_a_learned_noise_scale_is_optimised():
    _, (x, y) = bnn()
    learned = BayesianModel(torch.nn.Linear(2, 1), likelihood=likelihoods.Normal(scale=5.0, learn=True))
    guide = AutoHypernet(learned, example=(x, y))
    fit(learned, guide, (x, y), steps=400, progress=False)
    assert float(learned.likelihood.log_scale.detach().exp()) < 1.0


def test_optimizer_groups_schedule_and_callbacks():
    model, args = bnn()
    guide = AutoHypernet(model, example=args)
    made: list[torch.optim.Optimizer] = []

    def optimizer(groups):
        made.append(torch.optim.SGD(groups))
        return made[-1]

    seen: list[int] = []
    history = fit(
        model,
        guide,
        args,
        steps=10,
        lr=1e-6,
        optimizer=optimizer,
        lr_schedule=lambda step: 0.5**step,
        callbacks=[lambda step, history: seen.append(step), lambda step, history: step == 4],
        clip_norm=1.0,
        progress=False,
    )
    assert seen == [0, 1, 2, 3, 4]
    assert history.stopped == "callback"
    assert history.lrs == pytest.approx([1e-6 * 0.5**k for k in range(5)])
    lrs = [group["lr"] for group in made[0].param_groups]
    rates = [group["lr"] for group in guide.param_groups(1.0)]
    assert min(rates) < rates[0] == 1.0
    assert lrs == pytest.approx([rate * 1e-6 * 0.5**4 for rate in rates])
    grouped = {id(p) for group in made[0].param_groups for p in group["params"]}
    assert grouped == {id(p) for p in guide.parameters()}


@pytest.mark.parametrize(("given", "expected"), [(None, 10.0), (2.0, 2.0), (math.inf, None)])
def test_the_guide_says_how_to_clip(given, expected):
    """A step of plain SGD is the gradient, which is long here, times the rate."""
    pyro.set_rng_seed(0)
    guide = AutoHypernet(normal_model, example=(1000.0 * Y,))
    before = torch.cat([param.detach().reshape(-1) for param in guide.parameters()])

    def optimizer(groups):
        return torch.optim.SGD([{**group, "lr": 1e-6} for group in groups], lr=1e-6)

    fit(normal_model, guide, (1000.0 * Y,), 1, lr=1e-6, optimizer=optimizer, clip_norm=given, progress=False)
    after = torch.cat([param.detach().reshape(-1) for param in guide.parameters()])
    length = float((after - before).norm()) * 1e6
    rates = [group["lr"] for group in guide.param_groups(1.0)]
    if expected is None:
        assert length > 100.0
    else:
        assert min(rates) * expected < length < 1.1 * expected  # a step is rounded to float32


@pytest.mark.parametrize(("bound", "kind"), [("yes", ArgumentTypeError), (-1.0, ArgumentError)])
def test_the_bound_of_a_guide_is_checked(bound, kind):
    guide = AutoNormal(normal_model)
    guide.clip_norm = bound
    with pytest.raises(kind, match=f"clip_norm: is {bound!r}"):
        fit(normal_model, guide, (Y,), 1, progress=False)


def test_decay_of_a_group():
    """Parameters without a gradient shrink by 1 - lr * decay at each step, with any optimiser."""

    for optimizer in (None, torch.optim.SGD):
        guide = Decaying()
        fit(
            normal_model,
            guide,
            (Y,),
            steps=4,
            lr=0.01,
            lr_schedule=lambda step: 0.5**step,
            optimizer=optimizer,
            progress=False,
        )
        expected = math.prod(1.0 - 0.005 * 0.5**step * 3.0 for step in range(4))
        torch.testing.assert_close(guide.idle.detach(), expected * torch.tensor([2.0, -1.0]))
        assert float(guide.loc.detach()) != 0.0


def test_stop_when_flat():
    guide = AutoHypernet(normal_model, example=(Y,))
    rule = FlatElbo(window=200, min_steps=300, every=20)
    history = fit(normal_model, guide, (Y,), steps=5000, stop=rule, progress=False)
    assert history.stopped == "flat"
    assert 300 <= len(history) < 5000
    slope, error = loss_slope(history.losses[-200:])
    assert -slope <= error
    with pytest.warns(ConvergenceWarning, match="used all 20 steps"):
        fit(normal_model, guide, (Y,), steps=20, stop=rule, progress=False)


def test_the_default_schedule():
    schedule = flat_then_cosine(100)
    assert [schedule(0), schedule(40)] == [1.0, 1.0]
    assert schedule(99) == pytest.approx(0.02)
    values = [schedule(k) for k in range(40, 100)]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("validate", [True, False])
def test_non_finite_loss_names_the_site(validate):
    with pyro.validation_enabled(validate):
        guide = AutoHypernet(normal_model, example=(Y,))
        with pytest.raises(NonFiniteLossError, match=r"step 0: the loss is .*'obs' \(its value in the model\)"):
            fit(normal_model, guide, (torch.tensor([1.0, float("nan"), 2.0]),), steps=5, progress=False)
        batches = [(Y,)] * 3 + [(torch.full((3,), float("inf")),)]
        with pytest.raises(NonFiniteLossError, match="step 3.*'obs'"):
            fit(normal_model, guide, batches, steps=5, progress=False)


def test_non_finite_parameters_are_named():
    guide = AutoHypernet(normal_model, example=(Y,))
    with pytest.raises(NonFiniteLossError, match="a parameter is not finite after the last update: lower lr"):
        fit(normal_model, guide, (Y,), steps=50, lr=1e38, progress=False)


def test_errors():
    guide = AutoHypernet(normal_model, example=(Y,))
    for options, match in (
        ({"steps": 0}, "steps: is 0"),
        ({"lr": -1.0}, "lr: is -1.0"),
        ({"num_particles": 0}, "num_particles: is 0"),
        ({"clip_norm": 0.0}, "clip_norm: is 0.0"),
        ({"loss": TraceMeanField_ELBO(), "num_particles": 3}, "loss, num_particles: both"),
    ):
        with pytest.raises(ArgumentError, match=match):
            fit(normal_model, guide, (Y,), progress=False, **options)
    model, (x, y) = bnn()
    for data in ((x,), x, [x, y], {"x": x}):
        with pytest.raises(ArgumentError, match=r"data: has no targets.*pass a tuple \(x, y\)"):
            fit(model, AutoHypernet(model, example=(x, y)), data, steps=1, progress=False)
    with pytest.raises(ArgumentError, match="empty iterable"):
        fit(normal_model, guide, [], steps=1, progress=False)
    with pytest.raises(ArgumentTypeError, match="data: is an iterator"):
        fit(normal_model, guide, iter([(Y,)]), steps=1, progress=False)
    with pytest.raises(ArgumentTypeError, match="data: is an int"):
        fit(normal_model, guide, 3, steps=1, progress=False)
    with pytest.raises(UsageError, match="nothing to optimise"):
        fit(
            lambda: pyro.sample("a", dist.Normal(0.0, 1.0)),
            lambda: pyro.sample("a", dist.Normal(0.0, 1.0)),
            (),
            steps=1,
            progress=False,
        )


def test_progress_bar(capsys):
    guide = AutoHypernet(normal_model, example=(Y,))
    fit(normal_model, guide, (Y,), steps=3, progress=False)
    captured = capsys.readouterr()
    assert captured.out == ""
    fit(normal_model, guide, (Y,), steps=3)
    assert "3/3" in capsys.readouterr().err


def test_a_copy_trains_under_a_wrapped_model():
    model, data = bnn()
    guide = copy.deepcopy(AutoHypernet(model, example=data))
    assert len(fit(pyro.poutine.scale(model, 0.5), guide, data, steps=2, progress=False)) == 2
