"""The audit on the real stack: lnd's own ListPayments against a ledger and a trace that real purchases have made."""

from __future__ import annotations

import csv
import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from routeweiler_sync import Funding, InvoicePaymentError, LndClient, PaymentPendingError, PaymentState, Routeweiler, TraceSink

from .world import World

NETWORK = "bitcoin-regtest"
LIST_PERMISSIONS = ("uri:/lnrpc.Lightning/GetInfo", "uri:/lnrpc.Lightning/ListPayments")


class Accounts:
    """A ledger and a trace of one test's own, and the command that audits them."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world, self.ledger, self.trace = world, folder / "ledger.db", folder / "trace.jsonl"
        self.out: dict[str, Any] = {}

    def session(self, **kwargs: Any) -> Routeweiler:
        payer = self.world.payer
        client = LndClient(payer.grpc_host, payer.grpc_port, payer.bake(), tls_cert_path=payer.tls_cert_path)
        funding = Funding.lightning_lnd(client=client, network=NETWORK)
        return Routeweiler(funding=[funding], ledger=self.ledger, trace_sink=TraceSink.jsonl(self.trace), **kwargs)

    def audit(self, macaroon: Path | None = None) -> int:
        """The exit code; what was said is in ``out``."""
        macaroon = macaroon or self.world.payer.bake(*LIST_PERMISSIONS)
        done = subprocess.run(
            [sys.executable, "-m", "routeweiler_sync", "budget", "audit", "--json", "--ledger", self.ledger, "--trace", self.trace],
            env={**os.environ, **self.world.environment(), "POLAR_LND_MACAROON": str(macaroon)},
            capture_output=True,
            timeout=120,
        )
        self.out = json.loads(done.stdout)
        return done.returncode

    def edit(self, sql: str) -> None:
        with closing(sqlite3.connect(self.ledger)) as connection, connection:
            assert connection.execute(sql).rowcount == 1


@pytest.fixture
def accounts(world: World, tmp_path: Path) -> Accounts:
    return Accounts(world, tmp_path)


@pytest.mark.slow
def test_real_purchases_agree_and_what_is_changed_is_found(world: World, accounts: Accounts) -> None:
    """A fake lists what we think that lnd lists. Fees, amounts and failures must be read as lnd means them."""
    invoice = world.payee.add_invoice(7_000)
    assert world.payer.pay(invoice.payment_request)["status"] == "SUCCEEDED"  # by hand: not this ledger's
    with accounts.session() as session:
        for service in ("service-a", "service-b"):
            assert session.get(world.url(service, "page")).status_code == 200
    assert accounts.audit() == 0, accounts.out
    out = accounts.out
    assert (out["paid"], out["traceCompared"], out["nodeCompared"], out["spentMsat"]) == (2, 2, 2, 37_000)
    assert out["nodeForeign"]["payments"] >= 1
    accounts.edit("UPDATE payments SET fee_msat = fee_msat - 1 WHERE amount_msat = 10000")
    assert accounts.audit() == 1
    assert {found["kind"] for found in accounts.out["differences"]} == {"node_amount", "row_amount", "trace_amount"}
    said = next(found["says"]["node"] for found in accounts.out["differences"] if found["kind"] == "node_amount")
    assert said == "SUCCEEDED, 10 sat + 1 sat fee"


def test_a_failed_payment_is_dead_on_both_sides(world: World, accounts: Accounts) -> None:
    """lnd lists failures too, when it is asked for incomplete payments: they spent nothing."""
    with accounts.session(budget_envelope=None) as session:
        session._payer.funding[0].max_fee_msat = 0  # the router wants its fee: no route
        with pytest.raises(InvoicePaymentError):
            session.get(world.url("service-a", "page"))
    assert accounts.audit() == 0, accounts.out
    assert (accounts.out["payments"], accounts.out["paid"], accounts.out["nodeCompared"]) == (1, 0, 1)
    world.payer.lncli_text("resetmc")


@pytest.mark.slow
def test_what_was_abandoned_and_paid_after_all_is_found(world: World, accounts: Accounts) -> None:
    """The gravest difference, made by a real node: the router hangs, the user gives up, the payment goes through."""
    session = accounts.session(payment_timeout=3)
    world.router.freeze()
    with pytest.raises(PaymentPendingError):
        session.get(world.url("service-a", "page"))
    (row,) = session._payer.ledger.payments()
    assert accounts.audit() == 0, accounts.out
    assert [each["node"] for each in accounts.out["open"]] == ["IN_FLIGHT, 10 sat"]
    session._payer.ledger.forget(row.payment_hash, abandon=True)
    world.router.thaw()
    world.payer.lncli_text("trackpayment", row.payment_hash)  # returns when it has ended
    assert accounts.audit() == 1
    (found,) = accounts.out["differences"]
    assert (found["kind"], found["paymentHash"]) == ("paid_not_booked", row.payment_hash)
    assert found["says"] == {"ledger": f"{PaymentState.DEAD.value}, 10 sat", "node": "SUCCEEDED, 10 sat + 1 sat fee"}
    session.close()


def test_a_payers_macaroon_lacks_a_right_and_the_audit_names_it(world: World, accounts: Accounts) -> None:
    """lnd's own refusal must be understood: an unread list would pass for agreement."""
    with accounts.session() as session:
        assert session.get(world.url("service-a", "page")).status_code == 200
    assert accounts.audit(world.payer.bake()) == 3
    assert "uri:/lnrpc.Lightning/ListPayments" in accounts.out["compared"]["node"]
    assert accounts.out["traceCompared"] == 1


def test_the_reports_figures_are_those_of_lnds_list(world: World, accounts: Accounts, tmp_path: Path) -> None:
    """The bill is what lnd says has left its channels, payment by payment, with its own fees."""
    with accounts.session(budget_envelope=None) as session:
        for service in ("service-a", "service-b"):
            assert session.get(world.url(service, "page")).status_code == 200
    payer = world.payer
    client = LndClient(payer.grpc_host, payer.grpc_port, payer.bake(*LIST_PERMISSIONS), tls_cert_path=payer.tls_cert_path)
    listed = {each.payment_hash: each for each in client.list_payments() if each.status == "SUCCEEDED"}
    client.close()
    sheet = tmp_path / "report.csv"
    command = [sys.executable, "-m", "routeweiler_sync", "report", "--json", "--csv", sheet, "--ledger", accounts.ledger]
    done = subprocess.run([*command, "--trace", accounts.trace], capture_output=True, timeout=120, check=True)
    told = json.loads(done.stdout)
    with sheet.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == told["payments"] == 2
    for row in rows:
        payment = listed[row["payment_hash"]]
        assert (Decimal(row["amount_sat"]) * 1000, Decimal(row["fee_sat"]) * 1000) == (payment.amount_msat, payment.fee_msat)
        assert (row["network"], row["node"]) == (NETWORK, world.payer.pubkey)
    mine = [listed[row["payment_hash"]] for row in rows]
    assert told["spentMsat"] == sum(each.amount_msat + each.fee_msat for each in mine)
    assert told["feesMsat"] == sum(each.fee_msat for each in mine) > 0
    assert told["settlement"]["count"] == 2
