"""The ledger in a PostgreSQL database (12 or newer): one budget, and one purchase of each need, for a fleet of machines.

What the rows mean is `routeweiler_sync.ledger.ledger`'s; this room knows what may become of a transaction. Every one is READ
COMMITTED: the ledger locks what it decides on, and the unique index keeps a need to one purchase. What the server undid for the
sake of others (a deadlock, a lock not to be had) is run again.

**Was it committed?** A connection that is lost while COMMIT is under way leaves that open, and it is asked, not guessed: each
transaction begins by writing its number into its connection's row of ``routeweiler_writers``. Another connection then writes to
that row, which waits for the end of the lost transaction whatever it is, and reads the number. (``pg_xact_status`` would not do:
after a crash the server gives the number of a transaction that wasn't flushed to another one, and then tells of that stranger.)
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...errors import LedgerError, RouteweilerError
from ..store import MIGRATIONS, SCHEMA_VERSION, T, Transaction
from .connections import (
    AGAIN,
    BEGIN_WRITING,
    MAX_CONNECTIONS,
    STANDBY,
    Guard,
    Link,
    Pool,
    changing,
    clean,
    driver,
    is_loss,
    known_version,
)
from .url import read_url

if TYPE_CHECKING:
    import psycopg

    from .connections import Connection

#: How long a transaction is tried again, a lost one asked after, and a free connection waited for.
PATIENCE_S = 30.0
#: Most times that a transaction is tried.
MAX_TRIES = 30
#: Advisory lock under which the tables are made: "RWSL", as SQLite's application id.
MIGRATION_LOCK = 0x5257534C
#: SQLSTATE where a table is there already.
DUPLICATE_TABLE = "42P07"

#: What only this database needs, beside the tables of all ledgers.
_TABLES = (
    "CREATE TABLE routeweiler_ledger (version INTEGER NOT NULL)",
    "CREATE TABLE routeweiler_writers (writer TEXT PRIMARY KEY, serial BIGINT NOT NULL, seen_at TIMESTAMPTZ NOT NULL)",
    "INSERT INTO routeweiler_ledger (version) VALUES (0)",
)

#: Pools of a parent process, kept so that a child neither uses nor closes their connections.
_inherited: list[Pool] = []


class PostgresStore:
    """A ledger in the database at ``url`` (libpq's URI), made on first use. See `routeweiler_sync.ledger.store.Store`.

    A password in the URL stays in this process: `url` is without it. Raises LedgerError for a URL that can't be read.
    """

    def __init__(self, url: str) -> None:
        self._address = read_url(url)
        self._pool = Pool()

    @property
    def url(self) -> str:
        """The URI as it was given, without passwords."""
        return self._address.url

    def exists(self) -> bool:
        """Whether the tables are there. Raises LedgerError where the server can't be asked."""
        pool = self._pool_here()
        if not pool.met:
            with self._as_ledger_error(), self._slot(pool), Guard()() as guard:
                link = Link.open(self._address)
                guard.watch(link)
                try:
                    pool.met = _version(link.connection) == SCHEMA_VERSION
                finally:
                    link.connection.close()
        return pool.met

    def run(self, work: Callable[[Transaction], T], *, durable: bool = True, binding: bool = False) -> T:
        """``work`` in a transaction, again where it had no effect: undone for others' sake, or its connection lost before.

        Every transaction that writes is ``binding`` here: each looks whether the schema is still the one it knows.
        """
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
    def transaction(self, *, durable: bool = True, binding: bool = False) -> Iterator[PostgresTransaction]:
        """BEGIN … COMMIT, once."""
        with self._as_ledger_error(), self._writing(durable) as tx:
            yield tx

    @contextlib.contextmanager
    def read(self) -> Iterator[PostgresTransaction]:
        """One consistent sight: REPEATABLE READ, READ ONLY."""
        with self._as_ledger_error(), self._begun(Link.begin_reading) as link:
            yield PostgresTransaction(link.connection)
            link.connection.execute("COMMIT")

    def close(self) -> None:
        """Close this process's connections; the next use opens new ones."""
        with changing:
            pool, self._pool = self._pool_here(), Pool()
        pool.closed = True
        pool.empty()

    # -- transactions -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _writing(self, durable: bool) -> Iterator[PostgresTransaction]:
        with self._begun(lambda link: link.begin_writing(durable)) as link:
            yield PostgresTransaction(link.connection)
            self._commit(link)

    def _commit(self, link: Link) -> None:
        try:
            done = link.connection.execute("COMMIT").statusmessage
        except driver().Error as error:
            if not link.is_lost(error):
                raise
            link.connection.close()
            if not self._was_committed(link, error):
                raise
        else:
            if done != "COMMIT":
                raise self._error("the server answered COMMIT with ROLLBACK")

    def _was_committed(self, lost: Link, loss: psycopg.Error) -> bool:
        """Whether the transaction of a ``lost`` link was committed. LedgerError where that can't be asked."""
        import tenacity

        def ask() -> bool:
            with Guard()() as guard:
                link = Link.open(self._address)
                guard.watch(link)
                try:
                    return link.was_committed(lost)
                finally:
                    link.connection.close()

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(driver().Error),
            wait=tenacity.wait_random_exponential(multiplier=0.05, max=1.0),
            stop=tenacity.stop_after_delay(PATIENCE_S),
            reraise=True,
        )
        try:
            return retrying(ask)
        except driver().Error as error:
            problem = clean(error, self._address.secrets)
        raise LedgerError(
            f"The connection to the ledger {self.url} was lost in the midst of a commit, and whether it was done can't be asked: "
            f"{problem}.",
            advice="Call again when the database is back: what was written is found then.",
        ) from clean(loss, self._address.secrets)

    @contextlib.contextmanager
    def _begun(self, begin: Callable[[Link], None]) -> Iterator[Link]:
        """A link on which ``begin`` was done; rolled back where the block raises."""
        pool = self._pool_here()
        with self._slot(pool), Guard()() as guard:
            link = self._start(pool, begin, guard)
            try:
                yield link
            except BaseException as error:
                if pool.is_mine:  # else a forked child throws away what its parent's threads were doing
                    link.undo(error)
                raise
            finally:
                if pool.is_mine:
                    pool.give(link)

    def _start(self, pool: Pool, begin: Callable[[Link], None], guard: Guard) -> Link:
        link = pool.take()
        if link is not None:
            guard.watch(link)
            try:
                begin(link)
                return link
            except BaseException as error:
                stale = isinstance(error, driver().Error) and (link.is_lost(error) or error.sqlstate in STANDBY)
                link.undo(error)
                if not stale:
                    pool.give(link)
                    raise
            link.connection.close()
            pool.empty()  # the server was restarted, or the network is another: they are all as dead
        link = Link.open(self._address)
        guard.watch(link)
        try:
            if not pool.met:
                self._make_tables(link.connection)
                pool.met = True
            begin(link)
        except BaseException:
            link.connection.close()
            raise
        return link

    def _make_tables(self, connection: Connection) -> None:
        """Make the tables, or bring them to this version, unless they are. Whoever comes first does it, the others find it done."""
        if _version(connection) == SCHEMA_VERSION:
            return
        connection.execute(f"{BEGIN_WRITING}SELECT pg_advisory_xact_lock({MIGRATION_LOCK})".encode())
        version = _version(connection)
        steps: list[tuple[str, ...]] = [_TABLES] if version == 0 else []
        steps += [MIGRATIONS[step] for step in range(version + 1, SCHEMA_VERSION + 1)]
        try:
            for statement in (statement for step in steps for statement in step):
                connection.execute(statement.encode())
        except driver().Error as error:
            if error.sqlstate != DUPLICATE_TABLE:
                raise
            problem = clean(error)
        else:
            connection.execute(f"UPDATE routeweiler_ledger SET version = {SCHEMA_VERSION}".encode())  # noqa: S608  (ours)
            connection.execute("COMMIT")
            return
        raise LedgerError(
            f"The schema at {self.url} holds tables of others where the ledger's would be ({problem}).",
            advice="Nothing was changed in it. Give the ledger a schema of its own: …?options=-csearch_path%3Drouteweiler.",
        )

    # -- this process -----------------------------------------------------------------------------------------------------

    def _pool_here(self) -> Pool:
        if not self._pool.is_mine:
            with changing:
                if not self._pool.is_mine:
                    _inherited.append(self._pool)
                    self._pool = Pool()
        return self._pool

    @contextlib.contextmanager
    def _slot(self, pool: Pool) -> Iterator[None]:
        if not pool.slots.acquire(timeout=PATIENCE_S):
            raise self._error(f"all {MAX_CONNECTIONS} connections of this process have been busy for {PATIENCE_S:.0f} s")
        try:
            yield
        finally:
            pool.slots.release()

    # -- errors -----------------------------------------------------------------------------------------------------------

    def _may_be_run_again(self, error: BaseException) -> bool:
        if not isinstance(error, driver().Error):
            return False
        # A server that this process has never reached isn't restarting: it is down, or its name is wrong.
        return error.sqlstate in AGAIN or (is_loss(error) and self._pool_here().met)

    @contextlib.contextmanager
    def _as_ledger_error(self) -> Iterator[None]:
        errors = (driver().Error, OSError, OverflowError, UnicodeError)
        try:
            yield
        except RouteweilerError:  # an OSError too, as requests' are
            raise
        except errors as error:
            problem = clean(error, self._address.secrets)
            raise self._error(str(problem)) from problem

    def _error(self, why: str) -> LedgerError:
        return LedgerError(
            f"The ledger {self.url} can't be used: {why}.",
            advice="Mend the database, this role's rights or the network, or name another ledger; the rows it holds aren't lost.",
        )


