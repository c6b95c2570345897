"""Connections to the PostgreSQL server of a ledger: a few for each process, with a bound on how long any of them is waited for.

This module knows how a connection is opened, how a transaction begins, what its failure means, and how to find out whether it was
committed. When that is asked, and whether a transaction is run again, is left to `routeweiler_sync.ledger.postgres.store`.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import queue
import socket
import threading
import uuid
from _thread import LockType, allocate_lock, start_new_thread  # as in `funding.worker_calls`: interrupts leave no lock taken
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..._core.forks import around_fork
from ...errors import LedgerError
from ..store import SCHEMA_VERSION
from .url import Address

if TYPE_CHECKING:
    import psycopg

    Connection = psycopg.Connection[dict[str, Any]]

#: The most connections of one process. Further threads wait until one is free.
MAX_CONNECTIONS = 4
#: The shortest time that libpq can be given to connect.
CONNECT_S_MIN = 2
#: How long a statement waits for a lock of another transaction, before the server cancels it and the transaction is run again.
LOCK_TIMEOUT_S = 10
#: The server ends a transaction whose client is silent for this long, so that the locks of a frozen machine are released.
IDLE_TIMEOUT_S = 10
#: A transaction that takes longer has its connection cut, so that a frozen server can't block a thread for ever.
TRANSACTION_LIMIT_S = 25.0
#: Connection parameters of libpq, unless the URL sets them itself.
CONNECTING: Mapping[str, str | int] = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
    "fallback_application_name": "routeweiler_sync",
}
#: With several hosts in the URL, the one that takes writes is looked for: by libpq 14 or newer, by an older one.
PRIMARY, PRIMARY_BEFORE_14 = "primary", "read-write"
#: Rows of ``routeweiler_writers`` not used for this long are deleted.
WRITERS_KEPT = "7 days"
#: For how long a process relies on its own rows there. Shorter, because the clock of a standby that takes over may differ.
REMEMBERED_S = 6 * 86_400
#: The server's function that warns if a commit is acknowledged though the synchronous standby hasn't confirmed it. (The text of
#: the warning is in the server's language.)
UNREPLICATED = "SyncRepWaitForLSN"

#: SQLSTATEs of a transaction that had no effect and may be run again: serialisation failure, deadlock, lock timeout, query
#: cancelled, unique violation (another transaction inserted the row in between), session ended by the server (idle in transaction,
#: shutdown, crash, idle session), server starting up, too many connections.
AGAIN = frozenset({"40001", "40P01", "55P03", "57014", "23505", "25P03", "57P01", "57P02", "57P03", "57P05", "53300"})
#: SQLSTATEs with which a standby refuses BEGIN … READ WRITE and writes. Behind a pooler or proxy the server may have become a
#: standby; the connection is then of no use, as if it were lost.
STANDBY = frozenset({"0A000", "25006"})

_BOUNDS = f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S}s'; SET LOCAL idle_in_transaction_session_timeout = '{IDLE_TIMEOUT_S}s'; "
BEGIN_READING = f"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; {_BOUNDS}"
BEGIN_WRITING = f"BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; {_BOUNDS}"
_PRUNE = (
    "DELETE FROM routeweiler_writers WHERE writer IN (SELECT writer FROM routeweiler_writers "  # noqa: S608  (constants)
    f"WHERE seen_at < now() - interval '{WRITERS_KEPT}' LIMIT 1000 FOR UPDATE SKIP LOCKED); "
)

#: Held while psycopg is imported, and while a store replaces its pool in a forked child. A fork waits for this lock, so that no
#: child inherits either half done.
changing = threading.RLock()
around_fork(before=changing.acquire, in_parent=changing.release, in_child=changing.release)


#: What a `History` gives to that of a copy: whether it is torn, and its commits.
Known = tuple[bool, dict[str, tuple[int, int]]]


@dataclass(slots=True, kw_only=True)
class History:
    """The latest durable commits of one store's connections, so that a database that has lost some of them is noticed.

    That is a backup, a standby that lagged behind when it took over, a primary that was replaced and still runs, or another
    database. It is noticed when the next transaction is begun, and holds until the store is replaced.
    """

    url: str
    #: By writer: its number and the server's unix time at its latest durable commit. The latest comes last.
    commits: dict[str, tuple[int, int]] = field(default_factory=dict)
    is_torn: bool = False

    def note(self, link: Link) -> None:
        """Remember that the latest transaction of ``link`` is committed and on disk."""
        self.commits.pop(link.writer, None)
        self.commits[link.writer] = (link.serial, link.begun_s)
        for forgotten in [*self.commits][: -2 * MAX_CONNECTIONS]:
            self.commits.pop(forgotten, None)

    def known(self) -> Known:
        """Return what a copy of the store has to know of this history."""
        return self.is_torn, self.commits.copy()

    def expect(self, known: Known) -> None:
        """Look for what another store of the same ledger has committed too."""
        is_torn, commits = known
        merged = self.commits.copy()
        for writer, commit in commits.items():
            merged[writer] = max(commit, merged.get(writer, commit))
        self.commits = dict(sorted(merged.items(), key=lambda item: item[1][1])[-2 * MAX_CONNECTIONS :])
        self.is_torn = self.is_torn or is_torn

    def check(self) -> None:
        """Refuse a transaction that money may follow from, if the database has lost some of the history.

        Raises: LedgerError.
        """
        if self.is_torn:
            raise LedgerError(
                f"The ledger {self.url} lacks what this session has written to it: an older state was restored, a standby that "
                "lagged behind has taken over, or it is another database.",
                advice="Payments may be missing in it. Freeze its envelopes (session.ledger.freeze(id), or routeweiler-sync budget "
                "freeze), compare it with the node (routeweiler-sync budget audit), then make a new session.",
            )


@dataclass(slots=True, kw_only=True)
class Link:
    """A database connection that numbers its write transactions, so that their commits can be looked up later.

    ``writer`` is the key of this connection's row in ``routeweiler_writers``, ``serial`` the number of its latest write
    transaction. The connection may lead through a pooler, which gives each transaction another session of the server: nothing is
    left in a session (no prepared statement, no SET, no advisory lock), and everything is set anew in each transaction.

    Raises: psycopg's own errors, from every method.
    """

    connection: Connection
    writer: str = field(default_factory=lambda: uuid.uuid4().hex)
    serial: int = 0
    #: The server's unix time when that began.
    begun_s: int = 0
    #: The server's functions that sent a notice since this was cleared.
    _noticed: set[str | None] = field(default_factory=set)

    @classmethod
    def open(cls, address: Address, *, wait_s: float) -> Link:
        """Connect to the database at ``address``, within about ``wait_s`` seconds, or fewer if the URL says so."""
        from psycopg.rows import dict_row

        given = driver().conninfo.conninfo_to_dict(address.conninfo)
        settings = {**CONNECTING, **given, "client_encoding": "UTF8"}
        if "," in str(settings.get("host", settings.get("hostaddr", ""))):
            settings.setdefault("target_session_attrs", PRIMARY if driver().pq.version() >= 140_000 else PRIMARY_BEFORE_14)
        with contextlib.suppress(ValueError):  # libpq refuses it
            asked_s = int(settings["connect_timeout"])
            bound_s = max(CONNECT_S_MIN, math.ceil(wait_s))
            settings["connect_timeout"] = min(asked_s, bound_s) if asked_s > 0 else bound_s
        link = cls(connection=driver().connect(**settings, autocommit=True, prepare_threshold=None, row_factory=dict_row))
        noticed = link._noticed  # not the link: a dropped one would keep its connection until the garbage collector comes along
        link.connection.add_notice_handler(lambda notice: noticed.add(notice.source_function))
        return link

    def begin_reading(self) -> None:
        """Begin a read transaction: every statement sees the database as of one moment."""
        self.connection.execute(BEGIN_READING)

    def begin_writing(self, durable: bool, history: History, *, binding: bool) -> None:
        """Begin a write transaction, write its number to ``routeweiler_writers``, and check the ledger: one round trip.

        Raises: LedgerError if the ledger has been migrated by a newer release; if ``binding``, and it has lost some of ``history``.
        """
        if binding:
            history.check()
        self.serial += 1
        commits = history.commits.copy()
        there = " OR ".join(f"writer = '{writer}' AND serial >= {serial}" for writer, (serial, _) in commits.items())
        (ledger,) = self._rows(
            f"{BEGIN_WRITING}SET LOCAL synchronous_commit = {'on' if durable else 'off'}; {_PRUNE if self.serial == 1 else ''}"  # noqa: S608
            "SELECT version, extract(epoch FROM now())::bigint AS now_s, "
            f"(SELECT string_agg(writer, ',') FROM routeweiler_writers WHERE {there or 'false'}) AS found FROM routeweiler_ledger; "
            "INSERT INTO routeweiler_writers (writer, serial, seen_at) "
            f"VALUES ('{self.writer}', {self.serial}, now()) "
            "ON CONFLICT (writer) DO UPDATE SET serial = excluded.serial, seen_at = excluded.seen_at"
        )
        known_version(ledger)
        self.begun_s = ledger[0]["now_s"]
        # A row that isn't there was deleted if it is old, by the clock of the server, as rows are deleted by it.
        missing = commits.keys() - (ledger[0]["found"] or "").split(",")
        if any(self.begun_s - commits[writer][1] < REMEMBERED_S for writer in missing):
            history.is_torn = True
            if binding:
                history.check()

    def commit(self, deferred: Sequence[bytes] = ()) -> str | None:
        """Run the ``deferred`` statements of the transaction and commit it. Return the server's word for the commit.

        Raises: LedgerError if the transaction is committed, but may not outlive a failover.
        """
        self._noticed.clear()
        done = send(self.connection, [*deferred, b"COMMIT"]).statusmessage
        if UNREPLICATED in self._noticed:
            raise LedgerError(
                "The standby of the ledger's server hasn't confirmed a commit, and the server has given up waiting for it (because "
                "of a statement_timeout, or an administrator): if the standby takes over, what was written is lost.",
                advice="Call again when the standby is back.",
            )
        return done

    def was_committed(self, lost: Link) -> bool:
        """Return whether the latest write transaction of the ``lost`` link was committed, and is as durable as it had to be.

        The insert conflicts with the lost transaction's own row, so it waits until that transaction has ended, if it is still
        running. Committed here needn't be replicated yet: the server may have been restarted, or the session ended, while the
        transaction waited for the standby. So this transaction is committed too, after which everything before it is.

        Raises: LedgerError as `commit`.
        """
        (rows,) = self._rows(
            f"{BEGIN_WRITING}SET LOCAL synchronous_commit = on; "  # noqa: S608
            f"INSERT INTO routeweiler_writers (writer, serial, seen_at) VALUES ('{lost.writer}', 0, now()) "
            "ON CONFLICT (writer) DO UPDATE SET seen_at = excluded.seen_at RETURNING serial"
        )
        if rows[0]["serial"] != lost.serial:
            self.connection.execute("ROLLBACK")
            return False
        self.commit()
        return True

    def undo(self, error: BaseException) -> None:
        """Roll back after ``error``, or close the connection if that fails or ``error`` is an interrupt such as KeyboardInterrupt.

        An interrupted connection may be in the middle of a message. Closing it rolls back too.
        """
        if isinstance(error, Exception):
            with contextlib.suppress(driver().Error):
                self.connection.execute("ROLLBACK")
                return
        self.connection.close()

    def is_lost(self, error: psycopg.Error) -> bool:
        """Return whether ``error`` means that the connection is lost, and the server's answer with it."""
        return self.connection.closed or is_loss(error) or (error.sqlstate or "").startswith("57P")

    def _rows(self, statements: str) -> list[list[dict[str, Any]]]:
        """Run ``statements``, and return the rows of each that has any to return."""
        results, rows = self.connection.execute(statements.encode()), []
        while True:
            if has_rows(results):
                rows.append(results.fetchall())
            if not results.nextset():
                return rows


