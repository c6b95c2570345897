"""Archives as files: what kills, full disks and other people's files do to them. What is moved is in `ledger_archive_contract`."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import stat
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from routeweiler_sync import Routeweiler
from routeweiler_sync.cli import main
from routeweiler_sync.errors import LedgerError
from routeweiler_sync.ledger import archive as archive_module, sqlite as sqlite_module
from routeweiler_sync.ledger.archive import Archived
from routeweiler_sync.ledger.ledger import Ledger
from routeweiler_sync.ledger.sqlite import SqliteStore
from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.accounts import Books
from tests.support.cli_process import Command
from tests.support.ledger_archive_contract import BEFORE, DAY_S, audited, make_all, make_past, rows_of
from tests.support.ledger_builders import NOON_S, Clock, draw, hash_of, intent, limits, preimage, settle

posix = pytest.mark.skipif(os.name == "nt", reason="forks and signals are POSIX's")
pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "archive.db"


@pytest.fixture
def ledger(tmp_path: Path, clock: Clock) -> Iterator[Ledger]:
    with contextlib.closing(Ledger(SqliteStore(tmp_path / "ledger.db"), clock=clock)) as ledger:
        yield ledger


def killed_after(statements: int, work: Callable[[], object]) -> bool:
    """Do ``work`` in a child that is killed (SIGKILL) before its n-th statement. Return whether it was."""
    child = os.fork()
    if not child:
        try:
            connect, left = sqlite3.connect, [statements]

            class Dying(sqlite3.Connection):
                def execute(self, *args: Any) -> Any:
                    if not left[0]:
                        os.kill(os.getpid(), signal.SIGKILL)
                    left[0] -= 1
                    return super().execute(*args)

            sqlite3.connect = lambda *args, **kwargs: connect(*args, **kwargs, factory=Dying)  # type: ignore[assignment, misc]
            work()
        finally:
            os._exit(7)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


@posix
@pytest.mark.slow
def test_a_kill_at_any_statement_neither_loses_nor_doubles_a_payment(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a run that is stopped would cost proofs of payment, or let an invoice be paid again, or count one twice."""
    monkeypatch.setattr(archive_module, "BATCH_ROWS", 4)
    original = tmp_path / "original.db"
    with contextlib.closing(Ledger(SqliteStore(original), clock=clock)) as ledger:
        for n in range(1, 11):
            make_past(ledger, clock, "live" if n in (3, 6) else "dead" if n % 4 == 0 else "retired", n)
        clock.now_s = NOON_S
        before, spent = rows_of(ledger), ledger.spending()
    seen = set()
    for statements in range(400):
        folder = tmp_path / str(statements)
        folder.mkdir()
        file = folder / "archive.db"
        (folder / "ledger.db").write_bytes(original.read_bytes())
        (folder / "ledger.db").chmod(0o600)
        ledger = Ledger(SqliteStore(folder / "ledger.db"), clock=clock)
        was_killed = killed_after(statements, lambda ledger=ledger, file=file: ledger.archive(file, before=BEFORE))  # type: ignore[misc]
        with contextlib.closing(ledger):
            here = rows_of(ledger)
            with contextlib.closing(Ledger.open(file)) as archive:
                there = rows_of(archive) if archive.exists() and archive.is_archive() else {}
                for name, row in before.items():
                    assert here.get(name, there.get(name)) == row, "on disk, and as it was"
                    assert ledger.archived(name) == (name not in here), "known for ever"
                assert (ledger.spending(), audited(ledger).agrees) == (spent, True)
                assert audited(ledger, *([archive] if there else [])).agrees
                seen.add((len(here), len(there)))
                ledger.archive(file, before=BEFORE)
                assert len(rows_of(ledger)) == 2
                assert len(rows_of(archive)) == 8
                assert ledger.moved() == Archived(payments=8, paid=6, spent_msat=60_000 + 1 + 2 + 5 + 7 + 9 + 10)
                assert audited(ledger, archive).agrees
                assert audited(ledger, archive).payments == 10
        if not was_killed:
            break
    else:
        pytest.fail("it never got through")
    assert seen >= {(10, 0), (2, 8)}
    assert any(here + there > 10 for here, there in seen), "between the two commits"


