"""Which file the ledger is, while sessions use it: deleted, moved, replaced, cut off, under two names; and who must wait for whom.

A deleted file lives on for who has it open, and dies with them: a purchase written into it is a payment without a record.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import threading
import timeit
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from routeweiler_sync import Ledger, LedgerError, Routeweiler
from routeweiler_sync._core import files
from routeweiler_sync.ledger.sqlite import _Line
from routeweiler_sync.payments import lifecycle
from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.accounts import Books
from tests.support.ledger_builders import ORIGIN, PATIENCE_S, hash_of, intent, settle

from .test_storage_faults import in_flight, ledger_of, posix, refused, store_of

pytestmark = pytest.mark.timeout(120)


# -- deleted, moved, replaced --------------------------------------------------------------------------------------------------


def parts(path: Path) -> list[Path]:
    return [each for each in path.parent.iterdir() if each.name.startswith(path.name)]


def moved_away(path: Path) -> Callable[[], object]:
    """Move the ledger away; what puts it back."""
    aside = path.parent / "aside"
    aside.mkdir()
    for each in parts(path):
        each.rename(aside / each.name)

    def back() -> None:
        for each in parts(path):
            each.unlink()
        for each in aside.iterdir():
            each.rename(path.parent / each.name)

    return back


def replaced(path: Path) -> Callable[[], object]:
    back = moved_away(path)
    other = Ledger.open(path)
    other.freeze("default")
    other.thaw("default")
    other.close()
    return back


def folder_moved(path: Path) -> Callable[[], object]:
    return partial(path.parent.rename(path.parent.with_name("elsewhere")).rename, path.parent)


LOSSES: dict[str, Callable[[Path], Callable[[], object]]] = {
    "moved": moved_away,
    "replaced": replaced,
    "folder moved": folder_moved,
}


@posix
@pytest.mark.parametrize("linked", [False, True], ids=["", "linked"])
@pytest.mark.parametrize("lose", LOSSES.values(), ids=LOSSES)
def test_nothing_is_bought_on_a_ledger_that_is_no_longer_there(
    make_session: Callable[..., Routeweiler], paywall: Paywall, lnd: FakeLnd, tmp_path: Path, lose: Any, linked: bool
) -> None:
    """Else the record of a payment dies with the process: its token is lost, the next run pays again and counts from nothing."""
    path = tmp_path / "state" / "ledger.db"
    path.parent.mkdir()
    if linked:
        (tmp_path / "link.db").symlink_to(path)
    session = make_session(ledger=tmp_path / "link.db" if linked else path)
    paywall.add_service("/second", name="second", price_msat=3_000)
    assert session.get(paywall.url).status_code == 200
    put_back = lose(path)
    assert "deleted, moved or replaced" in str(refused(session, paywall.url_for("/second"), lnd))
    assert session.get(paywall.url).status_code == 200  # what is paid for is paid for
    put_back()
    assert session.get(paywall.url_for("/second")).status_code == 200
    assert len(lnd.payments) == 2
    assert [row.state.value for row in Ledger.open(path).payments()] == ["settled", "settled"]


@posix
def test_a_link_that_leads_elsewhere_is_another_ledger(
    make_session: Callable[..., Routeweiler], paywall: Paywall, lnd: FakeLnd, tmp_path: Path
) -> None:
    """Else two sessions that name one ledger buy for two: each need twice, each budget twice."""
    link = tmp_path / "ledger.db"
    link.symlink_to(tmp_path / "one.db")
    session = make_session(ledger=Ledger.open(link))
    paywall.add_service("/second", name="second", price_msat=3_000)
    assert session.get(paywall.url).status_code == 200
    link.unlink()
    link.symlink_to(tmp_path / "two.db")
    refused(session, paywall.url_for("/second"), lnd)
    assert not (tmp_path / "two.db").exists()


@posix
def test_a_session_that_is_closed_begins_with_what_is_there(
    session: Routeweiler, paywall: Paywall, lnd: FakeLnd, books: Books
) -> None:
    """Else who deletes the ledger on purpose could go on only by ending the program, though the error promises otherwise."""
    assert session.get(paywall.url).status_code == 200
    paywall.add_service("/second", name="second", price_msat=3_000)
    for each in parts(books.ledger_path):
        each.unlink()
    refused(session, paywall.url_for("/second"), lnd)
    assert not books.ledger_path.exists()
    session.close()
    assert session.get(paywall.url_for("/second")).status_code == 200
    assert [row.amount_msat for row in books.rows] == [3_000]


@posix
def test_a_page_is_handed_over_though_the_ledger_was_deleted_while_the_node_paid(
    session: Routeweiler, paywall: Paywall, lnd: FakeLnd, books: Books
) -> None:
    """Else a payment whose row is gone for good brings nothing: the token is in our hands at this moment and never again."""
    with in_flight(session, paywall, lnd) as call:
        for each in parts(books.ledger_path):
            each.unlink()
        lnd.release()
        response = call.result(PATIENCE_S)
    assert (response.status_code, response.content) == (200, paywall.content)
    paywall.add_service("/second", name="second", price_msat=3_000)
    refused(session, paywall.url_for("/second"), lnd)
    assert session.get(paywall.url).status_code == 200
    assert len(lnd.payments) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_doesnt_forget_which_file_it_was(tmp_path: Path) -> None:
    """Else, since a fork closes the file, parent and child would make an empty one in its place, and buy everything again."""
    path = tmp_path / "ledger.db"
    ledger = Ledger.open(path)
    ledger.open_payment(intent(1), None)
    put_back = moved_away(path)
    pid = os.fork()
    if pid == 0:
        try:
            ledger.open_payment(intent(2), None)
        except LedgerError:
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    for use in (partial(ledger.open_payment, intent(2), None), partial(ledger.payment, hash_of(1))):
        with pytest.raises(LedgerError, match="deleted, moved or replaced"):
            use()
    assert not path.exists()
    put_back()
    assert ledger.open_payment(intent(2), None)[1]
    assert ledger.payment(hash_of(1)) is not None
    ledger.close()


def test_a_frozen_envelope_is_frozen_for_all(tmp_path: Path) -> None:
    """Else "frozen" is said of a budget that everybody else goes on spending."""
    path = tmp_path / "ledger.db"
    ledger = Ledger.open(path)
    ledger.open_payment(intent(1), None)
    if os.name != "nt":
        put_back = replaced(path)
        with pytest.raises(LedgerError, match="replaced"):
            ledger.freeze("default")
        put_back()
    ledger.freeze("default")
    assert Ledger.open(path).envelope("default").frozen
    ledger.close()


def test_a_ledger_that_one_thread_closes_serves_the_others(tmp_path: Path) -> None:
    """Else a session that ends would have the ledger of another called "deleted"."""
    ledger = Ledger.open(tmp_path / "ledger.db")

    ledger.open_payment(intent(1), None)
    ledger.payment(hash_of(1))
    reader, close = ledger._store._reader, _Line.close  # type: ignore[attr-defined]
    buyer = threading.Thread(target=ledger.open_payment, args=(intent(2), None), daemon=True)

    def closed(line: _Line) -> None:
        close(line)
        if line is reader:  # in the midst of the closing, another thread buys; at the latest when that is over
            buyer.start()
            buyer.join(0.3)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(_Line, "close", closed)
        ledger.close()
    buyer.join(PATIENCE_S)
    assert ledger.open_payment(intent(3), None)[1]
    assert len(list(ledger.payments())) == 3
    ledger.close()


def test_a_rollback_that_fails_hides_no_interrupt(tmp_path: Path) -> None:
    """Else Ctrl-C on a broken disk would be taken for an error of the ledger, and the program would go on."""
    ledger = Ledger.open(tmp_path / "ledger.db")
    ledger.open_payment(intent(1), None)
    store: Any = ledger._store

    class Stuck:
        connection = store._writer.connection

        def __getattr__(self, name: str) -> Any:
            return getattr(self.connection, name)

        def execute(self, sql: str, *rest: Any) -> Any:
            if sql == "ROLLBACK":
                raise sqlite3.OperationalError("disk I/O error")
            return self.connection.execute(sql, *rest)

    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    store._writer.connection = Stuck()
    with pytest.raises(KeyboardInterrupt):
        ledger.change(hash_of(1), interrupted)
    assert ledger.open_payment(intent(2), None)[1]
    ledger.close()


# -- more than one name --------------------------------------------------------------------------------------------------------


def hard_link(path: Path, folder: Path | None = None) -> Path:
    """Another name of the file, in its folder or in another one."""
    other = (folder or path.parent) / "other.db"
    other.parent.mkdir(exist_ok=True)
    os.link(path, other)
    return other


def bought(make_session: Callable[..., Routeweiler], paywall: Paywall, path: Path) -> None:
    """A ledger with one payment, that no program has open."""
    with make_session(ledger=path) as session:
        assert session.get(paywall.url).status_code == 200


@posix
@pytest.mark.parametrize("asked", ["first name", "second name"])
@pytest.mark.parametrize("folder", ["", "elsewhere"])
def test_nothing_is_bought_on_a_ledger_with_two_names(
    make_session: Callable[..., Routeweiler], paywall: Paywall, lnd: FakeLnd, tmp_path: Path, asked: str, folder: str
) -> None:
    """Else each name has a log of its own: two programs pay for one page, and each spends the whole budget."""
    path = tmp_path / "ledger.db"
    bought(make_session, paywall, path)
    other = hard_link(path, tmp_path / folder)
    paywall.add_service("/second", name="second", price_msat=3_000)
    for name in (path, other) if asked == "first name" else (other, path):
        session = make_session(ledger=name)
        assert "2 names" in str(refused(session, paywall.url_for("/second"), lnd))
        session.close()
        with pytest.raises(LedgerError, match="2 names"):
            list(Ledger.open(name).payments())
    other.unlink()
    assert make_session(ledger=path).get(paywall.url_for("/second")).status_code == 200
    assert len(lnd.payments) == 2


@posix
def test_a_second_name_is_noticed_while_the_ledger_is_open(
    session: Routeweiler, paywall: Paywall, lnd: FakeLnd, books: Books
) -> None:
    """Else a backup program that links files would have the ledger used under two names until the program ends."""
    assert session.get(paywall.url).status_code == 200
    other = hard_link(books.ledger_path)
    paywall.add_service("/second", name="second", price_msat=3_000)
    assert "2 names" in str(refused(session, paywall.url_for("/second"), lnd))
    assert session.get(paywall.url).status_code == 200  # what is paid for is paid for
    other.unlink()
    assert session.get(paywall.url_for("/second")).status_code == 200
    books.check()


@posix
def test_a_second_name_made_while_the_node_pays_loses_nothing(
    session: Routeweiler, paywall: Paywall, lnd: FakeLnd, books: Books
) -> None:
    """Else a payment that is made would be without a token because of a link."""
    assert session.get(paywall.url_for("/free")).status_code == 200
    with in_flight(session, paywall, lnd) as call:
        other = hard_link(books.ledger_path)
        lnd.release()
        assert call.result(PATIENCE_S).status_code == 200
    other.unlink()
    books.check()


@posix
def test_links_of_one_ledger_are_one_ledger(make_session: Callable[..., Routeweiler], paywall: Paywall, tmp_path: Path) -> None:
    """Else symbolic links, which SQLite resolves, would be refused; or two programs that use them would pay twice."""
    (tmp_path / "data").mkdir()
    for name in ("one.db", "two.db"):
        (tmp_path / name).symlink_to(tmp_path / "data" / "ledger.db")
    (tmp_path / "three").symlink_to(tmp_path / "data")
    sessions = [make_session(ledger=tmp_path / name) for name in ("one.db", "two.db", "three/ledger.db", "data/../one.db")]
    payments = [session.get(paywall.url).payment for session in sessions]
    assert [each is not None and each.reused for each in payments] == [False, True, True, True]
    assert len({session._payer.ledger.url for session in sessions}) == 1
    assert sorted(each.name for each in (tmp_path / "data").iterdir()) == ["ledger.db", "ledger.db-shm", "ledger.db-wal"]


@posix
def test_a_ledger_that_is_mounted_alone_is_refused(
    session: Routeweiler, paywall: Paywall, lnd: FakeLnd, books: Books, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Else a container that is given the file without its folder pays beside the programs outside."""
    mounts = tmp_path / "mounts"
    monkeypatch.setattr(files, "_MOUNTS", str(mounts))
    mounts.write_text(f"1 0 0:1 / {books.ledger_path} rw - ext4 /dev/sda1 rw\n")
    assert "mounted alone" in str(refused(session, paywall.url, lnd))
    mounts.write_text("")
    assert session.get(paywall.url).status_code == 200
    mounts.write_text(f"1 0 0:1 / {books.ledger_path} rw - ext4 /dev/sda1 rw\n")
    paywall.add_service("/second", name="second", price_msat=3_000)
    assert "mounted alone" in str(refused(session, paywall.url_for("/second"), lnd))


