"""Calls that fail before a request goes out: each leaves one trace line, like every other call."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
from requests_futures.sessions import FuturesSession

import routeweiler_sync
from routeweiler_sync import Routeweiler, Session, wrap
from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.accounts import Books

URL = "http://127.0.0.1:1/"  # nobody listens there, and nothing gets so far


class OddError(Exception):
    """An error of a program's own."""


def raises(*args: object, **kwargs: object) -> Any:
    raise OddError


class InThreads(FuturesSession, Routeweiler):
    """Sends in threads, and calls `requests.Session.request` there."""


class Base(Routeweiler):
    """Has methods of its own, as sessions for one API do."""

    def request(self, method: Any, url: Any, *args: Any, **kwargs: Any) -> requests.Response:
        return super().request(method, url, *args, **kwargs)

    def prepare_request(self, request: requests.Request) -> requests.PreparedRequest:
        return super().prepare_request(request)


FAULTS: dict[str, Callable[[Any], Any]] = {
    "no scheme": lambda session: session.get("shop.example/x"),
    "no host": lambda session: session.get("http://"),
    "no URL": lambda session: session.get(None),
    "bytes": lambda session: session.get(b"\xff"),
    "method": lambda session: session.request(5, URL),
    "header": lambda session: session.get(URL, headers={"a": "b\nc"}),
    "header's type": lambda session: session.get(URL, headers={"a": 5}),
    "json": lambda session: session.post(URL, json=object()),
    "not a number": lambda session: session.post(URL, json=float("nan")),
    "params": lambda session: session.get(URL, params=5),
    "files": lambda session: session.post(URL, files=5),
    "cookies": lambda session: session.get(URL, cookies=5),
    "hook's name": lambda session: session.get(URL, hooks={"nonsense": raises}),
    "proxies": lambda session: session.get(URL, proxies=5),
    "auth": lambda session: session.get(URL, auth=raises),
    "auth that exits": lambda session: session.get(URL, auth=lambda request: sys.exit(3)),
    "nobody there": lambda session: session.get(URL),
    "scheme": lambda session: session.get("ftp://x/"),
}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, lnd: FakeLnd, books: Books) -> None:
    for name, value in lnd.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ROUTEWEILER_LEDGER", str(books.ledger_path))
    monkeypatch.setenv("ROUTEWEILER_TRACE", str(books.trace_path))


@pytest.fixture(params=["Routeweiler", "Session", "wrap", "subclass", "verbs", "install"])
def caller(request: pytest.FixtureRequest, environment: None, lnd: FakeLnd, books: Books) -> Iterator[Any]:
    arguments: dict[str, Any] = {"funding": [lnd.funding()], "ledger": books.ledger_path, "trace_sink": books.trace_path}
    if request.param == "install":
        routeweiler_sync.install()
        yield requests
        routeweiler_sync.uninstall()
        return
    yield {
        "Routeweiler": lambda: Routeweiler(**arguments),
        "Session": Session,
        "wrap": lambda: wrap(requests.Session()),
        "subclass": lambda: Base(**arguments),
        "verbs": lambda: routeweiler_sync,
    }[request.param]()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_call_that_fails_while_it_is_prepared_leaves_one_line(caller: Any, books: Books, fault: str) -> None:
    """Who counts calls by the trace would miss those that failed; a line of its own for each of ten layers is no better."""
    with pytest.raises(BaseException) as raised:
        FAULTS[fault](caller)
    (line,) = books.lines
    assert line["outcome"]["error"]["code"] == type(raised.value).__name__
    assert (line["payment"], line["outcome"]["httpStatus"]) == (None, None)


@pytest.mark.parametrize("fault", ["no scheme", "header", "json", "auth", "nobody there"])
def test_a_call_prepared_in_another_thread_leaves_one_line(books: Books, lnd: FakeLnd, fault: str) -> None:
    """requests-futures prepares requests where the caller's own code doesn't run."""
    with InThreads(funding=[lnd.funding()], ledger=books.ledger_path, trace_sink=books.trace_path) as session:
        future = FAULTS[fault](session)
        assert future.exception() is not None
        assert len(books.lines) == 1
        with pytest.raises(requests.exceptions.MissingSchema):
            session.quote("GET", "shop.example/x")
    assert len(books.lines) == 1


@pytest.mark.parametrize(
    "location", ["/again", "http://[bad", "mailto:a@b", "http://"], ids=["too many", "malformed", "scheme", "no host"]
)
def test_a_redirect_that_leads_nowhere_leaves_one_line(session: Routeweiler, paywall: Paywall, books: Books, location: str) -> None:
    """The call was sent, and then failed where its next hop was prepared."""
    paywall.respond = lambda request: (302, {"Location": location}, b"")
    with pytest.raises((requests.RequestException, ValueError)) as raised:
        session.get(paywall.url_for("/again"))
    assert books.lines[0]["outcome"]["error"]["code"] == type(raised.value).__name__
    assert len(books.lines) == 1


def test_what_only_prepares_leaves_no_line(session: Routeweiler, books: Books) -> None:
    """A request that the program prepares for itself isn't a call, and a quote that can't be asked for isn't one either."""
    for prepare in (
        lambda: session.prepare_request(requests.Request("GET", "shop.example/x")),
        lambda: session.quote("GET", "shop.example/x"),
        lambda: session.quote("POST", URL, json=object()),
    ):
        with pytest.raises((requests.RequestException, TypeError)):
            prepare()  # type: ignore[no-untyped-call]
    assert not books.trace_path.exists()


def test_a_call_inside_a_failing_preparation_has_a_line_of_its_own(session: Routeweiler, paywall: Paywall, books: Books) -> None:
    """An ``auth`` that fetches its key by the same session is a call; the call that it fails is another."""

    def fetch_then_fail(request: object) -> Any:
        session.get(paywall.url)
        raise OddError

    with pytest.raises(OddError):
        session.get(URL, auth=fetch_then_fail)
    assert [line["url"] for line in books.lines] == [paywall.url, URL]
    assert books.lines[1]["outcome"]["error"]["code"] == "OddError"
    books.check()


def test_one_error_that_is_raised_in_each_call_has_a_line_for_each(session: Routeweiler, books: Books) -> None:
    """A program may keep its error, and raise the same object again."""
    error = OddError()

    def fail(request: object) -> Any:
        raise error

    for _ in range(3):
        with pytest.raises(OddError):
            session.get(URL, auth=fail)
    assert len(books.lines) == 3


def test_an_unprepared_request_that_is_sent_leaves_one_line(session: Routeweiler, books: Books) -> None:
    """`requests` refuses it, and the program sees an error: it was a call."""
    with pytest.raises(ValueError, match="PreparedRequest"):
        session.send(requests.Request("GET", URL))  # type: ignore[arg-type]
    assert len(books.lines) == 1
