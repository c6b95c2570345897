"""Checks of the ledger with itself: envelopes with the sums of their rows, and each row with its own state and amounts.

The comparison with trace and node is left to `external_checks`.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from ..ledger.envelopes import BUCKET_S, KEPT_BUCKETS, moment
from ..ledger.snapshot import BookedEnvelope, BookedPayment, LedgerSnapshot
from ..ledger.types import PaymentState
from .findings import MEND, Difference, Kind, in_currency, told_row


def differences(ledger: LedgerSnapshot) -> list[Difference]:
    """Return everything in the ledger that contradicts something else in it."""
    return [*_envelopes(ledger), *_rows(ledger), *_two_live(ledger.payments.values())]


def _envelopes(ledger: LedgerSnapshot) -> Iterator[Difference]:
    """Compare every envelope's running totals and buckets with the sums of its rows, and of those that lie in it.

    Limits are checked against totals and buckets, so they only hold if those are what was really reserved and spent.
    """
    reserved: dict[str, int] = {}
    spends: dict[str, dict[int, int]] = {}
    counting = functools.cache(ledger.counts_in)
    for row in ledger.payments.values():
        for id in counting(row.envelope_id):
            reserved[id] = reserved.get(id, 0) + row.reserved_micro
            buckets = spends.setdefault(id, {})
            if row.settled_at_ms is not None:
                bucket = row.settled_at_ms // (BUCKET_S * 1000)
                buckets[bucket] = buckets.get(bucket, 0) + row.settled_micro
    archived_micro: dict[str, int] = {}
    archived_until_ms: dict[str, int] = {}
    for envelope_id, sums in ledger.archived_sums.items():
        for id in counting(envelope_id):
            archived_micro[id] = archived_micro.get(id, 0) + sums.settled_micro
            archived_until_ms[id] = max(archived_until_ms.get(id, 0), sums.last_settled_at_ms)
    for id in sorted(reserved.keys() | ledger.envelopes.keys()):
        envelope = ledger.envelopes.get(id)
        rows_by_bucket = spends.get(id, {})
        if envelope is None:
            yield _envelope_difference(
                id, "the envelope is missing, though it has payments", "no such envelope", f"{len(rows_by_bucket)} rows"
            )
            continue
        if not envelope.readable:
            yield Difference(
                kind=Kind.ENVELOPE_LIMITS,
                envelope_id=id,
                what="the envelope's limits can't be read, so nothing can be bought by a session that names it by its id",
                says=(("envelope", "limits in a form that this version doesn't write"),),
                advice="Give a session the BudgetEnvelope instead of its id: its next purchase writes the limits again.",
            )
        for name, total, of_rows in (
            ("reserved", envelope.reserved_micro, reserved.get(id, 0)),
            ("settled", envelope.settled_micro, sum(rows_by_bucket.values()) + archived_micro.get(id, 0)),
        ):
            if total != of_rows:
                yield _envelope_difference(
                    id,
                    f"the envelope's {name} total isn't the sum of its payments",
                    f"{name} {in_currency(total, envelope.currency)}",
                    f"{name} {in_currency(of_rows, envelope.currency)}",
                )
        yield from _windows(envelope, rows_by_bucket, archived_until_ms.get(id, 0))


def _windows(envelope: BookedEnvelope, of_rows: Mapping[int, int], archived_until_ms: int) -> Iterator[Difference]:
    """Compare the envelope's buckets, against which hour and day limits are checked, with the sums of its rows.

    The ledger drops old buckets, so one that is missing is a difference only among the latest `KEPT_BUCKETS`. Up to
    ``archived_until_ms`` rows were moved to archives that aren't given: what was spent until then isn't compared.
    """
    latest = sorted(of_rows, reverse=True)[:KEPT_BUCKETS]
    wrong = [
        bucket
        for bucket in sorted({*latest, *envelope.spends_micro})
        if envelope.spends_micro.get(bucket, 0) != of_rows.get(bucket, 0) and bucket > archived_until_ms // (BUCKET_S * 1000)
    ]
    if wrong:
        begin = f"{moment(wrong[0] * BUCKET_S * 1000):%Y-%m-%d %H:%M} UTC"
        counted, paid = (sum(each.get(bucket, 0) for bucket in wrong) for each in (envelope.spends_micro, of_rows))
        yield replace(
            _envelope_difference(
                envelope.id,
                "the spends that count against the envelope's hour and day limits aren't what was paid at that time",
                f"{in_currency(counted, envelope.currency)} in {len(wrong)} x {BUCKET_S // 60} minutes, the first at {begin}",
                in_currency(paid, envelope.currency),
            ),
            kind=Kind.ENVELOPE_WINDOW,
        )


def _envelope_difference(id: str, what: str, counted: str, of_rows: str) -> Difference:
    return Difference(
        kind=Kind.ENVELOPE_TOTAL,
        envelope_id=id,
        what=what,
        says=(("envelope", counted), ("payments", of_rows)),
        advice=f"The envelope's limits may not hold: freeze it. {MEND}",
    )


def _rows(ledger: LedgerSnapshot) -> Iterator[Difference]:
    """Check that each row's state, settlement time, reservation, spend and preimage agree with each other."""
    for row in ledger.payments.values():
        reserved = row.micro_of(row.amount_msat + row.max_fee_msat) if row.unfinished else 0
        booked = row.micro_of(row.amount_msat + row.fee_msat) if row.paid else 0
        if (row.reserved_micro, row.settled_micro, row.settled_at_ms is not None) != (reserved, booked, row.paid):
            stored, due = (
                f"reserved {in_currency(each[0], row.currency)}, booked {in_currency(each[1], row.currency)}"
                for each in ((row.reserved_micro, row.settled_micro), (reserved, booked))
            )
            yield Difference(
                kind=Kind.ROW_AMOUNT,
                payment_hash=row.payment_hash,
                envelope_id=row.envelope_id,
                what="the row's reservation and spend don't follow from its state and amounts",
                says=(("ledger", f"{told_row(row)}; {stored}"), ("due", due)),
                advice=MEND,
            )
        if row.preimage is not None and not (row.paid and fits(row.preimage, row.payment_hash)):
            yield Difference(
                kind=Kind.ROW_PREIMAGE,
                payment_hash=row.payment_hash,
                what="the row has a preimage but isn't paid" if not row.paid else "the preimage doesn't fit its payment hash",
                says=(("ledger", told_row(row)),),
                advice=f"The token can't be used. {MEND} The node still knows the preimage.",
            )


def fits(preimage: str, payment_hash: str) -> bool:
    """Return whether SHA-256 of ``preimage`` is ``payment_hash``, both in hex. False if ``preimage`` isn't hex."""
    try:
        return hashlib.sha256(bytes.fromhex(preimage)).hexdigest() == payment_hash
    except ValueError:
        return False


def _two_live(rows: Iterable[BookedPayment]) -> Iterator[Difference]:
    """Find two live rows of the same (origin, scope): that would be the same token bought twice. Charges may be bought twice."""
    live: dict[tuple[str, str], BookedPayment] = {}
    for row in rows:
        if row.single_use or not (row.unfinished or row.state is PaymentState.SETTLED):
            continue
        other = live.setdefault((row.origin, row.scope), row)
        if other is not row:
            yield Difference(
                kind=Kind.TWO_LIVE_ROWS,
                payment_hash=row.payment_hash,
                what=f"two live payments for one scope, {row.scope} of {row.origin}",
                says=(("ledger", told_row(row)), ("and", f"{other.payment_hash}, {told_row(other)}")),
                advice=f"The database index that prevents this is missing. {MEND}",
            )
