"""Count what one purchase of a session asks of its ledger: transactions, statements, commits that wait for the disk, bytes, locks.

    python -m benchmarks.purchase_counts [--backend sqlite|postgresql] [--purchases N]

A session buys pages from a fake node over real sockets, each page for the first time. The statements are those that the driver
gets, the bytes and commits of PostgreSQL those that the server counts itself (without the full pages that it logs after each
checkpoint). How long a purchase locks its envelope is the time from the statement that locks it to the end of the commit, all
transactions of the purchase together. `docs/how-to/large-ledgers.md` rests on these figures, and
`tests/component/ledger/test_counts.py` holds the counts.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

from benchmarks import measure
from benchmarks.measure import Figure, single
from routeweiler_sync import BudgetEnvelope, Routeweiler
from routeweiler_sync.ledger import sqlite as sqlite_module
from routeweiler_sync.ledger.postgres import store as postgres_store
from routeweiler_sync.testing import FakeLnd, Paywall

WARM_UP = 3
SIZES = {"full": 200, "short": 50, "tiny": 4}
LIMITS = BudgetEnvelope(
    "fleet", cap_minor_units=10**9, per_call_minor_units=1_000, per_hour_minor_units=10**8, per_day_minor_units=10**8
)
#: A statement that locks an envelope's row.
LOCKS_ENVELOPE = re.compile(r"(UPDATE|INSERT INTO) envelopes\b|SELECT .* FROM envelopes\b.* FOR UPDATE", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What one purchase needs of the ledger. ``round_trips`` and ``server_commits`` are 0 for SQLite, ``statements`` without BEGIN,
    COMMIT and settings. ``locked_trips`` are messages while it locks its envelope, commits included. ``bytes`` go to the log
    (write-ahead log). ``locked_s`` has the seconds of each purchase.
    """

    reads: float
    writes: float
    durable_writes: float
    statements: float
    locked_trips: float
    round_trips: float = 0
    server_commits: float = 0
    bytes: float
    locked_s: Sequence[float]


class Seen:
    """The statements of all connections since the last `clear`, and how long envelopes were locked.

    ``lone_reads`` were sent without a transaction around them.
    """

    def __init__(self) -> None:
        self.statements: list[str] = []
        self.trips = self.locked_trips = self.lone_reads = 0
        self.locked_s = 0.0
        self._locks: dict[int, float] = {}

    def clear(self) -> None:
        self.statements.clear()
        self.trips = self.locked_trips = self.lone_reads = 0
        self.locked_s = 0.0

    def sent(self, connection: object, text: str) -> None:
        """Take note of a message: a statement, or several with a semicolon between them."""
        self.trips += 1
        self.locked_trips += id(connection) in self._locks
        self.statements += statements_in(text)

    def answered(self, connection: object, text: str) -> None:
        """Take note of what a message, which was answered just now, has locked or released."""
        for statement in statements_in(text):
            if statement == "BEGIN IMMEDIATE" or LOCKS_ENVELOPE.match(statement):
                self._locks.setdefault(id(connection), time.perf_counter())
            elif statement in ("COMMIT", "ROLLBACK") and id(connection) in self._locks:
                self.locked_s += time.perf_counter() - self._locks.pop(id(connection))


def statements_in(text: str) -> list[str]:
    """Return the statements of a message."""
    return [each.strip() for each in text.split(";") if each.strip()]


@contextlib.contextmanager
def watched_sqlite(seen: Seen) -> Iterator[None]:
    """Let ``seen`` see every statement of SQLite connections that are opened in the block."""
    connect = sqlite_module.connect_sqlite

    class Watched:
        """A connection that tells what it executes. One that SQLite itself gives can't be changed."""

        def __init__(self, connection: sqlite3.Connection) -> None:
            self.__dict__["it"] = connection

        def __getattr__(self, name: str) -> Any:
            return getattr(self.it, name)

        def __setattr__(self, name: str, value: object) -> None:
            setattr(self.it, name, value)

        def execute(self, sql: str, *rest: Any) -> Any:
            seen.sent(self, sql)
            done = self.it.execute(sql, *rest)
            seen.answered(self, sql)
            return done

    with mock.patch.object(sqlite_module, "connect_sqlite", lambda *args, **kwargs: Watched(connect(*args, **kwargs))):
        yield


@contextlib.contextmanager
def watched_postgresql(seen: Seen) -> Iterator[None]:
    """Let ``seen`` see every statement of PostgreSQL connections."""
    driver = postgres_store.driver()
    execute = driver.Connection.execute

    def watched(self: Any, query: Any, *rest: Any, **named: Any) -> Any:
        text = query.decode() if isinstance(query, bytes) else str(query)
        is_alone = self.info.transaction_status == driver.pq.TransactionStatus.IDLE and text.startswith("SELECT")
        seen.lone_reads += is_alone
        seen.sent(self, text)
        done = execute(self, query, *rest, **named)
        seen.answered(self, text)
        return done

    with mock.patch.object(driver.Connection, "execute", watched):
        yield


