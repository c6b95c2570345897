"""Checks of the ledger with two accounts from outside: the payments reported in traces, and the node's list of payments.

The ledger's agreement with itself is left to `ledger_checks`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from decimal import Decimal, localcontext

from .._core.money import EXACT, MICRO, sats
from ..funding.wallet import NodePayment
from ..ledger.snapshot import BookedPayment, LedgerSnapshot
from ..ledger.types import PaymentState
from ..trace.reader import ReportedPayment, TraceAccount
from .findings import Difference, Kind, NodeAccount, Open, counted, in_currency, told_node, told_row, told_trace
from .ledger_checks import fits

#: A payment settled less than this long ago needn't be in a trace yet: its call may still be loading the page.
UNTOLD_GRACE_S = 300.0


def with_trace(
    ledger: LedgerSnapshot, trace: TraceAccount, now_s: float, is_dead: Callable[[str], bool]
) -> tuple[int, list[Difference], list[str]]:
    """Compare the ledger's paid payments with the trace.

    Return how many were compared, the differences, and notes on what couldn't be compared. ``now_s`` and ``is_dead``: see
    `routeweiler_sync.audit.compare`.
    """
    compared = [
        row for row in ledger.payments.values() if row.paid and (row.payment_hash in trace.payments or _expected(row, trace))
    ]
    return len(compared), list(_trace(ledger, trace, compared, now_s, is_dead)), list(_trace_notes(ledger, trace, compared))


def with_node(ledger: LedgerSnapshot, node: NodeAccount) -> tuple[int, list[Difference], list[str]]:
    """Compare the ledger's payments from this node with the node's list. Return what `with_trace` returns.

    Another node's payments aren't compared: only the node that a payment was sent from knows about it.
    """
    compared = [row for row in ledger.payments.values() if row.node_pubkey == node.pubkey]
    notes = []
    if elsewhere := len(ledger.payments) - len(compared):
        notes.append(
            f"From other nodes than {node.pubkey}: {counted(elsewhere, 'payment')}. Only those nodes know about them: run the "
            "audit with them too."
        )
    return len(compared), [found for row in compared for found in _at_node(row, node.payments.get(row.payment_hash))], notes


def still_open(ledger: LedgerSnapshot, node: NodeAccount | None) -> list[Open]:
    """Return the payments without a final outcome: unfinished in the ledger, or abandoned there and in flight at the node."""
    return [_open(row, node) for row in ledger.payments.values() if row.unfinished or _may_yet_be_paid(row, node)]


# The trace


def _expected(row: BookedPayment, trace: TraceAccount) -> bool:
    """Return whether the trace must contain the paid ``row``.

    No, if its call had no trace, or if it was reported before the trace's first line: an older file may contain it.
    """
    if row.untraced:
        return False
    if not row.reported:
        return True
    return trace.since_s is not None and (row.settled_at_ms or 0) >= trace.since_s * 1000


def _trace(
    ledger: LedgerSnapshot, trace: TraceAccount, compared: Iterable[BookedPayment], now_s: float, is_dead: Callable[[str], bool]
) -> Iterator[Difference]:
    for payment_hash, reports in trace.payments.items():
        row = ledger.payments.get(payment_hash)
        if row is None and payment_hash in ledger.archived:
            continue
        if row is None or not row.paid:
            yield Difference(
                kind=Kind.TOLD_NOT_BOOKED,
                payment_hash=payment_hash,
                what="the trace reports a payment that the ledger hasn't booked",
                says=(("ledger", "no such payment" if row is None else told_row(row)), ("trace", told_trace(reports[0]))),
                advice=_not_booked_advice(row),
            )
    for row in compared:
        found = trace.payments.get(row.payment_hash)
        if found is not None:
            yield from (difference for reported in found for difference in _report(row, reported))
        elif row.reported:
            yield Difference(
                kind=Kind.MISSING_IN_TRACE,
                payment_hash=row.payment_hash,
                what="the payment is marked as reported, but this trace doesn't contain it",
                says=(("ledger", f"{told_row(row)}, reported"), ("trace", "nothing")),
                advice="Was it paid by a session with another trace, or was the file rotated? Give all files with --trace.",
            )
        elif now_s * 1000 - (row.settled_at_ms or 0) >= UNTOLD_GRACE_S * 1000 and not _is_being_reported(row, now_s, is_dead):
            yield Difference(
                kind=Kind.UNTOLD,
                payment_hash=row.payment_hash,
                what="no trace has reported the payment: its call ended in a crash, or its line couldn't be written",
                says=(("ledger", f"{told_row(row)}, not reported"), ("trace", "nothing")),
                advice="session.recover() or routeweiler-sync payments recover, with this trace, reports it. So does the next call "
                "that uses the token.",
            )


def _is_being_reported(row: BookedPayment, now_s: float, is_dead: Callable[[str], bool]) -> bool:
    """Return whether a process that may be alive has claimed to report the payment, and still may."""
    if row.claimant is None or row.claimed_until_ms is None:
        return False
    return row.claimed_until_ms > now_s * 1000 and not is_dead(row.claimant)


def _not_booked_advice(row: BookedPayment | None) -> str:
    """Return the advice for a payment that a trace reports and whose ``row`` is missing or not paid."""
    if row is not None and row.unfinished:
        return "Call session.recover(), or run routeweiler-sync payments recover: the node is asked, and the outcome is booked."
    return (
        "Was it paid with another ledger, or was this ledger restored from an old backup? Then this ledger's budgets count too "
        "little: lower their limits by the amount."
    )


def _report(row: BookedPayment, reported: ReportedPayment) -> Iterator[Difference]:
    """Compare one report of a payment, from a trace, with the payment's row."""
    if (reported.amount_msat, reported.fee_msat, _charge(reported)) != (row.amount_msat, row.fee_msat, _charge(row)):
        yield Difference(
            kind=Kind.TRACE_AMOUNT,
            payment_hash=row.payment_hash,
            what="trace and ledger have different amounts",
            says=(
                ("ledger", f"{told_row(row)}, charged {_charge_text(row)}"),
                ("trace", f"{told_trace(reported)}, charged {_charge_text(reported)}"),
            ),
            advice="See which of the two agrees with the node's list. The other one was changed by another program.",
        )
    if reported.proof is not None and reported.proof != row.preimage:
        proves = fits(reported.proof, row.payment_hash)
        is_in_ledger = row.preimage is not None and fits(row.preimage, row.payment_hash)
        if proves:
            advice = (
                "The payment is made, and the trace's proofValue is its proof; but without it the ledger can't use the token. "
                "Restore the ledger from a backup, or call session.ledger.forget(hash): then the next call pays again."
            )
        else:
            keeper = "The ledger has the right preimage." if is_in_ledger else "The node's list of payments has the right preimage."
            advice = f"The trace was changed by another program. {keeper}"
        yield Difference(
            kind=Kind.TRACE_PROOF,
            payment_hash=row.payment_hash,
            what="the trace has a preimage, the ledger lacks it" if proves else "the trace's preimage doesn't fit its payment hash",
            says=(
                ("ledger", told_row(row) if not proves else "no preimage" if row.preimage is None else "another preimage"),
                ("trace", "the preimage" if proves else "another value"),
            ),
            advice=advice,
        )


