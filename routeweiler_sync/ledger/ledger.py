"""The ledger: envelopes with their running totals, and one row for each payment. Every write is one transaction.

What a word of the node means for a row isn't decided here but in `routeweiler_sync.payments.wallet_rules`, which hands in a
`Change`; the ledger books it: reservation, spend, token, in one transaction. Limits are checked against running totals, never
against sums over history. In every transaction the envelope's row is locked first, then the payment's: no two can deadlock.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import Any, ClassVar

from .._core.forks import importing
from .._core.money import Rate
from ..budgets.schema import SAFE_DEFAULT, BudgetEnvelope
from ..errors import BudgetError, EnvelopeFrozenError, LedgerError, PolicyDeniedError, RailNotSupportedError, RouteweilerError
from . import envelopes, snapshot
from .envelopes import Draw, moment
from .snapshot import LedgerSnapshot
from .store import Store, Transaction
from .types import UNFINISHED, Change, EnvelopeRow, Intent, PaymentRow, PaymentState

#: Most paths that are remembered for one origin.
MAX_LEARNED_PATHS = 1_000
#: Most live rows of an origin that are given at once: a session that meets an origin mustn't read all that was ever bought there.
MAX_LIVE = 1_000
#: Rows read at a time by `Ledger.payments`.
PAGE_ROWS = 500
#: A new row is tried so often, each time that the one in its way has ended before it could be looked at.
MAX_INSERTS = 3
#: Why a token is no longer offered: the server refused it, or the user said so.
REFUSED, FORGOTTEN = "refused", "forgotten"
#: Columns whose names in `PaymentRow` are others. (The columns are older, and stay.)
COLUMN_NAMES = {"taken": "accepted", "told": "reported", "target": "resource_digest"}
#: An error text kept in a row is cut at this length.
MAX_FAILURE_CHARS = 500


class Ledger:
    """The record of what may be and was spent. `Ledger.open` makes one; sessions that name the same ledger share it.

    Never moves money itself. Errors: LedgerError where the database can't be used.
    """

    #: By url of a ledger, the payment hashes whose tokens this process was told to `forget`.
    _forgotten: ClassVar[dict[str, set[str]]] = {}

    def __init__(self, store: Store, *, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock

    @classmethod
    def open(cls, url: str | os.PathLike[str] | Ledger) -> Ledger:
        """The ledger at ``url``: a path, ``sqlite:///path`` or ``postgresql://…``. Nothing is read or made before the first use."""
        from .postgres.url import SCHEMES, is_conninfo
        from .sqlite import SqliteStore

        if isinstance(url, Ledger):
            return url
        try:
            text = os.fspath(url)
        except TypeError:
            raise LedgerError(f"{url!r} doesn't name a ledger.", advice="Give a path, sqlite:///… or postgresql://…") from None
        if text in ("", ":memory:"):
            raise LedgerError(
                f"{text!r} doesn't name a ledger: it must outlive the process, or paid tokens are lost.", advice="Give a path."
            )
        scheme, separator, rest = text.partition("://")
        if scheme in SCHEMES:
            with importing:  # only who has such a ledger pays for the import
                from .postgres.store import PostgresStore

            return cls(PostgresStore(text))
        if not separator and is_conninfo(text):
            raise LedgerError(
                "The ledger is named in libpq's form, host=… dbname=… (not shown here: it may hold a password).",
                advice="Write postgresql://user:password@host/database; or, if it is a file's name, ./ in front of it.",
            )
        if not separator and scheme.partition(":")[0] not in (*SCHEMES, "sqlite"):  # a pathlib.Path of a URL isn't a path
            return cls(SqliteStore(text))
        if scheme == "sqlite" and rest.startswith("/") and len(rest) > 1:
            return cls(SqliteStore(rest[1:]))
        raise LedgerError(
            f"{scheme.partition(':')[0]}:… doesn't name a ledger.",
            advice="Give a path, sqlite:///relative.db, sqlite:////absolute.db or postgresql://user@host/database.",
        )

    @property
    def url(self) -> str:
        """Names the ledger, free of secrets."""
        return self._store.url

    def __repr__(self) -> str:
        return f"Ledger({self.url!r})"

    def exists(self) -> bool:
        """Whether the ledger has been made already. Creates nothing."""
        return self._store.exists()

    def close(self) -> None:
        """Close the connection. The ledger may be used again; it then opens anew."""
        self._store.close()

    # -- what a user asks -------------------------------------------------------------------------------------------------

    def payments(self, *, state: PaymentState | str | None = None, origin: str | None = None) -> Iterator[PaymentRow]:
        """All payments, oldest first, or those of one state or origin."""
        wanted = None if state is None else PaymentState(state).value
        after: tuple[int, str] = (-1, "")
        while True:
            with self._store.read() as tx:
                rows = tx.execute(
                    "SELECT * FROM payments WHERE (created_at_ms > ? OR (created_at_ms = ? AND payment_hash > ?)) "
                    "AND state = COALESCE(?, state) AND origin = COALESCE(?, origin) "
                    "ORDER BY created_at_ms, payment_hash LIMIT ?",
                    (after[0], after[0], after[1], wanted, origin, PAGE_ROWS),
                )
            for row in rows:
                yield _payment(row)
            if len(rows) < PAGE_ROWS:
                return
            after = (rows[-1]["created_at_ms"], rows[-1]["payment_hash"])

    def payment(self, payment_hash: str) -> PaymentRow | None:
        """The row of ``payment_hash`` (hex), or None."""
        with self._store.read() as tx:
            return _first(tx.execute("SELECT * FROM payments WHERE payment_hash = ?", (payment_hash,)))

    def envelopes(self) -> Iterator[EnvelopeRow]:
        """All envelopes, by id."""
        with self._store.read() as tx:
            rows = tx.execute("SELECT * FROM envelopes ORDER BY id")
            return iter([envelopes.as_row(tx, row, self._clock()) for row in rows])

    def envelope(self, id: str) -> EnvelopeRow:
        """The envelope ``id``; EnvelopeNotFoundError."""
        with self._store.read() as tx:
            rows = tx.execute("SELECT * FROM envelopes WHERE id = ?", (id,))
            if not rows:
                raise envelopes.not_found(id)
            return envelopes.as_row(tx, rows[0], self._clock())

    def snapshot(self) -> LedgerSnapshot:
        """Every figure of the ledger at one moment, for `routeweiler_sync.audit`. All of it in memory, tokens left out."""
        with self._store.read() as tx:
            return snapshot.read(tx)

    def forget(self, payment_hash: str, *, abandon: bool = False) -> PaymentRow:
        """Stop offering the token of a payment; the next call may buy a new one.

        The sessions of this process stop at once; one of another process that has the token in memory goes on until the server
        refuses it, or the session is made anew.

        ``abandon=True`` ends an unfinished row in so many words: its reservation returns, whatever the node may still do. Use it
        only for a payment of which you know that it won't be made. Raises LedgerError for an unknown hash, or for an unfinished
        row without ``abandon``. No money moves.
        """

        def decide(row: PaymentRow) -> Change | None:
            if row.unfinished and not abandon:
                raise LedgerError(
                    f"Payment {payment_hash} is unfinished: it may still be made, so it can't be forgotten, and nothing was changed.",
                    advice="Call session.recover(), or pass abandon=True if you know that it won't be made.",
                    payment_hash=payment_hash,
                    spent=None,
                )
            if row.unfinished:
                return Change(state=PaymentState.DEAD, failure_code="abandoned", failure_text="abandoned by the user")
            return _retirement(row, FORGOTTEN, "forgotten by the user")

        row = self.change(payment_hash, decide)
        self.forgotten.add(payment_hash)
        return row

    @property
    def forgotten(self) -> set[str]:
        """The payment hashes (hex) whose tokens this process was told to `forget`: one set for all openers of the ledger."""
        return self._forgotten.setdefault(self.url, set())

    def freeze(self, envelope_id: str) -> EnvelopeRow:
        """Refuse every further purchase from this envelope, in all sessions that share the ledger, until `thaw`."""
        return self._set_frozen(envelope_id, 1)

    def thaw(self, envelope_id: str) -> EnvelopeRow:
        """End a `freeze`."""
        return self._set_frozen(envelope_id, 0)

    def _set_frozen(self, envelope_id: str, frozen: int) -> EnvelopeRow:
        def work(tx: Transaction) -> EnvelopeRow:
            if envelope_id == SAFE_DEFAULT.id:  # it is there before anything has been spent
                envelopes.make(tx, SAFE_DEFAULT)
            rows = tx.execute("UPDATE envelopes SET frozen = ? WHERE id = ? RETURNING *", (frozen, envelope_id))
            if not rows:
                raise envelopes.not_found(envelope_id)
            return envelopes.as_row(tx, rows[0], self._clock())

        return self._store.run(work, binding=True)

    # -- what a purchase asks ---------------------------------------------------------------------------------------------

    def live(self, origin: str, scope: str | None = None) -> list[PaymentRow]:
        """Rows of ``origin`` (and ``scope``) that hold a live token or an unfinished purchase; at most one a scope.

        Of an origin with more than `MAX_LIVE` scopes that many, the first by name: the others' are to be asked for by scope.
        """
        with self._store.read() as tx:
            return self._live(tx, origin, scope)

    def unfinished(self) -> list[PaymentRow]:
        """All rows whose outcome isn't known, oldest first."""
        with self._store.read() as tx:
            rows = tx.execute("SELECT * FROM payments WHERE state IN ('open', 'failed') ORDER BY created_at_ms, payment_hash")
        return [_payment(row) for row in rows]

    def abandoned(self) -> list[PaymentRow]:
        """Rows that the user has ended by `forget`, oldest first: if the node pays one after all, it is money that was spent."""
        with self._store.read() as tx:
            rows = tx.execute(
                "SELECT * FROM payments WHERE state = 'dead' AND failure_code = 'abandoned' ORDER BY created_at_ms, payment_hash"
            )
        return [_payment(row) for row in rows]

    def unreported(self) -> list[PaymentRow]:
        """Settled payments that no trace has told of: their call ended in a crash."""
        with self._store.read() as tx:
            rows = tx.execute(
                "SELECT * FROM payments WHERE told = 0 AND settled_at_ms IS NOT NULL ORDER BY created_at_ms, payment_hash"
            )
        return [_payment(row) for row in rows]

    def open_payment(self, intent: Intent, draw: Draw | None) -> tuple[PaymentRow, bool]:
        """Reserve within the limits and write the intent down, in one transaction. The row, and whether it is new.

        Where the ledger has a row of this invoice, or a live one of this scope, that row is given and nothing is changed. A new
        row counts its first send already: the caller may send the order once. ``max_fee_msat`` of the row is the fee limit that
        fits: ``intent.fee_cap_msat`` or less. Raises BudgetExceededError, EnvelopeFrozenError, EnvelopeExpiredError,
        EnvelopeNotFoundError, LedgerError: nothing spent. Limits that the draw brings hold from then on, even if it is refused.
        """
        now_s = self._clock()

        def work(tx: Transaction) -> tuple[PaymentRow, bool] | RouteweilerError:
            standing = self._standing(tx, intent)
            if standing is not None:
                return standing, False
            try:
                return self._open(tx, intent, draw, now_s)
            except (BudgetError, PolicyDeniedError, RailNotSupportedError) as refusal:
                return refusal

        opened = self._store.run(work, binding=True)
        if isinstance(opened, RouteweilerError):
            raise opened  # behind the commit: a limit that was lowered holds for the others too
        return opened

    def _open(self, tx: Transaction, intent: Intent, draw: Draw | None, now_s: float) -> tuple[PaymentRow, bool]:
        max_fee_msat, reserved_micro = intent.fee_cap_msat, 0
        envelope = None
        if draw is not None:
            envelope = envelopes.locked(tx, draw, now_s)
            max_fee_msat, reserved_micro = envelopes.fit(tx, envelope, draw, intent, now_s)
        for _ in range(MAX_INSERTS):
            rows = tx.execute(
                "INSERT INTO payments (payment_hash, origin, scope, path, state, node_pubkey, network, bolt11, scheme, token, "
                "amount_msat, max_fee_msat, envelope_id, currency, btc_price, rate_quality, reserved_micro, sends_ever, "
                "sends_unanswered, valid_until, created_at_ms, target) "
                "VALUES (?, ?, ?, ?, 'open', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1, 1, ?, ?, ?) ON CONFLICT DO NOTHING RETURNING *",
                (
                    intent.payment_hash, intent.origin, intent.scope, intent.path, intent.node_pubkey, intent.network,
                    intent.bolt11, intent.scheme, intent.token, intent.amount_msat, max_fee_msat,
                    envelope["id"] if envelope else None,
                    draw.rate.currency if draw else None,
                    str(draw.rate.btc_price) if draw and draw.rate.btc_price is not None else None,
                    draw.rate.quality if draw else None,
                    reserved_micro, intent.valid_until, int(now_s * 1000), intent.resource_digest,
                ),
            )  # fmt: skip
            if rows:
                if envelope:
                    tx.execute(
                        "UPDATE envelopes SET reserved_micro = reserved_micro + ?, granted_at_ms = ?, grant_base_micro = ? "
                        "WHERE id = ?",
                        (reserved_micro, envelope["granted_at_ms"], envelope["grant_base_micro"], envelope["id"]),
                    )
                return _payment(rows[0]), True
            # Another machine was first, between our look and our insert: nothing is reserved, its row is used.
            standing = self._standing(tx, intent)
            if standing is not None:
                return standing, False
            # And by now that row has ended: it no longer stands in the way.
        raise LedgerError("The ledger refused a new payment without a row that explains it.", advice="Call again.")

    def count_send(self, payment_hash: str) -> PaymentRow | None:
        """Count one more send of an unfinished row, before it leaves; None where the row has ended meanwhile.

        EnvelopeFrozenError where the row's envelope is frozen: nothing is counted, and nothing may be sent.
        """

        def work(tx: Transaction) -> PaymentRow | None:
            counted = _first(
                tx.execute(
                    "UPDATE payments SET state = 'open', sends_ever = sends_ever + 1, sends_unanswered = sends_unanswered + 1 "
                    "WHERE payment_hash = ? AND state IN ('open', 'failed') "
                    "AND NOT EXISTS (SELECT 1 FROM envelopes WHERE id = payments.envelope_id AND frozen = 1) RETURNING *",
                    (payment_hash,),
                )
            )
            if counted is None:
                row = _first(tx.execute("SELECT * FROM payments WHERE payment_hash = ?", (payment_hash,)))
                if row is not None and row.unfinished:
                    raise EnvelopeFrozenError(f"Envelope {row.envelope_id!r} is frozen.", advice="")
            return counted

        return self._store.run(work, binding=True)

    def bring(self, envelope: BudgetEnvelope) -> None:
        """Make ``envelope``'s limits those that hold, as a purchase that draws on it does. No money moves."""
        self._store.run(lambda tx: envelopes.bring(tx, envelope))

    def change(
        self,
        payment_hash: str,
        decide: Callable[[PaymentRow], Change | None],
        *,
        before_commit: Callable[[PaymentRow], None] = lambda row: None,
    ) -> PaymentRow:
        """Change a row as ``decide`` says of what the row is at this moment, and book the money that follows, in one transaction.

        ``decide`` is pure, and may be asked again where the database had to begin anew; None changes nothing. The step to SETTLED
        (from whatever state: the wallet's word that it paid is the truth) turns the reservation into a spend, fees included; the
        step to DEAD returns it. ``before_commit`` is called with the row as ``decide`` saw it, when all is written and nothing is
        visible to others yet; it may be called again, too.

        Raises: LedgerError for an unknown hash or a ledger that can't be used.
        """

        def work(tx: Transaction) -> PaymentRow:
            seen = _first(tx.execute("SELECT * FROM payments WHERE payment_hash = ?", (payment_hash,)))
            if seen is None:
                raise LedgerError(
                    f"The ledger has no payment {payment_hash}; nothing was changed.", advice="See Ledger.payments()."
                )
            if seen.envelope_id is not None:
                tx.execute("UPDATE envelopes SET frozen = frozen WHERE id = ?", (seen.envelope_id,))
            locked = tx.execute("UPDATE payments SET state = state WHERE payment_hash = ? RETURNING *", (payment_hash,))
            row = _payment(locked[0])
            change = decide(row)
            after = row if change is None else self._book(tx, row, change)
            before_commit(row)
            return after

        return self._store.run(work)

    def retire(self, payment_hash: str) -> PaymentRow:
        """Note that the server no longer takes the token of a settled payment, for one thing at least."""
        return self.change(payment_hash, lambda row: _retirement(row, REFUSED, "refused by the server"))

    def retired(self, origin: str, scope: str, resource_digest: str) -> PaymentRow | None:
        """The latest payment for this very ``target`` whose token was taken once and refused later, maybe for something else."""
        with self._store.read() as tx:
            return _first(
                tx.execute(
                    "SELECT * FROM payments WHERE origin = ? AND scope = ? AND target = ? AND state = 'retired' "
                    "AND taken = 1 AND failure_code = 'refused' AND preimage IS NOT NULL ORDER BY created_at_ms DESC LIMIT 1",
                    (origin, scope, resource_digest),
                )
            )

    def unserved(self, origin: str, resource_digest: str) -> PaymentRow | None:
        """The earliest payment for this very ``target`` whose token, of whatever scope, is live and was never taken."""
        with self._store.read() as tx:
            return _first(
                tx.execute(
                    "SELECT * FROM payments WHERE origin = ? AND target = ? AND state = 'settled' "
                    "AND taken = 0 AND preimage IS NOT NULL ORDER BY created_at_ms LIMIT 1",
                    (origin, resource_digest),
                )
            )

    def mark(self, payment_hash: str, *, accepted: bool = False, reported: bool = False) -> None:
        """Note that the server has taken the token, that a trace has told of the payment. Cheap: not forced to disk."""
        self._store.run(
            lambda tx: tx.execute(
                "UPDATE payments SET taken = CASE WHEN ? = 1 THEN 1 ELSE taken END, told = CASE WHEN ? = 1 THEN 1 ELSE told END "
                "WHERE payment_hash = ?",
                (int(accepted), int(reported), payment_hash),
            ),
            durable=False,
        )

    def learn(self, origin: str, path: str, scope: str) -> None:
        """Remember that ``path`` needs a token of ``scope``. Cheap: not forced to disk."""

        def work(tx: Transaction) -> None:
            known = tx.execute("SELECT count(*) AS paths FROM learned_paths WHERE origin = ?", (origin,))[0]["paths"]
            if known >= MAX_LEARNED_PATHS:
                tx.execute("DELETE FROM learned_paths WHERE origin = ?", (origin,))
            tx.execute(
                "INSERT INTO learned_paths (origin, path, scope) VALUES (?, ?, ?) "
                "ON CONFLICT (origin, path) DO UPDATE SET scope = excluded.scope",
                (origin, path, scope),
            )

        self._store.run(work, durable=False)

    def learned(self, origin: str) -> dict[str, str]:
        """The scope of each path of ``origin`` that was seen to need one."""
        with self._store.read() as tx:
            rows = tx.execute("SELECT path, scope FROM learned_paths WHERE origin = ?", (origin,))
        return {row["path"]: row["scope"] for row in rows}

    # -- inside a transaction ---------------------------------------------------------------------------------------------

    def _live(self, tx: Transaction, origin: str, scope: str | None) -> list[PaymentRow]:
        live = "SELECT * FROM payments WHERE origin = ? AND state IN ('open', 'failed', 'settled') "
        if scope is None:
            rows = tx.execute(f"{live}ORDER BY scope LIMIT ?", (origin, MAX_LIVE))
        else:
            rows = tx.execute(f"{live}AND scope = ?", (origin, scope))
        return [_payment(row) for row in rows]

    def _standing(self, tx: Transaction, intent: Intent) -> PaymentRow | None:
        """The row that stands in the way of a new one: of the same invoice, or a live one of the same scope."""
        same = _first(tx.execute("SELECT * FROM payments WHERE payment_hash = ?", (intent.payment_hash,)))
        if same is not None:
            return same
        live = self._live(tx, intent.origin, intent.scope)
        return live[0] if live else None

    def _book(self, tx: Transaction, row: PaymentRow, change: Change) -> PaymentRow:
        """Write ``change`` and what follows from it for the money."""
        state, values = change.state, self._failure(change)
        values["sends_unanswered"] = max(0, row.sends_unanswered - change.answered)
        now_s = self._clock()
        if state is PaymentState.SETTLED and row.settled_at is None:
            spent_micro = envelopes.spend(tx, row, change, now_s)
            values.update(reserved_micro=0, settled_micro=spent_micro, fee_msat=change.fee_msat, settled_at_ms=int(now_s * 1000))
            if change.preimage is not None:
                if hashlib.sha256(change.preimage).hexdigest() != row.payment_hash:
                    raise AssertionError("a preimage that doesn't fit its payment hash never gets as far as the ledger")
                values["preimage"] = change.preimage.hex()
            if not row.unfinished and any(r.payment_hash != row.payment_hash for r in self._live(tx, row.origin, row.scope)):
                state = PaymentState.RETIRED  # abandoned, then paid after all; another purchase has taken its place
        elif state is PaymentState.DEAD and row.reserved_micro:
            tx.execute(
                "UPDATE envelopes SET reserved_micro = reserved_micro - ? WHERE id = ?", (row.reserved_micro, row.envelope_id)
            )
            values["reserved_micro"] = 0
        values["state"] = state.value
        assignments = ", ".join(f"{name} = ?" for name in values)
        rows = tx.execute(
            f"UPDATE payments SET {assignments} WHERE payment_hash = ? RETURNING *",  # noqa: S608  (names are ours)
            (*values.values(), row.payment_hash),
        )
        return _payment(rows[0])

    def _failure(self, change: Change) -> dict[str, object]:
        if change.failure_code is None:
            return {}
        return {"failure_code": change.failure_code, "failure_text": (change.failure_text or "")[:MAX_FAILURE_CHARS]}


