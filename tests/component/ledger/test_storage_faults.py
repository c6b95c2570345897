"""The ledger's storage fails: before a payment it is refused, after one nothing that was paid for is lost.

Each fault is a block around a real file, entered either before a call or while the node pays, and mended at its end. What must
hold is the same for all: before, nothing reaches the node; after, the row stays open and the next call, or ``recover()``,
gets the page for the one payment.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import requests

from routeweiler_sync import Ledger, LedgerError, PaymentPendingError, PaymentState, Routeweiler, RouteweilerError
from routeweiler_sync.ledger import sqlite as sqlite_module
from routeweiler_sync.payments import single_flight as flight
from routeweiler_sync.testing import FakeLnd, Paywall
from routeweiler_sync.testing.paywall import Page
from tests.support.accounts import Books
from tests.support.users import somebody

pytestmark = pytest.mark.timeout(120)
posix = pytest.mark.skipif(
    os.name == "nt", reason="an open file can be neither deleted nor replaced here, nor a file's size limited"
)
Fault = Callable[[Routeweiler], AbstractContextManager[None]]
#: Beyond this nothing is waited for that works.
PATIENCE_S = 60
#: Advice that a fault's error must give.
MEND = r"call again|Put it back|[Rr]estore|Name another|Repair|room"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_module, "BUSY_TIMEOUT_S", 0.2)


def ledger_of(session: Routeweiler) -> Ledger:
    return session._payer.ledger


def store_of(session: Routeweiler) -> Any:
    return ledger_of(session)._store


# -- faults -----------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def locked(session: Routeweiler) -> Iterator[None]:
    """Another program holds the file for longer than we wait."""
    other = sqlite3.connect(store_of(session).path, isolation_level=None, check_same_thread=False)
    with contextlib.closing(other):
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


@contextlib.contextmanager
def read_only(session: Routeweiler) -> Iterator[None]:
    """SQLITE_READONLY, as after a remount."""
    connection = store_of(session)._writer.connection
    connection.execute("PRAGMA query_only=ON")
    yield
    connection.execute("PRAGMA query_only=OFF")


@contextlib.contextmanager
def unwritable(session: Routeweiler) -> Iterator[None]:
    """The system refuses every byte by which the log would grow."""
    import resource

    limit_bytes = os.path.getsize(os.path.realpath(store_of(session).path) + "-wal")
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))


def damaged(how: Callable[[bytes], bytes]) -> Fault:
    """The file is damaged while nobody has it open, and later restored."""

    @contextlib.contextmanager
    def fault(session: Routeweiler) -> Iterator[None]:
        path = store_of(session).path
        ledger_of(session).close()
        whole = path.read_bytes()
        path.write_bytes(how(whole))
        yield
        ledger_of(session).close()
        for part in path.parent.glob(path.name + "-*"):
            part.unlink()
        path.write_bytes(whole)

    return fault


class Failing:
    """A connection whose COMMIT fails: before it has committed, or after."""

    def __init__(self, connection: sqlite3.Connection, *, commits: bool) -> None:
        self._connection, self._commits = connection, commits

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def execute(self, sql: str, *rest: Any) -> Any:
        if sql != "COMMIT":
            return self._connection.execute(sql, *rest)
        self._connection.execute("COMMIT" if self._commits else "ROLLBACK")
        raise sqlite3.OperationalError("disk I/O error")


def failing_commit(*, commits: bool) -> Fault:
    @contextlib.contextmanager
    def fault(session: Routeweiler) -> Iterator[None]:
        writer = store_of(session)._writer
        connection = writer.connection
        writer.connection = Failing(connection, commits=commits)
        yield
        writer.connection = connection

    return fault


def no_rollback(session: Routeweiler) -> AbstractContextManager[None]:
    """Neither COMMIT nor ROLLBACK works: the connection is of no more use."""

    class Stuck(Failing):
        def execute(self, sql: str, *rest: Any) -> Any:
            if sql in ("COMMIT", "ROLLBACK"):
                raise sqlite3.OperationalError("disk I/O error")
            return self._connection.execute(sql, *rest)

    @contextlib.contextmanager
    def fault() -> Iterator[None]:
        store_of(session)._writer.connection = Stuck(store_of(session)._writer.connection, commits=False)
        yield

    return fault()


FAULTS: dict[str, Fault] = {
    "locked": locked,
    "read-only": read_only,
    "pages damaged": damaged(lambda whole: whole[:4096] + b"\xa5" * (len(whole) - 4096)),
    "truncated": damaged(lambda whole: whole[: 2 * 4096 + 100]),
    "not a database": damaged(lambda _: b"not a database, but long enough to be one" * 400),
    "commit fails": failing_commit(commits=False),
    "rollback fails too": no_rollback,
}
every_fault = pytest.mark.parametrize(
    "fault", [*FAULTS.values(), pytest.param(unwritable, marks=posix)], ids=[*FAULTS, "unwritable"]
)


# -- before and after ----------------------------------------------------------------------------------------------------------


def refused(session: Routeweiler, url: str, lnd: FakeLnd) -> LedgerError:
    """The error of a call that is refused before anything has reached the node."""
    orders = len(lnd.orders)
    with pytest.raises(LedgerError) as caught:
        session.get(url)
    assert caught.value.spent is False
    assert "Nothing was spent by this call" in str(caught.value)
    assert re.search(MEND, str(caught.value))
    assert str(store_of(session).path) in str(caught.value)
    assert len(lnd.orders) == orders
    return caught.value


@contextlib.contextmanager
def in_flight(session: Routeweiler, paywall: Paywall, lnd: FakeLnd) -> Iterator[Future[requests.Response]]:
    """A call whose payment the node has begun; `FakeLnd.release` ends it."""
    lnd.hang_next()
    before = len(lnd.payments)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(session.get, paywall.url)
        lnd.wait_for(lambda node: len(node.payments) > before)
        yield call


def pending(call: Future[requests.Response], lnd: FakeLnd) -> PaymentPendingError:
    """The error of a call whose payment is made and couldn't be booked."""
    error = call.exception(PATIENCE_S)
    assert isinstance(error, PaymentPendingError), error
    assert error.spent is True
    assert error.payment_hash == lnd.payments[-1].payment_hash
    assert "Nothing was spent" not in str(error)
    assert "recover()" in str(error)
    return error


