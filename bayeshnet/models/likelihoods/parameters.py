"""Positive parameters of a likelihood: known, learned by maximum marginal likelihood, or latent with a prior."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Size, Tensor, nn

from bayeshnet.checks import kind_of
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.formatting import value as printed
from bayeshnet.models._repr import positive
from bayeshnet.models.data_checks import check_positive_support
from bayeshnet.models.likelihoods.base import Likelihood

__all__ = ["Learn", "ParametricLikelihood", "Positive", "checked_prior", "placed"]

Positive: TypeAlias = float | Tensor | TorchDistributionMixin
"""A positive number or a tensor ``[out]`` (known, or where learning starts), or a prior (latent)."""

Learn: TypeAlias = bool | Sequence[str]
"""Which parameters are learned: all, none, or some by name."""


@dataclass(frozen=True)
class _Given:
    """How a parameter was given: under which name, as which power of what is used, and its prior if it is latent."""

    argument: str
    exponent: float
    prior: TorchDistributionMixin | None


class ParametricLikelihood(Likelihood):
    """A likelihood with positive parameters of its own, each known, learned or latent.

    A known one is the buffer, a learned one the parameter ``log_NAME``; a latent one is the Pyro site
    ``likelihood.NAME``. Each is one number, or one for each output ``[out]``, the last dimension of a target.

    Args:
        per_row: Whether the parameter ``scale`` is multiplied by a number that is given with each row, ``noise``.

    Example:
        >>> import pyro.distributions as dist
        >>> class Gamma(ParametricLikelihood):
        ...     def __init__(self, shape):
        ...         super().__init__()
        ...         self.add_positive("shape", shape)
        ...     def conditional(self, f, params, *, batch_dims):
        ...         shape = self.parameter("shape", params, f, batch_dims)
        ...         return dist.Gamma(shape, shape * (-f).exp()).to_event(f.dim() - batch_dims)
        >>> Gamma(shape=2.0).conditional(torch.zeros(7), {}, batch_dims=1).variance[0], Gamma(dist.Gamma(2.0, 1.0))
        (tensor(0.5000), Gamma(shape~Gamma(2, 1)))
    """

    def __init__(self, *, per_row: bool = False) -> None:
        super().__init__()
        self.per_row = per_row
        if per_row:
            self.row_data = ("noise",)
        self._given: dict[str, _Given] = {}

    def add_positive(
        self, name: str, value: Any, *, learn: Learn = False, argument: str | None = None, exponent: float = 1.0
    ) -> None:
        """Add a parameter.

        Args:
            name: Its name.
            value: A positive number, a tensor ``[out]``, or a prior on positive numbers.
            learn: Whether it is learned, or the names of all that are.
            argument: The name under which it was given, if that is another one.
            exponent: The parameter is the given value to this power.

        Raises:
            ArgumentError: If it is not positive, a prior has a batch shape, or it has a prior and is to be learned.
            ArgumentTypeError: If it is none of these.
        """
        argument = name if argument is None else argument
        learned = learn if isinstance(learn, bool) else argument in learn
        if isinstance(value, torch.distributions.Distribution):
            if learned:
                raise ArgumentError(
                    f"learn: {argument} has a prior and is inferred already; pass a number as the start to learn."
                )
            self._given[name] = _Given(argument, exponent, checked_prior(argument, value))
            return
        log_value = exponent * _positive(argument, value).log()
        self._given[name] = _Given(argument, exponent, None)
        if learned:
            self.register_parameter(f"log_{name}", nn.Parameter(log_value))
        else:
            self.register_buffer(f"log_{name}", log_value)

    def parameter(self, name: str, params: Mapping[str, Tensor], f: Tensor, batch_dims: int) -> Tensor:
        """A parameter in a shape that broadcasts against the targets.

        Args:
            name: Its name.
            params: Draws of the latent parameters, and what is given with each row.
            f: A tensor of the targets' shape ``[*samples, B, *target]``.
            batch_dims: Number of its dimensions up to and including ``B``.

        Raises:
            ArgumentError: If it has not one number, nor one for each output.
        """
        given, outputs = self._given[name], f.shape[batch_dims:]
        if given.prior is None:
            log_value = getattr(self, f"log_{name}")
            _check_length(given.argument, log_value.shape, outputs, latent=False)
            value = log_value.exp()
        else:
            shape = Size(given.prior.event_shape)
            _check_length(given.argument, shape, outputs, latent=True)
            value = _align(params[given.argument], len(shape), f, batch_dims)
            value = value if given.exponent == 1.0 else value**given.exponent
        # Outputs of half precision come from autocast; the noise keeps its bits there.
        value = value.to(f.dtype) if f.dtype in (torch.float32, torch.float64) else value
        return value * params["noise"].to(value.dtype) if self.per_row and name == "scale" else value

    def priors(self) -> Mapping[str, TorchDistributionMixin]:
        """See :meth:`Likelihood.priors`."""
        return {given.argument: given.prior for given in self._given.values() if given.prior is not None}

    def extra_repr(self) -> str:
        """What the parameters are, for ``repr``."""
        parts: list[str] = []
        for name, given in self._given.items():
            if given.prior is not None:
                parts.append(f"{given.argument}~{printed(given.prior)}")
                continue
            log_value = getattr(self, f"log_{name}")
            how = "learned, now " if isinstance(log_value, nn.Parameter) else ""
            parts.append(f"{name}={how}{positive(log_value.detach().exp())}")
        return ", ".join([*parts, *["per_row=True"] * self.per_row])

    def check_dtype(self, dtype: torch.dtype) -> None:
        """See :meth:`Likelihood.check_dtype`; known parameters have to be positive and finite in this dtype as well."""
        super().check_dtype(dtype)
        for name, given in self._given.items():
            if given.prior is not None or dtype not in (torch.float32, torch.float64):
                continue
            value = getattr(self, f"log_{name}").detach().exp().to(dtype)
            if not bool((torch.isfinite(value) & (value > 0)).all()):
                what = "the standard deviation" if name == "scale" else name
                raise ArgumentError(
                    f"{given.argument}: {what} is {value.tolist()} in {dtype}, the network's dtype; pass a "
                    "number in its range."
                )

    def noise_latent(self) -> tuple[str, float] | None:
        """See :meth:`Likelihood.noise_latent`."""
        given = self._given.get("scale")
        return None if given is None or given.prior is None else (given.argument, given.exponent)

    def noise_level(self, y: Tensor) -> float:
        """See :meth:`Likelihood.noise_level`."""
        given = self._given.get("scale")
        if given is None:
            return super().noise_level(y)
        if given.prior is None:
            return float(getattr(self, "log_scale").detach().exp().mean())  # noqa: B009 - a buffer or a parameter
        spread = super().noise_level(y)
        with torch.no_grad():
            middle: Any = torch.median(given.prior.sample((101,)).double())
        scale = float(middle) ** given.exponent
        return min(max(scale, 1e-3 * spread), 0.3 * spread) if spread > 0 else scale


def checked_prior(argument: str, prior: Any, *, positive: bool = True) -> TorchDistributionMixin:
    """The prior of a parameter, if it is one of Pyro's and one draw of it is all there is.

    Args:
        argument: Name of the parameter.
        prior: What was given.
        positive: Whether it has to be one over positive numbers.

    Raises:
        ArgumentTypeError: If it is none of Pyro's.
        ArgumentError: If it has a batch shape, or may give numbers that are not positive.

    Example:
        >>> import pyro.distributions as dist
        >>> checked_prior("scale", dist.HalfNormal(1.0)).event_shape
        torch.Size([])
    """
    if not isinstance(prior, TorchDistributionMixin):
        raise ArgumentTypeError(
            f"{argument}: its prior is {kind_of(prior)} of torch.distributions; pass the one of pyro.distributions, "
            f"dist.{type(prior).__name__}(...)."
        )
    if positive:
        check_positive_support(prior, argument)  # pyright: ignore[reportArgumentType] - it is both
    if prior.batch_shape:
        raise ArgumentError(
            f"{argument}: its prior has batch shape {tuple(prior.batch_shape)}, but all of it is one draw; "
            f"call .to_event({len(prior.batch_shape)}) on it."
        )
    return prior


def placed(value: Tensor, event_dim: int, f: Tensor, batch_dims: int) -> Tensor:
    """A draw with its samples where those of ``f`` are, ``[*samples, 1, *event]``, wherever Pyro put them.

    Vectorised particles give ``[P, 1, *event]``, a parallel ``Predictive`` ``[S, *event]`` or ``[S, 1]``.

    Args:
        value: The draw.
        event_dim: Number of its event dimensions.
        f: Outputs ``[*samples, B, ...]``.
        batch_dims: Number of their dimensions up to and including ``B``.

    Example:
        >>> placed(torch.zeros(5, 3), 1, torch.zeros(5, 7, 2), 2).shape
        torch.Size([5, 1, 3])
    """
    event = value.shape[value.dim() - event_dim :] if event_dim else Size()
    num_samples = value.numel() // max(1, math.prod(event))
    lead = tuple(f.shape[: batch_dims - 1]) if num_samples > 1 else ()
    if math.prod(lead) != num_samples:  # outputs that are enumerated, too: the draw broadcasts as it is
        return value
    return value.reshape(*lead, 1, *event)


def _align(value: Tensor, event_dim: int, f: Tensor, batch_dims: int) -> Tensor:
    """A draw as :func:`placed`, with dimensions of size 1 for those of the targets that it has not."""
    value = placed(value, event_dim, f, batch_dims)
    outputs = f.dim() - batch_dims
    event = value.shape[value.dim() - event_dim :] if event_dim else Size()
    event = event[max(0, len(event) - outputs) :]  # dimensions that an output does not have are of size 1
    return value.reshape(*value.shape[: value.dim() - event_dim], *(1,) * (outputs - len(event)), *event)


def _positive(argument: str, value: Any) -> Tensor:
    """Positive finite numbers, one or ``[out]``."""
    if not isinstance(value, int | float | Tensor) or isinstance(value, bool):
        raise ArgumentTypeError(f"{argument}: is {kind_of(value)}; pass a positive number, a tensor or a distribution.")
    if isinstance(value, Tensor) and (value.dtype == torch.bool or value.is_complex()):
        raise ArgumentTypeError(f"{argument}: is a tensor of {value.dtype}; pass positive real numbers.")
    known = torch.as_tensor(value, dtype=torch.get_default_dtype()) if not isinstance(value, Tensor) else value
    known = known.detach().clone()
    if known.dim() > 1 or not bool((known > 0).all()) or not bool(torch.isfinite(known).all()):
        out_of_range = not isinstance(value, Tensor) and 0.0 < value < math.inf
        stored = f", which is {known.item():g} in {known.dtype}" if out_of_range else ""
        raise ArgumentError(
            f"{argument}: is {value}{stored}; pass positive finite numbers, one for all outputs or one for each."
        )
    return known


def _check_length(argument: str, shape: Size, outputs: Size, *, latent: bool) -> None:
    """Raise if the numbers do not belong to the outputs, but would broadcast against the rows."""
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
