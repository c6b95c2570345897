"""Envelopes in the ledger: what a draw may take, and what becomes of it. Functions of one transaction, called by the ledger.

Limits are checked against running totals and buckets of five minutes, never against sums over history: a purchase costs the same
after a million others.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from .._core.money import Rate, minor_units, sats
from ..budgets.schema import DAY_S, HOUR_S, BudgetEnvelope
from ..errors import (
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

#: Spends are counted in buckets of five minutes: a window may count a spend that much longer than itself, never shorter.
BUCKET_S = 300
#: Buckets of an envelope that are kept whatever the clock says: two days of spending in every one.
KEPT_BUCKETS = 2 * DAY_S // BUCKET_S
#: Totals stay below what a signed 64-bit column holds.
MAX_TOTAL_MICRO = 2**62


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


def make(tx: Transaction, envelope: BudgetEnvelope) -> None:
    """Put ``envelope`` into the database, unless one of its id is there."""
    tx.execute(
        "INSERT INTO envelopes (id, limits, currency) VALUES (?, ?, ?) ON CONFLICT DO NOTHING",
        (envelope.id, dump(envelope), envelope.cap_currency),
    )


def check_allowed(limits: BudgetEnvelope, origin: str, rail: str) -> None:
    """Refuse a rail or an origin that the envelope doesn't allow. Nothing spent."""
    if rail not in limits.allowed_rails:
        raise RailNotSupportedError(f"Envelope {limits.id!r} doesn't allow the rail {rail}.", advice="Add it to allowed_rails.")
    if not limits.allows_origin(origin):
        raise PolicyDeniedError(f"Envelope {limits.id!r} doesn't allow paying {origin}.", advice="Add it to allowed_origins_glob.")


def bring(tx: Transaction, envelope: BudgetEnvelope) -> None:
    """Make ``envelope``'s limits those that hold, unless the one of its id counts in another currency."""
    make(tx, envelope)
    tx.execute(
        "UPDATE envelopes SET limits = ? WHERE id = ? AND currency = ?", (dump(envelope), envelope.id, envelope.cap_currency)
    )


def locked(tx: Transaction, draw: Draw, now_s: float) -> Mapping[str, Any]:
    """The envelope's row, locked; made or changed as the draw says. Refuses what mustn't be drawn on.

    A new grant is in the row that is given, not yet in the database: a draw that is refused is no use.
    """
    given = draw.envelope
    envelope_id = given if isinstance(given, str) else given.id
    if not isinstance(given, str):
        make(tx, given)
    rows = tx.execute("UPDATE envelopes SET frozen = frozen WHERE id = ? RETURNING *", (envelope_id,))
    if not rows:
        raise not_found(envelope_id)
    row = dict(rows[0])
    for currency in (draw.rate.currency, row["currency"] if isinstance(given, str) else given.cap_currency):
        if currency != row["currency"]:
            raise BudgetError(
                f"Envelope {envelope_id!r} counts in {row['currency']}, and its totals can't be turned into {currency}.",
                advice="Use another envelope id.",
            )
    if not isinstance(given, str) and row["limits"] != dump(given):
        row["limits"] = dump(given)
        tx.execute("UPDATE envelopes SET limits = ? WHERE id = ?", (row["limits"], envelope_id))
    if row["frozen"]:
        raise EnvelopeFrozenError(f"Envelope {envelope_id!r} is frozen.", advice=f"Thaw it with Ledger.thaw({envelope_id!r}).")
    ttl_s = load(row["limits"]).ttl_seconds
    granted_ms = row["granted_at_ms"]
    if granted_ms is not None and ttl_s is not None and now_s * 1000 >= granted_ms + ttl_s * 1000:
        if draw.session_started_s * 1000 < granted_ms + ttl_s * 1000:
            raise EnvelopeExpiredError(
                f"The grant of envelope {envelope_id!r} ended after its {ttl_s} s.",
                advice="Make a new session with the envelope to grant it anew.",
            )
        granted_ms = None
    if granted_ms is None:
        row["granted_at_ms"], row["grant_base_micro"] = int(now_s * 1000), row["settled_micro"]
    return row


