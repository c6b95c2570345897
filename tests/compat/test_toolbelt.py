"""requests-toolbelt: adapters, bodies, sessions, auth, threads, downloads."""

from __future__ import annotations

import io
import itertools
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import trustme

from routeweiler_sync import UnreplayableBodyError
from routeweiler_sync.testing import FakeLnd, Paywall

from .conftest import Books, Paying, library

library("requests_toolbelt")

from requests_toolbelt import MultipartEncoder, MultipartEncoderMonitor, StreamingIterator, sessions, threaded  # noqa: E402
from requests_toolbelt.adapters.fingerprint import FingerprintAdapter  # noqa: E402
from requests_toolbelt.adapters.host_header_ssl import HostHeaderSSLAdapter  # noqa: E402
from requests_toolbelt.adapters.socket_options import SocketOptionsAdapter, TCPKeepAliveAdapter  # noqa: E402
from requests_toolbelt.adapters.source import SourceAddressAdapter  # noqa: E402
from requests_toolbelt.adapters.ssl import SSLAdapter  # noqa: E402
from requests_toolbelt.auth.guess import GuessAuth  # noqa: E402
from requests_toolbelt.auth.handler import AuthHandler  # noqa: E402
from requests_toolbelt.downloadutils import stream, tee  # noqa: E402
from requests_toolbelt.threaded import pool  # noqa: E402


def raises(response: requests.Response, **kwargs: Any) -> None:
    response.raise_for_status()


# Adapters


@pytest.mark.parametrize(
    "adapter",
    [
        lambda: SourceAddressAdapter("127.0.0.1"),
        lambda: SourceAddressAdapter(("127.0.0.1", 0), max_retries=3),
        lambda: SocketOptionsAdapter(socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]),
        lambda: TCPKeepAliveAdapter(idle=120, interval=10),
    ],
    ids=["source", "source and port", "socket options", "keep alive"],
)
def test_an_adapter_of_the_toolbelt(session: requests.Session, paywall: Paywall, books: Books, adapter: Any) -> None:
    """Mounting one would switch paying off without a word."""
    session.mount("http://", adapter())
    session.hooks["response"] = [raises]
    assert session.get(paywall.url).content == paywall.content
    assert session.get(paywall.url).payment.reused
    books.once()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls_paywall(lnd: FakeLnd, authority: trustme.CA) -> Iterator[Paywall]:
    """Its certificate is for a name that leads nowhere."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_OPTIONAL
    authority.configure_trust(context)
    authority.issue_cert("paid.example").configure_cert(context)
    with Paywall(lnd, ssl_context=context, price_msat=10_000) as wall:
        yield wall


@pytest.fixture
def bundle(authority: trustme.CA, tmp_path: Path) -> str:
    path = tmp_path / "authority.pem"
    authority.cert_pem.write_to_path(path)
    return str(path)


def test_the_host_header_adapter(session: requests.Session, tls_paywall: Paywall, bundle: str, books: Books) -> None:
    """The certificate is checked against the Host header. Another name than the URL's is another server: it isn't paid."""
    session.mount("https://", HostHeaderSSLAdapter())
    assert session.get(tls_paywall.url, headers={"Host": "paid.example"}, verify=bundle).status_code == 402
    assert [request.headers["Host"] for request in tls_paywall.requests] == ["paid.example"]
    session.hooks["response"] = [raises]
    with pytest.raises(requests.exceptions.SSLError):
        session.get(tls_paywall.url_for("/other"), headers={"Host": "else.example"}, verify=bundle)
    assert books.rows == []


def test_the_fingerprint_adapter(session: requests.Session, tls_paywall: Paywall, books: Books) -> None:
    """Who pins a certificate pays nobody else: a server with another one gets no token and no money."""
    host, port = tls_paywall.base_url.removeprefix("https://").split(":")
    import hashlib

    der = ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate((host, int(port))))
    session.mount("https://", FingerprintAdapter(hashlib.sha256(der).hexdigest()))
    session.hooks["response"] = [raises]
    assert session.get(tls_paywall.url, verify=False).status_code == 200
    session.mount("https://", FingerprintAdapter("00" * 32))
    before = len(tls_paywall.requests)
    with pytest.raises(requests.exceptions.SSLError):
        session.get(tls_paywall.url, verify=False)
    assert len(tls_paywall.requests) == before
    books.once()


def test_the_ssl_adapter(session: requests.Session, lnd: FakeLnd, authority: trustme.CA, bundle: str, books: Books) -> None:
    """It fixes the version of TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with Paywall(lnd, ssl_context=context) as wall:
        session.mount("https://", SSLAdapter(ssl.PROTOCOL_TLSv1_2))
        session.hooks["response"] = [raises]
        assert session.get(wall.url, verify=bundle).status_code == 200
        assert session.get(wall.url, verify=bundle).payment.reused
    books.once()


