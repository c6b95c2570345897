"""The SQLite ledger: the contract of all ledgers, and what only a file can do: be somebody else's, damaged, locked, forked."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from routeweiler_sync.errors import LedgerError
from routeweiler_sync.ledger import sqlite as sqlite_module
from routeweiler_sync.ledger.ledger import Ledger
from routeweiler_sync.ledger.sqlite import SqliteStore, SqliteTransaction
from tests.support.ledger_builders import ORIGIN, draw, hash_of, intent, limits, preimage, settle
from tests.support.ledger_contract import LedgerContract
from tests.support.users import somebody

posix = pytest.mark.skipif(os.name == "nt", reason="file modes are POSIX's")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "ledger.db"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    ledger = Ledger.open(path)
    yield ledger
    ledger.close()


class TestSqliteLedger(LedgerContract):
    """The contract."""

    @pytest.fixture
    def url(self, path: Path) -> str:
        return str(path)

    @pytest.fixture
    def make_ledger(self, path: Path) -> Iterator[Callable[..., Ledger]]:
        made: list[Ledger] = []

        def make(clock: Callable[[], float] = time.time) -> Ledger:
            made.append(Ledger(SqliteStore(path), clock=clock))
            return made[-1]

        yield make
        for ledger in made:
            ledger.close()


@pytest.mark.parametrize(("platform", "full"), [("darwin", 1), ("linux", 0)])
def test_a_commit_is_on_disk_on_macos_too(path: Path, monkeypatch: pytest.MonkeyPatch, platform: str, full: int) -> None:
    """After a power cut the node would have the payment, and the ledger no row: fsync leaves it in the disk's cache there."""
    monkeypatch.setattr(sqlite_module.sys, "platform", platform)
    with contextlib.closing(SqliteStore(path)) as store, store.transaction() as tx:
        assert tx.execute("PRAGMA fullfsync") == [{"fullfsync": full}]
        assert tx.execute("PRAGMA synchronous") == [{"synchronous": 2}]


# -- names ------------------------------------------------------------------------------------------------------------------


def test_a_ledger_is_named_in_many_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else two programs that name one file would keep two ledgers: each need paid twice, each budget spent twice."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    absolute = tmp_path / "l.db"
    names: list[Any] = [absolute, str(absolute), "l.db", Path("l.db"), "sqlite:///l.db", f"sqlite:///{absolute}", "~/l.db"]
    names.append("./x/../l.db")
    if os.name != "nt":
        os.symlink(tmp_path, tmp_path / "link")
        names.append(tmp_path / "link" / "l.db")
    (tmp_path / "x").mkdir()
    first = Ledger.open(absolute)
    first.open_payment(intent(1), None)
    for name in names:
        named = Ledger.open(name)
        assert named.exists(), name
        assert named.url == first.url, name
        assert named.payment(hash_of(1)) is not None, name
        named.close()
    assert Ledger.open(first) is first
    assert str(absolute) in repr(first)


