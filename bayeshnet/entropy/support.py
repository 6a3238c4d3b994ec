"""Whether a sampler reaches every weight vector."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bayeshnet.entropy.preimages import find_preimages
from bayeshnet.entropy.sampler import NoisySampler

__all__ = ["has_full_support", "measure_holes"]


@torch.no_grad()
def has_full_support(sampler: NoisySampler) -> bool:
    r"""Return whether every value is known to have a positive density.

    Independent noise reaches every value, whatever the generator. Shared noise does if
    :math:`u \mapsto h(u)_{1:n} + \sigma_{1:n} u` takes every value in R^n, which a bounded continuous h guarantees; so
    does one that is bounded but for a linear part A, as that of ``linear_skip``, if
    :math:`A_{1:n} + \mathrm{diag}(\sigma_{1:n})` is invertible. It is read off an :class:`~bayeshnet.hnets.HMLP` whose
    last hidden layer has a bounded activation, or which is linear.

    Returns:
        True if it is known; False does not mean that there are holes.

    Example:
        >>> from torch import nn
        >>> from bayeshnet.hnets import HMLP, HPerturbWrapper
        >>> for activation in (nn.Tanh(), nn.ReLU()):
        ...     hnet = HMLP([[3]], uncond_in_size=2, cond_in_size=0, activation_fn=activation)
        ...     print(has_full_support(NoisySampler(HPerturbWrapper(hnet))))
        True
        False
    """
    n = sampler.latent_dim
    if not sampler.shared or n == 0:
        return True
    find_slope = getattr(sampler.generator, "far_slope", None)
    slope: Tensor | None = None if find_slope is None else find_slope()
    if slope is None:
        return False
    square = slope[:n, :n].double() + torch.diag_embed(sampler.sigma[:n].double())
    values = torch.linalg.svdvals(square)
    return bool(values[-1] > torch.finfo(sampler.sigma.dtype).eps * values[0])


@torch.no_grad()
def measure_holes(sampler: NoisySampler, draws: Tensor) -> tuple[float, float]:
    """Estimate the share of values around the draws of a sampler with shared noise that no noise leads to.

    The values are the draws plus independent Gaussian noise with the draws' own standard deviations.

    Args:
        sampler: The sampler.
        draws: Weights that it made ``[S, D]``, two or more.

    Returns:
        The share and its standard error.

    Example:
        >>> from torch import nn
        >>> from bayeshnet.hnets import HMLP, HPerturbWrapper
        >>> hnet = HMLP([[3]], uncond_in_size=1, cond_in_size=0, activation_fn=nn.Tanh())
        >>> sampler = NoisySampler(HPerturbWrapper(hnet, sigma_noise=1.0))
        >>> measure_holes(sampler, sampler.draw(8).weights)
        (0.0, 0.0)
    """
    values = draws + draws.std(0) * torch.randn_like(draws)
    found = find_preimages(sampler, values, log_abs_det=lambda _, u: u.new_zeros(len(u)), warn=False)
    share = float((found.count == 0).double().mean())
    return share, math.sqrt(share * (1.0 - share) / len(values))
