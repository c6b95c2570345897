"""Promise 6: a token goes only to the origin that issued it, and is written nowhere but in the ledger."""

from __future__ import annotations

import base64
import copy
import json
import logging
import os
import pickle
import secrets
import stat
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests

from routeweiler_sync import (
    BudgetEnvelope,
    PaymentDeclinedError,
    PaywallAdapter,
    Policy,
    PolicyRule,
    RouteweilerError,
    RuleMatch,
    TokenRefusedError,
    TraceSink,
    wrap,
)
from routeweiler_sync.protocol.token_search import holds_token
from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.accounts import Books
from tests.support.http_server import server


def secrets_of(books: Books, lnd: FakeLnd) -> list[str]:
    """What must not be found anywhere: tokens, and the node's macaroon. (The preimage is the payer's proof, and in the trace.)"""
    macaroon = open(lnd.macaroon_path, "rb").read()  # noqa: SIM115
    return [row.token for row in books.rows] + [macaroon.hex()]


@pytest.mark.parametrize("trouble", ["cut", "refused", "interrupted", "cut after buying"])
def test_a_traceback_with_its_variables_holds_no_token(
    either_session, lnd: FakeLnd, books: Books, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    """Notebooks, pytest and reporters of errors show the variables of every frame, and urllib3's have the headers."""
    with Paywall(lnd) as paywall:
        if trouble != "cut after buying":
            assert either_session.get(paywall.url).status_code == 200
        if trouble == "refused":
            paywall.stop()
            either_session.close()
        elif trouble == "interrupted":

            def interrupt(*_: object) -> None:
                raise KeyboardInterrupt

            monkeypatch.setattr("http.client.HTTPResponse.begin", interrupt)
        else:
            paywall.cut_next(times=5)
        with pytest.raises((requests.ConnectionError, KeyboardInterrupt)) as caught:
            either_session.get(paywall.url)
        monkeypatch.undo()
        shown = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())
        assert "urllib3" in shown
        (row,) = books.rows
        for secret in (row.token, row.preimage):
            assert secret is not None
            assert secret not in shown


@pytest.mark.slow
def test_no_secret_is_in_a_log_a_repr_a_trace_or_a_pickle(
    make_session, paywall: Paywall, lnd: FakeLnd, books: Books, caplog
) -> None:
    """A log that is sent to a vendor, a pickle in a cache, an exception in an issue: each would give the access away."""
    caplog.set_level(logging.DEBUG)
    session = make_session()
    response = session.get(paywall.url)
    again = session.get(paywall.url)
    paywall.faults.refuse_tokens = True
    books.ledger.mark(books.rows[0].payment_hash)
    errors = []
    other = make_session()
    paywall.add_service("/x", name="x", price_msat=1_000)
    with pytest.raises(TokenRefusedError) as caught:
        other.get(paywall.url_for("/x"))
    errors.append(caught.value)
    rows = books.rows
    assert len(rows) == 2
    said = [
        caplog.text,
        books.trace_path.read_text(),
        repr(rows),
        repr(session),
        repr(session.__dict__),
        repr(session._payer.__dict__),
        repr(session._payer.token_cache.token_for_path(rows[0].origin, "/paid")),
        repr(response),
        repr(response.payment),
        repr(again.request),
        repr(list(books.ledger.envelopes())),
        *[f"{error!r} {error} {error.args}" for error in errors],
    ]
    pickles = [pickle.dumps(thing) for thing in (session, response, again, again.request, *errors)]
    pickles += [pickle.dumps(response.history), pickle.dumps(copy.copy(errors[0]))]
    for secret in secrets_of(books, lnd):
        for text in said:
            assert secret not in text
        for data in pickles:
            assert secret.encode() not in data
    preimages = [row.preimage for row in rows]
    for data in pickles:
        assert not any(p.encode() in data for p in preimages)


