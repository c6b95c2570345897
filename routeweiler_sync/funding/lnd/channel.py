"""The gRPC connection to lnd: one channel per process, readiness, and payment streams read into `WalletAnswer`s.

Imports grpc and protobuf, so it is itself imported only at the first use of a client. Knows how to talk to lnd. Which call is made
when is left to `client`, what an answer means to `replies`, the credentials to `endpoint`, the way to the node to `route`, and the
wording of what goes wrong to `causes`. grpc's code runs in worker threads alone, and channels are touched only there:
`worker_calls` says why.

A program may put something of its own around gRPC's channels (interceptors, OpenTelemetry). What comes back then is less than grpc
gives, or raises what grpc doesn't. Nothing of that leaves this module: a question ends with FundingError, a payment with an answer.
"""

from __future__ import annotations

import os
import secrets
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import grpc

from ..._core.deadline import monotonic_s
from ..._core.signals import came_by_signal
from ...errors import FundingError, RouteweilerError
from ..replies import WalletAnswer, WalletReply, tidy
from ..wallet import NotPermittedError
from ..worker_calls import NoThreadError, SilentError, WorkerCall, items_of, result_of
from .causes import LOOK_S_MAX, Cause, Failure, Seen, cause_of, look_at, macaroon_cause, wants_look
from .certificates import Certificate, name_to_check, pem_of
from .endpoint import Credentials, Endpoint
from .probe import Probed
from .readiness import await_start
from .replies import Rpc, is_permission_denied, read_error, read_payment
from .route import Route, UnresolvedError, ascii_name, route_to
from .stubs import routeweiler_lnd_pb2 as pb

__all__ = ["Endpoint", "LndChannel", "Probed"]

_Response = TypeVar("_Response")

_PATHS: dict[Rpc, str] = {"send": "/routerrpc.Router/SendPaymentV2", "track": "/routerrpc.Router/TrackPaymentV2"}
#: Stands for "ask again, over a new channel". It isn't one of lnd's WalletStates.
_ASK_AGAIN = -1

#: The shortest timeout of a call. If the deadline has just passed, lnd or gRPC then reports that, and it isn't guessed.
_CALL_S_MIN = 0.05
#: gRPC reports a passed deadline within milliseconds. If it has reported nothing this long after the deadline, it never will.
_SILENCE_S = 1.0
#: The longest wait for a channel to close. Closing waits for nothing but the channel's own threads.
_CLOSE_S_MAX = 2.0
_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", 64 * 2**20),  # answers of ListPayments are larger than the default of 4 MiB
    ("grpc.use_local_subchannel_pool", 1),  # otherwise channels to one target share a connection, and so its faults
    ("grpc.enable_retries", 0),  # only the purchase may repeat a send, because it counts the sends
    ("grpc.keepalive_time_ms", 30_000),  # finds a dead node during a long payment; lnd allows pings >= 5 s apart …
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 0),  # … and only while a stream is open
    ("grpc.http2.max_pings_without_data", 0),
)


@dataclass(slots=True, kw_only=True, repr=False)
class _Link:
    """A channel, with the way that it goes and the certificates that it trusts (None: gRPC's default roots).

    ``used``: an answer has come over the channel. ``streams``: its streams are known to work.
    ``order_by_s``: until when an order is expected on it, on the monotonic clock.
    """

    channel: grpc.Channel
    route: Route
    pinned: tuple[Certificate, ...] | None
    streams: bool
    used: bool = False
    order_by_s: float | None = None

    @property
    def wrapper(self) -> str | None:
        """The name of what a program has put around grpc's own channel; None if nothing is around it."""
        kind = type(self.channel)
        return None if kind.__module__ == "grpc._channel" else f"{kind.__module__}.{kind.__qualname__}"


