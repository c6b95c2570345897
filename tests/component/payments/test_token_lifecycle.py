"""A token's life after its payment: used again wherever it fits and nowhere else, replaced once when its time is over; and rows
that a crash, Ctrl-C or an impatient call left behind, asked about and carried to their end.
"""

from __future__ import annotations

import contextlib
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import pytest
import requests
import responses

from routeweiler_sync import Ledger, LedgerError, PaymentPendingError, PaymentState, Routeweiler, TokenRefusedError
from routeweiler_sync.payments import checkout, checks
from routeweiler_sync.paywall import handler as exchange, negotiation
from routeweiler_sync.testing import FakeLnd, Paywall
from routeweiler_sync.testing.paywall import PaywallLogic
from tests.support.accounts import Books

ROOT = Path(__file__).parents[3]
TIMEOUT_S = 120

#: One call a process: prints the status and how the page was had, or the error's class.
ONE_CALL = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background hands down that SIGINT is ignored
from routeweiler_sync import Funding, LndClient, Routeweiler, RouteweilerError, TraceSink
url, ledger, trace = sys.argv[1:]
funding = Funding.lightning_lnd(client=LndClient.from_env(), network="bitcoin-regtest")
with Routeweiler(funding=[funding], ledger=ledger, trace_sink=TraceSink.jsonl(trace)) as session:
    try:
        response = session.get(url, timeout=60)
    except RouteweilerError as error:
        print(type(error).__name__, error.spent)
    else:
        used = response.payment
        print(response.status_code, "free" if used is None else "reused" if used.reused else "bought")
"""


@pytest.fixture
def process(lnd: FakeLnd, books: Books) -> Callable[[str], subprocess.Popen[str]]:
    """Starts a process that gets a URL."""

    def start(url: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", ONE_CALL, url, str(books.ledger_path), str(books.trace_path)],
            cwd=ROOT,
            env={**os.environ, **lnd.environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture
def run(process: Callable[[str], subprocess.Popen[str]]) -> Callable[[str], str]:
    """What a process that gets a URL has to say of it."""

    def one_call(url: str) -> str:
        with process(url) as child:
            said, complaints = child.communicate(timeout=TIMEOUT_S)
        assert child.returncode == 0, complaints
        return said.strip()

    return one_call


def statuses(paywall: PaywallLogic, since: int) -> list[int]:
    return [request.status for request in paywall.requests[since:]]


# -- used again -----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_processes_share_tokens_by_learned_path_and_by_scope(run, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """A cron job that starts anew each hour would buy anew each hour; or meet a 402 for each token that it holds."""
    paywall.add_service("/other", name="other", price_msat=25_000)
    assert run(paywall.url_for("/a")) == "200 bought"
    assert run(paywall.url_for("/other/x")) == "200 bought"
    for path, expected in [("/a", [200]), ("/other/x", [200]), ("/b", [402, 200]), ("/b", [200]), ("/other/y", [402, 200])]:
        before = len(paywall.requests)
        assert run(paywall.url_for(path)) == "200 reused"
        assert statuses(paywall, before) == expected, path
    assert len(lnd.payments) == 2
    books.check()


def test_what_another_process_bought_meanwhile_is_found_before_paying(session, run, paywall: Paywall, lnd: FakeLnd, books) -> None:
    """A long-running program has looked into the ledger long ago, and bought again what is there by now."""
    assert session.get(paywall.url_for("/free")).status_code == 200
    assert session._payer.token_cache.token_for_path(paywall.base_url, "/paid") is None
    assert run(paywall.url) == "200 bought"
    response = session.get(paywall.url)
    assert (response.status_code, response.payment.reused) == (200, True)
    assert len(lnd.payments) == 1
    books.check()


# -- its time is over -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/paid", "/not-asked-before"])
@pytest.mark.parametrize("bare_401", [False, True])
@pytest.mark.parametrize("fresh", [False, True])
def test_a_token_that_expires_between_calls_is_replaced_once_within_the_call(
    session, make_session, paywall: Paywall, lnd: FakeLnd, books: Books, monkeypatch, fresh: bool, bare_401: bool, path: str
) -> None:
    """Its caveat says when its time is over: no error, no seconds of waiting for a settlement, and one new token for all."""
    monkeypatch.setattr(checks, "MIN_TOKEN_LIFE_S", 0)  # nor does the test wait for long
    paywall.service.valid_for_s = 2
    session.get(paywall.url)
    (row,) = books.rows
    paywall.wait_for(lambda: time.time() > row.valid_until)
    paywall.service.valid_for_s = 3_600
    paywall.faults.bare_401 = bare_401
    before, started_s = len(paywall.requests), time.monotonic()
    caller = make_session() if fresh else session
    response = caller.get(paywall.url_for(path))
    assert (response.status_code, response.payment.reused) == (200, False)
    assert time.monotonic() - started_s < negotiation.OFFER_AGAIN_S
    if path == "/paid" and not bare_401:
        assert statuses(paywall, before) == [402, 200]  # the old one is refused on the request that would have met a 402 anyway
    for each in (session, make_session()):
        assert each.get(paywall.url_for(path)).payment.reused
    assert [row.state for row in books.rows] == [PaymentState.RETIRED, PaymentState.SETTLED]
    assert len(lnd.payments) == 2
    books.check()


def test_a_local_clock_that_is_ahead_causes_no_purchase(session, paywall: Paywall, lnd: FakeLnd, books: Books, monkeypatch) -> None:
    """Only the server's word ends a token: to throw it away by a wrong clock is to pay for it twice."""
    paywall.service.valid_for_s = 600
    session.get(paywall.url)

    class Ahead:
        def __getattr__(self, name: str) -> Any:
            return (lambda: time.time() + 3_600) if name == "time" else getattr(time, name)

    for module in (exchange, checkout, checks):
        monkeypatch.setattr(module, "time", Ahead())
    response = session.get(paywall.url)
    assert (response.status_code, response.payment.reused) == (200, True)
    assert len(lnd.payments) == 1


