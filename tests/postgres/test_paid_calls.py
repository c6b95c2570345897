"""Whole purchases on a PostgreSQL ledger: bought once, used by all, refused while the database is down."""

from __future__ import annotations

import gc
import json
import pickle
import random
import string
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest

from routeweiler_sync import Ledger, LedgerError, Routeweiler, TraceSink
from routeweiler_sync.testing import FakeLnd, Paywall
from tests.component.conftest import lnd as lnd, paywall as paywall
from tests.support.accounts import Books
from tests.support.ledger_builders import at_once

from .server import PASSWORD, Server


class PostgresBooks(Books):
    """The accounts of one test, the ledger in the database at ``url``."""

    def __init__(self, folder: Path, lnd: FakeLnd, url: str) -> None:
        super().__init__(folder, lnd)
        self._ledger = Ledger.open(url)

    @property
    def ledger(self) -> Ledger:
        return self._ledger


@pytest.fixture
def books(tmp_path: Path, lnd: FakeLnd, url: str) -> Iterator[Books]:
    books = PostgresBooks(tmp_path, lnd, url)
    yield books
    books.ledger.close()


@pytest.fixture
def make_session(books: Books, lnd: FakeLnd, url: str) -> Iterator[Callable[..., Routeweiler]]:
    made: list[Routeweiler] = []

    def make(**arguments: Any) -> Routeweiler:
        trace = TraceSink.jsonl(books.trace_path)
        made.append(Routeweiler(**{"funding": [lnd.funding()], "ledger": url, "trace_sink": trace, **arguments}))
        return made[-1]

    yield make
    for session in made:
        session.close()


def test_bought_once_and_used_by_every_session(make_session: Callable[..., Routeweiler], paywall: Paywall, books: Books) -> None:
    """Else each machine of a fleet would buy what another has bought."""
    first, second = make_session(), make_session()
    bought = first.get(paywall.url)
    assert (bought.status_code, bought.payment.reused) == (200, False)
    used = second.get(paywall.url)
    assert (used.status_code, used.payment.reused) == (200, True)
    assert used.payment.payment_hash == bought.payment.payment_hash
    books.check()


def test_of_64_threads_in_two_sessions_one_pays(
    make_session: Callable[..., Routeweiler], paywall: Paywall, books: Books, lnd: FakeLnd
) -> None:
    """Else a burst would pay for each of its requests."""
    sessions = [make_session(), make_session()]
    answers = at_once([lambda n=n: sessions[n % 2].get(paywall.url, timeout=60) for n in range(64)])  # type: ignore[misc]
    assert [answer.status_code for answer in answers] == [200] * 64
    assert len(lnd.payments) == 1
    (row,) = books.rows
    assert row.state.value == "settled"


def test_while_the_database_is_down_nothing_is_paid_and_free_traffic_flows(
    make_session: Callable[..., Routeweiler], paywall: Paywall, books: Books, lnd: FakeLnd, server: Server
) -> None:
    """Else a payment would be made that nobody writes down; or every free page be lost with the database."""
    session, fresh = make_session(), make_session()
    free = urljoin(paywall.url, "/free")
    assert session.get(paywall.url).status_code == 200
    paywall.revoke_tokens()
    server.stop()
    try:
        for anyone in (session, fresh):
            with pytest.raises(LedgerError) as refused:
                anyone.get(paywall.url)
            assert refused.value.spent is False
            assert PASSWORD not in str(refused.value)
            assert anyone.get(free).status_code == 200
        assert len(lnd.payments) == 1
    finally:
        server.start()
    assert session.get(paywall.url).status_code == 200
    assert len(lnd.payments) == 2
    books.check()


def test_a_path_of_thousands_of_characters_is_learned(
    make_session: Callable[..., Routeweiler], paywall: Paywall, books: Books, caplog: pytest.LogCaptureFixture
) -> None:
    """Else the ledger can't index it, and doesn't know that the token was taken: when its time is over, it is never replaced."""
    make_session().get(paywall.url)
    noise = random.Random(5)  # PostgreSQL compresses what repeats
    url = urljoin(paywall.url, "/" + "".join(noise.choices(string.ascii_letters + string.digits, k=5_000)))
    (first, second) = (make_session().post(url, data=b"x") for _ in range(2))
    assert [len(first.history), len(second.history)] == [1, 0]  # no guess goes along with a POST
    (row,) = books.rows
    assert (row.accepted, len(books.ledger.learned(row.origin))) == (True, 1)
    assert "the ledger can't note" not in caplog.text
    books.check()


