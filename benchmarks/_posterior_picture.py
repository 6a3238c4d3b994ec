"""The picture of the posterior benchmark: a row of panels for each problem, a panel for each method."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from _posterior_problems import Gold
from torch import Tensor

__all__ = ["draw"]

GREY, BLUE = "#8a8a8a", "#1f6fb4"
BAND = torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)


def draw(golds: Mapping[str, Gold], functions: Mapping[str, Mapping[str, Tensor]], out: Path) -> None:
    """Draw and save it.

    A problem with one input and one output is drawn as the band that holds 90 % of the functions, on top of that of
    NUTS; any other one as the ratio of each standard deviation to that of NUTS (0.01 at least), over the latter.

    Args:
        golds: The problems with their draws by NUTS, by name.
        functions: Draws of the functions ``[S, columns]`` by problem and method.
        out: The file.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 - only where a picture is asked for
    from matplotlib.patches import Patch  # noqa: PLC0415

    methods = list(dict.fromkeys(method for found in functions.values() for method in found))
    size = (1.9 * len(methods) + 0.6, 1.8 * len(golds) + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    axes: Any = figure.subplots(len(golds), len(methods), sharey="row", squeeze=False)
    for row, (name, gold) in zip(axes, golds.items(), strict=True):
        one_input = gold.problem.x_grid.shape[1] == 1 and not gold.problem.is_classification
        bands = one_input and gold.problem.widths[-1] == 1
        for axis, method in zip(row, methods, strict=True):
            if method not in functions[name]:
                axis.set_axis_off()
                continue
            panel = _bands if bands else _spreads
            panel(axis, gold, functions[name][method])
            if axis.get_subplotspec().is_first_row():
                axis.set_title(method, fontsize=8)
            axis.tick_params(labelsize=7)
        row[0].set_ylabel(f"{name}\n{'f' if bands else 'std / std of NUTS'}", fontsize=8)
    named = [Patch(color=GREY, alpha=0.4, label="NUTS"), Patch(color=BLUE, alpha=0.4, label="method")]
    figure.legend(handles=named, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=130)


def _bands(axis: Any, gold: Gold, draws: Tensor) -> None:
    x = gold.problem.x_grid[:, 0]
    for values, colour in ((gold.grid, GREY), (draws, BLUE)):
        low, middle, high = torch.quantile(values.double(), BAND, dim=0).numpy()
        axis.fill_between(x, low, high, color=colour, alpha=0.3, linewidth=0)
        axis.plot(x, middle, color=colour, linewidth=1.2)
    axis.plot(gold.problem.x_train[:, 0], gold.problem.y_train[:, 0], ".", color="black", markersize=3)


def _spreads(axis: Any, gold: Gold, draws: Tensor) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter  # noqa: PLC0415 - only where a picture is asked for

    theirs = gold.grid.double().std(0)
    ratio = draws.double().std(0) / theirs
    axis.axhline(1.0, color=GREY, linewidth=1.0)
    axis.plot(theirs.numpy(), ratio.clamp(min=1e-2).numpy(), ".", color=BLUE, markersize=3, alpha=0.6)
    axis.set_xscale("log")
    axis.set_yscale("log")
    # Both are shorter than a power of ten as a rule, and need labels between.
    for each, subs in ((axis.xaxis, (1.0, 2.0, 3.0, 5.0, 7.0)), (axis.yaxis, (1.0, 1.5, 2.0, 3.0, 5.0, 7.0))):
        each.set_major_locator(LogLocator(subs=subs))
        each.set_major_formatter("{x:g}")
        each.set_minor_formatter(NullFormatter())
    axis.set_xlabel("std of NUTS", fontsize=7)
