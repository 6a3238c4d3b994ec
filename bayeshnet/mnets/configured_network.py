"""Networks that remember what their constructor was given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bayeshnet.configuration import Configured, described
from bayeshnet.configuration.describing import Described

__all__ = ["ConfiguredNetwork"]


class ConfiguredNetwork(Configured):
    """The description of a main network or hypernetwork: what it was built with, its weights apart.

    Example:
        >>> from bayeshnet.mnets import MLP
        >>> MLP(2, 1, (5,), verbose=False).configuration()["hidden_layers"].data
        {'kind': 'tuple', 'items': [5]}
    """

    configured_as = "network"
    unrecorded = frozenset({"init_weights"})

    def configuration(self) -> Mapping[str, Any]:
        """See :meth:`Configured.configuration`; attributes have meanings of their own here, but the activation."""
        recorded = self.recorded()
        own = {**vars(self).get("_modules", {}), **vars(self)}
        if "activation_fn" in recorded and "activation_fn" in own:  # it may be set
            recorded["activation_fn"] = Described(described(own["activation_fn"]))
        return recorded

    def not_compared(self) -> tuple[str, ...]:
        """Where the weights are, and what is printed."""
        return ("no_weights", "verbose")
