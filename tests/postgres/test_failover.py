"""The PostgreSQL ledger with a standby: commits wait for it, it takes over, or it takes over without the newest rows."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest

from routeweiler_sync import Ledger, LedgerError, PaymentState, Routeweiler
from routeweiler_sync.ledger.postgres import connections as postgres_links, store as postgres
from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.ledger_builders import draw, hash_of, intent, limits, settle
from tests.torture.failover import run

from .bouncer import Bouncer, program
from .conftest import REQUIRED
from .server import NotInstalledError, Server, until

pytestmark = [pytest.mark.slow, pytest.mark.real, pytest.mark.timeout(300)]

WAIT_S = 60.0
PROCESSES, ROUNDS, SEED = 4, 1, 5
needs_signals = pytest.mark.skipif(sys.platform == "win32", reason="no SIGSTOP")


@pytest.fixture(autouse=True)
def installed() -> None:
    """Without the programs these tests are skipped, unless ROUTEWEILER_REQUIRE_POSTGRES=1."""
    try:
        from .server import programs

        programs(), program()
    except NotInstalledError as missing:
        if REQUIRED:
            raise
        pytest.skip(str(missing))


@pytest.fixture
def primary() -> Iterator[Server]:
    """A server of the test's own: it is going to die."""
    with Server.make() as made:
        yield made


@pytest.fixture
def standby(primary: Server) -> Iterator[Server]:
    """Replicates ``primary``, which doesn't wait for it."""
    with primary.standby() as made:
        yield made


@pytest.fixture
def lnd() -> Iterator[FakeLnd]:
    with FakeLnd() as node:
        yield node


@pytest.fixture
def wall(lnd: FakeLnd) -> Iterator[Paywall]:
    with Paywall(lnd, price_msat=10_000, dynamic=True) as wall:
        yield wall


@pytest.fixture
def over(lnd: FakeLnd) -> Iterator[Callable[[str], Routeweiler]]:
    """A session on the ledger at this URL."""
    with contextlib.ExitStack() as stack:
        yield lambda url: stack.enter_context(Routeweiler(funding=[lnd.funding()], ledger=url, payment_timeout=60))


@pytest.fixture
def meanwhile() -> Iterator[Callable[..., Future[Any]]]:
    """Do something in another thread."""
    with ThreadPoolExecutor(2) as pool:
        yield pool.submit


@contextlib.contextmanager
def frozen(standby: Server) -> Iterator[None]:
    """The standby's replication stands still, as on a machine that is overloaded."""
    ((pid,),) = standby.admin("SELECT pid FROM pg_stat_wal_receiver")
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def waiting(server: Server) -> list[int]:
    """The sessions whose commit waits for the standby."""
    return [pid for (pid,) in server.admin("SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'")]


def caught_up(primary: Server, standby: Server) -> None:
    """Wait until the standby has all that the primary has written."""
    ((position,),) = primary.admin("SELECT pg_current_wal_lsn()")
    until(lambda: standby.admin(f"SELECT pg_last_wal_replay_lsn() >= '{position}'") == [(True,)], WAIT_S)


def paid(lnd: FakeLnd) -> list[str]:
    return [payment.status for payment in lnd.payments]


# -- commits wait for the standby ---------------------------------------------------------------------------------------------


@needs_signals
def test_no_order_leaves_before_the_standby_has_its_row(
    primary: Server,
    standby: Server,
    lnd: FakeLnd,
    wall: Paywall,
    over: Callable[[str], Routeweiler],
    meanwhile: Callable[..., Future[Any]],
) -> None:
    """Else a failover in that moment would lose the row of a payment that is under way, and its page be bought again."""
    primary.waits_for_standby = True
    session = over(primary.url(primary.new_database()))
    session.get(wall.url_for("/first"))
    with frozen(standby):
        page = meanwhile(session.get, wall.url_for("/second"))
        until(lambda: waiting(primary), WAIT_S)
        assert (len(lnd.orders), page.done()) == (1, False)
    assert page.result(WAIT_S).status_code == 200
    assert paid(lnd) == ["SUCCEEDED"] * 2


