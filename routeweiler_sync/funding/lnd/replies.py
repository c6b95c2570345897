"""Read every answer of lnd, 0.17 to 0.21, into a `WalletAnswer`. This is the only module that knows lnd's error texts, and litd's.

Pure: a code, a text and message fields go in, a `WalletAnswer` comes out; no grpc, no I/O. What a reply means for the money is left
to `routeweiler_sync.payments.wallet_rules`.

The rule behind the table: an error is believed only if lnd's source shows that it is raised before a payment starts. Everything
else, a broken stream included, is UNKNOWN, because lnd goes on paying when its client is gone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, Protocol

from ..replies import WalletAnswer, WalletReply, preimage_fits, tidy

Rpc = Literal["send", "track"]

#: Errors of lnd's REST gateway itself that gRPC doesn't have: it can't read the request, or has no such path. Their numbers are
#: those of INVALID_ARGUMENT and NOT_FOUND, which lnd's own answers have too. So they get names of their own (`rest_replies`).
BAD_REQUEST, WRONG_PATH = "BAD_REQUEST", "WRONG_PATH"
#: What lnd says of a payment hash that it doesn't know. Over REST the code alone proves nothing: a wrong path has the same.
UNKNOWN_HASH = "payment isn't initiated"

# lnrpc.Payment.PaymentStatus: UNKNOWN=0 IN_FLIGHT=1 SUCCEEDED=2 FAILED=3 INITIATED=4
_UNDER_WAY = frozenset({0, 1, 4})
_SUCCEEDED, _FAILED = 2, 3
# lnrpc.PaymentFailureReason, by number
_FAILURE_REASONS = ("NONE", "TIMEOUT", "NO_ROUTE", "ERROR", "INCORRECT_PAYMENT_DETAILS", "INSUFFICIENT_BALANCE", "CANCELED")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyRule:
    """One error of lnd that proves something, namely ``reply``.

    ``code`` is the name of a gRPC StatusCode, or `BAD_REQUEST`. ``text`` is a regular expression, searched for in lnd's error text
    without regard to case; None fits any text. ``why`` says what in lnd proves the reply.
    """

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
        why="InitPayment refused the hash: it is paid, in flight or just created; lnd uses this code for nothing else",
    ),
    ReplyRule(
        rpc="send",
        code="UNKNOWN",
        text=r"(^|: )(invoice is already paid|payment is in transition|payment already exists)\W*$",
        reply=WalletReply.EXISTS,
        why="the same refusal: 0.17 sends it without the code, and native SQL (0.21) puts a prefix before the text",
    ),
    ReplyRule(
        rpc="send",
        code="UNKNOWN",
        text=r"^invoice expired",
        reply=WalletReply.EXPIRED,
        why="checked after the decoding and before the database: this send starts no payment, but an earlier one may have",
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
        why="zpay32 can't read the invoice, or it is for another network: SendPaymentV2 checks this before anything else",
    ),
    ReplyRule(
        rpc="send",
        code="UNKNOWN",
        text=r"^(amount must (not )?be specified|amount cannot be negative|invalid vertex length of 0, want 33)",
        reply=WalletReply.REFUSED,
        why="no amount in the invoice and none given, a negative limit, or no invoice at all: checked with the decoding",
    ),
    ReplyRule(
        rpc="send",
        code="UNKNOWN",
        text=r"^(self-payments not allowed|payment request must contain|the AMP flag|cltv limit \d|total time lock of \d)",
        reply=WalletReply.REFUSED,
        why="checks of the decoded invoice (the node's own, no payment secret, AMP, time lock) that come before the database",
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
        r"|macaroon has expired$"
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
        why="no such method (not lnd, or lnd without its router server), so nothing has read the order",
    ),
    ReplyRule(
        rpc="send",
        code=BAD_REQUEST,
        text=None,
        reply=WalletReply.REFUSED,
        why="the REST gateway couldn't read the body, so it has passed no order to lnd (grpc-gateway, the handler's decoding)",
    ),
    ReplyRule(
        rpc="send",
        code="UNKNOWN",
        text=r"^error associating payment: .*\bis already in flight or succeeded\b",
        reply=WalletReply.EXISTS,
        why="litd's account has an order of this hash that hasn't failed; it stores each before lnd hears of it",
    ),
    ReplyRule(
        rpc="send",
        code="UNKNOWN",
        text=r"^(error (validating account balance|associating payment|decoding pay req): |account (has expired|not found)$"
        r"|account service has been disabled$|this RPC call is not supported with restricted account macaroons$)",
        reply=WalletReply.REFUSED,
        why="litd's check of an order (accounts/checkers.go, checkSend) comes before lnd's handler. The same complaints with an "
        "account's id in them, and \"the account service has been stopped\", are no rows: litd's interceptor makes them of lnd's "
        "answers too (accounts/interceptor.go), when the payment may have begun",
    ),
    ReplyRule(
        rpc="track",
        code="UNKNOWN",
        text=r"^payment does not belong to this account$",
        reply=WalletReply.NOT_FOUND,
        why="litd's account knows no order of this hash, and each is associated with it before lnd hears of it",
    ),
    ReplyRule(
        rpc="track",
        code="NOT_FOUND",
        text=None,
        reply=WalletReply.NOT_FOUND,
        why="ErrPaymentNotInitiated; an order may still be on its way. As an answer to a send the same code proves nothing",
    ),
)


class PaymentMessage(Protocol):
    """The fields of lnrpc.Payment that are read here: hash and preimage in hex, amounts in msat, enums as numbers."""

    payment_hash: str
    payment_preimage: str
    value_msat: int
    fee_msat: int
    status: int
    failure_reason: int


def read_error(rpc: Rpc, code: str, text: str | None, *, started: bool = False) -> WalletAnswer:
    """Return the answer that a gRPC error amounts to: by `RULES`, or UNKNOWN if no rule fits.

    ``code`` is the name of the error's StatusCode, ``text`` is lnd's error text. ``started``: a message of the payment came before
    the error. The payment exists then, so no error can prove any more that the send started nothing, and the reply is UNKNOWN.
    """
    text = (text or "").strip()
    reason = tidy(f"{code}: {text}")
    if not started:
        for row in RULES:
            if row.fits(rpc, code, text):
                return WalletAnswer(reply=row.reply, reason=reason)
    return WalletAnswer(reply=WalletReply.UNKNOWN, reason=reason)


def read_payment(message: PaymentMessage, payment_hash: bytes) -> WalletAnswer:
    """Return the answer in one message of SendPaymentV2 or TrackPaymentV2. ``payment_hash`` is 32 bytes.

    ``status`` alone decides: lnd may set a failure reason while the payment is still in flight, and along with a success.
    A message about another payment, which a broken proxy may mix up, says nothing of this one.
    """
    if message.payment_hash and message.payment_hash.lower() != payment_hash.hex():
        return WalletAnswer(reply=WalletReply.UNKNOWN, reason="lnd told of another payment")
    if message.status == _SUCCEEDED:
        preimage = _preimage(message.payment_preimage)
        fits = preimage_fits(preimage, payment_hash)
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
    """Return the name of a PaymentFailureReason without its prefix, e.g. ``NO_ROUTE``; ``REASON_7`` for the unknown number 7."""
    return _FAILURE_REASONS[number] if 0 <= number < len(_FAILURE_REASONS) else f"REASON_{number}"


def is_permission_denied(code: str, text: str | None) -> bool:
    """Return whether the error says that the macaroon is valid but doesn't permit the call."""
    return code == "UNKNOWN" and (text or "").strip().lower() == "permission denied"


def _preimage(text: str) -> bytes | None:
    try:
        preimage = bytes.fromhex(text)
    except ValueError:
        return None
    return preimage if len(preimage) == 32 else None
