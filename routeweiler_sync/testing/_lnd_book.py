"""The database of the fake lnd: invoices, payments, and the rules by which a payment starts, runs and ends.

The rules are those of lnd's control tower (payments/db) and router. The gRPC methods are left to `_lnd_service`. `NodeContract` in
the tests checks the same promises with this fake and with the real lnd, so that the two can't drift apart.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from dataclasses import dataclass, field, replace
from decimal import localcontext
from functools import cache
from typing import Any, Literal

import bech32
import bolt11

from .._core.money import EXACT
from ..funding.lnd.stubs import routeweiler_lnd_pb2 as pb

Status = Literal["IN_FLIGHT", "SUCCEEDED", "FAILED"]
_INVOICE_CHARS_MAX = 7_089  # lnd's limit: what fits into the largest QR code (zpay32)
NO_PREIMAGE = "0" * 64  # how lnd writes the preimage of a payment that hasn't settled


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeInvoice:
    """An invoice that the fake lnd has issued. Hash and preimage are 32 bytes; ``amount_msat`` is 0 if it names no amount."""

    bolt11: str
    payment_hash: bytes
    preimage: bytes = field(repr=False)
    amount_msat: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FakePayment:
    """A payment in the database of the paying node. ``payment_hash`` is 64 hex digits; amounts are in msat.

    ``failure_reason`` is lnd's PaymentFailureReason without its prefix, None unless the payment FAILED. ``sends`` counts the orders
    for this hash that reached the database, including those that it refused (ALREADY_EXISTS).
    """

    payment_hash: str
    amount_msat: int
    fee_msat: int = 0
    status: Status = "IN_FLIGHT"
    failure_reason: str | None = None
    sends: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeOrder:
    """A payment order (SendPaymentV2) as it reached the node, whether it was refused, failed or paid."""

    bolt11: str
    fee_limit_msat: int
    timeout_seconds: int


@dataclass(kw_only=True)
class Attempt:
    """How the payment that an order starts is to go: the order's own limits, and the faults planned for it.

    ``deadline`` is unix seconds by the node's clock: lnd starts no HTLC after it (the order's ``timeout_seconds``). ``parts``: how
    many HTLCs carry the payment. ``hang``: it stays IN_FLIGHT until it is released; ``orphan``: for ever. ``fail``: the failure
    reason to end with. ``wrong_preimage``: it succeeds with a preimage that doesn't fit its hash.
    """

    fee_limit_msat: int
    fee_msat: int
    deadline: float
    parts: int = 1
    hang: bool = False
    orphan: bool = False
    fail: str | None = None
    wrong_preimage: bool = False


@dataclass(kw_only=True)
class Entry:
    """A payment with the messages that its streams send, in order.

    ``index`` is lnd's ``payment_index``. ``sent``: an HTLC has left the node, or is about to.
    """

    index: int
    payment: FakePayment
    invoice: Any
    bolt11: str
    attempt: Attempt
    created_ns: int
    sent: bool = False
    messages: list[pb.Payment] = field(default_factory=list)


class OrderError(Exception):
    """A gRPC error with which lnd refuses a call: the name of its status code, and its text."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(code, text)
        self.code, self.text = code, text


