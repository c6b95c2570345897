"""A node that can't be reached, or refuses: the error names the cause, and the advice fits it."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from routeweiler_sync import FundingError, LndClient
from routeweiler_sync.funding.lnd.route import ascii_name
from routeweiler_sync.funding.replies import WalletReply
from routeweiler_sync.testing import FakeLnd
from tests.support.faulty_sockets import unused_port
from tests.support.proxies import HttpProxy

TIMEOUT_S = 30.0
#: An address that is nobody's (RFC 5737), and a name that is nobody's (RFC 6761): both are public, as far as a proxy is concerned.
PUBLIC_IP, PUBLIC_NAME = "203.0.113.5", "node.example.com"
HOUR = datetime.timedelta(hours=1)


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("grpc_proxy", "https_proxy", "http_proxy", "no_proxy", "no_grpc_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def refusal(client: LndClient, timeout_s: float = TIMEOUT_S) -> FundingError:
    """The error of a purchase's first two questions."""
    with pytest.raises(FundingError) as caught:
        client.check_ready(timeout_s)
        client.get_info(timeout_s=timeout_s)
    assert caught.value.spent is False
    assert "Nothing was spent." in str(caught.value)
    return caught.value


def dated(folder: Path, before: datetime.timedelta, after: datetime.timedelta) -> None:
    """Write ``tls.cert`` and ``key`` of a node's own certificate that is valid from ``before`` from now to ``after`` from now."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.timezone.utc)
    who = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "node")])
    made = (
        x509.CertificateBuilder()
        .subject_name(who)
        .issuer_name(who)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(now + before)
        .not_valid_after(now + after)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "key").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    (folder / "tls.cert").write_bytes(made.public_bytes(pem))


def use_certificate(lnd: FakeLnd, folder: Path) -> None:
    lnd.stop()
    lnd._key_pem, lnd._cert_pem = (folder / "key").read_bytes(), (folder / "tls.cert").read_bytes()
    lnd.start()


# Certificates


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (-426 * 24 * HOUR, -3 * HOUR, r"expired on 20\d\d-.*, 3 hours ago by this machine's clock"),
        (3 * HOUR, 24 * HOUR, r"isn't valid yet.*this machine's clock .* is 3 hours behind"),
    ],
    ids=["expired", "not yet valid"],
)
@pytest.mark.parametrize("is_pinned", [True, False])
def test_a_certificate_out_of_its_dates_is_called_so(
    lnd: FakeLnd, tmp_path: Path, before: datetime.timedelta, after: datetime.timedelta, told: str, is_pinned: bool
) -> None:
    """ "Copy its tls.cert again" doesn't help: the copy has the same dates."""
    dated(tmp_path, before, after)
    use_certificate(lnd, tmp_path)
    error = refusal(lnd.client(tls_cert_path=tmp_path / "tls.cert" if is_pinned else None))
    assert re.search(told, str(error)), error
    assert "clock" in (error.advice or "")
    assert "pinned" not in str(error)


def test_an_expired_pin_of_a_node_that_has_a_new_certificate_is_to_be_copied_again(lnd: FakeLnd, tmp_path: Path) -> None:
    """Here the copy helps: it is the pin that is old, not the node's certificate."""
    dated(tmp_path, -48 * HOUR, -HOUR)
    error = refusal(lnd.client(tls_cert_path=tmp_path / "tls.cert"))
    assert "isn't the one pinned" in str(error)
    assert "copy its tls.cert again" in str(error)


def test_nothing_pinned_is_called_so(lnd: FakeLnd) -> None:
    """tls_cert_path was forgotten: "isn't the one pinned" sends its user to look for a file that was never given."""
    error = refusal(lnd.client(tls_cert_path=None))
    assert "nothing is pinned" in str(error)
    assert "tls_cert_path" in (error.advice or "")


# Ports


