"""Every crash point of a purchase whose ledger is in PostgreSQL: the enumeration of the component tests, in other worlds."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from unittest.mock import patch

import pytest

from routeweiler_sync.testing import FakeLnd, Paywall
from tests.component.conftest import paywall as paywall
from tests.component.payments import test_crash_points as points
from tests.support.accounts import Books
from tests.support.crash_points import Nursery, World, hurry

from .server import Server

pytestmark = pytest.mark.timeout(240)
quickly = pytest.fixture(autouse=True)(hurry)
air = points.air


class PostgresWorld(World):
    """A world whose ledger is in a schema of its own."""

    def __init__(self, folder: Path, lnd: FakeLnd, paywall: Paywall, air: points.Air, url: str) -> None:
        super().__init__(folder, lnd, paywall, air)
        self.books = _Books(folder, self.record, url)  # type: ignore[arg-type]


class _Books(Books):
    def __init__(self, folder: Path, lnd: FakeLnd, url: str) -> None:
        super().__init__(folder, lnd)
        self.ledger_path = url  # type: ignore[assignment]
        self._ledger = super().ledger

    @property
    def ledger(self) -> points.Ledger:
        return self._ledger


@pytest.fixture
def worlds(
    tmp_path: Path, lnd: FakeLnd, paywall: Paywall, air: points.Air, server: Server, database: str
) -> Iterator[Iterator[World]]:
    """Fresh worlds, one for each death."""
    made: list[World] = []

    def each() -> Iterator[World]:
        for number in count():
            server.admin(f"CREATE SCHEMA w{number}", database)
            url = f"{server.url(database)}&options=-csearch_path%3Dw{number}"
            made.append(PostgresWorld(tmp_path / str(number), lnd, paywall, air, url))
            yield made[-1]

    yield each()
    for world in made:
        world.books.ledger.close()


@pytest.fixture
def lnd() -> Iterator[FakeLnd]:
    with FakeLnd() as node:
        node.fee_msat = points.FEE_MSAT
        yield node


@pytest.mark.slow
def test_a_death_at_any_step_costs_nothing(worlds: Iterator[World]) -> None:
    """As on SQLite: a worker dies at the one moment that nobody thought of; its connection's end must undo what it hadn't done."""
    taken = points.deaths(worlds, points._plain)
    assert [name for name in points.PLAIN if name not in taken] == []
    assert sorted(points.PLAIN, key=taken.index) == points.PLAIN


@pytest.mark.slow
@pytest.mark.parametrize("way", ["failed", "dropped before_init", "replaced"])  # those that differ in what the ledger does
def test_a_death_at_any_step_of_a_bad_day_costs_nothing(worlds: Iterator[World], way: str) -> None:
    """As on SQLite: the crash comes while something else has gone wrong already."""
    taken = points.deaths(worlds, points.WAYS[way], since=points.REFUSAL if way == "replaced" else points.INTENT)
    assert points.MARKS[way] in taken


@pytest.mark.slow
def test_an_interrupt_at_any_step_costs_nothing(worlds: Iterator[World]) -> None:
    """Ctrl-C in the midst of a message to the database: the same session must go on, on a connection that is in order."""
    points.interrupts(worlds, points.WAYS["dropped before_init"], points.INTENT)


@pytest.mark.slow
@pytest.mark.parametrize("first", points.FIRST_DEATHS)
def test_a_death_at_any_step_of_a_recovery_costs_nothing(worlds: Iterator[World], first: str) -> None:
    """A recovery that is itself cut short must leave the rows as good as it found them."""
    points.deaths(worlds, points._died(first), does=lambda world, session: session.recover())


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(points.os, "fork"), reason="no fork here")
def test_a_process_that_truly_dies_costs_nothing(worlds: Iterator[World], lnd: FakeLnd) -> None:
    """What is played above says goodbye to the server; a process that ends by `os._exit` doesn't."""
    nursery = Nursery(lnd)
    at = 0
    for at in range(1, points.MAX_STEPS, 2):
        world = next(worlds)
        died = nursery.dies(world, at, points.INTENT)
        world.check()
        if not died:
            break
    nursery.close()
    assert len(points.PLAIN) < at < points.MAX_STEPS


@pytest.mark.parametrize("method", ["open_payment", "change"])
def test_a_commit_that_isnt_made_is_found(worlds: Iterator[World], method: str) -> None:
    """An enumeration that passes without the commits on which everything rests would pass anything."""
    with patch.object(points, "MAX_STEPS", 60), pytest.raises(AssertionError):
        points.deaths(worlds, points._plain, since=points.INTENT, lost_commits=frozenset({method}))
