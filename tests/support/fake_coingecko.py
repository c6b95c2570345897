"""CoinGecko's part, played by a local HTTP server: `/simple/price`, and its bad days."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, urlsplit


@dataclass
class Answer:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    #: Called with the handler in place of an answer: what no well-behaved server does.
    act: Callable[[BaseHTTPRequestHandler], None] | None = None


class Gecko:
    """Inside ``with``: answers ``prices`` (as JSON texts), unless ``bad`` says otherwise. ``asked`` is what it was asked."""

    def __init__(self) -> None:
        self.prices: dict[str, str] = {"usd": "50000.123456789012345", "eur": "46000", "gbp": "40000.5", "jpy": "7500000"}
        self.updated_at: str | None = None
        self.now: Callable[[], float] = time.time
        self.bad: Answer | None = None
        self.asked: list[tuple[str, dict[str, str], dict[str, str]]] = []
        self.gate = threading.Event()
        self.gate.set()

    def __enter__(self) -> Gecko:
        gecko = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                query = {name: values[0] for name, values in parse_qs(parts.query).items()}
                gecko.asked.append((parts.path, query, {name.lower(): value for name, value in self.headers.items()}))
                gecko.gate.wait(60)
                answer = gecko.bad or Answer(body=gecko.body(query.get("vs_currencies", "")))
                if answer.act is not None:
                    answer.act(self)
                    self.close_connection = True
                    return
                self.send_response(answer.status)
                for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer.body)

            def log_message(self, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False
            request_queue_size = 64

            def handle_error(self, *args: Any) -> None:
                pass  # a client that went away is no news

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/api/v3"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.gate.set()
        self._server.shutdown()
        self._server.server_close()

    def body(self, currency: str) -> bytes:
        updated_at = str(int(self.now())) if self.updated_at is None else self.updated_at
        stamp = f', "last_updated_at": {updated_at}' if updated_at else ""
        return f'{{"bitcoin": {{{json.dumps(currency)}: {self.prices[currency]}{stamp}}}}}'.encode()


def cut(handler: BaseHTTPRequestHandler) -> None:
    """The connection ends without a word."""
    handler.connection.close()


def trickle(handler: BaseHTTPRequestHandler) -> None:
    """An answer that never ends, a byte at a time, each in good time."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    for _ in range(600):
        handler.wfile.write(b" ")
        time.sleep(0.05)


def trickle_head(handler: BaseHTTPRequestHandler) -> None:
    """As `trickle`, but not even the head of the answer ends: nothing of it gets as far as requests."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    for _ in range(600):
        handler.wfile.write(b"X")
        time.sleep(0.05)


def put_off(handler: BaseHTTPRequestHandler) -> None:
    """For ever about to answer."""
    for _ in range(600):
        handler.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        time.sleep(0.05)
