"""One thread at a time: Pyro keeps its effect handlers in one global stack, and networks their weights in one place."""

# Pyro has no public names for its stacks.
# pyright: reportPrivateUsage=false

from __future__ import annotations

import os
import threading
from collections.abc import Generator
from contextlib import contextmanager

from pyro.poutine.runtime import _DIM_ALLOCATOR, _PYRO_STACK

from bayeshnet.errors import UsageError

__all__ = ["one_thread"]


class _Turn:
    """The lock, and what its owner does."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.running: list[str] = []
        """What the thread with the lock is doing, from the outermost call to the innermost."""


_TURN = _Turn()


def _after_fork() -> None:
    """In a child process there are no other threads, whatever they were doing in its parent."""
    _TURN.__init__()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


@contextmanager
def one_thread(what: str) -> Generator[None, None, None]:
    """Run a block while no other thread runs one; a thread that is in one may enter others.

    Pyro's stack of effect handlers is shared by all threads, so that two programs at once see each other's sites: they
    fail, or take each other's values. And a network that is evaluated with sampled weights holds them for that time.
    A block waits for those of other threads, except for a ``fit``, which may take hours. Where an error leaves the
    block, Ctrl-C for instance, Pyro's stack, and the places of its plates, become what they were before.

    Args:
        what: The name of the function, for the message.

    Raises:
        UsageError: If another thread is in a ``fit``.

    Example:
        >>> with one_thread("fit"), one_thread("predict"):
        ...     pass
    """
    lock, running = _TURN.lock, _TURN.running  # those of this process, even if the block forks
    while not lock.acquire(timeout=0.05):
        if "fit" in running:
            raise UsageError(
                f"{what}: another thread is in fit, and Pyro has one stack of effect handlers for all threads. Call "
                "them one after the other, or run them in processes of their own."
            )
    try:
        running.append(what)
        depth, plates = len(_PYRO_STACK), list(_DIM_ALLOCATOR._stack)
        try:
            yield
        except BaseException:
            del _PYRO_STACK[depth:]
            _DIM_ALLOCATOR._stack[:] = plates
            raise
        finally:
            running.pop()
    finally:
        lock.release()
