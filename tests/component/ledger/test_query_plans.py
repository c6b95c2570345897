"""A purchase costs the same after a million others: every statement that it runs finds its rows by an index, on both databases.

How much it costs is measured by `benchmarks.ledger_cost`; its past and its purchase are used here.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
import tracemalloc
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from benchmarks import ledger_cost
from benchmarks.ledger_cost import HOURLY_TARGET, fill, past, purchase
from benchmarks.measure import Goal
from routeweiler_sync.ledger import lookups
from routeweiler_sync.ledger.ledger import Ledger
from routeweiler_sync.ledger.postgres.store import PostgresTransaction
from routeweiler_sync.ledger.server_facts import USED_UP
from routeweiler_sync.ledger.sqlite import SqliteTransaction
from tests.postgres.conftest import database as database, server as server, url as url
from tests.support.ledger_builders import ORIGIN, draw, hash_of, intent, limits, settle

#: Enough that a database would rather scan a table than read it by a bad index.
PAYMENTS = 50_000
GROWING = ("payments", "spends", "learned_paths")

pytestmark = pytest.mark.timeout(240)
Plans = list[tuple[str, str]]


@contextlib.contextmanager
def explained(transaction: type, explain: str) -> Iterator[Plans]:
    """The plan of every statement that is run in the block."""
    execute, plans = transaction.execute, []  # type: ignore[attr-defined]

    def explaining(self: Any, sql: str, parameters: Sequence[object] = ()) -> list[Mapping[str, Any]]:
        lines = execute(self, f"{explain} {sql}", parameters)
        plans.append((sql, "\n".join(str(line.get("detail", line.get("QUERY PLAN"))) for line in lines)))
        found: list[Mapping[str, Any]] = execute(self, sql, parameters)
        return found

    def deferring(self: Any, sql: str, parameters: Sequence[object] = ()) -> None:
        explaining(self, sql, parameters)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(transaction, "execute", explaining)
        patched.setattr(transaction, "defer", deferring)
        yield plans


def buy(ledger: Ledger) -> None:
    """All that a purchase, and a session that meets an origin, ask of the ledger."""
    for n in range(12):  # so often that a driver would have prepared its statements
        purchase(ledger, n, ORIGIN)
    for ask in (ledger.live, ledger.learned):
        ask(ORIGIN)
    for ask_for in (ledger.live_of_path, ledger.learned_scope):
        ask_for(ORIGIN, "/hourly")
    ledger.accepted(ORIGIN, 20)
    ledger.envelope("envelope-0")
    ledger.count_send("0" * 64)


def scans(plans: Plans, word: str) -> list[str]:
    """The statements that read a whole table that grows."""
    return [f"{sql}\n{plan}" for sql, plan in plans if any(f"{word} {table}" in plan for table in GROWING)]


def test_no_statement_of_a_purchase_scans_a_table_of_sqlite(tmp_path: Path) -> None:
    """Else every purchase makes the next one dearer, until a busy ledger stands still."""
    with contextlib.closing(Ledger.open(tmp_path / "ledger.db")) as ledger:
        fill(ledger, 500, ORIGIN)  # SQLite plans by the schema alone, as long as nobody says ANALYZE
        with explained(SqliteTransaction, "EXPLAIN QUERY PLAN") as plans:
            buy(ledger)
            assert scans(plans, "SCAN") == []
            # Where nothing was delivered, nothing more is bought, so these few may be sorted.
            sorts = [sql for sql, plan in plans if plan.count("TEMP B-TREE") > ("AS undelivered" in sql)]
            assert not sorts, "sorts what an index has in order"
            assert len({sql for sql, _ in plans}) > 15
            with ledger._store.read() as tx:
                tx.execute("SELECT count(*) FROM payments WHERE path = ?", ("/",))
            assert len(scans(plans, "SCAN")) == 1, "a scan isn't seen"


def bill(ledger: Ledger) -> None:
    """All ways to ask what was spent."""
    for since in (None, timedelta(days=30)):
        for origin in (None, ORIGIN):
            ledger.spending(since=since, origin=origin)


def test_what_was_spent_is_read_from_an_index_of_sqlite(tmp_path: Path) -> None:
    """Else a look at the bill reads the whole file: a gigabyte after a million payments."""
    with contextlib.closing(Ledger.open(tmp_path / "ledger.db")) as ledger:
        fill(ledger, 500, ORIGIN)
        with explained(SqliteTransaction, "EXPLAIN QUERY PLAN") as plans:
            bill(ledger)
        plans = [each for each in plans if "FROM payments" in each[0]]
        assert len(plans) == 4
        assert all("COVERING INDEX payments_spent" in plan and "TEMP B-TREE" not in plan for _, plan in plans), plans
        assert ["SEARCH" in plan for _, plan in plans] == [False, True, False, True]


@pytest.mark.slow
def test_the_bill_of_many_payments_takes_a_moment_and_no_memory(tmp_path: Path) -> None:
    """Else a long ledger couldn't be asked, or only by a machine that holds it all in memory."""
    payments = 200_000
    with contextlib.closing(Ledger.open(tmp_path / "ledger.db")) as ledger:
        ledger.open_payment(intent(1, origin=ORIGIN), None)
        settle(ledger, 1, fee_msat=1)
        with ledger._store.transaction() as tx:
            columns = [each["name"] for each in tx.execute("SELECT name FROM pragma_table_info('payments')")]
            values = {
                "payment_hash": "printf('%064d', n)", "origin": "'https://' || (n % 100) || '.example'", "state": "'retired'",
                "created_at_ms": "n", "settled_at_ms": "n",
            }  # fmt: skip
            tx.execute(
                f"INSERT INTO payments ({', '.join(columns)}) WITH RECURSIVE c(n) AS (SELECT 2 UNION ALL SELECT n + 1 FROM c "
                f"WHERE n < {payments}) SELECT {', '.join(values.get(name, f'old.{name}') for name in columns)} "
                "FROM c, (SELECT * FROM payments) AS old"
            )
        tracemalloc.start()
        started_s = time.perf_counter()
        spent = ledger.spending()
        took_s, (_, peak_bytes) = time.perf_counter() - started_s, tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert (spent.payments, spent.total_msat, len(spent.by_origin)) == (payments, payments * 10_001, 101)
        assert ledger.spending(since=datetime.fromtimestamp(100, timezone.utc)).payments == payments - 100_000 + 2  # and the newest
        assert ledger.spending(origin="https://7.example").payments == payments // 100
        assert took_s < 5
        assert peak_bytes < 2_000_000


