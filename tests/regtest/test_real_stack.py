"""The whole way on the real stack: aperture asks, lnd pays through a router that takes fees, the page arrives, the books agree.

After each test lnd's own list of payments is compared with what the test left in its ledger and its trace.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import pytest
import requests

from routeweiler_sync import (
    BudgetEnvelope,
    BudgetExceededError,
    Funding,
    InvoicePaymentError,
    Ledger,
    LightningFundingSource,
    LndClient,
    NoFeasibleRailError,
    Routeweiler,
    StaticRate,
    TraceSink,
)

from ..support import mcp_server
from .processes import wait_for
from .world import World

NETWORK = "bitcoin-regtest"
ROUTER_FEE_MSAT = 1_000


@dataclass(frozen=True)
class Books:
    """The ledger and the trace of one test, and lnd's payments from before it."""

    folder: Path
    before: frozenset[str]

    @property
    def ledger_path(self) -> Path:
        return self.folder / "ledger.db"

    @property
    def trace_path(self) -> Path:
        return self.folder / "trace.db"

    def lines(self) -> list[dict]:
        with contextlib.closing(sqlite3.connect(self.trace_path)) as conn:
            return [json.loads(payload) for (payload,) in conn.execute("SELECT payload FROM trace_events ORDER BY rowid")]

    def check(self, lnds_payments: list[dict]) -> None:
        """If lnd, ledger and trace differ by a millisatoshi, the user can't know what was spent (promise 7)."""
        with contextlib.closing(Ledger.open(self.ledger_path)) as ledger:
            rows = {row.payment_hash: row for row in ledger.payments()}
            envelopes = list(ledger.envelopes())
        assert not [row for row in rows.values() if row.unfinished]
        settled = {h: (row.amount_msat, row.fee_msat) for h, row in rows.items() if row.settled_at is not None}
        paid = [payment for payment in lnds_payments if payment["status"] == "SUCCEEDED"]
        assert settled == {
            payment["payment_hash"]: (int(payment["value_msat"]), int(payment["fee_msat"]))
            for payment in paid
            if payment["payment_hash"] in rows
        }
        # Nothing that lnd has paid since is missing in the ledger, but for what the world itself pays (a sat, to see that it can).
        others = [payment for payment in paid if payment["payment_hash"] not in self.before | rows.keys()]
        assert all(int(payment["value_msat"]) == 1_000 for payment in others)
        payments = [payment for line in self.lines() if (payment := line["payment"]) and not payment["reused"]]
        assert settled == {payment["paymentHash"]: (payment["amountMsat"], payment["feeMsat"]) for payment in payments}
        assert len(payments) == len(settled)
        for envelope in envelopes:
            spent = [row for row in rows.values() if row.envelope_id == envelope.id and row.settled_at is not None]
            assert envelope.reserved_minor_units == 0
            assert envelope.settled_minor_units * 10**6 == sum(row.settled_micro for row in spent)


@pytest.fixture
def books(world: World, tmp_path: Path) -> Iterator[Books]:
    """The books of one test, empty at first; they are checked when it has ended."""
    books = Books(tmp_path, frozenset(payment["payment_hash"] for payment in world.payer.list_payments()))
    yield books
    books.check(world.payer.list_payments())


@pytest.fixture
def client(world: World) -> Iterator[LndClient]:
    """The payer, with no more rights than a payer needs."""
    payer = world.payer
    client = LndClient(payer.grpc_host, payer.grpc_port, payer.bake(), tls_cert_path=payer.tls_cert_path)
    yield client
    client.close()


@pytest.fixture
def make_session(books: Books, client: LndClient) -> Iterator:
    made: list[Routeweiler] = []

    def make(**kwargs) -> Routeweiler:
        arguments = {
            "funding": [Funding.lightning_lnd(client=client, network=NETWORK)],
            "ledger": books.ledger_path,
            "trace_sink": TraceSink.sqlite(books.trace_path),
            "budget_envelope": BudgetEnvelope("regtest", per_call_minor_units=1_000, cap_minor_units=100_000),
        }
        made.append(Routeweiler(**arguments | kwargs))
        return made[-1]

    yield make
    for session in made:
        session.close()


def test_the_seeds_example_as_it_stands(world: World, books: Books, tmp_path: Path, monkeypatch, capsys) -> None:
    """The program that users of the async package have, made blocking. It must work with nothing changed."""
    for name, value in world.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ROUTEWEILER_LEDGER", str(books.ledger_path))
    client = LndClient(
        grpc_host=os.environ.get("POLAR_LND_HOST", "localhost").split(":")[0],
        grpc_port=int(os.environ.get("POLAR_LND_HOST", "localhost:10001").split(":")[1]),
        tls_cert_path=os.environ.get("POLAR_LND_TLS_CERT"),
        macaroon_path=os.environ.get("POLAR_LND_MACAROON"),
    )
    funding = Funding.lightning_lnd(client=client, network="bitcoin-regtest", node_pubkey=world.payer.pubkey)
    with Routeweiler(funding=[funding], trace_sink=TraceSink.sqlite(books.trace_path)) as rw:
        response = rw.get(world.url("service-a", "protected"))
        print(f"HTTP {response.status_code}: {response.json()}")
    assert capsys.readouterr().out.startswith("HTTP 200: {")
    assert response.payment is not None
    assert (response.payment.amount_msat, response.payment.fee_msat) == (10_000, ROUTER_FEE_MSAT)
    assert [r.status_code for r in response.history] == [402]
    challenges = response.history[0].raw.headers.getlist("WWW-Authenticate")
    assert [line.split(" ")[0] for line in challenges] == ["LSAT", "L402"]


