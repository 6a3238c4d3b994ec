"""The picture of a fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from matplotlib.axes import Axes

from bayeshnet.checks import require_count
from bayeshnet.errors import ArgumentError
from bayeshnet.plotting._inputs import Array, ArrayLike, draw_legend, to_array, use_axes

__all__ = ["HistoryLike", "elbo_trace"]


@runtime_checkable
class HistoryLike(Protocol):
    """What the plot needs of a fit's history; ``bayeshnet.fit`` returns one.

    Attributes:
        losses: The loss of each step.

    Example:
        >>> from bayeshnet import History
        >>> isinstance(History([3.0, 2.0]), HistoryLike)
        True
    """

    @property
    def losses(self) -> Sequence[float]:
        """The loss of each step."""
        ...


def elbo_trace(
    history: HistoryLike | ArrayLike,
    *,
    window: int | None = None,
    color: str = "C0",
    label: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Loss of each step and its running mean.

    The axis shows the bulk of the losses: where some (the first steps) are far above it, they are cut off, and the
    legend says how high they reach; ``ax.autoscale(axis="y")`` shows them. A NaN or infinite loss is a gap, marked at
    the lower edge.

    Args:
        history: What ``bayeshnet.fit`` returns, or the losses (negative ELBOs), one per step ``[T]``.
        window: Number of steps of the running mean, which looks back only; by default a fiftieth of all steps.
        color: Colour of both lines.
        label: Name of the fit in the legend.
        ax: Axes to draw on; by default those of a new figure.

    Returns:
        The axes, with a legend.

    Raises:
        ArgumentError: If there is no finite loss, losses are not one number per step, or ``window`` is below 1.
        ArgumentTypeError: If ``history`` is neither of them.

    Example:
        >>> ax = elbo_trace([5.0, 4.0, 3.5, 3.0], window=2)
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['mean of 2 steps']
    """
    source = history.losses if isinstance(history, HistoryLike) else history
    losses = to_array("history", source, ndim=1, finite=False)
    finite = np.isfinite(losses)
    if not finite.any():
        raise ArgumentError("history: has no finite loss, so there is nothing to draw; fit with a lower learning rate.")
    if window is None:
        window = max(1, losses.size // 50)
    require_count("window", window)
    ax = use_axes(ax, size=(6.4, 3.4))
    steps = np.arange(1, losses.size + 1)
    (raw,) = ax.plot(steps, np.where(finite, losses, np.nan), color=color, linewidth=0.7, alpha=0.35, zorder=1)
    raw.set_gid(_MARK)
    name = f"mean of {window} steps"
    ax.plot(
        steps,
        _running_mean(losses, finite, window),
        color=color,
        linewidth=1.8,
        zorder=3,
        label=name if label is None else f"{label}: {name}",
    )
    if not finite.all():
        where = ax.get_xaxis_transform()  # steps along the axis, a share of the height up it
        num = int((~finite).sum())
        ax.plot(
            steps[~finite],
            np.full(num, 0.02),
            "x",
            color="C3",
            transform=where,
            zorder=4,
            label=f"{num} steps not finite",
        )
    _show_the_bulk(ax)
    ax.margins(x=0.01)
    ax.set_xlabel("step")
    ax.set_ylabel("loss (negative ELBO)")
    draw_legend(ax, "upper right")
    return ax


_MARK = "bayeshnet:losses"
_NOTE = "bayeshnet:cut-off"


def _running_mean(losses: Array, finite: Array, window: int) -> Array:
    """Mean of the finite losses among the last ``window`` ones; NaN where there is none."""
    total = np.concatenate([[0.0], np.cumsum(np.where(finite, losses, 0.0))])
    count = np.concatenate([[0], np.cumsum(finite)])
    end = np.arange(1, losses.size + 1)
    start = np.maximum(end - window, 0)
    num = count[end] - count[start]
    return np.where(num > 0, (total[end] - total[start]) / np.maximum(num, 1), np.nan)


def _show_the_bulk(ax: Axes) -> None:
    """Limit the axis to nine tenths of the losses of every fit drawn on it, if what is above would flatten them."""
    for line in [line for line in ax.lines if line.get_gid() == _NOTE]:
        line.remove()
    traces = [np.asarray(line.get_ydata(), dtype=np.float64) for line in ax.lines if line.get_gid() == _MARK]
    low = min(float(np.nanmin(trace)) for trace in traces)
    bulk = max(float(np.nanquantile(trace, 0.9)) for trace in traces)
    high = max(float(np.nanmax(trace)) for trace in traces)
    if high - low <= 3 * (bulk - low) or bulk == low:
        ax.autoscale(axis="y")
        return
    ax.set_ylim(low - 0.05 * (bulk - low), bulk + 0.35 * (bulk - low))
    # A line without points: its label stands in the legend, where it hides nothing.
    ax.plot([], [], " ", label=f"cut off: losses up to {high:.3g}", gid=_NOTE)
