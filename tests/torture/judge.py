"""The judge: after a round, lnd's own list of payments against ledger, trace, and what the buyers were told.

lnd is asked through lncli, past the library. A finding is a sentence; none means that every promise was kept.
"""

from __future__ import annotations

import base64
import json
import sqlite3
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import requests

from routeweiler_sync import Ledger, PaymentState
from routeweiler_sync.ledger.types import PaymentRow
from tests.regtest.real_wallets import RealWallet
from tests.regtest.world import World

from .buyer import ENVELOPE

#: What the world pays itself, to see that it can.
WARM_UP_MSAT = 1_000
#: An orphan says IN_FLIGHT, without an HTLC, for as long as anyone looks; this long it is looked at.
ORPHAN_WATCH_S = 3.0
OPENS_TIMEOUT_S = 10.0
#: A token that is about to expire says nothing when it is refused.
EXPIRY_MARGIN_S = 1.0

Payment = dict[str, Any]


@dataclass
class Books:
    """One ledger and two traces for the whole run, and what was claimed about payments in earlier rounds."""

    folder: Path
    world: World
    wallet: RealWallet
    #: Payments that someone was told aren't made: they never may be. Hash → who was told.
    said_unspent: dict[str, str] = field(default_factory=dict)
    orphans: set[str] = field(default_factory=set)
    known: set[str] = field(default_factory=set)
    checked_trace: dict[str, int] = field(default_factory=dict)
    told: dict[str, tuple[int, int]] = field(default_factory=dict)
    #: Findings of earlier rounds: each is told once.
    found: set[str] = field(default_factory=set)
    #: Payments that the wallet had made before.
    foreign: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.foreign = {payment.payment_hash for payment in self.wallet.own_list()}

    @property
    def ledger_path(self) -> Path:
        return self.folder / "ledger.db"

    def trace_path(self, kind: str) -> Path:
        return self.folder / f"trace.{kind}"

    def rows(self) -> dict[str, PaymentRow]:
        ledger = Ledger.open(self.ledger_path)
        try:
            return {row.payment_hash: row for row in ledger.payments()}
        finally:
            ledger.close()

    def forget_tokens(self) -> None:
        """The next round pays for each need anew."""
        ledger = Ledger.open(self.ledger_path)
        for row in list(ledger.payments(state=PaymentState.SETTLED)):
            ledger.forget(row.payment_hash)
        ledger.close()

    def begin_round(self) -> None:
        self.forget_tokens()
        self.known |= set(self._paid_or_not())

    def _paid_or_not(self) -> dict[str, list[Payment]]:
        """lnd's list by hash, without what the world paid."""
        found: dict[str, list[Payment]] = {}
        for payment in self.world.payer.list_payments():
            if int(payment["value_msat"]) != WARM_UP_MSAT:
                found.setdefault(payment["payment_hash"], []).append(payment)
        return found

    # -- orphans ----------------------------------------------------------------------------------------------------------

    def is_orphan(self, payment_hash: str) -> bool:
        """Whether a payment stays in flight that has left nowhere: no HTLC of it in any channel, the invoice open.

        lnd has made such ones, and a wallet whose order lnd never got keeps them.
        """
        until = time.monotonic() + ORPHAN_WATCH_S
        while time.monotonic() < until:
            status = [p["status"] for p in self.world.payer.payments_of(payment_hash)]
            status = status or [p.status for p in self.wallet.own_list() if p.payment_hash == payment_hash]
            if status != ["IN_FLIGHT"] or self._htlc_is_out(payment_hash):
                return False
            if self.world.payee.lookup_invoice(payment_hash)["state"] != "OPEN":
                return False
        return True

    def _htlc_is_out(self, payment_hash: str) -> bool:
        names = {payment_hash, base64.b64encode(bytes.fromhex(payment_hash)).decode()}
        channels = [c for node in self.world.nodes for c in node.lncli("listchannels")["channels"]]
        return any(htlc["hash_lock"] in names for channel in channels for htlc in channel["pending_htlcs"])

    def abandon(self, payment_hash: str) -> None:
        ledger = Ledger.open(self.ledger_path)
        ledger.forget(payment_hash, abandon=True)
        ledger.close()
        self.orphans.add(payment_hash)

    # -- the judgement ----------------------------------------------------------------------------------------------------

    def judge(self, reports: list[dict[str, Any]], urls: dict[str, str]) -> tuple[list[str], int, int]:
        """What is wrong after a round in which ``urls`` (service → page) were bought; how many payments, how many msat."""
        listed, rows = self._paid_or_not(), self.rows()
        paid = {h: [p for p in ps if p["status"] == "SUCCEEDED"] for h, ps in listed.items()}
        paid = {h: ps for h, ps in paid.items() if ps}
        new_paid = {h: ps[0] for h, ps in paid.items() if h not in self.known}
        new_rows = {h: row for h, row in rows.items() if h not in self.known}
        findings = [f"{h} was paid {len(ps)} times by lnd's list" for h, ps in paid.items() if len(ps) > 1]
        findings += self._doubles(new_paid, rows)
        findings += self._rows_against_lnd(paid, rows)
        findings += self._rows_against_wallet(rows)
        findings += self._totals(rows)
        findings += self._claims(reports, paid, rows)
        findings += self._trace_against(rows)
        findings += self._tokens_open(new_rows, urls)
        findings += [f"no page of {s} was had by the finisher" for s, url in urls.items() if not _had(reports, url)]
        findings += [f"a buyer fell: {r['kind']}: {r['text']}" for r in reports if r["what"] == "bug"]
        findings = [finding for finding in dict.fromkeys(findings) if finding not in self.found]
        self.found.update(findings)
        return findings, len(new_paid), sum(int(p["value_msat"]) + int(p["fee_msat"]) for p in new_paid.values())

    def _doubles(self, new_paid: dict[str, Payment], rows: dict[str, PaymentRow]) -> list[str]:
        """A need is paid once, unless the token of the payment before had expired."""
        findings = [f"{h} was paid and isn't in the ledger" for h in new_paid if h not in rows]
        by_scope: dict[str, list[PaymentRow]] = {}
        for row in sorted((rows[h] for h in new_paid if h in rows), key=lambda row: row.created_at):
            by_scope.setdefault(row.scope, []).append(row)
        for scope, bought in by_scope.items():
            for first, second in pairwise(bought):
                if first.valid_until is None or first.valid_until > second.created_at.timestamp():
                    findings.append(f"DOUBLE: {scope} was paid by {first.payment_hash} and again by {second.payment_hash}")
        return findings

    def _rows_against_lnd(self, paid: dict[str, list[Payment]], rows: dict[str, PaymentRow]) -> list[str]:
        findings = [f"row {h} is unfinished ({row.state.value})" for h, row in rows.items() if row.unfinished]
        for h, (payment, *_) in paid.items():
            row = rows.get(h)
            if row is None:
                continue
            if row.settled_at is None or row.preimage != payment["payment_preimage"]:
                findings.append(f"LOST: {h} is paid, its row is {row.state.value}, with preimage: {row.preimage is not None}")
            elif (row.amount_msat, row.fee_msat) != (int(payment["value_msat"]), int(payment["fee_msat"])):
                findings.append(
                    f"DRIFT: {h}: ledger {row.amount_msat}+{row.fee_msat}, lnd {payment['value_msat']}+{payment['fee_msat']}"
                )
        findings += [f"DRIFT: {h} is booked and not paid" for h, r in rows.items() if r.settled_at is not None and h not in paid]
        return findings

    def _rows_against_wallet(self, rows: dict[str, PaymentRow]) -> list[str]:
        """The books say what the wallet's own list says, to the msat."""
        listed = {p.payment_hash: (p.amount_msat, p.fee_msat) for p in self.wallet.own_list() if p.status == "SUCCEEDED"}
        booked = {h: (row.amount_msat, row.fee_msat) for h, row in rows.items() if row.settled_at is not None}
        return [
            f"DRIFT: {h}: ledger {booked.get(h)}, the wallet's own list {listed.get(h)}"
            for h in listed.keys() | booked.keys()
            if h not in self.foreign and listed.get(h) != booked.get(h) and listed.get(h, (0, 0))[0] != WARM_UP_MSAT
        ]

    def _totals(self, rows: dict[str, PaymentRow]) -> list[str]:
        ledger = Ledger.open(self.ledger_path)
        envelope = ledger.envelope(ENVELOPE.id)
        unreported = ledger.unreported()
        ledger.close()
        spent_msat = sum(row.amount_msat + row.fee_msat for row in rows.values() if row.settled_at is not None)
        reserved = sum(row.reserved_micro for row in rows.values())
        findings = [f"{row.payment_hash} is settled and untold" for row in unreported]
        if envelope.settled_minor_units * 1_000 != spent_msat:
            findings.append(f"DRIFT: envelope {envelope.settled_minor_units} sat, rows {spent_msat} msat")
        if envelope.reserved_minor_units or reserved:
            findings.append(f"DRIFT: reserved {envelope.reserved_minor_units} sat in the envelope, {reserved} in rows")
        return findings

    def _claims(self, reports: list[dict[str, Any]], paid: dict[str, list[Payment]], rows: dict[str, PaymentRow]) -> list[str]:
        """Every error's ``spent`` against lnd, and those of earlier rounds again: what was said unspent stays so."""
        findings = []
        for report in reports:
            if report["what"] not in ("error", "recover failed") or report["hash"] is None:
                continue
            if report["spent"] is True and report["hash"] not in paid:
                findings.append(f"CLAIM: {report['who']} was told that {report['hash']} is spent: {report['text']}")
            if report["spent"] is False:
                self.said_unspent[report["hash"]] = f"{report['who']}: {report['text']}"
        findings += [f"CLAIM: {h} is paid, but {who}" for h, who in self.said_unspent.items() if h in paid]
        findings += [f"orphan {h} was paid after all" for h in self.orphans if h in paid]
        for report in reports:
            if report["what"] == "page" and report["hash"] is not None:
                row = rows.get(report["hash"])
                if row is None or row.settled_at is None:
                    findings.append(f"CLAIM: {report['who']} got a page for {report['hash']}, which isn't booked")
        return findings

    def _trace_against(self, rows: dict[str, PaymentRow]) -> list[str]:
        findings = []
        for payment in self._new_trace_payments():
            payment_hash, amounts = payment["paymentHash"], (payment["amountMsat"], payment["feeMsat"])
            if payment["reused"]:
                continue
            if payment_hash in self.told:
                findings.append(f"TWICE: the trace reports {payment_hash} again")
            if self.told.setdefault(payment_hash, amounts) != amounts:
                findings.append(f"DRIFT: the trace tells {payment_hash} as {amounts} and otherwise")
        settled = {h: (row.amount_msat, row.fee_msat) for h, row in rows.items() if row.settled_at is not None}
        for h in settled.keys() | self.told.keys():
            if settled.get(h) != self.told.get(h):
                findings.append(f"DRIFT: {h}: ledger {settled.get(h)}, trace {self.told.get(h)}")
        return findings

    def _new_trace_payments(self) -> list[dict[str, Any]]:
        lines: list[str] = []
        path = self.trace_path("jsonl")
        if path.exists():
            every = path.read_text().splitlines()
            lines += every[self.checked_trace.get("jsonl", 0) :]
            self.checked_trace["jsonl"] = len(every)
        path = self.trace_path("sqlite")
        if path.exists():
            conn = sqlite3.connect(path)
            found = conn.execute(
                "SELECT rowid, payload FROM trace_events WHERE rowid > ? ORDER BY rowid", (self.checked_trace.get("sqlite", 0),)
            ).fetchall()
            conn.close()
            lines += [payload for _, payload in found]
            self.checked_trace["sqlite"] = found[-1][0] if found else self.checked_trace.get("sqlite", 0)
        return [payment for line in lines if (payment := json.loads(line)["payment"]) is not None]

    def _tokens_open(self, new_rows: dict[str, PaymentRow], urls: dict[str, str]) -> list[str]:
        """The token of each payment of the round opens its page, by plain requests."""
        findings = []
        for h, row in new_rows.items():
            if row.settled_at is None or (row.valid_until is not None and row.valid_until < time.time() + EXPIRY_MARGIN_S):
                continue
            service = next(service for service in urls if service in row.scope)
            headers = {"Authorization": f"{row.scheme} {row.token}:{row.preimage}"}
            status = requests.get(urls[service], headers=headers, timeout=OPENS_TIMEOUT_S).status_code
            if status != 200:
                findings.append(f"LOST: the token of {h} doesn't open {service}: {status}")
        return findings


def _had(reports: list[dict[str, Any]], url: str) -> bool:
    return any(r["what"] == "page" and r["url"] == url and r["status"] == 200 and r["who"].startswith("finisher") for r in reports)
