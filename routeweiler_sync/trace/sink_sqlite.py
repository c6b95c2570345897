"""Trace events in SQLite. This module knows the table and how processes share it; what an event contains is left to `schema`."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._core.files import connect_sqlite, file_identity, make_private_sqlite, while_locked
from .._core.forks import around_fork, importing
from .sink import TraceSink

if TYPE_CHECKING:
    import sqlite3

__all__ = ["SqliteSink", "TraceSink"]

#: How long an event waits for other writers before it is lost.
BUSY_TIMEOUT_S = 5.0

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

    def _write(self, event_id: str, payload: dict[str, Any], text: str) -> None:
        payment_hash = payload["payment"] and payload["payment"]["paymentHash"]
        row = (event_id, payload["timestampStart"], payload["selectedRail"], payload["envelopeId"], payment_hash, text)
        with _inside:
            if self._connection is not None and file_identity(self.path) != self._identity:
                self._close()  # SQLite notices that its file has moved, and leaves the files now at this path alone
            if self._connection is None:
                self._connection = _open(self.path)
                self._identity = file_identity(self.path)
            self._connection.execute(_INSERT, row)

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

    Raises: OSError, sqlite3.Error.
    """
    with importing:
        import sqlite3  # noqa: F401  (the functions below use it)

    make_private_sqlite(path)
    connection = connect_sqlite(path, timeout_s=BUSY_TIMEOUT_S)
    try:
        while_locked(lambda: _prepare(connection), timeout_s=BUSY_TIMEOUT_S)
    except BaseException:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    for statement in _SCHEMA:
        connection.execute(statement)
