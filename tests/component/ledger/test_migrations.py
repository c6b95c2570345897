"""Versions of the ledger's schema: an older file is brought up to date once, whole and safely; a newer one is left alone.

Two further steps than there are yet are made up here, the second of which needs the first.
"""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from routeweiler_sync import BudgetError, LedgerError, Routeweiler
from routeweiler_sync.ledger import sqlite as sqlite_module, store
from routeweiler_sync.ledger.spending import Spending
from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.accounts import Books
from tests.support.ledger_builders import PATIENCE_S, Ledger, at_once, draw, hash_of, held_msat, intent, limits, settle
from tests.support.ledger_charges_contract import charge

from .test_storage_faults import in_flight

pytestmark = pytest.mark.timeout(120)

NEXT = store.SCHEMA_VERSION + 1
LATER = {
    NEXT: (
        "CREATE TABLE notes (payment_hash TEXT PRIMARY KEY, note TEXT NOT NULL)",
        "INSERT INTO notes SELECT payment_hash, state FROM payments",
    ),
    NEXT + 1: ("ALTER TABLE notes ADD COLUMN length INTEGER", "UPDATE notes SET length = length(note)"),
}
LATEST = max(LATER)


@contextlib.contextmanager
def newer_version() -> Any:
    """What is opened in the block is opened by a version of the library that knows `LATER`."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sqlite_module, "SCHEMA_VERSION", LATEST)
        for step, statements in LATER.items():
            patched.setitem(store.MIGRATIONS, step, statements)
        yield


def by_hand(path: Path, version: int) -> None:
    """A ledger of ``version`` as that version left it: no code of today's has touched it."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode=WAL")
        for step in range(1, version + 1):
            for statement in {**store.MIGRATIONS, **LATER}[step]:
                database.execute(statement)
        database.execute(f"PRAGMA application_id={0x5257534C}")
        database.execute(f"PRAGMA user_version={version}")
        database.execute(
            "INSERT INTO envelopes (id, limits, currency, settled_micro) VALUES ('old', '{\"id\": \"old\"}', 'sat', 10000000)"
        )
        database.execute(
            "INSERT INTO payments (payment_hash, origin, scope, path, state, node_pubkey, network, bolt11, scheme, token, "
            "preimage, amount_msat, max_fee_msat, created_at_ms, settled_at_ms, envelope_id, currency, settled_micro) VALUES "
            "(?, 'https://api.example', 'old', '/', 'settled', '02', 'bitcoin', 'lnbc1', 'L402', 'token', ?, 10000, 0, 1, 2, "
            "'old', 'sat', 10000000)",
            (hash_of(1), (1).to_bytes(32, "big").hex()),
        )


def version_of(path: Path) -> tuple[int, set[str], str]:
    """(version, tables, SQLite's own verdict)."""
    with contextlib.closing(sqlite3.connect(path)) as database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        return (
            database.execute("PRAGMA user_version").fetchone()[0],
            tables,
            database.execute("PRAGMA integrity_check").fetchone()[0],
        )


def notes_of(path: Path) -> list[Any]:
    with contextlib.closing(sqlite3.connect(path)) as database:
        return database.execute("SELECT payment_hash, note, length FROM notes").fetchall()


@pytest.mark.parametrize("version", range(LATEST + 1))
def test_an_older_ledger_is_brought_up_to_date_with_all_it_holds(tmp_path: Path, version: int) -> None:
    """Else an upgrade of the library would cost the tokens that were paid, or forget what was spent."""
    path = tmp_path / "ledger.db"
    if version:
        by_hand(path, version)
    else:
        path.touch()
    with newer_version():
        ledger = Ledger.open(path)
        rows = list(ledger.payments())
        if version:
            assert held_msat(ledger, "old") == (0, 10_000)
        assert ledger.open_payment(intent(2), draw(limits()))[1]
        settle(ledger, 2)
        ledger.close()
    assert version_of(path)[0] == LATEST
    assert version_of(path)[2] == "ok"
    assert [row.payment_hash for row in rows] == ([hash_of(1)] if version else [])
    assert notes_of(path) == ([(hash_of(1), "settled", 7)] if 0 < version < NEXT else [])
    if version:
        assert rows[0].preimage == (1).to_bytes(32, "big").hex()


