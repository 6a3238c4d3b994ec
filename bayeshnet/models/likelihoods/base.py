"""What a likelihood is: the distribution of an observation given the network's outputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, ClassVar

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Size, Tensor, nn

from bayeshnet.configuration import Configured
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.models.param_sites import emit_param_sites

__all__ = ["Likelihood"]


class Likelihood(Configured, nn.Module, ABC):
    """The distribution of ``y`` given outputs ``f`` of the network.

    A subclass gives the conditional distribution. If the network gives several numbers for each target, it says how
    many; if it has unknown parameters of its own, their priors.

    Attributes:
        outputs_per_target: How many numbers n the network gives for each of K targets. Of n > 1 its outputs are
            ``[B, ..., n * K]`` in n blocks of K, and ``conditional`` gets them as ``[B, ..., K, n]``.
        row_data: Names of what has to be given with each row, beside inputs and targets: ``"noise"``, ``"exposure"``.

    Example:
        >>> import pyro.distributions as dist
        >>> class Exponential(Likelihood):
        ...     def conditional(self, f, params, *, batch_dims):
        ...         return dist.Exponential((-f).exp()).to_event(f.dim() - batch_dims)
        >>> Exponential().conditional(torch.zeros(7, 2), {}, batch_dims=1).mean[0]
        tensor([1., 1.])
    """

    configured_as = "likelihood"

    outputs_per_target: int = 1
    row_data: tuple[str, ...] = ()
    # What the messages say of the targets that are accepted.
    integer_targets: ClassVar[bool] = False
    # Whether it is of a location and a scale, so that BayesianModel(..., standardize=...) rescales the targets, too.
    standardizes_targets: ClassVar[bool] = False
    # Whether what noise_latent names is the standard deviation of the observations around the mean of a prediction.
    noise_is_std: ClassVar[bool] = True
    # Whether only differences of the outputs of a row matter, as of logits.
    logit_differences: ClassVar[bool] = False

    # ------------------------------------------------------------------ what a subclass gives

    @abstractmethod
    def conditional(self, f: Tensor, params: Mapping[str, Tensor], *, batch_dims: int) -> TorchDistributionMixin:
        """The distribution of the observations.

        Args:
            f: Outputs ``[*samples, B, *target]``, or ``[*samples, B, *target, n]`` if there are n for each target.
            params: Draws of the latent parameters, and what is given with each row, by name.
            batch_dims: Number of leading dimensions of ``f`` up to and including ``B``.

        Returns:
            A distribution with ``batch_shape`` equal to ``f.shape[:batch_dims]``, and ``event_shape`` ``target``.
        """

    def priors(self) -> Mapping[str, TorchDistributionMixin]:
        """Priors of the latent parameters by name; they become the Pyro sites ``likelihood.NAME``."""
        return {}

    def not_compared(self) -> tuple[str, ...]:
        """The start of what is learned."""
        learned = [name for name in self.recorded() if any(key.endswith(name) for key in self._parameters)]
        return (*learned, "precision") if "log_scale" in self._parameters else tuple(learned)

    def target_event(self, event_shape: Size) -> Size:
        """Shape of one observation, given that of one output as :meth:`arrange` returns it.

        Raises:
            ArgumentError: If the likelihood cannot be applied to such outputs.
        """
        return event_shape if self.outputs_per_target == 1 else event_shape[:-1]

    def check_target(self, y: Tensor, event_shape: Size) -> None:
        """Raise an error if ``y`` cannot be observed, given the shape of one output as :meth:`arrange` returns it."""

    def arrange(self, f: Tensor, *, batch_dims: int) -> Tensor:
        """The network's outputs in the order of dimensions that the other methods expect.

        Args:
            f: Outputs ``[*samples, B, *event]``.
            batch_dims: As for :meth:`conditional`.

        Returns:
            Outputs ``[*samples, B, *target]``, or ``[*samples, B, *target, n]`` if there are n numbers for each target.

        Raises:
            ArgumentError: If the last dimension does not hold n numbers for each target.
        """
        n = self.outputs_per_target
        if n == 1:
            return f
        event = f.shape[batch_dims:]
        if not event or event[-1] % n:
            num = event[-1] if event else 1
            raise ArgumentError(
                f"net: gives {num} output{'s' * (num != 1)} per row; {type(self).__name__} takes {n} numbers for each "
                f"target, so that the last dimension has to be a multiple of {n}: {n} for one target."
            )
        return f.reshape(*f.shape[:-1], n, event[-1] // n).transpose(-1, -2)

    def shape_advice(self, y: Tensor, event_shape: Size) -> str:
        """Return what the message that ``y`` has the wrong shape should add for outputs of this shape; may be empty."""
        return ""

    def entry_weight(self, y: Tensor) -> Tensor | None:
        """Factors of the log-likelihood of each entry of ``y`` in training, in the shape of ``y``; None for 1."""
        return None

    # ------------------------------------------------------------------ what guides and diagnoses ask

    def pseudo_targets(self, y: Tensor, num_outputs: int) -> Tensor | None:
        """Outputs ``[m, num_outputs]`` that would explain targets ``[m, ...]``, where conditional layers start.

        None, the default, says that there are none: no layer is then drawn conditionally on inducing points.

        Args:
            y: Targets of m rows.
            num_outputs: Outputs of the network's last layer.
        """
        return None

    def noise_latent(self) -> tuple[str, float] | None:
        """The latent that is the size of additive noise, and the power that makes it a standard deviation; or None."""
        return None

    def noise_level(self, y: Tensor) -> float:
        """How far targets typically are from their outputs, in the units of :meth:`pseudo_targets`."""
        return float(y.double().std()) if y.numel() > 1 else 1.0

    # ------------------------------------------------------------------ what the model calls

    def sample_params(self, draw: Callable[[], dict[str, Tensor]] | None = None) -> dict[str, Tensor]:
        """Draw the latent parameters as Pyro sites and announce the learned ones.

        Args:
            draw: Draws them where they have another prior than that of :meth:`priors`, a posterior for instance.
        """
        if self._parameters or self._modules:
            emit_param_sites("likelihood", self)
        if draw is not None:
            return draw()
        return {name: pyro.sample(f"likelihood.{name}", prior) for name, prior in self.priors().items()}

    def conditional_of(
        self, f: Tensor, draws: Mapping[str, Tensor], rows: Mapping[str, Tensor] | None = None
    ) -> TorchDistributionMixin:
        """:meth:`conditional` for outputs ``f [S, B, ...]``, draws by site name, and what is given with each row."""
        params = {name: draws[f"likelihood.{name}"] for name in self.priors()}
        return self.conditional(f, {**params, **(rows or {})}, batch_dims=2)

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
