"""Whether calling a module does what its class says, and nothing else: what a fast form of it relies on."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules import module as _torch_modules

__all__ = ["are_plain", "has_hooks", "has_own_hooks", "is_plain"]


def has_hooks(module: nn.Module) -> bool:
    """Whether anything else happens when the module is called: hooks of its own, or hooks of all modules.

    Example:
        >>> layer = nn.Linear(2, 1)
        >>> handle = nn.modules.module.register_module_forward_hook(lambda module, args, output: output)
        >>> has_hooks(layer), handle.remove(), has_hooks(layer)
        (True, None, False)
    """
    return bool(
        has_own_hooks(module)
        # Read at each call: they come and go with profilers and debuggers.
        or _torch_modules._global_forward_hooks  # pyright: ignore[reportPrivateUsage] - has no public name
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
    return type(module).forward is forward and "forward" not in module.__dict__ and not has_hooks(module)


def are_plain(*calls: tuple[nn.Module, Any]) -> bool:
    """Whether :func:`is_plain` holds for every pair of a module and the ``forward`` that its class is known to have.

    Example:
        >>> are_plain((nn.ReLU(), nn.ReLU.forward), (nn.Tanh(), nn.ReLU.forward))
        False
    """
    return all(is_plain(module, forward) for module, forward in calls)