@every_fault
def test_a_storage_fault_before_paying_refuses_the_purchase(
    session: Routeweiler, paywall: Paywall, lnd: FakeLnd, books: Books, fault: Fault
) -> None:
    """Else lnd would pay for something that no record tells of: its token is lost with the process, and no budget counts it."""
    assert session.get(paywall.url_for("/other")).status_code == 200
    paywall.add_service("/second", name="second", price_msat=3_000)
    with fault(session):
        refused(session, paywall.url_for("/second"), lnd)
    assert session.get(paywall.url_for("/second")).status_code == 200
    assert len(lnd.payments) == 2
    books.check()


@pytest.mark.slow
@every_fault
@pytest.mark.parametrize("found_by", ["the next call", "recover"])
def test_a_storage_fault_after_paying_loses_neither_token_nor_payment(
    session: Routeweiler, paywall: Paywall, lnd: FakeLnd, books: Books, fault: Fault, found_by: str
) -> None:
    """Else a full disk at the wrong moment costs the page, or a second payment for it."""
    with in_flight(session, paywall, lnd) as call:
        with fault(session):
            lnd.release()
            error = pending(call, lnd)
        row = books.ledger.payment(error.payment_hash or "")
        assert row is not None
        assert row.state is PaymentState.OPEN
    if found_by == "recover":
        assert [row.state.value for row in session.recover()] == ["settled"]
    assert session.get(paywall.url).status_code == 200
    assert len(lnd.payments) == len(lnd.orders) == 1
    books.check()


def test_a_commit_that_reported_failure_but_was_written_is_noticed(
    session: Routeweiler, paywall: Paywall, lnd: FakeLnd, books: Books
) -> None:
    """Else a caller is told "pending" of a payment that is booked, and doesn't get the page that is paid for."""
    with in_flight(session, paywall, lnd) as call, failing_commit(commits=True)(session):
        lnd.release()
        assert call.result(PATIENCE_S).status_code == 200
    session.recover()  # tells of what couldn't be noted as told
    assert len(lnd.payments) == 1
    books.check()


@pytest.mark.slow
def test_a_purchase_whose_first_commit_reported_failure_is_not_sent(
    session: Routeweiler, paywall: Paywall, lnd: FakeLnd, books: Books
) -> None:
    """Else lnd is asked to pay on the strength of a record that may not be on disk. The row that is there is carried on later."""
    assert session.get(paywall.url_for("/other")).status_code == 200
    paywall.add_service("/second", name="second", price_msat=3_000)
    with failing_commit(commits=True)(session):
        refused(session, paywall.url_for("/second"), lnd)
    assert session.get(paywall.url_for("/second")).status_code == 200
    assert len(lnd.payments) == 2
    books.check()


@contextlib.contextmanager
def moved_away(session: Routeweiler) -> Iterator[None]:
    """Nobody else would find what is written into it."""
    path = store_of(session).path
    path.rename(path.with_name("aside"))
    yield
    path.with_name("aside").rename(path)


