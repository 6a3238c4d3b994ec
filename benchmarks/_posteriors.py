"""What the posterior benchmark measures: distance to NUTS in function space, ELBO, test score, time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median

import pyro
import torch
from _common import alternate
from _posterior_methods import METHODS, Method, Schedule
from _posterior_problems import Gold, Problem
from torch import Tensor

__all__ = [
    "Budget",
    "Run",
    "floor_w1",
    "nuts_test_ll",
    "rmse_mean",
    "run_method",
    "std_ratio",
    "step_ms",
    "summarise",
    "w1",
]

QUANTILES = 400


# ---------------------------------------------------------------------- distances


def w1(draws: Tensor, gold: Tensor) -> float:
    """Wasserstein-1 distance of each column's draws, from 400 quantiles each, averaged over columns.

    Args:
        draws: ``[S, columns]``.
        gold: ``[R, columns]``.
    """
    levels = (torch.arange(QUANTILES, dtype=torch.float64) + 0.5) / QUANTILES
    ours, theirs = (torch.quantile(values.double(), levels, dim=0) for values in (draws, gold))
    return float((ours - theirs).abs().mean())


def std_ratio(draws: Tensor, gold: Tensor) -> float:
    """Geometric mean over columns of the ratio of standard deviations."""
    ours, theirs = (values.double().std(0).clamp(min=1e-12) for values in (draws, gold))
    return float((ours / theirs).log().mean().exp())


def rmse_mean(draws: Tensor, gold: Tensor) -> float:
    """Root mean square over columns of the difference of the means."""
    return float((draws.double().mean(0) - gold.double().mean(0)).square().mean().sqrt())


def floor_w1(gold: Tensor) -> float:
    """Distance below which two posteriors cannot be told apart: the first half of the draws against all."""
    return w1(gold[: len(gold) // 2], gold)


def mean_test_ll(problem: Problem, outputs: Tensor) -> float:
    """Log predictive density of a held-out row, averaged over rows, from outputs ``[S, T, out]``."""
    outputs = outputs.double()
    log_prob = problem.log_likelihood(outputs, problem.targets(problem.y_test, torch.float64))
    return float((log_prob.logsumexp(0) - math.log(len(outputs))).mean())


def nuts_test_ll(gold: Gold) -> float:
    """The same of NUTS."""
    return mean_test_ll(gold.problem, gold.test)


# ---------------------------------------------------------------------- one run


@dataclass(frozen=True)
class Budget:
    """How long methods train and how finely they are looked at.

    Attributes:
        steps: Steps of the guides of this package.
        map_steps: Steps of the methods that need only point estimates.
        max_steps: Most steps of Pyro's guides, which train until their ELBO is flat.
        checkpoint: Steps between two looks at the distance to NUTS.
        checkpoint_draws: Networks sampled for a look.
        draws: Networks sampled at the end.
        elbo_particles: Samples of the final ELBO.
    """

    steps: int = 3000
    map_steps: int = 3000
    max_steps: int = 12_000
    checkpoint: int = 200
    checkpoint_draws: int = 500
    draws: int = 2000
    elbo_particles: int = 2000

    def schedule(self, method: str) -> Schedule:
        """Learning rate and end of a method's fit."""
        if method.startswith("Auto"):
            return Schedule(self.max_steps, flat_within=0.3)
        return Schedule(self.map_steps if method in ("ensemble", "dropout", "laplace_last") else self.steps)


@dataclass
class Run:
    """One method, trained once on one problem.

    Attributes:
        w1: Distance to NUTS.
        std_ratio: Spread over that of NUTS.
        rmse_mean: Difference of the means.
        test_ll: Log predictive density of held-out data.
        elbo: The ELBO and its standard error, or None.
        steps: Steps made.
        seconds: Processor time of the training.
        converged: Whether the ELBO was found flat; None if the number of steps was given.
        curve: Seconds and distance at each look.
        functions: Draws of the functions ``[S, columns]``.
    """

    w1: float
    std_ratio: float
    rmse_mean: float
    test_ll: float
    elbo: tuple[float, float] | None
    steps: int
    seconds: float
    converged: bool | None
    functions: Tensor
    curve: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])

    def seconds_to(self, distance: float) -> float | None:
        """Seconds until the distance was first as small as this; None if it never was."""
        return next((seconds for seconds, reached in self.curve if reached <= distance), None)


