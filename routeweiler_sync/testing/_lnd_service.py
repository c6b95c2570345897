"""The gRPC face of the fake lnd: real method paths, the interceptor's checks in lnd's words, and the faults.

What a payment is and when it starts is in `_lnd_book`; the server's life and the names that tests use are in `fake_lnd`.
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
from ._lnd_book import Attempt, Book, Entry, FakeOrder, OrderError, decode

#: What lnd's interceptor says in each state but RPC_ACTIVE and SERVER_ACTIVE (rpcperms/interceptor.go).
_NOT_UP = {
    "NON_EXISTING": "wallet not created, create one to enable full RPC access",
    "LOCKED": "wallet locked, unlock it to enable full RPC access",
    "UNLOCKED": "the RPC server is in the process of starting up, but not yet ready to accept calls",
    "WAITING_TO_START": "waiting to start, RPC services not available",
}
_PAGE_DEFAULT = 100
#: What a SendPaymentV2 without timeout_seconds gets (routerrpc/router_backend.go, DefaultPaymentTimeout).
_TIMEOUT_S_DEFAULT = 60
_WAKE_S = 1.0


@dataclass(kw_only=True)
class Faults:
    """What is to go wrong, by kind: [how many times more (None: always), the fault's value]."""

    planned: dict[str, tuple[int | None, Any]] = field(default_factory=dict)
    fee_msat: int = 0
    clock_offset_s: float = 0.0

    def plan(self, kind: str, value: Any, times: int | None) -> None:
        self.planned[kind] = (times, value)

    def take(self, kind: str) -> Any:
        """The planned fault's value, counted off; None if none is planned."""
        times, value = self.planned.get(kind, (0, None))
        if times is not None:
            if times <= 1:
                self.planned.pop(kind, None)
            else:
                self.planned[kind] = (times - 1, value)
        return value


class Service:
    """Answers lnd's calls from the book. One per start of the server: ``stop`` wakes whatever waits in it."""

    def __init__(
        self,
        book: Book,
        faults: Faults,
        macaroons: dict[str, frozenset[str] | str | None],
        calls: Counter[str],
        now: Callable[[], float],
    ) -> None:
        self.book, self.faults, self.macaroons, self.calls, self.now = book, faults, macaroons, calls, now
        self.state = "SERVER_ACTIVE"
        self.holding = False
        self.held = 0
        self.stopped = False

    def handlers(self) -> tuple[grpc.GenericRpcHandler[Any, Any], ...]:
        unary, stream = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
        methods: dict[str, dict[str, tuple[Any, Any, Any]]] = {
            "lnrpc.State": {"GetState": (unary, self._get_state, pb.GetStateRequest)},
            "lnrpc.Lightning": {
                "GetInfo": (unary, self._get_info, pb.GetInfoRequest),
                "ChannelBalance": (unary, self._channel_balance, pb.ChannelBalanceRequest),
                "DecodePayReq": (unary, self._decode_pay_req, pb.PayReqString),
                "AddInvoice": (unary, self._add_invoice, pb.Invoice),
                "LookupInvoice": (unary, self._lookup_invoice, pb.PaymentHash),
                "ListPayments": (unary, self._list_payments, pb.ListPaymentsRequest),
            },
            "routerrpc.Router": {
                "SendPaymentV2": (stream, self._send_payment, pb.SendPaymentRequest),
                "TrackPaymentV2": (stream, self._track_payment, pb.TrackPaymentRequest),
            },
        }
        return tuple(
            grpc.method_handlers_generic_handler(
                service,
                {
                    name: kind(
                        self._intercepted(f"/{service}/{name}", behaviour),
                        request_deserializer=request.FromString,
                        response_serializer=lambda message: message.SerializeToString(),
                    )
                    for name, (kind, behaviour, request) in named.items()
                },
            )
            for service, named in methods.items()
        )

    def stop(self) -> None:
        with self.book.changed:
            self.stopped = True
            self.book.changed.notify_all()

    def _intercepted(self, path: str, behaviour: Callable[[Any, grpc.ServicerContext], Any]) -> Callable[..., Any]:
        def handle(request: Any, context: grpc.ServicerContext) -> Any:
            with self.book.changed:
                self.calls[path.rpartition("/")[2]] += 1
                self.book.changed.notify_all()
            if path == "/routerrpc.Router/SendPaymentV2":
                self._wait_for_delivery()
            try:
                if path != "/lnrpc.State/GetState":
                    self._check_state()
                    self._check_macaroon(path, context)
                return behaviour(request, context)
            except OrderError as error:
                context.abort(grpc.StatusCode[error.code], error.text)

        return handle

    def _wait_for_delivery(self) -> None:
        """An order that is held has been sent and not yet read: it is executed when delivered, whether its client lives or not."""
        with self.book.changed:
            if not self.holding:
                return
            self.held += 1
            self.book.changed.notify_all()
            self._wait(lambda: not self.holding)
            self.held -= 1
            self.book.changed.notify_all()
            if self.stopped:
                raise RuntimeError("the fake stopped before this order was read")

    def _check_state(self) -> None:
        if (text := _NOT_UP.get(self.state)) is not None:
            raise OrderError("UNKNOWN", text)

    def _check_macaroon(self, path: str, context: grpc.ServicerContext) -> None:
        sent = [value for key, value in context.invocation_metadata() if key == "macaroon"]
        if len(sent) != 1:
            raise OrderError("UNKNOWN", f"expected 1 macaroon, got {len(sent)}")
        macaroon = str(sent[0]).lower()
        if macaroon not in self.macaroons:
            raise OrderError("UNKNOWN", _macaroon_fault(macaroon))
        permitted = self.macaroons[macaroon]
        if isinstance(permitted, str):
            raise OrderError("UNKNOWN", permitted)
        if permitted is not None and path not in permitted:
            raise OrderError("UNKNOWN", "permission denied")

    # routerrpc.Router

    def _send_payment(self, request: pb.SendPaymentRequest, context: grpc.ServicerContext) -> Iterator[pb.Payment]:
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
            # lnd pays on when the stream is gone: so does this, and not before.
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
        """The payment's messages from ``first`` on, to its end; ``drop`` breaks the stream after one."""
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
        with self.book.changed:
            self.book.changed.notify_all()

    def _wait(self, predicate: Callable[[], bool]) -> None:
        """Wait for the predicate or the stop. A test that has died without stopping the fake mustn't keep its process alive."""
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
            version="0.21.2-beta commit=fake",
            chains=[pb.Chain(chain="bitcoin", network="regtest")],
        )

    def _channel_balance(self, request: pb.ChannelBalanceRequest, context: grpc.ServicerContext) -> pb.ChannelBalanceResponse:
        local, remote = self.book.balance_msat, self.book.received_msat
        return pb.ChannelBalanceResponse(
            local_balance=pb.Amount(sat=local // 1000, msat=local), remote_balance=pb.Amount(sat=remote // 1000, msat=remote)
        )

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
    """What lnd says of a macaroon that isn't its own: hex, then the format, then the signature (macaroon.v2, macaroon-bakery)."""
    if not macaroon:
        return "empty macaroon data"
    stranger = next((char for char in macaroon if char not in string.hexdigits), None)
    if stranger is not None:
        return f"encoding/hex: invalid byte: U+{ord(stranger):04X} {stranger!r}"
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
    return OrderError("UNAVAILABLE", "Stream removed (Socket closed)")
