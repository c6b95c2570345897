"""Read every answer of an NWC wallet, and every refusal of a relay, into a `WalletAnswer`. The only module that knows their words.

Pure: decoded JSON goes in, a `WalletAnswer` comes out (a `NodePayment` of an entry of the wallet's list). Which request is
made when is left to `order` and `client`, and what a reply means for the money to `routeweiler_sync.payments.wallet_rules`.

NIP-47 promises neither that an invoice is paid once, nor that "failed" is final: wallets mark a payment failed on any error of
their node, or as they shut down, and settle it later. So a failure is `FAILED_SO_FAR` here, never more. A code that means "not
begun" is believed, but the wallet is asked once more all the same: a relay that delivers an event twice makes some wallets refuse
the second copy of an order whose first they are paying.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from ..._core.secret_text import without_secrets
from ..replies import WalletAnswer, WalletReply, preimage_fits, tidy
from ..wallet import NodePayment, network_of

#: What a wallet lets routing cost at most: Alby Hub's rule, which no request can change. The larger of the two holds.
OWN_FEE_MSAT_MIN, OWN_FEE_PERCENT = 10_000, 1
#: What a `track` says of a payment that the wallet doesn't know.
UNKNOWN_HASH = "the wallet knows no payment of this hash; the order may still be on its way"
#: What a look-up says of a payment that the wallet calls settled, and can't prove.
SETTLED_UNPROVED = "the wallet reports it settled, without a preimage"
#: What a look-up says of money that has come in by the same hash.
INCOMING_ALONE = "the wallet tells of an incoming payment of this hash alone"
#: A fee above this can't be one: every bitcoin that there can be, in msat.
_MSAT_MAX = 21_000_000 * 100_000_000 * 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PayRule:
    """What an error in answer to pay_invoice proves.

    ``codes`` are NIP-47's codes to which the rule applies. ``text`` is a regular expression, searched for in the wallet's text
    without regard to case; None fits any. ``why`` says what makes it so.
    """

    codes: frozenset[str]
    text: str | None
    reply: WalletReply
    why: str

    def fits(self, code: str, text: str) -> bool:
        return code in self.codes and (self.text is None or bool(re.search(self.text, text, re.IGNORECASE)))


_VAGUE = frozenset({"PAYMENT_FAILED", "INTERNAL", "OTHER"})


def _code(code: str, reply: WalletReply, why: str) -> PayRule:
    return PayRule(codes=frozenset({code}), text=None, reply=reply, why=why)


PAY_RULES: tuple[PayRule, ...] = (
    PayRule(
        codes=_VAGUE,
        text=r"already (been )?paid|already (settled|in flight|pending|exists)|pending for this invoice|payment is in transition"
        r"|payment already exists",
        reply=WalletReply.EXISTS,
        why="the wallet has a payment of this hash, paid or pending, and says so in its text alone: a look-up shows which",
    ),
    _code("PAYMENT_FAILED", WalletReply.FAILED_SO_FAR, "it ended unpaid, as far as the wallet knows; some settle it later"),
    _code("INTERNAL", WalletReply.UNKNOWN, "any error of the wallet or its node, before, during or after the payment"),
    _code("OTHER", WalletReply.UNKNOWN, "an error that NIP-47 has no name for"),
    _code("QUOTA_EXCEEDED", WalletReply.REFUSED, "the connection's budget is checked before the payment begins"),
    _code("INSUFFICIENT_BALANCE", WalletReply.REFUSED, "the balance is checked before the payment begins"),
    _code("RESTRICTED", WalletReply.REFUSED, "this connection may not pay"),
    _code("UNAUTHORIZED", WalletReply.REFUSED, "the wallet knows no such connection"),
    _code("NOT_IMPLEMENTED", WalletReply.REFUSED, "the wallet has no such method"),
    _code("UNSUPPORTED_ENCRYPTION", WalletReply.REFUSED, "the wallet couldn't read the order"),
    _code("RATE_LIMITED", WalletReply.REFUSED, "the order was too early, and was dropped"),
)

#: Errors of other requests that say that this connection may not make them.
NOT_PERMITTED = frozenset({"RESTRICTED", "UNAUTHORIZED", "NOT_IMPLEMENTED"})


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayRule:
    """What a relay's ``["OK", id, false, "<prefix>: …"]`` proves (NIP-01): whether the event has reached nobody."""

    prefix: str
    proves: bool
    why: str


RELAY_RULES: tuple[RelayRule, ...] = (
    RelayRule(prefix="blocked", proves=True, why="the relay takes nothing from this client: checked before the event is passed on"),
    RelayRule(prefix="rate-limited", proves=True, why="too many events: checked before the event is passed on"),
    RelayRule(prefix="invalid", proves=True, why="the event breaks a rule, its time for instance, so it is passed to nobody"),
    RelayRule(prefix="restricted", proves=True, why="this client may not write here: checked before the event is passed on"),
    RelayRule(prefix="auth-required", proves=True, why="nobody may write here before he has said who he is"),
    RelayRule(prefix="pow", proves=True, why="the event lacks proof of work: checked before the event is passed on"),
    RelayRule(prefix="mute", proves=True, why="nobody was listening for the event, and the relay doesn't keep it"),
    RelayRule(prefix="duplicate", proves=False, why="the relay has the event already, so the wallet may have it too"),
    RelayRule(prefix="error", proves=False, why="something went wrong at the relay, before or after it passed the event on"),
)


