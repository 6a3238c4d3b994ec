"""What PyTorch is doing around a call, as far as functions of our own have to know."""

from __future__ import annotations

import torch

__all__ = ["ordinary_rules_apply", "own_gradients_apply", "under_functorch"]


def under_functorch() -> bool:
    """Whether a transform of ``torch.func`` is active: tensors may then be wrapped, and buffers cannot take those.

    Example:
        >>> under_functorch()
        False
    """
    return torch._C._are_functorch_transforms_active()  # pyright: ignore[reportPrivateUsage] - has no public name


def ordinary_rules_apply(device: torch.device) -> bool:
    """Whether functions on this device compute what they are written as: no ``torch.func``, no ``torch.autocast``.

    Example:
        >>> with torch.no_grad():
        ...     ordinary_rules_apply(torch.device("cpu"))
        True
        >>> with torch.autocast("cpu"):
        ...     ordinary_rules_apply(torch.device("cpu"))
        False
    """
    return not under_functorch() and not torch.is_autocast_enabled(device.type)


def own_gradients_apply(device: torch.device) -> bool:
    """Whether a function with a gradient of our own may be used: one is wanted, and by PyTorch's ordinary rules.

    ``torch.func`` and mixed precision (``torch.autocast``) have rules that only PyTorch's own functions follow.

    Example:
        >>> with torch.no_grad():
        ...     own_gradients_apply(torch.device("cpu"))
        False
    """
    return torch.is_grad_enabled() and ordinary_rules_apply(device)