def test_the_first_version_is_what_it_was(tmp_path: Path) -> None:
    """Else a ledger that a user has differs from what this version believes it to be."""
    path = tmp_path / "ledger.db"
    by_hand(path, 1)
    ledger = Ledger.open(path)
    (row,) = ledger.payments()
    assert (row.payment_hash, row.state.value, row.amount_msat) == (hash_of(1), "settled", 10_000)
    assert held_msat(ledger, "old") == (0, 10_000)
    ledger.close()


def test_payments_of_one_page_that_the_first_version_allowed_all_stay(tmp_path: Path) -> None:
    """Else an upgrade would fail, or lose a payment that is under way, where a server had sold one page under several scopes."""
    path = tmp_path / "ledger.db"
    by_hand(path, 1)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        for n, state in enumerate(("settled", "open", "failed", "retired", "dead", "open"), start=2):
            database.execute(
                "INSERT INTO payments (payment_hash, origin, scope, path, target, state, node_pubkey, network, bolt11, scheme, "
                "token, amount_msat, max_fee_msat, created_at_ms) VALUES (?, 'https://api.example', ?, '/', ?, ?, '02', 'bitcoin', "
                "'lnbc1', 'L402', 'token', 10000, 0, ?)",
                (hash_of(n), f"scope {n}", "page" if n < 7 else "other page", state, 100 - n),
            )
    with contextlib.closing(Ledger.open(path)) as ledger:
        rows = {row.payment_hash: row for row in ledger.payments()}
        assert len(rows) == 7
        assert {row.payment_hash for row in ledger.unfinished()} == {hash_of(3), hash_of(4), hash_of(7)}
        oldest, other = ledger.standing("https://api.example", "page"), ledger.standing("https://api.example", "other page")
        assert oldest is not None
        assert other is not None
        assert (oldest.payment_hash, other.payment_hash) == (hash_of(4), hash_of(7))
        assert len({row.resource_digest for row in rows.values() if row.unfinished or row.state.value == "settled"}) == 5


@pytest.mark.parametrize("version", range(1, store.SCHEMA_VERSION))
def test_an_older_ledger_takes_charges_beside_its_tokens(tmp_path: Path, version: int) -> None:
    """Else an upgraded user could buy no charges, or a token that was paid for before would be taken for one."""
    path = tmp_path / "ledger.db"
    by_hand(path, version)
    with contextlib.closing(Ledger.open(path)) as ledger:
        (old,) = ledger.live("https://api.example")
        assert (old.single_use, old.owed, old.presenter) == (False, False, None)
        for n in (2, 3):
            assert ledger.open_payment(charge(n, scope=old.scope, presenter=f"call {n}"), draw(limits()))[1]
            settle(ledger, n)
        assert not ledger.open_payment(intent(4, scope=old.scope), None)[1], "a token is still there only once"
        assert {row.payment_hash for row in ledger.owed("https://api.example", "page")} == {hash_of(2), hash_of(3)}
        assert held_msat(ledger, "old") == (0, 10_000)
    assert version_of(path)[::2] == (store.SCHEMA_VERSION, "ok")


@pytest.mark.parametrize("version", range(1, store.SCHEMA_VERSION))
def test_an_older_ledger_takes_agents_and_envelopes_that_lie_in_others(tmp_path: Path, version: int) -> None:
    """Else an upgraded user's agents would spend without the limit for all, or what was spent before would be nobody's."""
    path = tmp_path / "ledger.db"
    by_hand(path, version)
    moved_msat = 0
    if version >= 7:  # the first with archives
        moved_msat = 5_001
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
            database.execute("INSERT INTO archived_sums VALUES ('https://api.example', 'old', 2, 1, 1, 5000, 1, 5001000, 2)")
            database.execute("UPDATE envelopes SET settled_micro = settled_micro + 5001000")
    with contextlib.closing(Ledger.open(path)) as ledger:
        before = Spending(total_msat=10_000 + moved_msat, fees_msat=int(moved_msat > 0), payments=1 + (moved_msat > 0))
        assert ledger.spending_by_agent() == {None: before} == ledger.spending_by_agent(envelope="old")
        with pytest.raises(BudgetError, match="payments have counted"):
            ledger.open_payment(intent(2), draw(limits("old", parent=limits("all"))))
        ledger.open_payment(intent(2, agent_id="scout"), draw(limits("scout", parent="old")))
        settle(ledger, 2)
        assert [held_msat(ledger, id) for id in ("scout", "old")] == [(0, 10_000), (0, 20_000 + moved_msat)]
        assert ledger.spending_by_agent() == {None: before, "scout": Spending(total_msat=10_000, payments=1)}
    assert version_of(path)[::2] == (store.SCHEMA_VERSION, "ok")


