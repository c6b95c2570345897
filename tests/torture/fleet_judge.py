"""Who watches a fleet, and who judges it: the database by raw SQL, the nodes' own records, and what the workers were told.

Neither trusts the library's ledger: a finding is a sentence, none means that every promise was kept.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg

from routeweiler_sync import Ledger
from routeweiler_sync.audit import NodeAccount, compare
from routeweiler_sync.funding.wallet import NodePayment
from routeweiler_sync.testing import FakeLnd
from routeweiler_sync.trace.reader import read_traces

LOOK_EVERY_S = 0.02
MICRO = 10**6
#: What a worker may be told, with what it says of the money.
MAY_BE_TOLD = {
    ("budget_exceeded", False),
    ("payment_pending", None),
    ("payment_pending", True),  # its node has said so, and the database is down
    ("invoice_payment_failed", False),
    ("ledger_error", False),
    ("funding_error", False),
    ("token_refused", True),
    ("ledger_error", True),  # the call has paid, its token was refused, and then the database went down
}
_SIGHT = """
    SELECT id, limits, reserved_micro, settled_micro,
           (SELECT COALESCE(SUM(micro), 0) FROM spends WHERE envelope_id = envelopes.id),
           (SELECT COALESCE(SUM(reserved_micro), 0) FROM payments WHERE envelope_id = envelopes.id),
           (SELECT COALESCE(SUM(settled_micro), 0) FROM payments WHERE envelope_id = envelopes.id)
    FROM envelopes
"""
_CROWDED = """
    SELECT origin, scope, COUNT(*) FROM payments WHERE state IN ('open', 'failed', 'settled')
    GROUP BY origin, scope HAVING COUNT(*) > 1
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """An envelope at one instant, in millionths of a sat. ``limit``: the one that is set, cap or hour."""

    limit_micro: int
    reserved_micro: int
    settled_micro: int

    @property
    def left_micro(self) -> int:
        return self.limit_micro - self.reserved_micro - self.settled_micro


