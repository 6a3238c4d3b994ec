"""Time and memory of the hypernetworks against the reference package, hypnettorch 0.0.4 (in the extra ``dev``).

Both networks of a row have the same weights and inputs and return the same numbers (checked). ``fwd`` is the call as a
user writes it, ``hnet(z)``, without gradients; ``fwd + bwd`` the call and the backward pass from given gradients of all
tensors that came out. Ratios are median time of ours over median time of theirs, in alternating runs.

* The grid: HMLP, ChunkedHMLP and HPerturbWrapper (of an HMLP), default hidden layers, 32 noise inputs, for multi-layer
  perceptrons of 1 k, 100 k and 1 M weights. ``worst_fwd`` is the largest ratio of its cells, ``median_fwd_bwd`` the
  median.
* ResNet-18: the 62 tensors (11,689,512 weights) from ``ChunkedHMLP(chunk_size=20_000, layers=(64,))``, batch 1.
* WRN-28-10: the 36.45 M weights of ``wrn_chunking`` from ``StructuredHMLP`` with ``layers=(32,)`` and chunk embeddings
  of 16, batch 1; ``wrn_peak_gb`` is the peak of a fresh process that builds it and runs fwd + bwd twice.
* Growth: time and memory (peak of the tensors that fwd + bwd allocates) per generated weight of the chunked and
  structured classes at 100 k, 1 M and 10 M weights; ``growth_ratio`` is the largest over the smallest of the three, the
  worst of all.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import math
import sys
import warnings
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from _common import alternate, median_ratio, ms, parser, peak_memory, report, run_fresh
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from bayeshnet.hnets import (
    HMLP,
    ChunkedHDeconv,
    ChunkedHMLP,
    HPerturbWrapper,
    StructuredHMLP,
    wrn_chunking,
)
from bayeshnet.mnets import MLP, WRN

NOISE = 32
SIZES = {"1k": (10, 20, 1_000), "100k": (64, 240, 100_000), "1M": (256, 790, 1_000_000)}
GROWTH = (100_000, 1_000_000, 10_000_000)


def theirs(module: str, name: str) -> Any:
    """A class or function of the reference package, which prints and warns a lot."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        return getattr(importlib.import_module(f"hypnettorch.{module}"), name)


