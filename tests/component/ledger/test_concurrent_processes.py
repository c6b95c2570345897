"""One SQLite ledger among crashes, racing openers and forks."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from routeweiler_sync.errors import LedgerError
from routeweiler_sync.ledger import sqlite as sqlite_module
from routeweiler_sync.ledger.ledger import Ledger
from tests.support.ledger_builders import PATIENCE_S, at_once, draw, hash_of, held_msat, intent, limits, settle

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "ledger.db"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    ledger = Ledger.open(path)
    yield ledger
    ledger.close()


# -- crashes ----------------------------------------------------------------------------------------------------------------

DYING = """
import os, sys
from routeweiler_sync.ledger import sqlite
from tests.support.ledger_builders import *
path, left, deed = sys.argv[1], int(sys.argv[2]), sys.argv[3]
ledger = Ledger.open(path)
ledger.open_payment(intent(1), draw(limits()))
class Dying:
    def __init__(self, connection): self.connection = connection
    def __getattr__(self, name): return getattr(self.connection, name)
    def execute(self, sql, *rest):
        global left
        if left == 0: os._exit(9)
        left -= 1
        return self.connection.execute(sql, *rest)
ledger._store._writer.connection = Dying(ledger._store._writer.connection)
if deed == "settle": settle(ledger, 1, fee_msat=500)
else: ledger.open_payment(intent(2), draw(limits()))
sys.exit(7)
"""


@pytest.mark.slow
@pytest.mark.parametrize("deed", ["open", "settle"])
def test_death_at_any_statement_leaves_all_of_it_or_nothing(tmp_path: Path, deed: str) -> None:
    """Else kill -9 could leave a reservation without a row, a spend without its token, or a row that nothing covers."""
    ends = set()
    for left in range(30):
        path = tmp_path / f"{left}.db"
        died = subprocess.run([sys.executable, "-c", DYING, str(path), str(left), deed], check=False, timeout=PATIENCE_S)
        ledger = Ledger.open(path)
        rows = list(ledger.payments())
        reserved = sum(row.amount_msat + row.max_fee_msat for row in rows if row.unfinished)
        settled = sum(row.amount_msat + row.fee_msat for row in rows if row.settled_at)
        assert held_msat(ledger) == (reserved, settled)
        assert all((row.preimage is not None) == (row.settled_at is not None) for row in rows)
        ends.add((len(rows), settled))
        ledger.close()
        if died.returncode == 7:
            break
        assert died.returncode == 9
    else:
        pytest.fail("it never got through")
    assert ends == ({(1, 0), (2, 0)} if deed == "open" else {(1, 0), (1, 10_500)})


def test_an_interrupt_as_a_transaction_begins_leaves_none_open(ledger: Ledger) -> None:
    """Else Ctrl-C at a bad moment would make the ledger unusable for the rest of the session."""
    ledger.open_payment(intent(1), None)
    store: Any = ledger._store
    ledger.payment(hash_of(1))

    class Interrupted:
        def __init__(self, connection: Any) -> None:
            self.connection = connection

        def __getattr__(self, name: str) -> Any:
            return getattr(self.connection, name)

        def execute(self, sql: str, *rest: Any) -> Any:
            result = self.connection.execute(sql, *rest)
            if sql.startswith("BEGIN"):
                raise KeyboardInterrupt
            return result

    uses: list[tuple[Any, Callable[[str], object]]] = [(store._writer, ledger.count_send), (store._reader, ledger.payment)]
    for line, use in uses:
        connection = line.connection
        line.connection = Interrupted(connection)
        with pytest.raises(KeyboardInterrupt):
            use(hash_of(1))
        line.connection = connection
        use(hash_of(1))
        assert ledger.count_send(hash_of(1)) is not None


# -- many openers -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_many_connections_to_a_new_file_create_the_tables_once(tmp_path: Path) -> None:
    """Else workers that start together would find the ledger "locked", or "not a ledger"."""
    for turn in range(25):
        handles = [Ledger.open(tmp_path / f"{turn}.db") for _ in range(8)]
        results = at_once([partial(handles[n].open_payment, intent(n, scope="s"), draw(limits())) for n in range(8)])
        assert sum(is_new for _, is_new in results) == 1
        for handle in handles:
            handle.close()


def test_a_ledger_that_another_process_creates_at_this_moment_is_used(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else who opens a fresh file at the wrong moment is told that it is somebody else's database."""
    other = Ledger.open(path)
    connect = sqlite3.connect
    made: list[bool] = []

    class Slow(sqlite3.Connection):
        def execute(self, sql: str, *rest: Any) -> sqlite3.Cursor:
            if "user_version" in sql and not made:
                made.append(True)  # right between our looks at two numbers, another process makes the ledger
                with pytest.MonkeyPatch.context() as quick:
                    quick.setattr(sqlite3, "connect", connect)
                    quick.setattr(sqlite_module, "BUSY_TIMEOUT_S", 0.2)
                    with contextlib.suppress(LedgerError):  # it may have to wait for us
                        other.open_payment(intent(1), None)
            return super().execute(sql, *rest)

    monkeypatch.setattr(sqlite3, "connect", lambda *args, **kwargs: connect(*args, **{**kwargs, "factory": Slow}))
    ledger = Ledger.open(path)
    assert ledger.open_payment(intent(2), None)[1]
    assert made
    ledger.close()
    other.close()


