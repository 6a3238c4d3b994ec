"""How close chains started from the default guide come to NUTS in function space, and what they cost.

The default guide is fitted, with 8 samples a step as in ``posterior_quality.py``, and ``refine`` makes 4,000 draws from
it. Draws of every function are compared with those of NUTS as there. The floor is the mean distance of two disjoint
random halves of the draws of NUTS (1,000 of 2,000 each), over ten divisions. Seconds are processor time on one thread.

Keys, medians over seeds: ``PROBLEM/w1_over_floor``, ``/guide_w1_over_floor``: distances of refined draws and of the
guide over the floor; ``/w1_ratio``: of refined draws over that of the guide; ``/std_ratio``: spread over that of NUTS;
``/seconds_over_fit``; ``/rhat``.

Run: ``python benchmarks/refine.py [--npz FILE]... [--problems NAME...] [--seeds N...] [--steps N] [--draws N]
[--cache DIR] [--quick] [--json FILE]``.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from statistics import median
from typing import Any

import pyro
import torch
from _common import report
from _posterior_problems import Gold
from _posteriors import std_ratio, w1
from posterior_quality import choose_problems, problems_command_line
from torch import Tensor

from bayeshnet import AutoHypernet, batched_forward, fit, refine
from bayeshnet.errors import ConvergenceWarning

PARTICLES = 8


def half_floor(gold: Tensor, divisions: int = 10) -> float:
    """Mean distance between two disjoint random halves of the draws ``[R, columns]``."""
    generator, half = torch.Generator().manual_seed(0), len(gold) // 2
    orders = [torch.randperm(len(gold), generator=generator) for _ in range(divisions)]
    return sum(w1(gold[order[:half]], gold[order[half : 2 * half]]) for order in orders) / divisions


def run(gold: Gold, seed: int, steps: int, num_draws: int) -> dict[str, Any]:
    """One fit and one refinement."""
    problem = gold.problem
    pyro.set_rng_seed(seed)
    model, data, net = problem.model(), problem.train_data(), problem.network()
    x_grid = torch.tensor(problem.x_grid, dtype=torch.float32)

    def functions(weights: Tensor) -> Tensor:
        return problem.functions(batched_forward(net, weights, x_grid).double())

    guide = AutoHypernet(model, example=data)
    began = time.process_time()
    fit(model, guide, data, steps, num_particles=PARTICLES, progress=False)
    fitted = time.process_time()
    of_guide = functions(guide.sample_posterior(num_draws)["weights"])
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # its number is in the table
        refined = refine(model, guide, data, num_draws=num_draws, progress=False)
    seconds = time.process_time() - start
    weights = refined["weights"]
    thinned = torch.linspace(0, len(weights) - 1, num_draws).long()
    draws, floor = functions(weights[thinned]), half_floor(gold.grid)
    found, before = w1(draws, gold.grid), w1(of_guide, gold.grid)
    return {
        "problem": problem.name,
        "seed": seed,
        "w1_over_floor": found / floor,
        "guide_w1_over_floor": before / floor,
        "w1_ratio": found / before,
        "std_ratio": std_ratio(draws, gold.grid),
        "seconds_over_fit": seconds / (fitted - began),
        "rhat": refined.diagnostics["rhat"],
        "gradients": int(refined.diagnostics["num_gradients"]),
        "seconds": seconds,
    }


def main(argv: Sequence[str] | None = None) -> None:
    made = problems_command_line(__doc__ or "")
    made.add_argument("--draws", type=int, metavar="N", help="by default 4000")
    args = made.parse_args(argv)
    steps = args.steps or (150 if args.quick else 3000)
    seeds = args.seeds or ([0] if args.quick else [0, 1, 2])
    rows: list[dict[str, Any]] = []
    for gold in choose_problems(args):
        for seed in seeds:
            rows.append(run(gold, seed, steps, args.draws or (500 if args.quick else 4000)))
            print(f"  {rows[-1]['problem']} seed {seed}: W1 over floor {rows[-1]['w1_over_floor']:.2f}", flush=True)
    summary = {
        f"{name}/{key}": median(row[key] for row in rows if row["problem"] == name)
        for name in dict.fromkeys(row["problem"] for row in rows)
        for key in ("w1_over_floor", "guide_w1_over_floor", "w1_ratio", "std_ratio", "seconds_over_fit", "rhat")
    }
    report(rows, summary, args)


if __name__ == "__main__":
    main()
