"""Budget envelopes in the ledger: whether a payment fits under the limits, how much it reserves, and how it becomes a spend.

Every function works inside a transaction that `ledger.ledger` has begun. Payment rows are written there, not here.

Limits are checked against running totals and buckets of five minutes, never against sums over history: a purchase takes the same
time after a million others.
"""

from __future__ import annotations

import functools
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from .._core import env_vars
from .._core.money import Rate, minor_units, plain, sats
from .._core.secret_text import shown
from ..budgets.schema import DAY_S, HOUR_S, BudgetEnvelope
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
from .store import Transaction
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


@dataclass(frozen=True, kw_only=True)
class Draw:
    """What a purchase is paid from: an envelope, or the id of one in the ledger, and the exchange rate at this moment.

    ``session_started_s``: when the session was made, in unix seconds. A session made after the envelope's grant (``ttl_seconds``)
    ended starts a new grant. ``spent_in_call_msat``: what the same call has paid already, at earlier redirects, fees included.
    """

    envelope: BudgetEnvelope | str
    rate: Rate
    session_started_s: float
    spent_in_call_msat: int = 0

    @property
    def envelope_id(self) -> str:
        """The id of the envelope."""
        return self.envelope if isinstance(self.envelope, str) else self.envelope.id


def make(tx: Transaction, envelope: BudgetEnvelope) -> bool:
    """Insert ``envelope`` into the ledger, unless an envelope with its id exists. Return whether it was inserted."""
    rows = tx.execute(
        "INSERT INTO envelopes (id, limits, currency) VALUES (?, ?, ?) ON CONFLICT DO NOTHING RETURNING id",
        (envelope.id, dump(envelope), envelope.cap_currency),
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
    """Write ``envelope``'s limits to the ledger, unless the stored envelope with its id counts in another currency."""
    make(tx, envelope)
    tx.execute(
        "UPDATE envelopes SET limits = ? WHERE id = ? AND currency = ?", (dump(envelope), envelope.id, envelope.cap_currency)
    )


def locked(tx: Transaction, draw: Draw, now_s: float) -> Mapping[str, Any]:
    """Lock the draw's envelope and return its row. If the draw brings a `BudgetEnvelope`, insert it or update its limits first.

    If the grant has expired, the returned row starts a new one. It is saved only when a payment is opened, so a refused draw
    doesn't start the TTL.

    Raises: EnvelopeNotFoundError, EnvelopeFrozenError, EnvelopeExpiredError (the grant ended during the session), BudgetError (the
    currency differs).
    """
    given, envelope_id = draw.envelope, draw.envelope_id
    lock = "SELECT * FROM envelopes WHERE id = ? FOR UPDATE"
    rows = tx.execute(lock, (envelope_id,))
    if not rows and not isinstance(given, str):
        make(tx, given)
        rows = tx.execute(lock, (envelope_id,))
    if not rows:
        raise not_found(envelope_id)
    row = dict(rows[0])
    if _take_limits(row, draw):
        tx.execute("UPDATE envelopes SET limits = ? WHERE id = ?", (row["limits"], envelope_id))
    _check_open(row, draw, now_s)
    return row


def found(tx: Transaction, draw: Draw, now_s: float) -> Mapping[str, Any]:
    """Return the row that `locked` would return, without changing or locking anything.

    Raises: as `locked`.
    """
    rows = tx.execute("SELECT * FROM envelopes WHERE id = ?", (draw.envelope_id,))
    if not rows and isinstance(draw.envelope, str):
        raise not_found(draw.envelope_id)
    row = dict(rows[0]) if rows else _unused(draw.envelope)
    _take_limits(row, draw)
    _check_open(row, draw, now_s)
    return row


def _unused(envelope: BudgetEnvelope | str) -> dict[str, Any]:
    """Return the row of an envelope that isn't in the ledger yet."""
    assert isinstance(envelope, BudgetEnvelope)
    totals = {"settled_micro": 0, "reserved_micro": 0, "grant_base_micro": 0, "granted_at_ms": None, "frozen": 0}
    return {"id": envelope.id, "limits": dump(envelope), "currency": envelope.cap_currency, **totals}


class NoTransaction:
    """Stands for a transaction in a ledger that doesn't exist yet: nothing is found, and nothing was spent."""

    def execute(self, sql: str, parameters: Sequence[object] = ()) -> list[Mapping[str, Any]]:
        """Return what a SELECT finds in an empty ledger."""
        return [{"hour_micro": 0, "day_micro": 0}] if "AS day_micro" in sql else []

    def defer(self, sql: str, parameters: Sequence[object] = ()) -> None:
        """Do nothing: an empty ledger has no rows to change."""


def _take_limits(row: dict[str, Any], draw: Draw) -> bool:
    """Put the limits that ``draw`` brings into ``row``. Return whether that has changed it.

    Raises: BudgetError if the currency differs.
    """
    given, envelope_id = draw.envelope, draw.envelope_id
    for currency in (draw.rate.currency, row["currency"] if isinstance(given, str) else given.cap_currency):
        if currency != row["currency"]:
            raise wrong_currency(envelope_id, row["currency"], currency)
    if isinstance(given, str) or row["limits"] == dump(given):
        return False
    row["limits"] = dump(given)
    return True


def _check_open(row: dict[str, Any], draw: Draw, now_s: float) -> None:
    """Refuse an envelope that is frozen, or whose grant has ended. If a session may begin a new grant, ``row`` begins it.

    Raises: EnvelopeFrozenError, EnvelopeExpiredError.
    """
    envelope_id = draw.envelope_id
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
    if isinstance(envelope, str):
        raise not_found(envelope)
    return as_row(NoTransaction(), _unused(envelope), 0)


def in_force(tx: Transaction, envelope: BudgetEnvelope | str, session_started_s: float, now_s: float) -> EnvelopeRow:
    """Return an envelope as a purchase would find it: with the limits that are given, and a new grant where one would begin.

    Raises: as `Ledger.in_force`.
    """
    rows = tx.execute("SELECT * FROM envelopes WHERE id = ?", (envelope if isinstance(envelope, str) else envelope.id,))
    if not rows:
        return unused(envelope)
    row = dict(rows[0])
    if not isinstance(envelope, str):
        if envelope.cap_currency != row["currency"]:
            raise wrong_currency(envelope.id, row["currency"], envelope.cap_currency)
        row["limits"] = dump(envelope)
    ended_ms = _grant_end_ms(row, load(row["limits"]).ttl_seconds)
    if ended_ms is not None and now_s * 1000 >= ended_ms and session_started_s * 1000 >= ended_ms:
        row["granted_at_ms"], row["grant_base_micro"] = None, row["settled_micro"]
    return as_row(tx, row, now_s)


def fit(tx: Transaction, envelope: Mapping[str, Any], draw: Draw, intent: Intent, now_s: float) -> tuple[int, int]:
    """Return the highest routing fee (msat) that fits under every limit, and what to reserve (millionths of a minor unit).

    ``envelope`` is the row that `locked` returned. The fee is ``intent.fee_cap_msat``, or less unless ``intent.fee_is_fixed``; the
    reservation covers amount and fee.

    Raises: BudgetExceededError if the amount, with a fixed fee, doesn't fit under a limit. PolicyDeniedError, RailNotSupportedError
    if the envelope doesn't allow the origin or the rail.
    """
    limits = load(envelope["limits"])
    check_allowed(limits, intent.origin, rail_of(intent.scheme))  # again: the limits may have changed since the call began
    most_msat = intent.amount_msat + intent.fee_cap_msat
    least_msat = most_msat if intent.fee_is_fixed else intent.amount_msat
    for name, used in _used(tx, envelope, limits, now_s, in_call_micro=draw.rate.micro_of(draw.spent_in_call_msat)).items():
        fits_msat = draw.rate.msat_within((limits.limit_micro(name) or 0) - used)
        if fits_msat < least_msat:
            fees = f", with the wallet's fees of up to {sats(intent.fee_cap_msat)}," if least_msat > intent.amount_msat else ""
            raise BudgetExceededError(
                f"The price of {_price(intent.amount_msat, draw.rate)}{fees} doesn't fit under {name}={getattr(limits, name)} "
                f"of envelope {shown(limits.id)}, of which {plain(minor_units(used))} are spent or reserved.",
                **_advice_on(name, fits_alone=draw.rate.msat_within(limits.limit_micro(name) or 0) >= least_msat),
            )
        most_msat = min(most_msat, fits_msat)
    reserve = draw.rate.micro_of(most_msat)
    if envelope["settled_micro"] + envelope["reserved_micro"] + reserve > MAX_TOTAL_MICRO:
        raise BudgetExceededError(
            f"The totals of envelope {shown(limits.id)} are so high that this payment can't be added to them.",
            advice="Use a new envelope id.",
            shell_advice=f"Name another ledger in {env_vars.LEDGER}.",
        )
    return most_msat - intent.amount_msat, reserve


def check_fits(tx: Transaction, envelope: Mapping[str, Any], draw: Draw, row: PaymentRow, now_s: float) -> int:
    """Return what the unfinished payment ``row`` needs in ``envelope``, in millionths of a minor unit: its amount and highest fee.

    ``envelope`` is the row that `locked` returned. If the payment is reserved in it already, that reservation isn't counted twice.

    Raises: as `fit`, BudgetExceededError also if the highest fee doesn't fit.
    """
    limits, most_msat = load(envelope["limits"]), row.amount_msat + row.max_fee_msat
    check_allowed(limits, row.origin, rail_of(row.scheme))
    reserved_here = row.reserved_micro if row.envelope_id == envelope["id"] else 0
    needed = reserved_here or draw.rate.micro_of(most_msat)
    for name, used in _used(tx, envelope, limits, now_s, in_call_micro=draw.rate.micro_of(draw.spent_in_call_msat)).items():
        counted = used - (0 if name == "per_call_minor_units" else reserved_here)
        if counted + needed > (limits.limit_micro(name) or 0):
            raise BudgetExceededError(
                f"The payment may cost {_price(most_msat, draw.rate)}, which doesn't fit under {name}={getattr(limits, name)} "
                f"of envelope {shown(limits.id)}, of which {minor_units(counted).normalize():f} are spent or reserved.",
                advice="Raise the limit.",
            )
    if envelope["settled_micro"] + envelope["reserved_micro"] + needed - reserved_here > MAX_TOTAL_MICRO:
        raise BudgetExceededError(
            f"The totals of envelope {shown(limits.id)} are so high that this payment can't be added to them.",
            advice="Use a new envelope id.",
        )
    return needed


def _used(
    tx: Transaction, envelope: Mapping[str, Any], limits: BudgetEnvelope, now_s: float, *, in_call_micro: int = 0
) -> dict[str, int]:
    """Return what counts against each limit that is set, by the limit's field name, in millionths of a minor unit.

    Reservations are included. ``in_call_micro`` is what the call in progress has paid already.
    """
    reserved: int = envelope["reserved_micro"]
    spent: Mapping[str, int] = {}
    if limits.per_hour_minor_units is not None or limits.per_day_minor_units is not None:
        spent = _spent_lately(tx, limits.id, now_s)
    used = {
        "cap_minor_units": reserved + envelope["settled_micro"] - envelope["grant_base_micro"],
        "per_call_minor_units": in_call_micro,
        "per_hour_minor_units": reserved + spent.get("hour_micro", 0),
        "per_day_minor_units": reserved + spent.get("day_micro", 0),
    }
    return {name: used_micro for name, used_micro in used.items() if limits.limit_micro(name) is not None}


def _spent_lately(tx: Transaction, envelope_id: str, now_s: float) -> Mapping[str, int]:
    """Return what was spent within the last hour (``hour_micro``) and the last day (``day_micro``)."""
    # A bucket counts until all of it lies outside the window. Buckets in the future count too: the clock may have been set back.
    hour, day = (int((now_s - window_s) // BUCKET_S) for window_s in (HOUR_S, DAY_S))
    rows = tx.execute(
        "SELECT CAST(COALESCE(SUM(CASE WHEN bucket >= ? THEN micro END), 0) AS BIGINT) AS hour_micro, "
        "CAST(COALESCE(SUM(micro), 0) AS BIGINT) AS day_micro FROM spends WHERE envelope_id = ? AND bucket >= ?",
        (hour, envelope_id, day),
    )
    return {name: int(micro) for name, micro in rows[0].items()}


def spend(tx: Transaction, row: PaymentRow, change: Change, now_s: float) -> int:
    """Turn ``row``'s reservation into a spend of amount and fee. Return the spend in millionths of a minor unit.

    The rate is the one stored in the row when the payment was opened. Return 0 if no envelope counts the payment.
    """
    if row.envelope_id is None or row.currency is None:
        return 0
    rate = Rate(currency=row.currency, btc_price=row.btc_price, quality=row.rate_quality or "")
    micro = rate.micro_of(row.amount_msat + change.fee_msat)
    tx.defer(
        "UPDATE envelopes SET reserved_micro = reserved_micro - ?, settled_micro = settled_micro + ? WHERE id = ?",
        (row.reserved_micro, micro, row.envelope_id),
    )
    bucket = int(now_s // BUCKET_S)
    tx.defer(
        "INSERT INTO spends (envelope_id, bucket, micro) VALUES (?, ?, ?) "
        "ON CONFLICT (envelope_id, bucket) DO UPDATE SET micro = spends.micro + excluded.micro",
        (row.envelope_id, bucket, micro),
    )
    # Drop old buckets, but keep the newest `KEPT_BUCKETS` however old they look. Otherwise: 1. the clock runs ahead for a while; 2.
    # a spend at that time drops today's buckets as old; 3. the clock is corrected, and today's limits have forgotten today's
    # spends.
    tx.defer(
        "DELETE FROM spends WHERE envelope_id = ? AND bucket < ? "
        "AND bucket <= (SELECT bucket FROM spends WHERE envelope_id = ? ORDER BY bucket DESC LIMIT 1 OFFSET ?)",
        (row.envelope_id, bucket - (DAY_S + HOUR_S) // BUCKET_S, row.envelope_id, KEPT_BUCKETS),
    )
    return micro


def as_row(tx: Transaction, row: Mapping[str, Any], now_s: float) -> EnvelopeRow:
    """Return a row of the table ``envelopes`` as an `EnvelopeRow`, with what counts against each limit at ``now_s``."""
    granted_ms, limits = row["granted_at_ms"], load(row["limits"])
    return EnvelopeRow(
        limits=limits,
        reserved_minor_units=minor_units(row["reserved_micro"]),
        settled_minor_units=minor_units(row["settled_micro"]),
        grant_settled_minor_units=minor_units(row["settled_micro"] - row["grant_base_micro"]),
        used_minor_units={name: minor_units(used) for name, used in _used(tx, row, limits, now_s).items()},
        frozen=bool(row["frozen"]),
        granted_at=None if granted_ms is None else moment(granted_ms),
    )


@functools.lru_cache(maxsize=MAX_KEPT_TEXTS)
def dump(envelope: BudgetEnvelope) -> str:
    """Return an envelope's limits as JSON, the form in which the ledger stores them."""
    return json.dumps({k: getattr(envelope, k) for k in BudgetEnvelope.__dataclass_fields__}, sort_keys=True)


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
        advice=f"To allow payments from it again, call Ledger.thaw({shown(envelope_id)}).",
        shell_advice=f"To allow payments from it again, run: routeweiler-sync budget thaw {shlex.quote(envelope_id)}",
    )


def _advice_on(limit: str, *, fits_alone: bool) -> Advice:
    """Return the advice on a payment that doesn't fit under ``limit``, the name of a field of `BudgetEnvelope`.

    Only the hour and the day roll: waiting helps with these alone, and only if the payment ``fits_alone`` under the limit.
    """
    wait = ", or wait until the window has moved on" if limit in ROLLING and fits_alone else ""
    return {"advice": f"Raise the limit{wait}.", "shell_advice": f"Raise the limit in {env_vars.BUDGET}{wait}."}


def moment(ms: int) -> datetime:
    """Return milliseconds since 1970, the form of every time in the ledger, as a `datetime` in UTC."""
    return datetime.fromtimestamp(ms / 1000, tz=timezone.utc)