@pytest.mark.parametrize("version", range(1, store.SCHEMA_VERSION))
def test_what_ended_under_an_older_version_can_be_archived(tmp_path: Path, version: int) -> None:
    """Else the longest past, which is the reason to archive, would stay for ever."""
    path = tmp_path / "ledger.db"
    by_hand(path, version)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("UPDATE payments SET state = 'retired', told = 1, taken = 1")
    with contextlib.closing(Ledger.open(path)) as ledger:
        assert ledger.archive(tmp_path / "archive.db", before=timedelta(days=400)).payments == 1
        assert (list(ledger.payments()), ledger.spending().total_msat, held_msat(ledger, "old")) == ([], 10_000, (0, 10_000))


DYING = """
import os, sqlite3, sys
from routeweiler_sync.ledger import sqlite, store
from tests.component.ledger.test_migrations import newer_version
from tests.support.ledger_builders import Ledger
path, left = sys.argv[1], int(sys.argv[2])
connect = sqlite3.connect
class Dying(sqlite3.Connection):
    def execute(self, sql, *rest):
        global left
        if left == 0: os._exit(9)
        left -= 1
        return super().execute(sql, *rest)
sqlite3.connect = lambda *args, **kwargs: connect(*args, **kwargs, factory=Dying)
with newer_version():
    Ledger.open(path).unfinished()
os._exit(7)
"""


@pytest.mark.slow
def test_a_death_in_the_middle_of_a_migration_leaves_all_of_it_or_nothing(tmp_path: Path) -> None:
    """Else a ledger half migrated would be neither version's: nobody could read its tokens any more."""
    seen = set()
    for left in range(100):
        path = tmp_path / f"{left}.db"
        by_hand(path, 1)
        died = subprocess.run([sys.executable, "-c", DYING, str(path), str(left)], check=False, timeout=PATIENCE_S)
        version, tables, verdict = version_of(path)
        assert verdict == "ok"
        assert (version, "notes" in tables) in ((1, False), (LATEST, True))
        seen.add(version)
        with newer_version():
            ledger = Ledger.open(path)
            assert [row.payment_hash for row in ledger.payments()] == [hash_of(1)]
            ledger.close()
        assert notes_of(path) == [(hash_of(1), "settled", 7)]
        if died.returncode == 7:
            break
        assert died.returncode == 9
    else:
        pytest.fail("it never got through")
    assert seen == {1, LATEST}


RACING = """
import sys
from tests.component.ledger.test_migrations import newer_version
from tests.support.ledger_builders import Ledger, draw, intent, limits
with newer_version():
    ledger = Ledger.open(sys.argv[1])
    print("ready", flush=True)
    sys.stdin.readline()
    ledger.open_payment(intent(int(sys.argv[2])), draw(limits()))
"""


@pytest.mark.slow
def test_processes_that_race_to_migrate_do_it_once(tmp_path: Path) -> None:
    """Else the workers of an upgraded fleet that start together would ruin the ledger, or fail."""
    path = tmp_path / "ledger.db"
    by_hand(path, 1)
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACING, str(path), str(n)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for n in range(2, 6)
    ]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    for racer in racers:
        racer.communicate(timeout=PATIENCE_S)
        assert racer.returncode == 0
    assert notes_of(path) == [(hash_of(1), "settled", 7)]
    with newer_version():
        assert {row.payment_hash for row in Ledger.open(path).payments()} == {hash_of(n) for n in range(1, 6)}


@pytest.mark.slow
def test_threads_that_race_to_migrate_do_it_once(tmp_path: Path) -> None:
    """Else two sessions of one program would, after an upgrade."""
    for turn in range(20):
        path = tmp_path / f"{turn}.db"
        by_hand(path, 1)
        with newer_version():
            handles = [Ledger.open(path) for _ in range(6)]
            deeds: list[Callable[[], object]] = [handle.unfinished for handle in handles]
            at_once(deeds)
            for handle in handles:
                handle.close()
        assert notes_of(path) == [(hash_of(1), "settled", 7)]


