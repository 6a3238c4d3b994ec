"""Learned points before a conditional last layer, which are those of the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from bayeshnet.inducing.layers import InducingLayers

__all__ = ["share_points"]


def share_points(inducing: InducingLayers, points: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """Let the network before a conditional last layer have these learned points, themselves, in place of its own.

    Points of other names or shapes, of another network, change nothing.

    Args:
        inducing: The conditional layers.
        points: The points of a model's network by name.

    Returns:
        Those that it had before; none if nothing was changed.

    Example:
        >>> import torch
        >>> from bayeshnet import AutoHypernet, BayesianModel, likelihoods
        >>> net = nn.Sequential(nn.Conv1d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(4, 1))
        >>> model = BayesianModel(net, likelihood=likelihoods.Normal(scale=0.1), bayesian="last_layer")
        >>> guide = AutoHypernet(model, example=(torch.randn(20, 1, 3), torch.randn(20)))
        >>> points = {name: nn.Parameter(point + 1.0) for name, point in model.net.learned_values().items()}
        >>> list(share_points(guide.inducing, points))
        ['0.weight', '0.bias']
    """
    body: Any = inducing.head_body
    # A part of the output is picked around the network.
    net: Any = body if hasattr(body, "learned_values") else getattr(body, "net", None)
    own: dict[str, nn.Parameter] = net.learned_values() if hasattr(net, "learned_values") else {}
    if not own or all(points.get(name) is point for name, point in own.items()):
        return {}
    if {name: point.shape for name, point in own.items()} != {name: point.shape for name, point in points.items()}:
        return {}
    net.set_learned(points)
    return own
