"""A Nostr relay on 127.0.0.1, as far as wallets of NWC need one: subscriptions, events that expire, and faults on demand (NIP-01).

It keeps the newest info event of each author, and passes all other events on to whoever listens at that moment. Who the events are
from and what they say is left to `fake_nwc`, and to the wallets that connect.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

#: Kinds of which only the newest event of an author counts, and is kept (NIP-01).
_KEPT = range(10_000, 20_000)
_READ_BYTES = 65_536
_JOIN_S_MAX = 5.0
#: What `Relay.gate` returns for an event that the relay accepts and delivers to nobody.
SWALLOW = "swallow"


class Relay:
    """A relay that listens between `start` and `stop`. Its port stays the same.

    ``gate`` is asked about each event that a client publishes. It returns None (passed on), `SWALLOW`, or the text with which the
    event is refused. ``heard`` is called with each event that was passed on.
    """

    def __init__(self) -> None:
        self.host, self.port = "127.0.0.1", 0
        self.gate: Callable[[dict[str, Any]], str | None] = lambda event: None
        self.heard: Callable[[dict[str, Any]], None] = lambda event: None
        #: With it, clients must say who they are before they may do anything (NIP-42).
        self.asks_who = False
        #: With it, the handshake is answered with this status.
        self.refuses_with: int | None = None
        #: What was published, refused events too, in order.
        self.events: list[dict[str, Any]] = []
        self._kept: dict[tuple[int, str], dict[str, Any]] = {}
        self._lock = threading.RLock()
        self._listener: socket.socket | None = None
        self._peers: set[_Peer] = set()

    @property
    def url(self) -> str:
        """The address that clients connect to."""
        return f"ws://{self.host}:{self.port}"

    def start(self) -> None:
        """Start to listen."""
        if self._listener is not None:
            return
        listener = socket.create_server((self.host, self.port), backlog=256)
        self.port = listener.getsockname()[1]
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def stop(self) -> None:
        """Stop at once: connections break. What is kept stays."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        self.cut()

    def cut(self) -> None:
        """Break all connections."""
        with self._lock:
            peers = list(self._peers)
        for peer in peers:
            peer.cut()

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        with self._lock:
            return len(self._peers)

    def publish(self, event: dict[str, Any]) -> None:
        """Pass an event on to all that listen for it."""
        with self._lock:
            if event["kind"] in _KEPT:
                kept = self._kept.get(key := (event["kind"], event["pubkey"]))
                if kept is None or kept["created_at"] <= event["created_at"]:
                    self._kept[key] = event
            peers = list(self._peers)
        for peer in peers:
            peer.offer(event)

    def forget(self) -> None:
        """Forget the events that are kept."""
        with self._lock:
            self._kept.clear()

    def kept(self) -> list[dict[str, Any]]:
        """Return the events that are kept."""
        with self._lock:
            return list(self._kept.values())

    def take(self, event: dict[str, Any]) -> tuple[bool, str]:
        """Take an event that a client publishes. Return whether it was accepted, and what to tell the client."""
        with self._lock:
            self.events.append(event)
        problem = _problem_of(event)
        if problem is None:
            verdict = self.gate(event)
            if verdict == SWALLOW:
                return True, ""
            problem = verdict
        if problem is not None:
            return False, problem
        self.publish(event)
        self.heard(event)
        return True, ""

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            peer = _Peer(self, connection)
            with self._lock:
                if self._listener is not listener:
                    connection.close()
                    return
                self._peers.add(peer)
            threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer: _Peer) -> None:
        try:
            peer.serve()
        finally:
            peer.cut()
            with self._lock:
                self._peers.discard(peer)


