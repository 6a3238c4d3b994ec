"""Main networks of which some weights are fixed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from bayeshnet.errors import ArgumentError
from bayeshnet.mnets.mnet_interface import MainNetInterface

__all__ = ["FrozenMainNet", "frozen_params"]


def frozen_params(net: MainNetInterface) -> dict[int, Tensor]:
    """The parameters that a main network keeps frozen (``requires_grad=False``), by their places in its table.

    Raises:
        ArgumentError: If it keeps nothing else, and needs no other weights.

    Example:
        >>> from bayeshnet.mnets import MLP
        >>> mlp = MLP(3, 1, (4,), verbose=False)
        >>> handle = mlp.internal_params[1].requires_grad_(False)
        >>> list(frozen_params(mlp))
        [1]
    """
    params, table = list(net.internal_params or ()), net.param_table
    places = [i for i, record in enumerate(table) if record.internal]
    frozen = {i: param.detach() for i, param in zip(places, params, strict=True) if not param.requires_grad}
    if len(frozen) == len(table):
        raise ArgumentError(
            f"net: all parameters of {type(net).__name__} are frozen (requires_grad=False), so that there are no "
            "weights to pass to it; call requires_grad_(True) on those that should be weights."
        )
    return frozen


class FrozenMainNet(nn.Module, MainNetInterface):
    """A main network that keeps no weights, seen without those that are fixed.

    Args:
        net: A network whose weights are all external.
        frozen: Values of those that are fixed, by their places in its table; they become buffers.
        learned: Values of those that are parameters of this network, likewise.

    Example:
        >>> import torch
        >>> from bayeshnet.mnets import MLP, functional_copy
        >>> mlp = MLP(3, 1, (4,), verbose=False)
        >>> handle = mlp.internal_params[0].requires_grad_(False)
        >>> net = functional_copy(mlp)
        >>> net.param_names, net.frozen_names
        (['0.bias', '1.weight', '1.bias'], ('0.weight',))
        >>> torch.equal(net(torch.ones(5, 3), weights=list(mlp.internal_params[1:])), mlp(torch.ones(5, 3)))
        True
    """

    unrecorded = frozenset({"frozen", "learned"})

    def __init__(
        self, net: Any, frozen: Mapping[int, Tensor], learned: Mapping[int, Tensor] = MappingProxyType({})
    ) -> None:
        nn.Module.__init__(self)
        MainNetInterface.__init__(self)
        self.net = net
        self.training = net.training
        names, table = net.param_names, net.param_table
        # Names may follow from places, which change.
        self._records = tuple(
            record.with_extra(dotted_name=name)
            for i, (name, record) in enumerate(zip(names, table, strict=True))
            if i not in frozen and i not in learned
        )
        self._places = (*frozen, *learned)
        self._has_bias = net.has_bias
        self.frozen_names = tuple(names[i] for i in frozen)
        """Names of the weights that are fixed."""
        self.learned_names = tuple(names[i] for i in learned)
        """Names of the weights that are parameters of this network."""
        for i, value in frozen.items():
            self.register_buffer(f"frozen_{i}", value.clone())
        for i, value in learned.items():
            self.register_parameter(f"learned_{i}", nn.Parameter(value.clone()))

    def facts(self) -> Mapping[str, Any]:
        """The names of the frozen parameters, whose values a file has."""
        learned = {"learned_names": self.learned_names} if self.learned_names else {}
        return {"frozen_names": self.frozen_names, **learned}

    def held(self, i: int) -> Tensor | None:
        """The value that this network has for a place in the table of the network inside; None for a weight."""
        return getattr(self, f"frozen_{i}", getattr(self, f"learned_{i}", None))

    def learned_values(self) -> dict[str, Tensor]:
        """The weights that are parameters of this network, by name."""
        return dict(zip(self.learned_names, self.parameters(), strict=True))

    def extra_repr(self) -> str:
        """The names of the frozen parameters."""
        learned = f", learned={list(self.learned_names)}" if self.learned_names else ""
        return f"frozen={list(self.frozen_names)}{learned}"

    def distillation_targets(self) -> list[Tensor] | None:
        """The distillation targets of the network."""
        return self.net.distillation_targets()

    def forward(
        self, x: Any, weights: Sequence[Tensor] | None = None, distilled_params: Any = None, condition: Any = None
    ) -> Any:
        """Call the network.

        Args:
            x: Its inputs.
            weights: One tensor per entry of :attr:`param_shapes`.
            distilled_params: As the network takes them.
            condition: As the network takes it.

        Raises:
            ArgumentError: If the weights are missing, or too few or too many.
        """
        if weights is None or isinstance(weights, Mapping) or len(weights) != len(self.param_table):
            raise ArgumentError(f"weights: pass a list of tensors with the shapes {self.param_shapes}.")
        given = iter(weights)
        total = len(weights) + len(self._places)
        values = [self.held(i) for i in range(total)]
        full = [next(given) if value is None else value for value in values]
        return self.net(x, weights=full, distilled_params=distilled_params, condition=condition)
