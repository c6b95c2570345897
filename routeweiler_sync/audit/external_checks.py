"""The ledger held against the two accounts that others keep: the trace's, and the node's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from decimal import Decimal

from .._core.money import MICRO, sats
from ..funding.wallet import NodePayment
from ..ledger.snapshot import BookedPayment, LedgerSnapshot
from ..ledger.types import PaymentState
from ..trace.reader import ReportedPayment, TraceAccount
from .findings import MEND, Difference, Kind, NodeAccount, Open, in_currency, told_node, told_row, told_trace
from .ledger_checks import fits

#: A payment so young that no trace has told of it may belong to a call that still waits for its page.
UNTOLD_GRACE_S = 300.0


def with_trace(ledger: LedgerSnapshot, trace: TraceAccount, now_s: float) -> tuple[int, list[Difference], list[str]]:
    """How many payments were held against the trace, where it differs, and what of it couldn't be compared."""
    held = [row for row in ledger.payments.values() if row.paid and (row.payment_hash in trace.payments or _expected(row, trace))]
    return len(held), list(_trace(ledger, trace, held, now_s)), list(_trace_notes(ledger, trace, held))


def with_node(ledger: LedgerSnapshot, node: NodeAccount) -> tuple[int, list[Difference], list[str]]:
    """As `with_trace`, for the payments of this node."""
    mine = [row for row in ledger.payments.values() if row.node_pubkey == node.pubkey]
    notes = []
    if others := len(ledger.payments) - len(mine):
        notes.append(f"{others} payments are other nodes' than {node.pubkey}, and only those can tell of them. Audit there too.")
    return len(mine), [found for row in mine for found in _at_node(row, node.payments.get(row.payment_hash))], notes


def still_open(ledger: LedgerSnapshot, node: NodeAccount | None) -> list[Open]:
    """Payments without an end: in the ledger, or at the node where the ledger has given them up."""
    return [_open(row, node) for row in ledger.payments.values() if row.unfinished or _may_yet_be_paid(row, node)]


# The trace


def _expected(row: BookedPayment, trace: TraceAccount) -> bool:
    """Whether a paid row must be in the trace: before its first line, another file may have told of it."""
    if not row.reported:
        return True
    return trace.since_s is not None and (row.settled_at_ms or 0) >= trace.since_s * 1000


def _trace(ledger: LedgerSnapshot, trace: TraceAccount, held: Iterable[BookedPayment], now_s: float) -> Iterator[Difference]:
    for payment_hash, tellings in trace.payments.items():
        row = ledger.payments.get(payment_hash)
        if row is None or not row.paid:
            yield Difference(
                kind=Kind.TOLD_NOT_BOOKED,
                payment_hash=payment_hash,
                what="the trace tells of a payment that the ledger hasn't booked",
                says=(("ledger", "no such payment" if row is None else told_row(row)), ("trace", told_trace(tellings[0]))),
                advice=_told_advice(row),
            )
    for row in held:
        found = trace.payments.get(row.payment_hash)
        if found is not None:
            yield from (each for telling in found for each in _telling(row, telling))
        elif row.reported:
            yield Difference(
                kind=Kind.MISSING_IN_TRACE,
                payment_hash=row.payment_hash,
                what="a trace has told of it, but not this one",
                says=(("ledger", f"{told_row(row)}, told"), ("trace", "nothing")),
                advice="Was it paid by a session with another trace or none, or was the file rotated? Give all files with --trace.",
            )
        elif now_s * 1000 - (row.settled_at_ms or 0) >= UNTOLD_GRACE_S * 1000:
            yield Difference(
                kind=Kind.UNTOLD,
                payment_hash=row.payment_hash,
                what="no trace has told of it: its call ended in a crash, or its line couldn't be written",
                says=(("ledger", f"{told_row(row)}, not told"), ("trace", "nothing")),
                advice="session.recover() of a session with this trace tells of it; so does the next call that uses the token.",
            )


def _told_advice(row: BookedPayment | None) -> str:
    if row is not None and row.unfinished:
        return "session.recover() asks the node, and books what it says."
    return (
        "Was it paid from another ledger, or this one restored from an old backup? Then budgets count too little: lower their "
        "limits by as much."
    )


