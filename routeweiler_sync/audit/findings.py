"""What an audit finds: the values of its report, and texts for people. None of them contains a token or preimage.

Finding the differences is left to `ledger_checks` and `external_checks`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from .._core.money import minor_units, plain, sats
from ..funding.wallet import NodePayment
from ..ledger.snapshot import BookedPayment
from ..ledger.types import PaymentState
from ..trace.reader import ReportedPayment

#: Advice for a ledger that contradicts itself.
MEND = "The ledger is damaged or was changed by another program: restore it from a backup. Payments aren't affected."


class Kind(str, Enum):
    """The kinds of difference, the most serious first. The values are in the JSON output and don't change.

    "told" is the JSON's older word for what is called "reported" elsewhere.
    """

    PAID_NOT_BOOKED = "paid_not_booked"
    TOLD_NOT_BOOKED = "told_not_booked"
    BOOKED_NOT_PAID = "booked_not_paid"
    NODE_AMOUNT = "node_amount"
    ENVELOPE_LIMITS = "envelope_limits"
    ENVELOPE_TOTAL = "envelope_total"
    ENVELOPE_WINDOW = "envelope_window"
    ROW_AMOUNT = "row_amount"
    ROW_PREIMAGE = "row_preimage"
    TWO_LIVE_ROWS = "two_live_rows"
    TRACE_AMOUNT = "trace_amount"
    TRACE_PROOF = "trace_proof"
    UNTOLD = "untold"
    MISSING_IN_TRACE = "missing_in_trace"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One point on which the accounts differ.

    It is about a payment (``payment_hash``, hex), an envelope (``envelope_id``), or a payment drawn on an envelope. ``says`` has
    pairs: the name of an account, and what that account says, as text without secrets. ``advice`` is what to do next.
    """

    kind: Kind
    what: str
    says: tuple[tuple[str, str], ...]
    advice: str
    payment_hash: str | None = None
    envelope_id: str | None = None

    @property
    def key(self) -> tuple[Kind, str | None, str | None]:
        """The identity of the difference: two audits that find the same difference give it the same key."""
        return self.kind, self.payment_hash, self.envelope_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """A payment without a final outcome. That isn't a difference, but somebody should look after it. Amounts in msat.

    ``payment_hash`` is hex. ``node``: what the node says of the payment, as text; None if its node wasn't asked.
    """

    payment_hash: str
    state: PaymentState
    amount_msat: int
    max_fee_msat: int
    node: str | None
    advice: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeAccount:
    """One node's account: its pubkey (hex), and its payments by payment hash (hex), each in its latest state."""

    pubkey: str
    payments: Mapping[str, NodePayment]

    @classmethod
    def of(cls, pubkey: str, payments: Iterable[NodePayment]) -> NodeAccount:
        """Make the account from a wallet's identity and its ``list_payments()``.

        A payment that lnd tries again is listed again, at a later position. The last entry counts.
        """
        return cls(pubkey=pubkey, payments={payment.payment_hash: payment for payment in payments})


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The result of an audit.

    ``payments`` counts the ledger's rows, ``paid`` those that are paid, and ``spent_msat`` is what they cost, fees included.
    ``trace_compared`` and ``node_compared`` count the payments compared with the trace and the node. ``foreign`` counts the
    payments that succeeded at the node and aren't in the ledger, ``foreign_msat`` is what they cost. ``notes`` say what couldn't be
    compared, and why.
    """

    payments: int
    paid: int
    spent_msat: int
    trace_compared: int
    node_compared: int
    foreign: int
    foreign_msat: int
    differences: tuple[Difference, ...]
    open: tuple[Open, ...]
    notes: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """Whether no difference was found."""
        return not self.differences


def counted(number: int, noun: str) -> str:
    """Return ``number`` and ``noun`` as text, the noun with an -s unless the number is 1."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def told_row(row: BookedPayment) -> str:
    """Return what the ledger says of a payment, as text: state, amount, and the fee if it is paid."""
    return f"{row.state.value}, {sats(row.amount_msat)}" + (f" + {sats(row.fee_msat)} fee" if row.paid else "")


def told_trace(reported: ReportedPayment) -> str:
    """Return what a trace says of a payment, as text: amount and fee."""
    return f"paid {sats(reported.amount_msat)} + {sats(reported.fee_msat)} fee"


def told_node(payment: NodePayment | None) -> str:
    """Return what the node says of a payment, as text: lnd's status, amount, and the fee if it succeeded. None: not in its list."""
    if payment is None:
        return "no such payment"
    fee = "" if payment.fee_msat is None else f" + {sats(payment.fee_msat)} fee"
    if payment.status != "SUCCEEDED":
        fee = ""
    return f"{payment.status}, {sats(payment.amount_msat)}{fee}"


def in_currency(micro: int, currency: str | None) -> str:
    """Return an amount in millionths of a minor unit as text, in minor units. ``currency=None`` counts as sat."""
    unit = "sat" if currency in ("sat", None) else f"minor units of {currency}"
    return f"{plain(minor_units(micro))} {unit}"
