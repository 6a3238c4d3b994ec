"""Predictions: the distribution of a network's output and of new observations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from bayeshnet.errors import ArgumentError, ArgumentTypeError, UsageError
from bayeshnet.sites.quantiles import checked_level, sample_quantiles

__all__ = ["Prediction"]


@dataclass(frozen=True)
class Prediction:
    """What S sampled networks say about B inputs.

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
    """

    draws: Tensor
    samples: Tensor
    conditional: TorchDistributionMixin

    @property
    def is_classification(self) -> bool:
        """Whether the observations are labels."""
        return bool(self.conditional.support.is_discrete)

    @property
    def probs(self) -> Tensor:
        """Probability of each class ``[B, ..., C]``, averaged over the sampled networks.

        Raises:
            RuntimeError: For a regression.
        """
        if not self.is_classification:
            raise UsageError("probs: a regression has no class probabilities; use mean, std or interval().")
        return self.draws.softmax(-1).mean(0)

    @property
    def mean(self) -> Tensor:
        """Predictive mean ``[B, ...]``; for a classification the class probabilities ``[B, ..., C]``."""
        return self.probs if self.is_classification else self.draws.mean(0)

    @property
    def std(self) -> Tensor:
        """Predictive standard deviation ``[B, ...]``: ``std^2 = epistemic^2 + aleatoric^2``.

        Raises:
            RuntimeError: For a classification.
        """
        if self.is_classification:
            raise UsageError("std: labels have none; use entropy, epistemic and aleatoric, in nats.")
        return (self.epistemic.square() + self.aleatoric.square()).sqrt()

    @property
    def entropy(self) -> Tensor:
        """Entropy of the averaged class probabilities, in nats: ``entropy = epistemic + aleatoric``."""
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
            ValueError: If an argument is out of range.
            TypeError: If ``level`` is no number.
            RuntimeError: For a classification.
        """
        level = checked_level("level", level)
        if kind not in ("observation", "function"):
            raise ArgumentError(f"kind: is {kind!r}; pass 'observation' or 'function'.")
        if self.is_classification:
            raise UsageError("interval: labels have no intervals; use probs.")
        values = self.samples if kind == "observation" else self.draws
        low, high = sample_quantiles(values, torch.tensor([0.5 - level / 2, 0.5 + level / 2]))
        return low, high

    def log_prob(self, y: Tensor) -> Tensor:
        """Log predictive density of each observation, ``log mean_s p(y | f_s)``: ``[B]``.

        Args:
            y: Observations ``[B, ...]``, of the shape seen in training.

        Raises:
            ValueError: If the shape differs, or observations are NaN or labels that do not exist.
            TypeError: If ``y`` is no tensor, or holds no numbers of the kind that is predicted.
        """
        if not isinstance(y, Tensor):
            raise ArgumentTypeError(f"y: is a {type(y).__name__}; pass a tensor, torch.as_tensor(y).")
        if y.is_complex() or (y.is_floating_point() if self.is_classification else y.dtype == torch.bool):
            wanted = "integer labels" if self.is_classification else "real numbers"
            raise ArgumentTypeError(f"y: has dtype {y.dtype}; pass {wanted}.")
        expected = self.conditional.batch_shape[1:] + self.conditional.event_shape
        if y.shape != expected:
            raise ArgumentError(f"y: has shape {tuple(y.shape)}, the prediction is for {tuple(expected)}.")
        if bool(torch.isnan(y).any()):
            raise ArgumentError(f"y: {int(torch.isnan(y).sum())} of {y.numel()} entries are NaN; leave those rows out.")
        log_prob = self.conditional.log_prob(y)
        return torch.logsumexp(log_prob, 0) - math.log(log_prob.shape[0])


def _entropy(probs: Tensor) -> Tensor:
    return torch.special.entr(probs).sum(-1)
