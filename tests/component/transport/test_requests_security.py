"""What `requests` does for a caller's safety holds for paid calls too, and a token is as safe as his own credentials."""

from __future__ import annotations

import io
import ssl
import threading
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
import requests
import urllib3.util.connection
from requests.auth import AuthBase, HTTPDigestAuth

from routeweiler_sync import PaymentState, payment_of
from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.accounts import Books
from tests.support.http_server import server
from tests.support.proxies import Address, HttpProxy, SocksProxy

trustme = pytest.importorskip("trustme")

REQUESTS = tuple(int(part) for part in requests.__version__.split(".")[:2])
OWN = "Bearer of-the-callers-own"
PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NETRC")


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in PROXY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch) -> MutableMapping[Address, Address]:
    """Where connections to a name and port really go. A name that isn't here isn't looked up."""
    table: dict[Address, Address] = {}
    real = urllib3.util.connection.create_connection

    def connect(address: Address, *args: Any, **kwargs: Any) -> Any:
        host = address[0]
        if not host.replace(".", "").isdigit() and ":" not in host:
            assert address in table, f"nobody has said where {address} is"
        return real(table.get(address, address), *args, **kwargs)

    monkeypatch.setattr(urllib3.util.connection, "create_connection", connect)
    return table


class Tls:
    """A certificate authority, and what it signs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = trustme.CA()
        self.ca = str(folder / "ca.pem")
        self.authority.cert_pem.write_to_path(self.ca)

    def context(self, *names: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.authority.issue_cert(*names).configure_cert(context)
        return context

    def client_certificate(self) -> str:
        path = str(self.folder / "client.pem")
        self.authority.issue_cert("buyer@example.org").private_key_and_cert_chain_pem.write_to_path(path)
        return path


@pytest.fixture
def tls(tmp_path: Path) -> Tls:
    return Tls(tmp_path)


def address_of(wall: Paywall) -> Address:
    parts = urlsplit(wall.base_url)
    return parts.hostname or "", parts.port or 0


SHOP_NAMES = ("shop.example", "xn--bcher-kva.example", "other.example", "sub.shop.example", "127.0.0.1")


@pytest.fixture
def secure(lnd: FakeLnd, tls: Tls) -> Iterator[Paywall]:
    with Paywall(lnd, price_msat=10_000, ssl_context=tls.context(*SHOP_NAMES)) as wall:
        yield wall


@pytest.fixture
def other(lnd: FakeLnd) -> Iterator[Paywall]:
    with Paywall(lnd, price_msat=10_000, service="other") as wall:
        yield wall


def own_authorization(wall: Paywall) -> list[str | None]:
    """Of each request, the caller's own Authorization. (The paywall takes L402 credentials out of what it keeps.)"""
    return [request.headers.get("Authorization") for request in wall.requests]


# -- whose Authorization goes where -------------------------------------------------------------------------------------------

TARGETS = {
    "same origin": "http://shop.example/free/x",
    "same origin, spelt otherwise": "HTTP://SHOP.Example:80/free/x",
    "other port": "http://shop.example:8080/free/x",
    "https": "https://shop.example/free/x",
    "https on a port of its own": "https://shop.example:8443/free/x",
    "other host": "http://other.example/free/x",
    "sub-domain": "http://sub.shop.example/free/x",
    "userinfo": "http://user:secret@other.example/free/x",
    "userinfo, same origin": "http://user:secret@shop.example/free/x",
    "userinfo that looks like the host": "http://shop.example@other.example/free/x",
    "backslash": "http://other.example\\@shop.example/free/x",
    "without a scheme": "//other.example/free/x",
    "address": "http://127.0.0.1:PORT/free/x",
}


@pytest.fixture
def shops(hosts: MutableMapping[Address, Address], paywall: Paywall, other: Paywall, secure: Paywall) -> None:
    """http://shop.example is the paywall, everything else in http the other, and https the secure one."""
    hosts["shop.example", 80] = address_of(paywall)
    for address in [("shop.example", 8080), ("other.example", 80), ("sub.shop.example", 80)]:
        hosts[address] = address_of(other)
    for port in (443, 8443):
        hosts["shop.example", port] = address_of(secure)


