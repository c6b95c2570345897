"""The gRPC connection to lnd: credentials, one channel per process, readiness, and payment streams read into `WalletAnswer`s.

Imports grpc and protobuf, so it is itself imported only at the first use of a client. Knows how to talk to lnd. Which call is made
when is left to `client`, and what an answer means to `replies`. grpc's code runs in worker threads alone, and channels are touched
only there: `worker_calls` says why.
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
#: Stands for "ask again, over a new channel". It isn't one of lnd's WalletStates.
_ASK_AGAIN = -1
#: The WalletStates of a node that will accept payment orders soon, without anybody's help.
_STARTING = frozenset({pb.UNLOCKED, pb.RPC_ACTIVE, pb.WAITING_TO_START})

#: A node that unlocks itself reports LOCKED for 0.1 to 0.3 s at each start (observed, lnd 0.21.2). One that reports it for longer
#: than this waits to be unlocked.
LOCKED_GRACE_S = 1.0
_START_POLL_S_MIN, _START_POLL_S_MAX = 0.05, 0.5
#: The shortest timeout of a call. If the deadline has just passed, lnd or gRPC then reports that, and it isn't guessed.
_CALL_S_MIN = 0.05
#: gRPC reports a passed deadline within milliseconds. If it has reported nothing this long after the deadline, it never will.
_SILENCE_S = 1.0
#: The longest wait for a channel to close. Closing waits for nothing but the channel's own threads.
_CLOSE_S_MAX = 2.0
#: A macaroon has some hundred bytes. A file larger than this is something else.
_MACAROON_BYTES_MAX = 16_384

_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", 64 * 2**20),  # answers of ListPayments are larger than the default of 4 MiB
    ("grpc.use_local_subchannel_pool", 1),  # otherwise channels to one target share a connection, and so its faults
    ("grpc.enable_retries", 0),  # only the purchase may repeat a send, because it counts the sends
    ("grpc.keepalive_time_ms", 30_000),  # finds a dead node during a long payment; lnd allows pings >= 5 s apart …
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 0),  # … and only while a stream is open
    ("grpc.http2.max_pings_without_data", 0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A node's address, and the credentials that open it.

    One of the ``macaroon_…`` fields is set; neither is in an unpickled client whose macaroon was given inline. At most one of the
    ``tls_cert_…`` fields is set; with neither, gRPC's default roots are trusted.
    """

    host: str
    port: int
    macaroon_path: str | None = None
    macaroon_hex: str | None = field(default=None, repr=False)
    tls_cert_path: str | None = None
    tls_cert_pem: str | None = field(default=None, repr=False)

    @property
    def address(self) -> str:
        """``host:port``, with an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(slots=True, kw_only=True, repr=False)
class _Link:
    """A channel, and the macaroon that was read to open it. ``used``: an answer has come over the channel."""

    channel: grpc.Channel
    macaroon_hex: str
    used: bool = False


class LndChannel:
    """The connection to one node. It is opened at its first use, and opened anew after a fork. Safe to share between threads."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._link: _Link | None = None
        # Channels that are no longer used but mustn't be destroyed either: a parent's, because destroying one in the child would
        # touch the connection that both share, and silent ones, because destroying one would wait for it.
        self._kept: list[_Link] = []

    def close(self) -> None:
        """Close the channel; a later call opens a new one. Calls that are running on it end with CANCELLED.

        Money: lnd goes on with payments that have begun.
        """
        if self._link is not None:
            # If no thread can be started (at the interpreter's end none can), the channel ends with the process.
            with suppress(NoThreadError, SilentError):
                result_of(lambda _: self._close(), timeout_s=_CLOSE_S_MAX)

    def check_ready(self, timeout_s: float) -> None:
        """Return once the node accepts payment orders. Wait for at most ``timeout_s`` seconds.

        Asks State.GetState, which needs no macaroon and answers while the wallet is locked.

        Raises: FundingError with the cause if the node doesn't accept orders.
        Money: none moves; this only asks.
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
            raise self._error("it has no wallet yet", "create one with `lncli create`")
        if state in _STARTING:
            raise self._error(f"it is still starting after {timeout_s:g} s", "try again in a moment")

    def unary(self, path: str, request: Any, response: type[_Response], *, timeout_s: float) -> _Response:
        """Ask a question that has one answer, and return that answer. ``path`` is the RPC's, e.g. ``/lnrpc.Lightning/GetInfo``.

        Raises: FundingError for whatever goes wrong.
        Money: none moves, because a question spends nothing.
        """

        def ask(_: WorkerCall[_Response]) -> _Response:
            link = self._current()
            try:
                return self._call(link, path, request, response, timeout_s, authorised=True)
            except grpc.RpcError as error:
                self._drop_if_broken(link, error)
                raise self._failure(path, error, link, timeout_s) from None

        return self._asked(ask, path, timeout_s)

    def answers(self, rpc: Rpc, request: Any, *, payment_hash: bytes, timeout_s: float) -> Generator[WalletAnswer, None, None]:
        """Send ``request`` and yield the answers in its stream. The first that isn't IN_FLIGHT is the last one.

        For ``send`` only this last answer is yielded, for ``track`` the IN_FLIGHT ones too. If the stream ends or breaks without
        one, the last answer says so. Closing the iterator ends the call but not the payment.

        Raises: FundingError if no channel can be opened. Not a byte has left then.
        Money: ``send`` pays the invoice's amount and the routing fee.
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
        """Read a payment's stream in the worker thread. Return the first answer that isn't IN_FLIGHT.

        The IN_FLIGHT answers of a ``track`` are passed to ``worker_call``.
        """
        link = self._current()
        started = False
        stream = link.channel.unary_stream(
            _PATHS[rpc], request_serializer=type(request).SerializeToString, response_deserializer=pb.Payment.FromString
        )
        try:
            call: Any = stream(request, timeout=timeout_s, metadata=(("macaroon", link.macaroon_hex),))
        except ValueError:  # another thread has closed the channel; grpc accepts no call on it, so nothing has left
            raise self._error("the client was closed", "call again") from None
        except RuntimeError as error:  # grpc can't start its own thread. The request has left, and the answer can't be received
            self._begin_anew()
            return WalletAnswer(reply=WalletReply.UNKNOWN, reason=tidy(f"gRPC can't receive the answer: {error}"))
        worker_call.cancel = call.cancel
        try:
            for message in call:
                started = link.used = True
                answer = read_payment(message, payment_hash)
                if answer.reply is not WalletReply.IN_FLIGHT:
                    return answer
                if rpc == "track":  # a sender waits for the last answer
                    worker_call.tell(answer)
        except grpc.RpcError as error:
            self._drop_if_broken(link, error)
            return read_error(rpc, _code(error), _scrub(_text(error), link), started=started)
        finally:
            call.cancel()
        return WalletAnswer(reply=WalletReply.UNKNOWN, reason="the stream ended before the payment did")

    def _wallet_state(self, deadline: float) -> int | None:
        """Return lnd's WalletState, or None if this lnd doesn't report it (it has no State service).

        ``deadline`` is a moment on the monotonic clock.

        Raises: FundingError if lnd can't be asked.
        """
        path = "/lnrpc.State/GetState"

        def ask(_: WorkerCall[int | None]) -> int | None:
            link = self._current()
            try:
                reply = self._call(link, path, pb.GetStateRequest(), pb.GetStateResponse, timeout_s, authorised=False)
            except grpc.RpcError as error:
                if _code(error) == "UNIMPLEMENTED":
                    return None
                self._drop_if_broken(link, error)
                # A channel that was used before may report an old failure while it waits to connect again. A new channel can't.
                if _code(error) == "UNAVAILABLE" and link.used:
                    return _ASK_AGAIN
                raise self._failure(path, error, link, timeout_s) from None
            return int(reply.state)

        for _ in range(2):
            timeout_s = max(deadline - time.monotonic(), _CALL_S_MIN)
            if (state := self._asked(ask, path, timeout_s)) != _ASK_AGAIN:
                return state
        raise self._error("its connection was lost", "check that the node is up")

    def _asked(self, ask: Callable[[WorkerCall[_Response]], _Response], path: str, timeout_s: float) -> _Response:
        """Run ``ask`` in a worker thread and return its result.

        Raises: what ``ask`` raises. FundingError if ``ask`` can't be started, or doesn't end in time.
        """
        self._suit_green_threads()
        try:
            return result_of(ask, timeout_s=max(timeout_s, _CALL_S_MIN) + _SILENCE_S)
        except NoThreadError as error:
            raise self._no_thread(error) from None
        except SilentError:
            self._begin_anew()
            cause = f"gRPC itself has fallen silent in {path.rpartition('/')[2]}"
            raise self._error(cause, "call again over a new connection; if gRPC stays silent, restart this program") from None

    def _suit_green_threads(self) -> None:
        """Prepare grpc for gevent, if gevent has replaced the system's threads. There is no such preparation for eventlet.

        Without it grpc stops the whole process in the middle of the first call (observed, grpcio 1.85, gevent 26.9, eventlet 0.41).

        Raises: FundingError if eventlet has replaced the threads.
        """
        gevent, eventlet = sys.modules.get("gevent.monkey"), sys.modules.get("eventlet.patcher")
        if gevent is not None and gevent.is_module_patched("threading"):
            from grpc.experimental.gevent import init_gevent  # type: ignore[import-not-found]

            init_gevent()  # does nothing the second time
        if eventlet is not None and eventlet.is_monkey_patched("thread"):
            cause = "eventlet has replaced the threads that gRPC needs, and gRPC doesn't support eventlet"
            raise self._error(cause, "buy in a process without eventlet.monkey_patch(); both share the tokens in the ledger")

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
        except ValueError:  # another thread has closed the channel
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
        """Give up the parent's channel if this process is a forked child."""
        if self._pid != os.getpid():
            self._begin_anew()
            self._pid = os.getpid()

    def _begin_anew(self) -> None:
        """Give up the channel, so that the next call opens a new one.

        A new lock takes the place of the old one, which isn't waited for: the thread that holds it may hang, or may not have
        survived the fork.
        """
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
            # Otherwise gRPC would ask the proxy in https_proxy to connect to 127.0.0.1, which is the proxy itself there.
            options.append(("grpc.enable_http_proxy", 0))
        credentials = grpc.ssl_channel_credentials(pem.encode() if pem is not None else None)
        return _Link(channel=grpc.secure_channel(self._endpoint.address, credentials, options=options), macaroon_hex=macaroon_hex)

    def _drop_if_broken(self, link: _Link, error: grpc.RpcError) -> None:
        """Use a channel no longer if it has lost its connection. Don't close it: other threads may have calls running on it."""
        if _code(error) in ("UNAVAILABLE", "DEADLINE_EXCEEDED"):
            with self._lock:
                if self._link is link:
                    self._link = None

    def _read_macaroon(self) -> str:
        if self._endpoint.macaroon_hex is not None:
            return self._endpoint.macaroon_hex
        if self._endpoint.macaroon_path is None:
            raise self._error(
                "its macaroon was given inline, and such a macaroon isn't pickled",
                "give macaroon_path, or construct the client again in this process",
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
            raise self._error(f"the {what} file {path} can't be read ({cause})", "check its path and its permissions") from None

    def _failure(self, path: str, error: grpc.RpcError, link: _Link, timeout_s: float) -> FundingError:
        """Return the error to raise for a question that failed: the likeliest cause, and what the user can do about it."""
        code, text = _code(error), _scrub(_text(error), link)
        method = path.rpartition("/")[2]
        if is_permission_denied(code, text):
            return NotPermittedError(
                self._what(f"the macaroon doesn't permit {method}"), advice=f"Bake a macaroon with the permission uri:{path}."
            )
        lower = text.lower()
        if "certificate_verify_failed" in lower:
            cause, advice = "its TLS certificate isn't the one pinned", "if the node has made a new one, copy its tls.cert again"
        elif "hostname verification" in lower or "not in peer certificate" in lower:  # the latter in grpc 1.6x
            cause, advice = "its TLS certificate doesn't name this host", "use a host that it names, or set lnd's tlsextradomain"
        elif code == "DEADLINE_EXCEEDED":
            cause = f"it didn't answer {method} within {timeout_s:.3g} s"
            advice = "check that the node is up and can be reached from here"
        elif "refused" in lower:
            cause = f"nothing listens there ({tidy(text)})"
            advice = "check that lnd is running and that this is its gRPC port (default 10009)"
        elif "handshake" in lower or "wrong_version_number" in lower:
            cause, advice = f"the TLS handshake failed ({tidy(text)})", "check that this is lnd's gRPC port (default 10009)"
        else:
            cause, advice = f"{method} was answered with {code}: {tidy(text)}", "look into lnd's log"
        return self._error(cause, advice)

    def _no_thread(self, error: NoThreadError) -> FundingError:
        return self._error(f"this program can start no thread ({tidy(str(error))})", "end some of its threads, or raise its limit")

    def _error(self, cause: str, advice: str) -> FundingError:
        return FundingError(self._what(cause), advice=f"{advice[0].upper()}{advice[1:]}.")

    def _what(self, cause: str) -> str:
        return f"lnd at {self._endpoint.address}: {cause}"


def _name_to_check(pem: str, host: str) -> str | None:
    """Return the name to check the node's certificate for in place of ``host``; None if ``host`` itself is to be checked.

    Another name is returned if the pinned certificate (``pem``) is the node's own but doesn't name ``host``:

    - A self-signed certificate that names hosts is a server's own. A server that answers with it holds its key, whatever name it is
      reached by (a forwarded port, a container's alias). The pin is what protects here, so any name in the certificate will do.
    - A true certificate authority names no hosts, and a chain has several certificates. With these ``host`` is checked as usual.

    Raises: FundingError if ``pem`` can't be read.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cadata=pem)
    except ssl.SSLError:
        raise FundingError("The TLS certificate that was given can't be read.", advice="Give the PEM of lnd's tls.cert.") from None
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
    """Return ``text`` without the macaroon: a server may repeat what it was sent, and the text may be logged."""
    return text.replace(link.macaroon_hex, "<macaroon>")
