"""Posteriors of two latents and the draws of each guide, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import torch
from _low_dimensional_targets import TARGETS
from matplotlib import pyplot as plt
from torch import Tensor

__all__ = ["save_picture"]

_SHORT = {
    "AutoMultivariateNormal": "AutoMultivariate\nNormal",
    "AutoLowRankMultivariateNormal": "AutoLowRank\nMultivariateNormal",
}
# What a panel shows: the measure looks further.
_VIEW = {"banana": 4.5, "cross": 3.5, "two_modes": 3.5, "labels": 4.0, "linear_net": 4.0, "tanh_net": 4.5}


def save_picture(draws: Mapping[str, Mapping[str, Tensor]], path: Path) -> None:
    """One row per target, one column per guide: contours of the target, and draws ``[N, 2]`` of the guide."""
    methods = list(dict.fromkeys(method for each in draws.values() for method in each))
    size = (1.55 * len(methods) + 0.3, 1.55 * len(draws) + 0.4)
    figure, axes = plt.subplots(len(draws), len(methods), figsize=size, squeeze=False, layout="constrained")
    for line, (name, of_target) in zip(axes, draws.items(), strict=True):
        view = _VIEW[name]
        axis = torch.linspace(-view, view, 161)
        log_density = TARGETS[name].log_joint(torch.cartesian_prod(axis, axis)).reshape(161, 161).double()
        density = (log_density - log_density.max()).exp().T
        for panel, method in zip(line, methods, strict=True):
            points = of_target[method]
            panel.plot(*points.T, ".", color="tab:orange", markersize=1.2, alpha=0.5, rasterized=True)
            panel.contour(axis, axis, density, levels=[0.05, 0.3, 0.7], colors="black", linewidths=0.6)
            panel.set(xlim=(-view, view), ylim=(-view, view), xticks=[], yticks=[], aspect="equal")
        line[0].set_ylabel(name, fontsize=8)
    for panel, method in zip(axes[0], methods, strict=True):
        panel.set_title(_SHORT.get(method, method), fontsize=7)
    figure.savefig(path, dpi=80)
    plt.close(figure)
