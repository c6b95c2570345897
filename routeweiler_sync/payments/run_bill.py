"""The notes for the bill of ``routeweiler-sync run``: what a program pays, with all interpreters that it has started.

These processes share a file, in which each of them notes what it pays and which pages come. The file is made by the first note, so
a program that pays nothing leaves none. A note that can't be written is left out: the ledger has every payment all the same. What
the notes add up to is read in `bill`; what the program may spend is left to `command_limit`.

Every process imports this module, also where nothing is ever paid, so it imports next to nothing itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..ledger.types import PaymentRow

#: The files of the runs that this process belongs to. Empty unless ``routeweiler-sync run`` has started it.
files: list[str] = []
#: How many tokens a process remembers as noted.
MAX_NOTED = 10_000

#: The tokens (by hashes) whose first page is noted by this process.
_noted: set[str] = set()
#: The payments (by hash) that this process has ordered, and whose end isn't noted yet.
_ordered: set[str] = set()


def set_from(variable: str) -> None:
    """Note what this process pays in the files that ``variable``, the value of ROUTEWEILER_RUN_BILL, names: one a line.

    A program that is run may run another one: its payments are on both bills. A line that ``routeweiler-sync run`` can't have
    written is ignored: no program fails because of its bill.
    """
    files[:] = [path for line in variable.split("\n") if (path := line.partition(" ")[2])]


def note_order(row: PaymentRow) -> None:
    """Note that the payment ``row`` is about to be ordered, for the first time or again."""
    if files and row.payment_hash not in _ordered:
        _ordered.add(row.payment_hash)
        _write(f"sent {row.payment_hash} {row.amount_msat} .\n")


def note_end(row: PaymentRow) -> None:
    """Note how the payment ``row`` has ended, if this process has ordered it. Do nothing while it is unfinished."""
    if files and not row.unfinished and row.payment_hash in _ordered:
        _ordered.discard(row.payment_hash)
        if row.settled_at is None:
            _write(f"dead {row.payment_hash} .\n")
        else:
            note_paid(row)


def note_paid(row: PaymentRow) -> None:
    """Note that the payment ``row`` is settled, by this process or after an order of it."""
    if files:
        _ordered.discard(row.payment_hash)
        _write(f"paid {row.payment_hash} {row.amount_msat} {row.fee_msat} .\n")


def note_page(payment_hashes: Iterable[str]) -> None:
    """Note that a page has come for the tokens of these payments."""
    if not files:
        return
    key = " ".join(payment_hashes)
    if not key:
        return
    if key in _noted:  # only the first page can be the one that was bought, so the others are just counted
        _write("+\n")
        return
    if len(_noted) >= MAX_NOTED:
        _noted.clear()
    _noted.add(key)
    _write(f"page {key} .\n")


def note_used_up(payment_hash: str) -> None:
    """Note that the server has taken a charge without sending the page."""
    if files:
        _write(f"lost {payment_hash} .\n")


def _write(note: str) -> None:
    """Append ``note`` to each file. Raises nothing: a payment or page matters more than its note."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    for name in ("O_NOFOLLOW", "O_CLOEXEC", "O_BINARY"):
        flags |= getattr(os, name, 0)
    for path in files:
        with suppress(OSError):
            # Opened each time: a program that closes all files it knows nothing of would make the number stand for another one.
            fd = os.open(path, flags, 0o600)
            try:
                os.write(fd, f"\n{note}".encode())  # a note that a full disk has cut short spoils no other one
            finally:
                os.close(fd)
