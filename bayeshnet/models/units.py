"""From the units of the data to those inside of a model, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn

from bayeshnet.checks import kind_of
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.models.forms import is_single, mapped
from bayeshnet.models.rescaled import rescaled
from bayeshnet.models.standardization import Standardization, Statistics

__all__ = ["Standardize", "Units", "standardization_from"]

Standardize: TypeAlias = "Standardization | tuple[Any, ...] | Mapping[str, Any] | Iterable[Any] | None"
"""Statistics, data ``(x, y)`` or batches of them to take statistics of, or nothing to be standardised."""

_ADVICE = (
    "pass the training data, standardize=(x_train, y_train) or a DataLoader of them, or a Standardization of numbers "
    "that you know"
)


def standardization_from(
    given: Any, *, targets: bool, arguments: Callable[..., tuple[tuple[Any, ...], dict[str, Any]]] | None = None
) -> Standardization | None:
    """The statistics that are meant by an argument ``standardize``.

    Args:
        given: Data ``(x, y)``, batches of them, a :class:`Standardization`, or None.
        targets: Whether the likelihood is one of a location and a scale, so that targets can be standardised.
        arguments: What makes the arguments of the model of those of a batch, positional and by name.

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
    several = isinstance(given, tuple | Mapping) and len(given) > 1
    if not several and (is_single(given) or isinstance(given, str) or not isinstance(given, Iterable)):
        raise ArgumentTypeError(f"standardize: is {kind_of(given)}; {_ADVICE}.")
    batches: Iterable[Any] = [given] if several else given
    found = Standardization.of_batches(_pairs(batches, arguments, whole=several))
    return found if targets else Standardization(found.inputs)


def _pairs(
    batches: Iterable[Any], arguments: Callable[..., tuple[tuple[Any, ...], dict[str, Any]]] | None, *, whole: bool
) -> Iterator[tuple[Any, Any]]:
    """Inputs and targets of batches; of all data at once there has to be nothing else."""
    for batch in batches:
        args = tuple(batch) if isinstance(batch, tuple | list) else () if isinstance(batch, Mapping) else (batch,)
        kwargs = dict(batch) if isinstance(batch, Mapping) else {}
        if arguments is not None:
            args, kwargs = arguments(args, kwargs)
        if whole and len(args) > 2:
            raise ArgumentTypeError(f"standardize: is {kind_of(batch)} of {len(batch)}; {_ADVICE}.")
        named = {**dict(zip(("x", "y"), args, strict=False)), **kwargs}
        yield named.get("x"), named.get("y")


class Units(nn.Module):
    """Standardises inputs and targets of a model, and brings the distribution of targets back to their units.

    Args:
        standardization: The statistics, which become buffers; None to leave everything as it is.
        device: Where to keep them.
        names: Names of the network's inputs in their order, by which one that is given by name is found by place, and
            the other way round.

    Example:
        >>> units = Units(Standardization(Statistics(5.0, 2.0), Statistics(100.0, 10.0)))
        >>> units.inputs(torch.tensor([[7.0]])), units.targets(torch.tensor([90.0]))
        (tensor([[1.]]), tensor([-1.]))
    """

    def __init__(
        self, standardization: Standardization | None = None, *, device: Any = None, names: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self._what: dict[str, str] = {}
        self._inputs: tuple[str, ...] = ()
        self._names = tuple(names)
        if standardization is None:
            return
        by_name = standardization.inputs_by_name
        self._inputs = tuple(by_name)
        parts = {f"inputs_{name}": part for name, part in by_name.items()}
        for name, part in {**parts, "targets": standardization.targets}.items():
            if part is not None:
                self._what[name] = part.what
                self.register_buffer(f"{name}_loc", part.loc.detach().clone().to(device))
                self.register_buffer(f"{name}_scale", part.scale.detach().clone().to(device))

    def _statistics(self, name: str) -> tuple[Tensor, Tensor] | None:
        return (getattr(self, f"{name}_loc"), getattr(self, f"{name}_scale")) if name in self._what else None

    def _key(self, name: str) -> str:
        """Under which key the statistics of an input are, given by place or by name, like what they were taken of."""
        if f"inputs_{name}" in self._what:
            return f"inputs_{name}"
        for place, own in enumerate(self._names):
            for given, other in ((own, str(place)), (str(place), own)):
                if name == given or name.startswith(f"{given}_"):
                    key = f"inputs_{other}{name[len(given) :]}"
                    if key in self._what:
                        return key
        return f"inputs_{name}"

    @property
    def standardization(self) -> Standardization | None:
        """The statistics, as plain data."""
        if not self._what:
            return None
        found = {name: self._statistics(f"inputs_{name}") for name in self._inputs}
        inputs = {
            name: None if part is None else Statistics(*part, what=self._what[f"inputs_{name}"])
            for name, part in found.items()
        }
        targets = self._statistics("targets")
        places = all(name == str(i) for i, name in enumerate(inputs))
        return Standardization(
            list(inputs.values()) if places else inputs,
            None if targets is None else Statistics(*targets, what=self._what["targets"]),
        )

    @property
    def target_scale(self) -> Tensor | None:
        """What one unit of the targets inside of the model is outside; None if they are as they are."""
        found = self._statistics("targets")
        return None if found is None else found[1]

    def takes_any_float(self, name: str = "0") -> bool:
        """Whether an argument of the network, by place or key, is standardised, and then converted to its dtype."""
        return self._key(name) in self._what

    def inputs(self, x: Any, *, dtype: torch.dtype | None = None) -> Any:
        """Inputs in the units of the network.

        Args:
            x: Inputs ``[B, ...]``, or a tuple or dict of the network's arguments.
            dtype: That of the network.
        """
        return mapped(x, lambda name, part: self._input(name, part, dtype)) if self._what else x

    def _input(self, name: str, part: Any, dtype: torch.dtype | None) -> Any:
        key = self._key(name)
        found = self._statistics(key)
        if found is None or not isinstance(part, Tensor):
            return part
        loc, scale = found
        if part.dim() and loc.dim() and loc.shape[0] not in (1, part.shape[part.dim() - loc.dim()]):
            raise ArgumentError(
                f"x: has shape {list(part.shape)}, and was standardised by {len(loc)} {self._what[key]}s; "
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
