"""Which layers of a model's network can be drawn conditionally."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from bayeshnet.errors import ArgumentError
from bayeshnet.inducing.layers import HeadNet
from bayeshnet.layers.plain_modules import is_plain
from bayeshnet.mnets.batched import batched_forward
from bayeshnet.mnets.chain import Chain, LinearStep
from bayeshnet.mnets.module_mainnet import ModuleMainNet
from bayeshnet.models.batch_norm_nets import without_running_statistics
from bayeshnet.models.bayesian_model import BayesianModel
from bayeshnet.models.output import with_output
from bayeshnet.sites.modes import evaluating

__all__ = ["Conditional", "NotApplicableError", "find_layers"]

Conditional: TypeAlias = 'Literal["auto", "last", "all"] | Sequence[str] | None'
"""Which layers are conditional: by choice, the last, all, those of these parameter names, or none."""


class NotApplicableError(Exception):
    """Why a model has no conditional layers; the guide then falls back or raises.

    Example:
        >>> str(NotApplicableError("the example has no targets"))
        'the example has no targets'
    """


def find_layers(
    model: BayesianModel, x: Tensor, conditional: Conditional
) -> tuple[Chain | HeadNet, list[tuple[int, int | None]]]:
    """Find the layers to be drawn conditionally.

    Args:
        model: The model.
        x: Inputs ``[B, ...]``, or features of the network's trunk.
        conditional: Which layers.

    Returns:
        The network in a form whose layers can be drawn one by one, and places of weight and bias of each layer.

    Raises:
        NotApplicableError: If there are none; it says why.
        ArgumentError: If a name is not that of a linear layer.

    Example:
        >>> from bayeshnet import likelihoods
        >>> net = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 1))
        >>> model = BayesianModel(net, likelihood=likelihoods.Normal(scale=0.1))
        >>> find_layers(model, torch.randn(8, 2), "auto")[1]
        [(2, 3)]
    """
    whole, x = model.network_for(x), model.standardized_inputs(x)
    net, known = _network(model, whole, x)
    layers = _choose(model, net, known, conditional)
    if isinstance(net, Chain):
        _check_tied(model.net.param_names, net, layers)
    return net, layers


def _network(model: BayesianModel, whole: Any, x: Tensor) -> tuple[Chain | HeadNet, list[tuple[int, int | None]]]:
    """Return the network in a form whose layers can be drawn one by one, and its linear layers, input to output."""
    # A part of the output is picked from what a whole network returns.
    chain = whole.as_chain() if hasattr(whole, "as_chain") and model.output is None else None
    if chain is not None:
        last = [step for step in chain.steps if not isinstance(step, nn.Dropout | nn.Identity)][-1]
        if not isinstance(last, LinearStep):
            raise NotApplicableError("the network does not end in a linear layer")
    if chain is not None and (x.dim() == 2 or not isinstance(chain.steps[0], LinearStep)):
        return chain, [(step.weight, step.bias) for step in chain.steps if isinstance(step, LinearStep)]
    _check_last_layer(model)
    head = _head_of(model, whole, x)
    if head is None and chain is not None:
        raise NotApplicableError(f"the last linear layer has several outputs for a row of shape {tuple(x.shape[1:])}")
    if head is None:
        raise NotApplicableError("the network does not end in a linear layer")
    return head, [(head.weight, head.bias)]


def _check_last_layer(model: BayesianModel) -> None:
    """Raise unless the last linear layer is simply that, whatever one set of weights shows."""
    net = model.net
    frozen: Sequence[str] = (*getattr(net, "frozen_names", ()), *getattr(net, "learned_names", ()))
    if not isinstance(net, ModuleMainNet):
        if frozen:
            raise NotApplicableError(f"of a main network with frozen parameters, {list(frozen)}, no layer is known")
        return
    linears = [(name, module) for name, module in net.module.named_modules() if isinstance(module, nn.Linear)]
    if not linears:
        return
    name, last = linears[-1]
    parts = [f"{name}.weight".lstrip("."), f"{name}.bias".lstrip(".")]
    tied = [first for name, first in net.tied_names.items() if name in parts]
    if tied:
        raise NotApplicableError(f"{tied[0]} is used at several places of the network (tied)")
    fixed = [part for part in parts if part in frozen]
    kind = "learned points" if any(part in net.learned_names for part in fixed) else "frozen"
    if fixed:
        raise NotApplicableError(f"{' and '.join(fixed)} of the last linear layer cannot be drawn: {kind}")
    if type(last) is nn.Linear and not is_plain(last, nn.Linear.forward):
        raise NotApplicableError(f"the last linear layer, {name!r}, has hooks or a forward of its own")


def _check_tied(names: Sequence[str], chain: Chain, layers: Sequence[tuple[int, int | None]]) -> None:
    """Raise if the weights of a conditional layer have another place: its features would depend on them."""
    used = [i for step in chain.steps if isinstance(step, LinearStep) for i in (step.weight, step.bias)]
    tied = [names[i] for layer in layers for i in layer if i is not None and used.count(i) > 1]
    if tied:
        raise NotApplicableError(f"{tied[0]} is used at several places of the network (tied)")


def _head_of(model: BayesianModel, net: Any, x: Tensor) -> HeadNet | None:
    """Return the network without its last linear layer, if that is its last operation."""
    if not isinstance(net, ModuleMainNet):
        return None
    linears = [(name, module) for name, module in net.module.named_modules() if type(module) is nn.Linear]
    names = list(net.param_names)
    if not linears or f"{linears[-1][0]}.weight" not in names:
        return None
    name = linears[-1][0]
    weight = names.index(f"{name}.weight")
    bias = names.index(f"{name}.bias") if f"{name}.bias" in names else None
    # Points that are learned with the guide stay the model's own.
    features_net = copy.deepcopy(net, {id(param): param for param in net.parameters()})
    parent, _, key = name.rpartition(".")
    owner: nn.Module = features_net.module.get_submodule(parent) if parent else features_net.module
    if not key:
        return None
    setattr(owner, key, nn.Identity())
    example = [0.1 * torch.randn(2, *shape, dtype=x.dtype, device=x.device) for shape in net.param_shapes]
    rows = x[: min(3, len(x))]
    features_net.eval()
    try:
        with evaluating(net), torch.no_grad():
            features = batched_forward(with_output(features_net, model.output), example, rows)
            whole = batched_forward(with_output(net, model.output), example, rows)
            again = features @ example[weight].transpose(1, 2)
            again = again if bias is None else again + example[bias].unsqueeze(1)
            same = features.dim() == 3 and again.shape == whole.shape and bool(torch.allclose(again, whole, atol=1e-4))
    except (RuntimeError, ValueError, AttributeError, TypeError):  # without it this need not be a network
        return None
    if not same:
        return None
    # Each draw's features have statistics of their own: those of the pseudo-inputs, which start at rows of the data.
    for layer in model.batch_norm.layers if model.batch_norm.mode != "running" else ():
        without_running_statistics(features_net.get_submodule(layer), drop=True)
    return HeadNet(with_output(features_net, model.output), weight, bias)


def _choose(
    model: BayesianModel,
    net: Chain | HeadNet,
    layers: list[tuple[int, int | None]],
    conditional: Conditional,
) -> list[tuple[int, int | None]]:
    if conditional in ("auto", "last"):
        return layers[-1:]
    if conditional == "all":
        if isinstance(net, HeadNet):
            raise NotApplicableError(
                "only the last layer of a network that is no chain of linear layers can be drawn so"
            )
        return layers
    if not isinstance(conditional, Sequence) or isinstance(conditional, str):
        raise ArgumentError(
            f"conditional: is {conditional!r}; pass 'auto', 'last', 'all', None, or a list of names of linear layers."
        )
    names = model.net.param_names
    wanted = {str(name).removesuffix(".weight") for name in conditional}
    known = {names[weight].removesuffix(".weight"): (weight, bias) for weight, bias in layers}
    if not wanted or not wanted <= set(known):
        raise ArgumentError(
            f"conditional: {conditional!r} was given; pass 'auto', 'last', 'all', None, or names of linear layers "
            f"among {sorted(known)}."
        )
    chosen = [layer for name, layer in known.items() if name in wanted]
    if chosen[-1] != layers[-1]:
        raise ArgumentError(
            "conditional: the last layer has to be among the conditional ones; its pseudo-targets are the data's."
        )
    return chosen
