"""Evaluation mode within a block; afterwards every submodule is in the mode it was in before."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from pyro.poutine.messenger import unwrap
from torch import nn

__all__ = ["evaluating"]

_LOCK = threading.Lock()
# Modules that are being evaluated: by how many blocks, and the mode to go back to. Blocks may be nested, or open in
# several threads at once: the first one notes the mode, and the last one restores it.
_OPEN: dict[int, tuple[int, nn.Module, bool]] = {}


@contextmanager
def evaluating(*parts: Any) -> Generator[None, None, None]:
    """Put modules into evaluation mode, and leave each of their submodules as it was, also if an error is raised.

    ``module.train(mode)`` in the end would not do: it puts *all* submodules into one mode, and a batch norm that was
    frozen with ``eval()`` would train from then on.

    Args:
        parts: Modules, also inside of Pyro's handlers; anything else is ignored.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2).eval(), nn.Dropout())
        >>> with evaluating(net):
        ...     [module.training for module in net]
        [False, False, False]
        >>> [module.training for module in net]
        [True, False, True]
    """
    unwrapped = [unwrap(part) if callable(part) else part for part in parts]
    roots = [part for part in unwrapped if isinstance(part, nn.Module)]
    modules = list({id(module): module for root in roots for module in root.modules()}.values())
    with _LOCK:
        for module in modules:
            count, _, mode = _OPEN.get(id(module), (0, module, module.training))
            _OPEN[id(module)] = (count + 1, module, mode)
    try:
        for root in roots:
            root.eval()
        yield
    finally:
        with _LOCK:
            _restore(modules)


def _restore(modules: list[nn.Module]) -> None:
    modes: list[tuple[nn.Module, bool]] = []
    for module in modules:
        count, _, mode = _OPEN.pop(id(module))
        if count > 1:
            _OPEN[id(module)] = (count - 1, module, mode)
        else:
            modes.append((module, mode))
    # Some modules do more than set a flag when their mode changes, and do it to their submodules as well.
    for module, mode in modes:
        if type(module).train is not nn.Module.train and module.training != mode:
            module.train(mode)
    for module, mode in modes:
        module.training = mode