# -- the files beside it -------------------------------------------------------------------------------------------------------


def deleted(path: Path) -> None:
    path.unlink()


def replaced_by_a_copy(path: Path) -> None:
    copy = path.with_name("copy")
    shutil.copy(path, copy)
    copy.replace(path)


@posix
@pytest.mark.parametrize("suffix", ["-wal", "-shm"])
@pytest.mark.parametrize("lose", [deleted, replaced_by_a_copy])
@pytest.mark.parametrize("linked", [False, True], ids=["", "linked"])
def test_nothing_is_bought_once_a_file_beside_the_ledger_is_lost(
    make_session: Callable[..., Routeweiler],
    paywall: Paywall,
    lnd: FakeLnd,
    tmp_path: Path,
    suffix: str,
    lose: Callable[[Path], None],
    linked: bool,
) -> None:
    """Else this program goes on in a log that has no name, others begin a new one, and both pay."""
    path = tmp_path / "state" / "ledger.db"
    path.parent.mkdir()
    (tmp_path / "link.db").symlink_to(path)
    session = make_session(ledger=tmp_path / "link.db" if linked else path)
    assert session.get(paywall.url).status_code == 200
    lose(path.with_name(path.name + suffix))
    paywall.add_service("/second", name="second", price_msat=3_000)
    said = str(refused(session, paywall.url_for("/second"), lnd))
    assert f"ledger.db{suffix} was deleted" in said or f"link.db{suffix} was deleted" in said
    assert session.get(paywall.url).status_code == 200  # what is paid for is paid for
    session.close()  # writes what it knows into the file itself
    with make_session(ledger=path) as after:
        assert after.get(paywall.url).payment.reused
        assert after.get(paywall.url_for("/second")).status_code == 200
    assert len(lnd.payments) == 2