class _Web(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def web(lnd: FakeLnd, tmp_path: Path) -> Iterator[Callable[..., int]]:
    """Start a web server, with the node's certificate unless ``tls`` is False, and return its port."""
    made: list[ThreadingHTTPServer] = []

    def start(*, tls: bool, alpn: list[str] | None = None) -> int:
        server = ThreadingHTTPServer(("127.0.0.1", 0), _Web)
        server.daemon_threads = True
        if tls:
            (tmp_path / "key.pem").write_bytes(lnd._key_pem)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(lnd.tls_cert_path, tmp_path / "key.pem")
            if alpn:
                context.set_alpn_protocols(alpn)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        made.append(server)
        return server.server_port

    yield start
    for server in made:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("alpn", [None, ["http/1.1"], ["h2", "http/1.1"]])
def test_the_rest_port_is_recognized(lnd: FakeLnd, web: Callable[..., int], alpn: list[str] | None) -> None:
    """8080 in place of 10009 is the commonest slip: what gRPC says of it ("missing selected ALPN") tells nobody."""
    error = refusal(lnd.client(grpc_port=web(tls=True, alpn=alpn)))
    assert "REST port" in str(error)
    assert "10009" in (error.advice or "")


@pytest.mark.parametrize("status", [b"\x8d", b"\x08\x03415"], ids=["404", "415"])
def test_a_web_server_that_speaks_http2_is_recognized(lnd: FakeLnd, tmp_path: Path, status: bytes) -> None:
    """A reverse proxy before lnd: it takes gRPC's connection, and answers 404. "Unimplemented" sounds like an old lnd."""
    (tmp_path / "key.pem").write_bytes(lnd._key_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(lnd.tls_cert_path, tmp_path / "key.pem")
    context.set_alpn_protocols(["h2"])
    listening = socket.create_server(("127.0.0.1", 0))

    def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
        return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload

    def serve(plain: socket.socket) -> None:
        with (
            contextlib.suppress(OSError),
            context.wrap_socket(plain, server_side=True) as secure,
            secure.makefile("rb") as bytes_in,
        ):
            secure.sendall(frame(4, 0, 0))  # SETTINGS
            bytes_in.read(len(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
            while len(head := bytes_in.read(9)) == 9:
                bytes_in.read(int.from_bytes(head[:3], "big"))
                if head[3] == 4 and not head[4]:
                    secure.sendall(frame(4, 1, 0))
                if head[3] == 1:  # HEADERS: answered with the status alone
                    secure.sendall(frame(1, 5, int.from_bytes(head[5:], "big"), status))

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    with listening:
        error = refusal(lnd.client(grpc_port=listening.getsockname()[1]), 5)
    assert "web server" in str(error)
    assert "10009" in (error.advice or "")


def test_a_port_without_tls_is_recognized(lnd: FakeLnd, web: Callable[..., int]) -> None:
    """A web server, or a gRPC server behind a proxy that ends TLS: the port is wrong, and not the certificate."""
    assert "without TLS" in str(refusal(lnd.client(grpc_port=web(tls=False))))
    plain = grpc.server(futures.ThreadPoolExecutor(1))
    port = plain.add_insecure_port("127.0.0.1:0")
    plain.start()
    try:
        assert "has no TLS" in str(refusal(lnd.client(grpc_port=port)))
    finally:
        plain.stop(None)


# Macaroons


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("verification failed: signature mismatch after caveat verification", "isn't this node's"),
        ("cannot retrieve macaroon: cannot get macaroon: root key with id 1 doesn't exist", "another node's, or was revoked"),
        (
            'verification failed: caveat "ipaddr 1.2.3.4" not satisfied: macaroon locked to different IP address',
            "another IP address",
        ),
        (
            'verification failed: caveat "time-before {}" not satisfied: macaroon has expired',
            "not by this machine's, which is at least 3 hours behind the node's",
        ),
        ("macaroon has expired", "has expired"),
        ("permission denied", "doesn't permit GetInfo"),
    ],
)
def test_a_macaroons_refusal_names_its_cause_and_its_file(lnd: FakeLnd, text: str, told: str) -> None:
    """ "verification failed: signature mismatch after caveat verification" means "of another node", which nobody guesses."""
    later = datetime.datetime.now(datetime.timezone.utc) + 3 * HOUR
    path = lnd.bake_refused_macaroon(text.format(later.strftime("%Y-%m-%dT%H:%M:%S.000000000Z")))
    error = refusal(lnd.client(macaroon_path=path))
    assert told in str(error)
    assert path in str(error)


def test_an_order_that_the_macaroon_does_not_permit_names_the_right(lnd: FakeLnd) -> None:
    """A read-only macaroon passes every question, and is refused at the order alone."""
    readonly = lnd.bake_macaroon("/lnrpc.Lightning/GetInfo", "/routerrpc.Router/TrackPaymentV2")
    invoice = lnd.invoice(10_000)
    answer = lnd.client(macaroon_path=readonly).send(
        invoice.bolt11, payment_hash=invoice.payment_hash, max_fee_msat=0, timeout_s=TIMEOUT_S
    )
    assert answer.reply is WalletReply.REFUSED
    assert "uri:/routerrpc.Router/SendPaymentV2" in (answer.reason or "")


# Names


@pytest.mark.parametrize(
    "host", ["no-such-node.invalid", "umbrel-of-nobody.local", "a..b", "x" * 64 + ".example", "a\0b", "caf\udce9"]
)
def test_a_name_that_does_not_resolve_is_called_so(lnd: FakeLnd, host: str) -> None:
    """ "UNAVAILABLE: DNS resolution failed" in gRPC's words; or a UnicodeError out of a GET."""
    client = lnd.client()
    client.grpc_host = host
    assert "resolved" in str(refusal(client))


@pytest.mark.parametrize("host", ["umbrel.local", "my_node", "lnd.corp.example.com", PUBLIC_NAME, "knoten.zürich.example"])
def test_a_name_that_only_the_system_resolves_leads_to_the_node(lnd: FakeLnd, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """mDNS and VPN names: gRPC's own resolver knows neither, and says that the node is down."""
    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda name, *a, **k: real("127.0.0.1" if name == ascii_name(host) else name, *a, **k)
    )
    assert lnd.client(grpc_host=host).get_node_pubkey() == lnd.node_pubkey


def test_a_name_is_resolved_again_when_its_address_changes(lnd: FakeLnd, monkeypatch: pytest.MonkeyPatch) -> None:
    """Home nodes get a new address each night; the program runs for months."""
    addresses = {"now": "127.0.0.1"}
    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda name, *a, **k: real(addresses["now"] if name == "umbrel.local" else name, *a, **k)
    )
    client = lnd.client(grpc_host="umbrel.local")
    client.check_ready(TIMEOUT_S)
    lnd.stop()
    lnd.host, addresses["now"] = "127.0.0.2", "127.0.0.2"
    lnd.start()
    client.check_ready(TIMEOUT_S)
    assert client.get_node_pubkey() == lnd.node_pubkey


def test_a_resolver_that_hangs_is_waited_for_no_longer_than_the_deadline(lnd: FakeLnd, monkeypatch: pytest.MonkeyPatch) -> None:
    """A VPN that is down: the system asks its name server for half a minute."""
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: over.wait(TIMEOUT_S))
    try:
        assert "didn't resolve the name umbrel.local within" in str(refusal(lnd.client(grpc_host="umbrel.local"), 0.5))
    finally:
        over.set()


