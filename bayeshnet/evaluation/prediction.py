"""Predictions: the distribution of a network's output and of new observations."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from bayeshnet.checks import kind_of
from bayeshnet.errors import ArgumentError, ArgumentTypeError, UsageError
from bayeshnet.formatting import array, span
from bayeshnet.sites.quantiles import checked_level, sample_quantiles

__all__ = ["Prediction"]


@dataclass(frozen=True, repr=False)
class Prediction:
    """The predictive distribution at B inputs, by S sampled networks.

    Attributes:
        draws: Outputs of the sampled networks ``[S, B, ...]``: function values, or logits.
        samples: One drawn observation for each of them ``[S, B, ...]``.
        conditional: The distribution of observations given each output, ``batch_shape`` ``[S, B]``.

    Example:
        >>> import pyro.distributions as dist
        >>> f = torch.tensor([[0.0], [2.0]])
        >>> pred = Prediction(f, f, dist.Normal(f, 1.0))
        >>> pred.mean, pred.epistemic, pred.aleatoric
        (tensor([1.]), tensor([1.]), tensor([1.]))
        >>> pred
        Prediction(2 draws at 1 input, draws=f32[2,1], mean=1, std=1.41, likelihood=Normal)
    """

    draws: Tensor
    samples: Tensor
    conditional: TorchDistributionMixin

    @torch.no_grad()
    def __repr__(self) -> str:
        num, rows = self.draws.shape[:2]
        size = f"{num} draw{'s' * (num != 1)} at {rows} input{'s' * (rows != 1)}"
        ranges: list[str] = []
        for name in ("probs", "entropy") if self.is_classification else ("mean", "std"):
            with suppress(NotImplementedError):  # a distribution without a variance
                ranges.append(f"{name}={span(getattr(self, name))}")
        noise: Any = self.conditional
        while isinstance(noise, torch.distributions.Independent):
            noise = noise.base_dist
        # A class of this package that derives from Pyro's says no more than Pyro's.
        kind = next(cls.__name__ for cls in type(noise).__mro__ if not cls.__module__.startswith("bayeshnet."))
        return f"Prediction({', '.join([size, f'draws={array(self.draws)}', *ranges, f'likelihood={kind}'])})"

    @property
    def is_classification(self) -> bool:
        """Whether the observations are labels."""
        return bool(self.conditional.support.is_discrete)

    @property
    def probs(self) -> Tensor:
        """Probability of each class ``[B, ..., C]``, averaged over the sampled networks.

        Raises:
            UsageError: For a regression.
        """
        if not self.is_classification:
            raise UsageError("probs: is for classifications; use mean, std or interval().")
        return self.draws.softmax(-1).mean(0)

    @property
    def mean(self) -> Tensor:
        """Predictive mean ``[B, ...]``; for a classification the class probabilities ``[B, ..., C]``."""
        return self.probs if self.is_classification else self.draws.mean(0)

    @property
    def std(self) -> Tensor:
        """Predictive standard deviation ``[B, ...]``: ``std^2 = epistemic^2 + aleatoric^2``.

        Raises:
            UsageError: For a classification.
        """
        if self.is_classification:
            raise UsageError("std: is for regressions; use entropy, epistemic and aleatoric, in nats.")
        return (self.epistemic.square() + self.aleatoric.square()).sqrt()

    @property
    def entropy(self) -> Tensor:
        """Entropy of the averaged class probabilities, in nats: ``entropy = epistemic + aleatoric``.

        Raises:
            UsageError: For a regression.
        """
        return _entropy(self.probs)

    @property
    def epistemic(self) -> Tensor:
        """The part that more data would remove ``[B, ...]``.

        The standard deviation of the function values over the sampled networks; for a classification the mutual
        information between label and network in nats.
        """
        if self.is_classification:
            return (self.entropy - self.aleatoric).clamp(min=0.0)
        return self.draws.std(0, unbiased=False)

    @property
    def aleatoric(self) -> Tensor:
        """The part that is noise in the observations ``[B, ...]``.

        The root mean square of the observation noise; for a classification the mean entropy of a network's prediction
        in nats.
        """
        if self.is_classification:
            return _entropy(self.draws.softmax(-1)).mean(0)
        return self.conditional.variance.mean(0).sqrt()

    def interval(
        self, level: float = 0.9, *, kind: Literal["observation", "function"] = "observation"
    ) -> tuple[Tensor, Tensor]:
        """Central interval that holds a new observation, or the function's value, with probability ``level``.

        Args:
            level: Between 0 and 1.
            kind: ``"observation"`` (noise included) or ``"function"``.

        Returns:
            Lower and upper end ``[B, ...]``, quantiles of the draws.

        Raises:
            ArgumentError: If an argument is out of range.
            ArgumentTypeError: If ``level`` is not a number.
            UsageError: For a classification.
        """
        level = checked_level("level", level)
        if kind not in ("observation", "function"):
            raise ArgumentError(f"kind: is {kind!r}; pass 'observation' or 'function'.")
        if self.is_classification:
            raise UsageError("interval: is for regressions; use probs.")
        values = self.samples if kind == "observation" else self.draws
        low, high = sample_quantiles(values, torch.tensor([0.5 - level / 2, 0.5 + level / 2]))
        return low, high

    def log_prob(self, y: Tensor) -> Tensor:
        """Log predictive density of each observation, ``log mean_s p(y | f_s)``: ``[B]``.

        Args:
            y: Observations ``[B, ...]``, of the shape seen in training.

        Raises:
            ArgumentError: If the shape differs, or observations are NaN or labels that do not exist.
            ArgumentTypeError: If ``y`` is not a tensor, or of another kind of numbers than is predicted.
        """
        if not isinstance(y, Tensor):
            raise ArgumentTypeError(f"y: is {kind_of(y)}; pass a tensor, torch.as_tensor(y).")
        if y.is_complex() or (y.is_floating_point() if self.is_classification else y.dtype == torch.bool):
            wanted = "integer labels" if self.is_classification else "real numbers"
            raise ArgumentTypeError(f"y: has dtype {y.dtype}; pass {wanted}.")
        expected = self.conditional.batch_shape[1:] + self.conditional.event_shape
        if y.shape != expected:
            raise ArgumentError(f"y: has shape {tuple(y.shape)}; pass {tuple(expected)}, that of the prediction.")
        if bool(torch.isnan(y).any()):
            raise ArgumentError(f"y: {int(torch.isnan(y).sum())} of {y.numel()} entries are NaN; drop those rows.")
        log_prob = self.conditional.log_prob(y)
        return torch.logsumexp(log_prob, 0) - math.log(log_prob.shape[0])


def _entropy(probs: Tensor) -> Tensor:
    return torch.special.entr(probs).sum(-1)