def test_files_are_the_users_alone(session, paywall: Paywall, books: Books, tmp_path) -> None:
    """A ledger that others can read hands them the tokens."""
    if os.name != "posix":
        pytest.skip("file modes are POSIX")
    session.get(paywall.url)
    sqlite_trace = TraceSink.sqlite(tmp_path / "trace.db")
    session._payer.trace_sink = sqlite_trace
    session.get(paywall.url)
    files = [path for path in tmp_path.iterdir() if path.is_file()]
    assert {path.name for path in files} >= {"ledger.db", "trace.jsonl", "trace.db"}
    for path in files:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_a_token_goes_to_no_other_origin(session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """Another port is another origin; a redirect there mustn't carry the token along."""
    session.get(paywall.url)
    with Paywall(lnd, service="elsewhere") as other:
        target = other.url_for("/free/page")
        assert session.get(target).status_code == 200
        assert session.get(paywall.url_for(f"/redirect?to={target}")).status_code == 200
        paywall.respond = lambda request: (302, {"Location": target}, b"")
        assert session.get(paywall.url).url == target
        assert not any(request.authorized for request in other.requests)
        assert not any("Authorization" in request.headers for request in other.requests)
        same_port_other_name = paywall.url.replace("127.0.0.1", "localhost")
        before = len(paywall.requests)
        session.get(same_port_other_name)
        assert paywall.requests[before].authorized is False


def test_a_request_of_ours_that_is_sent_again_is_like_any_other(session, paywall: Paywall, lnd: FakeLnd) -> None:
    """`session.send(response.request)` is how programs repeat a call."""
    response = session.get(paywall.url)
    assert "Authorization" in response.request.headers
    assert "Authorization" not in response.request.copy().headers
    assert session.send(response.request).status_code == 200
    assert len(lnd.payments) == 1
    unpickled = pickle.loads(pickle.dumps(response))
    assert unpickled.content == paywall.content
    assert "Authorization" not in unpickled.request.headers


@pytest.mark.parametrize("is_ours", [True, False])
def test_an_error_of_the_network_holds_no_token(session, paywall: Paywall, books: Books, is_ours: bool) -> None:
    """Loggers and error reporters write down `error.request`: on the paid request, and on one that a token was sent along with."""
    if not is_ours:
        session.mount("http://", requests.adapters.HTTPAdapter())
    for _ in range(2):
        paywall.cut_next("after")
        with pytest.raises(requests.ConnectionError) as caught:
            session.post(paywall.url, data=b"body")
        assert caught.value.request.body == b"body"
        assert "Authorization" not in caught.value.request.headers
    assert session.post(paywall.url, data=b"body").payment.reused
    assert len(books.lnd.payments) == 1
    books.check()


class _Page(requests.Response):
    """A response class of a program's own, as caches and test libraries have."""


class _Final(_Page):
    """One of which no class can be derived, so that its instances can't change their class."""

    def __init_subclass__(cls) -> None:
        raise TypeError


class _PagesAdapter(requests.adapters.HTTPAdapter):
    """Makes responses of the class ``kind``."""

    def __init__(self, kind: type[requests.Response]) -> None:
        super().__init__()
        self.kind = kind

    def build_response(self, req: Any, resp: Any) -> requests.Response:
        made, plain = self.kind(), super().build_response(req, resp)
        made.__dict__.update(plain.__dict__)
        return made


def _named_everywhere(lnd: FakeLnd, tokens: list[str], write: Callable[[str], str]) -> Any:
    """An answer that sells each path with a token of its own, repeats the token wherever it can, and refuses it once."""
    sold: dict[str, str] = {}
    refused: set[str] = set()

    def answer(handler: Any) -> Any:
        carried = (handler.headers["Authorization"] or "").partition(" ")[2].partition(":")[0]
        mine = sold.get(handler.path)
        if mine is not None and carried == mine and mine in refused:
            return 200, [], b"page"
        if carried:
            refused.add(carried)
        token, line = challenge_of(lnd, mine)
        sold[handler.path] = token
        tokens.append(token)
        lines = [("WWW-Authenticate", line), ("X-Copy", token), ("Set-Cookie", f"t={token}; Path=/"), ("Link", f"<{write(token)}>")]
        return 402, lines, write(token).encode("latin-1")

    return answer


def challenge_of(lnd: FakeLnd, token: str | None = None) -> tuple[str, str]:
    invoice = lnd.invoice(10_000)
    token = token or base64.b64encode(secrets.token_bytes(40)).decode()
    return token, f'L402 token="{token}", invoice="{invoice.bolt11}"'


WRITINGS: dict[str, Callable[[str], str]] = {
    "JSON": lambda token: json.dumps({"l402": {"credential": token}}),
    "JSON escapes": lambda token: '{"t": "' + "".join(f"\\u{ord(char):04X}" for char in token) + '"}',
    "XML": lambda token: f"<a><b>{token}</b></a>",
    "query": lambda token: "t=" + quote(token, safe=""),
    "UTF-16": lambda token: token.encode("utf-16-le").decode("latin-1").replace("\0", "&#0;"),
    "url-safe": lambda token: token.replace("+", "-").replace("/", "_"),
}


@pytest.mark.parametrize("kind", [None, requests.Response, _Page, _Final])
@pytest.mark.parametrize("writing", WRITINGS)
def test_a_token_that_a_402_repeats_is_in_no_pickle(make_session, lnd: FakeLnd, kind: type | None, writing: str) -> None:
    """In its body, a header, a cookie, of any class of response: a cache of pickles would hand the page out."""
    tokens: list[str] = []
    with server(_named_everywhere(lnd, tokens, WRITINGS[writing])) as url:
        session = make_session()
        if kind is not None:
            session.mount("http://", _PagesAdapter(kind))
        response = session.get(url)
        assert (response.content, len(lnd.payments)) == (b"page", 1)
        superseded = response.history[0]
        assert kind is _Final or tokens[0] in superseded.headers["X-Copy"]
        refusing = make_session(confirm=lambda quote: False)
        with pytest.raises(PaymentDeclinedError) as caught:
            refusing.get(url + "/other")
        returning = make_session(confirm=lambda quote: False, unpayable="return")
        returned = returning.get(url + "/third")
        assert returned.status_code == 402
    things = [response, superseded, caught.value, caught.value.response, returned, response.request, response.history]
    data = [pickle.dumps(thing, protocol) for thing in things for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)]
    data += [pickle.dumps(made(superseded).__dict__["headers"]) for made in (copy.copy, copy.deepcopy)]
    data += [copy.copy(superseded).content, copy.deepcopy(superseded).content]
    found = set(tokens)
    assert len(found) == 3
    for each in data:
        assert not any(holds_token(each, frozenset({token}), by_value=True) for token in found)
    again = pickle.loads(data[0])
    assert again.content == b"page"
    assert again.history[0].status_code == 402
    if kind is not None and kind is not requests.Response:
        assert type(again.history[0]) is kind
        assert isinstance(superseded, kind)


