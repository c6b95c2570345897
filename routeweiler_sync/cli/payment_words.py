"""A payment in words: what its state means, what to do next, and its properties; and the same as JSON.

Pure: a row in, texts out. What changes a row's state is left to `payments.wallet_rules` and `paywall.server_rules`. No text here
has a token or a preimage: the ledger's row has both for a program that asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from .._core.money import minor_units, plain, sats
from ..errors import ChallengeParseError
from ..ledger.charges import USED_UP_UNDELIVERED
from ..ledger.ledger import FORGOTTEN
from ..ledger.server_facts import REFUSED, UNDELIVERED, USED_UP
from ..ledger.types import PaymentRow, PaymentState
from ..protocol.invoice import Invoice, decode_invoice
from .ledgers import command_text
from .tables import Styled

#: How a terminal shows each state.
STYLES = {
    PaymentState.OPEN: "yellow",
    PaymentState.FAILED: "yellow",
    PaymentState.SETTLED: "green",
    PaymentState.RETIRED: "",
    PaymentState.DEAD: "dim",
}
#: How many digits of a hash the commands to copy have: few enough that a narrow terminal doesn't break them.
COPIED_DIGITS = 16
_ABANDONED = "abandoned"


def styled_state(row: PaymentRow) -> Styled:
    """Return the name of the row's state."""
    return Styled(row.state.value, STYLES[row.state])


def sat_number(amount_msat: int) -> str:
    """Return an amount in sat without the unit, for a column whose heading has it."""
    return sats(amount_msat).partition(" ")[0]


def meaning(row: PaymentRow) -> str:
    """Return what the row's state means for the money and the token, as a clause."""
    if row.state is PaymentState.OPEN:
        return "not finished: the node may still make this payment"
    if row.state is PaymentState.FAILED:
        return "not finished: the node reported a failure, but one order is unanswered and may start the payment again"
    if row.state is PaymentState.DEAD:
        if row.failure_code == _ABANDONED:
            return "abandoned by you while the outcome wasn't known; nothing is booked as spent"
        return f"not paid, and it can't be paid any more{f': {row.failure_text}' if row.failure_text else ''}"
    if row.preimage is None:
        return "paid, but the node's proof was wrong: there is no token"
    if row.single_use:
        return _charge_meaning(row)
    if row.state is PaymentState.RETIRED:
        if row.failure_code == FORGOTTEN:
            return "paid; the token was forgotten at your request, and isn't offered any more"
        if row.failure_text == USED_UP:
            return "paid; the token has served once, and the server doesn't accept it again"
        return "paid; the server has refused the token since, so it isn't offered unasked any more"
    if row.accepted:
        return "paid; the server accepts the token, and later calls use it"
    if row.failure_code == REFUSED:
        return "paid, but the server refuses the token"
    if row.failure_code == UNDELIVERED:
        return "paid, but the server answered with an error in place of the page"
    return "paid; the token is kept, and the server hasn't accepted it yet"


def _charge_meaning(row: PaymentRow) -> str:
    """Return what the state of a paid charge means, as a clause."""
    if row.accepted:
        return "paid for one request, which the server has answered"
    if row.failure_code == USED_UP_UNDELIVERED:
        return f"paid for one request; the server has taken it, and not delivered: {row.failure_text or 'by its receipt'}"
    if row.failure_code == FORGOTTEN:
        return "paid for one request; forgotten at your request, and not presented any more"
    if row.failure_code == REFUSED:
        return "paid for one request, but the server refuses it"
    if row.failure_code == UNDELIVERED:
        return f"paid for one request, which isn't answered yet ({row.failure_text or 'an error came instead'})"
    return "paid for one request, which isn't answered yet"


