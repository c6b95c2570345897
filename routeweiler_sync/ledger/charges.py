"""Charges: payments whose credential opens one request, once. Which of them are owed, and which call presents each.

A charge is for one request: its origin, and the digest of method, path with query, and body. Two calls that make the same request
at the same time pay twice, as two requests are two needs. So no index allows only one: a call *claims* each charge that it pays for
or presents, and no other call touches it meanwhile. A charge whose call has ended, or died, without the page is **owed**: the next
call for the same request claims it before anything is bought.

What a server's answer means for a charge is left to `paywall.server_rules`; how it is found out that a claimant is dead, to
`payments.presenting`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from ..errors import LedgerError
from .rows import first
from .store import Store
from .types import PaymentRow

#: For how long a claim to present a charge holds: longer than a call takes. The claim of a process of this machine that has died is
#: over before.
PRESENT_S = 900.0
#: Failure code of a charge that the server has used up by another answer than the page: it sent a receipt with it.
USED_UP_UNDELIVERED = "receipt"


class Charges:
    """The part of a `Ledger` that this module's docstring is about."""

    _store: Store
    _clock: Callable[[], float]
    #: For each ledger's url: how charges have ended that this process couldn't write, by payment hash. See `spend_charge`.
    _unwritten: ClassVar[dict[str, dict[str, tuple[bool, str]]]] = {}

    def claim_charge(self, payment_hash: str, presenter: str, *, instead_of: str | None = None) -> PaymentRow | None:
        """Claim a charge that is unfinished or not delivered, for the call ``presenter``. Return its row, or None.

        None means that another call has it, or that it is spent. A claim holds for `PRESENT_S`. ``instead_of`` is a presenter that
        is known to have ended: its claim is over. That a charge is spent which this process couldn't write is written first.

        Money: none moves.
        """
        end = self._unwritten.get(self._store.url, {}).get(payment_hash)
        if end is not None:
            self.spend_charge(payment_hash, delivered=end[0], why=end[1])
            return None
        now_ms = int(self._clock() * 1000)
        rows = self._store.run(
            lambda tx: tx.execute(
                "UPDATE payments SET presenter = ?, presented_until_ms = ? WHERE payment_hash = ? AND single_use = 1 "
                "AND state IN ('open', 'failed', 'settled') "
                "AND (presenter IS NULL OR presenter = ? OR presenter = ? OR presented_until_ms <= ?) RETURNING *",
                (presenter, now_ms + int(PRESENT_S * 1000), payment_hash, presenter, instead_of, now_ms),
            ),
            binding=True,
        )
        return first(rows)

    def release_charge(self, payment_hash: str, presenter: str) -> None:
        """Give up the claim of ``presenter`` to a charge, so that the next call may present it. Another's claim stays."""
        self._store.run(
            lambda tx: tx.execute(
                "UPDATE payments SET presenter = NULL, presented_until_ms = NULL WHERE payment_hash = ? AND presenter = ?",
                (payment_hash, presenter),
            ),
            durable=False,
        )

    def spend_charge(self, payment_hash: str, *, delivered: bool, why: str = "") -> None:
        """Record that the server has used a charge up: it has answered the request (``delivered``), or has sent something else.

        The charge is never presented again, and the next call for the same request buys anew. ``why`` is kept with one that wasn't
        delivered. A charge that isn't live, since the user has forgotten it, say, stays as it is. If the ledger can't be written,
        this process remembers it, and `claim_charge` writes it.

        Money: none moves.
        """
        code, text = (None, None) if delivered else (USED_UP_UNDELIVERED, why)
        unwritten = self._unwritten.setdefault(self._store.url, {})
        try:
            self._store.run(
                lambda tx: tx.execute(
                    "UPDATE payments SET state = 'retired', taken = ?, failure_code = ?, failure_text = ?, presenter = NULL, "
                    "presented_until_ms = NULL, ended_at_ms = ? WHERE payment_hash = ? AND single_use = 1 AND state = 'settled'",
                    (int(delivered), code, text, int(self._clock() * 1000), payment_hash),
                )
            )
        except LedgerError:
            unwritten[payment_hash] = (delivered, why)
            raise
        unwritten.pop(payment_hash, None)