def never_arrived(refusal: str) -> bool:
    """Return whether a relay's refusal of an event proves that nobody has received it. An unknown refusal proves nothing."""
    prefix = refusal.partition(":")[0].strip().lower()
    return any(rule.proves for rule in RELAY_RULES if rule.prefix == prefix)


def error_of(response: dict[str, Any]) -> tuple[str, str] | None:
    """Return the code and the text of the error in ``response``; None if there is none."""
    error = response.get("error")
    if error is None and isinstance(response.get("result"), dict):
        return None
    if not isinstance(error, dict):
        return ("", "neither a result nor an error")
    code, text = error.get("code"), error.get("message")
    return (code if isinstance(code, str) else "", tidy(without_secrets(text)) if isinstance(text, str) else "")


def reason_of(error: tuple[str, str]) -> str:
    """Return an error of the wallet as one line."""
    return tidy(": ".join(part for part in (without_secrets(error[0]), error[1]) if part)) or "an error without code and text"


def read_pay(response: dict[str, Any], payment_hash: bytes) -> WalletAnswer:
    """Return what the wallet's answer to pay_invoice proves by itself.

    After every answer but a success with preimage and fee the wallet is asked about the payment: see `combined`.
    """
    result = response.get("result")
    result = result if isinstance(result, dict) else {}
    preimage = _preimage(result.get("preimage"))
    if preimage_fits(preimage, payment_hash):  # proves the payment, whatever else is said
        return WalletAnswer(reply=WalletReply.SUCCEEDED, preimage=preimage, fee_msat=_msat(result.get("fees_paid")))
    if (error := error_of(response)) is not None:
        rule = next((rule for rule in PAY_RULES if rule.fits(*error)), None)
        return WalletAnswer(reply=WalletReply.UNKNOWN if rule is None else rule.reply, reason=reason_of(error))
    if preimage is None:
        return WalletAnswer(reply=WalletReply.UNKNOWN, reason="the wallet reports a payment without a preimage")
    return WalletAnswer(reply=WalletReply.WRONG_PREIMAGE, preimage=preimage, fee_msat=_msat(result.get("fees_paid")))


def read_lookup(response: dict[str, Any], payment_hash: bytes) -> WalletAnswer:
    """Return what the wallet's answer to lookup_invoice says about the payment with this hash (32 bytes)."""
    error = error_of(response)
    if error is not None:
        if error[0] == "NOT_FOUND":
            return WalletAnswer(reply=WalletReply.FAILED_SO_FAR, reason=UNKNOWN_HASH)
        return WalletAnswer(reply=WalletReply.UNKNOWN, reason=reason_of(error))
    result = response["result"]
    if result.get("type") == "incoming":
        # The wallet itself has issued the invoice, and knows its preimage without any payment of ours.
        return WalletAnswer(reply=WalletReply.UNKNOWN, reason=INCOMING_ALONE)
    told_hash = result.get("payment_hash")
    if isinstance(told_hash, str) and told_hash and told_hash.lower() != payment_hash.hex():
        return WalletAnswer(reply=WalletReply.UNKNOWN, reason="the wallet tells of another payment")
    state, preimage = _state(result), _preimage(result.get("preimage"))
    if state == "settled" or (state == "" and result.get("settled_at") and preimage is not None):
        if preimage is None:
            return WalletAnswer(reply=WalletReply.UNKNOWN, reason=SETTLED_UNPROVED)
        return WalletAnswer(
            reply=WalletReply.SUCCEEDED if preimage_fits(preimage, payment_hash) else WalletReply.WRONG_PREIMAGE,
            preimage=preimage,
            amount_msat=_msat(result.get("amount")) or 0,
            fee_msat=_msat(result.get("fees_paid")),
        )
    if state in ("pending", "accepted"):
        return WalletAnswer(reply=WalletReply.IN_FLIGHT)
    if state in ("failed", "expired"):
        return WalletAnswer(reply=WalletReply.FAILED_SO_FAR, reason=f"the wallet says {state}, which it may take back")
    said = f"the state {tidy(without_secrets(state))!r}" if state else "no state"
    return WalletAnswer(reply=WalletReply.UNKNOWN, reason=f"the wallet tells {said} of the payment")


def knows_none(found: WalletAnswer) -> bool:
    """Return whether ``found``, what a look-up says, is that the wallet has no payment of the hash."""
    return found.reply is WalletReply.FAILED_SO_FAR and found.reason == UNKNOWN_HASH


