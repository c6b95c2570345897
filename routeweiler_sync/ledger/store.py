"""What the ledger needs of a database, and the schema it keeps there.

SQL is written once, in the subset that SQLite and PostgreSQL share, with ``?`` for a parameter. A `Store` gives transactions;
what is done in them is `routeweiler_sync.ledger.ledger`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

#: Number of the newest step in `MIGRATIONS`; a ledger with a higher one was written by a newer version.
SCHEMA_VERSION = 1

#: Each entry brings a ledger from the version before it to its own. Never edited once released; new ones are appended.
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
        # The single flight: one purchase, or one live token, per need. No process can get around it.
        """
        CREATE UNIQUE INDEX payments_one_live_per_scope ON payments (origin, scope)
            WHERE state IN ('open', 'failed', 'settled')
        """,
        "CREATE INDEX payments_unfinished ON payments (created_at_ms) WHERE state IN ('open', 'failed')",
        "CREATE INDEX payments_abandoned ON payments (created_at_ms) WHERE state = 'dead' AND failure_code = 'abandoned'",
        "CREATE INDEX payments_untold ON payments (created_at_ms) WHERE told = 0 AND settled_at_ms IS NOT NULL",
        # Tokens that a server has refused for one thing may still be taken for another: looked for before anything is bought again.
        # By age too, for a page that is bought every hour has thousands of them.
        """
        CREATE INDEX payments_refused ON payments (origin, scope, target, created_at_ms)
            WHERE state = 'retired' AND taken = 1 AND failure_code = 'refused' AND preimage IS NOT NULL
        """,
        # Tokens that no server has taken yet: nothing more is bought for what they were bought for.
        """
        CREATE INDEX payments_unserved ON payments (origin, target, created_at_ms)
            WHERE state = 'settled' AND taken = 0 AND preimage IS NOT NULL
        """,
        # Which scope a path was seen to need, so that a token goes along unasked.
        """
        CREATE TABLE learned_paths (
            origin TEXT NOT NULL,
            path   TEXT NOT NULL,
            scope  TEXT NOT NULL,
            PRIMARY KEY (origin, path)
        )
        """,
    ),
}


class Transaction(Protocol):
    """A transaction under way."""

    def execute(self, sql: str, parameters: Sequence[object] = ()) -> list[Mapping[str, Any]]:
        """Run one statement; the rows that it gives (of a SELECT or a RETURNING), by column name."""


class Store(Protocol):
    """A database that holds a ledger."""

    @property
    def url(self) -> str:
        """Names the database without secrets: the same for every opener of the same ledger on this machine."""

    def exists(self) -> bool:
        """Whether there may be a ledger already; cheap, and creates nothing."""

    def transaction(self, *, durable: bool = True, binding: bool = False) -> AbstractContextManager[Transaction]:
        """A read-write transaction, alone among writers of the rows it touches; commits at the end of the block.

        ``durable``: the commit is on disk when the block ends. Without it a power cut may undo the transaction, nothing else.
        ``binding``: money may follow from it, so it is refused where others, or a later run, wouldn't find it: the database is
        no longer the one that was opened, or a newer version has taken it over. What ends a payment isn't: the row's own
        database is the only place for it. Raises LedgerError; after a COMMIT that failed, only a new look tells what is there.
        """

    def run(self, work: Callable[[Transaction], T], *, durable: bool = True, binding: bool = False) -> T:
        """What ``work`` returns, done in a `transaction`; run again where the database undid it for the sake of others.

        ``work`` therefore does nothing but through its transaction. Raises LedgerError, and what ``work`` raises.
        """

    def read(self) -> AbstractContextManager[Transaction]:
        """A read-only transaction: one consistent sight. Waits for no writer. Raises LedgerError."""

    def close(self) -> None:
        """Close; the next transaction opens anew. May be called twice."""
