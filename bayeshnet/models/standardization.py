"""Means and standard deviations of data, by which a model brings them to unit scale."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bayeshnet.checks import kind_of
from bayeshnet.configuration import Configured
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.formatting import span
from bayeshnet.models.forms import as_tensor, leaves, mapped, num_rows

__all__ = ["Standardization", "Statistics"]

# A column whose spread is below so many roundings of its largest entry is constant.
_ROUNDINGS = 16.0


@dataclass(frozen=True, eq=False)
class Statistics(Configured):
    """What is subtracted from a tensor, and what it is then divided by.

    Attributes:
        loc: Means; ``[1, ..., n, ...]`` without the dimension of the rows, so that it broadcasts against one row.
        scale: Positive, of the same shape; 1 where a column is constant.
        what: What there is one number for: ``"column"``, ``"channel"``, ``"output"`` or ``"all"``.

    Raises:
        ArgumentError: If shapes differ, or a number is not finite, or a scale not positive.
        ArgumentTypeError: If one is no number or floating-point tensor.

    Example:
        >>> Statistics(torch.tensor([1.0, 5.0]), torch.tensor([1.0, 2.0]))
        column: loc 1..5, scale 1..2
    """

    configured_as = "units"

    loc: Tensor
    scale: Tensor
    what: str = "column"

    def __post_init__(self) -> None:
        for name in ("loc", "scale"):
            value = getattr(self, name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                object.__setattr__(self, name, torch.tensor(float(value)))
            elif not isinstance(value, Tensor) or not value.is_floating_point():
                given = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else kind_of(value)
                raise ArgumentTypeError(f"{name}: is {given}; pass a number or a floating-point tensor.")
        if self.loc.shape != self.scale.shape:
            raise ArgumentError(
                f"loc, scale: have shapes {tuple(self.loc.shape)} and {tuple(self.scale.shape)}; pass the same number."
            )
        if not bool(torch.isfinite(self.loc).all() and torch.isfinite(self.scale).all() and (self.scale > 0).all()):
            raise ArgumentError("loc, scale: hold NaN or infinite numbers, or scales that are not positive.")

    def not_compared(self) -> tuple[str, ...]:
        """The numbers, which a model has as buffers."""
        return ("loc", "scale")

    def __repr__(self) -> str:
        return f"{self.what}: loc {span(self.loc)}, scale {span(self.scale)}"


@dataclass(frozen=True, eq=False)
class Standardization(Configured):
    """Means and standard deviations of inputs and targets, for ``BayesianModel(..., standardize=...)``.

    Plain data: make it of data with :meth:`of`, or of numbers that you know, ``Standardization(targets=Statistics(25e4,
    8e4))``.

    Attributes:
        inputs: Statistics of each argument of the network, in a dict for arguments by name; None for one that is left
            as it is. Those after the last, or not in the dict, are left as they are, too.
        targets: Statistics of the targets; None where they are left as they are.

    Example:
        >>> x = torch.stack([torch.linspace(0.0, 2.0, 5), torch.full((5,), 7.0)], dim=1)
        >>> found = Standardization.of(x, 1e5 * x[:, 0])
        >>> found.inputs[0].loc, found.targets.loc
        (tensor([1., 7.]), tensor(100000.))
    """

    configured_as = "units"

    inputs: Sequence[Statistics | None] | Mapping[str, Statistics | None] = ()
    targets: Statistics | None = None

    def __post_init__(self) -> None:
        inputs = (self.inputs,) if isinstance(self.inputs, Statistics) else self.inputs
        object.__setattr__(self, "inputs", dict(inputs) if isinstance(inputs, Mapping) else tuple(inputs))
        for name, part in (*(("inputs", part) for part in self.inputs_by_name.values()), ("targets", self.targets)):
            if part is not None and not isinstance(part, Statistics):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise ArgumentTypeError(f"{name}: is {kind_of(part)}; pass Statistics(loc, scale), or None.")

    @property
    def inputs_by_name(self) -> dict[str, Statistics | None]:
        """Statistics of each argument of the network by its name, or its place."""
        if isinstance(self.inputs, Mapping):
            return dict(self.inputs)
        return {str(i): part for i, part in enumerate(self.inputs)}

    @classmethod
    def of(cls, x: Any, y: Any = None, *, feature_dim: int | None = None) -> Standardization:
        """Statistics of data, computed in float64.

        Of inputs ``[B, K]`` there is one mean and standard deviation for each column, of images ``[B, C, H, W]`` and
        volumes one for each channel, of ``[B]`` and ``[B, n, m]`` a single one (pass ``feature_dim``). Of targets ``[B,
        K]`` there is one for each output, else a single one. Whole numbers are left as they are: token ids, labels,
        counts. The statistics have the dtype of the data.

        Args:
            x: Inputs ``[B, ...]``, tensor or array; a tuple, list or dict of the network's arguments.
            y: Targets ``[B, ...]``; None to leave them as they are.
            feature_dim: The dimension of the inputs whose entries have statistics of their own; 1 or -1, say.

        Raises:
            ArgumentError: If there are fewer than two rows, or NaN or infinite numbers; NaN targets are left out.
            ArgumentTypeError: If something holds no numbers.
        """
        return cls.of_batches([(x, y)], feature_dim=feature_dim)

    @classmethod
    def of_batches(cls, batches: Iterable[Any], *, feature_dim: int | None = None) -> Standardization:
        """Statistics of batches ``(x, y)``, or ``{"x": ..., "y": ...}``, of a ``DataLoader`` for instance, in one pass.

        Args:
            batches: The batches; random numbers are taken from a copy of the stream.
            feature_dim: As for :meth:`of`.

        Raises:
            ArgumentError: As for :meth:`of`.
            ArgumentTypeError: As for :meth:`of`.

        Example:
            >>> x, y = torch.randn(100, 3), torch.randn(100)
            >>> parts = Standardization.of_batches(zip(x.split(30), y.split(30), strict=True))
            >>> torch.allclose(parts.inputs[0].loc, Standardization.of(x, y).inputs[0].loc)
            True
        """
        inputs: dict[str, _Moments | None] = {}
        targets: _Moments | None = None
        places = True
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            for number_of_batch, (x, y) in enumerate(map(_pair, batches)):
                parts = dict(leaves(x))
                if number_of_batch == 0:
                    inputs = {name: _Moments.for_inputs(part, num_rows(x), feature_dim) for name, part in parts.items()}
                    places = not isinstance(x, Mapping) and all(name.isdigit() for name in parts)
                    targets = _Moments.for_targets(y)
                if parts.keys() != inputs.keys():
                    raise ArgumentError(f"x: batches have the parts {list(inputs)} and {list(parts)}; pass equal ones.")
                for name, moments in inputs.items():
                    if moments is not None:
                        moments.add(parts[name], "x")
                if targets is not None:
                    targets.add(y, "y")
        found = {name: None if part is None else part.statistics("x") for name, part in inputs.items()}
        return cls(list(found.values()) if places else found, None if targets is None else targets.statistics("y"))

    def __repr__(self) -> str:
        shown_by = {name: "as they are" if part is None else repr(part) for name, part in self.inputs_by_name.items()}
        if isinstance(self.inputs, Mapping):
            parts = [f"{name} by {part}" for name, part in shown_by.items()]
        else:
            parts = list(shown_by.values())
        parts = parts or ["as they are"]
        shown = parts[0] if len(parts) == 1 else f"({'; '.join(parts)})"
        return f"inputs by {shown}; targets {'as they are' if self.targets is None else f'by {self.targets!r}'}"


def _pair(batch: Any) -> tuple[Any, Any]:
    """Inputs and targets of a batch, as tensors."""
    if isinstance(batch, Mapping):
        x, y = batch.get("x"), batch.get("y")
    elif isinstance(batch, tuple | list):
        x, y = batch[0], batch[1] if len(batch) > 1 else None
    else:
        x, y = batch, None
    like = torch.zeros(())
    x = mapped(x, lambda _, part: as_tensor(part, "x", like, keep=True))
    return tuple(x) if isinstance(x, list) else x, as_tensor(y, "y", like, keep=True)


class _Moments:
    """Running mean and sum of squares, in float64, of what is left of a tensor without some dimensions."""

    def __init__(self, like: Tensor, kept: int | None, what: str) -> None:
        self._kept, self._what, self._dtype = kept, what, like.dtype
        self._dims = [dim for dim in range(like.dim()) if dim != kept]
        self._count: Any = 0
        self._mean: Any = 0.0
        self._squares: Any = 0.0
        self._largest: Any = 0.0
        self._rows = 0
        self._trailing = 0 if kept is None else like.dim() - 1 - kept

    @classmethod
    def for_inputs(cls, part: Any, rows: int, feature_dim: int | None) -> _Moments | None:
        if not isinstance(part, Tensor) or not part.is_floating_point() or part.dim() == 0 or len(part) != rows:
            return None
        if feature_dim is not None:
            kept = feature_dim + part.dim() if feature_dim < 0 else feature_dim
            if not 0 < kept < part.dim():
                raise ArgumentError(f"feature_dim: is {feature_dim}; pass 1..{part.dim() - 1} for inputs [B, ...].")
            return cls(part, kept, "column" if part.dim() == 2 else "channel")
        if part.dim() == 2:
            return cls(part, 1, "column")
        return cls(part, 1, "channel") if part.dim() >= 4 else cls(part, None, "all")

    @classmethod
    def for_targets(cls, y: Any) -> _Moments | None:
        if y is None:
            return None
        if not isinstance(y, Tensor):
            raise ArgumentTypeError(f"y: is {kind_of(y)}; pass a tensor, torch.as_tensor(y).")
        if not y.is_floating_point() or y.dim() == 0:
            return None
        return cls(y, 1, "output") if y.dim() == 2 and y.shape[1] > 1 else cls(y, None, "all")

    def add(self, part: Tensor, name: str) -> None:
        x = part.detach().double()
        known = torch.isfinite(x) if name == "x" else ~torch.isnan(x)  # a missing target is left out
        if not bool(known.all()) and name == "x":
            raise ArgumentError(f"{name}: holds NaN or infinite numbers; remove or impute them.")
        count = known.double().sum(self._dims)
        x = torch.where(known, x, 0.0)
        mean = x.sum(self._dims) / count.clamp(min=1)
        shape = [1] * x.dim()
        if self._kept is not None:
            shape[self._kept] = -1
        squares = torch.where(known, x - mean.reshape(shape), 0.0).square().sum(self._dims)
        total = self._count + count
        shift = mean - self._mean
        weight = count / total.clamp(min=1)
        # Chan, Golub & LeVeque 1979: sums of squares of two parts, by their means.
        self._squares = self._squares + squares + shift.square() * self._count * weight
        self._mean = self._mean + shift * weight
        self._largest = torch.maximum(torch.as_tensor(self._largest).to(x), x.abs().amax(self._dims))
        self._count, self._rows = total, self._rows + len(x)

    def statistics(self, name: str) -> Statistics:
        if self._rows < 2:
            raise ArgumentError(
                f"standardize: {name} has {self._rows} row(s); pass the training data, two rows or more."
            )
        std = (self._squares / self._count.clamp(min=1)).sqrt()
        smallest = _ROUNDINGS * torch.finfo(self._dtype).eps * self._largest
        scale = torch.where(std > smallest, std, 1.0)
        if not bool(torch.isfinite(self._mean).all() and torch.isfinite(scale).all()):
            raise ArgumentError(f"{name}: holds infinite numbers; remove or impute them.")
        shape = (-1,) + (1,) * self._trailing if self._kept is not None else ()
        loc, scale = self._mean.reshape(shape).to(self._dtype), scale.reshape(shape).to(self._dtype)
        return Statistics(loc, scale, self._what)
