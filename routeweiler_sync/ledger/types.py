"""The values that the ledger takes and returns: rows, states, and the change to a row. No SQL, no I/O.

`ledger.ledger` reads and writes them. How one state follows from another is decided in `payments.wallet_rules`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal, localcontext
from enum import Enum

from .._core.money import EXACT
from ..budgets.schema import BudgetEnvelope

#: The value of the column ``told`` for a payment whose call had no trace: nothing remains to be reported, and no trace has it. Of
#: another payment it is 1 if a trace has reported it, else 0.
UNTRACED = 2


class PaymentState(str, Enum):
    """The states of a payment. `routeweiler_sync.payments.wallet_rules` has the table of what leads from one to the next."""

    OPEN = "open"  #: unfinished: the row is on disk, and lnd may have received the order
    FAILED = "failed"  #: unfinished: lnd replied FAILED, but another send is unanswered and would start the payment again
    SETTLED = "settled"  #: paid, and recorded as spent; the token is live
    RETIRED = "retired"  #: paid, and recorded as spent; the token is no longer offered unasked
    DEAD = "dead"  #: not paid, and it can't be paid any more; or the user abandoned it


#: States in which the outcome isn't known yet. The reservation is kept.
UNFINISHED = (PaymentState.OPEN, PaymentState.FAILED)


@dataclass(frozen=True, kw_only=True)
class EnvelopeRow:
    """A budget envelope in the ledger: its limits and totals. Totals are in minor units of its currency, exact to the millionth.

    ``settled_minor_units`` is everything ever spent. ``grant_settled_minor_units`` is what was spent during the current grant
    (``ttl_seconds``); it counts against the cap. ``used_minor_units`` has, for each limit that is set, by the name of the limit's
    field, what counts against it at this moment, reservations included. ``granted_at`` is None before the first purchase.
    """

    limits: BudgetEnvelope
    reserved_minor_units: Decimal
    settled_minor_units: Decimal
    grant_settled_minor_units: Decimal
    used_minor_units: Mapping[str, Decimal]
    frozen: bool
    granted_at: datetime | None

    @property
    def id(self) -> str:
        """The envelope's id."""
        return self.limits.id

    @property
    def headrooms_minor_units(self) -> dict[str, Decimal]:
        """What each limit that is set still allows, in minor units, by its field's name. A new grant starts with the whole cap."""
        with localcontext(EXACT):
            return {name: max(Decimal(0), getattr(self.limits, name) - used) for name, used in self.used_minor_units.items()}

    @property
    def headroom_minor_units(self) -> Decimal | None:
        """What all calls together may still spend at this moment, in minor units: the least that cap, hour and day allow.

        None if none of the three is set. The limit per call isn't considered.
        """
        shared = {name: left for name, left in self.headrooms_minor_units.items() if name != "per_call_minor_units"}
        return min(shared.values(), default=None)


@dataclass(frozen=True, kw_only=True)
class Intent:
    """A purchase about to be made. `Ledger.open_payment` writes it to disk before the wallet receives the payment order.

    Amounts are in msat, ``payment_hash`` is 64 hex digits, ``valid_until`` is in unix seconds. ``fee_cap_msat`` is the highest
    routing fee that the caller allows; the budget may allow less. ``resource_digest`` is a digest of method, path, query and body:
    it shows which page was paid for, without storing what a query may contain. ``known_tokens`` are the payment hashes of the
    page's tokens that the caller knows of, and has a reason not to use.
    """

    payment_hash: str
    origin: str
    scope: str
    path: str
    node_pubkey: str
    network: str
    bolt11: str
    scheme: str
    token: str = field(repr=False)
    amount_msat: int
    fee_cap_msat: int
    valid_until: int | None = None
    resource_digest: str = ""
    known_tokens: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PaymentRow:
    """One payment from beginning to end. The row is a draw on the budget, the record written before paying, and the token at once.

    ``payment_hash`` and ``preimage`` are 64 hex digits. ``fee_msat`` is the routing fee that lnd charged (0 until settled),
    ``max_fee_msat`` the highest fee it was allowed to charge. ``reserved_micro`` and ``settled_micro`` are in millionths of a minor
    unit of ``currency``. ``sends_ever`` counts the payment orders that may have left, ``sends_unanswered`` those that lnd hasn't
    answered for good. ``valid_until`` is in unix seconds. ``accepted``: the server has accepted the token before,
    ``accepted_again``: twice or more. ``reported``: a trace has reported the payment. ``claimant`` is about to report it, and
    nobody else before ``claimed_until`` (see `Ledger.claim_report`). ``resource_digest``: see `Intent`.
    """

    payment_hash: str
    origin: str
    scope: str
    path: str
    state: PaymentState
    amount_msat: int
    max_fee_msat: int
    fee_msat: int
    envelope_id: str | None
    node_pubkey: str
    network: str
    bolt11: str
    scheme: str
    token: str = field(repr=False)
    preimage: str | None = field(default=None, repr=False)
    currency: str | None = None
    btc_price: Decimal | None = None
    rate_quality: str | None = None
    reserved_micro: int = 0
    settled_micro: int = 0
    sends_ever: int = 0
    sends_unanswered: int = 0
    valid_until: int | None = None
    accepted: bool = False
    accepted_again: bool = False
    reported: bool = False
    failure_code: str | None = None
    failure_text: str | None = None
    resource_digest: str = ""
    claimant: str | None = None
    claimed_until: datetime | None = None
    created_at: datetime
    settled_at: datetime | None = None

    @property
    def unfinished(self) -> bool:
        """Whether the outcome isn't known yet: the payment may still be made."""
        return self.state in UNFINISHED


@dataclass(frozen=True, kw_only=True)
class Change:
    """What one reply of the wallet or the server changes in a row. `routeweiler_sync.payments.wallet_rules` decides it.

    ``answered``: how many sends the reply answers, to be subtracted from ``sends_unanswered``. ``preimage`` (32 bytes) and
    ``fee_msat`` belong to a change to SETTLED. Without a preimage the payment is recorded as spent, but there is no token.
    """

    state: PaymentState
    answered: int = 0
    preimage: bytes | None = field(default=None, repr=False)
    fee_msat: int = 0
    failure_code: str | None = None
    failure_text: str | None = None
