"""The fake lnd's REST interface: lnd's paths and JSON, and the pages of a proxy in front of it.

Every call is answered by the methods of `_lnd_service`, so that gRPC and REST show one node. Here is what lnd's gateway adds: the
paths, the form of answers and errors, and streams of one JSON object a line (lnd 0.21.2, grpc-gateway v2).
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import select
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import grpc
from google.protobuf import json_format

from ..funding.lnd.stubs import routeweiler_lnd_pb2 as pb
from ._lnd_service import DROPPED, Service

_SEND = "/routerrpc.Router/SendPaymentV2"
_TRACK = "/routerrpc.Router/TrackPaymentV2"
#: (HTTP method, path) of the calls without a parameter in the path.
_ROUTES = {
    ("GET", "/v1/state"): "/lnrpc.State/GetState",
    ("GET", "/v1/getinfo"): "/lnrpc.Lightning/GetInfo",
    ("GET", "/v1/balance/channels"): "/lnrpc.Lightning/ChannelBalance",
    ("GET", "/v1/channels"): "/lnrpc.Lightning/ListChannels",
    ("GET", "/v1/payments"): "/lnrpc.Lightning/ListPayments",
    ("POST", "/v1/invoices"): "/lnrpc.Lightning/AddInvoice",
    ("POST", "/v2/router/send"): _SEND,
}
_TRACK_PATH = re.compile(r"/v2/router/track/([^/]+)")
#: The gateway's image of a gRPC code (grpc-gateway, runtime/errors.go).
_STATUSES = {
    "OK": 200, "CANCELLED": 499, "INVALID_ARGUMENT": 400, "DEADLINE_EXCEEDED": 504, "NOT_FOUND": 404, "ALREADY_EXISTS": 409,
    "PERMISSION_DENIED": 403, "UNAUTHENTICATED": 401, "RESOURCE_EXHAUSTED": 429, "FAILED_PRECONDITION": 400, "ABORTED": 409,
    "OUT_OF_RANGE": 400, "UNIMPLEMENTED": 501, "UNAVAILABLE": 503,
}  # fmt: skip
_PAGE = (
    "<html>\r\n<head><title>{0}</title></head>\r\n<body>\r\n<center><h1>{0}</h1></center>\r\n<hr><center>nginx</center>\r\n"
    "</body></html>\r\n"
)
_POLL_S = 0.05


class _EndedError(Exception):
    """A call has ended with a gRPC error."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(code, text)
        self.code, self.text = code, text


class _Context:
    """What the methods of the service need of a ``grpc.ServicerContext``."""

    def __init__(self, macaroons: list[str]) -> None:
        self._metadata = [("macaroon", each) for each in macaroons]
        self._callbacks: list[Callable[[], object]] = []
        self._lock = threading.Lock()
        self._ended = False

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return self._metadata

    def is_active(self) -> bool:
        return not self._ended

    def add_callback(self, callback: Callable[[], object]) -> bool:
        with self._lock:
            if not self._ended:
                self._callbacks.append(callback)
            return not self._ended

    def abort(self, code: grpc.StatusCode, text: str) -> None:
        raise _EndedError(code.name, text)

    def end(self) -> None:
        """Note that the call has ended, or that its client has left."""
        with self._lock:
            ended, self._ended = self._ended, True
            callbacks = [] if ended else list(self._callbacks)
        for each in callbacks:
            each()