def test_an_old_version_leaves_a_migrated_file_alone(tmp_path: Path) -> None:
    """Else the old version would write by old rules into a ledger that keeps new ones."""
    path = tmp_path / "ledger.db"
    by_hand(path, LATEST)
    before = path.read_bytes()
    ledger = Ledger.open(path)
    uses: list[Callable[[], object]] = [
        lambda: ledger.open_payment(intent(2), None),
        lambda: ledger.count_send(hash_of(1)),
        lambda: ledger.mark(hash_of(1), reported=True),
        lambda: list(ledger.payments()),
    ]
    for use in uses:
        with pytest.raises(LedgerError, match=r"newer version .*Upgrade") as refused:
            use()
        assert refused.value.spent is False
    ledger.close()
    assert path.read_bytes() == before


def test_a_file_migrated_under_a_session_is_bought_on_no_more(
    session: Routeweiler, make_session: Callable[..., Routeweiler], paywall: Paywall, lnd: FakeLnd, books: Books
) -> None:
    """Else a program that runs on through an upgrade would begin purchases by old rules. What it has begun it may end."""
    with in_flight(session, paywall, lnd) as call:
        with newer_version():
            Ledger.open(books.ledger_path).unfinished()
        assert version_of(books.ledger_path)[0] == LATEST
        lnd.release()
        assert call.result(PATIENCE_S).status_code == 200
    paywall.add_service("/second", name="second", price_msat=3_000)
    with pytest.raises(LedgerError, match="newer version") as caught:
        session.get(paywall.url_for("/second"))
    assert caught.value.spent is False
    assert len(lnd.orders) == 1
    with newer_version():
        assert make_session().get(paywall.url_for("/second")).status_code == 200
        books.check()


def test_a_payment_under_way_is_booked_in_a_file_that_has_got_more_columns(
    session: Routeweiler, paywall: Paywall, lnd: FakeLnd, books: Books
) -> None:
    """Else what a program has paid during an upgrade is not booked; or it reads rows by old rules, or calls them damaged."""
    with in_flight(session, paywall, lnd) as call:
        with contextlib.closing(sqlite3.connect(books.ledger_path, isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")
            database.execute("ALTER TABLE payments ADD COLUMN kind TEXT")
            database.execute(f"PRAGMA user_version={NEXT}")
            database.execute("COMMIT")
        lnd.release()
        assert call.result(PATIENCE_S).status_code == 200
    paywall.add_service("/second", name="second", price_msat=3_000)
    with contextlib.closing(sqlite3.connect(books.ledger_path)) as database:
        ((state, amount_msat, preimage),) = database.execute("SELECT state, amount_msat, preimage FROM payments")
        assert (state, preimage is not None) == ("settled", True)
        assert database.execute("SELECT reserved_micro, settled_micro FROM envelopes").fetchall() == [(0, amount_msat * 1000)]
    uses: list[Callable[[], object]] = [
        lambda: list(session.ledger.payments()),
        lambda: session.get(paywall.url_for("/second")),
    ]
    for use in uses:
        with pytest.raises(LedgerError, match=r"newer version .*Upgrade"):
            use()
    assert len(lnd.orders) == 1


def test_the_version_is_seen_that_a_running_program_has_written(tmp_path: Path) -> None:
    """Else a check-up takes an older program's ledger for a new one, and migrates it under the program that uses it."""
    path = tmp_path / "ledger.db"
    running, looking = Ledger.open(path), Ledger.open(path)
    assert looking.schema_version() == 0
    running.open_payment(intent(1), None)
    assert looking.schema_version() == store.SCHEMA_VERSION
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        for checkpoint in ("PASSIVE", "TRUNCATE", "RESTART"):
            for version in (3, 5):
                database.execute("BEGIN IMMEDIATE")
                database.execute(f"PRAGMA user_version={version}")
                assert looking.schema_version() != version, "it isn't committed yet"
                database.execute("COMMIT")
                assert looking.schema_version() == version
            database.execute(f"PRAGMA wal_checkpoint({checkpoint})")
            assert looking.schema_version() == version
        database.execute(f"PRAGMA user_version={store.SCHEMA_VERSION}")
    running.close()
    assert looking.schema_version() == store.SCHEMA_VERSION


def test_every_version_has_its_step() -> None:
    """Else a ledger of some version could be opened by no one, or a step would never run."""
    assert list(store.MIGRATIONS) == list(range(1, store.SCHEMA_VERSION + 1))
