"""A fit that is gone on with after its process has died ends like one that was never interrupted."""

from __future__ import annotations

import functools
import logging
import random
import warnings

import pyro
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, default_collate

from bayeshnet import AutoHypernet, BayesianModel, EarlyStopping, fit, likelihoods, load, predict, save
from bayeshnet.errors import (
    ArgumentError,
    ArgumentTypeError,
    CheckpointError,
    CheckpointWarning,
    ConvergenceWarning,
    NonFiniteLossError,
    UsageError,
)
from tests.training.resumed_fits import CASES, TARGETS, Kill, X, assert_same, killed_until_done, network, result


@pytest.fixture(autouse=True)
def _quietly():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside other threads
        yield
    pyro.clear_param_store()


@pytest.mark.parametrize("name", CASES)
def test_two_kills(name, tmp_path):
    whole = result(name, None)
    # The first process writes after 3 and 6 steps; the second goes on from there, with other random numbers.
    again, killed = killed_until_done(name, tmp_path / "fit", [Kill(8), Kill(5)])
    assert killed == 2
    assert again["resumed_from"] == 9
    assert_same(whole, again)
    # The file is now that of the end, which is given to whoever asks for it.
    ended = result(name, tmp_path / "fit", seed=99)
    assert ended["resumed_from"] == len(whole["history"]["losses"])
    assert_same(whole, ended)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shuffled", "stopped_early"])
def test_twenty_kills_at_random_steps_and_times(name, tmp_path):
    """In the middle of steps, of writing, of looking at held-out rows."""
    options = {"steps": 70, "every": 1}
    if name == "stopped_early":
        options["stop"] = EarlyStopping(patience=100)
    whole = result(name, None, **{key: value for key, value in options.items() if key != "every"})
    rng = random.Random(0)
    kills = [Kill(rng.randint(1, 3), rng.choice([0.0, rng.uniform(0.0, 0.02)])) for _ in range(20)]
    again, killed = killed_until_done(name, tmp_path / "fit", kills, **options)
    assert killed == 20
    assert again["resumed_from"] >= 20
    assert_same(whole, again)


def trained(path, steps=10, **options):
    torch.manual_seed(0)
    model = options.pop("model", None) or network()
    guide = options.pop("guide", None) or AutoHypernet(model, example=(X, TARGETS))
    data = options.pop("data", (X, TARGETS))
    options = {"num_particles": 2, **options}
    history = fit(model, guide, data, steps, checkpoint=path, every=4, progress=False, **options)
    return model, guide, history


def interrupt(at):
    def callback(step, history):
        if step == at:
            raise KeyboardInterrupt

    return callback


def test_ctrl_c_and_errors_leave_a_whole_file(tmp_path, caplog):
    whole = trained(tmp_path / "whole")
    _, _, history = trained(tmp_path / "fit", callbacks=[interrupt(6)])
    assert (history.stopped, len(history)) == ("interrupted", 7)

    def fail(step, history):
        if step == 9:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        trained(tmp_path / "fit", callbacks=[fail])
    with caplog.at_level(logging.INFO, logger="bayeshnet"):
        _model, guide, history = trained(tmp_path / "fit")
    assert "has 8 steps, the fit goes on from there" in caplog.text
    assert history.resumed_from == 8
    assert "resumed_from=8" in repr(history)
    assert history.losses == whole[2].losses
    assert all(torch.equal(a, b) for a, b in zip(guide.parameters(), whole[1].parameters(), strict=True))
    assert {file.name for file in tmp_path.iterdir()} == {"fit", "whole"}

    def overflow(groups):
        return torch.optim.SGD([{**group, "lr": 1e30} for group in groups], lr=1e30)

    for _ in range(2):
        with pytest.raises(NonFiniteLossError):
            trained(tmp_path / "bad", steps=50, optimizer=overflow)