# -- fork -------------------------------------------------------------------------------------------------------------------


def in_child(deed: Callable[[], object]) -> int:
    """Fork; the child does ``deed`` and ends. Its process id."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            deed()
            code = 0
        except BaseException as error:
            os.write(2, f"in the child: {error!r}\n".encode())
        finally:
            os._exit(code)
    return pid


def ended_well(pid: int) -> bool:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def seen_by_another_process(path: Path) -> set[str]:
    code = (
        "import sys; from tests.support.ledger_builders import Ledger; "
        "print(*(r.payment_hash for r in Ledger.open(sys.argv[1]).payments()))"
    )
    return set(subprocess.run([sys.executable, "-c", code, path], check=True, capture_output=True, text=True).stdout.split())


@forks
def test_a_forked_child_and_its_parent_share_the_ledger(ledger: Ledger, path: Path) -> None:
    """Else workers of a pre-forking server would corrupt the ledger, or hang."""
    ledger.open_payment(intent(0), draw(limits()))

    def buy(first: int) -> None:
        for n in range(first, first + 20):
            assert ledger.open_payment(intent(n), draw(limits()))[1]
            settle(ledger, n)

    children = [in_child(partial(buy, first)) for first in (100, 200, 300)]
    buy(400)
    assert [ended_well(pid) for pid in children] == [True] * 3
    assert held_msat(ledger) == (11_000, 800_000)
    assert len(seen_by_another_process(path)) == 81


@forks
def test_what_a_child_commits_outlives_its_parents_connection(ledger: Ledger, path: Path) -> None:
    """Else a payment that a worker has written down would vanish when the parent closes the ledger: it is paid again."""
    ledger.open_payment(intent(1), None)
    (ready, tell_ready), (go, tell_go) = os.pipe(), os.pipe()

    def child() -> None:
        assert ledger.open_payment(intent(2), None)[1]
        os.write(tell_ready, b".")
        os.read(go, 1)
        assert ledger.open_payment(intent(3), None)[1]
        assert len(list(ledger.payments())) == 3

    pid = in_child(child)
    os.read(ready, 1)
    ledger.close()
    os.write(tell_go, b".")
    assert ended_well(pid)
    everything = {hash_of(n) for n in (1, 2, 3)}
    assert seen_by_another_process(path) == everything
    assert {row.payment_hash for row in ledger.payments()} == everything
    for end in (ready, tell_ready, go, tell_go):
        os.close(end)


@pytest.mark.slow
@forks
def test_a_fork_in_the_middle_of_another_threads_purchases(ledger: Ledger) -> None:
    """Else a child forked while a thread writes would find the ledger locked for ever."""
    ledger.open_payment(intent(0), None)
    stop = threading.Event()
    numbers = iter(range(1000, 10**6))

    def buy() -> None:
        while not stop.is_set():
            n = next(numbers)
            ledger.open_payment(intent(n), None)
            settle(ledger, n)

    thread = threading.Thread(target=buy, daemon=True)
    thread.start()
    try:
        children = [in_child(partial(ledger.open_payment, intent(n), None)) for n in range(1, 25)]
        assert [ended_well(pid) for pid in children] == [True] * 24
    finally:
        stop.set()
        thread.join(PATIENCE_S)
    assert {row.payment_hash for row in ledger.payments(state="open")} == {hash_of(n) for n in range(25)}


@forks
def test_the_threads_of_a_child_find_one_connection(ledger: Ledger) -> None:
    """Else the first requests of a fresh worker, arriving together, would write into one another's transactions."""
    ledger.open_payment(intent(0), draw(limits()))

    make_lock, connect = threading.RLock, sqlite3.connect
    connections: list[object] = []

    def slow_lock() -> Any:
        time.sleep(0.01)  # the window between "this is another process" and its new lock
        return make_lock()

    def counted_connect(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        connections.append(args)
        made: sqlite3.Connection = connect(*args, **kwargs)
        return made

    def child() -> None:
        threading.RLock = slow_lock  # type: ignore[assignment]
        sqlite3.connect = counted_connect  # type: ignore[assignment]
        results = at_once([partial(ledger.open_payment, intent(n, scope=f"s{n % 3}"), draw(limits())) for n in range(1, 13)])
        assert sum(is_new for _, is_new in results) == 3
        assert len(connections) == 1

    assert ended_well(in_child(child))
