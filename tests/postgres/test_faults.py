"""The PostgreSQL ledger among lost connections, restarts, deadlocks and rights that it lacks. All faults are real ones."""

from __future__ import annotations

import contextlib
import copy
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pytest

from routeweiler_sync import Routeweiler
from routeweiler_sync._core.deadline import patience
from routeweiler_sync.budgets.schema import MAX_LEVELS, BudgetEnvelope
from routeweiler_sync.errors import BudgetError, LedgerError
from routeweiler_sync.ledger import archive as archive_module, envelopes, snapshot
from routeweiler_sync.ledger.ledger import Ledger
from routeweiler_sync.ledger.postgres import connections as postgres_links, store as postgres
from routeweiler_sync.ledger.postgres.store import _TABLES as TABLES
from routeweiler_sync.ledger.store import MIGRATIONS, SCHEMA_VERSION
from routeweiler_sync.ledger.types import Change, PaymentRow, PaymentState
from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.http_server import server as answering
from tests.support.ledger_archive_contract import BEFORE, audited, make_past
from tests.support.ledger_builders import (
    NOON_S,
    ORIGIN,
    Clock,
    at_once,
    die,
    draw,
    hash_of,
    held_msat,
    intent,
    limits,
    preimage,
    settle,
)
from tests.support.ledger_charges_contract import charge
from tests.support.tcp_relay import Wire

from .server import PASSWORD, Server

Make = Callable[..., Ledger]
#: Far more than any deed sends and receives.
NEVER = 10**9
WAIT_S = 30.0
#: Undoes what the newest step of the schema does.
TO_VERSION_7 = (
    "DROP TABLE archived_agents; ALTER TABLE payments DROP COLUMN agent_id; ALTER TABLE envelopes DROP COLUMN parent_id; "
    f"{MIGRATIONS[5][0]}; UPDATE routeweiler_ledger SET version = 7"
)


def until(condition: Callable[[], object]) -> None:
    """Wait for ``condition``."""
    end_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end_s, "it never came to that"
        time.sleep(0.01)


@pytest.fixture
def wire(server: Server) -> Iterator[Wire]:
    relay = Wire(server.port)
    yield relay
    relay.close()


@pytest.fixture
def far(server: Server, database: str, wire: Wire, make_ledger: Make) -> Ledger:
    """The ledger over a wire that may be cut."""
    return make_ledger(at=server.url(database, port=wire.port))


@pytest.fixture
def meanwhile() -> Iterator[Callable[..., Future[Any]]]:
    """Do something in another thread."""
    with ThreadPoolExecutor(4) as pool:
        yield pool.submit


