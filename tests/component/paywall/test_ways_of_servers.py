"""Each way in which real servers sell and refuse tokens: every page is opened, and paid at most once for what is still good.

The bounds hold everywhere: at most 8 requests and one payment a call, no token at another origin, nothing bought without a 402.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests

from routeweiler_sync import (
    BudgetEnvelope,
    BudgetExceededError,
    ChallengeParseError,
    Ledger,
    Policy,
    PolicyDeniedError,
    PolicyRule,
    Routeweiler,
    RouteweilerError,
    RuleMatch,
    TokenRefusedError,
)
from routeweiler_sync.ledger.lookups import MAX_PAGE_TOKENS, MAX_UNDELIVERED, undelivered_of
from routeweiler_sync.payments import single_use, token_cache
from routeweiler_sync.paywall import negotiation
from routeweiler_sync.paywall.negotiation import MAX_REQUESTS
from routeweiler_sync.testing import FakeLnd
from tests.support.accounts import Books
from tests.support.selling_ways import (
    FRESH,
    TOKEN_KINDS,
    Asked,
    Grant,
    Seller,
    everything,
    five_pages,
    nothing,
    once,
    one_body,
    one_method,
    one_path,
    seller,
)

pytestmark = pytest.mark.timeout(120)

#: How servers refuse a token: a new challenge, or a status without one, or L402 without anything to pay.
REFUSALS: dict[str, tuple[int, str | None]] = {
    "402 anew": (402, FRESH),
    "401 anew": (401, FRESH),
    "401": (401, None),
    "401 L402": (401, "L402"),
    "401 L402 realm": (401, 'L402 realm="shop"'),
    "402 LSAT": (402, "LSAT"),
    "400": (400, None),
    "403": (403, None),
    "404": (404, None),
    "409": (409, None),
    "410": (410, None),
}
#: Refusals that only a request with a safe method is doubted for.
ERRORS: dict[str, tuple[int, str | None]] = {"500": (500, None), "502": (502, None), "503": (503, None)}


@pytest.fixture(autouse=True)
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(negotiation, "OFFER_AGAIN_S", 0.5)


class Buyer:
    """Makes calls, and holds each to the bounds."""

    def __init__(self, session: Routeweiler, shop: Seller, url: str) -> None:
        self.session, self.shop, self.url = session, shop, url

    def call(self, method: str, path: str, *, waits: bool = False, **options: Any) -> requests.Response:
        """``waits``: a token that the server never accepted is offered again for a while, which isn't counted."""
        paid, seen = self.shop.paid, len(self.shop.seen)
        try:
            return self.session.request(method, self.url + path, **options)
        finally:
            assert self.shop.paid - paid <= 1, self.shop.wire[seen:]
            assert waits or len(self.shop.seen) - seen <= MAX_REQUESTS, self.shop.wire[seen:]

    def opens(self, method: str, path: str, *, paid: int | None = None, requests: int = MAX_REQUESTS, **options: Any) -> None:
        """Check that the call gets the page, for ``paid`` payments, within ``requests`` requests."""
        before, seen = self.shop.paid, len(self.shop.seen)
        response = self.call(method, path, **options)
        wire = self.shop.wire[seen:]
        assert response.status_code == 200, wire
        assert paid is None or self.shop.paid - before == paid, wire
        assert len(wire) <= requests, wire

    def meets(self, method: str, path: str, status: int, *, paid: int = 0, requests: int = MAX_REQUESTS) -> None:
        """Check that the call gets ``status``, for ``paid`` payments."""
        before, seen = self.shop.paid, len(self.shop.seen)
        assert self.call(method, path).status_code == status, self.shop.wire[seen:]
        assert self.shop.paid - before == paid, self.shop.wire[seen:]
        assert len(self.shop.seen) - seen <= requests, self.shop.wire[seen:]


# -- tokens for the whole server -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TOKEN_KINDS)
def test_a_token_for_the_whole_server_is_paid_once(either_session: Routeweiler, lnd: FakeLnd, books: Books, kind: str) -> None:
    """If failing: each path of such a server is paid anew, though the token in hand opens it."""
    with seller(lnd, token_kind=kind) as (shop, url):
        buyer = Buyer(either_session, shop, url)
        for number in range(3):
            buyer.opens("GET", f"/item/{number}", requests=3)
            buyer.opens("POST", "/search", data=b"{}", requests=3)
            buyer.opens("POST", f"/item/{number}/vote", requests=3)
            buyer.opens("GET", f"/page/{number}?q=1", requests=3)
        assert shop.paid == 1
        books.check()


def test_a_token_for_the_whole_server_is_offered_where_several_are_there(
    make_session: Callable[..., Routeweiler], lnd: FakeLnd
) -> None:
    """If failing: after one token has expired, each new path is paid, since it isn't clear which of two tokens to send."""
    with seller(lnd) as (shop, url):
        buyer = Buyer(make_session(), shop, url)
        buyer.opens("GET", "/a", paid=1)
        shop.revoke()
        buyer.opens("GET", "/b", paid=1)
        for number in range(6):
            buyer.opens("GET", f"/c/{number}", paid=0, requests=3)
            buyer.opens("POST", f"/d/{number}", paid=0, requests=3)
        buyer.opens("GET", "/a", paid=0, requests=4)
        buyer = Buyer(make_session(), shop, url)  # another session on the same ledger
        buyer.opens("GET", "/e", paid=0, requests=3)
        buyer.opens("GET", "/c/1", paid=0, requests=1)