def test_a_402_without_a_token_in_its_body_keeps_the_body_in_its_pickle(session, paywall: Paywall) -> None:
    """What the server said about its price would be gone from a queue's error."""
    response = session.get(paywall.url)
    assert pickle.loads(pickle.dumps(response)).history[0].content == b"payment required\n"


@pytest.mark.parametrize("is_ours", [True, False])
@pytest.mark.parametrize("how", ["call", "session", "bytes", "prepared", "redirect"])
def test_a_host_header_of_another_name_gets_no_token_and_pays_nothing(
    make_session, lnd: FakeLnd, books: Books, is_ours: bool, how: str
) -> None:
    """Servers at one address are told apart by it: one would get the other's token. Free pages go on as they are."""
    session = make_session()
    if not is_ours:
        session.mount("http://", requests.adapters.HTTPAdapter())
    seen: list[tuple[str, str | None]] = []

    def answer(handler: Any) -> Any:
        seen.append((handler.headers["Host"], handler.headers["Authorization"]))
        if handler.path == "/go":
            return 302, [("Location", "/x")], b""
        if handler.headers["Authorization"]:
            return 200, [], b"page"
        return (200, [], b"free") if handler.path == "/free" else (402, [("WWW-Authenticate", challenge_of(lnd)[1])], b"pay")

    def get(url: str, host: str) -> requests.Response:
        if how == "session":
            session.headers["Host"] = host
            try:
                return session.get(url)
            finally:
                del session.headers["Host"]
        if how == "prepared":
            prepared = session.prepare_request(requests.Request("GET", url))
            prepared.headers["hOST"] = host
            return session.send(prepared)
        return session.get(url, headers={b"host" if how == "bytes" else "HOST": host.encode() if how == "bytes" else host})

    with server(answer) as url:
        path = "/go" if how == "redirect" else "/x"
        before = get(url + path, "alice.example")
        assert (before.status_code, before.content, before.payment) == (402, b"pay", None)
        assert session.get(url + "/x").content == b"page"
        for host in ("mallory.example", "127.0.0.1"):
            assert get(url + path, host).status_code == 402
        assert get(url + "/free", "mallory.example").content == b"free"
        assert session.quote("GET", url + "/new", headers={"Host": "mallory.example"}) is None
        assert get(url + path, url.partition("://")[2].upper()).content == b"page"
    own = url.partition("://")[2]
    assert all(host.lower() == own for host, token in seen if token)
    assert len(lnd.payments) == 1
    assert [line["outcome"]["error"]["code"] for line in books.lines if line["outcome"]["error"]] == ["challenge_mismatch"] * 4
    books.check()


