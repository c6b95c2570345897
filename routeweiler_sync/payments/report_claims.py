"""Which call of this process is to tell the trace of a payment, so that no two do.

A payment that the ledger holds as settled and untold is told by whoever meets it: its own call may have ended in a crash. Within a
process it is known better: whoever settles a payment claims it here, before any other thread can see it settled.
"""

from __future__ import annotations

import threading

from .._core.forks import in_child

#: Payment hash → the thread that claimed it. A call, or a recovery, lives in one thread from its beginning to its end.
claimed: dict[str, int] = {}
_lock = threading.Lock()


def claim(payment_hash: str) -> bool:
    """Claim to tell of a payment; False where a call of this process has claimed it already."""
    with _lock:
        if payment_hash in claimed:
            return False
        claimed[payment_hash] = threading.get_ident()
        return True


def release(payment_hash: str) -> None:
    """Give up this thread's claim: the payment has been told, or its call couldn't tell it. Others' claims stay."""
    with _lock:
        if claimed.get(payment_hash) == threading.get_ident():
            del claimed[payment_hash]


def release_all() -> None:
    """Give up all that this thread has claimed: no call of it is under way any more, however the last one ended."""
    mine = threading.get_ident()
    with _lock:
        for payment_hash in [each for each, owner in claimed.items() if owner == mine]:
            del claimed[payment_hash]


@in_child
def _start_over_after_fork() -> None:
    # The parent's calls tell of the parent's payments; their threads, and the lock's holder, don't exist here.
    global _lock
    _lock = threading.Lock()
    claimed.clear()
