"""Code of the program that runs in the middle of our own, in the same thread: signal handlers, finalizers, confirm().

A signal comes before and after every SQL statement of a purchase, and its handler uses the session. Books and node agree
afterwards. ROUTEWEILER_DEEP_TESTS=1 sends more of them.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import re
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import pytest

from routeweiler_sync import (
    BudgetEnvelope,
    Ledger,
    LedgerError,
    PaymentDeclinedError,
    PaymentPendingError,
    Quote,
    Routeweiler,
    RouteweilerError,
)
from routeweiler_sync._core import preload
from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.accounts import Books

Make = Callable[..., Routeweiler]
Deed = Callable[[Routeweiler, Paywall, Books], object]

posix = pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="there are no signals here")
DEEP = os.environ.get("ROUTEWEILER_DEEP_TESTS") == "1"
#: Longer than any call of these tests takes, and shorter than a wait for the ledger's lock.
SOON_S = 10.0


class Alarm:
    """Calls ``deed`` at the n-th step of the main thread."""

    def __init__(self) -> None:
        self.steps, self.at, self.statements = 0, -1, list[str]()
        self.deed: Callable[[], object] = lambda: None

    def arm(self, at: int, deed: Callable[[], object]) -> None:
        self.steps, self.at, self.deed = 0, at, deed
        self.statements.clear()

    def step(self, sql: str) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        self.steps += 1
        self.statements.append(sql)
        if self.steps == self.at:
            self.at = -1
            signal.raise_signal(signal.SIGUSR1)


@pytest.fixture
def alarm() -> Iterator[Alarm]:
    """Every SQL statement in the main thread is two steps: before it and after it."""
    alarm = Alarm()

    class Stepped(sqlite3.Connection):
        def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
            alarm.step(sql)
            done = super().execute(sql, *parameters)
            alarm.step(sql)
            return done

    before = signal.signal(signal.SIGUSR1, lambda *_: alarm.deed())
    with patch.object(sqlite3, "connect", functools.partial(sqlite3.connect, factory=Stepped)):
        yield alarm
    signal.signal(signal.SIGUSR1, before)


def buy_another_page(session: Routeweiler, paywall: Paywall, books: Books) -> None:
    assert session.get(paywall.url_for("/handler"), timeout=SOON_S).status_code == 200


def buy_the_same_page(session: Routeweiler, paywall: Paywall, books: Books) -> None:
    session.get(paywall.url_for("/main"), timeout=SOON_S)


def write_through_another_ledger(session: Routeweiler, paywall: Paywall, books: Books) -> None:
    with contextlib.closing(Ledger.open(books.ledger_path)) as ledger:
        assert list(ledger.payments())
        ledger.freeze("b")
        ledger.thaw("b")


def recover(session: Routeweiler, paywall: Paywall, books: Books) -> None:
    session.recover()


def close(session: Routeweiler, paywall: Paywall, books: Books) -> None:
    session.close()
    session._payer.ledger.close()


def read(session: Routeweiler, paywall: Paywall, books: Books) -> None:
    assert list(session._payer.ledger.payments())


def interrupt(session: Routeweiler, paywall: Paywall, books: Books) -> None:
    raise KeyboardInterrupt


def call(session: Routeweiler, url: str) -> Any:
    try:
        return session.get(url, timeout=SOON_S).status_code
    except (RouteweilerError, KeyboardInterrupt) as error:
        return error


DEEDS = [buy_another_page, buy_the_same_page, write_through_another_ledger, recover, close, read, interrupt]
every_deed = pytest.mark.parametrize("deed", DEEDS, ids=lambda deed: deed.__name__)


@posix
@pytest.mark.slow
@pytest.mark.parametrize("cold", [False, True], ids=["warm", "cold"])
@every_deed
def test_a_handler_at_every_statement_of_a_purchase_disturbs_nothing(
    alarm: Alarm, make_session: Make, paywall: Paywall, lnd: FakeLnd, books: Books, deed: Deed, cold: bool
) -> None:
    """Half of a transaction would be undone, and what it had reserved would stay reserved for ever; or the program would hang.

    A cold purchase has all statements of a warm one. So a signal at each of them is for the cold one, unless there is time.
    """
    walk(alarm, make_session, paywall, lnd, books, deed, cold=cold, stride=1 if cold or DEEP else 5)


@posix
@every_deed
def test_a_handler_in_the_middle_of_a_purchase_disturbs_nothing(
    alarm: Alarm, make_session: Make, paywall: Paywall, lnd: FakeLnd, books: Books, deed: Deed
) -> None:
    """The same, at some of the statements."""
    walk(alarm, make_session, paywall, lnd, books, deed, cold=True, stride=13)


def walk(
    alarm: Alarm, make_session: Make, paywall: Paywall, lnd: FakeLnd, books: Books, deed: Deed, *, cold: bool, stride: int
) -> None:
    """One purchase after the other, each with a signal at another step. ``cold``: the connections are opened anew."""
    paywall.service.dynamic = True
    session = make_session(budget_envelope=BudgetEnvelope("b", cap_minor_units=10**6), payment_timeout=SOON_S)
    assert call(session, paywall.url_for("/first")) == 200
    at, answers = 1 - stride, []
    while True:
        at += stride
        if cold:
            session._payer.ledger.close()

        def handle() -> None:
            began_s = time.monotonic()
            try:
                deed(session, paywall, books)
            except RouteweilerError as error:
                answers.append(error)
            assert time.monotonic() - began_s < SOON_S / 2, "the handler waited for its own thread"

        alarm.arm(at, handle)
        done = call(session, paywall.url_for("/main"))
        statements = list(alarm.statements)
        if alarm.at == at:
            alarm.arm(-1, handle)
            break  # the purchase has fewer steps
        if deed is interrupt:
            assert done == 200 or isinstance(done, KeyboardInterrupt), (at, statements)
        else:
            assert done == 200, (at, statements, done)
        alarm.arm(-1, handle)
        session.recover()
        assert call(session, paywall.url_for("/main")) == 200
        rows = books.rows
        assert not any(row.unfinished for row in rows), (at, statements)
        envelope = books.ledger.envelope("b")
        assert envelope.reserved_minor_units == 0, (at, statements)
        assert envelope.settled_minor_units * 1000 == lnd.spent_msat, (at, statements)
        paid = sum(each.status == "SUCCEEDED" for each in lnd.payments)
        assert paid == sum(row.settled_at is not None for row in rows), (at, statements)
        for row in rows:
            if row.state.value == "settled" and row.path != "/first":
                session._payer.ledger.forget(row.payment_hash)
        session._payer.token_cache._origins.clear()
    assert at > 40
    for error in answers:
        assert re.search("[Tt]his same thread|This thread is buying", str(error))
        if not isinstance(error, PaymentPendingError):
            assert error.spent is False
    assert books.ledger.envelope("b").frozen is False


def test_confirm_can_request_another_page_and_not_the_one_that_it_is_asked_about(make_session: Make, paywall: Paywall) -> None:
    """The call would wait for itself until its payment_timeout is over."""
    paywall.service.dynamic = True
    asked: list[Any] = []

    def confirm(quote: Quote) -> bool:
        if quote.url.endswith("/main"):
            asked.extend([call(session, quote.url), call(session, paywall.url_for("/other"))])
        return True

    session = make_session(confirm=confirm, payment_timeout=SOON_S)
    began_s = time.monotonic()
    assert call(session, paywall.url_for("/main")) == 200
    assert time.monotonic() - began_s < SOON_S / 2
    assert isinstance(asked[0], PaymentDeclinedError)
    assert asked[0].spent is False
    assert "This thread is buying" in str(asked[0])
    assert asked[1] == 200


def test_a_finalizer_that_pays_in_the_middle_of_a_transaction_is_refused(
    make_session: Make, paywall: Paywall, lnd: FakeLnd, books: Books
) -> None:
    """An object that uses the session when it is collected may be collected anywhere, also where the ledger is written."""
    paywall.service.dynamic = True
    session, came = make_session(payment_timeout=SOON_S), list[Any]()

    class Reports:
        def __init__(self) -> None:
            self.cycle = self

        def __del__(self) -> None:
            came.append(call(session, paywall.url_for("/report")))

    class Collecting(sqlite3.Connection):
        def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
            if sql.startswith(("INSERT INTO payments", "UPDATE payments SET state = ?")):
                Reports()
                gc.collect()
            return super().execute(sql, *parameters)

    with patch.object(sqlite3, "connect", functools.partial(sqlite3.connect, factory=Collecting)):
        assert call(session, paywall.url_for("/main")) == 200
    assert came
    assert all(isinstance(each, LedgerError) and each.spent is False for each in came)
    books.check()


def test_a_thread_does_not_wait_for_ever_behind_an_interrupted_transaction(tmp_path: Any) -> None:
    """An interrupt between a transaction and its end would leave the connection in use: everything after it would be refused."""
    ledger = Ledger.open(tmp_path / "ledger.db")
    store: Any = ledger._store
    ledger.thaw("default")
    for turn in (store.transaction(), store.read()):
        turn.__enter__()  # and an interrupt keeps __exit__ from being called
        _return_from(turn)
    ledger.freeze("default")
    assert [envelope.frozen for envelope in ledger.envelopes()] == [True]
    store.close()


def _return_from(turn: Any) -> None:
    """Let ``turn`` have been entered by a function that has returned since."""

    def entered() -> Any:
        return sys._getframe(0)

    turn._frame = entered()


def test_a_handler_during_the_first_payments_imports_is_refused(
    make_session: Make, paywall: Paywall, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would find half of a module, and end with an ImportError that says nothing about money."""
    paywall.service.dynamic = True
    session, came, load = make_session(), list[Any](), preload._load

    def interrupted(names: Any) -> None:
        came.append(call(session, paywall.url_for("/handler")))
        load(names)

    monkeypatch.setattr(preload, "_done", preload._done - {"paying"})
    monkeypatch.setattr(preload, "_load", interrupted)
    assert call(session, paywall.url_for("/main")) == 200
    assert came
    for error in came:
        assert isinstance(error, RouteweilerError)
        assert error.spent is False
        assert "this same thread" in str(error)
