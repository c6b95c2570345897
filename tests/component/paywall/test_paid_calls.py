"""The way of a request, on real sockets: 402, paid, 200; and the token used again."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from coincurve import PrivateKey
from urllib3.connectionpool import HTTPConnectionPool

from routeweiler_sync import PaymentState, Routeweiler, TraceSink, payment_of
from routeweiler_sync.ledger.ledger import Ledger
from routeweiler_sync.paywall.replay import drain
from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.accounts import Books
from tests.support.challenge_builders import D, invoice, number, words
from tests.support.http_server import server


def test_a_402_is_paid_and_the_page_arrives(session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """If this fails the library does nothing at all."""
    lnd.fee_msat = 1_234
    response = session.get(paywall.url)
    assert (response.status_code, response.content) == (200, paywall.content)
    assert [r.status_code for r in response.history] == [402]
    assert response.history[0].content == b"payment required\n"
    payment = payment_of(response)
    assert payment is not None
    assert payment is response.payment
    assert (payment.amount_msat, payment.fee_msat, payment.reused) == (10_000, 1_234, False)
    assert [r.status for r in paywall.requests] == [402, 200]
    assert type(response) is requests.Response
    books.check()


def test_an_invoice_with_a_blinded_path_is_paid(session, lnd: FakeLnd, books: Books) -> None:
    """The servers of an lnd that hides itself (``addinvoice --blind``) would sell nothing."""
    made = lnd.invoice(10_000)
    features = ("9", number(sum(1 << bit for bit in (9, 14, 17, 262)), 53))
    fields = [("p", words(made.payment_hash)), D, features, ("5", words(b"\x07" * 200)), ("5", words(b"\x08" * 150))]
    blinded = invoice(fields=fields, created_at=int(time.time()), key=PrivateKey.from_hex(lnd._book.payee_key))

    def answer(handler: Any) -> Any:
        if handler.headers["Authorization"] == f"L402 opaque:{made.preimage.hex()}":
            return 200, [], b"page"
        return 402, [("WWW-Authenticate", f'L402 token="opaque", invoice="{blinded}"')], b""

    with server(answer) as url:
        quote = session.quote("GET", url)
        assert quote is not None
        assert quote.amount_msat == 10_000
        assert session.get(url).content == b"page"
    assert [row.bolt11 for row in books.rows] == [blinded]
    books.check()


def test_the_token_is_used_again_without_paying(session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """Each call would cost money."""
    first = session.get(paywall.url)
    second = session.get(paywall.url)
    assert second.status_code == 200
    assert second.history == []
    assert second.payment.reused
    assert second.payment.payment_hash == first.payment.payment_hash
    assert [r.status for r in paywall.requests] == [402, 200, 200]
    assert len(lnd.payments) == 1
    assert [line["payment"]["reused"] for line in books.lines] == [False, True]
    books.check()


def test_another_session_on_the_ledger_uses_the_token(make_session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """A restart of the program would pay again for what it holds already (promise 2)."""
    make_session().get(paywall.url)
    response = make_session(funding=[]).get(paywall.url)
    assert response.status_code == 200
    assert response.payment.reused
    assert response.history == []
    books.check()


def test_that_a_token_serves_again_is_written_by_one_of_many_threads(make_session, paywall, books: Books, monkeypatch) -> None:
    """Many threads, each with its note, would wait for each other at the ledger, give up, and fill the log with warnings."""
    make_session().get(paywall.url)
    session = make_session()
    marked: list[str] = []
    mark = Ledger.mark
    begin = threading.Barrier(16)

    def marks(ledger: Ledger, payment_hash: str, **notes: Any) -> None:
        marked.append(payment_hash)
        mark(ledger, payment_hash, **notes)

    def call() -> tuple[int, bool]:
        begin.wait(60)
        answer = session.get(paywall.url)
        return answer.status_code, answer.payment.reused

    monkeypatch.setattr(Ledger, "mark", marks)
    with ThreadPoolExecutor(16) as pool:
        assert {answer.result() for answer in [pool.submit(call) for _ in range(16)]} == {(200, True)}
    assert len(marked) == 1
    assert books.rows[0].accepted_again
    books.check()


def test_one_token_serves_all_paths_of_its_service(session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """A token is bound to the server's service, not to a path: paying for each path is paying twice."""
    for path in ("/a", "/b", "/c/d?x=1"):
        assert session.get(paywall.url_for(path)).status_code == 200
    assert len(lnd.payments) == 1
    books.check()


