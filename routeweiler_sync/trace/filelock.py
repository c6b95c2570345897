"""A lock between processes on an open file: flock on POSIX, a byte lock on Windows. The system frees it when the process dies."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from .._core.deadline import Deadline

_FIRST_PAUSE_S = 0.0005
_MAX_PAUSE_S = 0.01

if sys.platform == "win32":
    import msvcrt

    #: Offset of the locked byte. On Windows a locked byte can't be read, so it lies beyond the end of any trace.
    _LOCKED_BYTE = 0x7FFF_FFF0

    def _try_lock(fd: int) -> None:
        os.lseek(fd, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)

    def _unlock(fd: int) -> None:
        os.lseek(fd, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(fd, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    _TRY = fcntl.LOCK_EX | fcntl.LOCK_NB

    def _try_lock(fd: int) -> None:
        fcntl.flock(fd, _TRY)

    def _unlock(fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_UN)


@contextmanager
def locked(fd: int, *, timeout_s: float) -> Iterator[bool]:
    """Hold the lock on ``fd`` during the block. Yield whether it is held.

    It isn't, and the block runs all the same, if another process keeps it for ``timeout_s`` seconds (that process may be stopped),
    or if the file system has no locks.
    """
    held = lock(fd, timeout_s=timeout_s)
    try:
        yield held
    finally:
        if held:
            unlock(fd)


def unlock(fd: int) -> None:
    """Give back the lock that `lock` took."""
    try:  # noqa: SIM105 - cheaper than suppress, and done for each line
        _unlock(fd)
    except OSError:
        pass


def lock(fd: int, *, timeout_s: float) -> bool:
    """Do what `locked` does at the begin of its block. Return whether the lock is held: then `unlock` must follow."""
    deadline: Deadline | None = None
    pause_s = _FIRST_PAUSE_S
    while True:
        try:
            _try_lock(fd)
        except (BlockingIOError, PermissionError):  # another process has it: POSIX raises the first, Windows the second
            deadline = deadline or Deadline(timeout_s)
            if deadline.passed:
                return False
            deadline.pause(pause_s)
            pause_s = min(2 * pause_s, _MAX_PAUSE_S)
        except OSError:
            return False
        else:
            return True
