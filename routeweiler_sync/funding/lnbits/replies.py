"""Read every answer of LNbits into a `WalletAnswer`. This is the only module that knows LNbits' error texts.

Pure: a status, a body and a payment hash go in, a `WalletAnswer` comes out; no HTTP, no I/O. What a reply means for the money is
left to `routeweiler_sync.payments.wallet_rules`.

What the table rests on, read in the source of LNbits 1.6.2 (core/services/payments.py) and seen when run on lnd:

- A wallet's payment is a row, written to disk before LNbits asks its own node. An order for a hash that has a row starts nothing:
  this holds over all wallets of one LNbits. A hash that failed is never started again.
- The answer to an order is no last word. LNbits waits for its node for a few seconds only, and some of its errors say "failed" of
  a payment that is made. So every answer but a success is followed by a look-up of the hash, and `conclude` puts the two together.
- Keys and amounts are checked before the hash is looked for: such a refusal says nothing about an earlier order.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from ..._core.secret_text import without_secrets
from ..replies import WalletAnswer, WalletReply, preimage_fits, tidy

Request = Literal["pay", "lookup", "list"]

#: The status of LNbits' own payment errors. No standard has it.
PAYMENT_ERROR = 520
#: Amounts are msat of at most so much: every bitcoin that there can be.
_MSAT_MAX = 21_000_000 * 100_000_000 * 1_000
_STATES = {"success": WalletReply.SUCCEEDED, "failed": WalletReply.FAILED_FOR_GOOD, "pending": WalletReply.IN_FLIGHT}
#: What a wallet's row says while LNbits doesn't know how the payment ended.
PENDING_REASON = (
    "LNbits lists the payment as pending. If it stays so although LNbits' node has no such payment, the order never reached the "
    "node: only LNbits' admin can end it there, and here `routeweiler-sync payments abandon`"
)
#: What LNbits says to a key that may not pay.
READ_ONLY_KEY = "Invoice (or Admin) key required."


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyRule:
    """One error of LNbits that proves something, namely ``reply``.

    ``text`` is a regular expression for the whole ``detail`` of the error; None fits any text. ``why`` says what in LNbits proves
    the reply. ``stands_alone``: the request was turned away at the door, as is every copy of it that a proxy may have sent. So the
    reply holds even if the look-up after it isn't answered.
    """

    request: Request
    status: int
    text: str | None
    reply: WalletReply
    why: str
    stands_alone: bool = False

    def fits(self, request: Request, status: int, text: str) -> bool:
        return self.request == request and self.status == status and (self.text is None or bool(re.fullmatch(self.text, text)))


RULES: tuple[ReplyRule, ...] = (
    ReplyRule(
        request="pay",
        status=PAYMENT_ERROR,
        text=r"Payment already paid\.",
        reply=WalletReply.EXISTS,
        why="the hash has a row that succeeded; the order was refused because of it",
    ),
    ReplyRule(
        request="pay",
        status=PAYMENT_ERROR,
        text=r"Payment is still pending\.",
        reply=WalletReply.EXISTS,
        why="the hash has a row that hasn't ended; the order was refused because of it",
    ),
    ReplyRule(
        request="pay",
        status=PAYMENT_ERROR,
        text=r"Internal invoice already paid\.",
        reply=WalletReply.EXISTS,
        why="the payee's row succeeded, in the same LNbits. It is told with the status failed, which isn't true of the payment",
    ),
    ReplyRule(
        request="pay",
        status=PAYMENT_ERROR,
        text=r"Failed payment was already paid on the fundingsource\.",
        reply=WalletReply.EXISTS,
        why="the row had failed, the node was asked again and had paid; LNbits corrects the row before it says so",
    ),
    ReplyRule(
        request="pay",
        status=400,
        text=r"Payment already exists",
        reply=WalletReply.EXISTS,
        why="create_payment found a row, written by another process a moment ago; this order was refused because of it",
    ),
    ReplyRule(
        request="pay",
        status=PAYMENT_ERROR,
        text=r"Payment is failed node, retrying is not possible\.",
        reply=WalletReply.FAILED_FOR_GOOD,
        why="the hash has a row that failed, and the node says so too: LNbits never starts it again",
    ),
    ReplyRule(
        request="pay",
        status=PAYMENT_ERROR,
        text=r"Payment failed: [\s\S]*",
        reply=WalletReply.FAILED_FOR_GOOD,
        why="the node has refused or failed it; the row is marked as failed before LNbits says so",
    ),
    ReplyRule(
        request="pay",
        status=PAYMENT_ERROR,
        text=r"Insufficient balance\.|You must reserve at least [\s\S]*",
        reply=WalletReply.REFUSED,
        why="the wallet's balance is checked before the hash is looked for and before a row is written",
    ),
    ReplyRule(
        request="pay",
        status=PAYMENT_ERROR,
        text=r"Bolt11 decoding failed\.|Amountless invoices not supported\.|Invoice amount \d+ sats is too high\. [\s\S]*"
        r"|Invalid invoice\. Bolt11 changed\.|Internal payment not found\.",
        reply=WalletReply.REFUSED,
        why="the invoice is checked before a row is written",
    ),
    ReplyRule(
        request="pay",
        status=PAYMENT_ERROR,
        text=r"Only incoming payments allowed\.|Wallet does not have permission to pay invoices\.|Could not fetch wallet '[^']*'\."
        r"|The time limit of \d+ seconds between payments has been reached\.",
        reply=WalletReply.REFUSED,
        why="what the wallet may do is checked before a row is written",
    ),
    ReplyRule(
        request="pay",
        status=400,
        text=r"Daily withdrawal limit of \d+ sats reached\.|It is not allowed to spend funds from this server\."
        r"|Missing BOLT11 invoice|Missig invoice amount\.",
        reply=WalletReply.REFUSED,
        why="the limits of the server are checked before a row is written",
    ),
    ReplyRule(
        request="pay",
        status=401,
        text=r"No Api Key provided\.",
        reply=WalletReply.REFUSED,
        why="no key came: LNbits asks for it before it reads the order",
        stands_alone=True,
    ),
    ReplyRule(
        request="pay",
        status=401,
        text=None,
        reply=WalletReply.REFUSED,
        why="a gate before LNbits has turned it away, or this copy of it",
    ),
    ReplyRule(
        request="pay",
        status=403,
        text=re.escape(READ_ONLY_KEY),
        reply=WalletReply.REFUSED,
        why="the key only reads: checked before the order is read",
        stands_alone=True,
    ),
    ReplyRule(
        request="pay",
        status=403,
        text=None,
        reply=WalletReply.REFUSED,
        why="the caller is blocked, by LNbits or a gate before it: checked before the order is read, or this copy of it",
    ),
    ReplyRule(
        request="pay",
        status=404,
        text=r"Wallet not found\.",
        reply=WalletReply.REFUSED,
        why="no wallet has this key: checked before the order is read",
        stands_alone=True,
    ),
    ReplyRule(
        request="pay",
        status=429,
        text=None,
        reply=WalletReply.REFUSED,
        why="too many requests: LNbits' limiter comes before all else. Of an order that a proxy sends twice, it may have "
        "passed the first",
    ),
    ReplyRule(
        request="lookup",
        status=404,
        text=r"Payment does not exist\.",
        reply=WalletReply.NOT_FOUND,
        why="the wallet has no row of this hash; an order may still be on its way. Not Found alone would be a wrong path",
    ),
)


def detail_of(body: Any) -> str:
    """Return the error text in a body of LNbits (``{"detail": …}``, its limiter's ``{"error": …}``), "" if it has none.

    A proxy's page has none.
    """
    detail = body.get("detail", body.get("error")) if isinstance(body, dict) else None
    if isinstance(detail, list):  # of FastAPI's own checks
        detail = "; ".join(str(each.get("msg")) for each in detail if isinstance(each, dict))
    return detail if isinstance(detail, str) else ""


def rule_for(request: Request, status: int, body: Any) -> ReplyRule | None:
    """Return the rule of an error, None if it proves nothing. Only an error that LNbits itself wrote has one."""
    detail = detail_of(body)
    return next((rule for rule in RULES if rule.fits(request, status, detail)), None) if detail else None


def read_order(status: int, body: Any, payment_hash: bytes) -> WalletAnswer:
    """Return what the answer to an order says by itself. Unless it is SUCCEEDED, the hash must be looked up: see `conclude`.

    ``body`` is the JSON of the answer, None if it has none. ``payment_hash`` is 32 bytes.
    """
    if status == 201:
        return _read_row(body, payment_hash)
    rule = rule_for("pay", status, body)
    return WalletAnswer(reply=WalletReply.UNKNOWN if rule is None else rule.reply, reason=_told(status, body, payment_hash))


def read_lookup(status: int, body: Any, payment_hash: bytes) -> WalletAnswer:
    """Return what the answer to a look-up says. ``body`` is the JSON of the answer, None if it has none.

    Without ``details`` the row isn't one of the wallet that was asked for (another wallet's, or the key isn't valid any more): only
    a preimage that fits is believed then.
    """
    if status != 200:
        rule = rule_for("lookup", status, body)
        return WalletAnswer(reply=WalletReply.UNKNOWN if rule is None else rule.reply, reason=_told(status, body, payment_hash))
    details = body.get("details") if isinstance(body, dict) else None
    if isinstance(details, dict):
        return _read_row(details, payment_hash)
    preimage = _preimage(body.get("preimage")) if isinstance(body, dict) and body.get("paid") is True else None
    if preimage_fits(preimage, payment_hash):
        return WalletAnswer(reply=WalletReply.SUCCEEDED, preimage=preimage, fee_msat=None)
    return WalletAnswer(reply=WalletReply.UNKNOWN, reason="LNbits doesn't say more of it to this key")


def read_list(status: int, body: Any, payment_hash: bytes) -> WalletAnswer:
    """Return what the wallet's list, asked for one hash, says of it: its row's state, as LNbits last knew it.

    NOT_FOUND and UNKNOWN prove nothing here, IN_FLIGHT may be out of date: look the hash up. The list isn't given to a wrong key.
    """
    rows = rows_of(body)
    if status != 200 or rows is None:
        return WalletAnswer(reply=WalletReply.UNKNOWN, reason=_told(status, body, payment_hash))
    answers = [_read_row(row, payment_hash) for row in rows if is_outgoing(row) and row.get("payment_hash") == payment_hash.hex()]
    return answers[0] if answers else WalletAnswer(reply=WalletReply.NOT_FOUND)


def conclude(sent: WalletAnswer, rule: ReplyRule | None, looked_up: WalletAnswer) -> WalletAnswer:
    """Return the answer to an order, from what LNbits said to it and what the look-up after it said.

    ``rule`` is the rule of the order's answer, if it has one. The look-up decides where it knows the hash. Otherwise the order's
    own answer holds, as far as it can be true beside a look-up that doesn't know the hash, or wasn't answered.
    """
    if looked_up.reply not in (WalletReply.NOT_FOUND, WalletReply.UNKNOWN):
        failed = looked_up.reply is WalletReply.FAILED_FOR_GOOD
        return _with_reason(looked_up, sent.reason if failed and sent.reason else looked_up.reason)
    is_unknown = looked_up.reply is WalletReply.UNKNOWN
    if sent.reply is WalletReply.EXISTS:
        return (
            sent if is_unknown else _with_reason(sent, f"{sent.reason}: another wallet of this LNbits has paid it, or is paying it")
        )
    if sent.reply is WalletReply.REFUSED and (not is_unknown or (rule is not None and rule.stands_alone)):
        return sent
    if sent.reply in (WalletReply.IN_FLIGHT, WalletReply.WRONG_PREIMAGE) and is_unknown:
        return sent
    return WalletAnswer(reply=WalletReply.UNKNOWN, reason=sent.reason or looked_up.reason)


def rows_of(body: Any) -> list[Any] | None:
    """Return the rows of a page of the wallet's list, None if it is none."""
    rows = body.get("data") if isinstance(body, dict) else None
    return rows if isinstance(rows, list) else None


def is_outgoing(row: Any) -> bool:
    """Return whether ``row``, of LNbits' JSON, is a payment that left the wallet. Incoming amounts are above 0."""
    amount = row.get("amount") if isinstance(row, dict) else None
    return isinstance(amount, int) and not isinstance(amount, bool) and -_MSAT_MAX <= amount < 0


def state_of(row: dict[str, Any]) -> WalletReply:
    """Return what a row's ``status`` says; UNKNOWN for one that LNbits 1.6 doesn't have."""
    return _STATES.get(str(row.get("status")), WalletReply.UNKNOWN)


def fee_of(row: dict[str, Any]) -> int | None:
    """Return what a payment that succeeded cost beside its amount, in msat: routing and LNbits' service fee. None: not told.

    LNbits writes it as a negative number. While the row is pending the number is the reserve, not the fee.
    """
    fee = row.get("fee")
    is_sound = isinstance(fee, int) and not isinstance(fee, bool) and abs(fee) <= _MSAT_MAX
    return abs(fee) if is_sound and isinstance(fee, int) else None


def _read_row(row: Any, payment_hash: bytes) -> WalletAnswer:
    """Return what one row of the wallet says. A row of another hash, or of money that came in, says nothing of this payment."""
    if not is_outgoing(row) or row.get("payment_hash") != payment_hash.hex():
        return WalletAnswer(reply=WalletReply.UNKNOWN, reason="LNbits answered with something else than this payment")
    reply = state_of(row)
    if reply is WalletReply.SUCCEEDED and not row.get("preimage"):
        return WalletAnswer(reply=WalletReply.UNKNOWN, reason="LNbits says that it is paid, and hasn't told the preimage yet")
    if reply is WalletReply.SUCCEEDED:
        preimage = _preimage(row.get("preimage"))
        return WalletAnswer(
            reply=reply if preimage_fits(preimage, payment_hash) else WalletReply.WRONG_PREIMAGE,
            preimage=preimage,
            amount_msat=-row["amount"],
            fee_msat=fee_of(row),
        )
    if reply is WalletReply.FAILED_FOR_GOOD:
        return WalletAnswer(reply=reply, reason="LNbits marks the payment as failed")
    if reply is WalletReply.IN_FLIGHT:
        return WalletAnswer(reply=reply, reason=PENDING_REASON)
    return WalletAnswer(reply=reply, reason=f"a payment status that LNbits 1.6 doesn't have: {tidy(str(row.get('status')))[:40]}")


def _with_reason(answer: WalletAnswer, reason: str | None) -> WalletAnswer:
    return WalletAnswer(
        reply=answer.reply, preimage=answer.preimage, amount_msat=answer.amount_msat, fee_msat=answer.fee_msat, reason=reason
    )


def _told(status: int, body: Any, payment_hash: bytes) -> str:
    detail = tidy(without_secrets(detail_of(body), keep=(payment_hash.hex(),)))
    return detail.removesuffix(".") if detail else f"HTTP status {status}, which isn't LNbits' own answer"


def _preimage(text: Any) -> bytes | None:
    try:
        preimage = bytes.fromhex(text)
    except (TypeError, ValueError):
        return None
    return preimage if len(preimage) == 32 else None
