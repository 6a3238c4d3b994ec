"""Many weight samples of one network in one call, each with inputs of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from bayeshnet.mnets.batched import batched_forward
from bayeshnet.mnets.mnet_interface import MainNetInterface
from bayeshnet.mnets.param_table import ParamRecord

__all__ = ["WithOwnInputs", "paired_forward"]


def paired_forward(net: Any, weights: Sequence[Tensor], inputs: Sequence[Any]) -> Any:
    """Evaluate a network for S samples of its weights, sample s on inputs s.

    As :func:`~bayeshnet.mnets.batched_forward`, which gives all samples the same inputs: vectorised where that is
    possible, in a loop otherwise, with the same numbers.

    Args:
        net: A main network.
        weights: ``[S, *shape]`` for each tensor of its table.
        inputs: The arguments of the network: tensors ``[S, B, ...]``; anything else is given to all samples.

    Returns:
        What the network returns, each tensor of it with a first dimension S.

    Example:
        >>> import torch
        >>> from bayeshnet.mnets import ModuleMainNet
        >>> net = ModuleMainNet(nn.Linear(3, 2), no_weights=True)
        >>> paired_forward(net, [torch.ones(4, 2, 3), torch.zeros(4, 2)], [torch.ones(4, 5, 3)]).shape
        torch.Size([4, 5, 2])
    """
    if len(inputs) == 1 and hasattr(net, "as_chain"):
        chain = net.as_chain()
        outputs = None if chain is None else chain.forward(list(weights), inputs[0], paired=True)
        if outputs is not None:
            return outputs
    own = [part for part in inputs if isinstance(part, Tensor)]
    rest = tuple(None if isinstance(part, Tensor) else part for part in inputs)
    return batched_forward(WithOwnInputs(net, own, rest), [*weights, *own], ())


class WithOwnInputs(nn.Module, MainNetInterface):
    """A main network that takes its inputs as further weights, of which each sample has its own.

    Args:
        net: The main network.
        own: Inputs ``[S, B, ...]``.
        rest: All arguments of the network, None for those that are in ``own``.

    Example:
        >>> import torch
        >>> from bayeshnet.mnets import ModuleMainNet
        >>> net = ModuleMainNet(nn.Linear(3, 2), no_weights=True)
        >>> WithOwnInputs(net, [torch.ones(4, 5, 3)], (None,)).param_shapes
        [[2, 3], [2], [5, 3]]
    """

    def __init__(self, net: Any, own: Sequence[Tensor], rest: tuple[Any, ...]) -> None:
        nn.Module.__init__(self)
        MainNetInterface.__init__(self)
        self.net = net
        self.training = net.training
        self._num = len(net.param_table)
        self._own = [part is None for part in rest]
        self._rest = rest
        self._records = (
            *net.param_table,
            *(ParamRecord(tuple(part.shape[1:]), name=f"input_{i}", internal=False) for i, part in enumerate(own)),
        )

    @property
    def built_around(self) -> Any:
        """The network itself, by which :func:`~bayeshnet.mnets.batched_forward` remembers what it does."""
        return getattr(self.net, "built_around", self.net)

    def distillation_targets(self) -> None:
        """None: there is nothing to distil."""
        return

    def forward(self, x: Any, weights: Any = None, distilled_params: None = None, condition: None = None) -> Any:
        """The network's output for the inputs that are the last of the weights.

        Args:
            x: Nothing.
            weights: Those of the network, and its inputs ``[B, ...]``.
            distilled_params: None.
            condition: None.
        """
        given = iter(weights[self._num :])
        inputs = [next(given) if own else part for own, part in zip(self._own, self._rest, strict=True)]
        return self.net(inputs[0] if len(inputs) == 1 else tuple(inputs), weights=list(weights[: self._num]))