def test_an_archive_is_private_and_only_read(
    ledger: Ledger, clock: Clock, file: Path, lnd: FakeLnd, paywall: Paywall, books: Books
) -> None:
    """Else others could read proofs of payment, or a program buy with an archive, whose budgets are all empty."""
    make_all(ledger, clock)
    ledger.archive(file, before=BEFORE)
    if os.name != "nt":
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert sorted(each.name for each in file.parent.iterdir() if each.name.startswith("archive")) == [file.name]
    with contextlib.closing(Ledger.open(file)) as archive:
        for write in (
            archive.check_writable,
            lambda: archive.open_payment(intent(77), draw(limits())),
            lambda: archive.mark("0" * 64, accepted=True),
            lambda: archive.freeze("e"),
            archive.vacuum,
            lambda: archive.archive(file.parent / "b.db", before=BEFORE),
        ):
            with pytest.raises(LedgerError, match="archive of payments"):
                write()
        assert archive.is_archive()
        assert not ledger.is_archive()
    with (
        Routeweiler(funding=[lnd.funding()], ledger=file, budget_envelope=None) as session,
        pytest.raises(LedgerError, match="archive of payments") as refused,
    ):
        session.get(paywall.url)
    assert (refused.value.spent, lnd.payments) == (False, [])


@pytest.mark.parametrize(
    "foreign", ["ledger", "the same ledger", "database", "text", "newer archive", "folder", "no folder to write"]
)
def test_a_file_that_is_something_else_is_refused_and_untouched(foreign: str, ledger: Ledger, clock: Clock, file: Path) -> None:
    """Else another program's data would be lost, or payments put where no archive is read."""
    make_all(ledger, clock)
    before = rows_of(ledger)
    if foreign == "ledger":
        with contextlib.closing(Ledger.open(file)) as other:
            other.open_payment(intent(1), None)
    elif foreign == "the same ledger":
        file = Path(ledger._store.path)  # type: ignore[attr-defined]
    elif foreign in ("database", "newer archive"):
        file.touch(0o600)
        with contextlib.closing(sqlite3.connect(file)) as database:
            database.execute("CREATE TABLE theirs (a)")
            if foreign == "newer archive":
                database.execute(f"PRAGMA application_id={sqlite_module.ARCHIVE_ID}")
                database.execute("PRAGMA user_version=1000")
            database.commit()
    elif foreign == "text":
        file.touch(0o600)
        file.write_bytes(b"dear diary, " * 100)
    elif foreign == "folder":
        file.mkdir()
    else:
        (file.parent / "a file").touch()
        file = file.parent / "a file" / "archive.db"
    content = file.read_bytes() if file.is_file() else b""
    with pytest.raises(LedgerError) as refused:
        ledger.archive(file, before=BEFORE)
    assert str(file) in str(refused.value)
    assert refused.value.spent is False
    assert rows_of(ledger) == before
    if foreign != "the same ledger":  # its log is written into it when the last connection is closed
        assert (file.read_bytes() if file.is_file() else b"") == content


@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])
def test_an_archive_never_has_the_name_of_a_file_beside_a_ledger(suffix: str, ledger: Ledger, clock: Clock, tmp_path: Path) -> None:
    """Else SQLite would take it for a part of the ledger: both were destroyed when that was next opened (seen)."""
    make_all(ledger, clock)
    before = rows_of(ledger)
    ledger.close()  # its own files beside it are gone
    with pytest.raises(LedgerError, match=suffix) as refused:
        ledger.archive(tmp_path / f"ledger.db{suffix}", before=BEFORE)
    assert refused.value.spent is False
    assert rows_of(ledger) == before


