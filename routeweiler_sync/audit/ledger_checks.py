"""The ledger held against itself: envelopes against rows, each row against its own state and amounts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from ..ledger.envelopes import BUCKET_S, KEPT_BUCKETS, moment
from ..ledger.snapshot import BookedEnvelope, BookedPayment, LedgerSnapshot
from ..ledger.types import PaymentState
from .findings import MEND, Difference, Kind, in_currency, told_row


def differences(ledger: LedgerSnapshot) -> list[Difference]:
    """All that the ledger says of itself and that doesn't fit together."""
    return [*_envelopes(ledger), *_rows(ledger), *_two_live(ledger.payments.values())]


def _envelopes(ledger: LedgerSnapshot) -> Iterator[Difference]:
    """Running totals and buckets against the sums of the rows: what the limits are held against is what was reserved and spent."""
    reserved: dict[str, int] = {}
    spends: dict[str, dict[int, int]] = {}
    for row in ledger.payments.values():
        if row.envelope_id is None:
            continue
        reserved[row.envelope_id] = reserved.get(row.envelope_id, 0) + row.reserved_micro
        buckets = spends.setdefault(row.envelope_id, {})
        if row.settled_at_ms is not None:
            bucket = row.settled_at_ms // (BUCKET_S * 1000)
            buckets[bucket] = buckets.get(bucket, 0) + row.settled_micro
    for id in sorted(reserved.keys() | ledger.envelopes.keys()):
        envelope = ledger.envelopes.get(id)
        mine = spends.get(id, {})
        if envelope is None:
            yield _envelope_difference(
                id, "its payments are there, but the envelope isn't", "no such envelope", f"{len(mine)} rows"
            )
            continue
        if not envelope.readable:
            yield Difference(
                kind=Kind.ENVELOPE_LIMITS,
                envelope_id=id,
                what="its limits can't be read, so nothing can be bought with it by its id",
                says=(("envelope", "limits that aren't such as this version writes"),),
                advice="The next purchase of a session that is given the BudgetEnvelope, not its id, writes them anew.",
            )
        for name, total, of_rows in (
            ("reserved", envelope.reserved_micro, reserved.get(id, 0)),
            ("settled", envelope.settled_micro, sum(mine.values())),
        ):
            if total != of_rows:
                yield _envelope_difference(
                    id,
                    f"what it counts as {name} isn't what its payments come to",
                    f"{name} {in_currency(total, envelope.currency)}",
                    f"{name} {in_currency(of_rows, envelope.currency)}",
                )
        yield from _windows(envelope, mine)


def _windows(envelope: BookedEnvelope, of_rows: Mapping[int, int]) -> Iterator[Difference]:
    """Hour and day are held against buckets; old ones may be gone, but not the latest `KEPT_BUCKETS`."""
    latest = sorted(of_rows, reverse=True)[:KEPT_BUCKETS]
    wrong = [
        bucket
        for bucket in sorted({*latest, *envelope.spends_micro})
        if envelope.spends_micro.get(bucket, 0) != of_rows.get(bucket, 0)
    ]
    if wrong:
        begin = f"{moment(wrong[0] * BUCKET_S * 1000):%Y-%m-%d %H:%M} UTC"
        counted, paid = (sum(each.get(bucket, 0) for bucket in wrong) for each in (envelope.spends_micro, of_rows))
        yield replace(
            _envelope_difference(
                envelope.id,
                "what its hour and day limits are held against isn't what was paid then",
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
        advice=f"Its limits don't hold as they should: freeze it. {MEND}",
    )


def _rows(ledger: LedgerSnapshot) -> Iterator[Difference]:
    """Each row for itself: state, times, reservation, booking and preimage fit together."""
    for row in ledger.payments.values():
        reserved = row.micro_of(row.amount_msat + row.max_fee_msat) if row.unfinished else 0
        booked = row.micro_of(row.amount_msat + row.fee_msat) if row.paid else 0
        if (row.reserved_micro, row.settled_micro, row.settled_at_ms is not None) != (reserved, booked, row.paid):
            kept, due = (
                f"reserved {in_currency(each[0], row.currency)}, booked {in_currency(each[1], row.currency)}"
                for each in ((row.reserved_micro, row.settled_micro), (reserved, booked))
            )
            yield Difference(
                kind=Kind.ROW_AMOUNT,
                payment_hash=row.payment_hash,
                envelope_id=row.envelope_id,
                what="what its row reserves and books isn't what its state and amounts come to",
                says=(("ledger", f"{told_row(row)}; {kept}"), ("due", due)),
                advice=MEND,
            )
        if row.preimage is not None and not (row.paid and fits(row.preimage, row.payment_hash)):
            yield Difference(
                kind=Kind.ROW_PREIMAGE,
                payment_hash=row.payment_hash,
                what="its preimage isn't one of a paid invoice" if not row.paid else "its preimage doesn't fit its payment hash",
                says=(("ledger", told_row(row)),),
                advice=f"Its token can't be used. {MEND} The node still knows the preimage.",
            )


def fits(preimage: str, payment_hash: str) -> bool:
    """Whether a preimage (hex) is the payment hash's."""
    try:
        return hashlib.sha256(bytes.fromhex(preimage)).hexdigest() == payment_hash
    except ValueError:
        return False


def _two_live(rows: Iterable[BookedPayment]) -> Iterator[Difference]:
    """One need has one live row: two would be two purchases of one thing."""
    live: dict[tuple[str, str], BookedPayment] = {}
    for row in rows:
        if not (row.unfinished or row.state is PaymentState.SETTLED):
            continue
        other = live.setdefault((row.origin, row.scope), row)
        if other is not row:
            yield Difference(
                kind=Kind.TWO_LIVE_ROWS,
                payment_hash=row.payment_hash,
                what=f"two live payments for one need, {row.scope} of {row.origin}",
                says=(("ledger", told_row(row)), ("and", f"{other.payment_hash}, {told_row(other)}")),
                advice=f"The index that keeps purchases apart is gone. {MEND}",
            )
