"""Low-rank adapters: a frozen network, and small learned corrections of some of its weights."""

# Methods of torch's layers are compared in place.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import copy
import fnmatch
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeAlias

from torch import nn
from torch.nn.utils import parametrize

from bayeshnet.checks import kind_of, require_count, require_positive
from bayeshnet.errors import ArgumentError, ArgumentTypeError, UsageError
from bayeshnet.layers.low_rank_adapter import LowRankAdapter
from bayeshnet.layers.plain_modules import has_own_hooks
from bayeshnet.mnets.module_copy import copy_without

__all__ = ["merged", "with_adapters"]

Target: TypeAlias = "str | type[nn.Module]"

_ADAPTABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
# Layers of weights for which somebody could expect an adapter, and why they get none.
_OTHERS: tuple[tuple[Any, str], ...] = (
    ((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), "transposed convolutions can have none"),
    (nn.MultiheadAttention, "its input projection holds three weights in one"),
    (nn.Bilinear, "a bilinear layer can have none"),
    ((nn.RNNBase, nn.RNNCellBase), "recurrent layers can have none"),
    (LowRankAdapter, "it has one already; merge it first, with_adapters(merged(net))"),
)


def with_adapters(
    net: nn.Module, *, rank: int = 4, alpha: float | None = None, targets: Target | Sequence[Target] = "*"
) -> nn.Module:
    """A copy of a network whose parameters are all frozen, with low-rank adapters that are not.

    A chosen layer ``NAME`` becomes a :class:`~bayeshnet.layers.LowRankAdapter` with the parameters ``NAME.adapter_a``
    and ``NAME.adapter_b`` beside the frozen ``NAME.layer.weight``. At the start the copy gives what the network gives.
    A :class:`~bayeshnet.BayesianModel` of it is Bayesian in the adapters alone, since frozen parameters are no weights
    to it. With the default prior, ``priors.Normal(scale="fan_in")``, the correction of a pre-activation has the
    standard deviation ``alpha / rank`` for inputs of mean square 1: pass ``alpha=0.3 * rank`` for corrections of about
    0.3. ``docs/adapters.md`` has more of it.

    A layer that the network has at several places has one adapter there. The output projection of
    ``nn.MultiheadAttention`` can have one, its input projection cannot.

    Args:
        net: A pretrained network. It is left alone. In training mode batch norm still moves its statistics; call
            ``eval()`` on the copy where they are to stay.
        rank: Rank of each correction (of each group of a convolution).
        alpha: Factor of the corrections, which are divided by the rank; by default the rank, so that they are as large
            as pre-activations of a fresh network.
        targets: The linear layers and convolutions (1-3 d) that get adapters: a pattern of their names
            (``"blocks.*.fc1"``), a type (``nn.Linear``, which its subclasses are, too), or a sequence of both.

    Raises:
        ArgumentError: If a target matches no layer, or one that can have no adapter: a transposed convolution, an
            attention or a recurrent layer as a whole, a layer with a forward or hooks of its own, with a parametrised
            weight or one that it shares with another layer; or if the rank is higher than a layer's own. The message
            has the targets that are possible.
        ArgumentTypeError: If an argument is of another type, or the network cannot be copied.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))
        >>> adapted = with_adapters(net, rank=2, targets="0")
        >>> [name for name, param in adapted.named_parameters() if param.requires_grad]
        ['0.adapter_a', '0.adapter_b']
        >>> x = torch.randn(5, 6)
        >>> torch.equal(adapted(x), net(x))
        True
    """
    if not isinstance(net, nn.Module):
        raise ArgumentTypeError(f"net: is {kind_of(net)}; pass an nn.Module.")
    require_count("rank", rank)
    if alpha is not None:
        require_positive("alpha", alpha)
    factor = float(rank if alpha is None else alpha)
    chosen = _chosen(net, targets, rank)
    adapters = {
        id(layer): LowRankAdapter(copy.deepcopy(layer).requires_grad_(False), rank=rank, alpha=factor)
        for layer in chosen
    }
    copied: nn.Module = copy_without(net, net, (), replaced=adapters)
    copied.requires_grad_(False)
    for adapter in adapters.values():
        adapter.train(adapter.layer.training)
        for param in (adapter.adapter_a, adapter.adapter_b):
            param.requires_grad_(True)
    return copied


