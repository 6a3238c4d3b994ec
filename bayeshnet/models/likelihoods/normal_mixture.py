"""Mixture density networks."""

from __future__ import annotations

from collections.abc import Mapping

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor

from bayeshnet.checks import require_count, require_positive
from bayeshnet.models.likelihoods._targets import RealTargets
from bayeshnet.models.likelihoods.normal import positive_of

__all__ = ["NormalMixture"]


class NormalMixture(RealTargets):
    r"""A mixture of normals that the network gives (mixture density network; Bishop 1994).

    .. math:: p(y) = \sum_c \mathrm{softmax}(a)_c N(y; m_c, s(r_c)^2)

    The network gives C locations m, C raw scales r and C logits a for each target: outputs ``[B, 3 C K]`` in 3 C blocks
    of K. s is that of :class:`HeteroscedasticNormal`. For multi-valued data, such as inverse problems.

    Args:
        num_components: Number C of components.
        scale: The standard deviation where a raw scale is 0.

    Raises:
        ArgumentError: If a number is not positive; when used, if the number of outputs is no multiple of 3 C.
        ArgumentTypeError: If it is none.

    Example:
        >>> NormalMixture(2).conditional(torch.zeros(7, 6), {}, batch_dims=1).mean.shape
        torch.Size([7])
    """

    def __init__(self, num_components: int, *, scale: float = 1.0) -> None:
        super().__init__()
        require_count("num_components", num_components)
        require_positive("scale", scale)
        self.num_components, self.scale = num_components, float(scale)
        self.outputs_per_target = 3 * num_components

    def extra_repr(self) -> str:
        """The number of components and their scale, for ``repr``."""
        return f"{self.num_components}, scale={self.scale:g}"

    def conditional(self, f: Tensor, params: Mapping[str, Tensor], *, batch_dims: int) -> TorchDistributionMixin:
        """See :meth:`Likelihood.conditional`."""
        loc, raw, logits = f.unflatten(-1, (3, self.num_components)).unbind(-2)
        components = dist.Normal(loc, self.scale * positive_of(raw))
        made = dist.MixtureSameFamily(torch.distributions.Categorical(logits=logits), components)
        return made.to_event(f.dim() - 1 - batch_dims)