@pytest.mark.slow
@pytest.mark.parametrize("where", TARGETS)
@pytest.mark.parametrize("own", [None, OWN])
def test_behind_a_redirect_from_a_paid_page_everything_is_as_with_requests(
    either_session,
    paywall: Paywall,
    other: Paywall,
    secure: Paywall,
    shops: None,
    lnd: FakeLnd,
    books: Books,
    tls: Tls,
    own: Any,
    where: str,
) -> None:
    """A shop that redirects to somebody else would give him the token, or the caller's own credentials."""
    target = TARGETS[where].replace("PORT", str(address_of(other)[1]))
    headers = {} if own is None else {"Authorization": own}
    walls = (paywall, other, secure)

    plain = requests.Session()
    plain.verify = either_session.verify = tls.ca
    plainly = plain.get(f"http://shop.example/redirect?to={quote(target)}", headers=headers)
    theirs = [own_authorization(wall) for wall in walls]
    assert sum(map(len, theirs)) == 2
    for wall in walls:
        wall._requests.clear()

    paywall.respond = lambda request: (302, {"Location": target}, b"")
    for is_bought in (True, False):
        response = either_session.get("http://shop.example/paid", headers=headers)
        paid = [402, 302] if is_bought or own else [302]  # a token goes along unasked where there is no own Authorization
        assert [r.status_code for r in response.history] == paid
        assert response.url == plainly.url
        assert [request.status for request in paywall.requests[: len(paid)]] == paid
        # The first went to the shop; the one with the token has no own; then it is as it was.
        assert own_authorization(paywall)[0] == own
        ours = [own_authorization(paywall)[len(paid) :], *map(own_authorization, (other, secure))]
        assert ours == [theirs[0][1:], *theirs[1:]]
        for wall in (other, secure):
            assert not any(request.authorized for request in wall.requests), "a token went to another origin"
        for request in (*other.requests, *secure.requests):
            assert "L402" not in str(request.headers)
            assert books.rows[0].preimage not in str(request.headers)
        for wall in walls:
            wall._requests.clear()
    assert len(lnd.payments) == 1
    books.check()


@pytest.mark.parametrize("own", [None, OWN])
def test_a_token_bought_in_https_never_goes_out_in_clear(
    either_session, paywall: Paywall, secure: Paywall, shops: None, lnd: FakeLnd, tls: Tls, own: str | None
) -> None:
    """Same host, one letter less: everybody on the way could read it."""
    either_session.verify = tls.ca
    secure.respond = lambda request: (302, {"Location": "http://shop.example/free"}, b"")
    headers = {} if own is None else {"Authorization": own}
    for _ in range(2):
        assert either_session.get("https://shop.example/paid", headers=headers).status_code == 200
    assert either_session.get("http://shop.example/paid", headers=headers).status_code == 200
    assert [request.authorized for request in paywall.requests] == [False, False, False, True]
    assert own_authorization(paywall) == [None, None, own, None]
    assert len(lnd.payments) == 2


def test_a_redirect_to_another_paywall_pays_there_and_carries_only_its_own_token(
    either_session, paywall: Paywall, other: Paywall, shops: None, lnd: FakeLnd, books: Books
) -> None:
    """Each shop gets what it sold, and never the other's; on the second time both tokens go along unasked."""
    paywall.respond = lambda request: (307, {"Location": "http://other.example/paid"}, b"")
    for _ in range(2):
        response = either_session.post("http://shop.example/paid", data=b"order")
        assert response.status_code == 200
    for wall in (paywall, other):
        assert [(r.status == 402, r.authorized, r.paid) for r in wall.requests] == [
            (True, False, False),
            (False, True, True),
            (False, True, True),
        ]
    assert len(lnd.payments) == 2
    assert payment_of(response).reused
    books.check()


SPELLINGS = {
    "http://shop.example/paid": True,
    "HTTP://shop.example/paid": True,
    "http://SHOP.EXAMPLE:80/paid": True,
    "http://user@shop.example/paid": True,
    "http://shop.example/paid?page=2": True,
    "http://user:secret@shop.example/paid#fragment": True,
    "http://shop.example:8080/paid": False,
    "https://shop.example/paid": False,
    "http://other.example/paid": False,
    "http://sub.shop.example/paid": False,
    "http://shop.example@other.example/paid": False,
    "http://127.0.0.1:PORT/paid": False,
}


