"""Data as the arguments of a Pyro model, and what is wrong with them."""

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
from bayeshnet.models.capabilities import has_bounded_density, latents_of, requires_targets
from bayeshnet.models.forms import is_single
from bayeshnet.models.given_data import ROW_DATA

__all__ = [
    "ROW_DATA",
    "all_data",
    "call_arguments",
    "call_error",
    "inputs_and_targets",
    "nan_data_error",
    "non_finite_places",
    "refuse_nan_data",
    "refuse_second_data",
    "require_model",
    "require_model_and_guide",
    "require_targets",
    "row_arguments",
]


def call_arguments(data: Any, argument: str, model: Any = None) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and keyword arguments that data stand for.

    Args:
        data: A tuple or list of positional arguments, a dict of keyword arguments, or one tensor, array or frame.
        argument: Name of the argument, for messages.
        model: The model that they are for, which may know more forms: ``model.as_arguments(args, kwargs)``.

    Raises:
        ArgumentTypeError: If ``data`` is none of these, or something in it is not what the model takes.
        ArgumentError: If the model cannot take it for its arguments.

    Example:
        >>> call_arguments({"x": 1}, "data"), call_arguments((1, 2), "data")
        (((), {'x': 1}), ((1, 2), {}))
    """
    args, kwargs = _call_arguments(data, argument)
    own = getattr(model, "as_arguments", None)
    return (args, kwargs) if own is None else own(args, kwargs)


def all_data(model: Any, data: Any, what: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and keyword arguments that all observations stand for, with targets.

    Args:
        model: The model that they are for.
        data: As for :func:`call_arguments`; no loader.
        what: What needs them all, for the message.

    Raises:
        ArgumentTypeError: If ``data`` are batches, or are not what the model takes.
        ArgumentError: If targets are missing.

    Example:
        >>> all_data(lambda x: x, torch.ones(2), "importance weights need")
        ((tensor([1., 1.]),), {})
    """
    if not is_single(data):
        raise ArgumentTypeError(
            f"data: is {kind_of(data)}, and {what} all observations at once; pass the model's arguments as a tuple "
            "(x, y), a dict or a tensor; of a loader, its whole data set."
        )
    args, kwargs = call_arguments(data, "data", model)
    require_targets(model, args, kwargs, "data")
    return args, kwargs


