"""The ledger: budget envelopes with their running totals, and one row for each payment. Every write is one transaction.

This module knows how the two tables change together: opening a payment reserves its amount and highest fee in the envelope,
settling it turns the reservation into a spend and stores the preimage, ending it unpaid returns the reservation. It leaves to
others:

- what a wallet's reply means for a row: `payments.wallet_rules` decides that and passes a `Change` in;
- what an envelope's limits allow: `envelopes`;
- connections, transactions and locking in the database: `sqlite` and `postgres.store`, both a `store.Store`.

Limits are checked against running totals, never against sums over history, so a purchase doesn't get slower with the number of past
payments. Every transaction locks the envelope's row first and the payment's row second, so that no two transactions can deadlock.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import date, datetime, timedelta
from types import FunctionType
from typing import ClassVar

from .._core import env_vars
from .._core.forks import importing
from .._core.secret_text import problem_of_path, shown, without_secrets
from ..budgets.schema import SAFE_DEFAULT, BudgetEnvelope
from ..errors import (
    BudgetError,
    ChallengeMismatchError,
    LedgerError,
    PolicyDeniedError,
    RailNotSupportedError,
    RouteweilerError,
)
from . import archive, envelopes, spending
from .archive import Archived
from .charges import PRESENT_S, Charges
from .envelopes import Draw
from .lookups import Lookups, ask, free_charge_of, live_of, newest_live_of, of_invoice, standing_of
from .readings import Readings
from .rows import first, payment_of
from .server_facts import REFUSED, ServerFacts
from .store import Store, Transaction
from .types import UNFINISHED, UNTRACED, Change, EnvelopeRow, Intent, PaymentRow, PaymentState

#: For how long a claim to report a payment holds: longer than a call takes to load its page. Whoever dies before has not reported.
CLAIM_S = 900.0
#: How often `Ledger.open_payment` tries to insert a row. It tries again if the row that stood in the way has ended before it was
#: read.
MAX_INSERTS = 3
#: Failure code of a retired token that the user has forgotten by `Ledger.forget`. (`REFUSED`, if the server has refused it.)
FORGOTTEN = "forgotten"
#: The change to an unfinished row that the user abandons.
ABANDONED = Change(state=PaymentState.DEAD, failure_code="abandoned", failure_text="abandoned by the user")
#: Most bytes in the origin of a payment. It stands in an index beside two ids (`schema.MAX_ID_BYTES`), and only once the payment is
#: settled. PostgreSQL indexes nothing above 2704 bytes: what was paid couldn't be booked then.
MAX_ORIGIN_BYTES = 1_024
#: An error text stored in a row is cut to this many characters.
MAX_FAILURE_CHARS = 500


class Ledger(Readings, Lookups, ServerFacts, Charges):
    """The record of what may be spent and what was spent. `Ledger.open` makes one; sessions that name the same database share it.

    Raises: LedgerError from any method if the database can't be used.
    Money: the ledger never moves any. It only records.
    """

    #: For each ledger's url: the payment hashes (hex) whose tokens were forgotten in this process. See `forgotten`.
    _forgotten: ClassVar[dict[str, set[str]]] = {}

    def __init__(self, store: Store, *, clock: Callable[[], float] = time.time) -> None:
        super().__init__(store, clock=clock)

    @classmethod
    def open(cls, url: str | os.PathLike[str] | Ledger) -> Ledger:
        """Return the ledger that ``url`` names: a path, ``sqlite:///path`` or ``postgresql://…``. A `Ledger` is returned as it is.

        The database is neither opened nor created before the ledger is first used.

        Raises: LedgerError for a ``url`` that doesn't name a ledger.
        """
        from .postgres.url import SCHEMES, is_conninfo
        from .sqlite import SqliteStore

        if isinstance(url, Ledger):
            return url
        try:
            text = os.fsdecode(url)
        except TypeError:
            raise LedgerError(
                f"{shown(url)} doesn't name a ledger.", advice="Give a path, or a URL that begins with sqlite:/// or postgresql://."
            ) from None
        if text in ("", ":memory:"):
            raise LedgerError(
                f"{shown(text)} doesn't name a ledger: a ledger must outlive the process, or paid tokens are lost.",
                advice="Give a path.",
            )
        scheme, separator, rest = text.partition("://")
        if scheme in SCHEMES:
            with importing:  # users of SQLite don't need these modules
                from .postgres.store import PostgresStore

            return cls(PostgresStore(text))
        if not separator and is_conninfo(text):
            raise LedgerError(
                "The ledger is named in a form like host=… dbname=… or user:password@host, which isn't supported. (Not shown: it "
                "may hold a password.)",
                advice="Write postgresql://user:password@host/database. If it is the name of a file, put ./ in front of it.",
            )
        file = rest.lstrip("/") if scheme == "sqlite" else text
        if scheme not in SCHEMES and (problem := problem_of_path("The ledger", file)) is not None:
            raise LedgerError(f"{problem}.", advice=f"Name a file by ledger=… or {env_vars.LEDGER}.")
        if not separator and scheme.partition(":")[0] not in (*SCHEMES, "sqlite"):  # Path("sqlite:///x") has become "sqlite:/x"
            return cls(SqliteStore(text))
        if scheme == "sqlite" and rest.startswith("/") and len(rest) > 1:
            return cls(SqliteStore(rest[1:]))
        raise LedgerError(
            f"{without_secrets(scheme.partition(':')[0])}:… doesn't name a ledger.",
            advice="Give a path, sqlite:///relative.db, sqlite:////absolute.db or postgresql://user@host/database.",
        )

    def known(self) -> object:
        """Return what a copy of a session must find in this ledger, for its `expect`. Contains no secrets; may be pickled."""
        return self._store.known()

    def expect(self, known: object) -> None:
        """Refuse every purchase if the database lacks what another `Ledger` of it has `known`: a part of it was lost then."""
        if known is not None:
            self._store.expect(known)

    def close(self) -> None:
        """Close the database connections of this ledger. The ledger stays usable: its next use opens new ones."""
        self._store.close()

    # -- for users --------------------------------------------------------------------------------------------------------

    def archive(
        self,
        to: str | os.PathLike[str],
        *,
        before: datetime | date | timedelta,
        dry_run: bool = False,
        progress: Callable[[Archived], object] = lambda moved: None,
    ) -> Archived:
        """Move payments that ended before ``before`` to the archive ``to``, a file of mode 0600. Return what was moved.

        ``before`` has a form that `spending` takes, and is at least `archive.MIN_AGE_DAYS` days ago. Moved are payments that are
        retired or dead, and tokens that were used and whose own time was over then. All that is unfinished, in use, owed, not
        reported to a trace, or abandoned stays. ``to`` is a path or ``sqlite:///path``, for one ledger alone. The file is made, or
        gets more. It has the preimages, which prove the payments, and no tokens. ``Ledger.open`` reads it; nothing can be bought
        with it.

        Limits, totals and `spending` stay as they were, and no invoice of an archived payment is ever paid again. Others may use
        the ledger meanwhile: payments move in batches of `archive.BATCH_ROWS`. ``progress`` is called after each with what was
        moved so far. With ``dry_run``, nothing is moved: what would be is returned. A program that dies in the midst loses nothing:
        call again.

        Raises: ValueError for another ``before``; LedgerError, after which what was moved until then is in the archive.
        Money: none moves.
        """
        now_ms = int(self._clock() * 1000)
        before_ms = spending.ms_of(before, now_ms, "before")
        if before_ms is None:
            raise ValueError("before must be a time in the past, not None")
        archive.check_age(before_ms, now_ms)
        if not self.exists():
            return Archived()
        if dry_run:
            return archive.count(self._store, before_ms, now_ms)
        return archive.move(self._store, _archive_path(to), before_ms, now_ms, progress)

    def vacuum(self) -> None:
        """Make the room of archived payments free again.

        An SQLite file gets smaller. That takes free disk for two copies of what it still holds, and buyers wait meanwhile, which
        they do for 30 s at most. A PostgreSQL table keeps its size: its room is filled by new payments, and nobody waits.

        Raises: LedgerError; also if the disk has no room.
        """
        if self.exists():
            self._store.vacuum()

    def forget(self, payment_hash: str, *, abandon: bool = False) -> PaymentRow:
        """Stop offering the token of a payment, so that the next call may buy a new one. Return the changed row.

        The sessions of this process stop at once. A session of another process that has the token in memory goes on using it until
        the server refuses it or the session is replaced.

        ``abandon=True`` ends a payment whose outcome isn't known: its reservation is returned to the envelope, whatever the node
        may still do. Use it only if you know that the payment won't be made. A ledger has no wallet that it could ask: call
        ``session.recover()`` first, or use ``routeweiler-sync payments abandon``, which asks.

        Raises: LedgerError for an unknown ``payment_hash``, and for an unfinished payment without ``abandon``.
        Money: none moves. If the node makes an abandoned payment after all, it is a spend that the budget hadn't reserved;
        ``session.recover()`` records it.
        """

        def decide(row: PaymentRow) -> Change | None:
            if row.unfinished and not abandon:
                raise LedgerError(
                    f"Payment {payment_hash} is unfinished: it may still be made, so it wasn't forgotten. Nothing was changed.",
                    advice="Call session.recover(), or pass abandon=True if you know that it won't be made.",
                    shell_advice="Run routeweiler-sync payments recover; or, if you know that it won't be made, "
                    f"routeweiler-sync payments abandon {payment_hash}",
                    payment_hash=payment_hash,
                    spent=None,
                )
            if row.unfinished:
                return ABANDONED
            return _retirement(row, FORGOTTEN, "forgotten by the user")

        row = self.change(payment_hash, decide)
        self.forgotten.add(payment_hash)
        return row

    @property
    def forgotten(self) -> set[str]:
        """The payment hashes (hex) passed to `forget` in this process. All `Ledger` objects of one database share the set.

        Token caches look here, so that a token in memory isn't offered any more.
        """
        return self._forgotten.setdefault(self.url, set())

    def freeze(self, envelope_id: str) -> EnvelopeRow:
        """Refuse every further purchase from this envelope, in all sessions that share the ledger, until `thaw`. Return its row.

        A payment that is under way goes on, but its invoice isn't sent again. It can be done also where this session buys nothing
        more because the ledger has lost rows: others may still buy.

        Raises: EnvelopeNotFoundError if the ledger has no such envelope. The safe default is created if it isn't there yet.
        """
        return self._set_frozen(envelope_id, 1)

    def thaw(self, envelope_id: str) -> EnvelopeRow:
        """End a `freeze`: purchases from this envelope are allowed again. Return its row.

        Raises: EnvelopeNotFoundError if the ledger has no such envelope.
        """
        return self._set_frozen(envelope_id, 0)

    def set_limits(self, envelope_id: str, decide: Callable[[BudgetEnvelope | None], BudgetEnvelope]) -> EnvelopeRow:
        """Replace the limits of an envelope, or make the envelope, in one transaction. Return its row. Totals stay.

        ``decide`` is given the limits as they are, or None if there is no such envelope, and returns the new ones. It may be called
        several times. The limits hold from the next purchase on, in all sessions that name the envelope by its id. A session that
        is given a `BudgetEnvelope` with this id writes that one's limits at its next purchase. The envelope lies in the ``parent``
        of the limits that ``decide`` returns, or in none; that can't change once a payment has counted in it.

        Raises: BudgetError if the currency would change, because totals can't be converted; or if the parent can't be that one.
        EnvelopeNotFoundError if the ledger doesn't have the parent.
        """

        def work(tx: Transaction) -> EnvelopeRow:
            return envelopes.as_row(tx, envelopes.set_limits(tx, envelope_id, decide), self._clock())

        return self._store.run(work, binding=True)

    def _set_frozen(self, envelope_id: str, frozen: int) -> EnvelopeRow:
        def work(tx: Transaction) -> EnvelopeRow:
            if envelope_id == SAFE_DEFAULT.id:  # it must be possible to freeze it before anything was spent
                envelopes.make(tx, SAFE_DEFAULT)
            if not tx.execute("UPDATE envelopes SET frozen = ? WHERE id = ? RETURNING id", (frozen, envelope_id)):
                raise envelopes.not_found(envelope_id)
            return envelopes.one_row(tx, envelope_id, self._clock())

        return self._store.run(work, binding=True, restraining=bool(frozen))

    # -- for purchases ----------------------------------------------------------------------------------------------------

    def check_writable(self) -> None:
        """Begin and end a transaction as a purchase would, without writing a row.

        Raises: LedgerError if a purchase couldn't write.
        """
        self._store.run(lambda tx: None, binding=True)

    def open_payment(self, intent: Intent, draw: Draw | None) -> tuple[PaymentRow, bool]:
        """Reserve a payment within the limits and insert its row, in one transaction. Return the row and whether it is new.

        If the ledger already has a row of this invoice, a live or unfinished row of this scope, a row that stands for this page
        (`standing`), or a live token that has opened this page and isn't among ``intent.known_tokens``, return that row and change
        nothing. For a charge: if it has a row of this invoice, one that stands for this page, or a charge for the same request that
        no call presents. A new row already counts its first send: the caller may send the payment
        order once. The new row's ``max_fee_msat`` is the routing fee that fits under every limit: ``intent.fee_cap_msat`` or less.
        ``draw=None`` means that no budget applies.

        The limits of ``draw.envelope`` replace those in the ledger, even if the draw itself is then refused.

        Raises: BudgetExceededError, BudgetError (wrong currency), EnvelopeFrozenError, EnvelopeExpiredError, EnvelopeNotFoundError,
        PolicyDeniedError, RailNotSupportedError, LedgerError.
        Money: none moves here. After any of these errors nothing is reserved.
        """
        _check_origin(intent)
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
            raise opened  # only after the commit: a limit that this draw lowered must hold for other sessions too
        return opened

    def rehearse(self, intent: Intent, draw: Draw) -> tuple[int, EnvelopeRow]:
        """Return the routing fee limit, in msat, that `open_payment` would set, and the envelope as it is now. Nothing is written.

        Raises: as `open_payment`.
        Money: none moves, and none is reserved.
        """
        _check_origin(intent)
        now_s = self._clock()
        reading = self._store.read() if self._store.exists() else nullcontext(envelopes.NoTransaction())
        with reading as tx:
            chain = envelopes.found(tx, draw, now_s)
            max_fee_msat, _ = envelopes.fit(tx, chain, draw, intent, now_s)
            if archive.has_key(tx, intent.payment_hash):
                raise _archived_invoice(intent)
            return max_fee_msat, envelopes.as_row(tx, chain, now_s)

    def _open(self, tx: Transaction, intent: Intent, draw: Draw | None, now_s: float) -> tuple[PaymentRow, bool]:
        max_fee_msat, reserved_micro = intent.fee_cap_msat, 0
        chain: envelopes.Chain = []
        if draw is not None:
            chain = envelopes.locked(tx, draw, now_s)
            max_fee_msat, reserved_micro = envelopes.fit(tx, chain, draw, intent, now_s)
        for _ in range(MAX_INSERTS):
            rows = tx.execute(
                "INSERT INTO payments (payment_hash, origin, scope, path, state, node_pubkey, network, bolt11, scheme, token, "
                "amount_msat, max_fee_msat, envelope_id, currency, btc_price, rate_quality, reserved_micro, sends_ever, "
                "sends_unanswered, valid_until, created_at_ms, target, single_use, presenter, presented_until_ms, agent_id) "
                "SELECT ?, ?, ?, ?, 'open', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1, 1, ?, ?, ?, ?, ?, ?, ? "
                "WHERE NOT EXISTS (SELECT 1 FROM archived_payments WHERE hash_begin = ?) ON CONFLICT DO NOTHING RETURNING *",
                (
                    intent.payment_hash, intent.origin, intent.scope, intent.path, intent.node_pubkey, intent.network,
                    intent.bolt11, intent.scheme, intent.token, intent.amount_msat, max_fee_msat,
                    draw.envelope_id if draw else None,
                    draw.rate.currency if draw else None,
                    str(draw.rate.btc_price) if draw and draw.rate.btc_price is not None else None,
                    draw.rate.quality if draw else None,
                    reserved_micro, intent.valid_until, int(now_s * 1000), intent.resource_digest,
                    int(intent.single_use), intent.presenter,
                    None if intent.presenter is None else int((now_s + PRESENT_S) * 1000),
                    intent.agent_id or None,
                    archive.key_of(intent.payment_hash),
                ),
            )  # fmt: skip
            if rows:
                envelopes.reserve(tx, chain, reserved_micro, now_s)
                return payment_of(rows[0]), True
            # 1. This transaction looked for a row and found none.
            # 2. Another process inserted one and committed, so the insert above did nothing and nothing was reserved.
            # 3. The other process's row is used.
            standing = self._standing(tx, intent)
            if standing is not None:
                return standing, False
            if archive.has_key(tx, intent.payment_hash):
                raise _archived_invoice(intent)
            # 4. If that row has already ended, it no longer blocks a new one: insert again.
        raise LedgerError("The ledger refused to insert a new payment, and no existing row explains why.", advice="Call again.")

    def count_send(self, payment_hash: str, draw: Draw | None = None) -> PaymentRow | None:
        """Count one more send of an unfinished payment, before the order leaves. Return the row, or None if it has ended meanwhile.

        With ``draw``, the payment's amount and highest fee must fit under the limits of ``draw.envelope``, and are reserved there:
        a payment that another envelope has reserved moves, with its reservation. Without, nothing changes about the budget.

        Money: none moves here. The order may be sent only if a row is returned.
        Raises: EnvelopeFrozenError if the row's envelope is frozen; the errors of `open_payment` if the payment doesn't fit under
        the limits of ``draw``. Nothing is counted then.
        """
        now_s = self._clock()

        def work(tx: Transaction) -> PaymentRow | RouteweilerError | None:
            try:
                if draw is not None:
                    self._hold(tx, payment_hash, draw, now_s)
            except (BudgetError, PolicyDeniedError, RailNotSupportedError) as refusal:
                return refusal
            counted = first(
                tx.execute(
                    "UPDATE payments SET state = 'open', sends_ever = sends_ever + 1, "  # noqa: S608 - constants
                    "sends_unanswered = sends_unanswered + 1 "
                    "WHERE payment_hash = ? AND state IN ('open', 'failed') "
                    f"AND NOT EXISTS (SELECT 1 FROM envelopes WHERE frozen = 1 AND id IN {envelopes.CHAIN_OF_PAYMENT}) RETURNING *",
                    (payment_hash, payment_hash),
                )
            )
            if counted is None:
                row = first(tx.execute("SELECT * FROM payments WHERE payment_hash = ?", (payment_hash,)))
                if row is not None and row.unfinished:
                    raise envelopes.frozen(envelopes.frozen_of(tx, row.envelope_id or ""))
            return counted

        counted = self._store.run(work, binding=True)
        if isinstance(counted, RouteweilerError):
            raise counted  # only after the commit, as in `open_payment`
        return counted

    def _hold(self, tx: Transaction, payment_hash: str, draw: Draw, now_s: float) -> None:
        """Reserve an unfinished payment in the envelope of ``draw``, unless it is reserved there. See `count_send`."""
        seen = first(tx.execute("SELECT * FROM payments WHERE payment_hash = ?", (payment_hash,)))
        if seen is None or not seen.unfinished:
            return
        chain = envelopes.locked(tx, draw, now_s, also=seen.envelope_id)
        row = payment_of(tx.execute("SELECT * FROM payments WHERE payment_hash = ? FOR UPDATE", (payment_hash,))[0])
        if not row.unfinished:
            return
        if row.envelope_id not in (seen.envelope_id, draw.envelope_id):
            raise LedgerError(f"Another process moves payment {payment_hash} to another envelope.", advice="Call again.")
        reserved_in = set() if row.envelope_id is None else envelopes.ids_of(tx, row.envelope_id)
        reserve = envelopes.check_fits(tx, chain, draw, row, reserved_in, now_s)
        if row.envelope_id == draw.envelope_id:
            return
        if row.envelope_id is not None:
            envelopes.release(tx, row)
        envelopes.reserve(tx, chain, reserve, now_s)
        tx.execute(
            "UPDATE payments SET envelope_id = ?, currency = ?, btc_price = ?, rate_quality = ?, reserved_micro = ?, agent_id = ? "
            "WHERE payment_hash = ?",
            (
                draw.envelope_id,
                draw.rate.currency,
                None if draw.rate.btc_price is None else str(draw.rate.btc_price),
                draw.rate.quality,
                reserve,
                draw.agent_id or None,
                payment_hash,
            ),
        )

    def bring(self, envelope: BudgetEnvelope) -> None:
        """Write ``envelope``'s limits to the ledger, as a purchase from it would, so that they hold for all sessions.

        Money: none moves.
        """
        self._store.run(lambda tx: envelopes.bring(tx, envelope))

    def change(
        self,
        payment_hash: str,
        decide: Callable[[PaymentRow], Change | None],
        *,
        before_commit: Callable[[PaymentRow], None] = lambda row: None,
        claimant: str | None = None,
    ) -> PaymentRow:
        """Apply the change that ``decide`` returns for the current row, and what it means for the budget, in one transaction.

        Return the row as it is afterwards. ``decide`` gets the locked row and returns a `Change`, or None to change nothing. It
        must be pure: it is called again if the database had to restart the transaction.

        A change to SETTLED turns the reservation into a spend, fees included. It is possible from any state, because a wallet's
        reply that it has paid is always true. A change to DEAD returns the reservation. ``claimant`` claims to report a payment
        that this change settles, as `claim_report` does.

        ``before_commit`` is called with the row that ``decide`` got, after everything is written and before another transaction can
        see it. It may be called more than once, for the same reason as ``decide``.

        Raises: LedgerError for an unknown ``payment_hash``, and if the ledger can't be written.
        Money: none moves. Money that the wallet has paid is recorded.
        """

        def work(tx: Transaction) -> PaymentRow:
            envelopes.lock_of(tx, payment_hash)
            locked = tx.execute("SELECT * FROM payments WHERE payment_hash = ? FOR UPDATE", (payment_hash,))
            if not locked and _HASH.fullmatch(payment_hash) and archive.has_key(tx, payment_hash):
                raise archive.moved_error(payment_hash)
            if not locked:
                raise LedgerError(
                    f"The ledger has no payment {_shown_hash(payment_hash)}. Nothing was changed.",
                    advice="session.ledger.payments() lists all payments.",
                    shell_advice="To list all payments, run: routeweiler-sync payments list",
                )
            row = payment_of(locked[0], to_book=True)
            change = decide(row)
            after = row if change is None else self._book(tx, row, change, claimant)
            before_commit(row)
            return after

        return self._store.run(work)

    def retire(self, payment_hash: str) -> PaymentRow:
        """Mark a settled payment's token as refused by the server, for one page at least. Return the row.

        The token is no longer offered unasked. A payment in any other state isn't changed.
        """
        return self.change(payment_hash, lambda row: _retirement(row, REFUSED, "refused by the server"))

    def claim_report(self, payment_hash: str, claimant: str, *, instead_of: str | None = None) -> PaymentRow | None:
        """Claim to report a settled payment to the trace. Return its row, or None if it is reported or claimed by another.

        A claim holds for `CLAIM_S`, in which no other claimant gets it, in whatever process or machine. ``claimant`` may renew its
        own. ``instead_of`` is a claimant that is known to be dead: its claim is over.
        """
        now_ms = int(self._clock() * 1000)
        rows = self._store.run(
            lambda tx: tx.execute(
                "UPDATE payments SET claimant = ?, claimed_until_ms = ? WHERE payment_hash = ? AND told = 0 "
                "AND settled_at_ms IS NOT NULL "
                "AND (claimant IS NULL OR claimant = ? OR claimant = ? OR claimed_until_ms <= ?) RETURNING *",
                (claimant, now_ms + int(CLAIM_S * 1000), payment_hash, claimant, instead_of, now_ms),
            )
        )
        return first(rows)

    def release_report(self, payment_hash: str, claimant: str) -> None:
        """Give up ``claimant``'s claim to report a payment, which it couldn't report. Another's claim stays."""
        self._store.run(
            lambda tx: tx.execute(
                "UPDATE payments SET claimant = NULL, claimed_until_ms = NULL WHERE payment_hash = ? AND claimant = ?",
                (payment_hash, claimant),
            ),
            durable=False,
        )

    def mark(self, payment_hash: str, *, accepted: bool = False, reported: bool = False, traced: bool = True) -> None:
        """Record that the server accepted the token (``accepted``), or that a trace reported the payment (``reported``), or both.

        ``accepted`` for the second time, or a later one: the origin's tokens serve more than once (see `note_used_up`).
        ``traced=False``: the call has no trace, so no trace will ever report the payment, and none is to.

        Cheap: the write isn't forced to disk, so a power cut may undo it.
        """

        def work(tx: Transaction) -> None:
            tx.defer(
                "UPDATE payments SET "
                "taken = CASE WHEN ? = 1 THEN CASE WHEN taken >= 1 THEN 2 ELSE 1 END ELSE taken END, "
                "failure_text = CASE WHEN ? = 1 AND state = 'settled' AND failure_code IN ('refused', 'undelivered') THEN NULL "
                "ELSE failure_text END, "
                "failure_code = CASE WHEN ? = 1 AND state = 'settled' AND failure_code IN ('refused', 'undelivered') THEN NULL "
                "ELSE failure_code END, "
                "told = CASE WHEN told = 0 AND ? = 1 THEN ? ELSE told END WHERE payment_hash = ?",
                (int(accepted), int(accepted), int(accepted), int(reported), 1 if traced else UNTRACED, payment_hash),
            )
            if accepted:
                tx.defer(
                    "UPDATE origins SET used_up_in_a_row = 0 WHERE used_up_in_a_row > 0 "
                    "AND origin = (SELECT origin FROM payments WHERE payment_hash = ? AND taken > 1)",
                    (payment_hash,),
                )

        self._store.run(work, durable=False)

    # -- inside a transaction ---------------------------------------------------------------------------------------------

    def _standing(self, tx: Transaction, intent: Intent) -> PaymentRow | None:
        """Return the row that blocks a new one, or None.

        It has the same invoice, or is live or unfinished for the same scope, or stands for the same page, or has opened that page
        since the caller looked. For a charge: it has the same invoice, or stands for the same page, or is a charge for the same
        request that no call presents.
        """
        page = (intent.origin, intent.resource_digest)
        asked = {"same_invoice": of_invoice(intent.payment_hash)}
        if intent.single_use:
            asked |= {"free_charge": free_charge_of(*page, int(self._clock() * 1000)), "standing": standing_of(*page)}
        else:
            asked["live"] = live_of(intent.origin, intent.scope)
            if intent.resource_digest:
                asked |= {"standing": standing_of(*page), "newest": newest_live_of(*page)}
        found = ask(tx.execute, asked)
        standing = next((payment_of(row) for name in asked for row in found[name] if name != "newest"), None)
        newest = first(found.get("newest", []))
        if standing is None and newest is not None and newest.payment_hash not in intent.known_tokens:
            return newest
        return standing

    def _book(self, tx: Transaction, row: PaymentRow, change: Change, claimant: str | None) -> PaymentRow:
        """Write ``change`` to the row, and what it means for the envelope: a spend, or a returned reservation. Return the row."""
        state, values = change.state, self._failure(change)
        values["sends_unanswered"] = max(0, row.sends_unanswered - change.answered)
        now_s = self._clock()
        if state is PaymentState.SETTLED and row.settled_at is None:
            spent_micro = envelopes.spend(tx, row, change, now_s)
            values.update(reserved_micro=0, settled_micro=spent_micro, fee_msat=change.fee_msat, settled_at_ms=int(now_s * 1000))
            if change.preimage is not None:
                if hashlib.sha256(change.preimage).hexdigest() != row.payment_hash:
                    raise AssertionError("the preimage doesn't match the payment hash; callers must check it first")
                values["preimage"] = change.preimage.hex()
            if claimant is not None:
                values.update(claimant=claimant, claimed_until_ms=int((now_s + CLAIM_S) * 1000))
            if not row.unfinished and self._is_superseded(tx, row):
                # The user abandoned this payment, another one was begun for the scope or page, and then the node paid this one.
                state = PaymentState.RETIRED
        elif state is PaymentState.DEAD and row.reserved_micro:
            envelopes.release(tx, row)
            values["reserved_micro"] = 0
        values["state"] = state.value
        if state in (PaymentState.RETIRED, PaymentState.DEAD) and state is not row.state:
            values["ended_at_ms"] = int(now_s * 1000)
        assignments = ", ".join(f"{name} = ?" for name in values)
        rows = tx.execute(
            f"UPDATE payments SET {assignments} WHERE payment_hash = ? RETURNING *",  # noqa: S608  (column names from this module)
            (*values.values(), row.payment_hash),
        )
        return payment_of(rows[0], to_book=True)

    def _is_superseded(self, tx: Transaction, row: PaymentRow) -> bool:
        """Return whether another row is live for the scope of ``row``, or stands for its page. Never for a charge."""
        if row.single_use:
            return False
        asked = {"live": live_of(row.origin, row.scope), "standing": standing_of(row.origin, row.resource_digest)}
        others = [payment_of(other) for rows in ask(tx.execute, asked).values() for other in rows]
        return any(other.payment_hash != row.payment_hash for other in others)

    def _failure(self, change: Change) -> dict[str, object]:
        if change.failure_code is None:
            return {}
        return {"failure_code": change.failure_code, "failure_text": (change.failure_text or "")[:MAX_FAILURE_CHARS]}