@pytest.mark.slow
@pytest.mark.parametrize("fault", [locked, pytest.param(moved_away, marks=posix)])
def test_no_order_is_sent_again_where_the_send_cant_be_counted(
    session: Routeweiler, paywall: Paywall, lnd: FakeLnd, books: Books, fault: Fault
) -> None:
    """Else a second order is on its way that no record counts. The first may yet arrive: whether money was spent isn't known."""
    lnd.drop_next("before_init")
    count_send = Ledger.count_send
    with contextlib.ExitStack() as broken, pytest.MonkeyPatch.context() as patched:

        def counted(*args: Any) -> Any:
            broken.enter_context(fault(session))
            return count_send(*args)

        patched.setattr(Ledger, "count_send", counted)
        with pytest.raises(PaymentPendingError) as caught:
            session.get(paywall.url)
    assert caught.value.spent is None
    assert "Nothing was spent" not in str(caught.value)
    assert lnd.payments == []
    assert session.get(paywall.url).status_code == 200
    assert len(lnd.payments) == 1
    books.check()


def test_an_unfinished_row_that_cant_be_read_again_is_in_doubt(
    make_session: Callable[..., Routeweiler], paywall: Paywall, lnd: FakeLnd, books: Books
) -> None:
    """Else a caller who waits for another's payment is told that nothing was spent, while it is."""
    waiting = make_session()
    with in_flight(make_session(), paywall, lnd) as call:

        def fails(ledger: Ledger, payment_hash: str) -> None:
            raise ledger._store._error("disk I/O error")  # type: ignore[attr-defined]

        # Within one process callers wait for each other elsewhere: as if the buyer were another process.
        flight._flights.clear()
        with pytest.MonkeyPatch.context() as broken:
            broken.setattr(Ledger, "payment", fails)
            with pytest.raises(PaymentPendingError) as caught:
                waiting.get(paywall.url)
        lnd.release()
        assert call.result(PATIENCE_S).status_code == 200
    assert caught.value.spent is None
    assert "Nothing was spent" not in str(caught.value)
    assert caught.value.payment_hash == lnd.payments[0].payment_hash
    assert len(lnd.payments) == 1
    books.check()