class _OtherHost(requests.adapters.HTTPAdapter):
    """Puts a Host header of its own onto each request that it sends."""

    host = "mallory.example"

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:  # type: ignore[override]
        request.headers["host"] = self.host
        return super().send(request, **kwargs)


class _OtherHostOfOurs(PaywallAdapter):
    """The same by the method that `requests` has for it, in a class derived of ours."""

    def add_headers(self, request: requests.PreparedRequest, **kwargs: Any) -> None:  # type: ignore[override]
        request.headers["Host"] = "mallory.example"


@pytest.mark.parametrize("kind", ["theirs", "ours"])
def test_a_host_header_that_an_adapter_sets_gets_no_token_and_pays_nothing(make_session, lnd: FakeLnd, kind: str) -> None:
    """An adapter sees the request after the token is on it. The token stays live, and is used without that adapter."""
    session = make_session()
    heard: list[tuple[str, bool]] = []

    def answer(handler: Any) -> Any:
        heard.append((handler.headers["Host"], "Authorization" in handler.headers))
        return (
            (200, [], b"page") if "Authorization" in handler.headers else (402, [("WWW-Authenticate", challenge_of(lnd)[1])], b"")
        )

    with server(answer) as url:
        assert session.get(url + "/x").content == b"page"
        plain = session.adapters["http://"]
        session.mount("http://", _OtherHost() if kind == "theirs" else _OtherHostOfOurs(session._payer))
        assert [session.get(url + path).status_code for path in ("/x", "/y")] == [402, 402]
        session.mount("http://", plain)
        assert session.get(url + "/x").payment.reused
        own = _OtherHost()
        own.host = url.partition("://")[2]
        session.mount("http://", own)
        assert session.get(url + "/x").payment.reused
    assert not any(authorized for host, authorized in heard if host == "mallory.example")
    assert len(lnd.payments) == 1


def test_a_token_in_a_redirect_is_in_no_trace(session, lnd: FakeLnd, books: Books) -> None:
    """The error of the next hop names the URL, and a trace is passed on."""
    tokens: list[str] = []

    def answer(handler: Any) -> Any:
        if handler.headers["Authorization"]:
            return 302, [("Location", f"http://127.0.0.1:9/{tokens[0]}?t={quote(tokens[0], safe='')}")], b""
        token, line = challenge_of(lnd)
        tokens.append(token)
        return 402, [("WWW-Authenticate", line)], b""

    with server(answer) as url, pytest.raises(requests.ConnectionError):
        session.get(url)
    text = books.trace_path.read_text()
    assert "ConnectionError" in text
    assert not holds_token(text, frozenset(tokens), by_value=True)


@pytest.mark.parametrize("where", ["Location", "Set-Cookie", "X-Copy", "reason"])
def test_a_token_that_a_paid_answer_repeats_in_its_head_is_in_no_pickle(session, lnd: FakeLnd, where: str) -> None:
    """A cache of pickles would hand the token out; the page itself stays as it is."""
    tokens: list[str] = []

    def answer(handler: Any) -> Any:
        if handler.path != "/x":
            return 200, [], b"page"
        if not handler.headers["Authorization"]:
            token, line = challenge_of(lnd)
            tokens.append(token)
            return 402, [("WWW-Authenticate", line)], b""
        if where == "reason":
            usual = handler.send_response
            handler.send_response = lambda status, message=None: usual(status, f"Here is {tokens[0]}")
            return 200, [], b"page"
        value = {"Location": f"/?{quote(tokens[0], safe='')}", "Set-Cookie": f"t={tokens[0]}"}.get(where, tokens[0])
        return 302 if where == "Location" else 200, [(where, value)], b"page"

    with server(answer) as url:
        response = session.get(url + "/x", allow_redirects=False)
    assert response.payment is not None
    if where == "Location":
        response._next = None  # the next request is the caller's to send, with the URL that the server named
    data = [pickle.dumps(response, protocol) for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)]
    assert not any(holds_token(each, frozenset(tokens), by_value=True) for each in [*data, pickle.dumps(copy.copy(response))])
    assert pickle.loads(data[0]).content == b"page"


