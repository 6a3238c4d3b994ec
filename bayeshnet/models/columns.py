"""Columns of a pandas frame as the numbers that a network takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn

from bayeshnet.checks import kind_of, require_count
from bayeshnet.configuration import Configured
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.models.forms import is_frame
from bayeshnet.models.standardization import Standardization, Statistics

__all__ = ["ColumnEmbedding", "Columns", "columns_from"]

Category: TypeAlias = "str | int | float | bool"
_MOST = 8  # names or categories in a message


class Columns(Configured):
    """How the columns of a frame become numbers, learned from the training frame.

    Columns of numbers are taken as they are, in the order that they have here. Those of categories (of the dtypes
    ``category``, ``object``, ``str`` and ``bool``, or named in ``categories``) follow them: as a column 0 or 1 for each
    category, or as one column of their numbers for a :class:`ColumnEmbedding` in the network. A later frame may have
    its columns in any order; one that is missing or new is an error. Missing values are refused.

    Args:
        frame: The training frame.
        categorical: ``"one_hot"`` or ``"embedding"``.
        unknown: What is done with a category that was not in the training frame: ``"refuse"`` it, or take it for
            ``"zeros"`` (in all columns of the category, or as its embedding).
        categories: The categories of some columns, by name, in place of those that are found; also makes a column of
            numbers one of categories.
        numeric: Names of the columns of numbers, in place of a frame; then ``categories`` has all others.

    Attributes:
        numeric: Names of the columns of numbers, in their order.
        categories: The categories of each other column.

    Raises:
        ArgumentError: If the frame has missing values, no columns, or the options do not fit.
        ArgumentTypeError: If the frame is none, or has a column that holds neither numbers nor categories.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"city": ["Bern", "Basel", "Bern"], "age": [30, 41, 52]})
        >>> columns = Columns(frame)
        >>> columns
        age; one-hot: city (2); 3 columns in all
        >>> columns.tensor(frame)
        tensor([[30.,  0.,  1.],
                [41.,  1.,  0.],
                [52.,  0.,  1.]])
    """

    configured_as = "columns"
    unrecorded: ClassVar[frozenset[str]] = frozenset({"frame"})

    numeric: list[str]
    categories: dict[str, list[Category]]

    def __init__(
        self,
        frame: Any = None,
        *,
        categorical: Literal["one_hot", "embedding"] = "one_hot",
        unknown: Literal["refuse", "zeros"] = "refuse",
        categories: Mapping[str, Sequence[Category]] | None = None,
        numeric: Sequence[str] | None = None,
    ) -> None:
        if categorical not in ("one_hot", "embedding"):
            raise ArgumentError(f"categorical: is {categorical!r}; pass 'one_hot' or 'embedding'.")
        if unknown not in ("refuse", "zeros"):
            raise ArgumentError(f"unknown: is {unknown!r}; pass 'refuse' or 'zeros'.")
        if (frame is None) == (numeric is None):
            raise ArgumentError("frame, numeric: pass the training frame, or the names of the columns of numbers.")
        self.categorical: Literal["one_hot", "embedding"] = categorical
        self.unknown: Literal["refuse", "zeros"] = unknown
        given = {name: list(values) for name, values in (categories or {}).items()}
        for name, values in given.items():
            if not values or len(set(values)) < len(values):
                raise ArgumentError(f"categories: those of {name!r} are {values}; pass one or more, each once.")
        self.numeric = list(numeric or ())
        self.categories = given
        if frame is not None:
            self._learn(frame, given)
        if not self.names:
            raise ArgumentError("frame: has no columns; pass the inputs of the network.")

    def _learn(self, frame: Any, given: dict[str, list[Category]]) -> None:
        _check_frame(frame)
        if missing := [name for name in given if name not in frame.columns]:
            raise ArgumentError(f"categories: {missing} are not columns of the frame; it has {list(frame.columns)}.")
        self.categories = {}
        for name in frame.columns:
            if not isinstance(name, str):
                raise ArgumentTypeError(
                    f"frame: has the column {name!r}, {kind_of(name)}; name columns by strings, "
                    "frame.rename(columns=str)."
                )
            column = frame[name]
            if name in given:
                self.categories[name] = given[name]
            elif _is_numeric(column):
                self.numeric.append(name)
            else:
                self.categories[name] = _categories(name, column)
        self.tensor(frame)  # missing values are an error here, not at the first step

    def __repr__(self) -> str:
        parts = [_listed(self.numeric)] if self.numeric else []
        if self.categories:
            how = "one-hot" if self.categorical == "one_hot" else "embedded"
            named = _listed([f"{name} ({len(values)})" for name, values in self.categories.items()])
            parts.append(f"{how}: {named}{', unknown ones zeros' * (self.unknown == 'zeros')}")
        return f"{'; '.join(parts)}; {self.width} columns in all"

    @property
    def names(self) -> list[str]:
        """Names of all columns: those of numbers, then the others."""
        return [*self.numeric, *self.categories]

    @property
    def width(self) -> int:
        """Number of columns of :meth:`tensor`."""
        if self.categorical == "embedding":
            return len(self.names)
        return len(self.numeric) + sum(map(len, self.categories.values()))

    def tensor(self, frame: Any, *, dtype: torch.dtype | None = None, device: Any = None) -> Tensor:
        """The rows of a frame as numbers ``[B, width]``.

        Args:
            frame: A frame with these columns, in any order.
            dtype: That of the tensor; torch's default one without.
            device: Where to make it.

        Raises:
            ArgumentError: If columns are missing or new, or hold missing values or unknown categories.
            ArgumentTypeError: If it is no frame, or a column of numbers holds something else.
        """
        _check_frame(frame)
        there = list(frame.columns)
        if missing := [name for name in self.names if name not in there]:
            raise ArgumentError(f"frame: lacks the columns {_listed(missing)}; the model was built for {self.names}.")
        if new := [str(name) for name in there if name not in self.names]:
            raise ArgumentError(
                f"frame: has columns {_listed(new)} that the model was not built for; pass frame[columns.names]."
            )
        _refuse_missing(frame, self.names)
        dtype = torch.get_default_dtype() if dtype is None else dtype
        parts = [self._numbers(name, frame[name]) for name in self.numeric]
        for name, values in self.categories.items():
            codes = self._codes(name, frame[name], values)
            if self.categorical == "embedding":
                parts.append(codes.double().unsqueeze(1))
            else:
                parts.append((codes.unsqueeze(1) == torch.arange(len(values))).double())
        return torch.cat(parts, dim=1).to(device=device, dtype=dtype)

    def _numbers(self, name: str, column: Any) -> Tensor:
        if not _is_numeric(column):
            raise ArgumentTypeError(
                f"frame: column {name!r} has dtype {column.dtype}, and held numbers in the training frame; convert it, "
                f"frame[{name!r}].astype(float)."
            )
        return torch.tensor(column.to_numpy(dtype="float64"), dtype=torch.double).unsqueeze(1)

    def _codes(self, name: str, column: Any, values: list[Category]) -> Tensor:
        """The numbers of the categories of a column ``[B]``; that of an unknown one is how many there are."""
        places = {value: i for i, value in enumerate(values)}
        found = [_scalar(entry) for entry in column.tolist()]
        unknown = sorted({str(entry) for entry in found if entry not in places})
        if unknown and self.unknown == "refuse":
            raise ArgumentError(
                f"frame: column {name!r} has the categories {_listed(unknown)}, which were not in the training frame "
                f"({_listed([str(value) for value in values])}); remove these rows, or pass "
                "Columns(frame, unknown='zeros')."
            )
        return torch.tensor([places.get(entry, len(values)) for entry in found], dtype=torch.long)

    def embedding(self, dim: int = 4) -> ColumnEmbedding:
        """A layer for the front of the network that embeds the columns of categories.

        Args:
            dim: Numbers for each category.

        Raises:
            ArgumentError: If the columns are not to be embedded, or ``dim`` is not positive.

        Example:
            >>> columns = Columns(numeric=["age"], categories={"city": ["Basel", "Bern"]}, categorical="embedding")
            >>> layer = columns.embedding(3)
            >>> layer(torch.tensor([[30.0, 1.0], [41.0, 0.0]])).shape, layer.out_features
            (torch.Size([2, 4]), 4)
        """
        if self.categorical != "embedding":
            raise ArgumentError("categorical: is 'one_hot'; pass Columns(frame, categorical='embedding').")
        return ColumnEmbedding(
            len(self.numeric), [len(values) for values in self.categories.values()], dim, zeros=self.unknown == "zeros"
        )

    def check_network(self, net: nn.Module) -> None:
        """Raise unless a network embeds the columns if and only if they are numbers of categories.

        Raises:
            ArgumentError: If it does not.
        """
        embeds = any(isinstance(module, ColumnEmbedding) for module in net.modules())
        wanted = self.categorical == "embedding" and bool(self.categories)
        if wanted and not embeds:
            raise ArgumentError(
                "columns: the columns of categories are to be embedded, and the network has no layer for that; put "
                "columns.embedding() at its front, whose out_features are what follows gets."
            )
        if embeds and not wanted:
            raise ArgumentError(
                "columns: are one-hot, and the network embeds numbers of categories; pass "
                "Columns(frame, categorical='embedding')."
            )

    def only_numbers(self, standardization: Standardization | None) -> Standardization | None:
        """The statistics without those of columns of categories, which stay as they are."""
        if standardization is None or not self.categories:
            return standardization

        def kept(part: Statistics | None) -> Statistics | None:
            if part is None or part.loc.shape != (self.width,):
                return part
            numbers = torch.arange(self.width) < len(self.numeric)
            numbers = numbers.to(part.loc.device)
            return Statistics(torch.where(numbers, part.loc, 0.0), torch.where(numbers, part.scale, 1.0), part.what)

        inputs = standardization.inputs
        changed: Any = (
            {name: kept(part) for name, part in inputs.items()} if isinstance(inputs, Mapping) else map(kept, inputs)
        )
        return Standardization(changed if isinstance(changed, dict) else list(changed), standardization.targets)


class ColumnEmbedding(nn.Module):
    """Embeds columns of categories that stand behind columns of numbers; see :meth:`Columns.embedding`.

    Args:
        numeric: Number of columns of numbers.
        sizes: Number of categories of each other column.
        dim: Numbers for each category.
        zeros: Whether there may be unknown categories, whose number is that of the categories; they become zeros.

    Attributes:
        out_features: Number of columns that it returns.

    Example:
        >>> ColumnEmbedding(2, [3, 5], 4)(torch.zeros(7, 4)).shape
        torch.Size([7, 10])
    """

    def __init__(self, numeric: int, sizes: Sequence[int], dim: int, *, zeros: bool = False) -> None:
        super().__init__()
        require_count("dim", dim)
        self.numeric = numeric
        self.embeddings = nn.ModuleList(
            nn.Embedding(size + zeros, dim, padding_idx=size if zeros else None) for size in sizes
        )
        self.out_features = numeric + dim * len(sizes)

    def forward(self, x: Tensor) -> Tensor:
        """Columns of numbers and of embeddings ``[B, out_features]``."""
        parts = [x[..., : self.numeric]]
        parts += [layer(x[..., self.numeric + i].round().long()) for i, layer in enumerate(self.embeddings)]
        return torch.cat(parts, dim=-1)


def columns_from(given: Any, standardize: Any) -> Columns | None:
    """The argument ``columns`` of a model; without it the columns of a frame that statistics are taken of.

    Raises:
        ArgumentTypeError: If it is something else.

    Example:
        >>> columns_from(None, None) is None
        True
    """
    if given is None:
        first = next(iter(standardize), None) if isinstance(standardize, tuple) else None
        first = standardize.get("x") if isinstance(standardize, Mapping) else first
        return Columns(first) if is_frame(first) else None
    if is_frame(given):
        return Columns(given)
    if not isinstance(given, Columns):
        raise ArgumentTypeError(f"columns: is {kind_of(given)}; pass Columns(frame) or the training frame.")
    return given


def _check_frame(frame: Any) -> None:
    if not is_frame(frame):
        raise ArgumentTypeError(f"frame: is {kind_of(frame)}; pass a pandas.DataFrame.")
    if not len(frame):
        raise ArgumentError("frame: has no rows; pass at least one.")
    there = list(frame.columns)
    if twice := sorted({str(name) for name in there if there.count(name) > 1}):
        raise ArgumentError(f"frame: has several columns of the names {twice}; give each a name of its own.")


def _is_numeric(column: Any) -> bool:
    return getattr(column.dtype, "kind", "O") in "iuf" and not hasattr(column, "cat")


def _categories(name: str, column: Any) -> list[Category]:
    dtype = str(column.dtype)
    of_text = dtype in ("object", "str", "bool", "boolean") or dtype.startswith("string")
    if not hasattr(column, "cat") and not of_text:
        raise ArgumentTypeError(
            f"frame: column {name!r} has dtype {dtype}, neither numbers nor categories; convert it, for times to the "
            "numbers that matter."
        )
    values = column.cat.categories if hasattr(column, "cat") else column.dropna().unique()
    found = [_scalar(value) for value in values]
    if wrong := [value for value in found if not isinstance(value, str | int | float | bool)]:
        raise ArgumentTypeError(f"frame: column {name!r} holds {kind_of(wrong[0])}; pass strings or numbers.")
    ordered = found if hasattr(column, "cat") else sorted(found, key=lambda value: (str(type(value)), value))
    return cast("list[Category]", ordered)


def _scalar(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _refuse_missing(frame: Any, names: Sequence[str]) -> None:
    for name in names:
        bad = frame[name].isna().to_numpy()
        if bad.any():
            rows = [i for i, wrong in enumerate(bad.tolist()) if wrong]
            raise ArgumentError(
                f"frame: column {name!r} has {len(rows)} missing value{'s' * (len(rows) > 1)} (rows {rows[:5]}"
                f"{' and more' if len(rows) > 5 else ''}); remove these rows or impute the values."
            )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_MOST])
    return shown if len(names) <= _MOST else f"{shown} and {len(names) - _MOST} more"
