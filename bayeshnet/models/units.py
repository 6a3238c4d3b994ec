"""From the units of the data to those inside of a model, and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from bayeshnet.checks import kind_of
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.models.rescaled import rescaled
from bayeshnet.models.standardization import Standardization, Statistics

__all__ = ["Units", "standardization_from"]

_ADVICE = (
    "pass the training data, standardize=(x_train, y_train) or a DataLoader of them, or a Standardization of numbers "
    "that you know"
)


def standardization_from(given: Any, *, targets: bool) -> Standardization | None:
    """The statistics that are meant by an argument ``standardize``.

    Args:
        given: Data ``(x, y)``, batches of them, a :class:`Standardization`, or None.
        targets: Whether the likelihood is one of a location and a scale, so that targets can be standardised.

    Raises:
        ArgumentError: If targets are to be standardised that cannot be, or for the reasons of
            :meth:`Standardization.of`.
        ArgumentTypeError: If it is something else.

    Example:
        >>> standardization_from((torch.tensor([[0.0], [2.0]]), torch.tensor([0.0, 4.0])), targets=True)
        inputs by column: loc 1, scale 1; targets by all: loc 2, scale 2
    """
    if given is None:
        return None
    if isinstance(given, Standardization):
        if given.targets is not None and not targets:
            raise ArgumentError(
                "standardize: has statistics of the targets, and the likelihood is not one of a location and a scale "
                "(counts, labels, proportions); leave them out, Standardization(inputs)."
            )
        return given
    if isinstance(given, bool):
        raise ArgumentTypeError(f"standardize: is {given}, and statistics come from data; {_ADVICE}.")
    if isinstance(given, tuple) and len(given) == 2:
        x, y = given
        return Standardization.of(x, y if targets else None)
    if isinstance(given, Tensor | Mapping | tuple | str) or not isinstance(given, Iterable):
        raise ArgumentTypeError(f"standardize: is {kind_of(given)}; {_ADVICE}.")
    found = Standardization.of_batches(given)
    return found if targets else Standardization(found.inputs)


class Units(nn.Module):
    """Standardises inputs and targets of a model, and brings the distribution of targets back to their units.

    Args:
        standardization: The statistics, which become buffers; None to leave everything as it is.
        device: Where to keep them.

    Example:
        >>> units = Units(Standardization(Statistics(5.0, 2.0), Statistics(100.0, 10.0)))
        >>> units.inputs(torch.tensor([[7.0]])), units.targets(torch.tensor([90.0]))
        (tensor([[1.]]), tensor([-1.]))
    """

    def __init__(self, standardization: Standardization | None = None, *, device: Any = None) -> None:
        super().__init__()
        self._what: dict[str, str] = {}
        self._num_inputs = 0
        if standardization is None:
            return
        self._num_inputs = len(standardization.inputs)
        parts = {f"inputs_{i}": part for i, part in enumerate(standardization.inputs)}
        for name, part in {**parts, "targets": standardization.targets}.items():
            if part is not None:
                self._what[name] = part.what
                self.register_buffer(f"{name}_loc", part.loc.detach().clone().to(device))
                self.register_buffer(f"{name}_scale", part.scale.detach().clone().to(device))

    def _statistics(self, name: str) -> tuple[Tensor, Tensor] | None:
        return (getattr(self, f"{name}_loc"), getattr(self, f"{name}_scale")) if name in self._what else None

    @property
    def standardization(self) -> Standardization | None:
        """The statistics, as plain data."""
        if not self._what:
            return None
        names = [*(f"inputs_{i}" for i in range(self._num_inputs)), "targets"]
        found = [self._statistics(name) for name in names]
        parts = [
            None if part is None else Statistics(*part, what=self._what[name])
            for name, part in zip(names, found, strict=True)
        ]
        return Standardization(parts[:-1], parts[-1])

    @property
    def target_scale(self) -> Tensor | None:
        """What one unit of the targets inside of the model is outside; None if they are as they are."""
        found = self._statistics("targets")
        return None if found is None else found[1]

    def takes_any_float(self, i: int) -> bool:
        """Whether argument i of the network is standardised, and then converted to its dtype."""
        return f"inputs_{i}" in self._what

    def inputs(self, x: Any, *, dtype: torch.dtype | None = None) -> Any:
        """Inputs in the units of the network.

        Args:
            x: Inputs ``[B, ...]``, or a tuple of the network's arguments; a dict is left as it is.
            dtype: That of the network.
        """
        if not self._what:
            return x
        if isinstance(x, tuple):
            return tuple(self._input(i, part, dtype) for i, part in enumerate(x))
        return self._input(0, x, dtype)

    def _input(self, i: int, part: Any, dtype: torch.dtype | None) -> Any:
        found = self._statistics(f"inputs_{i}")
        if found is None or not isinstance(part, Tensor):
            return part
        loc, scale = found
        if part.dim() and loc.dim() and loc.shape[0] not in (1, part.shape[part.dim() - loc.dim()]):
            raise ArgumentError(
                f"x: has shape {list(part.shape)}, and was standardised by {len(loc)} {self._what[f'inputs_{i}']}s; "
                "pass inputs with as many."
            )
        # A tensor without dimensions does not widen others by itself.
        out = (part.to(torch.promote_types(part.dtype, loc.dtype)) - loc) / scale
        return out if dtype is None else out.to(dtype)

    def targets(self, y: Tensor) -> Tensor:
        """Targets in the units inside of the model."""
        found = self._statistics("targets")
        if found is None:
            return y
        loc, scale = found
        return (y.to(torch.promote_types(y.dtype, loc.dtype)) - loc) / scale

    def of_rows(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What is given with each row in the units inside of the model: ``noise`` is, as the targets are."""
        scale = self.target_scale
        return {name: v / scale if name == "noise" and scale is not None else v for name, v in given.items()}

    def observed(self, conditional: TorchDistributionMixin, dtype: torch.dtype) -> TorchDistributionMixin:
        """The distribution of targets in their own units, of that inside of the model.

        Args:
            conditional: The distribution inside of the model.
            dtype: That of the network's outputs.
        """
        found = self._statistics("targets")
        return conditional if found is None else rescaled(conditional, *found, dtype=dtype, validate_args=False)
