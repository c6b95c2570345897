"""Ctrl-C in a command that makes things which must be removed again: it ends between two steps, quietly.

Python's own KeyboardInterrupt may come anywhere: in the middle of an import, of a cleanup, or of the interpreter's end.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

#: A Ctrl-C this long after the first that hasn't been heeded interrupts at once: the step hangs.
_PATIENCE_S = 2.0

#: Whether this process is the command, and ends with it. Set by `routeweiler_sync.__main__`.
is_process = False


class StopSignal:
    """Notes that Ctrl-C was pressed. ``check`` raises KeyboardInterrupt if so, once; what is pressed after that is ignored."""

    def __init__(self) -> None:
        self._pressed_s: float | None = None
        self._heeded = False

    def check(self) -> None:
        """Raise KeyboardInterrupt if Ctrl-C was pressed. Call it where nothing is half done."""
        if self._pressed_s is not None and not self._heeded:
            self._heeded = True
            raise KeyboardInterrupt

    def press(self, *_: Any) -> None:
        """Note that Ctrl-C was pressed. Raise KeyboardInterrupt if that was noted long ago."""
        now_s = time.monotonic()
        if self._pressed_s is None:
            self._pressed_s = now_s
        elif now_s - self._pressed_s > _PATIENCE_S:
            self.check()


@contextlib.contextmanager
def stop_signal() -> Iterator[StopSignal]:
    """Let Ctrl-C only be noted in the block. After it, it works as before; in a process that ends now, it is ignored."""
    stop = StopSignal()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # signals are the main thread's
        return
    before = signal.signal(signal.SIGINT, stop.press)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN if is_process else before)
