"""A ledger in an SQLite file, which is the default: one file for many threads and processes of one machine.

This module knows how the file is opened, locked and migrated. Which statements run is left to `ledger.ledger`.

- The journal mode is WAL with ``synchronous=FULL``, so that a commit is on disk before lnd receives an invoice.
- Every write transaction begins with ``BEGIN IMMEDIATE``, so that writers wait for each other and none has to be undone.
- Each process has two connections, one for writing and one for reading, so that a reader never waits for a writer. Both are closed
  before a fork and opened again after it.

A deleted or replaced file can live on while a process has it open (where the system allows that). What is written to it is lost
when the process ends. The same holds for the write-ahead log and the shared memory beside it (-wal, -shm). So every write that
money may follow (``binding``) first checks that the paths still name the open files, and, as when a file is opened, that the ledger
has one name and that not every user can write to it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._core.files import (
    SIDE_FILES,
    UnsafeFileError,
    connect_sqlite,
    file_identity,
    make_private_sqlite,
    printable,
    require_one_name,
    require_private,
    resolved,
    while_locked,
)
from .._core.forks import around_fork
from ..errors import LedgerError, RouteweilerError
from .store import MIGRATIONS, SCHEMA_VERSION, T, Transaction

if TYPE_CHECKING:
    import sqlite3

log = logging.getLogger("routeweiler_sync")

#: ``PRAGMA application_id`` of a routeweiler_sync ledger: "RWSL" in ASCII. A database without it isn't a ledger.
APPLICATION_ID = 0x5257534C
#: How long a writer waits for other writers before SQLite reports "database is locked".
BUSY_TIMEOUT_S = 30.0

#: Advice for an error, by a word in SQLite's message.
_ADVICE = (
    ("locked", "Another program is writing to it: call again when that program is done."),
    ("full", "Make room on the disk, then call again."),
    ("readonly", "Let this user write the file and its folder, then call again."),
    ("unable to open", "Let this user read and write the file and its folder, then call again."),
    ("malformed", "Restore the file; or move it away, and see the node's list of payments for what was paid."),
    ("not a database", "Name another file as the ledger, or restore this one."),
)
#: SQLite's message about text that isn't UTF-8 begins with this and repeats the text, which may be a token.
_REPEATS_TEXT = "Could not decode"

#: All stores of this process. The lock guards this set, and the moment when a store notices that it lives in a forked child.
_stores: weakref.WeakSet[SqliteStore] = weakref.WeakSet()
_stores_lock = threading.Lock()
#: The stores' locks that are held during a fork.
_locked_for_fork: list[threading.RLock] = []

#: Connections of a parent process whose fork Python didn't notice (one made by C code). The child must never close them, so they
#: are kept here.
_inherited: list[_Line] = []


class SqliteStore:
    """A ledger in the SQLite file ``path``, created with mode 0600 on first use. See `routeweiler_sync.ledger.store.Store`.

    Raises: LedgerError if ``~user`` in ``path`` names an unknown user, or if no file can have that name.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        try:
            self.path = Path(path).expanduser().absolute()
        except RuntimeError as error:  # ~nobody/…, or no home at all
            raise LedgerError(f"The ledger {path} can't be found: {error}.", advice="Give another path.") from error
        try:
            possible = b"\0" not in os.fsencode(self.path)
        except UnicodeError:
            possible = False
        if not possible:
            raise LedgerError(
                f"The ledger's path {os.fspath(path)!a} isn't a name that a file can have.", advice="Give another path."
            )
        self._writer, self._reader = _Line(), _Line()
        #: Identity of the file that was opened first, so that a replaced file is noticed; None before, and again after `close`.
        self._file: object = None
        #: The path with links resolved when the file was last opened. SQLite names the files beside it after this one.
        self._real = self.path
        self._pid = os.getpid()
        with _stores_lock:
            _stores.add(self)

    @property
    def url(self) -> str:
        """``sqlite:///`` and the file's absolute path with links resolved: the same for every store of one file."""
        return f"sqlite:///{os.path.realpath(self.path)}"

    def exists(self) -> bool:
        """Return whether the file exists, or may exist."""
        try:
            return self._file is not None or self.path.exists()
        except OSError:  # the folder isn't readable, so the file may exist
            return True

    @contextlib.contextmanager
    def transaction(self, *, durable: bool = True, binding: bool = False) -> Iterator[SqliteTransaction]:
        """Begin a write transaction with BEGIN IMMEDIATE, commit it at the end of the block. See `Store.transaction`."""
        with self._connected(writes=True) as connection:
            if not durable:
                connection.execute("PRAGMA synchronous=NORMAL")
            try:
                with _block(connection, "BEGIN IMMEDIATE"):
                    if binding:
                        self._refuse_if_gone()
                        self._refuse_if_beside_is_gone()
                        self._refuse_if_unsafe(require_one_name, require_private)
                        self._refuse_if_newer(connection)
                    yield SqliteTransaction(connection)
            finally:
                if not durable:
                    connection.execute("PRAGMA synchronous=FULL")

    def run(self, work: Callable[[Transaction], T], *, durable: bool = True, binding: bool = False) -> T:
        """Call ``work`` once, in one transaction. SQLite never undoes it in favour of another: writers wait for each other."""
        with self.transaction(durable=durable, binding=binding) as tx:
            return work(tx)

    @contextlib.contextmanager
    def read(self) -> Iterator[SqliteTransaction]:
        """Begin a read transaction: every statement sees the file as of one moment. Never waits for a writer."""
        with self._connected(writes=False) as connection, _block(connection, "BEGIN"):
            yield SqliteTransaction(connection)

    def close(self) -> None:
        """Close this process's connections. The next use opens the file that the path names by then."""
        self._start_over_after_fork()
        with self._writer.lock, self._reader.lock:  # both, so that no thread connects in between
            self._writer.close()
            self._reader.close()
            self._file = None

    def _start_over_after_fork(self) -> None:
        """In a forked child, replace the connections and locks: the parent's threads may hold the locks, and don't exist here."""
        if self._pid != os.getpid():
            with _stores_lock:
                if self._pid != os.getpid():
                    _inherited.extend((self._writer, self._reader))
                    self._writer, self._reader = _Line(), _Line()
                    self._pid = os.getpid()  # last, because it is read without the lock

    @contextlib.contextmanager
    def _connected(self, *, writes: bool) -> Iterator[sqlite3.Connection]:
        self._start_over_after_fork()
        line = self._writer if writes else self._reader
        with line.lock, self._as_ledger_error():
            if line.connection is None:
                line.connection = self._connect()
                line.files_beside = self._files_beside()
                if not writes:
                    line.connection.execute("PRAGMA query_only=ON")
            connection = line.connection
            try:
                yield connection
            finally:
                if connection.in_transaction:  # even ROLLBACK failed: a new connection will see what is on disk
                    line.close()

    @contextlib.contextmanager
    def _as_ledger_error(self) -> Iterator[None]:
        import sqlite3

        try:
            yield
        except RouteweilerError:  # is an OSError too, as every requests.RequestException is
            raise
        except UnicodeError:  # from None: such an error repeats the text
            raise self._error("a text to be stored can't be encoded in UTF-8") from None
        except (sqlite3.Error, OSError, OverflowError) as error:
            if _REPEATS_TEXT in str(error):
                raise self._error("a row contains text that can't be decoded (database disk image is malformed)") from None
            raise self._error(str(error)) from error

    def _error(self, why: str) -> LedgerError:
        advice = next((advice for word, advice in _ADVICE if word in why), "Repair the file, its folder's rights or the disk.")
        return LedgerError(f"The ledger {self.path} can't be used: {why}.", advice=f"The rows that it holds aren't lost. {advice}")

    def _connect(self) -> sqlite3.Connection:
        import sqlite3

        if self._file is None:
            make_private_sqlite(self.path)
        else:
            self._refuse_if_gone()
        self._real = resolved(self.path)
        self._refuse_if_unsafe(require_one_name)  # first: to open the file under a second name may change it
        connection = connect_sqlite(self.path, timeout_s=BUSY_TIMEOUT_S)
        try:
            connection.row_factory = sqlite3.Row
            with _block(connection, "BEGIN"):
                version = self._version(connection)  # before anything is changed: the file may belong to another program
            self._refuse_if_unsafe(require_private)
            while_locked(lambda: connection.execute("PRAGMA journal_mode=WAL"), timeout_s=BUSY_TIMEOUT_S)
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA foreign_keys=ON")
            if version < SCHEMA_VERSION:
                self._migrate(connection)
            if self._file is None:
                self._file = file_identity(self.path)
        except BaseException:
            connection.close()
            raise
        return connection

    def _refuse_if_gone(self) -> None:
        if self._file != file_identity(self.path):
            raise LedgerError(
                f"The ledger {self.path} was deleted, moved or replaced while this process had it open.",
                advice=(
                    "Put it back. If that was intended, close() the session (and the Ledger, if the session was given one): the "
                    "next call then uses the file that is there."
                ),
            )

    def _files_beside(self) -> dict[str, object]:
        """Return the identities of the write-ahead log and the shared memory. SQLite keeps them while a connection is open."""
        return {suffix: file_identity(f"{self._real}{suffix}") for suffix in SIDE_FILES[:2]}

    def _refuse_if_beside_is_gone(self) -> None:
        opened, now = self._writer.files_beside, self._files_beside()
        for suffix, identity in opened.items():
            if identity is not None and now[suffix] != identity:
                raise LedgerError(
                    f"{printable(self.path)}{suffix} was deleted, moved or replaced while this process had the ledger open. "
                    "Other programs wouldn't see what is paid here.",
                    advice=(
                        "Put it back. If you can't, end all programs that use the ledger, start them again, and compare it with "
                        "the node's payments: routeweiler-sync budget audit."
                    ),
                )

    def _refuse_if_unsafe(self, *requirements: Callable[[Path], object]) -> None:
        try:
            for require in requirements:
                require(self._real)
        except UnsafeFileError as error:
            raise LedgerError(
                f"The ledger {printable(self.path)} isn't used: {error}.", advice=f"{error.advice} Then call again."
            ) from None

    def _migrate(self, connection: sqlite3.Connection) -> None:
        with _block(connection, "BEGIN IMMEDIATE"):  # the first process migrates; later ones find the version up to date
            version = self._version(connection)
            for step in range(version + 1, SCHEMA_VERSION + 1):
                for statement in MIGRATIONS[step]:
                    connection.execute(statement)
            connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")

    def _version(self, connection: sqlite3.Connection) -> int:
        """Return the schema version of the ledger, 0 for an empty file.

        Call it in a transaction, because another process may be creating the ledger.

        Raises: LedgerError for a database that isn't a ledger, or that a newer release wrote.
        """
        application: int = connection.execute("PRAGMA application_id").fetchone()[0]
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
        if application != APPLICATION_ID:
            tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if application or version or tables:
                raise LedgerError(
                    f"{self.path} is a database, but not a ledger of routeweiler_sync.",
                    advice="The file wasn't changed. Name another file as the ledger.",
                )
            return 0
        self._refuse_if_newer(connection)
        return version

    def _refuse_if_newer(self, connection: sqlite3.Connection) -> None:
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            raise LedgerError(
                f"The ledger {self.path} was written by a newer version (schema {version}; this version knows {SCHEMA_VERSION}).",
                advice="The ledger wasn't changed. Upgrade routeweiler-sync.",
            )


