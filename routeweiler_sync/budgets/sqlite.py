"""The ledger's SQLite file: the default. One file, many threads and processes of one machine.

WAL with ``synchronous=FULL``: a commit is on disk before lnd hears of an invoice. Every write transaction is ``BEGIN
IMMEDIATE``, so writers queue and never meet halfway. One connection a process, closed before a fork and made anew after it.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import LedgerError, RouteweilerError
from .store import MIGRATIONS, SCHEMA_VERSION, T, Transaction

if TYPE_CHECKING:
    import sqlite3

#: ``PRAGMA application_id`` of a ledger of ours: "RWSL". A file without it isn't one.
APPLICATION_ID = 0x5257534C
#: How long a writer waits for the others before the ledger counts as locked.
BUSY_TIMEOUT_S = 30.0

#: Stores of this process; the lock guards the set, and a store's change of process.
_stores: weakref.WeakSet[SqliteStore] = weakref.WeakSet()
_stores_lock = threading.Lock()
#: Locks of the stores that a fork under way keeps still.
_held: list[threading.RLock] = []

#: Connections of a parent process that forked without a word to Python, kept so that the child never closes them.
_inherited: list[object] = []


class SqliteStore:
    """A ledger in the SQLite file ``path``, made with mode 0600 on first use. See `routeweiler_sync.budgets.store.Store`."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        try:
            self.path = Path(path).expanduser().absolute()
        except RuntimeError as error:  # ~nobody/…, or no home at all
            raise LedgerError(f"The ledger {path} can't be found: {error}. Nothing was spent. Name another.") from error
        self._connection: sqlite3.Connection | None = None
        self._lock = threading.RLock()
        self._pid = os.getpid()
        with _stores_lock:
            _stores.add(self)

    @property
    def url(self) -> str:
        """The canonical file name."""
        return f"sqlite:///{os.path.realpath(self.path)}"

    def exists(self) -> bool:
        """Whether the file is there."""
        try:
            return self._connection is not None or self.path.exists()
        except OSError:  # a folder that may not be looked into: there may be one
            return True

    @contextlib.contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[SqliteTransaction]:
        """BEGIN IMMEDIATE … COMMIT; LedgerError for whatever SQLite refuses."""
        with self._process_lock(), self._as_ledger_error():
            connection = self._connected()
            if not durable:
                connection.execute("PRAGMA synchronous=NORMAL")
            try:
                with _block(connection, "BEGIN IMMEDIATE"):
                    yield SqliteTransaction(connection)
            finally:
                if not durable:
                    connection.execute("PRAGMA synchronous=FULL")

    def run(self, work: Callable[[Transaction], T], *, durable: bool = True) -> T:
        """``work`` in one transaction: writers queue, so none is ever undone for another's sake."""
        with self.transaction(durable=durable) as tx:
            return work(tx)

    @contextlib.contextmanager
    def read(self) -> Iterator[SqliteTransaction]:
        """One consistent sight: BEGIN … COMMIT."""
        with self._process_lock(), self._as_ledger_error():
            connection = self._connected()
            with _block(connection, "BEGIN"):
                yield SqliteTransaction(connection)

    def close(self) -> None:
        """Close this process's connection; the next use opens it again."""
        with self._process_lock():
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.close()

    def _process_lock(self) -> threading.RLock:
        """The lock of this process. After a fork the inherited one may be held by a thread that isn't here any more."""
        if self._pid != os.getpid():
            with _stores_lock:
                if self._pid != os.getpid():
                    _inherited.append(self._connection)
                    self._connection, self._lock = None, threading.RLock()
                    self._pid = os.getpid()  # last: it is looked at without the lock
        return self._lock

    @contextlib.contextmanager
    def _as_ledger_error(self) -> Iterator[None]:
        import sqlite3

        try:
            yield
        except RouteweilerError:  # an OSError too, as requests' are
            raise
        except (sqlite3.Error, OSError, OverflowError) as error:
            raise self._error(str(error)) from error

    def _error(self, why: str) -> LedgerError:
        return LedgerError(
            f"The ledger {self.path} can't be used: {why}. Nothing was spent. "
            "Mend the file, its folder's rights or the disk, or name another ledger; the rows it holds aren't lost."
        )

    def _connected(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = self._connect()
        return self._connection

    def _connect(self) -> sqlite3.Connection:
        import sqlite3

        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        connection = sqlite3.connect(self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        try:
            connection.row_factory = sqlite3.Row
            with _block(connection, "BEGIN"):
                version = self._version(connection)  # before anything is changed: it may be somebody else's file
            self._make_wal(connection)
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA foreign_keys=ON")
            if version < SCHEMA_VERSION:
                self._migrate(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _make_wal(self, connection: sqlite3.Connection) -> None:
        """Switch to WAL. Raced by several openers on a fresh file this says "locked" at once, whatever the busy timeout."""
        import sqlite3

        import tenacity

        def locked(error: BaseException) -> bool:
            return isinstance(error, sqlite3.OperationalError) and "locked" in str(error)

        for attempt in tenacity.Retrying(
            retry=tenacity.retry_if_exception(locked),
            wait=tenacity.wait_random(0.005, 0.05),
            stop=tenacity.stop_after_delay(BUSY_TIMEOUT_S),
            reraise=True,
        ):
            with attempt:
                connection.execute("PRAGMA journal_mode=WAL")

    def _migrate(self, connection: sqlite3.Connection) -> None:
        with _block(connection, "BEGIN IMMEDIATE"):  # whoever comes first migrates; the others then find it done
            version = self._version(connection)
            for step in range(version + 1, SCHEMA_VERSION + 1):
                for statement in MIGRATIONS[step]:
                    connection.execute(statement)
            connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")

    def _version(self, connection: sqlite3.Connection) -> int:
        """The ledger's version, 0 for an empty file. Inside a transaction: another process may be making the ledger."""
        application: int = connection.execute("PRAGMA application_id").fetchone()[0]
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
        if application != APPLICATION_ID:
            tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if application or version or tables:
                raise LedgerError(
                    f"{self.path} is a database, but not a ledger of routeweiler_sync. Nothing was spent, and nothing was "
                    "changed in it. Name another file as the ledger."
                )
            return 0
        if version > SCHEMA_VERSION:
            raise LedgerError(
                f"The ledger {self.path} was written by a newer version (schema {version}, this one knows {SCHEMA_VERSION}). "
                "Nothing was spent, and nothing was changed in it. Upgrade routeweiler-sync."
            )
        return version


class SqliteTransaction:
    """Statements of one transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def execute(self, sql: str, parameters: Sequence[object] = ()) -> list[Mapping[str, Any]]:
        """Run one statement and give its rows."""
        return [dict(row) for row in self._connection.execute(sql, tuple(parameters)).fetchall()]


@contextlib.contextmanager
def _block(connection: sqlite3.Connection, begin: str) -> Iterator[None]:
    try:
        connection.execute(begin)
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _before_fork() -> None:
    """Keep every store still, and closed: SQLite's account of a process's file locks is inherited, the locks are not.

    A child that opens the file beside an inherited connection believes in locks that it hasn't got: when the parent then closes,
    the write-ahead log is deleted under the child, and what it commits is lost.
    """
    _stores_lock.acquire()
    for store in _stores:
        if store._pid != os.getpid():  # unused since an earlier fork: its lock may be held by a thread that isn't here
            continue
        store._lock.acquire()
        _held.append(store._lock)
        if store._connection is not None and not store._connection.in_transaction:
            store._connection.close()
            store._connection = None


def _after_fork_in_parent() -> None:
    while _held:
        _held.pop().release()
    _stores_lock.release()


def _after_fork_in_child() -> None:
    global _stores_lock
    _held.clear()  # each store makes itself a new lock
    _stores_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
