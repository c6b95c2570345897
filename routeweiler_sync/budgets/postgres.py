"""The ledger in a PostgreSQL database (12 or newer): one budget, and one purchase of each need, for a fleet of machines.

What the rows mean is `routeweiler_sync.budgets.ledger`'s; this room knows connections, and what may become of a transaction. Every
one is READ COMMITTED: the ledger locks what it decides on, and the unique index keeps a need to one purchase. What the server undid
for the sake of others (a deadlock, a lock not to be had) is run again.

**Was it committed?** A connection that is lost while COMMIT is under way leaves that open, and it is asked, not guessed: each
transaction begins by numbering itself in its connection's row of ``routeweiler_writers``. Another connection locks that row, which
waits for the end of the lost transaction whatever it is, and reads the number. (``pg_xact_status`` would not do: after a crash the
server hands out the number of a transaction that wasn't flushed once more, and then tells of a stranger's.)
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import LedgerError, RouteweilerError
from .postgres_url import Address, read_url
from .store import MIGRATIONS, SCHEMA_VERSION, T, Transaction

if TYPE_CHECKING:
    import psycopg

#: Most connections of one process; more threads wait for one another.
MAX_CONNECTIONS = 4
#: How long a transaction is tried again, a lost one asked after, and a free connection waited for.
PATIENCE_S = 30.0
#: Most times that a transaction is tried.
MAX_TRIES = 20
#: How long one statement waits for others' locks before the transaction is run anew.
LOCK_TIMEOUT_S = 10
#: The server ends a transaction whose client says nothing for so long: nobody waits longer for the locks of a frozen machine.
IDLE_TIMEOUT_S = 10
#: No transaction takes longer, or its connection is cut: a server that is frozen holds nobody up for ever.
TRANSACTION_LIMIT_S = 25.0
#: Connection settings of libpq, where the URL doesn't say otherwise.
CONNECTING: Mapping[str, str | int] = {
    "connect_timeout": 5,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
    "application_name": "routeweiler_sync",
}
#: Advisory lock under which the tables are made: "RWSL", as SQLite's application id.
MIGRATION_LOCK = 0x5257534C
#: Rows of writers that were last seen so long ago go.
WRITERS_KEPT = "7 days"

#: SQLSTATEs of a transaction that had no effect and may be run again: serialisation, deadlock, lock timeout, cancelled, a row that
#: another brought in between, ended by the server (idle, shutdown, crash), not yet up, too many clients.
AGAIN = frozenset({"40001", "40P01", "55P03", "57014", "23505", "25P03", "57P01", "57P02", "57P03", "57P05", "53300"})
DUPLICATE_TABLE = "42P07"

_TABLES = (
    "CREATE TABLE routeweiler_ledger (version INTEGER NOT NULL)",
    "CREATE TABLE routeweiler_writers (writer TEXT PRIMARY KEY, serial BIGINT NOT NULL, seen_at TIMESTAMPTZ NOT NULL)",
    "INSERT INTO routeweiler_ledger (version) VALUES (0)",
)
_BOUNDS = f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S}s'; SET LOCAL idle_in_transaction_session_timeout = '{IDLE_TIMEOUT_S}s'; "
_READ = f"BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; {_BOUNDS}"
_WRITE = f"BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; {_BOUNDS}"
_PRUNE = (
    "DELETE FROM routeweiler_writers WHERE writer IN (SELECT writer FROM routeweiler_writers "  # noqa: S608  (ours)
    f"WHERE seen_at < now() - interval '{WRITERS_KEPT}' LIMIT 1000 FOR UPDATE SKIP LOCKED); "
)

#: Held while the driver is imported and a store changes its process; a fork waits for it, so no child finds it half done.
_changing = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_changing.acquire, after_in_parent=_changing.release, after_in_child=_changing.release)
#: Pools of a parent process, kept so that a child neither uses nor closes their connections.
_inherited: list[object] = []


@dataclass(slots=True, kw_only=True)
class _Link:
    """A connection, and what its transactions are numbered by."""

    connection: psycopg.Connection[dict[str, Any]]
    writer: str = field(default_factory=lambda: uuid.uuid4().hex)
    serial: int = 0

    def reading(self) -> None:
        """Begin to read."""
        self.connection.execute(_READ)

    def writing(self, durable: bool) -> None:
        """Begin to write, in one message: the transaction's number, and whether the ledger is still one that we know."""
        self.serial += 1
        latest = self.connection.execute(
            f"{_WRITE}SET LOCAL synchronous_commit = {'on' if durable else 'off'}; {_PRUNE if self.serial == 1 else ''}"  # noqa: S608
            f"INSERT INTO routeweiler_writers (writer, serial, seen_at) VALUES ('{self.writer}', {self.serial}, now()) "
            "ON CONFLICT (writer) DO UPDATE SET serial = excluded.serial, seen_at = excluded.seen_at; "
            "SELECT version FROM routeweiler_ledger"
        )
        while latest.nextset():
            pass
        _known_version(latest.fetchall())


