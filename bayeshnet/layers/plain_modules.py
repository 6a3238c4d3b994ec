"""Whether calling a module does what its class says, and nothing else: what a fast form of it relies on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.nn.modules import module as _torch_modules

__all__ = ["all_plain", "has_hooks", "has_own_hooks", "is_plain"]


def has_hooks(module: nn.Module) -> bool:
    """Whether anything else happens when the module is called: hooks of its own, or hooks of all modules.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> handle = nn.modules.module.register_module_forward_hook(lambda module, args, output: output)
        >>> has_hooks(layer), handle.remove(), has_hooks(layer)
        (True, None, False)
    """
    return has_own_hooks(module) or _global_hooks()


def _global_hooks() -> bool:
    # Read at each call: they come and go with profilers and debuggers.
    return bool(
        _torch_modules._global_forward_hooks  # pyright: ignore[reportPrivateUsage] - has no public name
        or _torch_modules._global_forward_pre_hooks  # pyright: ignore[reportPrivateUsage]
        or _torch_modules._global_backward_hooks  # pyright: ignore[reportPrivateUsage]
        or _torch_modules._global_backward_pre_hooks  # pyright: ignore[reportPrivateUsage]
    )


def has_own_hooks(module: nn.Module) -> bool:
    """Whether hooks were registered on this module.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> handle = layer.register_forward_hook(lambda module, args, output: -output)
        >>> has_own_hooks(layer)
        True
    """
    state: dict[str, Any] = module.__dict__
    return bool(
        state["_forward_hooks"]
        or state["_forward_pre_hooks"]
        or state["_backward_hooks"]
        or state["_backward_pre_hooks"]
    )


def is_plain(module: nn.Module, forward: Any) -> bool:
    """Whether a call of the module is a call of this ``forward``: it is that of its class, not replaced, no hooks.

    Args:
        module: The module.
        forward: The function that its class is known to have.

    Example:
        >>> layer = nn.ReLU()
        >>> is_plain(layer, nn.ReLU.forward)
        True
        >>> layer.forward = lambda x: -x
        >>> is_plain(layer, nn.ReLU.forward)
        False
    """
    return all_plain(((module, forward),))


def all_plain(modules: Iterable[tuple[nn.Module, Any]]) -> bool:
    """Whether all of these modules are plain: :func:`is_plain` for many, in one call.

    Args:
        modules: Each module with the ``forward`` that its class is known to have.

    Example:
        >>> layers = [(nn.Linear(2, 1), nn.Linear.forward), (nn.ReLU(), nn.ReLU.forward)]
        >>> all_plain(layers)
        True
        >>> handle = layers[1][0].register_forward_hook(lambda module, args, output: -output)
        >>> all_plain(layers)
        False
    """
    if _global_hooks():
        return False
    for module, forward in modules:
        state: dict[str, Any] = module.__dict__
        if (
            type(module).forward is not forward
            or "forward" in state
            or state["_forward_hooks"]
            or state["_forward_pre_hooks"]
            or state["_backward_hooks"]
            or state["_backward_pre_hooks"]
        ):
            return False
    return True
