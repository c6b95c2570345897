"""What the clients of lnd have in common, over whichever connection: the calls that pay, ask and track, and in what order.

How lnd's answers are read is left to `replies`. How lnd is reached is left to the connections: `channel` (gRPC) and `rest_channel`.
They are imported at the first use, because grpc and protobuf are heavy.

RPCs and their meaning: lnd, lnrpc/routerrpc/router.proto (SendPaymentV2, TrackPaymentV2), lnrpc/lightning.proto, 0.17 to 0.21.
"""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from ..._core.deadline import monotonic_s
from ..._core.durations import read_seconds
from ..._core.preload import prepare_to_pay
from ..._core.secret_text import WHERE, kind_of, may_be_secret, problem_of_path, shown, without_secrets
from ..._core.signals import came_by_signal
from ...errors import FundingError
from ..replies import WalletAnswer, WalletReply, tidy
from ..simple_calls import pay, status_of
from ..wallet import (
    ChannelBalance,
    NodeInfo,
    NodePayment,
    NotPermittedError,
    PaymentStatus,
    SentPayment,
    network_of,
)
from .replies import Rpc, failure_reason

if TYPE_CHECKING:
    from typing_extensions import Self

    from ..http_url import WalletUrl
    from .causes import Seen
    from .endpoint import Endpoint
    from .probe import Probed

_Response = TypeVar("_Response")

#: lnd stops starting new attempts this long before this package's deadline, so that its FAILED arrives and needn't be guessed.
LND_MARGIN_S = 1.0
_LND_TIMEOUT_S_MAX = 2**31 - 1
#: For so long an order relies on the answer that its purchase got before it: connections die by lying idle, or with their node.
READY_S = 1.0
#: A TrackPaymentV2 stream that reported no change until this long before its deadline was ended by the deadline, not by a fault.
_DEADLINE_SLACK_S = 0.25
_PAYMENTS_A_PAGE = 100
_CALL_S_MIN = 0.05
_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z0-9 ]*PRIVATE KEY-----|\Z)")


class LndConnection(Protocol):
    """A connection to one node, whatever it speaks. Safe to share between threads, and opened anew after a fork.

    The names of RPCs are gRPC's paths, and messages are those of the stubs.
    """

    def check_ready(self, timeout_s: float) -> None:
        """Return once the node accepts payment orders. Raises: FundingError with the cause if it accepts none."""
        ...

    def expect_order(self, within_s: float) -> None:
        """Note that the node has just been found ready, and an order follows within ``within_s`` seconds."""
        ...

    def take_expected_order(self) -> bool:
        """Return whether the order that leaves now is the expected one: in time, over the same connection. Expect none any more."""
        ...

    def is_of_account(self) -> bool:
        """Return whether the macaroon is that of an account of litd."""
        ...

    def unary(self, path: str, request: Any, response: type[_Response], *, timeout_s: float) -> _Response:
        """Ask a question that has one answer, and return that answer. Raises: FundingError for whatever goes wrong."""
        ...

    def probe(
        self, path: str, request: Any, response: type[Any], *, timeout_s: float, is_stream: bool = False, with_macaroon: bool = True
    ) -> Probed:
        """Ask once, and return lnd's very answer, an error too. Of a stream, the first message is the answer.

        Raises: FundingError if nothing could be asked.
        """
        ...

    def look(self, timeout_s: float) -> Seen:
        """Return what the server shows to anybody who connects; nothing if a proxy stands between."""
        ...

    def answers(self, rpc: Rpc, request: Any, *, payment_hash: bytes, timeout_s: float) -> Generator[WalletAnswer, None, None]:
        """Send ``request`` and yield the answers in its stream. The first that isn't IN_FLIGHT is the last one.

        Raises: FundingError if not a byte has left.
        Money: ``send`` pays the invoice's amount and the routing fee.
        """
        ...

    def close(self) -> None:
        """Close the connection; a later call opens a new one."""
        ...


