"""A network whose weights and inputs broadcast against each other, as the parameters of a distribution do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Size, Tensor

from bayeshnet.errors import ArgumentError
from bayeshnet.mnets.batched import batched_forward
from bayeshnet.mnets.own_inputs import paired_forward

__all__ = ["broadcast_forward", "row_dims"]


def row_dims(net: Any, part: Tensor) -> int | None:
    """How many dimensions one row of an input has, if that is certain: 1 for a chain of linear layers, or a matrix.

    Args:
        net: The main network.
        part: The input.

    Example:
        >>> from torch import nn
        >>> from bayeshnet.mnets import ModuleMainNet
        >>> net, image = ModuleMainNet(nn.Linear(3, 1)), ModuleMainNet(nn.Conv2d(1, 2, 3))
        >>> row_dims(net, torch.ones(4, 5, 3)), row_dims(image, torch.ones(4, 1, 5, 5))
        (1, None)
    """
    chain = net.as_chain() if hasattr(net, "as_chain") else None
    if chain is not None and chain.takes_vectors:
        return 1
    return 1 if part.dim() == 2 else None


def broadcast_forward(
    net: Any, weights: Sequence[Tensor], samples: Size, inputs: Sequence[Any], event_dims: Sequence[int]
) -> Tensor:
    """Evaluate a network for weights and inputs whose batch dimensions broadcast.

    Each dimension in which there are several weights is one of networks, whose inputs are their own or shared; all
    others are rows. The network is called once for all of them.

    Args:
        net: A main network.
        weights: ``[S, *shape]`` for each tensor of its table, S the product of ``samples``.
        samples: Batch dimensions of the weights.
        inputs: Arguments of the network; tensors are ``[*batch, *row]``, anything else is given to all.
        event_dims: Number of dimensions of ``row`` for each argument.

    Returns:
        Outputs ``[*batch, *out]``, ``batch`` being ``samples`` and the batches of all inputs, broadcast.

    Raises:
        ArgumentError: If batches do not broadcast, or the network does not return a tensor of one output for each row.

    Example:
        >>> from torch import nn
        >>> from bayeshnet.mnets import ModuleMainNet
        >>> net = ModuleMainNet(nn.Linear(3, 2), no_weights=True)
        >>> weights = [torch.randn(10, 2, 3), torch.randn(10, 2)]
        >>> broadcast_forward(net, weights, Size([10, 1]), [torch.randn(5, 3)], [1]).shape  # shared inputs
        torch.Size([10, 5, 2])
        >>> broadcast_forward(net, weights, Size([10, 1]), [torch.randn(4, 10, 5, 3)], [1]).shape  # its own
        torch.Size([4, 10, 5, 2])
    """
    tensors = {i: part for i, part in enumerate(inputs) if isinstance(part, Tensor)}
    batches = {i: part.shape[: part.dim() - event_dims[i]] for i, part in tensors.items()}
    try:
        batch = torch.broadcast_shapes(samples, *batches.values())
    except RuntimeError:
        raise ArgumentError(
            f"x: has the batch shape {_shapes(batches.values())}, the weights have {tuple(samples)}, and they do not "
            "broadcast; keep a dimension of size 1 in the place of a plate that one of them is not in."
        ) from None
    dims = len(batch)
    lead = (1,) * (dims - len(samples)) + tuple(samples)
    networks = [dim for dim in range(dims) if lead[dim] > 1]
    rows = [dim for dim in range(dims) if lead[dim] == 1]
    num_rows = Size(batch[dim] for dim in rows).numel()
    padded = {i: (1,) * (dims - len(own)) + tuple(own) for i, own in batches.items()}
    paired = any(own[dim] > 1 for own in padded.values() for dim in networks)
    kept = networks if paired else []  # otherwise inputs are of size 1 there
    given = list(inputs)
    for i, part in tensors.items():
        row = part.shape[part.dim() - event_dims[i] :]
        placed = part.reshape((*padded[i], *row))
        placed = placed.permute((*networks, *rows, *range(dims, placed.dim())))
        shared = placed if paired else placed.reshape((*(padded[i][dim] for dim in rows), *row))
        whole = shared.expand((*(batch[dim] for dim in (*kept, *rows)), *row))
        given[i] = whole.reshape(*([len(weights[0])] if paired else []), num_rows, *row)
    if paired:
        out = paired_forward(net, weights, given)
    else:
        out = batched_forward(net, weights, given[0] if len(given) == 1 else tuple(given))
    if not isinstance(out, Tensor) or out.dim() < 2 or out.shape[1] != num_rows:
        advice = (
            "Is event_dim, the dimensions of one row of x, right?"
            if isinstance(out, Tensor)
            else "Put a module around it whose forward returns the one that is wanted."
        )
        found = f"a tensor {list(out.shape[1:])}" if isinstance(out, Tensor) else f"a {type(out).__name__}"
        raise ArgumentError(
            f"net: gives {found} for {num_rows} rows; a network in a larger model has to give one tensor with an "
            f"output for each row, [rows, ...]. {advice}"
        )
    event = out.shape[2:]
    out = out.reshape((*(batch[dim] for dim in (*networks, *rows)), *event))
    order = [*networks, *rows]
    return out.permute((*(order.index(dim) for dim in range(dims)), *range(dims, out.dim())))


def _shapes(batches: Any) -> str:
    return " and ".join(str(tuple(own)) for own in batches)
