"""Budget envelopes in the ledger: whether a payment fits under the limits, how much it reserves, and how it becomes a spend.

Every function works inside a transaction that `ledger.ledger` has begun. Payment rows are written there, not here.

Limits are checked against running totals and buckets of five minutes, never against sums over history: a purchase takes the same
time after a million others.

An envelope may lie in another one, its parent, and that in a third. What is reserved or spent in an envelope is reserved or spent
in all that it lies in, by the same transaction, and fits under the limits of each. So the totals of an outer envelope contain those
of the inner ones. An envelope's place is fixed once a payment has counted in it: totals never move.

A *chain* is a list of rows of the table ``envelopes``: an envelope, its parent, and so on. SQL finds it by `CHAIN`.
"""

from __future__ import annotations

import functools
import json
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import Any

from .._core import env_vars
from .._core.money import Rate, minor_units, plain, sats
from .._core.secret_text import shown
from ..budgets.schema import DAY_S, HOUR_S, MAX_LEVELS, SAFE_DEFAULT, BudgetEnvelope
from ..errors import (
    Advice,
    BudgetError,
    BudgetExceededError,
    EnvelopeExpiredError,
    EnvelopeFrozenError,
    EnvelopeNotFoundError,
    LedgerError,
    PolicyDeniedError,
    RailNotSupportedError,
)
from ..protocol.schemes import rail_of
from .store import FOR_UPDATE, Transaction
from .types import Change, EnvelopeRow, Intent, PaymentRow

#: Spends are summed in buckets of this many seconds. So a window may count a spend up to five minutes too long, never too short.
BUCKET_S = 300
#: How many of an envelope's newest buckets are kept however old they look: enough for two days with spending in every bucket.
KEPT_BUCKETS = 2 * DAY_S // BUCKET_S
#: The limits of windows that roll on with time.
ROLLING = ("per_hour_minor_units", "per_day_minor_units")
#: Highest total of an envelope, in millionths of a minor unit: what a signed 64-bit column holds, with room to spare.
MAX_TOTAL_MICRO = 2**62
#: For so many envelopes a process remembers which JSON their limits are, and so many texts it doesn't read again.
MAX_KEPT_TEXTS = 64
#: How often the rows of a draw are looked up, because another process has just made one of them, or given it a parent.
MAX_LOOKS = 5


def _chain_from(seeds: str) -> str:
    """Return the subquery of the ids that the SELECT ``seeds`` returns, and of all envelopes that these lie in."""
    return (
        f"(WITH RECURSIVE chain (id) AS ({seeds} UNION SELECT envelopes.parent_id FROM envelopes "  # noqa: S608 - constants
        "JOIN chain ON chain.id = envelopes.id WHERE envelopes.parent_id IS NOT NULL) SELECT id FROM chain)"
    )


#: The ids of an envelope and of all that it lies in. Its parameter is the envelope's id.
CHAIN = _chain_from("SELECT id FROM envelopes WHERE id = ?")
#: Those of the envelope that counts a payment. Its parameter is the payment hash.
CHAIN_OF_PAYMENT = _chain_from("SELECT envelope_id FROM payments WHERE payment_hash = ? AND envelope_id IS NOT NULL")


#: An envelope's row, and the rows of all that it lies in, from the inside out.
Chain = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Draw:
    """What a purchase is paid from: an envelope, or the id of one in the ledger, and the exchange rate at this moment.

    ``session_started_s``: when the session was made, in unix seconds. A session made after the envelope's grant (``ttl_seconds``)
    ended starts a new grant. ``spent_in_call_msat``: what the same call has paid already, at earlier redirects, fees included.
    ``agent_id``: the agent whose session draws.
    """

    envelope: BudgetEnvelope | str
    rate: Rate
    session_started_s: float
    spent_in_call_msat: int = 0
    agent_id: str | None = None

    @property
    def envelope_id(self) -> str:
        """The id of the envelope."""
        return self.envelope if isinstance(self.envelope, str) else self.envelope.id


def make(tx: Transaction, envelope: BudgetEnvelope) -> bool:
    """Insert ``envelope`` into the ledger, unless an envelope with its id exists. Return whether it was inserted.

    The envelopes that it lies in must be there already, or be made in the same transaction.
    """
    rows = tx.execute(
        "INSERT INTO envelopes (id, limits, currency, parent_id) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING RETURNING id",
        (envelope.id, dump(envelope), envelope.cap_currency, envelope.parent_id),
    )
    return bool(rows)


