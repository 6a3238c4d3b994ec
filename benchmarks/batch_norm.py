"""A small Bayesian CNN on scikit-learn's digits with BatchNorm, against the same network with GroupNorm or neither.

Four layers, two thirds of the 1797 images for training; what is measured is the accuracy of the posterior predictive on
the others. Two guides: independent Gaussian weights (``mean_field``), whose networks differ most from each other, and
the default. With ``"running"`` the batch norm uses running statistics, as PyTorch does, instead of those of each draw.
The same seeds (split, weights, batches) serve all networks.

Run: ``python benchmarks/batch_norm.py [--quick] [--json FILE] [--seeds N] [--steps N] [--guides G ...]``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
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

CHANNELS, BATCH, PARTICLES, DRAWS = (8, 16), 100, 2, 100
NORMS: dict[str, tuple[Callable[[int], nn.Module], dict[str, Any]]] = {
    "batch_norm": (nn.BatchNorm2d, {}),
    "batch_norm_running": (nn.BatchNorm2d, {"batch_norm": "running"}),
    "group_norm": (lambda channels: nn.GroupNorm(4, channels), {}),
    "none": (lambda _: nn.Identity(), {}),
}
GUIDES: dict[str, dict[str, Any]] = {"mean_field": {"conditional": None, "family": "mean_field"}, "default": {}}


def digits(seed: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Images ``[B, 1, 8, 8]`` in -1..1 and labels: for training, and others."""
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 8.0 - 1.0
    y = torch.tensor(labels)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    train, test = order[:1200], order[1200:]
    return (x[train], y[train]), (x[test], y[test])


def network(norm: Callable[[int], nn.Module]) -> nn.Sequential:
    """Two convolutions and a linear layer, for images ``[B, 1, 8, 8]``."""
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


def accuracy(name: str, guide: str, seed: int, *, steps: int) -> tuple[float, float]:
    """Accuracy on the images that were left out, and seconds of processor time of the fit."""
    (x, y), (x_test, y_test) = digits(seed)
    norm, options = NORMS[name]
    pyro.set_rng_seed(seed)
    model = bayeshnet.BayesianModel(network(norm), likelihood=likelihoods.Categorical(), dataset_size=len(x), **options)
    loader = DataLoader(TensorDataset(x, y), batch_size=BATCH, shuffle=True, drop_last=True)
    q = bayeshnet.AutoHypernet(model, example=(x, y), **GUIDES[guide])
    start = time.process_time()
    bayeshnet.fit(model, q, loader, steps=steps, num_particles=PARTICLES, progress=False)
    seconds = time.process_time() - start
    probs = bayeshnet.predict(model, q, x_test, num_samples=DRAWS).probs
    return float((probs.argmax(-1) == y_test).double().mean()), seconds


def main() -> None:
    """Train and compare."""
    command = parser(__doc__ or "")
    command.add_argument("--seeds", type=int, default=None, help="number of seeds; five, one with --quick")
    command.add_argument("--steps", type=int, default=None, help="steps of each fit; 500, 100 with --quick")
    command.add_argument("--guides", nargs="+", choices=list(GUIDES), default=list(GUIDES), help="some guides only")
    args = command.parse_args()
    seeds = args.seeds or (1 if args.quick else 5)
    steps = args.steps or (100 if args.quick else 500)
    rows: list[dict[str, Any]] = []
    summary: dict[str, float] = {}
    for guide in args.guides:
        prefix = "digits" if guide == "mean_field" else f"digits_{guide}"
        for name in NORMS:
            found = [accuracy(name, guide, seed, steps=steps) for seed in range(seeds)]
            scores = [score for score, _ in found]
            row: dict[str, Any] = {"guide": guide, "network": name, "accuracy": mean(scores)}
            row |= {"lowest": min(scores), "highest": max(scores), "seconds": mean(time for _, time in found)}
            rows.append(row)
            summary[f"{prefix}/{name}/accuracy"] = mean(scores)
            if seeds > 1:
                summary[f"{prefix}/{name}/accuracy_se"] = stdev(scores) / seeds**0.5
        ours, theirs = (summary[f"{prefix}/{name}/accuracy"] for name in ("batch_norm", "group_norm"))
        summary["difference" if guide == "mean_field" else f"difference_{guide}"] = ours - theirs
    report(rows, summary, args)


if __name__ == "__main__":
    main()
