"""`Paywall`: an HTTP server that asks for payment as aperture does. `add_paywall`: the same through the ``responses`` library.

What is answered is left to `_paywall_logic`. This module has the sockets, and the faults that need a socket.
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
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import requests

from ._messages import Page, PaidRequests, PaywallRequest, Reply
from ._paywall_logic import Faults, InvoiceIssuer, PaywallLogic, PaywallOptions
from ._services import Service
from ._signatures import spelled_out

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Faults", "Page", "PaidRequests", "Paywall", "PaywallLogic", "PaywallRequest", "Service", "add_paywall"]

_POLL_S = 0.02
_STOP_S_MAX = 10.0
_CHUNK_BYTES = 64 * 1024
#: Replies up to this size are sent at once. Header and body sent apart would cost 40 ms a call (delayed acknowledgement).
_BUFFER_BYTES = 1 << 20
#: Errors that mean only that the client has left. Any other is a fault of this process or of the test, and is printed on stderr.
_CLIENT_LEFT = (ConnectionError, TimeoutError, ssl.SSLError)


class Paywall(PaywallLogic):
    """A paywall on 127.0.0.1 that runs inside ``with``.

        with FakeLnd() as lnd, Paywall(lnd, price_msat=10_000) as paywall:
            response = session.get(paywall.url)
            assert paywall.paid_for("/paid")
            assert [request.status for request in paywall.requests] == [402, 200]

    ``/free`` and all paths under it cost nothing, ``/redirect?to=URL[&status=…]`` redirects, everything else is sold by one service
    (`add_service` adds more, at other prices). By default it sells and refuses tokens as aperture does. Other servers have other
    ways (docs/how-to/test-with-the-kit.md lists them):

        Paywall(lnd, form="l402kit", sells="once", refuses=401)
        Paywall(lnd, sells="credit:50")
        Paywall(lnd, sells="instance", instances=3)

    Arguments:

    - ``lnd``: the node that issues the invoices, and knows which are paid: a `FakeLnd`.
    - ``ssl_context=None``: an `ssl.SSLContext`, to serve https.

    What is sold:

    - ``price_msat=10_000``: what a token costs, in msat (10 sat). It can be changed later, also in sat, as `price`.
    - ``content=b"paid content\\n"``: the body of a page that was paid for.
    - ``respond=None``: a function of the `PaywallRequest` that returns status, headers and body of such a page.
    - ``service="paywall"``: what the service is called in tokens and invoices.
    - ``sells="service"``: what a token opens: ``service`` (all paths of this service; no other way has the ``services`` caveat),
      ``path`` (one path), ``method`` (one method of one path), ``query`` (one method, path and query), ``body`` (one method, path
      and body), ``everything`` (all paths of this server), ``once`` (one page, any), ``credit:50`` (the invoice is for 50 sat, each
      page costs ``price_msat``), ``instance`` (all paths of one of the ``instances``), ``nothing``; or a function of the
      `PaywallRequest`: a token opens the requests for which it returns the same value.
    - ``valid_for_s=None``: tokens end after so many seconds (negative: they have expired already). A macaroon says so in the
      caveat ``<service>_valid_until``.
    - ``dynamic=False``: a token of ``service`` opens one exact path, and has no caveat but ``services``.
    - ``instances=3``: how many instances with keys of their own stand behind the one address. Requests go to them in turns, or to
      the one that `instance` names.

    How a bad token is refused:

    - ``refuses=402``: the status. 402 has a fresh challenge, any other none and a small JSON body.
    - ``refuses_with=None``: ``challenge``, ``nothing``, ``scheme`` (``WWW-Authenticate: L402`` alone) or ``realm``
      (``L402 realm="<service>"``), with any status. None: as ``refuses`` says.

    How it asks for payment:

    - ``form="aperture"``: the header form of a server: ``aperture``, ``l402kit``, … (a wrong name lists all), or a line with
      ``{token}`` and ``{invoice}``. Forms other than aperture's take no credential of a scheme that they don't name.
    - ``scheme=("LSAT", "L402")``: aperture's form has one header line for each of these, in this order. ``Payment`` may be one of
      them, or the only one: see below.
    - ``token=None``: ``macaroon``, ``macaroon-urlsafe``, ``macaroon-v1``, ``json``, ``uuid``, ``jwt``, ``hex`` or ``opaque``. None
      is the form's own kind.
    - ``challenge_in=None``: ``header``, ``header and body`` or ``body``. None is the form's own way.
    - ``accept_authenticate=None``: the status of the answer, without a challenge, to those that didn't send
      ``Accept-Authenticate: L402`` (or ``LSAT``): 402, or 200 with a free page. None: the header isn't needed.
    - ``head="challenge"``: ``price-only`` answers HEAD with the price and no challenge.
    - ``skip_invoice_paths=()``: regular expressions. On paths that match, no token is sold: without a good one they answer 401
      bare.

    The scheme ``Payment`` (MPP): ``Paywall(lnd, scheme="Payment", form="mppx")``; beside L402, as aperture has it, the schemes are
    ``("LSAT", "L402", "Payment")``. The form is ``aperture`` (a payment opens all pages until its challenge expires), ``mppx`` or
    ``mppx-0.11`` (one page, any; a refusal has a fresh challenge for the same invoice, and the latter's status is 500), or
    ``pympp`` (one page, of the method, path and query that it was sold for). What a payment opens is told by the form, so ``sells``
    may only be ``nothing`` there; ``refuses`` and ``refuses_with`` say how a payment is refused, if not as the form does.

    - ``authscheme=None``: ``l402``, ``mpp`` or ``l402+mpp``: what is taken. aperture offers both whatever it says.
    - ``expires=None``: a challenge is good for so many seconds (negative: it has expired already). None: as long as the form's,
      5 or 15 minutes. ``math.inf``: it doesn't say.
    - ``digest=False``: whether a challenge has the digest of the request's body, if there is one, and a payment opens this body
      only. True writes it as the form does; ``colons`` as in RFC 9530, ``bare`` without them.
    - ``header=None``: ``Payment-Authorization`` has the credential sent there, and takes it from nowhere else.
    - ``description=None``: free text in the challenge.
    - ``intents=("charge",)``: what is offered: ``charge``, ``session`` or both. A session isn't taken.
    - ``reoffers=None``: whether a refusal has a fresh challenge for the payment that came, not a new invoice. None: as the form.
    - ``receipts=None``: which answers to a payment have a ``Payment-Receipt``: ``always`` (also with 500), ``delivered`` (with
      2xx), ``never``, or ``junk`` (always, and it can't be read). None: as the form.

    What goes wrong: ``faults=None``, a `Faults`, which can be changed at any time as `faults`; and `cut_next`, `answer_next` and
    `revoke_tokens`.

    Raises: ValueError for an option that isn't possible. The text lists those that are.
    """

    @spelled_out(PaywallOptions, PaywallLogic)
    def __init__(self, lnd: InvoiceIssuer, *, ssl_context: ssl.SSLContext | None = None, **options: Unpack[PaywallOptions]) -> None:
        """See the class for the arguments."""
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
        """Start to listen; after a `stop`, on the same port as before."""
        if self._server is not None:
            return
        self._server = _Server(self._address, self, self._ssl_context)
        self._address = (self._server.server_name, self._server.server_port)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(_POLL_S,), name="paywall", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop at once, and close all open connections."""
        server, self._server = self._server, None
        if server is not None and self._thread is not None:
            server.stop()
            self._thread.join(_STOP_S_MAX)

    @property
    def base_url(self) -> str:
        """Scheme, host and port of the paywall, without a slash at the end."""
        return f"{'http' if self._ssl_context is None else 'https'}://{self._address[0]}:{self._address[1]}"

    @property
    def url(self) -> str:
        """The URL of a page that costs `price`."""
        return self.url_for("/paid")

    def url_for(self, path: str) -> str:
        """Return the URL of ``path``, which begins with a slash."""
        return self.base_url + path

    @property
    def _name(self) -> str:
        return f"Paywall {self.base_url}"

    def _page(self, page: str) -> tuple[str, str | None]:
        named = urlsplit(page)
        if named.netloc and f"{named.scheme}://{named.netloc}" != self.base_url:
            raise ValueError(f"{page!r} is a URL of another server: this paywall is {self.base_url}.")
        return super()._page(page)


class _Server(ThreadingHTTPServer):
    """An HTTP server that knows its open connections, so that `stop` can close them."""

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
        if ssl_context is not None:  # the connection's own thread does the handshake
            self.socket = ssl_context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer's own server_bind would look up this host's name in the DNS
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
    """Serves the requests of one connection."""

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
        """Answer one request, of any method."""
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
        """Log nothing: the request lines would only fill the output of a test run."""

    def address_string(self) -> str:
        return str(self.client_address[0])


def _cut(connection: socket.socket) -> None:
    """Close a connection that another thread may be using."""
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # closed already


@spelled_out(PaywallOptions, PaywallLogic)
def add_paywall(mock: Any, url: str, lnd: InvoiceIssuer, **options: Unpack[PaywallOptions]) -> PaywallLogic:
    """Put a paywall at ``url`` and all URLs under it, for every method, on a ``responses`` mock. It needs no socket. Return it.

        with responses.RequestsMock() as mock, FakeLnd() as lnd:
            paywall = add_paywall(mock, "https://api.example", lnd, price_msat=10_000)
            session.get("https://api.example/paid")

    ``mock`` is the module ``responses`` or a `responses.RequestsMock`. The options are those of `Paywall`. A cut
    connection raises `requests.ConnectionError` in the caller.

    Raises: ValueError for an option that isn't possible.
    """
    import responses

    paywall = PaywallLogic(lnd, **options)
    pattern = re.compile(re.escape(url.rstrip("/")) + r"(?:[/?#].*)?$", re.DOTALL)

    def callback(request: requests.PreparedRequest) -> tuple[int, list[tuple[str, str]], bytes | Exception]:
        parts = urlsplit(request.url or "")
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        headers = [(_text(name), _text(value)) for name, value in request.headers.items()]
        reply = paywall.answer(request.method or "GET", target, headers, _bytes(request.body))
        cut = requests.ConnectionError("the paywall cut the connection", request=request)
        body = b"" if request.method == "HEAD" else reply.body
        return reply.status, list(reply.headers), cut if reply.cut else body

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
