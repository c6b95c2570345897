"""The ledger: envelopes with their running totals, and one row for each payment. Every write is one transaction.

What a word of the node means for a row isn't decided here but in `routeweiler_sync.purchase`, which hands in a `Change`; the
ledger books it: reservation, spend, token, in one transaction. Limits are checked against running totals, never against sums
over history. In every transaction the envelope's row is locked first, then the payment's: no two can deadlock.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any

from ..errors import (
    BudgetError,
    BudgetExceededError,
    EnvelopeExpiredError,
    EnvelopeFrozenError,
    EnvelopeNotFoundError,
    LedgerError,
)
from .money import Rate, minor_units, sats
from .schema import DAY_S, HOUR_S, SAFE_DEFAULT, UNFINISHED, BudgetEnvelope, Change, EnvelopeRow, Intent, PaymentRow, PaymentState
from .store import Store, Transaction

#: Spends are counted in buckets of five minutes: a window may count a spend that much longer than itself, never shorter.
BUCKET_S = 300
#: Most paths that are remembered for one origin.
MAX_LEARNED_PATHS = 1_000
#: Totals stay below what a signed 64-bit column holds.
MAX_TOTAL_MICRO = 2**62
#: Rows read at a time by `Ledger.payments`.
PAGE_ROWS = 500
#: Why a token is no longer offered: the server refused it, or the user said so.
REFUSED, FORGOTTEN = "refused", "forgotten"
#: An error text kept in a row is cut at this length.
MAX_FAILURE_CHARS = 500


@dataclass(frozen=True, kw_only=True)
class Draw:
    """What a purchase draws on: an envelope (or the id of one that the ledger holds) at a rate of this moment.

    ``spent_in_call_msat``: what the same call has paid already, on the hops before. ``session_started_s``: when the session was
    made, unix seconds; an envelope whose grant ended before that is granted anew.
    """

    envelope: BudgetEnvelope | str
    rate: Rate
    session_started_s: float
    spent_in_call_msat: int = 0


class Ledger:
    """The record of what may be and was spent. `Ledger.open` makes one; sessions that name the same ledger share it.

    Never moves money itself. Errors: LedgerError where the database can't be used.
    """

    def __init__(self, store: Store, *, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock

    @classmethod
    def open(cls, url: str | os.PathLike[str] | Ledger) -> Ledger:
        """The ledger at ``url``: a path or ``sqlite:///path``. Nothing is read or made before the first use."""
        from .sqlite import SqliteStore

        if isinstance(url, Ledger):
            return url
        try:
            text = os.fspath(url)
        except TypeError:
            raise LedgerError(f"{url!r} doesn't name a ledger. Nothing was spent. Give a path or sqlite:///….") from None
        if text in ("", ":memory:"):
            raise LedgerError(
                f"{text!r} doesn't name a ledger: it must outlive the process, or paid tokens are lost. Nothing was spent. Give a "
                "path."
            )
        scheme, separator, rest = text.partition("://")
        if not separator:
            return cls(SqliteStore(text))
        if scheme == "sqlite" and rest.startswith("/") and len(rest) > 1:
            return cls(SqliteStore(rest[1:]))
        raise LedgerError(
            f"{scheme}://… doesn't name a ledger. Nothing was spent. Give a path, or sqlite:///relative.db, or sqlite:////absolute.db."
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
        return iter([_envelope(row) for row in rows])

    def envelope(self, id: str) -> EnvelopeRow:
        """The envelope ``id``; EnvelopeNotFoundError."""
        with self._store.read() as tx:
            rows = tx.execute("SELECT * FROM envelopes WHERE id = ?", (id,))
        if not rows:
            raise _no_envelope(id)
        return _envelope(rows[0])

    def forget(self, payment_hash: str, *, abandon: bool = False) -> PaymentRow:
        """Stop offering the token of a payment; the next call may buy a new one.

        ``abandon=True`` ends an unfinished row in so many words: its reservation returns, whatever the node may still do. Use it
        only for a payment of which you know that it won't be made. Raises LedgerError for an unknown hash, or for an unfinished
        row without ``abandon``. No money moves.
        """

        def decide(row: PaymentRow) -> Change | None:
            if row.unfinished and not abandon:
                raise LedgerError(
                    f"Payment {payment_hash} is unfinished: it may still be made, so it can't be forgotten. Nothing was changed. "
                    "Call session.recover(), or pass abandon=True if you know that it won't be made.",
                    payment_hash=payment_hash,
                    spent=None,
                )
            if row.unfinished:
                return Change(state=PaymentState.DEAD, failure_code="abandoned", failure_text="abandoned by the user")
            return _retirement(row, FORGOTTEN, "forgotten by the user")

        return self.change(payment_hash, decide)

    def freeze(self, envelope_id: str) -> EnvelopeRow:
        """Refuse every further purchase from this envelope, in all sessions that share the ledger, until `thaw`."""
        return self._set_frozen(envelope_id, 1)

    def thaw(self, envelope_id: str) -> EnvelopeRow:
        """End a `freeze`."""
        return self._set_frozen(envelope_id, 0)

    def _set_frozen(self, envelope_id: str, frozen: int) -> EnvelopeRow:
        with self._store.transaction() as tx:
            if envelope_id == SAFE_DEFAULT.id:  # it is there before anything has been spent
                self._make_envelope(tx, SAFE_DEFAULT)
            rows = tx.execute("UPDATE envelopes SET frozen = ? WHERE id = ? RETURNING *", (frozen, envelope_id))
        if not rows:
            raise _no_envelope(envelope_id)
        return _envelope(rows[0])

    # -- what a purchase asks ---------------------------------------------------------------------------------------------

    def live(self, origin: str, scope: str | None = None) -> list[PaymentRow]:
        """Rows of ``origin`` (and ``scope``) that hold a live token or an unfinished purchase; at most one a scope."""
        with self._store.read() as tx:
            return self._live(tx, origin, scope)

    def unfinished(self) -> list[PaymentRow]:
        """All rows whose outcome isn't known, oldest first."""
        with self._store.read() as tx:
            rows = tx.execute("SELECT * FROM payments WHERE state IN ('open', 'failed') ORDER BY created_at_ms, payment_hash")
        return [_payment(row) for row in rows]

    def untold(self) -> list[PaymentRow]:
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
        with self._store.transaction() as tx:
            standing = self._standing(tx, intent)
            if standing is not None:
                return standing, False
            try:
                return self._open(tx, intent, draw, now_s)
            except BudgetError as error:
                refusal = error  # raised behind the commit: a limit that was lowered holds for the others too
        raise refusal

    def _open(self, tx: Transaction, intent: Intent, draw: Draw | None, now_s: float) -> tuple[PaymentRow, bool]:
        max_fee_msat, reserved_micro = intent.fee_cap_msat, 0
        envelope = None
        if draw is not None:
            envelope = self._locked_envelope(tx, draw, now_s)
            max_fee_msat, reserved_micro = self._fit(tx, envelope, draw, intent, now_s)
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
                reserved_micro, intent.valid_until, int(now_s * 1000), intent.target,
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
        if standing is None:
            raise LedgerError("The ledger refused a new payment without a row that explains it. Nothing was spent. Call again.")
        return standing, False

    def count_send(self, payment_hash: str) -> PaymentRow | None:
        """Count one more send of an unfinished row, before it leaves; None where the row has ended meanwhile."""
        with self._store.transaction() as tx:
            return _first(
                tx.execute(
                    "UPDATE payments SET state = 'open', sends_ever = sends_ever + 1, sends_unanswered = sends_unanswered + 1 "
                    "WHERE payment_hash = ? AND state IN ('open', 'failed') RETURNING *",
                    (payment_hash,),
                )
            )

    def change(self, payment_hash: str, decide: Callable[[PaymentRow], Change | None]) -> PaymentRow:
        """Change a row as ``decide`` says of what the row is at this moment, and book it, in one transaction.

        ``decide`` is pure; None changes nothing. The step to SETTLED (from whatever state: lnd's word that it paid is the truth)
        turns the reservation into a spend, fees included; the step to DEAD returns it.
        """
        with self._store.transaction() as tx:
            seen = _first(tx.execute("SELECT * FROM payments WHERE payment_hash = ?", (payment_hash,)))
            if seen is None:
                raise LedgerError(f"The ledger has no payment {payment_hash}. Nothing was changed. See Ledger.payments().")
            if seen.envelope_id is not None:
                tx.execute("UPDATE envelopes SET frozen = frozen WHERE id = ?", (seen.envelope_id,))
            locked = tx.execute("UPDATE payments SET state = state WHERE payment_hash = ? RETURNING *", (payment_hash,))
            row = _payment(locked[0])
            change = decide(row)
            if change is None:
                return row
            return self._book(tx, row, change)

    def retire(self, payment_hash: str) -> PaymentRow:
        """Note that the server no longer takes the token of a settled payment, for one thing at least."""
        return self.change(payment_hash, lambda row: _retirement(row, REFUSED, "refused by the server"))

    def retired(self, origin: str, scope: str, target: str) -> PaymentRow | None:
        """The latest payment for this very ``target`` whose token was taken once and refused later, maybe for something else."""
        with self._store.read() as tx:
            return _first(
                tx.execute(
                    "SELECT * FROM payments WHERE origin = ? AND scope = ? AND target = ? AND state = 'retired' "
                    "AND taken = 1 AND failure_code = ? AND preimage IS NOT NULL ORDER BY created_at_ms DESC LIMIT 1",
                    (origin, scope, target, REFUSED),
                )
            )

    def mark(self, payment_hash: str, *, taken: bool = False, told: bool = False) -> None:
        """Note that the server has taken the token, that a trace has told of the payment. Cheap: not forced to disk."""
        with self._store.transaction(durable=False) as tx:
            tx.execute(
                "UPDATE payments SET taken = CASE WHEN ? = 1 THEN 1 ELSE taken END, told = CASE WHEN ? = 1 THEN 1 ELSE told END "
                "WHERE payment_hash = ?",
                (int(taken), int(told), payment_hash),
            )

    def learn(self, origin: str, path: str, scope: str) -> None:
        """Remember that ``path`` needs a token of ``scope``. Cheap: not forced to disk."""
        with self._store.transaction(durable=False) as tx:
            known = tx.execute("SELECT count(*) AS paths FROM learned_paths WHERE origin = ?", (origin,))[0]["paths"]
            if known >= MAX_LEARNED_PATHS:
                tx.execute("DELETE FROM learned_paths WHERE origin = ?", (origin,))
            tx.execute(
                "INSERT INTO learned_paths (origin, path, scope) VALUES (?, ?, ?) "
                "ON CONFLICT (origin, path) DO UPDATE SET scope = excluded.scope",
                (origin, path, scope),
            )

    def learned(self, origin: str) -> dict[str, str]:
        """The scope of each path of ``origin`` that was seen to need one."""
        with self._store.read() as tx:
            rows = tx.execute("SELECT path, scope FROM learned_paths WHERE origin = ?", (origin,))
        return {row["path"]: row["scope"] for row in rows}

    # -- inside a transaction ---------------------------------------------------------------------------------------------

    def _live(self, tx: Transaction, origin: str, scope: str | None) -> list[PaymentRow]:
        of_scope, parameters = ("", (origin,)) if scope is None else ("AND scope = ? ", (origin, scope))
        rows = tx.execute(
            f"SELECT * FROM payments WHERE origin = ? {of_scope}AND state IN ('open', 'failed', 'settled')",  # noqa: S608  (ours)
            parameters,
        )
        return [_payment(row) for row in rows]

    def _standing(self, tx: Transaction, intent: Intent) -> PaymentRow | None:
        """The row that stands in the way of a new one: of the same invoice, or a live one of the same scope."""
        same = _first(tx.execute("SELECT * FROM payments WHERE payment_hash = ?", (intent.payment_hash,)))
        if same is not None:
            return same
        live = self._live(tx, intent.origin, intent.scope)
        return live[0] if live else None

    def _make_envelope(self, tx: Transaction, envelope: BudgetEnvelope) -> None:
        tx.execute(
            "INSERT INTO envelopes (id, limits, currency) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
            (envelope.id, _dump(envelope), envelope.cap_currency),
        )

    def _locked_envelope(self, tx: Transaction, draw: Draw, now_s: float) -> Mapping[str, Any]:
        """The envelope's row, locked; made or changed as the draw says. Refuses what mustn't be drawn on.

        A new grant is in the row that is given, not yet in the database: a draw that is refused is no use.
        """
        given = draw.envelope
        envelope_id = given if isinstance(given, str) else given.id
        if not isinstance(given, str):
            self._make_envelope(tx, given)
        rows = tx.execute("UPDATE envelopes SET frozen = frozen WHERE id = ? RETURNING *", (envelope_id,))
        if not rows:
            raise _no_envelope(envelope_id)
        row = dict(rows[0])
        for currency in (draw.rate.currency, row["currency"] if isinstance(given, str) else given.cap_currency):
            if currency != row["currency"]:
                raise BudgetError(
                    f"Envelope {envelope_id!r} counts in {row['currency']}, and its totals can't be turned into {currency}. "
                    "Nothing was spent. Use another envelope id."
                )
        if not isinstance(given, str) and row["limits"] != _dump(given):
            row["limits"] = _dump(given)
            tx.execute("UPDATE envelopes SET limits = ? WHERE id = ?", (row["limits"], envelope_id))
        if row["frozen"]:
            raise EnvelopeFrozenError(
                f"Envelope {envelope_id!r} is frozen. Nothing was spent. Thaw it with Ledger.thaw({envelope_id!r})."
            )
        ttl_s = _load(row["limits"]).ttl_seconds
        granted_ms = row["granted_at_ms"]
        if granted_ms is not None and ttl_s is not None and now_s * 1000 >= granted_ms + ttl_s * 1000:
            if draw.session_started_s * 1000 < granted_ms + ttl_s * 1000:
                raise EnvelopeExpiredError(
                    f"The grant of envelope {envelope_id!r} ended after its {ttl_s} s. Nothing was spent. "
                    "Make a new session with the envelope to grant it anew."
                )
            granted_ms = None
        if granted_ms is None:
            row["granted_at_ms"], row["grant_base_micro"] = int(now_s * 1000), row["settled_micro"]
        return row

    def _fit(self, tx: Transaction, envelope: Mapping[str, Any], draw: Draw, intent: Intent, now_s: float) -> tuple[int, int]:
        """(fee limit in msat, reservation in millionths) that fit under every limit; BudgetExceededError where none does."""
        limits = _load(envelope["limits"])
        reserved = envelope["reserved_micro"]
        spent = {
            "cap_minor_units": envelope["settled_micro"] - envelope["grant_base_micro"] + reserved,
            "per_call_minor_units": draw.rate.micro_of(draw.spent_in_call_msat),
        }
        for name, window_s in (("per_hour_minor_units", HOUR_S), ("per_day_minor_units", DAY_S)):
            if limits.limit_micro(name) is not None:
                spent[name] = reserved + self._spent_within(tx, limits.id, window_s, now_s)
        most_msat = intent.amount_msat + intent.fee_cap_msat
        for name, used in spent.items():
            limit = limits.limit_micro(name)
            if limit is None:
                continue
            fits_msat = draw.rate.msat_within(limit - used)
            if fits_msat < intent.amount_msat:
                raise BudgetExceededError(
                    f"The price of {_price(intent.amount_msat, draw.rate)} doesn't fit under {name}={getattr(limits, name)} of "
                    f"envelope {limits.id!r}, of which {minor_units(used).normalize():f} are spent or reserved. Nothing was spent. "
                    "Raise the limit, or wait until the window has moved on."
                )
            most_msat = min(most_msat, fits_msat)
        reserve = draw.rate.micro_of(most_msat)
        if envelope["settled_micro"] + reserved + reserve > MAX_TOTAL_MICRO:
            raise BudgetExceededError(
                f"Envelope {limits.id!r} can't count as much as this payment. Nothing was spent. Use a new envelope id."
            )
        return most_msat - intent.amount_msat, reserve

    def _spent_within(self, tx: Transaction, envelope_id: str, window_s: int, now_s: float) -> int:
        # A bucket counts until all of it lies outside the window. Future ones count as well: a clock may have been set back.
        oldest = int((now_s - window_s) // BUCKET_S)
        rows = tx.execute(
            "SELECT CAST(COALESCE(SUM(micro), 0) AS BIGINT) AS micro FROM spends WHERE envelope_id = ? AND bucket >= ?",
            (envelope_id, oldest),
        )
        return int(rows[0]["micro"])

    def _book(self, tx: Transaction, row: PaymentRow, change: Change) -> PaymentRow:
        """Write ``change`` and what follows from it for the money."""
        state, values = change.state, self._failure(change)
        values["sends_unanswered"] = max(0, row.sends_unanswered - change.answered)
        now_s = self._clock()
        if state is PaymentState.SETTLED and row.settled_at is None:
            spent_micro = self._spend(tx, row, change, now_s)
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

    def _spend(self, tx: Transaction, row: PaymentRow, change: Change, now_s: float) -> int:
        """Turn the reservation into a spend; what it comes to in millionths of a minor unit."""
        if row.envelope_id is None or row.currency is None:
            return 0
        rate = Rate(currency=row.currency, btc_price=row.btc_price, quality=row.rate_quality or "")
        micro = rate.micro_of(row.amount_msat + change.fee_msat)
        tx.execute(
            "UPDATE envelopes SET reserved_micro = reserved_micro - ?, settled_micro = settled_micro + ? WHERE id = ?",
            (row.reserved_micro, micro, row.envelope_id),
        )
        bucket = int(now_s // BUCKET_S)
        tx.execute(
            "INSERT INTO spends (envelope_id, bucket, micro) VALUES (?, ?, ?) "
            "ON CONFLICT (envelope_id, bucket) DO UPDATE SET micro = spends.micro + excluded.micro",
            (row.envelope_id, bucket, micro),
        )
        # Old ones go, but not by a clock that has just jumped ahead: by the latest spend before this one, if that is earlier.
        last = tx.execute(
            "SELECT MAX(bucket) AS bucket FROM spends WHERE envelope_id = ? AND bucket <> ?", (row.envelope_id, bucket)
        )[0]["bucket"]
        keep_from = min(bucket, bucket if last is None else last) - (DAY_S + HOUR_S) // BUCKET_S
        tx.execute("DELETE FROM spends WHERE envelope_id = ? AND bucket < ?", (row.envelope_id, keep_from))
        return micro

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
    values["created_at"] = _moment(values.pop("created_at_ms"))
    settled_ms = values.pop("settled_at_ms")
    values["settled_at"] = None if settled_ms is None else _moment(settled_ms)
    values["state"] = PaymentState(values["state"])
    values["btc_price"] = None if values["btc_price"] is None else Decimal(values["btc_price"])
    values["taken"], values["told"] = bool(values["taken"]), bool(values["told"])
    preimage = values["preimage"]
    if preimage is not None and hashlib.sha256(bytes.fromhex(preimage)).hexdigest() != values["payment_hash"]:
        raise LedgerError(
            f"The ledger's row {values['payment_hash']} is damaged: its preimage doesn't fit. Nothing was spent by this call. "
            "Restore the ledger; the node still knows the preimage.",
            payment_hash=values["payment_hash"],
        )
    return PaymentRow(**values)


def _envelope(row: Mapping[str, Any]) -> EnvelopeRow:
    granted_ms = row["granted_at_ms"]
    return EnvelopeRow(
        limits=_load(row["limits"]),
        reserved_minor_units=minor_units(row["reserved_micro"]),
        settled_minor_units=minor_units(row["settled_micro"]),
        grant_settled_minor_units=minor_units(row["settled_micro"] - row["grant_base_micro"]),
        frozen=bool(row["frozen"]),
        granted_at=None if granted_ms is None else _moment(granted_ms),
    )


def _dump(envelope: BudgetEnvelope) -> str:
    return json.dumps({k: getattr(envelope, k) for k in envelope.__dataclass_fields__}, sort_keys=True)


def _load(text: str) -> BudgetEnvelope:
    return BudgetEnvelope(**json.loads(text))


def _moment(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, tz=timezone.utc)


def _price(amount_msat: int, rate: Rate) -> str:
    """An amount for people, in the envelope's currency too where that isn't the sat."""
    if rate.currency == "sat":
        return sats(amount_msat)
    return f"{sats(amount_msat)} ({rate.minor_units_of(amount_msat).normalize():f} minor units of {rate.currency})"


def _no_envelope(envelope_id: str) -> EnvelopeNotFoundError:
    return EnvelopeNotFoundError(
        f"The ledger holds no envelope {envelope_id!r}. Nothing was spent. Correct the id, or give a BudgetEnvelope in its place."
    )


assert [state.value for state in UNFINISHED] == ["open", "failed"]  # the SQL above says the same
