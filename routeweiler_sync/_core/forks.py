"""What a fork must not fall into: locks that another thread holds, and imports, which in the child would stay as they are for ever.

Importing routeweiler_sync is cheap, since what a session, a payment, a trace need is imported when there is one. Here is the lock
under which it is; after that, a function may import a name where it uses it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable


def around_fork(*, before: Callable[[], object], in_parent: Callable[[], object], in_child: Callable[[], object]) -> None:
    """Call ``before`` ahead of each fork of the process and the others behind it, or none of the three.

    None: where this is said while a fork is waiting already, as happens to a module that is imported meanwhile.
    """
    under_way: list[bool] = []

    def begin() -> None:
        before()
        under_way.append(True)

    def end(how: Callable[[], object]) -> None:
        if under_way:
            under_way.clear()
            how()

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=begin, after_in_parent=lambda: end(in_parent), after_in_child=lambda: end(in_child))


def in_child(renew: Callable[[], None]) -> Callable[[], None]:
    """Call ``renew`` in each forked child, where the threads that hold this module's locks don't exist. A decorator."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=renew)
    return renew


#: Held while something is imported or made on first use. A fork waits for it. No other lock is taken under it, so that whoever
#: waits for it may hold any other.
importing = threading.RLock()
around_fork(before=importing.acquire, in_parent=importing.release, in_child=importing.release)
