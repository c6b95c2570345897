"""The preimage of a charge opens its page, once, for whoever sends it first. It is in no text, file or pickle but the ledger."""

from __future__ import annotations

import base64
import copy
import json
import logging
import os
import pickle
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest
import requests

from routeweiler_sync import PaywallAdapter, TokenRefusedError, TraceSink, wrap
from routeweiler_sync.paywall.credentialed import CredentialedRequest
from routeweiler_sync.protocol.schemes import authorization, is_credential
from routeweiler_sync.protocol.token_search import holds_token
from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.accounts import Books
from tests.support.http_server import server

HEADERS = [None, "Payment-Authorization"]


def _secrets(books: Books) -> frozenset[str]:
    """The preimage of each charge, and the credential that it makes."""
    found = set()
    for row in books.rows:
        assert row.preimage is not None
        found |= {row.preimage, authorization(row.scheme, row.token, bytes.fromhex(row.preimage)).split()[1]}
    return frozenset(found)


def _charge_line(lnd: FakeLnd) -> str:
    """A challenge with a new invoice over 10 sat."""
    invoice = lnd.invoice(10_000)
    request = {
        "amount": "10",
        "currency": "sat",
        "methodDetails": {"invoice": invoice.bolt11, "paymentHash": invoice.payment_hash.hex(), "network": "regtest"},
    }
    encoded = base64.urlsafe_b64encode(json.dumps(request).encode()).decode().rstrip("=")
    return f'Payment id="1", realm="r", method="lightning", intent="charge", request="{encoded}"'


def _preimage_in(credential: str) -> str:
    return str(json.loads(base64.urlsafe_b64decode(credential.split()[1] + "=="))["payload"]["preimage"])


def _assert_nowhere(books: Books, things: list[Any]) -> None:
    secrets = _secrets(books)
    assert len(secrets) >= 2
    for thing in things:
        data = thing if isinstance(thing, (str, bytes)) else pickle.dumps(thing)
        assert not holds_token(data, secrets, by_value=True), thing
        for secret in secrets:
            raw = base64.b64encode(bytes.fromhex(secret)).decode() if len(secret) == 64 else secret
            assert raw not in (data if isinstance(data, str) else data.decode("latin-1"))


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("form", ["aperture", "mppx", "pympp"])
def test_a_charge_is_in_no_log_repr_trace_or_pickle(
    make_session, lnd: FakeLnd, books: Books, caplog: pytest.LogCaptureFixture, tmp_path: Path, form: str, header: str | None
) -> None:
    """If failing: a log, a trace or a cache of pickles opens the page that was paid for."""
    caplog.set_level(logging.DEBUG)
    sqlite = tmp_path / "trace.db"
    with Paywall(lnd, scheme="Payment", form=form, header=header) as paywall:
        session, other = make_session(), make_session(trace_sink=TraceSink.sqlite(sqlite))
        response, second = session.get(paywall.url), other.get(paywall.url + "/b")
        assert [each.status_code for each in (response, second)] == [200, 200]
        assert is_credential(response.request.headers[header or "Authorization"])
        paywall.faults.refuse_tokens = True
        with pytest.raises(TokenRefusedError) as caught:
            session.post(paywall.url + "/c", data=b"body")
    other.close()
    texts = [
        caplog.text,
        books.trace_path.read_text(),
        sqlite.read_bytes(),
        repr(books.rows),
        str(books.rows),
        repr(session.__dict__),
        repr(session._payer.__dict__),
        repr(response),
        repr(response.payment),
        repr(response.request),
        repr(response.history),
        f"{caught.value!r} {caught.value} {caught.value.args}",
    ]
    error = caught.value
    pickles = [
        session,
        response,
        response.history,
        response.request,
        second,
        copy.copy(response),
        error,
        error.response,
        error.request,
    ]
    _assert_nowhere(books, [*texts, *pickles, copy.copy(error), response.request.copy()])
    events = [json.loads(line) for line in books.trace_path.read_text().splitlines()]
    paid = [event["payment"] for event in events if event["payment"] is not None]
    assert {each["paymentHash"] for each in paid} <= {row.payment_hash for row in books.rows}
    assert [each["proofValue"] for each in paid] == [None] * len(paid)
    assert paid


