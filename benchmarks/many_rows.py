"""Measure a ledger of many past payments: its size, and how long all takes that is done with it, on both databases.

    python -m benchmarks.many_rows [--backend sqlite|postgresql] [--rows N] [--rounds N] [--archived-days N]

The ledger is made in the schema before the present one, so that its first opening migrates it. Then come, in this order: its size,
a purchase beside one on an empty ledger (in turns, see `benchmarks.measure`), the commands (each a process of its own, with its
highest memory), a backup, and the archive of what is older than ``--archived-days``, while another process buys.
``--rows 10000000`` takes some 40 GB of disk for a while. What is done is told on stderr. All is in a temporary folder, removed at
the end.
"""

from __future__ import annotations

import contextlib
import hashlib
import multiprocessing
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import groupby
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks import measure
from benchmarks.ledger_cost import (
    AMOUNT_MSAT,
    BUSIEST,
    DAYS,
    ENVELOPES,
    FEE_MSAT,
    GOAL,
    HOURLY,
    HOURLY_TARGET,
    INVOICE_CHARS,
    ORIGINS,
    PAST,
    TOKEN_CHARS,
    envelope,
    purchase,
)
from benchmarks.measure import Figure, single
from routeweiler_sync.errors import LedgerError
from routeweiler_sync.ledger import sqlite as sqlite_module
from routeweiler_sync.ledger.archive import Archived
from routeweiler_sync.ledger.envelopes import BUCKET_S, KEPT_BUCKETS, dump
from routeweiler_sync.ledger.ledger import Ledger
from routeweiler_sync.ledger.store import SCHEMA_VERSION
from tests.support.cli_process import bare_environ

ORIGIN = "https://busiest.example"
#: Past payments, and rounds of purchases.
SIZES = {"full": (200_000, 200), "short": (50_000, 50), "tiny": (1_000, 4)}
ARCHIVED_DAYS = 200
#: How many past payments one statement writes; what is done is told after each.
TOLD_ROWS = 250_000
EACH_MICRO = (AMOUNT_MSAT + FEE_MSAT) * 1_000
#: The memory of SQLite while it writes the past, in KiB.
CACHE_KIB = 1_500_000
#: A command that takes longer than this many seconds, and for each row, is ended.
COMMAND_S, COMMAND_S_PER_ROW = 1_800, 0.002
#: A step that needs a copy of the ledger is left out if less than this many times its size is free.
COPIES_FREE = 1.5
#: How many seconds another process may take to begin, or to answer.
PATIENCE_S = 600
#: Rows up to which the audit, which holds all of them in memory, is run.
AUDIT_ROWS_MAX = 2_000_000
MB = 1e-6


# -- the past -------------------------------------------------------------------------------------------------------------


# What `ledger_cost.past` yields, made inside the database. Row ``n`` is of the CASE's branch, as there.
_HEX = {
    "sqlite": ("printf('%064x', n)", "sha256_of(printf('%064x', n))", "printf('%032x', n)"),
    "postgresql": (
        "lpad(to_hex(n), 64, '0')",
        "encode(sha256(decode(lpad(to_hex(n), 64, '0'), 'hex')), 'hex')",
        "lpad(to_hex(n), 32, '0')",
    ),
}
_SERIES = {
    "sqlite": "WITH RECURSIVE series (n) AS (SELECT {first} UNION ALL SELECT n + 1 FROM series WHERE n < {last})",
    "postgresql": "WITH series (n) AS (SELECT generate_series({first}::bigint, {last}::bigint))",
}


