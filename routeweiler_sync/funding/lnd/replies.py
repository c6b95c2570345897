"""Reads every answer of lnd, 0.17 to 0.21, into the words of `answers`. This is the only place that knows lnd's texts.

Pure: code, text and message fields in, `WalletAnswer` out; no grpc, no I/O. What a word means for the money is decided elsewhere.

The rule behind the table: an error is believed only where lnd's source shows that it is raised before a payment starts. All else,
each broken stream among it, is UNKNOWN, for lnd pays on when its client is gone.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Literal, Protocol

from ..replies import WalletAnswer, WalletReply, tidy

Rpc = Literal["send", "track"]

# lnrpc.Payment.PaymentStatus: UNKNOWN=0 IN_FLIGHT=1 SUCCEEDED=2 FAILED=3 INITIATED=4
_UNDER_WAY = frozenset({0, 1, 4})
_SUCCEEDED, _FAILED = 2, 3
# lnrpc.PaymentFailureReason, by number
_FAILURE_REASONS = ("NONE", "TIMEOUT", "NO_ROUTE", "ERROR", "INCORRECT_PAYMENT_DETAILS", "INSUFFICIENT_BALANCE", "CANCELED")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyRule:
    """One error that proves something. ``text`` is searched in lnd's text whatever its case; None takes any text."""

    rpc: Rpc
    code: str
    text: str | None
    reply: WalletReply
    why: str

    def fits(self, rpc: Rpc, code: str, text: str) -> bool:
        return self.rpc == rpc and self.code == code and (self.text is None or bool(re.search(self.text, text, re.IGNORECASE)))


RULES: tuple[ReplyRule, ...] = (
    ReplyRule(
        rpc="send",
        code="ALREADY_EXISTS",
        text=None,
        reply=WalletReply.EXISTS,
        why="InitPayment refused the hash: paid, in flight or just created; lnd gives this code for nothing else",
    ),
    ReplyRule(
        rpc="send",
        code="UNKNOWN",
        text=r"(^|: )(invoice is already paid|payment is in transition|payment already exists)\W*$",
        reply=WalletReply.EXISTS,
        why="the same refusal without its code in 0.17; native SQL (0.21) puts a prefix before the text",
    ),
    ReplyRule(
        rpc="send",
        code="UNKNOWN",
        text=r"^invoice expired",
        reply=WalletReply.EXPIRED,
        why="checked after the decoding and before the database: no payment starts, an earlier one isn't ruled out",
    ),
    ReplyRule(
        rpc="send",
        code="UNKNOWN",
        text=r"^(invalid bech32 string length|checksum failed|invalid character (in string|not part of)|string not all lowercase"
        r"|invalid index of|failed converting data to bytes|invalid data byte|hrp too short|prefix should be|short invoice"
        r"|invoice is too large|invoice not for current active network|data too short|timestamp must be 35 bits"
        r"|unable to deserialize (signature|public)|invalid invoice signature|invoice contains unknown feature bits"
        r"|no payment hash found|missing feature vector|unsupported (payment hash|description hash|pubkey) length"
        r"|(both|neither) description (and|nor) description hash set|description is not valid UTF-8|invalid field length"
        r"|last tagged field is broken|data length must be 2 bytes|empty fallback address field|unknown witness program length"
        r"|cannot parse data of length|route hint field contains no hop data|length is not a multiple of hop hint"
        r"|cannot have both route hints and blinded|amount must be non-empty|number must be non-empty|unknown multiplier"
        r"|minimum amount is|amount \d+ pBTC not expressible)",
        reply=WalletReply.REFUSED,
        why="zpay32 can't read the invoice, or it is for another network: the first thing SendPaymentV2 does",
    ),
    ReplyRule(
        rpc="send",
        code="UNKNOWN",
        text=r"^(amount must (not )?be specified|amount cannot be negative|invalid vertex length of 0, want 33)",
        reply=WalletReply.REFUSED,
        why="no amount in the invoice and none given, a negative limit, no invoice at all: checked with the decoding",
    ),
    ReplyRule(
        rpc="send",
        code="UNKNOWN",
        text=r"^(self-payments not allowed|payment request must contain|the AMP flag|cltv limit \d|total time lock of \d)",
        reply=WalletReply.REFUSED,
        why="checks on the decoded invoice (own invoice, no payment secret, AMP, time lock) that come before the database",
    ),
    ReplyRule(
        rpc="send",
        code="UNKNOWN",
        text=r"^(wallet (locked|not created)|the RPC server is in the process of starting|waiting to start, RPC services)",
        reply=WalletReply.REFUSED,
        why="lnd's interceptor lets no call through before the node is up",
    ),
    ReplyRule(
        rpc="send",
        code="UNKNOWN",
        text=r"^(expected 1 macaroon|verification failed: |caveat \".*\" not satisfied: |cannot (retrieve|get) macaroon: "
        r"|permission denied$|empty macaroon data|encoding/hex: |cannot determine data format of binary-encoded macaroon"
        r"|unmarshal v[12]: )",
        reply=WalletReply.REFUSED,
        why="the macaroon is checked before the call reaches the router",
    ),
    ReplyRule(
        rpc="send",
        code="UNIMPLEMENTED",
        text=None,
        reply=WalletReply.REFUSED,
        why="no such method (not lnd, or lnd without its router server): nobody has read the order",
    ),
    ReplyRule(
        rpc="track",
        code="NOT_FOUND",
        text=None,
        reply=WalletReply.NOT_FOUND,
        why="ErrPaymentNotInitiated; an order may still be on its way. From a send the same code proves nothing",
    ),
)


