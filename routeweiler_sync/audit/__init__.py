"""Do the accounts add up? Compares the ledger with itself, with what traces tell, and with the node's own list of payments.

Pure: the three accounts come in as values (`Ledger.books`, `trace.reader.read_traces`, `NodeAccount.of`), a `Report` comes out.
It changes nothing and can't move money. Who takes the accounts takes the node's first, then the ledger's, then the trace's: what
the node has paid is then in the ledger, for a row is written before its order leaves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ..ledger.snapshot import LedgerSnapshot
from ..trace.reader import TraceAccount
from . import external_checks, ledger_checks
from .findings import Difference, Kind, NodeAccount, Open, Report

__all__ = ["Difference", "Kind", "NodeAccount", "Open", "Report", "compare", "confirmed"]

_GRAVITY = {kind: at for at, kind in enumerate(Kind)}


def compare(ledger: LedgerSnapshot, *, trace: TraceAccount | None, node: NodeAccount | None, now_s: float) -> Report:
    """The audit of accounts that were taken one after the other. What was under way meanwhile may differ: see `confirmed`."""
    rows = ledger.payments.values()
    differences, notes = ledger_checks.differences(ledger), []
    trace_compared = node_compared = 0
    if unproved := sum(row.paid and row.preimage is None for row in rows):
        notes.append(f"{unproved} payments are booked without proof: the node's preimage didn't fit, so no token came of them.")
    if trace is not None:
        trace_compared, found, said = external_checks.with_trace(ledger, trace, now_s)
        differences, notes = differences + found, notes + said
    if node is not None:
        node_compared, found, said = external_checks.with_node(ledger, node)
        differences, notes = differences + found, notes + said
    at_node = () if node is None else node.payments.values()
    foreign = [each for each in at_node if each.status == "SUCCEEDED" and each.payment_hash not in ledger.payments]
    return Report(
        payments=len(rows),
        paid=sum(row.paid for row in rows),
        spent_msat=sum(row.amount_msat + row.fee_msat for row in rows if row.paid),
        trace_compared=trace_compared,
        node_compared=node_compared,
        foreign=len(foreign),
        foreign_msat=sum(payment.amount_msat + payment.fee_msat for payment in foreign),
        differences=tuple(sorted(differences, key=lambda found: _GRAVITY[found.kind])),
        open=tuple(external_checks.still_open(ledger, node)),
        notes=tuple(notes),
    )


def confirmed(audit: Callable[[], Report], pause: Callable[[], None]) -> Report:
    """The report of ``audit``; of differences, only those that a second one after a ``pause`` finds too.

    A payment that is being settled or told while the accounts are taken, one after the other, differs for that moment.
    """
    first = audit()
    if first.agrees:
        return first
    pause()
    seen = {difference.key for difference in first.differences}
    second = audit()
    return replace(second, differences=tuple(found for found in second.differences if found.key in seen))
