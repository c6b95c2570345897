"""``session.limit(sats=…)``: what the calls of one ``with`` block may spend, and what they have spent. No I/O.

A limit counts the payment orders that its block sends, for the first time or again, with their routing fees. Before an order
leaves, its amount and the most that its routing may cost are reserved. The node's reply turns the reservation into a spend, or
releases it. While a payment's outcome isn't known, its reservation stays.

Limits live in memory, in a context variable. What a budget envelope allows over many programs is left to `ledger.envelopes`.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .._core.display import facts_table
from .._core.forks import in_child
from .._core.money import MAX_MINOR_UNITS, MSAT_PER_SAT, sats as in_sats
from .._core.secret_text import shown
from ..errors import BudgetExceededError, LedgerError, PaymentDeclinedError

if TYPE_CHECKING:
    from ..ledger.types import PaymentRow

#: Guards the sums of all limits, so that a payment counts for all limits around it or for none. Never kept over a wait. Reentrant,
#: so that a signal handler or finalizer in the middle of it can't wait for its own thread.
_lock = threading.RLock()
#: Whether the thread that has the lock is between a look at the limits and its reservation in them.
_reserving = False


@in_child
def _start_over_after_fork() -> None:
    global _lock, _reserving
    _lock, _reserving = threading.RLock(), False


class SpendingLimit:
    """The limit of a block that is running, and what the block has spent so far. Made by `Routeweiler.limit`. Thread-safe.

    ``option`` is the option of a command that set the limit, as it was given, for the texts of errors; None for a block of code.
    """

    def __init__(self, payer: object, limit_msat: int, *, option: str | None = None) -> None:
        self.limit_msat = limit_msat
        self.option = option
        self._payer = payer
        self._spent: dict[str, int] = {}
        self._reserved: dict[str, int] = {}
        self._stopped = False

    def stop(self) -> None:
        """Let no further payment order of the block leave. One that has left before goes on: ``reserved_msat`` tells of it."""
        with _lock:
            self._stopped = True

    def count_before(self, spent_msat: int) -> None:
        """Count ``spent_msat``, which was spent before the block began, as spent by it."""
        with _sums([self]):
            self._spent["before"] = spent_msat

    def _held(self) -> AbstractContextManager[object]:
        """Return a context manager in which the sums are up to date and may be changed. The caller has the lock.

        Raises: on entering, LedgerError if the sums can't be had; a limit that is shared with other processes has them in a file.
        """
        return nullcontext()

    @property
    def spent_msat(self) -> int:
        """What the block has spent so far, routing fees included, in msat. Payments whose outcome isn't known aren't counted."""
        with _sums([self]):
            return sum(self._spent.values())

    @property
    def reserved_msat(self) -> int:
        """The most that the block's payments with a yet unknown outcome may cost, routing fees included, in msat."""
        with _sums([self]):
            return sum(self._reserved.values())

    def _headroom_msat(self) -> int:
        """Return what the limit leaves, in msat. The caller has the lock."""
        return self.limit_msat - sum(self._spent.values()) - sum(self._reserved.values())

    def __repr__(self) -> str:
        return f"<limit of {in_sats(self.limit_msat)}, {in_sats(self.spent_msat)} spent, {in_sats(self.reserved_msat)} reserved>"

    def _repr_html_(self) -> str:
        with _sums([self]):
            facts = [("spent", self.spent_msat), ("reserved", self.reserved_msat), ("left", max(0, self._headroom_msat()))]
        return facts_table(f"Limit of {in_sats(self.limit_msat)}", [(name, in_sats(msat)) for name, msat in facts])


#: The limits that hold for every call of this process, whoever pays: that of the command that runs the program.
of_process: list[SpendingLimit] = []
_active: contextvars.ContextVar[tuple[SpendingLimit, ...]] = contextvars.ContextVar("routeweiler_sync_limits", default=())


def active(payers: tuple[object, ...]) -> tuple[SpendingLimit, ...]:
    """Return the limits that hold for the present call of ``payers``, the outermost first."""
    return (*of_process, *(each for each in _active.get() if any(each._payer is payer for payer in payers)))


@contextmanager
def _sums(limits: Iterable[SpendingLimit]) -> Iterator[None]:
    """Hold the sums of all ``limits``, so that no other thread or process changes them."""
    with _lock, ExitStack() as stack:
        for each in limits:
            stack.enter_context(each._held())
        yield


class Block(AbstractContextManager[SpendingLimit]):
    """A context manager in whose block ``payer`` spends at most ``sats``. It can be entered once. ``option``: see `SpendingLimit`.

    Raises: ValueError if ``sats`` can't be a limit; RuntimeError if it is entered a second time.
    """

    def __init__(self, payer: object, sats: int, *, option: str | None = None) -> None:
        if isinstance(sats, bool) or not isinstance(sats, int) or not 0 <= sats <= MAX_MINOR_UNITS:
            raise ValueError(f"sats is a whole number of sats from 0 to {MAX_MINOR_UNITS}, not {shown(sats)}")
        self._limit = SpendingLimit(payer, sats * MSAT_PER_SAT, option=option)
        self._entered = False

    def __enter__(self) -> SpendingLimit:
        if self._entered:
            raise RuntimeError("this limit has been used for a block already. Call session.limit(sats=…) again for another.")
        self._entered = True
        _active.set((*_active.get(), self._limit))
        return self._limit

    def __exit__(self, *_: object) -> None:
        # Not with ContextVar.reset(): a block inside a generator may end in another context than it began in.
        _active.set(tuple(each for each in _active.get() if each is not self._limit))