def fit(tx: Transaction, envelope: Mapping[str, Any], draw: Draw, intent: Intent, now_s: float) -> tuple[int, int]:
    """(fee limit in msat, reservation in millionths) that fit under every limit; BudgetExceededError where none does.

    PolicyDeniedError, RailNotSupportedError for what the envelope doesn't allow at all.
    """
    limits = load(envelope["limits"])
    check_allowed(
        limits, intent.origin, rail_of(intent.scheme)
    )  # as they are at this moment: maybe others than when the call began
    most_msat = intent.amount_msat + intent.fee_cap_msat
    for name, used in _used(tx, envelope, limits, now_s, in_call_micro=draw.rate.micro_of(draw.spent_in_call_msat)).items():
        fits_msat = draw.rate.msat_within((limits.limit_micro(name) or 0) - used)
        if fits_msat < intent.amount_msat:
            raise BudgetExceededError(
                f"The price of {_price(intent.amount_msat, draw.rate)} doesn't fit under {name}={getattr(limits, name)} "
                f"of envelope {limits.id!r}, of which {minor_units(used).normalize():f} are spent or reserved.",
                advice="Raise the limit, or wait until the window has moved on.",
            )
        most_msat = min(most_msat, fits_msat)
    reserve = draw.rate.micro_of(most_msat)
    if envelope["settled_micro"] + envelope["reserved_micro"] + reserve > MAX_TOTAL_MICRO:
        raise BudgetExceededError(f"Envelope {limits.id!r} can't count as much as this payment.", advice="Use a new envelope id.")
    return most_msat - intent.amount_msat, reserve


def _used(
    tx: Transaction, envelope: Mapping[str, Any], limits: BudgetEnvelope, now_s: float, *, in_call_micro: int = 0
) -> dict[str, int]:
    """What counts against each limit that is set, reservations included, in millionths of a minor unit."""
    reserved = envelope["reserved_micro"]
    count: dict[str, Callable[[], int]] = {
        "cap_minor_units": lambda: reserved + envelope["settled_micro"] - envelope["grant_base_micro"],
        "per_call_minor_units": lambda: in_call_micro,
        "per_hour_minor_units": lambda: reserved + _spent_within(tx, limits.id, HOUR_S, now_s),
        "per_day_minor_units": lambda: reserved + _spent_within(tx, limits.id, DAY_S, now_s),
    }
    return {name: used() for name, used in count.items() if limits.limit_micro(name) is not None}


def _spent_within(tx: Transaction, envelope_id: str, window_s: int, now_s: float) -> int:
    # A bucket counts until all of it lies outside the window. Future ones count as well: a clock may have been set back.
    oldest = int((now_s - window_s) // BUCKET_S)
    rows = tx.execute(
        "SELECT CAST(COALESCE(SUM(micro), 0) AS BIGINT) AS micro FROM spends WHERE envelope_id = ? AND bucket >= ?",
        (envelope_id, oldest),
    )
    return int(rows[0]["micro"])


def spend(tx: Transaction, row: PaymentRow, change: Change, now_s: float) -> int:
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
    # Old ones go; but the latest stay however old they look, for the clock may be ahead for a while, and be set right.
    tx.execute(
        "DELETE FROM spends WHERE envelope_id = ? AND bucket < ? "
        "AND bucket <= (SELECT bucket FROM spends WHERE envelope_id = ? ORDER BY bucket DESC LIMIT 1 OFFSET ?)",
        (row.envelope_id, bucket - (DAY_S + HOUR_S) // BUCKET_S, row.envelope_id, KEPT_BUCKETS),
    )
    return micro


def as_row(tx: Transaction, row: Mapping[str, Any], now_s: float) -> EnvelopeRow:
    """A row of the table as the user sees it at this moment."""
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


def dump(envelope: BudgetEnvelope) -> str:
    """An envelope's limits as the ledger keeps them."""
    return json.dumps({k: getattr(envelope, k) for k in BudgetEnvelope.__dataclass_fields__}, sort_keys=True)


def load(text: str) -> BudgetEnvelope:
    """The reverse of `dump`. LedgerError for what no `dump` has written."""
    try:
        return BudgetEnvelope(**json.loads(text))
    except (ValueError, TypeError, RecursionError):  # from None: their words may hold what the row holds
        raise LedgerError(
            "The limits that the ledger holds of an envelope are damaged.",
            advice=(
                "Give the session the BudgetEnvelope in place of its id, which writes them anew; or restore the ledger, or "
                "upgrade if a newer version wrote them."
            ),
        ) from None


def _price(amount_msat: int, rate: Rate) -> str:
    """An amount for people, in the envelope's currency too where that isn't the sat."""
    if rate.currency == "sat":
        return sats(amount_msat)
    return f"{sats(amount_msat)} ({rate.minor_units_of(amount_msat).normalize():f} minor units of {rate.currency})"


def not_found(envelope_id: str) -> EnvelopeNotFoundError:
    """The error for an unknown id."""
    return EnvelopeNotFoundError(
        f"The ledger holds no envelope {envelope_id!r}.", advice="Correct the id, or give a BudgetEnvelope in its place."
    )


def moment(ms: int) -> datetime:
    """Milliseconds since 1970, as the database has them, as a time in UTC."""
    return datetime.fromtimestamp(ms / 1000, tz=timezone.utc)