@pytest.mark.parametrize("refusal", ["402 anew", "401", "403"])
def test_prepaid_credit_is_used_up_before_more_is_bought(session: Routeweiler, lnd: FakeLnd, books: Books, refusal: str) -> None:
    """If failing: what is left of the credit is lost with each new path."""
    with seller(lnd, accepts=five_pages, price_sat=50, refuses=REFUSALS[refusal]) as (shop, url):
        buyer = Buyer(session, shop, url)
        for number in range(20):
            buyer.opens("GET", f"/item/{number}", requests=4)
        assert shop.paid == 4
        books.check()


@pytest.mark.parametrize("refusal", [*REFUSALS, *ERRORS])
def test_a_server_that_sells_by_path_is_soon_known(session: Routeweiler, lnd: FakeLnd, refusal: str) -> None:
    """If failing: for every further path a token goes out that doesn't open it, and the page may be out of reach."""
    with seller(lnd, accepts=one_path, refuses={**REFUSALS, **ERRORS}[refusal]) as (shop, url):
        buyer = Buyer(session, shop, url)
        for number in range(8):
            buyer.opens("GET", f"/item/{number}", paid=1, requests=4 if number < 4 else 2)
        for number in range(8):
            buyer.opens("GET", f"/item/{number}", paid=0, requests=1)


def test_a_token_goes_to_no_other_server(session: Routeweiler, lnd: FakeLnd) -> None:
    """If failing: a server gets a token that opens another's pages."""
    with (
        seller(lnd) as (one, url),
        seller(lnd) as (other, other_url),
        seller(lnd, unasked=lambda asked: (401, None)) as (third, third_url),
    ):
        for path in ("/a", "/b"):
            session.get(url + path)
            session.get(other_url + path)
            session.get(third_url + path)
        assert {asked.token for asked in one.seen}.isdisjoint({asked.token for asked in other.seen if asked.token})
        assert [asked.token for asked in third.seen] == [None, None]


# -- tokens bound to something -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bound", "refusal"), [*(("method", refusal) for refusal in REFUSALS), ("body", "402 anew"), ("body", "401"), ("body", "403")]
)
def test_tokens_bound_to_a_method_or_body_all_stay_in_use(
    session: Routeweiler, lnd: FakeLnd, books: Books, bound: str, refusal: str
) -> None:
    """If failing: with GET and POST by turns, each call is paid."""
    with seller(lnd, accepts=one_method if bound == "method" else one_body, refuses=REFUSALS[refusal]) as (shop, url):
        buyer = Buyer(session, shop, url)
        for _ in range(4):
            buyer.opens("GET" if bound == "method" else "POST", "/x")
            buyer.opens("POST", "/x", json={"a": 1})
        assert shop.paid == 2
        books.check()