@posix
def test_nothing_is_bought_once_the_ledger_is_emptied(
    make_session: Callable[..., Routeweiler], paywall: Paywall, lnd: FakeLnd, tmp_path: Path
) -> None:
    """Else the next program begins anew: SQLite deletes the log of an empty file, with all that was paid."""
    path = tmp_path / "ledger.db"
    session = make_session(ledger=path)
    assert session.get(paywall.url).status_code == 200
    os.truncate(path, 0)
    paywall.add_service("/second", name="second", price_msat=3_000)
    assert "was emptied" in str(refused(session, paywall.url_for("/second"), lnd))
    with make_session(ledger=path) as other:
        assert "is empty, but" in str(refused(other, paywall.url, lnd))
    session.close()  # writes what it knows into the file itself
    with make_session(ledger=path) as after:
        assert after.get(paywall.url).payment.reused
    assert len(lnd.payments) == 1


@posix
def test_nothing_is_bought_once_the_log_of_a_killed_program_is_deleted(
    make_session: Callable[..., Routeweiler], paywall: Paywall, lnd: FakeLnd, tmp_path: Path
) -> None:
    """Else what the log held is bought again. A program that is killed leaves it behind, and who tidies up takes it for rubbish."""
    path, killed = tmp_path / "ledger.db", tmp_path / "killed"
    session = make_session(ledger=path)
    assert session.get(paywall.url).status_code == 200
    killed.mkdir()
    for each in parts(path):  # the files as a killed program leaves them
        shutil.copy2(each, killed / each.name)
    session.close()
    log = killed / "ledger.db-wal"
    held = log.read_bytes()
    log.unlink()
    with make_session(ledger=killed / "ledger.db") as after:
        assert "ledger.db-wal was deleted" in str(refused(after, paywall.url, lnd))
        log.write_bytes(held)
        log.chmod(0o600)
        assert after.get(paywall.url).payment.reused
    assert len(lnd.payments) == 1