class Pool:
    """The connections of one process to one ledger: at most `MAX_CONNECTIONS`, counted by ``slots``."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        #: One entry for each connection that may be opened or used now. Not a semaphore: a signal handler or finalizer in the
        #: middle of a semaphore's methods would wait for its own thread.
        self.slots: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(MAX_CONNECTIONS):
            self.slots.put(None)
        #: ``met``: this process has reached the server before and found the tables in a known version.
        self.met = self.closed = False
        self._lock = threading.RLock()
        self._idle: list[Link] = []

    @property
    def is_mine(self) -> bool:
        """Whether this process opened the pool. False in a forked child, which must not use its parent's connections."""
        return self.pid == os.getpid()

    def take(self) -> Link | None:
        """Take an idle connection out of the pool, or return None if there is none."""
        with self._lock:
            return self._idle.pop() if self._idle else None

    def give(self, link: Link) -> None:
        """Put ``link`` back for the next transaction, or close it if it is broken or the pool is closed."""
        with self._lock:
            if not self.closed and link.connection.info.transaction_status == driver().pq.TransactionStatus.IDLE:
                self._idle.append(link)
                return
        link.connection.close()

    def empty(self) -> None:
        """Close all idle connections."""
        with self._lock:
            idle, self._idle = self._idle, []
        for link in idle:
            link.connection.close()