def _call_arguments(data: Any, argument: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
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
    if is_single(data):
        return (data,), {}
    raise ArgumentTypeError(
        f"{argument}: is {kind_of(data)}; pass the model's arguments as a tuple (x, y), a dict of keyword "
        "arguments, or a tensor. For a DataLoader pass one batch: next(iter(loader))."
    )


def inputs_and_targets(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
    """Return the arguments ``x`` and ``y`` of a Bayesian network; None for one that is missing.

    Example:
        >>> inputs_and_targets((1,), {"y": 2})
        (1, 2)
    """
    x, y = (args[i] if i < len(args) else kwargs.get(name) for i, name in enumerate(("x", "y")))
    return x, y


def row_arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is given of each row beside inputs and targets, by name: ``weight``, ``noise``, ``exposure``.

    Example:
        >>> row_arguments((1, 2, 3), {"noise": 4})
        {'weight': 3, 'noise': 4}
    """
    given = {name: args[i + 2] if i + 2 < len(args) else kwargs.get(name) for i, name in enumerate(ROW_DATA)}
    return {name: value for name, value in given.items() if value is not None}


def require_targets(model: Any, args: Sequence[Any], kwargs: Mapping[str, Any], argument: str) -> None:
    """Raise unless the arguments of a Bayesian network are x and y; without y the observations would be latents.

    Args:
        model: The model; nothing is required of the arguments of any other.
        args: Positional arguments.
        kwargs: Keyword arguments.
        argument: Name of the argument, for messages.

    Raises:
        ArgumentError: If they are not.

    Example:
        >>> from bayeshnet import BayesianModel, likelihoods
        >>> model = BayesianModel(torch.nn.Linear(2, 1), likelihood=likelihoods.Normal(scale=0.1))
        >>> require_targets(model, (torch.zeros(3, 2),), {}, "example")
        Traceback (most recent call last):
        ...
        bayeshnet.errors.ArgumentError: example: has no targets, so the observations would be taken for latents; ...
    """
    if not requires_targets(model):
        return
    known = ("x", "y", *ROW_DATA)
    surplus = [key for key in kwargs if key not in known]
    if len(args) > len(known) or surplus or _is_no_weight(args):
        given = f"the keys {list(kwargs)}" if kwargs else f"{len(args)} parts"
        if _is_no_weight(args):
            given += f", the third one {_described(args[2])} and no weight of each row, floating-point [B]"
        fix = "{'x': ..., 'y': ...}" if kwargs else "a tuple (x, y), such as batch[:2]"
        raise ArgumentError(
            f"{argument}: has {given}; the model takes x and y, and weight, noise and exposure of the rows. Pass "
            f"{fix}; where a loader makes the batches, give it a data set of such pairs, or a collate_fn that returns "
            f"one; several inputs of the network are one tuple x{_counted(model)}."
        )
    if inputs_and_targets(args, kwargs)[1] is None:
        raise ArgumentError(
            f"{argument}: has no targets, so the observations would be taken for latents; pass a tuple (x, y)"
            f"{_counted(model)}. A list is taken for a list of batches."
        )


def _counted(model: Any) -> str:
    """What a message adds for a network with several inputs."""
    taken = getattr(model, "inputs_taken", None)
    if taken is None or taken.num == 1:
        several = taken is not None and taken.names[1:]
        return ", or BayesianModel(..., inputs=2) for batches (u, v, y)" if several else ""
    return f"; the network has inputs: {taken}; ((u, v), y) and (u, v, y) are taken, or {{'x': (u, v), 'y': y}}"


def _is_no_weight(args: Sequence[Any]) -> bool:
    """Whether a third part of a batch cannot be the weights ``[B]`` of its rows: indices, or a second input."""
    third = args[2] if len(args) > 2 else None
    if third is None:
        return False
    return not isinstance(third, Tensor) or third.dim() != 1 or not third.is_floating_point()


def _described(part: Any) -> str:
    return f"{part.dtype} {list(part.shape)}" if isinstance(part, Tensor) else kind_of(part)


def require_model_and_guide(model: Any, guide: Any) -> None:
    """Raise unless these are a model and a guide.

    Raises:
        ArgumentTypeError: If one of them cannot be called, is a class, or they are given in the wrong order.

    Example:
        >>> require_model_and_guide(lambda: None, 3)
        Traceback (most recent call last):
        ...
        bayeshnet.errors.ArgumentTypeError: guide: is an int; pass a Pyro guide, a callable.
    """
    require_model(model)
    _require_program("guide", guide)
    if hasattr(guide, "latent_shapes"):
        raise _wrong_order("guide", guide, "a model")


def require_model(model: Any) -> None:
    """Raise unless this is a model.

    Raises:
        ArgumentTypeError: If it cannot be called, is a class, or is a guide.

    Example:
        >>> require_model(lambda: None)
    """
    _require_program("model", model)
    if isinstance(model, AutoGuide):
        raise _wrong_order("model", model, "a guide")


def _require_program(name: str, part: Any) -> None:
    if not callable(part):
        raise ArgumentTypeError(f"{name}: is {kind_of(part)}; pass a Pyro {name}, a callable.")
    if isinstance(part, type):
        raise ArgumentTypeError(f"{name}: is the class {part.__name__}; pass what it makes, {part.__name__}(...).")


def _wrong_order(name: str, part: Any, kind: str) -> ArgumentTypeError:
    return ArgumentTypeError(f"{name}: is {kind} ({type(part).__name__}); pass the model first, then its guide.")


def refuse_second_data(argument: str, value: Any) -> None:
    """Raise if data are given in the place of a number: ``fit(model, guide, x, y)``.

    Args:
        argument: Name of the argument that is a number.
        value: What was given.

    Raises:
        ArgumentTypeError: If the value is a tensor or an array with a shape.

    Example:
        >>> refuse_second_data("steps", 100)
    """
    if getattr(value, "shape", None) and not isinstance(value, type):
        raise ArgumentTypeError(f"{argument}: is {shown(value)}; pass data of several parts as one tuple (x, y).")


def call_error(model: Any, args: Sequence[Any], kwargs: Mapping[str, Any], argument: str) -> ArgumentTypeError | None:
    """Return a better error where a model was called with arguments that it does not take; None if it takes them.

    Args:
        model: The model.
        args: Positional arguments.
        kwargs: Keyword arguments.
        argument: Name of the argument that they come from.

    Example:
        >>> print(call_error(lambda x: x, (1, 2), {}, "data"))
        data: are no arguments of the model, which takes (x) (too many positional arguments); pass those that it is ...
    """
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
    """Return a better error where Pyro's validation has failed on NaN or infinite data; None if the data are finite.

    Args:
        args: Positional arguments of the model.
        kwargs: Its keyword arguments.
        error: What Pyro has raised.
        argument: Name of the argument that they come from.

    Example:
        >>> print(nan_data_error((torch.tensor([math.nan]),), {}, ValueError("loc is bad")))
        example: the model fails, from NaN in example[0] (1 of 1 entries) in row 0. Remove or impute these values; ...
    """
    where = _places_of_arguments(args, kwargs, argument)
    return ArgumentError(f"{_nan_message('the model fails', where, argument)} Pyro says: {error}") if where else None


def refuse_nan_data(model: Any, trace: Trace, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raise if the log-density of an observed site is not finite because the data are not.

    A model may mask NaN data if its distribution does not validate them; then the log-density is finite.

    Args:
        model: The model.
        trace: Its trace, with the observed sites.
        args: The positional arguments it was traced with.
        kwargs: The keyword arguments it was traced with.

    Raises:
        ArgumentError: Naming the site, and the argument or observed values that are NaN or infinite.

    Example:
        >>> import pyro.distributions as dist
        >>> model = lambda y: pyro.sample("obs", dist.Normal(0.0, 1.0), obs=y)
        >>> y = torch.tensor(2.0)
        >>> refuse_nan_data(model, pyro.poutine.trace(model).get_trace(y), (y,), {})
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
            targets = bool(in_values) and hasattr(model, "missing")
            raise ArgumentError(_nan_message(what, in_arguments or in_values, targets=targets))


def _masked_log_prob(site: Mapping[str, Any]) -> Tensor:
    """Return the log-density of a site, 0 where it is masked, NaN if the distribution refuses its value."""
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
    """Return where the tensors among the arguments are NaN or infinite, for messages; empty if nowhere.

    Example:
        >>> non_finite_places((torch.tensor([1.0, math.inf]),), {})
        'inf in data[0] (1 of 2 entries) in row 1'
    """
    return ", ".join(_places_of_arguments(args, kwargs, argument))


def _places_of_arguments(args: Sequence[Any], kwargs: Mapping[str, Any], argument: str = "example") -> list[str]:
    items = [*enumerate(args), *kwargs.items()]
    return [place for key, value in items for place in _places(f"{argument}[{key!r}]", value)]


def _places(name: str, value: Any) -> Iterator[str]:
    """Find tensors that are not finite, in tuples, lists and dicts too: ``NaN in x[0] (1 of 8 entries)``."""
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
    """Name the first rows in which something is bad."""
    if bad.dim() == 0:
        return ""
    rows: list[int] = (
        bad.flatten(1).any(1).nonzero().flatten().tolist() if bad.dim() > 1 else bad.nonzero().flatten().tolist()
    )
    listed = ", ".join(map(str, rows[:most])) + (", ..." if len(rows) > most else "")
    return f" in row{'s' * (len(rows) > 1)} {listed}"


def _nan_message(what: str, where: Sequence[str], argument: str = "example", *, targets: bool = False) -> str:
    """What is not finite and what to do; ``targets`` says that they are those of a model that can leave gaps out."""
    fix = (
        "or, for gaps in the targets, pass BayesianModel(..., missing='ignore'), which leaves out those that are NaN."
        if targets
        else "or mask them in the model and fill the gaps: pyro.poutine.mask(mask=known) around "
        "pyro.sample(..., obs=torch.where(known, y, 0.0))."
    )
    return f"{argument}: {what}, from {', '.join(where)}. Remove or impute these values; {fix}"