@pytest.mark.real
@pytest.mark.slow
def test_no_statement_of_a_purchase_scans_a_table_of_postgresql(server: Any, database: str, url: str) -> None:
    """As before; here the planner knows how much there is, and how it is spread."""
    with contextlib.closing(Ledger.open(url)) as ledger:
        fill(ledger, PAYMENTS, ORIGIN)
        server.admin("VACUUM ANALYZE", database)
        with explained(PostgresTransaction, "EXPLAIN") as plans:
            buy(ledger)
            bill(ledger)
            assert scans(plans, "Seq Scan on") == []
            assert len({sql for sql, _ in plans}) > 15
            for name, index in (("newest", "payments_live_of_page"), ("page_tokens", "payments_of_page")):
                assert all(f"using {index} " in plan for sql, plan in plans if f"AS {name}" in sql), name
            assert not any("payments_of_page" in plan for sql, plan in plans if "AS newest" in sql), "reads the retired ones"
            with ledger._store.read() as tx:
                tx.execute("SELECT count(*) FROM payments WHERE path = ?", ("/",))
            assert len(scans(plans, "Seq Scan on")) == 1, "a scan isn't seen"


def test_an_origin_with_many_live_tokens_is_met_at_a_bounded_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the first call of each process would read all that was ever bought there; by its scope each token is found still."""
    monkeypatch.setattr(lookups, "MAX_LIVE", 5)
    with contextlib.closing(Ledger.open(tmp_path / "ledger.db")) as ledger:
        for n in range(8):
            ledger.open_payment(intent(n), None)
            settle(ledger, n)
        assert [row.scope for row in ledger.live(ORIGIN)] == [f"scope-{n}" for n in range(5)]
        for n in range(8):
            assert [row.scope for row in ledger.live(ORIGIN, f"scope-{n}")] == [f"scope-{n}"]


def test_the_past_is_what_the_ledger_itself_would_have_written(tmp_path: Path) -> None:
    """Else the figures would be those of a ledger that can't be: its totals are sums of its rows, and every row can be read."""
    with contextlib.closing(Ledger.open(tmp_path / "ledger.db")) as ledger:
        fill(ledger, 1_000, ORIGIN)
        rows = list(ledger.payments())
        assert len(rows) == len(list(past(1_000, ORIGIN, time.time()))) == 1_000
        assert sum(e.settled_minor_units for e in ledger.envelopes()) * 10**6 == sum(row.settled_micro for row in rows)
        newest = ledger.page_tokens(ORIGIN, HOURLY_TARGET)[0]
        assert newest.created_at == max(r.created_at for r in rows if r.origin == ORIGIN and r.state.value == "retired")


