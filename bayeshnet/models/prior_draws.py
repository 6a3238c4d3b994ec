"""Draws of a model's latents from its prior."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

if TYPE_CHECKING:
    from bayeshnet.models.bayesian_model import BayesianModel

__all__ = ["prior_draws"]


@torch.no_grad()
def prior_draws(model: BayesianModel, num: int) -> dict[str, Tensor]:
    """Draw all latents of a Bayesian network from their prior, together.

    Args:
        model: The network.
        num: Number S of draws.

    Returns:
        ``[S, *event]`` per site of ``latent_shapes``.

    Example:
        >>> from bayeshnet import BayesianModel, likelihoods, priors
        >>> prior = priors.Hierarchical(by="network")
        >>> model = BayesianModel(torch.nn.Linear(2, 1), prior, likelihoods.Normal(scale=0.1))
        >>> {name: tuple(value.shape) for name, value in prior_draws(model, 5).items()}
        {'prior.scale': (5,), 'weight': (5, 1, 2), 'bias': (5, 1)}
    """

    def program() -> None:
        with pyro.plate("prior draws", num, dim=-2):
            model.sample_latents()

    with poutine.block():
        nodes: Any = poutine.trace(program).get_trace().nodes
    draws: dict[str, Tensor] = {}
    for name, shape in model.latent_shapes.items():
        value = nodes[name]["value"]
        draws[name] = value.reshape((num, *shape))
    return draws
