"""What was spent, and under which limits, as an outsider reads it from the ledger's tables: nothing of the library's is used.

Everything is counted anew from the payments: no running total, bucket or conversion of the ledger's own is believed.
"""

from __future__ import annotations

import json
import math
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

WINDOWS_S = {"per_hour_minor_units": 3_600, "per_day_minor_units": 86_400}
LIMITS = ("cap_minor_units", "per_call_minor_units", *WINDOWS_S)
SHARED = tuple(name for name in LIMITS if name != "per_call_minor_units")
BUCKET_S = 300
MICRO = 10**6
_PAYMENTS = (
    "payment_hash, envelope_id, state, amount_msat, max_fee_msat, fee_msat, currency, btc_price, reserved_micro, settled_micro, "
    "created_at_ms, settled_at_ms"
)
_ENVELOPES = "id, parent_id, limits, reserved_micro, settled_micro, granted_at_ms"
#: Has the database itself write down each growth of an envelope's totals, with the limits of that moment.
_WATCH = {
    "sqlite": (
        "CREATE TABLE growths (limits TEXT, total BIGINT)",
        "CREATE TRIGGER grows AFTER UPDATE ON envelopes WHEN NEW.reserved_micro + NEW.settled_micro > OLD.reserved_micro + "
        "OLD.settled_micro BEGIN INSERT INTO growths VALUES (NEW.limits, NEW.reserved_micro + NEW.settled_micro); END",
    ),
    "postgresql": (
        "CREATE TABLE growths (limits TEXT, total BIGINT)",
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS "
        "$$BEGIN INSERT INTO growths VALUES (NEW.limits, NEW.reserved_micro + NEW.settled_micro); RETURN NEW; END$$",
        "CREATE TRIGGER grows AFTER UPDATE ON envelopes FOR EACH ROW WHEN (NEW.reserved_micro + NEW.settled_micro > "
        "OLD.reserved_micro + OLD.settled_micro) EXECUTE FUNCTION note()",
    ),
}


def micro_of(msat: int, currency: str, btc_price: str | None) -> int:
    """``msat`` in millionths of a minor unit, rounded up."""
    if currency == "sat":
        return msat * 1_000
    assert btc_price is not None
    minor_units_a_btc = Fraction(btc_price) * (1 if currency == "jpy" else 100)
    return math.ceil(minor_units_a_btc * MICRO * msat / 10**11)


def held_micro(row: Mapping[str, Any]) -> int:
    """What a payment holds of its envelope: the most that it may come to, or what it came to."""
    if row["settled_at_ms"] is not None:
        return micro_of(row["amount_msat"] + row["fee_msat"], row["currency"], row["btc_price"])
    if row["state"] in ("open", "failed"):
        return micro_of(row["amount_msat"] + row["max_fee_msat"], row["currency"], row["btc_price"])
    return 0


