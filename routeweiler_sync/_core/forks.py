"""Locks and imports at a fork of the process.

A fork copies only the thread that calls it. A lock that another thread holds at that moment stays locked in the child for ever, and
a module that another thread is importing stays half-made. So a fork waits for `importing`, the lock under which modules are
imported and shared objects made on first use. What is imported under it, and when, is left to `preload`; after that a function may
import a name where it uses it. New HTTP connections in a child are left to `transport.fork_pools`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable


def around_fork(*, before: Callable[[], object], in_parent: Callable[[], object], in_child: Callable[[], object]) -> None:
    """Call ``before`` before each fork of the process, and ``in_parent`` and ``in_child`` after it.

    If a fork is already in progress when this is called, the later two are skipped for that fork: ``before`` has not run. This
    happens to a module that is imported while a fork waits for the import to end.
    """
    begun: list[bool] = []

    def begin() -> None:
        before()
        begun.append(True)

    def end(after: Callable[[], object]) -> None:
        if begun:
            begun.clear()
            after()

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=begin, after_in_parent=lambda: end(in_parent), after_in_child=lambda: end(in_child))


def in_child(renew: Callable[[], None]) -> Callable[[], None]:
    """Decorator: call ``renew`` in each forked child, to replace locks that threads of the parent may have held."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=renew)
    return renew


#: Held while modules are imported or shared objects are made on first use. A fork waits for it. No other lock is taken while it is
#: held, so a thread that waits for it may hold any other lock without a deadlock.
importing = threading.RLock()
around_fork(before=importing.acquire, in_parent=importing.release, in_child=importing.release)