# -- refused --------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("bare_401", [False, True])
def test_a_server_that_never_delivers_gets_one_payment_from_all_calls_and_sessions(
    make_session, paywall: Paywall, lnd: FakeLnd, books: Books, monkeypatch, bare_401: bool
) -> None:
    """The thief's way to a second payment is the loop that calls him again, here or in the next worker."""
    monkeypatch.setattr(negotiation, "OFFER_AGAIN_S", 0.1)
    paywall.faults.refuse_tokens = True
    paywall.faults.bare_401 = bare_401
    sessions = [make_session() for _ in range(3)]
    for number in range(20):
        path = "/paid" if number % 2 else f"/page/{number}"
        with pytest.raises(TokenRefusedError) as caught:
            sessions[number % 3].get(paywall.url_for(path))
        assert caught.value.payment_hash == lnd.payments[0].payment_hash
    assert lnd.calls["SendPaymentV2"] == 1
    assert books.ledger.envelope("default").settled_minor_units == 10
    books.check()


@pytest.mark.slow
def test_a_server_that_never_delivers_gets_one_payment_from_threads_that_call_at_once(
    make_session, paywall: Paywall, lnd: FakeLnd, books: Books, monkeypatch
) -> None:
    """The thief's other way to a second payment is many calls side by side."""
    monkeypatch.setattr(negotiation, "OFFER_AGAIN_S", 0.1)
    paywall.faults.refuse_tokens = True
    sessions = [make_session() for _ in range(3)]
    with ThreadPoolExecutor(12) as pool:
        calls = [pool.submit(sessions[number % 3].get, paywall.url) for number in range(24)]
        assert {type(call.exception(60)) for call in calls} == {TokenRefusedError}
    assert lnd.calls["SendPaymentV2"] == 1
    books.check()


