"""Promises 1, 2 and 5: whatever a server says to a paid request, there was one payment, its token is kept, the next call uses it.

What it means is the server's table's (`tests/unit/paywall/test_server_rules.py`); here real sockets say it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
from urllib3.util import Retry

from routeweiler_sync import ChallengeParseError, PaymentState, PaywallAdapter, Routeweiler, TokenRefusedError
from routeweiler_sync.paywall import negotiation
from routeweiler_sync.testing import FakeLnd, Paywall
from routeweiler_sync.testing._paywall_logic import mint
from tests.support.accounts import Books
from tests.support.faulty_sockets import OutspokenPaywall, Then

#: For servers that fall silent; and for those that don't, on a machine that is busy.
SILENCE_S, PATIENCE_S = 2, 30


def http(status: int, *lines: str, body: bytes = b"", length: int | None = None) -> bytes:
    """An HTTP response of these header lines; ``length`` is what it says of its body, where that isn't the truth."""
    head = [f"HTTP/1.1 {status} Said", *lines]
    if status >= 200 and status not in (204, 304):
        head.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join([*head, "", ""]).encode() + body


def chunked(*chunks: bytes) -> bytes:
    return b"HTTP/1.1 200 Said\r\nTransfer-Encoding: chunked\r\n\r\n" + b"".join(chunks)


#: name: (what the server says, what it does then, whether that says that it took the token)
AS_REQUESTS_HAS_IT: dict[str, tuple[bytes, Then, bool]] = {
    "200": (http(200, body=b"page"), "keep", True),
    "201": (http(201, "Location: /made", body=b"made"), "keep", True),
    "204": (http(204), "keep", True),
    "206": (http(206, "Content-Range: bytes 0-3/9", body=b"part"), "keep", True),
    "200 gzip that isn't": (http(200, "Content-Encoding: gzip", body=b"page"), "keep", True),
    "304": (http(304), "keep", True),  # the request was a 402 without the token
    "400": (http(400, body=b"what?"), "keep", False),
    "401 Basic": (http(401, 'WWW-Authenticate: Basic realm="shop"', body=b"log in"), "keep", False),
    "401 Bearer and Digest": (
        http(401, "WWW-Authenticate: Bearer", 'WWW-Authenticate: Digest realm="r", nonce="n"'),
        "keep",
        False,
    ),
    "403": (http(403, body=b"not you"), "keep", False),
    "403 with an L402 challenge": (http(403, 'WWW-Authenticate: L402 token="t", invoice="i"'), "keep", False),
    "404": (http(404, body=b"where?"), "keep", False),
    "407": (http(407, "Proxy-Authenticate: Basic"), "keep", False),
    "408": (http(408, "Connection: close"), "close", False),
    "409": (http(409), "keep", False),
    "418": (http(418), "keep", False),
    "429": (http(429, "Retry-After: 1", body=b"slow down"), "keep", False),
    "429 Retry-After a date": (http(429, "Retry-After: Fri, 31 Dec 2100 23:59:59 GMT"), "keep", False),
    "500": (http(500, body=b"oops"), "keep", False),
    "502": (http(502, "Connection: close"), "close", False),
    "503": (http(503, "Retry-After: 120"), "keep", False),
    "504": (http(504), "keep", False),
    "599": (http(599), "keep", False),
    "999": (http(999), "keep", False),
    "100, then 200": (http(100) + http(200, body=b"page"), "keep", True),
    "103": (http(103, "Link: </style.css>", "Connection: close"), "close", False),
    "closed before a word": (b"", "close", False),
    "reset before a word": (b"", "reset", False),
    "closed in the status line": (b"HTTP/1.1 20", "close", False),
    "closed in the headers": (b"HTTP/1.1 200 Said\r\nContent-Le", "close", True),
    "closed after the headers": (http(200, length=100), "close", True),
    "closed in the body": (http(200, body=b"half a pa", length=100), "close", True),
    "reset in the body": (http(200, body=b"half a pa", length=100_000), "reset", True),
    "closed in a chunk": (chunked(b"8\r\nhalf"), "close", True),
    "closed before the last chunk": (chunked(b"4\r\npage\r\n"), "close", True),
    "a chunk of no size": (chunked(b"size\r\npage\r\n"), "close", True),
    "silence": (b"", "hang", False),
    "silence in the headers": (b"HTTP/1.1 200 Said\r\nContent-", "hang", False),
    "silence after the headers": (http(200, length=100), "hang", True),
    "silence in the body": (http(200, body=b"half a pa", length=100), "hang", True),
    "another protocol": (b"SSH-2.0-OpenSSH_9.6\r\n", "close", False),
    "bytes": (os.urandom(64).replace(b"\n", b"x") + b"\r\n\r\n", "close", False),
    "an endless header": (b"HTTP/1.1 200 Said\r\nX-Y: " + b"y" * 70_000 + b"\r\n\r\n", "close", False),
    "a thousand headers": (b"HTTP/1.1 200 Said\r\n" + b"X-Y: y\r\n" * 1_000 + b"\r\n", "close", False),
    "a status that is no number": (b"HTTP/1.1 OK 200\r\n\r\n", "close", False),
    "a Location that is no URL": (http(302, "Location: http://[::1"), "keep", True),
    "a Location of another scheme": (http(302, "Location: gopher://there/"), "keep", True),
}


