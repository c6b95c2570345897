"""A ledger in an SQLite file, which is the default: one file for many threads and processes of one machine.

This module knows how the file is opened, locked and migrated. Which statements run is left to `ledger.ledger`.

- The journal mode is WAL with ``synchronous=FULL``, so that a commit is on disk before lnd receives an invoice. macOS needs
  ``fullfsync`` for that (SQLite, "PRAGMA fullfsync").
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
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._core.deadline import LedgerWait
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
from .._core.log import log
from ..errors import LedgerError, RouteweilerError
from .store import FOR_UPDATE, MIGRATIONS, SCHEMA_VERSION, T, Transaction

if TYPE_CHECKING:
    import sqlite3
    from types import FrameType

#: ``PRAGMA application_id`` of a routeweiler_sync ledger: "RWSL" in ASCII. A database without it isn't a ledger.
APPLICATION_ID = 0x5257534C
#: That of an archive of a ledger: "RWSA".
ARCHIVE_ID = 0x52575341
#: Where the number of the application and the schema's version stand in the header of a file (SQLite, "Database File Format", 1.3).
_APPLICATION_AT, _VERSION_AT, _HEADER_BYTES = 68, 60, 100
#: Of its write-ahead log: the header, and the beginning of each frame.
_LOG_HEADER_BYTES, _FRAME_BYTES = 32, 24
#: How long a writer waits for other writers before SQLite reports "database is locked".
BUSY_TIMEOUT_S = 30.0
#: The least that a transaction may wait for other writers, also if its call has no patience left.
WAIT_S_MIN = 0.25
#: The busy timeout of a connection is a multiple of this, in ms, so that it is seldom set anew.
_BUSY_STEP_MS = 50

#: How often, and with what pause, the files beside a ledger are looked at before they count as lost: other programs open and close
#: the ledger meanwhile.
_LOOKS, _LOOK_PAUSE_S = 3, 0.01

#: Advice for an error, by a word in SQLite's message.
_ADVICE = (
    ("other threads of this program", "Use fewer threads, or call again when they have ended."),
    ("locked", "Another program is writing to it: call again when that program is done."),
    ("full", "Make room on the disk, then call again."),
    ("readonly", "Let this user write the file and its folder, then call again."),
    ("unable to open", "Let this user read and write the file and its folder, then call again."),
    ("malformed", "Restore the file; or move it away, and see the node's list of payments for what was paid."),
    ("not a database", "Name another file as the ledger, or restore this one."),
)
#: SQLite's message about text that isn't UTF-8 begins with this and repeats the text, which may be a token.
_REPEATS_TEXT = "Could not decode"
#: A VACUUM needs room for a copy of what the file holds in a temporary file, and in the write-ahead log.
_VACUUM_COPIES = 2

#: All stores of this process. The lock guards this set, and the moment when a store notices that it lives in a forked child.
_stores: weakref.WeakSet[SqliteStore] = weakref.WeakSet()
_stores_lock = threading.RLock()
#: The stores' locks that are held during a fork.
_locked_for_fork: list[threading.RLock] = []

#: Connections of a parent process whose fork Python didn't notice (one made by C code). The child must never close them, so they
#: are kept here.
_inherited: list[_Line] = []


class SqliteStore:
    """A ledger in the SQLite file ``path``, created with mode 0600 on first use. See `routeweiler_sync.ledger.store.Store`.

    The file may be an archive (`ledger.archive`), which is read like a ledger and never written: that is left to `ArchiveStore`.

    Raises: LedgerError if ``~user`` in ``path`` names an unknown user, or if no file can have that name.
    """

    #: What the file is called in errors, and the ``PRAGMA application_id`` of the one that this store makes and writes.
    _noun, _own_id = "ledger", APPLICATION_ID

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
        #: Whether to close the connections when the transactions of the thread that called `close` have ended.
        self._close_later = False
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

    def version(self) -> int:
        """Return the schema version in the file's header, without opening the database; 0 if the file isn't a ledger.

        What programs that run have written stands in the write-ahead log first, so the log's newest header is looked for too.
        """
        application, version = self._header()
        return version if application in (APPLICATION_ID, ARCHIVE_ID) else 0

    def is_archive(self) -> bool:
        """Return whether the file's header is that of an archive, without opening the database."""
        return self._header()[0] == ARCHIVE_ID

    def _header(self) -> tuple[int, int]:
        """Return the number of the application and the schema's version in the file's header; 0 and 0 if there is none."""
        try:
            with self.path.open("rb") as file:
                header = file.read(_HEADER_BYTES)
        except OSError:
            return 0, 0
        with contextlib.suppress(OSError):
            header = _header_in_log(Path(f"{os.path.realpath(self.path)}{SIDE_FILES[0]}")) or header
        application, version = (int.from_bytes(header[at : at + 4], "big") for at in (_APPLICATION_AT, _VERSION_AT))
        return application, version

    def transaction(self, *, durable: bool = True, binding: bool = False) -> AbstractContextManager[SqliteTransaction]:
        """Begin a write transaction with BEGIN IMMEDIATE, commit it at the end of the block. See `Store.transaction`."""
        return _Turn(self, writes=True, durable=durable, binding=binding)

    def known(self) -> None:
        """Return None: that the file is another is seen by itself."""

    def expect(self, known: None) -> None:
        """Do nothing: there is nothing to look for."""

    def run(self, work: Callable[[Transaction], T], *, durable: bool = True, binding: bool = False, restraining: bool = False) -> T:
        """Call ``work`` once, in one transaction. SQLite never undoes it in favour of another: writers wait for each other."""
        with self.transaction(durable=durable, binding=binding) as tx:
            return work(tx)

    def read(self, *, long: bool = False) -> AbstractContextManager[SqliteTransaction]:
        """Begin a read transaction: every statement sees the file as of one moment. Never waits for a writer."""
        return _Turn(self, writes=False)

    def ask(self, sql: str, parameters: Sequence[object] = ()) -> list[Mapping[str, Any]]:
        """Run one SELECT and return its rows. Never waits for a writer."""
        with self.read() as tx:
            return tx.execute(sql, parameters)

    def close(self) -> None:
        """Close this process's connections. The next use opens the file that the path names by then.

        In the middle of a transaction of the same thread (in a signal handler, say) they are closed when that has ended.
        """
        self._start_over_after_fork()
        writer, reader = self._writer, self._reader
        with writer.lock, reader.lock:  # both, so that no thread connects in between
            if writer.turn is not None or reader.turn is not None:
                self._close_later = True
                return
            self._close_later = False
            self._file = None  # first: what a signal handler opens from here on is a file like any other
            writer.close()
            reader.close()

    def _start_over_after_fork(self) -> None:
        """In a forked child, replace the connections and locks: the parent's threads may hold the locks, and don't exist here."""
        if self._pid != os.getpid():
            with _stores_lock:
                if self._pid != os.getpid():
                    _inherited.extend((self._writer, self._reader))
                    self._writer, self._reader = _Line(), _Line()
                    self._pid = os.getpid()  # last, because it is read without the lock

    def _converted(self, error: BaseException) -> LedgerError | None:
        """Return the LedgerError that stands for ``error``, which came up in a transaction; None for an error of another kind."""
        import sqlite3

        if isinstance(error, RouteweilerError):  # is an OSError too, as every requests.RequestException is
            return None
        if isinstance(error, UnicodeError):  # its text repeats the text that can't be encoded
            return self._error("a text to be stored can't be encoded in UTF-8")
        if not isinstance(error, (sqlite3.Error, OSError, OverflowError)):
            return None
        if _REPEATS_TEXT in str(error):
            return self._error("a row contains text that can't be decoded (database disk image is malformed)")
        converted = self._error(str(error))
        converted.__cause__ = error
        return converted

    def _error(self, why: str) -> LedgerError:
        advice = next((advice for word, advice in _ADVICE if word in why), "Repair the file, its folder's rights or the disk.")
        return LedgerError(
            f"The {self._noun} {self.path} can't be used: {why}.", advice=f"The rows that it holds aren't lost. {advice}"
        )

    def vacuum(self) -> None:
        """Give the room of removed rows back to the file system. Other writers wait meanwhile, for at most `BUSY_TIMEOUT_S`.

        Raises: LedgerError, also if the disk has no room for the copies that this takes.
        """
        import shutil
        import sqlite3

        with self.transaction(binding=True):
            pass  # whatever keeps a purchase from writing keeps this from it, too
        line = self._writer
        with line.lock:
            connection = line.connection
            if connection is None or line.turn is not None:
                raise self._error("locked: this very thread is in the middle of a transaction")
            try:
                line.let_wait(BUSY_TIMEOUT_S)
                used = _value(connection, "PRAGMA page_count") - _value(connection, "PRAGMA freelist_count")
                needed = _VACUUM_COPIES * used * _value(connection, "PRAGMA page_size")
                free = shutil.disk_usage(self._real.parent).free
                if free < needed:
                    raise LedgerError(
                        f"To give room back, the {self._noun} {printable(self.path)} needs {needed // 10**6 + 1} MB of free disk "
                        f"for a while, and there are {free // 10**6} MB. The file keeps its size.",
                        advice="Make room. Until then, new payments take the room of those that were removed.",
                    )
                connection.execute("VACUUM")
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            except (sqlite3.Error, OSError) as error:
                if isinstance(error, RouteweilerError):
                    raise
                raise self._error(str(error)) from error

    def _connect(self, wait: LedgerWait, *, writes: bool) -> sqlite3.Connection:
        import sqlite3

        if self._file is None:
            make_private_sqlite(self.path)
        else:
            self._refuse_if_gone()
        self._real = resolved(self.path)
        self._refuse_if_unsafe(require_one_name)  # first: to open the file under a second name may change it
        self._refuse_if_log_is_alone()  # first too: SQLite would delete the log of a file that is empty
        connection = connect_sqlite(self.path, timeout_s=wait.left_s())
        try:
            connection.row_factory = sqlite3.Row
            with _block(connection, "BEGIN"):
                version = self._version(connection)  # before anything is changed: the file may belong to another program
            if writes and _value(connection, "PRAGMA application_id") == ARCHIVE_ID and self._own_id != ARCHIVE_ID:
                raise LedgerError(
                    f"{printable(self.path)} is an archive of payments that have ended, not a ledger: it is only read.",
                    advice="Name the ledger. To move more payments to the archive: routeweiler-sync payments archive --to FILE.",
                )
            self._refuse_if_unsafe(require_private)
            while_locked(lambda: _value(connection, "PRAGMA journal_mode=WAL"), timeout_s=wait.left_s())
            connection.execute("PRAGMA synchronous=FULL")
            if sys.platform == "darwin":  # there, fsync leaves what it writes in the disk's own cache
                connection.execute("PRAGMA fullfsync=ON")
            connection.execute("PRAGMA foreign_keys=ON")
            if version < SCHEMA_VERSION:
                self._migrate(connection)
            if not writes:
                connection.execute("PRAGMA query_only=ON")
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

    def _refuse_if_log_is_alone(self) -> None:
        """Refuse an empty file beside a log, and a log that was deleted: what the log held is missing in the file.

        SQLite deletes the shared memory before the log. So shared memory without a log is left only by somebody else. What another
        program opens or closes meanwhile may look like that for a moment, but not `_LOOKS` times in a row.
        """
        log_file, memory = (Path(f"{self._real}{suffix}") for suffix in SIDE_FILES[:2])
        for _ in range(_LOOKS):
            if _size(self._real) or not _size(log_file):
                break
        else:
            raise LedgerError(
                f"The ledger {printable(self.path)} is empty, but {printable(log_file)} isn't: the file was emptied or replaced.",
                advice="Restore the file from a backup; or move both away, and see the node's list of payments for what was paid.",
            )
        for _ in range(_LOOKS):
            if log_file.exists() or not memory.exists() or log_file.exists():
                return
            time.sleep(_LOOK_PAUSE_S)
        raise LedgerError(
            f"{printable(log_file)} was deleted or moved after a program had ended without closing the ledger. It may hold "
            "payments that the ledger doesn't know.",
            advice=f"Put it back. If you can't, delete {printable(memory)}, and compare the ledger with the node's payments: "
            "routeweiler-sync budget audit.",
        )

    def _refuse_if_emptied(self) -> None:
        if not _size(self._real):
            raise LedgerError(
                f"The ledger {printable(self.path)} was emptied while this process had it open.",
                advice="End all programs that use it: the last one writes what it knows into the file. Then call again.",
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
            if not version:
                connection.execute(f"PRAGMA application_id={self._own_id}")
            connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")

    def _version(self, connection: sqlite3.Connection) -> int:
        """Return the schema version of the ledger or archive, 0 for an empty file.

        Call it in a transaction, because another process may be creating the ledger.

        Raises: LedgerError for a database that isn't a ledger, or that a newer release wrote.
        """
        application: int = _value(connection, "PRAGMA application_id")
        version: int = _value(connection, "PRAGMA user_version")
        if application not in (self._own_id, ARCHIVE_ID):
            tables = _value(connection, "SELECT count(*) FROM sqlite_master")
            if application or version or tables:
                other = "a ledger" if application == APPLICATION_ID else "a database"
                kind = "a ledger" if self._own_id == APPLICATION_ID else "an archive"
                raise LedgerError(
                    f"{self.path} is {other}, but not {kind} of routeweiler_sync.",
                    advice=f"The file wasn't changed. Name another file as the {self._noun}.",
                )
            return 0
        self._refuse_if_newer(connection)
        return version

    def _refuse_if_newer(self, connection: sqlite3.Connection) -> None:
        version: int = _value(connection, "PRAGMA user_version")
        if version > SCHEMA_VERSION:
            raise LedgerError(
                f"The {self._noun} {self.path} was written by a newer version (schema {version}; this version knows "
                f"{SCHEMA_VERSION}).",
                advice=f"The {self._noun} wasn't changed. Upgrade routeweiler-sync.",
            )


class ArchiveStore(SqliteStore):
    """The SQLite file of an archive: made and written by `ledger.archive`, with the tables of a ledger."""

    _noun, _own_id = "archive", ARCHIVE_ID


def _header_in_log(log_file: Path) -> bytes | None:
    """Return the file's header as the last transaction in its write-ahead log left it, None if the log has none.

    The log is a header, then frames: the page's number, the file's size in pages after a commit (else 0), two salts as in the log's
    header (those of frames that are left over differ), checksums, the page (SQLite, "Database File Format", 4.1).
    """
    newest = committed = None
    with log_file.open("rb") as file:
        start = file.read(_LOG_HEADER_BYTES)
        page_bytes, salts = int.from_bytes(start[8:12], "big"), start[16:24]
        while len(frame := file.read(_FRAME_BYTES)) == _FRAME_BYTES and frame[8:16] == salts:
            page_start = file.tell()
            if int.from_bytes(frame[:4], "big") == 1:
                newest = file.read(_HEADER_BYTES)
            if any(frame[4:8]):
                committed = newest
            file.seek(page_start + page_bytes)
    return committed


def _size(path: Path) -> int:
    """Return how many bytes the file has, 0 if there is none."""
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


class _Line:
    """A database connection (None until it is needed), and the lock under which the threads of this process share it."""

    def __init__(self) -> None:
        #: Reentrant, so that a thread can't wait for itself: whoever takes it and finds `turn` set is refused.
        self.lock = threading.RLock()
        #: The transaction of the thread that has the lock, from before its beginning to after its end.
        self.turn: _Turn | None = None
        self.connection: sqlite3.Connection | None = None
        #: The busy timeout of the connection, in ms. -1: not known.
        self.busy_ms = -1
        #: Whether the connection's commits may not wait for the disk.
        self.is_relaxed = False
        #: Whether an interrupt such as KeyboardInterrupt ended the connection's last transaction.
        self.was_interrupted = False
        #: Identities of the files beside the ledger when the connection was opened, by their suffix.
        self.files_beside: dict[str, object] = {}

    def close(self) -> None:
        connection, self.connection = self.connection, None
        self.busy_ms, self.is_relaxed, self.was_interrupted = -1, False, False
        if connection is not None:
            connection.close()

    def let_wait(self, wait_s: float) -> None:
        """Let the connection's statements wait for the locks of others for about ``wait_s`` seconds."""
        busy_ms = -(-int(wait_s * 1000) // _BUSY_STEP_MS) * _BUSY_STEP_MS
        if busy_ms != self.busy_ms and self.connection is not None:
            _value(self.connection, f"PRAGMA busy_timeout={busy_ms}")
            self.busy_ms = busy_ms

    def settle(self) -> None:
        """Bring the connection back to its usual state, without a transaction. Close it if that fails."""
        connection, in_order = self.connection, False
        if connection is None:
            return
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            if self.is_relaxed:
                connection.execute("PRAGMA synchronous=FULL")
            in_order = not connection.in_transaction
        except Exception as worse:  # noqa: BLE001  (the error that led here is the one to raise)
            log.debug("rollback failed too: %s", worse)
        finally:
            if in_order:
                self.is_relaxed = False
            else:  # a new connection will see what is on disk
                self.close()

    def __del__(self) -> None:
        try:  # noqa: SIM105 - at the interpreter's end contextlib may be gone already
            self.close()  # the session was dropped without close(): SQLite would close it too, but warn
        except Exception:  # noqa: BLE001, S110
            pass


class _Busy(threading.local):
    """The transactions of the present thread, by the real path of their file: the one that writes, the one that connects."""

    def __init__(self) -> None:
        self.writing: dict[str, _Turn] = {}
        self.connecting: dict[str, _Turn] = {}


_busy = _Busy()


class _Turn(AbstractContextManager["SqliteTransaction"]):
    """One transaction, and the turn of its thread on the connection. See `SqliteStore.transaction` and `SqliteStore.read`.

    Code of a program can run between any two steps of a transaction, in its very thread: a signal handler, a finalizer, a callback
    of the garbage collector, a trace function. If such code uses the ledger, it must neither write in the middle of the
    transaction nor wait for its own thread. So it is refused, and the transaction goes on undisturbed. It may read while its
    thread writes: that is another connection, which never waits for a writer.

    This is a class rather than a generator, because an interrupt in the machinery of `contextlib` would leave a generator, and its
    transaction, begun for as long as the interrupt's traceback lives.
    """

    def __init__(self, store: SqliteStore, *, writes: bool, durable: bool = True, binding: bool = False) -> None:
        self._store, self._writes, self._durable, self._binding = store, writes, durable, binding
        self._is_on = False
        self._frame: FrameType | None = None

    def __enter__(self) -> SqliteTransaction:
        store = self._store
        store._start_over_after_fork()
        self._pid = os.getpid()
        self._line = line = store._writer if self._writes else store._reader
        # The file's real path, the key in `_busy`: another store may name the file by a link. To resolve a path takes a system call
        # for each of its folders; so while the connection is open, it is the one that was resolved for it.
        self._file = os.path.realpath(store.path) if line.connection is None else str(store._real)
        self._wait = wait = LedgerWait(BUSY_TIMEOUT_S, least_s=WAIT_S_MIN)
        if not line.lock.acquire(timeout=wait.left_s()):
            wait.end(in_vain=True)
            raise store._error("locked: other threads of this program have been using it all the time")
        try:
            writing = _busy.writing.get(self._file) if self._writes else None
            for turn in (line.turn, _busy.connecting.get(self._file), writing):
                if turn is not None and turn._goes_on():
                    raise _reentry_error(store.path)
                if turn is not None and turn._is_on:
                    turn._leave(KeyboardInterrupt())
            self._frame = sys._getframe(1)
            self._is_on = True
            line.turn = self
            self._connection = self._begin(wait)
            return SqliteTransaction(self._connection)
        except BaseException as error:
            self._leave(error)
            self._raise_as_ledger_error(error)
            raise

    def _begin(self, wait: LedgerWait) -> sqlite3.Connection:
        """Connect if needed, and begin the transaction. Return the connection."""
        store, line = self._store, self._line
        if self._writes:
            _busy.writing[self._file] = self
        if line.was_interrupted:  # the interrupt's traceback may keep a cursor, and so its statement, in the middle of its work
            line.close()
        if line.connection is None:
            _busy.connecting[self._file] = self
            line.connection = store._connect(wait, writes=self._writes)
            line.files_beside = store._files_beside()
            del _busy.connecting[self._file]
        line.let_wait(wait.left_s())
        connection = line.connection
        if not self._durable:
            line.is_relaxed = True
            connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("BEGIN IMMEDIATE" if self._writes else "BEGIN")
        if self._binding:
            store._refuse_if_gone()
            store._refuse_if_emptied()
            store._refuse_if_beside_is_gone()
            store._refuse_if_unsafe(require_one_name, require_private)
            store._refuse_if_newer(connection)
        wait.end()
        return connection

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        problem = error
        try:
            if problem is None and self._pid != os.getpid():
                raise LedgerError(
                    f"This process was forked in the middle of a transaction of its parent's in the ledger {self._store.path}.",
                    advice="Nothing was changed by this process. Call again.",
                )
            if problem is None:
                self._connection.execute("COMMIT")
        except BaseException as failure:  # noqa: BLE001 - raised below, when the connection is in order again
            problem = failure
        finally:
            self._leave(problem)
        if problem is not None:
            self._raise_as_ledger_error(problem)
            if problem is not error:
                raise problem

    def _raise_as_ledger_error(self, error: BaseException) -> None:
        """Raise the LedgerError that stands for ``error``, if there is one."""
        converted = self._store._converted(error)
        if converted is not None:
            if "locked" in str(error):
                self._wait.end(in_vain=True)
            raise converted from converted.__cause__

    def _goes_on(self) -> bool:
        """Return whether the code that began this transaction is still running, in this thread.

        If it isn't, an interrupt has come at the one moment at which it could keep the transaction from ending. In a child that was
        forked in the middle of the transaction it isn't either.
        """
        if self._pid != os.getpid():
            return False
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if frame is self._frame:
                return True
            frame = frame.f_back
        return False

    def _leave(self, problem: BaseException | None = None) -> None:
        """Undo what isn't committed, and let other threads have the connection. ``problem`` ended the transaction early."""
        if self._pid != os.getpid():
            return  # the connection is the parent's, and so is the lock
        line, store = self._line, self._store
        try:
            if self._is_on:
                line.settle()
                line.was_interrupted = not (problem is None or isinstance(problem, Exception))
        finally:
            if self._is_on:
                self._is_on, self._frame = False, None
                for turns in (_busy.connecting, _busy.writing):
                    if turns.get(self._file) is self:
                        del turns[self._file]
                line.turn = None
            line.lock.release()
        if store._close_later:
            store.close()


def _reentry_error(path: Path) -> LedgerError:
    """Return the error for code that uses the ledger where its own thread is in the middle of a transaction."""
    return LedgerError(
        f"The ledger {path} is in the middle of a transaction of this same thread, which was interrupted by a signal handler, a "
        "finalizer or a callback.",
        advice="The interrupted transaction goes on undisturbed. Call again when it has ended: let the handler set a flag, or hand "
        "the work to another thread.",
    )


class SqliteTransaction:
    """A `routeweiler_sync.ledger.store.Transaction` on an SQLite connection."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def execute(self, sql: str, parameters: Sequence[object] = ()) -> list[Mapping[str, Any]]:
        """Run one statement. Return its rows, each by column name."""
        statement = sql.removesuffix(FOR_UPDATE)  # there is no such clause: BEGIN IMMEDIATE has locked the file
        return [dict(row) for row in self._connection.execute(statement, tuple(parameters)).fetchall()]

    def defer(self, sql: str, parameters: Sequence[object] = ()) -> None:
        """Run one statement at once: there is no round trip to be saved."""
        self.execute(sql, parameters)


def _value(connection: sqlite3.Connection, sql: str) -> Any:
    """Return the one value that ``sql`` gives. Its cursor is exhausted, since one that isn't would keep a COMMIT from working."""
    ((value,),) = connection.execute(sql).fetchall()
    return value


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
    _stores_lock = threading.RLock()


around_fork(before=_before_fork, in_parent=_after_fork_in_parent, in_child=_after_fork_in_child)
