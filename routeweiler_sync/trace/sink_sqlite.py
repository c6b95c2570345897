"""Trace events in SQLite. This module knows the table and how processes share it; what an event contains is left to `schema`."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._core.deadline import monotonic_s
from .._core.files import (
    SIDE_FILES,
    connect_sqlite,
    file_identity,
    make_private_sqlite,
    require_one_name,
    require_private,
    resolved,
    while_locked,
)
from .._core.forks import around_fork, importing
from .sink import STUCK_WAIT_S_MAX, WAIT_S_MAX, TraceSink

if TYPE_CHECKING:
    import sqlite3

__all__ = ["SqliteSink", "TraceSink"]

#: The shortest pause before SQLite is asked again while others write. A random pause, up to ten times as long, keeps them out of
#: step.
_RETRY_PAUSE_S = 0.001

_SCHEMA = (
    """CREATE TABLE IF NOT EXISTS trace_events (
        event_id TEXT PRIMARY KEY,
        timestamp_start TEXT NOT NULL,
        selected_rail TEXT,
        envelope_id TEXT,
        payment_hash TEXT,
        payload TEXT NOT NULL
    )""",
    "CREATE INDEX IF NOT EXISTS trace_events_timestamp_start ON trace_events (timestamp_start)",
    "CREATE INDEX IF NOT EXISTS trace_events_payment_hash ON trace_events (payment_hash)",
)
_INSERT = """INSERT INTO trace_events (event_id, timestamp_start, selected_rail, envelope_id, payment_hash, payload)
    VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (event_id) DO NOTHING"""

#: Held during every call into SQLite, for two reasons. A fork waits for it: a child forked while another thread is inside SQLite
#: would inherit SQLite's own mutexes locked for ever (observed). And a file is never created while another thread uses it: closing
#: any descriptor of a file drops all POSIX locks that the process holds on it, SQLite's too (sqlite.org/howtocorrupt.html, 2.2).
#: SQLite never waits while it is held: an event that waits for other writers lets go of it in between.
_inside = threading.RLock()
#: Connections that a forked child inherited. It must neither use them nor close them while the parent lives (howtocorrupt.html,
#: 2.6).
_abandoned: list[sqlite3.Connection] = []

around_fork(before=_inside.acquire, in_parent=_inside.release, in_child=_inside.release)


class SqliteSink(TraceSink):
    """The sink that `TraceSink.sqlite` makes. The column ``payment_hash`` is the hash of the event's payment, null if it has none.

    WAL with synchronous=NORMAL: a written event survives the death of the process at once, and a power cut after the next
    checkpoint.
    """

    _connection: sqlite3.Connection | None = None
    _identity: object = None
    #: The path with links resolved when the file was opened.
    _real: str = ""

    def _write(self, event_id: str, payload: dict[str, Any], text: str) -> None:
        payment_hash = payload["payment"] and payload["payment"]["paymentHash"]
        row = (event_id, payload["timestampStart"], payload["selectedRail"], payload["envelopeId"], payment_hash, text)
        while True:
            if not _inside.acquire(timeout=max(0.0, self._deadline_s - monotonic_s())):
                raise TimeoutError("another thread is still writing")
            try:
                self._insert(row)
                return
            except Exception as error:
                if "is locked" not in str(error):
                    raise
                if monotonic_s() >= self._deadline_s:
                    raise TimeoutError(f"{error}: another program keeps writing to it") from error
            finally:
                _inside.release()
            time.sleep(_RETRY_PAUSE_S * (1 + 9 * random.random()))  # noqa: S311 - no secret depends on it

    def _insert(self, row: tuple[str | None, ...]) -> None:
        if self._connection is not None and self._identity != self._identity_now():
            self._close()  # SQLite notices that its file has moved, and leaves the files now at this path alone
        if self._connection is None:
            self._connection = _open(self.path)
            self._real = str(resolved(self.path))
            self._identity = self._identity_now()
        self._connection.execute(_INSERT, row)

    def _identity_now(self) -> tuple[object, ...]:
        """Return the identities of the database and of the files that SQLite has open beside it."""
        return file_identity(self.path), *(file_identity(self._real + suffix) for suffix in SIDE_FILES[:2])

    def _find(self, payment_hash: str) -> Iterable[str]:
        if not self.path.exists():
            return []
        found: list[str] = []

        def read() -> None:
            with _inside, contextlib.closing(_open(self.path)) as connection:
                rows = connection.execute("SELECT payload FROM trace_events WHERE payment_hash = ?", (payment_hash,)).fetchall()
            found[:] = [text for (text,) in rows]

        # A program that reads many tokens from its ledger asks here for each: behind a lock that stays, only the first waits.
        while_locked(read, timeout_s=STUCK_WAIT_S_MAX if self._is_stuck else WAIT_S_MAX)
        return found

    def _close(self) -> None:
        with _inside:
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.close()

    def _forget_after_fork(self) -> None:
        if self._connection is not None:
            _abandoned.append(self._connection)
            self._connection = None


def _open(path: Path) -> sqlite3.Connection:
    """Open the database at ``path`` and create its table; create the database if it is missing.

    Raises: OSError, sqlite3.Error; sqlite3.OperationalError ("is locked") at once if another program is writing.
    """
    with importing:
        import sqlite3  # noqa: F401  (the functions below use it)

    make_private_sqlite(path)
    real = resolved(path)
    require_one_name(real)
    require_private(real)
    connection = connect_sqlite(path, timeout_s=0)
    try:
        _prepare(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    for statement in _SCHEMA:
        connection.execute(statement)
