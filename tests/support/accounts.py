"""The three accounts of one test, and the check that they agree: the ledger, the trace and the node's own record."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from routeweiler_sync import Ledger, PaymentState
from routeweiler_sync.audit import Kind, NodeAccount, compare
from routeweiler_sync.funding.wallet import NodePayment
from routeweiler_sync.testing import FakeLnd
from routeweiler_sync.trace.reader import read_traces
from tests.support import trace_schema


class Books:
    """The three accounts of one test: the ledger, the trace and the node's own record."""

    def __init__(self, folder: Path, lnd: FakeLnd) -> None:
        self.ledger_path = folder / "ledger.db"
        self.trace_path = folder / "trace.jsonl"
        self.lnd = lnd

    @property
    def ledger(self) -> Ledger:
        return Ledger.open(self.ledger_path)

    @property
    def rows(self) -> list[Any]:
        return list(self.ledger.payments())

    @property
    def lines(self) -> list[dict[str, Any]]:
        if not self.trace_path.exists():
            return []
        return [json.loads(line) for line in self.trace_path.read_text().splitlines()]

    def check(self, *, finished: bool = True) -> None:
        """Ledger, trace and node agree to the msat, and no scope has been paid twice while its token was live."""
        settled = {row.payment_hash: row for row in self.rows if row.settled_at is not None}
        paid = {p.payment_hash: p for p in self.lnd.payments if p.status == "SUCCEEDED"}
        if finished:
            assert not [row for row in self.rows if row.unfinished], "an unfinished row is left"
            assert settled.keys() == paid.keys(), "ledger and node differ on what was paid"
        for payment_hash, row in settled.items():
            assert (row.amount_msat, row.fee_msat) == (paid[payment_hash].amount_msat, paid[payment_hash].fee_msat)
            if row.preimage is not None:
                assert row.sends_ever >= 1
        for envelope in self.ledger.envelopes():
            mine = [row for row in self.rows if row.envelope_id == envelope.id]
            assert envelope.reserved_minor_units * 10**6 == sum(row.reserved_micro for row in mine)
            assert envelope.settled_minor_units * 10**6 == sum(row.settled_micro for row in mine)
            if envelope.limits.cap_currency == "sat":
                spent_msat = sum(row.amount_msat + row.fee_msat for row in mine if row.settled_at is not None)
                assert envelope.settled_minor_units * 1000 == spent_msat
        trace_schema.check(self.lines)
        if self.lines:
            reports = [p for line in self.lines if (p := line["payment"]) and not p["reused"]]
            told = {p["paymentHash"]: p for p in reports}
            assert len(reports) == len(told), "a payment is reported twice"
            if finished:
                assert told.keys() == settled.keys(), "trace and ledger differ on what was paid"
            for payment_hash, payment in told.items():
                row = settled[payment_hash]
                assert (payment["amountMsat"], payment["feeMsat"]) == (row.amount_msat, row.fee_msat)
                assert payment["proofValue"] == (None if row.single_use else row.preimage)
        live = [
            (row.origin, row.scope)
            for row in self.rows
            if row.state in (PaymentState.SETTLED, PaymentState.OPEN, PaymentState.FAILED) and not row.single_use
        ]
        assert len(live) == len(set(live))
        self.audit(finished=finished)

    def audit(self, *, finished: bool) -> None:
        """The library's own audit says the same: it never cries wolf, whatever has happened."""
        node = NodeAccount.of(
            next((row.node_pubkey for row in self.rows), ""),
            [
                NodePayment(
                    payment_hash=payment.payment_hash,
                    status=payment.status,
                    amount_msat=payment.amount_msat,
                    fee_msat=payment.fee_msat,
                    failure_reason=payment.failure_reason,
                    created_at_ns=0,
                )
                for payment in self.lnd.payments
            ],
        )
        trace = read_traces([self.trace_path]) if self.lines else None
        report = compare(self.ledger.snapshot(), trace=trace, node=node, now_s=time.time())
        assert finished <= (report.agrees and report.foreign == 0), report.differences
        assert {found.kind for found in report.differences} <= {Kind.PAID_NOT_BOOKED}, report.differences
