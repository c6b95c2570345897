"""A lock between processes on an open file: flock on POSIX, a byte lock on Windows. The system frees it when its holder dies."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_FIRST_PAUSE_S = 0.0005
_MAX_PAUSE_S = 0.01

if sys.platform == "win32":
    import msvcrt

    #: Locks are mandatory on Windows: a byte that no trace reaches, so that readers aren't shut out.
    _LOCKED_BYTE = 0x7FFF_FFF0

    def _try_lock(fd: int) -> None:
        os.lseek(fd, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)

    def _unlock(fd: int) -> None:
        os.lseek(fd, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(fd, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _try_lock(fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _unlock(fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_UN)


@contextmanager
def locked(fd: int, *, timeout_s: float) -> Iterator[bool]:
    """Hold the lock on ``fd``, or go on without it after ``timeout_s`` (a stopped holder) or where the file system has none.

    Yields whether it is held.
    """
    held = _wait_for(fd, timeout_s)
    try:
        yield held
    finally:
        if held:
            with suppress(OSError):
                _unlock(fd)


def _wait_for(fd: int, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    pause_s = _FIRST_PAUSE_S
    while True:
        try:
            _try_lock(fd)
        except (BlockingIOError, PermissionError):  # held by another, as POSIX and as Windows say it
            if time.monotonic() >= deadline:
                return False
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _MAX_PAUSE_S)
        except OSError:
            return False
        else:
            return True
