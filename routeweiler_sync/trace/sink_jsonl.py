"""Trace events as JSON lines. This module knows how several writers share one file; what a line contains is left to `schema`.

Each line is written with one call to a file opened for appending, while a lock between processes is held. On POSIX a single append
already keeps lines apart. The lock is for Windows, for lines that the system writes in several pieces, and for ending the half line
that a killed process has left.
"""

from __future__ import annotations

import os
import stat
from typing import Any

from .._core.files import open_private
from .filelock import locked
from .sink import TraceSink

__all__ = ["JsonlSink", "TraceSink"]

#: How long to wait for the lock. After that the line is written without it, so that a stopped process can't block the others.
LOCK_TIMEOUT_S = 1.0
#: How often the file is opened again for one event if it keeps being replaced.
MAX_OPENS = 3


class JsonlSink(TraceSink):
    """The sink that `TraceSink.jsonl` makes. Readers skip lines that aren't JSON: a process killed while writing may leave one."""

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
        """Return whether the path still names the open file. It doesn't after the log was rotated or deleted."""
        try:
            return os.path.samestat(os.fstat(fd), os.stat(self.path))
        except FileNotFoundError:
            return False

    def _close(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def _forget_after_fork(self) -> None:
        self._close()  # closes only this process's descriptor: the parent's stays open and keeps its lock


def _ends_torn(fd: int) -> bool:
    """Return whether the file ends without a newline: a process was killed while it wrote a line."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_size == 0:
        return False
    os.lseek(fd, -1, os.SEEK_END)
    return os.read(fd, 1) != b"\n"


def _write_all(fd: int, line: bytes) -> None:
    rest = memoryview(line)
    while rest:
        rest = rest[os.write(fd, rest) :]
