"""The distributions that a guide may draw weights from, as modules that hold what is learned of them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from bayeshnet.entropy.change_of_variables import ChangeOfVariables
from bayeshnet.entropy.linearised import Linearised
from bayeshnet.entropy.path_gradient import PathGradient
from bayeshnet.entropy.protocol import Diagnosis, LogDensity
from bayeshnet.entropy.sampler import NoisySampler
from bayeshnet.errors import ArgumentTypeError
from bayeshnet.families.implicit_weights import ImplicitWeights
from bayeshnet.families.low_rank import MultiplicativeLowRank
from bayeshnet.families.mixture import MixtureWeights
from bayeshnet.hnets.hnet_perturbation_wrapper import HPerturbWrapper

__all__ = [
    "FEW_LATENTS",
    "INIT_SCALE",
    "Body",
    "HypernetBody",
    "LowRankBody",
    "MeanFieldBody",
    "MixtureBody",
    "SlowParams",
]


INIT_SCALE = 0.1
"""Start of the spread of most bodies, in units of the prior's, where nothing else is known."""
FEW_LATENTS = 64
"""Up to so many latents can be learned with all that a hypernetwork may do to them."""

_CLIP_NORM = 10.0


class SlowParams(NamedTuple):
    """Parameters that act on many latents at once and want smaller steps than those of one.

    Attributes:
        params: They.
        rate: Factor of the learning rate.
        decay: Strength of decoupled weight decay, as ``weight_decay`` of AdamW.
    """

    params: list[nn.Parameter]
    rate: float
    decay: float = 0.0


class Body(nn.Module, ABC):
    """A learned distribution over n whitened latents (prior N(0, I))."""

    @abstractmethod
    def distribution(self, loc: Tensor | None = None, scale: Tensor | None = None) -> TorchDistribution:
        """The distribution of ``loc + scale * u``, event shape ``[n]``; of u itself by default."""

    @abstractmethod
    def describe(self) -> str:
        """What it is, for the guide's repr."""

    @property
    def scores_draws(self) -> bool:
        """Whether it gives a density of each draw, and not of draws on average only."""
        return True

    @property
    def clip_norm(self) -> float | None:
        """Bound on the norm of the gradient that it wants, if any."""
        return None

    @property
    def searches(self) -> bool:
        """Whether the density of a draw takes a search, so that many candidates for one would cost too much."""
        return False

    def slow_params(self) -> list[SlowParams]:
        """Parameters that act on many latents at once."""
        return []

    def diagnose(self, *, num_samples: int = 256, thorough: bool = True) -> Diagnosis:
        """Check how far the density can be trusted; without findings where it is exact by construction."""
        return Diagnosis({})


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

    path_gradients = True
    """Whether gradients of few latents may go through the draws alone; of many the scores do not agree."""

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
        wanted = isinstance(self.estimator, ChangeOfVariables) and self.estimator.path_gradients
        if wanted and self.path_gradients and self.sampler.event_dim <= FEW_LATENTS:
            self.sampler.path_gradient = PathGradient()

    @property
    def scores_draws(self) -> bool:
        """See :meth:`Body.scores_draws`."""
        return self.estimator.per_draw

    @property
    def clip_norm(self) -> float | None:
        """See :meth:`Body.clip_norm`: near a fold the gradient of the log-determinant is without bound.

        The more weights meet their noise twice, the likelier is a fold. Where only some of very many do, none was seen.
        """
        whole = self.sampler.latent_dim == self.sampler.event_dim
        return _CLIP_NORM if whole and isinstance(self.estimator, ChangeOfVariables) else None

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

    def slow_params(self) -> list[SlowParams]:
        """See :meth:`Body.slow_params`."""
        generator = self.sampler.generator
        direct: Any = getattr(generator, "direct_params", None)
        one_weight = {id(param) for param in (direct() if direct is not None else ())}
        return [SlowParams([param for param in generator.internal_params or () if id(param) not in one_weight], 0.3)]

    def diagnose(self, *, num_samples: int = 256, thorough: bool = True) -> Diagnosis:
        """Folding, or the gap to importance sampling."""
        return self.distribution().diagnose(num_samples=num_samples, thorough=thorough)


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


class MixtureBody(Body):
    """A mixture with equal weights, whose draws are shared out evenly among the components.

    Args:
        components: Bodies over the same latents, K > 0.

    Raises:
        ValueError: If a component has no density at the draws of the others.

    Example:
        >>> body = MixtureBody([MeanFieldBody(torch.randn(3), 0.1) for _ in range(4)])
        >>> body.distribution().rsample((8,)).shape
        torch.Size([8, 3])
    """

    def __init__(self, components: Sequence[Body]) -> None:
        super().__init__()
        self.components = nn.ModuleList(components)
        for part in components:
            if len(components) > 1 and isinstance(part, HypernetBody):
                part.sampler.path_gradient = None  # log q of a component enters by its responsibility, which differs
        MixtureWeights([part.distribution() for part in components])  # checks them once

    def parts(self) -> list[Body]:
        """The components."""
        return cast("list[Body]", list(self.components))

    def distribution(self, loc: Tensor | None = None, scale: Tensor | None = None) -> MixtureWeights:
        """See :meth:`Body.distribution`."""
        parts = [part.distribution(loc, scale) for part in self.parts()]
        return MixtureWeights(parts, stratified=True, validate_args=False)

    def describe(self) -> str:
        """See :meth:`Body.describe`."""
        return f"body='mixture', num_components={len(self.components)}, each: {self.parts()[0].describe()}"

    @property
    def searches(self) -> bool:
        """See :meth:`Body.searches`; for the noise that would lead a hypernetwork to the draws of the others."""
        return len(self.components) > 1 and any(isinstance(part, HypernetBody) for part in self.components)

    @property
    def clip_norm(self) -> float | None:
        """See :meth:`Body.clip_norm`."""
        return min((part.clip_norm for part in self.parts() if part.clip_norm is not None), default=None)

    def slow_params(self) -> list[SlowParams]:
        """See :meth:`Body.slow_params`."""
        return [group for part in self.parts() for group in part.slow_params()]

    def diagnose(self, *, num_samples: int = 256, thorough: bool = True) -> Diagnosis:
        """The component in the worst state: the largest of each number, and each advice once."""
        found = [part.diagnose(num_samples=num_samples, thorough=thorough) for part in self.parts()]
        values = {name: max(each.values[name] for each in found) for name in found[0].values}
        advice = {sentence: f"Component {k}: {sentence}" for k, each in enumerate(found) for sentence in each.advice}
        return Diagnosis(values, list(advice.values()), found[0].category)


def _placed(mean: Tensor, loc: Tensor | None, scale: Tensor | None) -> Tensor:
    mean = mean if scale is None else scale * mean
    return mean if loc is None else loc + mean