class LndNodeClient:
    """One lnd node. The subclasses say where it is and how it is reached."""

    def __init__(
        self,
        macaroon_path: str | os.PathLike[str] | None,
        macaroon_hex: str | None,
        tls_cert_path: str | os.PathLike[str] | None,
        tls_cert_pem: str | None,
        timeout_seconds: float,
    ) -> None:
        if (macaroon_path is None) == (macaroon_hex is None):
            raise ValueError("give either macaroon_path or macaroon_hex")
        if macaroon_hex is not None and not (isinstance(macaroon_hex, str) and re.fullmatch(r"([0-9a-fA-F]{2})+", macaroon_hex)):
            raise ValueError(f"macaroon_hex isn't hex{where_it_belongs(macaroon_hex)}")
        if tls_cert_path is not None and tls_cert_pem is not None:
            raise ValueError("give tls_cert_path or tls_cert_pem, not both")
        for name, path in (("macaroon_path", macaroon_path), ("tls_cert_path", tls_cert_path)):
            if path is not None and (problem := problem_of_path(name, path)) is not None:
                raise ValueError(problem)
        self.macaroon_path = None if macaroon_path is None else os.fspath(macaroon_path)
        self.tls_cert_path = None if tls_cert_path is None else os.fspath(tls_cert_path)
        self.tls_cert_pem = None if tls_cert_pem is None else _without_private_keys(tls_cert_pem)
        self.timeout_seconds = read_seconds("timeout_seconds", timeout_seconds)
        self._macaroon_hex = macaroon_hex

    # Paying

    def pay_invoice(self, bolt11: str, *, max_fee_msat: int) -> bytes:
        """Pay an invoice and return the 32-byte preimage. A second call for the same invoice pays nothing more.

        Raises: InvoicePaymentError if lnd reports FAILED (nothing spent). FundingError if nothing was sent, or lnd refused the
        order before it began (nothing spent). PaymentPendingError if the outcome isn't known in time: call again with the same
        invoice, or ask `track_payment`. PreimageMismatchError if lnd reports success but its preimage doesn't fit (spent).
        Money: the invoice's amount, and at most ``max_fee_msat`` for routing.
        """
        return self.send_payment_sync(bolt11, max_fee_msat=max_fee_msat).payment_preimage

    def send_payment_sync(
        self,
        payment_request: str,
        *,
        max_fee_msat: int | None = None,
        fee_limit_msat: int | None = None,
        timeout_seconds: float | None = None,
    ) -> SentPayment:
        """Pay an invoice and return all that is known of the payment. Otherwise as `pay_invoice`.

        Uses SendPaymentV2, since lnd 0.21 has no SendPaymentSync, and waits for the outcome. ``timeout_seconds`` may shorten the
        client's timeout. ``fee_limit_msat`` is another name of ``max_fee_msat``; with neither the limit is max(10 000 msat, 5 % of
        the amount).

        Raises: as `pay_invoice`. ValueError if both names of the limit are given.
        Money: as `pay_invoice`.
        """
        if max_fee_msat is not None and fee_limit_msat is not None:
            raise ValueError("give max_fee_msat or fee_limit_msat, not both: they are the same")
        return pay(
            self,
            payment_request,
            max_fee_msat=max_fee_msat if max_fee_msat is not None else fee_limit_msat,
            timeout_s=self._bounded(timeout_seconds or self.timeout_seconds),
            wallet="lnd",
        )

    def send(self, bolt11: str, *, payment_hash: bytes, max_fee_msat: int, timeout_s: float) -> WalletAnswer:
        """Send one payment order, and return the answer that ends its stream. Meant for a purchase, which counts the sends.

        ``payment_hash`` is the invoice's (32 bytes). Errors are returned as answers, not raised. The reply is REFUSED only if not a
        byte of the order has left, or lnd refused the order before it began. Once the order is on its way, a broken stream or a
        passed deadline is UNKNOWN. An interrupt passes through.

        Raises: ValueError if ``max_fee_msat`` is negative.
        Money: the invoice's amount, and at most ``max_fee_msat`` for routing. After an interrupt lnd goes on paying.
        """
        if max_fee_msat < 0:
            raise ValueError(f"max_fee_msat is negative: {max_fee_msat}")
        timeout_s = self._bounded(timeout_s)
        deadline = monotonic_s() + timeout_s
        try:
            connection = self._connection
            # Asked before each order: an order sent into a dead connection would be UNKNOWN, whereas now it is REFUSED.
            if not connection.take_expected_order():
                self.check_ready(timeout_s)
            remaining_s = deadline - monotonic_s()
            from .stubs import routeweiler_lnd_pb2 as pb

            request = pb.SendPaymentRequest(
                payment_request=bolt11,
                fee_limit_msat=max_fee_msat,
                timeout_seconds=min(max(int(remaining_s - LND_MARGIN_S), 1), _LND_TIMEOUT_S_MAX),
            )
        except FundingError as error:
            return WalletAnswer(reply=WalletReply.REFUSED, reason=error.brief)
        except Exception as error:  # of whatever kind it is, not a byte of the order has left
            if came_by_signal(error):
                raise
            return WalletAnswer(reply=WalletReply.REFUSED, reason=f"the order can't be made: {type(error).__name__}")
        try:
            with closing(connection.answers("send", request, payment_hash=payment_hash, timeout_s=remaining_s)) as answers:
                return next(answer for answer in answers if answer.reply is not WalletReply.IN_FLIGHT)
        except FundingError as error:
            return WalletAnswer(reply=WalletReply.REFUSED, reason=error.brief)
        except Exception as error:  # of whatever kind it is, the order may have left
            if came_by_signal(error):
                raise
            return WalletAnswer(reply=WalletReply.UNKNOWN, reason=f"the answer can't be read: {type(error).__name__}")

    # Asking: none of these methods can move money

    def track(self, payment_hash: bytes, *, timeout_s: float, follow: bool) -> WalletAnswer:
        """Ask lnd about the payment with this hash (32 bytes). ``follow`` waits for its end, at most ``timeout_s`` seconds.

        Errors are returned as answers, not raised; a stream that breaks ends the wait early. UNKNOWN proves nothing at all.
        IN_FLIGHT is the last state that lnd reported.
        """
        from .stubs import routeweiler_lnd_pb2 as pb

        timeout_s = self._bounded(timeout_s)
        deadline = monotonic_s() + timeout_s
        request = pb.TrackPaymentRequest(payment_hash=payment_hash)
        last: WalletAnswer | None = None
        try:
            with closing(self._connection.answers("track", request, payment_hash=payment_hash, timeout_s=timeout_s)) as answers:
                for answer in answers:
                    if answer.reply is not WalletReply.IN_FLIGHT:
                        break
                    last = answer
                    if not follow:
                        return answer
        except FundingError as error:
            return WalletAnswer(reply=WalletReply.UNKNOWN, reason=error.brief)
        except Exception as error:  # no error, of whatever kind, says anything about the payment
            if came_by_signal(error):
                raise
            return WalletAnswer(reply=WalletReply.UNKNOWN, reason=f"the answer can't be read: {type(error).__name__}")
        if answer.reply is WalletReply.UNKNOWN and last is not None and monotonic_s() >= deadline - _DEADLINE_SLACK_S:
            return last
        return answer

    def track_payment(self, payment_hash: bytes | str) -> PaymentStatus:
        """Return what lnd knows now of the payment with this hash (32 bytes or 64 hex digits). Don't wait if it is in flight.

        Raises: FundingError if lnd can't be asked. PreimageMismatchError if lnd's preimage doesn't fit the payment hash. ValueError
        for a hash of another length.
        """
        return status_of(self, payment_hash, timeout_s=self.timeout_seconds, wallet="lnd")

    def check_ready(self, timeout_s: float) -> None:
        """Return once the node accepts payment orders. Wait for at most ``timeout_s`` seconds.

        Needs no macaroon, but with one of a litd account also asks whether that account may be used. A node that is starting is
        waited for, a locked wallet isn't.

        Raises: FundingError with the exact cause if the node doesn't accept orders.
        """
        deadline = monotonic_s() + self._bounded(timeout_s)
        self._connection.check_ready(self._bounded(timeout_s))
        if self._connection.is_of_account():
            # litd says of an order's answers too that the account has expired, say. Only before the order does it prove something.
            with suppress(NotPermittedError):
                self.get_info(timeout_s=max(deadline - monotonic_s(), _CALL_S_MIN))

    def prepare(self) -> None:
        """Import what the connection needs. Makes none."""
        prepare_to_pay(self._connection_module)

    def expect_order(self) -> None:
        """Let the next order go without asking whether the node is ready, which it has just said, if it leaves within `READY_S`.

        It must go over the same connection.
        """
        if (connection := self.__dict__.get("_opened")) is not None:
            connection.expect_order(READY_S)

    def get_info(self, *, timeout_s: float | None = None) -> NodeInfo:
        """Return the node's identity and state (GetInfo). ``timeout_s`` may shorten the client's timeout.

        Raises: FundingError if lnd can't be asked.
        """
        from .stubs import routeweiler_lnd_pb2 as pb

        info = self._ask("/lnrpc.Lightning/GetInfo", pb.GetInfoRequest(), pb.GetInfoResponse, timeout_s)
        return NodeInfo(
            identity_pubkey=info.identity_pubkey,
            alias=tidy(without_secrets(info.alias)),
            version=tidy(without_secrets(info.version)),
            network=network_of(info.chains[0].network) if info.chains else "",
            synced_to_chain=info.synced_to_chain,
            block_height=info.block_height,
            num_active_channels=info.num_active_channels,
        )

    def get_node_pubkey(self) -> str:
        """Return the node's public key, 66 hex digits. Raises: FundingError if lnd can't be asked."""
        return self.get_info().identity_pubkey

    def spendable_msat(self, *, timeout_s: float) -> int | None:
        """Return what the node's channels hold on its own side. Part of it is the channel reserve, which can't be spent.

        Raises: FundingError if lnd can't be asked; NotPermittedError if the macaroon doesn't permit it, which paying doesn't need.
        """
        return self.channel_balance(timeout_s=timeout_s).local_msat

    def channel_balance(self, *, timeout_s: float | None = None) -> ChannelBalance:
        """Return what the node's channels hold. ``timeout_s`` may shorten the client's timeout.

        Raises: FundingError if lnd can't be asked.
        """
        from .stubs import routeweiler_lnd_pb2 as pb

        reply = self._ask("/lnrpc.Lightning/ChannelBalance", pb.ChannelBalanceRequest(), pb.ChannelBalanceResponse, timeout_s)
        return ChannelBalance(local_msat=reply.local_balance.msat, remote_msat=reply.remote_balance.msat)

    def list_payments(self) -> Iterator[NodePayment]:
        """Yield all payments that the node knows, failed and unfinished ones too, oldest first. Asks page by page.

        Needs a macaroon that permits ListPayments, which paying doesn't need.

        Raises: FundingError if lnd can't be asked.
        """
        from .stubs import routeweiler_lnd_pb2 as pb

        offset = 0
        while True:
            request = pb.ListPaymentsRequest(include_incomplete=True, index_offset=offset, max_payments=_PAYMENTS_A_PAGE)
            page = self._ask("/lnrpc.Lightning/ListPayments", request, pb.ListPaymentsResponse)
            for payment in page.payments:
                yield NodePayment(
                    payment_hash=payment.payment_hash,
                    status=pb.Payment.PaymentStatus.Name(payment.status),
                    amount_msat=payment.value_msat,
                    fee_msat=payment.fee_msat,
                    failure_reason=failure_reason(payment.failure_reason) if payment.status == pb.Payment.FAILED else None,
                    created_at_ns=payment.creation_time_ns,
                )
            if len(page.payments) < _PAYMENTS_A_PAGE or page.last_index_offset <= offset:
                return
            offset = page.last_index_offset

    def close(self) -> None:
        """Close the connection. May be called twice; a later call connects anew. lnd goes on with payments that have begun."""
        if (connection := self.__dict__.get("_opened")) is not None:
            connection.close()

    @property
    def _endpoint(self) -> Endpoint:
        """The node's address, with the credentials that open it."""
        raise NotImplementedError

    def _endpoint_at(self, host: str, port: int, *, rest_url: WalletUrl | None = None) -> Endpoint:
        """Return the endpoint at this address, with this client's credentials."""
        from .endpoint import Endpoint

        return Endpoint(
            host=host,
            port=port,
            macaroon_path=self.macaroon_path,
            macaroon_hex=self._macaroon_hex,
            tls_cert_path=self.tls_cert_path,
            tls_cert_pem=self.tls_cert_pem,
            rest_url=rest_url,
        )

    #: The module of the connection, in this package. It imports protobuf, and grpc if it is needed.
    _connection_module = ""

    def _new_connection(self, endpoint: Endpoint) -> LndConnection:
        """Return a connection to ``endpoint``, which isn't opened yet."""
        raise NotImplementedError

    @property
    def _connection(self) -> LndConnection:
        if (connection := self.__dict__.get("_opened")) is None:
            self.prepare()
            # setdefault is atomic: threads that come here at the same time all get the same connection.
            connection = self.__dict__.setdefault("_opened", self._new_connection(self._endpoint))
        opened: LndConnection = connection
        return opened

    def _ask(self, path: str, request: Any, response: Any, timeout_s: float | None = None) -> Any:
        bound_s = self.timeout_seconds if timeout_s is None else self._bounded(timeout_s)
        return self._connection.unary(path, request, response, timeout_s=bound_s)

    def _bounded(self, timeout_s: float) -> float:
        return min(timeout_s, self.timeout_seconds)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_opened"} | {"_macaroon_hex": None}

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