class RestServer:
    """lnd's REST interface on ``host:port`` (0: any port), with TLS, for the database and faults of ``service``."""

    def __init__(self, service: Service, *, host: str, port: int, cert_path: str, key_path: str) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert_path, key_path)
        rest = self

        class Handler(_Handler):
            server_side = rest

        self.service, self.tls = service, context
        self.connections: set[socket.socket] = set()
        self.stopping = threading.Event()
        self._server = _Server((host, port), Handler)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(_POLL_S,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop at once, as a killed process does: connections break."""
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self.connections):
            break_off(connection)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients leave in the middle of a call, and tests make them."""


class _Handler(BaseHTTPRequestHandler):
    """One connection to the REST interface."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server_side: RestServer

    def setup(self) -> None:
        plain = self.request
        self.server_side.connections.add(plain)
        self.plain = plain
        self.request = self.server_side.tls.wrap_socket(plain, server_side=True)
        self.server_side.connections.discard(plain)
        self.server_side.connections.add(self.request)
        super().setup()

    def finish(self) -> None:
        with suppress(OSError, ValueError):
            super().finish()
        self.server_side.connections.discard(self.request)
        with suppress(OSError):
            self.request.close()

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def _answer(self, method: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        service, parts = self.server_side.service, urlsplit(self.path)
        path = _ROUTES.get((method, parts.path))
        tracked = _TRACK_PATH.fullmatch(parts.path) if method == "GET" else None
        if tracked is not None:
            path = _TRACK
        if path is None:
            self._error("NOT_FOUND", "Not Found", is_wrapped=False)
            return
        is_stream, answer, kind = service.methods()[path]
        # Before the wallet is unlocked, lnd's gateway has no other paths than these.
        if path != "/lnrpc.State/GetState" and service.state in ("NON_EXISTING", "LOCKED", "WAITING_TO_START"):
            self._error("NOT_FOUND", "Not Found", is_wrapped=False)
            return
        try:
            request = _request(kind, body if method == "POST" else None, parts.query, tracked)
        except ValueError as error:
            self._error("INVALID_ARGUMENT", str(error), is_wrapped=False)
            return
        context = _Context(self.headers.get_all("Grpc-Metadata-macaroon") or [])
        page = None
        if path == _SEND:
            with service.book.changed:
                page = service.faults.take("page")
        if page is not None:
            status, reaches_lnd = page
            if reaches_lnd:
                threading.Thread(target=_exhaust, args=(answer, request, context), daemon=True).start()
            self._page(status)
            return
        try:
            if is_stream:
                threading.Thread(target=self._watch, args=(context,), daemon=True).start()
                self._stream(answer, request, context)
            else:
                reply = answer(request, context)
                self._send(200, "application/json", json_format.MessageToJson(reply, **_JSON).encode())
        except _EndedError as error:
            self._ended(error, is_stream=is_stream)
        except (OSError, RuntimeError):  # the client has left, or the fake has stopped
            break_off(self.request)
            self.close_connection = True
        finally:
            context.end()

    def _stream(self, answer: Any, request: Any, context: _Context) -> None:
        """Send a stream: the head goes out with the first message, as an error before it decides on the status."""
        begun = False
        try:
            for message in answer(request, context):
                if not begun:
                    begun = True
                    self.send_response(200)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Transfer-Encoding", "chunked")
                    self.end_headers()
                text = json_format.MessageToJson(message, **_JSON)
                self._chunk(f'{{"result":{text}}}\n'.encode())
        except _EndedError as error:
            if not begun or error.text == DROPPED:
                raise
            self._chunk(_error_body(error.code, error.text, is_wrapped=True) + b"\n")
        if begun and context.is_active():
            self.wfile.write(b"0\r\n\r\n")
        elif not begun:
            raise ConnectionError("the client has left")

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def _ended(self, error: _EndedError, *, is_stream: bool) -> None:
        if error.text == DROPPED:
            break_off(self.request)
            self.close_connection = True
        else:
            self._error(error.code, error.text, is_wrapped=is_stream)

    def _error(self, code: str, text: str, *, is_wrapped: bool) -> None:
        self._send(_STATUSES.get(code, 500), "application/json", _error_body(code, text, is_wrapped=is_wrapped))

    def _page(self, status: int) -> None:
        names = {502: "502 Bad Gateway", 503: "503 Service Temporarily Unavailable", 504: "504 Gateway Time-out"}
        self._send(status, "text/html", _PAGE.format(names.get(status, f"{status} Error")).encode())

    def _send(self, status: int, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _watch(self, context: _Context) -> None:
        """End the call when its client leaves: its socket becomes readable then."""
        while context.is_active() and not self.server_side.stopping.is_set():
            try:
                if select.select([self.request], [], [], _POLL_S)[0]:
                    context.end()
            except (OSError, ValueError):
                context.end()


#: lnd's gateway writes all fields, by their names in the protocol files.
_JSON: dict[str, Any] = {"preserving_proto_field_name": True, "indent": None}
if "always_print_fields_with_no_presence" in json_format.MessageToJson.__code__.co_varnames:
    _JSON["always_print_fields_with_no_presence"] = True
else:
    _JSON["including_default_value_fields"] = True


def break_off(connection: Any) -> None:
    """Break a connection, whoever is using it."""
    with suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


def _exhaust(answer: Any, request: Any, context: _Context) -> None:
    """Let lnd carry a call out whose answer nobody reads."""
    with suppress(_EndedError, RuntimeError):
        for _ in answer(request, context):
            pass


def _error_body(code: str, text: str, *, is_wrapped: bool) -> bytes:
    number = grpc.StatusCode[code].value[0]
    error = {"code": number, "message": text, "details": []}
    return json.dumps({"error": error} if is_wrapped else error).encode()


def _request(kind: Any, body: bytes | None, query: str, tracked: re.Match[str] | None) -> Any:
    """Return the message of a request. Raises: ValueError with the gateway's text if it can't be read."""
    message = kind()
    if tracked is not None:
        text = unquote(tracked[1])
        try:
            # Without its padding the gateway takes the hash for malformed.
            message.payment_hash = base64.b64decode(text.translate(str.maketrans("-_", "+/")), validate=True)
        except (binascii.Error, ValueError):
            what = f"type mismatch, parameter: payment_hash, error: illegal base64 data at input byte {len(text)}"
            raise ValueError(what) from None
    if body is not None:
        try:
            json_format.Parse(body, message)
        except json_format.ParseError as error:
            raise ValueError(f"proto: {error}") from None
    for name, value in parse_qsl(query):
        if name not in kind.DESCRIPTOR.fields_by_name:
            continue
        current = getattr(message, name)
        try:
            setattr(
                message, name, value == "true" if isinstance(current, bool) else int(value) if isinstance(current, int) else value
            )
        except ValueError:
            raise ValueError(f"parsing field {name!r}: {value!r}") from None
    if isinstance(message, pb.SendPaymentRequest) and body == b"":
        raise ValueError("EOF")
    return message
