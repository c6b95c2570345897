"""The limit of ``routeweiler-sync run --max-sats``: what a program may spend, with all interpreters that it starts.

The sums are in a file that these processes share. Each line of it notes one change; a line that a crash has cut short is ignored.
How a limit is held is left to `block_limit`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from .._core.money import MAX_MINOR_UNITS, MSAT_PER_SAT
from ..errors import LedgerError
from ..trace.filelock import locked
from . import block_limit

#: For how long a process waits for another one that is reading or changing the sums.
LOCK_TIMEOUT_S = 10.0


class CommandLimit(block_limit.SpendingLimit):
    """A limit that processes share, with its sums in the file ``path``, which must exist."""

    def __init__(self, limit_msat: int, path: str, option: str) -> None:
        super().__init__(None, limit_msat, option=option)
        self.path = path
        self._is_held = False

    @contextmanager
    def _held(self) -> Iterator[None]:
        if self._is_held:  # a signal handler or finalizer in the middle of it: its change is written with that of its thread
            yield
            return
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_APPEND | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))
        except OSError as error:
            raise self._error(error.strerror or type(error).__name__) from None
        try:
            with locked(fd, timeout_s=LOCK_TIMEOUT_S) as is_held:
                if not is_held:
                    raise self._error("another process keeps it locked")
                self._spent, self._reserved = self._read(fd)
                before = (dict(self._spent), dict(self._reserved))
                self._is_held = True
                yield
                self._append(fd, before)
        finally:
            self._is_held = False
            os.close(fd)

    def _read(self, fd: int) -> tuple[dict[str, int], dict[str, int]]:
        """Return the sums in the file: what each payment has cost, and what is reserved for it."""
        text = b""
        try:
            os.lseek(fd, 0, os.SEEK_SET)
            while chunk := os.read(fd, 1 << 16):
                text += chunk
        except OSError as error:
            raise self._error(error.strerror or type(error).__name__) from None
        sums: dict[bytes, dict[str, int]] = {b"spent": {}, b"reserved": {}}
        for line in text.split(b"\n"):
            parts = line.split()
            if len(parts) != 4 or parts[3] != b"." or parts[0] not in sums or not parts[2].isdigit():
                continue
            kind, payment_hash, msat = parts[0], parts[1].decode(), int(parts[2])
            if msat:
                sums[kind][payment_hash] = msat
            else:
                sums[kind].pop(payment_hash, None)
        return sums[b"spent"], sums[b"reserved"]

    def _append(self, fd: int, before: tuple[dict[str, int], dict[str, int]]) -> None:
        """Write what has changed since ``before``. A spend goes first: a crash in between leaves both, never neither."""
        lines = ""
        for kind, old, new in (("spent", before[0], self._spent), ("reserved", before[1], self._reserved)):
            for payment_hash in {**old, **new}:
                if old.get(payment_hash) != new.get(payment_hash):
                    lines += f"\n{kind} {payment_hash} {new.get(payment_hash, 0)} .\n"
        try:
            if lines and os.write(fd, lines.encode()) != len(lines):
                raise self._error("the disk is full")
        except OSError as error:
            raise self._error(error.strerror or type(error).__name__) from None

    def _error(self, why: str) -> LedgerError:
        return LedgerError(
            f"What {self.option} still allows isn't known: {self.path} can't be used: {why}.",
            advice="Nothing more is bought by this run: start it again.",
        )


def set_from(variable: str) -> None:
    """Let the limits in ``variable``, the value of ROUTEWEILER_RUN_LIMIT, hold for every call of this process.

    There is a line for each command: a program that is run with a limit may run another one with a limit of its own.

    Raises: ValueError if ``variable`` isn't what ``routeweiler-sync run`` has set.
    """
    limits = []
    for line in variable.split("\n"):
        _, sats, path = line.split(" ", 2)
        limits.append(CommandLimit(min(int(sats), MAX_MINOR_UNITS) * MSAT_PER_SAT, path, f"--max-sats {sats}"))
    block_limit.of_process[:] = limits
