"""Regression on raw data, targets near 250,000: as they are, by ``standardize=``, and standardised by hand.

300 rows of five columns in units of their own for training and as many for the test; the standard deviation of the
noise is .46 of that of the targets. RMSE is in standard deviations of the targets, coverage that of the 90 % band.

Run: ``python benchmarks/raw_units.py [--quick] [--json FILE] [--steps N]``.
"""

from __future__ import annotations

import time
import warnings
from typing import Any

import pyro
import torch
from _common import parser, report
from torch import Tensor, nn

import bayeshnet
from bayeshnet import likelihoods
from bayeshnet.errors import UnitsWarning
from bayeshnet.models import Standardization

ROWS, NOISE, DRAWS = 300, 0.46, 1000


def data(seed: int) -> tuple[Tensor, Tensor]:
    """Years, areas, a proportion and two others; prices. Rows for training and for the test."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(2 * ROWS, 5, generator=generator)
    x = z * torch.tensor([10.0, 500.0, 0.02, 3.0, 1.0]) + torch.tensor([1990.0, 2000.0, 0.1, -4.0, 0.0])
    f = torch.sin(2.0 * z[:, 0]) + 0.6 * z[:, 1] * z[:, 2] + 0.3 * z[:, 3]
    f = (f - f.mean()) / f.std() * (1.0 - NOISE**2) ** 0.5
    return x, 250_000.0 + 80_000.0 * (f + NOISE * torch.randn(2 * ROWS, generator=generator))


def scores(method: str, seed: int, steps: int) -> dict[str, Any]:
    """RMSE, coverage, and seconds of processor time of the fit."""
    x, y = data(seed)
    known = Standardization.of(x[:ROWS], y[:ROWS])
    (loc, scale), unit = (known.inputs[0].loc, known.inputs[0].scale), known.targets  # pyright: ignore[reportOptionalMemberAccess] - of floating-point data
    by_hand = method == "by_hand"
    if by_hand and unit is not None:
        x, y = (x - loc) / scale, (y - unit.loc) / unit.scale
    train, test = (x[:ROWS], y[:ROWS]), (x[ROWS:], y[ROWS:])
    pyro.set_rng_seed(seed)
    net = nn.Sequential(nn.Linear(5, 50), nn.Tanh(), nn.Linear(50, 1))
    model = bayeshnet.BayesianModel(
        net, likelihood=likelihoods.Normal(scale=NOISE), standardize=train if method == "standardize" else None
    )
    guide = bayeshnet.AutoHypernet(model, example=train)
    start = time.process_time()
    bayeshnet.fit(model, guide, train, steps=steps, progress=False)
    seconds = time.process_time() - start
    pyro.set_rng_seed(seed)
    samples = bayeshnet.predict(model, guide, test[0], num_samples=DRAWS).samples
    low, high = torch.quantile(samples.double(), torch.tensor([0.05, 0.95]).double(), dim=0)
    inside = (test[1] >= low) & (test[1] <= high)
    rmse = (samples.double().mean(0) - test[1]).square().mean().sqrt() / test[1].double().std()
    return {"data": method, "rmse": float(rmse), "coverage": float(inside.double().mean()), "seconds": seconds}


def main() -> None:
    """Fit and compare."""
    command = parser(__doc__ or "")
    command.add_argument("--steps", type=int, default=None, help="steps of each fit; 3000, 200 with --quick")
    args = command.parse_args()
    steps = args.steps or (200 if args.quick else 3000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnitsWarning)  # what this is about
        rows = [scores(method, 0, steps) for method in ("raw", "standardize", "by_hand")]
    summary = {f"{row['data']}/{key}": row[key] for row in rows for key in ("rmse", "coverage")}
    report(rows, summary, args)


if __name__ == "__main__":
    main()