@pytest.fixture
def wall(lnd: FakeLnd) -> Iterator[OutspokenPaywall]:
    with OutspokenPaywall(lnd, price_msat=10_000) as paywall:
        yield paywall


@pytest.fixture(autouse=True)
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(negotiation, "OFFER_AGAIN_S", 0.4)


def outcome(call: Callable[[], requests.Response]) -> tuple[Any, ...]:
    """What a caller has of it: the exception's class, or the response."""
    try:
        response = call()
    except Exception as error:
        return (type(error),)
    return response.status_code, response.content, dict(response.headers), response.reason


def serves_the_next_calls_unpaid(
    wall: OutspokenPaywall,
    lnd: FakeLnd,
    books: Books,
    session: Routeweiler,
    make_session: Callable[..., Routeweiler],
    *,
    taken: bool,
) -> None:
    """One payment; its token is live in the ledger, and goes along with the next call, of this session and of a new one."""
    (row,) = books.rows
    assert (row.state, row.accepted, len(lnd.payments)) == (PaymentState.SETTLED, taken, 1)
    assert row.preimage is not None
    wall.words.clear()
    for each in (session, make_session(funding=[])):
        before = len(wall.requests)
        response = each.get(wall.url, timeout=PATIENCE_S)
        assert (response.status_code, response.content, response.history) == (200, wall.content, [])
        assert (response.payment.payment_hash, response.payment.reused) == (row.payment_hash, True)
        assert [request.paid for request in wall.requests[before:]] == [True]
    assert books.rows[0].accepted
    assert lnd.calls["SendPaymentV2"] == 1
    books.check()


@pytest.mark.slow
@pytest.mark.parametrize("name", AS_REQUESTS_HAS_IT)
def test_the_caller_gets_what_requests_would_give_and_the_token_is_kept(
    session, make_session, wall: OutspokenPaywall, lnd: FakeLnd, books: Books, name: str
) -> None:
    """The money has gone: a token lost here is paid for twice, and an error of another class isn't caught by the program."""
    said, then, taken = AS_REQUESTS_HAS_IT[name]
    timeout = SILENCE_S if then == "hang" else PATIENCE_S
    wall.say(said, then, times=2)
    expected = outcome(lambda: requests.get(wall.url_for("/raw"), timeout=timeout, allow_redirects=False))
    actual = outcome(lambda: session.get(wall.url, timeout=timeout, allow_redirects=False))
    assert actual == expected
    (line,) = books.lines
    assert line["payment"]["reused"] is False
    assert line["outcome"]["httpStatus"] == (expected[0] if len(expected) > 1 else None)
    assert (line["outcome"]["error"] or {}).get("code") == (expected[0].__name__ if len(expected) == 1 else None)
    serves_the_next_calls_unpaid(wall, lnd, books, session, make_session, taken=taken)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, (_, then, _) in AS_REQUESTS_HAS_IT.items() if then != "hang"])
