"""Make `PaymentRow` values of the rows that the database returns, and check them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from .._core.money import Rate
from ..errors import LedgerError
from .envelopes import moment
from .types import PaymentRow, PaymentState

#: Columns whose field in `PaymentRow` has another name. The columns are older than the fields and keep their names.
COLUMN_NAMES = {"taken": "accepted", "told": "reported", "target": "resource_digest"}


def first(rows: list[Mapping[str, Any]]) -> PaymentRow | None:
    """Return the first of ``rows``, or None if there is none."""
    return payment_of(rows[0]) if rows else None


def payment_of(row: Mapping[str, Any]) -> PaymentRow:
    """Return the payment in ``row``, a row of the table ``payments``.

    Raises: LedgerError if the row is damaged.
    """
    values = dict(row)
    try:
        values["created_at"] = moment(values.pop("created_at_ms"))
        settled_ms = values.pop("settled_at_ms")
        values["settled_at"] = None if settled_ms is None else moment(settled_ms)
        claimed_ms = values.pop("claimed_until_ms")
        values["claimed_until"] = None if claimed_ms is None else moment(claimed_ms)
        presented_ms = values.pop("presented_until_ms")
        values["presented_until"] = None if presented_ms is None else moment(presented_ms)
        values["single_use"] = bool(values["single_use"])
        values["state"] = PaymentState(values["state"])
        values["btc_price"] = None if values["btc_price"] is None else Decimal(values["btc_price"])
        for column, name in COLUMN_NAMES.items():
            values[name] = values.pop(column)
        values["accepted_again"] = values["accepted"] > 1
        values["accepted"], values["reported"] = bool(values["accepted"]), bool(values["reported"])
        preimage = values["preimage"]
        if preimage is not None and hashlib.sha256(bytes.fromhex(preimage)).hexdigest() != values["payment_hash"]:
            raise ValueError("preimage")
        if values["currency"] is not None:
            Rate(currency=values["currency"], btc_price=values["btc_price"])
        return PaymentRow(**values)
    except (ValueError, TypeError, ArithmeticError, OSError):  # from None: such an error's text may repeat a token
        raise LedgerError(
            f"The ledger's row {row['payment_hash']} is damaged: its preimage doesn't fit its hash, or a value is impossible.",
            advice="Restore the ledger, or upgrade if a newer version wrote it. The node still knows the preimage.",
            payment_hash=str(row["payment_hash"]),
        ) from None
