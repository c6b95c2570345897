"""The values that the ledger takes and returns: rows, states, and the change to a row. No SQL, no I/O.

`ledger.ledger` reads and writes them. How one state follows from another is decided in `payments.wallet_rules`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import InitVar, dataclass, field
from datetime import datetime
from decimal import Decimal, localcontext
from enum import Enum
from typing import TYPE_CHECKING, Any, NoReturn

from .._core.display import AsMapping, facts_table, foreign, line, moment_text, short_hash, table
from .._core.money import EXACT, sats
from ..budgets.schema import LIMIT_NAMES, BudgetEnvelope

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


@dataclass(frozen=True, kw_only=True, repr=False)
class EnvelopeRow(AsMapping):
    """A budget envelope in the ledger: its limits and totals. Totals are in minor units of its currency, exact to the millionth.

    ``settled_minor_units`` is everything ever spent. ``grant_settled_minor_units`` is what was spent during the current grant
    (``ttl_seconds``); it counts against the cap. ``used_minor_units`` has, for each limit that is set, by the name of the limit's
    field, what counts against it at this moment, reservations included. ``granted_at`` is None before the first purchase.
    ``parent`` is the envelope that this one lies in: both count what is spent here, and the limits of both hold. Totals of an
    envelope that others lie in contain theirs.
    """

    limits: BudgetEnvelope
    reserved_minor_units: Decimal
    settled_minor_units: Decimal
    grant_settled_minor_units: Decimal
    used_minor_units: Mapping[str, Decimal]
    frozen: bool
    granted_at: datetime | None
    parent: EnvelopeRow | None = None

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

        Those of the envelopes that this one lies in count too. None if none is set. The limit per call isn't considered.
        """
        shared = [left for name, left in self.headrooms_minor_units.items() if name != "per_call_minor_units"]
        outer = None if self.parent is None else self.parent.headroom_minor_units
        return min([*shared, *([] if outer is None else [outer])], default=None)

    @property
    def frozen_id(self) -> str | None:
        """The id of the envelope that is frozen, so that nothing is bought from this one: its own, or one that it lies in."""
        return self.id if self.frozen else None if self.parent is None else self.parent.frozen_id

    def __repr__(self) -> str:
        left = self.headroom_minor_units
        said = f"{self._amount(self.settled_minor_units)} spent, {self._amount(self.reserved_minor_units)} reserved"
        said += "" if left is None else f", {self._amount(left)} left"
        said += "" if self.parent is None else f", within {line(self.parent.id)!r}"
        return f"<EnvelopeRow {line(self.id)!r}: {said}{', frozen' if self.frozen_id is not None else ''}>"

    def _repr_html_(self) -> str:
        left = self.headrooms_minor_units
        rows = [
            [period, self._amount(getattr(self.limits, name)), self._amount(used), self._amount(left[name])]
            for name, period in LIMIT_NAMES.items()
            if (used := self.used_minor_units.get(name)) is not None
        ]
        totals = f"{self._amount(self.settled_minor_units)} spent in all, {self._amount(self.reserved_minor_units)} reserved"
        granted = "" if self.limits.ttl_seconds is None else f"; granted {moment_text(self.granted_at)}"
        granted += "" if self.parent is None else f"; within {self.parent.id}, whose limits hold too"
        return table(
            f"Budget {self.id}{' (frozen)' if self.frozen_id is not None else ''}",
            rows,
            header=("limit", "allows", "spent or reserved", "left"),
            note=f"{totals}{granted}{'' if rows else '; no limit is set'}",
        )

    def _amount(self, minor_units: Decimal | int) -> str:
        return self.limits.amount_text(Decimal(minor_units))


