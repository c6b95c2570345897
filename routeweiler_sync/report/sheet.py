"""The payments of an account as CSV, for a bookkeeper: one row for each payment that was made, oldest first.

The form is that of RFC 4180 in UTF-8. Amounts are plain decimals. A text that a spreadsheet would take for a formula gets an
apostrophe in front of it, which spreadsheets don't show.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import TextIO

from ..budgets.schema import DAY_S
from .account import PAID, Account, Entry, Series
from .amounts import major, sat, unit
from .figures import Sum, moment
from .texts import clean

#: The columns. Spent is amount and fee together. Booked is what the budget was charged, in its currency, at the price of a bitcoin
#: (``btc_price``) when the payment was begun.
COLUMNS = (
    "paid_at",
    "payment_hash",
    "origin",
    "path",
    "description",
    "amount_sat",
    "fee_sat",
    "spent_sat",
    "booked_amount",
    "booked_currency",
    "btc_price",
    "rate_quality",
    "envelope",
    "network",
    "node",
    "agent",
)
#: With one of these a spreadsheet begins a formula. The wide ones are taken for the others by spreadsheets in East Asia.
_FORMULA = tuple("=+-@\t\r\n|%\uff1d\uff0b\uff0d\uff20")
#: Where a spreadsheet whose columns are apart by semicolons, as in much of Europe, would find a formula within a text.
_INNER_FORMULA = re.compile(rf";[\s\"']*(?=[{re.escape(''.join(_FORMULA))}])")
#: Texts that are written as they are: they hold no secret and begin no formula. The last is a node's public key.
_PLAIN = re.compile(r"[A-Za-z0-9/][A-Za-z0-9 _./]{0,31}|0[23][0-9a-f]{64}")
#: What a cell that holds it is quoted for, besides the comma; and how many commas a row without a comma in a cell has.
_QUOTED = re.compile(r"[\"\r\n]")
_COMMAS = len(COLUMNS) - 1
_TWO_DIGITS = tuple(f"{number:02}" for number in range(60))


def write(file: TextIO, account: Account) -> Sum:
    """Write the payments of ``account`` to ``file``, which must be open with ``newline=""``. Return their sum.

    Raises: OSError.
    """
    writer = csv.writer(file)
    writer.writerow(COLUMNS)
    payments = amount_msat = fee_msat = 0
    for entry in _entries(account):
        row = _row(entry)
        line = ",".join(row)
        if _QUOTED.search(line) is None and line.count(",") == _COMMAS:
            file.write(f"{line}\r\n")  # the writer, which looks at each character, would take as long as all else
        else:
            writer.writerow(row)
        payments, amount_msat, fee_msat = payments + 1, amount_msat + entry.amount_msat, fee_msat + entry.fee_msat
    return Sum(payments=payments, amount_msat=amount_msat, fee_msat=fee_msat)


def _entries(account: Account) -> Iterator[Entry]:
    return account.entries(*account.within(f"rank >= {PAID}"))


def _row(entry: Entry) -> list[str]:
    """Return the cells of one payment, in the order of `COLUMNS`."""
    hash_, _, at_ms, series, path, amount_msat, fee_msat, micro, btc_price, _, description, _ = entry
    origin, currency, rate_quality, envelope_id, network, node, agent = _of_series(series)
    return [
        _time(at_ms),
        hash_.hex(),
        origin,
        _text(path),
        _text(description),
        sat(amount_msat),
        sat(fee_msat),
        sat(amount_msat + fee_msat),
        "" if micro is None or series.currency is None else major(micro, series.currency),
        currency,
        "" if btc_price is None else _safe(btc_price),
        rate_quality,
        envelope_id,
        network,
        node,
        agent,
    ]


@lru_cache(maxsize=4096)
def _of_series(series: Series) -> tuple[str, ...]:
    """Return the cells that all payments of a series have in common."""
    currency = "" if series.currency is None else _safe(unit(series.currency))
    return (
        _safe(series.origin),
        currency,
        _safe(series.rate_quality),
        _safe(series.envelope_id),
        _safe(series.network),
        _safe(series.node),
        _safe(series.agent),
    )


def _time(ms: int) -> str:
    days, second = divmod(ms // 1000, DAY_S)
    minute, second = divmod(second, 60)
    hour, minute = divmod(minute, 60)
    return f"{_day(days)}T{_TWO_DIGITS[hour]}:{_TWO_DIGITS[minute]}:{_TWO_DIGITS[second]}Z"


@lru_cache(maxsize=1024)
def _day(days: int) -> str:
    """Return the date that is so many days after the first of 1970."""
    return f"{moment(days * DAY_S * 1000):%Y-%m-%d}".rjust(10, "0")


def _text(text: str | None) -> str:
    """Return what `_safe` does, quickly for a text that is hardly ever the same twice."""
    return text if text and _PLAIN.fullmatch(text) else _safe(text)


@lru_cache(maxsize=4096)
def _safe(text: str | None) -> str:
    """Return a text of others for a cell: made safe, with an apostrophe where a spreadsheet would take it for a formula."""
    if not text or _PLAIN.fullmatch(text):
        return text or ""
    shown = _INNER_FORMULA.sub(r"\g<0>'", clean(text))
    return f"'{shown}" if shown.lstrip().startswith(_FORMULA) else shown
