"""The hypernetwork that a guide gets when the user names none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from bayeshnet.entropy.sampler import NoisySampler
from bayeshnet.errors import UsageError
from bayeshnet.families.base import assign
from bayeshnet.hnets.hnet_perturbation_wrapper import HPerturbWrapper
from bayeshnet.hnets.mlp_hnet import HMLP
from bayeshnet.typing import Shapes

__all__ = ["default_hnet", "move_hnet", "num_parameters", "output_params", "unbend"]


_NUM_NOISE = 4096
# At most this share of a latent's variance comes from the hypernetwork, the rest from the noise on each weight.
_SHARE = 0.5


def output_params(wrapper: HPerturbWrapper) -> list[nn.Parameter]:
    """W, mu and A of a :func:`default_hnet`."""
    return list(cast("HMLP", wrapper.internal_hnet).internal_params or [])[-3:]


def num_parameters(num_outputs: int, noise_dim: int, hidden_layers: Sequence[int]) -> int:
    """Return the number of parameters of a :func:`default_hnet`, without its noise scales: one for each output more.

    Args:
        num_outputs: Number of numbers that it generates.
        noise_dim: Number n of inputs.
        hidden_layers: Widths of the MLP.
    """
    widths = [noise_dim, *hidden_layers]
    hidden = sum((before + 1) * after for before, after in pairwise(widths))
    return hidden + num_outputs * (widths[-1] + 1 + noise_dim)


@torch.no_grad()
def unbend(wrapper: HPerturbWrapper) -> None:
    """Leave nothing but the noise of a :func:`default_hnet`, in place."""
    for param in output_params(wrapper):
        param.zero_()


@torch.no_grad()
def default_hnet(
    target_shapes: Shapes,
    *,
    noise_dim: int,
    hidden_layers: Sequence[int] = (64, 64),
    noise: Literal["shared", "independent"] = "shared",
    start: Tensor,
    start_scale: float | None = 0.1,
    equalised: bool = True,
) -> HPerturbWrapper:
    r"""A perturbed MLP that starts as a narrow Gaussian and bends from there.

    .. math:: h(z) = \mu + A z + W \varphi(z), \quad A_{ij} \sim N(0, 0.1^2 / n) \text{ for } i > n, \quad W = 0

    with tanh layers :math:`\varphi` and one learned noise scale per weight.

    Args:
        target_shapes: Shapes of what is generated, D numbers in all.
        noise_dim: Number n of inputs.
        hidden_layers: Widths of the MLP.
        noise: Kind of the perturbation.
        start: The mean's start ``[D]``; its dtype and device are those of the result.
        start_scale: Start of the noise scales. None: standard normal noise that stays so, and A = 0 at the start; for
            whoever scales and shifts what is drawn.
        equalised: Give the weight matrices gains, with which many latents are stable under any optimiser.
    """
    widths = (noise_dim, *hidden_layers)
    gains = [*(width**-0.5 for width in widths), 1 / noise_dim] if equalised and start_scale is not None else None
    hnet = HMLP(
        [list(shape) for shape in target_shapes],
        uncond_in_size=noise_dim,
        cond_in_size=0,
        layers=tuple(hidden_layers),
        activation_fn=nn.Tanh(),
        verbose=False,
        linear_skip=True,
        gains=gains,
    )
    if start_scale is None:
        wrapper = HPerturbWrapper(hnet, sigma_noise=1.0, noise=noise, verbose=False)
        unbend(wrapper)
        return wrapper.to(dtype=start.dtype, device=start.device)
    wrapper = HPerturbWrapper(hnet, sigma_noise=start_scale, noise=noise, learn_sigma="per_weight", verbose=False)
    head_weight, head_bias, skip_weight = output_params(wrapper)
    head_weight.zero_()
    head_bias.copy_(start)
    skip_weight.normal_(0.0, 0.1 / math.sqrt(noise_dim))
    if gains is not None:
        skip_weight.div_(gains[-1])
    # The n first outputs meet the noise twice. Without a linear part there the map from noise to weights starts
    # injective, and the log-determinant in the ELBO keeps it from folding on the way.
    skip_weight[:noise_dim] = 0.0
    return wrapper.to(dtype=start.dtype, device=start.device)


@torch.no_grad()
def move_hnet(wrapper: HPerturbWrapper, sampler: NoisySampler, mean: Tensor, std: Tensor) -> None:
    """Give what a hypernetwork draws these means and standard deviations, weight by weight, in place.

    Args:
        wrapper: The hypernetwork with its perturbation.
        sampler: The sampler of it.
        mean: Means ``[n]``; NaN for weights that stay where they are.
        std: Standard deviations ``[n]``; NaN for those that stay.

    Raises:
        UsageError: If it has no bias for each weight, or no learned noise scale where a spread is asked for.
    """
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
        assign(log_sigma, sigma.log())
