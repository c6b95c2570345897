"""`Paywall`: an HTTP server that wants to be paid, as aperture does; and the same behind the ``responses`` library.

What is answered is known to `_paywall_logic`; here are the sockets, and the faults that only a socket has.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
import sys
import threading
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import requests

from ._paywall_logic import Faults, InvoiceIssuer, Page, PaywallLogic, PaywallRequest, Reply, Service

__all__ = ["Faults", "Page", "Paywall", "PaywallLogic", "PaywallRequest", "Service", "add_paywall"]

_POLL_S = 0.02
_STOP_S_MAX = 10.0
_CHUNK_BYTES = 64 * 1024
#: A reply that fits goes out in one segment: header and body apart would cost 40 ms a call (delayed acknowledgement).
_BUFFER_BYTES = 1 << 20
#: No news. Any other error is a fault of this process or of the test, and is told on stderr.
_CLIENT_LEFT = (ConnectionError, TimeoutError, ssl.SSLError)


class Paywall(PaywallLogic):
    """A paywall on 127.0.0.1, running inside ``with``.

        with FakeLnd() as lnd, Paywall(lnd, price_msat=10_000) as paywall:
            response = session.get(paywall.url)
            assert [request.status for request in paywall.requests] == [402, 200]

    ``/free`` and what lies under it costs nothing, ``/redirect?to=URL[&status=…]`` redirects, all else is sold by the service
    (`add_service` sells more, at other prices). Paid requests get ``content``, or what ``respond(request)`` returns: status,
    headers, body. What goes wrong on demand: ``faults``, `cut_next`, `answer_next`, `revoke_tokens`. ``ssl_context``: serve https.
    """

    def __init__(self, lnd: InvoiceIssuer, *, ssl_context: ssl.SSLContext | None = None, **options: Any) -> None:
        """``options``: those of `PaywallLogic` (``price_msat``, ``service``, ``valid_for_s``, ``dynamic``, ``scheme``, …)."""
        super().__init__(lnd, **options)
        self._ssl_context = ssl_context
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None
        self._address = ("127.0.0.1", 0)

    def __enter__(self) -> Paywall:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Listen; after a stop on the same port."""
        if self._server is not None:
            return
        self._server = _Server(self._address, self, self._ssl_context)
        self._address = (self._server.server_name, self._server.server_port)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(_POLL_S,), name="paywall", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Go down at once: open connections are closed."""
        server, self._server = self._server, None
        if server is not None and self._thread is not None:
            server.stop()
            self._thread.join(_STOP_S_MAX)

    @property
    def base_url(self) -> str:
        """Scheme, host and port, without a slash at the end."""
        return f"{'http' if self._ssl_context is None else 'https'}://{self._address[0]}:{self._address[1]}"

    @property
    def url(self) -> str:
        """A page that costs `price`."""
        return self.url_for("/paid")

    def url_for(self, path: str) -> str:
        """The URL of ``path``, which begins with a slash."""
        return self.base_url + path


class _Server(ThreadingHTTPServer):
    allow_reuse_address = os.name == "posix"  # Windows would let two servers share the port
    request_queue_size = 128
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], paywall: Paywall, ssl_context: ssl.SSLContext | None) -> None:
        self.paywall = paywall
        self.stopping = threading.Event()
        self._connections: set[socket.socket] = set()
        self._guard = threading.Lock()
        super().__init__(address, _Handler)
        if ssl_context is not None:  # the handshake is left to the connection's own thread
            self.socket = ssl_context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # not HTTPServer's, which asks the DNS for this host's name
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def opened(self, connection: socket.socket) -> None:
        with self._guard:
            self._connections.add(connection)

    def closed(self, connection: socket.socket) -> None:
        with self._guard:
            self._connections.discard(connection)

    def stop(self) -> None:
        self.stopping.set()
        self.shutdown()
        self.server_close()
        with self._guard:
            connections = list(self._connections)
        for connection in connections:
            _cut(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], _CLIENT_LEFT):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = _BUFFER_BYTES
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.opened(self.connection)

    def finish(self) -> None:
        self.server.closed(self.connection)
        super().finish()

    def serve(self) -> None:
        paywall = self.server.paywall
        body = self._body()
        reply = paywall.answer(self.command, self.path, self.headers.items(), body)
        self.server.stopping.wait(paywall.faults.delay_s)
        if reply.cut or self.server.stopping.is_set():
            self.close_connection = True
        elif reply.endless:
            self._send_endless(reply)
        else:
            self._send(reply)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = serve  # noqa: N815 - http.server's names

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", "").lower():
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():  # trailers
            pass
        return b"".join(chunks)

    def _send(self, reply: Reply) -> None:
        has_body = reply.status >= 200 and reply.status not in (204, 304)
        self.send_response(reply.status)
        for name, value in reply.headers:
            self.send_header(name, value)
        if has_body:
            self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        if has_body and self.command != "HEAD":
            self.wfile.write(reply.body)

    def _send_endless(self, reply: Reply) -> None:
        self.close_connection = True
        self.send_response(reply.status)
        for name, value in reply.headers:
            self.send_header(name, value)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        chunk = f"{_CHUNK_BYTES:x}\r\n".encode() + b"x" * _CHUNK_BYTES + b"\r\n"
        while not self.server.stopping.is_set():
            self.wfile.write(chunk)
            self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the request lines of a test run are no news."""

    def address_string(self) -> str:
        return str(self.client_address[0])


def _cut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # gone already


def add_paywall(mock: Any, url: str, lnd: InvoiceIssuer, **options: Any) -> PaywallLogic:
    """A paywall at ``url`` and all that lies under it, without a socket: for every method, on a ``responses`` mock.

        with responses.RequestsMock() as mock, FakeLnd() as lnd:
            paywall = add_paywall(mock, "https://api.example", lnd, price_msat=10_000)
            session.get("https://api.example/paid")

    ``mock`` is the module ``responses`` or a `responses.RequestsMock`; ``options`` are those of `Paywall`. A cut connection is
    a `requests.ConnectionError`. Returns the paywall.
    """
    import responses

    paywall = PaywallLogic(lnd, **options)
    pattern = re.compile(re.escape(url.rstrip("/")) + r"(?:[/?#].*)?$", re.DOTALL)

    def callback(request: requests.PreparedRequest) -> tuple[int, list[tuple[str, str]], bytes | Exception]:
        parts = urlsplit(request.url or "")
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        headers = [(_text(name), _text(value)) for name, value in request.headers.items()]
        reply = paywall.answer(request.method or "GET", target, headers, _bytes(request.body))
        gone = requests.ConnectionError("the paywall cut the connection", request=request)
        return reply.status, list(reply.headers), gone if reply.cut else reply.body

    class AnyMethod(responses.CallbackResponse):
        def matches(self, request: requests.PreparedRequest) -> tuple[bool, str]:
            return (True, "") if pattern.match(request.url or "") else (False, "URL does not match")

    mock.add(AnyMethod("GET", pattern, callback=callback, content_type=None))
    return paywall


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _bytes(body: Any) -> bytes:
    if body is None:
        return b""
    if isinstance(body, str):
        return body.encode()
    if hasattr(body, "read"):
        body = body.read()
    elif isinstance(body, Iterable) and not isinstance(body, (bytes, bytearray)):
        body = b"".join(body)
    return bytes(body)
