"""Move payments that have ended out of a ledger into an archive: an SQLite file with the tables of a ledger, for reading only.

This module knows which payments have ended for good (`_ENDED`), in which order a row moves, and what the ledger keeps of it.
Reading an archive is reading a ledger: `Ledger.open` opens either, and every write to an archive is refused but `move`'s.

A batch moves in two steps, and a program that dies between them neither loses nor doubles a payment:

1. The rows are written to the archive and are on its disk (a commit with ``synchronous=FULL``). The ledger still has them.
2. One short transaction removes from the ledger those that are still as they were written, and keeps of each the beginning of its
   hash (`key_of`), and of all the sums by origin and envelope. So no invoice that was ever in the ledger is paid again, and totals
   stay exact. Envelopes aren't touched: their totals and buckets are running sums, not sums over rows.

After a death between the two, or if a row came to life in between, both have it. The ledger's counts then, and a later run writes
it once more. Nothing is ever removed from an archive: another run might just have moved it there.

Tokens aren't moved: what they opened is over. The preimage is, because it is the proof of payment.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .._core.files import SIDE_FILES, printable
from ..errors import LedgerError
from .sqlite import ArchiveStore
from .store import Store, Transaction

#: Nothing that has ended sooner than this many days ago is moved: a call may still look at it, and a wallet be asked about it.
MIN_AGE_DAYS = 30
#: How many rows move in one transaction. Buyers wait for as long as it takes.
BATCH_ROWS = 200
#: How often a batch is read again because one of its rows has changed since it was read.
MAX_TRIES = 5
#: The longest pause between two batches, in seconds. It is as long as the ledger was locked, so that buyers get their turn.
MAX_PAUSE_S = 2.0
#: The bits of a payment hash that the ledger keeps. That a new hash begins like one of ten million others has odds of 1 in 10^12;
#: its invoice is then refused, not paid.
KEY_BITS = 64

# What has ended for good, in the words of the schema; parameters: see `_ended`. Kept are unfinished payments, live tokens, charges
# that are owed, payments that no trace has reported, those that a call is reporting or presenting, and two kinds that may be needed
# yet: what the user has abandoned (`Ledger.abandoned` asks about it), and what was paid after that and never used.
_ENDED = (
    "(state IN ('retired', 'dead') OR (state = 'settled' AND single_use = 0 AND taken >= 1 AND valid_until < ?)) "
    "AND created_at_ms < ? AND COALESCE(settled_at_ms, 0) < ? AND COALESCE(ended_at_ms, 0) < ? "
    "AND reserved_micro = 0 AND (told <> 0 OR settled_at_ms IS NULL) "
    "AND COALESCE(failure_code, '') <> 'abandoned' "
    "AND COALESCE(claimed_until_ms, 0) <= ? AND COALESCE(presented_until_ms, 0) <= ?"
)
_PAGE = "(created_at_ms, payment_hash) > (?, ?) AND (created_at_ms, payment_hash) <= (?, ?)"
_SUMS = ("payments", "paid", "accepted", "amount_msat", "fee_msat", "settled_micro")


@dataclass(frozen=True, kw_only=True)
class Archived:
    """What was moved to an archive, or would be. Amounts in msat.

    ``payments`` counts all, ``paid`` those that were paid; ``spent_msat`` is what these cost, fees included.
    """

    payments: int = 0
    paid: int = 0
    spent_msat: int = 0

    def plus(self, rows: Sequence[Mapping[str, Any]]) -> Archived:
        """Return the sum of this and of ``rows``, rows of the table ``payments``."""
        paid = [row for row in rows if row["settled_at_ms"] is not None]
        return replace(
            self,
            payments=self.payments + len(rows),
            paid=self.paid + len(paid),
            spent_msat=self.spent_msat + sum(row["amount_msat"] + row["fee_msat"] for row in paid),
        )


def key_of(payment_hash: str) -> int:
    """Return the number that stands for a payment hash (hex) in the table ``archived_payments``: its first bits, signed."""
    return int(payment_hash[: KEY_BITS // 4], 16) - (1 << KEY_BITS - 1)


def keys_from(beginning: str) -> tuple[int, int]:
    """Return the least and the highest key of hashes that begin with ``beginning``, hex digits in lower case."""
    digits = KEY_BITS // 4
    return key_of(beginning.ljust(digits, "0")), key_of(beginning.ljust(digits, "f"))


def has_key(tx: Transaction, payment_hash: str) -> bool:
    """Return whether the payment was moved to an archive."""
    return bool(tx.execute("SELECT 1 AS one FROM archived_payments WHERE hash_begin = ?", (key_of(payment_hash),)))


def moved(tx: Transaction) -> Archived:
    """Return what was ever moved out of this ledger."""
    (row,) = tx.execute(
        "SELECT CAST(COALESCE(SUM(payments), 0) AS BIGINT) AS payments, CAST(COALESCE(SUM(paid), 0) AS BIGINT) AS paid, "
        "CAST(COALESCE(SUM(amount_msat + fee_msat), 0) AS BIGINT) AS spent_msat FROM archived_sums"
    )
    return Archived(**{name: int(value) for name, value in row.items()})


def check_age(before_ms: int, now_ms: int) -> None:
    """Refuse a time that isn't long past.

    Raises: ValueError.
    """
    if before_ms > now_ms - MIN_AGE_DAYS * 86_400_000:
        raise ValueError(f"only payments that ended at least {MIN_AGE_DAYS} days ago can be moved to an archive")


def count(store: Store, before_ms: int, now_ms: int) -> Archived:
    """Return what `move` would move. Nothing is changed."""
    found = Archived()
    for page in _pages(store, before_ms):
        found = found.plus(_ended(store, page, before_ms, now_ms))
    return found


def move(store: Store, to: str | os.PathLike[str], before_ms: int, now_ms: int, progress: Callable[[Archived], object]) -> Archived:
    """Move the payments that ended before ``before_ms`` to the archive ``to``, which is made if it isn't there.

    ``progress`` is called after each batch with what has been moved so far.

    Raises: LedgerError. What was moved until then is in the archive.
    """
    target, moved = ArchiveStore(to), Archived()
    if target.path.name.endswith(SIDE_FILES):
        raise LedgerError(
            f"{printable(target.path)} has the name of a file that SQLite makes beside a database, and would overwrite.",
            advice="Name the archive another way, such as archive.db.",
        )
    with closing(target):
        with target.transaction(binding=True):
            pass  # refuses a file that is something else before anything is read
        _sync_folder(target.path.parent)
        for page in _pages(store, before_ms):
            began_s = time.monotonic()
            rows, locked_s = _move_page(store, target, page, before_ms, now_ms)
            if rows:
                moved = moved.plus(rows)
                progress(moved)
                time.sleep(min(locked_s, time.monotonic() - began_s, MAX_PAUSE_S))
    return moved


def _sync_folder(folder: Path) -> None:
    """Put the name of a new file in ``folder`` on disk, where the system can do that."""
    if os.name == "nt":
        return
    with suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


_Place = tuple[int, str]
_Page = tuple[_Place, _Place]


def _pages(store: Store, before_ms: int) -> Iterator[_Page]:
    """Yield all payments begun before ``before_ms`` as pages of `BATCH_ROWS`: the places between which they lie, by age and hash.

    A page is found in an index alone, so that a long way over rows that stay takes no long statement.
    """
    start: _Place = (-1, "")
    while True:
        with store.read() as tx:
            ends = tx.execute(
                "SELECT created_at_ms, payment_hash FROM payments WHERE (created_at_ms, payment_hash) > (?, ?) "
                "AND created_at_ms < ? ORDER BY created_at_ms, payment_hash LIMIT 1 OFFSET ?",
                (*start, before_ms, BATCH_ROWS - 1),
            )
        end = (ends[0]["created_at_ms"], ends[0]["payment_hash"]) if ends else (before_ms, "")
        yield start, end
        if not ends:
            return
        start = end


def _when(before_ms: int, now_ms: int) -> tuple[int, ...]:
    """Return the parameters of `_ENDED`."""
    return before_ms // 1000, before_ms, before_ms, before_ms, now_ms, now_ms


def _ended(store: Store, page: _Page, before_ms: int, now_ms: int) -> list[Mapping[str, Any]]:
    """Return the rows of ``page`` that have ended for good."""
    with store.read() as tx:
        return tx.execute(
            f"SELECT * FROM payments WHERE {_PAGE} AND {_ENDED} ORDER BY created_at_ms, payment_hash",  # noqa: S608 - constants
            (*page[0], *page[1], *_when(before_ms, now_ms)),
        )


class _ChangedError(Exception):
    """A row has changed since it was written to the archive."""


def _move_page(
    store: Store, target: ArchiveStore, page: _Page, before_ms: int, now_ms: int
) -> tuple[list[Mapping[str, Any]], float]:
    """Move what has ended in ``page``. Return the rows that were moved, and for how many seconds the ledger was locked at most."""
    for _ in range(MAX_TRIES):
        rows = _ended(store, page, before_ms, now_ms)
        if not rows:
            break
        target.run(lambda tx, rows=rows: _write(tx, rows), binding=True)  # type: ignore[misc]
        began_s = time.monotonic()
        try:
            gone = store.run(lambda tx, rows=rows: _remove(tx, rows, before_ms, now_ms), binding=True)  # type: ignore[misc]
        except _ChangedError:
            continue
        locked_s = time.monotonic() - began_s
        return [row for row in rows if row["payment_hash"] in gone], locked_s
    return [], 0.0


def _marks(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values))


def _write(tx: Transaction, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write ``rows`` to the archive, in place of what it has of them, without their tokens.

    Raises: LedgerError if that would replace a proof of payment.
    """
    _keep_proofs(tx, rows)
    names = list(rows[0])
    insert = (
        f"INSERT INTO payments ({', '.join(names)}) VALUES ({_marks(names)}) ON CONFLICT (payment_hash) DO UPDATE SET "  # noqa: S608
        f"{', '.join(f'{name} = excluded.{name}' for name in names if name != 'payment_hash')}"
    )
    for row in rows:
        tx.execute(insert, ["" if name == "token" else row[name] for name in names])


