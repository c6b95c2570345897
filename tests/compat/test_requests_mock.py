"""`requests-mock` takes the place of the session's adapter: what is mocked is paid for by the session's net."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from routeweiler_sync.testing import FakeLnd, Paywall
from routeweiler_sync.testing.paywall import PaywallLogic
from tests.support.compat_walk import walk

from .conftest import Books, Paying, library

requests_mock = library("requests_mock")

URL = "https://api.example"


def put_up(mock: Any, lnd: FakeLnd, url: str = URL) -> PaywallLogic:
    """A paywall behind a `Mocker` or an `Adapter`."""
    paywall = PaywallLogic(lnd)

    def content(request: Any, context: Any) -> bytes:
        parts = urlsplit(request._request.url)
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        body = request.body or b""
        body = body.read() if hasattr(body, "read") else body.encode() if isinstance(body, str) else body
        reply = paywall.answer(request.method, target, request.headers.items(), body)
        context.status_code = reply.status
        for name, value in reply.headers:
            context.headers[name] = f"{context.headers[name]}, {value}" if name in context.headers else value
        return reply.body

    mock.register_uri(requests_mock.ANY, re.compile(re.escape(url)), content=content)
    return paywall


def challenge(lnd: FakeLnd) -> dict[str, str]:
    return {"WWW-Authenticate": f'L402 macaroon="AGIAJEemVQUTEyNCR0exk7ek90Cg==", invoice="{lnd.invoice(10_000).bolt11}"'}


def test_a_mocked_paywall_is_paid_like_a_real_one(session: requests.Session, lnd: FakeLnd, books: Books) -> None:
    """A program's own tests would see 402s where in the world it pays.

    (The mocker puts its adapter in place when the request is on its way: a token goes along once the 402 has come, not before.)
    """
    with requests_mock.Mocker(case_sensitive=True) as mock:
        walk(session, put_up(mock, lnd), books, base_url=URL, asks_first=True)


def test_an_adapter_mounted_by_hand(session: requests.Session, lnd: FakeLnd, books: Books) -> None:
    """`session.mount("https://api…", requests_mock.Adapter())`: a foreign adapter of no sort of ours."""
    adapter = requests_mock.Adapter(case_sensitive=True)
    session.mount(URL, adapter)
    walk(session, put_up(adapter, lnd), books, base_url=URL)
    assert adapter.call_count > 0


def test_a_scheme_of_its_own_isnt_for_sale(session: requests.Session, lnd: FakeLnd, books: Books, paywall: Paywall) -> None:
    """`mock://` is the manual's first example. No origin, so no token could be bound to it: the 402 comes back, unpaid."""
    adapter = requests_mock.Adapter()
    session.mount("mock://", adapter)
    adapter.register_uri("GET", "mock://test.com/free", text="data")
    adapter.register_uri("GET", "mock://test.com/page", status_code=402, headers=challenge(lnd))
    assert session.get("mock://test.com/free").text == "data"
    assert session.get("mock://test.com/page").status_code == 402
    assert lnd.payments == []
    session.get(paywall.url)
    assert [line["outcome"]["httpStatus"] for line in books.lines] == [200, 402, 200]
    books.once()


@requests_mock.Mocker(kw="mock")
def decorated(session: requests.Session, lnd: FakeLnd, mock: Any) -> list[requests.Response]:
    asked, page = {"status_code": 402, "headers": challenge(lnd)}, {"json": {"page": 1}}
    mock.get(URL + "/page", [asked, page, asked, page])
    responses = [session.get(URL + "/page"), session.get(URL + "/page")]
    assert mock.call_count == 4
    return responses


def test_the_decorator_and_a_list_of_answers(session: requests.Session, lnd: FakeLnd, books: Books) -> None:
    """A list is answered one by one: a request too many would be told in the wrong place."""
    session.hooks["response"] = [lambda response, **kwargs: response.raise_for_status()]
    first, second = decorated(session, lnd)
    assert (first.json(), second.json()) == ({"page": 1}, {"page": 1})
    assert [each.status_code for response in (first, second) for each in response.history] == [402, 402]
    assert (first.payment.reused, second.payment.reused) == (False, True)
    books.once()


def test_the_fixture_and_the_history(session: requests.Session, lnd: FakeLnd, books: Books, requests_mock: Any) -> None:
    """`request_history` is what tests assert on: the caller's request as it was, then the paid one, and nothing between."""
    session.hooks["response"] = [lambda response, **kwargs: response.raise_for_status()]
    requests_mock.post(URL + "/page", [{"status_code": 402, "headers": challenge(lnd)}, {"text": "page"}])
    request = session.prepare_request(requests.Request("POST", URL + "/page", json={"a": 1}))
    assert session.send(request).text == "page"
    assert "Authorization" not in request.headers
    met = requests_mock.request_history
    assert [("Authorization" in each.headers, each.json()) for each in met] == [(False, {"a": 1}), (True, {"a": 1})]
    assert requests_mock.last_request.headers["Authorization"].startswith("L402 ")
    books.once()


