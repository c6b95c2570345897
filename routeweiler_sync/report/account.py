"""The payments and calls of all ledgers and traces as one account, in which each payment stands once.

A payment that several ledgers and traces have is merged by its payment hash: what says that it was paid counts more than what
doesn't, and a ledger more than a trace. Only its description and its latency come from a trace in any case. Sums over the account
are left to `figures`.

Payments are kept in an unnamed SQLite database: it has no file until it outgrows its cache, and then one that the system deletes
with the process. So a report over a million payments takes little memory, and leaves nothing behind. What most payments have in
common (`Series`) is stored once: rows are short, so that a million of them fit into the cache and are sorted quickly. They stand in
the order in which they were read, which is nearly that of their times.
"""

from __future__ import annotations

import json
import sqlite3
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from decimal import Decimal, localcontext
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from .._core.money import EXACT, MICRO
from .._core.urls import origin_at, path_of
from ..ledger.statement import StatementLine
from ..ledger.types import PaymentState
from ..trace.reader import event_texts
from .texts import clean

#: No amount of msat is as high as this: there are 2.1e18.
AMOUNT_MAX = 2**62
#: So many different error codes are told apart; the rest counts as `OTHER`.
CODES_MAX = 100
OTHER = "other"
#: How sure an account is of a payment: the higher one's amounts count.
OPEN, DEAD, TRACED, BOOKED = 1, 2, 3, 4
#: From this rank on a payment was made.
PAID = TRACED
#: A latency above this is taken for this one, in ms: 49 days.
_LATENCY_MS_MAX = 2**32 - 1
#: The memory for the database, in KiB. What doesn't fit goes to a temporary file.
_CACHE_KIB = 131_072
#: How many payments are written at a time.
_BATCH = 1_000
#: So many series are remembered; then all are dropped, and those that come again are stored again.
_SERIES_MAX = 4_096


class Series(NamedTuple):
    """What many payments have in common."""

    origin: str | None
    node: str | None
    network: str | None
    envelope_id: str | None
    currency: str | None
    rate_quality: str | None
    agent: str | None


class Entry(NamedTuple):
    """One payment of the account. Times are in ms since 1970, amounts in msat, ``booked_micro`` in millionths of a minor unit.

    ``at_ms`` is when it was paid, or, if it wasn't, when it was begun. ``fee_msat`` of an unfinished one is the highest fee that
    the node may charge. ``btc_price`` is the price of a bitcoin in ``currency`` at which it was booked, as the ledger has it.
    """

    hash: bytes
    rank: int
    at_ms: int
    series: Series
    path: str | None
    amount_msat: int
    fee_msat: int
    booked_micro: int | None
    btc_price: str | None
    failure_code: str | None
    description: str | None
    latency_ms: int | None

    @property
    def origin(self) -> str | None:
        """Where it bought something."""
        return self.series.origin

    @property
    def currency(self) -> str | None:
        """The currency of ``booked_micro``."""
        return self.series.currency

    @property
    def total_msat(self) -> int:
        """What it cost, fee included."""
        return self.amount_msat + self.fee_msat


#: Fields that only a trace knows. They are kept whatever else is merged.
_OF_TRACE = ("description", "latency_ms")
COLUMNS = ", ".join(Entry._fields)
_CREATE = (
    f"CREATE TABLE entries ({COLUMNS}, UNIQUE (hash))",
    f"CREATE TABLE series (id INTEGER PRIMARY KEY, {', '.join(Series._fields)})",
    "CREATE VIEW payments AS SELECT * FROM entries LEFT JOIN series ON series.id = entries.series",
)
_MERGE = ", ".join(
    f"{name} = COALESCE({name}, excluded.{name})"
    if name in _OF_TRACE
    else f"{name} = CASE WHEN excluded.rank > rank THEN excluded.{name} ELSE {name} END"
    for name in Entry._fields[1:]
)
_INSERT = (
    f"INSERT INTO entries ({COLUMNS}) VALUES ({', '.join('?' * len(Entry._fields))}) ON CONFLICT (hash) DO UPDATE SET {_MERGE}"  # noqa: S608
)
_INSERT_SERIES = f"INSERT INTO series VALUES (NULL{', ?' * len(Series._fields)})"  # noqa: S608
_SELECT_SERIES = "SELECT * FROM series WHERE id = ?"
_RANKS = {
    PaymentState.OPEN.value: OPEN,
    PaymentState.FAILED.value: OPEN,
    PaymentState.DEAD.value: DEAD,
    PaymentState.SETTLED.value: BOOKED,
    PaymentState.RETIRED.value: BOOKED,
}