@pytest.mark.parametrize("url", ["mysql://h/l", "sqlite://l.db", "sqlite://", "sqlite:///", "http://h/l.db", "file:///l.db", "://"])
def test_what_names_no_ledger_is_refused(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a mistyped URL would make an empty ledger in a strange place: all budgets new, all tokens gone."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LedgerError):
        Ledger.open(url)
    assert list(tmp_path.iterdir()) == []


def test_naming_a_ledger_makes_nothing(path: Path) -> None:
    """Else importing a script would leave files behind."""
    ledger = Ledger.open(path)
    assert not ledger.exists()
    assert not path.parent.exists()


# -- files ------------------------------------------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_only_the_owner_can_read_it(ledger: Ledger, path: Path, umask: int) -> None:
    """Else everybody on the machine could read the paid tokens."""
    before = os.umask(umask)
    try:
        ledger.open_payment(intent(1), draw(limits()))
        settle(ledger, 1)
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    finally:
        os.umask(before)
    assert modes == {"ledger.db": 0o600, "ledger.db-wal": 0o600, "ledger.db-shm": 0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def make_foreign(path: Path, how: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        if how == "other wal":
            database.execute("PRAGMA journal_mode=WAL")
        if how in ("other", "other wal"):
            database.execute("CREATE TABLE payments (mine TEXT)")
        elif how == "application id":
            database.execute("PRAGMA application_id=7")
        elif how == "user version":
            database.execute("PRAGMA user_version=1")


@pytest.mark.parametrize("how", ["other", "other wal", "application id", "user version"])
def test_somebody_elses_database_is_refused_unchanged(path: Path, how: str) -> None:
    """Else a slip in a path would ruin another program's data."""
    make_foreign(path, how)
    before = path.read_bytes()
    ledger = Ledger.open(path)
    attempts: list[Callable[[], object]] = [
        partial(ledger.open_payment, intent(1), None),
        partial(ledger.count_send, "x"),
        lambda: list(ledger.payments()),
        ledger.unfinished,
    ]
    for attempt in attempts:
        with pytest.raises(LedgerError, match="not a ledger") as refused:
            attempt()
        assert refused.value.spent is False
    ledger.close()
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"not a database, but long enough to be one" * 40, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_file_that_is_no_database_is_refused_unchanged(path: Path, content: bytes) -> None:
    """Else a crash with a foreign exception, or a file overwritten."""
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(LedgerError) as refused:
        Ledger.open(path).open_payment(intent(1), None)
    assert refused.value.spent is False
    assert path.read_bytes() == content


def test_a_damaged_file_is_refused(ledger: Ledger, path: Path) -> None:
    """Else a half-readable ledger would look like one without the rows that are damaged: paid twice."""
    for n in range(200):
        ledger.open_payment(intent(n), None)
    ledger.close()
    content = bytearray(path.read_bytes())
    content[8192:] = b"\xa5" * (len(content) - 8192)
    path.write_bytes(content)
    with pytest.raises(LedgerError):
        list(ledger.payments())
    with pytest.raises(LedgerError):
        ledger.open_payment(intent(1), None)


def test_a_damaged_preimage_is_found(ledger: Ledger, path: Path) -> None:
    """Else a token that opens nothing would be sent, refused, and its payment given up."""
    ledger.open_payment(intent(1), None)
    settle(ledger, 1)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("UPDATE payments SET preimage = ?", (preimage(2).hex(),))
    looks: list[Callable[[], object]] = [
        partial(ledger.payment, hash_of(1)),
        partial(ledger.live, ORIGIN),
        lambda: list(ledger.payments()),
    ]
    for look in looks:
        with pytest.raises(LedgerError, match="damaged") as found:
            look()
        assert preimage(2).hex() not in str(found.value)


@posix
def test_a_folder_that_cant_be_written_is_refused() -> None:
    """Else a foreign exception (an OSError that no handler of ours knows), or a purchase without a record."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        with somebody():
            if os.access(folder, os.W_OK, effective_ids=True):
                pytest.skip("this user can write anywhere")
            for path in (Path(folder) / "ledger.db", Path(folder) / "new" / "ledger.db"):
                with pytest.raises(LedgerError) as refused:
                    Ledger.open(path).open_payment(intent(1), None)
                assert refused.value.spent is False


def test_a_path_through_a_file_or_to_a_folder_is_refused(tmp_path: Path) -> None:
    """Else a foreign exception instead of one that says what to mend."""
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "ledger.db", tmp_path):
        with pytest.raises(LedgerError):
            Ledger.open(path).open_payment(intent(1), None)


def test_a_locked_ledger_is_waited_for_and_then_refused(ledger: Ledger, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a backup that holds the file would fail every purchase, or hang it for ever."""
    monkeypatch.setattr(sqlite_module, "BUSY_TIMEOUT_S", 0.2)
    ledger.open_payment(intent(1), None)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerError, match="locked"):
            ledger.open_payment(intent(2), None)
        assert ledger.payment(hash_of(1)) is not None  # reading goes on
        other.execute("COMMIT")
    assert ledger.open_payment(intent(2), None)[1]


# -- durability and cost ----------------------------------------------------------------------------------------------------


def synchronous(ledger: Ledger) -> int:
    store: Any = ledger._store
    return int(store._writer.connection.execute("PRAGMA synchronous").fetchone()[0])


def test_marking_a_row_does_not_make_the_next_purchase_less_durable(ledger: Ledger) -> None:
    """Else after the first token a power cut could undo the record of a payment that lnd has made."""
    seen: list[int] = []

    class Watched(SqliteTransaction):
        def execute(self, *args: Any) -> Any:
            seen.append(synchronous(ledger))
            return super().execute(*args)

    full = 2
    ledger.open_payment(intent(1), draw(limits()))
    assert synchronous(ledger) == full
    settle(ledger, 1)
    for note in (partial(ledger.mark, hash_of(1), accepted=True), partial(ledger.learn, ORIGIN, "/", "s")):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(sqlite_module, "SqliteTransaction", Watched)
            note()
        assert full not in seen  # it waits for no disk
        assert synchronous(ledger) == full
    seen.clear()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(SqliteTransaction, "execute", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            ledger.mark(hash_of(1), reported=True)
    assert synchronous(ledger) == full
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sqlite_module, "SqliteTransaction", Watched)
        ledger.open_payment(intent(2), draw(limits()))
        ledger.count_send(hash_of(2))
        settle(ledger, 2)
    assert set(seen) == {full}


def purchase_cost(ledger: Ledger, n: int) -> tuple[int, int]:
    """(SQL statements, steps of SQLite's machine) of one purchase from 402 to token and its next use."""
    store: Any = ledger._store
    statements: list[str] = []
    steps: list[int] = []
    for line in (store._writer, store._reader):
        line.connection.set_trace_callback(statements.append)
        line.connection.set_progress_handler(lambda: steps.append(1), 1)
    ledger.live(ORIGIN, f"scope-{n}")
    ledger.page_tokens(ORIGIN, "target")
    ledger.standing(ORIGIN, "target")
    ledger.payment(hash_of(n))
    ledger.open_payment(intent(n), draw(limits(cap_minor_units=10**9, per_hour_minor_units=10**8, per_day_minor_units=10**8)))
    settle(ledger, n)
    ledger.mark(hash_of(n), accepted=True, reported=True)
    ledger.learn(ORIGIN, "/pages", "s")
    ledger.unreported()
    ledger.unfinished()
    for line in (store._writer, store._reader):
        line.connection.set_trace_callback(None)
        line.connection.set_progress_handler(None, 0)
    return len(statements), len(steps)


@pytest.mark.slow
def test_a_purchase_costs_the_same_after_20_000_others(ledger: Ledger) -> None:
    """Else every payment would make the next one slower, until a busy client spends its time adding up history."""
    ledger.open_payment(intent(0), None)
    ledger.payment(hash_of(0))
    purchase_cost(ledger, 1)
    before = purchase_cost(ledger, 2)
    with ledger._store.transaction() as tx:
        names = [column["name"] for column in tx.execute("SELECT name FROM pragma_table_info('payments')")]
        columns = ", ".join(name for name in names if name not in ("payment_hash", "scope", "preimage"))
        tx.execute(
            f"INSERT INTO payments (payment_hash, scope, {columns}) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n "
            f"WHERE i < 20000) SELECT printf('%064x', i), 'past-' || i, {columns} FROM payments, n WHERE scope = 'scope-1'",
        )
        tx.execute("UPDATE payments SET state = 'retired' WHERE scope LIKE 'past-%' AND rowid % 2 = 0")
    assert sum(1 for _ in ledger.payments()) == 20_003
    assert purchase_cost(ledger, 3) == before


def test_opening_costs_one_commit_and_settling_another(ledger: Ledger) -> None:
    """Else a purchase would wait for the disk more often than its promises need."""
    ledger.open_payment(intent(1), draw(limits()))
    store: Any = ledger._store
    statements: list[str] = []
    store._writer.connection.set_trace_callback(statements.append)
    ledger.open_payment(intent(2), draw(limits()))
    settle(ledger, 2)
    store._writer.connection.set_trace_callback(None)
    assert statements.count("COMMIT") == 2


def test_a_connection_that_outlives_the_modules_ends_in_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the end of the interpreter modules are emptied. A program would end with a traceback of ours that means nothing."""
    store = SqliteStore(tmp_path / "ledger.db")
    with store.transaction():
        pass
    line = store._writer
    monkeypatch.setattr(sqlite_module, "contextlib", None)
    line.__del__()
    assert line.connection is None
