"""Connections to the PostgreSQL server of a ledger: a few for each process, each bounded in how long it may be waited for.

Known here is how a transaction begins and ends, and what is wrong where one fails. What is done in it, and whether it is done
again, is `routeweiler_sync.ledger.postgres.store`'s.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import socket
import threading
import uuid
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

#: Most connections of one process; more threads wait for one another.
MAX_CONNECTIONS = 4
#: How long one statement waits for others' locks before the transaction is run anew.
LOCK_TIMEOUT_S = 10
#: The server ends a transaction whose client says nothing for so long: nobody waits longer for the locks of a frozen machine.
IDLE_TIMEOUT_S = 10
#: A transaction that takes longer has its connection cut: a server that is frozen holds nobody up for ever.
TRANSACTION_LIMIT_S = 25.0
#: Connection settings of libpq, where the URL doesn't say otherwise.
CONNECTING: Mapping[str, str | int] = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
    "fallback_application_name": "routeweiler_sync",
}
#: Rows of writers that were last seen so long ago go.
WRITERS_KEPT = "7 days"

#: SQLSTATEs of a transaction that had no effect and may be run again: serialisation, deadlock, lock timeout, cancelled, a row that
#: another brought in between, ended by the server (idle, shutdown, crash), not yet up, too many clients.
AGAIN = frozenset({"40001", "40P01", "55P03", "57014", "23505", "25P03", "57P01", "57P02", "57P03", "57P05", "53300"})
#: What a standby says to BEGIN … READ WRITE (and to a write): behind a pooler or a proxy the server may have become one, and the
#: connection is as good as lost.
STANDBY = frozenset({"0A000", "25006"})

_BOUNDS = f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S}s'; SET LOCAL idle_in_transaction_session_timeout = '{IDLE_TIMEOUT_S}s'; "
BEGIN_READING = f"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; {_BOUNDS}"
BEGIN_WRITING = f"BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; {_BOUNDS}"
_PRUNE = (
    "DELETE FROM routeweiler_writers WHERE writer IN (SELECT writer FROM routeweiler_writers "  # noqa: S608  (ours)
    f"WHERE seen_at < now() - interval '{WRITERS_KEPT}' LIMIT 1000 FOR UPDATE SKIP LOCKED); "
)

#: Held while the driver is imported and a store changes its process; a fork waits for it, so no child finds it half done.
changing = threading.RLock()
around_fork(before=changing.acquire, in_parent=changing.release, in_child=changing.release)


@dataclass(slots=True, kw_only=True)
class Link:
    """A connection, and what its transactions are numbered by. Methods raise psycopg's errors."""

    connection: Connection
    writer: str = field(default_factory=lambda: uuid.uuid4().hex)
    serial: int = 0

    @classmethod
    def open(cls, address: Address) -> Link:
        """A new connection."""
        from psycopg.rows import dict_row

        given = driver().conninfo.conninfo_to_dict(address.conninfo)
        settings = {**CONNECTING, **given, "client_encoding": "UTF8"}
        return cls(connection=driver().connect(**settings, autocommit=True, prepare_threshold=None, row_factory=dict_row))

    def begin_reading(self) -> None:
        """BEGIN; one consistent sight."""
        self.connection.execute(BEGIN_READING)

    def begin_writing(self, durable: bool) -> None:
        """BEGIN, in one message with the transaction's number and a look whether the ledger is still one that we know."""
        self.serial += 1
        rows = self._last_rows(
            f"{BEGIN_WRITING}SET LOCAL synchronous_commit = {'on' if durable else 'off'}; {_PRUNE if self.serial == 1 else ''}"  # noqa: S608
            f"INSERT INTO routeweiler_writers (writer, serial, seen_at) VALUES ('{self.writer}', {self.serial}, now()) "
            "ON CONFLICT (writer) DO UPDATE SET serial = excluded.serial, seen_at = excluded.seen_at; "
            "SELECT version FROM routeweiler_ledger"
        )
        known_version(rows)

    def was_committed(self, lost: Link) -> bool:
        """Whether the latest transaction of a ``lost`` link was committed; waits for its end, if it is still under way."""
        rows = self._last_rows(
            f"{BEGIN_WRITING}INSERT INTO routeweiler_writers (writer, serial, seen_at) VALUES ('{lost.writer}', 0, now()) "  # noqa: S608
            "ON CONFLICT (writer) DO UPDATE SET seen_at = excluded.seen_at RETURNING serial"
        )
        self.connection.execute("ROLLBACK")
        return bool(rows[0]["serial"] == lost.serial)

    def undo(self, error: BaseException) -> None:
        """Roll back. After an interrupt the connection may be in the midst of a message: closing it rolls back as well."""
        if isinstance(error, Exception):
            with contextlib.suppress(driver().Error):
                self.connection.execute("ROLLBACK")
                return
        self.connection.close()

    def is_lost(self, error: psycopg.Error) -> bool:
        """Whether the connection is gone, and with it the server's answer."""
        return self.connection.closed or is_loss(error) or (error.sqlstate or "").startswith("57P")

    def _last_rows(self, statements: str) -> list[dict[str, Any]]:
        results = self.connection.execute(statements.encode())
        while results.nextset():
            pass
        return results.fetchall()


