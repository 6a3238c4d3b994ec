"""Noise that depends on the input, in original units: the power of a wind turbine.

Generates 600 readings of wind speed (m/s) and power (kW, up to about 2,000), whose scatter is largest on the steep part
of the power curve and small where the turbine stands still or runs at its rated power. A network with two outputs, the
mean and the spread of the noise, is fitted to the data as they are, with ``standardize=``, and compared with one whose
noise is the same everywhere. Prints a table of scores on held-out readings and saves a picture.

Run: ``python examples/heteroscedastic.py [--steps 1000] [--out heteroscedastic.png]``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

import bayeshnet
from bayeshnet import likelihoods, metrics, plotting

RATED = 2000.0  # kW


def true_power(wind: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the power in kW."""
    rise = torch.sigmoid((wind - 8.5) / 1.3)
    return RATED * rise, 20.0 + 600.0 * rise * (1.0 - rise)


def generated(rows: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Wind speed ``[B, 1]`` and power ``[B]``."""
    generator = torch.Generator().manual_seed(seed)
    wind = 18.0 * torch.rand(rows, generator=generator)
    mean, std = true_power(wind)
    return wind.unsqueeze(1), mean + std * torch.randn(rows, generator=generator)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000, help="training steps of each guide")
    parser.add_argument("--samples", type=int, default=1000, help="networks sampled for the predictions")
    parser.add_argument("--seed", type=int, default=0, help="seed of the data and of every draw")
    parser.add_argument("--out", type=Path, default=Path("heteroscedastic.png"), help="where the picture goes")
    args = parser.parse_args()

    torch.set_num_threads(1)  # tensors this small are slower on several threads
    x, y = generated(600, seed=args.seed)
    x_test, y_test = generated(2000, seed=args.seed + 1000)
    grid = torch.linspace(0.0, 18.0, 200)

    figure, panels = plt.subplots(1, 3, figsize=(13, 4), width_ratios=(1.25, 1.25, 1.0), layout="constrained")
    panels[1].sharey(panels[0])
    rows: list[tuple[str, dict[str, float]]] = []
    for panel, name, color in ((panels[0], "heteroscedastic", "C0"), (panels[1], "constant noise", "C1")):
        pyro.set_rng_seed(args.seed)
        if name == "heteroscedastic":
            likelihood, outputs = likelihoods.HeteroscedasticNormal(), 2
        else:
            likelihood, outputs = likelihoods.Normal(scale=dist.Gamma(6.0, 6.0)), 1
        net = nn.Sequential(nn.Linear(1, 24), nn.Tanh(), nn.Linear(24, outputs))
        model = bayeshnet.BayesianModel(net, likelihood=likelihood, standardize=(x, y))
        guide = bayeshnet.AutoHypernet(model, example=(x, y))
        bayeshnet.fit(model, guide, (x, y), steps=args.steps)

        pred = bayeshnet.predict(model, guide, x_test, num_samples=args.samples)
        scores = metrics.regression_scores(pred.samples, y_test, log_density=pred.log_prob(y_test), level=0.9)
        calm, steep = x_test[:, 0] < 4.0, (x_test[:, 0] - 8.5).abs() < 2.0
        low, high = pred.interval(0.9)
        inside = ((y_test >= low) & (y_test <= high)).float()
        found = {"calm": float(inside[calm].mean()), "steep": float(inside[steep].mean())}
        rows.append((name, {**scores, **found}))

        along = bayeshnet.predict(model, guide, grid.unsqueeze(1), num_samples=args.samples)
        plotting.regression_band(grid, along, train=(x[:, 0], y), color=color, ax=panel)
        panel.set(title=name, xlabel="wind speed (m/s)", ylim=(-300.0, 2400.0))
        inside_band = f"below 4 m/s: {found['calm']:.0%}\n6.5 to 10.5 m/s: {found['steep']:.0%}"
        where = f"held-out readings in the 90 % band\n{inside_band}"
        panel.text(0.97, 0.05, where, transform=panel.transAxes, ha="right", fontsize=9)
        panels[2].plot(grid, along.aleatoric, color=color, label=name)
    panels[0].set_ylabel("power (kW)")
    panels[1].set_ylabel("")
    panels[2].plot(grid, true_power(grid)[1], "k--", label="generated the data")
    panels[2].set(
        title="standard deviation of the noise (kW)", xlabel="wind speed (m/s)", xlim=(0.0, 18.0), ylim=(0.0, 250.0)
    )
    panels[2].legend(frameon=False)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=90)

    print(
        f"\n{'noise':<18}{'NLL':>8}{'RMSE kW':>10}{'CRPS kW':>10}{'90 % cov.':>11}"
        f"{'below 4 m/s':>13}{'6.5 to 10.5':>13}"
    )
    for name, s in rows:
        print(
            f"{name:<18}{s['nll']:>8.3f}{s['rmse']:>10.1f}{s['crps']:>10.1f}{s['coverage']:>11.3f}"
            f"{s['calm']:>13.3f}{s['steep']:>13.3f}"
        )
    print(f"\n{len(y)} training and {len(y_test)} test readings, original units; picture: {args.out}")


if __name__ == "__main__":
    main()
