"""Low-rank adapters: a frozen network with a small correction of some of its weights."""

from __future__ import annotations

import copy
import fnmatch
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bayeshnet.checks import kind_of, require_count, require_positive
from bayeshnet.errors import ArgumentError, ArgumentTypeError

__all__ = ["LowRank", "adapted_names", "merged", "with_adapters"]

Targets: TypeAlias = "str | type[nn.Module] | Sequence[str | type[nn.Module]] | None"

_ADAPTABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class LowRank(nn.Module):
    r"""A weight plus a matrix of low rank, as a parametrisation of PyTorch.

    .. math:: W = W_0 + \frac{\alpha}{\sqrt{r \, n}} B A, \quad A \in R^{r \times n}, \; B \in R^{m \times r}

    for a weight :math:`[m, ...]` with n numbers for each output. With independent standard normal entries of A and B
    the entries of the correction have standard deviation :math:`\alpha / \sqrt{n}`: :math:`\alpha` is the size of the
    correction relative to weights of scale ``1 / sqrt(fan_in)``. A starts at standard normal numbers, B at 0.

    Args:
        weight: The weight, for its shape, dtype and device.
        rank: Number r of columns of B.
        alpha: Size of the correction.

    Example:
        >>> layer = nn.Linear(3, 2)
        >>> low_rank = LowRank(layer.weight, rank=1, alpha=1.0)
        >>> torch.equal(low_rank(layer.weight), layer.weight), low_rank.A.shape, low_rank.B.shape
        (True, torch.Size([1, 3]), torch.Size([2, 1]))
    """

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        self.rank, self.alpha = rank, alpha
        num = math.prod(weight.shape[1:])
        self.factor = alpha / math.sqrt(rank * num)
        self.A = nn.Parameter(torch.randn(rank, num, dtype=weight.dtype, device=weight.device))
        self.B = nn.Parameter(torch.zeros(len(weight), rank, dtype=weight.dtype, device=weight.device))

    def extra_repr(self) -> str:
        """Rank and size."""
        return f"rank={self.rank}, alpha={self.alpha:g}"

    def forward(self, weight: Tensor) -> Tensor:
        """The corrected weight.

        Args:
            weight: The weight as it was.
        """
        return weight + (self.factor * self.B @ self.A).reshape(weight.shape)


def with_adapters(net: nn.Module, rank: int = 4, *, alpha: float = 1.0, targets: Targets = None) -> nn.Module:
    """A copy of a network whose parameters are all frozen, with low-rank adapters that are not.

    At the start it gives what the network gives, since the factor B of each adapter is 0. A
    :class:`~bayeshnet.BayesianModel` of it is Bayesian in the adapters alone; a standard normal prior for their
    numbers, which is what ``priors.Normal()`` and the default prior are for them, gives corrections of the size
    ``alpha`` relative to weights of scale ``1 / sqrt(fan_in)``, see :class:`~bayeshnet.mnets.adapters.LowRank`. An
    adapter is a parametrisation of PyTorch: the parameters are ``LAYER.parametrizations.weight.0.A`` and ``...B``, what
    was ``LAYER.weight`` is ``LAYER.parametrizations.weight.original``, and ``LAYER.weight`` is the corrected weight,
    whoever reads it. Convolutions may have groups.

    Args:
        net: A pretrained network. It is left alone. PyTorch refuses to pickle modules with parametrisations; save their
            ``state_dict``, or a model of them with :func:`~bayeshnet.save`.
        rank: Rank of each correction, at most the smaller side of the weight; a higher one is cut to that.
        alpha: Size of the corrections.
        targets: The layers: patterns of names (``"blocks.*.fc1"``, with or without ``.weight``), types, or a sequence
            of both; all linear layers and convolutions (1-3 d) by default.

    Raises:
        ArgumentError: If a target matches nothing or something that cannot have an adapter: the input projection of
            ``nn.MultiheadAttention`` (also by default, if the network has one), a weight that is tied or parametrised.
        ArgumentTypeError: If an argument is of another type.

    Example:
        >>> net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))
        >>> adapted = with_adapters(net, rank=2, targets="0")
        >>> [name for name, param in adapted.named_parameters() if param.requires_grad]
        ['0.parametrizations.weight.0.A', '0.parametrizations.weight.0.B']
        >>> x = torch.randn(5, 6)
        >>> torch.equal(adapted(x), net(x)), adapted_names(adapted)
        (True, ('0',))
    """
    if not isinstance(net, nn.Module):
        raise ArgumentTypeError(f"net: is {kind_of(net)}; pass an nn.Module.")
    require_count("rank", rank)
    require_positive("alpha", alpha)
    chosen = _chosen(net, targets)
    adapted = copy.deepcopy(net).requires_grad_(False)
    for name in chosen:
        layer: Any = adapted.get_submodule(name)
        sides = (len(layer.weight), layer.weight[0].numel())
        parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, min(rank, *sides), float(alpha)))
        layer.parametrizations.weight.original.requires_grad_(False)
    return adapted