class PaymentMessage(Protocol):
    """The fields of lnrpc.Payment that are read."""

    payment_preimage: str
    value_msat: int
    fee_msat: int
    status: int
    failure_reason: int


def read_error(rpc: Rpc, code: str, text: str | None, *, started: bool = False) -> WalletAnswer:
    """Read a gRPC error (``code`` is the name of its StatusCode). ``started``: a message of the payment came before it.

    After a message the payment exists, so that no error can say any more that the send started nothing.
    """
    text = (text or "").strip()
    reason = tidy(f"{code}: {text}")
    if not started:
        for row in RULES:
            if row.fits(rpc, code, text):
                return WalletAnswer(reply=row.reply, reason=reason)
    return WalletAnswer(reply=WalletReply.UNKNOWN, reason=reason)


def read_payment(message: PaymentMessage, payment_hash: bytes) -> WalletAnswer:
    """Read one message of SendPaymentV2 or TrackPaymentV2.

    ``status`` alone decides: a failure reason may be set while the payment is in flight, and with a success.
    """
    if message.status == _SUCCEEDED:
        preimage = _preimage(message.payment_preimage)
        fits = preimage is not None and hashlib.sha256(preimage).digest() == payment_hash
        return WalletAnswer(
            reply=WalletReply.SUCCEEDED if fits else WalletReply.WRONG_PREIMAGE,
            preimage=preimage,
            amount_msat=message.value_msat,
            fee_msat=message.fee_msat,
        )
    if message.status == _FAILED:
        return WalletAnswer(reply=WalletReply.FAILED, reason=failure_reason(message.failure_reason))
    if message.status in _UNDER_WAY:
        return WalletAnswer(reply=WalletReply.IN_FLIGHT)
    return WalletAnswer(reply=WalletReply.UNKNOWN, reason=f"payment status {message.status}, which lnd 0.21 doesn't have")


def failure_reason(number: int) -> str:
    """Name of a PaymentFailureReason without its prefix, e.g. ``NO_ROUTE``."""
    return _FAILURE_REASONS[number] if 0 <= number < len(_FAILURE_REASONS) else f"REASON_{number}"


def is_permission_denied(code: str, text: str | None) -> bool:
    """Whether the macaroon is good but lacks the right to this call."""
    return code == "UNKNOWN" and (text or "").strip().lower() == "permission denied"


def _preimage(text: str) -> bytes | None:
    try:
        preimage = bytes.fromhex(text)
    except ValueError:
        return None
    return preimage if len(preimage) == 32 else None