def quietly(make: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        return make(*args, **kwargs)


def tensors_of(out: Any) -> list[Tensor]:
    return [out] if isinstance(out, Tensor) else [tensor for part in out for tensor in tensors_of(part)]


class Case:
    """One network and its input."""

    def __init__(self, hnet: nn.Module, **inputs: Any) -> None:
        self.hnet, self.inputs = hnet, inputs
        self.grads: list[Tensor] | None = None

    def forward(self) -> Any:
        """What the network makes, without gradients."""
        with torch.no_grad():
            return self.hnet(**self.inputs)

    def forward_backward(self) -> None:
        """The call, and the backward pass from given gradients."""
        for param in self.hnet.parameters():
            param.grad = None
        tensors = tensors_of(self.hnet(**self.inputs))
        if self.grads is None:
            self.grads = [torch.ones_like(tensor) for tensor in tensors]
        torch.autograd.backward(tensors, self.grads)


def same_weights(one: Any, two: Any) -> None:
    """Let both networks use the same memory for their parameters: where it lies decides up to a fifth of the time."""
    for ours, reference in zip(two.internal_params, one.internal_params, strict=True):
        if ours.shape != reference.shape:
            raise RuntimeError(f"parameters differ: {list(ours.shape)} and {list(reference.shape)}")
        ours.data = reference.data


def compare(label: dict[str, Any], ours: Case, reference: Case, repeats: int) -> dict[str, Any]:
    """Alternating times of both, as a row."""
    for a, b in zip(tensors_of(ours.forward()), tensors_of(reference.forward()), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    row: dict[str, Any] = dict(label)
    # Short calls are repeated within a timed run, so that the clock and the loop around them do not count.
    for name in ("forward", "forward_backward"):
        fns = {"ours": getattr(ours, name), "theirs": getattr(reference, name)}
        inner = 20 if label["weights"] == "1k" and label["batch"] == 1 else 1
        times = alternate({k: _repeated(fn, inner) for k, fn in fns.items()}, repeats, warm_up=1)
        key = "fwd" if name == "forward" else "fwd + bwd"
        row |= {
            f"{key} ms": ms(times["ours"]) / inner,
            f"{key} ms theirs": ms(times["theirs"]) / inner,
            f"{key} ratio": median_ratio(times["ours"], times["theirs"]),
        }
    return row


def _repeated(fn: Callable[[], Any], times: int) -> Callable[[], Any]:
    def run() -> None:
        for _ in range(times):
            fn()

    return run


# ---------------------------------------------------------------------- the grid


def perceptron(size: str) -> list[list[int]]:
    """Shapes of a multi-layer perceptron with about so many weights."""
    n_in, width, _ = SIZES[size]
    return MLP.weight_shapes(n_in, 10, (width, width))


def pair(kind: str, size: str, batch: int) -> tuple[Case, Case]:
    shapes, total = perceptron(size), SIZES[size][2]
    options: dict[str, Any] = {"uncond_in_size": NOISE, "cond_in_size": 0}
    torch.manual_seed(0)
    if kind == "ChunkedHMLP":
        chunk = max(100, total // 50)
        reference = quietly(theirs("hnets.chunked_mlp_hnet", "ChunkedHMLP"), shapes, chunk, **options)
        ours: Any = ChunkedHMLP(shapes, chunk, **options)
    else:
        reference = quietly(theirs("hnets.mlp_hnet", "HMLP"), shapes, **options)
        ours = HMLP(shapes, **options)
    same_weights(reference, ours)
    z = torch.randn(batch, NOISE)
    if kind == "HPerturbWrapper":
        reference = quietly(theirs("hnets.hnet_perturbation_wrapper", "HPerturbWrapper"), reference, NOISE)
        ours = HPerturbWrapper(ours, NOISE)
        z = torch.randn(batch, ours.num_outputs)
    return Case(ours, uncond_input=z), Case(reference, uncond_input=z)


def grid(*, quick: bool) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for kind in ("HMLP", "ChunkedHMLP", "HPerturbWrapper"):
        for size in ("1k", "100k") if quick else SIZES:
            for batch in (1, 10) if quick else (1, 10, 100):
                label = {"class": kind, "weights": size, "batch": batch}
                rows.append(compare(label, *pair(kind, size, batch), repeats=11 if size == "1M" or quick else 21))
    return rows


# ---------------------------------------------------------------------- large networks


def resnet18_shapes() -> list[list[int]]:
    """The 62 tensors of torchvision's ResNet-18 (its 11,689,512 weights)."""
    shapes: list[list[int]] = []

    def layer(out: int, inp: int, kernel: int) -> None:
        shapes.extend([[out, inp, kernel, kernel], [out], [out]])  # the convolution and its batch norm

    layer(64, 3, 7)
    width = 64
    for out in (64, 128, 256, 512):
        for block in range(2):
            layer(out, width, 3)
            layer(out, out, 3)
            if block == 0 and width != out:
                layer(out, width, 1)
            width = out
    return [*shapes, [1000, 512], [1000]]


def resnet18(*, quick: bool) -> dict[str, Any]:
    shapes = resnet18_shapes()
    options: dict[str, Any] = {"layers": (64,), "uncond_in_size": NOISE, "cond_in_size": 0}
    torch.manual_seed(0)
    reference = quietly(theirs("hnets.chunked_mlp_hnet", "ChunkedHMLP"), shapes, 20_000, **options)
    ours = ChunkedHMLP(shapes, 20_000, **options)
    same_weights(reference, ours)
    z = torch.randn(1, NOISE)
    label = {"class": "ChunkedHMLP", "weights": "ResNet-18", "batch": 1}
    return compare(label, Case(ours, uncond_input=z), Case(reference, uncond_input=z), repeats=5 if quick else 11)


def wrn_options() -> dict[str, Any]:
    return {"use_bias": False, "use_fc_bias": True, "use_batch_norm": True, "no_weights": True, "verbose": False}


def wrn_ours() -> Case:
    net = WRN(**wrn_options())
    shapes, nums, assembly = wrn_chunking(net)
    each = [chunk for chunk, num in zip(shapes, nums, strict=True) for _ in range(num)]
    chunks = [[torch.empty(shape, device="meta") for shape in chunk] for chunk in each]
    targets = [list(tensor.shape) for tensor in assembly(chunks)]
    hnet = StructuredHMLP(
        targets, shapes, nums, 16, {"layers": (32,)}, assembly, uncond_in_size=NOISE, cond_in_size=0, verbose=False
    )
    return Case(hnet, uncond_input=torch.randn(1, NOISE))


def wrn(*, quick: bool) -> dict[str, Any]:
    torch.manual_seed(0)
    ours = wrn_ours()
    net = quietly(theirs("mnets.wide_resnet", "WRN"), **wrn_options())
    shapes, nums, assembly = quietly(theirs("hnets.structured_hmlp_examples", "wrn_chunking"), net)
    reference = quietly(
        theirs("hnets.structured_mlp_hnet", "StructuredHMLP"),
        ours.hnet.target_shapes,
        shapes,
        nums,
        16,
        {"layers": (32,)},
        assembly,
        uncond_in_size=NOISE,
        cond_in_size=0,
    )
    same_weights(reference, ours.hnet)
    label = {"class": "StructuredHMLP", "weights": "WRN-28-10", "batch": 1}
    return compare(label, ours, Case(reference, **ours.inputs), repeats=5 if quick else 11)


def wrn_memory() -> None:
    """In a fresh process: print the peak in bytes."""
    case = wrn_ours()

    def run() -> None:
        for _ in range(2):
            case.forward_backward()

    _, peak = peak_memory(run)
    print(json.dumps(peak))


# ---------------------------------------------------------------------- growth


def num_weights(shapes: Sequence[Sequence[int]]) -> int:
    return sum(math.prod(shape) for shape in shapes)


def each_tensor(chunks: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    return [tensor for chunk in chunks for tensor in chunk]


def growing(kind: str, total: int) -> Case:
    """A network that makes about ``total`` weights, with chunks of the same size whatever the total."""
    options: dict[str, Any] = {"uncond_in_size": NOISE, "cond_in_size": 0, "verbose": False}
    if kind == "ChunkedHMLP":
        hnet: nn.Module = ChunkedHMLP([[1000]] * (total // 1000), 500, **options)
    elif kind == "ChunkedHDeconv":
        hnet = ChunkedHDeconv(
            [[1000]] * (total // 1000), (32, 32), num_layers=3, num_filters=[16, 8], sa_units=(), **options
        )
    else:
        layer = [[16, 16, 3, 3], [16]]
        num = total // num_weights(layer)
        hnet = StructuredHMLP(layer * num, [layer], [num], 8, {"layers": (32, 32)}, each_tensor, **options)
    return Case(hnet, uncond_input=torch.randn(1, NOISE))


def allocated(fn: Callable[[], Any]) -> int:
    """Peak of the memory that torch's tensors take during a call, beyond what they took before, in bytes."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        fn()
    events: Any = recorded.profiler
    changes = [e for e in events.kineto_results.events() if e.name() == "[memory]"]
    peak = current = 0
    for change in sorted(changes, key=lambda e: e.start_ns()):
        current += change.nbytes()
        peak = max(peak, current)
    return peak


def growth(*, quick: bool) -> tuple[list[dict[str, Any]], float]:
    rows: list[dict[str, Any]] = []
    worst = 1.0
    for kind in ("ChunkedHMLP", "ChunkedHDeconv", "StructuredHMLP"):
        cases = {total: growing(kind, total) for total in GROWTH}
        num = {total: case.hnet.num_outputs for total, case in cases.items()}
        # Each size is run so often that all runs make the same number of weights.
        inner = {total: GROWTH[-1] // total for total in GROWTH}
        fns = {str(total): _repeated(case.forward_backward, inner[total]) for total, case in cases.items()}
        times = alternate(fns, 3 if quick else 5, warm_up=1)
        per_weight: dict[str, list[float]] = {"ns / weight": [], "bytes / weight": []}
        for total, case in cases.items():
            row = {
                "class": kind,
                "weights": num[total],
                "ns / weight": 1e9 * median(times[str(total)]) / (inner[total] * num[total]),
                "bytes / weight": allocated(case.forward_backward) / num[total],
            }
            rows.append(row)
            for key, values in per_weight.items():
                values.append(row[key])
        worst = max([worst, *(max(values) / min(values) for values in per_weight.values())])
    return rows, worst


def main() -> None:
    if sys.argv[1:] == ["--wrn-memory"]:
        wrn_memory()
        return
    args = parser("Time and memory of the hypernetworks against hypnettorch.").parse_args()
    cells = grid(quick=args.quick)
    resnet, wide = resnet18(quick=args.quick), wrn(quick=args.quick)
    grown, growth_ratio = growth(quick=args.quick)
    summary = {
        "worst_fwd": max(row["fwd ratio"] for row in cells),
        "median_fwd_bwd": median(row["fwd + bwd ratio"] for row in cells),
        "resnet18_fwd_bwd": resnet["fwd + bwd ratio"],
        "wrn_fwd_bwd": wide["fwd + bwd ratio"],
        "wrn_peak_gb": run_fresh(__file__, "--wrn-memory") / 1e9,
        "growth_ratio": growth_ratio,
    }
    report([*cells, resnet, wide, *grown], summary, args)


if __name__ == "__main__":
    main()
