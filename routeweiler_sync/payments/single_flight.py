"""One purchase at a time for one scope, within a process. Between processes the ledger's unique index keeps to it.

Whoever comes while a purchase is under way waits for it, and shares how it ended.
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
    """A purchase under way in this process, and those who wait for it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.finished = 0
        self.owner: int | None = None
        #: Hex; set once there is a row for the purchase: from then on a wait that is given up leaves this payment in doubt.
        self.payment_hash: str | None = None
        self.error: RouteweilerError | None = None


_flights: dict[tuple[str, str, str], Flight] = {}
_registry_lock = threading.Lock()


@in_child
def _start_over_after_fork() -> None:
    global _registry_lock
    _registry_lock = threading.Lock()
    _flights.clear()


def _shared(error: RouteweilerError) -> RouteweilerError:
    """``error`` for another caller: what the payment came to, without the request and the answer of the call that made it."""
    mine = copy.copy(error)
    mine.request = mine.response = None
    return mine


@contextlib.contextmanager
def single_flight(key: tuple[str, str, str], deadline: Deadline) -> Iterator[Flight]:
    """Be the only one in this process to buy for ``key`` = (ledger, origin, scope).

    Raises what the purchase that was waited for raised, if that was about a payment; PaymentPendingError where the wait outlasts
    ``deadline``. No money moves here.
    """
    with _registry_lock:
        flight = _flights.setdefault(key, Flight())
        flight.users += 1
        seen = flight.finished
    try:
        waited = not flight.lock.acquire(blocking=False)
        if waited and flight.owner == threading.get_ident():
            raise PaymentDeclinedError(
                f"A token for {key[1]} ({key[2]}) is being bought by this very thread: a confirm() asks for the page that "
                "it is asked about.",
                advice="Ask for something else there, or without this session.",
            )
        if waited and not flight.lock.acquire(timeout=deadline.left_s()):
            payment_hash = flight.payment_hash
            if payment_hash is None:
                raise FundingError(
                    f"Another thread hasn't decided yet whether to buy a token for {key[1]} ({key[2]}): its node, or its "
                    "confirm(), takes its time.",
                    advice="Call again.",
                )
            raise PaymentPendingError(
                f"Another thread is still buying a token for {key[1]} ({key[2]}), payment {payment_hash}.",
                advice="Call again: the same purchase goes on, nothing is paid twice.",
                payment_hash=payment_hash,
            )
        try:
            if waited and flight.finished > seen and flight.error is not None:
                raise _shared(flight.error) from flight.error
            flight.error, flight.payment_hash, flight.owner = None, None, threading.get_ident()
            try:
                yield flight
            except RouteweilerError as error:
                # Only what the payment itself came to is shared: a budget, a policy, a body is each caller's own.
                # A copy: what the buyer's call makes of its error afterwards is the buyer's too.
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
            if flight.users == 0:
                _flights.pop(key, None)
