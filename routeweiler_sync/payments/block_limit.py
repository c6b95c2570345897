"""``session.limit(sats=…)``: what the calls of one block may spend, and what they did. Integers and a context variable; no I/O.

A limit counts the orders that its block sends, the first time or again, with their routing fees: before an order leaves, amount and
most fee are held; the node's word turns that into a spend, or returns it. A payment whose outcome isn't known stays held.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .._core.forks import in_child
from .._core.money import MAX_MINOR_UNITS, MSAT_PER_SAT, sats as in_sats
from ..errors import BudgetExceededError

if TYPE_CHECKING:
    from ..ledger.types import PaymentRow

#: Guards the sums of all limits, for moments only: a payment counts for all limits around it, or for none.
_lock = threading.Lock()


@in_child
def _start_over_after_fork() -> None:
    global _lock
    _lock = threading.Lock()


class SpendingLimit:
    """A limit under way: what its block has spent so far. Made by `Routeweiler.limit`; thread-safe."""

    def __init__(self, payer: object, limit_msat: int) -> None:
        self.limit_msat = limit_msat
        self._payer = payer
        self._spent: dict[str, int] = {}
        self._reserved: dict[str, int] = {}

    @property
    def spent_msat(self) -> int:
        """What the block's orders came to so far, routing fees included, in msat. What isn't known yet isn't in it."""
        with _lock:
            return sum(self._spent.values())

    @property
    def reserved_msat(self) -> int:
        """The most that payments may still come to whose outcome the block hasn't heard of yet, in msat."""
        with _lock:
            return sum(self._reserved.values())

    def _headroom_msat(self) -> int:
        return self.limit_msat - sum(self._spent.values()) - sum(self._reserved.values())

    def __repr__(self) -> str:
        return f"<limit of {in_sats(self.limit_msat)}, {in_sats(self.spent_msat)} spent, {in_sats(self.reserved_msat)} reserved>"


_active: contextvars.ContextVar[tuple[SpendingLimit, ...]] = contextvars.ContextVar("routeweiler_sync_limits", default=())


def active(payers: tuple[object, ...]) -> tuple[SpendingLimit, ...]:
    """The limits around the present call of ``payers``, the outermost first."""
    return tuple(each for each in _active.get() if any(each._payer is payer for payer in payers))


class Block(AbstractContextManager[SpendingLimit]):
    """A block in which ``payer`` spends at most ``sats``. ValueError for what can't be a limit, RuntimeError if entered again."""

    def __init__(self, payer: object, sats: int) -> None:
        if isinstance(sats, bool) or not isinstance(sats, int) or not 0 <= sats <= MAX_MINOR_UNITS:
            raise ValueError(f"sats is a whole number of sats from 0 to {MAX_MINOR_UNITS}, not {sats!r}")
        self._limit = SpendingLimit(payer, sats * MSAT_PER_SAT)
        self._entered = False

    def __enter__(self) -> SpendingLimit:
        if self._entered:
            raise RuntimeError("a limit has one block, and this one had it already. Call session.limit(sats=…) again for another.")
        self._entered = True
        _active.set((*_active.get(), self._limit))
        return self._limit

    def __exit__(self, *_: object) -> None:
        # Not by a token: a generator's block may end in another context than it began in.
        _active.set(tuple(each for each in _active.get() if each is not self._limit))


def reserve(limits: Iterable[SpendingLimit], payment_hash: str, amount_msat: int, fee_cap_msat: int, *, whole: bool = False) -> int:
    """Hold a payment's cost in all ``limits`` before its order leaves. The fee limit that fits, ``fee_cap_msat`` or less.

    With ``whole`` it doesn't shrink. A payment that is held already isn't held twice. BudgetExceededError where it doesn't fit.
    """
    with _lock:
        new = [each for each in limits if payment_hash not in each._reserved and payment_hash not in each._spent]
        for each in new:
            headroom_msat = each._headroom_msat()
            if headroom_msat < amount_msat + (fee_cap_msat if whole else 0):
                limit = f"limit(sats={each.limit_msat // MSAT_PER_SAT})"
                raise BudgetExceededError(
                    f"The price of {in_sats(amount_msat)} doesn't fit under this block's {limit}, of which "
                    f"{in_sats(max(0, headroom_msat))} are left.",
                    advice="Give the block a higher limit, or call outside of it.",
                )
            fee_cap_msat = min(fee_cap_msat, headroom_msat - amount_msat)
        for each in new:
            each._reserved[payment_hash] = amount_msat + fee_cap_msat
    return fee_cap_msat


@dataclass(slots=True)
class Reservation:
    """What `reserved` holds for one payment. ``fee_cap_msat``: the most that its routing may cost."""

    fee_cap_msat: int
    _kept: bool = False

    def keep(self) -> None:
        """Keep it beyond the block: the payment's order may leave now, and `record` will end it."""
        self._kept = True


@contextmanager
def reserved(limits: Sequence[SpendingLimit], payment_hash: str, amount_msat: int, fee_cap_msat: int) -> Iterator[Reservation]:
    """`reserve`, and return it at the end of the block unless the reservation was kept.

    Raises: BudgetExceededError.
    """
    reservation = Reservation(reserve(limits, payment_hash, amount_msat, fee_cap_msat))
    try:
        yield reservation
    finally:
        if not reservation._kept:
            with _lock:
                for each in limits:
                    each._reserved.pop(payment_hash, None)


def record(limits: Iterable[SpendingLimit], row: PaymentRow) -> None:
    """Take note of how a payment stands, if its order was one of the block's: its spend, or that there is none."""
    if row.unfinished:
        return
    with _lock:
        for each in limits:
            if each._reserved.pop(row.payment_hash, None) is not None and row.settled_at is not None:
                each._spent[row.payment_hash] = row.amount_msat + row.fee_msat
