"""How data become the arguments of a Pyro model."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyro
import torch
from pyro.infer.autoguide import AutoGuide
from pyro.nn import PyroModule
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from bayeshnet.checks import kind_of, shown
from bayeshnet.errors import ArgumentError, ArgumentTypeError, BayeshnetError
from bayeshnet.models.bayesian_model import BayesianModel
from bayeshnet.models.capabilities import has_bounded_density, latents_of, requires_targets
from bayeshnet.sites.modes import evaluating

__all__ = [
    "call_arguments",
    "call_error",
    "check_rows",
    "first_rows",
    "inputs_and_targets",
    "nan_data_error",
    "non_finite_places",
    "refuse_nan_data",
    "refuse_second_data",
    "require_model_and_guide",
    "require_targets",
]


def call_arguments(data: Any, argument: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments: a tuple or list of the former, a mapping of the latter, or one tensor.

    Raises:
        TypeError: If ``data`` is none of these.
    """
    if isinstance(data, Tensor):
        return (data,), {}
    if isinstance(data, Mapping):
        for key in data:
            if not isinstance(key, str):
                raise ArgumentTypeError(
                    f"{argument}: has the key {key!r}, {kind_of(key)}; pass a dict by the names of the model's "
                    "arguments, or a tuple."
                )
        return (), dict(data)
    if isinstance(data, tuple | list):
        return tuple(data), {}
    raise ArgumentTypeError(
        f"{argument}: is {kind_of(data)}; pass the model's arguments as a tuple (x, y), a dict of keyword "
        "arguments, or a tensor. For a DataLoader pass one batch: next(iter(loader))."
    )


