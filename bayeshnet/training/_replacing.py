"""Replacing a file as a whole: written beside it, then renamed, so that at any time the old or the new is there."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import stat
import sys
from collections.abc import Generator
from pathlib import Path
from typing import BinaryIO, NoReturn

if sys.platform == "win32":
    fcntl = None
else:
    import fcntl

__all__ = ["TEMPORARY", "replacing"]

TEMPORARY = ".bayeshnet-tmp"
"""Ending of the files that are being written."""

# A folder that cannot be flushed to the disk is not worth an error: its file system does not offer it.
_NOT_OFFERED = {errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM, errno.EBADF}
_FIXES = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the quota is used up; free some space",
    errno.EFBIG: "the file would be larger than is allowed here",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.EACCES: "you may not write there; choose another folder, or change its permissions",
    errno.EPERM: "you may not write there; choose another folder, or change its permissions",
    errno.ENOENT: "its folder is not there; make it first",
    errno.ENOTDIR: "a part of the path is a file; choose another folder",
    errno.EISDIR: "there is a folder of this name; choose another name",
    errno.ENAMETOOLONG: "its name is too long; choose a shorter one",
    errno.ELOOP: "it is a link that leads to itself; remove it",
}


@contextlib.contextmanager
def replacing(path: Path) -> Generator[BinaryIO]:
    """Write a file that takes the place of the one at ``path`` when the block ends without an error.

    What is written goes to a temporary file in the same folder, is flushed to the disk, and is then renamed. Whatever
    happens before, the old file stays as it is. A link stays a link, and what it leads to is replaced; another hard
    link keeps the old contents; the permissions of the old file are kept. Temporary files that dead processes have left
    in the folder are removed first; those of living ones are locked.

    Args:
        path: The file to replace or to make; its folder has to be there.

    Yields:
        A file to write to, which can also be sought in.

    Raises:
        OSError: If it cannot be written; the message says what to do.

    Example:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> path = Path(folder.name, "run")
        >>> with replacing(path) as file:
        ...     _ = file.write(b"new")
        >>> path.read_bytes(), os.listdir(folder.name)
        (b'new', ['run'])
        >>> folder.cleanup()
    """
    temporary: Path | None = None
    what_is_there = "a file that was there is unchanged"
    try:
        target, mode = _target_of(path)
        _remove_strays(target.parent)
        temporary, descriptor = _temporary(target)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            if mode is not None and hasattr(os, "fchmod"):
                os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
            if sys.platform == "win32":  # an open file cannot be renamed there
                file.close()
            os.replace(temporary, target)
            temporary, what_is_there = None, "the new file is there, but a loss of power may bring back the old one"
        _flush_folder(target.parent)
    except OSError as error:
        _raise(error, path, what_is_there)
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()


def _target_of(path: Path) -> tuple[Path, int | None]:
    """The file itself, behind any links, and its permissions if it is there."""
    target = Path(os.path.realpath(path))
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return target, None
    if not stat.S_ISREG(mode):
        code = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(code, os.strerror(code))
    if not os.access(target, os.W_OK):  # a rename would not ask
        raise OSError(errno.EACCES, "the file that is there is write-protected")
    return target, stat.S_IMODE(mode)


def _temporary(target: Path) -> tuple[Path, int]:
    """Make a file beside the target, locked for as long as it is open."""
    short = target.name.encode("utf-8", "surrogateescape")[:60].decode("utf-8", "ignore")
    same = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:8]
    if len(os.fsencode(target.name)) > 255:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    while True:
        path = target.with_name(f".{short}.{same}.{os.getpid()}.{secrets.token_hex(4)}{TEMPORARY}")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
        descriptor = os.open(path, flags, 0o666)
        _lock(descriptor)
        # Between the two calls another process may have taken it for one that was left behind.
        if os.fstat(descriptor).st_nlink > 0 or sys.platform == "win32":
            return path, descriptor
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Lock a file without waiting; the lock ends with the process. False if another one has it, or there are none."""
    if fcntl is None:
        return True  # an open file cannot be removed on Windows
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _remove_strays(folder: Path) -> None:
    """Remove the temporary files of processes that are dead."""
    found: list[str] = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:  # a folder need not be readable
        found = [entry.path for entry in entries if entry.name.startswith(".") and entry.name.endswith(TEMPORARY)]
    for stray in found:
        with contextlib.suppress(OSError):
            descriptor = os.open(stray, os.O_RDWR)
            try:
                if _lock(descriptor):
                    os.unlink(stray)
            finally:
                os.close(descriptor)


def _flush_folder(folder: Path) -> None:
    """Write a folder's entries to the disk, so that the new name survives a loss of power."""
    if sys.platform == "win32":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NOT_OFFERED:
            raise


def _raise(error: OSError, path: Path, what_is_there: str) -> NoReturn:
    """Say of an error what was to be written, and what helps."""
    fix = _FIXES.get(error.errno or 0)
    reason = error.strerror or str(error)
    raise OSError(
        error.errno, f"path: {path} cannot be written ({reason}){f'; {fix}' if fix else ''}; {what_is_there}."
    ) from error
