"""A paywall that keeps no body, but its digest: tens of megabytes cost it no memory. And one that doesn't hear a body out."""

from __future__ import annotations

import hashlib
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

from routeweiler_sync.testing.paywall import PaywallLogic

from .faulty_sockets import reset

_CHUNK_BYTES = 64 * 1024

Early = Literal["", "close", "reset"]


class FrugalPaywall(PaywallLogic):
    """A paywall on 127.0.0.1 that knows the ``sha256`` and the length of each body; inside ``with``.

    ``early``: who comes without a credential gets the 402 at once, as soon as the headers are there, and then the connection is
    closed or reset, whatever is still on its way. May be set at any time.
    """

    def __init__(self, lnd: Any, *, early: Early = "", **options: Any) -> None:
        super().__init__(lnd, **options)
        self.bodies: list[tuple[int, str]] = []
        self.early = early
        wall = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def reply(self) -> None:
                if wall.early and "Authorization" not in self.headers:
                    self._send(b"")
                    self.close_connection = True
                    if wall.early == "reset":
                        reset(self.connection)
                    return
                self._send(self._digested())

            def _digested(self) -> bytes:
                digest, length = hashlib.sha256(), 0
                if "chunked" in self.headers.get("Transfer-Encoding", ""):
                    while size := int(self.rfile.readline(), 16):
                        digest.update(self.rfile.read(size))
                        length += size
                        self.rfile.readline()
                    self.rfile.readline()
                else:
                    left = int(self.headers.get("Content-Length", 0))
                    while left and (data := self.rfile.read(min(left, _CHUNK_BYTES))):
                        digest.update(data)
                        left, length = left - len(data), length + len(data)
                wall.bodies.append((length, digest.hexdigest()))
                return digest.digest()

            def _send(self, body: bytes) -> None:
                reply = wall.answer(self.command, self.path, self.headers.items(), body)
                lines = [f"HTTP/1.1 {reply.status} As Planned", *(f"{name}: {value}" for name, value in reply.headers)]
                head = "\r\n".join([*lines, f"Content-Length: {len(reply.body)}", "", ""])
                self.connection.sendall(head.encode() + reply.body)

            do_GET = do_POST = do_PUT = reply

            def log_message(self, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, *args: object) -> None:
                pass  # clients that leave, and connections that were reset on purpose, are no news

        self._server = Server(("127.0.0.1", 0), Handler)

    def __enter__(self) -> FrugalPaywall:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        with suppress(OSError):
            self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/paid"
