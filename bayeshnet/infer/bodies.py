"""The distributions that a guide may draw weights from, as modules that hold what is learned of them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, cast

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from bayeshnet.distributions.implicit_weights import ImplicitWeights
from bayeshnet.distributions.low_rank import MultiplicativeLowRank
from bayeshnet.entropy.change_of_variables import ChangeOfVariables
from bayeshnet.entropy.linearised import Linearised
from bayeshnet.entropy.protocol import LogDensity
from bayeshnet.entropy.sampler import NoisySampler
from bayeshnet.errors import ArgumentTypeError
from bayeshnet.hnets.hnet_perturbation_wrapper import HPerturbWrapper

__all__ = ["Body", "HypernetBody", "LowRankBody", "MeanFieldBody"]


class Body(nn.Module, ABC):
    """A learned distribution over n whitened latents (prior N(0, I))."""

    @abstractmethod
    def distribution(self, loc: Tensor | None = None, scale: Tensor | None = None) -> TorchDistribution:
        """The distribution of ``loc + scale * u``, event shape ``[n]``; of u itself by default."""

    @abstractmethod
    def describe(self) -> str:
        """What it is, for the guide's repr."""

    def slow_params(self) -> list[nn.Parameter]:
        """The parameters that act on all latents at once and want smaller steps than parameters of one latent."""
        return []


class HypernetBody(Body):
    """A hypernetwork fed with noise.

    Args:
        hnet: It, in a perturbation wrapper.
        estimator: Of log q; by default the one that fits the noise.

    Raises:
        TypeError: If ``estimator`` is none.
        ValueError: If it does not fit the noise.
        RuntimeError: If the hypernetwork's draws have no density.
    """

    def __init__(self, hnet: HPerturbWrapper, estimator: LogDensity | None = None) -> None:
        super().__init__()
        self.hnet = hnet
        self.sampler = NoisySampler(hnet)
        self.estimator = estimator or (ChangeOfVariables() if self.sampler.shared else Linearised())
        if not isinstance(self.estimator, LogDensity):
            raise ArgumentTypeError(
                f"estimator: is a {type(estimator).__name__}; pass an estimator of bayeshnet.entropy, such as "
                "ChangeOfVariables()."
            )
        self.estimator.check(self.sampler)

    def distribution(self, loc: Tensor | None = None, scale: Tensor | None = None) -> ImplicitWeights:
        """See :meth:`Body.distribution`."""
        # Not validated: it is built at every step, of parts that were checked once.
        return ImplicitWeights(
            self.sampler,
            estimator=self.estimator,
            loc=0.0 if loc is None else loc,
            scale=1.0 if scale is None else scale,
            validate_args=False,
        )

    def describe(self) -> str:
        """See :meth:`Body.describe`."""
        noise = "shared" if self.sampler.shared else "independent"
        return (
            f"hnet={type(self.sampler.generator).__name__}, noise_dim={self.sampler.latent_dim}, noise={noise!r}, "
            f"estimator={self.estimator!r}"
        )

    def slow_params(self) -> list[nn.Parameter]:
        """See :meth:`Body.slow_params`."""
        generator = self.sampler.generator
        direct: Any = getattr(generator, "direct_params", None)
        one_weight = {id(param) for param in (direct() if direct is not None else ())}
        return [param for param in generator.internal_params or () if id(param) not in one_weight]


class MeanFieldBody(Body):
    """Independent Gaussians.

    Args:
        start: Start of the means ``[n]``.
        start_scale: Start of the standard deviations.
    """

    def __init__(self, start: Tensor, start_scale: float) -> None:
        super().__init__()
        self.loc = nn.Parameter(start.detach().clone())
        self.log_scale = nn.Parameter(torch.full_like(start, math.log(start_scale)))

    def distribution(self, loc: Tensor | None = None, scale: Tensor | None = None) -> TorchDistribution:
        """See :meth:`Body.distribution`."""
        mean, std = _placed(self.loc, loc, scale), self.log_scale.exp()
        normal = dist.Normal(mean, std if scale is None else scale * std, validate_args=False)
        return cast("TorchDistribution", normal.to_event(1))

    def describe(self) -> str:
        """See :meth:`Body.describe`."""
        return "body='mean_field'"


class LowRankBody(Body):
    """A Gaussian with multiplicative noise of low rank, which starts as the mean-field one.

    Args:
        start: Start of the means ``[n]``.
        start_scale: Start of the standard deviations.
        rank: Number of columns of the two factors.
    """

    def __init__(self, start: Tensor, start_scale: float, rank: int = 20) -> None:
        super().__init__()
        rank = min(rank, start.shape[0])
        self.loc = nn.Parameter(start.detach().clone())
        self.log_scale = nn.Parameter(torch.full_like(start, math.log(start_scale)))
        self.left = nn.Parameter(start.new_zeros(start.shape[0], rank))
        self.right = nn.Parameter(torch.randn_like(self.left.detach()) / math.sqrt(start.shape[0]))

    def distribution(self, loc: Tensor | None = None, scale: Tensor | None = None) -> MultiplicativeLowRank:
        """See :meth:`Body.distribution`."""
        log_scale = self.log_scale if scale is None else self.log_scale + scale.log()
        mean = _placed(self.loc, loc, scale)
        return MultiplicativeLowRank(mean, log_scale, self.left, self.right, validate_args=False)

    def describe(self) -> str:
        """See :meth:`Body.describe`."""
        return f"body='low_rank', rank={self.left.shape[1]}"


def _placed(mean: Tensor, loc: Tensor | None, scale: Tensor | None) -> Tensor:
    mean = mean if scale is None else scale * mean
    return mean if loc is None else loc + mean
