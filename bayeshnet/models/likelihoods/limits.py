"""Gaussian observations with limits: one number for all targets, or one for each output."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.infer.util import is_validation_enabled
from torch import Size, Tensor
from typing_extensions import Self

from bayeshnet.checks import kind_of
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.models.likelihoods._targets import LocationLikelihood, refuse_outside
from bayeshnet.models.likelihoods.parameters import Positive

__all__ = ["LimitedLikelihood", "NormalWithLimits", "checked_limits", "limits_repr"]


class NormalWithLimits(dist.TorchDistribution):
    """Base of the distributions made of a normal one and two limits, which may be infinite.

    Example:
        >>> from bayeshnet.models.likelihoods.truncated_normal import BoundedNormal
        >>> fn = BoundedNormal(torch.zeros(3), torch.tensor(1.0), torch.tensor(0.0), torch.tensor(torch.inf))
        >>> isinstance(fn, NormalWithLimits), fn.expand((2, 3)).batch_shape
        (True, torch.Size([2, 3]))
    """

    arg_constraints: Any = {  # noqa: RUF012 - as torch declares it
        "loc": dist.constraints.real,
        "scale": dist.constraints.positive,
    }

    def __init__(
        self, loc: Tensor, scale: Tensor, lower: Tensor, upper: Tensor, validate_args: bool | None = None
    ) -> None:
        self.loc, self.scale, self.lower, self.upper = torch.broadcast_tensors(loc, scale, lower, upper)
        super().__init__(self.loc.shape, Size(), validate_args=validate_args)

    @property
    def support(self) -> Any:
        """The numbers between the limits, and these."""
        return dist.constraints.interval(self.lower, self.upper)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Self:
        """The same distribution for every place of ``batch_shape``."""
        parts = [part.expand(Size(batch_shape)) for part in (self.loc, self.scale, self.lower, self.upper)]
        new = type(self)(*parts, validate_args=False)
        new._validate_args = self._validate_args
        return new


class LimitedLikelihood(LocationLikelihood):
    """Base of Gaussian likelihoods with limits; a subclass says by ``distribution`` what happens at them.

    Args:
        scale: The standard deviation of the normal: known (a number or ``[out]``), or a prior.
        lower: The lower limit, one for all outputs or ``[out]``; None for none.
        upper: The upper limit.
        learn: Optimise ``scale`` as a parameter.
        per_row: Multiply ``scale`` by a number of each row, the model's argument ``noise``.

    Raises:
        ArgumentError: If there is no limit, limits are in the wrong order, or as for :class:`Normal`.

    Example:
        >>> from bayeshnet import likelihoods
        >>> isinstance(likelihoods.CensoredNormal(scale=1.0, lower=0.0), LimitedLikelihood)
        True
    """

    standardizes_targets = False  # the limits are in the units of the data
    noise_is_std = False
    distribution: ClassVar[type[NormalWithLimits]]
    lower: Tensor
    upper: Tensor

    def __init__(
        self,
        scale: Positive,
        *,
        lower: float | Tensor | None = None,
        upper: float | Tensor | None = None,
        learn: bool = False,
        per_row: bool = False,
    ) -> None:
        super().__init__(per_row=per_row)
        self.add_positive("scale", scale, learn=learn)
        for name, limit in zip(("lower", "upper"), checked_limits(lower, upper), strict=True):
            self.register_buffer(name, limit)

    def extra_repr(self) -> str:
        """The noise and the limits, for ``repr``."""
        return f"{super().extra_repr()}, {limits_repr(self.lower, self.upper)}"

    def conditional(self, f: Tensor, params: Mapping[str, Tensor], *, batch_dims: int) -> TorchDistributionMixin:
        """See :meth:`Likelihood.conditional`."""
        scale = self.parameter("scale", params, f, batch_dims)
        made = self.distribution(f, scale, self.lower.to(f.dtype), self.upper.to(f.dtype))
        return made.to_event(f.dim() - batch_dims)

    def check_target(self, y: Tensor, event_shape: Size) -> None:
        """See :meth:`Likelihood.check_target`."""
        super().check_target(y, event_shape)
        if is_validation_enabled():
            limits = f"the numbers between the limits ({limits_repr(self.lower, self.upper)})"
            refuse_outside(y, (y < self.lower.to(y.dtype)) | (y > self.upper.to(y.dtype)), limits)


def checked_limits(lower: Any, upper: Any) -> tuple[Tensor, Tensor]:
    """Lower and upper limits as tensors, infinite where there are none.

    Args:
        lower: A number, a tensor ``[out]``, or None.
        upper: Likewise.

    Raises:
        ArgumentTypeError: If one is of another type.
        ArgumentError: If there are none, or lower limits are not below the upper ones.

    Example:
        >>> checked_limits(0.0, None)
        (tensor(0.), tensor(inf))
    """
    if lower is None and upper is None:
        raise ArgumentError("lower, upper: neither was given; pass at least one limit.")
    made: list[Tensor] = []
    for name, given, default in (("lower", lower, -math.inf), ("upper", upper, math.inf)):
        value: Any = default if given is None else given
        if not isinstance(value, int | float | Tensor) or isinstance(value, bool):
            raise ArgumentTypeError(f"{name}: is {kind_of(value)}; pass a number, a tensor [out] or None.")
        value = torch.as_tensor(value, dtype=None if isinstance(value, Tensor) else torch.get_default_dtype())
        if value.dim() > 1 or bool(value.isnan().any()):
            raise ArgumentError(f"{name}: is {given}; pass one number for all outputs or one for each.")
        made.append(value.detach().clone())
    if not bool((made[0] < made[1]).all()):
        raise ArgumentError(f"lower, upper: are {lower} and {upper}; pass lower limits below the upper ones.")
    return made[0], made[1]


def limits_repr(lower: Tensor, upper: Tensor) -> str:
    """The limits, for ``repr``.

    Example:
        >>> limits_repr(torch.tensor(0.0), torch.tensor(torch.inf))
        'lower=0'
    """
    parts: list[str] = []
    for name, value in (("lower", lower), ("upper", upper)):
        if bool(torch.isfinite(value).any()):
            numbers = [f"{v:.6g}" for v in value.reshape(-1).tolist()]
            parts.append(f"{name}={numbers[0] if value.dim() == 0 else '[' + ', '.join(numbers) + ']'}")
    return ", ".join(parts)
