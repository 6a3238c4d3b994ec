"""A distribution in other units: an affine transform whose moments, quantiles and density are known."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Size, Tensor
from torch.distributions import constraints
from torch.distributions.utils import _sum_rightmost as sum_rightmost  # pyright: ignore[reportPrivateUsage] - no public name

from bayeshnet.errors import ArgumentError
from bayeshnet.formatting import span

__all__ = ["Rescaled", "rescaled"]


def rescaled(
    base: TorchDistributionMixin,
    loc: Tensor,
    scale: Tensor,
    *,
    dtype: torch.dtype | None = None,
    validate_args: bool | None = None,
) -> TorchDistributionMixin:
    r"""The distribution of ``loc + scale * z`` with z from ``base``: a :class:`Rescaled`, inside of ``to_event``.

    Args:
        base: The distribution of z.
        loc: Broadcastable to its batch and event shape.
        scale: Positive, likewise.
        dtype: That of z, where ``loc`` and ``scale`` have more bits.
        validate_args: Whether to check the arguments.

    Example:
        >>> import pyro.distributions as dist
        >>> base = dist.Normal(torch.zeros(7, 2), 1.0).to_event(1)
        >>> rescaled(base, torch.tensor([1.0, 2.0]), torch.tensor([10.0, 0.1])).mean[0]
        tensor([1., 2.])
    """
    inner: Any = base
    if isinstance(inner, torch.distributions.Independent):
        made: Any = rescaled(inner.base_dist, loc, scale, dtype=dtype, validate_args=validate_args)
        return made.to_event(inner.reinterpreted_batch_ndims)
    return Rescaled(base, loc, scale, dtype=dtype, validate_args=validate_args)


class Rescaled(TorchDistribution):
    r"""The distribution of :math:`y = \mathrm{loc} + \mathrm{scale}\, z`, in the units of y.

    .. math:: \log p(y) = \log p_z\Big(\frac{y - \mathrm{loc}}{\mathrm{scale}}\Big) - \sum \log \mathrm{scale}

    with a sum over the entries of an event. Mean, variance, mode, entropy, cdf and icdf are exact where ``base`` has
    them. Subtraction comes first, in the larger of the two dtypes, so that a large loc costs no accuracy.

    Args:
        base: The distribution of z, over the real numbers.
        loc: Broadcastable to ``base.batch_shape + base.event_shape``.
        scale: Positive, likewise.
        dtype: That of z, where ``loc`` and ``scale`` have more bits.

    Raises:
        ArgumentError: If ``scale`` is not positive, or shapes do not fit.

    Example:
        >>> import pyro.distributions as dist
        >>> price = Rescaled(dist.Normal(torch.zeros(3), 0.5), torch.tensor(250_000.0), torch.tensor(80_000.0))
        >>> price.mean, price.stddev
        (tensor([250000., 250000., 250000.]), tensor([40000., 40000., 40000.]))
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}  # pyright: ignore[reportIncompatibleMethodOverride] - a property in torch

    def __init__(
        self,
        base: TorchDistributionMixin,
        loc: Tensor,
        scale: Tensor,
        *,
        dtype: torch.dtype | None = None,
        validate_args: bool | None = None,
    ) -> None:
        self.base: Any = base
        self.loc, self.scale, self.dtype = loc, scale, dtype
        shape = Size(self.base.batch_shape) + Size(self.base.event_shape)
        if validate_args is not False and not (bool((scale > 0).all()) and _fits(loc, shape) and _fits(scale, shape)):
            raise ArgumentError(
                f"loc, scale: have shapes {tuple(loc.shape)} and {tuple(scale.shape)}, scale at least "
                f"{float(scale.min()) if scale.numel() else 'empty'}; pass a positive scale, and shapes that expand to "
                f"{tuple(shape)}."
            )
        super().__init__(self.base.batch_shape, self.base.event_shape, validate_args=False)
        self._validate_args = bool(self._validate_args if validate_args is None else validate_args)

    def __repr__(self) -> str:
        return f"Rescaled({self.base}, loc={span(self.loc)}, scale={span(self.scale)})"

    @property
    def has_rsample(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride] - a property of the base here
        """Whether draws are differentiable: those of the base."""
        return self.base.has_rsample

    @property
    def marginalises(self) -> bool:
        """Whether entries of a value may be NaN, and are then integrated out, as those of the base are."""
        return getattr(self.base, "marginalises", False)

    @property
    def support(self) -> Any:
        """Where the density is not 0."""
        inner = self.base.support
        plain = inner.base_constraint if isinstance(inner, constraints.independent) else inner
        return inner if plain is constraints.real else _Moved(inner, self)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Rescaled:
        """See ``torch.distributions``."""
        shape = Size(batch_shape)
        return Rescaled(self.base.expand(shape), self.loc, self.scale, dtype=self.dtype, validate_args=False)

    def with_base(self, base: TorchDistributionMixin) -> Rescaled:
        """The same units for another distribution of z, that of single entries for instance."""
        return Rescaled(base, self.loc, self.scale, dtype=self.dtype, validate_args=False)

    # ------------------------------------------------------------------ units

    def _inner(self, value: Tensor) -> Tensor:
        z = (self._wide(value) - self.loc) / self.scale
        return z if self.dtype is None else z.to(self.dtype)

    def _outer(self, z: Tensor) -> Tensor:
        return self.loc + self.scale * self._wide(z)

    def _wide(self, t: Tensor) -> Tensor:
        # A tensor without dimensions does not widen others by itself.
        return t.to(torch.promote_types(t.dtype, self.loc.dtype))

    def _log_scale(self, value: Tensor) -> Tensor:
        """The logarithm of the Jacobian determinant, of an event."""
        log_scale = self.scale.log().expand(Size(torch.broadcast_shapes(self.scale.shape, self.event_shape)))
        return sum_rightmost(log_scale, len(self.event_shape)).to(value.dtype)

    # ------------------------------------------------------------------ what is known of it

    @property
    def mean(self) -> Tensor:
        """The mean."""
        return self._outer(self.base.mean)

    @property
    def mode(self) -> Tensor:
        """The mode."""
        return self._outer(self.base.mode)

    @property
    def variance(self) -> Tensor:
        """The variance of each entry."""
        return self.scale.square() * self._wide(self.base.variance)

    def sample(self, sample_shape: Any = Size()) -> Tensor:  # pyright: ignore[reportCallInDefaultInitializer] - that of torch
        """Draws, without gradients."""
        with torch.no_grad():
            return self._outer(self.base.sample(sample_shape))

    def rsample(self, sample_shape: Any = Size()) -> Tensor:  # pyright: ignore[reportCallInDefaultInitializer] - that of torch
        """Draws, differentiable with respect to the parameters of the base."""
        return self._outer(self.base.rsample(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density in the units of ``value``."""
        inner = self.base.log_prob(self._inner(value))
        if self.marginalises:  # what is missing has no units
            log_scale = self.scale.log().expand(value.shape).masked_fill(torch.isnan(value), 0.0)
            return inner - sum_rightmost(log_scale, len(self.event_shape)).to(inner.dtype)
        return inner - self._log_scale(inner)

    def cdf(self, value: Tensor) -> Tensor:
        """Probability of no more than ``value``."""
        return self.base.cdf(self._inner(value))

    def icdf(self, value: Tensor) -> Tensor:
        """The quantile of a level."""
        return self._outer(self.base.icdf(value))

    def entropy(self) -> Tensor:
        """Differential entropy in nats."""
        inner = self.base.entropy()
        return inner + self._log_scale(inner)


class _Moved(constraints.Constraint):
    """The values that a distribution in other units can take."""

    def __init__(self, inner: Any, distribution: Rescaled) -> None:
        super().__init__()
        self._inner, self._distribution = inner, distribution

    @property
    def event_dim(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride] - follows the base
        return self._inner.event_dim

    def check(self, value: Tensor) -> Tensor:
        return self._inner.check((value - self._distribution.loc) / self._distribution.scale)


def _fits(t: Tensor, shape: Size) -> bool:
    try:
        return torch.broadcast_shapes(t.shape, shape) == shape
    except RuntimeError:
        return False