def past_sql(backend: str, rows: int, now_s: int, first: int, last: int) -> str:
    """Return the INSERT of the payments ``first`` to ``last`` (inclusive) of ``rows`` past ones: those of `ledger_cost.past`."""
    preimage, payment_hash, target = _HEX[backend]
    kind = f"n / {ORIGINS} % 5"  # 2 is settled, 4 is dead, the others are retired
    days_ms = DAYS * 86_400_000
    made_ms = f"{now_s * 1000 - days_ms} + n * {days_ms} / {rows}"  # as `spends` has it

    def by_kind(settled: str, dead: str, retired: str) -> str:
        return f"CASE {kind} WHEN 2 THEN {settled} WHEN 4 THEN {dead} ELSE {retired} END"

    values = {
        "payment_hash": payment_hash,
        "origin": f"CASE WHEN n % {BUSIEST} = 0 THEN '{ORIGIN}' ELSE 'https://api-' || (n % {ORIGINS}) || '.example' END",
        "scope": by_kind("'services=page/' || n || ':0'", f"'{HOURLY}'", f"'{HOURLY}'"),
        "path": by_kind("'/page/' || n", "'/hourly'", "'/hourly'"),
        "target": by_kind(target, f"'{HOURLY_TARGET}'", f"'{HOURLY_TARGET}'"),
        "state": by_kind("'settled'", "'dead'", "'retired'"),
        "node_pubkey": f"'{'02' * 33}'",
        "network": "'bitcoin-regtest'",
        "bolt11": f"'{'l' * INVOICE_CHARS}'",
        "scheme": "'L402'",
        "token": f"'{'t' * TOKEN_CHARS}'",
        "preimage": by_kind(preimage, "NULL", preimage),
        "amount_msat": f"{AMOUNT_MSAT}",
        "max_fee_msat": f"{FEE_MSAT}",
        "fee_msat": by_kind(f"{FEE_MSAT}", "0", f"{FEE_MSAT}"),
        "envelope_id": f"'envelope-' || (n % {ENVELOPES})",
        "currency": "'sat'",
        "rate_quality": "'exact'",
        "reserved_micro": "0",
        "settled_micro": by_kind(f"{EACH_MICRO}", "0", f"{EACH_MICRO}"),
        "sends_ever": "1",
        "sends_unanswered": "0",
        "taken": by_kind("1", "0", "1"),
        "told": by_kind("1", "0", "1"),
        "failure_code": by_kind("NULL", "'failed_for_good'", "'refused'"),
        "created_at_ms": made_ms,
        "settled_at_ms": by_kind(made_ms, "NULL", made_ms),
    }
    assert list(values) == PAST.split(", ")
    series = _SERIES[backend].format(first=first, last=last)
    return f"INSERT INTO payments ({PAST}) {series} SELECT {', '.join(values.values())} FROM series"


