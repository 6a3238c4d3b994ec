"""Random batches of rows in memory, and how many rows and steps a fit takes by default."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from bayeshnet.checks import kind_of, require_count
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.models.capabilities import has_rows
from bayeshnet.models.forms import is_single, rows_of
from bayeshnet.sites.arguments import call_arguments, inputs_and_targets
from bayeshnet.sites.batch_sizes import MOST_ROWS, default_batch_size

__all__ = ["Minibatches", "batched", "given_data", "number_of_steps"]

_LOGGER = logging.getLogger(__name__)

_STEPS = 3_000
_PASSES = 20


class Minibatches:
    """Rows in memory, in batches of nearly equal size, which are drawn anew for each pass.

    Args:
        data: A tuple or dict of the model's arguments. Every tensor with as many rows as the targets is divided, inside
            of tuples and dicts, too; anything else goes into every batch as it is.
        rows: Number of rows.
        batch_size: Rows of the largest batch.

    Example:
        >>> batches = Minibatches((torch.arange(10.0), torch.arange(10)), rows=10, batch_size=4)
        >>> sorted(len(y) for _, y in batches)
        [3, 3, 4]
        >>> torch.cat([y for _, y in batches]).sort().values
        tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    """

    def __init__(self, data: Any, *, rows: int, batch_size: int) -> None:
        self.whole = data
        self.rows = rows
        self._batches = math.ceil(rows / batch_size)
        self.batch_size = math.ceil(rows / self._batches)

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[Any]:
        for chosen in torch.randperm(self.rows).tensor_split(self._batches):
            yield rows_of(self.whole, chosen, rows=self.rows)


def batched(data: Any, model: Any, batch_size: int | None) -> Any:
    """Return the data as they are used: as they are, or in minibatches.

    Args:
        data: The data of a fit.
        model: Its model.
        batch_size: Rows of a batch; None for all up to 10,000, and 1,000 of more if the model's ``dataset_size`` says
            that these are all.

    Raises:
        ArgumentTypeError: If a size is given for data that come in batches already, or for a model whose rows are
            unknown.
        ArgumentError: If it is not positive.

    Example:
        >>> batched([("first",), ("second",)], print, None)
        [('first',), ('second',)]
    """
    if batch_size is not None:
        require_count("batch_size", batch_size, advice=", or None")
    whole = is_single(data)
    if not whole:
        if batch_size is not None:
            raise ArgumentTypeError(
                f"batch_size: is {batch_size}, and data is {kind_of(data)}, whose batches are taken as they are; leave "
                "it out, or pass all rows as a tuple (x, y)."
            )
        return data
    rows = targets_in(data, model) if has_rows(model) else None
    if rows is None:
        if batch_size is not None:
            raise ArgumentTypeError(
                f"batch_size: is {batch_size}, and it is not known which arguments of the model are rows; pass a "
                "DataLoader, or a BayesianModel with data (x, y)."
            )
        return data
    size = batch_size
    if size is None:
        size = default_batch_size(rows, getattr(model, "dataset_size", None))
        if rows > MOST_ROWS:
            why = "" if size < rows else ", as dataset_size is not theirs"
            _LOGGER.info("batch_size: %d of %d rows%s", size, rows, why)
    return data if size >= rows else Minibatches(data, rows=rows, batch_size=size)


def given_data(data: Any, model: Any) -> Any:
    """Return data that are one batch as a tuple or dict of the model's arguments, others as they are.

    Args:
        data: The data of a fit.
        model: Its model.

    Example:
        >>> given_data([("first",)], print)
        [('first',)]
    """
    if not is_single(data) or not hasattr(model, "as_arguments"):
        return data
    args, kwargs = call_arguments(data, "data", model)
    return kwargs if isinstance(data, Mapping) else args


def targets_in(data: Any, model: Any = None) -> int | None:
    """Number of targets in one batch; None if there are none.

    Example:
        >>> targets_in((torch.zeros(3, 2), torch.zeros(3)))
        3
    """
    _, y = inputs_and_targets(*call_arguments(data, "data", model))
    return len(y) if isinstance(y, Tensor) and y.dim() > 0 else None


def number_of_steps(steps: int | None, epochs: int | None, batches: int | None) -> int:
    """Number of steps of a fit.

    Args:
        steps: As given.
        epochs: Passes through the data, as given.
        batches: Number of batches of a pass; None if it is not known.

    Returns:
        With neither 3,000, or those of 20 passes if these are more.

    Raises:
        ArgumentError: If both are given, or the length of a pass is not known.

    Example:
        >>> number_of_steps(None, None, 1), number_of_steps(None, None, 1000), number_of_steps(None, 5, 12)
        (3000, 20000, 60)
    """
    if steps is not None and epochs is not None:
        raise ArgumentError(f"steps, epochs: both were given, {steps} and {epochs}; pass one of them.")
    if batches == 0:
        raise ArgumentError(
            "data: is an empty iterable; pass at least one batch, without drop_last where rows are few."
        )
    if steps is not None:
        return steps
    if epochs is None:
        return max(_STEPS, _PASSES * (batches or 0))
    if batches is None:
        raise ArgumentError(
            f"epochs: is {epochs}, and the number of batches of the data is not known before they are gone through; "
            "pass steps."
        )
    return epochs * batches