def test_another_fit_is_refused(tmp_path):
    path = tmp_path / "fit"
    trained(path, callbacks=[interrupt(6)])
    before = path.read_bytes()
    wide = BayesianModel(nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1)), likelihood=network().likelihood)
    relu = BayesianModel(nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 1)), likelihood=network().likelihood)
    for options, match in (
        ({"model": relu}, "model.net.module.1 is Tanh in the file and ReLU here"),
        ({"steps": 11}, "steps is 10 in the file and 11 here"),
        ({"lr": 0.02, "clip_norm": 3.0}, "lr is 0.01 in the file and 0.02 here; clip_norm is .* 3.0 here"),
        ({"num_particles": 3}, "num_particles is 2 in the file and 3 here"),
        ({"data": (X, TARGETS + 1e-6)}, "data: not the same"),
        ({"batch_size": 7}, "data: not the same"),
        ({"validation": (X, TARGETS)}, "validation: not the same"),
        ({"stop": EarlyStopping(), "validation": (X, TARGETS)}, "validation: not the same"),
        ({"lr_schedule": torch.optim.lr_scheduler.ConstantLR}, "lr_schedule is None in the file and 'ConstantLR' here"),
        ({"optimizer": torch.optim.SGD}, "optimizer is None in the file and 'SGD' here"),
        ({"model": wide}, "model.net.* is 5 in the file and 6 here"),
        (
            {"guide": pyro.infer.autoguide.AutoNormal(network())},
            "guide is .*AutoHypernet.* in the file and .*AutoNormal.* here",
        ),
        ({"guide": AutoHypernet(network(), example=(X, TARGETS), family="low_rank")}, "guide.family is .* in the file"),
    ):
        with pytest.raises(CheckpointError, match=match):
            trained(path, **options)
    assert path.read_bytes() == before
    step_lr = lambda size: lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, size)  # noqa: E731
    trained(tmp_path / "schedule", lr_schedule=step_lr(3), callbacks=[interrupt(6)])
    with pytest.raises(CheckpointError, match=r"lr_schedule.*size.* is 3 in the file and 4 here"):
        trained(tmp_path / "schedule", lr_schedule=step_lr(4))
    trained(tmp_path / "factor", lr_schedule=lambda step: 0.9**step, callbacks=[interrupt(6)])
    with pytest.warns(CheckpointWarning, match="the code of lr_schedule"):
        trained(tmp_path / "factor", lr_schedule=lambda step: 0.5**step)
    momentum = lambda **options: lambda groups: torch.optim.SGD(groups, **options)  # noqa: E731 - of one name
    trained(tmp_path / "sgd", optimizer=momentum(momentum=0.5), callbacks=[interrupt(6)])
    with pytest.raises(CheckpointError, match=r"another optimiser, .*'momentum': 0.5.* \(here .*'momentum': 0.9"):
        trained(tmp_path / "sgd", optimizer=momentum(momentum=0.9))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"drop_last": True}, "drop_last is False in the file and True here"),
        ({"shuffle": True}, "sampler is 'SequentialSampler' in the file and 'RandomSampler' here"),
        ({"generator": torch.Generator()}, "generators is 0 in the file and 1 here"),
        ({"collate_fn": functools.partial(default_collate)}, "collate_fn is 'default_collate' in the file"),
        ({"sampler": list(range(39, -1, -1))}, "sampler is 'SequentialSampler' in the file and 'list' here"),
    ],
)
def test_another_loader_is_refused(tmp_path, options, match):
    trained(tmp_path / "fit", data=DataLoader(TensorDataset(X, TARGETS), batch_size=9), callbacks=[interrupt(6)])
    with pytest.raises(CheckpointError, match=rf"data: not the same \(.*{match}"):
        trained(tmp_path / "fit", data=DataLoader(TensorDataset(X, TARGETS), batch_size=9, **options))


def test_files_that_are_none(tmp_path):
    path = tmp_path / "fit"
    trained(path, callbacks=[interrupt(6)])
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged"):
        trained(path)
    with pytest.raises(FileNotFoundError, match="the folder .* is not there"):
        trained(tmp_path / "none" / "fit")
    for none in (tmp_path, f"{tmp_path}/new/", f"{tmp_path}/a\0b"):
        with pytest.raises(ArgumentError, match="names no file"):
            trained(none)
    with pytest.raises(ArgumentTypeError, match="checkpoint: is an int"):
        trained(3)


def test_parameters_that_cannot_be_found_again(tmp_path):
    """They are refused after the first step, and not when the fit is to go on."""
    model, guide, data, options = CASES["full_batch"]()
    path = tmp_path / "fit"

    def wrapped(x, y):
        guide(x, y)

    with pytest.raises(UsageError, match=r"parameters, of shapes .* are in neither model, guide nor Pyro's"):
        fit(model, wrapped, data, 3, checkpoint=path, every=1, progress=False, **options)
    assert not path.exists()


def test_dtype_moves(tmp_path):
    """Half of a fit in float32, the other half in float64; a move after the end."""
    double = BayesianModel(
        nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1)).double(),
        likelihood=likelihoods.Normal(scale=pyro.distributions.Gamma(torch.tensor(6.0).double(), 6.0)),
        dataset_size=40,
    )
    data = (X.double(), TARGETS.double())
    other = AutoHypernet(double, example=data)
    optimizers = []

    def adam(groups):
        optimizers.append(torch.optim.Adam(groups))
        return optimizers[-1]

    trained(tmp_path / "adam", optimizer=adam, callbacks=[interrupt(6)])
    _, _, history = trained(tmp_path / "adam", model=double, guide=other, data=data, optimizer=adam)
    assert history.resumed_from == 4
    assert {
        value.dtype for state in optimizers[-1].state.values() for key, value in state.items() if key != "step"
    } == {torch.float64}
    assert all(param.dtype == torch.float64 for param in other.parameters())
    double.float()
    other.float()
    assert predict(double, other, X, 5).mean.dtype == torch.float32
    fit(double, other, (X, TARGETS), 2, progress=False)
    save(tmp_path / "saved", guide=other, model=double)
    load(tmp_path / "saved", guide=other, model=double)
