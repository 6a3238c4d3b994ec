"""The protocol of an estimator of log q."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from bayeshnet.configuration import Configured
from bayeshnet.entropy.diagnosis import Diagnosis
from bayeshnet.entropy.no_gradient import refuse_gradient
from bayeshnet.entropy.sampler import Draw, NoisySampler
from bayeshnet.errors import ArgumentError
from bayeshnet.typing import LogDensities, WeightBatch

__all__ = ["BOUND_THE_GRADIENT", "Diagnosis", "LogDensity"]

BOUND_THE_GRADIENT = "bound the norm of the gradient (fit(..., clip_norm=1.0))"
"""What helps where a step goes too far, for messages."""


class LogDensity(Configured, ABC):
    """Estimates log q of a sampler's draws.

    An estimator is stateless, one object serves any number of samplers, unless its class says otherwise
    (:class:`~bayeshnet.entropy.experimental.Adversarial` learns one sampler).

    Example:
        >>> from bayeshnet.distributions import ImplicitWeights
        >>> from bayeshnet.entropy import Linearised
        >>> from bayeshnet.hnets import HMLP, HPerturbWrapper
        >>> class Tempered(Linearised):  # an estimator of one's own
        ...     def log_prob(self, sampler, draw):
        ...         return 0.5 * super().log_prob(sampler, draw)
        >>> hnet = HPerturbWrapper(HMLP([[3]], uncond_in_size=2, cond_in_size=0), noise="independent")
        >>> q = ImplicitWeights(hnet, estimator=Tempered())
        >>> q.log_prob(q.rsample((4,))).shape
        torch.Size([4])
    """

    configured_as = "estimator"

    noise: str | None
    """The kind of noise that the estimator applies to, ``"shared"`` or ``"independent"``; None for both."""

    everywhere: bool = False
    """Whether :meth:`log_prob_at` gives a differentiable density at any weights, as components of a mixture need it."""

    @property
    def per_draw(self) -> bool:
        """Whether :meth:`log_prob` is a density of each draw, rather than right on average only."""
        return True

    @property
    def has_value(self) -> bool:
        """Whether the value of :meth:`log_prob` is an estimate of log q, rather than its gradient alone."""
        return True

    def draw(self, sampler: NoisySampler, num: int) -> Draw:
        """Draw ``num`` samples, with what is cheaper to compute of their density now than later."""
        return sampler.draw(num)

    @abstractmethod
    def log_prob(self, sampler: NoisySampler, draw: Draw) -> LogDensities:
        """Compute the log-density of each sample ``[S]``, differentiable with respect to everything in the draw."""

    def log_prob_of(self, sampler: NoisySampler, weights: WeightBatch, draw: Draw) -> LogDensities:
        """Compute the log-density ``[S]`` at the weights ``[S, D]`` of an earlier draw, as fixed values.

        Its number is that of :meth:`log_prob`. Its gradient is that of the density at the weights, with respect to them
        and to the sampler, where the estimator has one. By default there is none: ``backward`` raises.

        Raises:
            DensityError: In the backward pass, if the estimator has no gradient at a fixed value.
        """
        with torch.no_grad():
            log_q = self.log_prob(sampler, draw)
        return refuse_gradient(log_q, [*sampler.parameters(), weights], self._no_score())

    def _no_score(self) -> str:
        """The message for whoever asks for the gradient of log q at a fixed value."""
        return (
            f"value: a gradient of log q at a fixed value was asked for, and {self!r} has none: it knows only how its "
            "density changes along a draw. Reweighted wake-sleep, and whatever else differentiates the density of "
            "values that carry no graph, need an estimator with a density everywhere: ChangeOfVariables() with "
            "noise='shared', ImportanceSampled() with noise='independent'. For the number alone use torch.no_grad(); "
            "for a gradient along the draw pass what rsample() returned, not a detached copy."
        )

    @abstractmethod
    def log_prob_at(self, sampler: NoisySampler, weights: WeightBatch) -> LogDensities:
        """Compute the log-density ``[S]`` at weights ``[S, D]`` that this sampler did not just draw.

        Raises:
            DensityError: If the estimator needs the noise that made the weights.
        """

    @abstractmethod
    def diagnose(self, sampler: NoisySampler, *, num_samples: int = 256, thorough: bool = True) -> Diagnosis:
        """Measure how far the estimate can be trusted for the sampler as it is now.

        Args:
            sampler: The sampler.
            num_samples: Number of draws to look at.
            thorough: Search; otherwise only what costs no more than a few training steps.
        """

    def check(self, sampler: NoisySampler) -> None:
        """Raise unless the estimator applies to the sampler.

        Whoever builds a distribution or a guide calls it first, so an estimator with a state makes it here. A class
        that extends it calls the one of its base.

        Raises:
            ArgumentError: If the kind of noise differs.
            DensityError: If the sampler has no density per sample.
        """
        kind = "shared" if sampler.shared else "independent"
        if self.noise is not None and kind != self.noise:
            raise ArgumentError(
                f"estimator: {type(self).__name__} applies to {self.noise} noise, the hypernetwork has {kind} noise; "
                f"build the wrapper with HPerturbWrapper(..., noise={self.noise!r}) or choose another estimator."
            )
        sampler.check_density()
        sampler.checked_by = self

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"
