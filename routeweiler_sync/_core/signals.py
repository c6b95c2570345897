"""Exceptions that a signal handler of the program raises: a time limit of a task (Celery's, RQ's), an alarm of one's own.

Such an exception comes up at whatever instruction the main thread is at. It says nothing about what was being done there, even if
it is an `Exception`: code that takes an `Exception` for the fault of a wallet must let it pass, as KeyboardInterrupt passes.
"""

from __future__ import annotations

import functools
import signal
import threading
from types import CodeType, TracebackType


def came_by_signal(error: BaseException) -> bool:
    """Return whether ``error``, just caught, was raised by one of the signal handlers that are installed now."""
    if threading.current_thread() is not threading.main_thread():
        return False  # handlers run in the main thread alone
    codes = {code for number in signal.valid_signals() if (code := _code_of(signal.getsignal(number))) is not None}
    step: TracebackType | None = error.__traceback__ if codes else None
    while step is not None:
        if step.tb_frame.f_code in codes:
            return True
        step = step.tb_next
    return False


def _code_of(handler: object) -> CodeType | None:
    """Return the code that runs when ``handler`` is called; None for one that isn't written in Python."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    handler = getattr(handler, "__func__", handler)
    code = getattr(handler, "__code__", None)
    if code is None and callable(handler):
        code = getattr(type(handler).__call__, "__code__", None)
    return code if isinstance(code, CodeType) else None
