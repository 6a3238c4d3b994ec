"""Time of a training step of a frozen trunk with a Bayesian last layer, against that layer alone.

100,000 rows of 20 numbers, a frozen trunk of two hidden layers of 256 and 64 units, a Bayesian linear layer, batches of
1,000 rows and 16 particles:

* features: the whole network, whose trunk is evaluated once, ``fit(model, guide, (model.precompute(x), y))``;
* layer: a model of ``nn.Linear(64, 1)`` alone, with the same numbers as a plain tensor;
* trunk: the whole network without ``precompute``, which evaluates its trunk at every step.

Pairs of fits in turn, CPU time of the process; ``step_ratio`` is the median over the pairs of features / layer, with a
mean-field guide, whose own work is least; ``step_ratio_default`` is that with the default guide.

Run: ``python benchmarks/frozen_trunk.py [--quick] [--json FILE]``.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from _common import parser, report
from torch import Tensor, nn

import bayeshnet
from bayeshnet import likelihoods

ROWS, BATCH, WIDTH = 100_000, 1_000, 64


def data() -> tuple[Tensor, Tensor]:
    x = torch.randn(ROWS, 20)
    return x, x[:, 0].sin() + 0.5 * x[:, 1] + 0.1 * torch.randn(ROWS)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(20, 256), nn.Tanh(), nn.Linear(256, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1))


def fitted(model: Any, x: Tensor, y: Tensor, steps: int, *, plain: bool = True) -> Callable[[], None]:
    options: dict[str, Any] = {"family": "mean_field", "conditional": None} if plain else {}
    guide = bayeshnet.AutoHypernet(model, example=(x, y), **options)

    def run() -> None:
        bayeshnet.fit(model, guide, (x, y), steps, batch_size=BATCH, progress=False)

    return run


def cpu_seconds(run: Callable[[], None]) -> float:
    gc.collect(0)
    start = time.process_time()
    run()
    return time.process_time() - start


def main() -> None:
    args = parser(__doc__ or "").parse_args()
    steps, pairs = (50, 7) if args.quick else (100, 21)
    torch.manual_seed(0)
    x, y = data()
    noise = likelihoods.Normal(scale=0.1)
    options = {"bayesian": "last_layer", "others": "frozen"}
    model = bayeshnet.BayesianModel(network(), likelihood=noise, dataset_size=ROWS, **options)
    once = cpu_seconds(lambda: model.precompute(x))
    features = model.precompute(x)
    alone = bayeshnet.BayesianModel(nn.Linear(WIDTH, 1), likelihood=noise, dataset_size=ROWS)
    few = max(steps // 10, 5)
    runs = {
        "features": (fitted(model, features, y, steps), steps),
        "layer": (fitted(alone, features.plain(), y, steps), steps),
        "trunk": (fitted(model, x, y, few), few),
        "features, default guide": (fitted(model, features, y, few, plain=False), few),
        "layer, default guide": (fitted(alone, features.plain(), y, few, plain=False), few),
    }
    for run, _ in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(pairs):
        for name in runs if i % 2 else reversed(runs):
            run, number = runs[name]
            times[name].append(cpu_seconds(run) / number)

    def ratio(one: str, other: str) -> float:
        return median(a / b for a, b in zip(times[one], times[other], strict=True))

    rows = [{"case": name, "ms per step": 1e3 * median(found)} for name, found in times.items()]
    summary = {
        "step_ratio": ratio("features", "layer"),
        "step_ratio_default": ratio("features, default guide", "layer, default guide"),
        "trunk_ratio": ratio("trunk", "layer"),
        "precompute_s": once,
    }
    report(rows, summary, args)


if __name__ == "__main__":
    main()