def check_allowed(limits: BudgetEnvelope, origin: str, rail: str) -> None:
    """Refuse a rail or an origin that the envelope doesn't allow.

    Raises: RailNotSupportedError, PolicyDeniedError.
    """
    if rail not in limits.allowed_rails:
        raise RailNotSupportedError(
            f"Envelope {shown(limits.id)} doesn't allow the rail {rail}.", advice="Add it to allowed_rails."
        )
    if not limits.allows_origin(origin):
        raise PolicyDeniedError(
            f"Envelope {shown(limits.id)} doesn't allow paying {origin}.", advice="Add it to allowed_origins_glob."
        )


def bring(tx: Transaction, envelope: BudgetEnvelope) -> None:
    """Write the limits of ``envelope``, and of the envelopes given that it lies in, unless a purchase from it would be refused."""
    with suppress(BudgetError):
        _take(tx, envelope)


def set_limits(tx: Transaction, envelope_id: str, decide: Callable[[BudgetEnvelope | None], BudgetEnvelope]) -> Chain:
    """Write the limits and the parent, or none, that ``decide`` returns for an envelope. Return its chain.

    Raises: as `Ledger.set_limits`.
    """
    for _ in range(MAX_LOOKS):
        mine = next((row for row in tx.execute(*_rows_of([envelope_id], lock=True)) if row["id"] == envelope_id), None)
        limits = decide(None if mine is None else _limits_of(mine))
        look = _look(tx, limits, lock=True, to_place=True)
        is_new = look is not None and limits in look.new
        if look is not None and is_new is (mine is None) and _write(tx, look):
            return look.chain
    raise _busy()


def locked(tx: Transaction, draw: Draw, now_s: float, *, also: str | None = None) -> Chain:
    """Lock the draw's envelope and all that it lies in. Return their rows, the draw's own first.

    If the draw brings a `BudgetEnvelope`, that and those given that it lies in are inserted, or their limits are updated, first. If
    a grant has expired, the returned row starts a new one. It is saved only when a payment is opened, so a refused draw doesn't
    start the TTL. ``also``: an envelope that is locked too, with all that it lies in. All are locked in the order of their ids by
    one statement, so that no two transactions can deadlock.

    Raises: EnvelopeNotFoundError, EnvelopeFrozenError, EnvelopeExpiredError (the grant ended during the session), BudgetError (the
    currency differs, or an envelope can't lie where it is to).
    """
    chain = _take(tx, draw.envelope, currency=draw.rate.currency, also=also)
    for row in chain:
        _check_open(row, draw, now_s)
    return chain


def found(tx: Transaction, draw: Draw, now_s: float) -> Chain:
    """Return the rows that `locked` would return, without changing or locking anything.

    Raises: as `locked`.
    """
    chain = _found(tx, draw.envelope, currency=draw.rate.currency)
    for row in chain:
        _check_open(row, draw, now_s)
    return chain


def ids_of(tx: Transaction, envelope_id: str) -> set[str]:
    """Return the ids of an envelope and of all that it lies in."""
    return {row["id"] for row in tx.execute(f"SELECT id FROM envelopes WHERE id IN {CHAIN}", (envelope_id,))}  # noqa: S608


@dataclass(frozen=True, kw_only=True)
class _Look:
    """A chain as it is once what was given is written; the envelopes to insert for that, inner ones first; the rows to update."""

    chain: Chain
    new: Sequence[BudgetEnvelope]
    changed: Sequence[Mapping[str, Any]]


def _take(
    tx: Transaction,
    given: BudgetEnvelope | str,
    *,
    currency: str | None = None,
    also: str | None = None,
) -> Chain:
    """Lock the chain of ``given`` and write what ``given`` brings. Return the chain.

    Raises: as `_look`, before anything is written.
    """
    for _ in range(MAX_LOOKS):
        look = _look(tx, given, currency=currency, lock=True, also=also)
        if look is not None and _write(tx, look):
            return look.chain
    raise _busy()


def _write(tx: Transaction, look: _Look) -> bool:
    """Write what ``look`` says. Return whether it is so now: another process may have made an envelope that is to be inserted.

    That other one may forbid what was to lie in it, and then the purchase is refused, and what was written stays. So the outer
    ones come first, and nothing is written that lies in an envelope which isn't as ``look`` has it.
    """
    if not all(make(tx, envelope) for envelope in reversed(look.new)):
        return False
    for row in look.changed:
        tx.execute("UPDATE envelopes SET limits = ?, parent_id = ? WHERE id = ?", (row["limits"], row["parent_id"], row["id"]))
    return True