def proves_too_little(told: WalletAnswer, found: WalletAnswer) -> bool:
    """Return whether ``told`` is a refusal, and ``found``, the look-up after it, doesn't show whether there is a payment.

    The order may have been delivered twice, and its first copy be under way. Only a connection that may nothing at all, not even
    look up, can't have such a copy: it answers both in the same words.
    """
    if told.reply is not WalletReply.REFUSED or found.reply is not WalletReply.UNKNOWN:
        return False
    code = (found.reason or "").partition(":")[0]
    is_at_the_door = code in NOT_PERMITTED and code == (told.reason or "").partition(":")[0]
    return not is_at_the_door and found.reason not in (INCOMING_ALONE, SETTLED_UNPROVED)


def combined(told: WalletAnswer, found: WalletAnswer) -> WalletAnswer:
    """Return what ``told``, the answer to an order, and ``found``, the look-up after it, prove together.

    Whatever the order was told, a payment that is found paid or pending is there. A failure that was told stays one if the
    look-up finds no more. A refusal stays one only while the wallet has no payment at all: one that it calls failed had begun, and
    a look-up that it refuses too shows nothing.
    """
    if told.reply is WalletReply.SUCCEEDED:
        fits = found.reply is WalletReply.SUCCEEDED
        fee_msat = found.fee_msat if fits and told.fee_msat is None else told.fee_msat
        return replace(told, fee_msat=fee_msat, amount_msat=found.amount_msat if fits else told.amount_msat)
    if found.reply in (WalletReply.SUCCEEDED, WalletReply.WRONG_PREIMAGE, WalletReply.IN_FLIGHT):
        return replace(found, reason=told.reason)
    if proves_too_little(told, found):
        return WalletAnswer(reply=WalletReply.UNKNOWN, reason=tidy(f"{told.reason}; the look-up: {found.reason}"))
    has_begun = found.reason == SETTLED_UNPROVED or (found.reply is WalletReply.FAILED_SO_FAR and not knows_none(found))
    if (told.reply is WalletReply.UNKNOWN and found.reply is WalletReply.FAILED_SO_FAR) or (
        told.reply is WalletReply.REFUSED and has_begun
    ):
        return replace(found, reason=tidy(f"{told.reason}; {found.reason}") if told.reason else found.reason)
    return told


def own_fee_cap_msat(amount_msat: int) -> int:
    """Return what a wallet may let the payment of ``amount_msat`` cost at most, in msat, rounded up."""
    return max(OWN_FEE_MSAT_MIN, -(-amount_msat * OWN_FEE_PERCENT // 100))


def status_of(transaction: dict[str, Any]) -> str | None:
    """Return the state of an entry of list_transactions as lnd's PaymentStatus is called; None if it tells none."""
    states = {"settled": "SUCCEEDED", "pending": "IN_FLIGHT", "accepted": "IN_FLIGHT", "failed": "FAILED", "expired": "FAILED"}
    state = _state(transaction)
    if state == "":
        return "SUCCEEDED" if transaction.get("settled_at") else "IN_FLIGHT"
    return states.get(state)


def network_name(told: object) -> str:
    """Return this package's name of the network that a wallet tells, "" for none."""
    if not isinstance(told, str) or not (name := tidy(told).lower()):
        return ""
    return "bitcoin" if name == "bitcoin" else network_of(name)


def entry_name(told: object) -> str:
    """Return what tells an entry of list_transactions from another one."""
    return f"{told.get('type')} {told.get('payment_hash')}" if isinstance(told, dict) else "nothing"


def payment_of(told: object) -> NodePayment | None:
    """Return an entry of list_transactions; None for one that isn't an outgoing payment, or can't be read."""
    if not isinstance(told, dict) or told.get("type") == "incoming":
        return None
    payment_hash, status = told.get("payment_hash"), status_of(told)
    if not isinstance(payment_hash, str) or len(payment_hash) != 64 or status is None:
        return None
    created_at = told.get("created_at")
    return NodePayment(
        payment_hash=payment_hash.lower(),
        status=status,
        amount_msat=_msat(told.get("amount")) or 0,
        fee_msat=_msat(told.get("fees_paid")) or 0,
        failure_reason=None,
        created_at_ns=created_at * 1_000_000_000 if isinstance(created_at, int) else 0,
    )


def msat_of(value: object) -> int | None:
    """Return an amount in msat that a wallet tells; None if it isn't one."""
    return _msat(value)


def _state(result: dict[str, Any]) -> str:
    state = result.get("state")
    return state.strip().lower() if isinstance(state, str) else ""


def _msat(value: object) -> int | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MSAT_MAX:
        return None
    return value


def _preimage(value: object) -> bytes | None:
    """Return the 32 bytes in hex in ``value``; None for anything else, and for zeros, which stand for none."""
    try:
        preimage = bytes.fromhex(value) if isinstance(value, str) and len(value) == 64 else b""
    except ValueError:
        return None
    return preimage if len(preimage) == 32 and any(preimage) else None