#: What became of a call. Every call is one of the first five; a line of a recovery isn't a call.
NEWLY_PAID, REUSED, FREE, FAILED, UNPAID, RECOVERED = "paid", "reused", "free", "failed", "unpaid", "recovered"
#: Of those that paid, also of failed ones: the answer wasn't the page.
UNDELIVERED = "undelivered"


@dataclass(slots=True)
class Failure:
    """The calls that ended with one error code: how many, and the time (ms since 1970) and message of the last one.

    ``keep`` is the hash of a payment that the message may name.
    """

    code: str
    calls: int = 0
    last_ms: int = 0
    last: str = field(default="", repr=False)
    keep: str = ""

    @property
    def message(self) -> str:
        """The message of the last one, made safe."""
        return clean(self.last, keep=(self.keep,))


@dataclass
class Calls:
    """What traces say of calls. ``counts`` has how many of each kind; ``service_ms`` the time that each took until its answer."""

    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys((NEWLY_PAID, REUSED, FREE, FAILED, UNPAID, RECOVERED, UNDELIVERED), 0)
    )
    service_ms: array[int] = field(default_factory=lambda: array("I"))
    failures: dict[str, Failure] = field(default_factory=dict)

    @property
    def all(self) -> int:
        """How many calls there were."""
        return sum(self.counts[kind] for kind in (NEWLY_PAID, REUSED, FREE, FAILED, UNPAID))


