"""Draws and other arrays with named dimensions, and the groups that ArviZ makes of them."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal, TypeAlias, cast

import numpy as np
from torch import Tensor

from bayeshnet.errors import ArgumentError

try:
    # By name: a checker that starts in the folder of the package takes `import arviz` for this one. ArviZ 0.2x warns at
    # its first import of a day that there is a version 1, which is no fault of whoever imports this.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        _arviz: Any = importlib.import_module("arviz")
    _xarray: Any = importlib.import_module("xarray")
except ModuleNotFoundError as error:
    raise ImportError("bayeshnet.arviz needs ArviZ. Try: pip install 'bayeshnet[arviz]'") from error

__all__ = ["Draws", "Groups", "Selection", "Variables", "arrays", "assembled", "latents", "own_dims"]

# Draws of more numbers than this are kept by their root mean square: a summary of millions of weights takes hours.
_MOST_NUMBERS = 10_000_000
_OF_OBSERVATIONS = ("log_likelihood", "posterior_predictive", "observed_data", "prior_predictive")

Selection: TypeAlias = Literal["auto", "all", "rms"] | Sequence[str]
Variables: TypeAlias = "dict[str, tuple[tuple[str, ...], Any]]"  # names of the dimensions, and the array, by name
Groups: TypeAlias = "dict[str, Variables]"


@dataclass
class Draws:
    """Draws ``[C * S, *shape]`` by site, chain after chain, and what is known of them."""

    values: Mapping[str, Tensor]
    origin: str
    chains: int = 1
    stats: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    facts: dict[str, Any] = field(default_factory=dict[str, Any])

    def variable(self, value: Tensor, dims: Sequence[str]) -> tuple[tuple[str, ...], Any]:
        """An array ``[C, S, ...]`` of something that each draw has."""
        array = value.detach().cpu().numpy()
        return ("chain", "draw", *dims), array.reshape((self.chains, -1, *array.shape[1:]))


def latents(draws: Draws, weights: Selection, dims: Callable[[str], Sequence[str]]) -> tuple[Variables, str]:
    """The posterior or prior, and what of it was kept."""
    beside = [name for name in draws.values if name.startswith("likelihood.")]
    others = [name for name in draws.values if name not in beside]
    if weights == "auto":
        weights = "all" if sum(draws.values[name].numel() for name in others) <= _MOST_NUMBERS else "rms"
    chosen = others
    if not isinstance(weights, str):
        chosen = [name for name in others if any(fnmatchcase(name, pattern) for pattern in weights)]
        if not chosen and not beside:
            raise ArgumentError(f"weights: {list(weights)} is no pattern of any of the sites {others}.")
    found: Variables = {}
    for name in chosen:
        value = draws.values[name]
        if weights == "rms":
            found[f"{name}.rms"] = draws.variable(value.flatten(1).double().square().mean(1).sqrt(), ())
        else:
            found[name] = draws.variable(value, dims(name))
    found.update({name: draws.variable(draws.values[name], dims(name)) for name in beside})
    return found, weights if isinstance(weights, str) else ", ".join(weights)


def own_dims(name: str, num: int) -> list[str]:
    return [f"{name}_dim_{i}" for i in range(num)]


def arrays(name: str, value: Any) -> Iterator[tuple[str, tuple[tuple[str, ...], Any]]]:
    """Arrays in inputs of any form, by name, with the dimension ``row`` first; numbers are none."""
    if isinstance(value, Tensor) or type(value).__module__.partition(".")[0] == "numpy":
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        if array.ndim:
            yield name, (("row", *own_dims(name, array.ndim - 1)), array)
    elif hasattr(value, "columns"):  # a frame
        for column in value.columns:
            yield str(column), (("row",), np.asarray(value[column]))
    elif isinstance(value, Mapping):
        for key, part in cast("Mapping[Any, Any]", value).items():
            yield from arrays(f"{name}.{key}", part)
    elif isinstance(value, list | tuple):
        for i, part in enumerate(cast("Sequence[Any]", value)):
            yield from arrays(f"{name}.{i}", part)


def assembled(
    groups: Mapping[str, Variables],
    attrs: Mapping[str, Any],
    coords: Mapping[str, Sequence[Any]],
    counted: Mapping[str, Any],
) -> Any:
    """Groups as the class of ArviZ that is installed; those of observations without rows that do not count.

    Raises:
        ArgumentError: If labels are of no dimension, or not as many as it is long.
    """
    used = {dim for variables in groups.values() for dims, _ in variables.values() for dim in dims}
    unknown = [name for name in coords if name not in used]
    if unknown:
        raise ArgumentError(f"coords: {unknown} are no dimensions of the result; it has {sorted(used)}.")
    datasets: dict[str, Any] = {}
    for group, variables in groups.items():
        sizes = {dim: n for dims, array in variables.values() for dim, n in zip(dims, array.shape, strict=True)}
        labels = {dim: list(coords[dim]) if dim in coords else np.arange(n) for dim, n in sizes.items()}
        for dim, n in sizes.items():
            if len(labels[dim]) != n:
                raise ArgumentError(f"coords: has {len(labels[dim])} labels of {dim!r}; pass {n}.")
        made = _xarray.Dataset(variables, coords=labels, attrs=dict(attrs))
        kept = {dim: np.flatnonzero(which) for dim, which in counted.items() if dim in sizes and not which.all()}
        datasets[group] = made.isel(kept) if group in _OF_OBSERVATIONS else made
    if "InferenceData" in vars(_arviz):  # hasattr is true of version 1 as well, with a warning
        return _arviz.InferenceData(attrs=dict(attrs), **datasets)
    return _xarray.DataTree.from_dict({"/": _xarray.Dataset(attrs=dict(attrs)), **datasets})
