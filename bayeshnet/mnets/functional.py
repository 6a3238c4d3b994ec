"""Copies of networks that keep no weights."""

# Networks of this package are given up their parameters in place.
# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from bayeshnet.checks import kind_of
from bayeshnet.errors import ArgumentTypeError
from bayeshnet.mnets.frozen_mainnet import FrozenMainNet, frozen_params
from bayeshnet.mnets.mnet_interface import MainNetInterface
from bayeshnet.mnets.module_copy import copy_without
from bayeshnet.mnets.module_mainnet import ModuleMainNet, refuse_parts
from bayeshnet.mnets.own_lists import first_set

__all__ = ["functional_copy"]


def functional_copy(net: nn.Module, *, learned: Collection[str] = (), frozen: Collection[str] = ()) -> Any:
    """A deep copy of a network that keeps no weights: they are passed to each call.

    Args:
        net: A main network, or any ``nn.Module``. It is left alone.
        learned: Names of parameters (see ``param_names``) that are no weights of the copy, but parameters of it with
            the values that they have: its ``learned_names``.
        frozen: Names of parameters that are kept as if they were frozen.

    Returns:
        A network with the whole of ``MainNetInterface`` whose parameters are all external:
        ``forward(x, weights=[one tensor per entry of param_shapes])``. A plain module comes as a
        :class:`ModuleMainNet`, a main network as its own class. Buffers are kept, and so are frozen parameters
        (``requires_grad=False``), as buffers: they are no weights of the copy, see its ``frozen_names``.

    Raises:
        ArgumentTypeError: If it is no ``nn.Module``, or one whose weights cannot be exchanged.
        ArgumentError: If it has no parameters or all are frozen, or has lazy ones that are not initialised yet.

    Example:
        >>> import torch
        >>> linear = nn.Linear(3, 1)
        >>> net = functional_copy(linear)
        >>> list(net.parameters()), net.num_params
        ([], 4)
        >>> x = torch.randn(5, 3)
        >>> torch.equal(net(x, weights=[linear.weight, linear.bias]), linear(x))
        True
    """
    if not isinstance(net, nn.Module):
        raise ArgumentTypeError(f"net: is {kind_of(net)}; pass an nn.Module.")
    if isinstance(net, ModuleMainNet):
        return net.without_weights(learned=learned, frozen=frozen)
    if not isinstance(net, MainNetInterface):
        if not learned and not frozen:
            return ModuleMainNet(net, no_weights=True)
        return ModuleMainNet(net).without_weights(learned=learned, frozen=frozen)
    held: dict[int, Tensor] = dict(frozen_params(net))
    points: dict[int, Tensor] = {}
    if learned or frozen:
        if not all(record.internal for record in net.param_table):
            refuse_parts(learned, frozen)
        values = dict(enumerate(zip(net.param_names, net.internal_params or (), strict=True)))
        points = {i: param.detach() for i, (name, param) in values.items() if name in learned}
        held.update({i: param.detach() for i, (name, param) in values.items() if name in frozen})
    params = list(net.internal_params or ())
    # Networks inside the network lose theirs too, so their tables change with it.
    lost = {id(param) for param in params}
    nested = [
        m
        for m in net.modules()
        if isinstance(m, MainNetInterface) and all(id(param) in lost for param in m.internal_params or ())
    ]
    tables = [m.param_table for m in nested]
    copied, parts = copy_without((net, nested), net, params)
    for part, table in zip(parts, tables, strict=True):
        part._records = tuple(replace(record, internal=False) for record in table)
        part._internal_params = None
        # What a class written for the reference keeps beside it refers to the same parameters.
        if first_set(part, "_weights") is not None:
            part._weights = None
        for name in ("_layer_weight_tensors", "_layer_bias_vectors"):
            if first_set(part, name) is not None:
                setattr(part, name, nn.ParameterList())
    return FrozenMainNet(copied, held, points) if held or points else copied
