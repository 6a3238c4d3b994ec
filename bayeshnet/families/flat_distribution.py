"""What all distributions over a vector of weights share: shapes, and the memory of the last draw."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Size, Tensor

from bayeshnet.checks import kind_of
from bayeshnet.errors import ArgumentError, ArgumentTypeError

__all__ = ["FlatDistribution"]

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


@dataclass(frozen=True, slots=True)
class _Last:
    """The last draw: its version by then, the state of the parameters, and whether nothing in it is learned."""

    value: Tensor
    version: int
    state: list[tuple[int, int, int]]
    constant: bool


class FlatDistribution(TorchDistribution):
    r"""A distribution over R^D that may know more of its own draws than their values.

    Two gradients of log q are right, depending on the value: that along the draw, where the value moves with the
    parameters, as in an ELBO; and that at a fixed value, as in reweighted wake-sleep, maximum likelihood or a prior.
    :meth:`log_prob` tells them apart: it recognises the last draw, as long as no parameter has changed since. (Torch's
    fused optimisers change parameters without leaving a trace: make a new object after their steps, as a guide does.)

    A subclass calls ``super().__init__(Size(), Size((D,)))``, and defines how to draw rows, :meth:`draw`, and their
    density in each case: :meth:`log_prob_of_draw`, :meth:`log_prob_of` and ``_log_prob_at``. A distribution made of
    others draws from them by the same methods; only the outermost one keeps its last draw.

    Attributes:
        depends_on: All tensors that the distribution depends on, by name; the ``_parameters`` of modules, where a
            tensor may be replaced, among them. A draw is not remembered beyond a change of one of them: what made it
            would no longer make it.
        last_made_of: What :meth:`draw` knows of the last draw besides its numbers; None before the first.

    Example:
        >>> from bayeshnet.normal_density import log_standard_normal
        >>> class Shifted(FlatDistribution):
        ...     def __init__(self, loc):
        ...         super().__init__(Size(), loc.shape)
        ...         self.loc, self.depends_on = loc, ({"loc": loc},)
        ...     def draw(self, num):
        ...         noise = torch.randn(num, len(self.loc))
        ...         return self.loc + noise, noise
        ...     def log_prob_of_draw(self, made_of):
        ...         return log_standard_normal(made_of)
        ...     def _log_prob_at(self, rows):
        ...         return log_standard_normal(rows - self.loc)
        >>> q = Shifted(torch.ones(3))
        >>> w = q.rsample((7,))
        >>> bool((q.log_prob(w) == log_standard_normal(q.last_made_of)).all())
        True
    """

    # torch declares these as properties and uses them as plain attributes.
    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 # pyright: ignore[reportIncompatibleMethodOverride]
    support: Any = constraints.real_vector  # pyright: ignore[reportIncompatibleMethodOverride]
    has_rsample = True

    depends_on: Sequence[Mapping[str, Tensor | None]] = ()
    last_made_of: Any = None
    _last: _Last | None = None

    def expand(self: Self, batch_shape: Any, _instance: Any = None) -> Self:
        """Return the same distribution, drawn independently for every place of ``batch_shape``."""
        new: Self = type(self).__new__(type(self)) if _instance is None else _instance
        new.__dict__.update(self.__getstate__())
        TorchDistribution.__init__(new, Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def __getstate__(self) -> dict[str, Any]:
        # The last draw hangs on its autograd graph, which can be neither copied nor pickled.
        return {**self.__dict__, "_last": None, "last_made_of": None}

    # ------------------------------------------------------------------ for subclasses

    @abstractmethod
    def draw(self, num: int) -> tuple[Tensor, Any]:
        """Draw rows ``[num, D]``, without keeping them in memory.

        Args:
            num: Number of rows.

        Returns:
            The rows, and what they were made of, for :meth:`log_prob_of_draw` and :meth:`log_prob_of`; None if nothing
            is known of them besides their numbers.
        """

    def log_prob_of_draw(self, made_of: Any) -> Tensor:
        """Return the log-density ``[S]`` of rows right after their draw; its gradient is that along the draw.

        Args:
            made_of: What :meth:`draw` returned beside the rows, if it was not None.
        """
        raise NotImplementedError

    def log_prob_of(self, rows: Tensor, made_of: Any) -> Tensor:
        """Return the log-density ``[S]`` of rows that were drawn here; its gradient is that at a fixed value.

        Args:
            rows: The rows ``[S, D]``.
            made_of: What :meth:`draw` returned beside them.
        """
        return self._log_prob_at(rows)

    @abstractmethod
    def _log_prob_at(self, rows: Tensor) -> Tensor:
        """Return the log-density ``[S]`` of rows ``[S, D]`` that were not sampled here."""

    # ------------------------------------------------------------------ sampling and density

    def rsample(self, sample_shape: Any = Size()) -> Tensor:
        """Draw ``[*sample_shape, *batch_shape, D]``, differentiable with respect to all parameters."""
        shape = Size(sample_shape) + self.batch_shape
        rows, self.last_made_of = self.draw(math.prod(shape))
        value = rows.reshape(shape + self.event_shape)
        self._last = None
        if self.last_made_of is not None:
            constant = torch.is_grad_enabled() and not value.requires_grad
            self._last = _Last(value, _version(value), _state(self.depends_on), constant)
        return value

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density ``[*sample_shape, *batch_shape]``.

        Cheap for the value that :meth:`rsample` returned last. The gradient is that along the draw if the value hangs
        on the draw's graph, and that of the density at a fixed value otherwise: the score, which is 0 on average over
        draws.

        Raises:
            ArgumentError: If the last dimension is not D.
            ArgumentTypeError: If ``value`` is not a tensor of real numbers.
            DensityError: If the distribution has no density at a value that was not sampled here.
        """
        if not isinstance(value, Tensor) or not value.is_floating_point():
            given = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else kind_of(value)
            raise ArgumentTypeError(f"value: is {given}; pass a floating-point tensor [..., {self.event_shape[0]}].")
        if value.dim() == 0 or value.shape[-1:] != self.event_shape:
            size = self.event_shape[0]
            raise ArgumentError(
                f"value: has shape {tuple(value.shape)}; its last dimension has to be {size}, the number of weights "
                "and other latents."
            )
        rows = value.reshape(-1, value.shape[-1])
        last, made_of = self._last, self.last_made_of
        if last is None or not self._is_last(value, last):
            log_q = self._log_prob_at(rows)
        elif not torch.is_grad_enabled() or (last.constant and not value.requires_grad) or _hangs_on(value, last.value):
            log_q = self.log_prob_of_draw(made_of)
        else:
            log_q = self.log_prob_of(rows, made_of)
        shape = value.shape[:-1]
        log_q = log_q if log_q.shape == shape else log_q.reshape(shape)
        return log_q.expand(torch.broadcast_shapes(shape, self.batch_shape)) if self.batch_shape else log_q

    def _is_last(self, value: Tensor, last: _Last) -> bool:
        """Return whether a value is the last draw, which nothing has changed since."""
        if _version(last.value) != last.version or (value is not last.value and not _same_rows(value, last.value)):
            return False
        return _state(self.depends_on) == last.state

    def _refuse_non_finite(self, rows: Tensor) -> Tensor:
        """Return which of these rows ``[S, D]`` are NaN or infinite, and so have no density: ``[S]``.

        Raises:
            ArgumentError: If there is one, and values are to be validated.
        """
        bad = ~torch.isfinite(rows).all(-1)
        if self._validate_args and bool(bad.any()):
            first = int(bad.nonzero()[0, 0])
            raise ArgumentError(
                f"value: {int(bad.sum())} of {len(rows)} rows hold NaN or infinite numbers, row {first} for one; leave "
                "them out. With validate_args=False their density is NaN."
            )
        return bad


