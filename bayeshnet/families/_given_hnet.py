"""A hypernetwork of the user's own, as the generator of a family."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from torch import nn

from bayeshnet.checks import kind_of
from bayeshnet.errors import ArgumentError, ArgumentTypeError
from bayeshnet.families.base import Start
from bayeshnet.hnets.hnet_interface import HyperNetInterface
from bayeshnet.mnets.param_table import num_weights

__all__ = ["HnetOrBuilder", "made_hnet"]

HnetOrBuilder: TypeAlias = "HyperNetInterface | Callable[[list[list[int]]], HyperNetInterface]"
"""A hypernetwork, or a function from target shapes to one."""


def made_hnet(given: HnetOrBuilder, start: Start) -> HyperNetInterface:
    """The hypernetwork that was given or is made by the function that was given.

    Raises:
        ArgumentError: If it does not fit the latents.
        ArgumentTypeError: If it is none.
    """
    itself = isinstance(given, HyperNetInterface)
    if itself and start.num_components:
        raise ArgumentError(
            "hnet: is one hypernetwork, and each component of a mixture needs its own; pass a function from target "
            "shapes to one."
        )
    if not itself and (not callable(given) or isinstance(given, nn.Module)):
        raise ArgumentTypeError(
            f"hnet: is {kind_of(given)}; pass a function from target shapes to a hypernetwork, or one itself."
        )
    hnet: object = given if itself else given(start.shapes)
    if not isinstance(hnet, HyperNetInterface):
        raise ArgumentTypeError(f"hnet: returned {kind_of(hnet)}; return a hypernetwork (HyperNetInterface).")
    if getattr(hnet, "cond_in_size", None) or hnet.num_known_conds:
        raise ArgumentError(
            f"hnet: this {type(hnet).__name__} needs a condition, and the guide feeds it with noise alone; build it "
            "with uncond_in_size=8, cond_in_size=0, such as hnet=lambda shapes: HMLP(shapes, uncond_in_size=8, "
            "cond_in_size=0). AutoHypernetNormal and AutoHypernetDelta take conditions."
        )
    if hnet.num_outputs != num_weights(start.shapes):
        raise ArgumentError(
            f"hnet: produces {hnet.num_outputs} numbers, and the latents that it draws are "
            f"{num_weights(start.shapes)}; build it from the target shapes that it is called with."
        )
    return hnet
