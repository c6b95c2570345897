"""An HTTP server of one function, for tests whose server does what no paywall does."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@contextlib.contextmanager
def server(answer: Any) -> Iterator[str]:
    """An HTTP server of one function: ``answer(handler) -> (status, header lines, body)``. Gives its URL.

    ``handler.body`` is the request's body.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def reply(self) -> None:
            self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, lines, body = answer(self)
            self.send_response(status)
            for name, value in lines:
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_HEAD = do_OPTIONS = do_POST = do_PUT = do_DELETE = reply

        def log_message(self, *args: object) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{running.server_port}"
    finally:
        running.shutdown()
        running.server_close()


@contextlib.contextmanager
def raw_server(head: bytes, more: Callable[[], bytes], pause_s: float = 0.0) -> Iterator[str]:
    """A server that answers each request with ``head``, and then with what ``more`` gives, until the client has gone."""

    def answer(connection: socket.socket, ended: threading.Event) -> None:
        connection.recv(65_536)
        connection.sendall(head)
        while not ended.wait(pause_s):
            connection.sendall(more())

    with socket_server(answer) as url:
        yield url


@contextlib.contextmanager
def socket_server(serve: Callable[[socket.socket, threading.Event], None]) -> Iterator[str]:
    """A server whose connections ``serve`` handles, each in a thread; the event is set when the server ends."""
    ended = threading.Event()

    def run(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            serve(connection, ended)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=run, args=[listener.accept()[0]], daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        finally:
            ended.set()