def test_the_seeds_example_with_a_budget_in_dollars(world: World, books: Books, client: LndClient) -> None:
    """As the seed's second example: a node that is asked for its key, an envelope in cents, a lifetime."""
    funding = LightningFundingSource.create(client, "bitcoin-regtest")
    assert funding.node_pubkey == world.payer.pubkey
    envelope = BudgetEnvelope(
        id="lightning-session", cap_minor_units=1_000_000, cap_currency="usd", allowed_rails=["l402"], ttl_seconds=3_600
    )
    try:
        with Routeweiler(
            funding=[funding],
            budget_envelope=envelope,
            fmv_provider=StaticRate(60_000),
            ledger=books.ledger_path,
            trace_sink=TraceSink.sqlite(books.trace_path),
        ) as rw:
            assert rw.get(world.url("service-a", "protected")).status_code == 200
    except (InvoicePaymentError, NoFeasibleRailError) as error:
        pytest.fail(f"not paid: {error}")
    # 11 sat at 60 000 USD: 0.66 cents, not a whole one.
    assert Ledger.open(books.ledger_path).envelope("lightning-session").settled_minor_units == Decimal("0.66")


def test_a_post_arrives_with_its_body(world: World, books: Books, make_session) -> None:
    """A paid API call without its body buys an error."""
    body = os.urandom(100_000)
    response = make_session().post(world.url("service-a", "upload"), data=body)
    assert response.status_code == 200
    assert world.backend.requests[-1].method == "POST"
    assert world.backend.requests[-1].body_sha256 == hashlib.sha256(body).hexdigest()


def test_a_price_above_the_budget_is_not_paid(world: World, books: Books, make_session) -> None:
    """5 000 sat against 1 000 a call."""
    before = len(world.payer.list_payments())
    with pytest.raises(BudgetExceededError) as caught:
        make_session().get(world.url("costly", "page"))
    assert caught.value.spent is False
    assert len(world.payer.list_payments()) == before


def test_a_budget_of_the_bare_price_fails_for_the_fee_and_spends_nothing(world: World, books: Books, make_session) -> None:
    """The fee limit shrinks to what fits: with 10 sat for a page of 10 sat there is nothing left for the router."""
    tight = BudgetEnvelope("tight", per_call_minor_units=10)
    with pytest.raises(InvoicePaymentError) as caught:
        make_session(budget_envelope=tight).get(world.url("service-a", "page"))
    assert caught.value.failure_reason == "NO_ROUTE"
    world.reset_mission_control()
    enough = BudgetEnvelope("tight", per_call_minor_units=11)
    response = make_session(budget_envelope=enough).get(world.url("service-a", "page"))
    assert response.status_code == 200
    assert Ledger.open(books.ledger_path).envelope("tight").settled_minor_units == 11


@pytest.mark.slow
def test_no_route_is_failed_and_the_next_call_pays(world: World, books: Books, make_session) -> None:
    """With the router's channel away, lnd says NO_ROUTE (or lacks bandwidth): nothing spent, and free to buy again."""
    world.router.stop()
    wait_for(
        "the payer has noticed",
        lambda: not any(channel["active"] for channel in world.payer.lncli("listchannels")["channels"]),
        watched=[world.payer.daemon],
    )
    with pytest.raises(InvoicePaymentError) as caught:
        make_session().get(world.url("service-a", "page"))
    assert caught.value.spent is False
    assert caught.value.failure_reason in ("NO_ROUTE", "INSUFFICIENT_BALANCE")
    assert Ledger.open(books.ledger_path).envelope("regtest").reserved_minor_units == 0
    world.mend()
    assert make_session().get(world.url("service-a", "page")).status_code == 200


