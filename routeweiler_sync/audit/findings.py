"""What an audit finds, as values and in words. No word of it holds a secret."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from .._core.money import minor_units, sats
from ..funding.wallet import NodePayment
from ..ledger.snapshot import BookedPayment
from ..ledger.types import PaymentState
from ..trace.reader import ReportedPayment

#: What to do about a ledger that contradicts itself.
MEND = "The ledger is damaged or was changed from outside: restore it from a backup; payments aren't affected."


class Kind(str, Enum):
    """What kinds of difference there are, the gravest first."""

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
    """Something on which the accounts don't agree. ``says``: each account's name and what it says, in words, without secrets.

    About a payment (``payment_hash``, hex), an envelope (``envelope_id``), or a payment in an envelope.
    """

    kind: Kind
    what: str
    says: tuple[tuple[str, str], ...]
    advice: str
    payment_hash: str | None = None
    envelope_id: str | None = None

    @property
    def key(self) -> tuple[Kind, str | None, str | None]:
        """The same in two audits of the same difference."""
        return self.kind, self.payment_hash, self.envelope_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """A payment whose outcome the ledger doesn't know: no difference, but not the end of it. Amounts in msat.

    ``node``: the node's word on it, None if it wasn't asked.
    """

    payment_hash: str
    state: PaymentState
    amount_msat: int
    max_fee_msat: int
    node: str | None
    advice: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeAccount:
    """What one node says: its pubkey, and its payments by hash (the latest word on each)."""

    pubkey: str
    payments: Mapping[str, NodePayment]

    @classmethod
    def of(cls, pubkey: str, payments: Iterable[NodePayment]) -> NodeAccount:
        """From `LndClient.get_node_pubkey` and `LndClient.list_payments`. A payment tried anew is listed anew, behind."""
        return cls(pubkey=pubkey, payments={payment.payment_hash: payment for payment in payments})


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What an audit has found. ``spent_msat``, fees included, and ``paid`` are the ledger's; ``…_compared`` how many of these
    payments were held against trace and node. ``foreign``: payments that succeeded at the node and that this ledger doesn't know.
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
        """Whether there is no difference."""
        return not self.differences


def told_row(row: BookedPayment) -> str:
    """What the ledger says of a payment."""
    return f"{row.state.value}, {sats(row.amount_msat)}" + (f" + {sats(row.fee_msat)} fee" if row.paid else "")


def told_trace(told: ReportedPayment) -> str:
    """What a trace says of one."""
    return f"paid {sats(told.amount_msat)} + {sats(told.fee_msat)} fee"


def told_node(there: NodePayment | None) -> str:
    """What the node says of one."""
    if there is None:
        return "no such payment"
    return f"{there.status}, {sats(there.amount_msat)}" + (f" + {sats(there.fee_msat)} fee" if there.status == "SUCCEEDED" else "")


def in_currency(micro: int, currency: str | None) -> str:
    """Millionths of a minor unit, for people."""
    unit = "sat" if currency in ("sat", None) else f"minor units of {currency}"
    return f"{minor_units(micro).normalize():f} {unit}"
