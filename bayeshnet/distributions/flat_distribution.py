"""What all distributions over a vector of weights share: their state, and their memory of the last draw."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Size, Tensor

from bayeshnet.errors import ArgumentError, ArgumentTypeError

__all__ = ["FlatDistribution", "standard_normal"]

Self = TypeVar("Self", bound="FlatDistribution")


def standard_normal(noise: Tensor) -> Tensor:
    """Log-density ``[...]`` of ``[..., n]`` under N(0, I)."""
    return -0.5 * (noise.square().sum(-1) + noise.shape[-1] * math.log(2.0 * math.pi))


class FlatDistribution(TorchDistribution):
    """A distribution over R^D, whose state is all in its attributes.

    A subclass that knows more of its own draws than their values keeps that by :meth:`_remember` in ``rsample``, and
    asks for it by :meth:`_recall` in ``log_prob``.

    Args:
        size: D.
    """

    # torch declares these as properties and uses them as plain attributes.
    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 # pyright: ignore[reportIncompatibleMethodOverride]
    support: Any = constraints.real_vector  # pyright: ignore[reportIncompatibleMethodOverride]
    has_rsample = True

    def __init__(self, size: int, *, validate_args: bool | None = None) -> None:
        self._last: tuple[Tensor, Any] | None = None
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
        self._last = (value, made_of)
        return value

    def _recall(self, value: Tensor) -> Any:
        """What the last draw was made of, if this is it, else None.

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
        if self._last is None:
            return None
        last, made_of = self._last
        same = value is last or (value.shape == last.shape and bool(torch.equal(value, last)))
        return made_of if same else None

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
