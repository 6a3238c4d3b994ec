"""How close posteriors come to NUTS in function space, against a converged ``AutoNormal``.

Each method is trained on each problem with each seed. For every function (an output at a grid input; the probability of
class 1 of a classification) its draws are compared with those of NUTS: the Wasserstein-1 distance, from 400 quantiles,
averaged over functions.

* Problems: files of draws by ``--npz FILE`` (repeatable; the form is that of ``shared/data/nuts``), named by their
  stem, and ``toy2`` (1-30-30-1), ``moons`` (2-50-2), ``moons2`` (2-30-30-2) and ``multi`` (2-50-3), all tanh, whose
  draws the benchmark makes with Pyro's NUTS and keeps in ``--cache``.
* Methods: ``default`` is ``AutoHypernet(model, example=...)``, ``mf_body`` the same with ``family="mean_field"``,
  ``hyper_plain`` with ``conditional=None``; ``AutoNormal``, ``AutoLowRank`` (rank 20) and ``AutoMultivariateNormal``
  (up to 500 weights) are Pyro's; ``ensemble`` is five MAP networks, ``dropout`` has rate 0.05, ``laplace_last`` is a
  MAP network with the Laplace approximation of its last layer.
* ``AutoNormal``, which is always run, and Pyro's other guides train until the slope of their ELBO over the last 2000
  steps is within its standard error and then let the learning rate fall, at most 12,000 steps in all. ``--steps`` is
  for the guides of this package. All use 8 samples a step. Seconds are processor time on one thread, with all of the
  training counted and nothing of the evaluation.

Keys, medians over seeds: ``PROBLEM/METHOD/w1_ratio`` (over that of ``AutoNormal`` with the same seed), ``/std_ratio``
(to NUTS, geometric mean), ``/rmse_mean``, ``/elbo`` (2000 fresh samples), ``/test_ll``, ``/ms_ratio`` (of a step, over
``AutoNormal``'s, from short runs in alternating order) and ``/seconds_ratio`` (seconds until the distance was first
that of the trained ``AutoNormal``, over its seconds). null: there is none, or it was never reached.

Run: ``python benchmarks/posterior_quality.py [--npz FILE]... [--problems NAME...] [--methods NAME...] [--seeds N...]
[--steps N] [--cache DIR] [--quick] [--json FILE] [--out PICTURE]``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from _common import parser, report
from _posterior_methods import FULL_RANK_LIMIT, METHODS
from _posterior_nuts import QUICK, NutsSettings, cached, default_cache, gold_standard
from _posterior_picture import draw
from _posterior_problems import SELF_SAMPLED, Gold, from_file
from _posteriors import Budget, Run, floor_w1, nuts_test_ll, run_method, step_ms, summarise
from torch import Tensor

BASE = "AutoNormal"
QUICK_BUDGET = Budget(
    steps=150, map_steps=300, max_steps=400, checkpoint=50, checkpoint_draws=300, draws=1000, elbo_particles=400
)


def problems_command_line(description: str) -> argparse.ArgumentParser:
    """Problems, seeds, steps and the cache."""
    made = parser(description)
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    made.add_argument("--npz", type=Path, action="append", default=[], metavar="FILE", help="a problem with its draws")
    made.add_argument("--problems", nargs="+", metavar="NAME", help="stems of the files, toy2, moons, moons2, multi")
    made.add_argument("--seeds", nargs="+", type=int, metavar="N", help="by default 0 1 2; with --quick 0")
    made.add_argument("--steps", type=int, metavar="N", help="of the guides of this package; by default 3000")
    made.add_argument("--cache", type=Path, default=default_cache(), metavar="DIR", help="where draws are kept")
    return made


def command_line() -> argparse.ArgumentParser:
    made = problems_command_line(__doc__ or "")
    made.add_argument("--methods", nargs="+", metavar="NAME", choices=list(METHODS), help=", ".join(METHODS))
    made.add_argument("--out", type=Path, metavar="PICTURE", help="draw bands and spreads there")
    return made


def choose_problems(args: argparse.Namespace) -> list[Gold]:
    """The problems asked for, with their draws; by default all, with ``--quick`` only what is there in seconds."""
    files = {path.stem: path for path in args.npz}
    everything = [*files, *(name for name in SELF_SAMPLED if name != "tiny")]
    names = args.problems or ((list(files) or ["tiny"]) if args.quick else everything)
    unknown = [name for name in names if name not in files and name not in SELF_SAMPLED]
    if unknown:
        raise SystemExit(f"--problems: {', '.join(unknown)} not known; there are {', '.join(everything)}.")
    return [from_file(files[name]) if name in files else sampled(name, args) for name in names]


def sampled(name: str, args: argparse.Namespace) -> Gold:
    problem = SELF_SAMPLED[name]()
    settings = NutsSettings()
    if args.quick and cached(problem, args.cache, settings) is None:
        settings = QUICK
    return gold_standard(problem, args.cache, settings)


def choose_methods(args: argparse.Namespace, gold: Gold) -> list[str]:
    """The methods asked for that fit the problem, with the one that ratios are taken to first."""
    names = args.methods or list(METHODS)
    if gold.problem.num_weights > FULL_RANK_LIMIT:
        names = [name for name in names if name != "AutoMultivariateNormal"]
    return [BASE, *(name for name in names if name != BASE)]


def row_of(problem: str, method: str, runs: Sequence[Run], figures: dict[str, float | None]) -> dict[str, Any]:
    """A line of the table: the figures, and what they come from."""
    run = sorted(runs, key=lambda run: run.w1)[len(runs) // 2]  # the one of median distance, for what is no figure
    return {
        "problem": problem,
        "method": method,
        "w1": run.w1,
        "w1 range": "-".join(f"{end(run.w1 for run in runs):.3g}" for end in (min, max)),
        **figures,
        "elbo se": "" if run.elbo is None else run.elbo[1],
        "steps": run.steps,
        "seconds": run.seconds,
        "flat": "" if run.converged is None else run.converged,
    }


def nuts_row(gold: Gold) -> dict[str, Any]:
    return {
        "problem": gold.problem.name,
        "method": "NUTS, half",
        "w1": floor_w1(gold.grid),
        "test_ll": nuts_test_ll(gold),
        "seconds": gold.info.get("seconds", ""),
        "r-hat": gold.info.get("rhat", ""),
        "ess": gold.info.get("ess", ""),
    }


def main(argv: Sequence[str] | None = None) -> None:
    args = command_line().parse_args(argv)
    torch.set_num_threads(1)
    budget = QUICK_BUDGET if args.quick else Budget()
    if args.steps is not None:
        budget = Budget(**{**vars(budget), "steps": args.steps})
    seeds = args.seeds or ([0] if args.quick else [0, 1, 2])
    golds = {gold.problem.name: gold for gold in choose_problems(args)}
    rows: list[dict[str, Any]] = []
    summary: dict[str, float | None] = {}
    functions: dict[str, dict[str, Tensor]] = {}
    for name, gold in golds.items():
        methods = choose_methods(args, gold)
        runs: dict[str, list[Run]] = {method: [] for method in methods}
        for seed in seeds:
            for method in methods:
                began = time.perf_counter()
                runs[method].append(run_method(gold, method, seed, budget))
                last = runs[method][-1]
                print(
                    f"  {name} {method} seed {seed}: W1 {last.w1:.4f}, {time.perf_counter() - began:.0f} s", flush=True
                )
        ms = step_ms(gold.problem, methods, steps=20 if args.quick else 50, repeats=2 if args.quick else 6)
        functions[name] = {method: runs[method][0].functions for method in methods}
        for method in methods:
            figures = summarise(runs[method], runs[BASE]) | {"ms_ratio": ms[method] / ms[BASE]}
            summary.update({f"{name}/{method}/{key}": value for key, value in figures.items()})
            rows.append({**row_of(name, method, runs[method], figures), "ms": ms[method]})
        rows.append(nuts_row(gold))
    report(rows, summary, args)
    if args.out is not None:
        draw(golds, functions, args.out)


if __name__ == "__main__":
    main()
