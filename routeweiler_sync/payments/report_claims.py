"""Which call of this process reports a payment to the trace, so that no two calls report the same one.

The ledger row says whether a payment is reported. Any call that finds a settled and unreported payment reports it, because the call
that settled it may have ended in a crash. Within a process that isn't enough:
  1. Call A settles a payment. Its trace event is written only when the call ends.
  2. Call B finds the row settled and unreported, and reports it too.
So the thread that settles a payment claims its report here, before any other thread can see the payment settled.

What is reported, and how, is left to `paywall.call_record`.
"""

from __future__ import annotations

import threading

from .._core.forks import in_child

#: Payment hash → id of the thread that claimed its report. A call, or a recovery, stays in one thread from beginning to end.
claimed: dict[str, int] = {}
_lock = threading.Lock()


def claim(payment_hash: str) -> bool:
    """Claim the report of a payment. Return False if a call of this process has claimed it already."""
    with _lock:
        if payment_hash in claimed:
            return False
        claimed[payment_hash] = threading.get_ident()
        return True


def release(payment_hash: str) -> None:
    """Release this thread's claim, since the payment is reported or couldn't be. A claim of another thread stays."""
    with _lock:
        if claimed.get(payment_hash) == threading.get_ident():
            del claimed[payment_hash]


def release_all() -> None:
    """Release all claims of this thread. Called when no call of the thread is in progress any more, however the last one ended."""
    this_thread = threading.get_ident()
    with _lock:
        for payment_hash in [each for each, owner in claimed.items() if owner == this_thread]:
            del claimed[payment_hash]


@in_child
def _start_over_after_fork() -> None:
    # The parent's calls report the parent's payments. Their threads don't exist here, nor does a thread that may have the lock.
    global _lock
    _lock = threading.Lock()
    claimed.clear()
