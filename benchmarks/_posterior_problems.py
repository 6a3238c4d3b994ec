"""The problems of the posterior benchmark: networks, priors and data, from files or made with a fixed seed.

A problem is a fully connected network with independent Gaussian priors and a known likelihood. What is compared are its
*functions*: outputs of a regression, each on its own, or the probability of class 1.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bayeshnet import BayesianModel, likelihoods, priors

__all__ = ["SELF_SAMPLED", "Array", "Gold", "Problem", "from_file"]

Array: TypeAlias = npt.NDArray[np.float64]

ACTIVATIONS: Mapping[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}


@dataclass(frozen=True)
class Problem:
    """A network, its prior and its data.

    Attributes:
        name: What it is called.
        widths: Number of inputs, of units of each hidden layer, of outputs.
        activation: ``"tanh"`` or ``"relu"``.
        prior_std: Prior standard deviation of each tensor: weight and bias of each layer in turn.
        noise: Standard deviation of the observations; None for a classification with two classes.
        x_train: Inputs ``[N, d]``.
        y_train: Targets ``[N, out]``, or labels ``[N]``.
        x_grid: Inputs ``[G, d]`` at which functions are compared.
        x_test: Held-out inputs ``[T, d]``.
        y_test: Their targets or labels.
    """

    name: str
    widths: tuple[int, ...]
    activation: str
    prior_std: tuple[float, ...]
    noise: float | None
    x_train: Array
    y_train: Array
    x_grid: Array
    x_test: Array
    y_test: Array

    @property
    def is_classification(self) -> bool:
        """Whether targets are labels."""
        return self.noise is None

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shape of each tensor, as torch stores it."""
        return [shape for a, b in pairwise(self.widths) for shape in ((b, a), (b,))]

    @property
    def num_weights(self) -> int:
        """Number of all weights."""
        return sum(math.prod(shape) for shape in self.shapes)

    @property
    def scale(self) -> Tensor:
        """Prior standard deviation of each weight ``[D]``, float64."""
        parts = zip(self.shapes, self.prior_std, strict=True)
        return torch.cat([torch.full((math.prod(shape),), std, dtype=torch.float64) for shape, std in parts])

    @property
    def key(self) -> str:
        """A digest of everything that the posterior depends on."""
        digest = hashlib.sha256()
        for field in fields(self):
            value = getattr(self, field.name)
            digest.update(f"{field.name}:".encode())
            digest.update(value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode())
        return digest.hexdigest()[:16]

    def targets(self, y: Array, dtype: torch.dtype = torch.float32) -> Tensor:
        """Targets as a likelihood takes them: numbers ``[N, out]`` or labels ``[N]``."""
        return torch.tensor(y, dtype=torch.int64 if self.is_classification else dtype)

    def train_data(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Inputs and targets to train on."""
        return torch.tensor(self.x_train, dtype=dtype), self.targets(self.y_train, dtype)

    def network(self) -> nn.Sequential:
        """The network as an ordinary module."""
        layers: list[nn.Module] = []
        for a, b in pairwise(self.widths):
            layers += [nn.Linear(a, b), ACTIVATIONS[self.activation]()]
        return nn.Sequential(*layers[:-1])

    def model(self) -> BayesianModel:
        """The Bayesian network, in float32, with all weights in one site: the fastest form for every guide."""
        net = self.network()
        names = [name for name, _ in net.named_parameters()]
        likelihood = likelihoods.Categorical() if self.noise is None else likelihoods.Normal(scale=self.noise)
        scales = dict(zip(names, self.prior_std, strict=True))
        shape = None if self.is_classification else (self.widths[-1],)
        return BayesianModel(
            net, prior=priors.Normal(scale=scales), likelihood=likelihood, flat=True, target_shape=shape
        )

    def functions(self, outputs: Tensor) -> Tensor:
        """What is compared ``[S, columns]``, from outputs of networks ``[S, B, out]``."""
        values = outputs.softmax(-1)[..., 1] if self.is_classification else outputs
        return values.flatten(1)

    def log_likelihood(self, outputs: Tensor, y: Tensor) -> Tensor:
        """``log p(y_b | f_s(x_b))`` as ``[S, B]``, from outputs ``[S, B, out]``."""
        if self.noise is None:
            labels = y.expand(outputs.shape[0], -1)
            return -F.cross_entropy(outputs.transpose(1, 2), labels, reduction="none")
        residual = (y - outputs) / self.noise
        constant = 0.5 * math.log(2 * math.pi) + math.log(self.noise)
        return (-0.5 * residual.square() - constant).sum(-1)


@dataclass(frozen=True)
class Gold:
    """A problem with draws from its posterior by NUTS.

    Attributes:
        problem: The problem.
        grid: Draws of the functions at ``x_grid`` ``[S, columns]``.
        test: Draws of what the likelihood needs at ``x_test``: outputs ``[S, T, out]``.
        info: What is known of the chains: ``rhat``, ``ess`` (worst over functions), ``seconds``, ``draws``,
            ``divergences``. Empty for a file that does not say.
    """

    problem: Problem
    grid: Tensor
    test: Tensor
    info: Mapping[str, float]


def from_file(path: Path) -> Gold:
    """A one-hidden-layer regression with its draws, from a file of the form of ``shared/data/nuts``."""
    stored: Any = np.load(path)

    def array(key: str) -> Array:
        return np.asarray(stored[key], dtype=np.float64)

    x, y = array("x_train"), array("y_train")
    test = array("f_test")
    problem = Problem(
        name=path.stem,
        widths=(x.shape[1], int(stored["hidden"]), 1),
        activation=str(stored["activation"]),
        prior_std=tuple(float(std) for std in stored["prior_std_w1_b1_w2_b2"]),
        noise=float(stored["noise"]),
        x_train=x,
        y_train=y.reshape(len(y), 1),
        x_grid=array("x_grid"),
        x_test=array("x_test"),
        y_test=array("y_test").reshape(-1, 1),
    )
    return Gold(problem, torch.tensor(array("f_grid")), torch.tensor(test.reshape(*test.shape, 1)), {})


# ---------------------------------------------------------------------- made with a fixed seed


def _gap(rng: np.random.Generator, num: int) -> Array:
    """Inputs on both sides of a gap."""
    left, right = rng.uniform(-2.0, -0.7, num // 2), rng.uniform(0.6, 2.0, num - num // 2)
    return np.concatenate([left, right])[:, None]


def _curve(name: str, hidden: tuple[int, ...], num: int, *, noise: float, first_std: float, num_grid: int) -> Problem:
    """One input, one output, a gap in the data."""
    rng = np.random.default_rng(20)
    x, x_test = _gap(rng, num), _gap(rng, 100)

    def targets(inputs: Array) -> Array:
        return np.sin(2.5 * inputs) + 0.3 * inputs + noise * rng.standard_normal(inputs.shape)

    inner = [part for width in hidden for part in (1.5 / math.sqrt(width), 1.0)]
    return Problem(
        name=name,
        widths=(1, *hidden, 1),
        activation="tanh",
        prior_std=(first_std, first_std, *inner),
        noise=noise,
        x_train=x,
        y_train=targets(x),
        x_grid=np.linspace(-3.0, 3.0, num_grid)[:, None],
        x_test=x_test,
        y_test=targets(x_test),
    )


def _moons(name: str, hidden: tuple[int, ...]) -> Problem:
    """Two interleaved half circles, two classes."""
    rng = np.random.default_rng(21)

    def draw(num: int) -> tuple[Array, Array]:
        labels = np.arange(num) % 2
        angle = rng.uniform(0.0, math.pi, num)
        upper = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        lower = np.stack([1.0 - np.cos(angle), 0.5 - np.sin(angle)], axis=1)
        points = np.where(labels[:, None] == 0, upper, lower) + 0.2 * rng.standard_normal((num, 2))
        return points - np.array([0.5, 0.25]), labels.astype(np.float64)

    (x, y), (x_test, y_test) = draw(100), draw(100)
    ticks = np.linspace(-2.5, 2.5, 15), np.linspace(-2.0, 2.0, 13)
    grid = np.stack([part.ravel() for part in np.meshgrid(*ticks)], axis=1)
    inner = [part for width in hidden[:-1] for part in (1.5 / math.sqrt(width), 1.0)]
    return Problem(
        name=name,
        widths=(2, *hidden, 2),
        activation="tanh",
        prior_std=(2.0, 2.0, *inner, 3.0 / math.sqrt(hidden[-1]), 1.0),
        noise=None,
        x_train=x,
        y_train=y,
        x_grid=grid,
        x_test=x_test,
        y_test=y_test,
    )


def _multi() -> Problem:
    """Two inputs, three outputs that share the hidden layer."""
    rng = np.random.default_rng(22)
    noise, hidden = 0.2, 50

    def targets(x: Array) -> Array:
        a, b = x[:, 0], x[:, 1]
        clean = np.stack([np.sin(2.0 * a) + 0.5 * b, a * b, np.tanh(2.0 * b) - 0.5 * a], axis=1)
        return clean + noise * rng.standard_normal(clean.shape)

    x, x_test = rng.uniform(-1.5, 1.5, (60, 2)), rng.uniform(-1.5, 1.5, (100, 2))
    return Problem(
        name="multi",
        widths=(2, hidden, 3),
        activation="tanh",
        prior_std=(1.0, 1.0, 1.5 / math.sqrt(hidden), 1.0),
        noise=noise,
        x_train=x,
        y_train=targets(x),
        x_grid=rng.uniform(-2.5, 2.5, (80, 2)),
        x_test=x_test,
        y_test=targets(x_test),
    )


SELF_SAMPLED: Mapping[str, Callable[[], Problem]] = {
    "toy2": lambda: _curve("toy2", (30, 30), num=40, noise=0.1, first_std=2.0, num_grid=121),
    "moons": lambda: _moons("moons", (50,)),
    "moons2": lambda: _moons("moons2", (30, 30)),
    "multi": _multi,
    # For the short form of the benchmark: a posterior that NUTS draws in seconds.
    "tiny": lambda: _curve("tiny", (5,), num=12, noise=0.5, first_std=1.0, num_grid=41),
}
"""The problems that the benchmark samples itself, by name."""
