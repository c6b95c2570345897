"""HTTP calls to a wallet: each says whether a byte of the request can have left, and ends in time.

What makes this differ from a call of `requests`:

- A call that fails raises `NotSentError` if not a byte of the request has left, and `NoAnswerError` otherwise. Only the former
  proves that nothing was ordered. So an order gets a connection of its own: on a kept one the two couldn't be told apart.
- Every call ends by its deadline, also if the server sends one byte a minute. A worker thread does the work (`worker_calls`).
- Nothing of the environment applies: no proxy, no REQUESTS_CA_BUNDLE (it would beat a pinned certificate), no .netrc. No redirect
  is followed, no cookie kept, nothing decompressed, nothing repeated but a question whose kept connection was gone.
- It works beside libraries that replace parts of `requests`, `urllib3`, `http.client` or `ssl`, and beside install().

What an answer means for a payment is left to the clients. Knows no wallet.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
from collections.abc import Callable, Generator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any, Literal, TypeVar

import certifi
import urllib3.connection
from urllib3.util.wait import wait_for_read

from .._core.deadline import monotonic_s
from .._core.secret_text import without_secrets
from ..errors import RouteweilerError
from .http_url import WalletUrl
from .replies import tidy
from .worker_calls import NoThreadError, SilentError, WorkerCall, items_of, result_of

_Result = TypeVar("_Result")

#: The longest body of an answer, unless the call says otherwise.
BODY_BYTES_MAX = 4 * 2**20
#: The longest line of a stream.
LINE_BYTES_MAX = 4 * 2**20
#: The shortest timeout of a call.
_CALL_S_MIN = 0.05
#: A call that has ended by itself is told this long after its deadline at the latest.
_SILENCE_S = 0.5
#: Connections for questions that are kept open, and for how long they may rest: a firewall forgets one that rests for longer.
_KEPT_MAX, _KEPT_S_MAX = 4, 20.0
#: A name with many addresses: this many are tried.
_ADDRESSES_MAX = 8
_CLOSE_S_MAX = 1.0
#: Statuses that come before the answer, such as Early Hints; http.client itself skips 100.
_INTERIM = range(102, 200)

#: The class itself, also where a program has put another into its module, as vcrpy does: the key would be recorded.
_Connection: Any = next(each for each in urllib3.connection.HTTPConnection.__mro__ if each.__module__ == "http.client")

#: What went wrong: no such name, nothing listens, the TLS handshake failed, time passed, the connection broke, what came isn't HTTP
#: or is too large, no thread could be started, or something else.
Kind = Literal["name", "refused", "tls", "timeout", "cut", "malformed", "large", "thread", "other"]


class HttpCallError(Exception):
    """A call without an answer.

    ``what`` says what happened; it follows "LNbits at https://host: ". ``advice`` begins with a small letter. Neither has a full
    stop or a secret. ``detail`` is the text of the system's error, or "".
    """

    def __init__(self, what: str, *, kind: Kind, advice: str = "", detail: str = "") -> None:
        super().__init__(what)
        self.what, self.kind, self.detail = what, kind, detail
        self.advice = advice or "check that the wallet is up and can be reached from here"


class NotSentError(HttpCallError):
    """Not a byte of the request has left, and none will."""


class NoAnswerError(HttpCallError):
    """The request may have arrived and been acted upon; its answer didn't come whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """Whom a server's certificate must be from. ``roots_pem``: these alone; None: the authorities that the public trusts.

    ``name`` is checked in the certificate in place of the URL's host.
    """

    roots_pem: bytes | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRequest:
    """What to send. ``path`` comes after the URL's own path, and begins with a slash. Headers and body may be secrets."""

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes | None = field(default=None, repr=False)
    bytes_max: int = BODY_BYTES_MAX

    @classmethod
    def of_json(cls, method: str, path: str, content: object, headers: Mapping[str, str]) -> HttpRequest:
        """Return a request with ``content`` as its JSON body."""
        return cls(
            method=method, path=path, headers={**headers, "Content-Type": "application/json"}, body=json.dumps(content).encode()
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpAnswer:
    """An answer that came whole, whatever its ``status``."""

    status: int
    content_type: str
    body: bytes = field(repr=False)

    def json(self) -> Any:
        """Return what the body says. Raises: ValueError if it isn't JSON (a proxy's page, for example)."""
        return read_json(self.body)


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLine:
    """One line of a stream, with the ``status`` that the stream began with."""

    status: int
    content_type: str
    line: bytes = field(repr=False)


def read_json(data: bytes) -> Any:
    """Return what a JSON text says. Raises: ValueError if it isn't one, or is nested too deeply to be read."""
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("too deeply nested") from None
    except ValueError as error:  # it holds the whole text, which may have a preimage in it
        raise ValueError(type(error).__name__) from None


class HttpCalls:
    """The calls to one wallet. Safe to share between threads; a forked child makes connections of its own.

    ``trust`` is asked before each new connection, so that a renewed certificate is noticed. It may raise FundingError.
    """

    def __init__(self, url: WalletUrl, trust: Callable[[], Trust] = Trust) -> None:
        self._url, self._trust = url, trust
        # (process, connection, when it was put here). Lists of CPython need no lock, which a fork could leave taken.
        self._kept: list[tuple[int, Any, float]] = []
        # The connections of calls that are running now, by id, with their process.
        self._running: dict[int, tuple[int, Any]] = {}
        self._context: tuple[bytes | None, ssl.SSLContext] | None = None

    def ask(self, request: HttpRequest, *, timeout_s: float) -> HttpAnswer:
        """Ask a question and return its answer. May be asked twice, so ``request`` must be one that changes nothing.

        Raises: NotSentError or NoAnswerError. FundingError if the certificate's file can't be read.
        Money: none moves.
        """
        return self._one(request, timeout_s, may_keep=True)

    def order(self, request: HttpRequest, *, timeout_s: float) -> HttpAnswer:
        """Send ``request`` once, over a connection of its own, and return the answer.

        Raises: NotSentError only if not a byte of it has left. Otherwise as `ask`.
        Money: what ``request`` moves. After an interrupt the wallet goes on.
        """
        return self._one(request, timeout_s, may_keep=False)

    def lines(self, request: HttpRequest, *, timeout_s: float) -> Generator[HttpLine, None, None]:
        """Send ``request`` once, over a connection of its own, and yield the lines of the answer as they come; empty ones too.

        The iterator ends when the answer has come whole. Closing it early ends the connection.

        Raises: as `order`.
        Money: as `order`.
        """
        attempt = _Attempt(timeout_s)

        def work(worker_call: WorkerCall[HttpLine | None]) -> None:
            connection = self._opened(attempt, worker_call)
            self._running[id(connection)] = (os.getpid(), connection)
            try:
                response = self._sent(connection, request, attempt)
                with _reading(attempt):
                    status, kind = response.status, _content_type(response)
                some = False
                while True:
                    with _reading(attempt):
                        line = response.readline(LINE_BYTES_MAX + 1)
                        if not line and _ended_early(response, is_empty=not some):
                            raise _cut("the connection ended in the middle of the answer")
                    if len(line) > LINE_BYTES_MAX:
                        raise NoAnswerError("its answer has a line that is too long", kind="large")
                    if not line:
                        return
                    some = True
                    worker_call.tell(HttpLine(status=status, content_type=kind, line=line.rstrip(b"\r\n")))
            finally:
                self._end(connection)

        with closing(items_of(attempt.working(work), timeout_s=attempt.timeout_s + _SILENCE_S)) as items:
            for item in attempt.guarded(items):
                if item is not None:
                    yield item

    def close(self) -> None:
        """Close all connections. May be called twice; a later call connects anew.

        Calls that are running in other threads end with NoAnswerError. Money: the wallet goes on with what has begun.
        """
        for pid, connection in list(self._running.values()):
            if pid == os.getpid():
                _shut(connection)
        kept, self._kept = self._kept, []
        ours = [connection for pid, connection, _ in kept if pid == os.getpid()]
        with suppress(Exception):  # at the interpreter's end no thread can be started
            result_of(lambda _: list(map(_close, ours)), timeout_s=_CLOSE_S_MAX)

    def _one(self, request: HttpRequest, timeout_s: float, *, may_keep: bool) -> HttpAnswer:
        attempt = _Attempt(timeout_s)

        def work(worker_call: WorkerCall[HttpAnswer]) -> HttpAnswer:
            if may_keep and (kept := self._take_kept()) is not None:
                worker_call.cancel = lambda: _shut(kept)
                try:
                    return self._exchange(kept, request, _Attempt(attempt.left_s()), may_keep=True)
                except NoAnswerError as error:
                    if error.kind != "cut":
                        raise
            return self._exchange(self._opened(attempt, worker_call), request, attempt, may_keep=may_keep)

        (answer,) = attempt.guarded(items_of(attempt.working(work), timeout_s=attempt.timeout_s + _SILENCE_S))
        return answer

    def _exchange(self, connection: Any, request: HttpRequest, attempt: _Attempt, *, may_keep: bool) -> HttpAnswer:
        is_kept = False
        try:
            self._running[id(connection)] = (os.getpid(), connection)
            response = self._sent(connection, request, attempt)
            with _reading(attempt):
                body = b"".join(_parts(response, request.bytes_max + 1))
                if len(body) > request.bytes_max:
                    raise NoAnswerError("its answer is too large", kind="large")
                answer = HttpAnswer(status=response.status, content_type=_content_type(response), body=body)
                is_kept = may_keep and response.isclosed() and not response.will_close
            if is_kept:
                self._running.pop(id(connection), None)
                self._keep(connection)
            return answer
        finally:
            if not is_kept:
                self._end(connection)

    def _sent(self, connection: Any, request: HttpRequest, attempt: _Attempt) -> Any:
        """Send the request and return the response's head."""
        try:
            connection.putrequest(request.method, self._url.path + request.path, skip_host=True, skip_accept_encoding=True)
            headers = {"Host": self._url.netloc, "Accept": "application/json", "Accept-Encoding": "identity", **request.headers}
            if request.body is not None:
                headers["Content-Length"] = str(len(request.body))
            for name, value in headers.items():
                connection.putheader(name, value)
        except Exception as error:  # noqa: BLE001 - its text repeats the value, which may be the key
            what = f"the request can't be made ({type(error).__name__})"
            raise NotSentError(what, kind="other", advice="check the key: it must be printable ASCII") from None
        attempt.claim()
        with _reading(attempt):
            connection.sock.settimeout(max(attempt.left_s(), _CALL_S_MIN))
            connection.endheaders(request.body)
            connection.sock.settimeout(max(attempt.left_s(), _CALL_S_MIN))
            response = connection.getresponse()
            while response.status in _INTERIM:  # http.client takes it for the answer, and the answer for that of the next request
                connection.sock.settimeout(max(attempt.left_s(), _CALL_S_MIN))
                response.headers = response.msg = None
                response.begin()
            return response

    def _opened(self, attempt: _Attempt, worker_call: WorkerCall[Any]) -> Any:
        """Return a new connection, its TLS handshake done. Raises: NotSentError. FundingError from ``trust``."""
        try:
            return self._connected(attempt, worker_call)
        except (RouteweilerError, NotSentError):
            raise
        except ssl.SSLError as error:
            detail = _said(error)
            if isinstance(error, ssl.SSLCertVerificationError):
                what, advice = f"its TLS certificate isn't accepted ({detail})", "check the URL, and the certificate of the server"
            else:
                what, advice = f"the TLS handshake failed ({detail})", "check that the port is the one that has TLS"
            raise NotSentError(what, kind="tls", advice=advice, detail=detail) from None
        except TimeoutError:
            raise attempt.too_late(NotSentError) from None
        except ConnectionRefusedError as error:
            raise NotSentError("nothing listens there", kind="refused", detail=_said(error)) from None
        except OSError as error:
            raise NotSentError(f"it can't be reached ({_said(error)})", kind="cut", detail=_said(error)) from None
        except Exception as error:  # noqa: BLE001 - a program may have put something of its own around sockets
            raise NotSentError(f"the connection can't be made ({type(error).__name__})", kind="other") from None

    def _connected(self, attempt: _Attempt, worker_call: WorkerCall[Any]) -> Any:
        url = self._url
        trust = self._trust() if url.has_tls else Trust()
        context = self._context_for(trust) if url.has_tls else None
        plain = _tcp(url, attempt)
        worker_call.cancel = lambda: _shut_socket(plain)
        sock: socket.socket = plain
        try:
            with suppress(OSError):
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            plain.settimeout(max(attempt.left_s(), _CALL_S_MIN))
            if context is not None:
                sock = context.wrap_socket(plain, server_hostname=trust.name or url.host)
        except BaseException:
            plain.close()
            raise
        connection = _Connection(url.host, url.port)
        # Otherwise a program's own setting prints every header, the key included.
        connection.debuglevel, connection.auto_open, connection.sock = 0, 0, sock
        worker_call.cancel = lambda: _shut(connection)
        return connection

    def _context_for(self, trust: Trust) -> ssl.SSLContext:
        if self._context is not None and self._context[0] == trust.roots_pem:
            return self._context[1]
        # The class itself, also where a program has put another into its place, as truststore does.
        # gevent's stays, because the system's can't wrap gevent's sockets.
        genuine: Any = next(
            each for each in ssl.SSLContext.__mro__ if each.__module__ == "ssl" or each.__module__.startswith("gevent.")
        )
        context: ssl.SSLContext = genuine(ssl.PROTOCOL_TLS_CLIENT)  # checks the chain and the name
        if trust.roots_pem is not None:
            context.load_verify_locations(cadata=trust.roots_pem.decode("ascii"))
            # A pinned certificate needn't be an authority's, as with gRPC. Set past ssl's setter: truststore and gevent break it.
            flags: Any = next(each for each in genuine.__mro__ if each.__module__ == "_ssl").verify_flags
            flags.__set__(context, flags.__get__(context) | ssl.VERIFY_X509_PARTIAL_CHAIN)
        else:
            context.load_default_certs()
            context.load_verify_locations(cafile=certifi.where())
        with suppress(NotImplementedError):
            context.set_alpn_protocols(["http/1.1"])
        self._context = (trust.roots_pem, context)
        return context

    def _take_kept(self) -> Any:
        while self._kept:
            try:
                pid, connection, since = self._kept.pop()
            except IndexError:  # another thread took the last one
                return None
            # A parent's connection is dropped: its socket is the parent's too.
            if pid == os.getpid() and monotonic_s() - since < _KEPT_S_MAX and _is_quiet(connection):
                return connection
            if pid == os.getpid():
                _close(connection)
        return None

    def _end(self, connection: Any) -> None:
        self._running.pop(id(connection), None)
        _close(connection)

    def _keep(self, connection: Any) -> None:
        if len(self._kept) < _KEPT_MAX:
            self._kept.append((os.getpid(), connection, monotonic_s()))
        else:
            _close(connection)


class _Attempt:
    """One request on its way: its deadline, and who may still decide whether it leaves."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = max(timeout_s, _CALL_S_MIN)
        self._deadline = monotonic_s() + self.timeout_s
        # One token. The worker takes it to send, and the caller to leave: whoever comes first has decided.
        self._may_send: SimpleQueue[None] = SimpleQueue()
        self._may_send.put(None)

    def left_s(self) -> float:
        return self._deadline - monotonic_s()

    def claim(self) -> None:
        """Take the right to send. Raises: NotSentError if the caller has left, or the time has passed."""
        try:
            self._may_send.get_nowait()
        except Empty:
            raise NotSentError("its caller no longer waits", kind="timeout") from None
        if self.left_s() <= 0:
            raise self.too_late(NotSentError)

    def guarded(self, items: Generator[_Result, None, None]) -> Generator[_Result, None, None]:
        """Yield ``items``, and turn what ends them early into this module's errors."""
        try:
            with closing(items):
                yield from items
        except NoThreadError as error:
            what = f"this program can start no thread ({tidy(str(error))})"
            raise NotSentError(what, kind="thread", advice="end some of its threads, or raise its limit") from None
        except SilentError:
            raise self.too_late(NotSentError if self._taken_back() else NoAnswerError) from None
        finally:
            self._taken_back()  # after an interrupt nothing must leave any more

    def working(self, work: Callable[[WorkerCall[_Result]], _Result]) -> Callable[[WorkerCall[_Result]], _Result]:
        """Return ``work`` for the worker thread. What it raises becomes this module's errors there, so that an interrupt passes."""

        def safely(worker_call: WorkerCall[_Result]) -> _Result:
            try:
                return work(worker_call)
            except (HttpCallError, RouteweilerError):
                raise
            except Exception as error:  # noqa: BLE001 - for example MemoryError
                kind = NotSentError if self._taken_back() else NoAnswerError
                raise kind(f"the call failed ({type(error).__name__})", kind="other") from None

        return safely

    def too_late(self, kind: type[HttpCallError]) -> HttpCallError:
        return kind(f"it didn't answer within {self.timeout_s:.3g} s", kind="timeout")

    def _taken_back(self) -> bool:
        try:
            self._may_send.get_nowait()
        except Empty:
            return False
        return True


class _reading:  # noqa: N801 - a context manager, named like one
    """Turns what goes wrong from the first byte on into NoAnswerError."""

    def __init__(self, attempt: _Attempt) -> None:
        self._attempt = attempt

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is None or isinstance(error, HttpCallError) or not isinstance(error, Exception):
            return
        if isinstance(error, TimeoutError):
            raise self._attempt.too_late(NoAnswerError) from None
        if isinstance(error, OSError):
            raise _cut(f"the connection broke ({_said(error)})") from None
        name = type(error).__name__
        if name in ("RemoteDisconnected", "IncompleteRead"):
            raise _cut("the connection ended before the answer did") from None
        raise NoAnswerError(f"what it answers isn't HTTP ({name})", kind="malformed") from None


def _cut(what: str) -> NoAnswerError:
    return NoAnswerError(what, kind="cut")


def _parts(response: Any, bytes_max: int) -> Generator[bytes, None, None]:
    left = bytes_max
    while left > 0 and (part := response.read(min(left, 65536))):
        left -= len(part)
        yield part
    if left > 0 and _ended_early(response, is_empty=left == bytes_max):
        raise _cut("the connection ended in the middle of the answer")


def _ended_early(response: Any, *, is_empty: bool) -> bool:
    """Return whether a body that has come to its end isn't whole. http.client takes a head that was cut off for a whole one."""
    return bool(response.length) or (is_empty and response.length is None and not response.chunked)


def _content_type(response: Any) -> str:
    return tidy(str(response.getheader("Content-Type") or "").partition(";")[0]).lower()


def _tcp(url: WalletUrl, attempt: _Attempt) -> socket.socket:
    """Return a connected socket to the first of the host's addresses that answers."""
    try:
        found = socket.getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)[:_ADDRESSES_MAX]
    except (socket.gaierror, UnicodeError, ValueError) as error:
        what = f"the name {tidy(url.host)} can't be resolved ({_said(error)})"
        raise NotSentError(what, kind="name", advice="check the host's spelling and the network or VPN that knows it") from None
    failed: OSError | None = None
    for number, (family, type_, protocol, _, address) in enumerate(found):
        sock = socket.socket(family, type_, protocol)
        try:
            sock.settimeout(max(attempt.left_s() / (len(found) - number), _CALL_S_MIN))
            sock.connect(address)
            return sock
        except OSError as error:
            sock.close()
            failed = error
        except BaseException:
            sock.close()
            raise
    raise failed or OSError("the name has no address")


def _is_quiet(connection: Any) -> bool:
    """Return whether nothing has come on a kept connection: its end, or what would be read as the answer to the next question."""
    sock = connection.sock
    try:
        return not (isinstance(sock, ssl.SSLSocket) and sock.pending()) and not wait_for_read(sock, timeout=0)
    except (OSError, ValueError):
        return False


def _shut(connection: Any) -> None:
    _shut_socket(connection.sock)


def _shut_socket(sock: Any) -> None:
    """Wake up whoever reads from the socket: from another thread. The TLS layer above it isn't touched."""
    with suppress(Exception):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def _close(connection: Any) -> None:
    with suppress(Exception):
        connection.close()


def _said(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return tidy(without_secrets(f"certificate verify failed: {error.verify_message}"))
    text = getattr(error, "strerror", None) or getattr(error, "reason", None) or str(error)
    return tidy(without_secrets(str(text)))
