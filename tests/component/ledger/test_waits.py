"""How long a call waits for a ledger that doesn't answer: a free page for a moment, a paid call for about its own timeout."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from routeweiler_sync import LedgerError, PaymentPendingError, Routeweiler
from routeweiler_sync._core import deadline
from routeweiler_sync._core.deadline import Deadline, LedgerWait, patience
from routeweiler_sync._core.files import while_locked
from routeweiler_sync.ledger.ledger import Ledger
from routeweiler_sync.ledger.readings import PAGE_ROWS
from routeweiler_sync.payments import token_cache
from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.accounts import Books
from tests.support.http_server import server
from tests.support.ledger_builders import at_once, hash_of, intent, settle

Make = Callable[..., Routeweiler]

#: A call whose timeout is 2 s is over by then, also on a busy machine. A wait for the ledger's own limit takes longer.
SOON_S = 12.0


@pytest.fixture(autouse=True)
def _asked_again() -> Iterator[None]:
    yield
    token_cache._silent.clear()


@contextlib.contextmanager
def exclusively_locked(path: Path) -> Iterator[None]:
    """Another program keeps even readers out."""
    with contextlib.closing(Ledger.open(path)) as ledger:
        ledger.thaw("default")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=30, check_same_thread=False)) as other:
        other.execute("PRAGMA locking_mode=EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        yield
        other.execute("ROLLBACK")


@pytest.fixture
def free_urls() -> Iterator[list[str]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(server(lambda _: (200, [], b"free"))) for _ in range(6)]


@pytest.fixture(params=["clocks that go", "clocks that stand still"])
def _clocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "clocks that stand still":
        wall_s, steady_s = time.time(), time.monotonic()
        monkeypatch.setattr(time, "time", lambda: wall_s)
        monkeypatch.setattr(time, "monotonic", lambda: steady_s)


@pytest.mark.usefixtures("_clocks")
def test_free_pages_are_not_held_up_by_a_locked_ledger(make_session: Make, books: Books, free_urls: list[str]) -> None:
    """Four threads would get their pages after 30, 60, 90 and 120 s, though none of them needs the ledger."""
    session = make_session()
    with exclusively_locked(books.ledger_path):
        began_s = time.perf_counter()
        answers = at_once([partial(session.get, url, timeout=2) for url in free_urls[:4]])
        assert [each.status_code for each in answers] == [200] * 4
        assert time.perf_counter() - began_s < SOON_S / 3
        began_s = time.perf_counter()
        for url in free_urls[4:]:  # other origins don't wait anew
            assert session.get(url, timeout=2).status_code == 200
        assert time.perf_counter() - began_s < token_cache.LOOKUP_WAIT_S


def test_a_token_is_sent_unasked_again_once_the_ledger_answers(
    make_session: Make, books: Books, paywall: Paywall, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each further call of the session would be refused first, for as long as it lives."""
    monkeypatch.setattr(token_cache, "LEAVE_ALONE_S", 0.0)
    with make_session() as buyer:
        assert buyer.get(paywall.url).status_code == 200
    session = make_session()
    with exclusively_locked(books.ledger_path):
        assert session._payer.token_cache.token_for_url(paywall.url) is None
    found = session._payer.token_cache.token_for_url(paywall.url)
    assert found is not None


@pytest.mark.usefixtures("_clocks")
@pytest.mark.parametrize(("settings", "timeout"), [({"payment_timeout": 2}, None), ({}, 2), ({}, (1, 2))])
def test_a_paid_call_ends_soon_after_its_own_timeout(
    make_session: Make, books: Books, paywall: Paywall, lnd: FakeLnd, settings: dict[str, Any], timeout: Any
) -> None:
    """Each of its looks into the ledger would wait for half a minute."""
    session = make_session(**settings)
    with exclusively_locked(books.ledger_path):
        began_s = time.perf_counter()
        with pytest.raises(LedgerError) as caught:
            session.get(paywall.url, timeout=timeout)
        assert time.perf_counter() - began_s < SOON_S
        assert caught.value.spent is False
    assert not lnd.orders


def test_a_call_whose_payment_cant_be_booked_ends_soon(make_session: Make, books: Books, paywall: Paywall, lnd: FakeLnd) -> None:
    """The call would hang after its payment for as long as another program holds the ledger, several times over."""
    session = make_session(payment_timeout=3)
    caught: list[Any] = []

    def buy() -> None:
        try:
            caught.append(session.get(paywall.url, timeout=2))
        except PaymentPendingError as error:
            caught.append(error)

    lnd.hang_next()
    buyer = threading.Thread(target=buy, daemon=True)
    buyer.start()
    lnd.wait_for(lambda node: bool(node.orders))
    other = sqlite3.connect(books.ledger_path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    lnd.release()
    began_s = time.perf_counter()
    buyer.join(60)
    assert time.perf_counter() - began_s < SOON_S
    other.execute("ROLLBACK")
    other.close()
    assert isinstance(caught[0], PaymentPendingError)
    session.recover()
    assert session.get(paywall.url).status_code == 200
    books.check()


def test_waits_end_though_every_clock_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that looks at a clock would never end."""
    monkeypatch.setattr(deadline, "monotonic_s", lambda: 0.0)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    steps: list[int] = []

    def locked() -> None:
        steps.append(1)
        raise sqlite3.OperationalError("database is locked")

    with pytest.raises(sqlite3.OperationalError):
        while_locked(locked, timeout_s=1.0)
    assert 1 < len(steps) <= 1_001
    ends, rounds = Deadline(1.0), 0
    while not ends.passed:
        ends.pause(0.0)
        rounds += 1
    assert rounds <= 1_001


def test_the_waits_of_one_call_count_together() -> None:
    """Ten looks into a locked ledger would take ten times the patience."""
    with patience(1.0):
        for _ in range(3):
            wait = LedgerWait(30.0, least_s=0.25)
            wait.end(in_vain=True)
        assert LedgerWait(30.0, least_s=0.25).allowed_s == 0.25
    assert LedgerWait(30.0).allowed_s == 30.0


def test_listing_payments_costs_the_same_for_each_page(tmp_path: Path) -> None:
    """A ledger of 200 000 payments would take hours to list, since each page would read all that were listed before."""
    ledger = Ledger.open(tmp_path / "ledger.db")
    pages = 8
    ledger.open_payment(intent(1), None)
    settle(ledger, 1)
    with ledger._store.transaction() as tx:
        names = [column["name"] for column in tx.execute("SELECT name FROM pragma_table_info('payments')")]
        columns = ", ".join(name for name in names if name not in ("payment_hash", "scope", "target", "preimage"))
        tx.execute(
            f"INSERT INTO payments (payment_hash, scope, target, {columns}) WITH RECURSIVE n(i) AS "
            "(SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
            f"SELECT printf('%064x', i), 'past-' || i, 'page-' || i, {columns} FROM payments, n WHERE payment_hash = ?",
            (pages * PAGE_ROWS, hash_of(1)),
        )
    store: Any = ledger._store
    ledger.payment(hash_of(1))
    steps: list[int] = []
    store._reader.connection.set_progress_handler(lambda: steps.append(1), 1)
    costs: list[int] = []
    for number, _ in enumerate(ledger.payments()):
        if number % PAGE_ROWS == 0:
            costs.append(len(steps))
            steps.clear()
    assert len(costs) == pages + 1
    assert max(costs[:pages]) < 1.2 * costs[0]
    ledger.close()
