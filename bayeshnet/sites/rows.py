"""Rows of data: whether a model accepts them, and the first ones of a data set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyro
import torch
from torch import Tensor

from bayeshnet.checks import kind_of
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.models.bayesian_model import BayesianModel
from bayeshnet.models.forms import fit_together, is_single, joined, leaves, num_rows
from bayeshnet.sites.arguments import call_arguments, inputs_and_targets, row_arguments
from bayeshnet.sites.modes import evaluating

__all__ = ["check_rows", "first_row_data", "first_rows"]


def check_rows(model: BayesianModel, x: Any, y: Any, *, finite: bool = True) -> None:
    """Raise unless the model accepts these rows; its modes, buffers and random numbers stay as they are.

    Args:
        model: The model.
        x: Inputs.
        y: Targets.
        finite: Whether NaN and infinite numbers are refused, too.

    Raises:
        ArgumentError: If shapes do not fit each other, a target is not possible, or rows hold NaN or infinite numbers.
        ArgumentTypeError: If a dtype does not fit.

    Example:
        >>> from bayeshnet import BayesianModel, likelihoods
        >>> model = BayesianModel(torch.nn.Linear(2, 1), likelihood=likelihoods.Normal(scale=0.1))
        >>> check_rows(model, torch.zeros(3, 2), torch.zeros(3))
    """
    x, y = model.as_inputs(x), model.as_targets(y)
    with evaluating(model), torch.random.fork_rng(devices=[]), pyro.validation_enabled():
        model.check_observations(x, y)
    for name, value in (("x", x), ("y", y)) if finite else ():
        for _, part in leaves(value):
            if isinstance(part, Tensor) and part.is_floating_point() and part.dim():
                _refuse_non_finite(name, part, gaps=name == "y" and getattr(model, "missing", None) == "ignore")


def _refuse_non_finite(name: str, value: Tensor, *, gaps: bool) -> None:
    bad = torch.isinf(value) if gaps else ~torch.isfinite(value)
    if bool(bad.any()):
        rows = bad.flatten(1).any(1).nonzero().flatten().tolist() if bad.dim() > 1 else bad.nonzero().flatten().tolist()
        raise ArgumentError(
            f"data: {name} holds NaN or infinite numbers in {len(rows)} of the {len(value)} rows that are looked "
            f"at ({rows[:5]}{' and more' if len(rows) > 5 else ''}); remove or impute them."
        )


def first_rows(data: Any, num: int, model: Any = None) -> tuple[Any, Tensor] | None:
    """Return the first rows of the data, inputs and targets: ``num`` of them and the rest of their batch, or all.

    Args:
        data: One batch, or an iterable of batches.
        num: Number of rows.
        model: The model that the data are for, whose forms they may have.

    Returns:
        Inputs and targets, in batches whose rows have one shape; None if a batch lacks one of them.

    Raises:
        ArgumentTypeError: If the data are an iterator.

    Example:
        >>> x, y = first_rows([(torch.zeros(4, 2), torch.zeros(4))] * 3, 5)
        >>> len(x), len(y)
        (8, 8)
    """
    if isinstance(data, Iterator):
        raise ArgumentTypeError(
            f"data: is {kind_of(data)}, an iterator, which can be gone through once only; pass a list of batches or a "
            "DataLoader."
        )
    parts: list[tuple[Any, Tensor]] = []
    for batch in [data] if is_single(data) else data:
        x, y = inputs_and_targets(*call_arguments(batch, "data", model))
        if not num_rows(x) or not isinstance(y, Tensor):
            return None  # running the model raises an error that says what is missing
        if parts and not fit_together(parts[0], (x, y)):
            break
        parts.append((x, y))
        if sum(len(y) for _, y in parts) >= num:
            break
    return joined([x for x, _ in parts]), torch.cat([y for _, y in parts])


def first_row_data(data: Any, num: int, model: Any = None) -> dict[str, Tensor]:
    """Return weights, noise and exposures of the rows that :func:`first_rows` returns, by name; those that are given.

    Args:
        data: One batch, or an iterable of batches.
        num: Number of rows.
        model: As there.

    Example:
        >>> first_row_data((torch.zeros(2, 1), torch.zeros(2), torch.ones(2)), 5)
        {'weight': tensor([1., 1.])}
    """
    parts: dict[str, list[Tensor]] = {}
    rows, first = 0, None
    for batch in [data] if is_single(data) else data:
        args, kwargs = call_arguments(batch, "data", model)
        x, y = inputs_and_targets(args, kwargs)
        if first is not None and not fit_together(first, (x, y)):
            break
        first = (x, y) if first is None else first
        for name, value in row_arguments(args, kwargs).items():
            if isinstance(value, Tensor):
                parts.setdefault(name, []).append(value)
        rows += len(y) if isinstance(y, Tensor) else 0
        if rows >= num:
            break
    return {name: torch.cat(values) for name, values in parts.items()}
