"""What the ledger needs of a database (`Store`, `Transaction`), and the schema of its tables with all migrations.

The stores are `sqlite.SqliteStore` and `postgres.store.PostgresStore`. The statements that they run come from `ledger.ledger`,
`readings`, `lookups`, `envelopes` and `snapshot`.

SQL is written once, in a dialect that every backend must understand, if need be after a translation of its own:

- ``?`` for a parameter, and no ``%`` in a statement; columns are TEXT, INTEGER (0 or 1 for a truth) and BIGINT (64 bits);
- ``INSERT … ON CONFLICT DO NOTHING`` or ``DO UPDATE SET … excluded.…``, ``INSERT``, ``UPDATE … RETURNING *``;
- partial indexes, unique ones too (``CREATE UNIQUE INDEX … WHERE state IN (…)``), CHECK, composite primary keys;
- ``SELECT … UNION ALL SELECT …`` of subqueries that have an ``ORDER BY … LIMIT`` of their own;
- ``(a, b) > (?, ?)``, ``COALESCE``, ``CASE WHEN``, ``CAST(… AS BIGINT)``, ``SUM``, ``EXISTS``, subqueries,
  ``ORDER BY … LIMIT ? OFFSET ?``.

An ``UPDATE``, or a ``SELECT … FOR UPDATE``, locks the rows that it finds until the transaction ends, against all
other writers. It sees them as the last of those has left them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

#: The end of a SELECT that locks its rows. A database whose write transactions wait for each other anyway leaves it out.
FOR_UPDATE = " FOR UPDATE"

#: The newest version in `MIGRATIONS`. A ledger with a higher version was written by a newer release.
SCHEMA_VERSION = 7

#: By version: the statements that bring a ledger from the version before to this one. An entry is never edited once it is released;
#: new ones are appended. Columns of ``payments`` that have another name in `PaymentRow` are listed in `rows.COLUMN_NAMES`.
MIGRATIONS: dict[int, tuple[str, ...]] = {
    1: (
        """
        CREATE TABLE envelopes (
            id               TEXT PRIMARY KEY,
            limits           TEXT NOT NULL,
            currency         TEXT NOT NULL,
            granted_at_ms    BIGINT,
            frozen           INTEGER NOT NULL DEFAULT 0,
            reserved_micro   BIGINT NOT NULL DEFAULT 0 CHECK (reserved_micro >= 0),
            settled_micro    BIGINT NOT NULL DEFAULT 0 CHECK (settled_micro >= 0),
            grant_base_micro BIGINT NOT NULL DEFAULT 0
        )
        """,
        """
        CREATE TABLE spends (
            envelope_id TEXT NOT NULL,
            bucket      BIGINT NOT NULL,
            micro       BIGINT NOT NULL,
            PRIMARY KEY (envelope_id, bucket)
        )
        """,
        """
        CREATE TABLE payments (
            payment_hash     TEXT PRIMARY KEY,
            origin           TEXT NOT NULL,
            scope            TEXT NOT NULL,
            path             TEXT NOT NULL,
            target           TEXT NOT NULL DEFAULT '',
            state            TEXT NOT NULL CHECK (state IN ('open', 'failed', 'settled', 'retired', 'dead')),
            node_pubkey      TEXT NOT NULL,
            network          TEXT NOT NULL,
            bolt11           TEXT NOT NULL,
            scheme           TEXT NOT NULL,
            token            TEXT NOT NULL,
            preimage         TEXT,
            amount_msat      BIGINT NOT NULL CHECK (amount_msat > 0),
            max_fee_msat     BIGINT NOT NULL CHECK (max_fee_msat >= 0),
            fee_msat         BIGINT NOT NULL DEFAULT 0,
            envelope_id      TEXT,
            currency         TEXT,
            btc_price        TEXT,
            rate_quality     TEXT,
            reserved_micro   BIGINT NOT NULL DEFAULT 0 CHECK (reserved_micro >= 0),
            settled_micro    BIGINT NOT NULL DEFAULT 0,
            sends_ever       INTEGER NOT NULL DEFAULT 0,
            sends_unanswered INTEGER NOT NULL DEFAULT 0 CHECK (sends_unanswered >= 0),
            valid_until      BIGINT,
            taken            INTEGER NOT NULL DEFAULT 0,
            told             INTEGER NOT NULL DEFAULT 0,
            failure_code     TEXT,
            failure_text     TEXT,
            created_at_ms    BIGINT NOT NULL,
            settled_at_ms    BIGINT
        )
        """,
        # One unfinished purchase or one live token for each (origin, scope). The database enforces it, so no process can buy twice.
        """
        CREATE UNIQUE INDEX payments_one_live_per_scope ON payments (origin, scope)
            WHERE state IN ('open', 'failed', 'settled')
        """,
        "CREATE INDEX payments_unfinished ON payments (created_at_ms) WHERE state IN ('open', 'failed')",
        "CREATE INDEX payments_abandoned ON payments (created_at_ms) WHERE state = 'dead' AND failure_code = 'abandoned'",
        "CREATE INDEX payments_untold ON payments (created_at_ms) WHERE told = 0 AND settled_at_ms IS NOT NULL",
        # A token that the server has refused for one page may still be accepted for another: `Ledger.retired` finds it before
        # anything is bought again. Ordered by age too, because a page that is bought every hour has thousands of them.
        """
        CREATE INDEX payments_refused ON payments (origin, scope, target, created_at_ms)
            WHERE state = 'retired' AND taken = 1 AND failure_code = 'refused' AND preimage IS NOT NULL
        """,
        # Tokens that no server has accepted yet: `Ledger.unserved` finds them, and nothing else is bought for their resource.
        """
        CREATE INDEX payments_unserved ON payments (origin, target, created_at_ms)
            WHERE state = 'settled' AND taken = 0 AND preimage IS NOT NULL
        """,
        # The scope that each path is known to need, so that a token can be sent with the first request.
        """
        CREATE TABLE learned_paths (
            origin TEXT NOT NULL,
            path   TEXT NOT NULL,
            scope  TEXT NOT NULL,
            PRIMARY KEY (origin, path)
        )
        """,
    ),
    2: (
        # Which call reports a settled payment to the trace, and until when nobody else does: see `Ledger.claim_report`.
        "ALTER TABLE payments ADD COLUMN claimant TEXT",
        "ALTER TABLE payments ADD COLUMN claimed_until_ms BIGINT",
        # Version 1 allowed several such rows for one page. The oldest keeps the page; the others stay, each for a page of its own.
        """
        UPDATE payments SET target = target || ' ' || payment_hash
            WHERE target <> '' AND (state IN ('open', 'failed') OR (state = 'settled' AND taken = 0))
            AND EXISTS (SELECT 1 FROM payments AS older
                WHERE older.origin = payments.origin AND older.target = payments.target
                AND (older.state IN ('open', 'failed') OR (older.state = 'settled' AND older.taken = 0))
                AND (older.created_at_ms < payments.created_at_ms
                    OR (older.created_at_ms = payments.created_at_ms AND older.payment_hash < payments.payment_hash)))
        """,
        # One page, one purchase: while a payment for a page is unfinished, or its token was never accepted, nothing else is bought
        # for the page, whatever scope the server names. The database enforces it, as it does for scopes.
        "DROP INDEX payments_unserved",
        """
        CREATE UNIQUE INDEX payments_one_standing_per_page ON payments (origin, target)
            WHERE target <> '' AND (state IN ('open', 'failed') OR (state = 'settled' AND taken = 0))
        """,
        # Tokens that were bought for a page: `Ledger.page_tokens` finds them before anything is bought again. Ordered by age too,
        # because a page that is bought every hour has thousands of them.
        "DROP INDEX payments_refused",
        """
        CREATE INDEX payments_of_page ON payments (origin, target, created_at_ms)
            WHERE preimage IS NOT NULL AND state IN ('settled', 'retired')
        """,
        # All payments by age: `Ledger.payments` reads them page by page, and no page may cost more than the one before.
        "CREATE INDEX payments_by_age ON payments (created_at_ms, payment_hash)",
        # The few rows that something is still to be done about, in the same order: else that index would be read for them too.
        "DROP INDEX payments_unfinished",
        "DROP INDEX payments_abandoned",
        "DROP INDEX payments_untold",
        "CREATE INDEX payments_unfinished ON payments (created_at_ms, payment_hash) WHERE state IN ('open', 'failed')",
        "CREATE INDEX payments_abandoned ON payments (created_at_ms, payment_hash) "
        "WHERE state = 'dead' AND failure_code = 'abandoned'",
        "CREATE INDEX payments_untold ON payments (created_at_ms, payment_hash) WHERE told = 0 AND settled_at_ms IS NOT NULL",
    ),
    3: (
        # Live tokens by age: `Ledger.newest_accepted` finds the one that may open a further page of an origin.
        "CREATE INDEX payments_live_by_age ON payments (origin, created_at_ms) WHERE state = 'settled' AND preimage IS NOT NULL",
        # Paid tokens that the server has refused or not delivered for: nothing more is bought at an origin that accepts none.
        """
        CREATE INDEX payments_undelivered ON payments (origin)
            WHERE state = 'settled' AND taken = 0 AND failure_code IN ('refused', 'undelivered')
        """,
        # How often in a row a token of the origin has served once and was then refused: see `Ledger.note_used_up`.
        """
        CREATE TABLE origins (
            origin           TEXT PRIMARY KEY,
            used_up_in_a_row INTEGER NOT NULL DEFAULT 0
        )
        """,
    ),
    4: (
        # Statuses that an origin's application answers with itself, whatever the token: see `Ledger.note_own_error`.
        """
        CREATE TABLE own_errors (
            origin      TEXT NOT NULL,
            status      INTEGER NOT NULL,
            noted_at_ms BIGINT NOT NULL,
            PRIMARY KEY (origin, status)
        )
        """,
        # Whether an origin has ever accepted a token: `Ledger.undelivered` asks, and must not read all that was bought.
        "CREATE INDEX payments_accepted ON payments (origin) WHERE taken >= 1",
        # Live tokens by age, without those that were never accepted: `Ledger.newest_accepted` must find one among many.
        "DROP INDEX payments_live_by_age",
        """
        CREATE INDEX payments_serving_by_age ON payments (origin, created_at_ms, payment_hash)
            WHERE state = 'settled' AND preimage IS NOT NULL AND taken >= 1
        """,
    ),
    5: (
        # What was spent, by origin: `spending.read` sums it up from this index alone, without the wide rows.
        """
        CREATE INDEX payments_spent ON payments (origin, settled_at_ms, amount_msat, fee_msat) WHERE settled_at_ms IS NOT NULL
        """,
    ),
    6: (
        # Charges: payments whose credential opens one request, once. Two calls may each pay for the same request, so nothing about
        # them is unique but the payment hash. Which call presents a charge, and until when no other does: `Ledger.claim_charge`.
        "ALTER TABLE payments ADD COLUMN single_use INTEGER NOT NULL DEFAULT 0",
        "ALTER TABLE payments ADD COLUMN presenter TEXT",
        "ALTER TABLE payments ADD COLUMN presented_until_ms BIGINT",
        "DROP INDEX payments_one_live_per_scope",
        """
        CREATE UNIQUE INDEX payments_one_live_per_scope ON payments (origin, scope)
            WHERE state IN ('open', 'failed', 'settled') AND single_use = 0
        """,
        "DROP INDEX payments_one_standing_per_page",
        """
        CREATE UNIQUE INDEX payments_one_standing_per_page ON payments (origin, target)
            WHERE target <> '' AND single_use = 0 AND (state IN ('open', 'failed') OR (state = 'settled' AND taken = 0))
        """,
        # Charges that are paid, or may be, and have opened nothing yet: `Ledger.owed` finds them before anything is bought.
        """
        CREATE INDEX payments_owed ON payments (origin, target, created_at_ms)
            WHERE single_use = 1 AND state IN ('open', 'failed', 'settled')
        """,
        # Payments that ended without a final word of their wallet: `Ledger.abandoned` finds them among all that have ended.
        "CREATE INDEX payments_outlived ON payments (created_at_ms, payment_hash) "
        "WHERE state = 'dead' AND failure_code = 'outlived'",
    ),
    7: (
        # When the payment was retired or dead, for rows that have ended since this version: `Ledger.archive` goes by it.
        "ALTER TABLE payments ADD COLUMN ended_at_ms BIGINT",
        # Which payments were moved to an archive, by the first 64 bits of their hashes (`archive.key_of`): none is ever paid again.
        "CREATE TABLE archived_payments (hash_begin BIGINT PRIMARY KEY)",
        # What they add up to, so that `Ledger.spending`, the audit and `Ledger.undelivered` still know it. '': of no envelope.
        """
        CREATE TABLE archived_sums (
            origin             TEXT NOT NULL,
            envelope_id        TEXT NOT NULL,
            payments           BIGINT NOT NULL,
            paid               BIGINT NOT NULL,
            accepted           BIGINT NOT NULL,
            amount_msat        BIGINT NOT NULL,
            fee_msat           BIGINT NOT NULL,
            settled_micro      BIGINT NOT NULL,
            last_settled_at_ms BIGINT NOT NULL,
            PRIMARY KEY (origin, envelope_id)
        )
        """,
        # A page that is bought every hour has thousands of tokens. `Ledger.page_tokens` reads the newest that may serve again, and
        # no others: not those that the user has forgotten, or that were never accepted.
        "DROP INDEX payments_of_page",
        """
        CREATE INDEX payments_of_page ON payments (origin, target, created_at_ms)
            WHERE preimage IS NOT NULL AND single_use = 0 AND state IN ('settled', 'retired')
            AND (taken >= 1 OR failure_code = 'abandoned') AND COALESCE(failure_code, '') <> 'forgotten'
        """,
        # The newest live one: every purchase asks for it, and must not read all those that have been retired since.
        """
        CREATE INDEX payments_live_of_page ON payments (origin, target, created_at_ms)
            WHERE preimage IS NOT NULL AND single_use = 0 AND state = 'settled'
        """,
        # What was bought for a path, newest last: a session asks for the token of the path that it is about to request.
        """
        CREATE INDEX payments_live_of_path ON payments (origin, path, created_at_ms)
            WHERE state IN ('open', 'failed', 'settled') AND single_use = 0
        """,
        # Without charges that an answer may have used up, of which there may be any number; refused ones first.
        "DROP INDEX payments_undelivered",
        """
        CREATE INDEX payments_undelivered ON payments (origin, failure_code)
            WHERE state = 'settled' AND taken = 0 AND failure_code IN ('refused', 'undelivered')
            AND (single_use = 0 OR failure_text = 'refused by the server when it was first presented')
        """,
    ),
}


class Transaction(Protocol):
    """A transaction in progress."""

    def execute(self, sql: str, parameters: Sequence[object] = ()) -> list[Mapping[str, Any]]:
        """Run one statement. Return the rows of a SELECT or RETURNING, each by column name; else an empty list."""

    def defer(self, sql: str, parameters: Sequence[object] = ()) -> None:
        """Run one statement whose rows nobody needs, together with the next `execute` or the commit: it costs no round trip."""


class Store(Protocol):
    """A database that holds a ledger."""

    @property
    def url(self) -> str:
        """The database's URL without passwords. The same for every `Store` of one database on this machine."""

    def exists(self) -> bool:
        """Return whether there may be a ledger already. Cheap, and creates nothing."""

    def version(self) -> int:
        """Return the schema version of the ledger that is there, 0 if there is none or that can't be seen. Changes nothing."""

    def is_archive(self) -> bool:
        """Return whether it is an archive, which is only read: see `ledger.archive`. Changes nothing."""

    def transaction(self, *, durable: bool = True, binding: bool = False) -> AbstractContextManager[Transaction]:
        """Begin a read-write transaction that commits at the end of the block.

        No other writer changes the rows that it has touched.

        ``durable=True``: the commit is on disk when the block ends. With False, a power cut may undo the transaction; nothing else
        can.

        ``binding=True``: money may follow from this transaction, so other processes and later runs must be able to find what it
        wrote. It is refused if the database is no longer the one that was opened (deleted, replaced), or if a newer release has
        migrated it. A transaction that ends a payment isn't binding: it belongs in the database that holds the row, whatever has
        become of that.

        Raises: LedgerError. If COMMIT itself failed, only reading again shows whether the transaction was committed.
        """

    def known(self) -> object:
        """Return what `expect` of a copy of this store is to be given, None if nothing. Contains no secrets; may be pickled."""

    def expect(self, known: Any) -> None:
        """Refuse a binding transaction, from now on, if the database lacks what another store of it has ``known`` to be there."""

    def run(self, work: Callable[[Transaction], T], *, durable: bool = True, binding: bool = False, restraining: bool = False) -> T:
        """Call ``work`` in a `transaction` and return its result.

        ``restraining``: after it less can be spent, never more. So it is also made, as long as others find what it wrote, in a
        database that has lost rows, when others may still spend there.

        If the database undoes the transaction in favour of another one, it is tried again. So ``work`` may be called several times,
        and must have no effect except through its transaction.

        Raises: LedgerError, and whatever ``work`` raises.
        """

    def read(self, *, long: bool = False) -> AbstractContextManager[Transaction]:
        """Begin a read-only transaction: every statement sees the database as of one moment. It never waits for a writer.

        ``long``: it may take minutes, with many statements that each take a moment.

        Raises: LedgerError.
        """

    def ask(self, sql: str, parameters: Sequence[object] = ()) -> list[Mapping[str, Any]]:
        """Run one SELECT, which sees the database as of one moment, and return its rows. It never waits for a writer.

        Raises: LedgerError.
        """

    def vacuum(self) -> None:
        """Make the room of removed rows free again, as far as the database can while others use it. Outside of a transaction.

        Raises: LedgerError.
        """

    def close(self) -> None:
        """Close this process's connections. The next transaction opens new ones. May be called twice."""
