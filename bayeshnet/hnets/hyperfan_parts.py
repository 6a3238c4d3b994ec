"""The parts of a hypernetwork that are initialised one by one, and how each is drawn.

A hypernetwork says by ``init_parts`` what it consists of; see :class:`Initialisable`. Nothing here knows a class of
hypernetworks.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn

from bayeshnet.checks import kind_of
from bayeshnet.errors import ArgumentTypeError, UsageError
from bayeshnet.fans import HeadInit, counted_variance
from bayeshnet.hnets.hnet_interface import HyperNetInterface
from bayeshnet.layers.spectral_norm import SpectralNorm
from bayeshnet.mnets.param_table import ParamRecord

__all__ = [
    "InitPlan",
    "Initialisable",
    "Part",
    "Places",
    "PlainPart",
    "average",
    "counted_variances",
    "draw_",
    "draw_parts",
    "fan_in_",
    "inner_parts",
    "require_own_weights",
    "split_parts",
]

Places: TypeAlias = Mapping[int, float]
"""The targets that a tensor goes to, by index, with the share of its elements; empty if it goes nowhere."""


@dataclass(frozen=True, slots=True)
class InitPlan:
    """What the parts are to be drawn with.

    Attributes:
        heads: For each target the head that it asks for.
        plain: The same for weights that have no head: mean and variance of the bias, plus what rows would add.
        uncond_var: Variance of the unconditional input.
        cond_var: Variance of the conditional input.
        use_xavier: Xavier rather than Kaiming.
        chunk_vars: For each target the variance that chunked networks are to give it.
        eps: The least variance of a chunk embedding.
        normal: Whether chunk embeddings are drawn from normal rather than uniform distributions.
        spare_biases: Whether the rows of a network without biases take over what its biases would have made.

    Example:
        >>> InitPlan([HeadInit(out_var=1.0)], [HeadInit(bias_var=1.0)]).cond_var
        1.0
    """

    heads: Sequence[HeadInit]
    plain: Sequence[HeadInit] = ()
    uncond_var: float = 1.0
    cond_var: float = 1.0
    use_xavier: bool = False
    chunk_vars: Sequence[float] = ()
    eps: float = 1e-5
    normal: bool = False
    spare_biases: bool = False


class Part(ABC):
    """A part of a hypernetwork that is initialised by itself.

    Example:
        >>> from bayeshnet.hnets import HMLP
        >>> [type(part).__name__ for part in split_parts(HMLP([[3, 2], [3]]))]
        ['HeadPart']
    """

    __slots__ = ()

    @property
    def in_sizes(self) -> tuple[int, int]:
        """Sizes of the unconditional and the conditional input, without chunk embeddings."""
        return 0, 0

    @abstractmethod
    def check(self, method: str, plan: InitPlan) -> None:
        """Raise if the part cannot be initialised so; called for all parts before anything is drawn.

        Args:
            method: Name of the method, for the message.
            plan: What the part is to be drawn with.

        Raises:
            UsageError: If weights are external, something else than their start decides their scale, or the part has
                not the biases that are asked for.
        """

    @abstractmethod
    def draw(self, plan: InitPlan) -> None:
        """Draw the parameters."""


@runtime_checkable
class Initialisable(Protocol):
    """A hypernetwork that the functions of :mod:`bayeshnet.init` can initialise.

    Example:
        >>> from bayeshnet.hnets import HMLP
        >>> isinstance(HMLP([[3]]), Initialisable)
        True
    """

    def init_parts(self, places: Sequence[Places]) -> Sequence[Part]:
        """Return the parts.

        Args:
            places: Where each tensor of ``target_shapes`` goes: its share in the targets that are asked for.
        """
        ...


def split_parts(hnet: HyperNetInterface) -> list[Part]:
    """Return the parts of a hypernetwork.

    Args:
        hnet: Any hypernetwork of this package, wrapped and nested in any way, or one with ``init_parts``.

    Raises:
        ArgumentTypeError: If there is another kind of hypernetwork in it.
        UsageError: If an assembly function does more than move weights.

    Example:
        >>> from bayeshnet.hnets import HMLP, HPerturbWrapper
        >>> [part.in_sizes for part in split_parts(HPerturbWrapper(HMLP([[3, 2], [3]], uncond_in_size=2)))]
        [(2, 8)]
    """
    return inner_parts(hnet, [{i: 1.0} for i in range(len(hnet.target_shapes))])


def inner_parts(hnet: HyperNetInterface, places: Sequence[Places]) -> list[Part]:
    """Return the parts of a hypernetwork that may be inside another one; see :class:`Initialisable`.

    Raises:
        ArgumentTypeError: If the hypernetwork has no ``init_parts``.

    Example:
        >>> from bayeshnet.hnets import HMLP
        >>> len(inner_parts(HMLP([[3]]), [{1: 1.0}]))
        1
    """
    if not isinstance(hnet, Initialisable):
        raise ArgumentTypeError(
            f"hnet: is {kind_of(hnet)}; pass a network of bayeshnet.hnets, alone or inside another one."
        )
    return list(hnet.init_parts(places))


def counted_variances(parts: Sequence[Part], uncond_var: float, cond_var: float) -> tuple[float, float]:
    """Return the variances of the inputs, which count only where a part has such an input.

    Raises:
        ArgumentTypeError: If there is such an input and its variance is not a number.
        ArgumentError: If it is negative or not finite.

    Example:
        >>> from bayeshnet.hnets import HMLP
        >>> counted_variances(split_parts(HMLP([[3]], cond_in_size=4)), uncond_var=-1, cond_var=0.25)
        (1.0, 0.25)
    """
    uncond_size, cond_size = (max((part.in_sizes[i] for part in parts), default=0) for i in range(2))
    return counted_variance("uncond_var", uncond_var, uncond_size), counted_variance("cond_var", cond_var, cond_size)


def draw_parts(parts: Sequence[Part], plan: InitPlan, method: str) -> None:
    """Check all parts, then draw them.

    Args:
        parts: The parts of one hypernetwork.
        plan: What they are drawn with.
        method: Name of the caller, for messages.

    Raises:
        UsageError: If a part cannot be initialised; nothing is drawn then.

    Example:
        >>> from bayeshnet.hnets import HMLP
        >>> draw_parts(split_parts(HMLP([[3]])), InitPlan([HeadInit(bias_var=1.0)]), "hyperfan_init")
    """
    for part in parts:
        part.check(method, plan)
    for part in parts:
        part.draw(plan)


# ---------------------------------------------------------------------- drawing and checking


@torch.no_grad()
def draw_(tensor: Tensor, mean: float, var: float) -> None:
    """Fill a tensor with uniform draws of this mean and variance; a variance of 0 gives a constant.

    Example:
        >>> weight = torch.empty(2)
        >>> draw_(weight, 0.5, 0.0)
        >>> weight
        tensor([0.5000, 0.5000])
    """
    half = math.sqrt(3 * var)
    if half == 0:
        tensor.fill_(mean)
    else:
        tensor.uniform_(mean - half, mean + half)


def fan_in_(weight: Tensor, c: float, fan_in: float | None = None) -> None:
    """Draw a fan-in initialisation: uniform with mean 0 and variance ``c / fan_in``.

    Args:
        weight: Matrix ``[out, in]``, or a kernel together with its fan-in.
        c: The gain, squared.
        fan_in: Number of terms that one output sums over; by default the number of columns.

    Example:
        >>> weight = torch.empty(100, 6)
        >>> fan_in_(weight, 2.0)
        >>> bool(weight.abs().max() <= 1.0)  # sqrt(3 * 2 / 6)
        True
    """
    draw_(weight, 0.0, c / (weight.shape[1] if fan_in is None else fan_in))


def require_own_weights(hnet: HyperNetInterface, method: str) -> None:
    """Raise if the weights of a network are kept elsewhere, or are rescaled whenever they are used.

    Raises:
        UsageError: In these cases.

    Example:
        >>> from bayeshnet.hnets import HMLP
        >>> require_own_weights(HMLP([[3]]), "hyperfan_init")
    """
    name = type(hnet).__name__
    if any(not record.internal and not record.conditional for record in hnet.param_table):
        raise UsageError(
            f"{method}: this {name} does not keep its unconditional weights (no_uncond_weights=True), so there is "
            "nothing to initialise; initialise one that keeps them, and pass its `unconditional_params`."
        )
    if isinstance(hnet, nn.Module) and any(isinstance(module, SpectralNorm) for module in hnet.modules()):
        raise UsageError(
            f"{method}: with use_spectral_norm=True the weights of this {name} are divided by their largest singular "
            "value, so their initial variance has no effect; build it with use_spectral_norm=False."
        )


def average(values: Sequence[float], places: Places) -> float | None:
    """Return the mean of what the targets ask for, None if there are none.

    Example:
        >>> average([1.0, 5.0], {0: 0.5, 1: 0.5})
        3.0
    """
    return sum(share * values[i] for i, share in places.items()) if places else None


# ---------------------------------------------------------------------- plain weights


@dataclass(frozen=True, slots=True)
class PlainPart(Part):
    """A tensor that is a weight itself, once for all conditions or once for each.

    Attributes:
        record: The record of the tensor.
        params: The parameters, none if they are external.
        places: The targets.

    Example:
        >>> weight = torch.empty(2)
        >>> PlainPart(ParamRecord((2,), "bias"), (weight,), {0: 1.0}).draw(InitPlan([], [HeadInit(bias_mean=0.5)]))
        >>> weight
        tensor([0.5000, 0.5000])
    """

    record: ParamRecord
    params: tuple[Tensor, ...]
    places: Places

    def check(self, method: str, plan: InitPlan) -> None:
        """See :meth:`Part.check`."""
        if not self.params and not self.record.conditional:
            raise UsageError(
                f"{method}: the container does not keep its plain weights (no_uncond_weights=True), so there is "
                "nothing to initialise; initialise one that keeps them, and pass its `unconditional_params`."
            )

    def draw(self, plan: InitPlan) -> None:
        """See :meth:`Part.draw`."""
        head = HeadInit.average(plan.plain, self.places)
        for param in self.params:
            draw_(param, head.bias_mean, head.bias_var + head.out_var)
