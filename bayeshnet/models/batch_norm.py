"""Which statistics the batch norm of a model's network uses: those of each draw of the weights, on reference rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from bayeshnet.checks import kind_of, require_count
from bayeshnet.errors import ArgumentError, UsageError
from bayeshnet.mnets.batched import batched_forward
from bayeshnet.models.batch_norm_nets import (
    NormalisedByBatch,
    NormalisedByGiven,
    RecordedStatistics,
    norm_layers,
    without_running_statistics,
)
from bayeshnet.models.forms import leaves, mapped, num_rows

__all__ = ["BatchNormMode", "BatchNormStatistics"]

BatchNormMode: TypeAlias = Literal["draws", "batch", "running"]
"""Statistics of each draw on the reference rows, of the batch, or running ones."""

# The pass over the reference rows takes so many draws at once at least; it has no more rows and draws together than
# the evaluation that it is made for.
_DRAWS_AT_ONCE = 32
# And no more than there is memory for: the weights of the draws and what a network makes of the rows, which in a ResNet
# is some 32 times as many numbers as they have, are so many numbers in all (half a gigabyte in 32 bits).
_NUMBERS_AT_ONCE, _WIDENING = 2**27, 32
_PREFIX = "batch_norm."


def _as_they_are(x: Any) -> Any:
    return x


class BatchNormStatistics(nn.Module):
    """What normalises the batch-norm layers of a Bayesian network in evaluation mode.

    A layer's running statistics are an average over all networks that were drawn in training, and fit none of them. So
    each draw of the weights gets statistics of its own, those of the reference rows: training inputs that are kept in
    buffers here. In training mode they are those of the batch, as ever.

    Layers that are in evaluation mode when this is made keep their given running statistics always.

    Args:
        net: The network without weights; its layers stop following the batch, except in the mode ``"running"``.
        mode: ``"draws"``, ``"batch"`` (of the rows evaluated, in evaluation mode too) or ``"running"``.
        num_rows: Number of reference rows.

    Attributes:
        mode: As given.
        num_rows: As given.
        fixed: Names of the layers that keep their running statistics.
        layers: Names of the other ones.

    Raises:
        ArgumentError: If ``mode`` is unknown, or ``num_rows`` below 2.
        ArgumentTypeError: If ``num_rows`` is no whole number.

    Example:
        >>> from bayeshnet.mnets import ModuleMainNet
        >>> net = ModuleMainNet(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), no_weights=True)
        >>> statistics = BatchNormStatistics(net)
        >>> statistics
        draws, 1 layer, 0 of 256 reference rows
        >>> statistics.set_rows(torch.randn(1000, 3))
        >>> statistics.rows_kept
        256
    """

    # Of these the state has as many, and of such shapes, as there were rows.
    free_buffers: ClassVar[tuple[str, ...]] = ("rows_", "by_user")

    def __init__(self, net: nn.Module, mode: BatchNormMode = "draws", num_rows: int = 256) -> None:
        super().__init__()
        if mode not in get_args(BatchNormMode):
            raise ArgumentError(f"batch_norm: is {mode!r}; pass 'draws', 'batch' or 'running'.")
        require_count("reference_rows", num_rows, least=2)
        self.mode: BatchNormMode = mode
        self.num_rows = num_rows
        found = norm_layers(net)
        self.fixed = tuple(name for name, layer in found.items() if not layer.training and _has_statistics(layer))
        self.layers = tuple(name for name in found if name not in self.fixed)
        for name in self.layers if mode != "running" else ():
            without_running_statistics(found[name])

    def __repr__(self) -> str:
        return self.described()

    def described(self) -> str:
        """What is done, in a few words."""
        num = len(self.layers)
        parts = [self.mode, f"{num} layer{'s' * (num != 1)}"]
        if self.mode == "draws":
            kept = self.rows_kept
            parts.append(f"{kept} reference rows" if kept else f"0 of {self.num_rows} reference rows")
        if self.fixed:
            parts.append(f"with given running statistics: {', '.join(self.fixed)}")
        return ", ".join(parts)

    # ------------------------------------------------------------------ reference rows

    @property
    def wants_rows(self) -> bool:
        """Whether there are layers that reference rows are for."""
        return self.mode == "draws" and bool(self.layers)

    @property
    def rows_kept(self) -> int:
        """Number of reference rows that there are."""
        return max((len(part) for part in self._parts().values()), default=0)

    @property
    def chosen(self) -> bool:
        """Whether the rows were chosen by the user, so that training leaves them as they are."""
        return "by_user" in self._buffers and bool(self._buffers["by_user"])

    def set_rows(self, x: Any, *, chosen: bool = False) -> None:
        """Keep evenly spaced rows of these inputs.

        Args:
            x: Inputs ``[B, ...]``, or a tuple or dict of the network's arguments; those that do not have B rows are
                not kept, the same arguments of a later call are used instead.
            chosen: Whether the user chose them.

        Rows with NaN or infinite numbers are left out: they would make every statistic NaN.

        Raises:
            ArgumentError: If there are fewer than two rows, or those that the user chose are not all finite.
        """
        parts = _parts_of(x)
        rows = max((len(part) for part in parts.values() if part.dim()), default=0)
        if rows < 2:
            raise ArgumentError(
                f"x: has {rows} row{'s' * (rows != 1)}, and batch norm takes its statistics from reference rows; pass "
                "at least two training inputs [B, ...]."
            )
        good = _finite_rows([part for part in parts.values() if part.dim() and len(part) == rows])
        if chosen and len(good) < rows:
            raise ArgumentError(
                f"x: holds NaN or infinite numbers in {rows - len(good)} of {rows} rows; pass rows without any."
            )
        if len(good) < 2:
            good = torch.arange(rows)  # nothing can be made of these data: the fit says what is wrong with them
        for name in [*self._buffers]:
            del self._buffers[name]
        num = min(len(good), self.num_rows)
        places = good[torch.linspace(0, len(good) - 1, num, dtype=torch.double).round().long()]
        for name, part in parts.items():
            if part.dim() and len(part) == rows:
                self.register_buffer(f"rows_{name}", part.detach()[places.to(part.device)].clone())
        self.register_buffer("by_user", torch.tensor(chosen))

    def _parts(self) -> dict[str, Tensor]:
        found = {name.removeprefix("rows_"): part for name, part in self._buffers.items() if name.startswith("rows_")}
        return {name: part for name, part in found.items() if part is not None}

    def _inputs(self, x: Any) -> Any:
        """The reference rows in the place of the rows of ``x``."""
        parts = self._parts()
        return mapped(x, parts.get)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # The rows are a part of the state: there may be none here yet, or others.
        saved = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
        for name in [*self._buffers]:
            if name not in saved:
                del self._buffers[name]
        for name, value in saved.items():
            here = self._buffers.get(name)
            if (name.startswith("rows_") or name == "by_user") and (here is None or here.shape != value.shape):
                device = next((part.device for part in self._parts().values()), None)
                self.register_buffer(name, torch.empty_like(value, device=device))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    # ------------------------------------------------------------------ evaluation

    def _modules_of(self, net: Any) -> list[nn.Module]:
        inner = getattr(net, "built_around", net)
        return [inner.get_submodule(name) for name in self.layers]

    def redirects(self, net: nn.Module) -> bool:
        """Whether the network is evaluated in another way than as it is: its layers are in evaluation mode.

        Raises:
            UsageError: If some of them are, and others in training mode.
        """
        if self.mode == "running" or not self.layers:
            return False
        training = {name: layer.training for name, layer in zip(self.layers, self._modules_of(net), strict=True)}
        if len(set(training.values())) > 1:
            wrong = [name for name, on in training.items() if not on]
            raise UsageError(
                f"net: its batch norm {wrong} was put into evaluation mode after the model was built, and others are "
                "in training mode; call .eval() on a layer before, so that it keeps its running statistics."
            )
        return not any(training.values())

    def of_draws(
        self,
        net: nn.Module,
        weights: Tensor | Sequence[Tensor],
        x: Any,
        *,
        units: Callable[[Any], Any] = _as_they_are,
    ) -> dict[str, Tensor]:
        """Statistics of each draw on the reference rows: mean and variance ``[S, 2, C]`` by the number of the call.

        Args:
            net: The network.
            weights: Draws of its weights, as :func:`~bayeshnet.mnets.batched_forward` takes them.
            x: Inputs that the network is evaluated for: arguments that do not have rows are taken from them, and their
                number of rows bounds how many draws are taken at once.
            units: From inputs to those of the network.

        Raises:
            UsageError: If there are no reference rows.
        """
        kept = self.rows_kept
        if not kept:
            raise UsageError(
                "batch_norm: is 'draws', and there are no reference rows yet, on which the statistics of each draw are "
                "taken. Call model.set_reference_rows(x_train) with training inputs (a guide of bayeshnet and fit do "
                "it), or pass BayesianModel(..., batch_norm='batch')."
            )
        tensors = self._listed(net, weights)
        chunk = max(_DRAWS_AT_ONCE, math.ceil(len(tensors[0]) * num_rows(x) / kept))
        of_rows = sum(part.numel() for part in self._parts().values() if part.dim())
        of_draw = sum(tensor[0].numel() for tensor in tensors) + _WIDENING * of_rows
        chunk = max(1, min(chunk, _NUMBERS_AT_ONCE // of_draw))
        recorded = RecordedStatistics(net, self._modules_of(net))
        found = batched_forward(recorded, tensors, units(self._inputs(x)), chunk_size=min(chunk, len(tensors[0])))
        return {f"{_PREFIX}{i}": part for i, part in enumerate(found)}

    @staticmethod
    def given(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those of some values by name that are statistics of :meth:`of_draws`."""
        return {name: value for name, value in values.items() if name.startswith(_PREFIX)}

    def evaluated(
        self,
        net: nn.Module,
        weights: Tensor | Sequence[Tensor],
        x: Any,
        *,
        statistics: Mapping[str, Tensor] | None = None,
        units: Callable[[Any], Any] = _as_they_are,
        reference: bool = False,
        any_rows: bool = False,
    ) -> Any:
        """Outputs ``[S, B, ...]`` of the network.

        Args:
            net: The network.
            weights: Draws of its weights.
            x: Inputs.
            statistics: Those of each draw ``[S, 2, C]``; they are computed where they are needed and not given.
            units: From inputs to those of the network.
            reference: Use the reference rows in training mode too, if there are any: the rows are no training batch.
            any_rows: Normalise by the batch if there are no reference rows: only the shape of the output matters.
        """
        given = list(statistics.values()) if statistics else []
        redirects = self.redirects(net) or (reference and self.wants_rows and self.rows_kept > 0)
        if not redirects and not given:
            return batched_forward(net, weights, units(x))
        if not given and (self.mode == "batch" or (any_rows and not self.rows_kept)):
            return self.by_batch(net, weights, units(x))
        given = given or list(self.of_draws(net, weights, x, units=units).values())
        around = NormalisedByGiven(net, self._modules_of(net), [part.shape[1:] for part in given])
        return batched_forward(around, [*self._listed(net, weights), *given], units(x))

    def by_batch(self, net: nn.Module, weights: Tensor | Sequence[Tensor], x: Any) -> Any:
        """Outputs ``[S, B, ...]`` of the network, in evaluation mode, with the statistics of these rows.

        Args:
            net: The network.
            weights: Draws of its weights.
            x: Inputs, in the units of the network.
        """
        if self.mode == "running" or not self.layers:
            return batched_forward(net, weights, x)
        return batched_forward(NormalisedByBatch(net, self._modules_of(net)), self._listed(net, weights), x)

    @staticmethod
    def _listed(net: Any, weights: Tensor | Sequence[Tensor]) -> list[Tensor]:
        if not isinstance(weights, Tensor):
            return list(weights)
        shapes = [tuple(record.shape) for record in net.param_table]
        parts = weights.split([math.prod(shape) for shape in shapes], dim=1)
        return [part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True)]


def _has_statistics(layer: Any) -> bool:
    return getattr(layer, "running_mean", None) is not None or getattr(layer, "num_stats", 0) > 0


def _parts_of(x: Any) -> dict[str, Tensor]:
    found = {name: part for name, part in leaves(x) if isinstance(part, Tensor)}
    if not found:
        raise ArgumentError(f"x: is {kind_of(x)}; pass a tensor of inputs [B, ...], or a tuple of tensors.")
    return found


def _finite_rows(parts: list[Tensor]) -> Tensor:
    """Numbers of the rows without NaN and infinite entries, on the CPU."""
    good = [torch.isfinite(part.detach()).reshape(len(part), -1).all(1).cpu() for part in parts]
    return torch.stack(good).all(0).nonzero().flatten()