def test_the_preimage_of_an_l402_token_stays_in_the_trace(session, paywall: Paywall, books: Books) -> None:
    """If failing: the proof of a payment, which alone opens nothing there, is lost to the accounts."""
    session.get(paywall.url)
    events = [json.loads(line) for line in books.trace_path.read_text().splitlines()]
    assert events[-1]["payment"]["proofValue"] == books.rows[0].preimage


@pytest.mark.parametrize("header", HEADERS)
def test_a_server_that_repeats_the_preimage_doesnt_get_it_into_a_pickle(
    session, lnd: FakeLnd, books: Books, header: str | None
) -> None:
    """Servers write the preimage that they refuse into the body of the refusal; others into headers and cookies."""

    def repeat(handler: Any) -> Any:
        sent = handler.headers[header or "Authorization"]
        line = _charge_line(lnd) + (f', header="{header}"' if header else "")
        if not sent:
            return 402, [("WWW-Authenticate", line)], b""
        said = _preimage_in(sent)
        body = json.dumps({"detail": f"Invalid preimage: sha256({said}) != 00"}).encode()
        return 402, [("WWW-Authenticate", line), ("X-Sent", sent), ("Set-Cookie", f"p={said}"), ("X-Raw", said.upper())], body

    with server(repeat) as url, pytest.raises(TokenRefusedError) as caught:
        session.get(url)
    assert caught.value.response is not None
    things = [caught.value, caught.value.response, caught.value.response.history]
    _assert_nowhere(books, [*things, books.trace_path.read_text(), str(caught.value)])


@pytest.mark.parametrize("status", [400, 403, 500])
def test_an_error_that_repeats_the_preimage_of_an_owed_charge_doesnt_get_it_into_a_pickle(
    session, lnd: FakeLnd, books: Books, status: int
) -> None:
    """The charge isn't used up: whoever reads the pickle could present it first."""
    bodies: list[bytes] = []

    def repeat(handler: Any) -> Any:
        sent = handler.headers["Authorization"]
        if not sent:
            return 402, [("WWW-Authenticate", _charge_line(lnd))], b""
        bodies.append(f"Invalid preimage: {_preimage_in(sent)}".encode())
        return status, [("X-Sent", sent)], bodies[-1]

    with server(repeat) as url:
        response = session.get(url)
    assert (response.status_code, response.content) == (status, bodies[0]), "the caller gets the answer as it is"
    assert [row.owed for row in books.rows] == [True]
    _assert_nowhere(books, [response, copy.copy(response), copy.deepcopy(response)])


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("is_ours", [True, False])
def test_an_error_of_the_network_holds_no_charge(session, lnd: FakeLnd, books: Books, header: str | None, is_ours: bool) -> None:
    """Loggers and reporters of errors write down the request of an error, and the variables of its frames."""
    if not is_ours:
        session.mount("http://", requests.adapters.HTTPAdapter())
    with Paywall(lnd, scheme="Payment", header=header) as paywall:
        paywall.cut_next("after")
        with pytest.raises(requests.RequestException) as caught:
            session.post(paywall.url, data=b"body")
        if caught.value.request is not None:
            assert not {"Authorization", "Payment-Authorization"} & set(caught.value.request.headers)
        _assert_nowhere(books, [caught.value, repr(caught.value)]) if books.rows else None


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("trouble", ["cut", "refused"])
def test_a_traceback_with_its_variables_holds_no_charge(
    either_session, lnd: FakeLnd, books: Books, header: str | None, trouble: str
) -> None:
    """Notebooks, pytest and reporters of errors show the variables of every frame, and urllib3's have the headers."""
    with Paywall(lnd, scheme="Payment", header=header) as paywall:
        if trouble == "refused":
            paywall.faults.refuse_tokens = True
        else:
            paywall.cut_next("after", times=5)
        for _ in range(2):
            with pytest.raises(requests.RequestException) as caught:
                either_session.get(paywall.url)
            shown = "".join(traceback.TracebackException.from_exception(caught.value, capture_locals=True).format())
            if books.rows:
                _assert_nowhere(books, [shown])
    assert len(books.rows) == 1


# -- the header that a challenge may ask for ----------------------------------------------------------------------------------


