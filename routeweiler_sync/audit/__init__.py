"""The audit: does the ledger agree with itself, with the payments in traces, and with the node's own list of payments?

No I/O: the three accounts come in as values (`Ledger.snapshot`, `trace.reader.read_traces`, `NodeAccount.of`), and a `Report` comes
out. Reading the accounts and showing the report is left to `cli.audit`. The audit changes nothing and can't move money.

Read the accounts in this order: node, ledger, trace. A row is written before its payment order leaves, so every payment in the
node's list is then in the ledger too.

The checks are in `ledger_checks` (the ledger with itself) and `external_checks` (with trace and node), their results in `findings`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from .._core.money import sats
from ..ledger.snapshot import LedgerSnapshot
from ..trace.reader import TraceAccount
from . import external_checks, ledger_checks
from .findings import Difference, Kind, NodeAccount, Open, Report, counted

__all__ = ["Difference", "Kind", "NodeAccount", "Open", "Report", "compare", "confirmed"]

#: Rank of each kind of difference, the most serious first: `Kind` lists them in this order.
_SEVERITY_RANK = {kind: rank for rank, kind in enumerate(Kind)}


def compare(
    ledger: LedgerSnapshot,
    *,
    trace: TraceAccount | None,
    node: NodeAccount | None,
    now_s: float,
    is_dead: Callable[[str], bool] = lambda claimant: False,
) -> Report:
    """Compare the accounts and return a report. ``trace`` or ``node`` is None if there is none to compare with.

    The accounts were read one after the other, so a payment in progress may be in one and not yet in another: see `confirmed`.
    ``now_s`` is in unix seconds; a payment settled only a short while ago needn't be in the trace yet. Nor does one that a process
    is about to report, as the ledger says. ``is_dead`` says whether that process, a claimant, is known to run no more.
    """
    rows = ledger.payments.values()
    differences, notes = ledger_checks.differences(ledger), list(_archive_notes(ledger))
    trace_compared = node_compared = 0
    if unproved := sum(row.paid and row.preimage is None for row in rows):
        notes.append(f"Booked without proof and token, since the node's preimage didn't fit: {counted(unproved, 'payment')}.")
    if trace is not None:
        trace_compared, trace_differences, trace_notes = external_checks.with_trace(ledger, trace, now_s, is_dead)
        differences, notes = differences + trace_differences, notes + trace_notes
    if node is not None:
        node_compared, node_differences, node_notes = external_checks.with_node(ledger, node)
        differences, notes = differences + node_differences, notes + node_notes
    at_node = () if node is None else node.payments.values()
    foreign = [
        each
        for each in at_node
        if each.status == "SUCCEEDED" and each.payment_hash not in ledger.payments and each.payment_hash not in ledger.archived
    ]
    return Report(
        payments=len(rows),
        paid=sum(row.paid for row in rows),
        spent_msat=sum(row.amount_msat + row.fee_msat for row in rows if row.paid),
        trace_compared=trace_compared,
        node_compared=node_compared,
        foreign=len(foreign),
        foreign_msat=sum(payment.amount_msat + (payment.fee_msat or 0) for payment in foreign),
        differences=tuple(sorted(differences, key=lambda difference: _SEVERITY_RANK[difference.kind])),
        open=tuple(external_checks.still_open(ledger, node)),
        notes=tuple(notes),
    )


def _archive_notes(ledger: LedgerSnapshot) -> Iterator[str]:
    """Say which payments were moved to archives that weren't given."""
    missing = sum(each.payments for each in ledger.archived_sums.values())
    if missing:
        spent_msat = sum(each.spent_msat for each in ledger.archived_sums.values())
        yield (
            f"Moved to archives that aren't given: {counted(missing, 'payment')} ({sats(spent_msat)}). Their sums are compared; "
            "they themselves only with --archive FILE."
        )


def confirmed(audit: Callable[[], Report], pause: Callable[[], None]) -> Report:
    """Call ``audit``. If it finds differences, call ``pause`` and audit again; report only the differences found both times.

    A payment that is settled or reported while the accounts are being read differs between them for that moment only. The report
    returned is that of the last audit.
    """
    first = audit()
    if first.agrees:
        return first
    pause()
    seen = {difference.key for difference in first.differences}
    second = audit()
    return replace(second, differences=tuple(each for each in second.differences if each.key in seen))
