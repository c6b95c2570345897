"""The REST connection to lnd: which path stands for which RPC, readiness, and payment streams read into `WalletAnswer`s.

Does over HTTP what `channel` does over gRPC, with the same messages and the same words. How bytes travel is left to `http_calls`,
the forms of answers to `rest_replies`, what they mean to `replies`, the credentials to `endpoint`, the words of errors to `causes`.

Paths: lnd, lnrpc/lightning.yaml, lnrpc/stateservice.yaml, lnrpc/routerrpc/router.yaml.
"""

from __future__ import annotations

import base64
from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from typing import Any, TypeVar
from urllib.parse import urlencode

from google.protobuf import json_format

from ..._core.deadline import monotonic_s
from ...errors import FundingError
from ..http_calls import HttpAnswer, HttpCallError, HttpCalls, HttpRequest, NoAnswerError, NotSentError, Trust
from ..replies import WalletAnswer, WalletReply, tidy
from ..wallet import NotPermittedError
from .causes import LOOK_S_MAX, Cause, Failure, Seen, cause_of, look_at, macaroon_cause, wants_look
from .certificates import Certificate, name_to_check, pem_of
from .endpoint import Credentials, Endpoint
from .probe import Probed
from .readiness import await_start
from .replies import Rpc, is_permission_denied, read_error, read_payment
from .rest_replies import RestReply, read_reply
from .stubs import routeweiler_lnd_pb2 as pb

_Response = TypeVar("_Response")

_RPCS: dict[Rpc, str] = {"send": "/routerrpc.Router/SendPaymentV2", "track": "/routerrpc.Router/TrackPaymentV2"}
#: An RPC's HTTP method and path. What of the request isn't in the path goes into the body of a POST, or the query of a GET.
_PATHS = {
    "/lnrpc.State/GetState": ("GET", "/v1/state"),
    "/lnrpc.Lightning/GetInfo": ("GET", "/v1/getinfo"),
    "/lnrpc.Lightning/ChannelBalance": ("GET", "/v1/balance/channels"),
    "/lnrpc.Lightning/ListChannels": ("GET", "/v1/channels"),
    "/lnrpc.Lightning/ListPayments": ("GET", "/v1/payments"),
    _RPCS["send"]: ("POST", "/v2/router/send"),
    _RPCS["track"]: ("GET", "/v2/router/track/{payment_hash}"),
}
#: A page of ListPayments, or the channels of a large node.
_BODY_BYTES_MAX = 64 * 2**20
_CALL_S_MIN = 0.05


