"""Posterior draws of a problem by NUTS, kept on disk with what tells how good they are.

Pyro's NUTS runs on the flat vector of whitened weights (prior N(0, I)) in float64, with a potential whose gradient is
written out: one call of the network forward and one backward, without Pyro's handlers and without a graph.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from _posterior_problems import Gold, Problem
from pyro.infer import NUTS
from pyro.ops.stats import effective_sample_size, split_gelman_rubin
from torch import Tensor

from bayeshnet import batched_forward

__all__ = ["QUICK", "NutsSettings", "Potential", "cached", "default_cache", "gold_standard", "sample"]

KEPT = 2000  # draws that the cache holds, thinned evenly


@dataclass(frozen=True)
class NutsSettings:
    """How long the chains are.

    Attributes:
        chains: Number of chains, run in turn.
        warm_up: Steps of each chain that adapt step size and scales.
        block: Draws of each chain before the chains are looked at, and between looks.
        max_draws: At most so many draws of each chain.
        max_rhat: Enough when the split r-hat of every function is below this...
        min_ess: ...and its effective sample size above this.
    """

    chains: int = 4
    warm_up: int = 500
    block: int = 250
    max_draws: int = 3000
    max_rhat: float = 1.01
    min_ess: float = 1000.0

    @property
    def key(self) -> str:
        """All of them, as text."""
        return " ".join(f"{name}={value}" for name, value in asdict(self).items())


QUICK = NutsSettings(chains=2, warm_up=60, block=100, max_draws=100)
"""For the short form of the benchmark."""


# ---------------------------------------------------------------------- the potential


class Potential:
    """Minus the log joint density of whitened weights and data, with its gradient written out.

    Args:
        problem: The problem.
        dtype: Of the computation.
    """

    def __init__(self, problem: Problem, dtype: torch.dtype = torch.float64) -> None:
        self.problem = problem
        self.x, self.y = problem.train_data(dtype)
        self.scale = problem.scale.to(dtype)
        self.sizes = [math.prod(shape) for shape in problem.shapes]
        self.one_hot = torch.nn.functional.one_hot(self.y, 2).to(dtype) if problem.is_classification else None

    def __call__(self, z: dict[str, Tensor]) -> Tensor:
        """As Pyro calls it."""
        return _WithGradient.apply(z["z"], self)  # pyright: ignore[reportReturnType]

    def value_and_gradient(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The potential at ``z [D]``, and its gradient ``[D]``."""
        parts = (z * self.scale).split(self.sizes)
        tensors = [part.view(shape) for part, shape in zip(parts, self.problem.shapes, strict=True)]
        layers = len(tensors) // 2
        relu = self.problem.activation == "relu"
        inputs = [self.x]
        for i in range(layers):
            out = torch.addmm(tensors[2 * i + 1], inputs[i], tensors[2 * i].t())
            inputs.append(out if i == layers - 1 else out.relu() if relu else out.tanh())
        loss, delta = self._loss(inputs.pop())
        grads: list[Tensor] = []
        for i in reversed(range(layers)):
            grads += [delta.sum(0), torch.mm(delta.t(), inputs[i]).view(-1)]
            if i > 0:
                h = inputs[i]
                delta = torch.mm(delta, tensors[2 * i]) * ((h > 0) if relu else (1.0 - h * h))
        grad = torch.cat(grads[::-1]).mul_(self.scale).add_(z)
        return loss + 0.5 * z.dot(z), grad

    def _loss(self, f: Tensor) -> tuple[Tensor, Tensor]:
        """Minus the log-likelihood up to a constant, and its gradient."""
        if self.one_hot is not None:
            log_p = f.log_softmax(-1)
            return -(log_p * self.one_hot).sum(), log_p.exp() - self.one_hot
        noise = self.problem.noise or 1.0
        delta = (f - self.y) / noise**2
        return 0.5 * noise**2 * delta.square().sum(), delta