def where_it_belongs(given: object) -> str:
    """Return the rest of a sentence about the misplaced value ``given``: what it looks like, and where it belongs."""
    kind = kind_of(given)
    return "" if kind == "a secret" else f": it looks like {kind}, and so isn't shown. {WHERE[kind]}"


def _without_private_keys(pem: str) -> str:
    """Return the certificates in ``pem``, which may have private keys beside them: a client is pickled with its certificates.

    Raises: ValueError if it is a secret, and no certificate.
    """
    given: object = pem
    if not isinstance(given, (str, bytes)):
        raise ValueError(f"tls_cert_pem must be a text, not {shown(given)}")
    text = given if isinstance(given, str) else given.decode("latin-1")
    certificates = _PRIVATE_KEY.sub("", text)
    if "CERTIFICATE-----" not in certificates and (kind_of(text) not in ("a secret", "a certificate") or may_be_secret(text)):
        from .certificates import read_certificates

        try:
            read_certificates(pem)
        except ValueError:
            belongs = where_it_belongs(text) or f": it may be a secret, and so isn't shown. {WHERE['a secret']}"
            raise ValueError(f"tls_cert_pem isn't a certificate{belongs}") from None
    if certificates == text:
        return pem
    return certificates if isinstance(given, str) else certificates.encode("latin-1")  # type: ignore[return-value]
