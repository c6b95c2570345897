"""Which new tokens are reserved for the call that bought them, until that call has used them once.

Without this, a token that opens a page only once could be lost to its buyer:
  1. Call A buys a token for a scope. Call B waits for the same purchase.
  2. The purchase ends. B gets the token too, and its request reaches the server first.
  3. The server refuses A, which has paid.

The reservation holds within this process and for at most `FIRST_USE_S`. Who buys is left to `checkout`.
"""

from __future__ import annotations

import threading

from .._core.deadline import Deadline
from .._core.forks import in_child
from ..errors import PaymentDeclinedError

#: A new token is reserved for its buyer for at most this long: a server may take its time to answer.
FIRST_USE_S = 5.0
#: For each reserved token, by payment hash: when the reservation ends at the latest, a lock that is released when it ends, and the
#: id of the buyer's thread. A lock rather than an event: a signal handler in the middle of an event's methods would wait for its
#: own thread.
first_uses: dict[str, tuple[Deadline, threading.Lock, int]] = {}


@in_child
def _start_over_after_fork() -> None:
    first_uses.clear()


def begin_first_use(payment_hash: str) -> None:
    """Reserve the token of ``payment_hash`` for its buyer until `end_first_use`, for at most `FIRST_USE_S`."""
    ends = threading.Lock()
    ends.acquire()
    first_uses[payment_hash] = (Deadline(FIRST_USE_S), ends, threading.get_ident())


def end_first_use(payment_hash: str) -> None:
    """End the reservation, so that other calls may use the token. Do nothing if it isn't reserved."""
    entry = first_uses.pop(payment_hash, None)
    if entry is not None:
        entry[1].release()


def end_first_uses() -> None:
    """End all reservations of this thread. Called when no call of it is in progress any more, however the last one ended."""
    this_thread = threading.get_ident()
    for payment_hash in [each for each, entry in list(first_uses.items()) if entry[2] == this_thread]:
        end_first_use(payment_hash)


def in_first_use(payment_hash: str) -> bool:
    """Return whether the token is reserved for its buyer."""
    entry = first_uses.get(payment_hash)
    return entry is not None and not entry[0].passed


def wait_for_first_use(payment_hash: str) -> bool:
    """Wait until the token is no longer reserved for its buyer. Return False if it wasn't reserved.

    Raises: PaymentDeclinedError in the buyer's own thread, in a signal handler or finalizer that has interrupted it.
    """
    entry = first_uses.get(payment_hash)
    if entry is None:
        return False
    deadline, ends, buyer = entry
    if buyer == threading.get_ident() and not deadline.passed:
        raise PaymentDeclinedError(
            f"This same thread has bought the token of payment {payment_hash} for a call that was interrupted before it used it.",
            advice="The interrupted call goes on undisturbed. Call again when it has ended.",
        )
    if ends.acquire(timeout=deadline.left_s()):
        ends.release()  # for the next one that waits
    return True