def serve_402(invoice: str, token: str):
    """A server that repeats one challenge, whatever comes."""
    import threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paid = "Authorization" in self.headers
            self.send_response(200 if paid else 402)
            if not paid:
                self.send_header("WWW-Authenticate", f'L402 macaroon="{token}", invoice="{invoice}"')
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def test_an_invoice_that_was_paid_by_hand_is_not_paid_again(world: World, books: Books, make_session) -> None:
    """lnd says "already paid"; its TrackPaymentV2 gives the preimage, and the page is had for it."""
    invoice = world.payee.add_invoice(7_000)
    assert world.payer.pay(invoice.payment_request)["status"] == "SUCCEEDED"
    paid_before = len(world.payer.list_payments())
    server = serve_402(invoice.payment_request, "opaque-paid-by-hand")
    try:
        response = make_session().get(f"http://127.0.0.1:{server.server_port}/page")
    finally:
        server.shutdown()
        server.server_close()
    assert response.status_code == 200
    assert response.payment.fee_msat == ROUTER_FEE_MSAT
    assert len(world.payer.list_payments()) == paid_before


@pytest.mark.slow
def test_an_invoice_that_expires_on_the_way_to_lnd(world: World, books: Books, make_session) -> None:
    """Ours to see before the order; where only lnd sees it, its word ends the row and nothing is spent."""
    invoice = world.payee.add_invoice(7_000, expiry_s=4)
    server = serve_402(invoice.payment_request, "opaque-expiring")

    def dawdle(quote) -> bool:
        wait_for("it has expired", lambda: time.time() > quote.expires_at.timestamp() + 1, watched=[world.payer.daemon])
        return True

    try:
        with pytest.raises(requests.RequestException) as caught:
            make_session(confirm=dawdle).get(f"http://127.0.0.1:{server.server_port}/page")
    finally:
        server.shutdown()
        server.server_close()
    assert caught.value.spent is False
    assert world.payer.payments_of(invoice.payment_hash) == []


def test_the_command_line_pays_with_what_the_environment_names(world: World, books: Books) -> None:
    """`routeweiler-sync get` is how a person, or a shell script, first meets this."""
    environ = {
        **os.environ,
        **world.environment(),
        "ROUTEWEILER_LEDGER": str(books.ledger_path),
        "ROUTEWEILER_TRACE": str(books.trace_path),
    }
    command = [sys.executable, "-m", "routeweiler_sync", "get", world.url("service-b", "page")]
    paid = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120)
    assert paid.returncode == 0, paid.stderr
    assert json.loads(paid.stdout)["path"].endswith("page")
    assert "paid 25 sat + 1 sat fee" in paid.stderr
    again = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    assert "nothing paid" in again.stderr


@pytest.mark.slow
def test_agents_buy_over_mcp_within_their_limits(world: World, books: Books) -> None:
    """An agent quotes, pays and is refused; its server is killed while it pays; two agents want one page at once."""
    pytest.importorskip("mcp", reason="mcp isn't installed: pip install 'routeweiler-sync[mcp]'")
    from mcp import Client

    page, other, costly = world.url("service-b", "page"), world.url("service-a", "page"), world.url("costly", "page")
    environ = {
        **world.environment(),
        "ROUTEWEILER_LEDGER": str(books.ledger_path),
        "ROUTEWEILER_TRACE": str(books.trace_path),
        "ROUTEWEILER_AGENT": "reader",
    }

    def rows() -> list:
        with contextlib.closing(Ledger.open(books.ledger_path)) as ledger:
            return list(ledger.payments()) if ledger.exists() else []

    async def buys() -> None:
        async with Client(mcp_server.over_stdio(environ, "--max-sats", "1000", "--max-sats-per-call", "50")) as client:
            assert [each.name for each in (await client.list_tools()).tools] == ["fetch", "quote", "budget", "payments"]
            assert (await mcp_server.call(client, "quote", url=page))["price"]["amountMsat"] == 25_000
            assert not rows()
            bought = await mcp_server.call(client, "fetch", url=page)
            assert (bought["status"], bought["spentMsat"]) == (200, 25_000 + ROUTER_FEE_MSAT)
            refused = await mcp_server.call(client, "fetch", url=costly, max_sats=10_000)
            assert (refused["error"]["code"], refused["error"]["spent"]) == ("budget_exceeded", False)
            assert (await mcp_server.spending(client))["server"]["spentMsat"] == 25_000 + ROUTER_FEE_MSAT

    async def is_killed() -> None:
        async with mcp_server.over_http(environ) as (url, process), Client(url) as client:
            fetching = asyncio.create_task(mcp_server.call(client, "fetch", url=other))
            await asyncio.to_thread(wait_for, "the order is on disk", lambda: len(rows()) == 2, watched=[world.payer.daemon])
            process.kill()
            await fetching

    async def want_one_page() -> None:
        async with mcp_server.over_http(environ) as (url, _), Client(url) as one, Client(url, mode="legacy") as two:
            found = await asyncio.gather(*(mcp_server.call(each, "fetch", url=other) for each in (one, two)))
            assert [each["status"] for each in found] == [200, 200]

    mcp_server.run(buys)
    with contextlib.suppress(Exception):  # of the client, if the kill came before the answer
        mcp_server.run(is_killed)
    mcp_server.run(want_one_page)
    assert sorted(row.amount_msat for row in rows()) == [10_000, 25_000]
    assert {row.agent_id for row in rows()} == {"reader"}
