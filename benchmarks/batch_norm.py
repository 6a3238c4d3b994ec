"""A small Bayesian CNN on scikit-learn's digits with BatchNorm, against the same network with GroupNorm or neither.

Four layers, an ``AutoHypernet`` as by default, two thirds of the 1797 images for training; what is measured is the
accuracy of the posterior predictive on the others. The same seeds (split, weights, batches) serve all networks.

Run: ``python benchmarks/batch_norm.py [--quick] [--json FILE] [--seeds N] [--mode draws|batch|running]``.
"""

from __future__ import annotations

import time
from statistics import mean, stdev
from typing import Any

import pyro
import torch
from _common import parser, report
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import bayeshnet
from bayeshnet import likelihoods

CHANNELS, BATCH, DRAWS = (8, 16), 100, 100
NORMS = {
    "batch_norm": nn.BatchNorm2d,
    "group_norm": lambda channels: nn.GroupNorm(4, channels),
    "none": lambda channels: nn.Identity(),
}


def digits(seed: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Images ``[B, 1, 8, 8]`` in -1..1 and labels: for training, and others."""
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 8.0 - 1.0
    y = torch.tensor(labels)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    train, test = order[:1200], order[1200:]
    return (x[train], y[train]), (x[test], y[test])


def network(norm: Any) -> nn.Sequential:
    first, second = CHANNELS
    return nn.Sequential(
        nn.Conv2d(1, first, 3, padding=1),
        norm(first),
        nn.ReLU(),
        nn.Conv2d(first, second, 3, stride=2, padding=1),
        norm(second),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * second, 10),
    )


def accuracy(name: str, seed: int, *, steps: int, options: dict[str, Any]) -> tuple[float, float]:
    """Accuracy on the images that were left out, and seconds of the fit."""
    (x, y), (x_test, y_test) = digits(seed)
    pyro.set_rng_seed(seed)
    likelihood = likelihoods.Categorical()
    net = network(NORMS[name])
    model = bayeshnet.BayesianModel(net, likelihood=likelihood, dataset_size=len(x), **options)
    loader = DataLoader(TensorDataset(x, y), batch_size=BATCH, shuffle=True, drop_last=True)
    guide = bayeshnet.AutoHypernet(model, example=(x, y))
    start = time.perf_counter()
    bayeshnet.fit(model, guide, loader, steps=steps, num_particles=4, progress=False)
    seconds = time.perf_counter() - start
    pyro.set_rng_seed(seed)
    probs = bayeshnet.predict(model, guide, x_test, num_samples=DRAWS).probs
    return float((probs.argmax(-1) == y_test).double().mean()), seconds


def main() -> None:
    """Train and compare."""
    command = parser(__doc__ or "")
    command.add_argument("--seeds", type=int, default=None, help="number of seeds; five, one with --quick")
    command.add_argument("--steps", type=int, default=None, help="steps of each fit; 2000, 200 with --quick")
    command.add_argument("--mode", default="draws", help="batch_norm of the model: draws, batch or running")
    args = command.parse_args()
    seeds = args.seeds or (1 if args.quick else 5)
    steps = args.steps or (200 if args.quick else 2000)
    rows: list[dict[str, Any]] = []
    summary: dict[str, float] = {}
    for name in NORMS:
        options = {"batch_norm": args.mode} if name == "batch_norm" else {}
        found = [accuracy(name, seed, steps=steps, options=options) for seed in range(seeds)]
        scores = [score for score, _ in found]
        rows.append(
            {
                "network": name,
                "accuracy": mean(scores),
                "lowest": min(scores),
                "highest": max(scores),
                "seconds": mean(seconds for _, seconds in found),
            }
        )
        summary[f"digits/{name}/accuracy"] = mean(scores)
        if seeds > 1:
            summary[f"digits/{name}/accuracy_se"] = stdev(scores) / seeds**0.5
    summary["difference"] = summary["digits/batch_norm/accuracy"] - summary["digits/group_norm/accuracy"]
    report(rows, summary, args)


if __name__ == "__main__":
    main()
