"""Accounts of litd for the fake lnd: macaroons with a balance of their own, and litd's words where it refuses them.

litd stands as an interceptor before lnd's methods. Its rules and texts: litd, accounts/interceptor.go, checkers.go and service.go.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Any

from ..funding.lnd.stubs import routeweiler_lnd_pb2 as pb
from ._lnd_book import Book, OrderError, decode

_NOT_SUPPORTED = "this RPC call is not supported with restricted account macaroons"
_STOPPED = "the account service has been stopped"
#: How the texts begin with which litd itself refuses an order.
_OWN_WORDS = ("error ", "account ")
_SEND, _TRACK = "/routerrpc.Router/SendPaymentV2", "/routerrpc.Router/TrackPaymentV2"
#: The methods of the fake that an account may call.
_SUPPORTED = frozenset(
    {_SEND, _TRACK, *(f"/lnrpc.Lightning/{name}" for name in ("GetInfo", "ChannelBalance", "ListChannels", "ListPayments"))}
)


@dataclass(eq=False)
class FakeAccount:
    """An account of litd on the fake lnd. ``macaroon_path`` is the file of its macaroon.

    ``balance_msat`` is what it had at first. ``expired`` and ``removed`` make litd refuse it, ``stopped`` stops litd's accounts.
    """

    balance_msat: int
    macaroon_path: str = ""
    expired: bool = False
    removed: bool = False
    stopped: bool = False
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    #: By payment hash: the amount and the fee limit that were counted when the order came.
    orders: dict[bytes, int] = field(default_factory=dict)

    def check(self, path: str, request: Any, book: Book) -> None:
        """Let a call through to lnd, and note an order. ``book.changed`` must be held. Raises: OrderError as litd refuses it."""
        if self.stopped:
            raise OrderError("UNKNOWN", _STOPPED)
        if self.removed:
            raise OrderError("UNKNOWN", f"error getting account {self.id}: account not found")
        if self.expired:
            raise OrderError("UNKNOWN", f"account {self.id} has expired")
        if path not in _SUPPORTED:
            raise OrderError("UNKNOWN", _NOT_SUPPORTED)
        if path == _TRACK and request.payment_hash not in self.orders:
            raise OrderError("UNKNOWN", "payment does not belong to this account")
        if path == _SEND:
            self._associate(request, book)

    def refused(self, request: pb.SendPaymentRequest, error: OrderError, book: Book) -> None:
        """Forget an order that was let through, and that lnd has refused then or never got. ``book.changed`` must be held."""
        if error.text.startswith(_OWN_WORDS) or error.text in (_NOT_SUPPORTED, _STOPPED):
            return
        key = bytes.fromhex(decode(request.payment_request).payment_hash)
        if key not in book.entries:
            self.orders.pop(key, None)

    def left_msat(self, book: Book) -> int:
        """Return what is left of the balance: without what was paid, and what the payments under way may cost."""
        left = self.balance_msat
        for payment_hash, full_msat in self.orders.items():
            entry = book.entries.get(payment_hash)
            if entry is None or entry.payment.status == "IN_FLIGHT":
                left -= full_msat
            elif entry.payment.status == "SUCCEEDED":
                left -= entry.payment.amount_msat + entry.payment.fee_msat
        return left

    def _associate(self, request: pb.SendPaymentRequest, book: Book) -> None:
        try:
            invoice = decode(request.payment_request)
        except OrderError as error:
            raise OrderError("UNKNOWN", f"error decoding pay req: {error.text}") from None
        full_msat = int(invoice.amount_msat or 0) + request.fee_limit_msat
        if self.left_msat(book) < full_msat:
            raise OrderError("UNKNOWN", "error validating account balance: account balance insufficient")
        key = bytes.fromhex(invoice.payment_hash)
        entry = book.entries.get(key)
        status = "UNKNOWN" if entry is None else entry.payment.status
        if key in self.orders and status != "FAILED":
            what = f"payment with hash {key.hex()} is already in flight or succeeded (status {status})"
            raise OrderError("UNKNOWN", f"error associating payment: {what}")
        self.orders[key] = full_msat
