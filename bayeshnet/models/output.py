"""Which part of what a network returns is observed: ``BayesianModel(..., output=...)``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, cast

from torch import Tensor, nn

from bayeshnet.checks import kind_of
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.mnets.mnet_interface import MainNetInterface

__all__ = ["OutputOf", "Picked", "check_output_argument", "output_repr", "pick", "with_output"]

Picked: TypeAlias = "str | int | Callable[[Any], Tensor] | None"
"""A key or an attribute, a place in a tuple or list, a function of what the network returns, or all of it."""


def check_output_argument(output: Any) -> Picked:
    """Raise unless this says which output is meant.

    Raises:
        ArgumentTypeError: If it does not.

    Example:
        >>> check_output_argument("logits")
        'logits'
    """
    whole = isinstance(output, int) and not isinstance(output, bool)
    if output is None or isinstance(output, str) or whole or (callable(output) and not isinstance(output, type)):
        return cast("Picked", output)
    raise ArgumentTypeError(
        f"output: is {kind_of(output)}; pass the key or attribute of the output that is observed, 'logits', its place, "
        "0, or a function from what the network returns to one tensor."
    )


def pick(returned: Any, output: Picked) -> Any:
    """The part of what a network returned that is observed.

    Args:
        returned: What the network returned for one set of weights.
        output: Which part.

    Raises:
        ArgumentError: If there is no such part; the message says which there are.

    Example:
        >>> import torch
        >>> pick({"logits": torch.zeros(2), "hidden": None}, "logits"), pick((1, 2), 1)
        (tensor([0., 0.]), 2)
    """
    if output is None:
        return returned
    if callable(output):
        return output(returned)
    if isinstance(output, str):
        if isinstance(returned, Mapping):
            if output in returned:
                return returned[output]
        elif hasattr(returned, output) and not isinstance(returned, Tensor):
            return getattr(returned, output)
    elif isinstance(returned, tuple | list) and -len(returned) <= output < len(returned):
        return returned[output]
    raise ArgumentError(f"output: is {output!r}, and the network returns {described(returned)}.")


def described(returned: Any) -> str:
    """What a network returned, in a few words.

    Example:
        >>> described({"logits": 1}), described((1, 2))
        ("a dict with the keys ['logits']", 'a tuple of 2')
    """
    if isinstance(returned, Mapping):
        return f"{kind_of(returned)} with the keys {list(returned)}"
    if hasattr(returned, "_fields"):
        return f"{kind_of(returned)} with the attributes {list(returned._fields)}"
    if isinstance(returned, tuple | list):
        return f"{kind_of(returned)} of {len(returned)}"
    names = [name for name in getattr(returned, "__dict__", {}) if not name.startswith("_")]
    return f"{kind_of(returned)} with the attributes {names}" if names else kind_of(returned)


def output_repr(output: Picked) -> str:
    """What is picked, for the repr of a model.

    Example:
        >>> output_repr("logits"), output_repr(max)
        ("'logits'", 'max')
    """
    if isinstance(output, str | int):
        return repr(output)
    return getattr(output, "__name__", type(output).__name__)


class OutputOf(nn.Module, MainNetInterface):
    """A network that returns a part of what another returns, for the weights of that.

    Args:
        net: The main network.
        output: Which part.

    Example:
        >>> import torch
        >>> from bayeshnet.mnets import ModuleMainNet, batched_forward
        >>> net = ModuleMainNet(nn.LSTM(2, 3, batch_first=True))
        >>> batched_forward(OutputOf(net, 0), torch.randn(4, net.num_params), torch.randn(5, 6, 2)).shape
        torch.Size([4, 5, 6, 3])
    """

    def __init__(self, net: Any, output: Picked) -> None:
        nn.Module.__init__(self)
        MainNetInterface.__init__(self)
        self.net = net
        self.training = net.training
        self.output = output
        self._records = net.param_table

    @property
    def built_around(self) -> Any:
        """The network itself, by which :func:`~bayeshnet.mnets.batched_forward` remembers what it does."""
        return getattr(self.net, "built_around", self.net)

    def distillation_targets(self) -> None:
        """None: there is nothing to distil."""
        return

    def forward(self, x: Any, weights: Any = None, distilled_params: None = None, condition: None = None) -> Any:
        """That part of the network's output."""
        return pick(self.net(x, weights=weights), self.output)


def with_output(net: Any, output: Picked) -> Any:
    """The network, or one around it that returns the part of its output that is observed.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> with_output(layer, None) is layer
        True
    """
    return net if output is None else OutputOf(net, output)