def to_do(row: PaymentRow, ledger: str | None) -> list[str]:
    """Return what the user can do next, one sentence each. ``ledger`` is the ``--ledger`` that was given, for the commands."""
    name = row.payment_hash[:COPIED_DIGITS]
    forget = command_text("tokens", "forget", name, ledger=ledger)
    if row.unfinished:
        return [
            f"Ask the node: {command_text('payments', 'recover', ledger=ledger)}",
            "Or fetch the page again: the same purchase goes on, and nothing is paid twice.",
            "Only if you know that the node will never make the payment: "
            f"{command_text('payments', 'abandon', name, ledger=ledger)}",
        ]
    if row.state is PaymentState.DEAD and row.failure_code == _ABANDONED:
        return [f"If the node makes the payment after all, this books it: {command_text('payments', 'recover', ledger=ledger)}"]
    if row.state is not PaymentState.SETTLED or (row.accepted and row.preimage is not None):
        return ["Nothing: fetching the page again buys anew." if row.state is PaymentState.DEAD else "Nothing."]
    buy_anew = f"To let the next call buy anew: {forget}"
    if row.preimage is None:
        return ["Ask whoever runs the node, which paid and gave a wrong preimage.", buy_anew]
    if row.failure_code == REFUSED:
        return ["Ask whoever runs the server, and show the proof of payment.", buy_anew]
    if row.single_use:
        return [
            "Make the same request again (URL, method and body): the payment is presented with it, and nothing more is paid.",
            buy_anew,
        ]
    return ["Fetch the page again: the token is offered, and nothing more is paid.", buy_anew]


def facts(row: PaymentRow, ledger: str | None, url: str) -> list[tuple[str, object]]:
    """Return all that a person may want to know about a payment, as names and values. ``url`` is the ledger's."""
    invoice = _invoice(row)
    return [
        ("payment hash", row.payment_hash),
        ("state", Styled(f"{row.state.value}: {meaning(row)}", STYLES[row.state])),
        ("to do", to_do(row, ledger)),
        ("amount", sats(row.amount_msat)),
        ("routing fee", _fee(row)),
        ("total", None if row.settled_at is None else sats(row.amount_msat + row.fee_msat)),
        ("reserved", _reserved(row)),
        ("envelope", "none: no budget counts it" if row.envelope_id is None else row.envelope_id),
        ("agent", row.agent_id),
        ("rate", _rate(row)),
        ("page", row.origin + row.path if row.path.startswith("/") else f"{row.origin} (path: {row.path})"),
        ("scope", row.scope),
        ("scheme", f"{row.scheme}: for one request" if row.single_use else row.scheme),
        ("description", "(can't be read)" if invoice is None else (invoice.description or "").strip() or "(none)"),
        ("payee", None if invoice is None else invoice.payee),
        ("node", row.node_pubkey),
        ("network", row.network),
        ("begun", row.created_at),
        ("settled", row.settled_at),
        ("invoice expires", _expiry(invoice)),
        ("challenge expires", _charge_expiry(row)),
        ("orders", _orders(row)),
        ("server", _server(row)),
        ("trace", _trace(row)),
        ("last failure", row.failure_text if row.unfinished or row.state is PaymentState.SETTLED else None),
        ("proof", _proof(row, url)),
    ]


def as_json(row: PaymentRow) -> dict[str, Any]:
    """Return a payment as an object of ``--json``."""
    settled = row.settled_at is not None
    return {
        "paymentHash": row.payment_hash,
        "state": row.state.value,
        "unfinished": row.unfinished,
        "origin": row.origin,
        "path": row.path,
        "scope": row.scope,
        "scheme": row.scheme,
        "singleUse": row.single_use,
        "undelivered": row.owed,
        "amountMsat": row.amount_msat,
        "feeMsat": row.fee_msat,
        "maxFeeMsat": row.max_fee_msat,
        "spentMsat": row.amount_msat + row.fee_msat if settled else 0,
        "envelopeId": row.envelope_id,
        "agentId": row.agent_id,
        "network": row.network,
        "nodePubkey": row.node_pubkey,
        "accepted": row.accepted,
        "failureCode": row.failure_code,
        "failureText": row.failure_text,
        "createdAt": row.created_at.isoformat(),
        "settledAt": None if row.settled_at is None else row.settled_at.isoformat(),
    }