def _found(tx: Transaction, given: BudgetEnvelope | str, *, currency: str | None = None) -> Chain:
    """Return the chain of ``given`` as it would be, without locking or changing anything. Raises: as `_look`; LedgerError."""
    look = _look(tx, given, currency=currency)
    if look is None:
        raise _damaged()
    return look.chain


def _damaged() -> LedgerError:
    return LedgerError("An envelope of the ledger lies in one that isn't there.", advice="Restore the ledger.")


def _look(
    tx: Transaction,
    given: BudgetEnvelope | str,
    *,
    currency: str | None = None,
    lock: bool = False,
    also: str | None = None,
    to_place: bool = False,
) -> _Look | None:
    """Look up the chain of ``given``, and what is to be written so that it is as ``given`` says. Nothing is written.

    Return None if another process has changed the chain while its rows were locked. ``currency``: what the draw counts in.
    ``to_place``: ``given`` shall lie in nothing if it has no parent.

    Raises: EnvelopeNotFoundError; BudgetError if a currency differs, or an envelope can't lie where it shall.
    """
    brought: list[BudgetEnvelope] = []
    outermost: BudgetEnvelope | str | None = given
    while isinstance(outermost, BudgetEnvelope):
        brought.append(outermost)
        outermost = outermost.parent
    ids = [each.id for each in brought] + [each for each in (outermost, also) if each is not None]
    rows = {row["id"]: dict(row) for row in tx.execute(*_rows_of(ids, lock=lock))}
    if outermost is not None and outermost not in rows:
        raise _no_parent(brought[-1].id, outermost) if brought else not_found(outermost)
    for each in brought:
        if each.id in rows and each.cap_currency != rows[each.id]["currency"]:
            raise wrong_currency(each.id, rows[each.id]["currency"], each.cap_currency)
    new = [each for each in brought if each.id not in rows]
    rows.update((each.id, _unused(each)) for each in new)
    places = {id: row["parent_id"] for id, row in rows.items()}
    changed = [rows[each.id] for each in brought if _bring_into(rows[each.id], each, to_place=to_place and each is given)]
    chain = _chain(rows, ids[0])
    for row in changed if chain is not None else ():
        if row["parent_id"] != places[row["id"]]:
            _check_room_within(tx, rows, row)
    for row in chain or ():
        if currency not in (None, row["currency"]):
            raise wrong_currency(row["id"], row["currency"], str(currency))
        if row["currency"] != (inner := rows[ids[0]])["currency"]:
            raise BudgetError(
                f"Envelope {shown(inner['id'])} counts in {inner['currency']}, and {shown(row['id'])}, in which it lies, in "
                f"{row['currency']}. They must count in one currency.",
                advice="Use other envelope ids.",
                shell_advice=f"Use another envelope id, or give --currency {row['currency']} if {shown(inner['id'])} is new.",
            )
    return None if chain is None else _Look(chain=chain, new=new, changed=changed)


@functools.lru_cache(maxsize=MAX_LEVELS * 2)
def _select(count: int) -> str:
    marks = ", ".join("?" * count)
    return f"SELECT * FROM envelopes WHERE id IN {_chain_from(f'SELECT id FROM envelopes WHERE id IN ({marks})')} ORDER BY id"  # noqa: S608


def _rows_of(ids: Sequence[str], *, lock: bool) -> tuple[str, Sequence[str]]:
    """Return the statement for the rows of all ``ids``, and of all envelopes that they lie in; and its parameters."""
    return f"{_select(len(ids))}{FOR_UPDATE if lock else ''}", ids


def _chain(rows: Mapping[str, dict[str, Any]], envelope_id: str) -> Chain | None:
    """Return the chain of an envelope, or None if one of its rows isn't in ``rows``.

    Raises: BudgetError for an envelope that would lie in itself, or in too many.
    """
    chain: Chain = []
    next_id: str | None = envelope_id
    while next_id is not None:
        if next_id not in rows:
            return None
        if rows[next_id] in chain or len(chain) == MAX_LEVELS:
            what = "itself" if rows[next_id] in chain else f"more than {MAX_LEVELS - 1} others"
            raise BudgetError(f"Envelope {shown(envelope_id)} would lie in {what}.", advice="Give it another parent.")
        chain.append(rows[next_id])
        next_id = rows[next_id]["parent_id"]
    return chain


