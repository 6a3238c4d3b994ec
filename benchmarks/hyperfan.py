"""Scale of activations and gradients in a 5-layer ReLU network whose weights a hypernetwork makes, over its layers.

Hyperfan against the default initialisation, for an ``HMLP`` and a ``ChunkedHMLP``: medians over initialisations of the
variance of each layer's outputs (fan-in) and of the gradients with respect to them (fan-out). The summary has the
ratios of last to first layer (activations) and of first to last layer (gradients); an initialisation is to keep them
near 1.

Run: ``python benchmarks/hyperfan.py [--quick] [--json FILE] [--out docs/_static/hyperfan.png]``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from _common import parser, report
from torch import Tensor

from bayeshnet.hnets import HMLP, ChunkedHMLP
from bayeshnet.init import chunked_hyperfan_init, hyperfan_init
from bayeshnet.mnets import MLP

NET = MLP(32, 32, hidden_layers=(96, 64, 96, 64), no_weights=True, verbose=False)
EMB_SIZE = 64


def make_hmlp(method: str | None) -> HMLP:
    hnet = HMLP(NET.param_shapes, cond_in_size=EMB_SIZE, layers=(64,), verbose=False)
    if method is not None:
        hyperfan_init(hnet, method, mnet=NET)
    return hnet


def make_chunked(method: str | None) -> ChunkedHMLP:
    hnet = ChunkedHMLP(
        NET.param_shapes, 1024, chunk_emb_size=EMB_SIZE, cond_in_size=EMB_SIZE, layers=(64,), verbose=False
    )
    if method is not None:
        # The embedding of the condition has to be small: the chunk embeddings can only add to what it makes.
        with torch.no_grad():
            hnet.get_cond_in_emb(0).mul_(0.1)
        chunked_hyperfan_init(hnet, method, cond_var=0.01, mnet=NET)
    return hnet


def variances(weights: list[Tensor], x: Tensor) -> tuple[list[float], list[float]]:
    """Variance of each layer's outputs, and of the gradients of a random function of the last with respect to them."""
    layers: list[Tensor] = []
    hidden = x
    for matrix, bias in zip(weights[::2], weights[1::2], strict=True):
        layers.append(hidden @ matrix.T + bias)
        hidden = layers[-1].relu()
    grads = torch.autograd.grad(layers[-1], layers, torch.randn_like(layers[-1]))
    return [layer.detach().var().item() for layer in layers], [grad.var().item() for grad in grads]


def study(make: Callable[[str | None], HMLP | ChunkedHMLP], method: str | None, num: int) -> tuple[Tensor, Tensor]:
    """Variances ``[num, layers]`` of activations and gradients."""
    torch.manual_seed(0)
    x = torch.randn(100, 32)
    activations: list[list[float]] = []
    gradients: list[list[float]] = []
    for _ in range(num):
        stacked = make(method)(cond_id=0, ret_format="stacked")
        found = variances([weight[0].detach().requires_grad_() for weight in stacked], x)
        activations.append(found[0])
        gradients.append(found[1])
    return torch.tensor(activations), torch.tensor(gradients)


def draw(curves: dict[str, dict[str, tuple[Tensor, Tensor]]], out: Path) -> None:
    """Two panels, activations and gradients, with bands from the first to the third quartile."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - only where a picture is asked for

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 2)
    colours = {"HMLP": "#1f6fb4", "ChunkedHMLP": "#d9730d"}
    for panel, (title, part) in enumerate({"activations": "in", "gradients": "out"}.items()):
        axis = axes[panel]
        for name, studies in curves.items():
            for method, line in (("default", "--"), (part, "-")):
                values = studies[method][panel]
                layer = torch.arange(1, values.shape[1] + 1).numpy()
                low, middle, high = values.quantile(torch.tensor([0.25, 0.5, 0.75]), dim=0).numpy()
                label = f"{name}, {'default' if method == 'default' else f'hyperfan ({method!r})'}"
                axis.plot(layer, middle, line, color=colours[name], label=label)
                axis.fill_between(layer, low, high, color=colours[name], alpha=0.15, linewidth=0)
        axis.set_yscale("log")
        axis.set_xticks(list(range(1, 6)))
        axis.set_xlabel("layer of the target network")
        axis.set_ylabel(f"variance of {title}")
        axis.legend(fontsize=8)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150)


def main() -> None:
    command = parser(__doc__ or "")
    command.add_argument("--out", type=Path, metavar="FILE", help="draw the picture there")
    args = command.parse_args()
    num = 20 if args.quick else 200
    makers: dict[str, Callable[[str | None], HMLP | ChunkedHMLP]] = {"HMLP": make_hmlp, "ChunkedHMLP": make_chunked}
    curves: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}
    rows: list[dict[str, object]] = []
    summary: dict[str, float] = {}
    for name, make in makers.items():
        curves[name] = {method or "default": study(make, method, num) for method in (None, "in", "out")}
        for method, (activations, gradients) in curves[name].items():
            forward = (activations[:, -1] / activations[:, 0]).median().item()
            backward = (gradients[:, 0] / gradients[:, -1]).median().item()
            first, last = activations[:, 0].median().item(), activations[:, -1].median().item()
            rows.append(
                {
                    "hypernetwork": name,
                    "init": method,
                    "first activations": first,
                    "last activations": last,
                    "last / first": forward,
                    "first / last gradients": backward,
                }
            )
            kind = f"{name.lower()}_{method}"
            if method != "out":
                summary[f"{kind}_activations"] = forward
            if method != "in":
                summary[f"{kind}_gradients"] = backward
    report(rows, summary, args)
    if args.out is not None:
        draw(curves, args.out)


if __name__ == "__main__":
    main()