@dataclass(frozen=True, kw_only=True)
class Intent:
    """A purchase about to be made. `Ledger.open_payment` writes it to disk before the wallet receives the payment order.

    Amounts are in msat, ``payment_hash`` is 64 hex digits, ``valid_until`` is in unix seconds. ``fee_cap_msat`` is the highest
    routing fee that the caller allows; the budget may allow less, unless ``fee_is_fixed``: then it must fit whole.
    ``resource_digest`` is a digest of method, path, query and body: it shows which page was paid for, without storing what a query
    may contain. ``known_tokens`` are the payment hashes of the page's tokens that the caller knows of, and has a reason not to use.
    ``single_use``: it is a charge, whose credential opens one request: that of ``resource_digest``. ``presenter`` is the call that
    buys it: see `Ledger.claim_charge`. ``agent_id`` is the agent whose session buys it.
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
    fee_is_fixed: bool = False
    valid_until: int | None = None
    resource_digest: str = ""
    known_tokens: tuple[str, ...] = ()
    single_use: bool = False
    presenter: str | None = None
    agent_id: str | None = None


class _Secrets:
    """Holds what a row doesn't show: in a function, outside of the row's fields and of its ``__dict__``."""

    __slots__ = ("_secrets",)
    _secrets: Callable[[], tuple[str, str | None]]


@dataclass(frozen=True, kw_only=True, repr=False)
class PaymentRow(AsMapping, _Secrets):
    """One payment from beginning to end. The row is a draw on the budget, the record written before paying, and the token at once.

    ``payment_hash`` and ``preimage`` are 64 hex digits. ``fee_msat`` is the routing fee that lnd charged (0 until settled),
    ``max_fee_msat`` the highest fee it was allowed to charge. ``reserved_micro`` and ``settled_micro`` are in millionths of a minor
    unit of ``currency``. ``sends_ever`` counts the payment orders that may have left, ``sends_unanswered`` those that lnd hasn't
    answered for good. ``valid_until`` is in unix seconds. ``accepted``: the server has accepted the token before,
    ``accepted_again``: twice or more. ``reported``: a trace has reported the payment. ``claimant`` is about to report it, and
    nobody else before ``claimed_until`` (see `Ledger.claim_report`). ``resource_digest``: see `Intent`. ``single_use``: it is a
    charge, whose credential opens one request, once; ``accepted``: it has. ``presenter`` is the call that pays or presents it, and
    no other does before ``presented_until`` (see `Ledger.claim_charge`). ``ended_at``: when it became
    retired or dead, if that is known. ``agent_id``: the agent whose session began it, or sent it last from another envelope.

    Whoever has ``token`` and ``preimage`` can use what was paid for. So only ``row.token`` and ``row.preimage`` give them. They
    aren't fields: ``dict(row)``, ``vars(row)``, `dataclasses.asdict`, a DataFrame and a pickle of the row don't have them, and rows
    are compared without them.
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
    if TYPE_CHECKING:
        token: str = field(repr=False)
        preimage: str | None = field(default=None, repr=False)
    else:  # with defaults, so that `dataclasses.replace` copies them
        token: InitVar[str] = ""
        preimage: InitVar[str | None] = None
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
    single_use: bool = False
    presenter: str | None = None
    presented_until: datetime | None = None
    created_at: datetime
    settled_at: datetime | None = None
    ended_at: datetime | None = None
    agent_id: str | None = None

    @property
    def unfinished(self) -> bool:
        """Whether the outcome isn't known yet: the payment may still be made."""
        return self.state in UNFINISHED

    @property
    def owed(self) -> bool:
        """Whether it is a charge that is paid for, and has opened nothing yet."""
        return self.single_use and self.state is PaymentState.SETTLED

    if not TYPE_CHECKING:

        def __post_init__(self, token, preimage):
            object.__setattr__(self, "_secrets", lambda: (token, preimage))

    def __repr__(self) -> str:
        fee = f", fee {sats(self.fee_msat)}" if self.settled_at is not None else ""
        return (
            f"<PaymentRow {short_hash(self.payment_hash)}: {self.state.value}, {sats(self.amount_msat)}{fee}, {line(self.origin)}>"
        )

    def _repr_html_(self) -> str:
        keep = (self.payment_hash, self.node_pubkey)
        facts: list[tuple[str, object]] = [
            ("state", self.state.value),
            ("amount", sats(self.amount_msat)),
            ("routing fee", sats(self.fee_msat) if self.settled_at is not None else f"at most {sats(self.max_fee_msat)}"),
            ("server", self.origin),
            ("path", foreign(self.path, keep)),
            ("scope", foreign(self.scope, keep)),
            ("budget", self.envelope_id or "none"),
            *([] if self.agent_id is None else [("agent", self.agent_id)]),
            ("begun", moment_text(self.created_at)),
            ("settled", moment_text(self.settled_at)),
            ("node", self.node_pubkey),
            ("payment hash", self.payment_hash),
        ]
        if self.failure_text:
            facts.insert(1, ("remark", foreign(self.failure_text, keep)))
        return facts_table("Payment", facts)

    def __dir__(self) -> list[str]:
        return [name for name in super().__dir__() if name not in ("token", "preimage", "_secrets")]

    def __copy__(self) -> PaymentRow:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> PaymentRow:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return dict(self.__dict__)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def _secret(name: str, at: int) -> property:
    """Return the property ``name`` of a row, which reads the secret at the position ``at``."""

    def read(row: PaymentRow) -> Any:
        try:
            secrets = row._secrets
        except AttributeError:
            _refuse_unpickled(name)
        return secrets()[at]

    return property(read, doc=f"The payment's {name}. It is shown nowhere: see the class.")


def _refuse_unpickled(name: str) -> NoReturn:
    raise AttributeError(
        f"a pickle of a row doesn't hold its {name}: ask the ledger, session.ledger.payment(row.payment_hash).{name}"
    )


if not TYPE_CHECKING:  # only now, because `dataclass` would take them for the defaults of the fields
    PaymentRow.token, PaymentRow.preimage = _secret("token", 0), _secret("preimage", 1)


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
