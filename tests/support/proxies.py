"""Proxies on 127.0.0.1: an HTTP proxy that forwards and tunnels, and a SOCKS5 server. They keep what they saw in clear."""

from __future__ import annotations

import base64
import socket
import socketserver
import struct
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

Address = tuple[str, int]


@dataclass(frozen=True)
class Seen:
    """A request in the proxy's eyes. ``target`` is a URL, or ``host:port`` of a CONNECT."""

    method: str
    target: str
    headers: dict[str, str] = field(repr=False)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *args: object) -> None:
        pass  # a client that leaves is no news


class _Running:
    """A server that runs inside ``with``."""

    server: socketserver.TCPServer

    def __enter__(self) -> Any:
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    @property
    def address(self) -> str:
        host, port = self.server.server_address[:2]
        return f"{host!s}:{port}"


class HttpProxy(_Running):
    """Forwards ``http`` requests and tunnels CONNECTs, to where ``hosts`` says, else to where they want.

    ``login``: ``user:password`` that it wants, else 407. ``says``: what it answers itself, status and header lines, to CONNECTs
    (``connect_says``) or to everything else (``plain_says``). ``tunnelled``: the bytes of the tunnels, both ways.
    """

    def __init__(self, hosts: Mapping[Address, Address], *, login: str | None = None) -> None:
        self.hosts, self.login = hosts, login
        self.seen: list[Seen] = []
        self.tunnelled = bytearray()
        self.connect_says: tuple[int, list[tuple[str, str]]] | None = None
        self.plain_says: tuple[int, list[tuple[str, str]]] | None = None
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_CONNECT(self) -> None:
                if self._is_answered(proxy.connect_says):
                    return
                host, _, port = self.path.rpartition(":")
                address = (host.strip("[]"), int(port))
                with socket.create_connection(proxy.hosts.get(address, address)) as origin:
                    self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                    _splice(self.connection, origin, proxy.tunnelled)
                self.close_connection = True

            def forward(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if self._is_answered(proxy.plain_says):
                    return
                parts = urlsplit(self.path)
                address = (parts.hostname or "", parts.port or 80)
                path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
                lines = [f"{self.command} {path} HTTP/1.1"]
                lines += [f"{k}: {v}" for k, v in self.headers.items() if k.lower() not in ("connection", "proxy-authorization")]
                with socket.create_connection(proxy.hosts.get(address, address)) as origin:
                    origin.sendall("\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1") + body)
                    head = b""
                    while b"\r\n" not in head and (data := origin.recv(65536)):
                        head += data
                    # Said, not only done: else the client may send its next request just before it sees the end.
                    self.connection.sendall(head.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
                    while data := origin.recv(65536):
                        self.connection.sendall(data)
                self.close_connection = True

            do_GET = do_POST = do_HEAD = forward

            def _is_answered(self, says: tuple[int, list[tuple[str, str]]] | None) -> bool:
                proxy.seen.append(Seen(self.command, self.path, dict(self.headers.items())))
                wanted = proxy.login and "Basic " + base64.b64encode(proxy.login.encode()).decode()
                if wanted and self.headers.get("Proxy-Authorization") != wanted:
                    says = 407, [("Proxy-Authenticate", "Basic")]
                if says is None:
                    return False
                self.send_response(says[0])
                for name, value in [*says[1], ("Content-Length", "0")]:
                    self.send_header(name, value)
                self.end_headers()
                return True

            def log_message(self, *args: object) -> None:
                pass

        self.server = _Server(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://{self.login + '@' if self.login else ''}{self.address}"


class SocksProxy(_Running):
    """SOCKS5 (RFC 1928), CONNECT only; with ``login``, ``user:password`` (RFC 1929). ``asked``: where to, as it was told."""

    def __init__(self, hosts: Mapping[Address, Address], *, login: str | None = None) -> None:
        self.login = login
        self.asked: list[Address] = []
        proxy = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with suppress(OSError, EOFError):
                    self._serve()

            def _serve(self) -> None:
                _, methods = self._take(2)
                method = 2 if proxy.login else 0
                assert method in self._take(methods)
                self.request.sendall(bytes([5, method]))
                if proxy.login:
                    user = self._take(self._take(2)[1])
                    password = self._take(self._take(1)[0])
                    is_right = user + b":" + password == proxy.login.encode()
                    self.request.sendall(bytes([1, not is_right]))
                    if not is_right:
                        return
                _, command, _, kind = self._take(4)
                assert command == 1
                host = {
                    1: lambda: socket.inet_ntop(socket.AF_INET, self._take(4)),
                    3: lambda: self._take(self._take(1)[0]).decode(),
                    4: lambda: socket.inet_ntop(socket.AF_INET6, self._take(16)),
                }[kind]()
                address = (host, int(struct.unpack(">H", self._take(2))[0]))
                proxy.asked.append(address)
                with socket.create_connection(hosts.get(address, address)) as origin:
                    self.request.sendall(bytes([5, 0, 0, 1]) + bytes(6))
                    _splice(self.request, origin, bytearray())

            def _take(self, size: int) -> bytes:
                data = b""
                while len(data) < size:
                    more = self.request.recv(size - len(data))
                    if not more:
                        raise EOFError
                    data += more
                return data

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            block_on_close = False

        self.server = Server(("127.0.0.1", 0), Handler)

    def url(self, scheme: str) -> str:
        return f"{scheme}://{self.login + '@' if self.login else ''}{self.address}"


def _splice(one: socket.socket, other: socket.socket, kept: bytearray) -> None:
    """Pass bytes both ways until either side is through."""

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                kept.extend(data)
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    back = threading.Thread(target=pump, args=(other, one), daemon=True)
    back.start()
    pump(one, other)
    back.join()
