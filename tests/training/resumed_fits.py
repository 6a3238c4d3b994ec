"""Fits that are killed and gone on with, and the program that runs one of them in a process of its own."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from bayeshnet import AutoHypernet, BayesianModel, EarlyStopping, Validation, fit, likelihoods
from tests.problems import Decaying, Y, normal_model

X = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
TARGETS = X[:, 0].sin() + 0.1 * torch.randn(40, generator=torch.Generator().manual_seed(1))
ROWS = TensorDataset(X, TARGETS)
STEPS = 24

Case = tuple[Any, Any, Any, dict[str, Any]]


def network(**options: Any) -> BayesianModel:
    net = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1))
    likelihood = likelihoods.Normal(scale=dist.Gamma(6.0, 6.0))
    return BayesianModel(net, likelihood=likelihood, dataset_size=40, **options)


def full_batch() -> Case:
    """Inducing points, decay, a calibration at the end: all that the hooks of the default guide do."""
    model = network()
    return model, AutoHypernet(model, example=(X, TARGETS)), (X, TARGETS), {}


def shuffled() -> Case:
    """A loader with random numbers of torch; inducing points that begin_fit places."""
    model = network()
    guide = AutoHypernet(model, example=(X[:4], TARGETS[:4]))
    return model, guide, DataLoader(ROWS, batch_size=7, shuffle=True), {"num_particles": 4}


def own_generator() -> Case:
    """A loader and a sampler with generators of their own; batches drawn with replacement."""
    model = network()
    sampler = RandomSampler(ROWS, True, 40, generator=torch.Generator().manual_seed(4))
    loader = DataLoader(ROWS, batch_size=9, sampler=sampler, generator=torch.Generator().manual_seed(3))
    return model, AutoHypernet(model, example=(X, TARGETS), conditional=None), loader, {"num_particles": 4}


def stopped_early() -> Case:
    """Minibatches in memory, a scheduler of torch that goes by the loss, another optimiser, held-out rows."""
    net = nn.Sequential(nn.Linear(2, 5), nn.BatchNorm1d(5), nn.Linear(5, 1))
    model = BayesianModel(net, likelihood=likelihoods.Normal(scale=0.5, learn=True), dataset_size=40)
    guide = AutoHypernet(model, example=(X, TARGETS), family="low_rank", conditional=None)
    options = {
        "batch_size": 16,
        "validation": Validation((X[:10], TARGETS[:10]), every=4, num_samples=8),
        "stop": EarlyStopping(patience=3),
        "optimizer": lambda groups: torch.optim.SGD(groups, lr=0.001, momentum=0.9),
        "lr_schedule": lambda optimizer: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=1),
    }
    return model, guide, (X, TARGETS), options


def plain_model() -> Case:
    """Plates that the ELBO finds out by itself, and a guide of Pyro that makes its parameters when it is called."""
    return normal_model, AutoNormal(normal_model), (Y,), {}


def guide_of_pyro() -> Case:
    """A Bayesian network and a guide of Pyro, whose tensors become parameters in the first step."""
    model = network()
    return model, AutoNormal(model), (X, TARGETS), {"num_particles": 4}


def in_store() -> Case:
    """A guide that is a function: its parameters are in Pyro's store."""

    def guide(y: Tensor) -> None:
        loc = pyro.param("loc", lambda: torch.randn(()))
        scale = pyro.param("scale", torch.tensor(0.5), constraint=dist.constraints.positive)
        pyro.sample("mu", dist.Normal(loc, scale))

    return normal_model, guide, [(Y,), (Y + 1.0,)], {"num_particles": 2}


def decaying() -> Case:
    """A guide without hooks, whose decay fit sees to."""
    milestones = lambda optimizer: torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 9])  # noqa: E731
    return normal_model, Decaying(), (Y,), {"lr_schedule": milestones}


CASES: dict[str, Callable[[], Case]] = {
    fn.__name__: fn
    for fn in (full_batch, shuffled, own_generator, stopped_early, plain_model, guide_of_pyro, in_store, decaying)
}


def result(
    name: str,
    path: Path | None,
    *,
    seed: int = 0,
    steps: int = STEPS,
    every: int = 3,
    callbacks: list[Any] | None = None,
    **options: Any,
) -> Any:
    """Run a fit; return all that has to be the same: the history, what was learned, random numbers to come."""
    pyro.clear_param_store()
    torch.manual_seed(seed)
    model, guide, data, given = CASES[name]()
    if path is not None:
        options |= {"checkpoint": path, "every": every}
    history = fit(model, guide, data, steps, callbacks=callbacks or [], progress=False, **{**given, **options})
    learned = {
        f"{i}.{key}": value.detach().clone()
        for i, part in enumerate((model, guide))
        if isinstance(part, nn.Module)
        for key, value in part.state_dict().items()
    }
    learned |= {key: value.detach().clone() for key, value in pyro.get_param_store().items()}
    series = {key: value for key, value in vars(history).items() if key not in ("seconds", "resumed_from")}
    generators = [data.generator, data.sampler.generator] if isinstance(data, DataLoader) else []
    states = [torch.get_rng_state(), *(g.get_state() for g in generators if g is not None)]
    return {"history": series, "learned": learned, "random": states, "resumed_from": history.resumed_from}


def assert_same(one: Any, other: Any) -> None:
    assert one["history"] == other["history"]
    assert one["learned"].keys() == other["learned"].keys()
    for key, value in one["learned"].items():
        assert torch.equal(value, other["learned"][key]), key
    assert all(torch.equal(a, b) for a, b in zip(one["random"], other["random"], strict=True))


class Kill:
    """A callback that kills its own process, without a chance to clean up, some steps and seconds later.

    Args:
        after: Number of steps.
        seconds: Time from then on; by then the process may be anywhere in the next step, or writing.
    """

    def __init__(self, after: int, seconds: float = 0.0) -> None:
        self.left, self.seconds = after, seconds

    def __call__(self, step: int, history: Any) -> None:
        self.left -= 1
        if self.left == 0 and self.seconds == 0.0:
            self._kill()
        elif self.left == 0:
            threading.Timer(self.seconds, self._kill).start()

    def _kill(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def killed_until_done(name: str, path: Path, kills: list[Kill], **options: Any) -> tuple[Any, int]:
    """Run a fit in processes that are killed one after the other, until one ends.

    Args:
        name: Name of the fit.
        path: Its file.
        kills: The callback of each process; there is a last one that is not killed.
        options: Those of :func:`result`.

    Returns:
        The result, and the number of processes that were killed.
    """
    killed = 0
    for i, kill in enumerate([*kills, None]):
        answer = path.with_suffix(".pt")
        child = os.fork()
        if child == 0:  # with other random numbers each time but the first: they must not matter
            code = 1
            try:
                callbacks = [] if kill is None else [kill]
                torch.save(result(name, path, seed=i, callbacks=callbacks, **options), answer)
                code = 0
            except BaseException as error:
                sys.stderr.write(f"{type(error).__name__}: {error}\n")
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            assert os.WTERMSIG(status) == signal.SIGKILL
            killed += 1
            continue
        assert os.WEXITSTATUS(status) == 0
        return torch.load(answer, weights_only=False), killed
    raise AssertionError("the last process was to end")