class Pool:
    """The connections of one process to one ledger."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.slots = threading.BoundedSemaphore(MAX_CONNECTIONS)
        #: Whether a ledger that we know was met: the server can be reached, and the tables are there.
        self.met = self.closed = False
        self._lock = threading.Lock()
        self._idle: list[Link] = []

    @property
    def is_mine(self) -> bool:
        """Whether this is still the process whose connections these are."""
        return self.pid == os.getpid()

    def take(self) -> Link | None:
        """A connection that was used before, if there is one."""
        with self._lock:
            return self._idle.pop() if self._idle else None

    def give(self, link: Link) -> None:
        """Keep ``link`` for the next, or close it where it is of no more use."""
        with self._lock:
            if not self.closed and link.connection.info.transaction_status == driver().pq.TransactionStatus.IDLE:
                self._idle.append(link)
                return
        link.connection.close()

    def empty(self) -> None:
        """Close what isn't in use."""
        with self._lock:
            idle, self._idle = self._idle, []
        for link in idle:
            link.connection.close()


class Guard:
    """Cuts the connection that it watches after `TRANSACTION_LIMIT_S`; whoever waits on it finds it lost."""

    def __init__(self) -> None:
        self._watched: Connection | None = None

    @contextlib.contextmanager
    def __call__(self) -> Iterator[Guard]:
        timer = threading.Timer(TRANSACTION_LIMIT_S, self._cut)
        timer.daemon = True
        timer.start()
        try:
            yield self
        finally:
            self._watched = None
            timer.cancel()

    def watch(self, link: Link) -> None:
        """From now on ``link`` is the one to cut."""
        self._watched = link.connection

    def _cut(self) -> None:
        connection = self._watched
        if connection is not None:
            with contextlib.suppress(Exception), socket.fromfd(connection.fileno(), socket.AF_INET, socket.SOCK_STREAM) as end:
                end.shutdown(socket.SHUT_RDWR)


def known_version(rows: Sequence[Mapping[str, Any]]) -> int:
    """The version in the ``rows`` of ``routeweiler_ledger``; LedgerError where it isn't one that we know."""
    version = int(rows[0]["version"]) if len(rows) == 1 else -1
    if not 0 < version <= SCHEMA_VERSION:
        raise LedgerError(
            f"The ledger was written by a newer version (schema {version}, this one knows {SCHEMA_VERSION}), or is damaged.",
            advice="Nothing was changed in it. Upgrade routeweiler-sync.",
        )
    return version


def is_loss(error: BaseException) -> bool:
    """Whether ``error`` is of the connection, not of the server."""
    if not isinstance(error, driver().OperationalError):
        return False
    return error.sqlstate is None or error.sqlstate.startswith("08")


def clean(error: Exception, secrets: Sequence[str] = ()) -> Exception:
    """``error`` without what it may show of rows and passwords.

    Of the server's words the first line alone: its DETAIL shows whole rows, with token and preimage.
    """
    primary = getattr(getattr(error, "diag", None), "message_primary", None)
    text = primary or "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
    for secret in secrets:
        text = text.replace(secret, "…")
    kind = type(error)
    return kind(text) if isinstance(error, driver().Error) else LedgerError(f"{kind.__name__}: {text}")


def driver() -> Any:
    """psycopg, imported when it is needed. LedgerError where it isn't installed."""
    with changing:
        try:
            psycopg = importlib.import_module("psycopg")
            importlib.import_module("psycopg.conninfo")
        except ImportError as error:
            raise LedgerError(
                f"A ledger in PostgreSQL needs psycopg ({error}).", advice='Install it: pip install "routeweiler-sync[postgres]".'
            ) from error
    return psycopg