class LndRestChannel:
    """The connection to one node. Safe to share between threads and forks. See `node_client.LndConnection`."""

    def __init__(self, endpoint: Endpoint) -> None:
        assert endpoint.rest_url is not None
        self._endpoint, self._url = endpoint, endpoint.rest_url
        self._credentials = Credentials(endpoint)
        self._calls = HttpCalls(self._url, self._trust)
        self._order_by_s: float | None = None

    def close(self) -> None:
        """Close the connections; a later call opens new ones. Money: lnd goes on with payments that have begun."""
        self._calls.close()

    def check_ready(self, timeout_s: float) -> None:
        """Return once the node accepts payment orders. Wait for at most ``timeout_s`` seconds. Needs no macaroon.

        Raises: FundingError with the cause if the node doesn't accept orders.
        Money: none moves; this only asks.
        """
        deadline = monotonic_s() + timeout_s

        def ask_state() -> int | None:
            left_s = max(deadline - monotonic_s(), _CALL_S_MIN)
            path = "/lnrpc.State/GetState"
            probed = self.probe(path, pb.GetStateRequest(), pb.GetStateResponse, timeout_s=left_s, with_macaroon=False)
            if probed.cause is not None:
                raise self._error(probed.cause)
            return int(probed.reply.state)

        await_start(ask_state, self._endpoint, timeout_s)

    def expect_order(self, within_s: float) -> None:
        """Note that the node has just been found ready, and an order follows within ``within_s`` seconds."""
        self._order_by_s = monotonic_s() + within_s

    def take_expected_order(self) -> bool:
        """Return whether the order that leaves now is the expected one: in time; it has a new connection. Expect none any more."""
        by_s, self._order_by_s = self._order_by_s, None
        return by_s is not None and monotonic_s() < by_s

    def is_of_account(self) -> bool:
        """Return whether the macaroon is that of an account of litd."""
        return self._credentials.is_of_account()

    def unary(self, path: str, request: Any, response: type[_Response], *, timeout_s: float) -> _Response:
        """Ask a question that has one answer, and return that answer. ``path`` is the RPC's, e.g. ``/lnrpc.Lightning/GetInfo``.

        Raises: FundingError for whatever goes wrong.
        Money: none moves, because a question spends nothing.
        """
        deadline = monotonic_s() + timeout_s
        macaroon_hex = self._credentials.macaroon_hex()
        probed = self.probe(path, request, response, timeout_s=timeout_s)
        if probed.cause is not None and probed.cause.part == "macaroon" and self._credentials.macaroon_hex() != macaroon_hex:
            probed = self.probe(path, request, response, timeout_s=max(deadline - monotonic_s(), _CALL_S_MIN))  # with its successor
        if probed.cause is not None:
            if is_permission_denied(probed.code, probed.text):
                what, advice = self._endpoint.what(probed.cause.what), probed.cause.advice
                raise NotPermittedError(what, advice=f"{advice[0].upper()}{advice[1:]}.")
            raise self._error(probed.cause)
        reply: _Response = probed.reply
        return reply

    def probe(
        self, path: str, request: Any, response: type[Any], *, timeout_s: float, is_stream: bool = False, with_macaroon: bool = True
    ) -> Probed:
        """Ask once, and return lnd's very answer, an error too. Of a stream, the first message is the answer.

        Raises: FundingError if the macaroon or certificate can't be read.
        Money: what ``request`` moves. Meant for requests that move none.
        """
        deadline = monotonic_s() + timeout_s
        wanted = self._request(path, request, self._credentials.macaroon_hex() if with_macaroon else None)
        try:
            if is_stream:
                with closing(self._calls.lines(wanted, timeout_s=timeout_s)) as lines:
                    first = next(lines, None)
                if first is None:
                    return Probed(code="OK")
                read = read_reply(first.status, first.content_type, first.line, is_stream=True)
            else:
                answer: HttpAnswer = self._calls.ask(wanted, timeout_s=timeout_s)
                read = read_reply(answer.status, answer.content_type, answer.body, is_stream=False)
        except HttpCallError as error:
            cause = self._cause_of_failed(path, error, timeout_s, deadline)
            return Probed(code=_code(error), text=error.what, cause=cause)
        if read.message is not None:
            try:
                return Probed(code="OK", reply=_parsed(read.message, response))
            except Exception:  # noqa: BLE001 - whatever was raised, this isn't lnd's message
                read = RestReply(code="HTTP 200", text="JSON, and nothing of lnd's")
        text = self._credentials.without_secrets(read.text)
        return Probed(code=read.code, text=text, cause=self._cause(path, read.code, text, timeout_s))

    def look(self, timeout_s: float) -> Seen:
        """Return what the server shows to anybody who connects."""
        return look_at(self._url.host, self._url.port, timeout_s)

    def answers(self, rpc: Rpc, request: Any, *, payment_hash: bytes, timeout_s: float) -> Generator[WalletAnswer, None, None]:
        """Send ``request`` and yield the answers in its stream. The first that isn't IN_FLIGHT is the last one.

        For ``send`` only this last answer is yielded, for ``track`` the IN_FLIGHT ones too. If the stream ends or breaks without
        one, the last answer says so. Closing the iterator ends the call but not the payment.

        Raises: FundingError if not a byte of the request has left.
        Money: ``send`` pays the invoice's amount and the routing fee.
        """
        deadline = monotonic_s() + timeout_s
        for is_last in (rpc == "send", True):
            macaroon_hex = self._credentials.macaroon_hex()
            error = yield from self._stream(rpc, request, payment_hash, macaroon_hex, max(deadline - monotonic_s(), _CALL_S_MIN))
            if error is None:
                return
            reply, answer = error
            cause = macaroon_cause(_method(_RPCS[rpc]), reply.code, reply.text, self._endpoint)
            if cause is not None and not is_last and self._credentials.macaroon_hex() != macaroon_hex:
                continue  # a question spends nothing, and the macaroon has a successor
            yield answer if cause is None else replace(answer, reason=tidy(f"{cause.what}; {cause.advice}"))
            return

    def _stream(
        self, rpc: Rpc, request: Any, payment_hash: bytes, macaroon_hex: str, timeout_s: float
    ) -> Generator[WalletAnswer, None, tuple[RestReply, WalletAnswer] | None]:
        """Send ``request`` once, and yield its answers. Return an error that came before any message, with what it amounts to."""
        wanted, started = self._request(_RPCS[rpc], request, macaroon_hex), False
        try:
            with closing(self._calls.lines(wanted, timeout_s=timeout_s)) as lines:
                for line in lines:
                    if not line.line.strip():
                        continue
                    read = read_reply(line.status, line.content_type, line.line, is_stream=True)
                    if read.message is None:
                        read = replace(read, text=self._credentials.without_secrets(read.text))
                        answer = read_error(rpc, read.code, read.text, started=started)
                        if not started:
                            return read, answer
                        yield answer
                        return None
                    started = True
                    answer = read_payment(_parsed(read.message, pb.Payment, "status"), payment_hash)
                    if answer.reply is not WalletReply.IN_FLIGHT:
                        yield answer
                        return None
                    if rpc == "track":  # a sender waits for the last answer
                        yield answer
        except NotSentError as error:
            raise self._error(self._cause_of_failed(_RPCS[rpc], error, timeout_s, monotonic_s())) from None
        except NoAnswerError as error:
            yield read_error(rpc, _code(error), self._credentials.without_secrets(error.what), started=started)
            return None
        except (json_format.Error, RecursionError, ValueError, OverflowError):
            yield WalletAnswer(reply=WalletReply.UNKNOWN, reason="a message of the stream isn't lnd's")
            return None
        yield WalletAnswer(reply=WalletReply.UNKNOWN, reason="the stream ended before the payment did")
        return None

    def _request(self, path: str, request: Any, macaroon_hex: str | None) -> HttpRequest:
        method, where = _PATHS[path]
        headers = {"Grpc-Metadata-macaroon": macaroon_hex} if macaroon_hex is not None else {}
        fields = json_format.MessageToDict(request, preserving_proto_field_name=True)
        if "{payment_hash}" in where:
            fields.pop("payment_hash", None)
            # With its =: without, the gateway answers with an error that isn't about the payment (observed, lnd 0.21.2).
            where = where.format(payment_hash=base64.urlsafe_b64encode(request.payment_hash).decode())
        if method == "POST":
            return HttpRequest.of_json(method, where, fields, headers)
        query = urlencode({name: str(value).lower() if isinstance(value, bool) else value for name, value in fields.items()})
        return HttpRequest(method=method, path=f"{where}?{query}" if query else where, headers=headers, bytes_max=_BODY_BYTES_MAX)

    def _trust(self) -> Trust:
        pinned = self._credentials.certificates()
        if pinned is None:
            return Trust()
        return Trust(roots_pem=pem_of(pinned), name=name_to_check(pinned, self._url.host))

    def _pinned(self) -> tuple[Certificate, ...] | None:
        try:
            return self._credentials.certificates()
        except FundingError:
            return None

    def _cause(self, path: str, code: str, text: str, timeout_s: float, seen: Seen | None = None) -> Cause:
        failure = Failure(
            method=_method(path), code=code, text=text, timeout_s=timeout_s, pinned=self._pinned(), seen=seen or Seen()
        )
        return cause_of(failure, self._endpoint)

    def _cause_of_failed(self, path: str, error: HttpCallError, timeout_s: float, deadline: float) -> Cause:
        """Return the likeliest cause of a call that got no answer. May ask the server for its certificate."""
        if error.kind in ("name", "thread", "large", "other"):
            return Cause(what=error.what, advice=error.advice)
        code, text, seen = _code(error), error.detail or error.what, Seen()
        if error.kind == "tls" and wants_look(code, text):
            seen = self.look(min(LOOK_S_MAX, max(deadline - monotonic_s(), LOOK_S_MAX / 3)))
        return self._cause(path, code, text, timeout_s, seen)

    def _error(self, cause: Cause) -> FundingError:
        return self._endpoint.error(cause.what, cause.advice)


def _parsed(content: dict[str, Any], kind: type[Any], needed: str | None = None) -> Any:
    """Return the message in a JSON object. ``needed`` is a field that it must have; None: any field of its kind.

    lnd's gateway writes all fields, also those without a value. So an object with none of them is somebody else's.

    Raises: json_format.ParseError, ValueError or others if it isn't of this kind.
    """
    fields = kind.DESCRIPTOR.fields_by_name if needed is None else {needed}
    if not any(name in fields for name in content):
        raise ValueError("none of the message's fields")
    return json_format.ParseDict(content, kind(), ignore_unknown_fields=True)


def _code(error: HttpCallError) -> str:
    """Return what gRPC calls such a failure, for `causes`."""
    return "DEADLINE_EXCEEDED" if error.kind == "timeout" else "UNAVAILABLE"


def _method(path: str) -> str:
    return path.rpartition("/")[2]