class _Pool:
    """The connections of one process."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.slots = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self.lock = threading.Lock()
        self.idle: list[_Link] = []
        #: Whether a ledger that we know was met: the server can be reached, and the tables are there.
        self.met = self.closed = False

    def take(self) -> _Link | None:
        with self.lock:
            return self.idle.pop() if self.idle else None

    def give(self, link: _Link) -> None:
        with self.lock:
            if not self.closed and link.connection.info.transaction_status == 0:  # idle, and alive
                self.idle.append(link)
                return
        link.connection.close()

    def empty(self) -> None:
        """Close what isn't in use."""
        with self.lock:
            idle, self.idle = self.idle, []
        for link in idle:
            link.connection.close()


class PostgresStore:
    """A ledger in the database at ``url`` (libpq's URI), made on first use. See `routeweiler_sync.budgets.store.Store`.

    A password in the URL stays in this process: `url` is without it.
    """

    def __init__(self, url: str) -> None:
        self._address: Address = read_url(url)
        self._pool = _Pool()

    @property
    def url(self) -> str:
        """The URI as it was given, without passwords."""
        return self._address.url

    def exists(self) -> bool:
        """Whether the tables are there. Raises LedgerError where the server can't be asked."""
        pool = self._pool_here()
        if pool.met:
            return True
        with self._as_ledger_error(), self._slot(pool):
            link = self._connect()
            try:
                return _version(link.connection) > 0
            finally:
                pool.give(link)

    def run(self, work: Callable[[Transaction], T], *, durable: bool = True) -> T:
        """``work`` in a transaction, again where it had no effect: undone for others' sake, or its connection lost before."""
        import tenacity

        def once() -> T:
            with self._writing(durable) as tx:
                return work(tx)

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(self._may_be_run_again),
            wait=tenacity.wait_random_exponential(multiplier=0.02, max=1.0),
            stop=tenacity.stop_after_delay(PATIENCE_S) | tenacity.stop_after_attempt(MAX_TRIES),
            reraise=True,
        )
        with self._as_ledger_error():
            return retrying(once)

    @contextlib.contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[PostgresTransaction]:
        """BEGIN … COMMIT, once."""
        with self._as_ledger_error(), self._writing(durable) as tx:
            yield tx

    @contextlib.contextmanager
    def read(self) -> Iterator[PostgresTransaction]:
        """One consistent sight: REPEATABLE READ, READ ONLY."""
        with self._as_ledger_error(), self._begun(_Link.reading) as link:
            yield PostgresTransaction(link.connection)
            link.connection.execute("COMMIT")

    def close(self) -> None:
        """Close this process's connections; the next use opens new ones."""
        with _changing:
            pool, self._pool = self._pool_here(), _Pool()
        pool.closed = True
        pool.empty()

    # -- transactions -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _writing(self, durable: bool) -> Iterator[PostgresTransaction]:
        with self._begun(lambda link: link.writing(durable)) as link:
            yield PostgresTransaction(link.connection)
            self._commit(link)

    def _commit(self, link: _Link) -> None:
        driver = _driver()
        try:
            done = link.connection.execute("COMMIT").statusmessage
        except driver.Error as error:
            if not _is_lost(link, error):
                raise
            link.connection.close()
            if self._was_committed(link, error):
                return
            raise
        if done != "COMMIT":
            raise self._error("the server answered COMMIT with ROLLBACK")

    def _was_committed(self, lost: _Link, loss: psycopg.Error) -> bool:
        """Whether the transaction of a lost connection was committed: its row is locked by it for as long as it is under way."""
        import tenacity

        def ask() -> bool:
            link = self._connect()
            try:
                rows = link.connection.execute(
                    f"{_WRITE}SELECT serial FROM routeweiler_writers WHERE writer = '{lost.writer}' FOR UPDATE"  # noqa: S608
                )
                while rows.nextset():
                    pass
                return [row["serial"] for row in rows.fetchall()] == [lost.serial]
            finally:
                link.connection.close()

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_driver().Error),
            wait=tenacity.wait_random_exponential(multiplier=0.05, max=1.0),
            stop=tenacity.stop_after_delay(PATIENCE_S),
            reraise=True,
        )
        try:
            return retrying(ask)
        except _driver().Error as error:
            problem = _clean(error, self._address)
        raise LedgerError(
            f"The connection to the ledger {self.url} was lost in the midst of a commit, and whether it was done can't be asked: "
            f"{problem}. Nothing was spent by this. Call again when the database is back: what was written is found then."
        ) from _clean(loss, self._address)

    @contextlib.contextmanager
    def _begun(self, begin: Callable[[_Link], None]) -> Iterator[_Link]:
        """A connection on which ``begin`` was done; rolled back where the block raises."""
        pool = self._pool_here()
        with self._slot(pool):
            link = self._start(pool, begin)
            timer = threading.Timer(TRANSACTION_LIMIT_S, _cut, (link.connection,))
            timer.daemon = True
            timer.start()
            try:
                yield link
            except BaseException as error:
                if pool.pid == os.getpid():  # else a forked child throws away what isn't its own
                    _undo(link, error)
                raise
            finally:
                timer.cancel()
                if pool.pid == os.getpid():
                    pool.give(link)

    def _start(self, pool: _Pool, begin: Callable[[_Link], None]) -> _Link:
        link = pool.take()
        if link is not None and pool.met:
            try:
                begin(link)
            except _driver().OperationalError as error:
                lost = _is_lost(link, error)
                _undo(link, error)
                if not lost:
                    raise
                pool.empty()  # the server was restarted: the others are as dead
            except BaseException as error:
                _undo(link, error)
                raise
            else:
                return link
        elif link is not None:
            link.connection.close()
        link = self._connect()
        try:
            if not pool.met:
                self._make_tables(link.connection)
                pool.met = True
            begin(link)
        except BaseException:
            link.connection.close()
            raise
        return link

    def _make_tables(self, connection: psycopg.Connection[dict[str, Any]]) -> None:
        """Make the tables, or bring them to this version, unless they are. Whoever comes first does it, the others find it done."""
        if _version(connection) == SCHEMA_VERSION:
            return
        connection.execute(f"{_WRITE}SELECT pg_advisory_xact_lock({MIGRATION_LOCK})")
        version = _version(connection)
        try:
            for statement in _TABLES if version == 0 else ():
                connection.execute(statement.encode())
            for step in range(version + 1, SCHEMA_VERSION + 1):
                for statement in MIGRATIONS[step]:
                    connection.execute(statement.encode())
        except _driver().Error as error:
            if error.sqlstate != DUPLICATE_TABLE:
                raise
            problem = str(_clean(error, self._address))
        else:
            connection.execute(f"UPDATE routeweiler_ledger SET version = {SCHEMA_VERSION}")  # noqa: S608  (ours)
            connection.execute("COMMIT")
            return
        raise LedgerError(
            f"The schema at {self.url} holds tables of others where the ledger's would be ({problem}). Nothing was spent, and "
            "nothing was changed in it. Give the ledger a schema of its own: …?options=-csearch_path%3Drouteweiler"
        )

    # -- connections ------------------------------------------------------------------------------------------------------

    def _connect(self) -> _Link:
        driver = _driver()
        from psycopg.rows import dict_row

        given = driver.conninfo.conninfo_to_dict(self._address.conninfo)
        connection = driver.connect(
            **{**CONNECTING, **given, "client_encoding": "UTF8"}, autocommit=True, prepare_threshold=None, row_factory=dict_row
        )
        return _Link(connection=connection)

    @contextlib.contextmanager
    def _slot(self, pool: _Pool) -> Iterator[None]:
        if not pool.slots.acquire(timeout=PATIENCE_S):
            raise self._error(f"all {MAX_CONNECTIONS} connections have been busy for {PATIENCE_S:.0f} s")
        try:
            yield
        finally:
            pool.slots.release()

    def _pool_here(self) -> _Pool:
        if self._pool.pid != os.getpid():
            with _changing:
                if self._pool.pid != os.getpid():
                    _inherited.append(self._pool)
                    self._pool = _Pool()
        return self._pool

    # -- errors -----------------------------------------------------------------------------------------------------------

    def _may_be_run_again(self, error: BaseException) -> bool:
        if not isinstance(error, _driver().Error):
            return False
        lost = isinstance(error, _driver().OperationalError) and error.sqlstate is None
        return error.sqlstate in AGAIN or (lost and self._pool_here().met)

    @contextlib.contextmanager
    def _as_ledger_error(self) -> Iterator[None]:
        driver = _driver()
        try:
            yield
        except RouteweilerError:  # an OSError too, as requests' are
            raise
        except (driver.Error, OSError, OverflowError, UnicodeError) as error:
            problem = _clean(error, self._address)
            raise self._error(str(problem)) from problem

    def _error(self, why: str) -> LedgerError:
        return LedgerError(
            f"The ledger {self.url} can't be used: {why}. Nothing was spent. "
            "Mend the database, this role's rights or the network, or name another ledger; the rows it holds aren't lost."
        )