class Reader(threading.Thread):
    """Looks at the database all the while, on a connection of its own; each look is one statement, so of one instant."""

    def __init__(self, url: str, spent_msat: Callable[[], int]) -> None:
        super().__init__(name="reader", daemon=True)
        self._url, self._spent_msat, self._ended = url, spent_msat, threading.Event()
        self.envelopes: dict[str, Sight] = {}
        self.findings: list[str] = []
        self.looks = self.connections = 0
        self.least_left_micro: dict[str, int] = {}

    def run(self) -> None:
        while not self._ended.is_set():
            try:
                with psycopg.connect(self._url, autocommit=True, connect_timeout=5) as connection:
                    self.connections += 1
                    while not self._ended.wait(LOOK_EVERY_S):
                        self._look(connection)
            except psycopg.OperationalError:  # its backend was ended, or the server is down
                self._ended.wait(LOOK_EVERY_S)

    def stop(self) -> None:
        self._ended.set()
        self.join()

    def wait_for(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Whether ``condition`` came to hold in time."""
        until_s = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > until_s:
                return False
            time.sleep(LOOK_EVERY_S)
        return True

    def _look(self, connection: psycopg.Connection[Any]) -> None:
        gone_msat = self._spent_msat()  # before: what has left a node by now is reserved or settled in any later sight
        booked_micro = 0
        for id, text, reserved, settled, in_windows, of_rows_reserved, of_rows_settled in connection.execute(_SIGHT).fetchall():
            limits = json.loads(text)
            limit = next(limits[name] for name in ("cap_minor_units", "per_hour_minor_units") if limits[name] is not None)
            sight = Sight(limit_micro=limit * MICRO, reserved_micro=reserved, settled_micro=settled)
            booked_micro += reserved + settled
            self._hold(sight.left_micro >= 0, f"OVERSPENT: {id} holds {reserved} + {settled} of {limit} sat")
            self._hold(in_windows == settled, f"DRIFT: {id}: {in_windows} in the hour, {settled} settled")
            totals = (of_rows_reserved, of_rows_settled)
            self._hold(totals == (reserved, settled), f"DRIFT: {id}: rows {totals}, totals {(reserved, settled)}")
            self.envelopes[id] = sight
            self.least_left_micro[id] = min(sight.left_micro, self.least_left_micro.get(id, sight.left_micro))
        self._hold(gone_msat * 1000 <= booked_micro, f"OVERSPENT: {gone_msat} msat have left the nodes, {booked_micro} are booked")
        for origin, scope, rows in connection.execute(_CROWDED).fetchall():
            self._hold(False, f"DOUBLE: {rows} live rows of {origin} {scope}")
        self.looks += 1

    def _hold(self, holds: bool, otherwise: str) -> None:
        if not holds and len(self.findings) < 20:
            self.findings.append(otherwise)


@dataclass(frozen=True, kw_only=True)
class Judge:
    """The judgement at the end. ``repurchases``: origin → how often its tokens were revoked; a need may be paid as often again."""

    url: str
    trace: Path
    report: Path
    nodes: Sequence[FakeLnd]
    repurchases: Counter[str]
    figures: Counter[str] = field(default_factory=Counter)

    def findings(self) -> list[str]:
        with psycopg.connect(self.url) as connection:
            cursor = connection.execute(
                "SELECT payment_hash, origin, scope, state, node_pubkey, bolt11, amount_msat, fee_msat, settled_at_ms, "
                "reserved_micro, preimage FROM payments"
            )
            names = [column.name for column in cursor.description or ()]
            rows = {row[0]: dict(zip(names, row, strict=True)) for row in cursor.fetchall()}
        reports = [json.loads(line) for line in self.report.read_text().splitlines()]
        found: list[str] = []
        for check in (self._nodes, self._rows, self._needs):
            found += check(rows)
        found += self._claims(reports, rows)
        found += self._audit()
        return list(dict.fromkeys(found))

    def _paid(self) -> dict[str, Any]:
        return {p.payment_hash: p for node in self.nodes for p in node.payments if p.status == "SUCCEEDED"}

    def _nodes(self, rows: dict[str, Any]) -> Iterable[str]:
        """Each order and each payment at the row's own node, and there alone."""
        hash_of = {row["bolt11"]: payment_hash for payment_hash, row in rows.items()}
        met: dict[str, str] = {}
        for node in self.nodes:
            sent = {hash_of.get(order.bolt11, order.bolt11[:60]) for order in node.orders}
            self.figures["orders"] += len(node.orders)
            for payment_hash in sent | {payment.payment_hash for payment in node.payments}:
                row = rows.get(payment_hash)
                if row is None:
                    yield f"{payment_hash} was sent and isn't in the ledger"
                elif row["node_pubkey"] != node.node_pubkey:
                    yield f"STRAY: {payment_hash} of {row['node_pubkey'][:8]} was sent to {node.node_pubkey[:8]}"
                if met.setdefault(payment_hash, node.node_pubkey) != node.node_pubkey:
                    yield f"STRAY: {payment_hash} was sent to both nodes"

    def _rows(self, rows: dict[str, Any]) -> Iterable[str]:
        paid = self._paid()
        self.figures["payments"] = len(paid)
        self.figures["paid msat"] = sum(p.amount_msat + p.fee_msat for p in paid.values())
        for payment_hash, row in rows.items():
            self.figures[f"rows {row['state']}"] += 1
            booked = row["settled_at_ms"] is not None
            if row["state"] in ("open", "failed") or (not booked and row["reserved_micro"]):
                yield f"row {payment_hash} is left {row['state']}"
            if booked != (payment_hash in paid):
                yield f"LOST: {payment_hash} is {'booked and not paid' if booked else 'paid and not booked'}"
            elif booked:
                there = paid[payment_hash]
                if (there.amount_msat, there.fee_msat) != (row["amount_msat"], row["fee_msat"]) or row["preimage"] is None:
                    yield f"DRIFT: {payment_hash}: {row['amount_msat']} + {row['fee_msat']} booked, {there} at its node"
        if sum(node.spent_msat for node in self.nodes) != self.figures["paid msat"]:
            yield "DOUBLE: more has left the nodes than one payment for each hash"

    def _needs(self, rows: dict[str, Any]) -> Iterable[str]:
        needs = Counter((row["origin"], row["scope"]) for row in rows.values() if row["settled_at_ms"] is not None)
        self.figures["needs"] = len(needs)
        for (origin, scope), payments in needs.items():
            if payments > 1 + self.repurchases[origin]:
                yield f"DOUBLE: {origin} {scope} was paid {payments} times; {self.repurchases[origin]} revocations"

    def _claims(self, reports: list[dict[str, Any]], rows: dict[str, Any]) -> Iterable[str]:
        paid = self._paid()
        for report in reports:
            self.figures[report["what"] if report["what"] != "error" else f"{report['code']}/{report['spent']}"] += 1
            about = f"{report['who']} at {report['at']}: {report.get('text', '')}"
            if report["what"] == "bug":
                yield f"a worker fell: {report['kind']} {about}"
            elif report["what"] == "page" and report["hash"] is not None and report["hash"] not in paid:
                yield f"CLAIM: a page came for {report['hash']}, which isn't paid: {about}"
            elif report["what"] == "error":
                if (report["code"], report["spent"]) not in MAY_BE_TOLD:
                    yield f"CLAIM: {report['code']}/{report['spent']} {about}"
                if report["hash"] is not None and report["spent"] is not None and report["spent"] != (report["hash"] in paid):
                    yield f"CLAIM: spent={report['spent']} of {report['hash']} {about}"
            if report.get("last") and report.get("code") != "budget_exceeded":
                yield f"CLAIM: the cap is reached, and a further call ends in {report['what']} {report.get('code')} {about}"

    def _audit(self) -> Iterable[str]:
        """The library's own audit agrees, over all traces and each node."""
        ledger = Ledger.open(self.url)
        books, trace = ledger.snapshot(), read_traces([self.trace])
        ledger.close()
        lines = [json.loads(line)["payment"] for line in self.trace.read_text().splitlines()]
        told = Counter(payment["paymentHash"] for payment in lines if payment and not payment["reused"])
        self.figures["told twice"] = sum(times > 1 for times in told.values())
        yield from (f"TWICE: the trace reports {payment_hash} {times} times" for payment_hash, times in told.items() if times > 1)
        for node in self.nodes:
            payments = [
                NodePayment(
                    payment_hash=p.payment_hash,
                    status=p.status,
                    amount_msat=p.amount_msat,
                    fee_msat=p.fee_msat,
                    failure_reason=p.failure_reason,
                    created_at_ns=0,
                )
                for p in node.payments
            ]
            audited = compare(books, trace=trace, node=NodeAccount.of(node.node_pubkey, payments), now_s=time.time())
            yield from (f"AUDIT: {difference}" for difference in audited.differences)
            if audited.foreign:
                yield f"AUDIT: {audited.foreign} payments of {node.node_pubkey[:8]} are foreign to the ledger"


def sats(micro: int) -> str:
    """Millionths of a sat, for people."""
    return f"{Decimal(micro) / MICRO:f} sat"
