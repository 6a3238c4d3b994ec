"""From plain parameters of an estimator to what a fit takes: network, guide, precision, random numbers."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, TypeAlias

import pyro
import torch
from torch import nn

from bayeshnet.checks import kind_of, require_count, shown
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.families import Family
from bayeshnet.guides import AutoHypernet
from bayeshnet.models import BayesianModel

__all__ = ["Guide", "Net", "built_guide", "built_network", "own_random_numbers", "precision"]

Net: TypeAlias = nn.Module | Callable[[int, int], nn.Module]
Guide: TypeAlias = str | Family | Callable[..., Any]

_ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}
_DTYPES = {"float32": torch.float32, "float64": torch.float64}


def precision(name: Any) -> torch.dtype:
    """The dtype of a name.

    Raises:
        ArgumentError: If it is another one.

    Example:
        >>> precision("float32")
        torch.float32
    """
    if name not in _DTYPES:
        raise ArgumentError(f"dtype: is {name!r}; pass 'float32' or 'float64'.")
    return _DTYPES[name]


def built_network(net: Net | None, hidden: Any, activation: Any, dtype: Any, sizes: tuple[int, int]) -> nn.Module:
    """The network of an estimator.

    Args:
        net: One of the user's, or a function of numbers of inputs and outputs that makes one; None for layers.
        hidden: Units of each hidden layer.
        activation: Name of the function between layers.
        dtype: Name of the precision of a network that is made here.
        sizes: Numbers of inputs and outputs.

    Raises:
        ArgumentError: If a number or a name is not accepted.
        ArgumentTypeError: If something is of another type.

    Example:
        >>> built_network(None, (5,), "tanh", "float32", (3, 1))
        Sequential(
          (0): Linear(in_features=3, out_features=5, bias=True)
          (1): Tanh()
          (2): Linear(in_features=5, out_features=1, bias=True)
        )
    """
    if net is not None:
        made = net if isinstance(net, nn.Module) or not callable(net) else net(*sizes)
        if not isinstance(made, nn.Module):
            raise ArgumentTypeError(
                f"net: {'is' if made is net else 'returns'} {kind_of(made)}; pass an nn.Module, or a function of the "
                "numbers of inputs and outputs that returns one."
            )
        return made
    if isinstance(hidden, numbers.Integral):
        hidden = (hidden,)
    if not isinstance(hidden, Sequence) or isinstance(hidden, str):
        raise ArgumentTypeError(f"hidden_layers: is {shown(hidden)}; pass the units of each layer, such as (50,).")
    for units in hidden:
        require_count("hidden_layers", units, advice=" units of each layer")
    if activation not in _ACTIVATIONS:
        raise ArgumentError(f"activation: is {activation!r}; pass {' or '.join(map(repr, _ACTIVATIONS))}, or a net.")
    layers: list[nn.Module] = []
    widths = [sizes[0], *map(int, hidden)]
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), _ACTIVATIONS[activation]()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], sizes[1])).to(precision(dtype))


def built_guide(guide: Guide, model: BayesianModel, example: tuple[Any, ...]) -> Any:
    """The guide of an estimator.

    Args:
        guide: ``"auto"``, a family or the short form of one, or a function ``(model, example) -> guide``.
        model: The model.
        example: Its arguments.

    Raises:
        ArgumentError: If a name is that of no family.
        ArgumentTypeError: If it is something else.

    Example:
        >>> from bayeshnet.models import likelihoods
        >>> model = BayesianModel(nn.Linear(2, 1), likelihood=likelihoods.Normal(scale=0.1))
        >>> built_guide("mean_field", model, (torch.randn(4, 2), torch.randn(4))).latent_dim
        3
    """
    if isinstance(guide, str | Family):
        return AutoHypernet(model, example=example, family="hypernet" if guide == "auto" else guide)
    if not callable(guide):
        raise ArgumentTypeError(
            f"guide: is {shown(guide)}; pass 'auto', a family such as 'mean_field', or a function (model, example) -> "
            "guide."
        )
    return guide(model, example)


@contextmanager
def own_random_numbers(seed: int) -> Generator[None, None, None]:
    """Seed PyTorch's generator within a block, and leave it, and Pyro's parameter store, as they were.

    Args:
        seed: Of the block.

    Example:
        >>> with own_random_numbers(1):
        ...     first = torch.rand(())
        >>> with own_random_numbers(1):
        ...     print(bool(first == torch.rand(())))
        True
    """
    with torch.random.fork_rng(devices=[]), pyro.get_param_store().scope():
        torch.set_rng_state(torch.Generator().manual_seed(seed).get_state())
        yield