class Book:
    """The fake lnd's database: everything that survives a restart.

    ``changed`` must be held to read or change anything, and is notified of every change. ``node_key`` and ``payee_key`` are
    private keys in hex. ``invoices`` and ``entries`` are by payment hash; ``entries`` is in lnd's order, the latest payment last.
    ``settled`` holds the hashes for which the payee has the money, ``started`` counts the payments that have started.
    """

    def __init__(self, *, node_key: str, payee_key: str, balance_msat: int) -> None:
        self.changed = threading.Condition()
        self.node_key, self.payee_key = node_key, payee_key
        self.node_pubkey, self.payee_pubkey = public_key(node_key), public_key(payee_key)
        self.balance_msat = balance_msat
        self.received_msat = 0
        self.invoices: dict[bytes, FakeInvoice] = {}
        self.settled: set[bytes] = set()
        self.entries: dict[bytes, Entry] = {}
        self.started = 0
        self.orders: list[FakeOrder] = []
        self.payee_online = True

    def check_order(self, payment_request: str, fee_limit_msat: int, now: float) -> Any:
        """Return the decoded invoice of an order that passes all checks that lnd makes before it looks into its database.

        The checks come as in lnd: fee limit, decoding, network, expiry, payment secret, amount, self-payment
        (routerrpc/router_backend.go, extractIntentFromSendRequest). ``now`` is unix seconds by the node's clock.

        Raises: OrderError with lnd's text for the first check that fails.
        """
        if fee_limit_msat < 0:
            raise OrderError("UNKNOWN", "amount cannot be negative")
        if not payment_request:
            # Without an invoice, lnd reads the order as one to pay a node, whose pubkey is missing.
            raise OrderError("UNKNOWN", "invalid vertex length of 0, want 33")
        invoice = decode(payment_request)
        if now > invoice.date + invoice.expiry:
            valid_until = time.strftime("%Y-%m-%d %H:%M:%S +0000 UTC", time.gmtime(invoice.date + invoice.expiry))
            raise OrderError("UNKNOWN", f"invoice expired. Valid until {valid_until}")
        if not invoice.payment_secret and not has_blinded_path(payment_request):
            raise OrderError("UNKNOWN", "payment request must contain either a payment address or blinded paths")
        if not invoice.amount_msat:
            raise OrderError("UNKNOWN", "amount must be specified when paying a zero amount invoice")
        if invoice.payee == self.node_pubkey:
            raise OrderError("UNKNOWN", "self-payments not allowed")
        return invoice

    def init_payment(self, invoice: Any, payment_request: str, attempt: Attempt) -> tuple[Entry, int]:
        """Store the payment as IN_FLIGHT, if its hash is unknown or FAILED. Return it, and the index of its first message.

        A FAILED payment that starts anew gets a new payment index and creation time, and moves to the end of lnd's list.

        Raises: OrderError (ALREADY_EXISTS) if a payment of this hash is in flight or has succeeded.
        """
        key = bytes.fromhex(invoice.payment_hash)
        with self.changed:
            entry = self.entries.pop(key, None)
            sends = 1 if entry is None else entry.payment.sends + 1
            if entry is not None and entry.payment.status != "FAILED":
                entry.payment = replace(entry.payment, sends=sends)
                self.entries[key] = entry
                self.changed.notify_all()
                raise OrderError("ALREADY_EXISTS", _exists(entry))
            self.started += 1
            payment = FakePayment(payment_hash=invoice.payment_hash, amount_msat=int(invoice.amount_msat), sends=sends)
            messages = [] if entry is None else entry.messages
            self.entries[key] = entry = Entry(
                index=self.started,
                payment=payment,
                invoice=invoice,
                bolt11=payment_request,
                attempt=attempt,
                created_ns=time.time_ns(),
                messages=messages,
            )
            self._add_message(entry)
            return entry, len(messages) - 1

    def run(self, entry: Entry, *, now: float) -> None:
        """Run a payment that has started, at ``now`` by the node's clock, whether or not a client still follows it.

        An obstacle that lnd sees by itself (balance, route) ends the payment before an HTLC leaves.
        """
        with self.changed:
            reason = self._obstacle(entry)
            if reason is not None:
                self._fail(entry, reason)
                return
            entry.sent = True
            for _ in range(entry.attempt.parts):
                self._add_message(entry)
            if not entry.attempt.hang and not entry.attempt.orphan:
                self.finish(entry, now=now)

    def finish(self, entry: Entry, *, now: float, fail: str | None = None) -> None:
        """End a payment in flight, at ``now`` by the node's clock: pay it, or fail it with the reason ``fail``.

        Does nothing to a payment that has ended already.
        """
        with self.changed:
            key, attempt, amount_msat = bytes.fromhex(entry.payment.payment_hash), entry.attempt, entry.payment.amount_msat
            if entry.payment.status != "IN_FLIGHT":
                return
            if not entry.sent:  # released before run() has let it hang: so it won't hang
                attempt.hang, attempt.fail = False, fail or attempt.fail
                return
            reason = fail or attempt.fail or self._refusal_on_the_way(entry, now)
            if reason is not None:
                # The HTLC has come back. lnd sends one more message while the payment is IN_FLIGHT. It names the reason already if
                # the payee itself refused the HTLC, for that ends the payment.
                self._add_message(entry, reason=reason if reason == "INCORRECT_PAYMENT_DETAILS" else None)
                self._fail(entry, reason)
                return
            preimage = secrets.token_hex(32) if attempt.wrong_preimage else self.invoices[key].preimage.hex()
            for settled in range(1, attempt.parts):
                entry.payment = replace(entry.payment, fee_msat=attempt.fee_msat * settled // attempt.parts)
                self._add_message(entry, preimage)
            self.settled.add(key)
            self.balance_msat -= amount_msat + attempt.fee_msat
            self.received_msat += amount_msat
            entry.payment = replace(entry.payment, status="SUCCEEDED", fee_msat=attempt.fee_msat)
            self._add_message(entry, preimage)

    def add_invoice(
        self,
        amount_msat: int | None,
        *,
        memo: str,
        expiry_s: int,
        preimage: bytes | None,
        created_at: int,
        own: bool = False,
        currency: str = "bcrt",
    ) -> FakeInvoice:
        """Issue an invoice, signed by the payee, or by the paying node itself if ``own``.

        ``preimage`` None makes a random one. ``created_at`` is unix seconds; ``currency`` is the network's BOLT-11 prefix.
        """
        secret = preimage if preimage is not None else secrets.token_bytes(32)
        payment_hash = hashlib.sha256(secret).digest()
        text = sign_invoice(
            self.node_key if own else self.payee_key,
            payment_hash=payment_hash,
            amount_msat=amount_msat,
            memo=memo,
            expiry_s=expiry_s,
            created_at=created_at,
            currency=currency,
        )
        invoice = FakeInvoice(bolt11=text, payment_hash=payment_hash, preimage=secret, amount_msat=amount_msat or 0)
        with self.changed:
            self.invoices[payment_hash] = invoice
            self.changed.notify_all()
        return invoice

    def _obstacle(self, entry: Entry) -> str | None:
        """Return the failure reason if no HTLC can leave, else None. lnd looks at its own balance first, then for a route."""
        attempt = entry.attempt
        if entry.payment.amount_msat + attempt.fee_msat > self.balance_msat:
            return "INSUFFICIENT_BALANCE"
        unreachable = entry.invoice.payee != self.payee_pubkey
        return "NO_ROUTE" if unreachable or attempt.fee_msat > attempt.fee_limit_msat else None

    def _refusal_on_the_way(self, entry: Entry, now: float) -> str | None:
        """Return the failure reason if an HTLC that has left comes back, else None."""
        if not self.payee_online:
            return "TIMEOUT" if now > entry.attempt.deadline else "NO_ROUTE"
        key, invoice = bytes.fromhex(entry.payment.payment_hash), entry.invoice
        gone = key not in self.invoices or key in self.settled or now > invoice.date + invoice.expiry
        return "INCORRECT_PAYMENT_DETAILS" if gone else None

    def _fail(self, entry: Entry, reason: str) -> None:
        entry.payment = replace(entry.payment, status="FAILED", failure_reason=reason)
        self._add_message(entry)

    def _add_message(self, entry: Entry, preimage: str = NO_PREIMAGE, *, reason: str | None = None) -> None:
        """Add the payment's present state to the messages that its streams send."""
        payment = entry.payment
        reason = "FAILURE_REASON_" + (reason or payment.failure_reason or "NONE")
        entry.messages.append(
            pb.Payment(
                payment_hash=payment.payment_hash,
                payment_preimage=preimage,
                value_sat=payment.amount_msat // 1000,
                value_msat=payment.amount_msat,
                payment_request=entry.bolt11,
                status=payment.status,
                fee_sat=payment.fee_msat // 1000,
                fee_msat=payment.fee_msat,
                creation_time_ns=entry.created_ns,
                payment_index=entry.index,
                failure_reason=reason,
            )
        )
        self.changed.notify_all()


def _exists(entry: Entry) -> str:
    """Return lnd's text of the error for an order whose payment exists already (payments/db/errors.go)."""
    if entry.payment.status == "SUCCEEDED":
        return "invoice is already paid"
    return "payment is in transition" if entry.sent else "payment already exists"


def decode(payment_request: str) -> Any:
    """Return the decoded invoice. The checks and their order are lnd's (zpay32/decode.go, bech32.go).

    Raises: OrderError with lnd's text.
    """
    text = payment_request
    if len(text) > _INVOICE_CHARS_MAX:
        raise OrderError("UNKNOWN", "invoice is too large")
    if len(text) < 8:
        raise OrderError("UNKNOWN", f"invalid bech32 string length {len(text)}")
    invalid_byte = next((byte for byte in text.encode() if not 33 <= byte <= 126), None)
    if invalid_byte is not None:
        raise OrderError("UNKNOWN", f"invalid character in string: '{chr(invalid_byte)}'")
    if text not in (text.lower(), text.upper()):
        raise OrderError("UNKNOWN", "string not all lowercase or all uppercase")
    text = text.lower()
    separator = text.rfind("1")
    if separator < 1 or separator + 7 > len(text):
        raise OrderError("UNKNOWN", "invalid index of 1")
    prefix, data = text[:separator], text[separator + 1 :]
    invalid = next((char for char in data if char not in bech32.CHARSET), None)
    if invalid is not None:
        raise OrderError("UNKNOWN", f"failed converting data to bytes: invalid character not part of charset: {ord(invalid)}")
    values = [bech32.CHARSET.find(char) for char in data]
    expected = "".join(bech32.CHARSET[value] for value in bech32.bech32_create_checksum(prefix, values[:-6]))
    if data[-6:] != expected:
        raise OrderError("UNKNOWN", f"checksum failed. Expected {expected}, got {data[-6:]}.")
    if len(prefix) < 3:
        raise OrderError("UNKNOWN", "hrp too short")
    if not prefix.startswith("ln"):
        raise OrderError("UNKNOWN", 'prefix should be "ln"')
    if not prefix.startswith("lnbcrt"):
        raise OrderError("UNKNOWN", "invoice not for current active network 'regtest'")
    try:
        with localcontext(EXACT):  # the program's decimal context is for its own numbers
            return bolt11.decode(text, ignore_exceptions=True)
    except Exception:  # noqa: BLE001 - the library raises many kinds; of lnd's some thirty texts for them, one stands for all
        raise OrderError("UNKNOWN", "short invoice") from None


def has_blinded_path(text: str) -> bool:
    """Return whether an invoice, one that can be decoded, has a blinded path (field ``5``), which the library skips."""
    fields, at = text.lower().rpartition("1")[2][7:-110], 0  # between the time, and the signature with the checksum
    while at + 3 <= len(fields):
        length = bech32.CHARSET.index(fields[at + 1]) * 32 + bech32.CHARSET.index(fields[at + 2])
        if fields[at] == "5" and length:
            return True
        at += 3 + length
    return False


def sign_invoice(
    key: str, *, payment_hash: bytes, amount_msat: int | None, memo: str, expiry_s: int, created_at: int, currency: str
) -> str:
    """Return a BOLT-11 invoice such as lnd makes: with payment secret, features and final time lock.

    ``key`` is a private key in hex. ``amount_msat`` None or 0 means no amount. ``created_at`` is unix seconds.
    """
    from bolt11.models.features import Feature, Features, FeatureState

    needed = (Feature.var_onion_optin, Feature.payment_secret)
    features = Features.from_feature_list(
        {**dict.fromkeys(needed, FeatureState.required), Feature.basic_mpp: FeatureState.supported}
    )
    tags = [
        bolt11.Tag(bolt11.TagChar.payment_hash, payment_hash.hex()),
        bolt11.Tag(bolt11.TagChar.description, memo or " "),
        bolt11.Tag(bolt11.TagChar.payment_secret, secrets.token_hex(32)),
        bolt11.Tag(bolt11.TagChar.expire_time, expiry_s),
        bolt11.Tag(bolt11.TagChar.min_final_cltv_expiry, 80),
        bolt11.Tag(bolt11.TagChar.features, features),
    ]
    amount = bolt11.MilliSatoshi(amount_msat) if amount_msat else None
    invoice = bolt11.Bolt11(currency=currency, amount_msat=amount, date=created_at, tags=bolt11.Tags(tags))
    text: str = bolt11.encode(invoice, key)
    return text


@cache
def public_key(key: str) -> str:
    """Return the public key (66 hex digits) of a private key (hex).

    It is read from the signature of a throw-away invoice. That saves a dependency on an elliptic curve library.
    """
    text = sign_invoice(key, payment_hash=b"\x00" * 32, amount_msat=None, memo="", expiry_s=1, created_at=0, currency="bcrt")
    return str(bolt11.decode(text).payee)
