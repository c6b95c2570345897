"""A ledger in a PostgreSQL database (12 or newer), so that many machines share one budget and buy each token only once.

This module knows what can happen to a transaction: when it is run again, and whether a lost one was committed. What the rows mean
is left to `routeweiler_sync.ledger.ledger`, and single connections to `connections`.

Every write transaction is READ COMMITTED. That is enough: the ledger locks the rows that its decisions depend on, and a unique
index allows one live payment for each (origin, scope). A transaction that the server undid in favour of another (deadlock, lock
timeout) is run again.

**Was it committed?** If the connection is lost during COMMIT, the client can't know. The answer is looked up, never guessed:

1. Each write transaction begins by writing its number to its connection's row in ``routeweiler_writers``.
2. When the connection is lost, another connection writes to the same row. That waits until the lost transaction has ended.
3. The number that is then in the row shows whether the lost transaction was committed. If it was, the other connection commits
   too, so that a synchronous standby has both.

``pg_xact_status`` can't be used for this: after a crash the server may give the number of a transaction that wasn't flushed to
another one, and would then answer for that other transaction.

**Is it still the same ledger?** By the same numbers each write transaction notices if the database has lost what this store has
committed, as after a failover to a standby that lagged behind. Nothing is bought then: see `connections.History`.
"""

from __future__ import annotations

import contextlib
import functools
import os
import queue
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..._core import retries
from ..._core.deadline import LedgerWait
from ...errors import LedgerError, RouteweilerError
from ..store import MIGRATIONS, SCHEMA_VERSION, T, Transaction
from . import connections
from .connections import (
    AGAIN,
    BEGIN_WRITING,
    MAX_CONNECTIONS,
    STANDBY,
    Guard,
    History,
    Known,
    Link,
    Pool,
    changing,
    clean,
    driver,
    has_rows,
    is_loss,
    known_version,
    send,
)
from .url import read_url, search_path_in, split_path

if TYPE_CHECKING:
    import psycopg

    from .connections import Connection

#: How long a transaction is tried again; how long the fate of a lost one is asked for; how long a thread waits for a free
#: connection.
PATIENCE_S = 30.0
#: The least that a read, and a write, may take, also if its call has no patience left.
READ_S_MIN, WRITE_S_MIN = 1.0, 3.0
#: Key of the advisory lock under which the tables are created: "RWSL" in ASCII, as the application id of an SQLite ledger.
MIGRATION_LOCK = 0x5257534C
#: SQLSTATE of CREATE TABLE if a table of that name exists.
DUPLICATE_TABLE = "42P07"
#: What to do about most errors.
_REPAIR = "The rows it holds aren't lost. Repair the database, this role's rights or the network, or name another ledger."
#: SQLSTATE of a table that isn't there, and what to do then.
UNDEFINED_TABLE = "42P01"
_TABLES_GONE = (
    "The ledger's tables were there and are gone: they were dropped, or this is another database or schema. Bring them back, or "
    "make a new session: it begins a new ledger, which knows nothing of what was paid."
)

#: Tables that only a PostgreSQL ledger has, besides those of `MIGRATIONS`: the schema's version, and the numbers of transactions.
_TABLES = (
    "CREATE TABLE routeweiler_ledger (version INTEGER NOT NULL)",
    "CREATE TABLE routeweiler_writers (writer TEXT PRIMARY KEY, serial BIGINT NOT NULL, seen_at TIMESTAMPTZ NOT NULL)",
    "INSERT INTO routeweiler_ledger (version) VALUES (0)",
)

#: Pools inherited from a parent process. Kept here, so that a child neither uses nor closes their connections.
_inherited: list[Pool] = []


