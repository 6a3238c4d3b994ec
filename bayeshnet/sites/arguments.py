"""Data as the arguments of a Pyro model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pyro.infer.autoguide import AutoGuide
from torch import Tensor

from bayeshnet.checks import kind_of, shown
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.models.capabilities import requires_targets
from bayeshnet.models.forms import is_single
from bayeshnet.models.given_data import ROW_DATA

__all__ = [
    "ROW_DATA",
    "all_data",
    "call_arguments",
    "inputs_and_targets",
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
        >>> import torch
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
        >>> import torch
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
