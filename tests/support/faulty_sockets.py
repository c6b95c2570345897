"""Sockets that misbehave on purpose: between a client and a server, or in a server's place."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

from routeweiler_sync.testing.paywall import PaywallLogic

Then = Literal["keep", "close", "reset", "hang"]
_POLL_S = 0.05
#: Linux and Windows wake an accept(), some others may not.
_WOKEN_S = 1.0


class Proxy:
    """Passes bytes between clients and ``127.0.0.1:port``, until what is connected is frozen (passes nothing, says nothing) or cut.

    New connections flow. ``stalled`` is set once bytes have come in that a freeze keeps back.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._frozen: set[socket.socket] = set()
        self._sockets: set[socket.socket] = set()
        self.stalled = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._closing = threading.Event()
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def freeze(self) -> None:
        self._frozen |= self._sockets

    def cut(self) -> None:
        for connection in list(self._sockets):
            reset(connection)
        self._sockets.clear()

    def close(self) -> None:
        self._closing.set()
        self._acceptor.join()  # closed under it, accept() would go on with whatever socket gets the listener's number next
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        self._listener.settimeout(_POLL_S)
        with suppress(ConnectionError):
            while not self._closing.is_set():
                try:
                    client, _ = self._listener.accept()
                except TimeoutError:
                    continue
                server = socket.create_connection(("127.0.0.1", self._target))
                self._sockets |= {client, server}
                for source, sink in ((client, server), (server, client)):
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if source in self._frozen:
                    self.stalled.set()
                else:
                    sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextmanager
def listener(on_connection: str) -> Iterator[int]:
    """A port whose connections are ``frozen`` (accepted, never answered), ``reset``, ``closed`` or spoken to in ``http``."""
    server = socket.create_server(("127.0.0.1", 0))
    held: list[socket.socket] = []

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = server.accept()
                held.append(connection)
                if on_connection == "reset":
                    reset(connection)
                elif on_connection == "closed":
                    connection.close()
                elif on_connection == "http":
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    acceptor = threading.Thread(target=serve, daemon=True)
    acceptor.start()
    try:
        yield server.getsockname()[1]
    finally:
        with suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
        acceptor.join(_WOKEN_S)
        server.close()
        for connection in held:
            connection.close()


class OutspokenPaywall(PaywallLogic):
    """A paywall on 127.0.0.1 that says, byte for byte, what it is told to; inside ``with``.

    What is planned by `say` goes to requests with a good credential, and to all for ``/raw``. Else it answers as a `PaywallLogic`.
    """

    def __init__(self, lnd: Any, **options: Any) -> None:
        super().__init__(lnd, **options)
        self.words: list[tuple[bytes | Callable[[], bytes], Then]] = []
        self.stopping = threading.Event()
        wall = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def reply(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                reply = wall.answer(self.command, self.path, self.headers.items(), body)
                if wall.words and (wall.requests[-1].paid or self.path == "/raw"):
                    said, then = wall.words.pop(0)
                    self.connection.sendall(said if isinstance(said, bytes) else said())
                    if then == "hang":
                        wall.stopping.wait()
                    elif then == "reset":
                        reset(self.connection)
                    self.close_connection = then != "keep"
                    return
                lines = [f"HTTP/1.1 {reply.status} As Planned", *(f"{name}: {value}" for name, value in reply.headers)]
                head = "\r\n".join([*lines, f"Content-Length: {len(reply.body)}", "", ""])
                self.connection.sendall(head.encode() + reply.body)

            do_GET = do_POST = do_HEAD = reply

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False

    def __enter__(self) -> OutspokenPaywall:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()

    def say(self, what: bytes | Callable[[], bytes], then: Then = "keep", *, times: int = 1) -> None:
        """Say ``what``, instead of an answer, ``times`` times; ``then`` keep the connection, close or reset it, or fall silent."""
        self.words += [(what, then)] * times

    def url_for(self, path: str) -> str:
        return f"http://127.0.0.1:{self._server.server_port}{path}"

    @property
    def url(self) -> str:
        return self.url_for("/paid")


def reset(connection: socket.socket) -> None:
    """Close so that the peer gets RST."""
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("hh" if os.name == "nt" else "ii", 1, 0))
        connection.shutdown(socket.SHUT_RD)  # wakes a thread that reads it, which would keep it open
        connection.close()


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port
