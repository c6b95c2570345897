"""TYPES"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Context, Decimal, localcontext
from enum import Enum

from ..budgets.schema import BudgetEnvelope

#: Limits less totals: digits enough for both, whatever the program's own decimal context says.
EXACT = Context(prec=40)


class PaymentState(str, Enum):
    """The life of a payment; what leads from one to the next is told in `routeweiler_sync.payments.wallet_rules`."""

    OPEN = "open"  #: on disk, lnd may have heard of it: unfinished
    FAILED = "failed"  #: lnd said FAILED, but a send of it is unanswered: unfinished
    SETTLED = "settled"  #: paid and booked; its token is live
    RETIRED = "retired"  #: paid and booked; its token is no longer offered
    DEAD = "dead"  #: nothing was paid, and nothing can be any more


#: States in which the outcome isn't known; their reservation stands.
UNFINISHED = (PaymentState.OPEN, PaymentState.FAILED)


@dataclass(frozen=True, kw_only=True)
class EnvelopeRow:
    """An envelope as the ledger holds it. Totals in minor units of its currency, exact to the millionth.

    ``settled_minor_units`` counts all that was ever spent; ``grant_settled_minor_units`` what was spent under the present grant
    (``ttl_seconds``), against which the cap is held. ``used_minor_units``: for each limit that is set, by the name of its
    field, what counts against it at this moment, reservations included.
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
        """What each limit that is set still leaves, by the name of its field. (A new grant has the cap's anew.)"""
        with localcontext(EXACT):
            return {name: max(Decimal(0), getattr(self.limits, name) - used) for name, used in self.used_minor_units.items()}

    @property
    def headroom_minor_units(self) -> Decimal | None:
        """What may still be spent at this moment, by however many calls: the least that cap, hour, day leave, if set."""
        shared = {name: left for name, left in self.headrooms_minor_units.items() if name != "per_call_minor_units"}
        return min(shared.values(), default=None)


@dataclass(frozen=True, kw_only=True)
class Intent:
    """A purchase about to be made, as it is written before lnd hears of it. Amounts in msat, ``payment_hash`` hex.

    ``target``: a digest of path and query, so that it is known what exactly was bought without keeping what a query may hold.
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


@dataclass(frozen=True, kw_only=True)
class PaymentRow:
    """One payment's whole life: budget draw, write-ahead record and token at once.

    ``payment_hash``, ``preimage`` are hex. ``fee_msat`` is what lnd charged (0 until settled), ``max_fee_msat`` what it was
    allowed to. ``sends_ever`` and ``sends_unanswered`` count the orders that left. ``taken``: the server has taken the token
    before. ``told``: a trace has told of the payment.
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
    reported: bool = False
    failure_code: str | None = None
    failure_text: str | None = None
    resource_digest: str = ""
    created_at: datetime
    settled_at: datetime | None = None

    @property
    def unfinished(self) -> bool:
        """Whether the outcome isn't known yet."""
        return self.state in UNFINISHED


@dataclass(frozen=True, kw_only=True)
class Change:
    """What one word of the node or the server changes in a row, decided by `routeweiler_sync.payments.wallet_rules`.

    ``answered``: how many sends the word counts off. ``preimage`` and ``fee_msat`` belong to the change to SETTLED; without a
    preimage the payment is booked but gives no token.
    """

    state: PaymentState
    answered: int = 0
    preimage: bytes | None = field(default=None, repr=False)
    fee_msat: int = 0
    failure_code: str | None = None
    failure_text: str | None = None
