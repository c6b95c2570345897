"""The bill of ``routeweiler-sync run``: what the notes add up to that a program's interpreters have made.

How they are made is left to `run_bill`, which every process imports. This module is imported by programs that are run so alone.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import NamedTuple


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