def spends(rows: int, now_s: int) -> Iterator[tuple[str, int, int]]:
    """Yield the newest buckets of each envelope, as many as are kept: without them, an audit finds that the past isn't booked."""
    days_ms = DAYS * 86_400_000
    found: list[Counter[int]] = [Counter() for _ in range(ENVELOPES)]

    def bucket_of(n: int) -> int:
        return (now_s * 1000 - days_ms + n * days_ms // rows) // (BUCKET_S * 1000)

    for bucket, numbers in groupby(reversed(range(rows)), bucket_of):
        for n in numbers:
            if n // ORIGINS % 5 != 4:
                found[n % ENVELOPES][bucket] += EACH_MICRO
        if min(map(len, found)) >= KEPT_BUCKETS:
            break
    for number, buckets in enumerate(found):
        for bucket, micro in sorted(buckets.items())[-KEPT_BUCKETS:]:
            yield f"envelope-{number}", bucket, micro


def tell(text: str) -> None:
    """Say on stderr what is done now."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def fill(backend: str, url: str, rows: int) -> None:
    """Make the ledger in the schema before this one, and write ``rows`` payments into it, in one transaction."""
    from routeweiler_sync.ledger.postgres import connections, store

    now_s = int(time.time())
    with contextlib.ExitStack() as older:
        for module in (sqlite_module, store, connections):
            older.enter_context(mock.patch.object(module, "SCHEMA_VERSION", SCHEMA_VERSION - 1))
        with contextlib.closing(Ledger.open(url)) as ledger, ledger._store.transaction() as tx:
            for number in range(ENVELOPES):
                made, paid = envelope(number), sum(n // ORIGINS % 5 != 4 for n in range(number, rows, ENVELOPES))
                tx.execute(
                    "INSERT INTO envelopes (id, limits, currency, settled_micro) VALUES (?, ?, ?, ?)",
                    (made.id, dump(made), made.cap_currency, paid * EACH_MICRO),
                )

    def inserts() -> Iterator[str]:
        for first in range(0, rows, TOLD_ROWS):
            tell(f"{backend}: {first:,} of {rows:,} past payments are written")
            yield past_sql(backend, rows, now_s, first, min(first + TOLD_ROWS, rows) - 1)

    (_fill_sqlite if backend == "sqlite" else _fill_postgresql)(url, inserts(), spends(rows, now_s))


def _sha256_of(digits: str) -> str:
    return hashlib.sha256(bytes.fromhex(digits)).hexdigest()


def _fill_sqlite(url: str, inserts: Iterator[str], buckets: Iterator[tuple[str, int, int]]) -> None:
    # With its indexes: all but the primary key grow at a few ends, which is cheaper than to read all rows for each afterwards.
    with contextlib.closing(sqlite3.connect(url, isolation_level=None)) as database:
        for pragma in ("journal_mode=OFF", "synchronous=OFF", f"cache_size=-{CACHE_KIB}", "temp_store=FILE"):
            database.execute(f"PRAGMA {pragma}").fetchall()
        database.create_function("sha256_of", 1, _sha256_of, deterministic=True)
        database.execute("BEGIN")
        for insert in inserts:
            database.execute(insert)
        database.executemany("INSERT INTO spends (envelope_id, bucket, micro) VALUES (?, ?, ?)", buckets)
        database.execute("COMMIT")
    with open(url, "rb+") as file:
        os.fsync(file.fileno())  # else the first purchases would wait for it


def _fill_postgresql(url: str, inserts: Iterator[str], buckets: Iterator[tuple[str, int, int]]) -> None:
    import psycopg

    with psycopg.connect(url) as database:  # one transaction, in which the table becomes new: it needs no write-ahead log
        database.execute("SET maintenance_work_mem = '512MB'")
        database.execute("TRUNCATE payments")
        indexes = database.execute(
            "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'payments' AND indexname <> 'payments_pkey'"
        ).fetchall()
        for name, _ in indexes:
            database.execute(f"DROP INDEX {name}".encode())
        database.execute("ALTER TABLE payments DROP CONSTRAINT payments_pkey")
        for insert in inserts:
            database.execute(insert.encode())
        with database.cursor() as cursor, cursor.copy("COPY spends (envelope_id, bucket, micro) FROM STDIN") as copy:
            for row in buckets:
                copy.write_row(row)
        tell("postgresql: indexes are made")
        database.execute("ALTER TABLE payments ADD PRIMARY KEY (payment_hash)")
        for _, sql in indexes:
            database.execute(sql.encode())
    tell("postgresql: VACUUM ANALYZE")
    with psycopg.connect(url, autocommit=True) as database:
        database.execute("VACUUM ANALYZE")
        database.execute("CHECKPOINT")


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


class LeftOutError(Exception):
    """A step has no figure. The text says why."""


def command(url: str, rows: int, *arguments: str) -> tuple[float, float, float]:
    """Run a command on the ledger. Return its seconds, those of a processor, and its highest memory in bytes.

    The memory is at least that of this program.

    Raises: LeftOutError if it is late or fails.
    """
    began_s = time.perf_counter()
    given = [sys.executable, "-m", "routeweiler_sync", *arguments, "--ledger", url]
    process = subprocess.Popen(given, stdout=subprocess.DEVNULL, env=bare_environ())
    late = threading.Timer(COMMAND_S + COMMAND_S_PER_ROW * rows, process.kill)
    late.start()
    _, status, used = os.wait4(process.pid, 0)
    late.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)
    took_s = time.perf_counter() - began_s
    if process.returncode:
        raise LeftOutError(f"{' '.join(arguments)}: ended with {process.returncode} after {took_s:.0f} s")
    memory = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return took_s, used.ru_utime + used.ru_stime, memory


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


def backup(backend: str, url: str, folder: Path, rows: int) -> None:
    """Write a copy of the whole ledger, and remove it."""
    target = folder / "backup"
    if backend == "sqlite":
        with contextlib.closing(sqlite3.connect(url)) as source, contextlib.closing(sqlite3.connect(target)) as copy:
            source.backup(copy, pages=10_000)
    else:
        subprocess.run(["pg_dump", "-Fc", "-Z1", "-f", str(target), url], check=True, timeout=COMMAND_S + COMMAND_S_PER_ROW * rows)
    target.unlink()


def measured(
    backend: str, url: str, empty_url: str, folder: Path, rows: int, rounds: int, days: int, notes: list[str]
) -> Iterator[Figure]:
    """Yield all figures of one kind of ledger. Add to ``notes`` why a figure is missing."""
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
        tell("sizes")
        found = sizes(backend, url)
        for name, size in found.items():
            what = "the whole ledger" if name == "all" else f"on disk: {name}"
            yield single(f"{what}, bytes a payment", [size / rows], unit="B", scale=1)
        steps: dict[str, Callable[[], Figure]] = {
            "purchases": lambda: beside(full, empty, rounds),
            "Ledger.spending(), all": lambda: single("Ledger.spending(), all", [timed(full.spending)], unit="s"),
        }
        for name, step in steps.items():
            tell(name)
            try:
                yield step()
            except LedgerError as error:  # it took longer than the ledger lets anything take
                notes.append(f"{backend}: {name}: {error}")
                tell(notes[-1])
    for name, arguments in commands(rows).items():
        tell(name)
        try:
            took = command(url, rows, *arguments)
        except LeftOutError as why:
            notes.append(f"{backend}: {why}")
            tell(notes[-1])
            continue
        yield single(name, [took[0]], unit="s")
        yield single(f"{name}: of a processor", [took[1]], unit="s")
        yield single(f"{name}: memory", [took[2]], unit="MB", scale=MB)
    if rows > AUDIT_ROWS_MAX:
        notes.append(f"{backend}: no audit of more than {AUDIT_ROWS_MAX:,} payments, because it holds all of them in memory")
    free = shutil.disk_usage(folder).free
    if backend == "postgresql" and not shutil.which("pg_dump"):
        notes.append("postgresql: no backup, because pg_dump isn't installed")
    elif free > COPIES_FREE * found["all"]:
        tell("backup")
        yield single("backup", [timed(lambda: backup(backend, url, folder, rows))], unit="s")
    else:
        notes.append(f"{backend}: no backup, because {free * MB:,.0f} MB of disk are too few")
    yield from archived(backend, url, folder, days, notes)


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


def archived(backend: str, url: str, folder: Path, days: int, notes: list[str]) -> Iterator[Figure]:
    """Yield the figures of an archive that is made while another program buys, and of the room that it gives back."""
    context = multiprocessing.get_context("spawn")
    ready, stop, answers = context.Event(), context.Event(), context.Queue()
    before = timedelta(days=days)
    at = [TOLD_ROWS]

    def told(so_far: Archived) -> None:
        if so_far.payments >= at[0]:
            tell(f"{so_far.payments:,} payments are in the archive")
            at[0] += TOLD_ROWS

    tell("archive")
    with contextlib.closing(Ledger.open(url)) as ledger:
        yield single("payments archive --dry-run", [timed(lambda: ledger.archive("", before=before, dry_run=True))], unit="s")
        buyer = context.Process(target=keep_buying, args=(url, ready, stop, answers), daemon=True)
        buyer.start()
        assert ready.wait(PATIENCE_S)
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        moved = ledger.archive(folder / "archive.db", before=before, progress=told)
        took_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
        stop.set()
        bought = answers.get(timeout=PATIENCE_S)
        bought = bought[1:] or bought  # without the first, which opens the ledger
        buyer.join(PATIENCE_S)
        yield single("payments archive: moved", [moved.payments], unit="payments", scale=1)
        yield single("payments archive: payments a second", [moved.payments / took_s], unit="/s", scale=1)
        yield single("payments archive: of a processor, a payment", [cpu_s / max(1, moved.payments)], unit="us")
        yield single("a purchase's part of the ledger meanwhile", bought, unit="ms")
        yield single("the longest of them", [max(bought)], unit="ms")
        size = os.path.getsize(folder / "archive.db")
        yield single("the archive, bytes a payment", [size / max(1, moved.payments)], unit="B", scale=1)
        before_size = sizes(backend, url)["all"]
        tell("vacuum")
        try:
            yield single("--vacuum", [timed(ledger.vacuum)], unit="s")
        except LedgerError as error:
            notes.append(f"{backend}: no vacuum: {error}")
        else:
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

        server = stack.enter_context(
            Server.make(fsync="on", shared_buffers="512MB", max_wal_size="4GB", wal_level="minimal", max_wal_senders="0")
        )
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
    notes, failed = [f"{rows:,} past payments."], False
    for backend in given.backend or ["sqlite", "postgresql"]:
        try:
            with places(backend) as (url, empty_url, folder):
                for figure in measured(backend, url, empty_url, folder, rows, given.rounds or rounds, given.archived_days, notes):
                    figures.append(replace(figure, name=f"{backend}: {figure.name}"))
                    tell(f"{figures[-1].name}: {figure.ours.value:,.3f} {figure.unit} {figure.ratio or ''}")
        except Exception:  # what was measured for hours until then is shown
            traceback.print_exc()
            notes.append(f"{backend}: not finished, see the error")
            failed = True
    return measure.finish("many_rows", given, figures, notes) or int(failed)


if __name__ == "__main__":
    sys.exit(main())
