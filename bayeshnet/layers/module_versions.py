"""Where a module keeps its parameters, for those who look whether they have changed."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

__all__ = ["places_of"]


def places_of(module: nn.Module) -> list[Mapping[str, Tensor | None]]:
    """Return where a module and its submodules keep their parameters, to be looked at again and again.

    A parameter that is replaced is found in the same place; the modules have to stay what they are.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> places = places_of(layer)
        >>> layer.bias = nn.Parameter(layer.bias + 1.0)
        >>> places[0]["bias"] is layer.bias
        True
    """
    return [part._parameters for part in module.modules() if part._parameters]  # pyright: ignore[reportPrivateUsage]
