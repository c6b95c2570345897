"""The figures of a report: sums, periods and quantiles over an `Account`. How they are shown is left to `page`, `sheet` and `cli`.

Sums are exact, whatever a damaged ledger or a forged trace says: SQLite adds the halves of amounts, so that no sum overflows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

from .account import OPEN, PAID, Account, Calls, Entry, Failure

if TYPE_CHECKING:
    from array import array

    from ..ledger.types import EnvelopeRow

#: How many origins, error codes and payments are listed. The rest is summed up.
ORIGINS_SHOWN, FAILURES_SHOWN, NEWEST_SHOWN, UNFINISHED_SHOWN = 12, 12, 100, 20
#: The upper bounds of the brackets of latencies (ms), and of prices (msat). One more bracket is above the last.
LATENCY_BOUNDS_MS = (10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)
PRICE_BOUNDS_MSAT = (10_000, 100_000, 1_000_000, 10_000_000)
_HOUR_MS = 3_600_000
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
#: The lengths of a period, each with the longest span (days) that it serves: about 60 periods, unless that is millennia.
_UNITS = (
    ("hour", 2),
    ("day", 61),
    ("week", 427),
    ("month", 1_830),
    ("year", 21_900),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sum:
    """A sum over payments: how many, their amounts and their routing fees (msat)."""

    payments: int = 0
    amount_msat: int = 0
    fee_msat: int = 0

    @property
    def total_msat(self) -> int:
        """Amounts and fees."""
        return self.amount_msat + self.fee_msat

    @property
    def fee_percent(self) -> float | None:
        """The fees as a percentage of the amounts; None if there are no amounts."""
        return 100 * self.fee_msat / self.amount_msat if self.amount_msat else None

    def __add__(self, other: Sum) -> Sum:
        return Sum(
            payments=self.payments + other.payments,
            amount_msat=self.amount_msat + other.amount_msat,
            fee_msat=self.fee_msat + other.fee_msat,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """A distribution of times in ms: how many, median, 95th percentile, longest, and how many are in each bracket."""

    count: int
    median_ms: int
    p95_ms: int
    longest_ms: int
    brackets: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Booked:
    """What was booked in one currency, in millionths of a minor unit."""

    currency: str
    payments: int
    micro: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """A budget envelope, and the ledger that it is in."""

    ledger: str
    row: EnvelopeRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A ledger or trace that was read. ``kind`` is ``ledger`` or ``trace``; ``missing`` if there was nothing to read yet."""

    kind: str
    name: str
    missing: bool = False


@dataclass(frozen=True, kw_only=True)
class Figures:
    """All figures of a report. Times are in UTC.

    ``spent`` is every payment that was made; it is split ``by_period`` (oldest first, without gaps), ``by_origin`` (the highest
    total first, ``None`` for what no source names), ``by_network`` and ``by_price``. ``other_origins`` is the sum of the origins
    that aren't listed, ``origins`` how many there are in all. ``by_agent``, ``other_agents`` and ``agents`` are the same for
    agents, where None stands for payments of none; they are empty if all are. ``unfinished`` may still be paid: the amounts and the
    highest fees. ``dead`` has how many payments weren't made, by reason. ``newest`` are the newest payments that were made,
    ``older`` is the sum of those that aren't listed. ``unreadable`` counts lines of traces that are no events.
    """

    made_at: datetime
    since: datetime | None
    until: datetime | None
    sources: tuple[Source, ...]
    spent: Sum
    first_at: datetime | None
    last_at: datetime | None
    period: str
    by_period: tuple[tuple[datetime, Sum], ...]
    by_origin: tuple[tuple[str | None, Sum], ...]
    origins: int
    other_origins: Sum
    by_agent: tuple[tuple[str | None, Sum], ...]
    agents: int
    other_agents: Sum
    by_network: tuple[tuple[str | None, Sum], ...]
    by_price: tuple[Sum, ...]
    booked: tuple[Booked, ...]
    unfinished: Sum
    unfinished_oldest: tuple[Entry, ...]
    dead: tuple[tuple[str | None, int], ...]
    newest: tuple[Entry, ...]
    older: Sum
    calls: Calls
    failures: tuple[Failure, ...]
    other_failures: int
    settlement: Latency | None
    service: Latency | None
    envelopes: tuple[Envelope, ...]
    unreadable: int

    @property
    def when_nothing(self) -> str:
        """When nothing was bought, if the report `is_empty`, as the end of a sentence."""
        if self.since is None and self.until is None:
            return "yet"
        return "since then" if self.until is None else "before then" if self.since is None else "in that time"

    @property
    def is_empty(self) -> bool:
        """Whether there is neither a payment nor a call to report."""
        return not (self.spent.payments or self.unfinished.payments or self.dead or self.calls.all)