@pytest.mark.slow
def test_the_benchmark_runs_and_its_check_bites(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Else a slow ledger would pass, or the check be skipped, with nobody the wiser."""
    run: Callable[..., int] = ledger_cost.main
    small = ["--backend", "sqlite", "--payments", "400", "--rounds", "20"]
    monkeypatch.setattr(ledger_cost, "GOAL", Goal(of="ratio", most=1_000))
    assert run([*small, "--check"]) == 0
    assert "one purchase" in capsys.readouterr().out
    monkeypatch.setattr(ledger_cost, "GOAL", Goal(of="ratio", most=0.001))
    assert run([*small, "--check"]) == 1


# -- how much is read -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def steps_of_sqlite() -> Iterator[dict[str, int]]:
    """How many instructions SQLite runs for each statement in the block: they grow with the rows that it reads."""
    execute, steps = SqliteTransaction.execute, defaultdict[str, int](int)

    def counting(self: SqliteTransaction, sql: str, parameters: Sequence[object] = ()) -> list[Mapping[str, Any]]:
        def step() -> int:
            steps[sql] += 1
            return 0

        self._connection.set_progress_handler(step, 1)
        try:
            return execute(self, sql, parameters)
        finally:
            self._connection.set_progress_handler(None, 0)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(SqliteTransaction, "execute", counting)
        yield steps


RETIRED = {"state": "'retired'", "failure_code": "'refused'"}
LIVE = {"scope": "'scope-' || n"}
OTHER_PAGE = {**LIVE, "target": "'target-' || n", "path": "'/path/' || n"}
CHARGE = {"single_use": "1", "scope": "'scope-' || n"}
#: What may be in a ledger in large number: the columns in which the n-th row differs from a live, accepted token of the page.
SHAPES: dict[str, dict[str, str]] = {
    "of the page, refused": RETIRED,
    "of the page, used up": {**RETIRED, "failure_text": f"'{USED_UP}'"},
    "of the page, forgotten": {**RETIRED, "failure_code": "'forgotten'"},
    "of the page, never accepted": {**RETIRED, "taken": "0"},
    "of the page, live for other scopes": LIVE,
    "of the path, live for other pages": {**LIVE, "target": "'target-' || n"},
    "of the page, dead": {"state": "'dead'", "failure_code": "'failed_for_good'", "preimage": "NULL", "settled_at_ms": "NULL"},
    "of the page, given up and paid after all": {"state": "'retired'", "failure_code": "'abandoned'", "taken": "0"},
    "of other pages, live": OTHER_PAGE,
    "of other pages, under way": {**OTHER_PAGE, "state": "'open'", "preimage": "NULL"},
    "of other pages, not delivered": {**OTHER_PAGE, "taken": "0", "failure_code": "'undelivered'"},
    "charges of the page, delivered": {**CHARGE, "state": "'retired'"},
    "charges of other requests, refused": {**CHARGE, "target": "'target-' || n", "taken": "0", "failure_code": "'refused'"},
    "of other servers": {**LIVE, "origin": "'https://' || n || '.example'"},
}


def multiply(ledger: Ledger, rows: int, shape: dict[str, str]) -> None:
    """Write ``rows`` rows that are like the ledger's only one, apart from ``shape``."""
    with ledger._store.transaction() as tx:
        columns = [each["name"] for each in tx.execute("SELECT name FROM pragma_table_info('payments')")]
        tx._connection.create_function("sha256_of", 1, lambda digits: hashlib.sha256(bytes.fromhex(digits)).hexdigest())
        proof = "printf('%064x', n + 1000)"
        values = {"payment_hash": f"sha256_of({proof})", "preimage": proof, "created_at_ms": "old.created_at_ms + n", **shape}
        tx.execute(
            f"INSERT INTO payments ({', '.join(columns)}) WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c "
            f"WHERE n < {rows}) SELECT {', '.join(values.get(name, f'old.{name}') for name in columns)} "
            "FROM c, (SELECT * FROM payments) AS old"
        )
        tx.execute("DELETE FROM payments WHERE payment_hash = ?", (hash_of(0),))


def ask_and_buy(ledger: Ledger, page: Mapping[str, Any]) -> None:
    """All that a session asks before it buys a page, the purchase, and what is asked after a crash."""
    origin, digest = ORIGIN, page["resource_digest"]
    ledger.found(origin=origin, scope=page["scope"], resource_digest=digest, payment_hash=hash_of(1))
    for ask in (ledger.page_tokens, ledger.standing, ledger.owed):
        ask(origin, digest)
    known = tuple(row.payment_hash for row in ledger.page_tokens(origin, digest))
    ledger.newest_accepted(origin)
    ledger.undelivered(origin)
    ledger.live(origin)
    ledger.live_of_path(origin, "/pages/0")
    ledger.learned_scope(origin, "/pages/0")
    ledger.accepted(origin, 20)
    ledger.rehearse(intent(1, **page), draw(limits()))
    assert ledger.open_payment(intent(1, **page, known_tokens=known), draw(limits()))[1]
    ledger.count_send(hash_of(1))
    settle(ledger, 1)
    ledger.claim_report(hash_of(1), "a call")
    ledger.mark(hash_of(1), accepted=True, reported=True)
    ledger.note_used_up(origin, hash_of(1))
    ledger.retire(hash_of(1))
    ledger.open_payment(intent(2, **page, single_use=True, presenter="a call"), draw(limits()))
    ledger.abandoned()
    ledger.unreported()
    ledger.in_force("e", session_started_s=0.0)


@pytest.mark.parametrize("name", SHAPES)
def test_no_statement_of_a_purchase_reads_more_after_many_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Else a page that is bought every hour, or an origin of many pages, gets dearer with each purchase: an index isn't enough."""
    monkeypatch.setattr(lookups, "MAX_LIVE", 20)
    page = {"scope": "scope", "resource_digest": "digest"}
    ran = list[dict[str, int]]()
    for rows in (50, 1_000):
        with contextlib.closing(Ledger.open(tmp_path / f"{rows}.db")) as ledger:
            ledger.open_payment(intent(0, **page), None)
            settle(ledger, 0)
            ledger.mark(hash_of(0), accepted=True, reported=True)
            multiply(ledger, rows, SHAPES[name])
            with steps_of_sqlite() as steps:
                ask_and_buy(ledger, page)
            ran.append(steps)
    few, many = ran
    assert len(many) > 20
    more = {sql: (few[sql], many[sql]) for sql in many if many[sql] > 1.2 * few[sql] + 50}
    assert not more, "reads more rows"