def _state(places: Sequence[Mapping[str, Tensor | None]]) -> list[tuple[int, int, int]]:
    """Return what changes with every change of a tensor: in place, of its memory, or for another tensor."""
    try:
        return [(id(t), t._version, t.data_ptr()) for place in places for t in place.values() if t is not None]
    except RuntimeError:  # of inference mode, or inside of torch.func
        return [(id(t), _version(t), 0) for place in places for t in place.values() if t is not None]


def _same_rows(value: Tensor, last: Tensor) -> bool:
    """Return whether a value has the numbers of the last draw, in whatever dimensions its rows are ordered."""
    if value.numel() != last.numel() or value.dtype != last.dtype or value.device != last.device:
        return False
    return bool(torch.equal(value.reshape(last.shape), last))


def _version(value: Tensor) -> int:
    """Count the changes of a tensor in place; tensors of inference mode, which cannot be differentiated, have none."""
    return 0 if value.is_inference() else value._version


def _hangs_on(value: Tensor, last: Tensor) -> bool:
    """Return whether a value equal to the last draw is it, or a copy or view of it in the same graph."""
    if last.grad_fn is None:
        return False
    node: Any = value.grad_fn
    while node is not None and node is not last.grad_fn and node.name() in _SAME_NUMBERS:
        node = node.next_functions[0][0]
    return node is last.grad_fn
