"""Promise 1 for a page: it is bought once until it was served, whatever its server calls it next."""

from __future__ import annotations

import io
import itertools
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from routeweiler_sync import PaymentPendingError, Routeweiler, TokenRefusedError
from routeweiler_sync.paywall import negotiation
from routeweiler_sync.testing import FakeLnd
from tests.support.accounts import Books
from tests.support.http_server import server
from tests.support.shop import Thing, challenge_line, shop

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("asks_at_once")]


@pytest.fixture(autouse=True)
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(negotiation, "OFFER_AGAIN_S", 0.5)


@pytest.mark.parametrize("who", ["one session", "new sessions", "without a budget"])
def test_a_page_whose_payment_hangs_isnt_bought_under_another_scope(
    make_session: Callable[..., Routeweiler], lnd: FakeLnd, books: Books, who: str
) -> None:
    """Else a server that holds invoices is paid as often as it is asked."""
    settings: dict[str, Any] = {"payment_timeout": 1.5} | ({"budget_envelope": None} if who == "without a budget" else {})
    with shop(lnd) as (_, url):
        session = make_session(**settings)
        for _ in range(3):
            lnd.hang_next()
            with pytest.raises(PaymentPendingError) as caught:
                session.get(f"{url}/page")
            assert caught.value.spent is None
            session = make_session(**settings) if who == "new sessions" else session
        lnd.clear_faults()
        lnd.release()
        assert session.get(f"{url}/page").status_code == 200
        assert len(lnd.orders) == len(lnd.payments) == 1
        books.check()


def test_an_order_that_got_no_answer_isnt_replaced_by_one_for_another_scope(
    make_session: Callable[..., Routeweiler], lnd: FakeLnd, books: Books
) -> None:
    """The order may still arrive: a second one for the same page would be paid beside it."""
    with shop(lnd) as (_, url):
        lnd.drop_next("before_init", times=None)
        for _ in range(2):
            with pytest.raises(PaymentPendingError):
                make_session(payment_timeout=1.5).get(f"{url}/page")
        assert len(books.rows) == 1
        lnd.clear_faults()
        assert make_session().get(f"{url}/page").status_code == 200
        assert len(lnd.payments) == 1
        books.check()


def test_another_page_of_the_server_is_bought_all_the_same(
    make_session: Callable[..., Routeweiler], lnd: FakeLnd, books: Books
) -> None:
    """Else one stuck payment would close a whole server."""
    with shop(lnd) as (_, url):
        lnd.hang_next()
        with pytest.raises(PaymentPendingError):
            make_session(payment_timeout=1).get(f"{url}/stuck")
        session = make_session()
        for page in ("/other", "/stuck?page=2"):
            assert session.get(url + page).status_code == 200
        assert session.post(f"{url}/stuck", data=b"x").status_code == 200
        assert len(lnd.payments) == 4


@pytest.mark.parametrize("sessions", [1, 10])
def test_ten_threads_that_each_get_another_scope_buy_a_page_once(
    make_session: Callable[..., Routeweiler], lnd: FakeLnd, books: Books, sessions: int
) -> None:
    """Else the price of a page grows with the number of threads that want it."""
    with shop(lnd) as (_, url), ThreadPoolExecutor(10) as pool:
        made = [make_session() for _ in range(sessions)]
        calls = [pool.submit(made[n % sessions].get, f"{url}/page") for n in range(10)]
        assert [call.result(60).status_code for call in calls] == [200] * 10
        assert len(lnd.payments) == 1
        books.check()


BUYER = """
import sys
from routeweiler_sync import Routeweiler
from routeweiler_sync.funding.lightning import Funding, LndClient
url, ledger, host, port, macaroon, cert = sys.argv[1:]
client = LndClient(host, int(port), macaroon_path=macaroon, tls_cert_path=cert)
session = Routeweiler(funding=[Funding.lightning_lnd(client=client, network="bitcoin-regtest")], ledger=ledger)
print("ready", flush=True)
sys.stdin.readline()
print(session.get(url).status_code, flush=True)
"""