@posix
def test_files_beside_that_sqlite_makes_anew_are_no_loss(tmp_path: Path) -> None:
    """Else each fork, and each close() between two purchases, would end all buying."""
    ledger = Ledger.open(tmp_path / "ledger.db")
    for number in range(1, 4):
        assert ledger.open_payment(intent(number), None)[1]
        store_of_ledger: Any = ledger._store
        store_of_ledger._writer.close()
        store_of_ledger._reader.close()
        assert not (tmp_path / "ledger.db-wal").exists()
    ledger.close()


@posix
def test_looking_at_the_file_costs_little(tmp_path: Path) -> None:
    """Else every purchase would be slower for what hardly ever happens."""
    ledger = Ledger.open(tmp_path / "ledger.db")
    ledger.freeze("default")
    store: Any = ledger._store

    def look() -> None:
        store._refuse_if_gone()
        store._refuse_if_beside_is_gone()
        store._refuse_if_unsafe(files.require_one_name, files.require_private)

    looks = 200
    took_s = min(timeit.repeat(look, number=looks, repeat=5))
    assert took_s / looks < 0.002
    ledger.close()


# -- who may use it ------------------------------------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize("suffix", ["", "-wal"])
def test_nothing_is_bought_on_a_ledger_that_every_user_can_write(
    make_session: Callable[..., Routeweiler], paywall: Paywall, lnd: FakeLnd, tmp_path: Path, suffix: str
) -> None:
    """Else any user of the machine can raise the budget, or take and replace tokens."""
    path = tmp_path / "ledger.db"
    session = make_session(ledger=path)
    assert session.get(paywall.url).status_code == 200
    paywall.add_service("/second", name="second", price_msat=3_000)
    path.with_name(path.name + suffix).chmod(0o666)
    assert "chmod 600" in str(refused(session, paywall.url_for("/second"), lnd))
    path.with_name(path.name + suffix).chmod(0o600)
    assert session.get(paywall.url_for("/second")).status_code == 200