def inputs_and_targets(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
    """The arguments ``x`` and ``y`` of a Bayesian network, None where one is missing."""
    x, y = (args[i] if i < len(args) else kwargs.get(name) for i, name in enumerate(("x", "y")))
    return x, y


def require_targets(model: Any, args: Sequence[Any], kwargs: Mapping[str, Any], argument: str) -> None:
    """Raise if a network's observations are missing, which would make them latents, or there is more than x and y.

    Raises:
        ValueError: If ``model`` is a Bayesian network and the arguments have no ``y``, or others than ``x`` and ``y``.
    """
    if not requires_targets(model):
        return
    surplus = [key for key in kwargs if key not in ("x", "y")]
    if len(args) + len(kwargs) > 2 or surplus:
        given = f"the keys {list(kwargs)}" if kwargs else f"{len(args)} parts"
        fix = "{'x': ..., 'y': ...}" if kwargs else "a tuple (x, y), such as batch[:2]"
        raise ArgumentError(
            f"{argument}: has {given}; the model takes x and y alone. Pass {fix}; where a loader makes the batches, "
            "give it a data set of such pairs, or a collate_fn that returns one; several inputs of the network are one "
            "tuple x."
        )
    if inputs_and_targets(args, kwargs)[1] is None:
        raise ArgumentError(
            f"{argument}: has no targets, so the observations would be taken for latents; pass a tuple (x, y). A list "
            "is taken for a list of batches."
        )


def require_model_and_guide(model: Any, guide: Any) -> None:
    """Refuse what is no model or no guide.

    Raises:
        TypeError: If one of them cannot be called, or they are given in the wrong order.
    """
    for name, part in (("model", model), ("guide", guide)):
        if not callable(part):
            raise ArgumentTypeError(f"{name}: is {kind_of(part)}; pass a Pyro {name}, a callable.")
        if isinstance(part, type):
            raise ArgumentTypeError(f"{name}: is the class {part.__name__}; pass what it makes, {part.__name__}(...).")
    wrong = [("model", model, "a guide")] if isinstance(model, AutoGuide) else []
    wrong += [("guide", guide, "a model")] if hasattr(guide, "latent_shapes") else []
    for name, part, kind in wrong:
        raise ArgumentTypeError(f"{name}: is {kind} ({type(part).__name__}); pass the model first, then its guide.")


def refuse_second_data(argument: str, value: Any) -> None:
    """Refuse data in the place of a number: ``fit(model, guide, x, y)``.

    Raises:
        TypeError: If the value is a tensor or an array of several entries.
    """
    if getattr(value, "shape", None) and not isinstance(value, type):
        raise ArgumentTypeError(f"{argument}: is {shown(value)}; pass data of several parts as one tuple (x, y).")


def call_error(
    model: Any, args: Sequence[Any], kwargs: Mapping[str, Any], argument: str, error: Exception
) -> ArgumentTypeError | None:
    """What to raise instead of Python's complaint that a model was called with arguments that it does not take."""
    if isinstance(model, nn.Module) and not isinstance(model, PyroModule) and latents_of(model) is None:
        wrap = " A network becomes a model by BayesianModel(net, likelihood=...)."
    else:
        wrap = ""
    called = model.forward if isinstance(model, nn.Module) else model
    try:
        signature = inspect.signature(called)
    except (TypeError, ValueError):
        return None
    try:
        signature.bind(*args, **kwargs)
    except TypeError as reason:
        return ArgumentTypeError(
            f"{argument}: are no arguments of the model, which takes {signature} ({reason}); pass those that it is "
            f"called with.{wrap}"
        )
    return None


def nan_data_error(
    args: Sequence[Any], kwargs: Mapping[str, Any], error: Exception, argument: str = "example"
) -> ArgumentError | None:
    """What to raise instead of an error of Pyro's validation if the data hold NaN or infinite values, else None."""
    where = _places_of_arguments(args, kwargs, argument)
    return ArgumentError(f"{_nan_message('the model fails', where, argument)} Pyro says: {error}") if where else None


def refuse_nan_data(model: Any, trace: Trace, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raise if an observed site's log-probability is not finite because the data are not.

    A model may mask NaN data away, if its distribution does not validate them; then its log-probability is finite and
    nothing is raised.

    Args:
        model: The model.
        trace: Its trace, with the observed sites.
        args: The arguments it was traced with.
        kwargs: Keyword arguments.

    Raises:
        ValueError: Naming the site, and the argument or observed values that are NaN or infinite.
    """
    in_arguments = _places_of_arguments(args, kwargs)
    nodes: dict[str, Any] = dict(trace.nodes)
    for name, site in nodes.items():
        if site["type"] != "sample" or not site["is_observed"] or site_is_subsample(site):
            continue
        in_values = list(_places(f"the values observed at {name!r}", site["value"]))
        if not in_arguments and not in_values:
            continue  # what is wrong with a density at one draw from the prior may be right at others
        log_prob = _masked_log_prob(site)
        # A density of 0 at a draw from the prior is no error, unless the data are what it comes from: those of a
        # network, or the value itself. Other arguments may be infinite on purpose, bounds for instance.
        by_infinity = has_bounded_density(model) or any(place.startswith("inf") for place in in_values)
        if bool(log_prob.isnan().any()) or (by_infinity and bool(log_prob.isinf().any())):
            found = "NaN" if bool(log_prob.isnan().any()) else "infinite"
            what = f"the log-probability of the observed site {name!r} is {found}"
            raise ArgumentError(_nan_message(what, in_arguments or in_values))


def _masked_log_prob(site: Mapping[str, Any]) -> Tensor:
    """Log-probability of a site, 0 where it is masked away, NaN if the distribution refuses its value."""
    mask = site["mask"]
    if mask is False:
        return torch.zeros(())
    try:
        with pyro.validation_enabled(False):
            log_prob = site["fn"].log_prob(site["value"])
    except BayeshnetError:
        raise
    except ValueError:  # of a distribution with validate_args=True
        return torch.tensor(math.nan)
    return torch.where(mask, log_prob, torch.zeros_like(log_prob)) if isinstance(mask, Tensor) else log_prob


def non_finite_places(args: Sequence[Any], kwargs: Mapping[str, Any], argument: str = "data") -> str:
    """Where the tensors among the arguments are NaN or infinite, for messages; empty if nowhere."""
    return ", ".join(_places_of_arguments(args, kwargs, argument))


def _places_of_arguments(args: Sequence[Any], kwargs: Mapping[str, Any], argument: str = "example") -> list[str]:
    items = [*enumerate(args), *kwargs.items()]
    return [place for key, value in items for place in _places(f"{argument}[{key!r}]", value)]


def _places(name: str, value: Any) -> Iterator[str]:
    """Where a tensor, or one of those in a tuple, list or dict, is not finite: ``NaN in x[0] (1 of 8 entries)``."""
    if isinstance(value, Mapping | tuple | list):
        parts: Any = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, part in parts:
            yield from _places(f"{name}[{key!r}]", part)
    elif isinstance(value, Tensor) and value.is_floating_point():
        for kind, bad in (("NaN", torch.isnan(value)), ("inf", torch.isinf(value))):
            count = int(bad.sum())
            if count:
                yield f"{kind} in {name} ({count} of {value.numel()} entries){_rows(bad)}"


def _rows(bad: Tensor, most: int = 5) -> str:
    """The first rows in which something is bad."""
    if bad.dim() == 0:
        return ""
    rows: list[int] = (
        bad.flatten(1).any(1).nonzero().flatten().tolist() if bad.dim() > 1 else bad.nonzero().flatten().tolist()
    )
    listed = ", ".join(map(str, rows[:most])) + (", ..." if len(rows) > most else "")
    return f" in row{'s' * (len(rows) > 1)} {listed}"


def _nan_message(what: str, where: Sequence[str], argument: str = "example") -> str:
    return (
        f"{argument}: {what}, from {', '.join(where)}. Remove or impute these values; or mask them in the model "
        "and fill the gaps: pyro.poutine.mask(mask=known) around pyro.sample(..., obs=torch.where(known, y, 0.0))."
    )


# ---------------------------------------------------------------------- rows


def check_rows(model: BayesianModel, x: Any, y: Tensor, *, finite: bool = True) -> None:
    """Refuse rows that the model itself would refuse, in its own words, before anything is made of them.

    Modes, random numbers and buffers stay as they are.

    Args:
        model: The model.
        x: Inputs.
        y: Targets.
        finite: Whether NaN and infinite numbers are refused, too.

    Raises:
        ValueError: If shapes do not fit each other, a target is not possible, or rows hold NaN or infinite numbers.
        TypeError: If a dtype does not fit.
    """
    with evaluating(model), torch.random.fork_rng(devices=[]), pyro.validation_enabled():
        model.check_observations(x, y)
    for name, value in (("x", x), ("y", y)) if finite else ():
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, Tensor) and part.is_floating_point() and part.dim():
                _refuse_non_finite(name, part)


def _refuse_non_finite(name: str, value: Tensor) -> None:
    bad = ~torch.isfinite(value)
    if bool(bad.any()):
        rows = bad.flatten(1).any(1).nonzero().flatten().tolist() if bad.dim() > 1 else bad.nonzero().flatten().tolist()
        raise ArgumentError(
            f"data: {name} holds NaN or infinite numbers in {len(rows)} of the {len(value)} rows that are looked "
            f"at ({rows[:5]}{' and more' if len(rows) > 5 else ''}); remove or impute them."
        )


def first_rows(data: Any, num: int) -> tuple[Tensor, Tensor] | None:
    """The first rows of the data, inputs and targets: ``num`` of them and the rest of their batch, or all."""
    parts: list[tuple[Tensor, Tensor]] = []
    single = isinstance(data, Tensor | Mapping | tuple)
    for batch in [data] if single else data:
        args, kwargs = call_arguments(batch, "data")
        x, y = inputs_and_targets(args, kwargs)
        if not isinstance(x, Tensor) or not isinstance(y, Tensor):
            return None  # the model itself will say what is missing
        parts.append((x, y))
        if sum(len(x) for x, _ in parts) >= num:
            break
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])
