"""How long a call may still wait: a `Deadline` for its wallet, a `Patience` for its ledger. Waiting itself is left to the callers.

Both end also where a program has frozen or replaced the functions of `time`, as libraries for tests do: they read the system's own
clock, and count every pause that they were asked for.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Final

#: A pause counts for at least this long, so that a loop of pauses ends even if neither the clock nor `time.sleep` works.
PAUSE_S_MIN = 0.001

#: The system's monotonic clock, in seconds. Not ``time.monotonic``, which a program's tests may freeze. Wrapped, because freezegun
#: replaces the functions of `time` in every module that holds them.
monotonic_s: Final[Callable[[], float]] = (
    functools.partial(time.clock_gettime, time.CLOCK_MONOTONIC)
    if hasattr(time, "clock_gettime") and hasattr(time, "CLOCK_MONOTONIC")
    else functools.partial(time.monotonic)
)


class Deadline:
    """A moment on the monotonic clock, ``timeout_s`` seconds from now, until which a call waits."""

    def __init__(self, timeout_s: float) -> None:
        self._end: Final = monotonic_s() + timeout_s
        #: What is left if the clock stands still.
        self._pauses_left_s = timeout_s

    def left_s(self) -> float:
        """Return the seconds that are left, never below 0."""
        return max(0.0, min(self._end - monotonic_s(), self._pauses_left_s))

    @property
    def passed(self) -> bool:
        """Whether no time is left."""
        return self.left_s() == 0.0

    def pause(self, pause_s: float) -> None:
        """Sleep for ``pause_s`` seconds, or for those that are left if they are fewer."""
        pause_s = min(pause_s, self.left_s())
        time.sleep(pause_s)
        self._pauses_left_s -= max(pause_s, PAUSE_S_MIN)


#: A call may wait for its ledger for this long in all, also where its own timeout is shorter: other programs write to it too.
PATIENCE_S_MIN = 3.0


class Patience:
    """How many seconds one call may wait for its ledger, all its waits together."""

    def __init__(self, left_s: float) -> None:
        self.left_s = left_s

    def spend(self, waited_s: float) -> None:
        """Count a wait of ``waited_s`` seconds."""
        self.left_s = max(0.0, self.left_s - waited_s)


_patience: ContextVar[Patience | None] = ContextVar("routeweiler_sync_patience", default=None)


class patience:  # noqa: N801  (used like a function; a generator would cost each paid call three times as much)
    """Let what runs in the block wait for its ledger for at most ``limit`` in all: seconds, or what is left of a `Patience`."""

    def __init__(self, limit: float | Patience | None) -> None:
        self._limit = Patience(limit) if isinstance(limit, (int, float)) else limit

    def __enter__(self) -> None:
        self._token = _patience.set(self._limit)

    def __exit__(self, *raised: object) -> None:
        _patience.reset(self._token)


class LedgerWait:
    """One wait for the ledger: at most ``limit_s`` seconds, and no longer than the call's `patience`, but at least ``least_s``."""

    def __init__(self, limit_s: float, *, least_s: float = 0.0) -> None:
        self._patience = _patience.get()
        self.allowed_s: Final = limit_s if self._patience is None else min(limit_s, max(self._patience.left_s, least_s))
        self._deadline = Deadline(self.allowed_s)

    def left_s(self) -> float:
        """Return the seconds that are left of this wait, never below 0."""
        return self._deadline.left_s()

    @property
    def passed(self) -> bool:
        """Whether no time is left."""
        return self._deadline.passed

    def pause(self, pause_s: float) -> None:
        """Sleep for ``pause_s`` seconds, or for those that are left if they are fewer."""
        self._deadline.pause(pause_s)

    def end(self, *, in_vain: bool = False) -> None:
        """Count this wait against the call's patience. ``in_vain``: the ledger didn't answer, so that all of it counts."""
        if self._patience is not None:
            self._patience.spend(self.allowed_s if in_vain else self.allowed_s - self.left_s())
