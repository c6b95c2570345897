"""The gRPC connection to lnd: credentials, one channel per process, readiness, and streams read into `WalletAnswer`s.

Imports grpc and protobuf, and is itself imported at the first use of a client. Knows how to talk to lnd; which call is made when,
and what its answer means, is left to `lightning`, `reading` and `source`. No code of grpc's runs in the caller's thread, nor is a
channel seen there: see `outside`.
"""

from __future__ import annotations

import ipaddress
import os
import ssl
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import grpc
import tenacity

from ...errors import FundingError
from ..replies import WalletAnswer, WalletReply, tidy
from ..wallet import NotPermittedError
from ..worker_calls import NoThreadError, SilentError, WorkerCall, items_of, result_of
from .replies import Rpc, is_permission_denied, read_error, read_payment
from .stubs import routeweiler_lnd_pb2 as pb

_Response = TypeVar("_Response")

_PATHS: dict[Rpc, str] = {"send": "/routerrpc.Router/SendPaymentV2", "track": "/routerrpc.Router/TrackPaymentV2"}
#: Not one of lnd's WalletStates.
_ASK_AGAIN = -1
_STARTING = frozenset({pb.UNLOCKED, pb.RPC_ACTIVE, pb.WAITING_TO_START})

#: A node that unlocks itself says LOCKED for 0.1 to 0.3 s at each start (observed, lnd 0.21.2); after this long it means it.
LOCKED_GRACE_S = 1.0
_START_POLL_S_MIN, _START_POLL_S_MAX = 0.05, 0.5
#: The least that a call is given, so that a deadline that has just passed is told by lnd or gRPC and not guessed.
_CALL_S_MIN = 0.05
#: gRPC tells of a deadline within milliseconds. Where it has said nothing so long after, it never will.
_SILENCE_S = 1.0
#: Closing a channel waits for nothing but its own threads.
_CLOSE_S_MAX = 2.0
#: A macaroon is some hundred bytes; what is larger is another file.
_MACAROON_BYTES_MAX = 16_384

