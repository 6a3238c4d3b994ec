"""Plain networks from copies that keep no weights."""

# Networks of this package are given parameters in place.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from bayeshnet.errors import UsageError
from bayeshnet.mnets.base import MainNet
from bayeshnet.mnets.frozen_mainnet import FrozenMainNet
from bayeshnet.mnets.mnet_interface import MainNetInterface
from bayeshnet.mnets.module_mainnet import ModuleMainNet

__all__ = ["plain_copy"]


def plain_copy(net: Any, weights: Sequence[Tensor]) -> nn.Module:
    """A network with parameters of its own, from one that :func:`~bayeshnet.mnets.functional_copy` has made.

    Its ``state_dict`` has the keys of the network that was copied there.

    Args:
        net: A network that keeps no weights.
        weights: One tensor per entry of its ``param_shapes``; they are copied.

    Raises:
        UsageError: If it is a main network whose class is not of this package, or with context modulation.

    Example:
        >>> import torch
        >>> from bayeshnet.mnets import functional_copy
        >>> layer = nn.Linear(3, 1)
        >>> made = plain_copy(functional_copy(layer), [torch.ones(1, 3), torch.zeros(1)])
        >>> handle = layer.load_state_dict(made.state_dict())
        >>> layer.weight
        Parameter containing:
        tensor([[1., 1., 1.]], requires_grad=True)
    """
    if isinstance(net, ModuleMainNet):
        return net.with_weights(weights)
    if isinstance(net, FrozenMainNet):
        given, total = iter(weights), len(weights) + len(net.frozen_names) + len(net.learned_names)
        values = [net.held(i) for i in range(total)]
        frozen = [i for i, value in enumerate(values) if value is not None and not value.requires_grad]
        made: Any = plain_copy(net.net, [next(given) if value is None else value for value in values])
        for i in frozen:
            made.internal_params[i].requires_grad_(False)
        return made
    inner = [part for part in net.modules() if isinstance(part, MainNetInterface) and part is not net]
    if not isinstance(net, MainNet) or inner or net.context_mod_layers is not None:
        raise UsageError(
            f"net: {type(net).__name__} is a main network that cannot be given back its weights (a class written for "
            "the reference, networks inside it, or context modulation); pass draws of its weights to batched_forward."
        )
    made = copy.deepcopy(net)
    made._records = tuple(replace(record, internal=True) for record in made.param_table)
    made._internal_params = nn.ParameterList(nn.Parameter(weight.detach().clone()) for weight in weights)
    return made
