"""The service behind the paywall: a small HTTP server that tells each request back and remembers it.

Knows HTTP only; aperture stands in front of it and lets through what is paid.
"""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

#: Never told back, never remembered: what opens a door.
SECRET_HEADERS = frozenset({"authorization", "cookie", "macaroon", "grpc-metadata-macaroon"})
MAX_BODY_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordedRequest:
    """A request as the service got it, which is also what it answers, as JSON. Header names are in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: str
    body_sha256: str


class Backend:
    """Serves on a free port of 127.0.0.1 until `close`; `requests` grows with each request, in order of arrival."""

    def __init__(self) -> None:
        self.requests: list[RecordedRequest] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self.requests))
        self._thread = threading.Thread(target=self._server.serve_forever, name="regtest-backend", daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """`host:port`, without the paywall."""
        return f"127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(requests: list[RecordedRequest]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Headers and body leave in one segment: in two, a delayed ACK costs 40 ms a call.
        wbufsize = -1

        def answer(self) -> None:
            body = self._body()
            seen = RecordedRequest(
                method=self.command,
                path=self.path,
                headers={name.lower(): value for name, value in self.headers.items() if name.lower() not in SECRET_HEADERS},
                body=body.decode(errors="replace"),
                body_sha256=hashlib.sha256(body).hexdigest(),
            )
            requests.append(seen)
            answer = json.dumps(asdict(seen)).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(answer)

        do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = answer

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
                return self._chunked()
            length = int(self.headers.get("Content-Length", 0))
            assert length <= MAX_BODY_BYTES
            return self.rfile.read(length)

        def _chunked(self) -> bytes:
            body = bytearray()
            while size := int(self.rfile.readline().partition(b";")[0], 16):
                assert len(body) + size <= MAX_BODY_BYTES
                body += self.rfile.read(size)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass  # trailers
            return bytes(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass  # `requests` tells it all

    return Handler
