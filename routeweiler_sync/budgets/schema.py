"""What may be spent and what was: the values that the ledger takes and tells. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Context, Decimal, localcontext
from enum import Enum

from .._core.money import CURRENCIES, MAX_MINOR_UNITS, MICRO
from ..policy import patterns as globs

HOUR_S = 3_600
DAY_S = 86_400
#: Bound on each of the globs and rails that end up in the ledger.
MAX_TEXT_CHARS = 2_048
#: Bound on an envelope's id: it is a key in the ledger, and PostgreSQL indexes no text above 2704 bytes.
MAX_ID_BYTES = 512
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


@dataclass(frozen=True)
class BudgetEnvelope:
    """A budget: what may be spent, over a lifetime, a call, an hour, a day, and where.

    Limits are whole minor units of ``cap_currency`` (``sat``, ``usd``, ``eur``, ``gbp``, ``jpy``: sat, cent, cent, penny, yen);
    None means no such limit. A limit counts reservations and spends, routing fees included. Hour and day roll.
    ``ttl_seconds`` runs from the first use. ``allowed_origins_glob``: fnmatch on ``scheme://host[:port]``, or on
    ``host[:port]`` where the pattern has no ``://``. ``owner_agent_id`` says whose it is, and keeps nobody from it. Raises
    ValueError for what can't be a budget.
    """

    id: str
    cap_minor_units: int | None = None
    cap_currency: str = "sat"
    allowed_rails: Sequence[str] = ("l402",)
    allowed_origins_glob: Sequence[str] = ("*",)
    ttl_seconds: int | None = None
    owner_agent_id: str | None = None
    per_call_minor_units: int | None = None
    per_hour_minor_units: int | None = None
    per_day_minor_units: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not _can_be_id(self.id):
            raise ValueError(f"a budget envelope's id is a string of 1 to {MAX_ID_BYTES} bytes in UTF-8, without NUL")
        if self.owner_agent_id is not None and not isinstance(self.owner_agent_id, str):
            raise ValueError(f"envelope {self.id!r}: owner_agent_id is a string or None, not {self.owner_agent_id!r}")
        if self.cap_currency not in CURRENCIES:
            raise ValueError(f"envelope {self.id!r}: unknown currency {self.cap_currency!r}, one of {', '.join(CURRENCIES)}")
        for name in ("cap_minor_units", "per_call_minor_units", "per_hour_minor_units", "per_day_minor_units", "ttl_seconds"):
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise ValueError(f"envelope {self.id!r}: {name} is a whole number or None, not {value!r}")
            if not 0 <= value <= MAX_MINOR_UNITS:
                raise ValueError(f"envelope {self.id!r}: {name} must be between 0 and {MAX_MINOR_UNITS}, not {value}")
        for name in ("allowed_rails", "allowed_origins_glob"):
            value = getattr(self, name)
            if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
                raise ValueError(f"envelope {self.id!r}: {name} is a list of strings")
            value = tuple(value)
            if not all(isinstance(v, str) and len(v) <= MAX_TEXT_CHARS for v in value):
                raise ValueError(f"envelope {self.id!r}: {name} is a list of strings")
            object.__setattr__(self, name, value)
        if problem := next(filter(None, map(globs.problem_of_origin, self.allowed_origins_glob)), None):
            raise ValueError(f"envelope {self.id!r}: allowed_origins_glob: {problem}")

    def allows_origin(self, origin: str) -> bool:
        """Whether ``origin`` (``scheme://host[:port]``) matches one of the globs."""
        return any(globs.matches_origin(origin, glob) for glob in self.allowed_origins_glob)

    def limit_micro(self, name: str) -> int | None:
        """A limit in millionths of a minor unit; ``name`` is the field's."""
        value: int | None = getattr(self, name)
        return None if value is None else value * MICRO


def _can_be_id(text: str) -> bool:
    try:
        return 0 < len(text.encode()) <= MAX_ID_BYTES and "\0" not in text
    except UnicodeEncodeError:  # half of a surrogate pair: no database takes it
        return False


#: In force where nothing else is said: 1 000 sat a call, 10 000 an hour, 50 000 a day.
SAFE_DEFAULT = BudgetEnvelope("default", per_call_minor_units=1_000, per_hour_minor_units=10_000, per_day_minor_units=50_000)


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
    target: str = ""


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
    taken: bool = False
    told: bool = False
    failure_code: str | None = None
    failure_text: str | None = None
    target: str = ""
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
