"""The database of the fake lnd: invoices, payments, and the rules by which a payment starts, runs and ends.

The rules are those of lnd's control tower (payments/db) and router; the gRPC around them is in `_lnd_service`. `NodeContract` in
the tests runs the same promises against this and against the real lnd.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal

import bolt11

from ..funding.stubs import routeweiler_lnd_pb2 as pb

Status = Literal["IN_FLIGHT", "SUCCEEDED", "FAILED"]
NO_PREIMAGE = "0" * 64  # how lnd writes the preimage of a payment that hasn't settled


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeInvoice:
    """An invoice that the fake's payee has issued. ``amount_msat`` is 0 where it names none."""

    bolt11: str
    payment_hash: bytes
    preimage: bytes = field(repr=False)
    amount_msat: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FakePayment:
    """A payment as the fake's payer has it in its database. ``payment_hash`` is hex; amounts in msat.

    ``sends`` counts the orders that came as far as the database, refused ones (ALREADY_EXISTS) too.
    """

    payment_hash: str
    amount_msat: int
    fee_msat: int = 0
    status: Status = "IN_FLIGHT"
    failure_reason: str | None = None
    sends: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeOrder:
    """An order to pay as it reached the node, whatever became of it."""

    bolt11: str
    fee_limit_msat: int
    timeout_seconds: int


@dataclass(kw_only=True)
class Attempt:
    """How the payment that an order starts is to go."""

    fee_limit_msat: int
    fee_msat: int
    hang: bool = False
    orphan: bool = False
    fail: str | None = None
    wrong_preimage: bool = False


@dataclass(kw_only=True)
class Entry:
    """A payment with the messages that its streams tell, in order."""

    index: int
    payment: FakePayment
    invoice: Any
    bolt11: str
    attempt: Attempt
    created_ns: int
    messages: list[pb.Payment] = field(default_factory=list)


