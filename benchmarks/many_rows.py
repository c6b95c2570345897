"""Measure a ledger of many past payments: its size, and how long all takes that is done with it, on both databases.

    python -m benchmarks.many_rows [--backend sqlite|postgresql] [--rows N] [--rounds N] [--archived-days N]

The ledger is made in the schema before the present one, so that its first opening migrates it. Then come, in this order: its size,
a purchase beside one on an empty ledger (in turns, see `benchmarks.measure`), the commands (each a process of its own, with its
highest memory), a backup, and the archive of what is older than ``--archived-days``, while another process buys.
``--rows 10000000`` takes some 25 GB of disk and half an hour for each database. All is in a temporary folder, removed at the end.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks import measure
from benchmarks.ledger_cost import ENVELOPES, GOAL, PAST, envelope, past, purchase
from benchmarks.measure import Figure, single
from routeweiler_sync.ledger import sqlite as sqlite_module
from routeweiler_sync.ledger.envelopes import make
from routeweiler_sync.ledger.ledger import Ledger
from routeweiler_sync.ledger.store import SCHEMA_VERSION
from tests.support.cli_process import bare_environ

ORIGIN = "https://busiest.example"
#: Past payments, and rounds of purchases.
SIZES = {"full": (200_000, 200), "short": (50_000, 50), "tiny": (1_000, 4)}
ARCHIVED_DAYS = 200
BATCH_ROWS = 50_000
#: The memory of SQLite while it writes the past, in KiB.
CACHE_KIB = 1_500_000
#: A command that takes longer is ended, and not told.
COMMAND_S = 1_800
#: A step that needs a copy of the ledger is left out if less than this many times its size is free.
COPIES_FREE = 3
#: Rows up to which the audit, which holds all of them in memory, is run.
AUDIT_ROWS_MAX = 2_000_000
MB = 1e-6


# -- the past -------------------------------------------------------------------------------------------------------------


def fill(backend: str, url: str, rows: int) -> None:
    """Make the ledger in the schema before this one, and write ``rows`` payments into it. The indexes are made afterwards."""
    from routeweiler_sync.ledger.postgres import connections, store

    with contextlib.ExitStack() as older:
        for module in (sqlite_module, store, connections):
            older.enter_context(mock.patch.object(module, "SCHEMA_VERSION", SCHEMA_VERSION - 1))
        with contextlib.closing(Ledger.open(url)) as ledger:
            ledger.check_writable()
    settled: Counter[str] = Counter()
    columns = PAST.split(", ")
    envelope_at, settled_at = columns.index("envelope_id"), columns.index("settled_micro")

    def counted() -> Iterator[tuple[Any, ...]]:
        for row in past(rows, ORIGIN, time.time()):
            settled[row[envelope_at]] += row[settled_at]  # type: ignore[index, call-overload]
            yield row

    (_fill_sqlite if backend == "sqlite" else _fill_postgresql)(url, columns, counted())
    with contextlib.ExitStack() as older:
        for module in (sqlite_module, store, connections):
            older.enter_context(mock.patch.object(module, "SCHEMA_VERSION", SCHEMA_VERSION - 1))
        with contextlib.closing(Ledger.open(url)) as ledger, ledger._store.transaction() as tx:
            for number in range(ENVELOPES):
                make(tx, envelope(number))
                tx.execute(
                    "UPDATE envelopes SET settled_micro = ? WHERE id = ?", (settled[f"envelope-{number}"], f"envelope-{number}")
                )


def _fill_sqlite(url: str, columns: Sequence[str], rows: Iterator[tuple[Any, ...]]) -> None:
    with contextlib.closing(sqlite3.connect(url, isolation_level=None)) as database:
        for pragma in ("journal_mode=OFF", "synchronous=OFF", f"cache_size=-{CACHE_KIB}", "temp_store=FILE"):
            database.execute(f"PRAGMA {pragma}").fetchall()
        indexes = database.execute("SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL").fetchall()
        for name, _ in indexes:
            database.execute(f"DROP INDEX {name}")
        insert = f"INSERT INTO payments ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"
        while batch := list(islice(rows, BATCH_ROWS)):
            database.execute("BEGIN")
            database.executemany(insert, batch)
            database.execute("COMMIT")
        for _, sql in indexes:
            database.execute(sql)


def _fill_postgresql(url: str, columns: Sequence[str], rows: Iterator[tuple[Any, ...]]) -> None:
    import psycopg

    with psycopg.connect(url, autocommit=True) as database:
        database.execute("SET synchronous_commit = off; SET maintenance_work_mem = '512MB'")
        indexes = database.execute(
            "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'payments' AND indexname <> 'payments_pkey'"
        ).fetchall()
        for name, _ in indexes:
            database.execute(f"DROP INDEX {name}".encode())
        database.execute("ALTER TABLE payments DROP CONSTRAINT payments_pkey")
        with database.cursor() as cursor, cursor.copy(f"COPY payments ({', '.join(columns)}) FROM STDIN".encode()) as copy:
            for row in rows:
                copy.write_row(row)
        database.execute("ALTER TABLE payments ADD PRIMARY KEY (payment_hash)")
        for _, sql in indexes:
            database.execute(sql.encode())
        database.execute("VACUUM ANALYZE")


# -- what is measured -----------------------------------------------------------------------------------------------------


def sizes(backend: str, url: str) -> dict[str, int]:
    """Return the bytes of the table of payments, of each of its indexes, and of the whole ledger."""
    if backend == "sqlite":
        with contextlib.closing(sqlite3.connect(url)) as database:
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            names = dict(database.execute("SELECT name, type FROM sqlite_master WHERE tbl_name = 'payments'"))
            found = {}
            with contextlib.suppress(sqlite3.OperationalError):  # an SQLite without dbstat
                found = dict(database.execute("SELECT name, SUM(pgsize) FROM dbstat GROUP BY name"))
        parts = {name: int(size) for name, size in found.items() if name in names}
        return {**parts, "all": os.path.getsize(url)}
    import psycopg

    with psycopg.connect(url) as connection:
        rows = connection.execute(
            "SELECT relname, pg_relation_size(oid) FROM pg_class WHERE oid = 'payments'::regclass OR oid IN "
            "(SELECT indexrelid FROM pg_index WHERE indrelid = 'payments'::regclass)"
        ).fetchall()
        whole = connection.execute("SELECT pg_database_size(current_database())").fetchone()
    return {**{name: int(size) for name, size in rows}, "all": int(whole[0]) if whole else 0}


def command(url: str, *arguments: str) -> tuple[float, float, float] | None:
    """Run a command on the ledger. Return its seconds, those of a processor, and its highest memory (bytes); None if it is late."""
    began_s = time.perf_counter()
    given = [sys.executable, "-m", "routeweiler_sync", *arguments, "--ledger", url]
    process = subprocess.Popen(given, stdout=subprocess.DEVNULL, env=bare_environ())
    late = threading.Timer(COMMAND_S, process.kill)
    late.start()
    _, status, used = os.wait4(process.pid, 0)
    late.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode < 0:
        return None
    assert process.returncode in (0, 1), f"{arguments} ended with {process.returncode}"
    memory = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return time.perf_counter() - began_s, used.ru_utime + used.ru_stime, memory


def keep_buying(url: str, ready: Any, stop: Any, answers: Any) -> None:
    """Buy until told to stop, as another program. Answer with the seconds of each purchase."""
    took: list[float] = []
    with contextlib.closing(Ledger.open(url)) as ledger:
        while not stop.is_set():
            took.append(purchase(ledger, 10**8 + len(took), "https://other.example")["one purchase"])
            ready.set()
            time.sleep(0.05)
    answers.put(took)


def timed(work: Callable[[], object]) -> float:
    """Return how many seconds ``work`` takes."""
    began_s = time.perf_counter()
    work()
    return time.perf_counter() - began_s


def beside(full: Ledger, empty: Ledger, rounds: int) -> Figure:
    """Return the figure of one purchase's part of the ledger, beside an empty one."""
    numbers = iter(range(10**9))
    took: dict[str, list[float]] = {"full": [], "empty": []}
    for n, order in enumerate(measure.orders(["full", "empty"], rounds + measure.WARM_UP)):
        number = next(numbers)
        for name in order:
            each = purchase({"full": full, "empty": empty}[name], number, ORIGIN)["one purchase"]
            if n >= measure.WARM_UP:
                took[name].append(each)
    return measure.compare("a purchase's part of the ledger", took["full"], took["empty"], against="empty ledger", goal=GOAL)


