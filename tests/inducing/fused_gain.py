"""Time of a conditional layer's draw and its gradient, fused relative to the plain formula.

``OMP_NUM_THREADS=1 python -m tests.inducing.fused_gain`` writes medians of 15 alternating pairs.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch

from bayeshnet.inducing._fused_sample import PseudoObservations

__all__ = ["SHAPES", "gain", "problem"]

# Samples, inducing points, inputs and outputs of the layer.
SHAPES = [(8, 47, 20, 1), (8, 40, 50, 1), (8, 104, 50, 1), (8, 100, 50, 10), (16, 190, 100, 1)]


def problem(num: int, points: int, inputs: int, out: int) -> Callable[[bool], None]:
    """A forward and backward pass with all gradients, fused or not."""

    def free(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64).requires_grad_()

    size = inputs + 1
    params = [free(num, points, inputs), free(points, out), free(points), free(size, out), free(size), free(out)]
    features, targets, log_precision, *rest = params
    prior = torch.ones(1, size, dtype=torch.float64)

    def run(fused: bool) -> None:
        observed = PseudoObservations(features, True, targets, log_precision, prior, *rest)
        weights, log_prob = observed.rsample(fused=fused)
        torch.autograd.grad(weights.sum() + log_prob.sum(), params)

    return run


def gain(run: Callable[[bool], None], *, pairs: int = 15, calls: int = 20) -> float:
    """The median of the times of the fused draw over those of the plain one, call after call in turn."""
    ratios: list[float] = []
    for _ in range(pairs + 1):
        times: list[float] = []
        for fused in (True, False):
            start = time.perf_counter()
            for _ in range(calls):
                run(fused)
            times.append(time.perf_counter() - start)
        ratios.append(times[0] / times[1])
    return statistics.median(ratios[1:])


if __name__ == "__main__":
    for shape in SHAPES:
        sys.stdout.write(f"{shape}: {gain(problem(*shape)):.2f}\n")
