"""Trace events as JSON lines. This module knows how several writers share one file; what a line contains is left to `schema`.

Each line is written with one call to a file opened for appending, while a lock between processes is held. On POSIX a single append
already keeps lines apart. The lock is for Windows, for lines that the system writes in several pieces, and for ending the half line
that a killed process has left. Such a half line can only be there if the file doesn't end where this process has left it.

The file may also be a pipe or a device: a named pipe, /dev/stdout, a terminal. Such a file is never waited for without a bound. A
line that stays incomplete there, since the reader has stopped reading, is ended before the next one.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .._core.deadline import monotonic_s
from .._core.files import open_private, require_private, resolved
from .filelock import lock, unlock
from .sink import TraceSink

__all__ = ["JsonlSink", "TraceSink"]

#: How long to wait for the lock. After that the line is written without it, so that a stopped process can't block the others.
LOCK_TIMEOUT_S = 1.0
#: How much of the file's end is searched for the event of a payment whose call has died.
MAX_SEARCH_BYTES = 1 << 28
#: How often the file is opened again for one event if it keeps being replaced.
MAX_OPENS = 3
#: Pauses between two tries to open or write a pipe or device, in seconds.
_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.0005, 0.02
#: A descriptor that can't be made non-blocking gets at most this many bytes at a time: POSIX promises that they fit if any do.
_CHUNK_BYTES = 512


class JsonlSink(TraceSink):
    """The sink that `TraceSink.jsonl` makes. Readers skip lines that aren't JSON: a process killed while writing may leave one."""

    _takes_text = True
    _fd: int | None = None
    #: Device and inode of the open file.
    _identity: tuple[int, int] | None = None
    #: `path` when the file was opened, and as a text.
    _open_path: tuple[Path | None, str] = (None, "")
    #: The size of the file after this process's last line; None if it isn't sure that the line is whole.
    _end: int | None = None
    #: Whether the file is a pipe or a device.
    _is_special = False
    #: Whether the last line that went to the pipe or device is incomplete.
    _is_torn = False
    #: Whether another process kept the lock for too long. Then it isn't waited for until it is free again.
    _lock_is_stuck = False

    def _write(self, event_id: str, payload: dict[str, Any], text: str) -> None:
        line = text.encode("ascii") + b"\n"
        for _ in range(MAX_OPENS):
            fd = self._open_fd()
            is_locked = lock(fd, timeout_s=0.0) or self._waited_for_lock(fd)
            self._lock_is_stuck = not is_locked
            try:
                status = self._status_at_path()
                if status is None:
                    pass  # rotated: open the new file
                elif not self._is_special:
                    self._append(fd, line, status.st_size)
                    return
                elif self._write_special(fd, line):
                    return
            finally:
                if is_locked:
                    unlock(fd)
            self._close()
        raise OSError(f"{self.path} is replaced faster than it can be opened")

    def _waited_for_lock(self, fd: int) -> bool:
        if self._lock_is_stuck or self._is_nested:  # nested: this very thread may have the lock
            return False
        return lock(fd, timeout_s=max(0.0, min(LOCK_TIMEOUT_S, self._deadline_s - monotonic_s())))

    def _append(self, fd: int, line: bytes, size: int) -> None:
        """Write ``line`` to the regular file, which has this ``size``. First end the half line that a killed process has left."""
        if size != self._end and size and _last_byte(fd, size) != b"\n":
            line = b"\n" + line
        self._end = None
        rest = memoryview(line)
        while rest:
            rest = rest[os.write(fd, rest) :]
        self._end = size + len(line)

    def _find(self, payment_hash: str) -> Iterator[bytes]:
        if not self.path.is_file():  # a pipe, for instance: what was written to it is gone
            return
        wanted = payment_hash.encode()
        with self.path.open("rb") as file:
            file.seek(max(0, self.path.stat().st_size - MAX_SEARCH_BYTES))
            yield from (line for line in file if wanted in line)

    def _open_fd(self) -> int:
        if self._fd is None:
            with suppress(FileNotFoundError):
                mode = os.stat(self.path).st_mode
                if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                    fd, self._is_special = _open_special(self.path, self._deadline_s), True
                    return self._opened(fd)
            fd = open_private(self.path)
            try:
                require_private(resolved(self.path))
            except BaseException:
                os.close(fd)
                raise
            self._is_special = False
            return self._opened(fd)
        return self._fd

    def _opened(self, fd: int) -> int:
        status = os.fstat(fd)
        self._identity, self._end = (status.st_dev, status.st_ino), None
        self._fd, self._open_path = fd, (self.path, str(self.path))
        return fd

    def _write_special(self, fd: int, line: bytes) -> bool:
        """Write ``line`` to a pipe or device. Return False if its reader has gone: the next one may open it.

        Raises: TimeoutError if it takes nothing until ``_deadline_s``; OSError.
        """
        text = (b"\n" if self._is_torn else b"") + line
        written = 0
        try:
            with _without_sigpipe():
                for count in _pieces_written(fd, text, self._deadline_s):
                    written += count
        except BrokenPipeError:
            return False
        finally:
            if written:
                self._is_torn = text[written - 1 : written] != b"\n"
        return True

    def _status_at_path(self) -> os.stat_result | None:
        """Return the status of the open file; None if the path names it no more, because the log was rotated or deleted."""
        path, text = self._open_path  # to make a text of a path each time would cost more than to ask the system
        try:
            status = os.stat(text if path is self.path else self.path)
        except FileNotFoundError:
            return None
        return status if (status.st_dev, status.st_ino) == self._identity else None

    def _close(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def _forget_after_fork(self) -> None:
        self._close()  # closes only this process's descriptor: the parent's stays open and keeps its lock


def _last_byte(fd: int, size: int) -> bytes:
    """Return the last byte of a file of this ``size``."""
    if hasattr(os, "pread"):
        return os.pread(fd, 1, size - 1)
    os.lseek(fd, size - 1, os.SEEK_SET)
    return os.read(fd, 1)


def _open_special(path: os.PathLike[str], deadline_s: float) -> int:
    """Open a pipe or device for writing, waiting for a reader of the pipe if there is none.

    Raises: TimeoutError if nobody reads it until ``deadline_s``; OSError.
    """
    flags = os.O_WRONLY | os.O_APPEND | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
    pause_s = _FIRST_PAUSE_S
    while True:
        try:
            return os.open(path, flags)
        except OSError as error:
            if error.errno != errno.ENXIO:  # what POSIX says of a pipe without a reader
                raise
            if monotonic_s() >= deadline_s:
                raise TimeoutError("nobody reads from it") from None
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _MAX_PAUSE_S)


