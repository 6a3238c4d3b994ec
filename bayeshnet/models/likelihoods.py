"""Likelihoods: the distribution of an observation given the network's output."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.infer.util import is_validation_enabled
from torch import Size, Tensor, nn

from bayeshnet.checks import kind_of
from bayeshnet.configuration import Configured
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.formatting import value as printed
from bayeshnet.models._labels import Labels, refuse_labels
from bayeshnet.models._repr import positive
from bayeshnet.models.data_checks import check_positive_support
from bayeshnet.models.param_sites import emit_param_sites

__all__ = ["Categorical", "Likelihood", "Normal"]


class Likelihood(Configured, nn.Module, ABC):
    """The distribution of ``y`` given outputs ``f`` of the network.

    A subclass gives the conditional distribution and, if it has unknown parameters of its own, their priors.

    Example:
        >>> class Poisson(Likelihood):
        ...     def conditional(self, f, params, *, batch_dims):
        ...         return dist.Poisson(f.exp()).to_event(f.dim() - batch_dims)
        ...     def target_event(self, event_shape):
        ...         return event_shape
        >>> Poisson().conditional(torch.zeros(7, 1), {}, batch_dims=1).mean[0]
        tensor([1.])
    """

    configured_as = "likelihood"

    def priors(self) -> Mapping[str, TorchDistributionMixin]:
        """Priors of the latent parameters by name; they become the Pyro sites ``likelihood.NAME``."""
        return {}

    def sample_params(self) -> dict[str, Tensor]:
        """Draw the latent parameters as Pyro sites and announce the learned ones."""
        if self._parameters or self._modules:
            emit_param_sites("likelihood", self)
        return {name: pyro.sample(f"likelihood.{name}", prior) for name, prior in self.priors().items()}

    @abstractmethod
    def conditional(self, f: Tensor, params: Mapping[str, Tensor], *, batch_dims: int) -> TorchDistributionMixin:
        """The distribution of the observations.

        Args:
            f: Outputs ``[*samples, B, *event]``.
            params: Draws of the latent parameters.
            batch_dims: Number of leading dimensions of ``f`` up to and including ``B``.

        Returns:
            A distribution with ``batch_shape`` equal to ``f.shape[:batch_dims]``.
        """

    def conditional_of(self, f: Tensor, draws: Mapping[str, Tensor]) -> TorchDistributionMixin:
        """:meth:`conditional` for outputs ``f [S, B, *event]``, and draws by the names of their sites."""
        params = {name: draws[f"likelihood.{name}"] for name in self.priors()}
        return self.conditional(f, params, batch_dims=2)

    @abstractmethod
    def target_event(self, event_shape: Size) -> Size:
        """Shape of one observation, given that of one output of the network.

        Raises:
            ArgumentError: If the likelihood cannot be applied to such outputs.
        """

    def check_target(self, y: Tensor, event_shape: Size) -> None:
        """Raise an error if ``y`` cannot be observed, given the shape of one output of the network."""

    def fit_target(self, y: Any, output: Size) -> bool:
        """Whether outputs ``[B, 1]`` are to be squeezed to the shape of ``y``, which is ``[B]``.

        Args:
            y: Targets.
            output: Shape of the outputs of one network, ``[B, *event]``.

        Raises:
            ArgumentTypeError: If ``y`` is no tensor, or of a dtype that the likelihood does not take.
            ArgumentError: If its shape or values do not fit the outputs.

        Example:
            >>> Normal(scale=0.1).fit_target(torch.zeros(7), Size([7, 1]))
            True
        """
        if not isinstance(y, Tensor):
            raise ArgumentTypeError(f"y: is {kind_of(y)}; pass a tensor, torch.as_tensor(y).")
        expected = output[:1] + self.target_event(output[1:])
        self.check_target(y, output[1:])
        if y.shape == expected:
            return False
        squeezable = len(expected) == 2 and expected[1] == 1
        if squeezable and y.shape == expected[:1]:
            return True
        or_flat = f" or {tuple(expected[:1])}" if squeezable else ""
        raise ArgumentError(
            f"y: has shape {tuple(y.shape)}; the network's output {tuple(output)} asks for "
            f"{tuple(expected)}{or_flat}.{self.shape_advice(y, output[1:])}"
        )

    def arrange(self, f: Tensor, *, batch_dims: int) -> Tensor:
        """The network's outputs in the order of dimensions that the other methods expect; as they are by default.

        Args:
            f: Outputs ``[*samples, B, *event]``.
            batch_dims: As for :meth:`conditional`.
        """
        return f

    def shape_advice(self, y: Tensor, event_shape: Size) -> str:
        """Return what the message that ``y`` has the wrong shape should add for outputs of this shape; may be empty."""
        return ""

    def check_dtype(self, dtype: torch.dtype) -> None:
        """Raise an error if a prior of :meth:`priors` has more bits than the network's weights of this dtype.

        A guide joins all latents in one vector, which would get the prior's dtype and not fit the network.

        Raises:
            ArgumentTypeError: If there is such a prior.
        """
        for name, prior in self.priors().items():
            base: Any = prior
            while hasattr(base, "base_dist"):
                base = base.base_dist
            with suppress(NotImplementedError):  # a distribution without a mean is let through
                given = base.mean.dtype
                if torch.promote_types(given, dtype) != dtype:
                    raise ArgumentTypeError(
                        f"{name}: its prior has dtype {given}, the network's weights have {dtype}; make the prior of "
                        f"numbers or tensors of {dtype}, or the network of {given} with net.to({given})."
                    )


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

    def not_compared(self) -> tuple[str, ...]:
        """The start of what is learned."""
        return (self._param,) if "log_scale" in self._parameters else ()

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

    def target_event(self, event_shape: Size) -> Size:
        """See :meth:`Likelihood.target_event`."""
        return event_shape

    def check_target(self, y: Tensor, event_shape: Size) -> None:
        """See :meth:`Likelihood.check_target`."""
        if not y.is_floating_point():
            raise ArgumentTypeError(f"y: has dtype {y.dtype}; a Normal likelihood needs floating-point targets.")


class Categorical(Likelihood):
    r"""Class labels, :math:`y \sim \mathrm{Categorical}(\mathrm{softmax}(f))`.

    **Classes come last**: outputs of the network are logits ``[B, C]``, or ``[B, ..., C]`` for several labels per row
    (``[B, ...]``), such as one for each pixel or token. Networks that put them second, as convolutions and
    ``nn.CrossEntropyLoss`` do, need ``class_dim=1``; their outputs ``[B, C, H, W]`` are then handed on as
    ``[B, H, W, C]``, in :func:`~bayeshnet.predict` too.

    Args:
        class_dim: The dimension of the network's output ``[B, ...]`` that holds the logits. By default the last; where
            the shape would fit another reading as well (``C = H = W``), it has to be given.

    Raises:
        ArgumentError: If ``class_dim`` is 0; when used, if the output has no such dimension, it is smaller than 2, the
            labels have another shape or are none of ``0..C-1``, or it cannot be told which dimension holds the classes.
        ArgumentTypeError: If ``class_dim`` is no whole number, or the labels are no integers.

    Example:
        >>> Categorical().conditional(torch.zeros(7, 3), {}, batch_dims=1).batch_shape
        torch.Size([7])
        >>> Categorical(class_dim=1).arrange(torch.zeros(7, 3, 8, 8), batch_dims=1).shape
        torch.Size([7, 8, 8, 3])
    """

    def __init__(self, *, class_dim: int | None = None) -> None:
        super().__init__()
        if class_dim is not None and (isinstance(class_dim, bool) or not isinstance(class_dim, int)):
            raise ArgumentTypeError(
                f"class_dim: is {class_dim!r}, {kind_of(class_dim)}; pass -1 (classes last), 1 (outputs "
                "[B, C, ...]) or None."
            )
        if class_dim == 0:
            raise ArgumentError("class_dim: is 0, the dimension of the rows; pass -1 (classes last) or 1.")
        self.class_dim = class_dim

    def extra_repr(self) -> str:
        """Which dimension holds the classes, for ``repr``, if that was said."""
        return "" if self.class_dim is None else f"class_dim={self.class_dim}"

    def arrange(self, f: Tensor, *, batch_dims: int) -> Tensor:
        """See :meth:`Likelihood.arrange`."""
        if self.class_dim in (None, -1):
            return f
        dims = f.dim() - batch_dims + 1  # of an output [B, ...] of one network
        place = self.class_dim + dims if self.class_dim < 0 else self.class_dim
        if not 0 < place < dims:
            raise ArgumentError(
                f"class_dim: is {self.class_dim}, but the network's output {tuple(f.shape[batch_dims - 1 :])} has no "
                "such dimension beside that of the rows."
            )
        return f if place == dims - 1 else f.movedim(batch_dims - 1 + place, -1)

    def conditional(self, f: Tensor, params: Mapping[str, Tensor], *, batch_dims: int) -> TorchDistributionMixin:
        """See :meth:`Likelihood.conditional`."""
        return Labels(logits=f).to_event(f.dim() - batch_dims - 1)

    def target_event(self, event_shape: Size) -> Size:
        """See :meth:`Likelihood.target_event`."""
        if len(event_shape) == 0 or event_shape[-1] < 2:
            first = (
                " For outputs [B, C, ...] pass class_dim=1." if self.class_dim is None and len(event_shape) > 1 else ""
            )
            raise ArgumentError(
                f"likelihood: Categorical needs at least 2 logits in the last dimension of the network's output; one "
                f"output has shape {tuple(event_shape)}.{first}"
            )
        return event_shape[:-1]

    def check_target(self, y: Tensor, event_shape: Size) -> None:
        """See :meth:`Likelihood.check_target`."""
        if y.is_floating_point() or y.is_complex():
            one_hot = len(event_shape) == 1 and y.shape[1:] == event_shape
            fix = "y.argmax(-1) if these are one-hot vectors or probabilities" if one_hot else "try y.long()"
            raise ArgumentTypeError(
                f"y: has dtype {y.dtype}; a Categorical likelihood needs integer labels 0..C-1, {fix}."
            )
        if self.class_dim is None and len(event_shape) > 1 and event_shape[:-1] == event_shape[1:]:
            raise ArgumentError(
                f"likelihood: an output of the network has shape {tuple(event_shape)}, so that its classes may be in "
                "the first or in the last dimension; say which: Categorical(class_dim=1) for outputs [B, C, ...] as of "
                "convolutions, Categorical(class_dim=-1) for [B, ..., C]."
            )
        num = event_shape[-1] if event_shape else 0
        # Looking at values waits for the device; fit switches Pyro's validation off after its first step.
        if num and is_validation_enabled() and y.shape[1:] == event_shape[:-1]:
            refuse_labels(y, num)

    def shape_advice(self, y: Tensor, event_shape: Size) -> str:
        """See :meth:`Likelihood.shape_advice`."""
        if self.class_dim is None and len(event_shape) > 1 and y.shape[1:] == event_shape[1:]:
            return " Classes come last here; for outputs [B, C, ...] pass likelihoods.Categorical(class_dim=1)."
        one_hot = len(event_shape) == 1 and y.shape[1:] == event_shape
        if one_hot:
            return " For one-hot vectors pass y.argmax(-1)."
        column = y.dim() == len(event_shape) + 1 and y.shape[1:] == (*event_shape[:-1], 1)
        return " Try y.squeeze(-1)." if column else ""


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