def _check_room_within(tx: Transaction, rows: Mapping[str, dict[str, Any]], row: dict[str, Any]) -> None:
    """Refuse a new parent for ``row`` if the envelopes that lie in it would lie in too many. ``rows`` are as they shall be.

    Raises: BudgetError.
    """
    (found,) = tx.execute(
        "WITH RECURSIVE within (id, level) AS (SELECT id, 0 FROM envelopes WHERE id = ? UNION "  # noqa: S608 - constants
        "SELECT envelopes.id, within.level + 1 FROM envelopes JOIN within ON within.id = envelopes.parent_id "
        f"WHERE within.level < {MAX_LEVELS}) SELECT COALESCE(MAX(level), 0) AS levels FROM within",
        (row["id"],),
    )
    if len(_chain(rows, row["id"]) or ()) + int(found["levels"]) > MAX_LEVELS:
        raise BudgetError(
            f"Envelope {shown(row['id'])} can't lie in {shown(row['parent_id'])}: others lie in it, and more than {MAX_LEVELS} "
            "would lie within each other.",
            advice="Give it another parent.",
        )


def _busy() -> LedgerError:
    return LedgerError("Other processes keep changing the envelopes of this purchase.", advice="Call again.")


def _unused(envelope: BudgetEnvelope) -> dict[str, Any]:
    """Return the row of an envelope that isn't in the ledger yet."""
    totals = {"settled_micro": 0, "reserved_micro": 0, "grant_base_micro": 0, "granted_at_ms": None, "frozen": 0}
    limits = {"limits": dump(envelope), "currency": envelope.cap_currency, "parent_id": envelope.parent_id}
    return {"id": envelope.id, **limits, **totals}


class NoTransaction:
    """Stands for a transaction in a ledger that doesn't exist yet: nothing is found, and nothing was spent."""

    def execute(self, sql: str, parameters: Sequence[object] = ()) -> list[Mapping[str, Any]]:
        """Return what a SELECT finds in an empty ledger."""
        return []

    def defer(self, sql: str, parameters: Sequence[object] = ()) -> None:
        """Do nothing: an empty ledger has no rows to change."""


def _bring_into(row: dict[str, Any], envelope: BudgetEnvelope, *, to_place: bool) -> bool:
    """Put the limits and the parent that ``envelope`` brings into its ``row``. Return whether that has changed it.

    An envelope without a parent stays where it is, unless ``to_place``.

    Raises: BudgetError if it would get another parent, though a payment has counted in it.
    """
    before = row["limits"], row["parent_id"]
    parent_id = envelope.parent_id if to_place or envelope.parent is not None else row["parent_id"]
    has_counted = row["granted_at_ms"] is not None or row["settled_micro"] or row["reserved_micro"]
    if parent_id != row["parent_id"] and has_counted:
        lies = "lies in no other" if row["parent_id"] is None else f"lies in {shown(row['parent_id'])}"
        raise BudgetError(
            f"Envelope {shown(envelope.id)} {lies}, and that can't change any more: payments have counted in it.",
            advice="Use another envelope id.",
        )
    row["limits"], row["parent_id"] = dump(envelope), parent_id
    return (row["limits"], row["parent_id"]) != before


def _check_open(row: dict[str, Any], draw: Draw, now_s: float) -> None:
    """Refuse an envelope that is frozen, or whose grant has ended. If a session may begin a new grant, ``row`` begins it.

    Raises: EnvelopeFrozenError, EnvelopeExpiredError.
    """
    envelope_id = row["id"]
    if row["frozen"]:
        raise frozen(envelope_id)
    ttl_s = load(row["limits"]).ttl_seconds
    granted_ms, ended_ms = row["granted_at_ms"], _grant_end_ms(row, ttl_s)
    if ended_ms is not None and now_s * 1000 >= ended_ms:
        if draw.session_started_s * 1000 < ended_ms:
            raise EnvelopeExpiredError(
                f"The grant of envelope {shown(envelope_id)} has ended: it lasted {ttl_s} s.",
                advice="Make a new session with the envelope, which starts a new grant.",
            )
        granted_ms = None
    if granted_ms is None:
        row["granted_at_ms"], row["grant_base_micro"] = int(now_s * 1000), row["settled_micro"]


def _grant_end_ms(row: Mapping[str, Any], ttl_s: int | None) -> int | None:
    """Return when the grant of an envelope's row ends, in milliseconds since 1970; None if it hasn't begun or has no end."""
    return None if row["granted_at_ms"] is None or ttl_s is None else int(row["granted_at_ms"]) + ttl_s * 1000


def unused(envelope: BudgetEnvelope | str) -> EnvelopeRow:
    """Return an envelope that nothing was ever bought from. Raises: EnvelopeNotFoundError for an id, which no ledger has."""
    return in_force(NoTransaction(), envelope, 0, 0)