@pytest.mark.parametrize("how", ["fast", "immediate"])
def test_a_restart_while_the_payment_is_under_way_costs_nothing(
    make_session: Callable[..., Routeweiler], paywall: Paywall, books: Books, lnd: FakeLnd, server: Server, how: str
) -> None:
    """Else maintenance of the database would lose a token that is being paid for."""
    session = make_session()
    lnd.hold_orders()
    answers: list[Any] = []
    call = threading.Thread(target=lambda: answers.append(session.get(paywall.url)), daemon=True)
    call.start()
    lnd.wait_for(lambda node: node.held_orders == 1)
    server.stop(how)
    server.start()
    lnd.deliver_orders()
    call.join(60)
    assert [answer.status_code for answer in answers] == [200]
    books.check()


def test_a_report_adds_up_databases_files_and_traces(
    make_session: Callable[..., Routeweiler], books: Books, lnd: FakeLnd, url: str, tmp_path: Path
) -> None:
    """A fleet's bill: its database, a file of one worker's own, and the traces of both. The password is in none of it."""
    with Paywall(lnd, price_msat=10_000, dynamic=True) as wall:
        lnd.fee_msat = 123
        make_session().get(wall.url_for("/fleet"))
        make_session(ledger=tmp_path / "own.db").get(wall.url_for("/own"))
    sources = ["--ledger", url, "--ledger", str(tmp_path / "own.db"), "--trace", str(books.trace_path)]
    done = subprocess.run(
        [sys.executable, "-m", "routeweiler_sync", "report", "--json", *sources, "--csv", str(tmp_path / "all.csv")],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    told = json.loads(done.stdout)
    assert (told["payments"], told["spentMsat"], told["feesMsat"]) == (2, lnd.spent_msat, 246)
    assert len((tmp_path / "all.csv").read_text().splitlines()) == 3
    assert [each["kind"] for each in told["sources"]] == ["ledger", "ledger", "trace"]
    assert PASSWORD not in done.stdout + done.stderr


def test_a_dropped_session_closes_its_connections_at_once(
    lnd: FakeLnd, paywall: Paywall, url: str, database: str, server: Server
) -> None:
    """An engine unpickles a session for each task: the server would run out of connections before Python collects them."""

    gc.collect()
    gc.disable()
    try:
        session = Routeweiler(funding=[lnd.funding()], ledger=url)
        assert session.get(paywall.url).status_code == 200
        assert connections(server, database) > 0
        del session
        assert connections(server, database, wanted=0) == 0
    finally:
        gc.enable()


def test_unpickled_sessions_have_one_ledgers_connections_however_many_are_kept(
    lnd: FakeLnd, url: str, database: str, server: Server
) -> None:
    """An engine keeps the errors of its tasks, and with their tracebacks the sessions: the server would refuse the next one."""
    pickle_of_it = pickle.dumps(Routeweiler(funding=[lnd.funding()], ledger=url))
    with Paywall(lnd, sells="path") as wall:
        kept = [pickle.loads(pickle_of_it) for _ in range(12)]
        for number, session in enumerate(kept):
            assert session.get(wall.url_for(f"/{number}")).status_code == 200
        assert connections(server, database) == 1
        kept[0].close()
        assert kept[1].get(wall.url_for("/more")).status_code == 200
        assert kept[0].get(wall.url_for("/and more")).status_code == 200
        assert connections(server, database) == 1
        for session in kept:
            session.close()
        assert connections(server, database, wanted=0) == 0
    assert len(lnd.payments) == 14


def connections(server: Server, database: str, *, wanted: int | None = None) -> int:
    """How many there are to the database; once there are as many as ``wanted``, or in vain after a while."""
    until = time.monotonic() + 30  # the server takes a moment to notice that one was closed
    while True:
        found = int(server.admin(f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{database}'")[0][0])
        if wanted in (None, found) or time.monotonic() > until:
            return found
        time.sleep(0.02)
