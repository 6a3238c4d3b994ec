"""Two classes by one logit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.infer.util import is_validation_enabled
from torch import Size, Tensor, nn

from bayeshnet.errors import ArgumentTypeError
from bayeshnet.models.likelihoods._targets import refuse_outside
from bayeshnet.models.likelihoods.base import Likelihood

__all__ = ["Bernoulli"]

_LOGIT = 2.0


class LogitBernoulli(dist.Bernoulli):  # pyright: ignore[reportUntypedBaseClass] - Pyro makes it at run time
    """A Bernoulli distribution that takes values of any dtype, and is exact for large logits.

    Example:
        >>> LogitBernoulli(logits=torch.tensor(0.0)).log_prob(torch.tensor(True)).exp()
        tensor(0.5000)
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-probability."""
        logits: Any = self.logits
        if self._validate_args:
            self._validate_sample(value)
        return nn.functional.logsigmoid(torch.where(value.bool(), logits, -logits))

    @property
    def variance(self) -> Tensor:
        """``p (1 - p)``."""
        logits: Any = self.logits
        return torch.sigmoid(logits) * torch.sigmoid(-logits)

    def entropy(self) -> Tensor:
        """Entropy in nats."""
        logits: Any = self.logits
        return nn.functional.softplus(logits) - logits * torch.sigmoid(logits)

    def cdf(self, value: Tensor) -> Tensor:
        """Probability of at most this value."""
        logits: Any = self.logits
        zero, one = torch.sigmoid(-logits), torch.ones_like(logits)
        return torch.where(value < 0, one - one, torch.where(value < 1, zero, one))


class Bernoulli(Likelihood):
    r"""Labels 0 and 1 by one logit, :math:`P(y = 1) = 1 / (1 + e^{-f})`; several outputs are independent labels.

    Targets may be integers, booleans or floating-point 0 and 1.

    Example:
        >>> Bernoulli().conditional(torch.zeros(7), {}, batch_dims=1).mean[0]
        tensor(0.5000)
    """

    integer_targets = True

    def conditional(self, f: Tensor, params: Mapping[str, Tensor], *, batch_dims: int) -> TorchDistributionMixin:
        """See :meth:`Likelihood.conditional`."""
        return LogitBernoulli(logits=f).to_event(f.dim() - batch_dims)

    def check_target(self, y: Tensor, event_shape: Size) -> None:
        """See :meth:`Likelihood.check_target`."""
        if y.is_complex():
            raise ArgumentTypeError(f"y: has dtype {y.dtype}; a Bernoulli likelihood needs labels 0 and 1.")
        if is_validation_enabled() and y.dtype != torch.bool:
            refuse_outside(y, (y != 0) & (y != 1), "the labels 0 and 1")

    def pseudo_targets(self, y: Tensor, num_outputs: int) -> Tensor | None:
        """See :meth:`Likelihood.pseudo_targets`: logits of 2 and -2."""
        return _LOGIT * (2.0 * y.double().reshape(len(y), -1) - 1.0)

    def noise_level(self, y: Tensor) -> float:
        """See :meth:`Likelihood.noise_level`: a label is worth a quarter of a logit's observation."""
        return 2.0
