"""Many calls at once whose tokens don't fit each other, and servers that change what they ask for.

Each kind of server is a few lines here: what a token opens is the one thing in which they differ.
"""

from __future__ import annotations

import base64
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from routeweiler_sync import ChallengeExpiredError, PaymentState, RouteweilerError, TokenRefusedError
from routeweiler_sync.payments import checks, first_use
from routeweiler_sync.paywall import negotiation
from routeweiler_sync.testing import FakeLnd
from routeweiler_sync.testing._paywall_logic import mint
from tests.support.accounts import Books

Opens = Callable[["Server", str, str], bool]
Caveats = Callable[[int], list[str]]


class Server:
    """A paywall on 127.0.0.1 whose ``opens`` says whether a paid token opens a target; inside ``with``.

    ``caveats``: of the n-th token that it offers. None: its tokens are opaque.
    """

    def __init__(self, lnd: FakeLnd, opens: Opens, caveats: Caveats | None) -> None:
        self.lnd, self.opens, self.caveats = lnd, opens, caveats
        self.lock = threading.Lock()
        self.bought_for: dict[str, tuple[str, str]] = {}
        self.used: set[str] = set()
        self.asked: Counter[str] = Counter()
        wall = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                status, challenge = wall.answer(self.path, self.headers.get("Authorization", ""))
                self.send_response(status)
                if challenge:
                    self.send_header("WWW-Authenticate", challenge)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"ok")

            def log_message(self, *args: object) -> None:
                pass

        class Listener(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

        self._server = Listener(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Server:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, target: str, authorization: str) -> tuple[int, str | None]:
        token = authorization.partition(" ")[2].partition(":")[0]
        with self.lock:
            self.asked[target] += 1
            paid = token in self.bought_for and self.lnd.settled(bytes.fromhex(self.bought_for[token][0]))
            if paid and self.opens(self, token, target):
                return 200, None
            invoice = self.lnd.invoice(10_000)
            number = len(self.bought_for)
            if self.caveats is None:
                token = base64.b64encode(os.urandom(24)).decode()
            else:
                token = mint(b"k" * 32, os.urandom(32), invoice.payment_hash, self.caveats(number))
            self.bought_for[token] = (invoice.payment_hash.hex(), target)
            return 402, f'L402 macaroon="{token}", invoice="{invoice.bolt11}"'


def once(server: Server, token: str, target: str) -> bool:
    """A token opens one page, one time."""
    if token in server.used:
        return False
    server.used.add(token)
    return True


def own(server: Server, token: str, target: str) -> bool:
    """A token opens what it was bought for, path and query."""
    return server.bought_for[token][1] == target


def every(server: Server, token: str, target: str) -> bool:
    """A token opens all pages."""
    return True


def none(server: Server, token: str, target: str) -> bool:
    """No token opens anything."""
    return False


def one_service(number: int) -> list[str]:
    return ["services=x:0"]


#: What a token opens, its caveats, what the calls ask for, and whether each call needs a payment of its own.
KINDS: dict[str, tuple[Opens, Caveats | None, str, bool]] = {
    "one-time tokens": (once, one_service, "/page", True),
    "one-time tokens, opaque": (once, None, "/page", True),
    "a token for each query": (own, None, "/search?q={}", True),
    "a token for each path, all of one service": (own, one_service, "/page/{}", True),
    "one token for all": (every, one_service, "/page/{}", False),
    "one token for all, one page": (every, one_service, "/page", False),
}


@pytest.fixture
def serve(lnd: FakeLnd) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def start(opens: Opens, caveats: Caveats | None) -> Server:
        servers.append(Server(lnd, opens, caveats).__enter__())
        return servers[-1]

    yield start
    for server in servers:
        server.__exit__()


def paid(lnd: FakeLnd) -> int:
    return sum(payment.status == "SUCCEEDED" for payment in lnd.payments)


def outcome(session: Any, url: str) -> str:
    try:
        return str(session.get(url, timeout=120).status_code)
    except RouteweilerError as error:
        return f"{type(error).__name__} {error.spent}: {error}"


def rush(sessions: list[Any], urls: list[str]) -> Counter[str]:
    """What became of the calls, one thread each, all at once."""
    gate = threading.Barrier(len(urls))

    def call(number: int) -> str:
        gate.wait(60)
        return outcome(sessions[number % len(sessions)], urls[number])

    with ThreadPoolExecutor(len(urls)) as pool:
        return Counter(pool.map(call, range(len(urls))))


# -- tokens of others ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize(("threads", "sessions"), [(12, 1), (12, 3), (64, 1)])
@pytest.mark.parametrize("kind", KINDS)
def test_every_call_of_a_crowd_is_served_for_what_it_needs(
    make_session, serve, lnd: FakeLnd, books: Books, kind: str, threads: int, sessions: int
) -> None:
    """Whoever fetches pages side by side, each with a token of its own, would see most calls fail for others' tokens, and read
    that their money is spent; or, where one token serves all, pay for each."""
    opens, caveats, page, each = KINDS[kind]
    server = serve(opens, caveats)
    urls = [server.url + page.format(number) for number in range(threads)]
    assert rush([make_session(budget_envelope=None) for _ in range(sessions)], urls) == {"200": threads}
    assert paid(lnd) == (threads if each else 1)
    most = 4 if opens is own else negotiation.MAX_TOKENS_PER_CALL + 4
    assert sum(server.asked.values()) <= threads * most, "a call goes through what others buy"
    books.check()


@pytest.mark.slow
@pytest.mark.parametrize("caveats", [one_service, lambda number: [f"services=x{number}:0"]], ids=["one scope", "many"])
def test_a_later_call_leaves_the_first_use_of_a_new_token_to_its_buyer(
    make_session, serve, lnd: FakeLnd, books: Books, caveats
) -> None:
    """A one-time token in the session's memory, or found as never taken, would be used up by a call that hasn't paid for it."""
    later: list[Any] = []

    def held_up(server: Server, token: str, target: str) -> bool:
        if not later:  # the buyer's first use: another call comes before it is answered, and has time to do harm
            server.lock.release()
            later.append(pool.submit(outcome, session, f"{server.url}/page"))
            deadline_s = time.monotonic() + 0.7
            while server.asked["/page"] < 4 and time.monotonic() < deadline_s:
                time.sleep(0.01)
            server.lock.acquire()
        return once(server, token, target)

    server, session = serve(held_up, caveats), make_session()
    with ThreadPoolExecutor(1) as pool:
        assert outcome(session, f"{server.url}/page") == "200"
        assert later[0].result(60) == "200"
    assert paid(lnd) == 2
    books.check()


@pytest.mark.slow
def test_a_second_crowd_finds_the_tokens_of_the_first(make_session, serve, lnd: FakeLnd, books: Books) -> None:
    """A token that made room for another's was paid for: its page would be bought each time that it is fetched."""
    server = serve(own, one_service)
    urls = [f"{server.url}/page/{number}" for number in range(12)]
    for _ in range(3):
        assert rush([make_session()], urls) == {"200": 12}
    assert paid(lnd) == 12
    books.check()


def test_a_crowd_replaces_a_token_that_expired_by_one(make_session, serve, lnd: FakeLnd, books: Books) -> None:
    """An old token that is refused says nothing of its successor: taken for "each needs its own", every page would be paid for."""
    server = serve(lambda server, token, target: token not in server.used, one_service)
    assert outcome(make_session(), f"{server.url}/first") == "200"
    server.used.update(server.bought_for)  # all that were offered so far: over
    session = make_session()
    assert rush([session], [f"{server.url}/page/{number}" for number in range(24)]) == {"200": 24}
    assert paid(lnd) == 2
    books.check()


def test_a_buyer_that_waits_for_its_page_keeps_the_others_only_for_a_while(
    make_session, serve, lnd: FakeLnd, books: Books, monkeypatch
) -> None:
    """One answer that never comes would hang all who could be served by the token."""
    monkeypatch.setattr(first_use, "FIRST_USE_S", 0.5)
    hanging, go_on = threading.Event(), threading.Event()

    def slow(server: Server, token: str, target: str) -> bool:
        if target == "/slow":
            server.lock.release()
            hanging.set()
            go_on.wait(60)
            server.lock.acquire()
        return True

    server = serve(slow, one_service)
    session = make_session()
    with ThreadPoolExecutor(1) as pool:
        buyer = pool.submit(outcome, session, f"{server.url}/slow")
        try:
            assert hanging.wait(60)
            began_s = time.monotonic()
            assert outcome(session, f"{server.url}/page") == "200"
            assert time.monotonic() - began_s < 15
            assert not buyer.done()
        finally:
            go_on.set()
        assert buyer.result(60) == "200"
    assert paid(lnd) == 1
    books.check()


def test_a_call_that_never_came_to_buy_says_that_it_spent_nothing(
    make_session, serve, lnd: FakeLnd, books: Books, monkeypatch
) -> None:
    """Told "spent", with another call's payment hash, an operator would look for money that never left."""
    monkeypatch.setattr(negotiation, "MAX_OFFERS_PER_CALL", 1)
    server = serve(own, one_service)
    assert outcome(make_session(), f"{server.url}/a") == "200"
    with pytest.raises(TokenRefusedError, match="Nothing was spent by this call") as caught:
        make_session().get(f"{server.url}/b")
    assert caught.value.spent is False
    assert caught.value.payment_hash is None
    assert paid(lnd) == 1
    books.check()


# -- servers that change what they ask for ------------------------------------------------------------------------------------


def test_a_server_that_names_another_scope_each_time_is_paid_once(
    make_session, serve, lnd: FakeLnd, books: Books, monkeypatch
) -> None:
    """The scope is the server's word: a new one each time would be a new payment each time, for a page that never comes."""
    monkeypatch.setattr(negotiation, "OFFER_AGAIN_S", 0.5)
    server = serve(none, lambda number: [f"services=x{number}:0"])
    for _ in range(5):
        with pytest.raises(TokenRefusedError) as caught:
            make_session().get(f"{server.url}/page")
        assert caught.value.spent is True
        assert caught.value.payment_hash == lnd.payments[0].payment_hash
    assert "forget" in str(caught.value)
    assert paid(lnd) == 1
    books.ledger.forget(lnd.payments[0].payment_hash)
    with pytest.raises(TokenRefusedError):
        make_session().get(f"{server.url}/page")
    assert paid(lnd) == 2
    books.check()


def test_a_token_the_server_has_not_accepted_yet_is_offered_first_and_kept(
    make_session, serve, lnd: FakeLnd, books: Books, monkeypatch
) -> None:
    """A server that comes to its senses, or heard of the settlement late, would never be given what was paid for."""
    monkeypatch.setattr(negotiation, "OFFER_AGAIN_S", 0.5)
    honest = threading.Event()
    server = serve(lambda *_: honest.is_set(), lambda number: [f"services=x{number}:0"])
    session = make_session()
    assert session._payer.token_cache.token_for_path(server.url, "/page") is None  # and so it won't look again before a 402
    with pytest.raises(TokenRefusedError):
        make_session().get(f"{server.url}/page")
    honest.set()
    response = session.get(f"{server.url}/page")
    assert (response.status_code, response.payment.reused) == (200, True)
    assert [answer.status_code for answer in response.history] == [402]
    assert paid(lnd) == 1
    books.check()


def test_a_token_that_was_never_accepted_blocks_no_other_page(make_session, serve, lnd: FakeLnd, books: Books, monkeypatch) -> None:
    """One page that doesn't work would keep a user from all the others of its server; and one that has served, from a new tier."""
    monkeypatch.setattr(negotiation, "OFFER_AGAIN_S", 0.5)
    server = serve(
        lambda server, token, target: target != "/broken" and own(server, token, target), lambda number: [f"services=x{number}:0"]
    )
    assert outcome(make_session(), f"{server.url}/first") == "200"  # else it isn't known whether the server delivers at all
    for number in range(3):
        with pytest.raises(TokenRefusedError):
            make_session().get(f"{server.url}/broken")
        assert outcome(make_session(), f"{server.url}/page/{number}") == "200"
    server.used.update(server.bought_for)
    server.opens = lambda server, token, target: token not in server.used and own(server, token, target)
    assert outcome(make_session(), f"{server.url}/page/0") == "200", (
        "its first token has served: another tier is the caller's to buy"
    )
    assert Counter(row.state for row in books.rows) == {PaymentState.SETTLED: 6}
    books.check()


def test_scopes_that_differ_by_call_are_bought_side_by_side(make_session, serve, lnd: FakeLnd, books: Books) -> None:
    """A token on its way to its first use isn't one that was never taken: its neighbour would be refused for it."""
    server = serve(own, lambda number: [f"services=x{number}:0"])
    assert set(rush([make_session()], [f"{server.url}/page"] * 12)) == {"200"}
    books.check()


@pytest.mark.parametrize("life_s", [-5, 0, 1])
def test_a_token_that_lives_too_short_to_serve_is_not_paid_for(
    make_session, serve, lnd: FakeLnd, books: Books, life_s: int
) -> None:
    """Each is over before it could be refused: a server that never delivers would be paid by every call."""
    server = serve(none, lambda number: ["services=x:0", f"x_valid_until={int(time.time()) + life_s}"])
    for _ in range(3):
        with pytest.raises(ChallengeExpiredError, match="valid_until"):
            make_session().get(f"{server.url}/page")
    assert lnd.payments == []
    assert books.rows == []


def test_a_token_that_lives_long_enough_is_paid_for(make_session, serve, lnd: FakeLnd, books: Books) -> None:
    """Pages that are sold by the minute would be out of reach."""
    server = serve(every, lambda number: ["services=x:0", f"x_valid_until={int(time.time()) + checks.MIN_TOKEN_LIFE_S + 20}"])
    assert outcome(make_session(), f"{server.url}/page") == "200"
    books.check()
