"""ELBO of guides on ordinary Pyro models of up to 64 latents.

* Models: ``schools`` (eight schools, centred: a funnel) and ``schools_apart`` (the same, not centred); ``cancer`` and
  ``digits``, logistic regressions on data of scikit-learn (30 features; 64, even digits against odd ones); ``varying``,
  a logistic regression whose intercept varies by 20 groups, with a learned spread, on generated data.
* Guides: ``hypernet`` is ``AutoHypernet(model, example=())`` as it is by default; ``n20`` the same with 20 noise inputs
  at most, ``usual_gradient`` without gradients through the draws alone; Pyro's ``AutoNormal``,
  ``AutoMultivariateNormal``, ``AutoLowRankMultivariateNormal`` and ``AutoIAFNormal``.

All are fitted by ``fit`` as it is by default: 3000 steps of 16 samples at a learning rate of 0.01.

Keys: ``MODEL/GUIDE/elbo`` (nats, from 20,000 fresh samples), ``MODEL/GUIDE/elbo_se`` and ``MODEL/GUIDE/seconds``
(processor time of the fit), medians over seeds.

Run: ``python benchmarks/pyro_models.py [--models NAME...] [--guides NAME...] [--seeds N] [--quick] [--json FILE]``.
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
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import (
    AutoIAFNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from sklearn.datasets import load_breast_cancer, load_digits
from torch import Tensor

from bayeshnet import AutoHypernet, fit
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


MODELS: dict[str, Callable[[], Model]] = {
    "schools": lambda: _schools(True),
    "schools_apart": lambda: _schools(False),
    "varying": _varying,
    "cancer": lambda: _logistic(*load_breast_cancer(return_X_y=True)),
    "digits": _digits,
}


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
    made.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS), metavar="MODEL")
    made.add_argument("--guides", nargs="+", choices=list(GUIDES), default=list(GUIDES), metavar="GUIDE")
    made.add_argument("--seeds", type=int, default=3, help="number of seeds; medians are reported")
    return made.parse_args()


if __name__ == "__main__":
    main()