def in_force(tx: Transaction, envelope: BudgetEnvelope | str, session_started_s: float, now_s: float) -> EnvelopeRow:
    """Return an envelope as a purchase would find it: with the limits that are given, and a new grant where one would begin.

    Raises: as `Ledger.in_force`.
    """
    chain = _found(tx, envelope)
    for row in chain:
        ended_ms = _grant_end_ms(row, load(row["limits"]).ttl_seconds)
        if ended_ms is not None and now_s * 1000 >= ended_ms and session_started_s * 1000 >= ended_ms:
            row["granted_at_ms"], row["grant_base_micro"] = None, row["settled_micro"]
    return as_row(tx, chain, now_s)


def fit(tx: Transaction, chain: Chain, draw: Draw, intent: Intent, now_s: float) -> tuple[int, int]:
    """Return the highest routing fee (msat) that fits under every limit, and what to reserve (millionths of a minor unit).

    ``chain`` is what `locked` returned: the limits of all hold, and the same is reserved in each. The fee is
    ``intent.fee_cap_msat``, or less unless ``intent.fee_is_fixed``; the reservation covers amount and fee.

    Raises: BudgetExceededError if the amount, with a fixed fee, doesn't fit under a limit. PolicyDeniedError, RailNotSupportedError
    if the envelope doesn't allow the origin or the rail.
    """
    most_msat = intent.amount_msat + intent.fee_cap_msat
    least_msat = most_msat if intent.fee_is_fixed else intent.amount_msat
    for limits in (load(envelope["limits"]) for envelope in chain):
        check_allowed(limits, intent.origin, rail_of(intent.scheme))  # again: the limits may have changed since the call began
    for limits, name, used in _used_in(tx, chain, draw, now_s):
        fits_msat = draw.rate.msat_within((limits.limit_micro(name) or 0) - used)
        if fits_msat < least_msat:
            fees = f", with the wallet's fees of up to {sats(intent.fee_cap_msat)}," if least_msat > intent.amount_msat else ""
            raise BudgetExceededError(
                f"The price of {_price(intent.amount_msat, draw.rate)}{fees} doesn't fit under {name}={getattr(limits, name)} "
                f"of envelope {shown(limits.id)}, of which {plain(minor_units(used))} are spent or reserved.",
                **_advice_on(limits, name, fits_alone=draw.rate.msat_within(limits.limit_micro(name) or 0) >= least_msat),
            )
        most_msat = min(most_msat, fits_msat)
    reserve = draw.rate.micro_of(most_msat)
    for envelope in chain:
        if envelope["settled_micro"] + envelope["reserved_micro"] + reserve > MAX_TOTAL_MICRO:
            raise BudgetExceededError(
                f"The totals of envelope {shown(envelope['id'])} are so high that this payment can't be added to them.",
                advice="Use a new envelope id.",
                shell_advice=f"Name another ledger in {env_vars.LEDGER}.",
            )
    return most_msat - intent.amount_msat, reserve


def check_fits(tx: Transaction, chain: Chain, draw: Draw, row: PaymentRow, reserved_in: Collection[str], now_s: float) -> int:
    """Return what the unfinished payment ``row`` needs in ``chain``, in millionths of a minor unit: its amount and highest fee.

    ``chain`` is what `locked` returned. ``reserved_in``: the ids of the envelopes in which the payment is reserved already. There,
    that reservation isn't counted twice.

    Raises: as `fit`, BudgetExceededError also if the highest fee doesn't fit.
    """
    most_msat = row.amount_msat + row.max_fee_msat
    for limits in (load(envelope["limits"]) for envelope in chain):
        check_allowed(limits, row.origin, rail_of(row.scheme))
    needed = (row.reserved_micro if row.envelope_id == chain[0]["id"] else 0) or draw.rate.micro_of(most_msat)
    for limits, name, used in _used_in(tx, chain, draw, now_s):
        counted = used - (row.reserved_micro if limits.id in reserved_in and name != "per_call_minor_units" else 0)
        if counted + needed > (limits.limit_micro(name) or 0):
            raise BudgetExceededError(
                f"The payment may cost {_price(most_msat, draw.rate)}, which doesn't fit under {name}={getattr(limits, name)} "
                f"of envelope {shown(limits.id)}, of which {plain(minor_units(counted))} are spent or reserved.",
                **_advice_on(limits, name, fits_alone=needed <= (limits.limit_micro(name) or 0)),
            )
    for envelope in chain:
        counted = row.reserved_micro if envelope["id"] in reserved_in else 0
        if envelope["settled_micro"] + envelope["reserved_micro"] + needed - counted > MAX_TOTAL_MICRO:
            raise BudgetExceededError(
                f"The totals of envelope {shown(envelope['id'])} are so high that this payment can't be added to them.",
                advice="Use a new envelope id.",
            )
    return needed


