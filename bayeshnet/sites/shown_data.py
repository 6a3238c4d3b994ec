"""What a model is shown of the data before it is trained, if it asks for that: inputs and targets."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from pyro.poutine.messenger import unwrap

from bayeshnet.models.forms import fit_together, is_single, joined, num_rows
from bayeshnet.sites.arguments import call_arguments, inputs_and_targets, row_arguments
from bayeshnet.sites.modes import evaluating

__all__ = ["show_data", "show_example"]


def show_example(model: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Show a model the arguments that a guide is built from: ``model.prepare(x, y, example=True)``, if it has that.

    Example:
        >>> show_example(lambda x: None, (torch.zeros(3, 1),), {})
    """
    prepare = _prepare(model)
    if prepare is not None:
        x, y = inputs_and_targets(args, kwargs)
        _show(model, prepare, x, y, row_arguments(args, kwargs), example=True)


def show_data(model: Any, data: Any) -> None:
    """Show a model some rows of the data of a fit: ``model.prepare(x, y)``, if it has that.

    All rows of a single batch; of an iterable as many batches as it takes to have ``model.rows_to_show`` rows. Random
    numbers that a loader draws for them are taken from a copy of the stream.

    Args:
        model: The model.
        data: The data as for :func:`~bayeshnet.fit`.

    Example:
        >>> show_data(lambda x: None, (torch.zeros(3, 1),))
    """
    prepare = _prepare(model)
    if prepare is None or isinstance(data, Iterator):
        return
    wanted: int = getattr(unwrap(model), "rows_to_show", 0)
    with torch.random.fork_rng(devices=[]):
        found = _some_rows(data, wanted, unwrap(model))
    if found is not None:
        _show(model, prepare, *found, example=False)


def _prepare(model: Any) -> Callable[..., None] | None:
    return getattr(unwrap(model) if callable(model) else model, "prepare", None)


def _show(
    model: Any, prepare: Callable[..., None], x: Any, y: Any, of_rows: Mapping[str, Any], *, example: bool
) -> None:
    if x is None:
        return  # running the model raises an error that says what is missing
    with evaluating(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
        prepare(x, y, example=example, **of_rows)


def _some_rows(data: Any, wanted: int, model: Any) -> tuple[Any, Any, dict[str, Any]] | None:
    if is_single(data):
        arguments = call_arguments(data, "data", model)
        return *inputs_and_targets(*arguments), row_arguments(*arguments)
    parts: list[tuple[Any, Any, dict[str, Any]]] = []
    count = 0
    for batch in itertools.islice(data, max(1, wanted)):
        arguments = call_arguments(batch, "data", model)
        x, y = inputs_and_targets(*arguments)
        if parts and not fit_together(parts[0][:2], (x, y)):
            break
        parts.append((x, y, row_arguments(*arguments)))
        count += num_rows(x)
        if not num_rows(x) or count >= wanted:
            break
    if not parts:
        return None
    names = [name for name in parts[0][2] if all(name in given for _, _, given in parts)]
    of_rows = {name: joined([given[name] for _, _, given in parts]) for name in names}
    return joined([x for x, _, _ in parts]), joined([y for _, y, _ in parts]), of_rows