@posix
@pytest.mark.parametrize("mode", [0o640, 0o644, 0o660, 0o664], ids=oct)
def test_a_ledger_that_others_can_use_is_told_by_its_name(
    make_session: Callable[..., Routeweiler], paywall: Paywall, tmp_path: Path, mode: int
) -> None:
    """Else tokens are readable by others for years, and nobody notices."""
    path = tmp_path / "ledger.db"
    bought(make_session, paywall, path)
    path.chmod(mode)
    with pytest.warns(RuntimeWarning, match=r"ledger\.db isn't private"), make_session(ledger=path) as session:
        assert session.get(paywall.url).status_code == 200


@posix
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away")
def test_a_ledger_of_another_user_is_told(make_session: Callable[..., Routeweiler], paywall: Paywall, tmp_path: Path) -> None:
    """Else a service run as root uses a ledger that a user can change at will."""
    path = tmp_path / "ledger.db"
    bought(make_session, paywall, path)
    os.chown(path, 65_533, -1)
    with pytest.warns(RuntimeWarning, match="belongs to another user"), make_session(ledger=path) as session:
        assert session.get(paywall.url).status_code == 200


@posix
@pytest.mark.parametrize("links", [1, 3])
def test_a_ledger_behind_dangling_links_is_private(
    make_session: Callable[..., Routeweiler], paywall: Paywall, tmp_path: Path, links: int
) -> None:
    """Else whoever sets a link to say where the ledger lies makes its tokens public."""
    target = tmp_path / "data" / "made" / "ledger.db"
    for number in range(links):
        link = tmp_path / f"link-{number}.db"
        link.symlink_to(target)
        target = link
    before = os.umask(0o022)
    try:
        session = make_session(ledger=target)
        assert session.get(paywall.url).status_code == 200
    finally:
        os.umask(before)
    made = list((tmp_path / "data" / "made").iterdir())
    assert {each.name: each.stat().st_mode & 0o777 for each in made} == {f"ledger.db{end}": 0o600 for end in ("", "-wal", "-shm")}


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b"], ids=["nul", "surrogate"])
def test_a_name_that_no_file_can_have_is_a_ledger_error(name: str, tmp_path: Path) -> None:
    """Else a bare ValueError comes out of a GET."""
    with pytest.raises(LedgerError, match="isn't a name") as caught:
        Ledger.open(tmp_path / name)
    assert caught.value.spent is False
    str(caught.value).encode()


