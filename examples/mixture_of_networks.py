"""Two networks in a Pyro program, and for each row a label that was not recorded: which of them it came from.

Generates 600 readings of the power (kW) that a house takes at an outdoor temperature (degrees Celsius). In three of ten
a water heater was on, which takes more when it is cold; whether it was, nobody wrote down. The program says what is
known: ``base(t)`` without the heater, ``base(t) + extra(t)`` with it, both networks with random weights, and a label
for each reading. One hypernetwork is the posterior of all weights, the noise and the share of readings with the heater;
the labels are summed out (``TraceEnum_ELBO``). Beside it a single network that knows of no labels is fitted.

Prints a table of scores on held-out readings and saves a picture.

Run: ``python examples/mixture_of_networks.py [--steps 1500] [--out mixture_of_networks.png]``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from torch import Tensor, nn

import bayeshnet
from bayeshnet import RandomModule

SHARE, NOISE = 0.3, 0.15


def true_base(t: Tensor) -> Tensor:
    """Power without the heater: heating below 16 degrees, cooling above 22."""
    return 0.6 + 0.11 * (16.0 - t).clamp(min=0.0) + 0.09 * (t - 22.0).clamp(min=0.0)


def true_extra(t: Tensor) -> Tensor:
    """Power of the heater: the water that comes in is colder in winter."""
    return 0.7 + 0.5 * torch.sigmoid((12.0 - t) / 3.0)


def generated(rows: int, *, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Temperatures ``[B, 1]``, power ``[B]`` and the labels ``[B]`` that nobody wrote down."""
    generator = torch.Generator().manual_seed(seed)
    t = 34.0 * torch.rand(rows, generator=generator)
    on = (torch.rand(rows, generator=generator) < SHARE).float()
    noise = NOISE * torch.randn(rows, generator=generator)
    return t.unsqueeze(-1), true_base(t) + on * true_extra(t) + noise, on


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))


def scaled(t: Tensor) -> Tensor:
    """Temperatures in units that a prior over weights is made for."""
    return (t - 17.0) / 10.0


base, extra = RandomModule(network(), name="base"), RandomModule(network(), name="extra")


def two_networks(t: Tensor, power: Tensor | None = None) -> None:
    """Each reading is with or without the heater."""
    share = pyro.sample("share", dist.Beta(2.0, 2.0))
    noise = pyro.sample("noise", dist.Gamma(2.0, 8.0))
    off = pyro.deterministic("off", base(scaled(t)).squeeze(-1))
    # A positive difference also says which label is which.
    on = pyro.deterministic("on", off + nn.functional.softplus(extra(scaled(t)).squeeze(-1)))
    with pyro.plate("readings", len(t)):
        heater = pyro.sample("heater", dist.Bernoulli(share), infer={"enumerate": "parallel"})
        pyro.sample("power", dist.Normal(torch.where(heater > 0, on, off), noise), obs=power)


def one_network(t: Tensor, power: Tensor | None = None) -> None:
    """The same without labels."""
    noise = pyro.sample("noise", dist.Gamma(2.0, 8.0))
    off = pyro.deterministic("off", base(scaled(t)).squeeze(-1))
    with pyro.plate("readings", len(t)):
        pyro.sample("power", dist.Normal(off, noise), obs=power)


def fitted(model: Callable[..., None], t: Tensor, power: Tensor, steps: int) -> bayeshnet.AutoHypernet:
    """The posterior of everything but the labels, which are summed out."""
    guide = bayeshnet.AutoHypernet(poutine.block(model, hide=["heater"]), example=(t, power))
    elbo = TraceEnum_ELBO if model is two_networks else Trace_ELBO
    loss = elbo(num_particles=8, vectorize_particles=True, max_plate_nesting=1)
    bayeshnet.fit(model, guide, (t, power), steps=steps, loss=loss)
    return guide