def _check_origin(intent: Intent) -> None:
    """Refuse a server whose payments couldn't be booked. Raises: LedgerError."""
    if len(intent.origin.encode()) > MAX_ORIGIN_BYTES:
        raise LedgerError(
            f"The name of the server has more than {MAX_ORIGIN_BYTES} bytes, and its payments couldn't be kept.",
            advice="Name the server by a shorter host name.",
        )


def _retirement(row: PaymentRow, code: str, text: str) -> Change | None:
    if row.state is not PaymentState.SETTLED:
        return None
    return Change(state=PaymentState.RETIRED, failure_code=code, failure_text=text)


def _archive_path(to: str | os.PathLike[str]) -> os.PathLike[str]:
    """Return the file that ``to`` names, as `Ledger.open` reads names.

    Raises: LedgerError if it names none.
    """
    from .sqlite import SqliteStore

    store = Ledger.open(to)._store
    if isinstance(store, SqliteStore):
        return store.path
    raise LedgerError("An archive is a file, not a PostgreSQL database. Nothing was moved.", advice="Give a path.")


def _archived_invoice(intent: Intent) -> ChallengeMismatchError:
    """Return the error for a server that repeats the invoice of a payment that was moved to an archive."""
    return ChallengeMismatchError(
        f"{intent.origin} offers invoice {intent.payment_hash}, whose payment ended long ago and was moved to an archive: paying "
        "it again would buy nothing.",
        advice="Call again. If the error repeats, report this to the server's operator; the archive has the proof of payment.",
    )


for _part in (Readings, Lookups, ServerFacts, Charges):  # a TypeError names the class that users know
    for _name, _function in vars(_part).items():
        if isinstance(_function, FunctionType):
            _function.__qualname__ = f"{Ledger.__name__}.{_name}"

_HASH = re.compile(r"[0-9a-f]{64}")


def _shown_hash(payment_hash: object) -> str:
    """Return ``payment_hash`` for a text, unless it has another form: a token or preimage may have been given in its place."""
    text = str(payment_hash)
    return text if _HASH.fullmatch(text) else shown(payment_hash)


assert ([state.value for state in UNFINISHED], REFUSED) == (["open", "failed"], "refused")  # the SQL above repeats these values