def _used_in(tx: Transaction, chain: Chain, draw: Draw, now_s: float) -> Iterator[tuple[BudgetEnvelope, str, int]]:
    """Yield each limit of each envelope in ``chain`` by its field's name, and what counts against it. See `_used`."""
    spent, in_call_micro = _spent_lately(tx, chain, now_s), draw.rate.micro_of(draw.spent_in_call_msat)
    for envelope in chain:
        limits = load(envelope["limits"])
        for name, used in _used(envelope, limits, spent, in_call_micro=in_call_micro).items():
            yield limits, name, used


def _used(
    envelope: Mapping[str, Any],
    limits: BudgetEnvelope,
    spent_lately: Mapping[str, Mapping[str, int]],
    *,
    in_call_micro: int = 0,
) -> dict[str, int]:
    """Return what counts against each limit that is set, by the limit's field name, in millionths of a minor unit.

    Reservations are included. ``spent_lately`` is what `_spent_lately` returned, ``in_call_micro`` what the call in progress has
    paid already.
    """
    reserved: int = envelope["reserved_micro"]
    spent = spent_lately.get(envelope["id"], {})
    used = {
        "cap_minor_units": reserved + envelope["settled_micro"] - envelope["grant_base_micro"],
        "per_call_minor_units": in_call_micro,
        "per_hour_minor_units": reserved + spent.get("hour_micro", 0),
        "per_day_minor_units": reserved + spent.get("day_micro", 0),
    }
    return {name: used_micro for name, used_micro in used.items() if limits.limit_micro(name) is not None}


