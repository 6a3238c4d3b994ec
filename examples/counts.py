"""Counts: how many bicycles are rented per hour, with more scatter than a Poisson distribution has.

Generates 1,000 hours of temperature (degrees Celsius), hour of the day and whether it is a working day, with a number
of rentals between 0 and some hundreds. A Poisson and a negative binomial likelihood are fitted to the data as they are;
``standardize=`` leaves counts alone and standardises the inputs. Prints a table of scores on held-out hours and saves a
picture.

Run: ``python examples/counts.py [--steps 1000] [--out counts.png]``.
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
from bayeshnet import likelihoods

DISPERSION = 1.0 / 6.0  # variance = mean + DISPERSION * mean^2


def true_rate(temperature: Tensor, hour: Tensor, working: Tensor) -> Tensor:
    """Expected rentals in an hour: two rush hours on working days, an afternoon on others, more when it is warm."""
    rush = torch.exp(-0.5 * ((hour - 8.0) / 2.0) ** 2) + 1.2 * torch.exp(-0.5 * ((hour - 17.5) / 2.5) ** 2)
    leisure = torch.exp(-0.5 * ((hour - 14.0) / 4.0) ** 2)
    day = torch.where(working > 0, rush + 0.25 * leisure, 0.9 * leisure)
    warm = torch.exp(-0.5 * ((temperature - 24.0) / 14.0) ** 2)
    return 4.0 + 260.0 * day * warm


def generated(rows: int, *, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs ``[B, 3]``, temperature, hour and working day, and rentals ``[B]``."""
    generator = torch.Generator().manual_seed(seed)
    temperature = 2.0 + 28.0 * torch.rand(rows, generator=generator)
    hour = torch.randint(24, (rows,), generator=generator).float()
    working = (torch.rand(rows, generator=generator) < 5.0 / 7.0).float()
    rate = true_rate(temperature, hour, working)
    # A gamma variable of shape 1 / DISPERSION and mean 1, a mean of exponential ones.
    spread = -torch.rand(round(1.0 / DISPERSION), rows, generator=generator).log().mean(0)
    return torch.stack([temperature, hour, working], 1), torch.poisson(rate * spread, generator=generator)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000, help="training steps of each guide")
    parser.add_argument("--samples", type=int, default=1000, help="networks sampled for the predictions")
    parser.add_argument("--seed", type=int, default=0, help="seed of the data and of every draw")
    parser.add_argument("--out", type=Path, default=Path("counts.png"), help="where the picture goes")
    args = parser.parse_args()

    torch.set_num_threads(1)  # tensors this small are slower on several threads
    x, y = generated(1000, seed=args.seed)
    x_test, y_test = generated(2000, seed=args.seed + 1000)
    hours = torch.linspace(0.0, 23.0, 93)
    grid = torch.stack([torch.full_like(hours, 20.0), hours, torch.ones_like(hours)], 1)

    figure, panels = plt.subplots(1, 2, figsize=(11, 4), sharey=True, layout="constrained")
    rows: list[tuple[str, dict[str, float]]] = []
    choices = (
        ("Poisson", likelihoods.Poisson(), "C1"),
        ("negative binomial", likelihoods.NegativeBinomial(dispersion=dist.Gamma(2.0, 4.0)), "C0"),
    )
    for panel, (name, likelihood, color) in zip(panels, choices, strict=True):
        pyro.set_rng_seed(args.seed)
        net = nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 1))
        model = bayeshnet.BayesianModel(net, likelihood=likelihood, standardize=(x, y))
        guide = bayeshnet.AutoHypernet(model, example=(x, y))
        bayeshnet.fit(model, guide, (x, y), steps=args.steps)

        pred = bayeshnet.predict(model, guide, x_test, num_samples=args.samples)
        low, high = pred.interval(0.9)
        covered = float(((y_test >= low) & (y_test <= high)).float().mean())
        rows.append(
            (
                name,
                {
                    "nll": -float(pred.log_prob(y_test).mean()),
                    "rmse": float((pred.mean - true_rate(*x_test.T)).square().mean().sqrt()),
                    "coverage": covered,
                    "width": float((high - low).mean()),
                },
            )
        )

        along = bayeshnet.predict(model, guide, grid, num_samples=args.samples)
        low, high = along.interval(0.9)
        near = (x[:, 2] > 0) & ((x[:, 0] - 20.0).abs() < 4.0)
        panel.fill_between(hours, low, high, color=color, alpha=0.25, label="90 % of the counts", step="mid")
        panel.plot(hours, along.mean, color=color, label="mean")
        panel.plot(hours, true_rate(*grid.T), "k--", lw=1, label="true mean")
        panel.plot(x[near, 1], y[near], "k.", ms=3, label="hours within 4 °C")
        panel.set(
            title=f"{name}: {covered:.0%} of held-out hours in the 90 % band", xlabel="hour of a working day at 20 °C"
        )
        panel.legend(loc="upper left")
    panels[0].set_ylabel("rentals per hour")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=90)

    print(f"\n{'likelihood':<20}{'NLL':>8}{'RMSE of the rate':>18}{'90 % cov.':>11}{'width':>8}")
    for name, s in rows:
        print(f"{name:<20}{s['nll']:>8.3f}{s['rmse']:>18.2f}{s['coverage']:>11.3f}{s['width']:>8.1f}")
    print(f"\n{len(y)} training and {len(y_test)} test hours; picture: {args.out}")


if __name__ == "__main__":
    main()
