"""Ctrl-C while the command ``routeweiler-sync`` is still being imported ends it quietly, not by a traceback of Python's imports.

The package imports this module before anything else. In any other program it does nothing.
"""

from __future__ import annotations

import os
import sys
import threading
from types import FrameType

#: The exit code of a command that Ctrl-C has ended, as shells have it: 128 + SIGINT.
EXIT_CODE = 130


def _is_the_command() -> bool:
    """Return whether this process was started as ``routeweiler-sync`` or ``python -m routeweiler_sync``."""
    script = sys.argv[0] if sys.argv else ""
    if script == "-m":  # Python has yet to find the module: it imports the module's package first
        given = sys.orig_argv
        return given[given.index("-m") + 1 :][:1] == ["routeweiler_sync"] if "-m" in given else False
    return os.path.splitext(os.path.basename(script))[0] == "routeweiler-sync"


def _end(signum: int, frame: FrameType | None) -> None:
    os._exit(EXIT_CODE)  # nothing is open, and nothing printed, while the command is being imported


def begin() -> None:
    """Let Ctrl-C end the process at once from now on, if it is the command, and Ctrl-C isn't ignored or handled already."""
    if threading.current_thread() is not threading.main_thread() or not _is_the_command():
        return
    import signal  # here, because no other program should wait for it

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def end() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again."""
    import signal

    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


begin()
