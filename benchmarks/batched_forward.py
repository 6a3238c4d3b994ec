"""Time and memory of ``batched_forward`` against calling the network once per weight sample.

100 weight samples of a 784-400-400-10 network, without gradients (prediction) unless the row says so. Two loops:

* ``calls``: ``torch.func.functional_call`` of the plain ``nn.Module``, which is how any module is called with given
  weights;
* ``by hand``: ``F.linear`` and ``F.relu`` written out for this one network, the least that a loop can cost.

``loop_ratio_*`` compares with the first, ``by_hand_ratio_*`` with the second. ``memory_ratio`` compares the peaks of
fresh processes above their size before weights and inputs were made, with ``chunk_size=10``; the rows also say what the
calls take on top of the weights.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from _common import alternate, median_ratio, ms, parser, peak_memory, report, run_fresh
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from bayeshnet.mnets import batched_forward

NUM = 100
CHUNK = 10
SIZES = (784, 400, 400, 10)


def problem(batch: int) -> tuple[nn.Sequential, Tensor, Tensor]:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(SIZES):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    net = nn.Sequential(*layers[:-1])
    num_weights = sum(p.numel() for p in net.parameters())
    return net, torch.randn(NUM, num_weights).mul_(0.05), torch.randn(batch, SIZES[0])


def views(net: nn.Module, weights: Tensor) -> dict[str, Tensor]:
    named = dict(net.named_parameters())
    parts = weights.split([p.numel() for p in named.values()], dim=1)
    return {name: part.view(-1, *p.shape) for (name, p), part in zip(named.items(), parts, strict=True)}


def loop_calls(net: nn.Module, weights: Tensor, x: Tensor) -> Tensor:
    samples = {name: part.unbind(0) for name, part in views(net, weights).items()}
    calls = [functional_call(net, {name: s[i] for name, s in samples.items()}, (x,)) for i in range(len(weights))]
    return torch.stack(calls)


def loop_by_hand(net: nn.Module, weights: Tensor, x: Tensor) -> Tensor:
    samples = zip(*(part.unbind(0) for part in views(net, weights).values()), strict=True)
    outputs: list[Tensor] = []
    for w0, b0, w1, b1, w2, b2 in samples:
        h = F.relu(F.linear(F.relu(F.linear(x, w0, b0)), w1, b1))
        outputs.append(F.linear(h, w2, b2))
    return torch.stack(outputs)


METHODS: dict[str, Callable[[nn.Module, Tensor, Tensor], Tensor]] = {
    "batched_forward": batched_forward,
    f"chunk_size={CHUNK}": lambda net, weights, x: batched_forward(net, weights, x, chunk_size=CHUNK),
    "loop of calls": loop_calls,
    "loop by hand": loop_by_hand,
}


def call(method: str, net: nn.Module, weights: Tensor, x: Tensor, *, gradients: bool) -> Callable[[], Any]:
    def forward() -> Tensor:
        with torch.no_grad():
            return METHODS[method](net, weights, x)

    def forward_backward() -> Tensor:
        weights.grad = None
        METHODS[method](net, weights, x).square().mean().backward()
        return weights

    weights.requires_grad_(gradients)
    return forward_backward if gradients else forward


def time_rows(*, quick: bool) -> tuple[list[dict[str, Any]], dict[str, float]]:
    rows: list[dict[str, Any]] = []
    summary: dict[str, float] = {}
    for batch, gradients, repeats in ((8, False, 31), (128, False, 15), (8, True, 7)):
        net, weights, x = problem(batch)
        fns = {method: call(method, net, weights, x, gradients=gradients) for method in METHODS}
        times = alternate(fns, max(5, repeats // 3) if quick else repeats)
        for method, seconds in times.items():
            rows.append(
                {
                    "case": f"batch {batch}" + (", with gradients" if gradients else ""),
                    "method": method,
                    "ms": ms(seconds),
                    "/ loop of calls": median_ratio(seconds, times["loop of calls"]),
                    "/ loop by hand": median_ratio(seconds, times["loop by hand"]),
                }
            )
        key = f"b{batch}" + "_grad" * gradients
        summary[f"loop_ratio_{key}"] = median_ratio(times["batched_forward"], times["loop of calls"])
        summary[f"by_hand_ratio_{key}"] = median_ratio(times["batched_forward"], times["loop by hand"])
    return rows, summary


def measure_memory(method: str, batch: int, gradients: bool) -> None:
    """In a fresh process: print the peaks as JSON."""
    sizes: dict[str, int] = {}

    def run() -> None:
        net, weights, x = problem(batch)
        fn = call(method, net, weights, x, gradients=gradients)
        sizes["ready"], sizes["peak"] = peak_memory(fn)

    small = call(method, *problem(1), gradients=gradients)
    small()  # code and libraries are loaded now
    del small
    empty, _ = peak_memory(lambda: None)
    run()
    print(json.dumps({"total": sizes["peak"] - empty, "extra": sizes["peak"] - sizes["ready"]}))


def memory_rows() -> tuple[list[dict[str, Any]], float]:
    rows: list[dict[str, Any]] = []
    worst = 0.0
    for batch, gradients in ((8, False), (128, False), (128, True)):
        found = {m: run_fresh(__file__, "--memory", m, str(batch), str(int(gradients))) for m in METHODS}
        loop = found["loop of calls"]
        for method, sizes in found.items():
            rows.append(
                {
                    "case": f"batch {batch}" + (", with gradients" if gradients else ""),
                    "method": method,
                    "peak MB": sizes["total"] / 2**20,
                    "of it beyond weights MB": sizes["extra"] / 2**20,
                    "/ loop of calls": sizes["total"] / loop["total"],
                }
            )
        worst = max(worst, found[f"chunk_size={CHUNK}"]["total"] / loop["total"])
    return rows, worst


def main() -> None:
    if sys.argv[1:2] == ["--memory"]:
        measure_memory(sys.argv[2], int(sys.argv[3]), bool(int(sys.argv[4])))
        return
    args = parser("Time and memory of batched_forward against a loop over weight samples.").parse_args()
    rows, summary = time_rows(quick=args.quick)
    more, summary["memory_ratio"] = memory_rows()
    report([*rows, *more], summary, args)


if __name__ == "__main__":
    main()