class _Peer:
    """One connection of a client."""

    def __init__(self, relay: Relay, connection: socket.socket) -> None:
        from websockets.server import ServerProtocol

        self._relay, self._socket = relay, connection
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._protocol = ServerProtocol(max_size=1 << 20)
        self._lock = threading.Lock()
        self._wanted: dict[str, list[dict[str, Any]]] = {}
        self._parts: list[bytes] = []
        self._is_known = not relay.asks_who

    def serve(self) -> None:
        """Answer the client until the connection ends."""
        while True:
            try:
                data = self._socket.recv(_READ_BYTES)
            except OSError:
                return
            with self._lock:
                if data:
                    self._protocol.receive_data(data)
                else:
                    self._protocol.receive_eof()
                events = self._protocol.events_received()
                self._flush()
            for event in events:
                self._take(event)
            if not data:
                return

    def cut(self) -> None:
        """Break the connection."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        with suppress(OSError):
            self._socket.close()

    def offer(self, event: dict[str, Any]) -> None:
        """Send an event once for each subscription that it fits."""
        with self._lock:
            wanted = list(self._wanted.items())
        for name, filters in wanted:
            if any(_fits(event, each) for each in filters):
                self._say("EVENT", name, event)

    def _take(self, event: Any) -> None:
        from websockets.frames import Opcode

        if not hasattr(event, "opcode"):  # the handshake
            with self._lock:
                status = self._relay.refuses_with
                response = self._protocol.accept(event) if status is None else self._protocol.reject(status, "no\n")
                self._protocol.send_response(response)
                self._flush()
            if self._relay.asks_who:
                self._say("AUTH", "who are you?")
            return
        if event.opcode not in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            return
        self._parts.append(bytes(event.data))
        if not event.fin:
            return
        text, self._parts = b"".join(self._parts), []
        with suppress(ValueError, KeyError, TypeError, AttributeError):
            self._answer(json.loads(text))

    def _answer(self, message: Any) -> None:
        match message:
            case ["AUTH", dict(event)]:
                self._is_known = _problem_of(event) is None and ["challenge", "who are you?"] in event["tags"]
                self._say("OK", event["id"], self._is_known, "")
            case ["REQ", str(name), *filters]:
                if not self._is_known:
                    self._say("CLOSED", name, "auth-required: say who you are")
                    return
                with self._lock:
                    self._wanted[name] = filters
                for event in self._relay.kept():
                    if any(_fits(event, each) for each in filters):
                        self._say("EVENT", name, event)
                self._say("EOSE", name)
            case ["CLOSE", str(name)]:
                with self._lock:
                    self._wanted.pop(name, None)
            case ["EVENT", dict(event)]:
                if self._is_known:
                    is_taken, text = self._relay.take(event)
                else:
                    is_taken, text = False, "auth-required: say who you are"
                self._say("OK", event["id"], is_taken, text)

    def _say(self, *message: Any) -> None:
        with self._lock, suppress(Exception):  # of any kind: the client is gone
            self._protocol.send_text(json.dumps(message).encode())
            self._flush()

    def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            with suppress(OSError):
                self._socket.sendall(data) if data else self._socket.shutdown(socket.SHUT_WR)


def _problem_of(event: dict[str, Any]) -> str | None:
    """Return why an event is refused, None if it isn't."""
    import nostr_sdk

    try:
        is_good = nostr_sdk.Event.from_json(json.dumps(event)).verify()
    except nostr_sdk.NostrSdkError:
        is_good = False
    if not is_good:
        return "invalid: bad id or signature"
    ends = [tag[1] for tag in event["tags"] if tag[0] == "expiration"]
    if ends and int(ends[0]) < time.time():
        return "invalid: event expired"
    return None


def _fits(event: dict[str, Any], wanted: dict[str, Any]) -> bool:
    for name, values in wanted.items():
        if name == "limit":
            continue
        if name == "since":
            if event["created_at"] < values:
                return False
        elif name == "until":
            if event["created_at"] > values:
                return False
        elif name.startswith("#"):
            if not any(tag[0] == name[1:] and tag[1] in values for tag in event["tags"] if len(tag) > 1):
                return False
        elif event[{"kinds": "kind", "authors": "pubkey", "ids": "id"}[name]] not in values:
            return False
    return True