def test_matchers_tell_the_paid_request_from_the_unpaid(session: requests.Session, lnd: FakeLnd, books: Books) -> None:
    """`request_headers` and `additional_matcher` see the credential: the latest matcher that fits answers."""
    session.hooks["response"] = [lambda response, **kwargs: response.raise_for_status()]
    with requests_mock.Mocker() as mock:
        mock.get(URL + "/page", status_code=402, headers=challenge(lnd))
        mock.get(URL + "/page", text="page", additional_matcher=lambda request: "Authorization" in request.headers)
        assert session.get(URL + "/page").text == "page"
        mock.get(URL + "/page", text="page")
        assert session.get(URL + "/page", params={"q": "1"}).text == "page"
    books.once()


def test_an_exception_in_place_of_an_answer(session: requests.Session, lnd: FakeLnd, books: Books) -> None:
    """`exc=…` on the paid request: the token is kept, and serves the next call."""
    session.hooks["response"] = [lambda response, **kwargs: response.raise_for_status()]
    adapter = requests_mock.Adapter()
    session.mount(URL, adapter)
    asked = {"status_code": 402, "headers": challenge(lnd)}
    adapter.register_uri("GET", URL + "/page", [asked, {"exc": requests.exceptions.ConnectTimeout}, {"text": "page"}])
    with pytest.raises(requests.exceptions.ConnectTimeout):
        session.get(URL + "/page")
    assert session.get(URL + "/page").text == "page"
    assert adapter.call_count == 3
    assert len(lnd.payments) == 1
    books.check()


def test_real_http_is_paid_on_the_wire(session: requests.Session, lnd: FakeLnd, paywall: Paywall, books: Books) -> None:
    """What isn't mocked goes out: with `real_http`, for the whole mocker or for one address, the session's adapters pay."""
    session.hooks["response"] = [lambda response, **kwargs: response.raise_for_status()]
    with requests_mock.Mocker(real_http=True) as mock:
        mock.get(URL + "/mocked", text="mocked")
        assert session.get(URL + "/mocked").payment is None
        bought = session.get(paywall.url)
        assert [each.status_code for each in bought.history] == [402]
    with requests_mock.Mocker() as mock:
        mock.get(paywall.url, real_http=True)
        assert session.get(paywall.url).payment.reused
        with pytest.raises(requests_mock.NoMockAddress):
            session.get(URL + "/elsewhere")
    assert session.get(paywall.url).payment.reused
    assert [each.status for each in paywall.requests] == [402, 200, 200, 200]
    books.once()


def test_a_mocker_of_one_session_passes_the_payment_by(
    session: requests.Session, lnd: FakeLnd, paywall: Paywall, books: Books
) -> None:
    """`Mocker(session=…)` puts its own `send` in place of the session's: what it mocks isn't paid, and what passes through is."""
    session.hooks["response"] = [lambda response, **kwargs: None]
    with requests_mock.Mocker(session=session, real_http=True) as mock:
        mock.get(URL + "/page", status_code=402, headers=challenge(lnd))
        assert session.get(URL + "/page").status_code == 402
        assert lnd.payments == []
        assert session.get(paywall.url).status_code == 200
    assert session.get(paywall.url).payment.reused
    books.once()


def test_nested_mockers(session: requests.Session, lnd: FakeLnd, books: Books) -> None:
    """The inner one lets the outer one answer: two layers, one payment."""
    session.hooks["response"] = [lambda response, **kwargs: response.raise_for_status()]
    with requests_mock.Mocker() as outer, requests_mock.Mocker(real_http=True) as inner:
        paywall = put_up(outer, lnd)
        inner.get("https://other.example/x", text="x")
        assert session.get("https://other.example/x").text == "x"
        assert session.post(URL + "/page", data=b"body").status_code == 200
    assert [(each.status, each.body) for each in paywall.requests] == [(402, b"body"), (200, b"body")]
    books.once()


def test_a_mocker_passes_an_installed_payment_by(
    paying: Paying, lnd: FakeLnd, paywall: Paywall, books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Imported before `install()`, the mocker keeps what `requests.Session.send` was: what it mocks isn't paid, all else is."""
    paying.install(monkeypatch)
    with requests_mock.Mocker(real_http=True) as mock:
        mock.get(URL + "/page", status_code=402, headers=challenge(lnd))
        assert requests.get(URL + "/page", timeout=20).status_code == 402
        assert lnd.payments == []
        assert requests.get(paywall.url_for("/redirect?to=" + paywall.url), timeout=20).content == paywall.content
    response = requests.get(paywall.url, timeout=20)
    assert (response.payment.reused, response.history) == (True, [])
    assert len(books.lines) == 2
    books.once()