def adapted_names(net: nn.Module) -> tuple[str, ...]:
    """Names of the layers of a network that have low-rank adapters.

    Example:
        >>> adapted_names(with_adapters(nn.Linear(2, 1)))
        ('',)
    """
    return tuple(name for name, layer in net.named_modules() if _adapter_of(layer) is not None)


def merged(net: nn.Module) -> nn.Module:
    """A copy of a network with plain weights in place of weights with adapters.

    Args:
        net: A network with adapters, such as one of :func:`~bayeshnet.sample_networks`.

    Returns:
        A network whose ``state_dict`` has the keys of the one that was adapted.

    Raises:
        ArgumentError: If it has no adapters.

    Example:
        >>> layer = nn.Linear(3, 2)
        >>> list(merged(with_adapters(layer)).state_dict()) == list(layer.state_dict())
        True
    """
    names = adapted_names(net)
    if not names:
        raise ArgumentError("net: has no low-rank adapters; pass a network of with_adapters, or a draw of one.")
    plain = copy.deepcopy(net)
    for name in names:
        layer: Any = plain.get_submodule(name)
        others = [key for key in layer.parametrizations if key != "weight"]
        if others:
            raise ArgumentError(f"net: {name!r} has other parametrisations too, of {others}; remove these first.")
        weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=True)
        # Not by remove_parametrizations, which changes the class: a copy shares it with what it is a copy of.
        kind = parametrize.type_before_parametrizations(layer)
        del layer._modules["parametrizations"]
        layer.__class__ = kind
        layer._parameters = {"weight": weight, **layer._parameters}
    return plain


def _adapter_of(layer: nn.Module) -> LowRank | None:
    if not parametrize.is_parametrized(layer, "weight"):
        return None
    rules: Any = layer.parametrizations
    return next((rule for rule in rules["weight"] if isinstance(rule, LowRank)), None)


def _chosen(net: nn.Module, targets: Targets) -> list[str]:
    """Names of the layers that get adapters."""
    layers = {name: layer for name, layer in net.named_modules() if isinstance(layer, _ADAPTABLE)}
    attention = [name for name, layer in net.named_modules() if isinstance(layer, nn.MultiheadAttention)]
    if not layers:
        raise ArgumentError(f"net: {type(net).__name__} has no linear layer or convolution that could have an adapter.")
    if targets is None:
        if attention:
            raise ArgumentError(
                f"targets: the input projections of {attention} (nn.MultiheadAttention) can have no adapter; choose "
                f"layers, targets=[...], among {list(layers)}."
            )
        found = list(layers)
    else:
        wanted = [targets] if isinstance(targets, str | type) else list(targets)
        matched = {name for target in wanted for name in _matches(net, layers, attention, target)}
        found = [name for name in layers if name in matched]
    uses: dict[int, int] = {}
    for _, param in net.named_parameters(remove_duplicate=False):
        uses[id(param)] = uses.get(id(param), 0) + 1
    for name in found:
        if parametrize.is_parametrized(layers[name], "weight"):
            raise ArgumentError(
                f"targets: {name!r} has a parametrised weight, which can have no adapter; leave it out."
            )
        if uses.get(id(layers[name].weight), 0) > 1:
            raise ArgumentError(f"targets: the weight of {name!r} is tied to that of another layer; leave it out.")
    return found


def _matches(net: nn.Module, layers: dict[str, Any], attention: list[str], target: Any) -> list[str]:
    if isinstance(target, type):
        if issubclass(target, nn.MultiheadAttention):
            raise _in_projection(attention or [target.__name__], layers)
        found = [name for name, layer in layers.items() if isinstance(layer, target)]
    elif isinstance(target, str):
        projections = [f"{name}.{key}".lstrip(".") for name in attention for key in ("in_proj_weight", "in_proj_bias")]
        hit = [name for name in (*projections, *attention) if fnmatch.fnmatchcase(name, target)]
        found = [
            name
            for name in layers
            if name == target or any(fnmatch.fnmatchcase(full, target) for full in (name, f"{name}.weight".lstrip(".")))
        ]
        if hit and not found:
            raise _in_projection(hit, layers)
    else:
        raise ArgumentTypeError(f"targets: has {kind_of(target)}; pass patterns of names, or types of layers.")
    if not found:
        shown = target.__name__ if isinstance(target, type) else repr(target)
        others = [name for name, module in net.named_modules() if type(module) is target]
        why = f" ({type(net).__name__} has {others}, which can have no adapters)" if others else ""
        raise ArgumentError(f"targets: {shown} matches no layer{why}; those that can have one are {list(layers)}.")
    return found


def _in_projection(names: list[str], layers: dict[str, Any]) -> ArgumentError:
    return ArgumentError(
        f"targets: {names}: the input projection of nn.MultiheadAttention holds three weights in one and can have no "
        f"adapter; choose among {list(layers)}."
    )
