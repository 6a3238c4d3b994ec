"""Learning rates by step: functions, and the schedulers of torch."""

from __future__ import annotations

import functools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch.optim import lr_scheduler

from bayeshnet import AutoHypernet, fit
from bayeshnet.errors import ArgumentError, ArgumentTypeError, UsageError
from tests.problems import Decaying, Y, normal_model

STEPS, LR = 6, 0.08


def sequential(optimizer):
    first = lr_scheduler.LinearLR(optimizer, start_factor=0.5, total_iters=2)
    return lr_scheduler.SequentialLR(optimizer, [first, lr_scheduler.ExponentialLR(optimizer, 0.5)], milestones=[2])


SCHEDULES = {
    "StepLR": (lambda opt: lr_scheduler.StepLR(opt, 2, gamma=0.5), [LR * 0.5 ** (k // 2) for k in range(STEPS)]),
    "partial": (
        functools.partial(lr_scheduler.StepLR, step_size=2, gamma=0.5),
        [LR * 0.5 ** (k // 2) for k in range(STEPS)],
    ),
    "CosineAnnealingLR": (
        functools.partial(lr_scheduler.CosineAnnealingLR, T_max=STEPS),
        [LR * 0.5 * (1.0 + math.cos(math.pi * k / STEPS)) for k in range(STEPS)],
    ),
    "SequentialLR": (sequential, [LR * factor for factor in (0.5, 0.75, 1.0, 0.5, 0.25, 0.125)]),
    "OneCycleLR": (
        # Up in 3 steps from a 25th of the highest rate, down in 3 to a 10,000th of the first, on straight lines.
        lambda opt: lr_scheduler.OneCycleLR(opt, 1.0, total_steps=STEPS, pct_start=0.5, anneal_strategy="linear"),
        [0.04, 0.52, 1.0, 1.0 - (1.0 - 4e-6) / 3, 1.0 - (1.0 - 4e-6) * 2 / 3, 4e-6],
    ),
    "LambdaLR": (lambda opt: lr_scheduler.LambdaLR(opt, lambda k: 1.0 / (1 + k)), [LR / (1 + k) for k in range(STEPS)]),
    "factor": (lambda step: 0.5**step, [LR * 0.5**k for k in range(STEPS)]),
    "tensor": (lambda step: torch.tensor(float(step)), [LR * k for k in range(STEPS)]),
}


def fitted(steps=STEPS, **options):
    return fit(normal_model, AutoNormal(normal_model), (Y,), steps, lr=LR, progress=False, **options)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_rate_of_each_step(name):
    schedule, expected = SCHEDULES[name]
    assert fitted(lr_schedule=schedule).lrs == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_a_class_that_takes_nothing_but_the_optimiser():
    class Halved(lr_scheduler.LRScheduler):
        def get_lr(self):
            return [rate * 0.5**self.last_epoch for rate in self.base_lrs]

    assert fitted(3, lr_schedule=Halved).lrs == pytest.approx([LR, LR / 2, LR / 4])


def test_a_plateau_gets_the_losses():
    """With a threshold that no loss can pass, the rate halves at every step after the first."""
    plateau = functools.partial(lr_scheduler.ReduceLROnPlateau, factor=0.5, patience=0, threshold=1e9, mode="min")
    made = []

    def schedule(optimizer):
        made.append(plateau(optimizer, threshold_mode="abs"))
        return made[-1]

    history = fitted(lr_schedule=schedule)
    assert history.lrs == pytest.approx([LR, *(LR * 0.5**k for k in range(STEPS - 1))])
    assert made[0].best == history.losses[0]


def test_a_scheduler_of_the_optimiser_that_is_used():
    """It goes on in a second fit."""
    guide = AutoHypernet(normal_model, example=(Y,))
    optimizer = torch.optim.SGD(guide.parameters(), lr=1e-3)
    scheduler = lr_scheduler.StepLR(optimizer, 3, gamma=0.1)
    options = {"optimizer": lambda groups: optimizer, "lr_schedule": scheduler, "progress": False}
    rates = [rate for _ in range(2) for rate in fit(normal_model, guide, (Y,), 2, **options).lrs]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-3, 1e-4])
    assert scheduler.last_epoch == 4


def test_groups_keep_their_proportions_and_decay_follows_them():
    for optimizer in (None, torch.optim.SGD):
        guide = Decaying()
        schedule = functools.partial(lr_scheduler.ExponentialLR, gamma=0.5)
        fit(normal_model, guide, (Y,), 4, lr=0.01, lr_schedule=schedule, optimizer=optimizer, progress=False)
        expected = math.prod(1.0 - 0.005 * 0.5**step * 3.0 for step in range(4))
        torch.testing.assert_close(guide.idle.detach(), expected * torch.tensor([2.0, -1.0]))
    # The decay has ended with the fit.
    torch.optim.SGD(guide.parameters(), lr=0.1).step()
    torch.testing.assert_close(guide.idle.detach(), expected * torch.tensor([2.0, -1.0]))


def test_parameters_that_appear_later():
    """They are trained with a function; a scheduler does not know them."""

    def guide(y):
        loc = pyro.param("loc", torch.zeros(()))
        pyro.param("first", torch.zeros(()))
        if len(calls) > 4:
            loc = loc + pyro.param("late", torch.zeros(()))
        calls.append(1)
        pyro.sample("mu", dist.Normal(loc, 0.1))

    calls: list[int] = []
    options = {"num_particles": 1, "progress": False}
    with pytest.raises(UsageError, match=r"^lr_schedule: StepLR knows .*'late' appeared at step 4"):
        fit(normal_model, guide, (Y,), 8, lr_schedule=SCHEDULES["StepLR"][0], **options)
    calls.clear()
    pyro.clear_param_store()
    fit(normal_model, guide, (Y,), 8, lr_schedule=lambda step: 1.0, **options)
    assert float(pyro.param("late").detach()) != 0.0
    pyro.clear_param_store()


WRONG = [
    (lr_scheduler.StepLR, ArgumentTypeError, "fails for the optimiser .*'step_size'"),
    (functools.partial(lr_scheduler.StepLR, size=3), ArgumentTypeError, "fails for the optimiser .*'size'"),
    (lambda opt: lr_scheduler.StepLR(opt, gamma=0.1), ArgumentTypeError, "fails for a step .*fails for the optimiser"),
    (lambda opt: lr_scheduler.OneCycleLR(opt, 0.1), ArgumentError, "fails for a step .*define either total_steps"),
    (
        lr_scheduler.StepLR(torch.optim.SGD([torch.zeros(1)], lr=1.0), 1),
        ArgumentError,
        "is a StepLR of another optimiser than that of the fit; pass a function of the optimiser",
    ),
    (
        lambda _: lr_scheduler.StepLR(torch.optim.SGD([torch.zeros(1)], lr=1.0), 1),
        ArgumentError,
        "is a StepLR of another optimiser",
    ),
    (lambda opt: opt.param_groups[0]["lr"], ArgumentTypeError, "returned .*, a float for the optimiser"),
    (dict, ArgumentTypeError, "is the class dict; pass a function from the step to a factor"),
    (0.1, ArgumentTypeError, "is a float; pass a function from the step to a factor .*, or None"),
    (
        pyro.optim.StepLR({"optimizer": torch.optim.SGD, "optim_args": {"lr": 0.1}, "step_size": 3}),
        ArgumentTypeError,
        "is a PyroLRScheduler of pyro.optim; pass",
    ),
    (lambda step: None, ArgumentTypeError, "returned None, a NoneType at step 0"),
    (lambda step: math.nan, ArgumentError, "is nan at step 0; return a finite factor"),
    (lambda step: 1.0 - step, ArgumentError, "is -1 at step 2; return a finite factor"),
    (lambda step: 1 / step, ZeroDivisionError, "division by zero"),
    (
        lambda opt: lr_scheduler.LambdaLR(opt, lambda k: math.nan if k == 2 else 1.0),
        ArgumentError,
        "LambdaLR sets a learning rate of nan at step 2",
    ),
    (
        lambda opt: lr_scheduler.OneCycleLR(opt, 0.1, total_steps=2),
        ArgumentError,
        r"OneCycleLR fails after step 2 \(Tried to step 3 times.*made for all steps",
    ),
]


@pytest.mark.parametrize(("schedule", "error", "match"), WRONG)
def test_what_is_no_schedule(schedule, error, match):
    guide = AutoHypernet(normal_model, example=(Y,))
    prefix = "" if error is ZeroDivisionError else "lr_schedule: "
    with pytest.raises(error, match=f"^{prefix}{match}"):
        fit(normal_model, guide, (Y,), 4, lr_schedule=schedule, progress=False)
    assert all(bool(param.isfinite().all()) for param in guide.parameters())


def test_the_packages_own_errors_in_a_schedule():
    def schedule(step):
        raise ArgumentTypeError("warmup: is 'long', a str; pass a number.")

    with pytest.raises(ArgumentTypeError, match=r"^warmup: is 'long'"):
        fitted(lr_schedule=schedule)


def test_a_function_of_the_optimiser_may_fail_on_a_number_in_any_way():
    def checked(optimizer):
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise KeyError(optimizer)
        return lr_scheduler.StepLR(optimizer, 1)

    guide = AutoHypernet(normal_model, example=(Y,))
    history = fit(normal_model, guide, (Y,), 3, lr=0.01, lr_schedule=checked, progress=False)
    torch.testing.assert_close(torch.tensor(history.lrs), torch.tensor([1e-2, 1e-3, 1e-4]))
