"""ELBO of guides on ordinary Pyro models of up to 64 latents.

* Models: ``schools`` (eight schools, centred: a funnel) and ``schools_apart`` (the same, not centred); ``cancer`` and
  ``digits``, logistic regressions on data of scikit-learn (30 features; 64, even digits against odd ones); ``varying``,
  a logistic regression whose intercept varies by 20 groups, with a learned spread, on generated data.
* Guides: ``hypernet`` is ``AutoHypernet(model, example=())`` as it is by default; ``n20`` the same with 20 noise inputs
  at most, ``usual_gradient`` without gradients through the draws alone; Pyro's ``AutoNormal``,
  ``AutoMultivariateNormal``, ``AutoLowRankMultivariateNormal`` and ``AutoIAFNormal``.

All are fitted by ``fit`` as it is by default: 3000 steps of 16 samples at a learning rate of 0.01.

``--loop plain`` is a loop of Pyro's ``SVI`` instead, with ``pyro.optim.Adam`` at 0.01 and nothing of this package but
the guide: no hooks, parameter groups, schedule or bound on gradients. It runs ``hypernet`` and ``AutoNormal`` with each
number of ``--particles``, and measures after each number of ``--steps``; ``tanh`` is a sixth model there, the weights
of a 1-10-1 tanh network on 30 rows, none of them drawn conditionally. Its keys are
``MODEL/GUIDE/pPARTICLES/sSTEPS/elbo``, medians over five seeds, and ``worst_gap``, the least ELBO of ``hypernet`` less
that of ``AutoNormal``.

Keys of fit: ``MODEL/GUIDE/elbo`` (nats, from 20,000 fresh samples), ``MODEL/GUIDE/elbo_se`` and ``MODEL/GUIDE/seconds``
(processor time of the fit), medians over seeds.

Run: ``python benchmarks/pyro_models.py [--models NAME...] [--guides NAME...] [--seeds N] [--quick] [--json FILE]``, or
with ``--loop plain [--particles N...] [--steps N...]``.
"""

from __future__ import annotations

import argparse
import logging
import math
import time
import warnings
from collections.abc import Callable
from statistics import median
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from _common import parser, report
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import (
    AutoIAFNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from sklearn.datasets import load_breast_cancer, load_digits
from torch import Tensor, nn

from bayeshnet import AutoHypernet, BayesianModel, fit, likelihoods
from bayeshnet.entropy import ChangeOfVariables
from bayeshnet.families import Hypernet

Model = Callable[[], None]

_EFFECTS = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
_ERRORS = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])


# ---------------------------------------------------------------------- the models


def _schools(centred: bool) -> Model:
    def model() -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("schools", len(_ERRORS)):
            if centred:
                theta = pyro.sample("theta", dist.Normal(mu, tau))
            else:
                theta = mu + tau * pyro.sample("eta", dist.Normal(0.0, 1.0))
            pyro.sample("obs", dist.Normal(theta, _ERRORS), obs=_EFFECTS)

    return model


def _logistic(x: Any, y: Any) -> Model:
    inputs, labels = torch.as_tensor(x, dtype=torch.float32), torch.as_tensor(y, dtype=torch.float32)
    inputs = (inputs - inputs.mean(0)) / (inputs.std(0) + 1e-3)

    def model() -> None:
        weights = pyro.sample("weights", dist.Normal(torch.zeros(inputs.shape[1]), 1.0).to_event(1))
        logits = (weights @ inputs.t()).squeeze(-2) if weights.dim() > 1 else inputs @ weights
        with pyro.plate("rows", len(labels)):
            pyro.sample("obs", dist.Bernoulli(logits=logits), obs=labels)

    return model