class _Line:
    """A database connection (None until it is needed), and the lock under which the threads of this process share it."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.connection: sqlite3.Connection | None = None
        #: Identities of the files beside the ledger when the connection was opened, by their suffix.
        self.files_beside: dict[str, object] = {}

    def close(self) -> None:
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()  # the session was dropped without close(): SQLite would close it too, but warn


class SqliteTransaction:
    """A `routeweiler_sync.ledger.store.Transaction` on an SQLite connection."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def execute(self, sql: str, parameters: Sequence[object] = ()) -> list[Mapping[str, Any]]:
        """Run one statement. Return its rows, each by column name."""
        return [dict(row) for row in self._connection.execute(sql, tuple(parameters)).fetchall()]


@contextlib.contextmanager
def _block(connection: sqlite3.Connection, begin: str) -> Iterator[None]:
    try:
        connection.execute(begin)
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            try:
                connection.execute("ROLLBACK")
            except Exception as worse:  # noqa: BLE001  (the first error is the one to raise)
                log.debug("rollback failed too: %s", worse)
        raise


def _before_fork() -> None:
    """Wait for the transactions of all stores, keep new ones from beginning, and close all connections.

    Otherwise a child would inherit SQLite's list of the process's file locks, but not the locks themselves:

    1. The child opens the file beside the inherited connection, and SQLite believes that the child has locks which it hasn't.
    2. The parent closes its connection. As it sees no other user of the file, it deletes the write-ahead log.
    3. What the child commits from then on is lost.
    """
    _stores_lock.acquire()
    for store in _stores:
        if store._pid != os.getpid():  # unused since an earlier fork: a thread of the parent may hold its lock for ever
            continue
        for line in (store._writer, store._reader):
            line.lock.acquire()
            _locked_for_fork.append(line.lock)
            if line.connection is not None and not line.connection.in_transaction:
                line.close()


def _after_fork_in_parent() -> None:
    while _locked_for_fork:
        _locked_for_fork.pop().release()
    _stores_lock.release()


def _after_fork_in_child() -> None:
    global _stores_lock
    _locked_for_fork.clear()  # each store makes new locks when it is next used
    _stores_lock = threading.Lock()


around_fork(before=_before_fork, in_parent=_after_fork_in_parent, in_child=_after_fork_in_child)