def test_the_x509_adapter(session: requests.Session, lnd: FakeLnd, authority: trustme.CA, bundle: str, books: Books) -> None:
    """A client certificate that lies in memory is shown on the paid retry as well: the server takes no request without."""
    pytest.importorskip("OpenSSL", reason="X509Adapter needs pyOpenSSL")
    from requests_toolbelt.adapters.x509 import X509Adapter

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(context)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    mine = authority.issue_cert("me.example")
    with Paywall(lnd, ssl_context=context) as wall:
        adapter = X509Adapter(
            max_retries=3, cert_bytes=mine.cert_chain_pems[0].bytes(), pk_bytes=mine.private_key_pem.bytes(), password=""
        )
        session.mount("https://", adapter)
        session.hooks["response"] = [raises]
        assert session.get(wall.url, verify=bundle).status_code == 200
    books.once()


# Bodies


def encoder() -> MultipartEncoder:
    return MultipartEncoder(fields={"name": "value", "file": ("name.txt", io.BytesIO(b"x" * 100_000), "text/plain")})


def one_shot() -> dict[str, tuple[Any, dict[str, str]]]:
    plain, watched = encoder(), MultipartEncoderMonitor(encoder(), lambda monitor: None)
    return {
        "encoder": (plain, {"Content-Type": plain.content_type}),
        "monitor": (watched, {"Content-Type": watched.content_type}),
        "streaming iterator": (StreamingIterator(6, iter([b"abc", b"def"])), {}),
    }


@pytest.mark.parametrize("name", one_shot())
def test_a_body_that_can_be_sent_once(session: requests.Session, paywall: Paywall, books: Books, name: str) -> None:
    """It is known before the payment: a paid request that goes out with half a body is money for nothing."""
    body, headers = one_shot()[name]
    with pytest.raises(UnreplayableBodyError) as caught:
        session.post(paywall.url, data=body, headers=headers)
    assert caught.value.spent is False
    assert books.lnd.payments == []
    session.get(paywall.url)
    body, headers = one_shot()[name]
    response = session.post(paywall.url, data=body, headers=headers)
    assert (response.status_code, response.payment.reused) == (200, True)
    sent = paywall.requests[-1].body
    assert sent == b"abcdef" or (len(sent) > 100_000 and b"x" * 100_000 in sent)
    books.once()


def test_an_encoder_as_bytes(session: requests.Session, paywall: Paywall, books: Books) -> None:
    """What to pass instead: the same, made into bytes."""
    made = encoder()
    session.mount("http://", requests.adapters.HTTPAdapter())
    session.hooks["response"] = [raises]
    response = session.post(paywall.url, data=made.to_string(), headers={"Content-Type": made.content_type})
    assert response.status_code == 200
    refused, paid = paywall.requests
    assert refused.body == paid.body
    assert refused.headers["Content-Type"] == paid.headers["Content-Type"] == made.content_type
    books.once()


# Sessions