@pytest.mark.parametrize("is_redirected", [False, True])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_an_origin_is_the_same_however_it_is_spelt(
    session,
    paywall: Paywall,
    other: Paywall,
    secure: Paywall,
    shops: None,
    hosts,
    lnd: FakeLnd,
    books: Books,
    tls: Tls,
    spelling: str,
    is_redirected: bool,
) -> None:
    """Taken for another, a page is paid twice; taken for the same, another server gets the token."""
    for address in [("shop.example", 8080), ("other.example", 80), ("sub.shop.example", 80)]:
        hosts[address] = address_of(paywall)  # the very same server: only the name tells them apart
    hosts["shop.example", 443] = address_of(secure)
    session.verify = tls.ca
    assert session.get("http://shop.example/paid").status_code == 200
    before = len(paywall.requests)
    url = spelling.replace("PORT", str(address_of(paywall)[1]))
    # A URL that is redirected to isn't prepared as the caller's is: it goes out as the server has spelt it.
    response = session.get(other.url_for(f"/redirect?to={quote(url)}") if is_redirected else url)
    assert response.status_code == 200
    is_same = SPELLINGS[spelling]
    assert response.payment.reused is is_same
    assert len(lnd.payments) == (1 if is_same else 2)
    if not is_same and not spelling.startswith("https"):
        assert not paywall.requests[before].authorized
    assert is_redirected or "secret" not in books.trace_path.read_text()  # what a query holds is the caller's
    assert {row.origin for row in books.rows} >= {"http://shop.example"}
    books.check()


def test_international_names_are_one_origin_with_their_ascii_form(
    session, paywall: Paywall, hosts, lnd: FakeLnd, books: Books
) -> None:
    """A link with an umlaut, and one that a machine has encoded: taken for two origins, the page is paid for twice."""
    pytest.importorskip("idna")
    hosts["xn--bcher-kva.example", 80] = address_of(paywall)
    assert session.get("http://bücher.example/paid").status_code == 200
    assert session.get("http://xn--bcher-kva.example/paid").payment.reused
    assert session.get("http://BÜCHER.example:80/paid").payment.reused
    assert [row.origin for row in books.rows] == ["http://xn--bcher-kva.example"]
    assert len(lnd.payments) == 1


def test_ipv6_addresses_are_origins(session, paywall: Paywall, hosts, lnd: FakeLnd, books: Books) -> None:
    """Brackets, letters in any case, the default port: taken for two origins, the page is paid for twice."""
    hosts["2001:db8::a", 80] = hosts["2001:db8::a", 8080] = address_of(paywall)
    assert session.get("http://[2001:db8::a]/paid").status_code == 200
    assert session.get("http://[2001:DB8::A]:80/paid").payment.reused
    assert not session.get("http://[2001:db8::a]:8080/paid").payment.reused
    assert {row.origin for row in books.rows} == {"http://[2001:db8::a]", "http://[2001:db8::a]:8080"}
    books.check()


# -- the caller's own Authorization -------------------------------------------------------------------------------------------


class Token(AuthBase):
    """An auth callable. It counts how often it is asked, and what it saw."""

    def __init__(self) -> None:
        self.saw: list[dict[str, str]] = []

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        self.saw.append(dict(request.headers))
        request.headers["Authorization"] = OWN
        return request


WAYS: dict[str, Callable[[Any, Path], dict[str, Any]]] = {
    "header": lambda session, _: {"headers": {"Authorization": OWN}},
    "session's header": lambda session, _: session.headers.update({"Authorization": OWN}) or {},
    "auth=": lambda session, _: {"auth": ("user", "pass")},
    "session.auth": lambda session, _: setattr(session, "auth", ("user", "pass")) or {},
    "callable": lambda session, _: {"auth": Token()},
    "netrc": lambda session, path: path.write_text("machine 127.0.0.1 login user password pass\n") and {},
}


