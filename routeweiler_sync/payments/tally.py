"""What a session's calls have spent, for ``session.spent_msat`` and ``session.spending()``.

A payment counts for the session that booked it as paid: whose call, or `recover`, wrote the wallet's word to the ledger. The ledger
books each payment once, so it counts once, whichever sessions, threads, processes and runs took part in it. That is also the call
whose `Payment` has ``reused=False``. A payment that stays pending counts for nobody until a later call or `recover` books it, and
then for that one's session.

Tallies live in memory. What all programs have spent is in the ledger: see `ledger.spending`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .._core.forks import in_child
from ..errors import LedgerError
from . import run_bill
from .report_claims import this_claimant

if TYPE_CHECKING:
    from ..ledger.ledger import Ledger
    from ..ledger.spending import Spending
    from ..ledger.types import PaymentRow

#: The most entries in `_doubtful`. The oldest are dropped, and then aren't counted.
MAX_DOUBTFUL = 10_000
#: Guards all tallies, so that a payment counts in all of a call's tallies or in none. Never kept over a wait. Reentrant, so that a
#: signal handler or finalizer in the middle of it can't wait for its own thread.
_lock = threading.RLock()
#: Payments (by hash) whose booking was interrupted or failed in this process, so that it isn't known whether it was committed; each
#: with the ledger that knows, and the tallies in which it counts then.
_doubtful: dict[str, tuple[Ledger, tuple[Tally, ...]]] = {}


class Tally:
    """Counts what the calls of a session have spent, by origin. Thread-safe. In a forked child it begins at 0."""

    def __init__(self) -> None:
        #: By origin: amounts and fees in msat, fees alone in msat, payments, calls.
        self._sums: dict[str, tuple[int, int, int, int]] = {}
        self._pid = os.getpid()

    def spending(self) -> Spending:
        """Return what was spent so far. Asks the ledger only about a payment whose booking was interrupted."""
        from ..ledger.spending import Spending

        sums = self._sums_now()
        if not sums:
            return Spending(calls=0)
        return Spending.of_origins(
            {
                origin: Spending(total_msat=total_msat, fees_msat=fees_msat, payments=payments, calls=calls)
                for origin, (total_msat, fees_msat, payments, calls) in sums.items()
            }
        )

    @property
    def spent_msat(self) -> int:
        """What was spent so far, routing fees included, in msat."""
        return sum(total_msat for total_msat, *_ in self._sums_now().values())

    @property
    def known_msat(self) -> int:
        """As `spent_msat`, but without asking the ledger about a payment whose booking was interrupted."""
        return sum(total_msat for total_msat, *_ in self._sums_now(ask=False).values())

    def _sums_now(self, *, ask: bool = True) -> dict[str, tuple[int, int, int, int]]:
        if ask:
            end_doubts(self)
        with _lock:
            self._start_over_after_fork()
            return dict(self._sums)

    def _start_over_after_fork(self) -> None:
        """In a forked child, begin at 0: what was spent before is in the parent's count. The caller has the lock."""
        if self._pid != os.getpid():
            self._sums, self._pid = {}, os.getpid()

    def _add(self, origin: str, *, total_msat: int = 0, fees_msat: int = 0, payments: int = 0, calls: int = 0) -> None:
        """Add to the sums of ``origin``. The caller has the lock."""
        self._start_over_after_fork()
        more = (total_msat, fees_msat, payments, calls)
        before = self._sums.get(origin, (0, 0, 0, 0))
        self._sums[origin] = (before[0] + more[0], before[1] + more[1], before[2] + more[2], before[3] + more[3])


@in_child
def _renew_after_fork() -> None:
    global _lock
    _lock = threading.RLock()
    _doubtful.clear()  # they are the parent's payments


def count_call(tallies: Iterable[Tally], origins: Iterable[str]) -> None:
    """Count a call that used payments or tokens of ``origins``."""
    origins = set(origins)
    with _lock:
        for tally in tallies:
            for origin in origins:
                tally._add(origin, calls=1)


def count_payment(tallies: Iterable[Tally], row: PaymentRow) -> None:
    """Count the payment ``row``, which was settled now."""
    with _lock:
        _doubtful.pop(row.payment_hash, None)
        run_bill.note_paid(row)
        for tally in tallies:
            tally._add(row.origin, total_msat=row.amount_msat + row.fee_msat, fees_msat=row.fee_msat, payments=1)


@contextmanager
def booking(ledger: Ledger, payment_hash: str, tallies: Sequence[Tally]) -> Iterator[None]:
    """Note that the block books a payment. If it is interrupted or fails, sums that are asked for later look whether it was booked.

    An interrupt may come between the commit and the end of the block. A commit that failed may have been done all the same.
    """
    try:
        yield
    except BaseException:
        with _lock:
            while len(_doubtful) >= MAX_DOUBTFUL:
                del _doubtful[next(iter(_doubtful))]
            _doubtful[payment_hash] = (ledger, tuple(tallies))
        raise


def end_doubts(tally: Tally | None = None) -> None:
    """Count the payments whose booking was interrupted after it was committed: those of ``tally``, or all.

    What can't be looked up stays. Raises nothing.
    """
    if not _doubtful:
        return
    with _lock:
        mine = [(each, *rest) for each, rest in _doubtful.items() if tally is None or tally in rest[1]]
    for payment_hash, ledger, tallies in mine:
        try:
            row = ledger.payment(payment_hash)
        except LedgerError:
            continue
        with _lock:
            if _doubtful.pop(payment_hash, None) is None:
                continue  # counted by another thread meanwhile
            if row is not None and row.settled_at is not None and row.claimant == this_claimant():
                count_payment(tallies, row)