_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", 64 * 2**20),  # ListPayments passes the default 4 MiB
    ("grpc.use_local_subchannel_pool", 1),  # else channels to one target share a connection, and so its faults
    ("grpc.enable_retries", 0),  # a send is repeated by the purchase alone, which counts it
    ("grpc.keepalive_time_ms", 30_000),  # finds a dead peer during a long payment; lnd allows pings >= 5 s apart …
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 0),  # … and only while a stream is open
    ("grpc.http2.max_pings_without_data", 0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a node is and what opens it. Either of ``macaroon_*``; neither of ``tls_cert_*`` means gRPC's default roots."""

    host: str
    port: int
    macaroon_path: str | None = None
    macaroon_hex: str | None = field(default=None, repr=False)
    tls_cert_path: str | None = None
    tls_cert_pem: str | None = field(default=None, repr=False)

    @property
    def address(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(slots=True, kw_only=True, repr=False)
class _Link:
    """A channel with what was read to open it."""

    channel: grpc.Channel
    macaroon_hex: str
    used: bool = False


class LndChannel:
    """One node's connection, made at first use and anew after a fork. Safe to share between threads."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._link: _Link | None = None
        # Kept, unused: a parent's channels, since to destroy one in the child would touch the connection they share, and those that
        # have fallen silent, since to destroy one would wait for it.
        self._kept: list[_Link] = []

    def close(self) -> None:
        """Close the channel; a later call opens a new one. Calls under way on it end with CANCELLED; lnd pays on."""
        if self._link is not None:
            # Without a thread (at the interpreter's end there is none) it ends with the process.
            with suppress(NoThreadError, SilentError):
                result_of(lambda _: self._close(), timeout_s=_CLOSE_S_MAX)

    def check_ready(self, timeout_s: float) -> None:
        """Return once the node takes orders, at the latest after ``timeout_s``.

        State.GetState needs no macaroon and answers while the wallet is locked. Raises FundingError with the cause; this asks only,
        nothing can be spent.
        """
        deadline = time.monotonic() + timeout_s
        grace_ends = time.monotonic() + LOCKED_GRACE_S
        polling = tenacity.Retrying(
            stop=tenacity.stop_after_delay(timeout_s),
            wait=tenacity.wait_exponential(multiplier=_START_POLL_S_MIN, max=_START_POLL_S_MAX),
            retry=tenacity.retry_if_result(
                lambda state: state in _STARTING or (state == pb.LOCKED and time.monotonic() < grace_ends)
            ),
            sleep=lambda seconds: time.sleep(max(0.0, min(seconds, deadline - time.monotonic()))),
            retry_error_callback=lambda attempt: attempt.outcome.result() if attempt.outcome else None,
        )
        state = polling(self._wallet_state, deadline)
        if state == pb.LOCKED:
            raise self._error("its wallet is locked", "unlock it with `lncli unlock`")
        if state == pb.NON_EXISTING:
            raise self._error("it has no wallet yet", "make one with `lncli create`")
        if state in _STARTING:
            raise self._error(f"it is still starting after {timeout_s:g} s", "try again in a moment")

    def unary(self, path: str, request: Any, response: type[_Response], *, timeout_s: float) -> _Response:
        """One question with one answer. Raises FundingError: whatever goes wrong, a question spends nothing."""

        def ask(_: WorkerCall[_Response]) -> _Response:
            link = self._current()
            try:
                return self._call(link, path, request, response, timeout_s, authorised=True)
            except grpc.RpcError as error:
                self._drop_if_broken(link, error)
                raise self._failure(path, error, link, timeout_s) from None

        return self._asked(ask, path, timeout_s)

    def answers(self, rpc: Rpc, request: Any, *, payment_hash: bytes, timeout_s: float) -> Generator[WalletAnswer, None, None]:
        """The messages of a payment's stream; what isn't IN_FLIGHT is the last, and of an order the only one told. The end of the
        stream is told as an Answer too.

        Raises FundingError if there is no channel to be had, and not a byte has left then. Closing the iterator ends the call, and
        not the payment.
        """
        timeout_s = max(timeout_s, _CALL_S_MIN)
        started = False
        self._suit_green_threads()

        def listen(worker_call: WorkerCall[WalletAnswer]) -> WalletAnswer:
            return self._listen(worker_call, rpc, request, payment_hash, timeout_s)

        try:
            with closing(items_of(listen, timeout_s=timeout_s + _SILENCE_S)) as answers:
                for answer in answers:
                    started = True
                    yield answer
        except NoThreadError as error:
            raise self._no_thread(error) from None
        except SilentError:
            self._begin_anew()
            yield read_error(rpc, "DEADLINE_EXCEEDED", "gRPC itself has fallen silent", started=started)

    def _listen(
        self, worker_call: WorkerCall[WalletAnswer], rpc: Rpc, request: Any, payment_hash: bytes, timeout_s: float
    ) -> WalletAnswer:
        """Tell ``worker_call`` what is IN_FLIGHT, and return what comes after it."""
        link = self._current()
        started = False
        stream = link.channel.unary_stream(
            _PATHS[rpc], request_serializer=type(request).SerializeToString, response_deserializer=pb.Payment.FromString
        )
        try:
            call: Any = stream(request, timeout=timeout_s, metadata=(("macaroon", link.macaroon_hex),))
        except ValueError:  # grpc's word for a channel that another thread has closed: it takes no call, so none has left
            raise self._error("the client was closed", "call again") from None
        except RuntimeError as error:  # grpc starts its own thread once the request has left; without it nothing is heard
            self._begin_anew()
            return WalletAnswer(reply=WalletReply.UNKNOWN, reason=tidy(f"gRPC can't listen: {error}"))
        worker_call.cancel = call.cancel
        try:
            for message in call:
                started = link.used = True
                answer = read_payment(message, payment_hash)
                if answer.reply is not WalletReply.IN_FLIGHT:
                    return answer
                if rpc == "track":  # who sends waits for the last word
                    worker_call.tell(answer)
        except grpc.RpcError as error:
            self._drop_if_broken(link, error)
            return read_error(rpc, _code(error), _scrub(_text(error), link), started=started)
        finally:
            call.cancel()
        return WalletAnswer(reply=WalletReply.UNKNOWN, reason="the stream ended without a final word")

    def _wallet_state(self, deadline: float) -> int | None:
        """lnd's WalletState; None where it doesn't tell (no State service)."""
        path = "/lnrpc.State/GetState"

        def ask(_: WorkerCall[int | None]) -> int | None:
            link = self._current()
            try:
                reply = self._call(link, path, pb.GetStateRequest(), pb.GetStateResponse, timeout_s, authorised=False)
            except grpc.RpcError as error:
                if _code(error) == "UNIMPLEMENTED":
                    return None
                self._drop_if_broken(link, error)
                # A channel that was in use may tell of a failure of long ago, while it waits to connect again. A new one doesn't.
                if _code(error) == "UNAVAILABLE" and link.used:
                    return _ASK_AGAIN
                raise self._failure(path, error, link, timeout_s) from None
            return int(reply.state)

        for _ in range(2):
            timeout_s = max(deadline - time.monotonic(), _CALL_S_MIN)
            if (state := self._asked(ask, path, timeout_s)) != _ASK_AGAIN:
                return state
        raise self._error("its connection was lost", "is the node up?")

    def _asked(self, ask: Callable[[WorkerCall[_Response]], _Response], path: str, timeout_s: float) -> _Response:
        """What ``ask`` returns or raises. Raises FundingError as well where it can't be begun or doesn't end."""
        self._suit_green_threads()
        try:
            return result_of(ask, timeout_s=max(timeout_s, _CALL_S_MIN) + _SILENCE_S)
        except NoThreadError as error:
            raise self._no_thread(error) from None
        except SilentError:
            self._begin_anew()
            cause = f"gRPC itself has fallen silent in {path.rpartition('/')[2]}"
            raise self._error(cause, "call again, over a new connection; if it stays so, restart this program") from None

    def _suit_green_threads(self) -> None:
        """Where gevent has replaced the system's threads, grpc must be told; where eventlet has, it can't be: FundingError.

        Untold it would stop the whole process in the midst of the first call (observed, grpcio 1.85, gevent 26.9, eventlet 0.41).
        """
        gevent, eventlet = sys.modules.get("gevent.monkey"), sys.modules.get("eventlet.patcher")
        if gevent is not None and gevent.is_module_patched("threading"):
            from grpc.experimental.gevent import init_gevent  # type: ignore[import-not-found]

            init_gevent()  # does nothing the second time
        if eventlet is not None and eventlet.is_monkey_patched("thread"):
            cause = "eventlet has replaced the threads that gRPC needs, and gRPC doesn't know eventlet"
            raise self._error(cause, "buy in a process without eventlet.monkey_patch(): the ledger is shared")

    def _call(
        self, link: _Link, path: str, request: Any, response: type[_Response], timeout_s: float, *, authorised: bool
    ) -> _Response:
        call = link.channel.unary_unary(
            path,
            request_serializer=type(request).SerializeToString,
            response_deserializer=response.FromString,  # type: ignore[attr-defined]
        )
        metadata = (("macaroon", link.macaroon_hex),) if authorised else ()
        try:
            reply: _Response = call(request, timeout=max(timeout_s, _CALL_S_MIN), metadata=metadata)
        except ValueError:  # as in answers()
            raise self._error("the client was closed", "call again") from None
        link.used = True
        return reply

    def _close(self) -> None:
        self._notice_fork()
        with self._lock:
            link, self._link = self._link, None
        if link is not None:
            link.channel.close()

    def _notice_fork(self) -> None:
        if self._pid != os.getpid():
            self._begin_anew()
            self._pid = os.getpid()

    def _begin_anew(self) -> None:
        """Use the channel no more. The lock isn't waited for: a thread that didn't survive the fork, or that hangs, may hold it."""
        self._lock = threading.Lock()
        if (link := self._link) is not None:
            self._kept.append(link)
        self._link = None

    def _current(self) -> _Link:
        self._notice_fork()
        with self._lock:
            if self._link is None:
                self._link = self._open()
            return self._link

    def _open(self) -> _Link:
        macaroon_hex, pem = self._read_macaroon(), self._read_certificate()
        options: list[tuple[str, Any]] = list(_OPTIONS)
        if pem is not None and (name := _name_to_check(pem, self._endpoint.host)) is not None:
            options.append(("grpc.ssl_target_name_override", name))
        if _is_loopback(self._endpoint.host):
            options.append(("grpc.enable_http_proxy", 0))  # gRPC would ask https_proxy's host for its own 127.0.0.1
        credentials = grpc.ssl_channel_credentials(pem.encode() if pem is not None else None)
        return _Link(channel=grpc.secure_channel(self._endpoint.address, credentials, options=options), macaroon_hex=macaroon_hex)

    def _drop_if_broken(self, link: _Link, error: grpc.RpcError) -> None:
        """Forget a channel that has lost its connection. Not closed: other threads' calls may still be on it."""
        if _code(error) in ("UNAVAILABLE", "DEADLINE_EXCEEDED"):
            with self._lock:
                if self._link is link:
                    self._link = None

    def _read_macaroon(self) -> str:
        if self._endpoint.macaroon_hex is not None:
            return self._endpoint.macaroon_hex
        if self._endpoint.macaroon_path is None:
            raise self._error(
                "its macaroon was given inline, and isn't pickled", "give macaroon_path, or make the client anew here"
            )
        macaroon = self._read(self._endpoint.macaroon_path, "macaroon")
        if not 0 < len(macaroon) <= _MACAROON_BYTES_MAX:
            raise self._error(f"{self._endpoint.macaroon_path} holds no macaroon", "give lnd's binary *.macaroon file")
        return macaroon.hex()

    def _read_certificate(self) -> str | None:
        if self._endpoint.tls_cert_path is None:
            return self._endpoint.tls_cert_pem
        pem = self._read(self._endpoint.tls_cert_path, "TLS certificate").decode("ascii", "replace")
        if "-----BEGIN CERTIFICATE-----" not in pem:
            raise self._error(f"{self._endpoint.tls_cert_path} holds no PEM certificate", "give lnd's tls.cert")
        return pem

    def _read(self, path: str, what: str) -> bytes:
        try:
            return Path(path).expanduser().read_bytes()
        except (OSError, RuntimeError) as error:  # RuntimeError: a ~user that doesn't exist
            cause = getattr(error, "strerror", None) or error
            raise self._error(f"the {what} file {path} can't be read ({cause})", "check path and rights") from None

    def _failure(self, path: str, error: grpc.RpcError, link: _Link, timeout_s: float) -> FundingError:
        code, text = _code(error), _scrub(_text(error), link)
        method = path.rpartition("/")[2]
        if is_permission_denied(code, text):
            return NotPermittedError(
                self._what(f"the macaroon doesn't permit {method}"), advice=f"Bake one with the right uri:{path}."
            )
        lower = text.lower()
        if "certificate_verify_failed" in lower:
            cause, advice = "its TLS certificate isn't the one pinned", "if the node has made a new one, copy its tls.cert again"
        elif "hostname verification" in lower or "not in peer certificate" in lower:  # the latter in grpc 1.6x
            cause, advice = "its TLS certificate doesn't name this host", "use a host that it names, or lnd's tlsextradomain"
        elif code == "DEADLINE_EXCEEDED":
            cause, advice = f"it didn't answer {method} within {timeout_s:.3g} s", "is the node up, and the way to it open?"
        elif "refused" in lower:
            cause, advice = f"nothing listens there ({tidy(text)})", "is lnd running, and is this its gRPC port (default 10009)?"
        elif "handshake" in lower or "wrong_version_number" in lower:
            cause, advice = f"the TLS handshake failed ({tidy(text)})", "is this lnd's gRPC port (default 10009)?"
        else:
            cause, advice = f"{method} was answered {code}: {tidy(text)}", "see lnd's log"
        return self._error(cause, advice)

    def _no_thread(self, error: NoThreadError) -> FundingError:
        return self._error(f"this program can start no thread ({tidy(str(error))})", "end some, or raise its limit")

    def _error(self, cause: str, advice: str) -> FundingError:
        return FundingError(self._what(cause), advice=f"{advice[0].upper()}{advice[1:]}{'' if advice.endswith('?') else '.'}")

    def _what(self, cause: str) -> str:
        return f"lnd at {self._endpoint.address}: {cause}"


def _name_to_check(pem: str, host: str) -> str | None:
    """The name to look for in place of ``host`` if the pinned certificate is a node's own and doesn't name ``host``.

    A self-signed certificate that names hosts is a server's: whoever answers for it holds its key, under whatever name it is
    reached (a forwarded port, a container's alias). The pin is what protects, so any of its own names will do. A certificate
    authority proper names no hosts, and a chain has several certificates: for these the host's name is checked as ever.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cadata=pem)
    except ssl.SSLError:
        raise FundingError("the TLS certificate given can't be read.", advice="Give the PEM of lnd's tls.cert.") from None
    certificates = context.get_ca_certs()
    if len(certificates) != 1 or certificates[0].get("subject") != certificates[0].get("issuer"):
        return None
    alternatives: Any = certificates[0].get("subjectAltName", ())
    names = [value.lower() for kind, value in alternatives if kind == "DNS" and "*" not in value]
    if host.lower() in names or _ip(host) in [_ip(value) for kind, value in alternatives if kind == "IP Address"]:
        return None
    return "localhost" if "localhost" in names else next(iter(names), None)


def _is_loopback(host: str) -> bool:
    address = _ip(host)
    return host.lower() == "localhost" or (not isinstance(address, str) and address.is_loopback)


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | str:
    with suppress(ValueError):
        return ipaddress.ip_address(text)
    return text


def _code(error: grpc.RpcError) -> str:
    code = error.code() if isinstance(error, grpc.Call) else None
    return code.name if code is not None else "UNKNOWN"


def _text(error: grpc.RpcError) -> str:
    return (error.details() if isinstance(error, grpc.Call) else None) or ""


def _scrub(text: str, link: _Link) -> str:
    """A server that repeats what it was sent must not bring the macaroon into a log."""
    return text.replace(link.macaroon_hex, "<macaroon>")
