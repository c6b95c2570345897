"""The budget envelope: what may be spent, over which time, and where. A value with checks; no I/O.

How much of an envelope is spent or reserved is left to `ledger.envelopes`, the patterns for origins to `policy.patterns`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from decimal import Decimal

from .._core.display import facts_table
from .._core.money import CURRENCIES, MAX_MINOR_UNITS, MICRO, minor_text
from .._core.rails import DEFAULT_RAILS
from .._core.secret_text import shown
from ..policy import patterns

HOUR_S = 3_600
DAY_S = 86_400
#: Most characters in each pattern and rail name: they are stored in the ledger.
MAX_TEXT_CHARS = 2_048
#: Most bytes in an envelope's id. It is a key in the ledger, and PostgreSQL indexes no text above 2704 bytes.
MAX_ID_BYTES = 512
#: Most envelopes that lie within each other, the innermost and the outermost included.
MAX_LEVELS = 8
#: What each limit holds for, by its field's name, in texts.
LIMIT_NAMES = {
    "per_call_minor_units": "per call",
    "per_hour_minor_units": "per hour",
    "per_day_minor_units": "per day",
    "cap_minor_units": "in all",
}


@dataclass(frozen=True, repr=False)
class BudgetEnvelope:
    """A budget: how much may be spent in all (the cap), per call, per hour and per day, and to whom.

    Limits are whole minor units of ``cap_currency``: ``sat`` (sat), ``usd`` (cent), ``eur`` (cent), ``gbp`` (penny), ``jpy`` (yen).
    None means no such limit. A limit counts spends and reservations, routing fees included. Hour and day are rolling windows.

    ``ttl_seconds`` runs from the first use. When it is over, the envelope's grant has ended: a new session with the envelope starts
    a new grant, with the whole cap. ``allowed_origins_glob`` has fnmatch patterns for ``scheme://host[:port]``, or for
    ``host[:port]`` if a pattern has no ``://``. ``allowed_rails`` are the schemes that may be paid:
    ``l402``, ``mpp-lightning``. ``owner_agent_id`` is a note on whose budget it is; it isn't enforced.

    ``parent`` is the envelope that this one lies in, or the id of one that the ledger has: what is spent or reserved here counts
    there too, and the limits of both hold. Both count in one currency. The ledger keeps the parent: an envelope without one that
    has this id later stays where it is.

    Raises: ValueError for values that can't be a budget.
    """

    id: str
    cap_minor_units: int | None = None
    cap_currency: str = "sat"
    allowed_rails: Sequence[str] = DEFAULT_RAILS
    allowed_origins_glob: Sequence[str] = ("*",)
    ttl_seconds: int | None = None
    owner_agent_id: str | None = None
    per_call_minor_units: int | None = None
    per_hour_minor_units: int | None = None
    per_day_minor_units: int | None = None
    parent: BudgetEnvelope | str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not can_be_id(self.id):
            raise ValueError(f"a budget envelope's id is a string of 1 to {MAX_ID_BYTES} bytes in UTF-8, without NUL characters")
        if self.owner_agent_id is not None and not isinstance(self.owner_agent_id, str):
            raise ValueError(
                f"envelope {shown(self.id)}: owner_agent_id must be a string or None, not {shown(self.owner_agent_id)}"
            )
        if self.cap_currency not in CURRENCIES:
            known = ", ".join(CURRENCIES)
            raise ValueError(f"envelope {shown(self.id)}: cap_currency must be one of {known}, not {shown(self.cap_currency)}")
        for name in ("cap_minor_units", "per_call_minor_units", "per_hour_minor_units", "per_day_minor_units", "ttl_seconds"):
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise ValueError(f"envelope {shown(self.id)}: {name} must be a whole number or None, not {shown(value)}")
            if not 0 <= value <= MAX_MINOR_UNITS:
                raise ValueError(f"envelope {shown(self.id)}: {name} must be between 0 and {MAX_MINOR_UNITS}, not {value}")
        for name in ("allowed_rails", "allowed_origins_glob"):
            value = getattr(self, name)
            if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
                raise ValueError(f"envelope {shown(self.id)}: {name} must be a list of strings")
            value = tuple(value)
            if not all(isinstance(v, str) and len(v) <= MAX_TEXT_CHARS for v in value):
                raise ValueError(
                    f"envelope {shown(self.id)}: {name} must be a list of strings of at most {MAX_TEXT_CHARS} characters"
                )
            object.__setattr__(self, name, value)
        if problem := next(filter(None, map(patterns.problem_of_origin, self.allowed_origins_glob)), None):
            raise ValueError(f"envelope {shown(self.id)}: allowed_origins_glob: {problem}")
        self._check_parents()

    def _check_parents(self) -> None:
        """Check the envelopes that this one lies in, as far as they are given. Raises: ValueError."""
        outer, ids = self.parent, [self.id]
        while outer is not None:
            if not isinstance(outer, BudgetEnvelope) and not (isinstance(outer, str) and can_be_id(outer)):
                raise ValueError(f"envelope {shown(self.id)}: parent must be a BudgetEnvelope, the id of one, or None")
            if isinstance(outer, BudgetEnvelope) and outer.cap_currency != self.cap_currency:
                raise ValueError(
                    f"envelope {shown(self.id)} counts in {self.cap_currency}, and its parent {shown(outer.id)} in "
                    f"{outer.cap_currency}: they must count in one currency"
                )
            ids.append(outer if isinstance(outer, str) else outer.id)
            outer = None if isinstance(outer, str) else outer.parent
        if len(set(ids)) < len(ids):
            raise ValueError(f"envelope {shown(self.id)} can't lie in itself")
        if len(ids) > MAX_LEVELS:
            raise ValueError(f"envelope {shown(self.id)} lies in {len(ids) - 1} others, more than {MAX_LEVELS - 1}")

    @property
    def parent_id(self) -> str | None:
        """The id of the envelope that this one lies in, or None."""
        return self.parent.id if isinstance(self.parent, BudgetEnvelope) else self.parent

    def __repr__(self) -> str:
        given = [f"{each.name}={value!r}" for each in fields(self)[1:] if (value := getattr(self, each.name)) != each.default]
        return f"BudgetEnvelope({', '.join([repr(self.id), *given])})"

    def _repr_html_(self) -> str:
        facts: list[tuple[str, object]] = [*self._limits()] or [("limit", "none")]
        facts += [("servers", ", ".join(self.allowed_origins_glob)), ("rails", ", ".join(self.allowed_rails))]
        facts += [("lasts", f"{self.ttl_seconds} s from the first use")] if self.ttl_seconds is not None else []
        facts += [("owner", self.owner_agent_id)] if self.owner_agent_id is not None else []
        facts += [("within", self.parent_id)] if self.parent is not None else []
        return facts_table(f"Budget {self.id}", facts)

    @property
    def words(self) -> str:
        """The id and the limits, for a text of one line: ``weather (100 sat per call)``."""
        return f"{self.id} ({', '.join(f'{amount} {period}' for period, amount in self._limits()) or 'without limit'})"

    def _limits(self) -> list[tuple[str, str]]:
        """Return each limit that is set, as what it holds for and how much that is."""
        limits = ((period, getattr(self, name)) for name, period in LIMIT_NAMES.items())
        return [(period, self.amount_text(limit)) for period, limit in limits if limit is not None]

    def amount_text(self, minor_units: Decimal | int) -> str:
        """Return an amount of this envelope as a text for people: ``10 sat``, ``0.05 usd``."""
        return minor_text(minor_units, self.cap_currency)

    def allows_origin(self, origin: str) -> bool:
        """Return whether ``origin`` (``scheme://host[:port]``) matches a pattern of ``allowed_origins_glob``."""
        return any(patterns.matches_origin(origin, glob) for glob in self.allowed_origins_glob)

    def limit_micro(self, name: str) -> int | None:
        """Return the limit in the field ``name``, in millionths of a minor unit. None if it isn't set."""
        value: int | None = getattr(self, name)
        return None if value is None else value * MICRO


def can_be_id(text: str) -> bool:
    """Return whether ``text`` can be the id of an envelope, or of an agent."""
    try:
        return 0 < len(text.encode()) <= MAX_ID_BYTES and "\0" not in text
    except UnicodeEncodeError:  # a lone surrogate, which no database accepts
        return False


#: The budget of a session that is given none: 1 000 sat a call, 10 000 an hour, 50 000 a day.
SAFE_DEFAULT = BudgetEnvelope("default", per_call_minor_units=1_000, per_hour_minor_units=10_000, per_day_minor_units=50_000)