def _pieces_written(fd: int, text: bytes, deadline_s: float) -> Iterator[int]:
    """Write ``text`` to a pipe or device in as many pieces as it takes. Yield the length of each.

    Raises: TimeoutError if it takes nothing until ``deadline_s``; OSError.
    """
    may_block = os.name != "nt" and os.get_blocking(fd)  # where opening /dev/stdout duplicates the descriptor, as on macOS
    rest, pause_s = memoryview(text), _FIRST_PAUSE_S
    while rest:
        count = 0
        if may_block:
            with suppress(ValueError):  # a descriptor too high for select
                if not select.select([], [fd], [], max(0.0, deadline_s - monotonic_s()))[1]:
                    raise TimeoutError("its reader has stopped reading")
        with suppress(BlockingIOError):
            count = os.write(fd, rest[:_CHUNK_BYTES] if may_block else rest)
        if count:
            yield count
            rest, pause_s = rest[count:], _FIRST_PAUSE_S
            continue
        if monotonic_s() >= deadline_s:
            raise TimeoutError("its reader has stopped reading")
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _MAX_PAUSE_S)


@contextmanager
def _without_sigpipe() -> Iterator[None]:
    """Keep SIGPIPE from ending a program that has set it to its default, if the reader of the pipe has gone."""
    if not hasattr(signal, "pthread_sigmask") or signal.getsignal(signal.SIGPIPE) is signal.SIG_IGN:  # as Python sets it
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPIPE})
    try:
        yield
    finally:
        if signal.SIGPIPE not in before and signal.SIGPIPE in signal.sigpending():
            signal.sigwait({signal.SIGPIPE})
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
