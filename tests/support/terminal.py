"""A process whose stderr, and if wanted stdout, is a terminal of its own (a pseudo-terminal). POSIX only."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

TIMEOUT_S = 120


class Terminal:
    """Runs ``command`` on a terminal, and collects what it writes there in ``text``; ``out`` is stdout where that is a pipe.

    ``on`` names the streams that are the terminal, of "out" and "err"; the other is a pipe. What goes to a stderr that is a pipe is
    in ``text`` too.
    """

    def __init__(
        self, command: Sequence[str], environ: Mapping[str, str], folder: Path, *, on: Sequence[str] = ("err",), columns: int = 80
    ) -> None:
        self._main, end = pty.openpty()
        fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self._written, self.out = b"", b""
        self.process = subprocess.Popen(
            command,
            env={"TERM": "xterm-256color", **environ},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=end if "out" in on else subprocess.PIPE,
            stderr=end if "err" in on else subprocess.PIPE,
        )
        os.close(end)
        self._threads = [threading.Thread(target=self._collect, args=(self._main,), daemon=True)]
        if self.process.stderr is not None:
            self._threads.append(threading.Thread(target=self._collect, args=(self.process.stderr.fileno(),), daemon=True))
        if self.process.stdout is not None:
            self._threads.append(threading.Thread(target=self._collect_out, daemon=True))
        for each in self._threads:
            each.start()

    @property
    def text(self) -> str:
        """What was written to the terminal so far."""
        return self._written.decode("utf-8", "replace")

    def wait_for(self, text: str, *, times: int = 1) -> None:
        """Wait until ``text`` was written ``times`` times."""
        end_s = time.monotonic() + TIMEOUT_S
        while self.text.count(text) < times:
            assert time.monotonic() < end_s, self.text
            assert self.process.poll() is None or any(each.is_alive() for each in self._threads), self.text
            time.sleep(0.01)

    def interrupt(self) -> None:
        """Send what Ctrl-C sends."""
        self.process.send_signal(signal.SIGINT)

    def wait(self) -> int:
        """Wait for the end, and return the exit code."""
        code = self.process.wait(TIMEOUT_S)
        for each in self._threads:
            each.join(TIMEOUT_S)
        return code

    def _collect(self, fd: int) -> None:
        while True:
            try:
                read = os.read(fd, 65536)
            except OSError:  # how Linux tells that the other end of a terminal is closed
                return
            if not read:
                return
            self._written += read

    def _collect_out(self) -> None:
        assert self.process.stdout is not None
        self.out = self.process.stdout.read()

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(TIMEOUT_S)
        for each in self._threads:
            each.join(TIMEOUT_S)
        os.close(self._main)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