@pytest.mark.slow
def test_a_refused_token_stays_the_scopes_in_other_processes_until_it_is_forgotten(
    session, run, paywall: Paywall, lnd: FakeLnd, books: Books, monkeypatch
) -> None:
    """The ledger knows that the scope is paid for. Only the user may say that it is worth a second payment; then it is one."""
    monkeypatch.setattr(negotiation, "OFFER_AGAIN_S", 0.1)  # here; the other processes wait as long as any
    paywall.faults.refuse_tokens = True
    with pytest.raises(TokenRefusedError):
        session.get(paywall.url)
    assert run(paywall.url) == "TokenRefusedError True"
    assert run(paywall.url_for("/another/page")) == "TokenRefusedError True"
    assert len(lnd.payments) == 1
    books.ledger.forget(books.rows[0].payment_hash)
    paywall.faults.refuse_tokens = False
    assert run(paywall.url) == "200 bought"
    assert session.get(paywall.url).payment.reused
    assert run(paywall.url_for("/another/page")) == "200 reused"
    assert len(lnd.payments) == 2
    books.check()


@pytest.mark.slow
def test_a_token_taken_once_and_then_refused_for_ever_costs_one_more(
    make_session, paywall: Paywall, lnd: FakeLnd, books: Books, monkeypatch
) -> None:
    """Its time was over, so one new token is bought; that one is never taken, so no third is."""
    monkeypatch.setattr(negotiation, "OFFER_AGAIN_S", 0.1)
    sessions = [make_session() for _ in range(3)]
    assert [each.get(paywall.url).status_code for each in sessions] == [200] * 3
    paywall.faults.refuse_tokens = True
    for number in range(9):
        with pytest.raises(TokenRefusedError):
            sessions[number % 3].get(paywall.url)
    assert [row.state for row in books.rows] == [PaymentState.RETIRED, PaymentState.SETTLED]
    assert lnd.calls["SendPaymentV2"] == 2
    books.check()


def test_sessions_that_hold_the_same_used_up_token_replace_it_with_one(
    make_session, paywall: Paywall, lnd: FakeLnd, books: Books
) -> None:
    """Each remembers the old one: each would retire its neighbour's new one in turn."""
    sessions = [make_session() for _ in range(4)]
    for each in sessions:
        each.get(paywall.url)
    paywall.revoke_tokens()
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(sessions[number % 4].get, paywall.url) for number in range(16)]
        assert {call.result(60).status_code for call in calls} == {200}
    assert len(lnd.payments) == 2
    books.check()


