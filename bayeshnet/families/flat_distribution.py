"""What all distributions over a vector of weights share: their state, and their memory of the last draw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Size, Tensor

from bayeshnet.errors import ArgumentError, ArgumentTypeError

__all__ = ["FlatDistribution", "Origin", "last_made_of", "state_of"]

Self = TypeVar("Self", bound="FlatDistribution")

# Operations that change nothing but the shape or the place of a tensor. (The names are those of torch's graph nodes.)
_SAME_NUMBERS = {
    "AliasBackward0",
    "CloneBackward0",
    "ExpandBackward0",
    "ReshapeAliasBackward0",
    "SqueezeBackward0",
    "SqueezeBackward1",
    "UnsafeViewBackward0",
    "UnsqueezeBackward0",
    "ViewBackward0",
}


def state_of(*parts: Any) -> tuple[Any, ...]:
    """The states of distributions, and the versions of tensors; what is neither is taken for a constant."""
    return tuple(
        [
            version_of(part) if isinstance(part, Tensor) else part.state()
            for part in parts
            if isinstance(part, Tensor | FlatDistribution)
        ]
    )


def last_made_of(distribution: TorchDistribution) -> Any:
    """What the last draw of a distribution was made of, None if it keeps no memory of it."""
    return distribution.last_made_of if isinstance(distribution, FlatDistribution) else None


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value that was drawn comes from.

    Attributes:
        made_of: What the distribution that drew it knows of it besides its numbers.
        live: Whether the value still hangs on the graph of its draw, or no gradient is recorded, or nothing could be
            differentiated. Its log-density may then be computed from what made it. Else it is a fixed value, or a
            function of something else, and the gradient of its log-density is that of the density at this place: the
            score.
    """

    made_of: Any
    live: bool


@dataclass(frozen=True, slots=True)
class _Last:
    """The last draw: its version by then and that of the parameters, whether nothing in it is learned, its origin."""

    value: Tensor
    version: int
    state: Any
    constant: bool
    made_of: Any


class FlatDistribution(TorchDistribution):
    """A distribution over R^D, whose state is all in its attributes.

    A subclass that knows more of its own draws than their values keeps that by :meth:`_remember` in ``rsample``, and
    asks for it by :meth:`_recall` in ``log_prob``. The one and the other of these two gradients of log q is right,
    depending on the value: that along the draw, where the value moves with the parameters, as in an ELBO; and that at a
    fixed value, as in reweighted wake-sleep, maximum likelihood or a prior. :attr:`Origin.live` tells them apart.

    Args:
        size: D.
    """

    # torch declares these as properties and uses them as plain attributes.
    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 # pyright: ignore[reportIncompatibleMethodOverride]
    support: Any = constraints.real_vector  # pyright: ignore[reportIncompatibleMethodOverride]
    has_rsample = True

    def __init__(self, size: int, *, validate_args: bool | None = None) -> None:
        self._last: _Last | None = None
        super().__init__(Size(), Size((size,)), validate_args=validate_args)

    def expand(self: Self, batch_shape: Any, _instance: Any = None) -> Self:
        """The same distribution, drawn independently for every place of ``batch_shape``."""
        new: Self = type(self).__new__(type(self)) if _instance is None else _instance
        new.__dict__.update(self.__getstate__())
        TorchDistribution.__init__(new, Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def __getstate__(self) -> dict[str, Any]:
        # The last draw hangs on its autograd graph, which can be neither copied nor pickled.
        return {**self.__dict__, "_last": None}

    def _remember(self, value: Tensor, made_of: Any) -> Tensor:
        """Keep a draw and what it was made of until the next one; returns the draw."""
        constant = torch.is_grad_enabled() and not value.requires_grad
        self._last = _Last(value, version_of(value), self.state(), constant, made_of)
        return value

    def state(self) -> Any:
        """Changes whenever the distribution does: versions of all tensors that it depends on.

        A draw is not remembered beyond a change of the parameters; what made it would no longer make it.
        """
        return None

    def _recall(self, value: Tensor) -> Origin | None:
        """Where the value comes from if it is the last draw, else None.

        Raises:
            ValueError: If the last dimension of the value is not D.
            TypeError: If it is no tensor of real numbers.
        """
        if not isinstance(value, Tensor) or not value.is_floating_point():
            given = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise ArgumentTypeError(f"value: is {given}; pass a floating-point tensor [..., {self.event_shape[0]}].")
        if value.dim() == 0 or value.shape[-1:] != self.event_shape:
            raise ArgumentError(
                f"value: has shape {tuple(value.shape)}; its last dimension has to be {self.event_shape[0]}, the "
                "number of weights and other latents."
            )
        last = self._last
        if last is None or version_of(last.value) != last.version:  # changed in place: it is no longer what was drawn
            return None
        if value is not last.value and not _same_rows(value, last.value):
            return None
        live = _hangs_on(value, last.value)
        # Of a live draw autograd itself notices that parameters have changed.
        if not live and self.state() != last.state:
            return None
        constant = last.constant and not value.requires_grad
        return Origin(last.made_of, live or constant or not torch.is_grad_enabled())

    @property
    def last_made_of(self) -> Any:
        """What the last draw was made of, None before the first."""
        return None if self._last is None else self._last.made_of

    def log_prob_of(self, rows: Tensor, made_of: Any) -> Tensor:
        """Log-density ``[S]`` of rows ``[S, D]`` whose origin is known, as a function of the rows.

        Its gradient is that at a fixed value.

        Args:
            rows: Values that were drawn here.
            made_of: What :attr:`last_made_of` was right after the draw.
        """
        return self.log_prob(rows)

    def _refuse_non_finite(self, rows: Tensor) -> Tensor:
        """Which of these rows ``[S, D]`` are NaN or infinite, and so have no density: ``[S]``.

        Raises:
            ValueError: If there is one, and values are to be validated.
        """
        bad = ~torch.isfinite(rows).all(-1)
        if self._validate_args and bool(bad.any()):
            first = int(bad.nonzero()[0, 0])
            raise ArgumentError(
                f"value: {int(bad.sum())} of {len(rows)} rows hold NaN or infinite numbers, row {first} for one; leave "
                "them out. With validate_args=False their density is NaN."
            )
        return bad

    def _shaped(self, log_q: Tensor, value: Tensor) -> Tensor:
        """Log-densities ``[S]`` of the rows of a value in the shape that Pyro expects."""
        log_q = log_q.reshape(value.shape[:-1])
        return log_q.expand(torch.broadcast_shapes(log_q.shape, self.batch_shape))


def _same_rows(value: Tensor, last: Tensor) -> bool:
    """Whether a value has the numbers of the last draw, in whatever dimensions its rows are ordered."""
    if value.numel() != last.numel() or value.dtype != last.dtype or value.device != last.device:
        return False
    return bool(torch.equal(value.reshape(last.shape), last))


def version_of(value: Tensor) -> int:
    """Counts the changes of a tensor in place; tensors of inference mode, which cannot be differentiated, have none."""
    return 0 if value.is_inference() else value._version


def _hangs_on(value: Tensor, last: Tensor) -> bool:
    """Whether a value equal to the last draw is it, or a copy or view of it in the same graph."""
    if last.grad_fn is None:
        return False
    node: Any = value.grad_fn
    while node is not None and node is not last.grad_fn and node.name() in _SAME_NUMBERS:
        node = node.next_functions[0][0]
    return node is last.grad_fn