def as_full_json(row: PaymentRow, ledger: str | None) -> dict[str, Any]:
    """Return a payment as the object of ``payments show --json``: `as_json`, and what only one payment is asked for."""
    invoice = _invoice(row)
    expiry = _expiry(invoice)
    return {
        **as_json(row),
        "meaning": meaning(row),
        "toDo": to_do(row, ledger),
        "description": None if invoice is None else invoice.description,
        "payee": None if invoice is None else invoice.payee,
        "invoiceExpiresAt": None if expiry is None else expiry.isoformat(),
        "currency": row.currency,
        "btcPrice": None if row.btc_price is None else plain(row.btc_price),
        "rateQuality": row.rate_quality,
        "reservedMinorUnits": _minor_units(row.reserved_micro),
        "settledMinorUnits": _minor_units(row.settled_micro),
        "ordersSent": row.sends_ever,
        "ordersUnanswered": row.sends_unanswered,
        "reported": row.reported,
    }


def _minor_units(micro: int) -> str:
    return plain(minor_units(micro))


def _invoice(row: PaymentRow) -> Invoice | None:
    try:
        return decode_invoice(row.bolt11)
    except ChallengeParseError:
        return None


def _expiry(invoice: Invoice | None) -> datetime | None:
    try:
        return None if invoice is None else datetime.fromtimestamp(invoice.expires_at, timezone.utc)
    except (OverflowError, OSError, ValueError):  # beyond the year 9999
        return None


def _charge_expiry(row: PaymentRow) -> datetime | None:
    try:
        valid_until = row.valid_until if row.single_use else None
        return None if valid_until is None else datetime.fromtimestamp(valid_until, timezone.utc)
    except (OverflowError, OSError, ValueError):
        return None


def _fee(row: PaymentRow) -> str:
    most = f"at most {sats(row.max_fee_msat)}"
    return f"{sats(row.fee_msat)} ({most} was allowed)" if row.settled_at is not None else most


def _reserved(row: PaymentRow) -> str | None:
    if not row.unfinished or row.envelope_id is None or row.currency is None:
        return None
    return f"{_minor_units(row.reserved_micro)} {UNITS.get(row.currency, row.currency)}, until the outcome is known"


def _rate(row: PaymentRow) -> str | None:
    if row.btc_price is None or row.currency is None:
        return None
    booked = f"; booked as {_minor_units(row.settled_micro)} {UNITS.get(row.currency, row.currency)}" if row.settled_micro else ""
    return f"1 bitcoin = {plain(row.btc_price)} {row.currency} ({row.rate_quality}){booked}"


def _orders(row: PaymentRow) -> str:
    return f"{row.sends_ever} sent to the node" + (f", {row.sends_unanswered} unanswered" if row.sends_unanswered else "")


def _server(row: PaymentRow) -> str | None:
    if row.preimage is None:
        return None
    if row.single_use:
        if row.accepted:
            return "has answered the request"
        return "refuses the payment" if row.failure_code == REFUSED else "hasn't answered the request"
    if row.accepted:
        return "has accepted the token" + (", more than once" if row.accepted_again else "")
    return "has never accepted the token"


def _trace(row: PaymentRow) -> str | None:
    if row.settled_at is None:
        return None
    return None if row.reported else "doesn't have the payment yet"


def _proof(row: PaymentRow, url: str) -> str | None:
    """Return how to get the proof of payment, the preimage, which no command prints."""
    if row.preimage is None:
        return None
    return f"in Python: from routeweiler_sync import Ledger; print(Ledger.open({url!r}).payment({row.payment_hash!r}).preimage)"


#: What the whole numbers of a budget count, by its currency.
UNITS: Mapping[str, str] = {"sat": "sat", "usd": "usd cents", "eur": "eur cents", "gbp": "gbp pence", "jpy": "jpy"}
