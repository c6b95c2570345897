"""Make `PaymentRow` values of the rows that the database returns, and check them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import fields
from decimal import Decimal
from typing import Any

from .._core.money import Rate
from ..errors import LedgerError
from .envelopes import moment
from .types import PaymentRow, PaymentState

#: Columns whose field in `PaymentRow` has another name. The columns are older than the fields and keep their names.
COLUMN_NAMES = {"taken": "accepted", "told": "reported", "target": "resource_digest"}


#: What this version knows of a payment.
_FIELDS = frozenset({each.name for each in fields(PaymentRow)} | {"token", "preimage"})


def first(rows: list[Mapping[str, Any]], *, to_book: bool = False) -> PaymentRow | None:
    """Return the first of ``rows``, or None if there is none. ``to_book`` is that of `payment_of`."""
    return payment_of(rows[0], to_book=to_book) if rows else None


def payment_of(row: Mapping[str, Any], *, to_book: bool = False) -> PaymentRow:
    """Return the payment in ``row``, a row of the table ``payments``.

    A row with columns that a newer version has added isn't read: a token may not be used as this version would. ``to_book``: only
    what has become of the payment is to be written, so those columns are left out.

    Raises: LedgerError if the row is damaged, or a newer version's.
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
        ended_ms = values.pop("ended_at_ms")
        values["ended_at"] = None if ended_ms is None else moment(ended_ms)
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
        unknown = values.keys() - _FIELDS
        for name in unknown:
            del values[name]
        payment = PaymentRow(**values)
    except (ValueError, TypeError, ArithmeticError, OSError):  # from None: such an error's text may repeat a token
        raise LedgerError(
            f"The ledger's row {row['payment_hash']} is damaged: its preimage doesn't fit its hash, or a value is impossible.",
            advice="Restore the ledger, or upgrade if a newer version wrote it. The node still knows the preimage.",
            payment_hash=str(row["payment_hash"]),
        ) from None
    if unknown and not to_book:
        raise LedgerError(
            "A newer version has migrated the ledger while this process had it open.",
            advice="The ledger wasn't changed. Upgrade routeweiler-sync.",
        )
    return payment
