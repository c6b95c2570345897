"""A relay of HTTP between a session and a server that notes each exchange: what was asked, with which token, and what was answered.

Each relay is an origin of its own. One without a server behind it answers 200 by itself.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import socket
import sys
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal

UPSTREAM_TIMEOUT_S = 60.0
Cut = Literal["before", "after"]
#: Those that belong to one connection, and the length, which is set anew.
HOP_HEADERS = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Exchange:
    """A request and its answer. `token` is a digest of the credential, None where there was none: the same token has the same.

    `payment_hash` is of the payment that the credential proves. `status` is 0 where the connection was cut instead of an answer.
    `at_ns` is the unix time at which the server had answered.
    """

    method: str
    path: str
    token: str | None
    payment_hash: str | None
    status: int
    at_ns: int

    def __str__(self) -> str:
        return f"{'token' if self.token else 'bare'}:{self.status}"


class Wire:
    """Relays to a port of 127.0.0.1, as a context manager. `exchanges` grows with each request that was answered.

    `presented` has the path of each request with a credential, as soon as it has arrived.
    """

    def __init__(self, upstream_port: int | None) -> None:
        self.exchanges: list[Exchange] = []
        self.presented: list[str] = []
        self._cuts: list[Cut] = []
        handler = _handler(self.exchanges, upstream_port, self._cuts, self.presented)
        self._server = _Server(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="regtest-wire", daemon=True)

    @property
    def url(self) -> str:
        """`http://127.0.0.1:PORT`."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def cut_next(self, when: Cut) -> None:
        """Cut the connection of the next request with a credential: `before` the server gets it, or `after` it has answered."""
        self._cuts.append(when)

    def __enter__(self) -> Wire:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that are killed."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def _handler(
    exchanges: list[Exchange], upstream_port: int | None, cuts: list[Cut], presented: list[str]
) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1

        def relay(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            credential = self.headers.get("Payment-Authorization") or self.headers.get("Authorization")
            if credential is not None:
                presented.append(self.path)
            cut = cuts.pop(0) if credential is not None and cuts else None
            status, headers, answer = 0, [], b""
            if cut != "before":
                status, headers, answer = _ask(upstream_port, self.command, self.path, dict(self.headers.items()), body)
            token = None if credential is None else hashlib.sha256(credential.encode()).hexdigest()
            exchanges.append(
                Exchange(
                    method=self.command,
                    path=self.path,
                    token=token,
                    payment_hash=_payment_hash(credential or ""),
                    status=0 if cut else status,
                    at_ns=time.time_ns(),
                )
            )
            if cut is not None:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
                return
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST = relay

        def log_message(self, format: str, *args: Any) -> None:
            pass  # `exchanges` tells it all

    return Handler


def _payment_hash(credential: str) -> str | None:
    scheme, _, token = credential.partition(" ")
    preimage = credential.rpartition(":")[2]
    if scheme == "Payment":
        preimage = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))["payload"]["preimage"]
    try:
        return hashlib.sha256(bytes.fromhex(preimage)).hexdigest() if preimage else None
    except ValueError:
        return None


def _ask(
    port: int | None, method: str, path: str, headers: dict[str, str], body: bytes
) -> tuple[int, list[tuple[str, str]], bytes]:
    if port is None:
        return 200, [], b"free"
    sent = {name: value for name, value in headers.items() if name.lower() not in HOP_HEADERS | {"accept-encoding"}}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=UPSTREAM_TIMEOUT_S)
    try:
        connection.request(method, path, body or None, sent)
        answer = connection.getresponse()
        kept = [(name, value) for name, value in answer.getheaders() if name.lower() not in HOP_HEADERS]
        return answer.status, kept, answer.read()
    finally:
        connection.close()