@contextlib.contextmanager
def places(backend: str) -> Iterator[tuple[str, Callable[[], tuple[int, int]]]]:
    """Yield the URL of a ledger that isn't there yet, and a function: (bytes of its log, commits that the server counts) so far."""
    with contextlib.ExitStack() as stack:
        if backend == "sqlite":
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="counts-")))
            yield str(folder / "ledger.db"), lambda: ((folder / "ledger.db-wal").stat().st_size, 0)
            return
        from tests.postgres.server import Server

        server = stack.enter_context(Server.make(fsync="on", synchronous_commit="on", autovacuum="off", full_page_writes="off"))
        database = server.new_database()

        def used() -> tuple[int, int]:
            time.sleep(1.2)  # a session tells the server's statistics at most once a second
            (row,) = server.admin(
                "SELECT pg_current_wal_insert_lsn() - '0/0', xact_commit FROM pg_stat_database WHERE datname = current_database()",
                database,
            )
            return int(row[0]), int(row[1])

        yield server.url(database), used


def is_setting(statement: str) -> bool:
    """Return whether a statement only begins, ends or tunes a transaction."""
    return statement.startswith(("BEGIN", "COMMIT", "ROLLBACK", "PRAGMA", "SET "))


def count(backend: str, purchases: int) -> Counts:
    """Return what one purchase needs, as the mean of ``purchases``."""
    seen = Seen()
    watched = watched_sqlite if backend == "sqlite" else watched_postgresql
    with (
        FakeLnd() as lnd,
        Paywall(lnd, dynamic=True) as wall,
        places(backend) as (url, used),
        watched(seen),
        contextlib.closing(lnd.client()) as client,
        Routeweiler(funding=[lnd.funding(client=client)], ledger=url, budget_envelope=LIMITS) as session,
    ):

        def buy(n: int) -> None:
            answer = session.get(wall.url_for(f"/page/{n}"), timeout=60)
            assert answer.status_code == 200
            assert not answer.payment.reused  # type: ignore[union-attr]

        for n in range(WARM_UP):
            buy(n)
        bytes_before, commits_before = used()
        statements: list[str] = []
        locked_s, trips, locked_trips, lone_reads = [], 0, 0, 0
        for n in range(purchases):
            seen.clear()
            buy(WARM_UP + n)
            statements += seen.statements
            locked_s.append(seen.locked_s)
            trips += seen.trips
            locked_trips += seen.locked_trips
            lone_reads += seen.lone_reads
        bytes_after, commits_after = used()
    reads = lone_reads + sum(each == "BEGIN" or "READ ONLY" in each for each in statements)
    writes = sum(each == "BEGIN IMMEDIATE" or "READ WRITE" in each for each in statements)
    relaxed = sum(each in ("PRAGMA synchronous=NORMAL", "SET LOCAL synchronous_commit = off") for each in statements)
    return Counts(
        reads=reads / purchases,
        writes=writes / purchases,
        durable_writes=(writes - relaxed) / purchases,
        statements=sum(not is_setting(each) for each in statements) / purchases,
        locked_trips=locked_trips / purchases,
        round_trips=0 if backend == "sqlite" else trips / purchases,
        server_commits=(commits_after - commits_before) / purchases,
        bytes=(bytes_after - bytes_before) / purchases,
        locked_s=locked_s,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark. Return the exit code."""
    parser = measure.options(__doc__)
    parser.add_argument("--backend", choices=["sqlite", "postgresql"], action="append", help="default: both")
    parser.add_argument("--purchases", type=int)
    given = parser.parse_args(arguments)
    figures: list[Figure] = []
    for backend in given.backend or ["sqlite", "postgresql"]:
        counts = count(backend, given.purchases or SIZES[given.size])
        for field in fields(counts):
            value = getattr(counts, field.name)
            if field.name == "locked_s":
                figures.append(single(f"{backend}: a purchase locks its envelope for", value, unit="ms"))
                rate = replace(single("", [1 / median(value)], unit="/s", scale=1), name=f"{backend}: so at most, of one envelope")
                figures.append(rate)
            elif value:
                figures.append(single(f"{backend}: {field.name.replace('_', ' ')} a purchase", [value], unit="", scale=1))
    return measure.finish("purchase_counts", given, figures)


if __name__ == "__main__":
    sys.exit(main())
