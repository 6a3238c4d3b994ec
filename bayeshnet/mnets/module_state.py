"""Guards around an attempt to vectorise a network: on failure its state is what it was before."""

# A module's buffers are looked at in place.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bayeshnet.errors import UsageError

__all__ = ["Snapshot", "fresh", "restored_on_failure", "vectorising", "version"]


class Snapshot:
    """Random number generators and buffers as they are now.

    Args:
        net: The network.
        buffers: Its buffers too, at the cost of a copy.

    Example:
        >>> before = Snapshot(nn.Linear(1, 1), buffers=False)
        >>> first = torch.rand(())
        >>> before.restore()
        >>> torch.equal(torch.rand(()), first)
        True
    """

    def __init__(self, net: nn.Module, *, buffers: bool) -> None:
        self._cpu_state = torch.get_rng_state()
        self._cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        self._saved: list[tuple[nn.Module, str, Tensor, Tensor, int | None]] = []
        if buffers:
            for module in net.modules():
                for key, buffer in module._buffers.items():
                    if buffer is not None:
                        self._saved.append((module, key, buffer, buffer.detach().clone(), version(buffer)))

    def check_buffers(self) -> None:
        """Raise if a buffer is another one or was written to."""
        for module, key, buffer, value, count in self._saved:
            changed = version(buffer) != count if count is not None else not torch.equal(buffer, value)
            if module._buffers.get(key) is not buffer or changed:
                raise UsageError(f"buffer {key} of {type(module).__name__} changes while it is evaluated")

    def restore(self) -> None:
        """Put everything back."""
        for module, key, buffer, value, _ in self._saved:
            with torch.no_grad():
                buffer.copy_(value)
            module._buffers[key] = buffer
        torch.set_rng_state(self._cpu_state)
        if self._cuda_states:
            torch.cuda.set_rng_state_all(self._cuda_states)


@contextmanager
def restored_on_failure(net: nn.Module, *, buffers: bool) -> Generator[None, None, None]:
    """Restore random number generators and buffers if the block raises.

    A block that changes buffers counts as failed: vectorised code would write once what a loop writes once per sample,
    or leave a tensor of vmap behind.

    Args:
        net: The network.
        buffers: Watch the buffers, at the cost of a copy.

    Raises:
        UsageError: If the block changed buffers.

    Example:
        >>> try:
        ...     with restored_on_failure(nn.Linear(1, 1), buffers=False):
        ...         first = torch.rand(())
        ...         raise KeyError
        ... except KeyError:
        ...     print(torch.equal(torch.rand(()), first))
        True
    """
    before = Snapshot(net, buffers=buffers)
    try:
        yield
        before.check_buffers()
    except BaseException:
        before.restore()
        raise


def fresh(tree: Any) -> Any:
    """Return the same structure with copies of its tensors, which a network may write to.

    Example:
        >>> x = {"a": torch.zeros(2)}
        >>> _ = fresh(x)["a"].add_(1.0)
        >>> x
        {'a': tensor([0., 0.])}
    """
    if isinstance(tree, Tensor):
        copied = tree.clone()
        if tree.requires_grad and not (copied.requires_grad or copied.is_inference()):
            copied.requires_grad_()  # without gradients, too, PyTorch's choice between kernels depends on it
        return copied
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*map(fresh, tree))
    if type(tree) in (tuple, list):
        return type(tree)(map(fresh, tree))
    if type(tree) is dict:
        return {key: fresh(part) for key, part in tree.items()}
    return tree


def version(tensor: Tensor) -> int | None:
    """Return how often the tensor was written to, None where PyTorch does not count.

    Example:
        >>> t = torch.zeros(2)
        >>> before = version(t)
        >>> version(t.add_(1.0)) - before
        1
    """
    return None if tensor.is_inference() else tensor._version


@contextmanager
def vectorising() -> Generator[None, None, None]:
    """Silence the warnings of ``torch.func.vmap`` about operations without a batching rule.

    Example:
        >>> with vectorising():
        ...     torch.func.vmap(torch.sin)(torch.zeros(2))
        tensor([0., 0.])
    """
    with warnings.catch_warnings():
        # An operation without a rule runs sample by sample inside vmap; the result is right.
        warnings.filterwarnings("ignore", message="There is a performance drop because")
        yield
