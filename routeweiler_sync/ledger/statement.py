"""The ledger's payments as plain lines for a statement: amounts, times and names, without tokens and preimages.

`Ledger.payments` returns whole rows, tokens included, and checks each. A statement over a million payments needs neither.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal
from functools import lru_cache
from typing import Any, NamedTuple

from .._core.money import Rate
from ..errors import LedgerError
from .envelopes import moment
from .store import Store
from .types import UNFINISHED, PaymentState

#: How many rows are read at a time.
PAGE_ROWS = 5_000
#: No amount, in whatever unit, and no time is as high as this.
_FIGURE_MAX = 2**62


class StatementLine(NamedTuple):
    """One payment. The fields are those of `PaymentRow`; times are in ms since 1970, ``btc_price`` is the decimal as stored."""

    payment_hash: str
    origin: str
    path: str
    state: str
    node_pubkey: str
    network: str
    amount_msat: int
    max_fee_msat: int
    fee_msat: int
    envelope_id: str | None
    currency: str | None
    btc_price: str | None
    rate_quality: str | None
    settled_micro: int
    failure_code: str | None
    created_at_ms: int
    settled_at_ms: int | None
    agent_id: str | None = None

    @property
    def unfinished(self) -> bool:
        """Whether the outcome isn't known yet: the payment may still be made."""
        return self.state in _UNFINISHED


_UNFINISHED = frozenset(state.value for state in UNFINISHED)
_STATES = frozenset(state.value for state in PaymentState)
_COLUMNS = ", ".join(StatementLine._fields)
_FIGURES = ("amount_msat", "max_fee_msat", "fee_msat", "settled_micro", "created_at_ms")


def read(store: Store) -> Iterator[StatementLine]:
    """Yield all payments, oldest first, read in pages of `PAGE_ROWS`.

    A payment that is opened or changes its state during the iteration may or may not be included.

    Raises: LedgerError, also for a row whose state, amount, rate or time is impossible: a sum without it would be wrong.
    """
    after: tuple[int, str] = (-1, "")
    while True:
        with store.read() as tx:
            rows = tx.execute(
                f"SELECT {_COLUMNS} FROM payments WHERE (created_at_ms, payment_hash) > (?, ?) "  # noqa: S608  (constants)
                "ORDER BY created_at_ms, payment_hash LIMIT ?",
                (*after, PAGE_ROWS),
            )
        for row in rows:
            yield _line(row)
        if len(rows) < PAGE_ROWS:
            return
        after = (rows[-1]["created_at_ms"], rows[-1]["payment_hash"])


def _line(row: Mapping[str, Any]) -> StatementLine:
    line = StatementLine._make([row[name] for name in StatementLine._fields])
    try:
        if line.state not in _STATES or len(bytes.fromhex(line.payment_hash)) != 32:
            raise ValueError("state or hash")
        for name in _FIGURES:
            value = getattr(line, name)
            if type(value) is not int or not 0 <= value < _FIGURE_MAX:
                raise ValueError("figure")
        if line.settled_at_ms is not None:
            moment(line.settled_at_ms)
        moment(line.created_at_ms)
        if line.currency is not None:
            _check_rate(line.currency, line.btc_price)
    except (ValueError, TypeError, ArithmeticError, OSError):  # from None: such an error's text may repeat the row
        raise LedgerError(
            f"The ledger's row {row['payment_hash']} is damaged: its state, amount, rate or time is impossible.",
            advice="Restore the ledger, or upgrade if a newer version wrote it.",
            payment_hash=str(row["payment_hash"]),
        ) from None
    return line


@lru_cache(maxsize=1024)
def _check_rate(currency: str, btc_price: str | None) -> None:
    """Check that a currency and a price of bitcoin can be a rate.

    Raises: ValueError and the like if they can't.
    """
    Rate(currency=currency, btc_price=None if btc_price is None else Decimal(btc_price))