class Account:
    """Payments and calls of any number of ledgers and traces. A context manager.

    ``since_ms`` and ``until_ms``: calls that ended before the one, or not before the other, aren't counted. Payments are all kept,
    because another source may date one differently: `within` leaves out those of other times.
    """

    def __init__(self, since_ms: int | None = None, until_ms: int | None = None) -> None:
        self.since_ms, self.until_ms = since_ms, until_ms
        self.calls = Calls()
        self.events = self.unreadable = 0
        #: Hashes of what identifies a call's event, so that one in two traces counts once. The odds that any two of a million
        #: calls have the same by chance are 1 to 10^7. No payment depends on it.
        self._seen: set[int] = set()
        self._rows: list[tuple[Any, ...]] = []
        #: The ids of series, and the other way round.
        self._ids: dict[tuple[str | None, ...], int] = {}
        self._series = lru_cache(_SERIES_MAX)(self._read_series)
        self._database = sqlite3.connect("", isolation_level=None)
        for pragma in ("journal_mode = OFF", "synchronous = OFF", f"cache_size = -{_CACHE_KIB}", "locking_mode = EXCLUSIVE"):
            self._database.execute(f"PRAGMA {pragma}")
        for statement in _CREATE:
            self._database.execute(statement)
        self._database.execute("BEGIN")

    def __enter__(self) -> Account:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def within(self, where: str) -> tuple[str, list[object]]:
        """Return the SQL ``where``, for payments of the account's time alone, and its parameters."""
        bounds = ((self.since_ms, "at_ms >= ?"), (self.until_ms, "at_ms < ?"))
        return (
            " AND ".join((where, *(text for bound, text in bounds if bound is not None))),
            [bound for bound, _ in bounds if bound is not None],
        )

    def query(self, sql: str, parameters: Sequence[object] = ()) -> Iterator[tuple[Any, ...]]:
        """Run a SELECT over the view ``payments``, whose columns are the fields of `Entry` and `Series`."""
        self._write()
        return self._database.execute(sql, parameters)

    def entries(
        self, where: str, parameters: Sequence[object] = (), *, order: str = "at_ms, hash", limit: int = -1
    ) -> Iterator[Entry]:
        """Yield the payments for which the SQL ``where`` holds. It knows the fields of `Entry` alone."""
        sql = f"SELECT {COLUMNS} FROM entries WHERE {where} ORDER BY {order} LIMIT ?"  # noqa: S608  (texts of this package)
        make, series = Entry._make, self._series
        for row in self.query(sql, (*parameters, limit)):
            yield make((*row[:3], series(row[3]), *row[4:]))

    def add_ledger(self, lines: Iterable[StatementLine]) -> None:
        """Add the payments of a ledger.

        Raises: LedgerError if it can't be read.
        """
        for line in lines:
            rank = _RANKS[line.state]
            paid = rank == BOOKED
            at_ms = line.settled_at_ms if paid else None
            self._add(
                (
                    bytes.fromhex(line.payment_hash),
                    rank,
                    line.created_at_ms if at_ms is None else at_ms,
                    self._id_of(
                        (
                            line.origin,
                            line.node_pubkey,
                            line.network,
                            line.envelope_id,
                            line.currency,
                            line.rate_quality,
                            line.agent_id,
                        )
                    ),
                    line.path,
                    line.amount_msat,
                    line.fee_msat if paid else line.max_fee_msat if rank == OPEN else 0,
                    line.settled_micro if paid and line.envelope_id is not None else None,
                    line.btc_price,
                    line.failure_code,
                    None,
                    None,
                )
            )

    def add_trace(self, path: Path) -> None:
        """Add the calls and payments of a trace, JSON lines or SQLite.

        Raises: TraceUnreadableError if it can't be read.
        """
        decoder = json.JSONDecoder(parse_float=str)
        with localcontext(EXACT):
            for text in event_texts(path):
                try:
                    text = text if isinstance(text, str) else str(text, "utf-8")
                    # `decode` would search for blanks around the text, which costs a tenth of reading the event.
                    event, end = decoder.raw_decode(text) if text.startswith("{") else (None, -1)
                    self._add_event(event if end == len(text) else decoder.decode(text))
                except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError):
                    self.unreadable += 1

    def _add_event(self, event: Any) -> None:
        """Add what one event reports. Nothing is added if it isn't an event.

        Raises: ValueError and the like if it isn't.
        """
        ended_ms, payment = _ms(event["timestampEnd"]), event["payment"]
        reported = payment is not None and not payment["reused"]
        row = self._row(event, payment, ended_ms) if reported else None
        parent = event.get("parentRequestId")
        key = hash((event["requestId"], parent, None if payment is None else payment["paymentHash"]))
        call = _call(event)
        if row is not None:
            self._add(row)
        if key not in self._seen:
            self._seen.add(key)
            self.events += 1
            is_in_time = (self.since_ms is None or ended_ms >= self.since_ms) and (
                self.until_ms is None or ended_ms < self.until_ms
            )
            if parent is None and is_in_time:
                self._count(call, event, ended_ms)

    def _row(self, event: Any, payment: Any, ended_ms: int) -> tuple[object, ...]:
        """Return the payment that an event reports, as `_add` takes it.

        Raises: ValueError and the like if it isn't one.
        """
        challenge = event["challenge"]
        hash_, booked, latency_ms = bytes.fromhex(payment["paymentHash"]), payment["amountEnvelope"], payment["settlementLatencyMs"]
        booked_micro = currency = None
        if booked is not None:
            booked_micro, currency = int(Decimal(booked) * MICRO), _text(payment["amountEnvelopeCurrency"])
            if not 0 <= booked_micro < AMOUNT_MAX:
                raise ValueError("no amount")
        if len(hash_) != 32:
            raise ValueError("no payment hash")
        url, network, description = event["url"], None, None
        if challenge is not None:
            url = challenge["url"] or url
            network, description = _text(challenge["network"]), _text(challenge["description"])
        origin, path = _place(url)
        node, envelope_id, quality = _text(event["fundingSource"]), _text(event["envelopeId"]), _text(payment["fmvQuality"])
        return (
            hash_,
            TRACED,
            ended_ms,
            self._id_of((origin, node, network, envelope_id, currency, quality, _text(event.get("agentId")))),
            path,
            _whole(payment["amountMsat"]),
            _whole(payment["feeMsat"]),
            booked_micro,
            None,
            None,
            description,
            None if latency_ms is None else min(_whole(latency_ms), _LATENCY_MS_MAX),
        )

    def _count(self, call: tuple[str, bool, int | None], event: Any, ended_ms: int) -> None:
        kind, undelivered, service_ms = call
        counts = self.calls.counts
        counts[kind] += 1
        if kind == RECOVERED:
            return
        counts[UNDELIVERED] += undelivered
        if service_ms is not None:
            self.calls.service_ms.append(service_ms)
        if kind == FAILED:
            self._fail(event, ended_ms)

    def _fail(self, event: Any, ended_ms: int) -> None:
        failures, error, challenge = self.calls.failures, event["outcome"]["error"], event["challenge"]
        code = clean(str(error["code"]))
        failure = failures.get(code)
        if failure is None:
            if len(failures) >= CODES_MAX:
                code = OTHER
            failure = failures.setdefault(code, Failure(code))
        failure.calls += 1
        if ended_ms >= failure.last_ms:
            failure.last_ms = ended_ms
            failure.last, failure.keep = str(error["message"] or ""), "" if challenge is None else str(challenge["paymentHash"])

    def _add(self, row: tuple[object, ...]) -> None:
        """Add a payment: the fields of `Entry`, with the id of its series."""
        self._rows.append(row)
        if len(self._rows) >= _BATCH:
            self._write()

    def _id_of(self, series: tuple[str | None, ...]) -> int:
        """Return the id of a series with the fields of `Series`. The same one may have several."""
        series_id = self._ids.get(series)
        if series_id is None:
            if len(self._ids) >= _SERIES_MAX:
                self._ids.clear()
            series_id = self._ids[series] = self._database.execute(_INSERT_SERIES, series).lastrowid or 0
        return series_id

    def _read_series(self, series_id: int) -> Series:
        return Series._make(self._database.execute(_SELECT_SERIES, (series_id,)).fetchone()[1:])

    def _write(self) -> None:
        if self._rows:
            self._database.executemany(_INSERT, self._rows)
            self._rows.clear()


