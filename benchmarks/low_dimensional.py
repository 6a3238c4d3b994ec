"""Where a hypernetwork is the right tool: posteriors of two latents that are curved or have several modes.

* Targets: ``banana``, ``cross``, ``two_modes``; ``labels``, the means of a mixture model, whose labels may be
  exchanged; ``linear_net`` and ``tanh_net``, networks of one hidden unit, whose two weights may change their signs
  together.
* Guides: Pyro's ``AutoNormal``, ``AutoMultivariateNormal``, ``AutoLowRankMultivariateNormal`` and ``AutoIAFNormal``,
  the last one as the better of two settings and starts by its ELBO; ``hypernet`` is
  ``AutoHypernet(model, example=())`` and ``mixture`` the same with a mixture of six Gaussians as its family.

What is reported is the KL of each guide to the posterior, by a histogram of a million draws against the posterior's
normalised density on the same cells: the same measure for all, which does not ask a guide for its own density.
``claimed`` beside it is log evidence less the guide's ELBO; where a guide's density is right, the two agree.

Keys: ``TARGET/METHOD/kl``, and ``TARGET/METHOD/claimed``; medians over seeds.

    python benchmarks/low_dimensional.py --out densities.png
"""

from __future__ import annotations

import argparse
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pyro
import torch
from _common import parser, report
from _low_dimensional_targets import TARGETS, Grid, Target, grid_kl
from pyro.infer.autoguide import (
    AutoIAFNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
)
from torch import Tensor

from bayeshnet import AutoHypernet, fit
from bayeshnet.families import Mixture

__all__ = ["METHODS", "Setting", "draw", "fitted", "main"]

_PARTICLES = 64
# For all guides. Where a sampler begins to fold, the gradient of its log-determinant is without bound.
_CLIP_NORM = 10.0
_TAIL = 200


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to fit a guide.

    Attributes:
        build: Makes the guide of a model.
        lr: Learning rate of Adam; it is flat for 40 % of the steps and then falls.
        share: Share of the steps; Gaussians, which have converged long before, need no more.
    """

    build: Callable[[Callable[[], None]], Any]
    lr: float = 0.01
    share: float = 1.0


def _iaf(transforms: int) -> Callable[[Callable[[], None]], Any]:
    return lambda model: AutoIAFNormal(model, hidden_dim=[64, 64], num_transforms=transforms)


METHODS: dict[str, list[Setting]] = {
    "AutoNormal": [Setting(AutoNormal, 0.02, 0.4)],
    "AutoMultivariateNormal": [Setting(AutoMultivariateNormal, 0.02, 0.4)],
    "AutoLowRankMultivariateNormal": [Setting(AutoLowRankMultivariateNormal, 0.02, 0.4)],
    "AutoIAFNormal": [Setting(_iaf(1), 0.01), Setting(_iaf(2), 0.003)],
    "hypernet": [Setting(lambda model: AutoHypernet(model, example=()), 0.03)],
    "mixture": [Setting(lambda model: AutoHypernet(model, example=(), family=Mixture("low_rank", 6)), 0.03, 0.5)],
}


@dataclass(frozen=True, slots=True)
class Fit:
    """A fitted guide.

    Attributes:
        draws: ``[N, 2]``.
        elbo: Mean over the last steps.
        seconds: Time of the fit.
    """

    draws: Tensor
    elbo: float
    seconds: float


@torch.no_grad()
def draw(guide: Callable[[], Any], num: int) -> Tensor:
    """``num`` draws of a guide of any kind, ``[num, 2]``."""
    with pyro.plate("draws", num, dim=-2):
        return guide()["w"].reshape(num, 2).detach()


def fitted(
    target: Target, settings: list[Setting], *, steps: int, num_draws: int, seed: int, clip_norm: float = _CLIP_NORM
) -> Fit:
    """Fit a guide with each of these settings; of several, the one with the highest ELBO."""
    found: list[Fit] = []
    for i, setting in enumerate(settings):
        pyro.set_rng_seed(seed + 1000 * i)
        pyro.clear_param_store()
        guide = setting.build(target.model)
        count = max(1, round(setting.share * steps))
        began = time.perf_counter()
        options: Any = {"lr": setting.lr, "num_particles": _PARTICLES, "clip_norm": clip_norm, "progress": False}
        history = fit(target.model, guide, (), steps=count, **options)
        seconds = time.perf_counter() - began
        tail = history.losses[-_TAIL:]
        found.append(Fit(draw(guide, num_draws), -sum(tail) / len(tail), seconds))
    best = max(found, key=lambda each: each.elbo)
    return Fit(best.draws, best.elbo, sum(each.seconds for each in found))


def main() -> None:
    """Fit, measure and report."""
    args = _arguments()
    logging.getLogger("pyro").setLevel(logging.WARNING)
    steps, num_draws = (400, 200_000) if args.quick else (2000, 1_000_000)
    rows: list[dict[str, Any]] = []
    summary: dict[str, Any] = {}
    pictures: dict[str, dict[str, Tensor]] = {}
    for name in args.targets:
        target = TARGETS[name]
        grid = Grid(target)
        pictures[name] = {}
        for method in args.methods:
            kls: list[float] = []
            claims: list[float] = []
            errors: list[float] = []
            seconds: list[float] = []
            for seed in range(args.seeds):
                sizes = {"steps": steps, "num_draws": num_draws, "seed": seed}
                made = fitted(target, METHODS[method], **sizes, clip_norm=args.clip_norm)
                kl, error = grid_kl(made.draws, grid)
                kls.append(kl)
                errors.append(error)
                claims.append(math.log(grid.evidence) - made.elbo)
                seconds.append(made.seconds)
                pictures[name].setdefault(method, made.draws[:1500])
            row = {"target": name, "method": method, "kl": median(kls), "kl_error": max(errors)}
            row |= {"kl_min": min(kls), "kl_max": max(kls), "claimed": median(claims), "seconds": median(seconds)}
            rows.append(row)
            summary[f"{name}/{method}/kl"] = median(kls)
            summary[f"{name}/{method}/claimed"] = median(claims)
    report(rows, summary, args)
    if args.out is not None:
        from _low_dimensional_picture import save_picture  # noqa: PLC0415 - matplotlib is optional

        save_picture(pictures, args.out)


def _arguments() -> argparse.Namespace:
    made = parser(__doc__.splitlines()[0] if __doc__ else "")
    made.add_argument("--targets", nargs="+", choices=list(TARGETS), default=list(TARGETS), metavar="TARGET")
    made.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), metavar="METHOD")
    made.add_argument("--seeds", type=int, default=1, help="number of seeds; medians are reported")
    made.add_argument("--clip-norm", type=float, default=_CLIP_NORM, help="bound on gradients' norm; inf for none")
    made.add_argument("--out", type=Path, metavar="PICTURE", help="draw the densities side by side")
    return made.parse_args()


if __name__ == "__main__":
    main()