def _varying() -> Model:
    generator = torch.Generator().manual_seed(0)
    groups, rows = 20, 200
    x = torch.randn(rows, generator=generator)
    group = torch.randint(groups, (rows,), generator=generator)
    truth = torch.randn(groups, generator=generator)[group] + 0.8 * x
    y = torch.bernoulli(truth.sigmoid(), generator=generator)
    one_hot = torch.nn.functional.one_hot(group, groups).float()

    def model() -> None:
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        spread = pyro.sample("spread", dist.HalfNormal(1.0))
        with pyro.plate("groups", groups):
            intercepts = pyro.sample("intercepts", dist.Normal(0.0, spread))
        logits = intercepts @ one_hot.t() + slope * x
        with pyro.plate("rows", rows):
            pyro.sample("obs", dist.Bernoulli(logits=logits), obs=y)

    return model


def _digits() -> Model:
    x, y = load_digits(return_X_y=True)
    return _logistic(x, y % 2)


def _tanh() -> Model:
    generator = torch.Generator().manual_seed(0)
    x = torch.linspace(-2.0, 2.0, 30).unsqueeze(-1)
    y = ((2.0 * x).sin() + 0.1 * torch.randn(30, 1, generator=generator)).squeeze(-1)
    net = nn.Sequential(nn.Linear(1, 10), nn.Tanh(), nn.Linear(10, 1))
    network = BayesianModel(net, likelihood=likelihoods.Normal(scale=0.1))

    def model() -> None:
        network(x, y)

    return model


MODELS: dict[str, Callable[[], Model]] = {
    "schools": lambda: _schools(True),
    "schools_apart": lambda: _schools(False),
    "varying": _varying,
    "cancer": lambda: _logistic(*load_breast_cancer(return_X_y=True)),
    "digits": _digits,
    "tanh": _tanh,
}
_OF_FIT = [name for name in MODELS if name != "tanh"]


def _at_most_20(model: Model) -> AutoHypernet:
    size = AutoHypernet(model, example=()).latent_dim
    return AutoHypernet(model, example=(), family=Hypernet(noise_dim=min(20, size)))


def _usual_gradient(model: Model) -> AutoHypernet:
    return AutoHypernet(model, example=(), family=Hypernet(estimator=ChangeOfVariables(path_gradients=False)))


GUIDES: dict[str, Callable[[Model], Any]] = {
    "hypernet": lambda model: AutoHypernet(model, example=()),
    "n20": _at_most_20,
    "usual_gradient": _usual_gradient,
    "AutoNormal": AutoNormal,
    "AutoMultivariateNormal": AutoMultivariateNormal,
    "AutoLowRankMultivariateNormal": AutoLowRankMultivariateNormal,
    "AutoIAFNormal": AutoIAFNormal,
}


# ---------------------------------------------------------------------- the measure


def fitted(model: Model, guide: str, *, seed: int, steps: int) -> tuple[Any, float]:
    """A fitted guide, and the seconds that it took."""
    pyro.set_rng_seed(seed)
    pyro.clear_param_store()
    made = GUIDES[guide](model)
    began = time.process_time()
    fit(model, made, (), steps, progress=False)
    return made, time.process_time() - began


def _plain(model: Model, guide: str, *, seed: int, particles: int, steps: list[int], batches: int) -> dict[int, float]:
    """ELBO after each number of steps of Pyro's SVI alone."""
    pyro.set_rng_seed(seed)
    pyro.clear_param_store()
    made = GUIDES[guide](model)
    loss = Trace_ELBO(num_particles=particles, vectorize_particles=particles > 1, max_plate_nesting=1)
    svi = SVI(model, made, pyro.optim.Adam({"lr": 0.01}), loss)
    found: dict[int, float] = {}
    with pyro.validation_enabled(False):
        for step in range(1, max(steps) + 1):
            svi.step()
            if step in steps:
                with torch.random.fork_rng(devices=[]):
                    found[step] = elbo(model, made, batches=batches)[0]
    return found