class Guard:
    """A timer that cuts the watched connection after ``limit_s`` seconds. A thread that waits for it then gets an error.

    Calling the object starts the timer for the length of a ``with`` block; `watch` names the connection. The timer is a bare
    thread: a `threading.Timer` for each transaction would be a good part of what a purchase costs.

    Raises: LedgerError, from the call and from `again`, if the system can't start a thread. Unguarded, a wait might never end.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._watched: Connection | None = None
        #: Whether the time is over.
        self.is_over = False

    @contextlib.contextmanager
    def __call__(self) -> Iterator[Guard]:
        #: Taken while the timer runs.
        self._ended = self._started()
        try:
            yield self
        finally:
            self._watched = None
            self._ended.release()

    def again(self) -> None:
        """Give the connection the whole time once more. It stays cut if the time is over."""
        earlier, self._ended = self._ended, self._started()
        earlier.release()

    def _started(self) -> LockType:
        """Start the timer. Return the lock whose release ends it."""
        ended = allocate_lock()
        ended.acquire()
        try:
            start_new_thread(self._cut_unless, (ended,))
        except RuntimeError as error:  # too many threads, or the interpreter is shutting down
            raise LedgerError(
                f"The ledger can't be used: {error}.",
                advice="The transaction was undone, or not begun. Call again with fewer threads, or before the program ends.",
            ) from error
        return ended

    def _cut_unless(self, ended: LockType) -> None:
        """Cut the connection, unless ``ended`` is released in time."""
        if not ended.acquire(timeout=self._limit_s):
            self._cut()

    def watch(self, link: Link) -> None:
        """Make ``link`` the connection to cut when the time is over. Cut it now if it is."""
        self._watched = link.connection
        if self.is_over:
            self._cut()

    def _cut(self) -> None:
        self.is_over = True
        connection = self._watched
        if connection is not None:
            with contextlib.suppress(Exception), socket.fromfd(connection.fileno(), socket.AF_INET, socket.SOCK_STREAM) as end:
                end.shutdown(socket.SHUT_RDWR)


def send(connection: Connection, statements: Sequence[bytes]) -> psycopg.Cursor[dict[str, Any]]:
    """Send ``statements`` in one message. Return the cursor with the answer to the last of them. Raises: psycopg's own errors."""
    cursor = connection.execute(b"; ".join(statements))
    while cursor.nextset():
        pass
    return cursor