class PostgresTransaction:
    """Statements of one transaction."""

    def __init__(self, connection: psycopg.Connection[dict[str, Any]]) -> None:
        self._connection = connection

    def execute(self, sql: str, parameters: Sequence[object] = ()) -> list[Mapping[str, Any]]:
        """Run one statement and give its rows."""
        try:
            cursor = self._connection.execute(_translated(sql, len(parameters)), tuple(parameters))
            return [*cursor.fetchall()] if cursor.description else []
        except _driver().Error as error:
            problem = _clean(error)  # the server's DETAIL shows whole rows: token, preimage
        raise problem


@functools.lru_cache(maxsize=256)
def _translated(sql: str, parameters: int) -> bytes:
    """``sql`` with psycopg's placeholders."""
    assert "%" not in sql, sql
    assert sql.count("?") == parameters, sql
    return sql.replace("?", "%s").encode()


def _version(connection: psycopg.Connection[dict[str, Any]]) -> int:
    """The ledger's version, 0 where there is none. LedgerError for a newer one."""
    found = connection.execute(  # not by to_regclass: it may not have heard yet of what another has just made
        "SELECT FROM pg_catalog.pg_class JOIN pg_catalog.pg_namespace ON pg_namespace.oid = relnamespace "
        "WHERE relname = 'routeweiler_ledger' AND nspname = current_schema()"
    ).fetchall()
    if not found:
        return 0
    return _known_version(connection.execute("SELECT version FROM routeweiler_ledger").fetchall())