def merged(net: nn.Module) -> nn.Module:
    """A copy of a network with plain layers in place of those with adapters, of the corrected weights.

    Args:
        net: A network of :func:`with_adapters`, or a draw of one, as :func:`~bayeshnet.sample_networks` gives them.

    Returns:
        A network of the kind that was adapted: its ``state_dict`` has the same keys. Its parameters are frozen; call
        ``requires_grad_(True)`` to train them.

    Raises:
        ArgumentError: If it has no adapters.
        ArgumentTypeError: If it is no ``nn.Module``.
        UsageError: If it is a network that keeps no weights, such as that of a model.

    Example:
        >>> layer = nn.Linear(3, 2)
        >>> list(merged(with_adapters(layer, rank=1)).state_dict()) == list(layer.state_dict())
        True
    """
    if not isinstance(net, nn.Module):
        raise ArgumentTypeError(f"net: is {kind_of(net)}; pass a network of with_adapters.")
    adapters = {name: part for name, part in net.named_modules() if isinstance(part, LowRankAdapter)}
    if not adapters:
        raise ArgumentError("net: has no low-rank adapters; pass a network of with_adapters, or a draw of one.")
    empty = [name for name, part in adapters.items() if len(dict(part.named_parameters(recurse=False))) < 2]
    if empty:
        raise UsageError(
            f"net: the adapters of {empty} have no values, as in the network of a model, which keeps no weights; pass "
            "a network of sample_networks(guide, k)."
        )
    return copy_without(net, net, (), replaced={id(part): part.merged() for part in adapters.values()})


def _chosen(net: nn.Module, targets: Any, rank: int) -> list[nn.Module]:
    """The layers that get adapters, each once."""
    named = [(name, part) for name, part in net.named_modules(remove_duplicate=False) if _inner(name, net) is None]
    reasons = {name: _reason(net, part) for name, part in named if isinstance(part, (*_ADAPTABLE, *_other_types()))}
    able = [name for name, reason in reasons.items() if reason is None]
    if not able:
        raise ArgumentError(
            f"net: {type(net).__name__} has no linear layer or convolution of torch.nn that can have an adapter"
            + "".join(f"; {name!r}: {reason}" for name, reason in reasons.items())
            + "."
        )
    parts, found = dict(named), dict[str, nn.Module]()
    wanted: list[Any] = list(targets) if isinstance(targets, list | tuple | set | frozenset) else [targets]
    for target in wanted:
        if isinstance(target, str):
            matches = [name for name in reasons if fnmatch.fnmatchcase(name, target)]
        elif isinstance(target, type) and issubclass(target, nn.Module):
            matches = [name for name in reasons if isinstance(parts[name], target)]
        else:
            raise ArgumentTypeError(f"targets: has {kind_of(target)}; pass patterns of names, or types of layers.")
        shown = repr(target) if isinstance(target, str) else target.__name__
        if not matches:
            raise ArgumentError(f"targets: {shown} matches none of the layers that can have an adapter, {able}.")
        refused = [name for name in matches if reasons[name] is not None]
        if refused:
            raise ArgumentError(
                f"targets: {shown} matches {refused[0]!r}, {kind_of(parts[refused[0]])}: {reasons[refused[0]]}. Those "
                f"that can have an adapter: targets={[name for name in matches if reasons[name] is None] or able}."
            )
        found.update((name, parts[name]) for name in matches)
    if not found:
        raise ArgumentError(f"targets: is empty; pass patterns of names, or types of layers, among {able}.")
    high = {name: most for name, layer in found.items() if (most := _most(layer)) < rank}
    if high:
        fitting = [name for name in found if name not in high]
        name, most = next(iter(high.items()))
        layer: Any = found[name]
        raise ArgumentError(
            f"rank: is {rank}, and the weight {tuple(layer.weight.shape)} of {name!r} has rank {most} at most; "
            "pass a smaller rank" + (f", or leave it out: targets={fitting}." if fitting else ".")
        )
    return list({id(layer): layer for layer in found.values()}.values())


def _inner(name: str, net: nn.Module) -> str | None:
    """The adapter that a module is the frozen layer of, if it is one."""
    parent, _, key = name.rpartition(".")
    return parent if key == "layer" and isinstance(net.get_submodule(parent), LowRankAdapter) else None


def _other_types() -> tuple[type, ...]:
    return tuple(cls for types, _ in _OTHERS for cls in (types if isinstance(types, tuple) else (types,)))


def _reason(net: nn.Module, layer: Any) -> str | None:
    """Why a layer can have no adapter; None if it can."""
    base = next((cls for cls in _ADAPTABLE if isinstance(layer, cls)), None)
    if base is None:
        return next(reason for types, reason in _OTHERS if isinstance(layer, types))
    if parametrize.is_parametrized(layer):
        return "its weight is parametrised"
    own = type(layer)
    if (
        own.forward is not base.forward
        or getattr(own, "_conv_forward", None) is not getattr(base, "_conv_forward", None)
        or "forward" in vars(layer)
    ):
        return "it has a forward of its own"
    if has_own_hooks(layer):
        return "it has hooks, such as those of weight_norm, spectral_norm or a lazy layer"
    params = [param for part in net.modules() for param in part._parameters.values() if param is not None]
    uses = Counter(id(param) for param in params)
    tied = [key for key, param in layer._parameters.items() if param is not None and uses[id(param)] > 1]
    return f"its {tied[0]} is that of another layer, too (tied)" if tied else None


def _most(layer: Any) -> int:
    """Highest rank of a group of a weight."""
    rows = len(layer.weight) // getattr(layer, "groups", 1)
    return min(rows, math.prod(layer.weight.shape[1:]))