def test_the_same_answers_to_a_token_that_was_accepted_before_cost_nothing(
    session, make_session, wall: OutspokenPaywall, lnd: FakeLnd, books: Books, name: str
) -> None:
    """A day later the token goes along unasked, and the page is out of order: a token given up for that is paid for twice."""
    session.get(wall.url)
    said, then, _ = AS_REQUESTS_HAS_IT[name]
    wall.say(said, then, times=2)
    expected = outcome(lambda: requests.get(wall.url_for("/raw"), timeout=PATIENCE_S, allow_redirects=False))
    actual = outcome(lambda: session.get(wall.url, timeout=PATIENCE_S, allow_redirects=False))
    if len(expected) > 1 and (expected[0] in (400, 403, 404, 409, 410) or 500 <= expected[0] < 600):
        assert actual[:2] == (200, wall.content), "it may have been about the token, which is offered once more after a 402"
    else:
        assert actual == expected
    serves_the_next_calls_unpaid(wall, lnd, books, session, make_session, taken=True)


def test_no_answer_to_a_paid_request_is_logged_with_its_payment(session, wall: OutspokenPaywall, books: Books, caplog) -> None:
    """`requests`' own error knows nothing of the payment."""
    wall.say(b"", "close")
    with pytest.raises(requests.ConnectionError):
        session.get(wall.url)
    (row,) = books.rows
    assert row.payment_hash in caplog.text
    assert "the next call offers it" in caplog.text
    assert row.preimage not in caplog.text
    assert row.token not in caplog.text


def test_a_paid_stream_that_breaks_raises_the_readers_error_and_keeps_the_token(
    session, make_session, wall: OutspokenPaywall, lnd: FakeLnd, books: Books
) -> None:
    """A paid download is read after the call has ended: its break is the reader's error, and the token's none."""
    wall.say(http(200, body=b"half a pa", length=100), "close")
    with session.get(wall.url, stream=True) as response:
        assert response.payment is not None
        with pytest.raises(requests.exceptions.ChunkedEncodingError):
            response.content  # noqa: B018 - reads
    serves_the_next_calls_unpaid(wall, lnd, books, session, make_session, taken=True)


# -- 401 and 402 --------------------------------------------------------------------------------------------------------------


def challenge_of(wall: OutspokenPaywall, service: str, status: int = 402) -> bytes:
    invoice = wall.lnd.invoice(7_000)
    token = mint(os.urandom(32), os.urandom(32), invoice.payment_hash, [f"services={service}:0"])
    return http(status, f'WWW-Authenticate: L402 macaroon="{token}", invoice="{invoice.bolt11}"')


#: name: what the server says to the paid request
REFUSALS: dict[str, Callable[[OutspokenPaywall], bytes]] = {
    "402, another invoice": lambda wall: challenge_of(wall, "paywall"),
    "401, another invoice": lambda wall: challenge_of(wall, "paywall", 401),
    "402 without a challenge": lambda wall: http(402, body=b"pay!"),
    "402 with other schemes": lambda wall: http(402, 'WWW-Authenticate: Payment id="1", method="card"', "WWW-Authenticate: Basic"),
    "401 without a challenge": lambda wall: http(401),
}


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_just_after_paying_may_be_a_settlement_that_lags(
    session, make_session, wall: OutspokenPaywall, lnd: FakeLnd, books: Books, monkeypatch, name: str, times: int
) -> None:
    """Read as "pay again", it is a second payment, for a token that would have been taken a moment later."""
    monkeypatch.setattr(negotiation, "OFFER_AGAIN_S", 30)
    wall.say(lambda: REFUSALS[name](wall), times=times)
    response = session.get(wall.url)
    assert (response.status_code, response.content) == (200, wall.content)
    assert len(response.history) == 1 + times
    assert response.payment.reused is False
    serves_the_next_calls_unpaid(wall, lnd, books, session, make_session, taken=True)


def test_the_same_challenge_just_after_paying_may_be_a_settlement_that_lags(
    session, make_session, wall: OutspokenPaywall, lnd: FakeLnd, books: Books
) -> None:
    """A server, or a cache before it, that repeats the 402 with its invoice: paid already."""
    wall.faults.repeat_invoice = True
    wall.faults.settle_lag = 1
    response = session.get(wall.url)
    assert response.status_code == 200
    assert [each.headers["WWW-Authenticate"] for each in response.history[1:]] == [response.history[0].headers["WWW-Authenticate"]]
    serves_the_next_calls_unpaid(wall, lnd, books, session, make_session, taken=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*REFUSALS, "402, the same challenge"])