def _reserve(
    limits: Iterable[SpendingLimit], payment_hash: str, amount_msat: int, fee_cap_msat: int, *, whole: bool
) -> tuple[int, list[SpendingLimit]]:
    """Reserve a payment's cost in all ``limits``. Return the fee limit that fits, in msat, and the limits that hold it from now on.

    Raises: BudgetExceededError if the payment doesn't fit into one of the limits, and in a signal handler or finalizer that has
    interrupted this very function; PaymentDeclinedError if one of them is stopped. Nothing is reserved then.
    """
    global _reserving
    limits = list(limits)
    with _lock:
        if _reserving:
            raise BudgetExceededError(
                "This same thread was interrupted while it counted another payment against a limit() block.",
                advice="The interrupted payment goes on undisturbed. Call again when it has ended.",
            )
        try:
            _reserving = True
            with _sums(limits):
                new = [each for each in limits if payment_hash not in each._reserved and payment_hash not in each._spent]
                for each in new:
                    if each._stopped:
                        raise PaymentDeclinedError("The call was cancelled before it paid.", advice="Call again.")
                    headroom_msat = each._headroom_msat()
                    if headroom_msat < amount_msat + (fee_cap_msat if whole else 0):
                        raise _exceeded(each, headroom_msat, amount_msat, fee_cap_msat if whole else 0)
                    fee_cap_msat = min(fee_cap_msat, headroom_msat - amount_msat)
                for each in new:
                    each._reserved[payment_hash] = amount_msat + fee_cap_msat
        finally:
            _reserving = False
    return fee_cap_msat, new


def _exceeded(limit: SpendingLimit, headroom_msat: int, amount_msat: int, fee_msat: int) -> BudgetExceededError:
    """Return the error for a payment of ``amount_msat``, and ``fee_msat`` for routing, that doesn't fit under ``limit``."""
    cost = f"The price of {in_sats(amount_msat)}"
    if fee_msat:
        cost += f", with {in_sats(fee_msat)} for routing,"
    under = limit.option or f"this block's limit(sats={limit.limit_msat // MSAT_PER_SAT})"
    return BudgetExceededError(
        f"{cost} doesn't fit under {under}: {in_sats(max(0, headroom_msat))} are left of it.",
        advice="Give the block a higher limit, or make the call outside of the block."
        if limit.option is None
        else f"Give {limit.option.split()[0]} a higher number, if it is worth that much.",
    )


@dataclass(slots=True)
class Reservation:
    """What `reserved` has reserved for one payment. ``fee_cap_msat`` is the most that the payment's routing may cost."""

    fee_cap_msat: int
    _kept: bool = False

    def keep(self) -> None:
        """Keep the reservation beyond the ``with`` block: the payment's order may leave now, and `record` will release it."""
        self._kept = True


@contextmanager
def reserved(
    limits: Sequence[SpendingLimit], payment_hash: str, amount_msat: int, fee_cap_msat: int, *, whole: bool = False
) -> Iterator[Reservation]:
    """Reserve a payment's cost in all ``limits`` before its order leaves. Release it at the end, unless `keep` was called.

    The reservation's fee limit is ``fee_cap_msat``, or less if the amount fits into a limit and ``fee_cap_msat`` doesn't. With
    ``whole``, the fee limit doesn't shrink: all must fit. A payment that is reserved already, since an earlier order of the block
    is unanswered, isn't reserved twice, and stays reserved.

    Raises: BudgetExceededError if the payment doesn't fit into one of the limits, PaymentDeclinedError if one of them is stopped.
    Nothing is reserved then.
    """
    fee_limit_msat, new = _reserve(limits, payment_hash, amount_msat, fee_cap_msat, whole=whole)
    reservation = Reservation(fee_limit_msat)
    try:
        yield reservation
    finally:
        if not reservation._kept:
            with suppress(LedgerError), _sums(new):  # what can't be released counts on: that is on the safe side
                for each in new:
                    each._reserved.pop(payment_hash, None)


def record(limits: Iterable[SpendingLimit], row: PaymentRow) -> None:
    """Turn the reservation of the payment ``row`` into a spend, or release it if the row ended unpaid.

    Does nothing while the row is unfinished, and in limits that have no reservation for it: its order wasn't one of their block's.
    """
    if row.unfinished:
        return
    limits = list(limits)
    with suppress(LedgerError), _sums(limits):  # the reservation counts on: it is at least the spend
        for each in limits:
            if each._reserved.pop(row.payment_hash, None) is not None and row.settled_at is not None:
                each._spent[row.payment_hash] = row.amount_msat + row.fee_msat
