"""Regression sets of 1600 to 10,000 rows, generated with a fixed seed: what holds on small sets has to hold on these.

Their noise is between 1 % of the targets' spread and most of it; a network must find that by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from _uci_data import Array, UciSet
from sklearn.datasets import make_friedman1, make_friedman3

__all__ = ["GENERATED"]

SPLITS = 20


def _with_splits(name: str, x: Array, y: Array, rng: np.random.Generator) -> UciSet:
    """Nine tenths of the rows for training, the rest for testing, in 20 ways."""
    orders = [rng.permutation(len(x)) for _ in range(SPLITS)]
    cut = round(0.9 * len(x))
    return UciSet(name, x, y, tuple((order[:cut], order[cut:]) for order in orders))


def _arm() -> UciSet:
    """Distance of a robot arm's hand from a point, given the angles of its eight joints; noise of 5 %."""
    rng = np.random.default_rng(0)
    lengths = np.array([0.3, 0.25, 0.2, 0.2, 0.15, 0.15, 0.1, 0.1])
    angles = rng.uniform(-np.pi / 2, np.pi / 2, (8192, len(lengths)))
    directions = np.cumsum(angles, axis=1)
    across, up = (lengths * np.cos(directions)).sum(1), (lengths * np.sin(directions)).sum(1)
    distance = np.hypot(across - 0.1, up - 0.1) * (1.0 + 0.05 * rng.standard_normal(len(angles)))
    return _with_splits("arm", angles, distance, rng)


def _grades() -> UciSet:
    """Whole numbers from 3 to 8 that depend weakly on four of eleven inputs, like grades of wines."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1600, 11))
    score = 5.6 + 0.5 * x[:, 0] + 0.3 * np.tanh(x[:, 1]) - 0.2 * x[:, 2] * x[:, 3] + 0.6 * rng.standard_normal(len(x))
    return _with_splits("grades", x, np.clip(np.round(score), 3, 8), rng)


def _friedman1(name: str, rows: int, noise: float) -> UciSet:
    x, y = make_friedman1(rows, n_features=10, noise=noise, random_state=0)
    return _with_splits(name, x, y, np.random.default_rng(0))


def _friedman3() -> UciSet:
    x, y = make_friedman3(5000, noise=0.1, random_state=0)
    return _with_splits("friedman3", x, y, np.random.default_rng(0))


GENERATED: Mapping[str, Callable[[], UciSet]] = {
    "grades": _grades,
    "friedman1": lambda: _friedman1("friedman1", 2000, 1.0),
    "friedman3": _friedman3,
    "arm": _arm,
    "friedman1_exact": lambda: _friedman1("friedman1_exact", 10_000, 0.05),
}
"""The sets by name, in ascending order of rows. ``friedman1_exact`` has a noise of 1 % of the targets' spread."""
