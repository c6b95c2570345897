"""`Deadline`: how long a call may still wait. Waiting itself is left to the callers."""

from __future__ import annotations

import time
from typing import Final


class Deadline:
    """A moment on the monotonic clock, ``timeout_s`` seconds from now, until which a call waits for the wallet."""

    def __init__(self, timeout_s: float) -> None:
        self._end: Final = time.monotonic() + timeout_s

    def left_s(self) -> float:
        """Return the seconds that are left, never below 0."""
        return max(0.0, self._end - time.monotonic())

    @property
    def passed(self) -> bool:
        """Whether no time is left."""
        return self.left_s() == 0.0