@pytest.mark.slow
def test_programs_that_each_get_another_scope_buy_a_page_once(lnd: FakeLnd, books: Books) -> None:
    """Between processes only the ledger knows what the others are buying."""
    client = lnd.client()
    with shop(lnd) as (_, url):
        arguments = [f"{url}/page", str(books.ledger_path), client.grpc_host, str(client.grpc_port)]
        arguments += [str(lnd.macaroon_path), str(lnd.tls_cert_path)]
        buyers = [
            subprocess.Popen([sys.executable, "-c", BUYER, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(4)
        ]
        for buyer in buyers:
            assert buyer.stdout is not None
            assert buyer.stdout.readline() == "ready\n"
        for buyer in buyers:
            assert buyer.stdin is not None
            buyer.stdin.write("go\n")
            buyer.stdin.flush()
        assert [buyer.communicate(timeout=90)[0] for buyer in buyers] == ["200\n"] * 4
        assert len(lnd.payments) == 1


@pytest.mark.parametrize("refuses", [402, 401])
def test_a_page_that_is_never_served_is_bought_once(
    make_session: Callable[..., Routeweiler], lnd: FakeLnd, books: Books, refuses: int
) -> None:
    """Its token is offered for as long as a settlement may lag, whatever the refusal names, and again by later calls."""
    with shop(lnd, refuses=refuses) as (seller, url):
        seller.serves = False
        for _ in range(2):
            with pytest.raises(TokenRefusedError) as caught:
                make_session().get(f"{url}/page")
            assert caught.value.spent is True
        assert len(lnd.payments) == 1
        seller.serves = True
        assert make_session().get(f"{url}/page").status_code == 200
        assert len(lnd.payments) == 1
        books.check()


def test_a_page_that_was_given_up_is_bought_anew(make_session: Callable[..., Routeweiler], lnd: FakeLnd, books: Books) -> None:
    """The user's word ends what nothing else ends."""
    with shop(lnd) as (seller, url):
        seller.serves = False
        with pytest.raises(TokenRefusedError) as caught:
            make_session().get(f"{url}/page")
        books.ledger.forget(caught.value.payment_hash or "")
        seller.serves = True
        assert make_session().get(f"{url}/page").status_code == 200
        assert len(lnd.payments) == 2


def test_a_settlement_that_lags_is_waited_for_though_the_scope_changes(
    make_session: Callable[..., Routeweiler], lnd: FakeLnd, books: Books
) -> None:
    """Else a call that has paid fails for a server that learns of the payment a moment later."""
    with shop(lnd) as (seller, url):
        seller.serves = False
        serve_later = threading.Timer(0.2, lambda: setattr(seller, "serves", True))
        serve_later.start()
        assert make_session().get(f"{url}/page").status_code == 200
        serve_later.join()
        assert len(lnd.payments) == 1
        books.check()


def test_a_clock_that_stands_still_doesnt_make_a_token_be_offered_for_ever(
    make_session: Callable[..., Routeweiler], lnd: FakeLnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Programs under test stop the clock; a call must end all the same."""
    monkeypatch.setattr("routeweiler_sync.paywall.handler.time.monotonic", lambda: 1.0)
    monkeypatch.setattr("routeweiler_sync.paywall.handler.time.sleep", lambda pause_s: None)
    with shop(lnd) as (seller, url):
        seller.serves = False
        with pytest.raises(TokenRefusedError):
            make_session().get(f"{url}/page")
        assert seller.requests <= negotiation.MAX_OFFERS_OF_ONE + 5


def test_two_slashes_are_one_page(make_session: Callable[..., Routeweiler], lnd: FakeLnd) -> None:
    """requests sends //page as /page, so it is the same thing to the server."""
    with shop(lnd, lambda request: "/" + request.path.lstrip("/")) as (seller, url):
        seller.serves = False
        for spelt in ("//page", "/page", "///page"):
            with pytest.raises(TokenRefusedError):
                make_session().get(url + spelt)
        assert len(lnd.payments) == 1


@pytest.mark.parametrize("pages", [("/page",), ("/a", "/b")])
@pytest.mark.parametrize("over", ["one origin", "two origins"])
def test_a_call_that_is_redirected_in_circles_buys_each_page_once(
    make_session: Callable[..., Routeweiler], lnd: FakeLnd, books: Books, pages: tuple[str, ...], over: str
) -> None:
    """A server that takes each token with a redirect back, and then names another scope, would be paid at each of thirty hops."""
    numbers, urls = itertools.count(), list[str]()
    sold: set[str] = set()

    def sell(request: Any) -> tuple[int, list[tuple[str, str]], bytes]:
        token = request.headers.get("Authorization", "").partition(" ")[2].rpartition(":")[0]
        following = pages[(pages.index(request.path) + 1) % len(pages)]
        if token in sold:
            sold.discard(token)
            return 302, [("Location", urls[-1] + following)], b""
        token, line = challenge_line(lnd, 10_000, f"scope{next(numbers)}")
        sold.add(token)
        return 402, [("WWW-Authenticate", line)], b""

    def send_back(request: Any) -> tuple[int, list[tuple[str, str]], bytes]:
        return 302, [("Location", urls[0] + request.path)], b""

    with server(sell) as seller, server(send_back) as detour:
        urls += [seller, detour] if over == "two origins" else [seller]
        with pytest.raises(TokenRefusedError):
            make_session(budget_envelope=None).get(seller + pages[0])
        assert len(lnd.payments) == len(pages)
        books.check()


def test_pages_whose_scopes_are_swapped_while_they_are_paid_for_get_their_own_tokens(
    make_session: Callable[..., Routeweiler], lnd: FakeLnd, books: Books
) -> None:
    """Else each page is offered the other's token for ever, and its own, which is paid for, never."""
    scopes, prices = {"/a": "one", "/b": "two"}, {"/a": 10_000, "/b": 20_000}
    sold: dict[str, str] = {}

    def sell(request: Any) -> tuple[int, list[tuple[str, str]], bytes]:
        token = request.headers.get("Authorization", "").partition(" ")[2].rpartition(":")[0]
        if sold.get(token) == request.path:
            return 200, [], b"page"
        token, line = challenge_line(lnd, prices[request.path], scopes[request.path])
        sold[token] = request.path
        return 402, [("WWW-Authenticate", line)], b""

    with server(sell) as url:
        lnd.hang_next(times=2)
        for page in scopes:
            with pytest.raises(PaymentPendingError):
                make_session(payment_timeout=1).get(url + page)
        scopes.update({"/a": "two", "/b": "one"})
        quotes = {page: make_session().quote("GET", url + page) for page in scopes}
        assert {page: quote and quote.amount_msat for page, quote in quotes.items()} == prices
        lnd.release()
        for page in [*scopes, *scopes]:
            assert make_session().get(url + page).status_code == 200
        assert len(lnd.payments) == 2
        books.check()


# -- tokens that are good for less than their scope ---------------------------------------------------------------------------


def method(request: Any) -> object:
    return request.command


def body(request: Any) -> object:
    return request.headers.get("X-Body")


def header(request: Any) -> object:
    return request.headers.get("X-Plan")


def ask(session: Routeweiler, url: str, thing: Thing, n: int) -> Any:
    if thing is method:
        return session.request(("GET", "POST", "PUT")[n], url)
    if thing is body:
        return session.post(url, data=f"question {n}".encode(), headers={"X-Body": str(n)})
    return session.get(url, headers={"X-Plan": str(n)})


@pytest.mark.parametrize("refuses", [402, 401])
@pytest.mark.parametrize("scoped", [False, True])
@pytest.mark.parametrize("thing", [method, body, header])
def test_things_of_one_path_are_paid_for_once_each(
    make_session: Callable[..., Routeweiler], lnd: FakeLnd, books: Books, thing: Thing, scoped: bool, refuses: int
) -> None:
    """Else a program that asks for two things by turns pays in each call."""
    with shop(lnd, thing, scoped=scoped, refuses=refuses) as (seller, url):
        for turn in range(3):
            session = make_session(budget_envelope=None)
            for n in range(3 if thing is not header else 2):
                before = seller.requests
                assert ask(session, f"{url}/v1/data", thing, n).status_code == 200
                assert seller.requests - before <= 8, (turn, n)
        assert len(lnd.payments) == (3 if thing is not header else 2)
        books.check()


@pytest.mark.parametrize("refuses", [402, 401])
def test_instances_with_keys_of_their_own_are_paid_for_once_each(
    make_session: Callable[..., Routeweiler], lnd: FakeLnd, books: Books, refuses: int
) -> None:
    """A balancer sends each call to another instance, which knows only its own tokens."""
    turns, asked = itertools.cycle(range(3)), {"instance": 0}
    with shop(lnd, lambda request: asked["instance"], scoped=False, refuses=refuses) as (_, url):
        session = make_session()
        for _ in range(9):
            asked["instance"] = next(turns)
            assert session.get(f"{url}/page").status_code == 200
        assert len(lnd.payments) == 3
        books.check()


def test_a_form_with_a_file_is_the_same_thing_each_time(make_session: Callable[..., Routeweiler], lnd: FakeLnd) -> None:
    """The boundary between its parts is new in each request, and says nothing about what is asked for."""
    with shop(lnd) as (seller, url):
        make_session().get(f"{url}/first")
        seller.serves = False
        for _ in range(2):
            with pytest.raises(TokenRefusedError):
                make_session().post(f"{url}/ask", files={"file": ("a.txt", io.BytesIO(b"content"))})
        assert len(lnd.payments) == 2
        with pytest.raises(TokenRefusedError):
            make_session().post(f"{url}/ask", files={"file": ("a.txt", io.BytesIO(b"other content"))})
        assert len(lnd.payments) == 3


@pytest.mark.parametrize(
    ("content_type", "bodies"),
    [
        pytest.param(
            "multipart/form-data; boundary=sea",
            [b'--sea\r\nContent-Disposition: form-data; name="q"\r\n\r\n' + q + b"\r\n--sea--\r\n" for q in (b"at sea", b"at ")],
            id="a part that holds the boundary's text",
        ),
        pytest.param("text/plain; boundary=1", [b"12", b"2"], id="no form"),
    ],
)
def test_forms_that_differ_in_what_looks_like_a_boundary_are_two_things(
    make_session: Callable[..., Routeweiler], lnd: FakeLnd, content_type: str, bodies: list[bytes]
) -> None:
    """Else the second can't be bought while the first isn't served."""
    with shop(lnd) as (seller, url):
        make_session().get(f"{url}/first")
        seller.serves = False
        for number, sent in enumerate(bodies, start=2):
            with pytest.raises(TokenRefusedError):
                make_session().post(f"{url}/ask", data=sent, headers={"Content-Type": content_type})
            assert len(lnd.payments) == number


def test_a_file_is_told_by_its_content_from_where_it_stood(
    make_session: Callable[..., Routeweiler], lnd: FakeLnd, tmp_path: Any
) -> None:
    """Else two uploads would be one thing, and the second be refused as the first."""
    with shop(lnd) as (seller, url):
        make_session().get(f"{url}/first")
        seller.serves = False
        for content, payments in ((b"..same", 2), (b"::same", 2), (b"..other", 3)):
            path = tmp_path / "upload"
            path.write_bytes(content)
            with path.open("rb") as file, pytest.raises(TokenRefusedError):
                file.seek(2)
                make_session().post(f"{url}/upload", data=file)
            assert len(lnd.payments) == payments


def test_a_quote_says_what_a_call_would_pay_for_a_page_that_is_under_way(
    make_session: Callable[..., Routeweiler], lnd: FakeLnd, books: Books
) -> None:
    """Else the price of a second purchase is shown, which no call would make."""
    with shop(lnd) as (_, url):
        session = make_session(payment_timeout=1)
        lnd.hang_next()
        with pytest.raises(PaymentPendingError):
            session.get(f"{url}/page")
        quote = session.quote("GET", f"{url}/page")
        assert quote is not None
        assert quote.payment_hash == books.rows[0].payment_hash
        lnd.release()
        session.recover()
        assert session.quote("GET", f"{url}/page") is None
