"""A snapshot of the ledger for an audit: every envelope's totals and every payment's amounts, exactly as the database has them.

Nothing is judged here, and no row is left out because it looks wrong: judging is left to `routeweiler_sync.audit`. Only a value of
the wrong type is refused. Tokens aren't read.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from .._core.money import Rate
from ..errors import LedgerError
from . import envelopes
from .archive import key_of
from .store import Store, Transaction
from .types import UNFINISHED, UNTRACED, PaymentState

#: How many rows are read at a time.
PAGE_ROWS = 1_000
#: How many beginnings of archived hashes are read at a time.
KEYS_AT_A_TIME = 50_000

_COLUMNS = (
    "payment_hash, origin, scope, state, node_pubkey, amount_msat, max_fee_msat, fee_msat, envelope_id, currency, btc_price, "
    "reserved_micro, settled_micro, preimage, told, claimant, claimed_until_ms, settled_at_ms, single_use"
)
#: Texts that many rows have in common. They are held once, because an audit holds all rows.
_COMMON = ("origin", "node_pubkey", "envelope_id", "currency")


@dataclass(frozen=True, slots=True, kw_only=True)
class BookedPayment:
    """The amounts and the state of one payment's row.

    ``…_msat`` is in msat, ``…_micro`` in millionths of a minor unit of ``currency``. Payment hash and preimage are 64 hex digits,
    unless the ledger is damaged. ``btc_price`` is the price of one bitcoin in ``currency`` when the row was opened. ``reported``:
    nothing remains to be reported. ``untraced``: that is so because the call had no trace. ``claimant`` is about to report it, and
    nobody else before ``claimed_until_ms``. ``single_use``: a charge, of which there may be several for one scope.
    """

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
    untraced: bool = False
    claimant: str | None = None
    claimed_until_ms: int | None = None
    single_use: bool = False

    @property
    def unfinished(self) -> bool:
        """Whether the outcome isn't known yet: the payment may still be made."""
        return self.state in UNFINISHED

    @property
    def paid(self) -> bool:
        """Whether the row's state says that money was spent."""
        return self.state in (PaymentState.SETTLED, PaymentState.RETIRED)

    def micro_of(self, amount_msat: int) -> int:
        """Convert ``amount_msat`` to millionths of a minor unit, at the rate stored in the row.

        Return 0 if no envelope counts the payment.
        """
        if self.envelope_id is None or self.currency is None:
            return 0
        return Rate(currency=self.currency, btc_price=self.btc_price).micro_of(amount_msat)


@dataclass(frozen=True, slots=True, kw_only=True)
class BookedEnvelope:
    """An envelope's running totals, in millionths of a minor unit of ``currency``.

    ``spends_micro`` has the spends by bucket number, which is the unix time divided by `envelopes.BUCKET_S`. ``readable`` is False
    if the envelope's limits can't be read. ``parent_id``: the envelope that it lies in, which counts what it counts.
    """

    id: str
    currency: str
    readable: bool = True
    reserved_micro: int
    settled_micro: int
    spends_micro: Mapping[int, int]
    parent_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchivedSums:
    """What archived payments of one envelope add up to: how many, what the paid ones cost (msat), what the envelope counts."""

    payments: int = 0
    paid: int = 0
    spent_msat: int = 0
    settled_micro: int = 0
    last_settled_at_ms: int = 0

    def without(self, row: BookedPayment) -> ArchivedSums:
        """Return the sums without ``row``, which is one of the payments. The time of the last stays."""
        return replace(
            self,
            payments=self.payments - 1,
            paid=self.paid - row.paid,
            spent_msat=self.spent_msat - (row.amount_msat + row.fee_msat) * row.paid,
            settled_micro=self.settled_micro - row.settled_micro,
        )


class ArchivedHashes:
    """The payment hashes of archived payments, as the ledger knows them: by their beginnings, 8 bytes each, in order."""

    def __init__(self, keys: array[int]) -> None:
        self._keys = keys

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, payment_hash: str) -> bool:
        try:
            key = key_of(payment_hash)
        except ValueError:  # a trace may hold anything
            return False
        at = bisect_left(self._keys, key)
        return at < len(self._keys) and self._keys[at] == key


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerSnapshot:
    """The whole ledger at one moment: envelopes by id, payments by payment hash (hex).

    ``archived`` says which payments were moved to an archive. ``archived_sums`` has what those that aren't in ``payments`` add up
    to, by envelope (None: of none).
    """

    envelopes: Mapping[str, BookedEnvelope]
    payments: Mapping[str, BookedPayment]
    archived: ArchivedHashes = field(default_factory=lambda: ArchivedHashes(array("q")))
    archived_sums: Mapping[str | None, ArchivedSums] = field(default_factory=dict)

    def counts_in(self, envelope_id: str | None) -> list[str]:
        """Return the ids of the envelopes that count what a payment from ``envelope_id`` costs: its own, and all it lies in."""
        ids: list[str] = []
        while envelope_id is not None and envelope_id not in ids:
            ids.append(envelope_id)
            envelope = self.envelopes.get(envelope_id)
            envelope_id = None if envelope is None else envelope.parent_id
        return ids

    def with_archived(self, rows: Mapping[str, BookedPayment]) -> LedgerSnapshot:
        """Return the snapshot with those of ``rows``, read from archives, that were moved out of this ledger."""
        found = {name: row for name, row in rows.items() if name in self.archived and name not in self.payments}
        sums = dict(self.archived_sums)
        for row in found.values():
            sums[row.envelope_id] = sums.get(row.envelope_id, ArchivedSums()).without(row)
        left = {envelope_id: each for envelope_id, each in sums.items() if each.payments}
        return replace(self, payments={**found, **self.payments}, archived_sums=left)