def figures_of(
    account: Account,
    *,
    sources: Iterable[Source],
    envelopes: Iterable[Envelope],
    since: datetime | None,
    made_at: datetime,
    until: datetime | None = None,
) -> Figures:
    """Return the figures of ``account``. ``since`` and ``until`` are those of the account."""
    where, values = account.within(f"rank >= {PAID}")
    spent = next(_sums(account, where, values))[1]
    ((first_ms, last_ms),) = account.query(f"SELECT MIN(at_ms), MAX(at_ms) FROM payments WHERE {where}", values)  # noqa: S608
    unit = _unit(first_ms, last_ms)
    by_origin = tuple(_sums(account, where, values, by="origin", limit=ORIGINS_SHOWN))
    ((origins,),) = account.query(f"SELECT COUNT(DISTINCT COALESCE(origin, '')) FROM payments WHERE {where}", values)  # noqa: S608
    newest = tuple(account.entries(where, values, order="at_ms DESC, hash DESC", limit=NEWEST_SHOWN))
    failures = sorted(account.calls.failures.values(), key=lambda failure: (-failure.calls, failure.code))
    dead, dead_values = account.within("rank = 2")
    by_agent, agents = _by_agent(account, where, values)
    return Figures(
        made_at=made_at,
        since=since,
        until=until,
        sources=tuple(sources),
        spent=spent,
        first_at=None if first_ms is None else moment(first_ms),
        last_at=None if last_ms is None else moment(last_ms),
        period=unit,
        by_period=tuple(_periods(account, where, values, unit)),
        by_origin=by_origin,
        origins=origins,
        other_origins=_rest(spent, (each for _, each in by_origin)),
        by_agent=by_agent,
        agents=agents,
        other_agents=_rest(spent, (each for _, each in by_agent)) if by_agent else Sum(),
        by_network=tuple(_sums(account, where, values, by="network", limit=ORIGINS_SHOWN)),
        by_price=_by_price(account, where, values),
        booked=tuple(_booked(account, where, values)),
        unfinished=next(_sums(account, f"rank = {OPEN}", ()))[1],
        unfinished_oldest=tuple(account.entries(f"rank = {OPEN}", limit=UNFINISHED_SHOWN)),
        dead=tuple(
            account.query(
                f"SELECT failure_code, COUNT(*) FROM payments WHERE {dead} "  # noqa: S608
                "GROUP BY failure_code ORDER BY COUNT(*) DESC, failure_code LIMIT ?",
                (*dead_values, FAILURES_SHOWN),
            )
        ),
        newest=newest,
        older=_rest(spent, (Sum(payments=1, amount_msat=each.amount_msat, fee_msat=each.fee_msat) for each in newest)),
        calls=account.calls,
        failures=tuple(failures[:FAILURES_SHOWN]),
        other_failures=sum(failure.calls for failure in failures[FAILURES_SHOWN:]),
        settlement=_latency(_settlements(account, where, values)),
        service=_latency(account.calls.service_ms),
        envelopes=tuple(envelopes),
        unreadable=account.unreadable,
    )


def moment(ms: int) -> datetime:
    """Return milliseconds since 1970 as a time in UTC."""
    return _EPOCH + timedelta(milliseconds=ms)


def _sum_of(column: str) -> str:
    """Return the SQL of two columns whose values are the halves of a sum. See `_exact`."""
    return f"COALESCE(SUM({column} >> 32), 0), COALESCE(SUM({column} & 4294967295), 0)"


def _exact(high: int, low: int) -> int:
    return (high << 32) + low


def _sums(
    account: Account, where: str, values: Sequence[object], *, by: str | None = None, limit: int = -1
) -> Iterator[tuple[str | None, Sum]]:
    """Yield the sums over the payments for which ``where`` holds, for each value of the column ``by``; the highest total first."""
    key, group = ("NULL", "") if by is None else (by, f"GROUP BY {by} ORDER BY TOTAL(amount_msat + fee_msat) DESC, {by}")
    sql = f"SELECT {key}, COUNT(*), {_sum_of('amount_msat')}, {_sum_of('fee_msat')} FROM payments WHERE {where} {group} LIMIT ?"  # noqa: S608
    for name, payments, *halves in account.query(sql, (*values, limit)):
        yield name, Sum(payments=payments, amount_msat=_exact(*halves[:2]), fee_msat=_exact(*halves[2:]))


def _by_agent(account: Account, where: str, values: Sequence[object]) -> tuple[tuple[tuple[str | None, Sum], ...], int]:
    """Return the sums of agents, and how many there are, payments of none among them; nothing if no payment is an agent's."""
    sql = f"SELECT COUNT(DISTINCT agent), COUNT(*) > COUNT(agent) FROM payments WHERE {where}"  # noqa: S608
    ((named, others),) = account.query(sql, values)
    return (tuple(_sums(account, where, values, by="agent", limit=ORIGINS_SHOWN)), named + others) if named else ((), 0)


