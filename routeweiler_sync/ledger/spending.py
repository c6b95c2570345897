"""What was spent, as a value (`Spending`), and the query that sums it up in the ledger.

A payment is spent once it is settled: the wallet has said that it was paid, and the ledger has booked it. What a session's own
calls have spent is counted in `payments.tally`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone
from typing import Any

from .._core.display import counted, line, table
from .._core.money import sats
from .._core.secret_text import shown
from .._core.urls import origin_of
from ..errors import LedgerError
from .store import Transaction

Rows = Sequence[Mapping[str, Any]]
#: How a user names a time: see `Ledger.spending`.
Moment = datetime | date | timedelta

#: The ids of an envelope and of all that lie in it. Its parameter is the envelope's id.
WITHIN = (
    "(WITH RECURSIVE within (id) AS (SELECT id FROM envelopes WHERE id = ? UNION SELECT envelopes.id FROM envelopes "
    "JOIN within ON within.id = envelopes.parent_id) SELECT id FROM within)"
)
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MS = timedelta(milliseconds=1)
#: A time without a zone in a year before or after these is taken for UTC: a system may not know its local time, and nothing is paid
#: then.
_FIRST_LOCAL_YEAR, _LAST_LOCAL_YEAR = 1971, 2999


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """The time from ``since_ms`` on and before ``until_ms``, in milliseconds since 1970; None for no bound."""

    since_ms: int | None = None
    until_ms: int | None = None

    @property
    def conditions(self) -> list[str]:
        """The SQL for payments that were settled within it. Its parameters are `values`."""
        bounds = ((self.since_ms, "settled_at_ms >= ?"), (self.until_ms, "settled_at_ms < ?"))
        return [text for bound, text in bounds if bound is not None]

    @property
    def values(self) -> list[object]:
        """The parameters of `conditions`."""
        return [bound for bound in (self.since_ms, self.until_ms) if bound is not None]


@dataclass(frozen=True, kw_only=True, repr=False)
class Spending:
    """What was spent: the settled payments, routing fees included. Amounts are in msat.

    ``total_msat`` contains ``fees_msat``. ``payments`` is how many payments were settled. ``calls`` is how many calls used a token,
    one that they paid for or an earlier one; free calls aren't counted. It is None where the ledger was asked, which doesn't count
    calls. ``by_origin`` has the same for each origin (``scheme://host[:port]``), the one with the highest total first.
    """

    total_msat: int = 0
    fees_msat: int = 0
    payments: int = 0
    calls: int | None = None
    by_origin: Mapping[str, Spending] = field(default_factory=dict)

    @classmethod
    def of_origins(cls, origins: Mapping[str, Spending]) -> Spending:
        """Return the sum of ``origins``, in which each origin has its own."""
        each = origins.values()
        calls = [one.calls for one in each if one.calls is not None]
        return cls(
            total_msat=sum(one.total_msat for one in each),
            fees_msat=sum(one.fees_msat for one in each),
            payments=sum(one.payments for one in each),
            calls=sum(calls) if len(calls) == len(origins) and calls else None,
            by_origin=dict(sorted(origins.items(), key=lambda item: (-item[1].total_msat, item[0]))),
        )

    def __repr__(self) -> str:
        calls = "" if self.calls is None else f", {counted(self.calls, 'call')}"
        origins = f", {counted(len(self.by_origin), 'origin')}" if self.by_origin else ""
        payments = f"{counted(self.payments, 'payment')}, fees {sats(self.fees_msat)}"
        return f"<Spending: {sats(self.total_msat)} in {payments}{calls}{origins}>"

    def _repr_html_(self) -> str:
        has_calls = self.calls is not None
        rows = [one._cells(line(origin), has_calls) for origin, one in self.by_origin.items()]
        header = ("server", "spent", "fees", "payments", *(["calls"] if has_calls else []))
        return table("Spending, routing fees included", [self._cells("all", has_calls), *rows], header=header)

    def _cells(self, name: str, has_calls: bool) -> list[object]:
        calls = [self.calls] if has_calls else []
        return [name, sats(self.total_msat), sats(self.fees_msat), self.payments, *calls]


def read_by_agent(tx: Transaction, span: Span, envelope_id: str | None) -> dict[str | None, Spending]:
    """Sum up the settled payments by agent, as `Ledger.spending_by_agent` describes it. The database does the sums.

    The index that holds all columns which are read here is that of `read`.
    """
    where, values = ["settled_at_ms IS NOT NULL"], list[object]()
    if envelope_id is not None:
        where, values = [*where, f"envelope_id IN {WITHIN}"], [*values, envelope_id]
    where, values = [*where, *span.conditions], [*values, *span.values]
    rows = tx.execute(
        "SELECT agent_id, COUNT(*) AS payments, "  # noqa: S608  (constants)
        "CAST(SUM(amount_msat) AS BIGINT) AS amount_msat, CAST(SUM(fee_msat) AS BIGINT) AS fees_msat "
        f"FROM payments WHERE {' AND '.join(where)} GROUP BY agent_id",
        values,
    )
    moved = tx.execute(
        "SELECT agent_id, CAST(SUM(paid) AS BIGINT) AS payments, CAST(SUM(amount_msat) AS BIGINT) AS amount_msat, "  # noqa: S608
        "CAST(SUM(fee_msat) AS BIGINT) AS fees_msat, MAX(last_settled_at_ms) AS last_ms FROM archived_agents "
        f"WHERE paid > 0{'' if envelope_id is None else f' AND envelope_id IN {WITHIN}'} GROUP BY agent_id",
        () if envelope_id is None else (envelope_id,),
    )
    sums = _summed(rows, _countable(moved, span), "agent_id")
    return dict(sorted(sums.items(), key=lambda item: (-item[1].total_msat, item[0] or "")))


def read(tx: Transaction, span: Span, origin: str | None) -> Spending:
    """Sum up the settled payments in the transaction ``tx``, as `Ledger.spending` describes it. The database does the sums.

    The condition ``settled_at_ms IS NOT NULL`` is that of the index which holds all columns that are read here.
    """
    where, values = ["settled_at_ms IS NOT NULL"], list[object]()
    if origin is not None:
        where, values = [*where, "origin = ?"], [*values, origin]
    where, values = [*where, *span.conditions], [*values, *span.values]
    rows = tx.execute(
        "SELECT origin, COUNT(*) AS payments, "  # noqa: S608  (constants)
        "CAST(SUM(amount_msat) AS BIGINT) AS amount_msat, CAST(SUM(fee_msat) AS BIGINT) AS fees_msat "
        f"FROM payments WHERE {' AND '.join(where)} GROUP BY origin",
        values,
    )
    moved = tx.execute(
        "SELECT origin, CAST(SUM(paid) AS BIGINT) AS payments, CAST(SUM(amount_msat) AS BIGINT) AS amount_msat, "  # noqa: S608  (constants)
        "CAST(SUM(fee_msat) AS BIGINT) AS fees_msat, MAX(last_settled_at_ms) AS last_ms "
        f"FROM archived_sums WHERE paid > 0{'' if origin is None else ' AND origin = ?'} GROUP BY origin",
        () if origin is None else (origin,),
    )
    sums = _summed(rows, _countable(moved, span), "origin")
    return Spending.of_origins({name or "": each for name, each in sums.items()})


def _summed(rows: Rows, moved: Rows, by: str) -> dict[str | None, Spending]:
    """Return the sums of payments in the ledger and of those that were moved, by the column ``by``, whose '' is None."""
    sums: dict[str | None, list[int]] = {}
    for row in (*rows, *moved):
        total = sums.setdefault(row[by] or None, [0, 0, 0])
        for n, name in enumerate(("amount_msat", "fees_msat", "payments")):
            total[n] += int(row[name])
    return {
        each: Spending(total_msat=amount_msat + fees_msat, fees_msat=fees_msat, payments=payments)
        for each, (amount_msat, fees_msat, payments) in sums.items()
    }


def _countable(rows: Rows, span: Span) -> Rows:
    """Return the sums of payments that were moved to an archive: all, or none if they are older than ``span``.

    Raises: LedgerError if some may be within ``span``, and some not.
    """
    last_ms = max((int(row["last_ms"]) for row in rows), default=-1)
    if not rows or (span.since_ms is not None and last_ms < span.since_ms):
        return []
    if span.since_ms is None and (span.until_ms is None or last_ms < span.until_ms):
        return rows
    raise LedgerError(
        f"Payments of up to {(_EPOCH + last_ms * _MS):%Y-%m-%d %H:%M} UTC were moved to an archive, and the ledger has their "
        "sums only in all: what was spent since or until an earlier time can't be told from it alone.",
        advice="Ask with later times, or without any; or read the archive too: routeweiler-sync report --archive FILE.",
    )


def span_of(since: Moment | None, until: Moment | None, now_ms: int) -> Span:
    """Return the time from ``since`` on, and before ``until``. See `Ledger.spending`.

    Raises: ValueError if one of them is no time, or ``until`` is before ``since``.
    """
    span = Span(since_ms=ms_of(since, now_ms), until_ms=ms_of(until, now_ms, "until"))
    if span.since_ms is not None and span.until_ms is not None and span.until_ms < span.since_ms:
        raise ValueError(f"until must not be before since: {shown(until)} is before {shown(since)}")
    return span


def ms_of(given: Moment | None, now_ms: int, name: str = "since") -> int | None:
    """Return ``given``, the argument ``name``, in milliseconds since 1970, the form of every time in the ledger.

    Raises: ValueError if it is no time, or a negative time span. See `Ledger.spending`.
    """
    if given is None:
        return None
    if isinstance(given, timedelta):
        if given < timedelta():
            raise ValueError(f"{name} must be a time in the past or how long ago that was, not the negative {given}")
        return now_ms - given // _MS
    if isinstance(given, date) and not isinstance(given, datetime):
        given = datetime(given.year, given.month, given.day)  # noqa: DTZ001  (the local midnight is meant)
    if not isinstance(given, datetime):
        raise ValueError(f"{name} must be a datetime, a date or a timedelta, not {shown(given)}")
    if given.tzinfo is None or given.utcoffset() is None:
        is_far = not _FIRST_LOCAL_YEAR <= given.year <= _LAST_LOCAL_YEAR
        given = given.replace(tzinfo=timezone.utc) if is_far else given.replace(tzinfo=None).astimezone()
    return (given - _EPOCH) // _MS


def origin_in(given: str | None) -> str | None:
    """Return the origin of ``given``, which may be any URL of it; None for None.

    Raises: ValueError if it isn't the URL of a server.
    """
    if given is None:
        return None
    try:
        return origin_of(given)
    except (ValueError, AttributeError, TypeError):
        raise ValueError(f"origin must be scheme://host[:port], not {shown(given)}") from None