def read(tx: Transaction) -> LedgerSnapshot:
    """Read the whole ledger in the transaction ``tx``, so that totals and rows are of the same moment.

    Raises: LedgerError if a state, amount, rate or time in a row is of the wrong type or impossible.
    """
    spends: dict[str, dict[int, int]] = {}
    for row in tx.execute("SELECT envelope_id, bucket, micro FROM spends"):
        spends.setdefault(row["envelope_id"], {})[row["bucket"]] = row["micro"]
    envelopes = {
        row["id"]: BookedEnvelope(
            **{name: row[name] for name in ("id", "currency", "reserved_micro", "settled_micro", "parent_id")},
            readable=_readable(row["limits"]),
            spends_micro=spends.get(row["id"], {}),
        )
        for row in tx.execute("SELECT id, currency, reserved_micro, settled_micro, parent_id, limits FROM envelopes ORDER BY id")
    }
    return LedgerSnapshot(
        envelopes=envelopes,
        payments={row.payment_hash: row for row in _payments(tx)},
        archived=ArchivedHashes(array("q", _archived_keys(tx))),
        archived_sums=_archived_sums(tx),
    )


def read_payments(store: Store) -> dict[str, BookedPayment]:
    """Read the payments of an archive, by payment hash.

    Raises: as `read`.
    """
    with store.read(long=True) as tx:
        return {row.payment_hash: row for row in _payments(tx)}


def _payments(tx: Transaction) -> Iterator[BookedPayment]:
    after = ""
    common: dict[str, str] = {}
    while True:
        rows = tx.execute(
            f"SELECT {_COLUMNS} FROM payments WHERE payment_hash > ? ORDER BY payment_hash LIMIT ?",  # noqa: S608  (constants)
            (after, PAGE_ROWS),
        )
        yield from (_payment(row, common) for row in rows)
        if len(rows) < PAGE_ROWS:
            return
        after = rows[-1]["payment_hash"]


def _archived_keys(tx: Transaction) -> Iterator[int]:
    after = -(2**63)  # a hash that begins with 64 bits of 0 is never met
    while True:
        rows = tx.execute(
            "SELECT hash_begin FROM archived_payments WHERE hash_begin > ? ORDER BY hash_begin LIMIT ?", (after, KEYS_AT_A_TIME)
        )
        yield from (row["hash_begin"] for row in rows)
        if len(rows) < KEYS_AT_A_TIME:
            return
        after = rows[-1]["hash_begin"]


def _archived_sums(tx: Transaction) -> dict[str | None, ArchivedSums]:
    rows = tx.execute(
        "SELECT envelope_id, CAST(SUM(payments) AS BIGINT) AS payments, CAST(SUM(paid) AS BIGINT) AS paid, "
        "CAST(SUM(amount_msat + fee_msat) AS BIGINT) AS spent_msat, CAST(SUM(settled_micro) AS BIGINT) AS settled_micro, "
        "MAX(last_settled_at_ms) AS last_settled_at_ms FROM archived_sums GROUP BY envelope_id"
    )
    return {
        row["envelope_id"] or None: ArchivedSums(**{name: int(value) for name, value in row.items() if name != "envelope_id"})
        for row in rows
    }


def _readable(text: str) -> bool:
    try:
        envelopes.load(text)
    except LedgerError:
        return False
    return True


def _payment(row: Mapping[str, Any], common: dict[str, str]) -> BookedPayment:
    values = dict(row)
    for name in _COMMON:
        if isinstance(values[name], str):
            values[name] = common.setdefault(values[name], values[name])
    try:
        values["state"], told = PaymentState(row["state"]), values.pop("told")
        values["reported"], values["untraced"] = bool(told), told == UNTRACED
        values["single_use"] = bool(row["single_use"])
        values["btc_price"] = None if row["btc_price"] is None else Decimal(row["btc_price"])
        if not all(isinstance(value, int) for name, value in values.items() if name.endswith(("_msat", "_micro"))):
            raise ValueError("amount")
        if row["settled_at_ms"] is not None:
            envelopes.moment(row["settled_at_ms"])
        booked = BookedPayment(**values)
        booked.micro_of(booked.amount_msat)
    except (ValueError, TypeError, ArithmeticError, OSError):  # from None: such an error's text may repeat the row
        raise LedgerError(
            f"The ledger's row {row['payment_hash']} is damaged: its state, amount, rate or time is impossible.",
            advice="Restore the ledger, or upgrade if a newer version wrote it.",
            payment_hash=str(row["payment_hash"]),
        ) from None
    return booked
