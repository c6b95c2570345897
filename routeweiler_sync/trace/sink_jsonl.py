"""Trace events as JSON lines. Knows how many writers share one file; what is in a line is known to `schema`.

A line is one write of the whole line to a file opened for appending, under a lock between processes. On POSIX the first alone
keeps lines apart; the lock is for Windows, for lines that the system writes in pieces, and for mending the line that a killed
writer left half-written.
"""

from __future__ import annotations

import os
import stat
from typing import Any

from .filelock import locked
from .sink import TraceSink, open_private

__all__ = ["JsonlSink", "TraceSink"]

#: A writer that was stopped while it held the lock must not stop the others: then they write without it.
LOCK_TIMEOUT_S = 1.0
#: Bound on following a path whose file is replaced again and again.
MAX_OPENS = 3


class JsonlSink(TraceSink):
    """`TraceSink.jsonl`. Readers skip a line that isn't JSON: a killed writer may leave one."""

    _fd: int | None = None

    def _write(self, event_id: str, payload: dict[str, Any], text: str) -> None:
        for _ in range(MAX_OPENS):
            fd = self._open_fd()
            with locked(fd, timeout_s=LOCK_TIMEOUT_S):
                if self._is_at_path(fd):
                    torn = b"\n" if _ends_torn(fd) else b""
                    _write_all(fd, torn + text.encode("ascii") + b"\n")
                    return
            self._close()
        raise OSError(f"{self.path} is replaced faster than it can be opened")

    def _open_fd(self) -> int:
        if self._fd is None:
            self._fd = open_private(self.path)
        return self._fd

    def _is_at_path(self, fd: int) -> bool:
        """Whether the path still means the open file: false after the log was rotated or deleted."""
        try:
            return os.path.samestat(os.fstat(fd), os.stat(self.path))
        except FileNotFoundError:
            return False

    def _close(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def _forget_after_fork(self) -> None:
        self._close()  # this process's descriptor alone: the parent's file, and its lock, stay


def _ends_torn(fd: int) -> bool:
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_size == 0:
        return False
    os.lseek(fd, -1, os.SEEK_END)
    return os.read(fd, 1) != b"\n"


def _write_all(fd: int, line: bytes) -> None:
    rest = memoryview(line)
    while rest:
        rest = rest[os.write(fd, rest) :]