def backup(backend: str, url: str, folder: Path) -> None:
    """Write a copy of the whole ledger, and remove it."""
    target = folder / "backup"
    if backend == "sqlite":
        with contextlib.closing(sqlite3.connect(url)) as source, contextlib.closing(sqlite3.connect(target)) as copy:
            source.backup(copy, pages=10_000)
    else:
        subprocess.run(["pg_dump", "-Fc", "-Z1", "-f", str(target), url], check=True, timeout=COMMAND_S)
    target.unlink()


def measured(backend: str, url: str, empty_url: str, folder: Path, rows: int, rounds: int, days: int) -> Iterator[Figure]:
    """Yield all figures of one kind of ledger."""
    writer = multiprocessing.get_context("spawn").Process(target=fill, args=(backend, url, rows))  # its memory isn't the commands'
    began_s = time.perf_counter()
    writer.start()
    writer.join()
    assert writer.exitcode == 0
    yield single("writing the past", [time.perf_counter() - began_s], unit="s")
    with contextlib.closing(Ledger.open(url)) as full, contextlib.closing(Ledger.open(empty_url)) as empty:
        empty.check_writable()
        yield single(f"opening, with its migration from schema {SCHEMA_VERSION - 1}", [timed(full.check_writable)], unit="ms")
        full.close()
        yield single("opening, and the live tokens of an origin", [timed(lambda: full.live(ORIGIN))], unit="ms")
        found = sizes(backend, url)
        for name, size in found.items():
            what = "the whole ledger" if name == "all" else f"on disk: {name}"
            yield single(f"{what}, bytes a payment", [size / rows], unit="B", scale=1)
        yield beside(full, empty, rounds)
        yield single("Ledger.spending(), all", [timed(full.spending)], unit="s")
    for name, arguments in commands(rows).items():
        took = command(url, *arguments)
        if took is not None:
            yield single(name, [took[0]], unit="s")
            yield single(f"{name}: of a processor", [took[1]], unit="s")
            yield single(f"{name}: memory", [took[2]], unit="MB", scale=MB)
    free = shutil.disk_usage(folder).free
    if free > COPIES_FREE * found["all"] and (backend == "sqlite" or shutil.which("pg_dump")):
        yield single("backup", [timed(lambda: backup(backend, url, folder))], unit="s")
    yield from archived(backend, url, folder, days)


