"""How data become the arguments of a Pyro model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyro
import torch
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.models.bayesian_model import BayesianModel

__all__ = ["call_arguments", "inputs_and_targets", "nan_data_error", "refuse_nan_data", "require_targets"]


def call_arguments(data: Any, argument: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments: a tuple or list of the former, a mapping of the latter, or one tensor.

    Raises:
        TypeError: If ``data`` is none of these.
    """
    if isinstance(data, Tensor):
        return (data,), {}
    if isinstance(data, Mapping):
        return (), dict(data)
    if isinstance(data, tuple | list):
        return tuple(data), {}
    raise ArgumentTypeError(
        f"{argument}: is a {type(data).__name__}; pass the model's arguments as a tuple (x, y), a dict of keyword "
        "arguments, or a tensor. For a DataLoader pass one batch: next(iter(loader))."
    )


def inputs_and_targets(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
    """The arguments ``x`` and ``y`` of a Bayesian network, None where one is missing."""
    x, y = (args[i] if i < len(args) else kwargs.get(name) for i, name in enumerate(("x", "y")))
    return x, y


def require_targets(model: Any, args: Sequence[Any], kwargs: Mapping[str, Any], argument: str) -> None:
    """Raise if a network's observations are missing, which would make them latents.

    Raises:
        ValueError: If ``model`` is a Bayesian network and the arguments have no ``y``.
    """
    if isinstance(model, BayesianModel) and inputs_and_targets(args, kwargs)[1] is None:
        raise ArgumentError(
            f"{argument}: has no targets, so the observations would be taken for latents; pass a tuple (x, y). A list "
            "is taken for a list of batches."
        )


def nan_data_error(args: Sequence[Any], kwargs: Mapping[str, Any], error: Exception) -> ArgumentError | None:
    """What to raise instead of an error of Pyro's validation if the data hold NaN, else None."""
    where = list(_nan_places(args, kwargs))
    return ArgumentError(f"{_nan_message('the model fails', where)} Pyro says: {error}") if where else None


def refuse_nan_data(trace: Trace, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raise if an observed site's log-probability is NaN because the data are.

    A model may mask NaN data away; then its log-probability is finite and nothing is raised.

    Raises:
        ValueError: Naming the site, and the argument that holds NaN.
    """
    where = list(_nan_places(args, kwargs))
    nodes: dict[str, Any] = dict(trace.nodes)
    for name, site in nodes.items():
        if site["type"] != "sample" or not site["is_observed"] or site_is_subsample(site):
            continue
        with pyro.validation_enabled(False):
            log_prob = site["fn"].log_prob(site["value"])
        mask = site["mask"]
        if isinstance(mask, Tensor):
            log_prob = torch.where(mask, log_prob, torch.zeros_like(log_prob))
        if mask is not False and bool(torch.isnan(log_prob).any()):
            raise ArgumentError(_nan_message(f"the log-probability of the observed site {name!r} is NaN", where))


def _nan_places(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[str]:
    for key, value in [*enumerate(args), *kwargs.items()]:
        if isinstance(value, Tensor) and value.is_floating_point():
            count = int(torch.isnan(value).sum())
            if count:
                yield f"example[{key!r}] ({count} of {value.numel()} entries)"


def _nan_message(what: str, where: Sequence[str]) -> str:
    source = f"NaN in {', '.join(where)}" if where else "NaN parameters of its distribution"
    return (
        f"example: {what}, from {source}. Remove or impute the missing values, or mask them in the model "
        "(pyro.poutine.mask)."
    )
