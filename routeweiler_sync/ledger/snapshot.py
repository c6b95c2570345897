"""The ledger as its own bookkeeper sees it: every envelope's totals and every payment's figures, as they are in the database.

Nothing is judged here, and nothing is left out for being wrong: that is `routeweiler_sync.audit`'s. Only what isn't a figure at all
is refused. Tokens aren't read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from .._core.money import Rate
from ..errors import LedgerError
from . import envelopes
from .store import Transaction
from .types import UNFINISHED, PaymentState

#: Rows read at a time.
PAGE_ROWS = 1_000

_COLUMNS = (
    "payment_hash, origin, scope, state, node_pubkey, amount_msat, max_fee_msat, fee_msat, envelope_id, currency, btc_price, "
    "reserved_micro, settled_micro, preimage, told, settled_at_ms"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BookedPayment:
    """The figures of one payment's row. Amounts in msat, ``…_micro`` in millionths of a minor unit, hash and preimage hex."""

    payment_hash: str
    origin: str
    scope: str
    state: PaymentState
    node_pubkey: str
    amount_msat: int
    max_fee_msat: int
    fee_msat: int
    envelope_id: str | None
    currency: str | None
    btc_price: Decimal | None
    reserved_micro: int
    settled_micro: int
    preimage: str | None = field(repr=False)
    reported: bool
    settled_at_ms: int | None

    @property
    def unfinished(self) -> bool:
        """Whether the outcome isn't known yet."""
        return self.state in UNFINISHED

    @property
    def paid(self) -> bool:
        """Whether the row's state says that money was spent."""
        return self.state in (PaymentState.SETTLED, PaymentState.RETIRED)

    def micro_of(self, amount_msat: int) -> int:
        """``amount_msat`` at the rate that was kept in the row; 0 where no envelope counts it."""
        if self.envelope_id is None or self.currency is None:
            return 0
        return Rate(currency=self.currency, btc_price=self.btc_price).micro_of(amount_msat)


@dataclass(frozen=True, slots=True, kw_only=True)
class BookedEnvelope:
    """An envelope's running totals, and its spends by bucket of `envelopes.BUCKET_S`, in millionths of a minor unit.

    ``readable``: its limits are such as we write.
    """

    id: str
    currency: str
    readable: bool = True
    reserved_micro: int
    settled_micro: int
    spends_micro: Mapping[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerSnapshot:
    """The whole ledger at one moment: envelopes by id, payments by hash."""

    envelopes: Mapping[str, BookedEnvelope]
    payments: Mapping[str, BookedPayment]


def read(tx: Transaction) -> LedgerSnapshot:
    """All of it, in one transaction, so that totals and rows are of the same moment. LedgerError where a figure isn't one."""
    spends: dict[str, dict[int, int]] = {}
    for row in tx.execute("SELECT envelope_id, bucket, micro FROM spends"):
        spends.setdefault(row["envelope_id"], {})[row["bucket"]] = row["micro"]
    envelopes = {
        row["id"]: BookedEnvelope(
            **{name: row[name] for name in ("id", "currency", "reserved_micro", "settled_micro")},
            readable=_readable(row["limits"]),
            spends_micro=spends.get(row["id"], {}),
        )
        for row in tx.execute("SELECT id, currency, reserved_micro, settled_micro, limits FROM envelopes ORDER BY id")
    }
    payments: dict[str, BookedPayment] = {}
    after = ""
    while True:
        rows = tx.execute(
            f"SELECT {_COLUMNS} FROM payments WHERE payment_hash > ? ORDER BY payment_hash LIMIT ?",  # noqa: S608  (ours)
            (after, PAGE_ROWS),
        )
        for row in rows:
            payments[row["payment_hash"]] = _payment(row)
        if len(rows) < PAGE_ROWS:
            return LedgerSnapshot(envelopes=envelopes, payments=payments)
        after = rows[-1]["payment_hash"]


def _readable(text: str) -> bool:
    try:
        envelopes.load(text)
    except LedgerError:
        return False
    return True


def _payment(row: Mapping[str, Any]) -> BookedPayment:
    values = dict(row)
    try:
        values["state"], values["reported"] = PaymentState(row["state"]), bool(values.pop("told"))
        values["btc_price"] = None if row["btc_price"] is None else Decimal(row["btc_price"])
        if not all(isinstance(value, int) for name, value in values.items() if name.endswith(("_msat", "_micro"))):
            raise ValueError("amount")
        if row["settled_at_ms"] is not None:
            envelopes.moment(row["settled_at_ms"])
        booked = BookedPayment(**values)
        booked.micro_of(booked.amount_msat)
    except (ValueError, TypeError, ArithmeticError, OSError):  # from None: their words may hold what the row holds
        raise LedgerError(
            f"The ledger's row {row['payment_hash']} is damaged: a state, amount, rate or time of it can't be.",
            advice="Restore the ledger, or upgrade if a newer version wrote it.",
            payment_hash=str(row["payment_hash"]),
        ) from None
    return booked