@dataclass(frozen=True, kw_only=True)
class Sight:
    """The ledger at one moment: rows of payments by hash, rows of envelopes by id."""

    payments: Mapping[str, Mapping[str, Any]]
    envelopes: Mapping[str, Mapping[str, Any]]

    def chain(self, id: str | None) -> list[str]:
        """The envelope, and all that it lies in: each counts what is paid from it."""
        ids: list[str] = []
        while id is not None and id in self.envelopes and id not in ids:
            ids.append(id)
            id = self.envelopes[id]["parent_id"]
        return ids

    def counted_in(self, id: str) -> list[Mapping[str, Any]]:
        """The payments that count in an envelope: its own, and those of all that lie in it."""
        return [row for row in self.payments.values() if id in self.chain(row["envelope_id"])]

    def limits(self, id: str) -> dict[str, int | None]:
        """The envelope's limits in millionths of a minor unit."""
        said = json.loads(self.envelopes[id]["limits"])
        return {name: None if said[name] is None else said[name] * MICRO for name in LIMITS}

    def used_micro(self, id: str, name: str, now_s: float, granted_at_ms: int | None, *, slack: bool = False) -> int:
        """What counts against a shared limit; with ``slack`` as long as a ledger may count it at most."""
        total = 0
        for row in self.counted_in(id):
            settled_ms = row["settled_at_ms"]
            if settled_ms is None or self._counts(settled_ms, name, now_s, granted_at_ms, slack):
                total += held_micro(row)
        return total

    def _counts(self, settled_ms: int, name: str, now_s: float, granted_at_ms: int | None, slack: bool) -> bool:
        if name == "cap_minor_units":
            return granted_at_ms is None or settled_ms >= granted_at_ms
        begins_s = now_s - WINDOWS_S[name]
        return settled_ms > begins_s * 1_000 or (slack and settled_ms // 1_000 // BUCKET_S >= begins_s // BUCKET_S)

    def check(self) -> None:
        """The totals are the sums of the rows, in this very moment."""
        for id, envelope in self.envelopes.items():
            mine = self.counted_in(id)
            paid = sum(held_micro(row) for row in mine if row["settled_at_ms"] is not None)
            reserved = sum(held_micro(row) for row in mine if row["settled_at_ms"] is None)
            assert (envelope["reserved_micro"], envelope["settled_micro"]) == (reserved, paid), "totals aren't the sum of the rows"


class Reader:
    """Reads the ledger at ``url`` (a path, or PostgreSQL's URL) over a connection of its own. For one thread."""

    def __init__(self, url: str) -> None:
        self._connection: Any
        self.kind = url.partition("://")[0] if "://" in url else "sqlite"
        if self.kind == "sqlite":
            self._connection = sqlite3.connect(url, isolation_level=None, timeout=60)
        else:
            import psycopg

            self._connection = psycopg.connect(url, autocommit=True, prepare_threshold=None)  # as PgBouncer needs it

    def close(self) -> None:
        """Let go of the ledger."""
        self._connection.close()

    def look(self) -> Sight:
        """All of it, in one transaction."""
        self._do("BEGIN" if self.kind == "sqlite" else "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        try:
            payments, envelopes = self._rows(_PAYMENTS, "payments"), self._rows(_ENVELOPES, "envelopes")
        finally:
            self._do("ROLLBACK")
        return Sight(
            payments={row["payment_hash"]: row for row in payments},
            envelopes={row["id"]: row for row in envelopes},
        )

    def watch_growth(self) -> None:
        """From now on the database notes every growth of the totals."""
        for statement in _WATCH[self.kind]:
            self._do(statement)

    def growths(self) -> list[tuple[dict[str, int | None], int]]:
        """Each growth so far: the limits then in force, by name, and the new total of reserved and settled, in millionths."""
        grown = self._rows("limits, total", "growths")
        return [
            ({name: None if (v := json.loads(row["limits"])[name]) is None else v * MICRO for name in LIMITS}, row["total"])
            for row in grown
        ]

    def _rows(self, columns: str, table: str) -> list[dict[str, Any]]:
        names = [name.strip() for name in columns.split(",")]
        found = self._do(f"SELECT {columns} FROM {table}").fetchall()
        return [dict(zip(names, row, strict=True)) for row in found]

    def _do(self, statement: str) -> Any:
        return self._connection.cursor().execute(statement)  # a cursor's: who plays a crash has its hands on the connection's own


@contextmanager
def watching(url: str, check: Callable[[Sight], None]) -> Iterator[None]:
    """While the block runs, a thread of its own looks at the ledger over and over, and has every sight checked."""
    stop, wrong, looks = threading.Event(), [], 0

    def watch() -> None:
        nonlocal looks
        try:
            with closing(Reader(url)) as reader:
                while not stop.wait(0.001):
                    check(reader.look())
                    looks += 1
        except BaseException as error:
            wrong.append(error)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(60)
    if wrong:
        raise wrong[0]
    assert looks, "nobody looked"