def commands(rows: int) -> Mapping[str, Sequence[str]]:
    """Return the commands by what they are called, those that need little memory first."""
    each: dict[str, Sequence[str]] = {
        "budget show": ("budget", "show", "envelope-0"),
        "payments list --limit 20": ("payments", "list", "--limit", "20"),
        "payments list --since 1d": ("payments", "list", "--since", "1d"),
        "report": ("report", "--json"),
    }
    if rows <= AUDIT_ROWS_MAX:
        each["budget audit"] = ("budget", "audit", "--no-node", "--json")
    return each


def archived(backend: str, url: str, folder: Path, days: int) -> Iterator[Figure]:
    """Yield the figures of an archive that is made while another program buys, and of the room that it gives back."""
    context = multiprocessing.get_context("spawn")
    ready, stop, answers = context.Event(), context.Event(), context.Queue()
    before = timedelta(days=days)
    with contextlib.closing(Ledger.open(url)) as ledger:
        yield single("payments archive --dry-run", [timed(lambda: ledger.archive("", before=before, dry_run=True))], unit="s")
        buyer = context.Process(target=keep_buying, args=(url, ready, stop, answers))
        buyer.start()
        assert ready.wait(60)
        began_s = time.perf_counter()
        moved = ledger.archive(folder / "archive.db", before=before)
        took_s = time.perf_counter() - began_s
        stop.set()
        bought = answers.get(timeout=60)
        bought = bought[1:] or bought  # without the first, which opens the ledger
        buyer.join(60)
        yield single("payments archive: moved", [moved.payments], unit="payments", scale=1)
        yield single("payments archive: payments a second", [moved.payments / took_s], unit="/s", scale=1)
        yield single("a purchase's part of the ledger meanwhile", bought, unit="ms")
        yield single("the longest of them", [max(bought)], unit="ms")
        size = os.path.getsize(folder / "archive.db")
        yield single("the archive, bytes a payment", [size / max(1, moved.payments)], unit="B", scale=1)
        before_size = sizes(backend, url)["all"]
        if shutil.disk_usage(folder).free > COPIES_FREE * before_size:
            yield single("--vacuum", [timed(ledger.vacuum)], unit="s")
            yield single("the ledger before it", [before_size], unit="MB", scale=MB)
            yield single("the ledger after it", [sizes(backend, url)["all"]], unit="MB", scale=MB)


@contextlib.contextmanager
def places(backend: str) -> Iterator[tuple[str, str, Path]]:
    """Yield the URLs of a ledger to fill and of one to leave empty, and a folder; all of them are gone afterwards."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="many-rows-")))
        if backend == "sqlite":
            yield str(folder / "full.db"), str(folder / "empty.db"), folder
            return
        from tests.postgres.server import Server

        server = stack.enter_context(Server.make(fsync="on", shared_buffers="512MB", max_wal_size="4GB"))
        yield server.url(server.new_database()), server.url(server.new_database()), folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark. Return the exit code."""
    parser = measure.options(__doc__)
    parser.add_argument("--backend", choices=["sqlite", "postgresql"], action="append", help="default: both")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--archived-days", type=int, default=ARCHIVED_DAYS, help="of 400; default: %(default)s")
    given = parser.parse_args(arguments)
    rows, rounds = SIZES[given.size]
    rows = given.rows or rows
    figures: list[Figure] = []
    for backend in given.backend or ["sqlite", "postgresql"]:
        with places(backend) as (url, empty_url, folder):
            for figure in measured(backend, url, empty_url, folder, rows, given.rounds or rounds, given.archived_days):
                figures.append(replace(figure, name=f"{backend}: {figure.name}"))
                print(
                    f"{figures[-1].name}: {figure.ours.value:,.3f} {figure.unit}", figure.ratio or "", file=sys.stderr, flush=True
                )
    return measure.finish("many_rows", given, figures, [f"{rows:,} past payments."])


if __name__ == "__main__":
    sys.exit(main())
