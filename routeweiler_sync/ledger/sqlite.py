"""The ledger's SQLite file: the default. One file, many threads and processes of one machine.

WAL with ``synchronous=FULL``: a commit is on disk before lnd hears of an invoice. Every write transaction is ``BEGIN
IMMEDIATE``, so writers queue and never meet halfway. Two connections a process, one for writing and one for reading, so that
who only looks never waits for a writer; both are closed before a fork and made anew after it.

A file that is deleted or replaced while it is open lives on unseen (where the system allows that), and what is written into it is
lost with the process. So every write that money may follow (``binding``) first makes sure that the path still names the open file.
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

from .._core.forks import around_fork
from ..errors import LedgerError, RouteweilerError
from .store import MIGRATIONS, SCHEMA_VERSION, T, Transaction

if TYPE_CHECKING:
    import sqlite3

log = logging.getLogger("routeweiler_sync")

#: ``PRAGMA application_id`` of a ledger of ours: "RWSL". A file without it isn't one.
APPLICATION_ID = 0x5257534C
#: How long a writer waits for the others before the ledger counts as locked.
BUSY_TIMEOUT_S = 30.0

#: What to do about words of SQLite's.
_ADVICE = (
    ("locked", "Another program holds it: call again when that is done."),
    ("full", "Make room on the disk, then call again."),
    ("readonly", "Let this user write the file and its folder, then call again."),
    ("unable to open", "Let this user read and write the file and its folder, then call again."),
    ("malformed", "Restore the file, or move it away and ask the node what it has paid."),
    ("not a database", "Name another file as the ledger, or restore this one."),
)
#: SQLite's word for text that can't be read holds that text: maybe a token.
_TELLS_TEXT = "Could not decode"

#: Stores of this process; the lock guards the set, and a store's change of process.
_stores: weakref.WeakSet[SqliteStore] = weakref.WeakSet()
_stores_lock = threading.Lock()
#: Locks of the stores that a fork under way keeps still.
_held: list[threading.RLock] = []

#: Those of a parent process that forked without a word to Python, kept so that the child never closes them.
_inherited: list[_Line] = []


class SqliteStore:
    """A ledger in the SQLite file ``path``, made with mode 0600 on first use. See `routeweiler_sync.ledger.store.Store`."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        try:
            self.path = Path(path).expanduser().absolute()
        except RuntimeError as error:  # ~nobody/…, or no home at all
            raise LedgerError(f"The ledger {path} can't be found: {error}.", advice="Name another.") from error
        self._writer, self._reader = _Line(), _Line()
        #: The file that was opened first; only `close` forgets it.
        self._file: object = None
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
            return self._file is not None or self.path.exists()
        except OSError:  # a folder that may not be looked into: there may be one
            return True

    @contextlib.contextmanager
    def transaction(self, *, durable: bool = True, binding: bool = False) -> Iterator[SqliteTransaction]:
        """BEGIN IMMEDIATE … COMMIT; LedgerError for whatever SQLite refuses."""
        with self._connected(writes=True) as connection:
            if not durable:
                connection.execute("PRAGMA synchronous=NORMAL")
            try:
                with _block(connection, "BEGIN IMMEDIATE"):
                    if binding:
                        self._refuse_if_gone()
                        self._refuse_if_newer(connection)
                    yield SqliteTransaction(connection)
            finally:
                if not durable:
                    connection.execute("PRAGMA synchronous=FULL")

    def run(self, work: Callable[[Transaction], T], *, durable: bool = True, binding: bool = False) -> T:
        """``work`` in one transaction: writers queue, so none is ever undone for another's sake."""
        with self.transaction(durable=durable, binding=binding) as tx:
            return work(tx)

    @contextlib.contextmanager
    def read(self) -> Iterator[SqliteTransaction]:
        """One consistent sight: BEGIN … COMMIT. Waits for no writer."""
        with self._connected(writes=False) as connection, _block(connection, "BEGIN"):
            yield SqliteTransaction(connection)

    def close(self) -> None:
        """Close this process's connections; the next use opens what the path names then."""
        self._start_over_after_fork()
        with self._writer.lock, self._reader.lock:  # both: nobody connects in between
            self._writer.close()
            self._reader.close()
            self._file = None

    def _start_over_after_fork(self) -> None:
        """In a child, inherited locks may be held by threads that aren't here any more."""
        if self._pid != os.getpid():
            with _stores_lock:
                if self._pid != os.getpid():
                    _inherited.extend((self._writer, self._reader))
                    self._writer, self._reader = _Line(), _Line()
                    self._pid = os.getpid()  # last: it is looked at without the lock

    @contextlib.contextmanager
    def _connected(self, *, writes: bool) -> Iterator[sqlite3.Connection]:
        self._start_over_after_fork()
        line = self._writer if writes else self._reader
        with line.lock, self._as_ledger_error():
            if line.connection is None:
                line.connection = self._connect()
                if not writes:
                    line.connection.execute("PRAGMA query_only=ON")
            connection = line.connection
            try:
                yield connection
            finally:
                if connection.in_transaction:  # not even the rollback worked: a new connection finds what is on disk
                    line.close()

    @contextlib.contextmanager
    def _as_ledger_error(self) -> Iterator[None]:
        import sqlite3

        try:
            yield
        except RouteweilerError:  # an OSError too, as requests' are
            raise
        except UnicodeError:  # its words hold the text
            raise self._error("a text that was given can't be written in UTF-8") from None
        except (sqlite3.Error, OSError, OverflowError) as error:
            if _TELLS_TEXT in str(error):
                raise self._error("a row of it holds text that can't be decoded (database disk image is malformed)") from None
            raise self._error(str(error)) from error

    def _error(self, why: str) -> LedgerError:
        advice = next((advice for word, advice in _ADVICE if word in why), "Mend the file, its folder's rights or the disk.")
        return LedgerError(f"The ledger {self.path} can't be used: {why}.", advice=f"The rows that it holds aren't lost. {advice}")

    def _connect(self) -> sqlite3.Connection:
        import sqlite3

        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with contextlib.suppress(FileExistsError):
                os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        else:
            self._refuse_if_gone()
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
            if self._file is None:
                self._file = _identity(self.path)
        except BaseException:
            connection.close()
            raise
        return connection

    def _refuse_if_gone(self) -> None:
        if self._file != _identity(self.path):
            raise LedgerError(
                f"The ledger {self.path} was deleted, moved or replaced while this process had it open.",
                advice=(
                    "Put it back; or, if that was meant, close() the session (and the Ledger, if it was given one): the next "
                    "call then uses what is there."
                ),
            )

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
                    f"{self.path} is a database, but not a ledger of routeweiler_sync.",
                    advice="Nothing was changed in it. Name another file as the ledger.",
                )
            return 0
        self._refuse_if_newer(connection)
        return version

    def _refuse_if_newer(self, connection: sqlite3.Connection) -> None:
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            raise LedgerError(
                f"The ledger {self.path} was written by a newer version (schema {version}, this one knows {SCHEMA_VERSION}).",
                advice="Nothing was changed in it. Upgrade routeweiler-sync.",
            )