def _call(event: Any) -> tuple[str, bool, int | None]:
    """Return of the call that an event is about: its kind, whether it paid and got no page, and the time until its answer (ms).

    Raises: ValueError and the like if it isn't a call's.
    """
    payment, outcome, challenge = event["payment"], event["outcome"], event["challenge"]
    error, service_ms, delivered = outcome["error"], outcome["serviceLatencyMs"], outcome["serviceDelivered"]
    if service_ms is not None:
        service_ms = min(_whole(service_ms), _LATENCY_MS_MAX)
    if event["method"] == "RECOVER":
        return RECOVERED, False, None
    paid = payment is not None and not payment["reused"]
    if error is not None:
        _ = error["code"], error["message"], challenge is None or challenge["paymentHash"]  # all must be there
        return FAILED, paid and not delivered, service_ms
    if payment is not None:
        return (NEWLY_PAID if paid else REUSED), paid and not delivered, service_ms
    if challenge is not None or outcome["httpStatus"] == 402:
        return UNPAID, False, service_ms
    return FREE, False, service_ms


def _ms(timestamp: str) -> int:
    """Return an event's time in ms since 1970.

    Raises: ValueError for another text, or a time without its zone.
    """
    moment = datetime.fromisoformat(timestamp.replace("Z", "+00:00"))
    if moment.tzinfo is None:
        raise ValueError("no zone")
    return (moment - _EPOCH) // _MS


_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MS = timedelta(milliseconds=1)


def _whole(number: object) -> int:
    if type(number) is not int or not 0 <= number < AMOUNT_MAX:
        raise ValueError("no amount or time")
    return number


def _text(value: object) -> str | None:
    """Return a text that SQLite can store: one from JSON may hold half a character (a lone surrogate)."""
    if value is None or (type(value) is str and value.isascii()):
        return value
    return str(value).encode("utf-8", "backslashreplace").decode()


def _place(url: object) -> tuple[str | None, str | None]:
    """Return the origin and the path of an event's URL; None for what can't be read: the payment counts all the same."""
    if url is None:
        return None, None
    try:
        return _text(origin_at(str(url))), path_of(str(url))
    except ValueError:
        return None, None
