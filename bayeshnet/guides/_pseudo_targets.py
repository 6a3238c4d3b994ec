"""Pseudo-targets of conditional layers that agree with given weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pyro.poutine.messenger import unwrap
from torch import Tensor, nn

from bayeshnet.errors import ArgumentError, UsageError
from bayeshnet.guides.base import Guide
from bayeshnet.inducing.build import ConditionalPlan
from bayeshnet.mnets.chain import LinearStep
from bayeshnet.models.bayesian_model import BayesianModel
from bayeshnet.models.capabilities import has_network
from bayeshnet.models.output import with_output
from bayeshnet.sites.modes import evaluating
from bayeshnet.sites.one_thread import one_thread

__all__ = ["move_pseudo_targets"]


@torch.no_grad()
def move_pseudo_targets(guide: Guide, plan: ConditionalPlan, mean: Tensor, draws: Mapping[str, Tensor] | None) -> bool:
    """Set the pseudo-targets to the mean outputs of the layers at the pseudo-inputs, in place.

    Args:
        guide: The guide.
        plan: Its conditional layers and their inducing points.
        mean: The weights ``[D]`` to use if there are no draws.
        draws: Draws ``[S, n]`` of the weights by site name.

    Returns:
        Whether the pseudo-inputs have to stay where they are: targets of hidden layers belong to them.

    Raises:
        UsageError: If the guide is a copy without its model.
        ArgumentError: If there are no draws and ``mean`` has no values for some weights.
    """
    model = unwrap(guide.original_model) if guide.original_model is not None else None
    if not has_network(model):
        raise UsageError(
            "guide: is a copy without its model, which its conditional layers need; call guide.attach(model) first."
        )
    if draws is None:
        parts = mean.split([site.numel for site in guide.sites])
        draws = {site.name: part.unsqueeze(0) for site, part in zip(guide.sites, parts, strict=True)}
    flat = torch.cat([draws[name] for name in model.weight_priors()], dim=1).to(guide.loc)
    if bool(flat.isnan().any()):
        raise ArgumentError("mean: is NaN for some weights, but conditional layers need all of them; pass numbers.")
    split = flat.split([math.prod(shape) for shape in model.net.param_shapes], dim=1)
    weights = [part.reshape(-1, *shape) for part, shape in zip(split, model.net.param_shapes, strict=True)]
    inducing = plan.inducing
    outputs = _layer_outputs(model, inducing.inputs, weights, [weight for weight, _ in plan.layout.layers])
    for i, (points, output) in enumerate(zip(inducing.points, outputs, strict=True)):
        target: Any = points
        target.targets.copy_(inducing.observed_part(i, output))
    return len(inducing.points) > 1


def _layer_outputs(model: BayesianModel, x: Tensor, weights: list[Tensor], layers: Sequence[int]) -> list[Tensor]:
    """Return the mean over the draws of the outputs ``[m, out]`` of linear layers, the network's last one last."""
    with one_thread("start_from"), evaluating(model.net):
        last = model.batch_norm.by_batch(with_output(model.net, model.output), weights, x).mean(0)
    found = {layers[-1]: last.flatten(0, -2)}
    if len(layers) > 1:  # only chains have several
        h: Any = x
        for step in model.net.as_chain().steps:
            if isinstance(step, LinearStep):
                h = h @ weights[step.weight].transpose(1, 2)
                h = h if step.bias is None else h + weights[step.bias].unsqueeze(1)
                found.setdefault(step.weight, h.mean(0))
            elif not isinstance(step, nn.Dropout):
                h = step(h)
    return [found[layer] for layer in layers]
