"""What the plots take and where they draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from torch import Tensor

from bayeshnet.checks import kind_of
from bayeshnet.errors import ArgumentError, ArgumentTypeError

__all__ = ["Array", "ArrayLike", "PredictionLike", "check_draws", "draw_legend", "to_array", "use_axes"]

Array: TypeAlias = npt.NDArray[np.float64]
ArrayLike: TypeAlias = "Tensor | npt.NDArray[Any] | Sequence[Any]"
"""Numbers as a tensor (of any device, with or without gradients), an array or nested lists."""


@runtime_checkable
class PredictionLike(Protocol):
    """What the plots need of a prediction; ``bayeshnet.predict`` returns one.

    Attributes:
        draws: Sampled functions ``[S, B]``; ``functions`` is used in their place where there is one.
        samples: Sampled observations ``[S, B]``: functions with noise.
        mean: Predictive mean ``[B]``.

    Example:
        >>> import pyro.distributions as dist, torch
        >>> from bayeshnet import Prediction
        >>> f = torch.zeros(2, 3)
        >>> isinstance(Prediction(f, f, dist.Normal(f, 1.0)), PredictionLike)
        True
    """

    @property
    def draws(self) -> Tensor:
        """Sampled functions ``[S, B]``."""
        ...

    @property
    def samples(self) -> Tensor:
        """Sampled observations ``[S, B]``."""
        ...

    @property
    def mean(self) -> Tensor:
        """Predictive mean ``[B]``."""
        ...


def to_array(name: str, value: object, *, ndim: int, finite: bool = True) -> Array:
    """``value`` as a float64 array of ``ndim`` dimensions; a last dimension of size 1 too many is dropped."""
    try:
        array = np.asarray(value.detach().cpu().double() if isinstance(value, Tensor) else value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ArgumentTypeError(
            f"{name}: is {kind_of(value)}; pass a tensor, an array or a sequence of numbers."
        ) from error
    if array.ndim == ndim + 1 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != ndim or array.size == 0:
        shape = {1: "[B]", 2: "[S, B], the draws first"}[ndim]
        raise ArgumentError(
            f"{name}: has shape {list(array.shape)}; pass {shape}, not empty. Of several inputs or outputs pick "
            f"one: {name}[..., 0]."
        )
    if finite and not np.isfinite(array).all():
        raise ArgumentError(
            f"{name}: has {int((~np.isfinite(array)).sum())} of {array.size} entries NaN or infinite; find where they "
            "come from, or drop those rows."
        )
    return array


def check_draws(name: str, value: object, num_rows: int, rows_of: str) -> Array:
    """Draws as ``[S, B]`` with S at least 2 and B the number of rows of another argument."""
    draws = to_array(name, value, ndim=2)
    if draws.shape[0] < 2 or draws.shape[1] != num_rows:
        raise ArgumentError(
            f"{name}: has shape {list(draws.shape)}, and {rows_of} has {num_rows} rows; pass [S >= 2, {num_rows}], the "
            "draws first."
        )
    return draws


def use_axes(ax: Axes | None, *, size: tuple[float, float]) -> Axes:
    """``ax``, or the axes of a new figure of ``size`` inches."""
    if ax is not None:
        return ax
    _, ax = plt.subplots(figsize=size, layout="constrained")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def draw_legend(ax: Axes, loc: Literal["best", "upper left", "upper right"]) -> None:
    """A legend that stays legible on top of a band."""
    ax.legend(fontsize="small", framealpha=0.8, edgecolor="none", loc=loc)