def _telling(row: BookedPayment, told: ReportedPayment) -> Iterator[Difference]:
    if (told.amount_msat, told.fee_msat, _charge(told)) != (row.amount_msat, row.fee_msat, _charge(row)):
        yield Difference(
            kind=Kind.TRACE_AMOUNT,
            payment_hash=row.payment_hash,
            what="trace and ledger tell different amounts",
            says=(
                ("ledger", f"{told_row(row)}, charged {_told_charge(row)}"),
                ("trace", f"{told_trace(told)}, charged {_told_charge(told)}"),
            ),
            advice="See which of the two the node's list bears out; the other was changed from outside.",
        )
    if told.proof is not None and told.proof != row.preimage:
        proves = fits(told.proof, row.payment_hash)
        yield Difference(
            kind=Kind.TRACE_PROOF,
            payment_hash=row.payment_hash,
            what="the trace holds a proof that the ledger lacks" if proves else "the trace's proof doesn't fit the payment hash",
            says=(
                ("ledger", "another preimage, or none" if proves else told_row(row)),
                ("trace", "the preimage" if proves else "no preimage of it"),
            ),
            advice=MEND if proves else "The trace was changed from outside; the ledger has the proof.",
        )


def _charge(said: BookedPayment | ReportedPayment) -> tuple[Decimal, str] | None:
    """What an envelope was charged: millionths of a minor unit, and their currency. None without an envelope."""
    if isinstance(said, BookedPayment):
        return None if said.currency is None else (Decimal(said.settled_micro), said.currency)
    return None if said.booked_minor_units is None else (said.booked_minor_units * MICRO, said.currency or "")


def _told_charge(said: BookedPayment | ReportedPayment) -> str:
    charge = _charge(said)
    return "to no envelope" if charge is None else in_currency(int(charge[0]), charge[1])


def _trace_notes(ledger: LedgerSnapshot, trace: TraceAccount, held: Iterable[BookedPayment]) -> Iterator[str]:
    here = {row.payment_hash for row in held}
    older = [row for row in ledger.payments.values() if row.paid and row.payment_hash not in here]
    if older:
        spent = sats(sum(row.amount_msat + row.fee_msat for row in older))
        yield (
            f"{len(older)} payments ({spent}) are older than the trace's first line: not compared with it. Give the older files "
            "too, with --trace."
        )
    if bare := sum(
        row.preimage is not None and any(told.proof is None for told in trace.payments.get(row.payment_hash, ())) for row in held
    ):
        yield f"{bare} payments are told without proof (a redacted trace): their proofs aren't compared."
    if trace.unreadable:
        yield f"{trace.unreadable} lines of the trace aren't events; a killed writer may leave one."


# The node


def _at_node(row: BookedPayment, there: NodePayment | None) -> Iterator[Difference]:
    has_paid = there is not None and there.status == "SUCCEEDED"
    if has_paid and not row.paid:
        if row.unfinished:
            what, advice = "the node has paid, the ledger doesn't know it yet", "session.recover() books it and keeps its token."
        else:
            what = "the node has paid what the ledger has given up: money was spent that no budget counts"
            advice = (
                "Lower the envelope's limits by as much, or freeze it. Was it abandoned by hand, or paid by hand? The node's list "
                "holds the proof of payment."
            )
        kind = Kind.PAID_NOT_BOOKED
    elif row.paid and not has_paid:
        kind, what = Kind.BOOKED_NOT_PAID, "the ledger has booked what the node hasn't paid"
        advice = "Were payments deleted from the node, or was it restored from a backup? If not, keep both records as they are."
    elif there is not None and row.paid and (there.amount_msat, there.fee_msat) != (row.amount_msat, row.fee_msat):
        kind, what = Kind.NODE_AMOUNT, "node and ledger tell different amounts"
        advice = "The node's word counts. If the ledger wasn't changed from outside, keep both records as they are."
    else:
        return
    yield Difference(
        kind=kind,
        payment_hash=row.payment_hash,
        envelope_id=row.envelope_id,
        what=what,
        says=(("ledger", told_row(row)), ("node", told_node(there))),
        advice=advice,
    )


def _may_yet_be_paid(row: BookedPayment, node: NodeAccount | None) -> bool:
    """Abandoned by the user, while the node still has it in flight."""
    there = None if node is None or row.node_pubkey != node.pubkey else node.payments.get(row.payment_hash)
    return row.state is PaymentState.DEAD and there is not None and there.status not in ("SUCCEEDED", "FAILED")


def _open(row: BookedPayment, node: NodeAccount | None) -> Open:
    asked = node is not None and row.node_pubkey == node.pubkey
    there = node.payments.get(row.payment_hash) if node is not None and asked else None
    if not row.unfinished:
        advice = "It was abandoned by hand, but the node may still pay it; then the spend is in no budget. Audit again later."
    elif there is not None and there.status not in ("SUCCEEDED", "FAILED"):
        advice = "Wait; session.recover() books its end. If the node never ends it: ledger.forget(hash, abandon=True)."
    else:
        advice = "Call again for the page, which goes on with this payment, or session.recover(), which only asks the node."
    return Open(
        payment_hash=row.payment_hash,
        state=row.state,
        amount_msat=row.amount_msat,
        max_fee_msat=row.max_fee_msat,
        node=told_node(there) if asked else None,
        advice=advice,
    )