class _Clock:
    """Processor time of the training, without that of the looks at it.

    Processor time and not wall time: other processes on the machine then count little.
    """

    def __init__(self) -> None:
        self.began = time.process_time()
        self.paused = 0.0

    def __call__(self) -> float:
        return time.process_time() - self.began - self.paused

    def pause(self, work: Callable[[], float]) -> float:
        """Do something that does not count, and leave the stream of random numbers as it was."""
        began = time.process_time()
        with torch.random.fork_rng(devices=[]):
            result = work()
        self.paused += time.process_time() - began
        return result


def run_method(gold: Gold, name: str, seed: int, budget: Budget) -> Run:
    """Train a method on a problem and measure it.

    Args:
        gold: The problem and its draws by NUTS.
        name: The method.
        seed: Of everything.
        budget: How long.
    """
    problem = gold.problem
    pyro.set_rng_seed(seed)
    method = METHODS[name](problem)
    schedule = budget.schedule(name)
    x_grid, x_test = (torch.tensor(x, dtype=torch.float32) for x in (problem.x_grid, problem.x_test))

    def functions(num: int) -> Tensor:
        return problem.functions(method.outputs(x_grid, num).double())

    curve: list[tuple[float, float]] = []
    done = 0
    clock = _Clock()

    def look() -> None:
        nonlocal done
        done += 1
        if done % budget.checkpoint == 0:
            seconds = clock()
            curve.append((seconds, clock.pause(lambda: w1(functions(budget.checkpoint_draws), gold.grid))))

    # What the ratios are taken to needs no looks of its own.
    steps = method.train(schedule, (lambda: None) if name == "AutoNormal" else look)
    seconds = clock()
    draws = functions(budget.draws)
    distance = w1(draws, gold.grid)
    curve.append((seconds, distance))
    return Run(
        w1=distance,
        std_ratio=std_ratio(draws, gold.grid),
        rmse_mean=rmse_mean(draws, gold.grid),
        test_ll=mean_test_ll(problem, method.outputs(x_test, budget.draws)),
        elbo=method.elbo(budget.elbo_particles),
        steps=steps,
        seconds=seconds,
        converged=schedule.converged if schedule.flat_within is not None else None,
        curve=curve,
        functions=draws,
    )


# ---------------------------------------------------------------------- time per step


def step_ms(problem: Problem, names: Sequence[str], *, steps: int, repeats: int) -> dict[str, float]:
    """Median milliseconds of a training step of each method, from short runs in alternating order.

    Each run starts anew. Its first fifth does not count: there Pyro checks the model, and caches fill.

    Args:
        problem: What to train on.
        names: The methods.
        steps: Steps of each run.
        repeats: Runs of each method.
    """
    times: dict[str, list[float]] = {name: [] for name in names}

    def run(name: str) -> None:
        method: Method = METHODS[name](problem)
        ends: list[float] = []
        method.train(Schedule(steps), lambda: ends.append(time.perf_counter()))
        counted = ends[steps // 5 :]
        times[name] += [after - before for before, after in pairwise(counted)]

    alternate({name: (lambda name=name: run(name)) for name in names}, repeats, warm_up=0)
    return {name: 1e3 * median(seconds) for name, seconds in times.items()}


# ---------------------------------------------------------------------- figures


def summarise(runs: Sequence[Run], base: Sequence[Run]) -> dict[str, float | None]:
    """The figures of a method on a problem: medians over seeds, None where there is none.

    Args:
        runs: Runs of the method, one per seed.
        base: Runs of AutoNormal with the same seeds, which ratios are taken to.
    """
    pairs = list(zip(runs, base, strict=True))
    return {
        "w1_ratio": _median([run.w1 / ref.w1 for run, ref in pairs]),
        "std_ratio": _median([run.std_ratio for run in runs]),
        "rmse_mean": _median([run.rmse_mean for run in runs]),
        "elbo": _median([None if run.elbo is None else run.elbo[0] for run in runs]),
        "test_ll": _median([run.test_ll for run in runs]),
        "seconds_ratio": _median([_over(run.seconds_to(ref.w1), ref.seconds) for run, ref in pairs]),
    }


def _over(seconds: float | None, base: float) -> float | None:
    return None if seconds is None else seconds / base


def _median(values: Sequence[float | None]) -> float | None:
    """Median, where None counts as more than any number: what was never reached takes for ever."""
    middle = median(math.inf if value is None else value for value in values)
    return middle if math.isfinite(middle) else None
