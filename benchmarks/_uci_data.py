"""Regression sets with fixed splits, in the folder format of the usual UCI benchmarks.

A folder has ``data.txt`` (a row per line), ``index_features.txt`` and ``index_target.txt`` (columns),
``index_train_K.txt`` and ``index_test_K.txt`` (rows of split K, from 0).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["Split", "UciSet", "fraction_split", "read_set", "resolve", "write_set"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Split:
    """Training and test rows, standardised with the statistics of the training rows.

    Attributes:
        x: Training inputs ``[N, d]``, float32.
        y: Training targets ``[N]``.
        x_test: Test inputs ``[T, d]``.
        y_test: Test targets ``[T]``, standardised like ``y``.
        y_mean: Mean of the training targets, in original units.
        y_std: Their standard deviation, by which one unit of ``y`` is one of the original.
    """

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    y_mean: float
    y_std: float

    def log_likelihood(self, standardised: Tensor) -> float:
        """Mean log density in original units, of log densities ``[T]`` of the standardised test targets."""
        return float(standardised.double().mean()) - math.log(self.y_std)

    def rmse(self, mean: Tensor) -> float:
        """Root mean square error in original units, of predictive means ``[T]`` in standardised ones."""
        return self.y_std * float((mean.double() - self.y_test.double()).square().mean().sqrt())


@dataclass(frozen=True)
class UciSet:
    """A set with its splits.

    Attributes:
        name: What it is called.
        x: Inputs ``[N, d]``.
        y: Targets ``[N]``.
        splits: Rows for training and rows for testing, of each split.
    """

    name: str
    x: Array
    y: Array
    splits: tuple[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]], ...]

    def split(self, number: int) -> Split:
        """A split, standardised."""
        train, test = self.splits[number]
        return standardised(self.x[train], self.y[train], self.x[test], self.y[test])


def standardised(x: Array, y: Array, x_test: Array, y_test: Array) -> Split:
    """A split of these rows; inputs that never vary in training are only centred."""
    x_mean, x_std = x.mean(0), x.std(0)
    y_mean, y_std = float(y.mean()), float(y.std())
    x_std = np.where(x_std > 0, x_std, 1.0)
    y_std = y_std if y_std > 0 else 1.0
    inputs = (torch.tensor((part - x_mean) / x_std, dtype=torch.float32) for part in (x, x_test))
    targets = (torch.tensor((part - y_mean) / y_std, dtype=torch.float32) for part in (y, y_test))
    return Split(*(t for pair in zip(inputs, targets, strict=True) for t in pair), y_mean, y_std)


def fraction_split(split: Split, share: float, seed: int) -> Split:
    """Part of the training rows as test rows: for choices that the true test rows must not influence."""
    order = torch.randperm(len(split.x), generator=torch.Generator().manual_seed(seed)).numpy()
    held = max(1, round(share * len(order)))
    x, y = split.x.double().numpy(), split.y.double().numpy() * split.y_std + split.y_mean
    test, train = order[:held], order[held:]
    return standardised(x[train], y[train], x[test], y[test])


# ---------------------------------------------------------------------- folders


def resolve(folder: Path, name: str) -> Path:
    """The folder of a set: the one of this name, else the only one whose name begins so, whatever the case.

    Raises:
        SystemExit: If there is none, or several.
    """
    known = sorted(path.name for path in folder.iterdir() if (path / "data.txt").is_file()) if folder.is_dir() else []
    exact = [found for found in known if found.lower() == name.lower()]
    found = exact or [found for found in known if found.lower().startswith(name.lower())]
    if len(found) != 1:
        what = f"fits several: {', '.join(found)}" if found else f"is none of {', '.join(known) or 'no sets at all'}"
        raise SystemExit(f"--sets: {name!r} {what}, in {folder}.")
    return folder / found[0]


def read_set(folder: Path, *, name: str | None = None) -> UciSet:
    """Read a set.

    Raises:
        SystemExit: If a file is missing or the files do not fit together.
    """
    try:
        data = np.loadtxt(folder / "data.txt", ndmin=2)
        features, target = _integers(folder / "index_features.txt"), _integers(folder / "index_target.txt")
        splits: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]] = []
        while (folder / f"index_train_{len(splits)}.txt").exists():
            number = len(splits)
            parts = (_integers(folder / f"index_{part}_{number}.txt") for part in ("train", "test"))
            splits.append((next(parts), next(parts)))
    except (OSError, ValueError) as error:
        raise SystemExit(f"--data-dir: {folder} cannot be read: {error}") from error
    if not splits or len(target) != 1:
        raise SystemExit(
            f"--data-dir: {folder} has {len(splits)} splits and {len(target)} targets; expected one target."
        )
    rows = [index for pair in splits for index in pair]
    if max(features.max(), target.max()) >= data.shape[1] or max(index.max() for index in rows) >= len(data):
        raise SystemExit(f"--data-dir: {folder} has indices beyond the {data.shape} numbers of data.txt.")
    return UciSet(name or folder.name, data[:, features], data[:, target[0]], tuple(splits))


def write_set(folder: Path, x: Array, y: Array, splits: UciSet | list[tuple[Array, Array]]) -> None:
    """Write rows and splits in the format that :func:`read_set` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savetxt(folder / "data.txt", np.column_stack([x, y]))
    np.savetxt(folder / "index_features.txt", np.arange(x.shape[1]), fmt="%d")
    np.savetxt(folder / "index_target.txt", [x.shape[1]], fmt="%d")
    for number, (train, test) in enumerate(splits.splits if isinstance(splits, UciSet) else splits):
        np.savetxt(folder / f"index_train_{number}.txt", train, fmt="%d")
        np.savetxt(folder / f"index_test_{number}.txt", test, fmt="%d")


def _integers(path: Path) -> npt.NDArray[np.int64]:
    # Some of these files hold their integers as 0.000e+00.
    return np.loadtxt(path, ndmin=1).astype(np.int64)