class OrderError(Exception):
    """lnd's no to an order, with gRPC code and text."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(code, text)
        self.code, self.text = code, text


class Book:
    """All that survives a restart of the fake. ``changed`` guards and announces every change."""

    def __init__(self, *, node_key: str, payee_key: str, balance_msat: int) -> None:
        self.changed = threading.Condition()
        self.node_key, self.payee_key = node_key, payee_key
        self.node_pubkey, self.payee_pubkey = public_key(node_key), public_key(payee_key)
        self.balance_msat = balance_msat
        self.received_msat = 0
        self.invoices: dict[bytes, FakeInvoice] = {}
        self.settled: set[bytes] = set()
        self.entries: dict[bytes, Entry] = {}
        self.orders: list[FakeOrder] = []

    def check_order(self, payment_request: str, now: float) -> Any:
        """What lnd checks before its database: decoding, network, expiry, payment secret, amount, self-payment. In that order."""
        invoice = decode(payment_request)
        if now > invoice.date + invoice.expiry:
            valid_until = time.strftime("%Y-%m-%d %H:%M:%S +0000 UTC", time.gmtime(invoice.date + invoice.expiry))
            raise OrderError("UNKNOWN", f"invoice expired. Valid until {valid_until}")
        if not invoice.payment_secret:
            raise OrderError("UNKNOWN", "payment request must contain either a payment address or blinded paths")
        if not invoice.amount_msat:
            raise OrderError("UNKNOWN", "amount must be specified when paying a zero amount invoice")
        if invoice.payee == self.node_pubkey:
            raise OrderError("UNKNOWN", "self-payments not allowed")
        return invoice

    def init_payment(self, invoice: Any, payment_request: str, attempt: Attempt) -> tuple[Entry, int]:
        """Write the payment down as IN_FLIGHT, if its hash is unknown or FAILED. Returns the index of its first message too."""
        key = bytes.fromhex(invoice.payment_hash)
        with self.changed:
            entry = self.entries.get(key)
            if entry is None:
                payment = FakePayment(payment_hash=invoice.payment_hash, amount_msat=int(invoice.amount_msat))
                entry = Entry(
                    index=len(self.entries) + 1,
                    payment=payment,
                    invoice=invoice,
                    bolt11=payment_request,
                    attempt=attempt,
                    created_ns=time.time_ns(),
                )
                self.entries[key] = entry
            else:
                entry.payment = replace(entry.payment, sends=entry.payment.sends + 1)
                self.changed.notify_all()
                if entry.payment.status == "SUCCEEDED":
                    raise OrderError("ALREADY_EXISTS", "invoice is already paid")
                if entry.payment.status == "IN_FLIGHT":
                    raise OrderError("ALREADY_EXISTS", "payment is in transition")
                entry.attempt, entry.payment = attempt, replace(entry.payment, status="IN_FLIGHT", failure_reason=None)
            first = len(entry.messages)
            self._tell(entry, NO_PREIMAGE)
            return entry, first

    def run(self, entry: Entry) -> None:
        """Let a started payment go its way, whoever still listens."""
        with self.changed:
            if not entry.attempt.hang and not entry.attempt.orphan:
                self.finish(entry)

    def finish(self, entry: Entry, *, fail: str | None = None) -> None:
        """End a payment in flight; paying moves the money."""
        with self.changed:
            if entry.payment.status != "IN_FLIGHT":
                return
            key, attempt, amount_msat = bytes.fromhex(entry.payment.payment_hash), entry.attempt, entry.payment.amount_msat
            reason = fail or attempt.fail or self._obstacle(entry)
            if reason is not None:
                entry.payment = replace(entry.payment, status="FAILED", failure_reason=reason)
                self._tell(entry, NO_PREIMAGE)
                return
            self.settled.add(key)
            self.balance_msat -= amount_msat + attempt.fee_msat
            self.received_msat += amount_msat
            entry.payment = replace(entry.payment, status="SUCCEEDED", fee_msat=attempt.fee_msat)
            self._tell(entry, secrets.token_hex(32) if attempt.wrong_preimage else self.invoices[key].preimage.hex())

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
        """Issue an invoice, signed by the payee, or by the payer's own node."""
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
        key, attempt = bytes.fromhex(entry.payment.payment_hash), entry.attempt
        if entry.invoice.payee != self.payee_pubkey or attempt.fee_msat > attempt.fee_limit_msat:
            return "NO_ROUTE"
        if entry.payment.amount_msat + attempt.fee_msat > self.balance_msat:
            return "INSUFFICIENT_BALANCE"
        return "INCORRECT_PAYMENT_DETAILS" if key not in self.invoices or key in self.settled else None

    def _tell(self, entry: Entry, preimage: str) -> None:
        payment = entry.payment
        reason = "FAILURE_REASON_" + (payment.failure_reason or "NONE")
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


def decode(payment_request: str) -> Any:
    """Read an invoice, or raise OrderError in lnd's words (zpay32)."""
    if len(payment_request) < 8:
        raise OrderError("UNKNOWN", f"invalid bech32 string length {len(payment_request)}")
    try:
        invoice = bolt11.decode(payment_request, ignore_exceptions=True)
    except Exception:  # noqa: BLE001 - the library raises many kinds, lnd says but this
        tail = payment_request[-6:]
        raise OrderError("UNKNOWN", f"checksum failed. Expected {tail[::-1]}, got {tail}.") from None
    if invoice.currency != "bcrt":
        raise OrderError("UNKNOWN", "invoice not for current active network 'regtest'")
    return invoice


def sign_invoice(
    key: str, *, payment_hash: bytes, amount_msat: int | None, memo: str, expiry_s: int, created_at: int, currency: str
) -> str:
    """A BOLT-11 invoice as lnd makes them: payment secret, features, final time lock."""
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
    """Hex of the public key: read from a signature made with the private one, which spares a library of its own."""
    text = sign_invoice(key, payment_hash=b"\x00" * 32, amount_msat=None, memo="", expiry_s=1, created_at=0, currency="bcrt")
    return str(bolt11.decode(text).payee)
