"""Giving the body of a guide another location and spread, in place."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bayeshnet.errors import UsageError
from bayeshnet.families._default_hnet import unbend
from bayeshnet.families.base import INIT_SCALE, Body, HypernetBody, LowRankBody, MeanFieldBody, MixtureBody
from bayeshnet.families.unit_body import UnitBody, UnitHypernetBody
from bayeshnet.hnets.mlp_hnet import HMLP

__all__ = ["move_body"]

_NUM_NOISE = 4096
# At most this share of a latent's variance comes from the hypernetwork, the rest from the noise on each weight.
_SHARE = 0.5


@torch.no_grad()
def move_body(body: Body, mean: Tensor, std: Tensor) -> None:
    """Give a body these means and standard deviations, latent by latent, in place.

    Args:
        body: The body.
        mean: Means ``[n]`` in its own coordinates; NaN for latents that are to stay where they are.
        std: Standard deviations ``[n]``; NaN for those that are to stay.

    Raises:
        RuntimeError: If there is no way to do so for this body.

    Example:
        >>> body = MeanFieldBody(torch.zeros(2), 0.1)
        >>> move_body(body, torch.tensor([1.0, 2.0]), torch.tensor([0.5, math.nan]))
        >>> body.loc.detach(), body.log_scale.exp().detach()
        (tensor([1., 2.]), tensor([0.5000, 0.1000]))
    """
    if isinstance(body, UnitBody | UnitHypernetBody):
        # Of independent latents mean and spread are known; what correlates and bends them starts anew.
        if isinstance(body, UnitHypernetBody):
            unbend(body.hnet)
        noise = body.noise
        for factor in noise.factors:
            factor.zero_()
        for k in range(len(noise.loc)):
            _assign(noise.loc[k], mean[noise.place])
            _assign(noise.log_scale[k], std.log()[noise.place])
    elif isinstance(body, HypernetBody):
        _move_hypernet(body, mean, std)
    elif isinstance(body, MeanFieldBody):
        _assign(body.loc, mean)
        _assign(body.log_scale, std.log())
    elif isinstance(body, LowRankBody):
        _assign(body.loc, mean)
        own = body.distribution().variance.sqrt()
        _assign(body.log_scale, body.log_scale + (std / own).log())
    elif isinstance(body, MixtureBody):
        # Half of the variance lies between the components: all in one place they would stay alike.
        apart = torch.where(std.isnan(), INIT_SCALE, std * math.sqrt(0.5))
        for part in body.parts():
            move_body(part, mean + apart * torch.randn_like(mean), std * math.sqrt(0.5))
    else:
        raise UsageError(
            f"guide: no starting point is known for its body, a {type(body).__name__}; use body='hypernet', "
            "'units', 'mean_field', 'low_rank' or 'mixture'."
        )


def _assign(param: Tensor, value: Tensor) -> None:
    param.copy_(torch.where(value.isnan(), param, value))


def _move_hypernet(body: HypernetBody, mean: Tensor, std: Tensor) -> None:
    sampler, wrapper = body.sampler, body.hnet
    generator: Any = sampler.generator
    if not isinstance(generator, HMLP) or not generator.has_linear_head:
        raise UsageError(
            f"guide: the outputs of its hypernetwork, a {type(generator).__name__}, have no bias each, so that it "
            "cannot be moved. Use an HMLP, the default, or pass init_loc_fn to the guide."
        )
    # In table order: the output layer's weight, its bias, the weight of the skip connection.
    params, direct = list(generator.internal_params or ()), generator.direct_params()
    places = [i for i, param in enumerate(params) if direct and param is direct[0]]
    weight, bias = generator.head()
    if bias is None or not places or direct[0] is not bias or params[places[0] - 1].shape[0] != len(bias):
        raise UsageError(
            "guide: the output layer of its hypernetwork has no bias of its own (use_bias=False or external weights), "
            "so that it cannot be moved."
        )
    rows = [params[places[0] - 1], *direct[1:]]
    noise = torch.randn(_NUM_NOISE, sampler.latent_dim, dtype=bias.dtype, device=bias.device)
    features = sampler.features(noise)
    centre = features.mean(0)
    centred = features - centre
    of_rows = ((weight @ (centred.t() @ centred / _NUM_NOISE)) * weight).sum(1)  # variance by the hypernetwork
    shrink = torch.ones_like(bias)
    if not bool(std.isnan().all()):
        share = _SHARE * std.square()
        too_wide = of_rows > share
        shrink = torch.where(too_wide, (share / of_rows.clamp_min(torch.finfo(bias.dtype).tiny)).sqrt(), shrink)
        covariance = torch.zeros_like(bias)
        if sampler.shared:  # the first weights meet the same noise twice
            n = sampler.latent_dim
            covariance[:n] = (weight[:n] * (noise.t() @ centred / _NUM_NOISE)).sum(1) * shrink[:n]
        rest = std.square() - of_rows * shrink.square()
        _set_sigma(wrapper, (covariance.square() + rest).sqrt() - covariance)
    old_mean = bias + weight @ centre
    for param in rows:
        param.mul_(shrink.unsqueeze(1))
    shift = shrink * (weight @ centre)
    bias.copy_(torch.where(mean.isnan(), old_mean, mean) - shift)


def _set_sigma(wrapper: Any, sigma: Tensor) -> None:
    log_sigma = wrapper.log_sigma_noise
    if log_sigma is None:
        raise UsageError(
            "guide: the noise scale of its hypernetwork is fixed, so that it cannot take the spread of draws. Build "
            "the wrapper with learn_sigma='per_weight', or start from a point."
        )
    if log_sigma.dim() == 0:  # one for all: the root of the mean square
        known = sigma[~sigma.isnan()]
        log_sigma.fill_(0.5 * math.log(float(known.square().mean())))
    else:
        _assign(log_sigma, sigma.log())