@pytest.mark.parametrize("way", WAYS)
def test_the_callers_own_authorization_goes_out_and_the_trace_says_where_a_token_took_its_place(
    either_session, paywall: Paywall, lnd: FakeLnd, books: Books, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Replaced silently, a login that fails is searched for days; and each call would pay, for no token goes along unasked."""
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    arguments = WAYS[way](either_session, tmp_path / "netrc")
    own = OWN if way in ("header", "session's header", "callable") else "Basic dXNlcjpwYXNz"
    for _ in range(3):
        response = either_session.get(paywall.url, **arguments)
        assert [each.status_code for each in (*response.history, response)] == [402, 200]
        assert response.history[0].request.headers["Authorization"] == own
        assert response.request.headers["Authorization"].startswith("L402 ")
    assert either_session.get(paywall.url_for("/free"), **arguments).status_code == 200
    assert [(r.status, r.authorized) for r in paywall.requests] == [(402, False), (200, True)] * 3 + [(200, False)]
    assert own_authorization(paywall) == [own, None] * 3 + [own]
    assert len(lnd.payments) == 1
    assert [line.get("authorizationReplaced") for line in books.lines] == [True, True, True, None]
    assert [line["payment"] and line["payment"]["reused"] for line in books.lines] == [False, True, True, None]
    assert "dXNlcjpwYXNz" not in books.trace_path.read_text()
    if way == "callable":
        assert len(arguments["auth"].saw) == 4
        assert not any("Authorization" in headers for headers in arguments["auth"].saw)
    books.check()


def test_without_an_own_authorization_the_trace_has_no_such_field(session, paywall: Paywall, books: Books) -> None:
    """The trace would cry wolf on every call."""
    session.get(paywall.url)
    session.get(paywall.url)
    assert ["authorizationReplaced" in line for line in books.lines] == [False, False]


def test_netrc_is_read_for_each_hop_and_not_where_the_environment_isnt_trusted(
    make_session, paywall: Paywall, other: Paywall, shops: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A password of one machine at another; or none at all behind a paid page, where `requests` has one."""
    path = tmp_path / "netrc"
    path.write_text("machine shop.example login shop password a\nmachine other.example login other password b\n")
    monkeypatch.setenv("NETRC", str(path))
    paywall.respond = lambda request: (302, {"Location": "http://other.example/free"}, b"")
    session = make_session()
    session.get("http://shop.example/paid")
    assert own_authorization(paywall) == ["Basic c2hvcDph", None]
    assert own_authorization(other) == ["Basic b3RoZXI6Yg=="]
    session.trust_env = False
    session.get("http://shop.example/paid")
    assert own_authorization(paywall)[2:] == [None]
    assert own_authorization(other)[1:] == [None]


def test_a_server_that_wants_login_and_payment_in_one_header_is_paid_once(session, lnd: FakeLnd, books: Books) -> None:
    """It can't be served, but it mustn't earn with every try either."""

    def both(handler: Any) -> Any:
        given = handler.headers.get("Authorization", "")
        if given.startswith(("L402", "LSAT")) or not given:
            return 401, [("WWW-Authenticate", 'Basic realm="x"')], b"log in"
        return 402, [("WWW-Authenticate", f'L402 token="t", invoice="{lnd.invoice(1_000).bolt11}"')], b""

    with server(both) as url:
        for _ in range(3):
            response = session.get(url + "/page", auth=("user", "pass"))
            assert response.status_code == 401
    assert len(lnd.payments) == 1
    assert [row.state for row in books.rows] == [PaymentState.SETTLED]
    books.check()


@pytest.mark.slow
@pytest.mark.parametrize("body", [None, b"order"])
def test_digest_authentication_works_as_in_requests(either_session, lnd: FakeLnd, books: Books, body: bytes | None) -> None:
    """Its 401 is none of ours, on pages that are free, that want to be paid behind the login, or that want the login behind it."""
    nonce = ("WWW-Authenticate", 'Digest realm="r", nonce="0123", qop="auth", algorithm=MD5')
    seen: list[tuple[str, str, bytes]] = []

    def answer(handler: Any) -> Any:
        given = handler.headers.get("Authorization", "")
        kind = given.partition(" ")[0].replace("LSAT", "L402")
        seen.append((handler.path, kind, b""))
        price = ("WWW-Authenticate", f'L402 token="t{len(seen)}", invoice="{lnd.invoice(1_000).bolt11}"')
        if handler.path == "/free":
            return (200, [], b"ok") if kind == "Digest" else (401, [nonce], b"")
        if handler.path == "/login-first":
            return {"": (401, [nonce], b""), "Digest": (402, [price], b""), "L402": (200, [], b"ok")}[kind]
        return {"": (402, [price], b""), "Digest": (402, [price], b""), "L402": (401, [nonce], b"")}[kind]

    method = "GET" if body is None else "POST"
    with server(answer) as url:
        for _ in range(2):
            response = either_session.request(method, url + "/free", data=body, auth=HTTPDigestAuth("user", "pass"))
            assert (response.status_code, [r.status_code for r in response.history]) == (200, [401])
        assert lnd.payments == []
        auth = HTTPDigestAuth("user", "pass")
        for number in range(3):
            response = either_session.request(method, url + "/login-first", data=body, auth=auth)
            assert response.status_code == 200
            assert response.payment.reused is (number > 0)
            assert sorted(r.status_code for r in response.history) == ([401, 402] if number == 0 else [402])
        assert len(lnd.payments) == 1
        for _ in range(3):
            response = either_session.request(method, url + "/payment-first", data=body, auth=HTTPDigestAuth("user", "pass"))
            assert response.status_code in (401, 402)  # the latter where the login's own request came through another's adapter
        assert len(lnd.payments) == 2
    books.check()


# -- hooks, cookies, and what a Response says ---------------------------------------------------------------------------------


def test_hooks_see_the_paid_page_and_not_the_402(either_session, paywall: Paywall) -> None:
    """A hook that raises for every error would make paying impossible."""
    saw = []
    either_session.hooks["response"] = [lambda r, *args, **kwargs: r.raise_for_status(), lambda r, *args, **kwargs: saw.append(r)]
    response = either_session.get(paywall.url, hooks={"response": lambda r, *args, **kwargs: saw.append(r)})
    assert saw == [response]  # `requests` runs the call's hooks, or else the session's
    assert response.status_code == 200
    assert [r.status_code for r in response.history] == [402]


def test_cookies_of_a_402_stay_with_their_host(session, lnd: FakeLnd, hosts, other: Paywall) -> None:
    """The shop's session cookie at somebody else's is a stolen session."""
    cookies: list[str | None] = []

    def shop(handler: Any) -> Any:
        cookies.append(handler.headers.get("Cookie"))
        if "Authorization" in handler.headers:
            return 302, [("Location", "http://other.example/free"), ("Set-Cookie", "paid=2")], b""
        challenge = f'L402 token="t", invoice="{lnd.invoice(1_000).bolt11}"'
        return 402, [("WWW-Authenticate", challenge), ("Set-Cookie", "cart=1")], b""

    with server(shop) as url:
        hosts["shop.example", 80] = ("127.0.0.1", urlsplit(url).port or 0)
        hosts["other.example", 80] = address_of(other)
        session.cookies.set("a", "1")
        assert session.get("http://shop.example/paid", cookies={"mine": "0"}).status_code == 200
        assert session.get("http://shop.example/paid").status_code == 200
    assert set((cookies[0] or "").split("; ")) == {"a=1", "mine=0"}
    assert set((cookies[1] or "").split("; ")) == {"a=1", "mine=0", "cart=1"}
    assert set((cookies[2] or "").split("; ")) == {"a=1", "cart=1", "paid=2"}
    # `requests` itself sends what the call or the session was given to every host; what the servers set goes to nobody else.
    assert all(set((request.headers.get("Cookie") or "a=1").split("; ")) <= {"a=1", "mine=0"} for request in other.requests)
    assert len(other.requests) == 2
    assert {(c.name, c.domain) for c in session.cookies} == {("a", ""), ("cart", "shop.example"), ("paid", "shop.example")}


def test_a_paid_redirect_that_isnt_followed_tells_what_would_come_next(
    either_session, paywall: Paywall, other: Paywall, shops: None, books: Books
) -> None:
    """``response.next`` is for the caller to send where he likes: it must hold no token."""
    paywall.respond = lambda request: (307, {"Location": "http://other.example/free"}, b"")
    response = either_session.post("http://shop.example/paid", data=b"order", allow_redirects=False)
    assert (response.status_code, response.is_redirect, [r.status_code for r in response.history]) == (307, True, [402])
    assert response.next.url == "http://other.example/free"
    assert (response.next.method, response.next.body) == ("POST", b"order")
    assert "Authorization" not in response.next.headers
    assert other.requests == []
    assert either_session.send(response.next).status_code == 200
    assert len(books.lines) == 2
    books.check()


@pytest.mark.parametrize("max_redirects", [0, 3])
def test_too_many_redirects_between_paid_pages_end_and_are_told(
    session, paywall: Paywall, lnd: FakeLnd, books: Books, max_redirects: int
) -> None:
    """A ring of paid redirects ends where `requests` ends it, costs one token, and the trace tells of it."""
    paywall.respond = lambda request: (302, {"Location": paywall.url_for(f"/page?{len(paywall.requests)}")}, b"")
    session.max_redirects = max_redirects
    with pytest.raises(requests.TooManyRedirects) as caught:
        session.get(paywall.url)
    assert caught.value.response.status_code == 302
    assert [r.status for r in paywall.requests] == [402] + [302] * (max_redirects + 1)
    assert len(lnd.payments) == 1
    (line,) = books.lines
    assert line["outcome"]["error"]["code"] == "TooManyRedirects"
    books.check()


def test_a_paid_response_is_a_response_in_every_other_way(session, paywall: Paywall, lnd: FakeLnd) -> None:
    """Whatever reads a Response reads that of a paid page."""
    paywall.respond = lambda request: (
        200,
        {"Content-Type": "application/json; charset=utf-8", "Link": "</2>; rel=next"},
        b'{"a": 1}',
    )
    response = session.get(paywall.url, params={"q": "ü"}, headers={"X-Own": "1"})
    response.raise_for_status()
    assert response.ok
    assert response.json() == {"a": 1}
    assert response.encoding == "utf-8"
    assert response.links["next"]["url"] == "/2"
    assert response.url == response.request.url == paywall.url + "?q=%C3%BC"
    assert response.request.headers["X-Own"] == "1"
    assert response.elapsed.total_seconds() > 0
    assert not response.is_redirect
    assert response.connection is session.get_adapter(paywall.url)
    (refused,) = response.history
    assert (refused.url, refused.reason, refused.text) == (response.url, "Payment Required", "payment required\n")
    assert "Authorization" not in refused.request.headers
    paywall.answer_next(429)
    with pytest.raises(requests.HTTPError) as caught:
        session.get(paywall.url).raise_for_status()
    assert caught.value.response.status_code == 429
    assert len(lnd.payments) == 1


@pytest.mark.parametrize("is_first", [True, False])
def test_a_paid_stream_is_read_as_it_comes(session, lnd: FakeLnd, is_first: bool) -> None:
    """A paid download of gigabytes, or a stream of events that never ends, must not be read before it is handed over."""
    going = threading.Event()

    def stream(handler: Any) -> Any:
        if "Authorization" not in handler.headers:
            return 402, [("WWW-Authenticate", f'L402 token="t", invoice="{lnd.invoice(1_000).bolt11}"')], b""
        if handler.path == "/stream?nothing":
            return 200, [], b""
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        assert going.wait(30)
        handler.wfile.write(b"6\r\nsecond\r\n0\r\n\r\n")
        handler.close_connection = True
        handler.wfile = io.BytesIO()  # there is no more to be said
        return 200, [], b""

    with server(stream) as url:
        if not is_first:
            session.get(url + "/stream?nothing")
        with session.get(url + "/stream", stream=True) as response:
            chunks = response.iter_content(None)
            assert next(chunks) == b"first"
            going.set()
            assert list(chunks) == [b"second"]
            assert response.payment is not None


def test_a_timeout_holds_for_the_paid_request_too(session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """A server that takes the money and falls silent would hold the caller for ever; and what he bought is his."""
    silent, gone = [True], threading.Event()

    def respond(request: Any) -> Any:
        if silent:
            silent.clear()
            assert gone.wait(30)
        return 200, {}, b"ok"

    paywall.respond = respond
    with pytest.raises(requests.ReadTimeout) as caught:
        session.get(paywall.url, timeout=(5, 0.5))
    gone.set()
    assert not hasattr(caught.value, "spent")
    assert session.get(paywall.url, timeout=(5, None)).payment.reused
    assert len(lnd.payments) == 1
    books.check()


# -- TLS ----------------------------------------------------------------------------------------------------------------------


def test_a_certificate_that_isnt_trusted_gets_neither_a_request_nor_money(
    make_session, secure: Paywall, lnd: FakeLnd, books: Books, tls: Tls, tmp_path: Path
) -> None:
    """Whoever sits in between would be paid in the shop's place."""
    stranger = str(tmp_path / "stranger.pem")
    trustme.CA().cert_pem.write_to_path(stranger)
    session = make_session()
    for verify in (True, stranger):
        with pytest.raises(requests.exceptions.SSLError):
            session.get(secure.url, verify=verify)
    assert (secure.requests, lnd.orders, books.rows) == ([], [], [])
    assert session.get(secure.url, verify=tls.ca).status_code == 200
    with pytest.raises(requests.exceptions.SSLError):  # nor does a token go there
        make_session().get(secure.url, verify=stranger)
    assert [r.status for r in secure.requests] == [402, 200]
    books.check()


def test_a_certificate_of_another_host_gets_neither(session, secure: Paywall, hosts, lnd: FakeLnd, books: Books, tls: Tls) -> None:
    """Whoever has a good certificate for his own name would be paid in the shop's place."""
    hosts["bank.example", 443] = address_of(secure)
    with pytest.raises(requests.exceptions.SSLError):
        session.get("https://bank.example/paid", verify=tls.ca)
    assert (secure.requests, books.rows) == ([], [])


@pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")
@pytest.mark.parametrize("how", ["argument", "session", "False", "session False", "environment"])
def test_verify_holds_for_the_paid_request(
    session, secure: Paywall, tls: Tls, books: Books, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """The first request goes through, the money is paid, and the second fails on the certificate."""
    arguments: dict[str, Any] = {}
    if how == "environment":
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", tls.ca)
    elif how.startswith("session"):
        session.verify = tls.ca if how == "session" else False
    else:
        arguments["verify"] = tls.ca if how == "argument" else False
    for _ in range(2):
        assert session.get(secure.url, **arguments).status_code == 200
    assert [r.status for r in secure.requests] == [402, 200, 200]
    books.check()


def test_an_environment_that_isnt_trusted_names_no_authority(session, secure: Paywall, tls: Tls, monkeypatch) -> None:
    """As with `requests`."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", tls.ca)
    session.trust_env = False
    with pytest.raises(requests.exceptions.SSLError):
        session.get(secure.url)
    assert secure.requests == []


@pytest.mark.parametrize("on_session", [True, False])
def test_a_client_certificate_is_shown_both_times(make_session, lnd: FakeLnd, books: Books, tls: Tls, on_session: bool) -> None:
    """Paid, and then turned away at the door; or the buyer's certificate isn't asked for at all."""
    context = tls.context("127.0.0.1")
    context.verify_mode = ssl.CERT_REQUIRED
    tls.authority.configure_trust(context)
    session = make_session()
    session.verify = tls.ca
    with Paywall(lnd, price_msat=10_000, ssl_context=context) as wall:
        with pytest.raises(requests.ConnectionError):
            session.get(wall.url)
        assert (wall.requests, lnd.orders) == ([], [])
        arguments: dict[str, Any] = {"cert": tls.client_certificate()}
        if on_session:
            session.cert = arguments.pop("cert")
        wall.cut_next()  # the paid request makes a connection of its own, and shows the certificate anew
        with pytest.raises(requests.ConnectionError):
            session.get(wall.url, **arguments)
        assert session.get(wall.url, **arguments).payment.reused
    assert len(lnd.payments) == 1
    books.check()


# -- proxies ------------------------------------------------------------------------------------------------------------------


def test_a_page_behind_an_http_proxy_is_paid_through_it(session, paywall: Paywall, hosts, lnd: FakeLnd, books: Books) -> None:
    """Where the network has a proxy, a second request past it would fail after the payment."""
    with HttpProxy({("shop.example", 80): address_of(paywall)}, login="user:pass") as proxy:
        for _ in range(2):
            response = session.post("http://shop.example/paid?q=1", data=b"order", proxies={"http": proxy.url})
            assert response.status_code == 200
        assert [(s.method, s.target) for s in proxy.seen] == [("POST", "http://shop.example/paid?q=1")] * 3
        assert {s.headers.get("Proxy-Authorization") for s in proxy.seen} == {"Basic dXNlcjpwYXNz"}
    assert [(r.status, r.body) for r in paywall.requests] == [(402, b"order"), (200, b"order"), (200, b"order")]
    assert [row.origin for row in books.rows] == ["http://shop.example"]
    assert len(lnd.payments) == 1
    books.check()


@pytest.mark.skipif(REQUESTS < (2, 31), reason="older ones tell the server (CVE-2023-32681)")
def test_what_a_proxy_is_told_never_reaches_the_server_behind_a_redirect(
    session, paywall: Paywall, secure: Paywall, tls: Tls, books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In plain http the proxy's password is a header of the request: in the tunnel it would be one for the server."""
    where = {("shop.example", 80): address_of(paywall), ("shop.example", 443): address_of(secure)}
    with HttpProxy(where, login="user:pass") as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("https_proxy", proxy.url)
        paywall.respond = lambda request: (307, {"Location": "https://shop.example/paid"}, b"")
        assert session.post("http://shop.example/paid", data=b"order", verify=tls.ca).status_code == 200
        assert [s.method for s in proxy.seen] == ["POST", "POST", "CONNECT"]
        assert all("Proxy-Authorization" in s.headers for s in proxy.seen)
    assert [(r.status, r.body) for r in secure.requests] == [(402, b"order"), (200, b"order")]
    for request in secure.requests:
        assert "Proxy-Authorization" not in request.headers
    books.check()


def test_through_a_tunnel_the_proxy_sees_neither_token_nor_authorization(
    either_session, secure: Paywall, tls: Tls, lnd: FakeLnd, books: Books
) -> None:
    """A proxy of https passes bytes that it can't read. What is in a CONNECT it can."""
    with HttpProxy({("shop.example", 443): address_of(secure)}, login="user:pass") as proxy:
        either_session.verify, either_session.proxies = tls.ca, {"https": proxy.url}
        for own in ({}, {"Authorization": OWN}):
            assert either_session.get("https://shop.example/paid", headers=own).status_code == 200
        assert {(s.method, s.target) for s in proxy.seen} == {("CONNECT", "shop.example:443")}
        for seen in proxy.seen:
            assert "Authorization" not in seen.headers
            assert seen.headers["Proxy-Authorization"] == "Basic dXNlcjpwYXNz"
        (row,) = books.rows
        assert len(proxy.tunnelled) > 1000
        for secret in (row.token, row.preimage, "L402", "LSAT", OWN):
            assert secret.encode() not in proxy.tunnelled
    assert [r.status for r in secure.requests] == [402, 200, 402, 200]
    for request in secure.requests:
        assert "Proxy-Authorization" not in request.headers
    books.check()


@pytest.mark.parametrize("status", [402, 407, 403])
def test_a_proxy_that_wants_to_be_paid_for_a_tunnel_is_a_proxy_error(
    session, secure: Paywall, tls: Tls, lnd: FakeLnd, books: Books, status: int
) -> None:
    """Its 402 comes before any certificate was seen: whoever sits in the network could ask for money in the shop's name."""
    challenge = f'L402 token="t", invoice="{lnd.invoice(1_000).bolt11}"'
    with HttpProxy({}) as proxy:
        proxy.connect_says = status, [("WWW-Authenticate", challenge)]
        with pytest.raises(requests.exceptions.ProxyError):
            session.get("https://shop.example/paid", verify=tls.ca, proxies={"https": proxy.url})
    assert (lnd.orders, books.rows) == ([], [])
    (line,) = books.lines
    assert (line["payment"], line["outcome"]["error"]["code"]) == (None, "ProxyError")


def test_a_402_that_an_http_proxy_makes_itself_is_handled_as_the_servers(session, lnd: FakeLnd, books: Books) -> None:
    """In plain http nobody can tell them apart, which the docs say: policy, budget and confirm see the URL that was asked for."""
    challenge = f'L402 token="t", invoice="{lnd.invoice(1_000).bolt11}"'
    with HttpProxy({}) as proxy:
        proxy.plain_says = 402, [("WWW-Authenticate", challenge)]
        quote = session.quote("GET", "http://shop.example/paid", proxies={"http": proxy.url})
        assert quote.url == "http://shop.example/paid"
    assert lnd.orders == []


def test_the_environments_proxy_is_used_only_where_it_is_trusted(
    session, paywall: Paywall, hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with `requests`, for both requests of a paid call."""
    hosts["shop.example", 80] = address_of(paywall)
    with HttpProxy({("shop.example", 80): address_of(paywall)}) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        assert session.get("http://shop.example/paid").status_code == 200
        assert len(proxy.seen) == 2
        session.trust_env = False
        assert session.get("http://shop.example/paid").status_code == 200
        assert len(proxy.seen) == 2


@pytest.mark.parametrize("login", [None, "user:pass"])
@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
def test_a_page_behind_a_socks_proxy_is_paid_through_it(
    session, paywall: Paywall, lnd: FakeLnd, books: Books, scheme: str, login: str | None
) -> None:
    """Tor and ssh -D are SOCKS: a paid request that goes past them tells the shop who pays."""
    pytest.importorskip("socks")
    host = "shop.example" if scheme == "socks5h" else "127.0.0.1"
    port = 80 if scheme == "socks5h" else address_of(paywall)[1]
    with SocksProxy({("shop.example", 80): address_of(paywall)}, login=login) as proxy:
        session.proxies = {"http": proxy.url(scheme), "https": proxy.url(scheme)}
        url = f"http://{host}:{port}/paid"
        for _ in range(2):
            assert session.get(url).status_code == 200
        assert set(proxy.asked) == {(host, port)}
        assert len(proxy.asked) >= 1
    assert [r.status for r in paywall.requests] == [402, 200, 200]
    assert len(lnd.payments) == 1
    books.check()
