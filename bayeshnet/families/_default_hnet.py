"""The hypernetwork that a guide gets when the user names none."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias, cast

import torch
from torch import Tensor, nn

from bayeshnet.hnets.hnet_interface import HyperNetInterface
from bayeshnet.hnets.hnet_perturbation_wrapper import HPerturbWrapper
from bayeshnet.hnets.mlp_hnet import HMLP
from bayeshnet.typing import Shapes

__all__ = ["HnetOrBuilder", "default_hnet", "output_params", "unbend"]


HnetOrBuilder: TypeAlias = "HyperNetInterface | Callable[[list[list[int]]], HyperNetInterface]"
"""A hypernetwork, or a function from target shapes to one."""


def output_params(wrapper: HPerturbWrapper) -> list[nn.Parameter]:
    """W, mu and A of a :func:`default_hnet`."""
    return list(cast("HMLP", wrapper.internal_hnet).internal_params or [])[-3:]


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
    """
    hnet = HMLP(
        [list(shape) for shape in target_shapes],
        uncond_in_size=noise_dim,
        cond_in_size=0,
        layers=tuple(hidden_layers),
        activation_fn=nn.Tanh(),
        verbose=False,
        linear_skip=True,
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
    # The n first outputs meet the noise twice. Without a linear part there the map from noise to weights starts
    # injective, and the log-determinant in the ELBO keeps it from folding on the way.
    skip_weight[:noise_dim] = 0.0
    return wrapper.to(dtype=start.dtype, device=start.device)