class _Line:
    """A connection, and the lock of the threads that share it."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.connection: sqlite3.Connection | None = None

    def close(self) -> None:
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.close()  # of a session that was dropped: SQLite would close it too, but with a ResourceWarning


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
            try:
                connection.execute("ROLLBACK")
            except Exception as worse:  # noqa: BLE001  (what went wrong first is what is told)
                log.debug("rollback failed too: %s", worse)
        raise


def _identity(path: Path) -> object:
    """Which file ``path`` names, through links; None for none. On Windows an open file can be neither deleted nor replaced."""
    if os.name == "nt":
        return path
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino


def _before_fork() -> None:
    """Keep every store still, and closed: SQLite's account of a process's file locks is inherited, the locks are not.

    A child that opens the file beside an inherited connection believes in locks that it hasn't got: when the parent then closes,
    the write-ahead log is deleted under the child, and what it commits is lost.
    """
    _stores_lock.acquire()
    for store in _stores:
        if store._pid != os.getpid():  # unused since an earlier fork: its lock may be held by a thread that isn't here
            continue
        for line in (store._writer, store._reader):
            line.lock.acquire()
            _held.append(line.lock)
            if line.connection is not None and not line.connection.in_transaction:
                line.close()


def _after_fork_in_parent() -> None:
    while _held:
        _held.pop().release()
    _stores_lock.release()


def _after_fork_in_child() -> None:
    global _stores_lock
    _held.clear()  # each store makes itself a new lock
    _stores_lock = threading.Lock()


around_fork(before=_before_fork, in_parent=_after_fork_in_parent, in_child=_after_fork_in_child)