# -- a real full disk, real rights ---------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 512 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    mounted = mount and subprocess.run([mount, "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)], capture_output=True)
    if not mounted or mounted.returncode:
        pytest.skip("this user can't mount a small filesystem here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """A file that leaves no room."""
    ballast = folder / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(b"\0" * 4096):
            pass
    return ballast


@pytest.mark.slow
def test_a_full_disk_before_during_or_after_paying_costs_nothing(
    small_disk: Path, make_session: Callable[..., Routeweiler], paywall: Paywall, lnd: FakeLnd
) -> None:
    """Before paying: refused. While the node pays: found again once there is room. Marks behind a page: the page is handed over."""
    session = make_session(ledger=small_disk / "ledger.db")
    with in_flight(session, paywall, lnd) as call:
        ballast = fill(small_disk)
        lnd.release()
        assert "full" in str(pending(call, lnd))
    second = Paywall(lnd)
    with second:
        assert "room" in str(refused(session, second.url, lnd))
        ballast.unlink()
        assert session.get(paywall.url).status_code == 200
        assert len(lnd.payments) == 1

        def as_it_fills(_: object) -> Page:
            fill(small_disk)
            return 200, {}, b"paid"

        second.respond = as_it_fills
        assert session.get(second.url).content == b"paid"
    assert [row.state.value for row in ledger_of(session).payments()] == ["settled", "settled"]


def test_a_database_at_its_size_limit_refuses_the_purchase(
    session: Routeweiler, paywall: Paywall, lnd: FakeLnd, books: Books
) -> None:
    """SQLite's own word for a full disk, wherever there is one: refused before paying."""
    assert session.get(paywall.url).status_code == 200
    connection = store_of(session)._writer.connection
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count={pages}")
    with contextlib.ExitStack() as open_walls:
        for _ in range(50):  # the last pages may have room for a few rows
            other = open_walls.enter_context(Paywall(lnd))
            paid = len(lnd.payments)
            try:
                session.get(other.url)
            except RouteweilerError as error:
                full = error
                break
        assert isinstance(full, LedgerError)
        assert (full.spent, len(lnd.payments)) == (False, paid)
        assert "room" in str(full)
        connection.execute("PRAGMA max_page_count=1000000")
        assert session.get(other.url).status_code == 200
    books.check()


@posix
@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_ledger_without_write_permission_refuses_the_purchase(
    what: str, make_session: Callable[..., Routeweiler], paywall: Paywall, lnd: FakeLnd
) -> None:
    """Else a ledger of another user would break with an error that no handler knows, or money would move without a record."""
    client = lnd.client()
    client.get_info()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.db"
        Ledger.open(path).freeze("default")
        Ledger.open(path).thaw("default")
        os.chmod(path, 0o400 if what == "file" else 0o600)
        if os.geteuid() == 0:
            os.chown(path, 65534, -1)
        os.chmod(folder, 0o777 if what == "file" else 0o555)
        session = make_session(funding=[lnd.funding(client=client)], ledger=path, trace_sink=None)
        with somebody():
            if os.access(path if what == "file" else folder, os.W_OK, effective_ids=True):
                pytest.skip("this user can write anywhere")
            refused(session, paywall.url, lnd)
        session.close()
        os.chmod(folder, 0o777)
        os.chmod(path, 0o600)
        assert session.get(paywall.url).status_code == 200
        session.close()


# -- the page comes first ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [locked, read_only, pytest.param(unwritable, marks=posix), failing_commit(commits=False)])
def test_a_paid_page_is_handed_over_though_nothing_can_be_noted(
    session: Routeweiler, paywall: Paywall, lnd: FakeLnd, books: Books, fault: Fault, caplog: pytest.LogCaptureFixture
) -> None:
    """Else the server has served what was paid for, and the caller gets an exception in its place."""
    with contextlib.ExitStack() as broken:

        def respond(_: object) -> Page:
            broken.enter_context(fault(session))
            return 200, {}, b"paid"

        paywall.respond = respond
        with caplog.at_level(logging.WARNING):
            response = session.get(paywall.url)
        assert response.content == b"paid"
        assert "can't note that a token was accepted" in caplog.text
    paywall.respond = None
    assert session.get(paywall.url).status_code == 200
    session.recover()
    assert len(lnd.payments) == 1
    books.check()


@pytest.mark.parametrize("fault", [locked, read_only, pytest.param(unwritable, marks=posix), failing_commit(commits=False)])
def test_a_charge_that_could_not_be_noted_as_spent_is_not_presented_again(
    session: Routeweiler, lnd: FakeLnd, books: Books, fault: Fault
) -> None:
    """Else the server refuses it, and so every further call for its request, until the user forgets what was delivered."""
    with contextlib.ExitStack() as broken:

        def respond(_: object) -> Page:
            broken.enter_context(fault(session))
            return 200, {}, b"paid"

        with Paywall(lnd, scheme="Payment", form="pympp", respond=respond) as paywall:
            assert session.get(paywall.url).content == b"paid"
            broken.close()
            paywall.respond = None
            for payments in (2, 3):
                assert session.get(paywall.url).status_code == 200
                assert len(lnd.payments) == payments
    session.recover()
    assert [(row.state.value, row.accepted) for row in books.rows] == [("retired", True)] * 3
    books.check()


def test_a_page_is_handed_over_though_it_cant_be_looked_up_whether_its_payment_was_told(
    session: Routeweiler, make_session: Callable[..., Routeweiler], paywall: Paywall, lnd: FakeLnd, books: Books
) -> None:
    """Else a ledger that breaks while a page is on its way costs the page."""
    session.get(paywall.url)
    store_of(session).close()
    with contextlib.closing(sqlite3.connect(books.ledger_path)) as database:
        database.execute("UPDATE payments SET told = 0")
        database.commit()
    books.trace_path.unlink()
    later = make_session()

    def respond(_: object) -> Page:
        reader = store_of(later)._reader
        reader.connection.close()  # every further use is refused
        return 200, {}, b"paid"

    paywall.respond = respond
    assert later.get(paywall.url).content == b"paid"
    store_of(later).close()
    later.recover()
    books.check()


def test_an_error_after_a_payment_never_says_that_nothing_was_spent(
    session: Routeweiler, paywall: Paywall, lnd: FakeLnd, books: Books
) -> None:
    """Else who reads it believes the money still there: here the ledger breaks between the payment and the refused token."""
    paywall.faults.refuse_tokens = True
    read = sqlite_module.SqliteStore.read

    def breaks_late(store: Any) -> Any:
        if any(request.authorized for request in paywall.requests):
            raise store._error("disk I/O error")
        return read(store)

    with pytest.MonkeyPatch.context() as broken:
        broken.setattr(sqlite_module.SqliteStore, "read", breaks_late)
        with pytest.raises(LedgerError) as caught:
            session.get(paywall.url)
    assert caught.value.spent is True
    assert "Nothing was spent" not in str(caught.value)
    paywall.faults.refuse_tokens = False
    assert session.get(paywall.url).status_code == 200
    assert len(lnd.payments) == 1
    books.check()