# Proxies of the environment


@pytest.mark.parametrize("variable", ["grpc_proxy", "https_proxy", "http_proxy"])
@pytest.mark.parametrize("host", [PUBLIC_IP, PUBLIC_NAME])
def test_a_proxy_that_is_down_is_named_with_its_variable(
    lnd: FakeLnd, variable: str, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ "Nothing listens there" would be said of the node, which is up."""
    port = unused_port()
    monkeypatch.setenv(variable, f"http://bob:s3cret@127.0.0.1:{port}")
    text = str(refusal(lnd.client(grpc_host=host)))
    assert f"proxy 127.0.0.1:{port}" in text
    assert variable in text
    assert "s3cret" not in text
    assert "bob" not in text


@pytest.mark.parametrize(("status", "told"), [(403, "refuses to connect"), (407, "wants a login"), (502, "502")])
def test_a_proxy_that_refuses_is_named_with_its_answer(
    lnd: FakeLnd, status: int, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A company's proxy lets no gRPC through: its owner must be asked, and not the node's."""
    with HttpProxy({}) as proxy:
        proxy.connect_says = status, []
        monkeypatch.setenv("https_proxy", f"http://bob:s3cret@{proxy.address}")
        text = str(refusal(lnd.client(grpc_host=PUBLIC_IP)))
    assert told in text
    assert "https_proxy" in text
    assert str(status) in text
    assert "s3cret" not in text


def test_a_proxy_that_works_is_used_for_a_public_host_alone(lnd: FakeLnd, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that is told the addresses of the local network knows where the wallet is; and it couldn't connect to them."""
    with HttpProxy({(PUBLIC_NAME, lnd.port): ("127.0.0.1", lnd.port)}, login="bob:s3cret") as proxy:
        monkeypatch.setenv("https_proxy", proxy.url)
        assert lnd.client(grpc_host=PUBLIC_NAME).get_node_pubkey() == lnd.node_pubkey
        asked = [seen.target for seen in proxy.seen]
        assert set(asked) == {f"{PUBLIC_NAME}:{lnd.port}"}
        for host in (
            "127.0.0.1",
            "localhost",
            "umbrel-of-nobody.local",
            "10.255.255.1",
            "192.168.255.254",
            "169.254.1.1",
            "fd00::1",
        ):
            with contextlib.suppress(FundingError):
                lnd.client(grpc_host=host).check_ready(0.2)
        assert [seen.target for seen in proxy.seen] == asked


@pytest.mark.parametrize(
    "exempt", ["example.com", ".example.com", "*", PUBLIC_IP, "203.0.113.0/24", f"{PUBLIC_NAME}:{{port}}, {PUBLIC_IP}"]
)
@pytest.mark.parametrize("variable", ["no_proxy", "NO_PROXY"])
def test_no_proxy_holds_as_requests_reads_it(lnd: FakeLnd, exempt: str, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """gRPC itself knows neither ranges nor ``*`` nor the name in capitals: it would go through the proxy all the same."""
    with HttpProxy({}) as proxy:
        monkeypatch.setenv("https_proxy", proxy.url)
        monkeypatch.setenv(variable, exempt.format(port=lnd.port))
        host = PUBLIC_IP if "203" in exempt and PUBLIC_NAME not in exempt else PUBLIC_NAME
        text = str(refusal(lnd.client(grpc_host=host), 0.5))
        assert not proxy.seen
        assert "proxy" not in text


def test_a_certificate_that_a_proxy_puts_in_place_is_told_with_the_proxy(lnd: FakeLnd, monkeypatch: pytest.MonkeyPatch) -> None:
    """Proxies that look into TLS show a certificate of their own: "copy tls.cert again" would lead nowhere."""
    with FakeLnd() as other, HttpProxy({(PUBLIC_NAME, lnd.port): ("127.0.0.1", other.port)}) as proxy:
        monkeypatch.setenv("https_proxy", proxy.url)
        text = str(refusal(lnd.client(grpc_host=PUBLIC_NAME)))
    assert "isn't the one pinned" in text
    assert "https_proxy" in text


def test_the_environment_stays_as_it_is(lnd: FakeLnd, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program's other gRPC channels and its HTTP calls read the same variables."""
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{unused_port()}")
    before: dict[str, Any] = dict(os.environ)
    lnd.client().check_ready(TIMEOUT_S)
    refusal(lnd.client(grpc_host=PUBLIC_NAME))
    assert dict(os.environ) == before
