"""The timer of each transaction: it cuts a connection in time, leaves one that has ended alone, and leaves no thread behind."""

from __future__ import annotations

import os
import socket
import time
from _thread import _count as threads  # bare threads too, which `threading` doesn't know
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from routeweiler_sync.errors import LedgerError
from routeweiler_sync.ledger.ledger import Ledger
from routeweiler_sync.ledger.postgres import connections
from routeweiler_sync.ledger.postgres.connections import Guard
from tests.support.ledger_builders import draw, hash_of, intent, limits

#: Far longer than anything here takes.
LONG_S = 60.0


def until(condition: Callable[[], object]) -> None:
    """Wait for ``condition``."""
    end_s = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end_s, "it never came to that"
        time.sleep(0.005)


class Link:
    """What a guard sees of a connection: a socket."""

    def __init__(self) -> None:
        self.near, self.far = socket.socketpair()
        self.connection: Any = self

    def fileno(self) -> int:
        return self.near.fileno()

    def is_cut(self) -> bool:
        self.far.setblocking(False)
        try:
            return self.far.recv(1) == b""
        except BlockingIOError:
            return False


@pytest.fixture
def link() -> Iterator[Any]:
    link = Link()
    yield link
    link.near.close()
    link.far.close()


def test_a_connection_is_cut_when_its_time_is_over_also_if_it_is_named_later(link: Any) -> None:
    """Else a server that is frozen would hold a thread for ever."""
    other = Link()
    with Guard(0.01)() as guard:
        guard.watch(link)
        until(lambda: guard.is_over)
        until(link.is_cut)
        guard.watch(other)
        assert other.is_cut()
        guard.again()
    other.near.close()
    other.far.close()


def test_what_has_ended_in_time_isnt_cut_and_leaves_no_thread(link: Any) -> None:
    """Else the connection would be cut under the next transaction, or each transaction leave a thread for half a minute."""
    before = threads()
    for _ in range(200):
        with Guard(LONG_S)() as guard:
            guard.watch(link)
            guard.again()
    with pytest.raises(KeyboardInterrupt), Guard(LONG_S)() as guard:
        guard.watch(link)
        raise KeyboardInterrupt
    until(lambda: threads() <= before)
    with Guard(0.05)() as short:
        short.watch(link)
    with Guard(0.2)() as later:  # ends after the first one's time
        until(lambda: later.is_over)
    assert not short.is_over
    assert not link.is_cut()


def test_more_time_is_more_time(link: Any) -> None:
    """Else a long read, such as an audit, would be cut after the time of one statement."""
    with Guard(1.0)() as guard:
        guard.watch(link)
        began_s = time.monotonic()
        while time.monotonic() < began_s + 1.3:
            guard.again()
            time.sleep(0.01)
        assert not guard.is_over
        until(lambda: guard.is_over)
        assert link.is_cut()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_child_that_is_forked_in_the_middle_of_a_transaction_ends_its_block(link: Any) -> None:
    """Else a fork under way would hang, or cut its parent's connection."""
    block = Guard(LONG_S)()
    with block as guard:
        guard.watch(link)
        child = os.fork()
        if not child:
            status = 1
            try:
                guard.again()
                block.__exit__(None, None, None)
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert not link.is_cut()


def test_where_no_thread_can_be_started_nothing_is_written(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a program with too many threads, or one that ends, would get an error that no handler of ours knows."""
    ledger.check_writable()

    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as context:
        context.setattr(connections, "start_new_thread", refuse)
        with pytest.raises(LedgerError, match="can't start new thread") as refused:
            ledger.open_payment(intent(1), draw(limits()))
        assert refused.value.advice
    assert ledger.payment(hash_of(1)) is None
    assert ledger.open_payment(intent(1), draw(limits()))[1], "its connection is free again"
