"""One WebSocket connection to a relay: opened, written, read and closed by one thread, with a deadline for each step.

Knows sockets, TLS and the frames of RFC 6455 (by websockets' protocol without I/O), and how many bytes of a text have left. It
starts no thread, so a fork or an interrupt leaves no half of it behind. What the texts say is left to `talk`.

Nothing of the environment applies: no proxy, and no redirect is followed.
"""

from __future__ import annotations

import socket
import ssl
from collections import deque
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from ..._core.deadline import monotonic_s
from ..replies import tidy
from .library import websocket

#: A relay's message may have this many bytes. The wallet's list of payments is the longest.
MESSAGE_BYTES_MAX = 1 << 20
#: How long one relay may take to open a connection, in seconds: name, TCP, TLS and handshake.
OPEN_S_MAX = 10.0
#: How long a relay may take to answer a ping on a connection that was idle, in seconds.
PING_S_MAX = 3.0
_READ_BYTES = 65_536
_PORTS = {"ws": 80, "wss": 443}


class LinkError(Exception):
    """A connection that can't be opened or has broken. ``sent``: bytes of the text that was being sent have left."""

    def __init__(self, reason: str, *, sent: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.sent = reason, sent


class Link:
    """An open connection to the relay ``url``.

    Raises: LinkError if the relay can't be reached, or refuses the handshake. FundingError if the extra isn't installed.
    """

    def __init__(self, url: str, deadline: float) -> None:
        self._client, self._frames = websocket()
        self.url = url
        #: The relay, for texts. A path or a query may hold a token.
        self.place = place_of(url)
        #: Whether it was put back and taken again since it was opened.
        self.is_used = False
        #: When the relay was last heard of, on the monotonic clock.
        self.heard_at = monotonic_s()
        #: What the wallet says of itself over this connection; see `talk`.
        self.notes: dict[str, Any] = {}
        #: The requests whose answers are waited for, and the answers that have come, by the names of their subscriptions.
        self.asked: dict[str, Any] = {}
        self.answers: dict[str, dict[str, Any]] = {}
        self._texts: deque[str] = deque()
        self._parts: list[bytes] = []
        self._pongs: set[bytes] = set()
        deadline = min(deadline, monotonic_s() + OPEN_S_MAX)
        try:
            self._socket = self._connect(deadline)
        except (OSError, UnicodeError) as error:
            raise LinkError(f"{self.place} can't be reached: {_cause(error)}") from None
        try:
            self._shake_hands(deadline)
        except BaseException:
            self._socket.close()
            raise

    def send(self, text: str, deadline: float) -> None:
        """Send ``text``. Raises: LinkError."""
        try:
            self._protocol.send_text(text.encode())
        except Exception as error:  # noqa: BLE001 - the protocol has several errors for a connection that isn't open
            raise LinkError(f"{self.place} has closed the connection ({type(error).__name__})") from None
        self._flush(deadline)

    def receive(self, deadline: float) -> str | None:
        """Return the relay's next text, or None if none comes before the deadline. Raises: LinkError if the connection ends."""
        while not self._texts:
            if not self._read(deadline):
                return None
        return self._texts.popleft()

    def has_news(self) -> bool:
        """Return whether anything has come that isn't read yet: a text, or the end of the connection."""
        from urllib3.util.wait import wait_for_read

        try:
            return bool(self._texts) or wait_for_read(self._socket, 0)
        except (OSError, ValueError):  # closed
            return True

    def is_alive(self, deadline: float) -> bool:
        """Return whether the relay answers a ping. Texts that come in meanwhile are kept."""
        token = str(monotonic_s()).encode()
        deadline = min(deadline, monotonic_s() + PING_S_MAX)
        try:
            self._protocol.send_ping(token)
            self._flush(deadline)
            while token not in self._pongs:
                if not self._read(deadline):
                    return False
        except Exception:  # noqa: BLE001 - of whatever kind, the connection is of no more use
            return False
        return True

    def close(self) -> None:
        """Close the connection at once. May be called from another thread, to end a wait, and twice."""
        with suppress(Exception):
            self._protocol.send_close()
            self._socket.settimeout(0)
            for data in self._protocol.data_to_send():
                if data:
                    self._socket.send(data)
        self.abandon()

    def abandon(self) -> None:
        """End the connection without a word. May be called from another thread."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        with suppress(OSError):
            self._socket.close()

    def _connect(self, deadline: float) -> socket.socket:
        parts = urlsplit(self.url)
        assert parts.hostname is not None  # `uri` has seen to that
        place = (parts.hostname, parts.port or _PORTS[parts.scheme])
        plain = socket.create_connection(place, timeout=_left_s(deadline))
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if parts.scheme == "ws":
                return plain
            plain.settimeout(_left_s(deadline))
            return ssl.create_default_context().wrap_socket(plain, server_hostname=parts.hostname)
        except BaseException:
            plain.close()
            raise

    def _shake_hands(self, deadline: float) -> None:
        from websockets.uri import parse_uri

        protocol = self._protocol = self._client.ClientProtocol(parse_uri(self.url), max_size=MESSAGE_BYTES_MAX)
        request = protocol.connect()
        protocol.send_request(request)
        try:
            self._flush(deadline)
            while protocol.state.name == "CONNECTING" and protocol.handshake_exc is None:
                if not self._read(deadline):
                    raise LinkError(f"{self.place} doesn't answer the handshake in time")
        except LinkError as error:
            if protocol.handshake_exc is None:
                raise LinkError(error.reason) from None
        if protocol.handshake_exc is not None:
            raise LinkError(f"{self.place} refuses the handshake: {tidy(str(protocol.handshake_exc))}")

    def _flush(self, deadline: float) -> None:
        """Send what the protocol has to send. Raises: LinkError that tells whether bytes of it have left."""
        sent = False
        for data in self._protocol.data_to_send():
            left = memoryview(data)
            if not left:  # the end of what is sent
                with suppress(OSError):
                    self._socket.shutdown(socket.SHUT_WR)
            while left:
                try:
                    self._socket.settimeout(_left_s(deadline))
                    left, sent = left[self._socket.send(left) :], True
                except (OSError, ValueError) as error:
                    self.abandon()
                    raise LinkError(f"{self.place} broke off: {_cause(error)}", sent=sent) from None

    def _read(self, deadline: float) -> bool:
        """Read once from the socket. Return False if nothing comes before the deadline. Raises: LinkError if the end comes."""
        if monotonic_s() >= deadline:
            return False
        try:
            self._socket.settimeout(_left_s(deadline))
            data = self._socket.recv(_READ_BYTES)
        except TimeoutError:
            return False
        except (OSError, ValueError) as error:
            self.abandon()
            raise LinkError(f"{self.place} broke off: {_cause(error)}") from None
        protocol = self._protocol
        if data:
            self.heard_at = monotonic_s()
            protocol.receive_data(data)
        else:
            protocol.receive_eof()
        for event in protocol.events_received():
            self._take(event)
        with suppress(LinkError):  # answers to pings, or the end; if it has come, it is told below
            self._flush(deadline)
        if not self._texts and (not data or protocol.state.name in ("CLOSING", "CLOSED")):
            self.abandon()
            fault = protocol.parser_exc
            is_garbled = fault is not None and not isinstance(fault, EOFError)
            what = f"said what can't be read: {tidy(str(fault))}" if is_garbled else "closed the connection"
            raise LinkError(f"{self.place} {what}")
        return True

    def _take(self, event: Any) -> None:
        opcode, codes = getattr(event, "opcode", None), self._frames.Opcode
        if opcode is codes.PONG:
            self._pongs = {bytes(event.data)}
        elif opcode in (codes.TEXT, codes.BINARY, codes.CONT):
            if opcode is not codes.CONT:
                self._parts = []
            self._parts.append(bytes(event.data))
            if event.fin:
                self._texts.append(b"".join(self._parts).decode("utf-8", "replace"))
                self._parts = []


def place_of(url: str) -> str:
    """Return the scheme, the host and the port of a relay's URL."""
    return url.partition("?")[0].split("/", 3)[0] + "//" + urlsplit(url).netloc


def _left_s(deadline: float) -> float:
    """Return the seconds until ``deadline``, as a timeout of a socket. 0 would mean: don't wait at all."""
    return max(deadline - monotonic_s(), 0.001)


def _cause(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "it doesn't answer in time"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate isn't trusted ({tidy(error.verify_message)})"
    return tidy(getattr(error, "strerror", None) or str(error) or type(error).__name__)