def test_a_refusal_that_goes_on_ends_in_an_error_with_the_money_accounted_for(
    session, make_session, wall: OutspokenPaywall, lnd: FakeLnd, books: Books, name: str
) -> None:
    """A server that never delivers gets one payment. Its customer has to hear that it was spent, and with which proof."""
    wall.faults.repeat_invoice = name == "402, the same challenge"
    if wall.faults.repeat_invoice:
        wall.faults.refuse_tokens = True
    else:
        wall.say(lambda: REFUSALS[name](wall), times=1_000)
    for _ in range(3):
        with pytest.raises(TokenRefusedError) as caught:
            session.get(wall.url)
        assert caught.value.spent is True
        assert caught.value.payment_hash == lnd.payments[0].payment_hash
        assert caught.value.response.status_code in (401, 402)
        assert "later calls offer them again" in str(caught.value)
    wall.faults.refuse_tokens = False
    serves_the_next_calls_unpaid(wall, lnd, books, session, make_session, taken=False)


def test_a_challenge_of_another_scope_buys_no_second_token_in_the_call(
    session, make_session, wall: OutspokenPaywall, lnd: FakeLnd, books: Books
) -> None:
    """The server changes its mind about what it sells after it was paid: one payment for the page, which is offered again."""
    wall.say(lambda: challenge_of(wall, "elsewhere"))
    assert session.get(wall.url).status_code == 200
    serves_the_next_calls_unpaid(wall, lnd, books, session, make_session, taken=True)


def test_a_challenge_that_cant_be_read_says_that_the_call_has_paid(
    session, make_session, wall: OutspokenPaywall, lnd: FakeLnd, books: Books
) -> None:
    """It is the server's fault, found after the payment: "nothing was spent" would be a lie."""
    wall.say(http(402, 'WWW-Authenticate: L402 macaroon="AAAA", invoice="lnbcrt1nonsense"'))
    with pytest.raises(ChallengeParseError) as caught:
        session.get(wall.url)
    assert caught.value.spent is True
    assert "this call has paid" in str(caught.value)
    serves_the_next_calls_unpaid(wall, lnd, books, session, make_session, taken=False)


# -- redirects ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_paid_redirect_is_followed_with_the_token_or_without_as_the_origin_is(
    session, make_session, wall: OutspokenPaywall, lnd: FakeLnd, books: Books, status: int
) -> None:
    """Followed to another origin, the token mustn't go along; to the same one, it needn't be bought again."""
    wall.say(http(status, "Location: /elsewhere"))
    response = session.get(wall.url)
    assert (response.status_code, response.url) == (200, wall.url_for("/elsewhere"))
    assert [each.status_code for each in response.history] == [402, status]
    with Paywall(lnd, service="another") as other:
        wall.say(http(status, f"Location: {other.url_for('/free/page')}"))
        assert session.get(wall.url).url == other.url_for("/free/page")
        assert [(request.authorized, "Authorization" in request.headers) for request in other.requests] == [(False, False)]
    serves_the_next_calls_unpaid(wall, lnd, books, session, make_session, taken=True)


# -- the user's own retries ---------------------------------------------------------------------------------------------------


def test_retries_of_urllib3_offer_the_same_token(session, make_session, wall: OutspokenPaywall, lnd: FakeLnd, books: Books) -> None:
    """`Retry` sends the paid request again by itself: with its token, and without paying for it anew."""
    session.mount("http://", PaywallAdapter(max_retries=Retry(3, status_forcelist=[503], allowed_methods=None)))
    wall.say(b"", "close")
    wall.say(http(503))
    assert session.get(wall.url).status_code == 200
    wall.say(http(503), times=4)
    with pytest.raises(requests.exceptions.RetryError):
        session.get(wall.url)
    serves_the_next_calls_unpaid(wall, lnd, books, session, make_session, taken=True)
