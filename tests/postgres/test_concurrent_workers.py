"""Many workers on one PostgreSQL ledger: threads, processes, forks, and the first of all to come."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from routeweiler_sync.errors import BudgetExceededError, LedgerError
from routeweiler_sync.ledger.ledger import Ledger
from routeweiler_sync.ledger.types import PaymentRow
from tests.support.ledger_builders import PATIENCE_S, at_once, die, draw, hash_of, held_msat, intent, limits, settle

from .server import Server

SPAWN = multiprocessing.get_context("spawn")
PROCESSES, THREADS = 4, 16
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
Make = Callable[..., Ledger]


def in_processes(work: Callable[..., Any], *arguments: Any, processes: int = PROCESSES) -> list[Any]:
    """What ``work(number, *arguments, barrier)`` gives in processes of their own, all starting together."""
    barrier, answers = SPAWN.Barrier(processes), SPAWN.Queue()
    workers = [SPAWN.Process(target=_answer, args=(work, answers, n, *arguments, barrier), daemon=True) for n in range(processes)]
    for worker in workers:
        worker.start()
    told = [answers.get(timeout=PATIENCE_S) for _ in workers]
    for worker in workers:
        worker.join(PATIENCE_S)
    for answer in told:
        if isinstance(answer, Exception):
            raise answer
    return told


def _answer(work: Callable[..., Any], answers: Any, *arguments: Any) -> None:
    try:
        answers.put(work(*arguments))
    except Exception as error:
        answers.put(error if isinstance(error, LedgerError) else RuntimeError(repr(error)))


def _opens_first(n: int, urls: list[str], barrier: Any) -> list[int]:
    seen = []
    for url in urls:
        ledger = Ledger.open(url)
        barrier.wait(PATIENCE_S)
        seen.append(len(ledger.unfinished()))
        ledger.close()
    return seen


@pytest.mark.slow
def test_of_many_who_come_first_together_all_find_a_ledger(server: Server) -> None:
    """Else of a fleet that is started on an empty database, all workers but one would fail, or make half a ledger each."""
    urls = [server.url(server.new_database()) for _ in range(5)]
    assert in_processes(_opens_first, urls, processes=8) == [[0] * 5] * 8
    for url in urls:
        assert Ledger.open(url).open_payment(intent(1), draw(limits()))[1]


def test_of_many_threads_who_come_first_together_all_find_a_ledger(server: Server) -> None:
    """As before, so close together that they meet within the making of the tables."""
    for _ in range(5):
        url = server.url(server.new_database())
        ledgers = [Ledger.open(url) for _ in range(8)]
        assert at_once([ledger.unfinished for ledger in ledgers]) == [[]] * 8
        for ledger in ledgers:
            ledger.close()


def _buys_one_need(n: int, url: str, needs: int, barrier: Any) -> list[list[tuple[str, bool]]]:
    ledger = Ledger.open(url)
    told = []
    for token_request in range(needs):
        barrier.wait(PATIENCE_S)
        tasks = [
            partial(
                ledger.open_payment,
                intent(10_000 * token_request + 100 * n + t, scope=f"need {token_request}"),
                draw(limits(f"e{t % 3}")),
            )
            for t in range(THREADS)
        ]
        told.append([(row.payment_hash, is_new) for row, is_new in at_once(tasks)])
    ledger.close()
    return told


@pytest.mark.slow
def test_of_many_workers_one_buys(url: str, make_ledger: Make) -> None:
    """Else a fleet would pay for one page as often as it has workers; also where they draw on different envelopes."""
    needs = 8
    told = in_processes(_buys_one_need, url, needs)
    for token_request in range(needs):
        results = [result for worker in told for result in worker[token_request]]
        assert sum(is_new for _, is_new in results) == 1
        assert len({payment_hash for payment_hash, _ in results}) == 1
    ledger = make_ledger()
    assert len(ledger.unfinished()) == needs
    assert sum(held_msat(ledger, row.limits.id)[0] for row in ledger.envelopes()) == needs * 11_000


def _spends(n: int, url: str, cap_sat: int, barrier: Any) -> tuple[int, int]:
    ledger = Ledger.open(url)
    envelope = limits(cap_minor_units=cap_sat, per_hour_minor_units=cap_sat, per_day_minor_units=cap_sat)
    barrier.wait(PATIENCE_S)

    def buy(t: int) -> int:
        bought = 0
        for step in range(6):
            number = 10_000 * n + 100 * t + step
            try:
                ledger.open_payment(intent(number, fee_cap_msat=0), draw(envelope))
            except BudgetExceededError:
                continue
            if step % 3 == 0:
                die(ledger, number)
            else:
                settle(ledger, number)
                bought += 1
            held = sum(held_msat(ledger))
            assert held <= cap_sat * 1000, f"{held} msat of {cap_sat} sat"
        return bought

    bought = sum(at_once([partial(buy, t) for t in range(8)]))
    ledger.close()
    return bought, n


@pytest.mark.slow
def test_the_cap_is_reached_exactly_and_never_passed(url: str, make_ledger: Make) -> None:
    """Else a fleet would spend more than its owner allowed: each worker a little, all together a lot."""
    cap_sat = 700  # of the 1280 sat that they would spend
    told = in_processes(_spends, url, cap_sat)
    assert held_msat(make_ledger()) == (0, cap_sat * 1000)
    assert sum(bought for bought, _ in told) * 10 == cap_sat


# -- forks ----------------------------------------------------------------------------------------------------------------------


def in_child(deed: Callable[[], object]) -> bool:
    """Whether ``deed`` ended well in a forked child, which then ends as Python ends."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            deed()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@forks
def test_a_forked_child_and_its_parent_share_the_ledger_and_no_connection(ledger: Ledger) -> None:
    """Else the workers of a pre-forking server would read one another's answers: the wrong token, the wrong total."""
    ledger.open_payment(intent(0), draw(limits()))

    def buy(first: int) -> None:
        for n in range(first, first + 10):
            assert ledger.open_payment(intent(n), draw(limits()))[1]
            settle(ledger, n)

    def backend() -> object:
        with ledger._store.read() as tx:
            return tx.execute("SELECT pg_backend_pid() AS pid")

    mine = backend()

    def elsewhere() -> None:
        assert backend() != mine
        ledger.close()

    assert in_child(elsewhere)
    assert backend() == mine
    assert all(in_child(partial(buy, first)) for first in (100, 200))
    buy(300)
    assert held_msat(ledger) == (11_000, 300_000)


@forks
def test_a_child_that_closes_the_ledger_leaves_its_parents_alone(ledger: Ledger) -> None:
    """Else a worker's end would say goodbye on the parent's connection, in the middle of its transaction."""
    ledger.open_payment(intent(1), draw(limits()))

    def decide(row: PaymentRow) -> None:
        assert in_child(ledger.close)
        assert in_child(partial(ledger.open_payment, intent(2), None))

    ledger.change(hash_of(1), decide)
    ((link,),) = (ledger._store._pool._idle,)  # type: ignore[attr-defined]
    assert not link.connection.broken
    assert len(ledger.unfinished()) == 2
