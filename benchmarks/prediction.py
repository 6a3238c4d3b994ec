"""Predictions that do not fit into memory: 100,000 rows by 1000 networks, in the memory and time of a small one.

A 10-50-1 network with inferred noise, and a guide that is not fitted (its draws cost the same). Two measurements:

* ``peak_gb``: by how much ``predict_summary`` of all rows, by 1000 networks, lets the resident memory of a fresh
  process grow; everything kept would be .4 GB for outputs and as much again for each of several tensors of that size.
* ``time_ratio``: its processor time per row and network, over that of ``predict`` for 2,000 rows in one call with
  the same numbers taken from it afterwards: mean, standard deviation and its parts, three quantiles. Both get draws
  that are made already: the time that a guide takes for 1000 of them does not depend on the rows. ``call_ratio`` is
  over ``predict`` alone, of which no number is taken. Processor time, since it depends less on what else runs; calls
  of 2,000 rows are made before, between and after.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import pyro.distributions as dist
import torch
from _common import parser, peak_memory, report, run_fresh
from torch import Tensor, nn

from bayeshnet import AutoHypernet, BayesianModel, likelihoods, predict, predict_summary

ROWS, NETWORKS, CALL_ROWS = 100_000, 1000, 2000
LEVELS = (0.05, 0.5, 0.95)


def problem(rows: int) -> tuple[BayesianModel, AutoHypernet, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(rows, 10)
    example = (x[:100], x[:100, 0])
    net = nn.Sequential(nn.Linear(10, 50), nn.Tanh(), nn.Linear(50, 1))
    model = BayesianModel(net, likelihood=likelihoods.Normal(scale=dist.Gamma(6.0, 6.0)))
    return model, AutoHypernet(model, example=example), x


def streamed(model: BayesianModel, guide: Any, x: Tensor) -> Any:
    return predict_summary(model, guide, x, NETWORKS, levels=LEVELS, generator=torch.Generator().manual_seed(0))


def in_one_call(model: BayesianModel, guide: Any, x: Tensor) -> Any:
    pred = predict(model, guide, x, NETWORKS)
    return pred.mean, pred.epistemic, pred.aleatoric, pred.std, pred.quantile(LEVELS)


def seconds(fn: Callable[[], Any]) -> tuple[float, float]:
    """Processor and wall time."""
    wall, own = time.perf_counter(), time.process_time()
    fn()
    return time.process_time() - own, time.perf_counter() - wall


def measure_memory(rows: int) -> None:
    """In a process of its own: a call for a few rows first, so that libraries are loaded."""
    model, guide, x = problem(rows)
    predict_summary(model, guide, x[:10], 10)
    before, peak = peak_memory(lambda: streamed(model, guide, x))
    print(json.dumps((peak - before) / 1e9))


def main() -> None:
    args_of = parser(__doc__.splitlines()[0])
    args_of.add_argument("--memory-of", type=int, metavar="ROWS", help="only this, in this process")
    args = args_of.parse_args()
    if args.memory_of:
        measure_memory(args.memory_of)
        return
    rows, rounds, repeats = (4000, 1, 1) if args.quick else (ROWS, 1, 5)
    peak_gb = run_fresh(sys.argv[0], "--memory-of", str(rows))
    model, guide, x = problem(rows)
    draws, few = guide.sample_posterior(NETWORKS), x[:CALL_ROWS]
    calls: list[tuple[float, float]] = []
    bare: list[tuple[float, float]] = []
    streams: list[tuple[float, float]] = []
    in_one_call(model, draws, few)

    def small() -> None:
        for _ in range(repeats):
            calls.append(seconds(lambda: in_one_call(model, draws, few)))
            bare.append(seconds(lambda: predict(model, draws, few)))

    small()
    for _ in range(rounds):
        streams.append(seconds(lambda: streamed(model, draws, x)))
        small()
    cases = (
        ("streaming", rows, streams),
        ("one call, same numbers", CALL_ROWS, calls),
        ("one call, draws only", CALL_ROWS, bare),
    )
    table: list[dict[str, Any]] = []
    for name, num, times in cases:
        own, wall = (median(time[i] for time in times) for i in range(2))
        each = 1e9 * own / num / NETWORKS
        table.append({"case": name, "rows": num, "cpu s": own, "wall s": wall, "ns / row / network": each})
    per_row = [row["ns / row / network"] for row in table]
    summary = {
        "peak_gb": peak_gb,
        "time_ratio": per_row[0] / per_row[1],
        "call_ratio": per_row[0] / per_row[2],
    }
    report(table, summary, args)


if __name__ == "__main__":
    main()
