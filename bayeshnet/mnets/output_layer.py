"""Which tensors of a network are those of its output layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bayeshnet.mnets.own_lists import kept_params, wrong

if TYPE_CHECKING:
    from bayeshnet.mnets.mnet_interface import MainNetInterface

__all__ = ["output_refs"]


def output_refs(net: MainNetInterface) -> list[int]:
    """The places of weight and, if there is one, bias of the output layer in the table.

    The output layer is that of the last tensor named ``"weight"``. Without names it is the last one that a class lists
    in ``layer_weight_tensors``, or else the end of the table, where the reference expects it.

    Raises:
        UsageError: If that is no weight matrix and its bias.

    Example:
        >>> from bayeshnet.mnets import MLP
        >>> output_refs(MLP(2, 1, hidden_layers=(4,)))
        [2, 3]
    """
    table = net.param_table
    named = [i for i, record in enumerate(table) if record.name == "weight"]
    if named:
        last = named[-1]
        biases = [i for i, record in enumerate(table) if record.name == "bias"]
        if table[last].layer >= 0:
            biases = [i for i in biases if table[i].layer == table[last].layer]
        else:
            biases = [i for i in biases if i == last + 1]
        return [last, *biases[-1:]]
    internal = [i for i, record in enumerate(table) if record.internal]
    kept = {id(param): i for i, param in zip(internal, kept_params(net), strict=True)}
    weights: list[Any] = list(net.layer_weight_tensors)
    biases_of: list[Any] = list(net.layer_bias_vectors)
    if weights and id(weights[-1]) in kept:
        bias = kept.get(id(biases_of[-1])) if len(biases_of) == len(weights) else None
        found = [kept[id(weights[-1])], *([] if bias is None else [bias])]
    else:
        found = [len(table) - 2, len(table) - 1] if net.has_bias else [len(table) - 1]
    shapes = [table[i].shape for i in found if i >= 0]
    if len(shapes) != len(found) or len(shapes[0]) != 2 or shapes[1:] not in ([], [shapes[0][:1]]):
        wrong(
            net,
            "_param_shapes_meta",
            "does not say which tensors are those of the output layer, and the last ones, "
            f"{[list(shape) for shape in shapes]}, are no weight matrix and its bias",
            "set it with names and layers",
        )
    return found
