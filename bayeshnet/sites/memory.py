"""How much memory there is, and requests that need more than that."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from bayeshnet.errors import ArgumentError

__all__ = ["available_memory", "in_bytes", "refuse_too_large"]

# Reading the limits takes a tenth of a millisecond; what needs less than this fits anywhere.
_SMALL = 2**28


def available_memory(device: torch.device | str = "cpu", *, root: str | Path = "/") -> int | None:
    """Return the bytes that can still be allocated; None where the system does not say.

    On the CPU the least of what Linux calls available and of what the control groups of the process leave
    (containers); on a GPU what its driver calls free.

    Args:
        device: Where the memory is wanted.
        root: Folder in which ``proc`` and ``sys`` are looked for.

    Example:
        >>> left = available_memory()
        >>> left is None or left > 0
        True
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    found = [_of_system(Path(root)), *_of_groups(Path(root))]
    return min((number for number in found if number is not None), default=None)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:  # another platform, or a file that only others may read
        return ""


def _number(text: str) -> int | None:
    return int(text) if text.strip().isdigit() else None


def _of_system(root: Path) -> int | None:
    lines = [line.split() for line in _read(root / "proc/meminfo").splitlines()]
    return next((1024 * int(words[1]) for words in lines if words[:1] == ["MemAvailable:"]), None)


def _of_groups(root: Path) -> list[int | None]:
    """What each control group of the process, and each that it is in, leaves; of the second version and the first."""
    left: list[int | None] = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        second = controllers == ""
        if not second and "memory" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" if second else root / "sys/fs/cgroup/memory"
        names = ("memory.max", "memory.current") if second else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        file_key = "inactive_file" if second else "total_inactive_file"
        inside = top / path.lstrip("/")
        # Inside of a container the path is that of the host, and the group itself is at the top.
        for folder in {inside, top, *(parent for parent in inside.parents if top in parent.parents)}:
            limit, used = (_number(_read(folder / name)) for name in names)
            if limit is not None and used is not None:
                words = [line.split() for line in _read(folder / "memory.stat").splitlines()]
                cached = next((int(pair[1]) for pair in words if pair[:1] == [file_key]), 0)  # given up on demand
                left.append(max(0, limit - used + cached))
    return left


def in_bytes(number: float) -> str:
    """A number of bytes for people, in powers of 1000.

    Example:
        >>> in_bytes(3.2e9), in_bytes(45e6), in_bytes(1200)
        ('3.2 GB', '45 MB', '1.2 kB')
    """
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if number >= size:
            return f"{number / size:.{1 if number < 10 * size else 0}f} {unit}"
    return f"{number / 1e3:.1f} kB"


def refuse_too_large(needed: int, what: str, choices: Sequence[str], *, device: torch.device | str = "cpu") -> None:
    """Raise if a request needs more memory than there is; nothing where the system does not say how much that is.

    Args:
        needed: Bytes that it needs at least.
        what: The argument and what was asked for, to begin the message with.
        choices: What can be done instead.
        device: Where the memory is wanted.

    Raises:
        ArgumentError: If it does not fit.

    Example:
        >>> refuse_too_large(10**18, "num_samples: is 10**9", ["pass num_samples=100"])
        Traceback (most recent call last):
        ...
        bayeshnet.errors.ArgumentError: num_samples: is 10**9, which takes at least 1000000000 GB of memory, and ...
    """
    left = available_memory(device) if needed > _SMALL else None
    if left is not None and needed > left:
        raise ArgumentError(
            f"{what}, which takes at least {in_bytes(needed)} of memory, and {in_bytes(left)} are left; "
            f"{', or '.join(choices)}."
        )