def _keep_proofs(tx: Transaction, rows: Sequence[Mapping[str, Any]]) -> None:
    """Refuse to write ``rows`` where the archive knows that one was paid, or has its preimage, and the row doesn't.

    It is of another ledger then, or this one was restored from a backup. What the archive has is nowhere else.
    """
    hashes = {row["payment_hash"]: row for row in rows}
    paid = tx.execute(
        "SELECT payment_hash, preimage FROM payments WHERE settled_at_ms IS NOT NULL "  # noqa: S608 - constants
        f"AND payment_hash IN ({_marks(rows)})",
        list(hashes),
    )
    for known in paid:
        row = hashes[known["payment_hash"]]
        if row["settled_at_ms"] is None or (known["preimage"] is not None and row["preimage"] is None):
            raise LedgerError(
                f"The archive has a proof of payment {known['payment_hash']} that the ledger hasn't: it is of another ledger, or "
                "this one was restored from a backup. The proof wasn't replaced.",
                advice="Name another file, one for each ledger.",
                shell_advice="Name another file by --to, one for each ledger.",
            )


def _remove(tx: Transaction, rows: Sequence[Mapping[str, Any]], before_ms: int, now_ms: int) -> set[str]:
    """Remove ``rows`` from the ledger, and keep what it must know of them. Return the hashes of those that had ended still.

    Raises: _ChangedError, which undoes it all, if one isn't as it was.
    """
    hashes = [row["payment_hash"] for row in rows]
    gone = tx.execute(
        f"DELETE FROM payments WHERE payment_hash IN ({_marks(hashes)}) AND {_ENDED} RETURNING *",  # noqa: S608 - constants
        (*hashes, *_when(before_ms, now_ms)),
    )
    known = {row["payment_hash"]: dict(row) for row in rows}
    if any(known[row["payment_hash"]] != dict(row) for row in gone):
        raise _ChangedError
    if gone:
        keys = [key_of(row["payment_hash"]) for row in gone]
        tx.execute(
            f"INSERT INTO archived_payments (hash_begin) VALUES {', '.join(['(?)'] * len(keys))} ON CONFLICT DO NOTHING",  # noqa: S608
            keys,
        )
        _add_sums(tx, gone)
    return {row["payment_hash"] for row in gone}