def test_what_is_forgotten_is_bought_anew_once(session, make_session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """By whoever comes first, for all: also for the one who goes on with the session that bought it."""
    session.get(paywall.url)
    books.ledger.forget(books.rows[0].payment_hash)
    sessions = [session, *(make_session() for _ in range(3))]
    with ThreadPoolExecutor(9) as pool:
        calls = [pool.submit(sessions[number % 4].get, paywall.url) for number in range(18)]
        assert {call.result(60).status_code for call in calls} == {200}
    assert len(lnd.payments) == 2
    assert [row.state for row in books.rows] == [PaymentState.RETIRED, PaymentState.SETTLED]
    books.check()


def test_a_session_stops_offering_what_its_process_was_told_to_forget(
    session, paywall: Paywall, lnd: FakeLnd, books: Books
) -> None:
    """Whoever forgets a token in a notebook wants the next call to buy, not the old one to go along while it is taken."""
    session.get(paywall.url)
    session.get(paywall.url_for("/another/page"))
    first = books.rows[0].payment_hash
    books.ledger.forget(first)
    again = session.get(paywall.url).payment
    assert not again.reused
    assert again.payment_hash != first
    assert session.get(paywall.url_for("/another/page")).status_code == 200
    assert len(lnd.payments) == 2
    books.check()


# -- whose it is ------------------------------------------------------------------------------------------------------------------


class Net:
    """Hosts without sockets: one paywall for each scheme, host and port, all of one service name."""

    def __init__(self, lnd: FakeLnd) -> None:
        self.lnd = lnd
        self.servers: dict[tuple[str, str, int], PaywallLogic] = {}

    def answer(self, request: requests.PreparedRequest) -> tuple[int, list[tuple[str, str]], bytes]:
        parts = urlsplit(request.url or "")
        key = (parts.scheme, parts.hostname or "", parts.port or {"http": 80, "https": 443}[parts.scheme])
        server = self.servers.setdefault(key, PaywallLogic(self.lnd, price_msat=1_000))
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        headers = [(name, value.decode() if isinstance(value, bytes) else value) for name, value in request.headers.items()]
        reply = server.answer(request.method or "", target, headers, b"")
        return reply.status, list(reply.headers), reply.body


@pytest.fixture
def net(lnd: FakeLnd) -> Iterator[Net]:
    import re

    net = Net(lnd)
    with responses.RequestsMock() as mock:
        mock.add_callback("GET", re.compile(".*", re.DOTALL), callback=net.answer)
        yield net


@pytest.mark.parametrize(
    "other",
    [
        "http://api.example/paid",
        "http://api.example:443/paid",
        "https://api.example:80/paid",
        "https://api.example:8443/paid",
        "https://api.example./paid",
        "https://www.api.example/paid",
        "https://example/paid",
        "https://api.example.evil/paid",
        "https://api.example@evil.example/paid",
        "https://xn--api-.example/paid",
    ],
)
def test_another_origin_never_sees_the_token_though_it_names_the_same_service(
    session, make_session, net: Net, lnd: FakeLnd, books: Books, other: str
) -> None:
    """`services=` is the server's word: whoever copies it into a challenge would be handed the token, and with it what it opens."""
    session.get("https://api.example/paid")
    (token,) = [row.token for row in books.rows]
    for each in (session, make_session()):
        assert each.get(other).status_code == 200
    (server,) = [server for key, server in net.servers.items() if key != ("https", "api.example", 443)]
    assert [request.paid for request in server.requests] == [False, True, True]
    assert [request.authorized for request in server.requests] == [False, True, True]
    assert not any(token in str(dict(request.headers)) for request in server.requests)
    first, second = books.rows
    assert first.scope == second.scope
    assert first.origin != second.origin
    assert len(lnd.payments) == 2
    books.check()


def test_http_https_and_each_name_of_this_machine_are_origins_of_their_own(
    session, paywall: Paywall, lnd: FakeLnd, books: Books, tmp_path: Path
) -> None:
    """A token would go to whoever listens on another port or under another name of this machine, or in clear."""
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    trusted = str(tmp_path / "ca.pem")
    with Paywall(lnd, ssl_context=context) as secure, Paywall(lnd) as third:
        urls = [paywall.url, secure.url, third.url, *(wall.url.replace("127.0.0.1", "localhost") for wall in (paywall, secure))]
        for url in urls:
            assert session.get(url, verify=trusted).payment.reused is False
        for url in urls:
            assert session.get(url, verify=trusted).payment.reused is True
        for wall, names in ((paywall, 2), (secure, 2), (third, 1)):
            # Bare, then paid, for each name; then with the token at once. No token came that wasn't this origin's.
            assert [request.status for request in wall.requests] == [402, 200] * names + [200] * names
            assert [request.authorized for request in wall.requests] == [False, True] * names + [True] * names
    assert len({row.origin for row in books.rows}) == len(lnd.payments) == 5
    books.check()


# -- recover, and rows that are met ---------------------------------------------------------------------------------------------


@pytest.fixture
def left_open(make_session, paywall: Paywall, lnd: FakeLnd, books: Books) -> Callable[..., Any]:
    """Leaves an unfinished row behind: a call that gave up waiting. ``how``: the payment ``hang``s, or its order is ``held``."""

    def leave(how: str = "hang", path: str = "/paid") -> Any:
        lnd.hang_next() if how == "hang" else lnd.hold_orders()
        with pytest.raises(PaymentPendingError):
            make_session(payment_timeout=1.2).get(paywall.url_for(path))
        return books.rows[-1]

    return leave


def _paid(lnd: FakeLnd) -> None:
    lnd.release()


def _failed(lnd: FakeLnd) -> None:
    lnd.release(fail="NO_ROUTE")


def _nothing(lnd: FakeLnd) -> None:
    pass


def _delivered(lnd: FakeLnd) -> None:
    lnd.deliver_orders()
    lnd.wait_for(lambda node: any(payment.status == "SUCCEEDED" for payment in node.payments))


def _expired_unread(lnd: FakeLnd) -> None:
    lnd.clock_offset_s = 7_200
    lnd.deliver_orders()
    lnd.wait_for(lambda node: node.held_orders == 0)


#: name: (how the row was left, what happens then, what recover() makes of it)
WORDS: dict[str, tuple[str, Callable[[FakeLnd], None], PaymentState]] = {
    "SUCCEEDED": ("hang", _paid, PaymentState.SETTLED),
    "FAILED, its only order": ("hang", _failed, PaymentState.DEAD),
    "IN_FLIGHT": ("hang", _nothing, PaymentState.OPEN),
    "NOT_FOUND, its order may still come": ("held", _nothing, PaymentState.OPEN),
    "SUCCEEDED, by a late order": ("held", _delivered, PaymentState.SETTLED),
    "NOT_FOUND, its order came too late": ("held", _expired_unread, PaymentState.OPEN),
    "locked": ("hang", FakeLnd.lock, PaymentState.OPEN),
    "away": ("hang", FakeLnd.stop, PaymentState.OPEN),
}


@pytest.mark.slow
@pytest.mark.parametrize("word", WORDS)
def test_recover_books_what_the_node_says_and_never_sends(
    left_open, make_session, paywall: Paywall, lnd: FakeLnd, books: Books, word: str
) -> None:
    """Who only wants to know must not pay by asking; and what isn't certain must not be ended, nor its reservation freed."""
    how, happens, state = WORDS[word]
    left_open(how)
    happens(lnd)
    sends = lnd.calls["SendPaymentV2"]
    session = make_session()
    (row,) = session.recover()
    assert row.state is state
    if state is not PaymentState.OPEN:
        assert session.recover() == []  # what has ended isn't asked about again
    assert (row.preimage is not None) == (state is PaymentState.SETTLED)
    assert (row.reserved_micro > 0) == (state is PaymentState.OPEN)
    assert lnd.calls["SendPaymentV2"] == sends
    books.check(finished=False)
    lnd.start()
    lnd.unlock()
    lnd.deliver_orders()
    lnd.release()
    for _ in range(2):  # an expired invoice costs a call: its error says "call again"
        with contextlib.suppress(requests.RequestException):
            response = make_session().get(paywall.url)
            break
        lnd.clock_offset_s = 0
    assert response.status_code == 200
    assert sum(payment.status == "SUCCEEDED" for payment in lnd.payments) == 1
    books.check()


@pytest.mark.slow
def test_recover_books_a_payment_without_its_proof(left_open, make_session, lnd: FakeLnd, books: Books) -> None:
    """The money is gone: left out of the totals, the budget would be overspent by it."""
    lnd.wrong_preimage_next()
    left_open()
    lnd.release()
    (row,) = make_session().recover()
    assert (row.state, row.preimage, row.reserved_micro) == (PaymentState.SETTLED, None, 0)
    assert books.ledger.envelope("default").settled_minor_units == 10
    books.check()


def test_recover_leaves_a_failed_row_that_an_order_may_start_anew(
    session, make_session, paywall: Paywall, lnd: FakeLnd, books: Books
) -> None:
    """One of its two orders is unanswered: ended now, a new invoice could be paid beside it."""
    lnd.drop_next("before_init")
    lnd.fail_next("NO_ROUTE")
    with pytest.raises(PaymentPendingError):
        session.get(paywall.url)
    sends = lnd.calls["SendPaymentV2"]
    for _ in range(3):
        (row,) = make_session().recover()
        assert (row.state, row.sends_unanswered) == (PaymentState.FAILED, 1)
        assert row.reserved_micro > 0
    assert lnd.calls["SendPaymentV2"] == sends


@pytest.mark.slow
def test_recover_goes_through_all_rows_whatever_becomes_of_one(
    left_open, make_session, paywall, lnd: FakeLnd, books: Books
) -> None:
    """One payment that hangs for ever would keep the others' tokens from being found."""
    for number in range(4):
        paywall.add_service(f"/{number}", name=f"page-{number}", price_msat=1_000 * (number + 1))
    rows = [left_open(path=f"/{number}") for number in range(4)]
    lnd.release(rows[0].payment_hash)
    lnd.release(rows[2].payment_hash, fail="NO_ROUTE")
    found = {row.payment_hash: row.state for row in make_session().recover()}
    states = [PaymentState.SETTLED, PaymentState.OPEN, PaymentState.DEAD, PaymentState.OPEN]
    assert found == {row.payment_hash: state for row, state in zip(rows, states, strict=True)}
    books.check(finished=False)
    lnd.release()
    assert {row.state for row in make_session().recover()} == {PaymentState.SETTLED}
    assert make_session().recover() == []
    told = [line["payment"]["paymentHash"] for line in books.lines if line["payment"]]
    assert sorted(told) == sorted(rows[number].payment_hash for number in (0, 1, 3))
    books.check()


@pytest.mark.slow
def test_a_row_of_another_node_is_neither_asked_about_nor_sent(
    left_open, make_session, paywall, lnd: FakeLnd, books: Books
) -> None:
    """Another node doesn't know the hash, and its "NOT_FOUND" would free it to pay the invoice a second time."""
    row = left_open()
    with FakeLnd() as other:
        stranger = make_session(funding=[other.funding()], payment_timeout=1.5)
        assert [each.state for each in stranger.recover()] == [PaymentState.OPEN]
        with pytest.raises(PaymentPendingError, match=row.node_pubkey):
            stranger.get(paywall.url)
        assert (other.calls["TrackPaymentV2"], other.calls["SendPaymentV2"], other.payments) == (0, 0, [])
        assert make_session(funding=[]).recover()[0].state is PaymentState.OPEN
        lnd.release()
        # With both nodes at hand the row's own is asked, wherever it stands in the list.
        both = make_session(funding=[other.funding(), lnd.funding()])
        assert [each.state for each in both.recover()] == [PaymentState.SETTLED]
        assert stranger.get(paywall.url).payment.reused  # the token is anybody's who shares the ledger
        assert (other.calls["TrackPaymentV2"], other.payments) == (0, [])
    books.check()


@pytest.mark.slow
def test_who_meets_an_open_row_asks_first_and_sends_only_the_same_invoice(left_open, make_session, paywall, lnd, books) -> None:
    """A new invoice beside one whose order is in the air is the classic second payment."""
    row = left_open("held")
    tracked = lnd.calls["TrackPaymentV2"]
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(make_session().get, paywall.url)
        lnd.wait_for(lambda node: node.held_orders >= 2)
        assert lnd.calls["TrackPaymentV2"] > tracked
        lnd.deliver_orders()
        assert call.result(60).payment.payment_hash == row.payment_hash
    lnd.wait_for(lambda node: len(node.orders) == 2)
    assert [order.bolt11 for order in lnd.orders] == [row.bolt11] * 2
    assert [payment.status for payment in lnd.payments] == ["SUCCEEDED"]
    books.check()


@pytest.mark.slow
def test_who_meets_a_failed_row_that_was_paid_meanwhile_sends_nothing(session, make_session, paywall, lnd, books) -> None:
    """Its lost order arrived after all."""
    lnd.drop_next("before_init")
    lnd.fail_next("NO_ROUTE")
    with pytest.raises(PaymentPendingError):
        session.get(paywall.url)
    (row,) = books.rows
    assert row.state is PaymentState.FAILED
    lnd.client().pay_invoice(row.bolt11, max_fee_msat=10_000)
    sends = lnd.calls["SendPaymentV2"]
    assert make_session().get(paywall.url).payment.payment_hash == row.payment_hash
    assert lnd.calls["SendPaymentV2"] == sends
    books.check()


# -- Ctrl-C -----------------------------------------------------------------------------------------------------------------------

posix_only = pytest.mark.skipif(sys.platform == "win32", reason="this system has no SIGINT for one process")


def interrupt(child: subprocess.Popen[str]) -> str:
    """Ctrl-C, as a person does: again if nothing happens, since one that falls into a finaliser is dropped by Python."""
    for _ in range(10):
        child.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=3)
            break
    else:
        child.kill()
    _, complaints = child.communicate(timeout=TIMEOUT_S)
    return complaints


