"""All tensors that a fit may change: parameters and buffers of model and guide, and Pyro's parameter store."""

# The unconstrained parameters of Pyro's store have no public name.
# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import unwrap
from torch import Tensor, nn

__all__ = ["copied", "learned_tensors", "write_back"]


def learned_tensors(model: Any, guide: Any, store: Container[int] | None = None) -> dict[str, Tensor]:
    """Return the parameters and buffers of a model and its guide by names that no two of them share.

    Args:
        model: The model; of one in Pyro's handlers, what is inside.
        guide: The guide.
        store: Which parameters of Pyro's store that are in no module belong to them, by identity; all by default.

    Example:
        >>> list(learned_tensors(nn.Linear(2, 1), lambda x: None, ()))
        ['model.weight', 'model.bias']
    """
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for prefix, part in (("model", model), ("guide", guide)):
        module = unwrap(part)
        if isinstance(module, nn.Module):
            for name, tensor in (*module.named_parameters(), *module.named_buffers()):
                if id(tensor) not in seen:
                    seen.add(id(tensor))
                    found[f"{prefix}.{name}"] = tensor
    known = pyro.get_param_store()
    for name in known:
        tensor = known._params[name]
        if id(tensor) not in seen and (store is None or id(tensor) in store):
            found[f"store.{name}"] = tensor
    return found


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies of tensors.

    Example:
        >>> copied({"w": torch.ones(2)})
        {'w': tensor([1., 1.])}
    """
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


@torch.no_grad()
def write_back(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Write values into tensors, in place; tensors without a value stay.

    Args:
        tensors: The tensors by name.
        values: Their values, in any floating-point dtype and on any device.

    Example:
        >>> w = torch.zeros(2)
        >>> write_back({"w": w}, {"w": torch.ones(2)})
        >>> w
        tensor([1., 1.])
    """
    for name, tensor in tensors.items():
        if name in values:
            tensor.copy_(values[name])