class PostgresStore:
    """A ledger in the database at ``url`` (libpq's URI). Its tables are created on first use. See `ledger.store.Store`.

    A password in the URL stays in this process: the property `url` is without it.

    Raises: LedgerError for a URL that can't be read.
    """

    def __init__(self, url: str) -> None:
        self._address = read_url(url)
        self._pool = Pool()
        self._history = History(url=self._address.url)

    @property
    def url(self) -> str:
        """The URI that was given, without passwords."""
        return self._address.url

    def exists(self) -> bool:
        """Return whether the tables exist, in this release's version or an older one.

        Raises: LedgerError if the server can't be reached.
        """
        return self.version() > 0

    def version(self) -> int:
        """Return the schema version of the tables, 0 if there are none. Migrates nothing.

        Raises: LedgerError if the server can't be reached, or a newer release wrote the ledger.
        """
        pool = self._pool_here()
        if not pool.met:
            with self._as_ledger_error(), self._turn(pool, _wait(READ_S_MIN)) as (wait, guard):
                link = Link.open(self._address, wait_s=wait.left_s())
                guard.watch(link)
                try:
                    version = self._version(link.connection)
                finally:
                    link.connection.close()
            pool.met = version == SCHEMA_VERSION
            return version
        return SCHEMA_VERSION

    def is_archive(self) -> bool:
        """Return False: an archive is a file."""
        return False

    def known(self) -> Known:
        """Return what a copy of this store must find in the database. Contains no secrets; may be pickled."""
        return self._history.known()

    def expect(self, known: Any) -> None:
        """Refuse a database that lacks what another store of it has committed: see `known`."""
        self._history.expect(known)

    def run(self, work: Callable[[Transaction], T], *, durable: bool = True, binding: bool = False, restraining: bool = False) -> T:
        """Call ``work`` in a transaction and return its result. Try again if the transaction had no effect.

        It had none if the server undid it, or if the connection was lost before COMMIT.

        Every write transaction checks that the schema still has a known version; a ``binding`` one, that the database hasn't lost
        what this store has committed, unless it is ``restraining``.
        """
        import tenacity

        wait = _wait(WRITE_S_MIN)

        def once() -> T:
            with self._writing(durable, wait, binding=binding and not restraining) as tx:
                return work(tx)

        # Its objects refer to each other. If they referred to this store too, a dropped one would keep its connections for a while.
        here: Any = weakref.proxy(self)
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(lambda error: PostgresStore._may_be_run_again(here, error)),
            wait=tenacity.wait_random_exponential(multiplier=0.02, max=1.0),
            sleep=wait.pause,
            stop=lambda state: wait.passed,
            reraise=True,
        )
        with self._as_ledger_error():
            return retries.run(retrying, once)

    @contextlib.contextmanager
    def transaction(self, *, durable: bool = True, binding: bool = False) -> Iterator[PostgresTransaction]:
        """Begin a write transaction, commit it at the end of the block. It is tried once only; see `run`."""
        with self._as_ledger_error(), self._writing(durable, _wait(WRITE_S_MIN), binding=binding) as tx:
            yield tx

    @contextlib.contextmanager
    def read(self, *, long: bool = False) -> Iterator[PostgresTransaction]:
        """Begin a read transaction (REPEATABLE READ, READ ONLY): every statement sees the database as of one moment.

        ``long``: not all of it together may take as long as a transaction may, but each statement.
        """
        guards: list[Guard] = []
        with self._as_ledger_error(), self._begun(Link.begin_reading, _wait(READ_S_MIN), guards) as link:
            yield PostgresTransaction(link.connection, guards[0].again if long else None)
            link.connection.execute("COMMIT")

    def vacuum(self) -> None:
        """Make the room of removed rows free for new ones, and renew the planner's statistics. Nobody waits for it.

        The server does both by itself in time (autovacuum). Files don't get smaller.
        """
        with self._as_ledger_error():
            link = Link.open(self._address, wait_s=PATIENCE_S)
            try:
                self._make_tables(link.connection)
                for table in ("payments", "archived_payments", "archived_sums", "spends", "routeweiler_writers"):
                    link.connection.execute(f"VACUUM (ANALYZE) {table}".encode())
            finally:
                link.connection.close()

    def ask(self, sql: str, parameters: Sequence[object] = ()) -> list[Mapping[str, Any]]:
        """Run one SELECT and return its rows: one round trip, because a statement alone needs no transaction around it."""
        rows: list[Mapping[str, Any]] = []

        def run(link: Link) -> None:
            rows[:] = PostgresTransaction(link.connection).execute(sql, parameters)

        with self._as_ledger_error(), self._begun(run, _wait(READ_S_MIN)):
            return rows

    def close(self) -> None:
        """Close this process's connections. The next use opens new ones."""
        with changing:
            pool, self._pool = self._pool_here(), Pool()
        pool.closed = True
        pool.empty()

    # -- transactions -----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _writing(self, durable: bool, wait: LedgerWait, *, binding: bool) -> Iterator[PostgresTransaction]:
        with self._begun(lambda link: link.begin_writing(durable, self._history, binding=binding), wait) as link:
            tx = PostgresTransaction(link.connection)
            yield tx
            self._commit(link, tx)
            if durable:
                self._history.note(link)

    def _commit(self, link: Link, tx: PostgresTransaction) -> None:
        try:
            done = link.commit(tx.deferred)
        except driver().Error as error:
            if link.is_lost(error):
                link.connection.close()
                if self._was_committed(link, error):
                    return
            problem = clean(error)
        else:
            if done == "COMMIT":
                return
            problem = self._error("the server answered COMMIT with ROLLBACK")
        raise problem  # outside of the except block, as in `PostgresTransaction.execute`

    def _was_committed(self, lost: Link, loss: psycopg.Error) -> bool:
        """Return whether the transaction of the ``lost`` link was committed. ``loss`` is the error that COMMIT raised.

        Raises: LedgerError if that can't be asked within `PATIENCE_S`.
        """
        import tenacity

        wait = _wait(WRITE_S_MIN)

        def ask() -> bool:
            with Guard(_limit_s(wait))() as guard:
                link = Link.open(self._address, wait_s=wait.left_s())
                guard.watch(link)
                try:
                    return link.was_committed(lost)
                finally:
                    link.connection.close()

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(driver().Error),
            wait=tenacity.wait_random_exponential(multiplier=0.05, max=1.0),
            sleep=wait.pause,
            stop=lambda state: wait.passed,
            reraise=True,
        )
        try:
            return retries.run(retrying, ask)
        except driver().Error as error:
            problem = clean(error, self._address.secrets)
        raise LedgerError(
            f"The connection to the ledger {self.url} was lost during a commit, and whether it was committed can't be asked: "
            f"{problem}.",
            advice="Call again when the database is back: the next call finds what was written.",
        ) from clean(loss, self._address.secrets)

    @contextlib.contextmanager
    def _begun(self, begin: Callable[[Link], None], wait: LedgerWait, guards: list[Guard] | None = None) -> Iterator[Link]:
        """Yield a link on which ``begin`` has begun a transaction. Roll back if the block raises. Add its guard to ``guards``."""
        pool = self._pool_here()
        with self._turn(pool, wait) as (wait, guard):
            if guards is not None:
                guards.append(guard)
            link = self._start(pool, begin, guard, wait)
            try:
                yield link
            except BaseException as error:
                if pool.is_mine:  # otherwise this is a forked child, and the transaction is its parent's
                    link.undo(error)
                raise
            finally:
                if pool.is_mine:
                    pool.give(link)

    def _start(self, pool: Pool, begin: Callable[[Link], None], guard: Guard, wait: LedgerWait) -> Link:
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
                pool.empty()  # the server was restarted, or the network has changed: the others are lost too
                if guard.is_over:  # the server doesn't answer at all, and has had its time
                    raise
        link = Link.open(self._address, wait_s=wait.left_s())
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
        """Create the tables, or migrate them to this version, unless that is done. The first process does it, others wait for it.

        Raises: LedgerError if the schema has tables of the same names from another program.
        """
        if self._version(connection) == SCHEMA_VERSION:
            return
        connection.execute(f"{BEGIN_WRITING}SELECT pg_advisory_xact_lock({MIGRATION_LOCK})".encode())
        version = self._version(connection)
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
            connection.execute(f"UPDATE routeweiler_ledger SET version = {SCHEMA_VERSION}".encode())  # noqa: S608  (constants)
            connection.execute("COMMIT")
            return
        raise LedgerError(
            f"The schema at {self.url} holds tables of another program that have the names of the ledger's ({problem}).",
            advice="The schema wasn't changed. Give the ledger a schema of its own: …?options=-csearch_path%3Drouteweiler.",
        )

    def _version(self, connection: Connection) -> int:
        """Return the schema version of the ledger, 0 if there is no ledger.

        Raises: LedgerError for a ledger that a newer release has written, and if the server, or a pooler before it, hasn't set the
        search_path that the URL asks for: the schema would be another, and so the budget.
        """
        (here,) = connection.execute(  # not to_regclass(): it may not see yet what another connection has just created
            "SELECT current_setting('search_path') AS path, EXISTS (SELECT FROM pg_catalog.pg_class "
            "JOIN pg_catalog.pg_namespace ON pg_namespace.oid = relnamespace "
            "WHERE relname = 'routeweiler_ledger' AND nspname = current_schema()) AS found"
        ).fetchall()
        asked = search_path_in(connection.pgconn.options.decode())
        if asked is not None and split_path(asked) != split_path(here["path"]):
            raise LedgerError(
                f"The ledger {self.url} can't be used: its URL asks for the search_path {asked}, and the server has "
                f"{here['path']}. A pooler such as PgBouncer drops this parameter.",
                advice="Set it for the role: ALTER ROLE … IN DATABASE … SET search_path = …, and leave it out of the URL.",
            )
        return known_version(connection.execute("SELECT version FROM routeweiler_ledger").fetchall()) if here["found"] else 0

    # -- this process -----------------------------------------------------------------------------------------------------

    def _pool_here(self) -> Pool:
        if not self._pool.is_mine:
            with changing:
                if not self._pool.is_mine:
                    _inherited.append(self._pool)
                    self._pool = Pool()
        return self._pool

    @contextlib.contextmanager
    def _turn(self, pool: Pool, wait: LedgerWait) -> Iterator[tuple[LedgerWait, Guard]]:
        """Let this thread use one connection in the block, whose guard is yielded with ``wait``.

        Raises: LedgerError if no connection becomes free in time. At once if this thread is in such a block already, in the middle
        of which a signal handler, a finalizer or a callback uses the ledger: the locks that its outer transaction has would be
        waited for, and are never released.
        """
        here = (os.getpid(), self.url)
        standing = _here.turns.get(here)
        if standing is not None and standing() is not None:
            raise LedgerError(
                f"The ledger {self.url} is in the middle of a transaction of this same thread, which was interrupted by a signal "
                "handler, a finalizer or a callback.",
                advice="The interrupted transaction goes on undisturbed. Call again when it has ended: let the handler set a flag, "
                "or hand the work to another thread.",
            )
        this_turn = _Turn()
        try:
            _here.turns[here] = weakref.ref(this_turn)
            with self._slot(pool, wait), Guard(_limit_s(wait))() as guard:
                yield wait, guard
        finally:
            wait.end()
            del this_turn

    @contextlib.contextmanager
    def _slot(self, pool: Pool, wait: LedgerWait) -> Iterator[None]:
        try:
            pool.slots.get(timeout=wait.left_s())
        except queue.Empty:
            raise self._error(
                f"all {MAX_CONNECTIONS} connections of this process have been busy for {wait.allowed_s:.0f} s"
            ) from None
        try:
            yield
        finally:
            pool.slots.put(None)

    # -- errors -----------------------------------------------------------------------------------------------------------

    def _may_be_run_again(self, error: BaseException) -> bool:
        if not isinstance(error, driver().Error):
            return False
        # A server that this process has never reached isn't restarting: it is down, or its name is wrong. A standby at a URL under
        # which nothing was ever written isn't about to take over: the URL is wrong. Fail at once.
        if error.sqlstate in STANDBY:
            return bool(self._history.commits)
        return error.sqlstate in AGAIN or (is_loss(error) and self._pool_here().met)

    @contextlib.contextmanager
    def _as_ledger_error(self) -> Iterator[None]:
        errors = (driver().Error, OSError, OverflowError, UnicodeError)
        try:
            yield
        except RouteweilerError:  # is an OSError too, as every requests.RequestException is
            raise
        except errors as error:
            problem = clean(error, self._address.secrets)
            gone = getattr(error, "sqlstate", None) == UNDEFINED_TABLE and self._pool_here().met
            raise self._error(str(problem), _TABLES_GONE if gone else _REPAIR) from problem

    def _error(self, why: str, advice: str = _REPAIR) -> LedgerError:
        return LedgerError(f"The ledger {self.url} can't be used: {why}.", advice=advice)