class LndChannel:
    """The connection to one node. It is opened at its first use, and opened anew after a fork. Safe to share between threads."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._credentials = Credentials(endpoint)
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
            # What a program has put around the channel may know no close(), or raise anything.
            with suppress(Exception):
                result_of(lambda _: self._close(), timeout_s=_CLOSE_S_MAX)

    def check_ready(self, timeout_s: float) -> None:
        """Return once the node accepts payment orders. Wait for at most ``timeout_s`` seconds.

        Asks State.GetState, which needs no macaroon and answers while the wallet is locked.

        Raises: FundingError with the cause if the node doesn't accept orders.
        Money: none moves; this only asks.
        """
        deadline = monotonic_s() + timeout_s
        await_start(lambda: self._wallet_state(deadline), self._endpoint, timeout_s)
        self._check_streams(deadline)

    def expect_order(self, within_s: float) -> None:
        """Note that the node has just been found ready, and an order follows within ``within_s`` seconds."""
        if (link := self._own_link()) is not None and link.used:
            link.order_by_s = monotonic_s() + within_s

    def take_expected_order(self) -> bool:
        """Return whether the order that leaves now is the expected one: in time, over the same connection. Expect none any more."""
        if (link := self._own_link()) is None:
            return False
        by_s, link.order_by_s = link.order_by_s, None
        return by_s is not None and monotonic_s() < by_s

    def is_of_account(self) -> bool:
        """Return whether the macaroon is that of an account of litd."""
        return self._credentials.is_of_account()

    def unary(self, path: str, request: Any, response: type[_Response], *, timeout_s: float) -> _Response:
        """Ask a question that has one answer, and return that answer. ``path`` is the RPC's, e.g. ``/lnrpc.Lightning/GetInfo``.

        Raises: FundingError for whatever goes wrong.
        Money: none moves, because a question spends nothing.
        """

        method = path.rpartition("/")[2]
        deadline = monotonic_s() + timeout_s

        def ask(_: WorkerCall[_Response]) -> _Response:
            for is_last in (False, True):
                macaroon_hex, link = self._credentials.macaroon_hex(), self._current(deadline)
                was_used = link.used
                try:
                    return self._call(link, path, request, response, deadline, macaroon_hex)
                except grpc.RpcError as error:
                    self._drop_if_broken(link, error)
                    if is_last or not self._may_ask_again(error, macaroon_hex, was_used=was_used):
                        raise self._failure(path, error, link, timeout_s, deadline) from None
            raise AssertionError("unreachable")

        return self._asked(ask, method, timeout_s)

    def probe(
        self,
        path: str,
        request: Any,
        response: type[Any],
        *,
        timeout_s: float,
        is_stream: bool = False,
        with_macaroon: bool = True,
    ) -> Probed:
        """Ask once, and return lnd's very answer, an error too. Of a stream, the first message is the answer.

        Raises: FundingError if nothing could be asked.
        Money: what ``request`` moves. Meant for requests that move none.
        """
        method, deadline = path.rpartition("/")[2], monotonic_s() + timeout_s

        def ask(_: WorkerCall[Probed]) -> Probed:
            macaroon_hex = self._credentials.macaroon_hex() if with_macaroon else None
            link = self._current(deadline)
            try:
                call = self._first_of if is_stream else self._call
                return Probed(code="OK", reply=call(link, path, request, response, deadline, macaroon_hex))
            except grpc.RpcError as error:
                self._drop_if_broken(link, error)
                text = self._credentials.without_secrets(_text(error))
                return Probed(code=_code(error), text=text, cause=self._cause(path, error, link, timeout_s, deadline))

        return self._asked(ask, method, timeout_s)

    def look(self, timeout_s: float) -> Seen:
        """Return what the server shows to anybody who connects; nothing if a proxy stands between, or no channel was opened yet."""
        link = self._link
        if link is None or not link.route.addresses:
            return Seen()
        return look_at(link.route.addresses[0], self._endpoint.port, timeout_s)

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
        except RouteweilerError:
            raise
        except Exception as error:  # for example MemoryError; the order may have left
            if came_by_signal(error):
                raise
            yield WalletAnswer(reply=WalletReply.UNKNOWN, reason=self._of_a_foreigner(error, None))

    def _listen(
        self, worker_call: WorkerCall[WalletAnswer], rpc: Rpc, request: Any, payment_hash: bytes, timeout_s: float
    ) -> WalletAnswer:
        """Read a payment's stream in the worker thread. Return the first answer that isn't IN_FLIGHT.

        The IN_FLIGHT answers of a ``track`` are passed to ``worker_call``.
        """
        deadline = monotonic_s() + timeout_s
        for is_last in (rpc == "send", True):
            link, macaroon_hex = self._current(deadline), self._credentials.macaroon_hex()
            was_used = link.used
            try:
                return self._follow(worker_call, link, rpc, request, payment_hash, deadline, macaroon_hex)
            except _StreamError as broken:
                self._drop_if_broken(link, broken.error)
                if not (is_last or broken.started) and self._may_ask_again(broken.error, macaroon_hex, was_used=was_used):
                    continue  # a question spends nothing
                return self._read_error(rpc, broken.error, started=broken.started)
            except FundingError:
                raise
            except Exception as error:  # noqa: BLE001 - the order may have left: whatever else is raised proves nothing
                return WalletAnswer(reply=WalletReply.UNKNOWN, reason=self._of_a_foreigner(error, link.wrapper))
        raise AssertionError("unreachable")

    def _follow(
        self,
        worker_call: WorkerCall[WalletAnswer],
        link: _Link,
        rpc: Rpc,
        request: Any,
        payment_hash: bytes,
        deadline: float,
        macaroon_hex: str,
    ) -> WalletAnswer:
        """Open a payment's stream on ``link`` and read it, until the first answer that isn't IN_FLIGHT. Return that.

        Raises: FundingError if not a byte has left. _StreamError if the stream ends with an error of gRPC's. Whatever a wrapper
        around the channel raises.
        """
        started = False
        call: Any = None
        try:
            stream = link.channel.unary_stream(
                _PATHS[rpc], request_serializer=type(request).SerializeToString, response_deserializer=pb.Payment.FromString
            )
            timeout_s = max(deadline - monotonic_s(), _CALL_S_MIN)
            call = stream(request, timeout=timeout_s, metadata=(("macaroon", macaroon_hex),))
            worker_call.cancel = getattr(call, "cancel", None)  # a plain generator has none: it ends at its deadline
            for message in call:
                started = link.used = link.streams = True
                answer = read_payment(message, payment_hash)
                if answer.reply is not WalletReply.IN_FLIGHT:
                    return answer
                if rpc == "track":  # a sender waits for the last answer
                    worker_call.tell(answer)
        except grpc.RpcError as error:
            raise _StreamError(error, started=started) from None
        except ValueError as error:
            if started or not _is_closed(error):
                raise
            raise self._error("the client was closed", "call again") from None  # not a byte has left
        except RuntimeError as error:  # grpc can't start its own thread. The request has left, and the answer can't be received
            if "thread" not in str(error):
                raise
            self._begin_anew()
            return WalletAnswer(reply=WalletReply.UNKNOWN, reason=tidy(f"gRPC can't receive the answer: {error}"))
        finally:
            _end(call)
        return WalletAnswer(reply=WalletReply.UNKNOWN, reason="the stream ended before the payment did")

    def _check_streams(self, deadline: float) -> None:
        """Ask about a payment that there isn't, once per channel, if a program has put something around grpc's channel.

        Whether a stream comes through it must be known before anything is reserved for an order.

        Raises: FundingError if it doesn't come through.
        """
        if (link := self._link) is None or link.streams:
            return
        request = pb.TrackPaymentRequest(payment_hash=secrets.token_bytes(32))

        def ask(worker_call: WorkerCall[WalletAnswer]) -> WalletAnswer:
            macaroon_hex = self._credentials.macaroon_hex()
            try:
                return self._follow(worker_call, link, "track", request, request.payment_hash, deadline, macaroon_hex)
            except _StreamError as broken:  # NOT_FOUND is the right answer. Any other is told by the call that it concerns
                if _code(broken.error) not in grpc.StatusCode.__members__:
                    raise broken.error from None
                return WalletAnswer(reply=WalletReply.NOT_FOUND)

        answer = self._asked(ask, "TrackPaymentV2", deadline - monotonic_s(), link.wrapper)
        if answer.reply is WalletReply.UNKNOWN:
            raise self._foreign(EOFError(answer.reason), link.wrapper)
        link.streams = True

    def _wallet_state(self, deadline: float) -> int | None:
        """Return lnd's WalletState, or None if this lnd doesn't report it (it has no State service).

        ``deadline`` is a moment on the monotonic clock.

        Raises: FundingError if lnd can't be asked.
        """
        path = "/lnrpc.State/GetState"

        def ask(_: WorkerCall[int | None]) -> int | None:
            link = self._current(deadline)
            was_used = link.used
            try:
                reply = self._call(link, path, pb.GetStateRequest(), pb.GetStateResponse, deadline, None)
            except grpc.RpcError as error:
                if _code(error) == "UNIMPLEMENTED" and "http2 header" not in _text(error).lower():
                    return None
                self._drop_if_broken(link, error)
                # A channel that was used before may report an old failure while it waits to connect again. A new channel can't.
                if _code(error) == "UNAVAILABLE" and was_used:
                    return _ASK_AGAIN
                raise self._failure(path, error, link, timeout_s, deadline) from None
            return int(reply.state)

        for _ in range(2):
            timeout_s = max(deadline - monotonic_s(), _CALL_S_MIN)
            if (state := self._asked(ask, "GetState", timeout_s)) != _ASK_AGAIN:
                return state
        raise self._error("its connection was lost", "check that the node is up")

    def _asked(
        self, ask: Callable[[WorkerCall[_Response]], _Response], method: str, timeout_s: float, wrapper: str | None = None
    ) -> _Response:
        """Run ``ask`` in a worker thread and return its result. ``method`` is what it asks, ``wrapper`` what is around the channel.

        Raises: FundingError if ``ask`` can't be started, doesn't end in time, or raises an Exception of any kind.
        """
        self._suit_green_threads()
        try:
            return result_of(ask, timeout_s=max(timeout_s, _CALL_S_MIN) + _SILENCE_S)
        except NoThreadError as error:
            raise self._no_thread(error) from None
        except SilentError:
            self._begin_anew()
            cause = f"gRPC itself has fallen silent in {method}"
            raise self._error(cause, "call again over a new connection; if gRPC stays silent, restart this program") from None
        except RouteweilerError:
            raise
        except Exception as error:  # what a program has put around grpc may raise anything
            if came_by_signal(error):
                raise
            raise self._foreign(error, wrapper) from None

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
        self, link: _Link, path: str, request: Any, response: type[_Response], deadline: float, macaroon_hex: str | None
    ) -> _Response:
        """Return the one answer to a question. ``macaroon_hex`` None: the question needs no macaroon.

        Raises: grpc.RpcError. FundingError for whatever else goes wrong.
        """
        metadata = (("macaroon", macaroon_hex),) if macaroon_hex is not None else ()
        try:
            call = link.channel.unary_unary(
                path,
                request_serializer=type(request).SerializeToString,
                response_deserializer=response.FromString,  # type: ignore[attr-defined]
            )
            reply: Any = call(request, timeout=max(deadline - monotonic_s(), _CALL_S_MIN), metadata=metadata)
            if not isinstance(reply, response):  # a wrapper may give the call, or answer and call
                reply = reply[0] if isinstance(reply, tuple) else reply.result()
        except grpc.RpcError:
            raise
        except Exception as error:  # noqa: BLE001 - what a program has put around grpc may raise anything
            if _is_closed(error):
                raise self._error("the client was closed", "call again") from None
            raise self._foreign(error, link.wrapper) from None
        if not isinstance(reply, response):
            raise self._foreign(TypeError(f"{type(reply).__name__} in place of {response.__name__}"), link.wrapper)
        link.used = True
        return reply

    def _first_of(
        self, link: _Link, path: str, request: Any, response: type[Any], deadline: float, macaroon_hex: str | None
    ) -> Any:
        """Return the first message of a stream, None if it has none, and end the call. Raises: as `_call`."""
        metadata = (("macaroon", macaroon_hex),) if macaroon_hex is not None else ()
        call: Any = None
        try:
            stream = link.channel.unary_stream(
                path, request_serializer=type(request).SerializeToString, response_deserializer=response.FromString
            )
            call = stream(request, timeout=max(deadline - monotonic_s(), _CALL_S_MIN), metadata=metadata)
            return next(iter(call), None)
        except grpc.RpcError:
            raise
        except Exception as error:  # noqa: BLE001 - what a program has put around grpc may raise anything
            raise self._foreign(error, link.wrapper) from None
        finally:
            _end(call)

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

    def _own_link(self) -> _Link | None:
        """Return the channel, if one is open and isn't the parent's of this process."""
        return self._link if self._pid == os.getpid() else None

    def _begin_anew(self) -> None:
        """Give up the channel, so that the next call opens a new one.

        A new lock takes the place of the old one, which isn't waited for: the thread that holds it may hang, or may not have
        survived the fork.
        """
        self._lock = threading.Lock()
        if (link := self._link) is not None:
            self._kept.append(link)
        self._link = None

    def _current(self, deadline: float) -> _Link:
        """Return the channel, and open one if there is none. ``deadline`` is a moment on the monotonic clock.

        Raises: FundingError if none can be opened.
        """
        self._notice_fork()
        lock = self._lock
        if not lock.acquire(timeout=max(deadline - monotonic_s(), _CALL_S_MIN)):
            raise self._error("another call is still on its way to it", "check that the node can be reached from here")
        try:
            if self._link is None:
                self._link = self._open(deadline)
            return self._link
        finally:
            lock.release()

    def _open(self, deadline: float) -> _Link:
        self._credentials.macaroon_hex()  # without one no channel is of use
        pinned = self._credentials.certificates()
        try:
            host, timeout_s = self._endpoint.host, max(deadline - monotonic_s(), _CALL_S_MIN)
            route = route_to(host, self._endpoint.port, timeout_s=timeout_s)
        except UnresolvedError as error:
            advice = "check the host's spelling and the network or VPN that knows it, or give the node's IP address"
            raise self._error(str(error), advice) from None
        except NoThreadError as error:
            raise self._no_thread(error) from None
        except Exception as error:  # noqa: BLE001 - settings of the system's that can't be read
            raise self._foreign(error, None) from None
        options: list[tuple[str, Any]] = [*_OPTIONS, *route.options]
        name = name_to_check(pinned, ascii_name(self._endpoint.host)) if pinned is not None else None
        # The name that the certificate is checked for. gRPC takes no other authority beside an overridden name.
        options.append(("grpc.ssl_target_name_override", name) if name else ("grpc.default_authority", route.authority))
        try:
            credentials = grpc.ssl_channel_credentials(pem_of(pinned) if pinned is not None else None)
            channel = grpc.secure_channel(route.target, credentials, options=options)
        except Exception as error:  # noqa: BLE001 - a program may have put something of its own in the place of these functions
            raise self._foreign(error, None) from None
        link = _Link(channel=channel, route=route, pinned=pinned, streams=False)
        link.streams = link.wrapper is None
        return link

    def _drop_if_broken(self, link: _Link, error: Exception) -> None:
        """Use a channel no longer if it has lost its connection. Don't close it: other threads may have calls running on it."""
        if _code(error) in ("UNAVAILABLE", "DEADLINE_EXCEEDED"):
            with self._lock:
                if self._link is link:
                    self._link = None

    def _may_ask_again(self, error: Exception, macaroon_hex: str, *, was_used: bool) -> bool:
        """Return whether the same question may be answered now: over a new connection, or with the macaroon's successor.

        ``was_used``: the connection had answered before and may have been lost. A new one reads the certificate's file again.
        """
        code, text = _code(error), _text(error)
        if code == "UNAVAILABLE":
            return was_used
        return macaroon_cause("", code, text, self._endpoint) is not None and self._credentials.macaroon_hex() != macaroon_hex

    def _read_error(self, rpc: Rpc, error: Exception, *, started: bool) -> WalletAnswer:
        """Return the answer that an error at a stream's end amounts to, with its cause as the reason where that is known."""
        code, text = _code(error), self._credentials.without_secrets(_text(error))
        answer = read_error(rpc, code, text, started=started)
        cause = None if started else macaroon_cause(_PATHS[rpc].rpartition("/")[2], code, text, self._endpoint)
        return answer if cause is None else replace(answer, reason=tidy(f"{cause.what}; {cause.advice}"))

    def _failure(self, path: str, error: Exception, link: _Link, timeout_s: float, deadline: float) -> FundingError:
        """Return the error to raise for a question that failed: the likeliest cause, and what the user can do about it."""
        cause = self._cause(path, error, link, timeout_s, deadline)
        if is_permission_denied(_code(error), _text(error)):
            return NotPermittedError(self._endpoint.what(cause.what), advice=f"{cause.advice[0].upper()}{cause.advice[1:]}.")
        return self._error(cause.what, cause.advice)

    def _cause(self, path: str, error: Exception, link: _Link, timeout_s: float, deadline: float) -> Cause:
        """Return the likeliest cause of a question's failure. May ask the server for its certificate."""
        code, text = _code(error), self._credentials.without_secrets(_text(error))
        method = path.rpartition("/")[2]
        seen = Seen()
        if not link.used and link.route.addresses and wants_look(code, text):
            look_s = min(LOOK_S_MAX, max(deadline - monotonic_s(), _SILENCE_S / 2))
            seen = look_at(link.route.addresses[0], self._endpoint.port, look_s)
        failure = Failure(
            method=method, code=code, text=text, timeout_s=timeout_s, pinned=link.pinned, proxy=link.route.proxy, seen=seen
        )
        return cause_of(failure, self._endpoint)

    def _foreign(self, error: Exception, wrapper: str | None) -> FundingError:
        """Return the error to raise for an exception that isn't gRPC's: before an order, so that nothing has been spent."""
        named = wrapper or "what it puts around gRPC"
        advice = f"take {named} away from gRPC's channels in this program, or correct it"
        return self._error(self._of_a_foreigner(error, wrapper), advice)

    def _of_a_foreigner(self, error: Exception, wrapper: str | None) -> str:
        around = f", in a channel that {wrapper} is around" if wrapper else ""
        return tidy(self._credentials.without_secrets(f"gRPC raised {type(error).__name__} ({_said(error)}){around}"))

    def _no_thread(self, error: NoThreadError) -> FundingError:
        return self._error(f"this program can start no thread ({tidy(str(error))})", "end some of its threads, or raise its limit")

    def _error(self, cause: str, advice: str) -> FundingError:
        return self._endpoint.error(cause, advice)


class _StreamError(Exception):
    """gRPC ended a stream with ``error``. ``started``: a message of the payment came before it."""

    def __init__(self, error: Exception, *, started: bool) -> None:
        super().__init__()
        self.error, self.started = error, started


def _is_closed(error: Exception) -> bool:
    """Return whether grpc has accepted no call, because another thread has closed the channel."""
    return isinstance(error, ValueError) and str(error).startswith("Cannot invoke RPC")


def _end(call: Any) -> None:
    """End a call, in whatever form it came: grpc's own are cancelled, and a generator around one is closed."""
    for name in ("cancel", "close"):
        if callable(end := getattr(call, name, None)):
            with suppress(Exception):
                end()
            return


def _code(error: Exception) -> str:
    """Return the name of the error's StatusCode. One without a code isn't lnd's, and has the name of its class."""
    with suppress(Exception):
        return str(error.code().name)  # type: ignore[attr-defined]
    return type(error).__name__


def _text(error: Exception) -> str:
    with suppress(Exception):
        return str(error.details() or "")  # type: ignore[attr-defined]
    return _said(error)


def _said(error: Exception) -> str:
    with suppress(Exception):
        return str(error)
    return ""