def _retirement(row: PaymentRow, code: str, text: str) -> Change | None:
    if row.state is not PaymentState.SETTLED:
        return None
    return Change(state=PaymentState.RETIRED, failure_code=code, failure_text=text)


def _first(rows: list[Mapping[str, Any]]) -> PaymentRow | None:
    return _payment(rows[0]) if rows else None


def _payment(row: Mapping[str, Any]) -> PaymentRow:
    values = dict(row)
    try:
        values["created_at"] = moment(values.pop("created_at_ms"))
        settled_ms = values.pop("settled_at_ms")
        values["settled_at"] = None if settled_ms is None else moment(settled_ms)
        values["state"] = PaymentState(values["state"])
        values["btc_price"] = None if values["btc_price"] is None else Decimal(values["btc_price"])
        for column, name in COLUMN_NAMES.items():
            values[name] = values.pop(column)
        values["accepted"], values["reported"] = bool(values["accepted"]), bool(values["reported"])
        preimage = values["preimage"]
        if preimage is not None and hashlib.sha256(bytes.fromhex(preimage)).hexdigest() != values["payment_hash"]:
            raise ValueError("preimage")
        if values["currency"] is not None:
            Rate(currency=values["currency"], btc_price=values["btc_price"])
        return PaymentRow(**values)
    except (ValueError, TypeError, ArithmeticError, OSError):  # from None: their words may hold what the row holds
        raise LedgerError(
            f"The ledger's row {row['payment_hash']} is damaged (a preimage that doesn't fit, a value that can't be).",
            advice="Restore the ledger, or upgrade if a newer version wrote it; the node still knows the preimage.",
            payment_hash=str(row["payment_hash"]),
        ) from None


assert ([state.value for state in UNFINISHED], REFUSED) == (["open", "failed"], "refused")  # the SQL above says the same
