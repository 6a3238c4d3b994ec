"""Held-out rows: their curve, early stopping, and a fit that does not notice being watched."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bayeshnet import AutoHypernet, BayesianModel, EarlyStopping, FlatElbo, Validation, fit, likelihoods
from bayeshnet.errors import ArgumentError, ArgumentTypeError, ConvergenceWarning
from bayeshnet.training._random import RandomStates
from tests.problems import Y, bnn, normal_model

X, TARGETS = bnn()[1]
TRAIN, HELD_OUT = (X[:20], TARGETS[:20]), (X[20:], TARGETS[20:])


def guide_of(model):
    pyro.set_rng_seed(0)
    return AutoHypernet(model, example=TRAIN, conditional=None, family="mean_field")


def test_the_score_is_the_log_predictive_density():
    """For a known Gaussian over the weights, against the integral over it."""
    model = BayesianModel(nn.Linear(2, 1), likelihood=likelihoods.Normal(scale=0.5))
    guide = guide_of(model)
    with torch.no_grad():
        posterior = guide.get_posterior()
        design = torch.cat([HELD_OUT[0], torch.ones(10, 1)], 1)
        mean, variance = design @ posterior.mean, design.square() @ posterior.variance
    exact = -float(dist.Normal(mean, (variance + 0.25).sqrt()).log_prob(HELD_OUT[1]).mean())
    score = Validation(HELD_OUT, num_samples=50_000).score(model, guide, RandomStates.now())
    assert score == pytest.approx(exact, abs=0.01)  # the densities vary by a factor of two or less over the draws
    for other in ([HELD_OUT], DataLoader(TensorDataset(*HELD_OUT), batch_size=3), {"x": HELD_OUT[0], "y": HELD_OUT[1]}):
        start = RandomStates.now()
        same = [Validation(data, num_samples=50).score(model, guide, start) for data in (HELD_OUT, other)]
        assert same[0] == pytest.approx(same[1], rel=1e-5)


def test_weights_of_rows_and_targets_that_are_missing():
    model = BayesianModel(nn.Linear(2, 1), likelihood=likelihoods.Normal(scale=0.5), missing="ignore")
    guide, start = guide_of(model), RandomStates.now()
    first = Validation((HELD_OUT[0][:4], HELD_OUT[1][:4])).score(model, guide, start)
    weight = torch.tensor([2.0] * 4 + [0.0] * 6)
    assert Validation((*HELD_OUT, weight)).score(model, guide, start) == pytest.approx(first, rel=1e-5)
    gaps = HELD_OUT[1].clone()
    gaps[4:] = math.nan
    assert Validation((HELD_OUT[0], gaps)).score(model, guide, start) == pytest.approx(0.4 * first, rel=1e-5)


def test_a_model_of_any_kind():
    guide = AutoNormal(normal_model)
    guide(Y)
    with torch.no_grad():
        loc, scale = guide.locs.mu.detach(), guide.scales.mu.detach()
    score = Validation((Y,), num_samples=400).score(normal_model, guide, RandomStates.now())
    exact = -float(dist.Normal(loc, (scale**2 + 1.0).sqrt()).log_prob(Y).mean())
    assert score == pytest.approx(
        exact, abs=0.06
    )  # draws with a standard deviation of 0.1, that of the mean of 400 is 0.005; the slope is 2 to 4


@pytest.mark.parametrize("batch_size", [None, 8])
def test_looking_changes_nothing(batch_size):
    seen = []
    for validation in (None, Validation(DataLoader(TensorDataset(*HELD_OUT), 4, shuffle=True), every=3)):
        model = BayesianModel(
            nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.2), nn.Linear(4, 1)),
            likelihood=likelihoods.Normal(scale=0.5),
            dataset_size=20,
        )
        guide = guide_of(model)
        history = fit(model, guide, TRAIN, 10, batch_size=batch_size, validation=validation, progress=False)
        seen.append((history.losses, torch.get_rng_state().tolist(), model.net.training))
    assert seen[0] == seen[1]
    assert history.validation_steps == [2, 5, 8, 9]


def test_when_rows_are_looked_at():
    model, _ = bnn(dataset_size=20)
    guide = guide_of(model)
    by_epoch = fit(model, guide, TRAIN, epochs=3, batch_size=6, validation=HELD_OUT, progress=False)
    assert (len(by_epoch), by_epoch.validation_steps) == (12, [3, 7, 11])
    assert (by_epoch.rows, by_epoch.batch_size) == (20, 5)
    assert "batch=5 of 20 rows" in repr(by_epoch)
    by_steps = fit(model, guide, TRAIN, 130, validation=HELD_OUT, num_particles=1, progress=False)
    assert by_steps.validation_steps == [99, 129]
    assert "validation=" in repr(by_steps)


def test_early_stopping_restores_the_best_state():
    """A network that learns twelve noisy rows by heart: the rows held out are predicted worse after a while."""
    torch.manual_seed(0)
    x = torch.randn(36, 6)
    y = x[:, 0] + 0.5 * torch.randn(36)
    net = nn.Sequential(nn.Linear(6, 30), nn.Tanh(), nn.BatchNorm1d(30, affine=False), nn.Linear(30, 1))
    net[2].eval()
    model = BayesianModel(net, likelihood=likelihoods.Normal(scale=0.05), dataset_size=12)
    guide = AutoHypernet(model, example=(x[:12], y[:12]), conditional=None, family="mean_field")
    rows = Validation((x[12:], y[12:]), every=5)
    start = RandomStates.now()
    states = {}

    def note(step, history):
        if history.validation_steps and history.validation_steps[-1] == step:
            states[step] = guide.family.loc.detach().clone()

    history = fit(
        model, guide, (x[:12], y[:12]), 2000, lr=0.03, num_particles=4, validation=rows, stop=EarlyStopping(patience=6),
        callbacks=[note], progress=False
    )  # fmt: skip
    assert history.stopped == "validation"
    assert len(history) < 2000
    best = min(range(len(history.validation)), key=history.validation.__getitem__)
    assert history.best_step == history.validation_steps[best] == len(history) - 1 - 6 * 5
    assert torch.equal(guide.family.loc.detach(), states[history.best_step])
    assert rows.score(model, guide, start) == pytest.approx(history.validation[best], rel=0.2)
    with pytest.warns(ConvergenceWarning):
        last = fit(
            model, guide, (x[:12], y[:12]), 5, validation=rows, stop=EarlyStopping(restore=False), progress=False
        )
    assert last.best_step is None


def test_a_cap_that_is_reached():
    model, _ = bnn()
    with pytest.warns(ConvergenceWarning, match="used all 6 steps .*its best state was restored"):
        fit(model, guide_of(model), TRAIN, 6, validation=HELD_OUT, stop=EarlyStopping(), progress=False)


def test_the_rule():
    stop = EarlyStopping(patience=2, min_delta=0.1)
    assert [stop(v) for v in ([3.0], [3.0, 2.95], [3.0, 2.95, 2.92], [3.0, 2.95, 2.8])] == [False, False, True, False]
    assert stop.best([math.nan, 1.0, math.nan]) == 1
    assert stop.best([math.nan]) is None
    assert stop([math.nan, math.nan])


@pytest.mark.parametrize(
    ("rows", "kind", "match"),
    [
        (0.1, ArgumentTypeError, "validation: is a float; pass held-out rows"),
        ((HELD_OUT[0][:1], HELD_OUT[1]), ArgumentError, r"validation: y: has shape \(\d+,\)"),
        ((HELD_OUT[0], HELD_OUT[1][:1]), ArgumentError, r"validation: y: has shape \(1,\)"),
        ((HELD_OUT[0][:6], HELD_OUT[1][:6].reshape(3, 2)), ArgumentError, r"validation: y: has shape \(3, 2\)"),
        ((HELD_OUT[0], HELD_OUT[1] * math.nan), ArgumentError, "validation: y holds NaN"),
        ((HELD_OUT[0], HELD_OUT[1].long()), ArgumentTypeError, "validation: y: has dtype torch.int64"),
        ((*HELD_OUT, torch.ones(2)), ArgumentError, r"validation: weight: has shape \(2,\)"),
        ((*HELD_OUT, -torch.ones_like(HELD_OUT[1])), ArgumentError, "validation: weight: .* no finite numbers"),
        ((HELD_OUT[0][:0], HELD_OUT[1][:0]), ArgumentError, "validation: has no rows"),
        ([(HELD_OUT[0], HELD_OUT[1][:1])], ArgumentError, r"validation: y: has shape \(1,\)"),
    ],
)
def test_held_out_rows_are_checked_as_those_of_training_before_the_first_step(rows, kind, match):
    model, _ = bnn()
    guide = guide_of(model)
    before = {key: value.clone() for key, value in guide.state_dict().items()}
    with pytest.raises(kind, match=match):
        fit(model, guide, TRAIN, 50, validation=rows, progress=False)
    assert all(torch.equal(value, before[key]) for key, value in guide.state_dict().items())


def test_later_batches_are_checked_too():
    model, _ = bnn()
    with pytest.raises(ArgumentError, match=r"validation: y: has shape \(1,\)"):
        fit(model, guide_of(model), TRAIN, 2, validation=[HELD_OUT, (HELD_OUT[0], HELD_OUT[1][:1])], progress=False)


def test_what_is_refused():
    model, _ = bnn()
    guide = guide_of(model)
    for options, kind, match in (
        ({"stop": EarlyStopping()}, ArgumentError, "which goes by held-out rows; pass validation"),
        ({"validation": (HELD_OUT[0],)}, ArgumentError, "validation: has no targets"),
        ({"validation": iter([HELD_OUT])}, ArgumentTypeError, "an iterator, which gives its batches once"),
        ({"validation": []}, ArgumentError, "validation: has no rows"),
        ({"epochs": 3, "steps": 3}, ArgumentError, "steps, epochs: both were given, 3 and 3"),
        ({"epochs": 0, "steps": None}, ArgumentError, "epochs: is 0"),
        ({"batch_size": 0}, ArgumentError, "batch_size: is 0"),
        ({"every": 10}, ArgumentError, "every: is 10, and there is no file"),
    ):
        with pytest.raises(kind, match=match):
            fit(
                model,
                guide,
                TRAIN,
                **{"steps": 2, "progress": False, **options},
            )
    with pytest.raises(ArgumentTypeError, match=r"batch_size: is 4, and data is a list, whose batches are taken"):
        fit(model, guide, [TRAIN], 2, batch_size=4, progress=False)
    with pytest.raises(ArgumentTypeError, match="batch_size: is 2, and it is not known which arguments"):
        fit(normal_model, AutoNormal(normal_model), (Y,), 2, batch_size=2, progress=False)
    for arguments in ({"every": 0}, {"num_samples": 0}):
        with pytest.raises(ArgumentError, match="is 0; pass a whole number"):
            Validation(HELD_OUT, **arguments)
    with pytest.raises(ArgumentError, match="patience: is 0"):
        EarlyStopping(patience=0)
    assert FlatElbo()([1.0]) is False