def probability_of_heater(guide: bayeshnet.AutoHypernet, t: Tensor, power: Tensor, num_samples: int) -> Tensor:
    """The posterior probability ``[B]`` of the label of each reading, averaged over draws of all else."""
    draws = guide.sample_posterior(num_samples)
    found = bayeshnet.predict(two_networks, draws, (t,), sites=("off", "on"))
    odds = torch.logit(draws["share"]).unsqueeze(-1)
    for name, sign in (("on", 1.0), ("off", -1.0)):
        odds = odds + sign * dist.Normal(found[name].samples, draws["noise"].unsqueeze(-1)).log_prob(power)
    return torch.sigmoid(odds).mean(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500, help="training steps of each guide")
    parser.add_argument("--samples", type=int, default=1000, help="networks sampled for the predictions")
    parser.add_argument("--seed", type=int, default=0, help="seed of the data and of every draw")
    parser.add_argument("--out", type=Path, default=Path("mixture_of_networks.png"), help="where the picture goes")
    args = parser.parse_args()

    torch.set_num_threads(1)  # tensors this small are slower on several threads
    t, power, _ = generated(600, seed=args.seed)
    t_test, power_test, on_test = generated(2000, seed=args.seed + 1000)
    grid = torch.linspace(0.0, 34.0, 120).unsqueeze(-1)

    figure, panels = plt.subplots(1, 2, figsize=(12, 4.5), sharey=True, layout="constrained")
    rows: list[tuple[str, dict[str, float]]] = []
    choices = (("one network, no labels", one_network), ("two networks, labels summed out", two_networks))
    for panel, (name, model) in zip(panels, choices, strict=True):
        pyro.set_rng_seed(args.seed)
        labels = model is two_networks
        guide = fitted(model, t, power, args.steps)
        pred = bayeshnet.predict(model, guide, (t_test,), num_samples=args.samples, sites=("power", "off"))
        low, high = pred["power"].interval(0.9)
        scores = {
            "nll": -float(pred["power"].log_prob(power_test).mean()),
            "coverage": float(((power_test >= low) & (power_test <= high)).float().mean()),
            "rmse": float((pred["off"].mean - true_base(t_test.squeeze(-1))).square().mean().sqrt()),
        }
        colors = torch.full_like(power, 0.5)  # of which nothing is known
        if labels:
            chance = probability_of_heater(guide, t_test, power_test, args.samples)
            scores["labels"] = float(((chance > 0.5).float() == on_test).float().mean())
            colors = probability_of_heater(guide, t, power, args.samples)
        rows.append((name, scores))

        sites = ("off", "on") if labels else ("off",)
        along = bayeshnet.predict(model, guide, (grid,), num_samples=args.samples, sites=sites)
        points = panel.scatter(t.squeeze(-1), power, c=colors, s=7, cmap="coolwarm", vmin=0.0, vmax=1.0)
        for site, color in zip(sites, ("C0", "C3"), strict=False):
            bottom, top = along[site].samples.quantile(torch.tensor([0.05, 0.95]), 0)
            panel.fill_between(grid.squeeze(-1), bottom, top, color=color, alpha=0.3)
            title = {"off": "without the heater", "on": "with the heater"}[site] if labels else "mean"
            panel.plot(grid.squeeze(-1), along[site].mean, color=color, label=f"{title}, 90 % of the networks")
        truth = true_base(grid.squeeze(-1))
        panel.plot(grid.squeeze(-1), truth, "k--", lw=1, label="truth")
        panel.plot(grid.squeeze(-1), truth + true_extra(grid.squeeze(-1)), "k--", lw=1)
        panel.set(title=f"{name}: NLL {scores['nll']:.2f}", xlabel="outdoor temperature (°C)")
        panel.legend(loc="upper right")
        if labels:
            figure.colorbar(points, ax=panel, label="probability that the heater was on")
    panels[0].set_ylabel("power (kW)")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=90)

    print(f"\n{'program':<34}{'NLL':>8}{'90 % cov.':>11}{'RMSE without heater':>21}{'labels right':>14}")
    for name, s in rows:
        right = f"{s['labels']:>14.3f}" if "labels" in s else f"{'-':>14}"
        print(f"{name:<34}{s['nll']:>8.3f}{s['coverage']:>11.3f}{s['rmse']:>21.3f}{right}")
    middle = true_base(t_test.squeeze(-1)) + true_extra(t_test.squeeze(-1)) / 2
    best = float(((power_test > middle).float() == on_test).float().mean())
    print(f"\n{len(power)} training and {len(power_test)} test readings; with the true curves {best:.3f} of the labels")
    print(f"would be right; picture: {args.out}")


if __name__ == "__main__":
    main()