def test_the_callers_authorization_stays_where_the_charge_has_a_header_of_its_own(session, lnd: FakeLnd) -> None:
    """If failing: a server that wants both an API key and a payment can't be used."""
    with Paywall(lnd, scheme="Payment", header="Payment-Authorization") as paywall:
        response = session.get(paywall.url, headers={"Authorization": "Bearer key"})
        assert response.status_code == 200
        assert {request.headers["Authorization"] for request in paywall.requests} == {"Bearer key"}
        assert is_credential(response.request.headers["Payment-Authorization"])
    again = pickle.loads(pickle.dumps(response.request))
    assert again.headers["Authorization"] == "Bearer key"
    assert "Payment-Authorization" not in again.headers
    assert response.request.copy().headers["Authorization"] == "Bearer key"


@pytest.mark.parametrize("header", ["Payment-Authorization", "payment-authorization", "PAYMENT-AUTHORIZATION"])
def test_a_payment_authorization_of_the_callers_goes_out_as_it_is(session, lnd: FakeLnd, header: str) -> None:
    """If failing: a program that pays some servers by itself can't use the session."""
    with Paywall(lnd, scheme="Payment") as paywall:
        free = session.get(paywall.url_for("/free"), headers={header: "Custom own"})
        assert free.request.headers[header] == "Custom own"
        assert paywall.requests[0].headers["Payment-Authorization"] == "Custom own"
        response = session.get(paywall.url, headers={header: "Custom own"})
        assert response.status_code == 200
        assert [each.headers["Payment-Authorization"] for each in paywall.requests] == ["Custom own"] * 3
        assert is_credential(response.request.headers["Authorization"])


def test_no_token_goes_along_with_a_payment_authorization_of_the_callers(session, paywall: Paywall) -> None:
    """If failing: two credentials go out, and the server takes the wrong one."""
    assert session.get(paywall.url).status_code == 200
    assert session.get(paywall.url, headers={"Payment-Authorization": "Custom own"}).status_code == 200
    assert [(each.authorized, each.status) for each in paywall.requests[2:]] == [(False, 402), (True, 200)]


@pytest.mark.parametrize("header", [None, "Payment-Authorization", "Authorization"])
@pytest.mark.parametrize("kind", ["session", "adapter", "wrap"])
def test_no_credential_follows_a_redirect_to_another_host(
    make_session, lnd: FakeLnd, tmp_path: Path, header: str | None, kind: str
) -> None:
    """`requests` strips Authorization there, and not Payment-Authorization."""
    met: list[dict[str, str]] = []

    def elsewhere(handler: Any) -> Any:
        met.append(dict(handler.headers))
        return 200, [], b"elsewhere"

    session: Any = make_session()
    if kind == "adapter":
        session = requests.Session()
        session.mount("http://", PaywallAdapter(funding=[lnd.funding()], ledger=tmp_path / "other.db"))
    elif kind == "wrap":
        session = wrap(requests.Session(), funding=[lnd.funding()], ledger=tmp_path / "other.db")
    own = {"Payment-Authorization": "Custom own", "Authorization": "Bearer own"} if header is None else {}
    with server(elsewhere) as url, Paywall(lnd, scheme="Payment", header=header if header != "Authorization" else None) as paywall:
        paywall.respond = lambda request: (302, {"Location": url.replace("127.0.0.1", "localhost")}, b"")
        response = session.get(paywall.url, headers=own)
    assert response.content == b"elsewhere"
    assert len(met) == 1
    if own and kind == "adapter":
        assert met[0].get("Authorization") is None  # what requests does with the rest is its own
        return
    assert not {"authorization", "payment-authorization"} & {name.lower() for name in met[0]}


def test_a_host_header_that_an_adapter_sets_takes_the_charge_off(session, lnd: FakeLnd) -> None:
    """If failing: the credential of one server reaches another."""
    request = requests.Request("GET", "http://127.0.0.1:1/").prepare()
    made = CredentialedRequest.made_of(request, "Payment x", "Payment-Authorization")
    made.headers["Host"] = "elsewhere.example"
    assert "Payment-Authorization" not in made.headers