def test_an_archive_is_named_as_a_ledger_is(ledger: Ledger, clock: Clock, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else proofs of payment would be put into a folder named "sqlite:", or after a database's password, and not be found."""
    monkeypatch.chdir(file.parent)
    make_all(ledger, clock)
    before, names = rows_of(ledger), {each.name for each in file.parent.iterdir()}
    for wrong in ("postgresql://user:hush@127.0.0.1/archive", "sqlite://archive.db", "http://host/archive.db", ""):
        with pytest.raises(LedgerError) as refused:
            ledger.archive(wrong, before=BEFORE)
        assert "hush" not in str(refused.value)
    assert rows_of(ledger) == before
    assert {each.name for each in file.parent.iterdir()} == names
    assert ledger.archive(f"sqlite:///{file}", before=BEFORE).payments == 8
    with contextlib.closing(Ledger.open(file)) as archive:
        assert (archive.is_archive(), len(rows_of(archive))) == (True, 8)


def test_a_proof_of_payment_is_never_replaced(ledger: Ledger, clock: Clock, file: Path, tmp_path: Path) -> None:
    """Else the archive of two ledgers would lose what one of them has paid, if the other was offered the same invoice."""
    make_past(ledger, clock, "retired", 1)
    clock.now_s = NOON_S
    assert ledger.archive(file, before=BEFORE).payments == 1
    with contextlib.closing(Ledger(SqliteStore(tmp_path / "other.db"), clock=clock)) as other:
        make_past(other, clock, "dead", 1)
        make_past(other, clock, "retired", 3)
        clock.now_s = NOON_S
        with pytest.raises(LedgerError, match=f"proof of payment {hash_of(1)}") as refused:
            other.archive(file, before=BEFORE)
        assert (refused.value.spent, len(rows_of(other))) == (False, 2)
        assert other.archive(tmp_path / "another.db", before=BEFORE).payments == 2
    with contextlib.closing(Ledger.open(file)) as archive:
        assert [row.preimage for row in archive.payments()] == [preimage(1).hex()]
        assert audited(ledger, archive).agrees


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), LedgerError("The disk is full.", advice="Make room.")])
def test_a_command_that_is_stopped_says_how_far_it_got(
    stop: BaseException, ledger: Ledger, clock: Clock, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a user who ends a run of an hour couldn't know whether anything was moved, and what to do."""
    monkeypatch.setattr(archive_module, "BATCH_ROWS", 2)
    for n in range(1, 6):
        make_past(ledger, clock, "retired", n)
    write = archive_module._write

    def write_first(tx: Any, rows: Any) -> None:
        if ledger.moved().payments:
            raise stop
        write(tx, rows)

    monkeypatch.setattr(archive_module, "_write", write_first)
    path = str(ledger._store.path)  # type: ignore[attr-defined]
    result = CliRunner().invoke(main, ["payments", "archive", "--ledger", path, "--before", "2025-10-01", "--to", str(file)])
    assert result.exit_code != 0
    assert f"2 payments were moved to {file}" in result.output
    assert ledger.moved().payments == 2


def test_an_older_archive_is_brought_up_to_date(ledger: Ledger, clock: Clock, file: Path) -> None:
    """Else an upgrade would part what was archived before from what is archived after."""
    file.touch(0o600)
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as database:
        from routeweiler_sync.ledger.store import MIGRATIONS

        for statement in (statement for step in range(1, 7) for statement in MIGRATIONS[step]):
            database.execute(statement)
        database.execute(f"PRAGMA application_id={sqlite_module.ARCHIVE_ID}")
        database.execute("PRAGMA user_version=6")
    make_all(ledger, clock)
    ledger.archive(file, before=BEFORE)
    with contextlib.closing(Ledger.open(file)) as archive:
        assert archive.is_archive()
        assert len(rows_of(archive)) == 8


@posix
def test_a_full_disk_moves_nothing_that_is_not_in_the_archive(
    ledger: Ledger, clock: Clock, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a payment would be neither here nor there. With room, the next run ends what was begun."""
    monkeypatch.setattr(archive_module, "BATCH_ROWS", 5)
    for n in range(1, 31):
        make_past(ledger, clock, "retired", n, bolt11="l" * 3_000)
    clock.now_s = NOON_S
    before = rows_of(ledger)
    connect = sqlite_module.SqliteStore._connect

    def small(self: SqliteStore, *args: Any, **kwargs: Any) -> sqlite3.Connection:
        connection = connect(self, *args, **kwargs)
        if self._noun == "archive":
            connection.execute("PRAGMA max_page_count=45").fetchall()
        return connection

    with monkeypatch.context() as full:
        full.setattr(sqlite_module.SqliteStore, "_connect", small)
        with pytest.raises(LedgerError, match="full") as refused:
            ledger.archive(file, before=BEFORE)
    assert f"archive {file}" in str(refused.value)
    assert 0 < ledger.moved().payments < 30
    with contextlib.closing(Ledger.open(file)) as archive:
        assert {**rows_of(archive), **rows_of(ledger)} == before
        ledger.archive(file, before=BEFORE)
        assert (rows_of(archive), rows_of(ledger)) == (before, {})


def test_without_room_for_it_a_vacuum_is_refused_before_it_begins(
    ledger: Ledger, clock: Clock, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would fill the disk to its last byte, and no purchase could be written down any more."""
    for n in range(1, 101):
        make_past(ledger, clock, "retired", n)
    clock.now_s = NOON_S
    ledger.archive(file, before=BEFORE)
    path = Path(ledger._store.path)  # type: ignore[attr-defined]
    ledger.vacuum()
    with monkeypatch.context() as full:
        full.setattr("shutil.disk_usage", lambda path: namedtuple("Usage", "free")(1000))
        with pytest.raises(LedgerError, match="free disk"):
            ledger.vacuum()
    size = path.stat().st_size
    for n in range(201, 301):
        make_past(ledger, clock, "retired", n)
    clock.now_s = NOON_S
    ledger.archive(file, before=BEFORE)
    ledger.vacuum()
    assert path.stat().st_size <= size + 8192


def test_buyers_go_on_while_payments_move(tmp_path: Path, file: Path) -> None:
    """Else a run over a long past would stop all purchases for as long as it takes."""
    clock = Clock()
    with contextlib.closing(Ledger(SqliteStore(tmp_path / "ledger.db"), clock=clock)) as ledger:
        for n in range(1, 61):
            make_past(ledger, clock, "retired", n)
        clock.now_s = time.time()
        bought: list[int] = []

        def buy(moved: Archived) -> None:
            """Another process's purchase, between two batches."""
            with contextlib.closing(Ledger.open(tmp_path / "ledger.db")) as other:
                n = 1_000 + moved.payments
                assert other.open_payment(intent(n), draw(limits()))[1]
                settle(other, n)
                bought.append(n)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(archive_module, "BATCH_ROWS", 20)
            ledger.archive(file, before=BEFORE, progress=buy)
        assert len(bought) == 3
        assert len(rows_of(ledger)) == 3
        assert audited(ledger).agrees


def test_a_token_in_memory_whose_row_was_archived_is_let_go(
    make_session: Callable[..., Routeweiler], paywall: Paywall, lnd: FakeLnd, books: Books, tmp_path: Path
) -> None:
    """Else a process of long standing would fail at each call from then on, in place of buying anew."""
    with make_session() as session:
        assert session.get(paywall.url).status_code == 200
        (row,) = books.rows
        with make_session() as other:
            other.ledger.retire(row.payment_hash)
        years = 500 * DAY_S * 1000
        with sqlite3.connect(books.ledger_path) as database:
            database.execute(
                f"UPDATE payments SET created_at_ms = created_at_ms - {years}, settled_at_ms = 1, "
                "ended_at_ms = 1, claimed_until_ms = 1"
            )
        assert session.ledger.archive(tmp_path / "a.db", before=BEFORE).payments == 1
        paywall.revoke_tokens()
        answer = session.get(paywall.url)
        assert (answer.status_code, len(lnd.payments)) == (200, 2)


@pytest.mark.slow
def test_the_commands_say_what_was_moved(tmp_path: Path, lnd: FakeLnd, books: Books, clock: Clock, file: Path) -> None:
    """Else a user of the shell couldn't move anything, or would miss in sums what was moved."""
    command = Command(tmp_path, lnd, books)
    assert command("payments", "archive", "--before", "400d", "--to", str(file)) == 0
    assert b"nothing was bought yet" in command.out
    with contextlib.closing(Ledger(SqliteStore(books.ledger_path), clock=clock)) as ledger:
        for n in range(1, 6):
            make_past(ledger, clock, "retired" if n < 4 else "live", n)  # in September 2025
        preimages = [str(row.preimage).encode() for row in ledger.payments()]
    assert command("payments", "archive", "--before", "2d", "--to", str(file)) == 2, "not long past"
    assert command("payments", "archive", "--before", "2025-10-01") == 2, "where to?"
    assert command("payments", "archive", "--before", "2025-10-01", "--dry-run") == 0
    assert b"Would move 3 payments" in command.out
    assert not file.exists()
    assert command("payments", "archive", "--before", "2025-10-01", "--to", str(file), "--vacuum", "--json") == 0
    assert [(each["payments"], each["paid"], each["spentMsat"]) for each in command.json] == [(3, 3, 30_006)]
    assert command("payments", "archive", "--before", "2025-10-01", "--to", str(file)) == 0
    assert b"Moved 0 payments" in command.out
    assert command("payments", "list", "--json") == 0
    assert len(command.json) == 2
    assert command("payments", "list", "--ledger", str(file), "--json") == 0
    assert len(command.json) == 3
    assert command("payments", "show", hash_of(1)[:10]) == 2
    assert b"moved to an archive" in command.err
    assert command("payments", "show", hash_of(1)[:10], "--ledger", str(file)) == 0
    assert command("report", "--json") == 0
    assert (command.json["spentMsat"], b"Not counted" in command.err) == (20_009, True)
    assert command("report", "--archive", str(file), "--json") == 0
    assert (command.json["spentMsat"], command.err) == (50_015, b"")
    assert command("budget", "audit", "--no-node", "--json", ROUTEWEILER_TRACE="") == 0
    assert command.json["payments"] == 2
    assert command("budget", "audit", "--no-node", "--archive", str(file), "--json", ROUTEWEILER_TRACE="") == 0
    assert (command.json["payments"], command.json["spentMsat"]) == (5, 50_015)
    assert command("payments", "archive", "--before", "2025-10-01", "--to", str(tmp_path / "empty.db")) == 0
    assert command("report", "--archive", str(tmp_path / "empty.db"), "--json") == 0
    assert (command.json["spentMsat"], b"3 payments (30.006 sat)" in command.err) == (20_009, True), "said: not all archives"
    for wrong in (str(books.ledger_path), str(tmp_path / "none.db"), "postgresql://user:hush@127.0.0.1:1/none"):
        assert command("budget", "audit", "--no-node", "--archive", wrong) == 2
        assert b"hush" not in command.out + command.err
        assert command("report", "--archive", wrong) == 2
        assert b"hush" not in command.out + command.err
    assert command("payments", "archive", "--before", "2025-10-01", "--to", str(books.ledger_path)) == 3
    assert not any(each in command.out + command.err for each in preimages)
