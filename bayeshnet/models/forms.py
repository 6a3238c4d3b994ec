"""The forms in which inputs of a network may come, and what is done with their rows.

There is one set of forms for ``fit``, guides, ``predict``, ``diagnose`` and everything else that takes data:

* a tensor, a numpy array, or a pandas frame or series;
* several of them: a tuple or list for the arguments of the network in their order, a dict for those by name.

What has as many rows as the first tensor among them is divided with the rows; everything else is handed on as it is.
Inside of the package the forms are a tensor, a tuple or a dict of tensors; :meth:`~bayeshnet.BayesianModel.as_inputs`
makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from bayeshnet.checks import kind_of
from bayeshnet.errors import ArgumentError, ArgumentTypeError

__all__ = [
    "as_numbers",
    "as_tensor",
    "fit_together",
    "is_frame",
    "is_single",
    "joined",
    "leaves",
    "mapped",
    "num_rows",
    "rows_of",
]

_KINDS = "iufb"  # of numpy: signed and unsigned whole numbers, floating-point ones, booleans


def is_frame(value: Any) -> bool:
    """Whether a value is a pandas frame, or something that looks like one.

    Example:
        >>> is_frame(torch.zeros(3))
        False
    """
    return hasattr(value, "columns") and hasattr(value, "dtypes") and hasattr(value, "iloc")


def is_single(data: Any) -> bool:
    """Whether data are one batch rather than an iterable of batches: a list is taken for a list of batches.

    Example:
        >>> is_single((1, 2)), is_single([(1, 2)])
        (True, False)
    """
    return isinstance(data, Tensor | Mapping | tuple) or hasattr(data, "__array__") or is_frame(data)


def leaves(x: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """What is in the inputs, with names: the place or the key of each.

    Example:
        >>> [name for name, _ in leaves((1, {"mask": 2}))], [name for name, _ in leaves({"ids": 1})]
        (['0', '1_mask'], ['ids'])
    """
    if isinstance(x, Mapping | tuple | list):
        for key, part in x.items() if isinstance(x, Mapping) else enumerate(x):
            yield from leaves(part, f"{name}_{key}" if name else str(key))
    else:
        yield name or "0", x


def mapped(x: Any, function: Callable[[str, Any], Any], name: str = "") -> Any:
    """Inputs of the same form, of what a function makes of each name and value among their :func:`leaves`.

    Example:
        >>> mapped((1, {"mask": 2}), lambda name, value: f"{name}: {value}")
        ('0: 1', {'mask': '1_mask: 2'})
    """
    if isinstance(x, Mapping):
        return {key: mapped(part, function, f"{name}_{key}" if name else str(key)) for key, part in x.items()}
    if isinstance(x, tuple | list):
        parts = [mapped(part, function, f"{name}_{i}" if name else str(i)) for i, part in enumerate(x)]
        if isinstance(x, list):
            return parts
        make: Any = type(x)
        return make(*parts) if hasattr(x, "_fields") else tuple(parts)
    return function(name or "0", x)


def num_rows(x: Any) -> int:
    """Number of rows of inputs: the first dimension of the first tensor among them; 0 if there is none.

    Example:
        >>> num_rows(torch.zeros(7, 3)), num_rows((torch.zeros(5, 2), None)), num_rows(None)
        (7, 5, 0)
    """
    return next((len(part) for _, part in leaves(x) if isinstance(part, Tensor) and part.dim()), 0)


def rows_of(x: Any, chosen: slice | Tensor, *, rows: int | None = None) -> Any:
    """Some rows of inputs, or of anything made of tensors; what has no rows is handed on.

    Args:
        x: The inputs.
        chosen: Which rows: a slice, or their numbers.
        rows: How many there are; those of the first tensor by default.

    Raises:
        ArgumentTypeError: If they are sparse.

    Example:
        >>> few = rows_of({"ids": torch.zeros(3, 2), "scale": 1.0}, slice(0, 2))
        >>> few["ids"].shape, few["scale"]
        (torch.Size([2, 2]), 1.0)
    """
    total = num_rows(x) if rows is None else rows

    def taken(_: str, part: Any) -> Any:
        if not isinstance(part, Tensor) or part.shape[:1] != (total,):
            return part
        if part.layout != torch.strided:
            raise ArgumentTypeError(
                f"x: is a tensor of layout {part.layout}, which cannot be sliced; pass x.to_dense(), or "
                "batch_size=None."
            )
        return part[chosen.to(part.device) if isinstance(chosen, Tensor) else chosen]

    return mapped(x, taken)


def fit_together(first: Any, second: Any) -> bool:
    """Whether the rows of two batches can be put one after the other: same form, and same shapes of a row.

    Example:
        >>> fit_together(torch.zeros(4, 7), torch.zeros(2, 7)), fit_together(torch.zeros(4, 7), torch.zeros(4, 9))
        (True, False)
    """
    one, other = dict(leaves(first)), dict(leaves(second))
    rows = num_rows(first), num_rows(second)
    return one.keys() == other.keys() and all(
        not _has_rows(one[name], rows[0])
        or (_has_rows(other[name], rows[1]) and one[name].shape[1:] == other[name].shape[1:])
        for name in one
    )


def joined(pieces: Sequence[Any]) -> Any:
    """The rows of several batches one after the other; what has no rows is that of the first.

    Example:
        >>> joined([(torch.zeros(2, 1), 5), (torch.ones(1, 1), 5)])
        (tensor([[0.],
                [0.],
                [1.]]), 5)
    """
    if len(pieces) == 1:
        return pieces[0]
    rows = num_rows(pieces[0])
    named = [dict(leaves(piece)) for piece in pieces]

    def together(name: str, part: Any) -> Any:
        return torch.cat([piece[name] for piece in named]) if _has_rows(part, rows) else part

    return mapped(pieces[0], together)


def _has_rows(part: Any, rows: int) -> bool:
    return isinstance(part, Tensor) and part.dim() > 0 and len(part) == rows


def as_tensor(value: Any, argument: str, like: Tensor, *, keep: bool = False) -> Any:
    """A tensor of an array or a series; tensors, and what has no numbers of rows (None, numbers), as they are.

    Args:
        value: Anything.
        argument: Name of the argument, for messages.
        like: Floating-point numbers take its dtype, and all its device. Whole numbers stay whole.
        keep: Whether floating-point numbers keep their precision, because they will be standardised first.

    Raises:
        ArgumentTypeError: If it holds something that is no number, is a frame, or a packed sequence.
        ArgumentError: If it is a series with missing values.

    Example:
        >>> import numpy as np
        >>> as_tensor(np.ones(2), "x", torch.zeros(())), as_tensor(np.arange(2), "x", torch.zeros(()))
        (tensor([1., 1.]), tensor([0, 1]))
    """
    if isinstance(value, Tensor):
        if value.is_nested:
            raise ArgumentTypeError(
                f"{argument}: is a nested tensor, whose rows differ in size; pass a padded one and a mask or lengths."
            )
        return value
    if isinstance(value, PackedSequence):
        raise ArgumentTypeError(
            f"{argument}: is a PackedSequence, in which the rows do not come one after the other; pass a padded tensor "
            "and the lengths of its rows, x=(padded, lengths), and let forward pack them."
        )
    if is_frame(value):
        raise ArgumentTypeError(
            f"{argument}: is a frame with the columns {_some(value.columns)}, and the model does not know their order "
            "and categories; pass BayesianModel(..., columns=Columns(frame)) with the training frame."
        )
    if not hasattr(value, "__array__"):
        return value
    return _of_array(value, argument, like, keep)


def as_numbers(value: Any, argument: str, like: Tensor, *, keep: bool = False) -> Any:
    """As :func:`as_tensor`, and of a frame the numbers in it: targets, whose columns need no order or categories.

    Example:
        >>> as_numbers(torch.ones(2), "y", torch.zeros(()))
        tensor([1., 1.])
    """
    return as_tensor(value.to_numpy() if is_frame(value) else value, argument, like, keep=keep)


def _of_array(value: Any, argument: str, like: Tensor, keep: bool) -> Tensor:
    import numpy as np  # noqa: PLC0415 - torch works without it, and tensors need none

    dtype = getattr(value, "dtype", None)
    # Categories of pandas become numbers that mean nothing; its own types of numbers may hold missing values.
    array = value.to_numpy() if hasattr(value, "to_numpy") and not hasattr(value, "cat") else np.asarray(value)
    if str(dtype)[:1] in "IUFb" and hasattr(value, "isna") and bool(value.isna().any()):
        raise ArgumentError(f"{argument}: has missing values; remove or impute them.")
    if array.dtype == object and str(dtype)[:1] in "IUFb":
        array = np.asarray([entry.item() if hasattr(entry, "item") else entry for entry in array])
    if array.dtype.kind not in _KINDS or hasattr(value, "cat"):
        raise ArgumentTypeError(
            f"{argument}: is {kind_of(value)} of dtype {dtype}, which holds no numbers; convert labels to whole "
            "numbers, such as pandas.Categorical(labels).codes, and pass columns of a frame that hold categories "
            "by BayesianModel(..., columns=Columns(frame))."
        )
    if np.ma.is_masked(value):  # what lies under a mask is any number
        if array.dtype.kind != "f":
            raise ArgumentError(f"{argument}: has masked entries; remove these rows, or impute the values.")
        array = value.filled(np.nan)
    if not array.dtype.isnative:  # as in files of other machines
        array = array.astype(array.dtype.newbyteorder("="))
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    made = torch.from_numpy(np.array(array, copy=True)).to(like.device)  # its memory may be read-only, or change later
    return made.to(like.dtype) if made.is_floating_point() and not keep else made


def _some(names: Any) -> str:
    listed = [str(name) for name in list(names)[:6]]
    return f"{listed}" if len(names) <= len(listed) else f"{listed} and {len(names) - len(listed)} more"