@needs_signals
@pytest.mark.parametrize("how", ["pg_cancel_backend", "pg_terminate_backend", "restart"])
def test_a_commit_that_gave_up_waiting_for_the_standby_pays_nothing(
    primary: Server,
    standby: Server,
    lnd: FakeLnd,
    wall: Paywall,
    over: Callable[[str], Routeweiler],
    meanwhile: Callable[..., Future[Any]],
    how: str,
) -> None:
    """The server says COMMIT then, as it does after a statement_timeout: the row is there, and would be lost in a failover."""
    primary.waits_for_standby = True
    session = over(primary.url(primary.new_database()))
    session.get(wall.url_for("/first"))
    with frozen(standby):
        page = meanwhile(session.get, wall.url_for("/second"))
        until(lambda: waiting(primary), WAIT_S)
        (pid,) = waiting(primary)
        if how == "restart":
            primary.stop("immediate")
            primary.start()
        else:
            primary.admin(f"SELECT {how}({pid})")
        if how == "pg_cancel_backend":
            with pytest.raises(LedgerError, match="hasn't confirmed a commit") as refused:
                page.result(WAIT_S)
            assert refused.value.spent is False
        else:  # its fate is asked for; the answer waits for the standby too
            until(lambda: pid not in waiting(primary) and waiting(primary), WAIT_S)
            assert not page.done()
        assert len(lnd.orders) == 1
    if how == "pg_cancel_backend":
        assert session.get(wall.url_for("/second")).status_code == 200
    else:
        assert page.result(WAIT_S).status_code == 200
    assert paid(lnd) == ["SUCCEEDED"] * 2


