"""Decoupled weight decay, whatever the optimiser and whoever writes the training loop."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

__all__ = ["GroupDecay"]


class GroupDecay:
    """Decoupled weight decay of those parameter groups that ask for it, after each step of any torch optimiser.

    The parameters of a group with a ``"decay"`` shrink by the factor ``1 - lr * decay``, as in AdamW, with the learning
    rate that the stepping optimiser has for them then. Parameters without a gradient stay, as in torch. Optimisers of
    other parameters are left alone. The decay ends with :meth:`remove`, or with this object: torch's hooks hold no
    reference to it.

    Args:
        groups: Parameter groups, as ``guide.param_groups(lr)`` returns them.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> decay = GroupDecay([{"params": [weight], "decay": 2.0}])
        >>> weight.grad = torch.zeros(2)
        >>> optimizer = torch.optim.SGD([weight], lr=0.1)
        >>> optimizer.step()
        >>> weight.data
        tensor([0.8000, 0.8000])
        >>> decay.remove()
        >>> optimizer.step()
        >>> weight.data
        tensor([0.8000, 0.8000])
    """

    def __init__(self, groups: Iterable[Mapping[str, Any]]) -> None:
        # Parameters are known by their identity; they are kept, so that no other object comes to have it.
        self._decays: dict[int, tuple[Tensor, float]] = {
            id(param): (param, group["decay"]) for group in groups if group.get("decay") for param in group["params"]
        }
        # Parameters of an update that has begun. One optimiser may call the step of another, or that of its base class,
        # and each of the two runs the hooks; the update decays once.
        self._pending: set[int] = set()
        self._handles: list[RemovableHandle] = []
        if self._decays:
            self._handles.append(register_optimizer_step_pre_hook(_hook(weakref.WeakMethod(self._begin))))
            self._handles.append(register_optimizer_step_post_hook(_hook(weakref.WeakMethod(self._end))))
            for handle in self._handles:
                weakref.finalize(self, handle.remove)

    def remove(self) -> None:
        """End the decay; calling this again changes nothing."""
        for handle in self._handles:
            handle.remove()

    def _begin(self, optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            self._pending.update(id(param) for param in group["params"] if id(param) in self._decays)

    @torch.no_grad()
    def _end(self, optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups if self._pending else ():
            for param in group["params"]:
                if id(param) in self._pending:
                    self._pending.remove(id(param))
                    if param.grad is None:  # the step has left it alone, as a frozen one
                        continue
                    param.mul_(max(0.0, 1.0 - group["lr"] * self._decays[id(param)][1]))


def _hook(method: weakref.WeakMethod[Callable[[torch.optim.Optimizer], None]]) -> Callable[..., None]:
    """A hook of torch that does nothing once the method's object is gone."""

    def call(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if (bound := method()) is not None:
            bound(optimizer)

    return call