def end_sessions(server: Server, database: str) -> None:
    """As the kill of every backend of the database."""
    server.admin(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'")
    until(lambda: sessions(server, database) == [])


def sessions(server: Server, database: str, where: str = "true") -> list[Any]:
    """The process ids of the backends that the database's clients have: autovacuum has some too."""
    return server.admin(
        f"SELECT pid FROM pg_stat_activity WHERE datname = '{database}' AND backend_type = 'client backend' AND {where}"
    )


# -- was it committed? --------------------------------------------------------------------------------------------------------


def opens(ledger: Ledger, n: int) -> None:
    """Exactly one new row, reserved once, and we know that it's ours."""
    row, is_new = ledger.open_payment(intent(n), draw(limits(f"e{n}")))
    assert is_new
    assert (row.sends_ever, row.sends_unanswered) == (1, 1)


def counts(ledger: Ledger, n: int) -> None:
    row = ledger.count_send(hash_of(n))
    assert row is not None
    assert (row.sends_ever, row.sends_unanswered) == (2, 2)


def settles(ledger: Ledger, n: int) -> None:
    assert settle(ledger, n, fee_msat=7).settled_micro == 10_007_000


#: What is done over the wire, what it needs to be there, and what it must have come to: state, sends, and the envelope.
DEEDS: dict[str, tuple[Callable[[Ledger, int], None], bool, tuple[str, int, tuple[int, int]]]] = {
    "opens": (opens, False, ("open", 1, (11_000, 0))),
    "counts": (counts, True, ("open", 2, (11_000, 0))),
    "settles": (settles, True, ("settled", 1, (0, 10_007))),
}


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", ["rst", "fin"])
@pytest.mark.parametrize("deed", DEEDS)
def test_a_cut_at_any_byte_leaves_the_deed_done_once(
    far: Ledger, ledger: Ledger, wire: Wire, deed: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else an intent would be thought written that isn't (and be paid unrecorded), or a send be counted twice, never answered."""
    does, needs_row, expected = DEEDS[deed]
    asked: list[bool] = []
    was_committed = postgres_links.Link.was_committed

    def noted(link: Any, lost: Any) -> bool:
        asked.append(was_committed(link, lost))
        return asked[-1]

    monkeypatch.setattr(postgres_links.Link, "was_committed", noted)

    def once(n: int, at_byte: int) -> int | None:
        """The bytes that were left until the cut; None where it was made."""
        if needs_row:
            ledger.open_payment(intent(n), draw(limits(f"e{n}")))
        assert far.unfinished() is not None  # the connection is there; only the deed itself is cut
        wire.arm(at_byte, how)
        does(far, n)
        left = wire._armed
        wire.arm(NEVER, how)
        row = ledger.payment(hash_of(n))
        assert row is not None
        assert (row.state.value, row.sends_ever, held_msat(ledger, f"e{n}")) == expected, f"cut after {at_byte} bytes"
        return None if left is None else left[0]

    numbers = count(100)
    once(next(numbers), NEVER)  # a first write is longer
    whole = NEVER - (once(next(numbers), NEVER) or 0)
    commit = whole - 45  # COMMIT there (12 bytes) and back (18), and some before
    for at_byte in range(1, commit, 131):
        once(next(numbers), at_byte)
    at_byte = commit
    while once(next(numbers), at_byte) is None:  # the end isn't always at the same byte
        at_byte += 1
    assert True in asked, "no cut fell behind a commit"
    assert False in asked, "no cut fell before a commit"


def test_where_it_cant_be_asked_it_isnt_guessed(
    far: Ledger, ledger: Ledger, wire: Wire, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the caller would believe in a record, or in the lack of one, and the payment would be made twice or unrecorded."""
    far.open_payment(intent(1), None)
    monkeypatch.setattr(postgres, "PATIENCE_S", 0.5)
    commit = postgres.PostgresStore._commit

    def cut_for_good(*of: Any) -> None:
        wire.close()  # the connection breaks, and there is no other
        commit(*of)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(postgres.PostgresStore, "_commit", cut_for_good)
        with pytest.raises(LedgerError, match="can't be asked") as unknown:
            far.open_payment(intent(2), None)
    assert unknown.value.spent is False
    assert isinstance(unknown.value.__cause__, psycopg.OperationalError)
    assert ledger.open_payment(intent(2), None)[1] in (True, False)  # either, but one row
    assert len(list(ledger.payments())) == 2


# -- the transaction is lost before its commit ----------------------------------------------------------------------------------


def restart(server: Server, how: str) -> None:
    server.stop(how)
    server.start()


@pytest.mark.parametrize("how", ["killed", "fast", "immediate"])
def test_a_transaction_that_loses_its_server_is_run_again(server: Server, database: str, ledger: Ledger, how: str) -> None:
    """Else the settlement of a payment that was made would be lost to a restart, and its token with it for that call."""
    ledger.open_payment(intent(1), draw(limits()))
    decided: list[PaymentRow] = []

    def decide(row: PaymentRow) -> Change:
        decided.append(row)
        if len(decided) == 1:
            end_sessions(server, database) if how == "killed" else restart(server, how)
        return Change(state=PaymentState.SETTLED, answered=1, preimage=preimage(1), fee_msat=5)

    row = ledger.change(hash_of(1), decide)
    assert (row.state, row.settled_micro) == (PaymentState.SETTLED, 10_005_000)
    assert [seen.state for seen in decided] == [PaymentState.OPEN] * 2
    assert held_msat(ledger) == (0, 10_005)


@pytest.mark.parametrize("how", ["killed", "fast", "immediate"])
def test_a_restart_between_two_uses_isnt_noticed(server: Server, database: str, ledger: Ledger, how: str) -> None:
    """Else the first call of each worker after the database's maintenance would fail."""
    ledger.open_payment(intent(1), draw(limits()))

    def bare_transaction() -> None:
        with ledger._store.transaction() as tx:
            assert tx.execute("SELECT sends_ever FROM payments") == [{"sends_ever": 2}]

    for use in (ledger.unfinished, lambda: ledger.count_send(hash_of(1)), bare_transaction):
        end_sessions(server, database) if how == "killed" else restart(server, how)
        use()


@pytest.mark.parametrize("sqlstate", ["0A000", "25006", "57P01"])
def test_a_connection_to_what_has_become_another_server_is_given_up(
    server: Server, database: str, ledger: Ledger, sqlstate: str
) -> None:
    """Else, after a failover behind a pooler, each worker would be refused until somebody restarts it."""
    ledger.open_payment(intent(1), draw(limits()))
    (backend,) = sessions(server, database, "pid <> pg_backend_pid()")
    server.admin(
        "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        f"IF pg_backend_pid() = {backend[0]} THEN RAISE EXCEPTION 'a standby now' USING ERRCODE = '{sqlstate}'; END IF; "
        "RETURN NEW; END $$; "
        "CREATE TRIGGER no BEFORE INSERT ON routeweiler_writers FOR EACH ROW EXECUTE FUNCTION no()",
        database,
    )
    assert ledger.count_send(hash_of(1)) is not None
    until(lambda: backend not in sessions(server, database))


def test_a_standby_says_what_we_take_for_its_word(server: Server) -> None:
    """Else the connection to a server that has become one would be kept, for its word is another than we think."""
    server.stop()
    file = server.folder / "data" / "standby.signal"
    file.touch()
    owner = file.parent.stat()
    os.chown(file, owner.st_uid, owner.st_gid)
    try:
        server.start()
        with psycopg.connect(server.url(), autocommit=True) as connection, pytest.raises(psycopg.Error) as refused:
            connection.execute(postgres_links.BEGIN_WRITING.encode())
        assert refused.value.sqlstate in postgres_links.STANDBY
    finally:
        server.stop()
        file.unlink()
        server.start()


def test_what_was_committed_outlives_a_crash_of_the_server(server: Server, ledger: Ledger) -> None:
    """Else a payment would have left whose record is gone. (The server of these tests keeps its files through its own crash.)"""
    ledger.open_payment(intent(1), draw(limits()))
    restart(server, "immediate")
    assert [row.payment_hash for row in ledger.unfinished()] == [hash_of(1)]


def test_a_server_that_stays_down_refuses_within_the_patience(
    server: Server, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a call would hang for as long as the database is away, or a foreign exception come out of it."""
    ledger.open_payment(intent(1), draw(limits()))
    monkeypatch.setattr(postgres, "PATIENCE_S", 1.0)
    server.stop()
    try:
        for use in (ledger.unfinished, lambda: ledger.open_payment(intent(2), None)):
            began_s = time.monotonic()
            with pytest.raises(LedgerError, match="Nothing was spent"):
                use()
            assert time.monotonic() - began_s < WAIT_S
    finally:
        server.start()
    assert ledger.open_payment(intent(2), None)[1]


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGSTOP")
def test_a_server_that_is_frozen_holds_nobody_up_for_ever(
    server: Server, database: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else every worker would hang in the middle of a call, with nothing to see in any log."""
    monkeypatch.setattr(postgres_links, "TRANSACTION_LIMIT_S", 1.0)
    ledger.open_payment(intent(1), None)
    ((pid,),) = sessions(server, database)
    os.kill(pid, signal.SIGSTOP)  # one backend; the server itself still takes connections
    try:
        assert ledger.open_payment(intent(2), None)[1]
    finally:
        os.kill(pid, signal.SIGCONT)
    assert len(ledger.unfinished()) == 2


def test_an_audit_of_many_payments_may_take_longer_than_a_transaction(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a ledger of some millions couldn't be audited, whatever time there is: its rows must all be of one moment."""
    for n in range(12):
        ledger.open_payment(intent(n), None)
    monkeypatch.setattr(postgres_links, "TRANSACTION_LIMIT_S", 1.0)
    monkeypatch.setattr(snapshot, "PAGE_ROWS", 1)
    read = snapshot._payment

    def slowly(*given: Any) -> Any:
        time.sleep(0.2)
        return read(*given)

    monkeypatch.setattr(snapshot, "_payment", slowly)
    assert len(ledger.snapshot().payments) == 12
    with pytest.raises(LedgerError), ledger._store.read(long=True) as tx:
        tx.execute("SELECT pg_sleep(30)")


# -- what others do to it -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def another(server: Server, database: str) -> Iterator[psycopg.Connection[Any]]:
    """A transaction of somebody who doesn't know our order of locks."""
    with psycopg.connect(server.url(database)) as connection:
        connection.execute("SET deadlock_timeout = '30s'")  # let the others find out
        yield connection


def waiting(server: Server, database: str) -> bool:
    return bool(sessions(server, database, "wait_event_type = 'Lock'"))


def test_a_deadlock_is_run_again(server: Server, database: str, ledger: Ledger, meanwhile: Callable[..., Future[Any]]) -> None:
    """Else a settlement that the database chose as a deadlock's victim would be lost."""
    ledger.open_payment(intent(1), draw(limits()))
    deadlocks = server.log.count("deadlock detected")
    with another(server, database) as other:
        other.execute("UPDATE payments SET taken = taken")
        settled = meanwhile(settle, ledger, 1)  # has the envelope, waits for the payment
        until(lambda: waiting(server, database))
        other.execute("UPDATE envelopes SET frozen = frozen")  # comes back once the other has lost
        other.commit()
        assert settled.result(WAIT_S).state is PaymentState.SETTLED
    assert server.log.count("deadlock detected") == deadlocks + 1
    assert held_msat(ledger) == (0, 10_000)


@pytest.mark.parametrize("around", [{"cap_currency": "usd"}, {"parent": f"level {MAX_LEVELS - 2}"}], ids=["currency", "depth"])
def test_an_envelope_that_another_process_makes_meanwhile_leaves_none_in_it_that_cant_be(
    make_ledger: Make, meanwhile: Callable[..., Future[Any]], monkeypatch: pytest.MonkeyPatch, around: dict[str, Any]
) -> None:
    """Else an envelope would be left in one of another currency, or too deep, and what is refused be made all the same."""
    ledger, other, real = make_ledger(), make_ledger(), envelopes.make
    for n in range(MAX_LEVELS - 1):
        other.bring(BudgetEnvelope(f"level {n}", parent=f"level {n - 1}" if n else None))

    def make(tx: Any, envelope: BudgetEnvelope) -> bool:
        monkeypatch.setattr(envelopes, "make", real)
        meanwhile(other.bring, BudgetEnvelope("z team", **around)).result(WAIT_S)
        return real(tx, envelope)

    monkeypatch.setattr(envelopes, "make", make)
    scout = BudgetEnvelope("a scout", parent=BudgetEnvelope("m middle", parent=BudgetEnvelope("z team")))
    with pytest.raises(BudgetError):
        ledger.open_payment(intent(1), draw(scout))
    assert not {each.id for each in ledger.envelopes()} & {"a scout", "m middle"}


def test_a_lock_that_isnt_to_be_had_is_refused_in_the_end(
    server: Server, database: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a forgotten psql session would hang every worker; and nothing is spent while it does."""
    ledger.open_payment(intent(1), draw(limits()))
    monkeypatch.setattr(postgres, "PATIENCE_S", 1.0)
    monkeypatch.setattr(
        postgres_links, "BEGIN_WRITING", postgres_links.BEGIN_WRITING.replace(f"{postgres_links.LOCK_TIMEOUT_S}s", "200ms", 1)
    )
    with another(server, database) as other:
        other.execute("UPDATE envelopes SET frozen = frozen")
        with pytest.raises(LedgerError, match="lock timeout") as refused:
            ledger.open_payment(intent(2), draw(limits()))
        assert refused.value.spent is False
        assert ledger.payment(hash_of(2)) is None
        assert ledger.open_payment(intent(3), None)[1]  # who needs no lock of it goes on
    assert ledger.open_payment(intent(2), draw(limits()))[1]


def test_paid_after_all_while_another_purchase_is_being_opened_it_is_retired(
    server: Server, database: str, make_ledger: Make, meanwhile: Callable[..., Future[Any]]
) -> None:
    """Else the settlement of a payment that was made would fail on the index, since neither sees the other's row."""
    one, two = make_ledger(), make_ledger()
    one.open_payment(intent(1, scope="s"), None)
    one.forget(hash_of(1), abandon=True)
    with two._store.transaction() as tx:
        assert two._open(tx, intent(2, scope="s"), draw(limits()), 0.0)[1]
        settled = meanwhile(settle, one, 1)
        until(lambda: waiting(server, database))
    assert settled.result(WAIT_S).state is PaymentState.RETIRED
    assert [row.payment_hash for row in one.live(ORIGIN, "s")] == [hash_of(2)]


def test_a_row_that_ends_before_it_can_be_looked_at_stands_in_nobodys_way(
    make_ledger: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a purchase would be refused for the sake of one that failed a moment ago."""
    one, two = make_ledger(), make_ledger()
    look = Ledger._standing
    looks: list[int] = []

    def meddled(ledger: Ledger, tx: Any, wanted: Any) -> PaymentRow | None:
        looks.append(1)
        found = look(ledger, tx, wanted) if len(looks) == 1 else None
        if len(looks) == 1:
            monkeypatch.setattr(Ledger, "_standing", look)
            at_once([lambda: two.open_payment(intent(1, scope="s"), None)])
            monkeypatch.setattr(Ledger, "_standing", meddled)
        elif len(looks) == 2:
            at_once([lambda: die(two, 1)])
            return look(ledger, tx, wanted)
        return found

    monkeypatch.setattr(Ledger, "_standing", meddled)
    row, is_new = one.open_payment(intent(2, scope="s"), None)
    assert (row.payment_hash, is_new, len(looks)) == (hash_of(2), True, 2)


# -- durability, whatever the server's defaults ---------------------------------------------------------------------------------


def test_a_commit_is_as_durable_as_promised_whatever_the_defaults(server: Server, database: str, ledger: Ledger) -> None:
    """Else a setting of the database, or a note before it, would let a power cut undo the record of a payment."""
    server.admin(f"ALTER DATABASE {database} SET synchronous_commit = off")
    server.admin(f"ALTER DATABASE {database} SET default_transaction_isolation = 'serializable'")
    server.admin(f"ALTER DATABASE {database} SET default_transaction_read_only = on")
    ask = "SELECT current_setting('synchronous_commit') AS durable, current_setting('transaction_isolation') AS isolation"
    seen: list[Any] = []
    ledger.open_payment(intent(1), None)
    for durable in (True, False, True):
        ledger._store.run(lambda tx: seen.extend(tx.execute(ask)), durable=durable)
    assert seen == [{"durable": level, "isolation": "read committed"} for level in ("on", "off", "on")]


# -- schemas and rights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", ["payments", "envelopes", "routeweiler_writers"])
def test_somebody_elses_tables_are_refused_unchanged(server: Server, database: str, ledger: Ledger, table: str) -> None:
    """Else a slip in a URL would ruin another program's data."""
    server.admin(f"CREATE TABLE {table} (mine TEXT); INSERT INTO {table} VALUES ('x')", database)
    assert not ledger.exists()
    for use in (ledger.unfinished, lambda: ledger.open_payment(intent(1), None)):
        with pytest.raises(LedgerError, match="tables of another program") as refused:
            use()
        assert refused.value.spent is False
    tables = server.admin("SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace", database)
    assert (tables, server.admin(f"SELECT * FROM {table}", database)) == ([(table,)], [("x",)])


def test_a_newer_ledger_is_refused_also_under_an_open_one(server: Server, database: str, make_ledger: Make) -> None:
    """Else in a fleet that is being upgraded the old workers would write rows by old rules into a ledger that keeps new ones."""
    old = make_ledger()
    old.open_payment(intent(1), None)
    server.admin(f"UPDATE routeweiler_ledger SET version = {SCHEMA_VERSION + 1}", database)
    for ledger in (old, make_ledger()):
        for _ in range(6):  # more often than there are connections
            with pytest.raises(LedgerError, match="newer") as refused:
                ledger.count_send(hash_of(1))
            assert refused.value.spent is False
    with pytest.raises(LedgerError, match="newer"):
        make_ledger().unfinished()
    assert server.admin("SELECT sends_ever FROM payments", database) == [(1,)]


def test_a_ledger_of_an_older_release_is_there(server: Server, database: str, make_ledger: Make) -> None:
    """Else after an upgrade, until the first purchase, the bill would be empty, and a quote name a price for what is paid for."""
    made = make_ledger()
    made.open_payment(intent(1), None)
    settle(made, 1)
    assert SCHEMA_VERSION == 8, "undo what the newest step does"
    server.admin(TO_VERSION_7, database)
    ledger = make_ledger()
    assert ledger.exists()
    assert ledger.spending().total_msat == 10_000
    assert server.admin("SELECT version FROM routeweiler_ledger", database) == [(SCHEMA_VERSION,)]


@pytest.mark.parametrize("version", range(1, SCHEMA_VERSION))
def test_an_older_ledger_is_migrated_and_takes_charges(server: Server, database: str, make_ledger: Make, version: int) -> None:
    """Else an upgraded fleet could buy no charges, or would take its tokens for some."""
    for statement in (*TABLES, *(each for step in range(1, version + 1) for each in MIGRATIONS[step])):
        server.admin(statement, database)
    server.admin(f"UPDATE routeweiler_ledger SET version = {version}", database)
    server.admin(
        "INSERT INTO payments (payment_hash, origin, scope, path, state, node_pubkey, network, bolt11, scheme, token, amount_msat, "
        f"max_fee_msat, created_at_ms, settled_at_ms) VALUES ('{hash_of(9)}', '{ORIGIN}', '/page', '/page', 'settled', '02', "
        "'bitcoin', 'lnbc1', 'L402', 'token', 10000, 0, 1, 2)",
        database,
    )
    ledger = make_ledger()
    assert {agent: each.total_msat for agent, each in ledger.spending_by_agent().items()} == {None: 10_000}
    assert [(row.payment_hash, row.single_use) for row in ledger.live(ORIGIN)] == [(hash_of(9), False)]
    for n in (1, 2):
        assert ledger.open_payment(charge(n, presenter=f"call {n}"), None)[1]
        settle(ledger, n)
    assert [row.payment_hash for row in ledger.owed(ORIGIN, "page")] == [hash_of(1), hash_of(2)]
    assert not ledger.open_payment(intent(3, scope="/page"), None)[1]
    assert ledger.open_payment(intent(4, agent_id="a"), draw(limits("inner", parent=limits("outer"))))[1]
    assert held_msat(ledger, "outer") == (11_000, 0)


def test_a_schema_of_its_own_keeps_ledgers_apart(server: Server, database: str, make_ledger: Make) -> None:
    """Else two fleets in one database would spend one budget, or a ledger beside other tables couldn't be had."""
    server.admin("CREATE SCHEMA a; CREATE SCHEMA b; CREATE TABLE public.payments (mine TEXT)", database)
    a, b = (make_ledger(at=f"{server.url(database)}&options=-csearch_path%3D{name}%2Cpublic") for name in "ab")
    assert a.open_payment(intent(1), None)[1]
    assert not b.exists()
    assert b.open_payment(intent(1), None)[1]
    assert a.url != b.url
    with pytest.raises(LedgerError, match="no schema"):
        make_ledger(at=f"{server.url(database)}&options=-csearch_path%3Dnone").unfinished()


def test_a_role_with_the_rights_that_the_docs_name_is_enough(server: Server, database: str, make_ledger: Make) -> None:
    """Else every worker would need to own the tables, or fail halfway through a purchase."""
    make_ledger().open_payment(intent(1), None)
    name = f"worker_{database}"
    server.admin(f"CREATE ROLE {name} LOGIN PASSWORD 'w'")
    worker = make_ledger(at=server.url(database, user=name, password="w"))
    with pytest.raises(LedgerError, match="permission denied"):
        worker.unfinished()
    server.admin(f"GRANT USAGE ON SCHEMA public TO {name}", database)
    server.admin(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {name}", database)
    assert worker.open_payment(intent(2), draw(limits()))[1]
    settle(worker, 2)
    worker.mark(hash_of(2), accepted=True)
    worker.learn(ORIGIN, "/", "s")
    server.admin(f"REVOKE INSERT ON payments FROM {name}", database)
    with pytest.raises(LedgerError, match="permission denied") as refused:
        worker.open_payment(intent(3), draw(limits()))
    assert refused.value.spent is False
    assert held_msat(worker) == (0, 10_000)


def test_what_the_server_says_of_a_row_isnt_repeated(ledger: Ledger) -> None:
    """Else an error in a log would show the token and the preimage: PostgreSQL's DETAIL is the whole row."""
    ledger.open_payment(intent(1, token="s3cret-token"), draw(limits()))
    for wrong in (
        lambda: ledger.open_payment(intent(2, amount_msat=0, fee_cap_msat=0, token="s3cret-token"), None),
        lambda: settle(ledger, 1, fee_msat=2**80),
        lambda: ledger.open_payment(intent(2, path="\0s3cret"), None),
        lambda: ledger.open_payment(intent(2, path="\ud800s3cret"), None),
        lambda: ledger._store.run(lambda tx: tx.execute("UPDATE payments SET preimage = 's3cret', amount_msat = 0")),
    ):
        with pytest.raises(LedgerError) as refused:
            wrong()
        error: BaseException | None = refused.value
        while error is not None:
            assert "s3cret" not in str(error)
            error = error.__cause__ or error.__context__
    assert ledger.open_payment(intent(3), None)[1]


# -- connections ----------------------------------------------------------------------------------------------------------------


def test_a_process_takes_few_connections(server: Server, database: str, ledger: Ledger) -> None:
    """Else a fleet of workers with many threads would use up the server's connections."""
    go, seen = threading.Barrier(16), []

    def use(n: int) -> None:
        go.wait(WAIT_S)
        for step in range(5):
            ledger.open_payment(intent(100 * n + step), draw(limits()))
        seen.append(len(sessions(server, database)))

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(use, range(16)))
    assert max(seen) <= postgres_links.MAX_CONNECTIONS
    assert held_msat(ledger) == (16 * 5 * 11_000, 0)
    ledger.close()
    until(lambda: sessions(server, database) == [])


def test_an_interrupt_in_a_transaction_undoes_it_and_the_ledger_goes_on(ledger: Ledger) -> None:
    """Else after Ctrl-C in a notebook half a deed would be in the books, or the next one be part of it."""
    ledger.open_payment(intent(1), draw(limits()))

    def interrupted(row: PaymentRow) -> Change:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ledger.change(hash_of(1), interrupted)
    assert held_msat(ledger) == (11_000, 0)
    assert settle(ledger, 1).state is PaymentState.SETTLED


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="there are no signals here")
def test_a_handler_at_any_statement_is_refused_and_disturbs_nothing(
    ledger: Ledger, make_ledger: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would wait for the locks of its own thread's transaction, or its connections would be used up by it."""
    other, steps, at, came = make_ledger(), count(1), [0], list[Any]()
    ledger.open_payment(intent(0), draw(limits()))

    def handle(*_: object) -> None:
        began_s = time.monotonic()
        for deed in (lambda: ledger.freeze("e"), lambda: list(ledger.payments()), lambda: other.freeze("e"), ledger.close):
            try:
                came.append(deed())
            except LedgerError as error:
                came.append(error)
        assert time.monotonic() - began_s < WAIT_S / 6

    original = psycopg.Connection.execute

    def execute(self: Any, *args: Any, **kwargs: Any) -> Any:
        done = None
        for before in (True, False):
            if next(steps) == at[0] and threading.current_thread() is threading.main_thread():
                signal.raise_signal(signal.SIGUSR1)
            done = original(self, *args, **kwargs) if before else done
        return done

    before = signal.signal(signal.SIGUSR1, handle)
    monkeypatch.setattr(psycopg.Connection, "execute", execute)
    try:
        for n in count(1):
            steps, at[0], refusals = count(1), n, len(came)
            assert ledger.open_payment(intent(n), draw(limits()))[1]
            settle(ledger, n)
            at[0] = 0
            if len(came) == refusals:
                break
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert n > 10
    assert all(each is None or (isinstance(each, LedgerError) and "this same thread" in str(each)) for each in came)
    assert held_msat(ledger) == (11_000, 10_000 * n)
    assert not ledger.envelope("e").frozen


@pytest.fixture
def mute() -> Iterator[str]:
    """The URL of a server that accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as listening:
        yield f"postgresql://user@127.0.0.1:{listening.getsockname()[1]}/ledger"


def test_a_mute_server_holds_up_no_free_page_and_no_purchase_for_long(mute: str) -> None:
    """Four threads would wait one after the other, each for the whole patience, for pages that cost nothing."""
    with FakeLnd() as lnd, Paywall(lnd, price_msat=10_000) as wall, contextlib.ExitStack() as stack:
        urls = [stack.enter_context(answering(lambda _: (200, [], b"free"))) for _ in range(4)]
        session = stack.enter_context(Routeweiler(funding=[lnd.funding()], ledger=mute, payment_timeout=2))
        began_s = time.monotonic()
        assert [each.status_code for each in at_once([partial(session.get, url, timeout=2) for url in urls])] == [200] * 4
        assert time.monotonic() - began_s < 6
        began_s = time.monotonic()
        with pytest.raises(LedgerError) as caught:
            session.get(wall.url, timeout=2)
        assert caught.value.spent is False
        assert time.monotonic() - began_s < 8
        assert not lnd.orders


def test_a_server_that_falls_silent_under_an_open_connection_is_given_up(far: Ledger, wire: Wire) -> None:
    """The call would hang on a connection whose other end neither answers nor closes."""
    far.open_payment(intent(1), None)
    for deed in (lambda: far.open_payment(intent(2), None), lambda: far.live(ORIGIN)):
        wire.strike("wire freeze")
        began_s = time.monotonic()
        with patience(0.5), contextlib.suppress(LedgerError):  # it may succeed over a new connection
            deed()
        assert time.monotonic() - began_s < 10


def test_writers_of_long_ago_are_forgotten(
    server: Server, database: str, ledger: Ledger, make_ledger: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each process that ever used the ledger would leave a row for ever."""
    ledger.open_payment(intent(1), None)
    monkeypatch.setattr(postgres_links, "REMEMBERED_S", 0)  # for the process it is as long ago
    server.admin("UPDATE routeweiler_writers SET seen_at = now() - interval '8 days'", database)
    make_ledger().open_payment(intent(2), None)
    assert server.admin("SELECT count(*) FROM routeweiler_writers", database) == [(1,)]
    ledger.count_send(hash_of(1))  # and who comes back is there again
    assert server.admin("SELECT count(*) FROM routeweiler_writers", database) == [(2,)]


def test_what_any_connection_has_committed_is_looked_for_before_a_purchase(
    server: Server, database: str, ledger: Ledger, meanwhile: Callable[..., Future[Any]]
) -> None:
    """Else, behind a pooler that leads to a standby that lagged, a connection that lost nothing would buy what another bought."""
    ledger.open_payment(intent(1), draw(limits()))
    (first,) = server.admin("SELECT writer FROM routeweiler_writers", database)
    with ledger._store.read():  # by the first connection: it is used next
        assert meanwhile(ledger.open_payment, intent(2), draw(limits())).result(WAIT_S)[1]
    server.admin(f"DELETE FROM payments WHERE payment_hash = '{hash_of(2)}'", database)
    server.admin(f"DELETE FROM routeweiler_writers WHERE writer <> '{first[0]}'", database)
    with pytest.raises(LedgerError, match="lacks what this session has written"):
        ledger.open_payment(intent(2), draw(limits()))


def lose(server: Server, database: str) -> None:
    """Bring back the state before anything was committed, as far as sessions look at it."""
    server.admin("UPDATE routeweiler_writers SET serial = 0", database)


def test_who_notices_a_loss_can_still_freeze_and_thaws_nothing(server: Server, database: str, ledger: Ledger) -> None:
    """Else whoever hears of it first couldn't stop the others, which go on buying what was lost."""
    ledger.open_payment(intent(1), draw(limits()))
    lose(server, database)
    with pytest.raises(LedgerError, match=r"freeze\(id\)"):
        ledger.open_payment(intent(2), draw(limits()))
    assert ledger.freeze("e").frozen
    assert server.admin("SELECT frozen FROM envelopes WHERE id = 'e'", database) == [(1,)]
    with pytest.raises(LedgerError, match="lacks what this session has written"):
        ledger.thaw("e")


def pickled(session: Routeweiler) -> Routeweiler:
    made: Routeweiler = pickle.loads(pickle.dumps(session))
    return made


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickled])
def test_a_copy_looks_for_what_its_original_has_committed(
    server: Server, database: str, url: str, copied: Callable[[Routeweiler], Routeweiler], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else after a loss each task of an engine, with a fresh copy, would buy again what its session has bought before."""
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    with FakeLnd() as lnd, Paywall(lnd, price_msat=10_000, dynamic=True) as wall:
        with Routeweiler(funding=[lnd.funding()], ledger=url) as session, copied(session) as early:
            assert session.get(wall.url_for("/first")).status_code == 200
            with copied(session) as late, copied(copied(session)) as of_a_copy:
                assert late.get(wall.url_for("/second")).status_code == 200, "what is there is found"
                lose(server, database)
                for buyer in (late, of_a_copy, session):
                    with pytest.raises(LedgerError, match="lacks what this session has written") as refused:
                        buyer.get(wall.url_for("/third"))
                    assert refused.value.spent is False
                with copied(session) as of_a_refuser, pytest.raises(LedgerError, match="lacks"):
                    of_a_refuser.get(wall.url_for("/third"))
            assert len(lnd.payments) == 2
            if copied is copy.deepcopy:  # the pickled ones of a process have one ledger, and a shallow one its original's
                assert early.get(wall.url_for("/third")).status_code == 200, "it was copied before"
        with Routeweiler(funding=[lnd.funding()], ledger=url) as session:
            assert session.get(wall.url_for("/fourth")).status_code == 200, "a new session begins anew"


def test_what_a_copy_looks_for_is_bounded_and_the_latest(ledger: Ledger) -> None:
    """Else a worker that unpickles a thousand sessions would look for a thousand rows before each purchase."""
    history = postgres_links.History(url="")
    for n in range(100):
        history.expect((False, {f"w{n % 60}": (n, 1000 + n), "old": (1, 1)}))
    assert history.known() == (False, {f"w{n % 60}": (n, 1000 + n) for n in range(92, 100)})
    history.expect((True, {"w39": (5, 5)}))
    assert history.known() == (True, {f"w{n % 60}": (n, 1000 + n) for n in range(92, 100)}), "an older copy takes nothing back"


def test_purchases_go_on_beside_an_archive_of_many_origins(
    server: Server, make_ledger: Make, tmp_path: Path, meanwhile: Callable[..., Future[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else to tidy up would stop a fleet, or take a round trip for each origin of each batch."""
    monkeypatch.setattr(archive_module, "BATCH_ROWS", 10)
    clock, sent = Clock(), count()
    ledger, other = make_ledger(clock), make_ledger()
    for n in range(1, 31):
        make_past(ledger, clock, "retired", n, origin=f"https://{n}.example")
    clock.now_s = NOON_S
    execute = postgres.PostgresTransaction.execute

    def counted(self: Any, sql: str, parameters: Any = ()) -> Any:
        if "archived_" in sql:
            next(sent)
        return execute(self, sql, parameters)

    monkeypatch.setattr(postgres.PostgresTransaction, "execute", counted)
    moving, bought = threading.Event(), []

    def buy() -> None:
        while not moving.is_set():
            n = 1_000 + len(bought)
            assert other.open_payment(intent(n, scope=f"s{n}"), draw(limits("f")))[1]
            bought.append(settle(other, n))

    buyers = meanwhile(buy)
    until(lambda: bought)
    begun = len(bought)
    moved = ledger.archive(tmp_path / "a.db", before=BEFORE, progress=lambda _: until(lambda: len(bought) > begun + 2))
    moving.set()
    buyers.result(WAIT_S)
    assert moved.payments == 30
    assert {row.payment_hash for row in ledger.payments()} == {row.payment_hash for row in bought}
    assert ledger.spending().total_msat == 30 * 10_000 + sum(range(1, 31)) + sum(row.amount_msat + row.fee_msat for row in bought)
    assert audited(ledger).agrees
    assert next(sent) <= 2 * 3 + 2 * len(bought) + 10, "two statements a batch, and what purchases look up"


def test_a_clock_that_jumps_is_no_loss(server: Server, database: str, make_ledger: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a server whose clock was set right would look like one restored from a backup, and the whole fleet stop buying."""
    server.admin("CREATE SCHEMA clock; CREATE TABLE clock.jump AS SELECT interval '0' AS by", database)
    server.admin(
        "CREATE FUNCTION clock.now() RETURNS timestamptz LANGUAGE sql AS 'SELECT pg_catalog.now() + by FROM clock.jump'", database
    )
    server.admin(f"ALTER DATABASE {database} SET search_path = clock, pg_catalog", database)
    ledger = make_ledger()
    ledger.open_payment(intent(1), None)
    server.admin("UPDATE clock.jump SET by = '8 days'", database)
    make_ledger().open_payment(intent(2), None)
    assert server.admin("SELECT count(*) FROM routeweiler_writers", database) == [(1,)]
    assert ledger.open_payment(intent(3), None)[1]
    # A process's own clock says nothing about the server's rows.
    monkeypatch.setattr(time, "time", partial(float, time.time() + 8 * 86_400))
    server.admin("DELETE FROM routeweiler_writers", database)
    with pytest.raises(LedgerError, match="lacks what this session has written"):
        ledger.open_payment(intent(4), None)


@pytest.mark.parametrize("table", ["payments", "routeweiler_writers"])
def test_tables_that_are_gone_arent_said_to_be_safe(server: Server, database: str, ledger: Ledger, table: str) -> None:
    """Else who has dropped them, or restored an empty database, would look for rights and networks."""
    ledger.open_payment(intent(1), None)
    server.admin(f"DROP TABLE {table}", database)
    with pytest.raises(LedgerError, match=f'"{table}" does not exist') as refused:
        ledger.open_payment(intent(2), None)
    assert "aren't lost" not in str(refused.value)
    assert "make a new session" in str(refused.value)


def test_the_rights_of_the_manual_are_enough_also_after_an_upgrade(server: Server, database: str, make_ledger: Make) -> None:
    """Else a fleet whose workers don't own the tables couldn't begin, or would stop buying at an upgrade."""
    text = (Path(__file__).parents[2] / "docs/how-to/postgres.md").read_text("utf-8")
    blocks = re.findall(
        r"^```(sql|sh)\n(.+?)^```", text[text.index("## Rights") : text.index("All workers must name")], re.M | re.S
    )
    assert [language for language, _ in blocks] == ["sql", "sh", "sql"]
    try:
        server.admin("CREATE ROLE owner LOGIN PASSWORD 'x'; CREATE ROLE worker LOGIN PASSWORD 'x'")
        url = partial(server.url, database, password="x")
        owner, worker = (f"{url(user=user)}&options=-csearch_path%3Drouteweiler" for user in ("owner", "worker"))

        def run(command: str) -> None:
            program = [sys.executable, "-m", "routeweiler_sync", *command.split()]
            subprocess.run(
                program, env={**os.environ, "ROUTEWEILER_LEDGER": owner}, check=True, timeout=WAIT_S, capture_output=True
            )

        for language, block in blocks:
            if language == "sql":
                server.admin(block, database)
            else:
                (command,) = re.findall(r"^routeweiler-sync (.+)", block, re.M)
                run(command)
        assert make_ledger(at=worker).open_payment(intent(1), None)[1]
        server.admin(f"SET search_path = routeweiler; {TO_VERSION_7}", database)
        run("budget show")
        assert make_ledger(at=worker).open_payment(intent(2), None)[1]
    finally:
        for end in ("DROP SCHEMA IF EXISTS routeweiler CASCADE", "DROP OWNED BY owner, worker", "DROP ROLE owner, worker"):
            server.admin(end, database)
