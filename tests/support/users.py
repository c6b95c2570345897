"""Code that runs with the file rights of another user."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Callable, Iterator

#: "nobody", by its number.
NOBODY = 65534


@contextlib.contextmanager
def somebody() -> Iterator[None]:
    """As a user whom file modes bind.

    On Linux only this thread's file accesses change. A change of the whole process would also bind the test's servers, which then
    might not be allowed to start a thread or to import a module.
    """
    if os.geteuid() != 0:
        yield
        return
    become: Callable[[int], object] = ctypes.CDLL(None).setfsuid if sys.platform == "linux" else os.seteuid
    become(NOBODY)
    try:
        yield
    finally:
        become(0)