def _charge(payment: BookedPayment | ReportedPayment) -> tuple[Decimal, str] | None:
    """Return what an envelope was charged, in millionths of a minor unit, and the currency. None if no envelope was charged."""
    if isinstance(payment, BookedPayment):
        return None if payment.currency is None else (Decimal(payment.settled_micro), payment.currency)
    if payment.booked_minor_units is None:
        return None
    with localcontext(EXACT):
        return payment.booked_minor_units * MICRO, payment.currency or ""


def _charge_text(payment: BookedPayment | ReportedPayment) -> str:
    charge = _charge(payment)
    return "to no envelope" if charge is None else in_currency(int(charge[0]), charge[1])


def _trace_notes(ledger: LedgerSnapshot, trace: TraceAccount, compared: Iterable[BookedPayment]) -> Iterator[str]:
    compared_hashes = {row.payment_hash for row in compared}
    rest = [row for row in ledger.payments.values() if row.paid and row.payment_hash not in compared_hashes]
    if untraced := [row for row in rest if row.untraced]:
        yield f"Made by calls without a trace, so not compared with it: {_counted_with_cost(untraced)}."
    if older := [row for row in rest if not row.untraced]:
        yield (
            f"Older than the trace's first line, so not compared with it: {_counted_with_cost(older)}. Give the older files too, "
            "with --trace."
        )
    if without_proof := sum(
        row.preimage is not None and any(each.proof is None for each in trace.payments.get(row.payment_hash, ()))
        for row in compared
    ):
        yield (
            "Reported without proof (in a redacted trace, or of the scheme Payment, where that is a secret), so without a preimage "
            f"to compare: {counted(without_proof, 'payment')}."
        )
    if trace.unreadable:
        yield f"Not events: {counted(trace.unreadable, 'line')} of the trace. A process that is killed while writing may leave one."