def _plain_loops(args: argparse.Namespace, batches: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows and summary of ``--loop plain``."""
    rows: list[dict[str, Any]] = []
    summary: dict[str, Any] = {}
    gaps: list[float] = []
    for name in args.models:
        model = MODELS[name]()
        for particles in args.particles:
            medians: dict[tuple[str, int], float] = {}
            for guide in ("hypernet", "AutoNormal"):
                options = {"particles": particles, "steps": args.steps, "batches": batches}
                found = [_plain(model, guide, seed=seed, **options) for seed in range(args.seeds)]
                for steps in args.steps:
                    values = [each[steps] for each in found]
                    medians[guide, steps] = median(values)
                    summary[f"{name}/{guide}/p{particles}/s{steps}/elbo"] = median(values)
                    extremes = {"elbo": median(values), "lowest": min(values), "highest": max(values)}
                    row = {"model": name, "guide": guide, "particles": particles, "steps": steps, **extremes}
                    rows.append(row)
                    print(row, flush=True)
            gaps += [medians["hypernet", steps] - medians["AutoNormal", steps] for steps in args.steps]
    return rows, {**summary, "worst_gap": min(gaps)}


@torch.no_grad()
def elbo(model: Model, guide: Any, *, batches: int) -> tuple[float, float]:
    """Mean and standard error from batches of 500 samples."""
    estimator = Trace_ELBO(num_particles=500, vectorize_particles=True, max_plate_nesting=1)
    values: Tensor = -torch.tensor([estimator.loss(model, guide) for _ in range(batches)], dtype=torch.float64)
    return float(values.mean()), float(values.std()) / math.sqrt(batches)


def main() -> None:
    """Fit, measure and report."""
    args = _arguments()
    logging.getLogger("pyro").setLevel(logging.WARNING)
    steps, batches = (100, 4) if args.quick else (3000, 40)
    if args.loop == "plain":
        report(*_plain_loops(args, batches), args)
        return
    if args.quick:  # too short for a sampler to settle
        warnings.simplefilter("ignore")
    rows: list[dict[str, Any]] = []
    summary: dict[str, Any] = {}
    for name in args.models:
        model = MODELS[name]()
        for guide in args.guides:
            found: list[tuple[float, float, float]] = []
            for seed in range(1 if args.quick else args.seeds):
                made, seconds = fitted(model, guide, seed=seed, steps=steps)
                found.append((*elbo(model, made, batches=batches), seconds))
            values = [value for value, _, _ in found]
            row = {"elbo": median(values), "elbo_se": max(error for _, error, _ in found)}
            row["seconds"] = median(seconds for _, _, seconds in found)
            extremes = {"lowest": min(values), "highest": max(values)}
            rows.append({"model": name, "guide": guide, **row, **extremes})
            summary |= {f"{name}/{guide}/{key}": value for key, value in row.items()}
    report(rows, summary, args)


def _arguments() -> argparse.Namespace:
    made = parser(__doc__.splitlines()[0] if __doc__ else "")
    made.add_argument("--models", nargs="+", choices=list(MODELS), metavar="MODEL")
    made.add_argument("--guides", nargs="+", choices=list(GUIDES), default=list(GUIDES), metavar="GUIDE")
    made.add_argument("--seeds", type=int, help="number of seeds; medians are reported")
    made.add_argument("--loop", choices=["fit", "plain"], default="fit", help="fit, or Pyro's SVI alone")
    made.add_argument("--particles", nargs="+", type=int, default=[1, 4, 16], metavar="N", help="of plain loops")
    made.add_argument("--steps", nargs="+", type=int, default=[300, 3000], metavar="N", help="of plain loops")
    args = made.parse_args()
    plain = args.loop == "plain"
    args.models = args.models or (list(MODELS) if plain else _OF_FIT)
    args.seeds = args.seeds or (1 if args.quick else 5 if plain else 3)
    args.steps = [50] if plain and args.quick else args.steps
    return args


if __name__ == "__main__":
    main()
