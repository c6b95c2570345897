"""One purchase at a time for one scope and for one page within a process. Between processes, the ledger's unique indexes ensure the
same.

A caller that comes while a purchase is in progress waits for it. If the purchase ends with an error about its payment, the waiting
callers get that error too. If it ends with a token, they find the token in the ledger. What is bought, and when, is left to
`checkout`.
"""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Iterator

from .._core.deadline import Deadline
from .._core.forks import in_child
from ..errors import FundingError, PaymentDeclinedError, PaymentPendingError, RouteweilerError


class Flight:
    """A purchase in progress in this process, and the state that it shares with the callers that wait for it."""

    def __init__(self) -> None:
        #: Reentrant, so that a thread can't wait for itself: whoever takes it and finds itself the `owner` is refused.
        self.lock = threading.RLock()
        #: The flight of the page around this one of a scope. It gets to know the same payment.
        self.around: Flight | None = None
        #: How many callers buy or wait. At 0 the flight is forgotten.
        self.users = 0
        #: How many purchases of this flight have ended. A waiting caller sees by it that one ended during its wait.
        self.finished = 0
        #: The id of the thread that is buying.
        self.owner: int | None = None
        self._payment_hash: str | None = None
        #: The error of the last purchase, if it was about its payment.
        self.error: RouteweilerError | None = None

    @property
    def payment_hash(self) -> str | None:
        """Hex. Set once the purchase has a ledger row: a caller that gives up waiting names the payment from then on."""
        return self._payment_hash

    @payment_hash.setter
    def payment_hash(self, payment_hash: str | None) -> None:
        self._payment_hash = payment_hash
        if self.around is not None:
            self.around.payment_hash = payment_hash


_flights: dict[tuple[str, str, str], Flight] = {}
#: Reentrant, so that a signal handler or finalizer in the middle of it can't wait for its own thread.
_registry_lock = threading.RLock()


@in_child
def _start_over_after_fork() -> None:
    global _registry_lock
    _registry_lock = threading.RLock()
    _flights.clear()


def _shared(error: RouteweilerError) -> RouteweilerError:
    """Return a copy of ``error`` for another caller, without the request and the response of the call that it came from."""
    shared = copy.copy(error)
    shared.request = shared.response = None
    return shared


@contextlib.contextmanager
def single_flight(
    key: tuple[str, str, str], deadline: Deadline, *, shown: str | None = None, around: Flight | None = None
) -> Iterator[Flight]:
    """Run the block as the only one in this process that buys for ``key`` = (ledger URL, origin, scope or page).

    ``shown`` names scope or page in error texts; None means the scope in ``key``. ``around`` is the flight of the page, in which
    this one is.

    While another thread is in such a block for the same ``key``, wait for it, at most until ``deadline``.

    Raises: the error of the purchase that was waited for, if it was about a payment. If the wait outlasts ``deadline``:
    PaymentPendingError where that purchase has a ledger row, else FundingError. PaymentDeclinedError if this very thread is in the
    block already.
    Money: none moves here.
    """
    what = f"{key[1]} ({key[2] if shown is None else shown})"
    with _registry_lock:
        flight = _flights.setdefault(key, Flight())
        flight.users += 1
        seen = flight.finished
    try:
        waited = not flight.lock.acquire(blocking=False)
        if not waited and flight.owner == threading.get_ident():
            flight.lock.release()
            raise PaymentDeclinedError(
                f"This thread is buying a token for {what} already: its confirm(), or a signal handler or finalizer that has "
                "interrupted it, requests the page that it is buying.",
                advice="In confirm(), request another page, or use a session that doesn't pay. In a handler, call again later.",
            )
        if waited and not flight.lock.acquire(timeout=deadline.left_s()):
            payment_hash = flight.payment_hash
            if payment_hash is None:
                raise FundingError(
                    f"Another thread hasn't decided yet whether to buy a token for {what}: its node or its confirm() "
                    "hasn't answered.",
                    advice="Call again.",
                )
            raise PaymentPendingError(
                f"Another thread is still buying a token for {what}, payment {payment_hash}.",
                advice="Call again: the same purchase goes on, nothing is paid twice.",
                payment_hash=payment_hash,
            )
        try:
            if waited and flight.finished > seen and flight.error is not None:
                raise _shared(flight.error) from flight.error
            flight.around = around
            flight.error, flight.payment_hash, flight.owner = None, None, threading.get_ident()
            try:
                yield flight
            except RouteweilerError as error:
                # Only an error about the payment itself is shared: budget, policy and body are different for each caller.
                # A copy, because the buyer's call adds its own request and response to the error afterwards.
                flight.error = copy.copy(error) if error.payment_hash is not None else None
                raise
            finally:
                flight.finished += 1
        finally:
            flight.owner = None
            flight.lock.release()
    finally:
        with _registry_lock:
            flight.users -= 1
            if flight.users == 0 and _flights.get(key) is flight:
                del _flights[key]