def _wait(least_s: float) -> LedgerWait:
    return LedgerWait(PATIENCE_S, least_s=least_s)


def _limit_s(wait: LedgerWait) -> float:
    """Return how long a transaction may take until its connection is cut."""
    return min(connections.TRANSACTION_LIMIT_S, max(READ_S_MIN, wait.left_s()))


class _Turn:
    """Stands for a thread's use of a connection. A weak reference to it is dead once that has ended, however it ended."""


class _Here(threading.local):
    def __init__(self) -> None:
        #: The turn of this thread on each ledger, by process and URL: a child forked in the middle of one has its own connections.
        self.turns: dict[tuple[int, str], weakref.ref[_Turn]] = {}


_here = _Here()


class PostgresTransaction:
    """A `routeweiler_sync.ledger.store.Transaction` on a PostgreSQL connection.

    Deferred statements are sent before the next one, in the same message. Each of them sees what was committed until it began, as
    if it had been sent alone.
    """

    def __init__(self, connection: Connection, before: Callable[[], None] | None = None) -> None:
        self._connection = connection
        self._before = before
        #: Statements to be sent with the next one, or with the commit.
        self.deferred: list[bytes] = []

    def execute(self, sql: str, parameters: Sequence[object] = ()) -> list[Mapping[str, Any]]:
        """Run one statement. Return its rows, each by column name."""
        if self._before is not None:
            self._before()
        try:
            if self.deferred:
                statements, self.deferred = [*self.deferred, self._with_values(sql, parameters)], []
                cursor = send(self._connection, statements)
            else:
                cursor = self._connection.execute(_translated(sql, len(parameters)), tuple(parameters))
            return [*cursor.fetchall()] if has_rows(cursor) else []
        except driver().Error as error:
            problem = clean(error)
        raise problem  # outside of the except block: its error would be in the traceback, and shows whole rows

    def defer(self, sql: str, parameters: Sequence[object] = ()) -> None:
        """Run one statement whose rows nobody needs, in the same message as the next one."""
        self.deferred.append(self._with_values(sql, parameters))

    def _with_values(self, sql: str, parameters: Sequence[object]) -> bytes:
        """Return ``sql`` with ``parameters`` as literals: a message with several statements can't have parameters."""
        cursor = driver().ClientCursor(self._connection)
        text: str = cursor.mogrify(_translated(sql, len(parameters)), tuple(parameters))
        return text.encode()


@functools.lru_cache(maxsize=256)
def _translated(sql: str, parameters: int) -> bytes:
    """Return ``sql``, which has ``?`` for each of its ``parameters``, with psycopg's placeholder ``%s`` instead."""
    assert "%" not in sql, sql
    assert sql.count("?") == parameters, sql
    return sql.replace("?", "%s").encode()