@needs_signals
def test_a_standby_that_stays_away_stops_purchases_in_bounded_time(
    primary: Server,
    standby: Server,
    lnd: FakeLnd,
    wall: Paywall,
    over: Callable[[str], Routeweiler],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else each call would hang for as long as the standby is away; or pay, since its row is on one disk at least."""
    primary.waits_for_standby = True
    session = over(primary.url(primary.new_database()))
    session.get(wall.url_for("/first"))
    with frozen(standby):
        with monkeypatch.context() as patched:
            patched.setattr(postgres, "PATIENCE_S", 1.0)
            patched.setattr(postgres_links, "TRANSACTION_LIMIT_S", 1.0)
            with pytest.raises(LedgerError) as refused:
                session.get(wall.url_for("/second"))
        assert (refused.value.spent, len(lnd.orders)) == (False, 1)
    assert session.get(wall.url_for("/second")).status_code == 200
    assert paid(lnd) == ["SUCCEEDED"] * 2


# -- which of the two servers -------------------------------------------------------------------------------------------------


def test_a_url_that_names_both_finds_the_one_that_takes_writes(primary: Server, standby: Server) -> None:
    """Else half of the workers, or all of them, would be on the standby until somebody adds a parameter of libpq to the URL."""
    database = primary.new_database()
    Ledger.open(primary.url(database)).open_payment(intent(1), draw(limits()))
    caught_up(primary, standby)
    both = primary.url(database).replace(f":{primary.port}/", f":{standby.port},127.0.0.1:{primary.port}/")
    ledger = Ledger.open(both)
    assert ledger.open_payment(intent(2), draw(limits()))[1]
    primary.kill()
    standby.promote()
    assert ledger.count_send(hash_of(1)) is not None
    assert settle(ledger, 2).state is PaymentState.SETTLED
    ledger.close()


def test_a_standby_reached_by_mistake_buys_nothing_and_says_why(
    primary: Server, standby: Server, lnd: FakeLnd, wall: Paywall, over: Callable[[str], Routeweiler]
) -> None:
    """Else a wrong host in a URL would look like a broken ledger, or pay what nobody can write down."""
    database = primary.new_database()
    over(primary.url(database)).get(wall.url_for("/first"))
    caught_up(primary, standby)
    session = over(standby.url(database))
    with pytest.raises(LedgerError, match="recovery") as refused:
        session.get(wall.url_for("/second"))
    assert (refused.value.spent, len(lnd.orders)) == (False, 1)


# -- the standby takes over ---------------------------------------------------------------------------------------------------


def test_a_fleet_outlives_its_primary_and_pays_everything_once(tmp_path: Path) -> None:
    """Else the end of one machine would lose tokens that were paid for, have them bought again, or stop the fleet."""
    failover = run(tmp_path, processes=PROCESSES, rounds=ROUNDS, seed=SEED)
    print(dict(failover.figures))
    assert failover.findings == []
    assert failover.figures["rounds"] == ROUNDS
    assert failover.figures["payments"] > PROCESSES


@pytest.mark.parametrize("way", ["direct", "through a bouncer"])
def test_a_standby_that_lagged_behind_is_noticed_by_who_has_bought(
    primary: Server, standby: Server, lnd: FakeLnd, wall: Paywall, over: Callable[[str], Routeweiler], way: str
) -> None:
    """Else a worker would buy again, one after the other, all that it has bought since the replication broke."""
    database = primary.new_database()
    with Bouncer.make(primary) as bouncer:
        both = primary.url(database).replace(f":{primary.port}/", f":{primary.port},127.0.0.1:{standby.port}/")
        session, idle = (over(both if way == "direct" else bouncer.url(database)) for _ in range(2))
        session.get(wall.url_for("/kept"))
        idle.get(wall.url_for("/kept"))
        caught_up(primary, standby)
        standby.set("primary_conninfo", "")  # nothing is replicated any more, and nobody knows
        until(lambda: not standby.admin("SELECT 1 FROM pg_stat_wal_receiver"), WAIT_S)
        lost = session.get(wall.url_for("/lost")).payment.payment_hash
        primary.kill()
        standby.promote()
        bouncer.point(standby)
        ledger = Ledger.open(standby.url(database))
        assert lost not in {row.payment_hash for row in ledger.payments()}
        for page in ("/lost", "/further", "/further"):
            if page != "/lost":  # its token is still in this session's memory
                with pytest.raises(LedgerError, match="lacks what this session has written") as refused:
                    session.get(wall.url_for(page))
                assert (refused.value.spent, len(lnd.payments)) == (False, 2)
            else:
                assert session.get(wall.url_for(page)).payment.reused
        assert session.get(wall.url_for("/kept")).payment.reused
        audit = subprocess.run(
            [sys.executable, "-m", "routeweiler_sync", "budget", "audit", "--ledger", standby.url(database)],
            env={**os.environ, **lnd.environ},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert "1 more (10 sat) not in this ledger" in audit.stdout
        assert idle.get(wall.url_for("/further")).status_code == 200  # it had bought nothing that is missing
        assert over(standby.url(database)).get(wall.url_for("/new")).status_code == 200
        assert paid(lnd) == ["SUCCEEDED"] * 4


def test_a_primary_that_was_replaced_and_still_runs_is_noticed(
    primary: Server, standby: Server, lnd: FakeLnd, wall: Paywall, over: Callable[[str], Routeweiler]
) -> None:
    """Else, where a name leads to the old server again, all that was bought on the new one would be bought again."""
    database = primary.new_database()
    with Bouncer.make(primary) as bouncer:
        session = over(bouncer.url(database))
        session.get(wall.url_for("/before"))
        caught_up(primary, standby)
        standby.promote()
        bouncer.point(standby)
        assert session.get(wall.url_for("/on the new one")).status_code == 200
        bouncer.point(primary)
        with pytest.raises(LedgerError, match="lacks what this session has written") as refused:
            session.get(wall.url_for("/further"))
        assert (refused.value.spent, paid(lnd)) == (False, ["SUCCEEDED"] * 2)


def test_a_payment_that_was_under_way_is_booked_in_a_ledger_that_lost_others(primary: Server, lnd: FakeLnd) -> None:
    """Else who notices the loss would lose one more: what ends a payment is written where its row is."""
    ledger = Ledger.open(primary.url(primary.new_database()))
    ledger.open_payment(intent(1), draw(limits()))
    with psycopg.connect(ledger._store._address.conninfo, autocommit=True) as other:  # type: ignore[attr-defined]
        other.execute("UPDATE routeweiler_writers SET serial = 0")
    with pytest.raises(LedgerError, match="lacks"):
        ledger.open_payment(intent(2), draw(limits()))
    assert settle(ledger, 1).state is PaymentState.SETTLED
    with pytest.raises(LedgerError, match="lacks"):
        ledger.count_send(hash_of(1))
    ledger.close()