def has_rows(cursor: psycopg.Cursor[dict[str, Any]]) -> bool:
    """Return whether the statement was one that returns rows, be it none. ``cursor.description`` costs more: it describes them."""
    result = cursor.pgresult
    return result is not None and result.nfields > 0


def known_version(rows: Sequence[Mapping[str, Any]]) -> int:
    """Return the schema version from ``rows``, all rows of ``routeweiler_ledger``.

    Raises: LedgerError if the version is newer than `SCHEMA_VERSION`, or isn't there exactly once.
    """
    version = int(rows[0]["version"]) if len(rows) == 1 else -1
    if not 0 < version <= SCHEMA_VERSION:
        raise LedgerError(
            f"The ledger was written by a newer version (schema {version}; this version knows {SCHEMA_VERSION}), or is damaged.",
            advice="The ledger wasn't changed. Upgrade routeweiler-sync.",
        )
    return version


def is_loss(error: BaseException) -> bool:
    """Return whether ``error`` comes from a broken connection, rather than being the server's answer.

    A bouncer whose server dies in the middle of a message appends a message of its own to that half. libpq then has lost
    synchronization, which is a bare DatabaseError.
    """
    if not (isinstance(error, driver().OperationalError) or type(error) is driver().DatabaseError):
        return False
    sqlstate = getattr(error, "sqlstate", None)
    return sqlstate is None or sqlstate.startswith("08")


def clean(error: Exception, secrets: Sequence[str] = ()) -> Exception:
    """Return ``error`` with a text that repeats no rows and none of ``secrets``; an error that isn't psycopg's as a LedgerError.

    Only the primary message of the server is kept: its DETAIL shows whole rows, with token and preimage.
    """
    primary = getattr(getattr(error, "diag", None), "message_primary", None)
    text = primary or "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
    for secret in secrets:
        text = text.replace(secret, "…")
    kind = type(error)
    return kind(text) if isinstance(error, driver().Error) else LedgerError(f"{kind.__name__}: {text}")


def driver() -> Any:
    """Import psycopg and return it.

    Raises: LedgerError if psycopg isn't installed.
    """
    with changing:
        try:
            psycopg = importlib.import_module("psycopg")
            importlib.import_module("psycopg.conninfo")
        except ImportError as error:
            raise LedgerError(
                f"A ledger in PostgreSQL needs the package psycopg ({error}).",
                advice='Install it: pip install "routeweiler-sync[postgres]".',
            ) from error
    return psycopg