# -- cut off, and flipped ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_log_that_was_cut_off_costs_no_second_payment(
    make_session: Callable[..., Routeweiler],
    paywall: Paywall,
    lnd: FakeLnd,
    books: Books,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else a settlement that a power cut took back would be bought anew, though its intent was on disk."""
    monkeypatch.setattr(lifecycle, "LEAVE_ALONE_S", 0.0)
    session = make_session(trace_sink=None)
    wal = books.ledger_path.with_name("ledger.db-wal")
    with in_flight(session, paywall, lnd) as call:
        before_bytes = wal.stat().st_size
        lnd.release()
        assert call.result(PATIENCE_S).status_code == 200
    whole = wal.read_bytes()
    # While it is open the file itself stays as it was: main file and log, copied one after the other, are one state.
    main = books.ledger_path.read_bytes()
    assert len(whole) > before_bytes
    ends = set()
    for cut in sorted({*range(before_bytes, len(whole), 2_000), len(whole) - 1}):
        path = tmp_path / f"cut-{cut}" / "ledger.db"
        path.parent.mkdir()
        for each in (path, path.with_name("ledger.db-wal")):
            each.touch(mode=0o600)
        path.write_bytes(main)
        path.with_name("ledger.db-wal").write_bytes(whole[:cut])
        ends.add(Ledger.open(path).payments().__next__().state.value)
        assert make_session(ledger=path, trace_sink=None).get(paywall.url).status_code == 200
        (row,) = Ledger.open(path).payments()
        assert row.state.value == "settled"
        assert row.preimage is not None
    assert ends == {"open", "settled"}
    assert len(lnd.payments) == len(lnd.orders) == 1


VALUES = {
    "text": "token = CAST(x'74c328' || CAST(token AS BLOB) AS TEXT)",
    "moment": "created_at_ms = 9e18",
    "preimage": "preimage = 'zz'",
    "rate": "btc_price = 'much'",
}


@pytest.mark.parametrize("damage", VALUES.values(), ids=VALUES)
def test_a_row_that_cant_be_read_is_told_without_what_it_holds(tmp_path: Path, damage: str) -> None:
    """Else a flipped bit breaks the call with a foreign exception, and that may write the paid token into a log."""
    path = tmp_path / "ledger.db"
    ledger = Ledger.open(path)
    ledger.open_payment(intent(1, token="the-secret-token"), None)
    settle(ledger, 1)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute(f"UPDATE payments SET {damage}")
    looks: list[Callable[[], object]] = [
        partial(ledger.payment, hash_of(1)),
        partial(ledger.live, ORIGIN),
        lambda: list(ledger.payments()),
        partial(ledger.forget, hash_of(1)),
    ]
    for look in looks:
        with pytest.raises(LedgerError) as caught:
            look()
        told: BaseException | None = caught.value
        while told is not None:
            assert "secret" not in str(told)
            told = told.__cause__ or (None if told.__suppress_context__ else told.__context__)
    ledger.close()


# -- a busy ledger -------------------------------------------------------------------------------------------------------------


def test_free_traffic_doesnt_wait_for_a_purchase_that_waits(
    session: Routeweiler, paywall: Paywall, lnd: FakeLnd, books: Books
) -> None:
    """Else one program that holds the ledger stops all traffic of every other, also what costs nothing."""
    assert session.get(paywall.url).status_code == 200
    paywall.add_service("/second", name="second", price_msat=3_000)
    other = sqlite3.connect(books.ledger_path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with contextlib.closing(other), ThreadPoolExecutor(1) as pool, Paywall(lnd) as elsewhere:
        purchase = pool.submit(session.get, paywall.url_for("/second"))
        paywall.wait_for(lambda: any(request.path == "/second" for request in paywall.requests))
        writer = store_of(session)._writer.lock
        elsewhere.wait_for(lambda: not writer.acquire(blocking=False) or writer.release())
        assert session.get(elsewhere.url_for("/free")).status_code == 200
        assert ledger_of(session).payment("none") is None
        assert not purchase.done()
        other.execute("ROLLBACK")
        assert purchase.result(PATIENCE_S).status_code == 200
    books.check()


def test_a_reader_never_writes(tmp_path: Path) -> None:
    """Else two connections of one process would wait for each other."""
    ledger = Ledger.open(tmp_path / "ledger.db")
    ledger.open_payment(intent(1), None)
    with pytest.raises(LedgerError, match="readonly"), ledger._store.read() as tx:
        tx.execute("DELETE FROM payments")
    assert ledger.payment(hash_of(1)) is not None
    ledger.close()


def test_a_copy_of_the_file_as_it_lies_on_disk_is_a_ledger(tmp_path: Path) -> None:
    """Else a backup of both files, taken while sessions run, would be refused."""
    ledger = Ledger.open(tmp_path / "ledger.db")
    ledger.open_payment(intent(1), None)
    (tmp_path / "copy").mkdir()
    for each in parts(tmp_path / "ledger.db"):
        shutil.copy(each, tmp_path / "copy")
    copy = Ledger.open(tmp_path / "copy" / "ledger.db")
    assert copy.payment(hash_of(1)) is not None
    copy.close()
    ledger.close()