@pytest.mark.parametrize("refusal", [*REFUSALS, "500"])
def test_each_instance_behind_a_balancer_is_paid_once(
    session: Routeweiler, lnd: FakeLnd, books: Books, refusal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If failing: instances that don't share their keys are paid again and again, as if their tokens were for a single use."""
    monkeypatch.setattr(token_cache, "ERRORS_APART_S", 0.0)
    refuses = {**REFUSALS, **ERRORS}[refusal]
    with seller(lnd, accepts=lambda asked, grant: grant.instance == shop.instance, refuses=refuses) as (shop, url):
        buyer = Buyer(session, shop, url)
        for number in range(12):
            shop.instance = number % 3
            buyer.opens("GET", "/a")
        assert shop.paid == 3
        books.check()


def test_instances_that_take_turns_at_each_request_are_paid_a_few_times_only(session: Routeweiler, lnd: FakeLnd) -> None:
    """If failing: a balancer that sends each request elsewhere costs a payment a call."""
    with seller(lnd, accepts=lambda asked, grant: grant.instance == shop.instance, instances=3) as (shop, url):
        buyer = Buyer(session, shop, url)
        for _ in range(12):
            buyer.opens("GET", "/a", waits=True)
        assert shop.paid <= 4, shop.wire


# -- guesses -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 406, 409, 410, 418, 422, 429, 451, 500, 501, 502, 503, 504])
def test_a_guess_that_meets_an_error_is_withdrawn(session: Routeweiler, lnd: FakeLnd, status: int) -> None:
    """If failing: a page is out of reach for ever, because a token of another path went along that nobody asked for."""
    with seller(lnd, accepts=one_path, refuses=(status, None)) as (shop, url):
        buyer = Buyer(session, shop, url)
        buyer.opens("GET", "/a", paid=1)
        first = shop.seen[-1].token
        buyer.opens("GET", "/b", paid=1, requests=4)
        buyer.opens("GET", "/b", paid=0, requests=1)
        assert [asked.token for asked in shop.seen if asked.path == "/b"].count(first) <= 1


@pytest.mark.parametrize("status", [404, 500])
def test_a_free_page_that_fails_is_asked_twice_at_most_and_not_guessed_at_again(
    session: Routeweiler, lnd: FakeLnd, status: int
) -> None:
    """If failing: a page's own error costs two requests each time; or a token is sent to it for ever."""
    with seller(
        lnd,
        unasked=lambda asked: (402, FRESH) if asked.path == "/a" else (status, None),
        app=lambda asked: 200 if asked.path == "/a" else status,
    ) as (shop, url):
        buyer = Buyer(session, shop, url)
        buyer.opens("GET", "/a", paid=1)
        buyer.meets("GET", "/broken", status, requests=2)
        buyer.meets("GET", "/broken", status, requests=1)
        assert shop.seen[-1].token is None


def test_a_post_is_never_sent_with_a_guess(session: Routeweiler, lnd: FakeLnd) -> None:
    """If failing: an order at a free page whose application fails is placed twice."""
    with seller(
        lnd,
        unasked=lambda asked: (402, FRESH) if asked.path == "/a" else (500, None),
        app=lambda asked: 500 if asked.path != "/a" else 200,
    ) as (shop, url):
        buyer = Buyer(session, shop, url)
        buyer.opens("GET", "/a", paid=1)
        buyer.meets("POST", "/orders", 500, requests=1)
        assert shop.seen[-1].token is None


# -- used up, expired, revoked -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "refusal"),
    [*(("GET", each) for each in (*REFUSALS, *ERRORS)), *(("POST", each) for each in ("402 anew", "401", "403"))],
)
def test_a_single_use_is_paid_for_each_time(
    session: Routeweiler, lnd: FakeLnd, books: Books, refusal: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If failing: the second call is refused, and each one after it."""
    monkeypatch.setattr(token_cache, "ERRORS_APART_S", 0.0)
    with seller(lnd, accepts=once, refuses={**REFUSALS, **ERRORS}[refusal]) as (shop, url):
        buyer = Buyer(session, shop, url)
        buyer.opens(method, "/a", paid=1, requests=3)
        for number in range(6):
            buyer.opens(method, "/a", paid=1, requests=8 if number < 3 else 4)
        buyer.opens(method, "/b", paid=1, requests=3)
        books.check()


def test_that_tokens_serve_once_is_known_to_other_sessions(make_session: Callable[..., Routeweiler], lnd: FakeLnd) -> None:
    """If failing: a program that runs once a minute sends its used-up tokens each time."""
    with seller(lnd, accepts=once, refuses=(401, None)) as (shop, url):
        for _ in range(6):
            Buyer(make_session(), shop, url).opens("GET", "/a", paid=1)
        buyer = Buyer(make_session(), shop, url)
        buyer.opens("GET", "/a", paid=1, requests=2)
        buyer.opens("GET", "/a", paid=1, requests=2)
        buyer.opens("GET", "/b", paid=1, requests=2)
        tokens = [asked.token for asked in shop.seen[-6:] if asked.token]
        assert len(set(tokens)) == len(tokens) == 3


def test_a_server_that_stops_to_sell_single_uses_is_noticed(
    make_session: Callable[..., Routeweiler], lnd: FakeLnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If failing: tokens that would serve for years are bought anew for each call, for ever."""
    monkeypatch.setattr(single_use, "CHECKED_EVERY", 5)
    uses = [1]
    with seller(lnd, accepts=lambda asked, grant: grant.uses < uses[0], refuses=(401, None)) as (shop, url):
        buyer = Buyer(make_session(), shop, url)
        for _ in range(4):
            buyer.opens("GET", "/a", paid=1)
        uses[0] = 10**6
        for _ in range(10):
            buyer.opens("GET", "/a")
        assert shop.paid <= 4 + 3, shop.wire
        buyer.opens("GET", "/a", paid=0, requests=1)


def test_tokens_that_were_revoked_late_arent_for_a_single_use(
    make_session: Callable[..., Routeweiler], lnd: FakeLnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If failing: a server whose tokens live for an hour is paid for each call."""
    monkeypatch.setattr("routeweiler_sync.paywall.token_notes.USED_UP_WITHIN_S", -1.0)
    with seller(lnd) as (shop, url):
        buyer = Buyer(make_session(), shop, url)
        for _ in range(6):
            buyer.opens("GET", "/a", paid=1)
            shop.revoke()
        buyer.opens("GET", "/a", paid=1)
        for _ in range(3):
            buyer.opens("GET", "/a", paid=0, requests=1)


@pytest.mark.parametrize(
    ("opens", "refusal"),
    [*(("one path", each) for each in (*REFUSALS, *ERRORS)), ("everything", "402 anew"), ("everything", "500")],
)
def test_keys_that_changed_cost_one_payment(session: Routeweiler, lnd: FakeLnd, books: Books, refusal: str, opens: str) -> None:
    """If failing: after a server's restart its pages are out of reach, or paid more than once."""
    accepts = everything if opens == "everything" else one_path
    with seller(lnd, accepts=accepts, refuses={**REFUSALS, **ERRORS}[refusal]) as (shop, url):
        buyer = Buyer(session, shop, url)
        buyer.opens("GET", "/a", paid=1)
        buyer.opens("GET", "/a", paid=0, requests=1)
        shop.revoke()
        buyer.opens("GET", "/a", paid=1)
        buyer.opens("GET", "/a", paid=0, requests=1)
        books.check()


# -- an application's own errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 403, 404, 409, 410, 500, 503])
@pytest.mark.parametrize("scoped", [True, False], ids=["a service", "a path"])
def test_an_error_behind_the_paywall_costs_one_payment_at_most(
    make_session: Callable[..., Routeweiler], lnd: FakeLnd, books: Books, status: int, scoped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If failing: a page that was deleted, or an application that is down, is paid for at each visit."""
    monkeypatch.setattr(token_cache, "ERRORS_APART_S", 0.0)
    broken: set[str] = set()
    how: dict[str, Any] = {"scope": lambda asked: "shop"} if scoped else {}
    with seller(lnd, app=lambda asked: status if asked.path in broken else 200, **how) as (shop, url):
        buyer = Buyer(make_session(), shop, url)
        for path in ("/a", "/b"):
            buyer.opens("GET", path)
        before = shop.paid
        broken.add("/a")
        for round_ in range(6):
            buyer = Buyer(make_session(), shop, url) if round_ % 2 else buyer  # in new sessions as well
            assert buyer.call("GET", "/a").status_code == status
            buyer.opens("GET", "/b")
        assert shop.paid - before <= 1, shop.wire
        broken.clear()
        buyer.opens("GET", "/a", paid=0)
        books.check()


@pytest.mark.parametrize("status", [404, 500])
def test_an_application_that_is_down_isnt_paid_for_page_by_page(session: Routeweiler, lnd: FakeLnd, status: int) -> None:
    """If failing: with an own token for each of 20 pages, an outage of a minute costs 20 payments."""
    down = [200]
    with seller(lnd, accepts=one_path, app=lambda asked: down[0]) as (shop, url):
        buyer = Buyer(session, shop, url)
        for number in range(20):
            buyer.opens("GET", f"/{number}", paid=1)
        down[0] = status
        for number in range(20):
            assert buyer.call("GET", f"/{number}").status_code == status
        assert shop.paid == 21
        down[0] = 200
        for number in range(20):
            buyer.opens("GET", f"/{number}", paid=0)


def test_an_error_that_comes_without_a_token_too_is_the_callers(session: Routeweiler, lnd: FakeLnd) -> None:
    """If failing: a token is thrown away for an error that isn't about it."""
    status = [200]
    with seller(
        lnd, unasked=lambda asked: (402, FRESH) if status[0] == 200 else (status[0], None), app=lambda asked: status[0]
    ) as (shop, url):
        buyer = Buyer(session, shop, url)
        buyer.opens("GET", "/a", paid=1)
        for each in (404, 403, 500, 503, 400, 409, 410):
            status[0] = each
            buyer.meets("GET", "/a", each, requests=2)
        status[0] = 200
        buyer.opens("GET", "/a", paid=0, requests=1)


def test_a_path_is_doubted_for_a_5xx_once_a_minute(session: Routeweiler, lnd: FakeLnd) -> None:
    """If failing: while a server is down, each call asks it twice."""
    status = [200]
    with seller(
        lnd, unasked=lambda asked: (402, FRESH) if status[0] == 200 else (status[0], None), app=lambda asked: status[0]
    ) as (shop, url):
        buyer = Buyer(session, shop, url)
        buyer.opens("GET", "/a", paid=1)
        status[0] = 503
        buyer.meets("GET", "/a", 503, requests=2)
        for _ in range(3):
            buyer.meets("GET", "/a", 503, requests=1)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_a_5xx_to_what_may_have_had_its_effect_is_the_callers(session: Routeweiler, lnd: FakeLnd, method: str) -> None:
    """If failing: an order is placed twice."""
    status = [200]
    with seller(lnd, app=lambda asked: status[0]) as (shop, url):
        buyer = Buyer(session, shop, url)
        buyer.opens(method, "/a", paid=1)
        status[0] = 500
        buyer.meets(method, "/a", 500, requests=1)


# -- L402 without anything to pay ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", ["L402 price-only", "L402", 'L402 realm="x"', "lsat", 'LSAT version="0", realm="x"'])
def test_a_head_that_only_tells_the_price_is_the_callers(either_session: Routeweiler, lnd: FakeLnd, words: str) -> None:
    """If failing: an exception where `requests` gives a response; or something is bought that nobody can read."""
    with seller(lnd, unasked=lambda asked: (402, words if asked.method == "HEAD" else FRESH)) as (shop, url):
        buyer = Buyer(either_session, shop, url)
        buyer.meets("HEAD", "/a", 402, requests=1)
        buyer.opens("GET", "/a", paid=1)
        buyer.opens("HEAD", "/a", paid=0, requests=1)


def test_a_get_that_offers_nothing_is_an_error_and_costs_nothing(session: Routeweiler, lnd: FakeLnd) -> None:
    """If failing: a server's fault goes by unseen."""
    with seller(lnd, unasked=lambda asked: (402, "L402 price-only")) as (shop, url):
        with pytest.raises(ChallengeParseError):
            session.get(f"{url}/a")
        assert (shop.paid, len(shop.seen)) == (0, 1)


@pytest.mark.parametrize("words", ['L402 macaroon="x"', 'L402 invoice="lnbc1"', 'HEAD L402 token="x', 'L402 macaroon="x'])
def test_a_broken_challenge_stays_an_error_for_a_head_too(session: Routeweiler, lnd: FakeLnd, words: str) -> None:
    """If failing: half an offer is taken for none."""
    with seller(lnd, unasked=lambda asked: (402, words)) as (shop, url):
        if "HEAD" in words:
            assert session.head(f"{url}/a").status_code == 402  # no scheme of ours
        else:
            with pytest.raises(ChallengeParseError):
                session.head(f"{url}/a")
        assert shop.paid == 0


@pytest.mark.parametrize(
    "challenge",
    [
        "L402 macaroon={token} invoice={invoice}",
        'L402 macaroon="{token}" invoice="{invoice}"',
        "LSAT   token={token}\tversion=0   invoice={invoice}",
        'L402 macaroon="{token}" invoice="{invoice}", realm="shop"',
        'Basic realm="x", L402 macaroon="{token}" invoice="{invoice}", Bearer',
    ],
)
def test_parameters_that_are_parted_by_blanks_are_read(session: Routeweiler, lnd: FakeLnd, challenge: str) -> None:
    """If failing: a server that says all there is to say isn't paid."""
    with seller(lnd, challenge=challenge) as (shop, url):
        buyer = Buyer(session, shop, url)
        buyer.opens("GET", "/a", paid=1, requests=2)
        buyer.opens("GET", "/a", paid=0, requests=1)


# -- paths that sell nothing ---------------------------------------------------------------------------------------------------


def _streams(asked: Asked) -> tuple[int, str | None]:
    return (401, None) if "/stream" in asked.path else (402, FRESH)


@pytest.mark.parametrize("words", [None, "L402", 'L402 realm="x"', "sold elsewhere"])
def test_a_path_that_sells_nothing_gets_the_origins_tokens(either_session: Routeweiler, lnd: FakeLnd, words: str | None) -> None:
    """If failing: what was paid for at the next path is out of reach, since the path itself doesn't sell it."""

    def unasked(asked: Asked) -> tuple[int, str | None]:
        return (401, FRESH if words == "sold elsewhere" else words) if "/stream" in asked.path else (402, FRESH)

    service = lambda asked: asked.path.split("/")[1]  # noqa: E731
    with seller(lnd, accepts=lambda asked, grant: service(asked) == service(grant.asked), scope=service, unasked=unasked) as (
        shop,
        url,
    ):
        shop.refuses = (401, None)
        buyer = Buyer(either_session, shop, url)
        buyer.opens("GET", "/maps/1", paid=1)
        buyer.opens("GET", "/weather/1", paid=1)
        buyer.opens("GET", "/maps/stream/1", paid=0, requests=4)
        buyer.opens("GET", "/maps/stream/1", paid=0, requests=1)
        buyer.opens("POST", "/weather/stream/1", data=b"x", paid=0, requests=4)
        buyer.opens("POST", "/maps/stream/2", data=b"x", paid=0, requests=4)
        assert shop.paid == 2


def test_a_path_that_wants_none_of_the_tokens_gives_its_own_answer_and_is_left_alone(session: Routeweiler, lnd: FakeLnd) -> None:
    """If failing: each visit to a login page costs five requests, and hands out tokens."""
    service = lambda asked: asked.path.split("/")[1]  # noqa: E731
    with seller(
        lnd,
        accepts=lambda asked, grant: service(asked) == service(grant.asked),
        scope=service,
        unasked=_streams,
        refuses=(403, None),
    ) as (shop, url):
        buyer = Buyer(session, shop, url)
        for number in range(6):
            buyer.opens("GET", f"/{number}/x", paid=1)
        seen = len(shop.seen)
        response = buyer.call("GET", "/other/stream")
        assert response.status_code == 401
        assert (response.payment, response.history) == (None, [])
        assert sum(asked.token is not None for asked in shop.seen[seen:]) == negotiation.MAX_TRIALS
        for _ in range(4):
            buyer.call("GET", "/other/stream")
        buyer.meets("GET", "/other/stream", 401, requests=1)
        buyer.opens("GET", "/other/x", paid=1)
        buyer.opens("GET", "/other/stream", paid=0, requests=4)


@pytest.mark.parametrize("words", ['Basic realm="x"', "Bearer", 'Digest realm="x", nonce="y"', 'L402 realm="x", Basic realm="y"'])
def test_a_login_gets_no_token(session: Routeweiler, lnd: FakeLnd, words: str) -> None:
    """If failing: tokens are handed to pages that want a password."""
    with seller(lnd, unasked=lambda asked: (401, words) if asked.path == "/login" else (402, FRESH)) as (shop, url):
        buyer = Buyer(session, shop, url)
        buyer.opens("GET", "/a", paid=1)
        buyer.opens("GET", "/b", paid=0)
        buyer.meets("POST", "/login", 401, requests=1)
        assert shop.seen[-1].token is None


def test_a_callers_own_authorization_is_left_alone_by_a_401(session: Routeweiler, lnd: FakeLnd) -> None:
    """If failing: a wrong password is answered with a token in its place."""
    with seller(lnd, unasked=_streams) as (shop, url):
        buyer = Buyer(session, shop, url)
        buyer.opens("GET", "/a", paid=1)
        seen = len(shop.seen)
        assert session.post(f"{url}/stream", auth=("user", "wrong")).status_code == 401
        assert len(shop.seen) == seen + 1


def test_a_token_that_another_session_bought_opens_a_path_that_sells_nothing(
    make_session: Callable[..., Routeweiler], lnd: FakeLnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If failing: a session that met the server before keeps getting 401s."""
    monkeypatch.setattr(token_cache, "REFRESHED_APART_S", 0.0)
    with seller(lnd, unasked=_streams) as (shop, url):
        early = Buyer(make_session(), shop, url)
        early.meets("GET", "/stream", 401, requests=1)
        Buyer(make_session(), shop, url).opens("GET", "/a", paid=1)
        early.opens("GET", "/stream", paid=0, requests=2)


def test_a_body_that_cant_be_sent_twice_gets_its_401(session: Routeweiler, lnd: FakeLnd) -> None:
    """If failing: an error about the body in place of the server's answer."""
    with seller(lnd, unasked=_streams) as (shop, url):
        buyer = Buyer(session, shop, url)
        buyer.opens("GET", "/a", paid=1)

        def read() -> Any:
            yield b"x"

        body = read()
        body_with_length = type("Body", (), {"__iter__": lambda self: body, "__len__": lambda self: 1})()
        response = session.post(f"{url}/stream", data=body_with_length)
        assert response.status_code == 401


# -- an origin that never takes what it sells ----------------------------------------------------------------------------------


@pytest.mark.parametrize("refusal", ["402 anew", "401", "401 L402", "402 LSAT"])
def test_a_server_that_never_accepts_a_token_is_paid_once(
    make_session: Callable[..., Routeweiler], lnd: FakeLnd, books: Books, refusal: str
) -> None:
    """If failing: each of its paths costs a payment."""
    with seller(lnd, accepts=nothing, refuses=REFUSALS[refusal]) as (shop, url):
        buyer = Buyer(make_session(), shop, url)
        with pytest.raises(TokenRefusedError) as caught:
            buyer.call("GET", "/a", waits=True)
        assert caught.value.spent is True
        for session in (buyer.session, make_session()):
            for method, path in (("GET", "/b"), ("POST", "/c")):
                with pytest.raises(RouteweilerError) as again:
                    Buyer(session, shop, url).call(method, path, waits=True)
                assert again.value.spent is True
        assert shop.paid == 1
        books.check()
        shop.accepts = everything
        buyer.opens("GET", "/a", paid=0)
        shop.accepts = one_path
        buyer.opens("GET", "/b", paid=1)


@pytest.mark.parametrize("status", [400, 403, 404, 500])
def test_a_server_that_answers_paid_tokens_with_errors_is_paid_twice(session: Routeweiler, lnd: FakeLnd, status: int) -> None:
    """If failing: each of its paths costs a payment. (One such answer may be about the page.)"""
    with seller(lnd, accepts=nothing, refuses=(status, None)) as (shop, url):
        for path in ("/a", "/b", "/c", "/d"):
            buyer = Buyer(session, shop, url)
            if path in ("/a", "/b"):
                buyer.meets("GET", path, status, paid=1)
                continue
            with pytest.raises(TokenRefusedError) as caught:
                buyer.call("GET", path)
            assert caught.value.spent is True
        assert shop.paid == 2


def test_a_server_that_never_accepted_a_token_is_paid_again_once_the_user_forgets_it(
    make_session: Callable[..., Routeweiler], lnd: FakeLnd, books: Books
) -> None:
    """If failing: the user has no way out."""
    with seller(lnd, accepts=nothing) as (shop, url):
        with pytest.raises(TokenRefusedError) as caught:
            make_session().get(f"{url}/a")
        with pytest.raises(TokenRefusedError) as blocked:
            make_session().get(f"{url}/b")
        assert blocked.value.payment_hash == caught.value.payment_hash
        Ledger.open(books.ledger_path).forget(caught.value.payment_hash or "")
        shop.accepts = everything
        Buyer(make_session(), shop, url).opens("GET", "/b", paid=1)


def test_another_server_is_bought_from_all_the_same(session: Routeweiler, lnd: FakeLnd) -> None:
    """If failing: one bad server closes the others."""
    with seller(lnd, accepts=nothing) as (_, url), seller(lnd) as (good, good_url):
        with pytest.raises(TokenRefusedError):
            session.get(f"{url}/a")
        Buyer(session, good, good_url).opens("GET", "/a", paid=1)


# -- refusals after a trial ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unpayable", ["raise", "return"])
def test_a_402_that_isnt_paid_is_the_answer_whatever_a_trial_met(
    make_session: Callable[..., Routeweiler], lnd: FakeLnd, unpayable: str
) -> None:
    """If failing: a program that handles 402s gets the 403 of a token that it has never sent."""
    with seller(lnd, accepts=one_path, refuses=(403, None)) as (shop, url):
        session = make_session(budget_envelope=BudgetEnvelope(id="b", cap_minor_units=15, cap_currency="sat"), unpayable=unpayable)
        buyer = Buyer(session, shop, url)
        buyer.opens("GET", "/a", paid=1)
        if unpayable == "return":
            response = buyer.call("POST", "/b")
        else:
            with pytest.raises(BudgetExceededError) as caught:
                buyer.call("POST", "/b")
            assert caught.value.response is not None
            response = caught.value.response
        assert shop.wire[-2:] == ["POST /b bare:402", "POST /b token:403"]
        assert (response.status_code, response.text, response.history) == (402, "POST /b", [])
        assert shop.paid == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_body_that_cant_be_sent_twice_gets_the_answer_to_its_token(session: Routeweiler, lnd: FakeLnd, status: int) -> None:
    """If failing: an error about the body in place of the application's answer."""
    answers = [200]
    with seller(lnd, app=lambda asked: answers[0]) as (shop, url):
        Buyer(session, shop, url).opens("POST", "/a", data=b"x", paid=1)
        answers[0] = status

        class Body:
            def __iter__(self) -> Iterator[bytes]:
                return iter([b"x"])

            def __len__(self) -> int:
                return 1

        body = (piece for piece in [b"x"])
        body_of = type("Once", (Body,), {"__iter__": lambda self: body})
        response = session.post(f"{url}/a", data=body_of())
        assert (response.status_code, shop.wire[-1]) == (status, f"POST /a token:{status}")
        assert response.payment is not None


# -- what went along is told ---------------------------------------------------------------------------------------------------


def test_a_token_that_went_along_unasked_is_told(either_session: Routeweiler, lnd: FakeLnd, books: Books) -> None:
    """If failing: a page was opened by a payment, and neither the response nor the trace says by which."""
    with seller(lnd) as (_, url):
        first = either_session.get(f"{url}/a")
        for path in ("/b", "/c"):
            response = either_session.get(url + path)
            assert response.payment is not None
            assert response.payment.reused is True
            assert response.payment.payment_hash == first.payment.payment_hash  # type: ignore[attr-defined]
            told = json.loads(books.trace_path.read_text().splitlines()[-1])["payment"]
            assert (told["reused"], told["paymentHash"]) == (True, response.payment.payment_hash)
        books.check()


def test_a_guess_that_was_withdrawn_isnt_told(session: Routeweiler, lnd: FakeLnd, books: Books) -> None:
    """If failing: a free page is booked to a token that didn't open it."""
    with seller(
        lnd, unasked=lambda asked: (402, FRESH) if asked.path == "/a" else (200, None), refuses=(403, None), accepts=one_path
    ) as (_, url):
        session.get(f"{url}/a")
        response = session.get(f"{url}/free")
        assert (response.status_code, response.payment) == (200, None)
        assert books.lines[-1]["payment"] is None


# -- cost ----------------------------------------------------------------------------------------------------------------------


def test_what_an_origin_has_sold_doesnt_make_it_slower(session: Routeweiler, lnd: FakeLnd, books: Books) -> None:
    """If failing: each purchase at a server that sells by path reads all tokens that were ever bought there."""
    with seller(lnd, accepts=one_path) as (shop, url):
        Buyer(session, shop, url).opens("GET", "/a", paid=1)
    for wanted, sql in (
        ("payments_serving_by_age", "SELECT * FROM payments WHERE origin = ? AND state = 'settled' AND preimage IS NOT NULL "
         "AND taken >= 1 ORDER BY created_at_ms DESC, payment_hash DESC LIMIT 1"),
        ("payments_accepted", "SELECT 1 AS one FROM payments WHERE origin = ? AND taken >= 1 LIMIT 1"),
        ("payments_undelivered", undelivered_of("x")[0]),
    ):  # fmt: skip
        with books.ledger._store.read() as tx:
            plan = " ".join(str(dict(row)) for row in tx.execute(f"EXPLAIN QUERY PLAN {sql}", ("x",) * sql.count("?")))
        assert wanted in plan, plan
        assert "TEMP B-TREE" not in plan, plan
    assert MAX_UNDELIVERED == 2


# -- errors of the application, between its pages --------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 403, 404, 409, 410, 500])
@pytest.mark.parametrize("anew", [False, True], ids=["one session", "a session a call"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_error_that_comes_now_and_then_is_paid_for_once(
    make_session: Callable[..., Routeweiler], lnd: FakeLnd, books: Books, status: int, anew: bool, method: str
) -> None:
    """If failing: a search that finds something only now and then is paid for at each miss."""
    now = [200]
    with seller(lnd, accepts=one_path, app=lambda asked: now[0]) as (shop, url):
        buyer = Buyer(make_session(), shop, url)
        buyer.opens(method, "/search?q=0", paid=1)
        for number in range(8):
            buyer = Buyer(make_session(), shop, url) if anew else buyer
            now[0] = status if number % 2 == 0 else 200
            assert buyer.call(method, f"/search?q={number}").status_code == now[0]
        assert shop.paid <= 2, shop.wire
        books.check()


@pytest.mark.parametrize("status", [403, 404, 410, 429, 500])
@pytest.mark.parametrize("anew", [False, True], ids=["one session", "a session a link"])
def test_broken_links_are_paid_for_once(
    make_session: Callable[..., Routeweiler], lnd: FakeLnd, books: Books, status: int, anew: bool
) -> None:
    """If failing: with a token for the whole server at hand, a crawler pays for each page that isn't there."""
    with seller(lnd, app=lambda asked: status if "broken" in asked.path else 200) as (shop, url):
        buyer = Buyer(make_session(), shop, url)
        for number in range(6):
            buyer = Buyer(make_session(), shop, url) if anew else buyer
            buyer.opens("GET", f"/{number}", requests=4)
            assert buyer.call("GET", f"/broken/{number}").status_code == status
        assert shop.paid <= 2, shop.wire
        books.check()


def test_a_refusal_that_the_application_answers_with_as_well_is_known_again(session: Routeweiler, lnd: FakeLnd) -> None:
    """If failing: one forbidden page puts all pages out of reach, where used-up tokens are answered with 403 too."""
    with seller(lnd, accepts=once, refuses=(403, None), app=lambda asked: 403 if asked.path == "/secret" else 200) as (shop, url):
        buyer = Buyer(session, shop, url)
        for _ in range(2):
            buyer.opens("GET", "/a", paid=1)
        assert buyer.call("GET", "/secret").status_code == 403
        for _ in range(3):
            buyer.opens("GET", "/a", paid=1)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
@pytest.mark.parametrize("priced", [True, False], ids=["402", "401"])
def test_an_order_that_may_have_had_its_effect_isnt_sent_with_another_token(
    session: Routeweiler, lnd: FakeLnd, method: str, priced: bool
) -> None:
    """If failing: with a token that opens the whole server, an order whose page then fails is placed twice."""
    unasked = {} if priced else {"unasked": lambda asked: (401, None) if asked.path == "/order" else (402, FRESH)}
    with seller(lnd, app=lambda asked: 500 if asked.path == "/order" else 200, **unasked) as (shop, url):
        buyer = Buyer(session, shop, url)
        for path in ("/a", "/b"):
            buyer.opens("POST", path)
        buyer.meets(method, "/order", 500, requests=2)
        assert [str(asked) for asked in shop.seen if asked.path == "/order" and asked.token] == [f"{method} /order token:500"]


# -- nothing is bought, or no answer comes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("refusal", [*REFUSALS, *ERRORS])
@pytest.mark.parametrize("unpayable", ["return", "raise"])
def test_what_isnt_paid_after_a_trial_is_the_402(
    make_session: Callable[..., Routeweiler], lnd: FakeLnd, refusal: str, unpayable: str
) -> None:
    """If failing: a program gets the server's answer to a token that it never asked to send, in place of the price."""
    with seller(lnd, accepts=one_path, refuses={**REFUSALS, **ERRORS}[refusal]) as (shop, url):
        Buyer(make_session(), shop, url).opens("GET", "/a", paid=1)
        deny = Policy(rules=[PolicyRule(name="no", when=RuleMatch(url_matches="*/b*"), deny=True)])
        poor = make_session(policy=deny, unpayable=unpayable)
        if unpayable == "return":
            answer = poor.post(url + "/b")
        else:
            with pytest.raises(PolicyDeniedError) as caught:
                poor.post(url + "/b")
            assert caught.value.spent is False
            answer = caught.value.response
        assert "token" in shop.wire[-1]
        assert answer.status_code == 402
        assert answer.headers["WWW-Authenticate"].startswith("L402 macaroon=")
        assert shop.paid == 1


def test_a_guess_that_gets_no_answer_isnt_repeated(session: Routeweiler, lnd: FakeLnd) -> None:
    """If failing: a free page that can't stand a token is out of reach for ever."""

    def accepts(asked: Asked, grant: Grant) -> bool:
        if asked.path == "/free":
            raise ConnectionAbortedError
        return True

    with seller(lnd, accepts=accepts, unasked=lambda asked: (200, None) if asked.path == "/free" else (402, FRESH)) as (shop, url):
        buyer = Buyer(session, shop, url)
        buyer.opens("GET", "/a", paid=1)
        with pytest.raises(requests.ConnectionError):
            buyer.call("GET", "/free")
        buyer.opens("GET", "/free", paid=0, requests=1)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_server_that_hangs_up_on_paid_tokens_is_paid_twice_at_most(
    session: Routeweiler, lnd: FakeLnd, books: Books, method: str
) -> None:
    """If failing: a server that takes the money and answers no request after it is paid for each of its pages."""

    def accepts(asked: Asked, grant: Grant) -> bool:
        raise ConnectionAbortedError

    with seller(lnd, accepts=accepts) as (shop, url):
        for number in range(8):
            with pytest.raises((requests.ConnectionError, TokenRefusedError)):
                Buyer(session, shop, url).call(method, f"/{number}")
        assert shop.paid <= 2
        books.check()


# -- pages of one server that are sold in different ways -------------------------------------------------------------------------


@pytest.mark.parametrize("refusal", ["401", "402 anew", "403"])
def test_a_page_whose_tokens_go_on_to_serve_is_paid_once_beside_one_whose_tokens_serve_once(
    make_session: Callable[..., Routeweiler], lnd: FakeLnd, books: Books, refusal: str
) -> None:
    """If failing: because of one page that is sold by the use, a token for another is bought anew for each call."""

    def accepts(asked: Asked, grant: Grant) -> bool:
        return one_path(asked, grant) and (asked.path != "/once" or grant.uses == 0)

    with seller(lnd, accepts=accepts, refuses=REFUSALS[refusal]) as (shop, url):
        for _ in range(5):
            Buyer(make_session(), shop, url).opens("GET", "/once", paid=1)
        buyer = Buyer(make_session(), shop, url)
        buyer.opens("GET", "/many", paid=1, requests=2)
        for number in range(8):
            buyer = Buyer(make_session(), shop, url) if number % 2 else buyer
            buyer.opens("GET", "/many", paid=0, requests=2)
            buyer.opens("GET", "/once", paid=1)
        books.check()


def test_a_serving_token_is_found_among_many_that_never_were(make_session: Callable[..., Routeweiler], lnd: FakeLnd) -> None:
    """If failing: after a row of pages that failed, the token that opens the rest of the server is bought once more."""
    with seller(lnd, app=lambda asked: 404 if "broken" in asked.path else 200) as (shop, url):
        Buyer(make_session(), shop, url).opens("GET", "/a", paid=1)
        for number in range(MAX_PAGE_TOKENS + 2):
            Buyer(make_session(), shop, url).call("POST", f"/broken/{number}")
        assert shop.paid > MAX_PAGE_TOKENS
        Buyer(make_session(), shop, url).opens("POST", "/b", paid=0)