def test_two_services_on_one_origin_each_get_their_own_token(make_session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """A wrong guess must neither retire a good token nor buy a second one."""
    paywall.add_service("/other", name="other", price_msat=25_000)
    session = make_session()
    for _ in range(2):
        assert session.get(paywall.url_for("/one")).payment.amount_msat == 10_000
        assert session.get(paywall.url_for("/other/x")).payment.amount_msat == 25_000
    assert len(lnd.payments) == 2
    # Another session knows which path needs which, and asks for nothing twice.
    before = len(paywall.requests)
    fresh = make_session()
    assert fresh.get(paywall.url_for("/other/x")).status_code == 200
    assert fresh.get(paywall.url_for("/one")).status_code == 200
    assert [r.status for r in paywall.requests[before:]] == [200, 200]
    assert {row.state for row in books.rows} == {PaymentState.SETTLED}
    books.check()


def test_dynamic_prices_buy_one_token_a_path(session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """With aperture's dynamic pricing a token fits one exact path."""
    paywall.add_service("/dynamic", name="dyn", price_msat=1_000, dynamic=True)
    for path in ("/dynamic/a", "/dynamic/b", "/dynamic/a", "/dynamic/b"):
        assert session.get(paywall.url_for(path)).status_code == 200
    assert len(lnd.payments) == 2
    books.check()


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD"])
def test_every_method_pays(session, paywall: Paywall, method: str) -> None:
    """A paid API isn't GET alone."""
    response = session.request(method, paywall.url)
    assert response.status_code == 200
    assert [r.method for r in paywall.requests] == [method, method]


def test_redirects_before_the_paywall_are_followed(session, paywall: Paywall, books: Books) -> None:
    """The URL that answered 402 is the one that is paid; one call, one trace line."""
    start = paywall.url_for("/redirect?to=" + paywall.url)
    response = session.get(start)
    assert response.status_code == 200
    assert response.url == paywall.url
    (line,) = books.lines
    assert line["url"] == start
    assert line["challenge"]["url"] == paywall.url
    books.check()


@pytest.mark.parametrize("how", ["opaque", "spec", "lsat", "l402"])
def test_every_form_of_challenge_is_paid(session, paywall: Paywall, how: str, books: Books) -> None:
    """The servers in the field differ; a client that knows one form pays at one server."""
    paywall.faults.opaque_tokens = how == "opaque"
    if how == "spec":
        paywall.faults.token_param = "token"
    if how in ("lsat", "l402"):
        paywall.service.scheme = (how.upper(),)
    assert session.get(paywall.url).status_code == 200
    if how == "lsat":
        assert paywall.requests[-1].scheme == "LSAT"
    assert session.get(paywall.url).payment.reused
    books.check()


def test_an_opaque_token_is_for_its_path(session, paywall: Paywall, lnd: FakeLnd) -> None:
    """Where the token doesn't say what it opens, nothing wider than the path is known: it is guessed, never taken for granted."""
    paywall.faults.opaque_tokens = True
    session.get(paywall.url_for("/x"))
    assert books_scope(session) == ["/x"]


def books_scope(session: Routeweiler) -> list[str]:
    return [row.scope for row in session._payer.ledger.payments()]


def test_free_traffic_makes_no_ledger(session, paywall: Paywall, books: Books) -> None:
    """Who never pays needs no ledger, no node and no database (promise 5)."""
    response = session.get(paywall.url_for("/free"))
    assert (response.status_code, response.payment) == (200, None)
    assert not books.ledger_path.exists()
    (line,) = books.lines
    assert (line["payment"], line["challenge"], line["selectedRail"]) == (None, None, None)


def test_the_seeds_query_works_on_the_sqlite_trace(make_session, paywall: Paywall, tmp_path: Path) -> None:
    """Programs written for the async twin read the trace like this."""
    path = tmp_path / "rw.db"
    with make_session(trace_sink=TraceSink.sqlite(path)) as session:
        session.get(paywall.url)
        session.get(paywall.url_for("/free"))
    conn = sqlite3.connect(path)
    conn.row_factory = sqlite3.Row
    rows = conn.execute("SELECT * FROM trace_events WHERE selected_rail = 'l402'").fetchall()
    conn.close()
    (payload,) = [json.loads(row["payload"]) for row in rows]
    assert len(payload["payment"]["proofValue"]) == 64
    assert payload["payment"]["amountNative"] == 10
    assert payload["payment"]["settlementLatencyMs"] >= 0


def test_an_unrecognised_402_comes_back_unchanged(
    session, paywall: Paywall, lnd: FakeLnd, caplog: pytest.LogCaptureFixture
) -> None:
    """Other schemes of payment, and prepaid balances, are their clients' business."""
    paywall.service.scheme, paywall.service.intents = ("Payment",), ("session",)
    with caplog.at_level("INFO", "routeweiler_sync"):
        response = session.get(paywall.url)
    assert response.status_code == 402
    assert b"payment-required" in response.content
    assert response.history == []
    assert lnd.payments == []
    assert "schemes: Payment lightning/session" in caplog.text


def test_a_402_of_others_needs_nothing_that_paying_needs(session, paywall: Paywall, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no place for a ledger, other schemes' 402s would end in errors about it."""
    paywall.service.scheme, paywall.service.intents = ("Payment",), ("session",)
    monkeypatch.setattr(type(session._payer), "checkout", property(lambda payer: pytest.fail("a checkout was made")))
    assert session.get(paywall.url).status_code == 402


def test_an_endless_402_body_costs_neither_memory_nor_the_page(session, paywall: Paywall) -> None:
    """An endless body grew memory by 942 MB in 3 s in a client that read it."""
    paywall.faults.endless_402 = True
    response = session.get(paywall.url, stream=True)
    assert response.status_code == 200
    assert len(response.history[0].content) <= 64 * 1024


def test_a_pool_of_one_connection_is_enough(session, paywall: Paywall) -> None:
    """An undrained 402 would hold the only connection, and the retry would wait for it for ever."""
    from routeweiler_sync.transport.adapter import PaywallAdapter

    session.mount("http://", PaywallAdapter(session._payer, pool_connections=1, pool_maxsize=1, pool_block=True))
    for path in ("/a", "/b"):
        assert session.get(paywall.url_for(path), timeout=20).status_code == 200


def test_a_connection_that_has_gone_back_to_the_pool_is_left_alone(paywall: Paywall, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a thread that drains its 402 cuts another's wait for a paid page short, or has it see the connection end.

    The other is as quick as can be: it has the connection, with a timeout of its own, before the drain goes on.
    """
    others_timeout_s = 77.0
    borrowed: list[Any] = []
    put_back = HTTPConnectionPool._put_conn

    def put_back_and_borrow(pool: HTTPConnectionPool, connection: Any) -> None:
        put_back(pool, connection)
        connection.sock.settimeout(others_timeout_s)
        borrowed.append(connection.sock)

    monkeypatch.setattr(HTTPConnectionPool, "_put_conn", put_back_and_borrow)
    with requests.Session() as plain:
        drain(plain.get(paywall.url, stream=True, timeout=20))
        assert [sock.gettimeout() for sock in borrowed] == [others_timeout_s]


def test_the_adapter_mounted_by_hand_pays_and_traces(make_session, paywall: Paywall, books: Books) -> None:
    """`PaywallAdapter` is public: on a plain session each request is a call with its own line."""
    from routeweiler_sync.transport.adapter import PaywallAdapter

    plain = requests.Session()
    plain.mount("http://", PaywallAdapter(make_session()._payer))
    assert plain.get(paywall.url).status_code == 200
    assert plain.get(paywall.url).payment.reused
    assert len(books.lines) == 2
    books.check()


def test_a_proxy_of_the_environment_isnt_asked_for_a_node_on_this_machine(session, paywall: Paywall, monkeypatch) -> None:
    """gRPC sends even 127.0.0.1 through https_proxy: the user's own lnd would be out of reach behind a company's proxy."""
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    assert session.get(paywall.url).status_code == 200
