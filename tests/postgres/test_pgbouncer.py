"""The PostgreSQL ledger through a PgBouncer in transaction mode, which gives each transaction any session of the server."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import count
from typing import Any

import psycopg
import pytest

from routeweiler_sync import Routeweiler
from routeweiler_sync.errors import LedgerError
from routeweiler_sync.ledger.ledger import Ledger
from routeweiler_sync.ledger.postgres import connections as postgres_links, store as postgres
from routeweiler_sync.ledger.types import Change, PaymentRow, PaymentState
from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.ledger_builders import at_once, draw, hash_of, held_msat, intent, limits, preimage, settle
from tests.support.ledger_contract import LedgerContract
from tests.support.tcp_relay import Wire

from .bouncer import Bouncer, program
from .conftest import REQUIRED
from .server import NotInstalledError, Server, until
from .test_concurrent_workers import THREADS, _buys_one_need, in_processes
from .test_faults import DEEDS, NEVER, WAIT_S

Make = Callable[..., Ledger]
SHARING = 8


@pytest.fixture(scope="module")
def bouncer(server: Server) -> Iterator[Bouncer]:
    """A bouncer that runs, with more than enough sessions."""
    with _bouncer(server, default_pool_size=20) as made:
        yield made


@pytest.fixture
def narrow(server: Server) -> Iterator[Bouncer]:
    """A bouncer with one session for each database: whoever comes, shares it."""
    with _bouncer(server, default_pool_size=1, ignore_startup_parameters="options") as made:
        yield made


@contextlib.contextmanager
def _bouncer(server: Server, **settings: object) -> Iterator[Bouncer]:
    try:
        program()
    except NotInstalledError as missing:
        if REQUIRED:
            raise
        pytest.skip(str(missing))
    with Bouncer.make(server, **settings) as made:
        yield made


@pytest.fixture
def ledger(bouncer: Bouncer, database: str, make_ledger: Make) -> Ledger:
    """A ledger through the bouncer."""
    return make_ledger(at=bouncer.url(database))


@pytest.fixture
def meanwhile() -> Iterator[Callable[..., Future[Any]]]:
    """Do something in another thread."""
    with ThreadPoolExecutor(4) as pool:
        yield pool.submit


# -- the contract -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared(server: Server) -> Iterator[str]:
    """The name of a database for many tests, each of which empties it."""
    name = server.new_database()
    yield name
    server.admin(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.slow
class TestLedgerThroughPgBouncer(LedgerContract):
    """All that a ledger promises. One database, emptied for each test: to make one takes longer than most of the tests."""

    test_of_many_processes_one_buys = None  # below, with fewer sessions
    test_rolling_windows_agree_with_a_plain_list_of_spends = None  # long, and it is arithmetic

    @pytest.fixture
    def url(self, server: Server, bouncer: Bouncer, shared: str) -> str:
        server.admin("DROP SCHEMA public CASCADE; CREATE SCHEMA public", shared)
        return bouncer.url(shared)

    @pytest.fixture
    def ledger(self, make_ledger: Make) -> Ledger:
        return make_ledger()


# -- many clients, few sessions -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_many_workers_on_two_sessions_buy_each_need_once(server: Server, database: str, make_ledger: Make) -> None:
    """Else workers that hold one session and wait for another's lock would stand still, or one need be bought by several."""
    with _bouncer(server, default_pool_size=2) as bouncer:
        needs, url = 3, bouncer.url(database)
        told = in_processes(_buys_one_need, url, needs)
        sessions = server.admin(f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{database}'")
    for token_request in range(needs):
        answers = [answer for worker in told for answer in worker[token_request]]
        assert len(answers) == len(told) * THREADS
        assert len({payment_hash for payment_hash, _ in answers}) == [is_new for _, is_new in answers].count(True) == 1
    assert sessions[0][0] <= 2
    assert len(list(make_ledger().payments())) == needs


def test_sessions_that_share_two_of_the_server_buy_each_page_once(server: Server, database: str) -> None:
    """Else a pool that is smaller than the fleet would be a deadlock, or its waits would end purchases."""
    with (
        _bouncer(server, default_pool_size=2) as bouncer,
        FakeLnd() as lnd,
        Paywall(lnd, price_msat=10_000, dynamic=True) as wall,
        contextlib.ExitStack() as stack,
    ):
        sessions = [
            stack.enter_context(Routeweiler(funding=[lnd.funding()], ledger=bouncer.url(database), payment_timeout=60))
            for _ in range(SHARING)
        ]
        urls = [wall.url_for(f"/{n // 2}") for n in range(SHARING)]  # each page is wanted by two
        pages = at_once([partial(session.get, url, timeout=60) for session, url in zip(sessions, urls, strict=True)])
        assert [page.status_code for page in pages] == [200] * SHARING
        assert [payment.status for payment in lnd.payments] == ["SUCCEEDED"] * (SHARING // 2)
        (envelope,) = sessions[0]._payer.ledger.envelopes()
        assert (envelope.reserved_minor_units, envelope.settled_minor_units * 1000) == (0, lnd.spent_msat)


def test_a_wait_for_a_session_ends_and_leaves_nothing(
    server: Server, database: str, monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[..., Future[Any]], make_ledger: Make
) -> None:
    """Else, behind a pool that others have used up, calls would hang; or the first that were turned away would fail."""
    with _bouncer(server, default_pool_size=1, query_wait_timeout=1) as bouncer:
        ledger = make_ledger(at=bouncer.url(database))
        ledger.open_payment(intent(1), draw(limits()))
        with psycopg.connect(bouncer.url(database)) as other:
            other.execute("SELECT 1")  # it has the only session, until its transaction ends
            with monkeypatch.context() as patched:
                patched.setattr(postgres, "PATIENCE_S", 1.5)
                began_s = time.monotonic()
                with pytest.raises(LedgerError) as refused:
                    ledger.open_payment(intent(2), draw(limits()))
                assert refused.value.spent is False
                assert time.monotonic() - began_s < WAIT_S
            turned_away = bouncer.log.count("query_wait_timeout")
            counted = meanwhile(ledger.count_send, hash_of(1))
            until(lambda: bouncer.log.count("query_wait_timeout") > turned_away, WAIT_S)
            other.rollback()
            assert counted.result(WAIT_S) is not None
        assert (ledger.payment(hash_of(2)), held_msat(ledger)) == (None, (11_000, 0))


# -- what is left in a session by others --------------------------------------------------------------------------------------

#: What a program may leave in a session that it shares: all that its next owner would rather not find.
LEFT_BEHIND = (
    "CREATE TEMP TABLE other (x INT)",
    "PREPARE one AS SELECT 1",
    "LISTEN other",
    "SELECT pg_advisory_lock(1)",
    "SET synchronous_commit = off",
    "SET default_transaction_isolation = 'serializable'",
    "SET default_transaction_read_only = on",
    "SET default_transaction_deferrable = on",
    "SET lock_timeout = '1h'",
    "SET idle_in_transaction_session_timeout = 0",
    "SET client_min_messages = 'error'",
    "SET row_security = off",
)


def test_each_transaction_is_as_durable_as_promised_whatever_its_session_was_left_with(
    server: Server, narrow: Bouncer, database: str, make_ledger: Make
) -> None:
    """Else a setting of another program in a shared session would let a power cut undo the record of a payment."""
    server.admin(f"ALTER DATABASE {database} SET synchronous_commit = off")
    ledger = make_ledger(at=narrow.url(database))
    ledger.open_payment(intent(1), draw(limits()))
    ask = (
        "SELECT pg_backend_pid() AS session, current_setting('synchronous_commit') AS durable, "
        "current_setting('transaction_isolation') AS isolation, current_setting('lock_timeout') AS waits, "
        "current_setting('idle_in_transaction_session_timeout') AS idle, (SELECT setting FROM pg_settings "
        "WHERE name = 'transaction_read_only') AS reads_only"
    )
    seen: list[Any] = []
    with psycopg.connect(narrow.url(database), autocommit=True) as other:
        for left in LEFT_BEHIND:
            other.execute(left)
            ((session,),) = other.execute("SELECT pg_backend_pid()").fetchall()
            for durable in (True, False, True):
                ledger._store.run(lambda tx: seen.extend(tx.execute(ask)), durable=durable)
                expected = {"session": session, "durable": "on" if durable else "off", "isolation": "read committed"}
                assert seen[-1] == {**expected, "waits": "10s", "idle": "10s", "reads_only": "off"}, left
            with ledger._store.read() as tx:
                (read,) = tx.execute(ask)
            assert (read["isolation"], read["reads_only"]) == ("repeatable read", "on")
    settle(ledger, 1)
    assert held_msat(ledger) == (0, 10_000)


def test_nothing_of_ours_is_left_in_a_session(narrow: Bouncer, database: str, make_ledger: Make) -> None:
    """Else another program of the same pool would get our settings, or a bouncer mix up whose prepared statements they are."""
    ledger = make_ledger(at=narrow.url(database))
    names = "'synchronous_commit', 'lock_timeout', 'idle_in_transaction_session_timeout', 'search_path', 'transaction_isolation'"
    ask = f"SELECT name, setting FROM pg_settings WHERE name IN ({names}) ORDER BY name"
    with psycopg.connect(narrow.url(database), autocommit=True) as other:
        before = other.execute(ask.encode()).fetchall()
        for n in range(12):  # more often than psycopg needs to prepare a statement
            ledger.open_payment(intent(n), draw(limits()))
            settle(ledger, n)
            ledger.mark(hash_of(n), accepted=True)
            list(ledger.payments())
        assert other.execute(ask.encode()).fetchall() == before
        assert other.execute("SELECT count(*) FROM pg_prepared_statements").fetchall() == [(0,)]
        assert other.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").fetchall() == [(0,)]


def test_a_session_that_was_left_with_another_schema_makes_no_second_ledger(
    server: Server, narrow: Bouncer, database: str, make_ledger: Make
) -> None:
    """Else a worker would go on in a ledger that is empty, with a budget of its own, and buy everything again."""
    server.admin("CREATE SCHEMA elsewhere", database)
    ledger = make_ledger(at=narrow.url(database))
    ledger.open_payment(intent(1), draw(limits()))
    with psycopg.connect(narrow.url(database), autocommit=True) as other:
        other.execute("SET search_path = elsewhere")
        with pytest.raises(LedgerError) as refused:
            ledger.open_payment(intent(2), draw(limits()))
        assert refused.value.spent is False
        make_ledger(at=server.url(database) + "&options=-csearch_path%3Delsewhere").open_payment(intent(3), draw(limits()))
        with pytest.raises(LedgerError, match="lacks what this session has written") as refused:
            ledger.open_payment(intent(2), draw(limits()))  # there is a ledger there now, another one
        assert refused.value.spent is False
        other.execute("RESET search_path")
    assert server.admin("SELECT count(*) FROM elsewhere.payments", database) == [(1,)]


def test_a_search_path_that_the_bouncer_drops_is_refused(
    server: Server, bouncer: Bouncer, narrow: Bouncer, database: str, make_ledger: Make
) -> None:
    """Else two fleets, each with a schema of its own in its URL, would find themselves in one ledger; or one fleet in two."""
    server.admin("CREATE SCHEMA a", database)
    options = "&options=-csearch_path%3Da%2Cpublic"
    with pytest.raises(LedgerError, match="unsupported startup parameter"):
        make_ledger(at=bouncer.url(database) + options).open_payment(intent(1), None)
    for use in (Ledger.unfinished, Ledger.exists, lambda ledger: ledger.open_payment(intent(1), None)):
        with pytest.raises(LedgerError, match="search_path a,public") as refused:
            use(make_ledger(at=narrow.url(database) + options))
        assert refused.value.spent is False
    assert server.admin("SELECT count(*) FROM pg_class WHERE relname LIKE 'routeweiler%'", database) == [(0,)]
    server.admin(f"ALTER ROLE postgres IN DATABASE {database} SET search_path = a, public")
    narrow.tell("RECONNECT")
    ledger = make_ledger(at=narrow.url(database))
    ledger.open_payment(intent(1), None)
    assert make_ledger(at=narrow.url(database) + options).payment(hash_of(1)) is not None
    assert server.admin("SELECT count(*) FROM a.payments", database) == [(1,)]


# -- the bouncer goes away ----------------------------------------------------------------------------------------------------


def _stopped(bouncer: Bouncer) -> None:
    bouncer.stop()
    bouncer.start()


def _killed(bouncer: Bouncer) -> None:
    bouncer.kill()
    bouncer.start()


def _told(command: str, bouncer: Bouncer) -> None:
    bouncer.tell(command)


WAYS = {
    "stopped": _stopped,
    "killed": _killed,
    "reloaded": partial(_told, "RELOAD"),
    "reconnected": partial(_told, "RECONNECT"),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_bouncer_that_goes_away_between_two_uses_isnt_noticed(bouncer: Bouncer, ledger: Ledger, way: str) -> None:
    """Else the first call of each worker after the bouncer's maintenance would fail."""
    ledger.open_payment(intent(1), draw(limits()))
    for use in (ledger.unfinished, lambda: ledger.count_send(hash_of(1)), lambda: settle(ledger, 1)):
        WAYS[way](bouncer)
        use()
    assert held_msat(ledger) == (0, 10_000)


@pytest.mark.parametrize("way", WAYS)
def test_a_transaction_that_loses_its_bouncer_is_run_again(bouncer: Bouncer, ledger: Ledger, way: str) -> None:
    """Else the settlement of a payment that was made would be lost, and its token with it for that call."""
    ledger.open_payment(intent(1), draw(limits()))
    decided: list[PaymentRow] = []

    def decide(row: PaymentRow) -> Change:
        decided.append(row)
        if len(decided) == 1:
            WAYS[way](bouncer)
        return Change(state=PaymentState.SETTLED, answered=1, preimage=preimage(1), fee_msat=5)

    assert ledger.change(hash_of(1), decide).settled_micro == 10_005_000
    assert [row.state for row in decided] == [PaymentState.OPEN] * (2 if way in ("stopped", "killed") else 1)
    assert held_msat(ledger) == (0, 10_005)


def test_sessions_that_live_for_a_moment_only_are_enough(server: Server, database: str, make_ledger: Make) -> None:
    """Else a bouncer that renews its sessions, as each does after an hour, would cut transactions."""
    with _bouncer(server, server_lifetime=0, server_idle_timeout=1) as bouncer:
        ledger = make_ledger(at=bouncer.url(database))
        pids: list[Any] = []
        for n in range(5):
            ledger.open_payment(intent(n), draw(limits()))
            ledger._store.run(lambda tx: pids.extend(tx.execute("SELECT pg_backend_pid() AS pid")))
            settle(ledger, n)
        assert len({row["pid"] for row in pids}) > 1
        assert held_msat(ledger) == (0, 50_000)


def test_a_paused_bouncer_is_waited_for_and_not_for_ever(
    bouncer: Bouncer, ledger: Ledger, database: str, meanwhile: Callable[..., Future[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the usual way to restart a database under its clients would fail purchases; or one that is never resumed hang them."""
    ledger.open_payment(intent(1), draw(limits()))
    bouncer.tell(f"PAUSE {database}")
    try:
        counted = meanwhile(ledger.count_send, hash_of(1))
        until(lambda: _waiting(bouncer, database), WAIT_S)
        assert not counted.done()
        bouncer.tell(f"RESUME {database}")
        assert counted.result(WAIT_S) is not None
        bouncer.tell(f"PAUSE {database}")
        monkeypatch.setattr(postgres, "PATIENCE_S", 1.0)
        with pytest.raises(LedgerError) as refused:
            ledger.open_payment(intent(2), draw(limits()))
        assert refused.value.spent is False
    finally:
        bouncer.tell(f"RESUME {database}")
    assert held_msat(ledger) == (11_000, 0)
    assert ledger.open_payment(intent(2), draw(limits()))[1]


def _waiting(bouncer: Bouncer, database: str) -> bool:
    """Whether a client of ``database`` waits for a session."""
    return any(pool[0] == database and pool[3] > 0 for pool in bouncer.tell("SHOW POOLS"))


def test_a_worker_that_falls_silent_in_a_transaction_holds_nobody_up(
    bouncer: Bouncer, database: str, make_ledger: Make, monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[..., Future[Any]]
) -> None:
    """Else the locks of a machine that is frozen would be kept for it by the bouncer, and stop the fleet."""
    monkeypatch.setattr(
        postgres_links,
        "BEGIN_WRITING",
        postgres_links.BEGIN_WRITING.replace(f"timeout = '{postgres_links.IDLE_TIMEOUT_S}s'; ", "timeout = '1s'; "),
    )
    one, two = (make_ledger(at=bouncer.url(database)) for _ in range(2))
    one.open_payment(intent(1), draw(limits()))
    silent, go_on = threading.Event(), threading.Event()

    def decide(row: PaymentRow) -> Change | None:
        if not silent.is_set():
            silent.set()
            assert go_on.wait(WAIT_S)
        return None if row.settled_at else Change(state=PaymentState.SETTLED, answered=1, preimage=preimage(1), fee_msat=5)

    slow = meanwhile(one.change, hash_of(1), decide)
    assert silent.wait(WAIT_S)
    assert settle(two, 1, fee_msat=7).fee_msat == 7
    go_on.set()
    assert slow.result(WAIT_S).fee_msat == 7
    assert held_msat(two) == (0, 10_007)


# -- was it committed? --------------------------------------------------------------------------------------------------------


@pytest.fixture
def wires(request: pytest.FixtureRequest, server: Server) -> Iterator[tuple[Wire, Bouncer, int]]:
    """A wire that is cut, the bouncer, and the port at which a client finds both. One session for all."""
    with contextlib.ExitStack() as stack:
        bouncer = stack.enter_context(_bouncer(server, default_pool_size=1))
        if request.param == "before the bouncer":
            wire = stack.enter_context(Wire(bouncer.port))
            yield wire, bouncer, wire.port
        else:
            wire = stack.enter_context(Wire(server.port))
            bouncer.behind = wire.port
            bouncer.set()
            yield wire, bouncer, bouncer.port


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wires", "deed"), [("before the bouncer", "opens"), ("behind the bouncer", "settles")], indirect=["wires"]
)
def test_a_cut_about_the_commit_leaves_the_deed_done_once(
    server: Server,
    database: str,
    wires: tuple[Wire, Bouncer, int],
    make_ledger: Make,
    deed: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else, where all share one session of the server, another's commit would be taken for ours, or ours for none."""
    wire, bouncer, port = wires
    far, beside, ledger = (make_ledger(at=server.url(database, port=at)) for at in (port, bouncer.port, server.port))
    does, needs_row, expected = DEEDS[deed]
    asked: list[bool] = []
    was_committed = postgres_links.Link.was_committed
    monkeypatch.setattr(
        postgres_links.Link, "was_committed", lambda link, lost: asked.append(was_committed(link, lost)) or asked[-1]
    )

    def once(n: int, at_byte: int) -> int | None:
        """The bytes that were left until the cut; None where it was made."""
        if needs_row:
            ledger.open_payment(intent(n), draw(limits(f"e{n}")))
        beside.check_writable()  # another writer on the same session
        assert far.unfinished() is not None
        wire.arm(at_byte, "rst")
        does(far, n)
        left = wire._armed
        wire.arm(NEVER, "rst")
        row = ledger.payment(hash_of(n))
        assert row is not None
        assert (row.state.value, row.sends_ever, held_msat(ledger, f"e{n}")) == expected, f"cut after {at_byte} bytes"
        return None if left is None else left[0]

    numbers = count(100)
    once(next(numbers), NEVER)
    whole = NEVER - (once(next(numbers), NEVER) or 0)
    at_byte = whole - 40  # COMMIT there (12 bytes) and back (18), and some before
    while once(next(numbers), at_byte) is None:
        at_byte += 5
    assert True in asked, "no cut fell behind a commit"
    assert False in asked, "no cut fell before a commit"
