"""The bill of ``routeweiler-sync run``: what a program has paid, with all interpreters that it has started.

These processes share a file, in which each of them notes what it pays and which pages come. Reading it at the end gives the `Bill`.
The file is made by the first note, so a program that pays nothing leaves none. A note that can't be written is left out: the ledger
has every payment all the same. What the program may spend is left to `command_limit`.

Every process imports this module, also where nothing is ever paid, so it imports next to nothing itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

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


class Bill(NamedTuple):
    """What a program has paid. Amounts are in msat, ``amount_msat`` doesn't contain ``fee_msat``.

    ``pages`` are those that payments of the program have bought, ``token_pages`` came from tokens that were held already.
    ``undelivered`` are settled payments for which no page came, ``unfinished`` those whose outcome isn't known. ``used_up`` are
    charges that the server has taken without sending the page: they aren't among ``undelivered``.
    """

    amount_msat: int = 0
    fee_msat: int = 0
    payments: int = 0
    pages: int = 0
    token_pages: int = 0
    undelivered: int = 0
    undelivered_msat: int = 0
    used_up: int = 0
    used_up_msat: int = 0
    unfinished: int = 0
    unfinished_msat: int = 0

    @property
    def text(self) -> str:
        """The bill in words, on one line. Empty if nothing was paid, and nothing may be paid yet."""
        from .._core.money import sats

        parts = []
        if self.payments:
            fees = f" + {sats(self.fee_msat)} fees" if self.fee_msat else ""
            pages = f" for {_counted(self.pages, 'page')}" if self.pages else ""
            parts.append(f"paid {sats(self.amount_msat)}{fees}{pages}")
            if self.token_pages:
                parts.append(f"{self.token_pages} came from tokens")
        if self.undelivered:
            which = f"{_counted(self.undelivered, 'payment')} of {sats(self.undelivered_msat)}"
            parts.append(f"{which} brought no page yet: the token is kept, and the next call uses it")
        if self.used_up:
            which = f"{_counted(self.used_up, 'payment')} of {sats(self.used_up_msat)}"
            parts.append(f"{which} brought no page, and the server won't take it again: the next call pays anew")
        if self.unfinished:
            which = f"{_counted(self.unfinished, 'payment')} of {sats(self.unfinished_msat)}"
            verb = "isn't" if self.unfinished == 1 else "aren't"
            again = "run the program again, and nothing is paid twice; or run routeweiler-sync payments recover"
            parts.append(f"{which} {verb} finished, the node may still pay: {again}")
        return "; ".join(parts)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


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


def read(path: str) -> Bill:
    """Return the bill of the notes in the file ``path``. Without a file, nothing was paid.

    Raises: OSError if the file can't be read.
    """
    sent: dict[str, int] = {}
    paid: dict[str, tuple[int, int]] = {}
    used: list[list[str]] = []
    lost: set[str] = set()
    token_pages = pages = 0
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            for line in file:
                kind, *words = line.split() or [""]
                if kind == "+":
                    token_pages += 1
                if not words or words.pop() != ".":  # a note that was cut short
                    continue
                with suppress(ValueError, IndexError):  # two notes in one line
                    if kind == "sent":
                        sent[words[0]] = int(words[1])
                    elif kind == "dead":
                        sent.pop(words[0], None)
                    elif kind == "paid":
                        paid[words[0]] = int(words[1]), int(words[2])
                    elif kind == "lost":
                        lost.add(words[0])
                    elif kind == "page":
                        used.append(words)
    except FileNotFoundError:
        return Bill()
    waiting = set(paid)  # for their page. Not known before the end: a page may be noted before another process notes its payment
    for hashes in used:
        if waiting.isdisjoint(hashes):
            token_pages += 1
        else:
            pages += 1
            waiting.difference_update(hashes)
    lost &= waiting
    waiting -= lost
    unfinished = {payment_hash: msat for payment_hash, msat in sent.items() if payment_hash not in paid}
    return Bill(
        amount_msat=sum(amount_msat for amount_msat, _ in paid.values()),
        fee_msat=sum(fee_msat for _, fee_msat in paid.values()),
        payments=len(paid),
        pages=pages,
        token_pages=token_pages,
        undelivered=len(waiting),
        undelivered_msat=sum(paid[payment_hash][0] for payment_hash in waiting),
        used_up=len(lost),
        used_up_msat=sum(paid[payment_hash][0] for payment_hash in lost),
        unfinished=len(unfinished),
        unfinished_msat=sum(unfinished.values()),
    )


def present(path: str) -> None:
    """Write the bill of the file ``path`` to stderr, if there is anything to tell, and remove the file. Raises no Exception."""
    import sys

    with suppress(Exception):
        tally = sys.modules.get(f"{__package__}.tally")
        if tally is not None:
            tally.end_doubts()  # notes the payments whose booking was interrupted
        try:
            text = read(path).text
        finally:
            os.remove(path)
        if text and sys.__stderr__ is not None:
            sys.__stderr__.write(f"routeweiler-sync: {text}\n")
            sys.__stderr__.flush()