def _counted_with_cost(rows: Sequence[BookedPayment]) -> str:
    return f"{counted(len(rows), 'payment')} ({sats(sum(row.amount_msat + row.fee_msat for row in rows))})"


# The node


def _at_node(row: BookedPayment, payment: NodePayment | None) -> Iterator[Difference]:
    """Compare a row with the node's ``payment`` of the same hash, None if the node's list has none."""
    has_paid = payment is not None and payment.status == "SUCCEEDED"
    if has_paid and not row.paid:
        if row.unfinished:
            what = "the node has paid, and the ledger doesn't know it yet"
            advice = "Call session.recover(): it books the payment and keeps its token."
        else:
            what = "the node has made a payment that the ledger has as not made: money was spent that no budget counts"
            advice = (
                "Lower the envelope's limits by the amount, or freeze it. Was the payment abandoned by hand, or paid by hand? The "
                "node's list has the proof of payment."
            )
        kind = Kind.PAID_NOT_BOOKED
    elif row.paid and not has_paid:
        kind, what = Kind.BOOKED_NOT_PAID, "the ledger has booked what the node hasn't paid"
        advice = "Were payments deleted from the node, or was it restored from a backup? If not, keep both records as they are."
    elif payment is not None and row.paid and not _costs_agree(row, payment):
        kind, what = Kind.NODE_AMOUNT, "node and ledger have different amounts"
        advice = "The node's amounts are the true ones. If no other program changed the ledger, keep both records as they are."
    else:
        return
    yield Difference(
        kind=kind,
        payment_hash=row.payment_hash,
        envelope_id=row.envelope_id,
        what=what,
        says=(("ledger", told_row(row)), ("node", told_node(payment))),
        advice=advice,
    )


def _costs_agree(row: BookedPayment, payment: NodePayment) -> bool:
    """Return whether row and wallet name the same amount and fee. Where the wallet doesn't say the fee, its limit was booked."""
    return payment.amount_msat == row.amount_msat and payment.fee_msat in (None, row.fee_msat)


def _may_yet_be_paid(row: BookedPayment, node: NodeAccount | None) -> bool:
    """Return whether the user abandoned the payment while the node still has it in flight."""
    payment = None if node is None or row.node_pubkey != node.pubkey else node.payments.get(row.payment_hash)
    return row.state is PaymentState.DEAD and payment is not None and payment.status not in ("SUCCEEDED", "FAILED")


def _open(row: BookedPayment, node: NodeAccount | None) -> Open:
    asked = node is not None and row.node_pubkey == node.pubkey
    payment = node.payments.get(row.payment_hash) if node is not None and asked else None
    if not row.unfinished:
        advice = (
            "It has ended in the ledger, abandoned or long expired, but the node may still pay it, and no budget would count it. "
            "Run the audit again later, after session.recover()."
        )
    elif payment is not None and payment.status not in ("SUCCEEDED", "FAILED"):
        advice = "Wait, then call session.recover(). If the node never ends the payment: session.ledger.forget(hash, abandon=True)."
    else:
        advice = "Get the page again, which continues this payment; or call session.recover(), which only asks the node."
    return Open(
        payment_hash=row.payment_hash,
        state=row.state,
        amount_msat=row.amount_msat,
        max_fee_msat=row.max_fee_msat,
        node=told_node(payment) if asked else None,
        advice=advice,
    )