def _known_version(rows: Sequence[Mapping[str, Any]]) -> int:
    version = int(rows[0]["version"]) if len(rows) == 1 else -1
    if not 0 < version <= SCHEMA_VERSION:
        raise LedgerError(
            f"The ledger was written by a newer version (schema {version}, this one knows {SCHEMA_VERSION}), or is damaged. "
            "Nothing was spent, and nothing was changed in it. Upgrade routeweiler-sync."
        )
    return version


def _is_lost(link: _Link, error: psycopg.Error) -> bool:
    """Whether the connection is gone, and with it the server's answer."""
    return link.connection.closed or error.sqlstate is None or error.sqlstate[:2] in ("08", "57")


def _undo(link: _Link, error: BaseException) -> None:
    """Roll back. After an interrupt the connection may be in the midst of a message: closing it rolls back as well."""
    if isinstance(error, Exception):
        with contextlib.suppress(_driver().Error):
            link.connection.execute("ROLLBACK")
            return
    link.connection.close()


def _cut(connection: psycopg.Connection[Any]) -> None:
    """End a connection that another thread waits on: it then finds it lost."""
    with contextlib.suppress(Exception), socket.fromfd(connection.fileno(), socket.AF_INET, socket.SOCK_STREAM) as end:
        end.shutdown(socket.SHUT_RDWR)


def _clean(error: Exception, address: Address | None = None) -> Exception:
    """``error`` without what it may show of rows and passwords: of the server's words the first line, of libpq's no secret."""
    primary = getattr(getattr(error, "diag", None), "message_primary", None)
    text = primary or "; ".join(str(error).split("\n")).strip("; ")
    for secret in () if address is None else address.secrets:
        text = text.replace(secret, "…")
    kind = type(error)
    return kind(text) if isinstance(error, _driver().Error) else LedgerError(f"{kind.__name__}: {text}")


def _driver() -> Any:
    """psycopg, imported when it is needed."""
    with _changing:
        try:
            driver = importlib.import_module("psycopg")
            importlib.import_module("psycopg.conninfo")
        except ImportError as error:
            raise LedgerError(
                f"A ledger in PostgreSQL needs psycopg ({error}). Nothing was spent. "
                'Install it: pip install "routeweiler-sync[postgres]"'
            ) from error
    return driver