def _rest(whole: Sum, parts: Iterable[Sum]) -> Sum:
    known = sum(parts, Sum())
    return Sum(
        payments=whole.payments - known.payments,
        amount_msat=whole.amount_msat - known.amount_msat,
        fee_msat=whole.fee_msat - known.fee_msat,
    )


def _unit(first_ms: int | None, last_ms: int | None) -> str:
    """Return the length of the periods into which this span is divided."""
    days = 0.0 if first_ms is None or last_ms is None else (last_ms - first_ms) / (24 * _HOUR_MS)
    return next((unit for unit, most_days in _UNITS if days <= most_days), "century")


def _begin(at: datetime, unit: str) -> datetime:
    """Return when the period begins in which ``at`` lies. Weeks begin on Monday."""
    if unit == "hour":
        return at.replace(minute=0, second=0, microsecond=0)
    day = at.replace(hour=0, minute=0, second=0, microsecond=0)
    if unit == "week":
        return day - timedelta(days=day.weekday())
    if unit == "month":
        return day.replace(day=1)
    if unit == "year":
        return day.replace(month=1, day=1)
    if unit == "century":
        return day.replace(year=max(1, day.year // 100 * 100), month=1, day=1)
    return day


def _next(begin: datetime, unit: str) -> datetime:
    """Return when the period after the one that begins at ``begin`` begins."""
    if unit in ("year", "century"):
        years = 1 if unit == "year" else 100 - begin.year % 100
        return begin.replace(year=begin.year + years)
    if unit == "month":
        return (begin + timedelta(days=31)).replace(day=1)
    return begin + {"hour": timedelta(hours=1), "day": timedelta(days=1), "week": timedelta(weeks=1)}[unit]


def _periods(account: Account, where: str, values: Sequence[object], unit: str) -> Iterator[tuple[datetime, Sum]]:
    """Yield each period from the first payment to the last, with its sum. Periods without payments aren't left out."""
    sql = (
        f"SELECT MIN(at_ms), COUNT(*), {_sum_of('amount_msat')}, {_sum_of('fee_msat')} FROM payments WHERE {where} "  # noqa: S608
        f"GROUP BY at_ms / {_HOUR_MS} ORDER BY 1"
    )
    begin: datetime | None = None
    total = Sum()
    for ms, payments, *halves in account.query(sql, values):
        of_hour = Sum(payments=payments, amount_msat=_exact(*halves[:2]), fee_msat=_exact(*halves[2:]))
        this = _begin(moment(ms), unit)
        if begin is None:
            begin = this
        while begin < this:
            yield begin, total
            begin, total = _next(begin, unit), Sum()
        total += of_hour
    if begin is not None:
        yield begin, total


def _by_price(account: Account, where: str, values: Sequence[object]) -> tuple[Sum, ...]:
    """Return the sums for each bracket of prices."""
    bracket = " ".join(f"WHEN amount_msat < {bound} THEN {at}" for at, bound in enumerate(PRICE_BOUNDS_MSAT))
    sql = (
        f"SELECT CASE {bracket} ELSE {len(PRICE_BOUNDS_MSAT)} END AS bracket, COUNT(*), "  # noqa: S608
        f"{_sum_of('amount_msat')}, {_sum_of('fee_msat')} FROM payments WHERE {where} GROUP BY bracket"
    )
    found = [Sum()] * (len(PRICE_BOUNDS_MSAT) + 1)
    for at, payments, *halves in account.query(sql, values):
        found[at] = Sum(payments=payments, amount_msat=_exact(*halves[:2]), fee_msat=_exact(*halves[2:]))
    return tuple(found)


def _booked(account: Account, where: str, values: Sequence[object]) -> Iterator[Booked]:
    sql = (
        f"SELECT currency, COUNT(*), {_sum_of('booked_micro')} FROM payments "  # noqa: S608
        f"WHERE {where} AND booked_micro IS NOT NULL AND currency IS NOT NULL GROUP BY currency ORDER BY currency LIMIT ?"
    )
    for currency, payments, high, low in account.query(sql, (*values, ORIGINS_SHOWN)):
        yield Booked(currency=currency, payments=payments, micro=_exact(high, low))


def _settlements(account: Account, where: str, values: Sequence[object]) -> array[int]:
    from array import array

    rows = account.query(f"SELECT latency_ms FROM payments WHERE {where} AND latency_ms IS NOT NULL", values)  # noqa: S608
    return array("I", (ms for (ms,) in rows))


def _latency(times_ms: array[int]) -> Latency | None:
    from bisect import bisect_left

    if not times_ms:
        return None
    ordered = sorted(times_ms)
    count = len(ordered)
    ends = [bisect_left(ordered, bound) for bound in LATENCY_BOUNDS_MS] + [count]
    return Latency(
        count=count,
        median_ms=ordered[(count - 1) // 2],
        p95_ms=ordered[(count * 95 + 99) // 100 - 1],
        longest_ms=ordered[-1],
        brackets=tuple(end - begin for begin, end in zip([0, *ends], ends, strict=False)),
    )
