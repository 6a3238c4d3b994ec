"""Gaussian noise that is known, learned or inferred."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Size, Tensor, nn

from bayeshnet.checks import kind_of
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.formatting import value as printed
from bayeshnet.models._repr import positive
from bayeshnet.models.data_checks import check_positive_support
from bayeshnet.models.likelihoods.base import Likelihood

__all__ = ["Normal"]


class Normal(Likelihood):
    """Gaussian noise, ``y = f + scale * e``, on every output.

    Args:
        scale: The noise's standard deviation: a positive number or a tensor ``[out]`` (known), or a distribution on
            the positive numbers (its prior; the scale is then inferred with the weights), with one value or ``[out]``
            as its event. ``out`` is the last dimension of the network's output.
        precision: ``1 / scale^2`` instead, in the same forms; excludes ``scale``.
        learn: Optimise ``scale`` as a parameter, starting at the number given (maximum marginal likelihood).

    Raises:
        ArgumentError: If both or neither of ``scale`` and ``precision`` are given, one is not positive, a prior has a
            batch shape, or ``learn`` is asked for together with a prior; when used, if the length is not 1 or ``out``.

    Example:
        >>> likelihood = Normal(scale=dist.Gamma(6.0, 6.0))
        >>> f = torch.zeros(7, 3)
        >>> likelihood.conditional(f, {"scale": torch.tensor(0.5)}, batch_dims=1).event_shape
        torch.Size([3])
    """

    standardizes_targets: ClassVar[bool] = True

    def __init__(
        self,
        scale: float | Tensor | TorchDistributionMixin | None = None,
        *,
        precision: float | Tensor | TorchDistributionMixin | None = None,
        learn: bool = False,
    ) -> None:
        super().__init__()
        if (scale is None) == (precision is None):
            given = "neither" if scale is None else "both"
            raise ArgumentError(
                f"scale, precision: {given} of them were given; pass exactly one, such as scale=0.1 (known) or "
                "scale=dist.Gamma(6., 6.) (inferred)."
            )
        self._param = "scale" if precision is None else "precision"
        value = scale if precision is None else precision
        self._prior: TorchDistributionMixin | None = None
        if isinstance(value, torch.distributions.Distribution):
            if not isinstance(value, TorchDistributionMixin):
                raise ArgumentTypeError(
                    f"{self._param}: its prior is {kind_of(value)} of torch.distributions; pass the one of "
                    f"pyro.distributions, dist.{type(value).__name__}(...)."
                )
            if learn:
                raise ArgumentError(
                    f"learn: {self._param} has a prior and is inferred already; pass a number as the start to learn."
                )
            check_positive_support(value, self._param)
            if value.batch_shape:
                raise ArgumentError(
                    f"{self._param}: its prior has batch shape {tuple(value.batch_shape)}, but all of it is one draw; "
                    f"call .to_event({len(value.batch_shape)}) on it."
                )
            self._prior = value
            return
        if not isinstance(value, int | float | Tensor) or isinstance(value, bool):
            raise ArgumentTypeError(
                f"{self._param}: is {kind_of(value)}; pass a positive number, a tensor or a distribution."
            )
        if isinstance(value, Tensor) and (value.dtype == torch.bool or value.is_complex()):
            raise ArgumentTypeError(f"{self._param}: is a tensor of {value.dtype}; pass positive real numbers.")
        known = torch.as_tensor(value, dtype=torch.get_default_dtype()) if not isinstance(value, Tensor) else value
        known = known.detach().clone()
        if known.dim() > 1 or not bool((known > 0).all()) or not bool(torch.isfinite(known).all()):
            out_of_range = not isinstance(value, Tensor) and 0.0 < value < math.inf
            stored = f", which is {known.item():g} in {known.dtype}" if out_of_range else ""
            raise ArgumentError(
                f"{self._param}: is {value}{stored}; pass positive finite numbers, one for all outputs or one for each."
            )
        log_scale = known.log() if self._param == "scale" else -0.5 * known.log()
        if learn:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)

    def extra_repr(self) -> str:
        """What the noise is, for ``repr``."""
        if self._prior is not None:
            return f"{self._param}~{printed(self._prior)}"
        how = "learned, now " if isinstance(self.log_scale, nn.Parameter) else ""
        return f"scale={how}{positive(self.log_scale.detach().exp())}"

    def check_dtype(self, dtype: torch.dtype) -> None:
        """See :meth:`Likelihood.check_dtype`; known noise has to be positive and finite in this dtype as well."""
        super().check_dtype(dtype)
        if self._prior is not None or dtype not in (torch.float32, torch.float64):
            return
        scale = self.log_scale.detach().exp().to(dtype)
        if not bool((torch.isfinite(scale) & (scale > 0)).all()):
            raise ArgumentError(
                f"{self._param}: the standard deviation is {scale.tolist()} in {dtype}, the network's dtype; pass a "
                "number in its range."
            )

    def priors(self) -> Mapping[str, TorchDistributionMixin]:
        """See :meth:`Likelihood.priors`."""
        return {} if self._prior is None else {self._param: self._prior}

    def conditional(self, f: Tensor, params: Mapping[str, Tensor], *, batch_dims: int) -> TorchDistributionMixin:
        """See :meth:`Likelihood.conditional`."""
        outputs = f.shape[batch_dims:]
        shape = self.log_scale.shape if self._prior is None else self._prior.event_shape
        _check_length(self._param, shape, outputs, latent=self._prior is not None)
        if self._prior is None:
            scale = self.log_scale.exp()
        else:
            value = _align(params[self._param], len(self._prior.event_shape), f, batch_dims)
            scale = value if self._param == "scale" else value.rsqrt()
        # Outputs of half precision come from autocast; the noise keeps its bits there.
        scale = scale.to(f.dtype) if f.dtype in (torch.float32, torch.float64) else scale
        return dist.Normal(f, scale).to_event(len(outputs))

    def check_target(self, y: Tensor, event_shape: Size) -> None:
        """See :meth:`Likelihood.check_target`."""
        if not y.is_floating_point():
            raise ArgumentTypeError(f"y: has dtype {y.dtype}; a Normal likelihood needs floating-point targets.")


def _check_length(argument: str, shape: Size, outputs: Size, *, latent: bool) -> None:
    """Raise if the noise does not belong to the outputs, but would broadcast against the rows."""
    if not shape or all(n == 1 for n in shape):
        return
    pairs = zip(reversed(shape), reversed(outputs), strict=False)
    if len(shape) <= len(outputs) and all(n in (1, out) for n, out in pairs):
        return
    num = outputs[-1] if outputs else 1
    what = f"its prior has event shape {tuple(shape)}" if latent else f"has shape {tuple(shape)}"
    fix = (
        f"use a prior of one value or of one for each output, such as dist.Gamma(6., 6.).expand([{num}]).to_event(1)"
        if latent
        else f"pass one number for all, or a tensor of length {num}"
    )
    raise ArgumentError(f"{argument}: {what}, and the network gives {num} output{'s' * (num != 1)} per row; {fix}.")


def _align(value: Tensor, event_dim: int, f: Tensor, batch_dims: int) -> Tensor:
    """Reshape a draw so that it broadcasts against ``f``, whatever dimensions Pyro put around it.

    Vectorised particles give ``[P, 1, *event]``, a parallel ``Predictive`` ``[S, *event]`` or ``[S, 1]``.
    """
    event = value.shape[value.dim() - event_dim :] if event_dim else Size()
    num_samples = value.numel() // max(1, math.prod(event))
    outputs = f.dim() - batch_dims
    event = event[max(0, len(event) - outputs) :]  # dimensions that an output does not have are of size 1
    tail = (1,) * (1 + outputs - len(event)) + tuple(event)
    lead = tuple(f.shape[: batch_dims - 1]) if num_samples > 1 else ()
    return value.reshape(lead + tail)
