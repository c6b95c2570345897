"""The gRPC methods of the fake lnd: real method paths, the interceptor's checks with lnd's texts, and the planned faults.

The rules by which payments start and end are left to `_lnd_book`. The server's start and stop, and the public names, are left to
`fake_lnd`.
"""

from __future__ import annotations

import hashlib
import string
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
from pymacaroons.serializers import BinarySerializer

from ..funding.lnd.stubs import routeweiler_lnd_pb2 as pb
from ._lnd_accounts import FakeAccount
from ._lnd_book import Attempt, Book, Entry, FakeOrder, OrderError, decode

#: The error text of lnd's interceptor in every state but RPC_ACTIVE and SERVER_ACTIVE (rpcperms/interceptor.go).
_NOT_UP = {
    "NON_EXISTING": "wallet not created, create one to enable full RPC access",
    "LOCKED": "wallet locked, unlock it to enable full RPC access",
    "UNLOCKED": "the RPC server is in the process of starting up, but not yet ready to accept calls",
    "WAITING_TO_START": "waiting to start, RPC services not available",
}
#: gRPC's text for a broken connection.
DROPPED = "Stream removed (Socket closed)"
#: How many payments a ListPayments without max_payments returns.
_PAGE_DEFAULT = 100
#: The timeout of a SendPaymentV2 without timeout_seconds (routerrpc/router_backend.go, DefaultPaymentTimeout).
_TIMEOUT_S_DEFAULT = 60
#: How often a waiting call looks whether the test's main thread still lives.
_WAKE_S = 1.0


@dataclass(kw_only=True)
class Faults:
    """The faults of the fake lnd.

    ``planned``: for each kind of fault, how many times more it strikes (None: always) and its value. ``fee_msat`` is the routing
    fee of each payment, ``clock_offset_s`` how far the node's clock is ahead.
    """

    planned: dict[str, tuple[int | None, Any]] = field(default_factory=dict)
    fee_msat: int = 0
    clock_offset_s: float = 0.0

    def plan(self, kind: str, value: Any, times: int | None) -> None:
        """Plan a fault for the next ``times`` orders that it can strike (None: for all). Replaces a plan of the same kind."""
        self.planned[kind] = (times, value)

    def take(self, kind: str) -> Any:
        """Use a planned fault once, and return its value; None if no fault of this kind is planned."""
        times, value = self.planned.get(kind, (0, None))
        if times is not None:
            if times <= 1:
                self.planned.pop(kind, None)
            else:
                self.planned[kind] = (times - 1, value)
        return value