class PostgresTransaction:
    """Statements of one transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def execute(self, sql: str, parameters: Sequence[object] = ()) -> list[Mapping[str, Any]]:
        """Run one statement and give its rows."""
        try:
            cursor = self._connection.execute(_translated(sql, len(parameters)), tuple(parameters))
            return [*cursor.fetchall()] if cursor.description else []
        except driver().Error as error:
            problem = clean(error)
        raise problem  # here, so that no traceback holds the server's own words, which show whole rows


@functools.lru_cache(maxsize=256)
def _translated(sql: str, parameters: int) -> bytes:
    """``sql`` with psycopg's placeholders."""
    assert "%" not in sql, sql
    assert sql.count("?") == parameters, sql
    return sql.replace("?", "%s").encode()


def _version(connection: Connection) -> int:
    """The ledger's version, 0 where there is none. LedgerError for a newer one."""
    found = connection.execute(  # not by to_regclass: it may not have heard yet of what another has just made
        "SELECT FROM pg_catalog.pg_class JOIN pg_catalog.pg_namespace ON pg_namespace.oid = relnamespace "
        "WHERE relname = 'routeweiler_ledger' AND nspname = current_schema()"
    ).fetchall()
    return known_version(connection.execute("SELECT version FROM routeweiler_ledger").fetchall()) if found else 0