@pytest.mark.parametrize("order", ["before", "behind", "wrapped"])
def test_a_session_with_a_base_url(paying: Paying, paywall: Paywall, books: Books, order: str) -> None:
    """Projects have a client class that is a BaseUrlSession: it is put before ours, behind it, or an object of it is wrapped."""
    if order == "wrapped":
        session = paying.wrap(sessions.BaseUrlSession(paywall.base_url))
    elif order == "before":
        kind: Any = type("Client", (sessions.BaseUrlSession, paying.Session), {"base_url": paywall.base_url})
        # Its __init__ hands no arguments on: a class of one's own does.
        kind.__init__ = lambda self, **kwargs: paying.Session.__init__(self, **kwargs)
        session = paying.closing(kind(**paying.kwargs))
    else:
        kind = type("Client", (paying.Session, sessions.BaseUrlSession), {})
        session = paying.closing(kind(base_url=paywall.base_url, **paying.kwargs))
    session.hooks["response"] = [raises]
    response = session.get("paid")
    assert (response.status_code, response.url) == (200, paywall.url)
    prepared = session.prepare_request(requests.Request("GET", "/paid"))
    assert session.send(prepared).payment.reused
    redirected = session.get("/redirect", params={"to": paywall.url})
    assert redirected.payment.reused
    books.once()


# Auth


def test_the_auth_handler(session: requests.Session, paywall: Paywall, books: Books) -> None:
    """Its login goes out first, and the token in its place where there is a 402: the second call doesn't pay again."""
    session.auth = AuthHandler({paywall.base_url: ("user", "password")})
    for _ in range(3):
        assert session.get(paywall.url).status_code == 200
    own = [request for request in paywall.requests if not request.authorized]
    assert [request.status for request in own] == [402] * 3
    assert {request.headers["Authorization"].split()[0] for request in own} == {"Basic"}
    books.once()


@pytest.mark.parametrize("scheme", ["Basic", "Digest"])
def test_guess_auth(session: requests.Session, paywall: Paywall, lnd: FakeLnd, books: Books, scheme: str) -> None:
    """It answers a 401 by itself, over the adapter that the answer came from; what then costs something is paid, once."""
    challenges = {"Basic": 'Basic realm="r"', "Digest": 'Digest realm="r", nonce="n", qop="auth", algorithm=MD5'}
    asked = itertools.count()
    answer = paywall.answer

    def guarded(method: str, target: str, headers: Any, body: bytes) -> Any:
        from routeweiler_sync.testing._paywall_logic import Reply

        headers = list(headers)
        mine = dict(headers).get("Authorization", "")
        if not mine.startswith((scheme, "L402", "LSAT")):
            next(asked)
            return Reply(status=401, headers=(("WWW-Authenticate", challenges[scheme]),), body=b"who?")
        return answer(method, target, headers, body)

    paywall.answer = guarded  # type: ignore[method-assign]
    seen: list[int] = []
    auth = GuessAuth("user", "password")
    hooks = {"response": [lambda response, **kwargs: seen.append(response.status_code)]}
    for _ in range(2):
        response = session.get(paywall.url, auth=auth, hooks=hooks)
        assert response.status_code == 200
    assert 402 not in seen
    books.once()


# Threads


def test_threads_of_the_toolbelt(paying: Paying, paywall: Paywall, books: Books) -> None:
    """Each of its threads makes a session: all want the same page at once, and one buys."""
    jobs = [{"method": "GET", "url": paywall.url} for _ in range(12)]
    responses, exceptions = threaded.map(jobs, session=paying, num_processes=6)
    assert [response.status_code for response in responses] == [200] * 12
    assert list(exceptions) == []
    books.once()


def test_a_pool_of_one_session(session: requests.Session, paywall: Paywall, books: Books) -> None:
    """One session in many threads; what goes wrong in one comes out of the pool as the error that it is."""
    urls = [paywall.url] * 8 + ["http://127.0.0.1:1/"]
    made = pool.Pool.from_urls(urls, session=lambda: session, num_processes=4)
    made.join_all()
    assert [response.payment.reused for response in made.responses()].count(False) == 1
    (error,) = made.exceptions()
    assert isinstance(error.exception, requests.ConnectionError)
    books.once()


# Downloads


def test_a_paid_download(session: requests.Session, paywall: Paywall, books: Books, tmp_path: Path) -> None:
    """The file holds what was paid for, and not the text of the 402."""
    session.hooks["response"] = [raises]
    paywall.content = b"0123456789" * 50_000
    path = tmp_path / "file"
    stream.stream_response_to_file(session.get(paywall.url, stream=True), path=str(path))
    assert path.read_bytes() == paywall.content
    copied = io.BytesIO()
    assert b"".join(tee.tee(session.get(paywall.url, stream=True), copied)) == paywall.content
    assert copied.getvalue() == paywall.content
    books.once()