# -- caches -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("vary", [None, "Accept, Payment-Authorization", "Authorization"])
def test_a_charge_is_in_no_file_of_a_cache(
    lnd: FakeLnd, books: Books, tmp_path: Path, header: str | None, vary: str | None
) -> None:
    """A cache leaves Authorization out of its files, and no other header."""
    requests_cache = pytest.importorskip("requests_cache")
    cached = requests_cache.CachedSession(tmp_path / "cache", backend="filesystem", serializer="json")
    with Paywall(lnd, scheme="Payment", header=header) as paywall:
        paywall.respond = lambda request: (200, {"Vary": vary} if vary else {}, b"page")
        session = wrap(cached, funding=[lnd.funding()], ledger=tmp_path / "ledger.db")
        assert [session.get(paywall.url).content for _ in range(2)] == [b"page"] * 2
    files = [each.read_text() for each in (tmp_path / "cache").rglob("*.json")]
    assert any("page" in each or "cGFnZQ" in each for each in files)
    _assert_nowhere(books, files)
    assert len(lnd.payments) == 1


@pytest.mark.parametrize("status", [400, 403, 500])
def test_an_error_that_repeats_the_preimage_is_in_no_file_of_a_cache(
    lnd: FakeLnd, books: Books, tmp_path: Path, status: int
) -> None:
    """The charge is owed: whoever reads the file could present it first."""
    requests_cache = pytest.importorskip("requests_cache")

    def repeat(handler: Any) -> Any:
        sent = handler.headers["Authorization"]
        if not sent:
            return 402, [("WWW-Authenticate", _charge_line(lnd))], b""
        body = f"Sorry: sha256({_preimage_in(sent)}), {_preimage_in(sent).upper()}, {sent}.".encode()
        return status, [], body

    cached = requests_cache.CachedSession(tmp_path / "cache", backend="filesystem", allowable_codes=(200, status))
    with server(repeat) as url:
        session = wrap(cached, funding=[lnd.funding()], ledger=books.ledger_path)
        response = session.get(url)
    assert response.status_code == status
    assert response.content.startswith(b"Sorry: sha256(")
    assert [row.owed for row in books.rows] == [True]
    kept = [each.content for each in cached.cache.responses.values()]
    assert [each[:14] for each in kept] == [b"Sorry: sha256("]
    files = [each.read_bytes() for each in (tmp_path / "cache").rglob("*") if each.is_file()]
    assert files
    _assert_nowhere(books, [*files, *kept, response])


@pytest.mark.parametrize("header", HEADERS)
def test_a_page_that_varies_by_its_credential_is_in_no_file_of_cachecontrol(
    lnd: FakeLnd, books: Books, tmp_path: Path, header: str | None
) -> None:
    """CacheControl writes the headers that a page varies by."""
    cachecontrol = pytest.importorskip("cachecontrol")
    caches = pytest.importorskip("cachecontrol.caches")
    with Paywall(lnd, scheme="Payment", header=header) as paywall:
        varied = {"Cache-Control": "max-age=3600", "Vary": header or "Authorization"}
        paywall.respond = lambda request: (200, varied, b"page")
        paying = wrap(requests.Session(), funding=[lnd.funding()], ledger=tmp_path / "ledger.db")
        session = cachecontrol.CacheControl(paying, cache=caches.FileCache(str(tmp_path / "web")))
        assert session.get(paywall.url).content == b"page"
    _assert_nowhere(books, [each.read_bytes() for each in (tmp_path / "web").rglob("*") if each.is_file()])


# -- the command --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", HEADERS)
def test_the_command_prints_no_charge(lnd: FakeLnd, books: Books, tmp_path: Path, header: str | None) -> None:
    """If failing: a log of a build server opens the page."""
    files = {"ROUTEWEILER_LEDGER": str(books.ledger_path), "ROUTEWEILER_TRACE": str(tmp_path / "t.jsonl")}
    with Paywall(lnd, scheme="Payment", header=header) as paywall:
        command = [sys.executable, "-m", "routeweiler_sync", "get", "--json", "--verbose", paywall.url]
        environ = {**os.environ, **lnd.environ, **files}
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{paywall.url}, with a token" in done.stderr
    _assert_nowhere(books, [done.stdout, done.stderr, (tmp_path / "t.jsonl").read_text()])