def _spent_lately(tx: Transaction, chain: Sequence[Mapping[str, Any]], now_s: float) -> Mapping[str, Mapping[str, int]]:
    """Return what was spent within the last hour (``hour_micro``) and day (``day_micro``), by the id of each envelope in ``chain``.

    Nothing for an envelope that limits neither.
    """
    ids = [row["id"] for row in chain if any(getattr(load(row["limits"]), name) is not None for name in ROLLING)]
    if not ids:
        return {}
    # A bucket counts until all of it lies outside the window. Buckets in the future count too: the clock may have been set back.
    hour, day = (int((now_s - window_s) // BUCKET_S) for window_s in (HOUR_S, DAY_S))
    rows = tx.execute(
        "SELECT envelope_id, CAST(COALESCE(SUM(CASE WHEN bucket >= ? THEN micro END), 0) AS BIGINT) AS hour_micro, "  # noqa: S608
        f"CAST(COALESCE(SUM(micro), 0) AS BIGINT) AS day_micro FROM spends WHERE envelope_id IN ({', '.join('?' * len(ids))}) "
        "AND bucket >= ? GROUP BY envelope_id",
        (hour, *ids, day),
    )
    return {row["envelope_id"]: {name: int(row[name]) for name in ("hour_micro", "day_micro")} for row in rows}


def spend(tx: Transaction, row: PaymentRow, change: Change, now_s: float) -> int:
    """Turn ``row``'s reservation into a spend of amount and fee. Return the spend in millionths of a minor unit.

    The envelope counts it, and all that it lies in. The rate is the one stored in the row when the payment was opened. Return 0 if
    no envelope counts the payment.
    """
    if row.envelope_id is None or row.currency is None:
        return 0
    rate = Rate(currency=row.currency, btc_price=row.btc_price, quality=row.rate_quality or "")
    micro = rate.micro_of(row.amount_msat + change.fee_msat)
    tx.defer(
        f"UPDATE envelopes SET reserved_micro = reserved_micro - ?, settled_micro = settled_micro + ? WHERE id IN {CHAIN}",  # noqa: S608
        (row.reserved_micro, micro, row.envelope_id),
    )
    tx.defer(
        "INSERT INTO spends (envelope_id, bucket, micro) SELECT id, CAST(? AS BIGINT), CAST(? AS BIGINT) FROM envelopes "  # noqa: S608
        f"WHERE id IN {CHAIN} ON CONFLICT (envelope_id, bucket) DO UPDATE SET micro = spends.micro + excluded.micro",
        (int(now_s // BUCKET_S), micro, row.envelope_id),
    )
    return micro


def reserve(tx: Transaction, chain: Chain, micro: int, now_s: float) -> None:
    """Reserve ``micro`` in every envelope of ``chain``, which `locked` returned, save their grants, and drop their old buckets."""
    for envelope in chain:
        tx.defer(
            "UPDATE envelopes SET reserved_micro = reserved_micro + ?, granted_at_ms = ?, grant_base_micro = ? WHERE id = ?",
            (micro, envelope["granted_at_ms"], envelope["grant_base_micro"], envelope["id"]),
        )
        # Keep the newest `KEPT_BUCKETS` however old they look. Otherwise: 1. the clock runs ahead for a while; 2. a purchase at
        # that time drops today's buckets as old; 3. the clock is corrected, and today's limits have forgotten today's spends.
        tx.defer(
            "DELETE FROM spends WHERE envelope_id = ? AND bucket < ? "
            "AND bucket <= (SELECT bucket FROM spends WHERE envelope_id = ? ORDER BY bucket DESC LIMIT 1 OFFSET ?)",
            (envelope["id"], int((now_s - DAY_S - HOUR_S) // BUCKET_S), envelope["id"], KEPT_BUCKETS),
        )


def release(tx: Transaction, row: PaymentRow) -> None:
    """Return ``row``'s reservation to its envelope and to all that this lies in."""
    tx.defer(
        f"UPDATE envelopes SET reserved_micro = reserved_micro - ? WHERE id IN {CHAIN}",  # noqa: S608 - constants
        (row.reserved_micro, row.envelope_id),
    )


def lock_of(tx: Transaction, payment_hash: str) -> None:
    """Lock the envelopes that count a payment, in the order in which `locked` does."""
    tx.defer(f"SELECT id FROM envelopes WHERE id IN {CHAIN_OF_PAYMENT} ORDER BY id{FOR_UPDATE}", (payment_hash,))  # noqa: S608


def frozen_of(tx: Transaction, envelope_id: str) -> str:
    """Return the id of the frozen envelope that keeps ``envelope_id`` from paying."""
    rows = tx.execute(f"SELECT id FROM envelopes WHERE frozen = 1 AND id IN {CHAIN} ORDER BY id", (envelope_id,))  # noqa: S608
    return str(rows[0]["id"]) if rows else envelope_id


def all_rows(tx: Transaction, now_s: float) -> list[EnvelopeRow]:
    """Return all envelopes, sorted by id, with what counts against each limit at ``now_s``."""
    rows = {row["id"]: dict(row) for row in tx.execute("SELECT * FROM envelopes ORDER BY id")}
    chains = [_chain(rows, id) for id in rows]
    if None in chains:
        raise _damaged()
    return [as_row(tx, chain, now_s) for chain in chains if chain is not None]


def one_row(tx: Transaction, envelope_id: str, now_s: float) -> EnvelopeRow:
    """Return the envelope ``envelope_id``. Raises: EnvelopeNotFoundError."""
    return as_row(tx, _found(tx, envelope_id), now_s)


def as_row(tx: Transaction, chain: Sequence[Mapping[str, Any]], now_s: float) -> EnvelopeRow:
    """Return the first row of ``chain`` as an `EnvelopeRow`, with what counts against each limit at ``now_s``."""
    spent, found = _spent_lately(tx, chain, now_s), None
    for row in reversed(chain):
        granted_ms, limits = row["granted_at_ms"], _limits_of(row)
        found = EnvelopeRow(
            limits=limits,
            reserved_minor_units=minor_units(row["reserved_micro"]),
            settled_minor_units=minor_units(row["settled_micro"]),
            grant_settled_minor_units=minor_units(row["settled_micro"] - row["grant_base_micro"]),
            used_minor_units={name: minor_units(used) for name, used in _used(row, limits, spent).items()},
            frozen=bool(row["frozen"]),
            granted_at=None if granted_ms is None else moment(granted_ms),
            parent=found,
        )
    assert found is not None
    return found


def _limits_of(row: Mapping[str, Any]) -> BudgetEnvelope:
    """Return the limits in a row of the table ``envelopes``, with the id of its parent."""
    limits = load(row["limits"])
    return limits if row["parent_id"] is None else replace(limits, parent=row["parent_id"])


@functools.lru_cache(maxsize=MAX_KEPT_TEXTS)
def dump(envelope: BudgetEnvelope) -> str:
    """Return an envelope's limits as JSON, the form in which the ledger stores them. Its parent has a column of its own."""
    return json.dumps({k: getattr(envelope, k) for k in BudgetEnvelope.__dataclass_fields__ if k != "parent"}, sort_keys=True)


@functools.lru_cache(maxsize=MAX_KEPT_TEXTS)
def load(text: str) -> BudgetEnvelope:
    """Return the envelope that `dump` has written as ``text``.

    Raises: LedgerError if ``text`` can't have been written by `dump`.
    """
    try:
        return BudgetEnvelope(**json.loads(text))
    except (ValueError, TypeError, RecursionError):  # from None: such an error's text may repeat the row
        raise LedgerError(
            "The limits of an envelope in the ledger are damaged.",
            advice=(
                "Give the session the BudgetEnvelope instead of its id, which writes the limits again; or restore the ledger; or "
                "upgrade if a newer version wrote them."
            ),
            shell_advice="Restore the ledger, or upgrade if a newer version wrote them.",
        ) from None


def _price(amount_msat: int, rate: Rate) -> str:
    """Return an amount for an error text: in sat, and also in the envelope's currency if that isn't the sat."""
    if rate.currency == "sat":
        return sats(amount_msat)
    return f"{sats(amount_msat)} ({plain(rate.minor_units_of(amount_msat))} minor units of {rate.currency})"


def not_found(envelope_id: str) -> EnvelopeNotFoundError:
    """Return (not raise) the error for an envelope id that the ledger doesn't have."""
    return EnvelopeNotFoundError(
        f"The ledger holds no envelope {shown(envelope_id)}.",
        advice="Correct the id, or give a BudgetEnvelope instead of it.",
        shell_advice="Correct the id: routeweiler-sync budget show lists those that there are.",
    )


def _no_parent(envelope_id: str, parent_id: str) -> EnvelopeNotFoundError:
    """Return (not raise) the error for an envelope that shall lie in one that the ledger doesn't have."""
    return EnvelopeNotFoundError(
        f"Envelope {shown(envelope_id)} is to lie in {shown(parent_id)}, which the ledger doesn't have.",
        advice="Correct the id, make that envelope first (routeweiler-sync budget set), or give it as a BudgetEnvelope.",
        shell_advice=f"Correct the id, or make it first: routeweiler-sync budget set {shlex.quote(parent_id)} --per-day N",
    )


def wrong_currency(envelope_id: str, counted: str, wanted: str) -> BudgetError:
    """Return (not raise) the error for an envelope that counts in another currency than the one that is wanted."""
    return BudgetError(
        f"Envelope {shown(envelope_id)} counts in {counted}, and its totals can't be converted into {wanted}.",
        advice="Use another envelope id.",
        shell_advice=f"Name another ledger in {env_vars.LEDGER}, or give {env_vars.BUDGET} in {counted}.",
    )


def frozen(envelope_id: str) -> EnvelopeFrozenError:
    """Return (not raise) the error for an envelope that was frozen."""
    return EnvelopeFrozenError(
        f"Envelope {shown(envelope_id)} is frozen.",
        advice=f"To allow payments from it again, call session.ledger.thaw({shown(envelope_id)}).",
        shell_advice=f"To allow payments from it again, run: routeweiler-sync budget thaw {shlex.quote(envelope_id)}",
    )


def _advice_on(limits: BudgetEnvelope, limit: str, *, fits_alone: bool) -> Advice:
    """Return the advice on a payment that doesn't fit under ``limit``, the name of a field of ``limits``.

    Only the hour and the day roll: waiting helps with these alone, and only if the payment ``fits_alone`` under the limit.
    """
    wait = ", or wait until the window has moved on" if limit in ROLLING and fits_alone else ""
    return {"advice": f"Raise the limit{wait}.", "shell_advice": f"{how_to_raise(limits, limit)}{wait}."}


def how_to_raise(limits: BudgetEnvelope, limit: str) -> str:
    """Return what to do in a shell to raise ``limit``, the name of a field of ``limits``: a sentence without its full stop."""
    if limits.id in (SAFE_DEFAULT.id, f"{SAFE_DEFAULT.id}-{limits.cap_currency}"):  # programs that name no envelope bring it
        return f"Raise the limit in {env_vars.BUDGET}"
    option = "--" + limit.removesuffix("_minor_units").replace("_", "-")
    return f"Raise the limit by routeweiler-sync budget set {shlex.quote(limits.id)} {option} N"


def moment(ms: int) -> datetime:
    """Return milliseconds since 1970, the form of every time in the ledger, as a `datetime` in UTC."""
    return datetime.fromtimestamp(ms / 1000, tz=timezone.utc)