class _WithGradient(torch.autograd.Function):
    """Hands the written-out gradient to autograd, which is how Pyro asks for it."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, potential: Potential) -> Tensor:
        value, grad = potential.value_and_gradient(z)
        ctx.save_for_backward(grad)
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.saved_tensors[0], None


# ---------------------------------------------------------------------- chains


def sample(problem: Problem, settings: NutsSettings, seed: int = 0, log: Callable[[str], None] = print) -> Gold:
    """Draw from the posterior until r-hat and effective sample size of every function suffice.

    Args:
        problem: What to draw from.
        settings: How long.
        seed: Of all chains.
        log: Told how it goes.
    """
    began = time.process_time()
    potential, net = Potential(problem), problem.network().double()
    x_grid, x_test = torch.tensor(problem.x_grid), torch.tensor(problem.x_test)
    pyro.set_rng_seed(seed)
    with pyro.validation_enabled(False):
        kernels = [_started(potential, settings.warm_up) for _ in range(settings.chains)]
        draws: list[list[Tensor]] = [[] for _ in kernels]
        worst = (math.inf, 0.0)
        while len(draws[0]) < settings.max_draws and not _enough(worst, settings):
            for kernel, chain in zip(kernels, draws, strict=True):
                for _ in range(settings.block):
                    kernel.initial_params = kernel.sample(kernel.initial_params)
                    chain.append(kernel.initial_params["z"])
            z = torch.stack([torch.stack(chain) for chain in draws])
            outputs = batched_forward(net, z.flatten(0, 1) * problem.scale, x_grid)
            functions = problem.functions(outputs).unflatten(0, z.shape[:2])
            rhat = split_gelman_rubin(functions, chain_dim=0, sample_dim=1).max()
            worst = float(rhat), float(effective_sample_size(functions, chain_dim=0, sample_dim=1).min())
            log(f"  NUTS {problem.name}: {z.shape[1]} draws of each chain, r-hat {worst[0]:.4f}, ess {worst[1]:.0f}")
    chosen = torch.linspace(0, z.shape[0] * z.shape[1] - 1, min(KEPT, z.shape[0] * z.shape[1])).long()
    weights = z.flatten(0, 1)[chosen] * problem.scale
    info = {
        "rhat": worst[0],
        "ess": worst[1],
        "draws": float(z.shape[0] * z.shape[1]),
        "divergences": float(sum(len(kernel.diagnostics()["divergences"]) for kernel in kernels)),
        "seconds": time.process_time() - began,
    }
    grid = problem.functions(batched_forward(net, weights, x_grid))
    return Gold(problem, grid, batched_forward(net, weights, x_test), info)


def _started(potential: Potential, warm_up: int) -> Any:
    """A chain after its warm-up, started at a draw from the prior."""
    kernel: Any = NUTS(potential_fn=potential)
    kernel.initial_params = {"z": torch.randn(potential.scale.shape, dtype=torch.float64)}
    kernel.setup(warm_up)
    for _ in range(warm_up):
        kernel.initial_params = kernel.sample(kernel.initial_params)
    return kernel


def _enough(worst: tuple[float, float], settings: NutsSettings) -> bool:
    return worst[0] < settings.max_rhat and worst[1] > settings.min_ess


# ---------------------------------------------------------------------- cache


def default_cache() -> Path:
    """``bayeshnet/nuts`` in the user's folder for caches."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bayeshnet" / "nuts"


def gold_standard(
    problem: Problem, cache: Path, settings: NutsSettings | None = None, log: Callable[[str], None] = print
) -> Gold:
    """The draws of a problem from the cache; made and put there if the cache has none of just this problem.

    Args:
        problem: The problem.
        cache: Folder of the cache; it is made.
        settings: How long the chains are.
        log: Told how it goes.
    """
    settings = settings or NutsSettings()
    gold = cached(problem, cache, settings)
    if gold is None:
        gold = sample(problem, settings, log=log)
        _keep(gold, cache, settings)
    return gold


def cached(problem: Problem, cache: Path, settings: NutsSettings) -> Gold | None:
    """The draws in the cache if they are of just this problem and these settings, else None."""
    path = _place(problem, cache, settings)
    if not path.exists():
        return None
    with np.load(path) as stored:
        if str(stored["key"]) != _key(problem, settings):
            return None
        info = {name.removeprefix("info_"): float(stored[name]) for name in stored if name.startswith("info_")}
        return Gold(problem, torch.tensor(stored["f_grid"]), torch.tensor(stored["f_test"]), info)


def _keep(gold: Gold, cache: Path, settings: NutsSettings) -> None:
    path = _place(gold.problem, cache, settings)
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {f"info_{name}": np.array(value) for name, value in gold.info.items()}
    arrays["key"] = np.array(_key(gold.problem, settings))
    temporary = path.with_suffix(f".{os.getpid()}.tmp.npz")
    np.savez_compressed(temporary, f_grid=gold.grid.numpy(), f_test=gold.test.numpy(), **arrays)
    temporary.replace(path)  # whole or not at all, should two runs meet


def _key(problem: Problem, settings: NutsSettings) -> str:
    return f"{problem.key} {settings.key}"


def _place(problem: Problem, cache: Path, settings: NutsSettings) -> Path:
    digest = hashlib.sha256(_key(problem, settings).encode()).hexdigest()
    return cache / f"{problem.name}-{digest[:12]}.npz"
