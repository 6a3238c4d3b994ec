"""Where a module keeps its parameters, for those who look whether they have changed."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

__all__ = ["places_of"]


def places_of(module: nn.Module) -> list[Mapping[str, Tensor | None]]:
    """Return where a module and its submodules keep their parameters and buffers, to be looked at again and again.

    A parameter that is replaced is found in the same place; the modules have to stay what they are.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> places = places_of(layer)
        >>> layer.bias = nn.Parameter(layer.bias + 1.0)
        >>> places[0]["bias"] is layer.bias
        True
    """
    parts = [place for part in module.modules() for place in (part._parameters, part._buffers)]  # pyright: ignore[reportPrivateUsage]
    return [place for place in parts if place]