def test_a_token_that_a_page_repeats_in_its_head_is_in_no_cache(lnd: FakeLnd, tmp_path: Path) -> None:
    """Caches are files that others may read, and keep pages for days."""
    requests_cache = pytest.importorskip("requests_cache")
    tokens: list[str] = []

    def answer(handler: Any) -> Any:
        if handler.headers["Authorization"]:
            return 200, [("X-Copy", tokens[0]), ("Set-Cookie", f"t={tokens[0]}")], b"page"
        token, line = challenge_of(lnd)
        tokens.append(token)
        return 402, [("WWW-Authenticate", line)], b""

    cached = requests_cache.CachedSession(tmp_path / "cache", backend="filesystem", serializer="pickle")
    with server(answer) as url:
        session = wrap(cached, funding=[lnd.funding()], ledger=tmp_path / "ledger.db")
        assert [session.get(url).content for _ in range(2)] == [b"page"] * 2
    files = [each.read_bytes() for each in (tmp_path / "cache").rglob("*") if each.is_file()]
    assert any(b"page" in each for each in files)
    assert not any(holds_token(each, frozenset(tokens), by_value=True) for each in files)
    assert len(lnd.payments) == 1


@pytest.mark.parametrize("userinfo", ["bob:S3CRET", "S3CRET", "bob:S3CRET%40x", "bob:S3@CRET", ":S3CRET", "bob:S3CRET:"])
def test_the_password_of_a_url_is_in_no_text(
    make_session, paywall: Paywall, books: Books, lnd: FakeLnd, caplog, userinfo: str
) -> None:
    """Errors, logs and traces are passed on. The server gets the password, as with `requests`."""
    caplog.set_level(logging.INFO, "routeweiler_sync")
    url = paywall.url.replace("http://", f"http://{userinfo}@")
    quotes: list[Any] = []
    said: list[Any] = []
    no = Policy([PolicyRule("no", when=RuleMatch(url_matches="*"), deny=True)])
    refusals: list[dict[str, Any]] = [
        {"confirm": quotes.append},
        {"policy": no},
        {"funding": []},
        {"budget_envelope": BudgetEnvelope("b", per_call_minor_units=1)},
        {"budget_envelope": BudgetEnvelope("c", allowed_origins_glob=["other.example"])},
    ]
    for settings in refusals:
        with pytest.raises(RouteweilerError) as caught:
            make_session(**settings).get(url)
        said += [caught.value, repr(caught.value), caught.value.args, caught.value.what]
        make_session(**settings, unpayable="return").get(url)
    session = make_session()
    quotes.append(session.quote("GET", url))
    response = session.get(url)
    assert response.payment is not None
    assert not response.request.headers["Authorization"].startswith("Basic")
    with pytest.raises(requests.RequestException):
        session.get(url.replace("http://", "nothing://"))
    assert all(quote.url == paywall.url for quote in quotes)
    said += [caplog.text, books.trace_path.read_text(), *quotes, repr(session), list(books.ledger.payments())]
    assert not any("CRET" in str(each) for each in said)
    assert len(quotes) >= 3


@pytest.mark.parametrize("pattern", ["http://bob:S3CRET@shop.example/*", "bob:S3CRET@shop.example", "*://bob:S3CRET@*/*"])
def test_the_password_in_a_pattern_is_in_no_text(pattern: str) -> None:
    """A policy's error is logged where the program starts."""
    for make in (
        lambda: BudgetEnvelope("b", allowed_origins_glob=[pattern]),
        lambda: PolicyRule("r", when=RuleMatch(url_matches=pattern), deny=True),
    ):
        with pytest.raises(ValueError) as caught:
            make()
        assert "S3CRET" not in str(caught.value)
