"""A TCP relay between buyers and their lnd that can be cut or frozen, at an instant or at a byte, or hold an order back.

A cut at a byte passes the bytes before it: the order itself may be cut in two. What is held back arrives later, whatever has become
of its sender meanwhile: lnd then carries out a dead client's order.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from .faulty_sockets import reset

Way = Literal["to lnd", "from lnd", "both"]

#: What can be lost: the order never arrives, or it does and the connection breaks as soon as the wallet says anything.
Lost = Literal["order", "answer"]

READ_BYTES = 65_536
#: Sent at once, only an order is so long: it holds an invoice. (And the first message of TLS, and a question over HTTP.)
ORDER_BYTES_MIN = 250
NO_ORDERS = (b"\x16", b"GET ")
#: Once lnd has read what it was sent, it is given so long to act on it before its connection ends.
GRACE_S = 0.3
#: How long that it reads is waited for.
READ_S, POLL_S = 10.0, 0.01
#: The system's connections, where it is Linux.
CONNECTIONS = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))


class Wire:
    """Relays ``port`` to 127.0.0.1:``target``. New connections flow, also after a fault; the fault hits those that are there."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._frozen: set[socket.socket] = set()
        self._armed: tuple[int, str | Callable[[], None], Way] | None = None
        self._passed: Counter[Way] = Counter()
        self._losing: tuple[Lost, int | None] | None = None
        self._answers_lost: set[socket.socket] = set()
        self._holding = False
        self._held: list[tuple[socket.socket, bytes]] = []
        self._released = threading.Event()
        self._released.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def arm(self, bytes_left: int, how: str | Callable[[], None], way: Way = "both") -> None:
        """Strike after so many more bytes that way; ``both``: counted together. A function is called then, and nothing is cut."""
        with self._lock:
            self._armed = (bytes_left, how, way)

    @property
    def passed(self) -> dict[Way, int]:
        """How many bytes have come, that way, since the start."""
        with self._lock:
            return dict(self._passed)

    @contextmanager
    def losing(self, what: Lost, times: int | None = None) -> Iterator[None]:
        """Inside, the connection of each order, or of the next ``times``, breaks before it arrives or before its answer does."""
        with self._lock:
            self._losing = (what, times)
        try:
            yield
        finally:
            with self._lock:
                self._losing = None

    def hold(self) -> None:
        """Keep the next order, and all that its connection sends after it, until `release`."""
        with self._lock:
            self._holding = True
            self._released.clear()

    def release(self, *, order_alone: bool = False) -> None:
        """Deliver what was held; ``order_alone``: not the cancellation that a sender which has died would never have sent."""
        with self._lock:
            held, self._held, self._holding = self._held, [], False
            for sink, data in held[:1] if order_alone else held:
                with suppress(OSError):
                    sink.sendall(data)
            self._released.set()

    def strike(self, how: str) -> None:
        """``rst``, ``fin`` or ``wire freeze`` for all connections that are there."""
        with self._lock:
            pairs, self._pairs, self._armed = self._pairs, [], None
            if how == "wire freeze":
                self._frozen.update(end for pair in pairs for end in pair)
                self._pairs = pairs
                return
        for pair in pairs:
            for end in pair:
                if how == "rst":
                    reset(end)
                else:
                    with suppress(OSError):
                        end.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.release()
        self.strike("rst")

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self._target))
                except OSError:  # lnd is down
                    reset(client)
                    continue
                for end in (client, server):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with self._lock:
                    self._pairs.append((client, server))
                for source, sink, to_lnd in ((client, server, True), (server, client, False)):
                    threading.Thread(target=self._pump, args=(source, sink, to_lnd), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, to_lnd: bool) -> None:
        with suppress(OSError):
            while data := source.recv(READ_BYTES):
                if to_lnd and self._keeps(sink, data):
                    continue
                if self._loses(source, sink, data, to_lnd):
                    if not to_lnd:  # the wallet may speak before it has read the whole order, which an RST would throw away
                        self._let_act(source)
                    reset(source)
                    reset(sink)
                    return
                passed, strikes = self._passes(data, to_lnd)
                if source not in self._frozen:
                    sink.sendall(passed)
                if callable(strikes):
                    strikes()
                elif strikes is not None:
                    self.strike(strikes)
        if not self._released.is_set():
            self._released.wait()
            self._let_act(sink if to_lnd else source)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _let_act(self, lnd: socket.socket) -> None:
        """Wait until ``lnd`` has read all that it was sent, and has had the time to act on it."""
        until_s = time.monotonic() + READ_S
        while _unread(lnd, self._target) and time.monotonic() < until_s:
            time.sleep(POLL_S)
        time.sleep(GRACE_S)

    def _keeps(self, sink: socket.socket, data: bytes) -> bool:
        with self._lock:
            keeps = self._holding and (self._is_order(data) or any(held is sink for held, _ in self._held))
            if keeps:
                self._held.append((sink, data))
            return keeps

    def _loses(self, source: socket.socket, sink: socket.socket, data: bytes, to_lnd: bool) -> bool:
        """Whether the connection breaks before ``data`` is passed on."""
        with self._lock:
            if source in self._answers_lost:
                return True
            if not to_lnd or self._losing is None or not self._is_order(data):
                return False
            what, left = self._losing
            self._losing = None if left == 1 else (what, None if left is None else left - 1)
            if what == "answer":
                self._answers_lost.add(sink)
            return what == "order"

    def _is_order(self, data: bytes) -> bool:
        return len(data) >= ORDER_BYTES_MIN and not data.startswith(NO_ORDERS)

    def _passes(self, data: bytes, to_lnd: bool) -> tuple[bytes, str | Callable[[], None] | None]:
        own: Way = "to lnd" if to_lnd else "from lnd"
        with self._lock:
            self._passed[own] += len(data)
            if self._armed is None or self._armed[2] not in ("both", own):
                return data, None
            left, how, way = self._armed
            self._armed = (left - len(data), how, way)
            if len(data) < left:
                return data, None
            self._armed = None
            return data if callable(how) else data[:left], how


def _unread(end: socket.socket, target: int) -> bool:
    """Whether the program at the port ``target`` hasn't read yet all that was sent to it over ``end``. Known on Linux only."""
    try:
        ours = end.getsockname()[1]
    except OSError:  # it is closed
        return False
    for table in CONNECTIONS:
        with suppress(OSError):
            for _, local, remote, _, queues, *_ in map(str.split, table.read_text().splitlines()[1:]):
                ports = tuple(int(address.rpartition(":")[2], 16) for address in (local, remote))
                unsent, unread = (int(size, 16) for size in queues.split(":"))
                if (ports == (ours, target) and unsent) or (ports == (target, ours) and unread):
                    return True
    return False