def _add_sums(tx: Transaction, rows: Sequence[Mapping[str, Any]]) -> None:
    sums: dict[tuple[str, str], list[int]] = {}
    for row in rows:
        paid = row["settled_at_ms"] is not None
        total = sums.setdefault((row["origin"], row["envelope_id"] or ""), [0] * (len(_SUMS) + 1))
        values = (1, paid, row["taken"] >= 1, row["amount_msat"] * paid, row["fee_msat"] * paid, row["settled_micro"])
        for n, value in enumerate(values):
            total[n] += int(value)
        total[-1] = max(total[-1], row["settled_at_ms"] or 0)
    # One statement, as the hashes are: a round trip for each origin would be most of what an archive of many origins takes. Its
    # rows are in one order, so that no two programs wait for each other.
    lines = [(origin, envelope_id, *total) for (origin, envelope_id), total in sorted(sums.items())]
    tx.execute(
        f"INSERT INTO archived_sums (origin, envelope_id, {', '.join(_SUMS)}, last_settled_at_ms) "  # noqa: S608 - constants
        f"VALUES {', '.join([f'({_marks(lines[0])})'] * len(lines))} ON CONFLICT (origin, envelope_id) DO UPDATE SET "
        f"{', '.join(f'{name} = archived_sums.{name} + excluded.{name}' for name in _SUMS)}, last_settled_at_ms = "
        "CASE WHEN excluded.last_settled_at_ms > archived_sums.last_settled_at_ms THEN excluded.last_settled_at_ms "
        "ELSE archived_sums.last_settled_at_ms END",
        [value for line in lines for value in line],
    )


def moved_error(payment_hash: str) -> LedgerError:
    """Return (not raise) the error for a payment that was moved to an archive."""
    return LedgerError(
        f"Payment {printable(payment_hash)} has ended and was moved to an archive. Nothing was changed.",
        advice="To read it, open the archive as a ledger: Ledger.open(file).",
        shell_advice="To read it, name the archive in place of the ledger: --ledger FILE",
    )