@pytest.mark.slow
@posix_only
def test_ctrl_c_in_mid_payment_and_the_next_run_has_the_page_for_one_payment(
    process, run, paywall: Paywall, lnd: FakeLnd, books: Books
) -> None:
    """The commonest crash there is. The payment goes on at the node; who runs the program again must not pay again."""
    lnd.hang_next()
    child = process(paywall.url)
    lnd.wait_for(lambda node: bool(node.payments))
    assert "KeyboardInterrupt" in interrupt(child)
    (row,) = books.rows
    assert (row.state, row.reserved_micro > 0) == (PaymentState.OPEN, True)
    (line,) = books.lines
    assert (line["payment"], line["outcome"]["error"]["code"]) == (None, "KeyboardInterrupt")
    lnd.release()
    assert run(paywall.url) == "200 bought"
    assert run(paywall.url) == "200 reused"
    assert lnd.calls["SendPaymentV2"] == 1
    books.check()


@pytest.mark.slow
@posix_only
def test_ctrl_c_while_another_pays_leaves_that_payment_alone(process, run, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """Who waits for another's purchase may leave at any time."""
    lnd.hang_next()
    buyer, waiter = process(paywall.url), process(paywall.url)
    lnd.wait_for(lambda node: bool(node.payments))
    paywall.wait_for(lambda: len(paywall.requests) == 2)
    assert "KeyboardInterrupt" in interrupt(waiter)
    lnd.release()
    with buyer:
        assert buyer.communicate(timeout=TIMEOUT_S)[0].startswith("200 ")
    assert run(paywall.url) == "200 reused"
    assert len(lnd.payments) == 1
    books.check()


@pytest.mark.slow
@posix_only
def test_ctrl_c_while_a_token_is_offered_again_keeps_the_token(process, run, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """Paid, and the server doesn't take it yet: the token waits in the ledger for the next run."""
    paywall.faults.refuse_tokens = True
    child = process(paywall.url)
    paywall.wait_for(lambda: len(paywall.requests) >= 3)
    assert "KeyboardInterrupt" in interrupt(child)
    assert [row.state for row in books.rows] == [PaymentState.SETTLED]
    paywall.faults.refuse_tokens = False
    assert run(paywall.url) == "200 reused"
    assert len(lnd.payments) == 1
    books.check()


def test_an_interrupt_of_the_waiting_server_call_keeps_the_token(
    session, make_session, paywall: Paywall, lnd: FakeLnd, books: Books, monkeypatch
) -> None:
    """Ctrl-C between paying and the page, in a notebook whose process goes on."""
    original = requests.adapters.HTTPAdapter.send
    sent = []

    def interrupted(self: Any, request: Any, **kwargs: Any) -> Any:
        sent.append(request)
        if len(sent) == 2:
            raise KeyboardInterrupt
        return original(self, request, **kwargs)

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", interrupted)
    with pytest.raises(KeyboardInterrupt):
        session.get(paywall.url)
    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", original)
    (line,) = books.lines
    assert line["payment"]["reused"] is False
    sessions: list[Routeweiler] = [session, make_session()]
    assert [each.get(paywall.url).payment.reused for each in sessions] == [True, True]
    assert len(lnd.payments) == 1
    books.check()


@pytest.mark.parametrize("broken", ["learn", "mark"])
def test_one_failing_mark_of_an_accepted_token_does_not_stop_the_others(
    make_session: Callable[..., Routeweiler], paywall: Paywall, books: Books, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """A token that isn't known to have been taken is never replaced when its time is over: the page would be lost for good."""

    def fails(*_: Any, **__: Any) -> None:
        raise LedgerError("no room for it. Nothing was spent. Call again.")

    def noted() -> tuple[bool, int]:
        (row,) = books.rows
        return row.accepted, len(books.ledger.learned(row.origin))

    with monkeypatch.context() as nothing_works:
        nothing_works.setattr(Ledger, "mark", fails)
        assert make_session().get(paywall.url).status_code == 200
    assert noted() == (False, 0)
    monkeypatch.setattr(Ledger, broken, fails)
    assert make_session().post(urljoin(paywall.url, "/elsewhere"), data=b"x").status_code == 200
    assert noted() == ((True, 0) if broken == "learn" else (False, 1))


def test_a_forgotten_token_isnt_offered_again(session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """Who forgets a token means it."""
    session.get(paywall.url)
    books.ledger.forget(books.rows[0].payment_hash)
    fresh = Routeweiler(funding=[lnd.funding()], ledger=books.ledger_path)
    assert not fresh.get(paywall.url).payment.reused
    assert len(lnd.payments) == 2