class Service:
    """Answers lnd's gRPC calls from the database ``book``. Each start of the server has its own.

    ``macaroons``: by the macaroon in hex, the method paths that it permits (None: all), the text with which it is refused, or
    its account of litd.
    ``calls`` counts the calls by method name. ``now`` returns unix seconds by the node's clock. ``state`` is lnd's wallet state.
    While ``holding``, orders wait unread; ``held`` counts them.
    """

    def __init__(
        self,
        book: Book,
        faults: Faults,
        macaroons: dict[str, frozenset[str] | str | FakeAccount | None],
        calls: Counter[str],
        now: Callable[[], float],
    ) -> None:
        self.book, self.faults, self.macaroons, self.calls, self.now = book, faults, macaroons, calls, now
        self.state = "SERVER_ACTIVE"
        self.holding = False
        self.held = 0
        self.stopped = False

    def handlers(self) -> tuple[grpc.GenericRpcHandler[Any, Any], ...]:
        """Return the gRPC handlers of all methods."""
        named: dict[str, dict[str, Any]] = {}
        for path, (is_stream, behaviour, request) in self.methods().items():
            _, service, name = path.split("/")
            kind = grpc.unary_stream_rpc_method_handler if is_stream else grpc.unary_unary_rpc_method_handler
            named.setdefault(service, {})[name] = kind(
                behaviour,
                request_deserializer=request.FromString,
                response_serializer=lambda message: message.SerializeToString(),
            )
        return tuple(grpc.method_handlers_generic_handler(service, methods) for service, methods in named.items())

    def methods(self) -> dict[str, tuple[bool, Callable[[Any, Any], Any], Any]]:
        """Return, for each gRPC path, whether it answers with a stream, what answers it, and the type of its request.

        What answers takes the request, and a ``grpc.ServicerContext`` or an object like it.
        """
        methods = {
            "/lnrpc.State/GetState": (False, self._get_state, pb.GetStateRequest),
            "/lnrpc.Lightning/GetInfo": (False, self._get_info, pb.GetInfoRequest),
            "/lnrpc.Lightning/ChannelBalance": (False, self._channel_balance, pb.ChannelBalanceRequest),
            "/lnrpc.Lightning/ListChannels": (False, self._list_channels, pb.ListChannelsRequest),
            "/lnrpc.Lightning/DecodePayReq": (False, self._decode_pay_req, pb.PayReqString),
            "/lnrpc.Lightning/AddInvoice": (False, self._add_invoice, pb.Invoice),
            "/lnrpc.Lightning/LookupInvoice": (False, self._lookup_invoice, pb.PaymentHash),
            "/lnrpc.Lightning/ListPayments": (False, self._list_payments, pb.ListPaymentsRequest),
            "/routerrpc.Router/SendPaymentV2": (True, self._send_payment, pb.SendPaymentRequest),
            "/routerrpc.Router/TrackPaymentV2": (True, self._track_payment, pb.TrackPaymentRequest),
        }
        return {
            path: (is_stream, self._intercepted(path, behaviour), request)  # type: ignore[arg-type]
            for path, (is_stream, behaviour, request) in methods.items()
        }

    def stop(self) -> None:
        """Wake all calls that wait, so that they end."""
        with self.book.changed:
            self.stopped = True
            self.book.changed.notify_all()

    def _intercepted(self, path: str, behaviour: Callable[[Any, grpc.ServicerContext], Any]) -> Callable[..., Any]:
        """Return the handler of a method: it counts the call, checks state and macaroon as lnd's interceptor does, and answers."""

        def handle(request: Any, context: grpc.ServicerContext) -> Any:
            with self.book.changed:
                self.calls[path.rpartition("/")[2]] += 1
                self.book.changed.notify_all()
            if path == "/routerrpc.Router/SendPaymentV2":
                self._wait_for_delivery()
            account: FakeAccount | None = None
            try:
                if path != "/lnrpc.State/GetState":
                    self._check_state()
                    account = self._check_macaroon(path, context)
                    if account is not None:
                        with self.book.changed:
                            account.check(path, request, self.book)
                return behaviour(request, context)
            except OrderError as error:
                if account is not None and path == "/routerrpc.Router/SendPaymentV2":
                    with self.book.changed:
                        account.refused(request, error, self.book)
                context.abort(grpc.StatusCode[error.code], error.text)

        return handle

    def _wait_for_delivery(self) -> None:
        """Wait while orders are held. A held order is sent but not read. Once delivered, it is executed even if its client is gone.

        Raises: RuntimeError if the server stops before; the order is then lost.
        """
        with self.book.changed:
            if not self.holding:
                return
            self.held += 1
            self.book.changed.notify_all()
            self._wait(lambda: not self.holding)
            self.held -= 1
            self.book.changed.notify_all()
            if self.stopped:
                raise RuntimeError("The fake lnd stopped before it read this order.")

    def _check_state(self) -> None:
        if (text := _NOT_UP.get(self.state)) is not None:
            raise OrderError("UNKNOWN", text)

    def _check_macaroon(self, path: str, context: grpc.ServicerContext) -> FakeAccount | None:
        """Return the account that the macaroon is bound to, if it is. Raises: OrderError for one that doesn't permit the call."""
        sent = [value for key, value in context.invocation_metadata() if key == "macaroon"]
        if len(sent) != 1:
            raise OrderError("UNKNOWN", f"expected 1 macaroon, got {len(sent)}")
        macaroon = str(sent[0]).lower()
        if macaroon not in self.macaroons:
            raise OrderError("UNKNOWN", _macaroon_fault(macaroon))
        permitted = self.macaroons[macaroon]
        if isinstance(permitted, FakeAccount):
            return permitted
        if isinstance(permitted, str):
            raise OrderError("UNKNOWN", permitted)
        if permitted is not None and path not in permitted:
            raise OrderError("UNKNOWN", "permission denied")
        return None

    # routerrpc.Router

    def _send_payment(self, request: pb.SendPaymentRequest, context: grpc.ServicerContext) -> Iterator[pb.Payment]:
        if request.fee_limit_sat:  # lnd takes either
            if request.fee_limit_msat:
                raise OrderError("UNKNOWN", "sat and msat arguments are mutually exclusive")
            request.fee_limit_msat = request.fee_limit_sat * 1_000
        with self.book.changed:
            self.book.orders.append(
                FakeOrder(
                    bolt11=request.payment_request, fee_limit_msat=request.fee_limit_msat, timeout_seconds=request.timeout_seconds
                )
            )
            if (refusal := self.faults.take("refuse")) is not None:
                raise OrderError(*refusal)
            invoice = self.book.check_order(request.payment_request, request.fee_limit_msat, self.now())
            drop = self.faults.take("drop")
            if drop == "before_init":
                raise _dropped()
            entry, first = self.book.init_payment(invoice, request.payment_request, self._attempt(request))
        if drop in ("after_init", "in_flight"):
            # lnd goes on paying without the stream. Here the payment runs only once the stream has ended, so that the client never
            # receives the outcome. (add_callback returns False if the stream has ended already.)
            if not context.add_callback(lambda: self.book.run(entry, now=self.now())):
                self.book.run(entry, now=self.now())
        else:
            self.book.run(entry, now=self.now())
        if drop in ("after_init", "after_paying"):
            raise _dropped()
        return self._stream(entry, first, context, quiet=request.no_inflight_updates, drop=drop == "in_flight")

    def _track_payment(self, request: pb.TrackPaymentRequest, context: grpc.ServicerContext) -> Iterator[pb.Payment]:
        if len(request.payment_hash) != 32:
            raise OrderError("UNKNOWN", f"invalid hash length of {len(request.payment_hash)}, want 32")
        with self.book.changed:
            entry = self.book.entries.get(request.payment_hash)
            if entry is None:
                raise OrderError("NOT_FOUND", "payment isn't initiated")
            return self._stream(entry, len(entry.messages) - 1, context, quiet=request.no_inflight_updates)

    def _attempt(self, request: pb.SendPaymentRequest) -> Attempt:
        return Attempt(
            fee_limit_msat=request.fee_limit_msat,
            fee_msat=self.faults.fee_msat,
            deadline=self.now() + (request.timeout_seconds if request.timeout_seconds > 0 else _TIMEOUT_S_DEFAULT),
            parts=self.faults.take("split") or 1,
            hang=bool(self.faults.take("hang")),
            orphan=bool(self.faults.take("orphan")),
            fail=self.faults.take("fail"),
            wrong_preimage=bool(self.faults.take("wrong_preimage")),
        )

    def _stream(
        self, entry: Entry, first: int, context: grpc.ServicerContext, *, quiet: bool, drop: bool = False
    ) -> Iterator[pb.Payment]:
        """Send the payment's messages, beginning with number ``first``, until the payment ends.

        ``quiet`` leaves out IN_FLIGHT messages; ``drop`` breaks the stream (UNAVAILABLE) after one message.
        """
        context.add_callback(self._wake)
        for number in range(first, 2**31):
            with self.book.changed:
                self._wait(lambda number=number: len(entry.messages) > number or not context.is_active())  # type: ignore[misc]
                if not context.is_active():
                    return
                if self.stopped:
                    context.abort(grpc.StatusCode.UNKNOWN, "routerrpc server shutting down")
                message = entry.messages[number]
            if not (quiet and message.status == pb.Payment.IN_FLIGHT):
                yield message
            if drop:
                context.abort(grpc.StatusCode.UNAVAILABLE, _dropped().text)
            if message.status != pb.Payment.IN_FLIGHT:
                return

    def _wake(self) -> None:
        """Make all waiting calls look again: a client has left."""
        with self.book.changed:
            self.book.changed.notify_all()

    def _wait(self, predicate: Callable[[], bool]) -> None:
        """Wait until ``predicate`` holds or the server stops. ``book.changed`` must be held.

        It also ends with the main thread: a test that has died without stopping the fake mustn't keep its process alive.
        """
        while not (self.stopped or predicate() or not threading.main_thread().is_alive()):
            self.book.changed.wait(_WAKE_S)

    # lnrpc.State and lnrpc.Lightning

    def _get_state(self, request: pb.GetStateRequest, context: grpc.ServicerContext) -> pb.GetStateResponse:
        return pb.GetStateResponse(state=self.state)

    def _get_info(self, request: pb.GetInfoRequest, context: grpc.ServicerContext) -> pb.GetInfoResponse:
        return pb.GetInfoResponse(
            identity_pubkey=self.book.node_pubkey,
            alias="fake",
            num_active_channels=1,
            block_height=446,
            synced_to_chain=True,
            synced_to_graph=True,
            best_header_timestamp=int(self.now()),
            version="0.21.2-beta commit=fake",
            chains=[pb.Chain(chain="bitcoin", network="regtest")],
        )

    def _channel_balance(self, request: pb.ChannelBalanceRequest, context: grpc.ServicerContext) -> pb.ChannelBalanceResponse:
        local, remote = self.book.balance_msat, self.book.received_msat
        return pb.ChannelBalanceResponse(
            local_balance=pb.Amount(sat=local // 1000, msat=local), remote_balance=pb.Amount(sat=remote // 1000, msat=remote)
        )

    def _list_channels(self, request: pb.ListChannelsRequest, context: grpc.ServicerContext) -> pb.ListChannelsResponse:
        with self.book.changed:
            local_sat = self.book.balance_msat // 1000
            # An orphan is in flight for ever, and has no HTLC.
            in_flight = [
                pb.HTLC(hash_lock=payment_hash)
                for payment_hash, entry in self.book.entries.items()
                if entry.messages[-1].status == pb.Payment.IN_FLIGHT and not entry.attempt.orphan
            ]
        return pb.ListChannelsResponse(channels=[pb.Channel(active=True, local_balance=local_sat, pending_htlcs=in_flight)])

    def _decode_pay_req(self, request: pb.PayReqString, context: grpc.ServicerContext) -> pb.PayReq:
        invoice = decode(request.pay_req)
        amount_msat = int(invoice.amount_msat or 0)
        return pb.PayReq(
            destination=invoice.payee,
            payment_hash=invoice.payment_hash,
            num_satoshis=amount_msat // 1000,
            timestamp=invoice.date,
            expiry=invoice.expiry,
            description=invoice.description or "",
            cltv_expiry=invoice.min_final_cltv_expiry,
            payment_addr=bytes.fromhex(invoice.payment_secret or ""),
            num_msat=amount_msat,
        )

    def _add_invoice(self, request: pb.Invoice, context: grpc.ServicerContext) -> pb.AddInvoiceResponse:
        preimage = request.r_preimage or None
        if preimage is not None and hashlib.sha256(preimage).digest() in self.book.invoices:
            raise OrderError("UNKNOWN", "invoice with payment hash already exists")
        invoice = self.book.add_invoice(
            request.value_msat or request.value * 1000 or None,
            memo=request.memo,
            expiry_s=request.expiry or 86_400,
            preimage=preimage,
            created_at=int(self.now()),
        )
        secret = bytes.fromhex(decode(invoice.bolt11).payment_secret)
        number = len(self.book.invoices)
        return pb.AddInvoiceResponse(
            r_hash=invoice.payment_hash, payment_request=invoice.bolt11, add_index=number, payment_addr=secret
        )

    def _lookup_invoice(self, request: pb.PaymentHash, context: grpc.ServicerContext) -> pb.Invoice:
        with self.book.changed:
            invoice = self.book.invoices.get(request.r_hash)
            if invoice is None:
                raise OrderError("NOT_FOUND", "unable to locate invoice")
            settled = request.r_hash in self.book.settled
        return pb.Invoice(
            r_preimage=invoice.preimage,
            r_hash=invoice.payment_hash,
            value=invoice.amount_msat // 1000,
            value_msat=invoice.amount_msat,
            payment_request=invoice.bolt11,
            state=pb.Invoice.SETTLED if settled else pb.Invoice.OPEN,
        )

    def _list_payments(self, request: pb.ListPaymentsRequest, context: grpc.ServicerContext) -> pb.ListPaymentsResponse:
        with self.book.changed:
            messages = [entry.messages[-1] for entry in self.book.entries.values()]
        if not request.include_incomplete:
            messages = [message for message in messages if message.status == pb.Payment.SUCCEEDED]
        most = request.max_payments or _PAGE_DEFAULT
        if request.reversed:
            page = [m for m in messages if not request.index_offset or m.payment_index < request.index_offset][-most:]
        else:
            page = [m for m in messages if m.payment_index > request.index_offset][:most]
        return pb.ListPaymentsResponse(
            payments=page,
            first_index_offset=page[0].payment_index if page else 0,
            last_index_offset=page[-1].payment_index if page else 0,
        )


def _macaroon_fault(macaroon: str) -> str:
    """Return lnd's error text for a macaroon that it didn't issue.

    lnd checks the hex digits first, then the format, then the signature (macaroon.v2, macaroon-bakery).
    """
    if not macaroon:
        return "empty macaroon data"
    invalid = next((char for char in macaroon if char not in string.hexdigits), None)
    if invalid is not None:
        return f"encoding/hex: invalid byte: U+{ord(invalid):04X} {invalid!r}"
    if len(macaroon) % 2:
        return "encoding/hex: odd length hex string"
    data = bytes.fromhex(macaroon)
    if data[0] != 2:
        return "cannot determine data format of binary-encoded macaroon"
    try:
        BinarySerializer().deserialize_raw(data)
    except Exception:  # noqa: BLE001 - the library raises many kinds
        return "unmarshal v2: field data extends past end of buffer"
    return "verification failed: signature mismatch after caveat verification"


def _dropped() -> OrderError:
    """Return the error with which gRPC reports a broken connection."""
    return OrderError("UNAVAILABLE", DROPPED)
