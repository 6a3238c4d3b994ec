"""Whether the parameters of a module have changed, at the price of looking at their versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

__all__ = ["module_state", "places_of"]


def places_of(module: nn.Module) -> list[Mapping[str, Tensor | None]]:
    """Return where a module and its submodules keep their parameters.

    Example:
        >>> [list(place) for place in places_of(nn.Sequential(nn.Linear(2, 1), nn.ReLU()))]
        [['weight', 'bias']]
    """
    return [part._parameters for part in module.modules() if part._parameters]  # pyright: ignore[reportPrivateUsage]


def module_state(places: Sequence[Mapping[str, Any]]) -> tuple[tuple[int, int], ...]:
    """Identity and version of every parameter: another tuple after any change in place, and after a replacement.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> places = places_of(layer)
        >>> before = module_state(places)
        >>> _ = layer.weight.data.add_(1.0), layer.bias.detach().zero_()
        >>> module_state(places) == before
        False
    """
    # Without a call for each parameter: this is looked at in every training step.
    try:
        return tuple([(id(p), p._version) for place in places for p in place.values() if p is not None])
    except RuntimeError:  # tensors of inference mode have no versions, and are not trained
        return ()
