"""Read the payments reported in trace files, JSON lines or SQLite. Comparing them with the ledger is left to `audit`."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any, BinaryIO

from .._core.files import printable
from .._core.money import EXACT
from .._core.secret_text import may_be_secret, shown

_SQLITE_MAGIC = b"SQLite format 3\x00"
_BUSY_TIMEOUT_S = 5.0
#: Amounts from here on, in whatever unit, are refused: no column of a ledger can hold them.
MAX_FIGURE = 2**63
#: The most bytes of an event: a line that somebody else wrote mustn't take all memory.
LINE_BYTES_MAX = 1 << 20


class TraceUnreadableError(Exception):
    """A trace file is missing or can't be read. The message names the file and the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedPayment:
    """What one trace event reports of a payment. Amounts are in msat.

    ``booked_minor_units`` is what the envelope was charged, in minor units of ``currency``; both are None if there was no envelope.
    ``proof`` is the preimage (hex), None in a redacted event, and for a charge.
    """

    amount_msat: int
    fee_msat: int
    booked_minor_units: Decimal | None
    currency: str | None
    proof: str | None = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceAccount:
    """Everything that traces report of payments. Calls that used an earlier token (``reused``) aren't included.

    ``payments`` has, by payment hash (hex), the different reports of each payment; more than one if events disagree. ``since_s`` is
    when the earliest call in the trace ended, in unix seconds, None for an empty trace: payments from before may be in files that
    weren't given. ``lines`` counts the events. ``unreadable`` counts the lines that aren't events; a process killed while writing
    may leave one.
    """

    files: tuple[str, ...]
    payments: dict[str, tuple[ReportedPayment, ...]]
    since_s: float | None
    lines: int
    unreadable: int


def read_traces(paths: Iterable[str | os.PathLike[str]]) -> TraceAccount:
    """Read the trace files at ``paths`` as one account. The kind of each file is recognised by its content. Writes nothing.

    Raises: TraceUnreadableError if a file is missing or can't be read.
    """
    files = tuple(os.fspath(path) for path in paths)
    payments: dict[str, dict[ReportedPayment, None]] = {}
    since_s: float | None = None
    lines = unreadable = 0
    for text in (text for file in files for text in event_texts(Path(file).expanduser())):
        try:
            ended_s, reported = _read(text)
        except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError):
            unreadable += 1
            continue
        lines += 1
        since_s = ended_s if since_s is None else min(since_s, ended_s)
        if reported is not None:
            payments.setdefault(reported[0], {})[reported[1]] = None
    return TraceAccount(
        files=files,
        payments={payment_hash: tuple(reports) for payment_hash, reports in payments.items()},
        since_s=since_s,
        lines=lines,
        unreadable=unreadable,
    )


def event_texts(path: Path) -> Iterator[str | bytes]:
    """Yield the JSON text of each event in one file. The kind of the file is recognised by its content. Writes nothing.

    A line above `LINE_BYTES_MAX` is no event: it is yielded as an empty text.

    Raises: TraceUnreadableError if the file is missing or can't be read.
    """
    import sqlite3

    try:
        if not stat.S_ISREG(path.stat().st_mode):  # to open a pipe that nobody writes to would take for ever
            raise OSError("it isn't a regular file, so it doesn't keep what is written to it")
        with path.open("rb") as file:
            if file.read(len(_SQLITE_MAGIC)) != _SQLITE_MAGIC:
                file.seek(0)
                yield from _lines(file)
                return
        uri = f"{path.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=_BUSY_TIMEOUT_S)) as connection:
            for (payload,) in connection.execute("SELECT payload FROM trace_events ORDER BY rowid"):
                yield payload
    except (OSError, ValueError, sqlite3.Error) as error:  # ValueError: a path with a NUL, or that can't be encoded
        why = getattr(error, "strerror", None) or error
        named = shown(str(path)) if may_be_secret(path) else printable(path)
        raise TraceUnreadableError(f"the trace {named} can't be read: {why}") from None  # its context names the path


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield the lines that aren't blank, an empty text in place of one above `LINE_BYTES_MAX`."""
    rest, too_long = b"", False
    while block := file.read(LINE_BYTES_MAX):
        lines = (rest + block).split(b"\n")
        rest = lines.pop()
        if too_long and lines:
            lines[0], too_long = b"", False
            yield b""
        yield from [line for line in lines if line and not line.isspace()]  # a list takes half the time of a generator
        if too_long or len(rest) > LINE_BYTES_MAX:
            rest, too_long = b"", True
    if rest or too_long:
        yield rest


def _read(text: str | bytes) -> tuple[float, tuple[str, ReportedPayment] | None]:
    """Return when an event's call ended (unix seconds), and the hash and report of the payment that it made, None if it made none.

    Raises: ValueError, KeyError and the like for a text that isn't an event.
    """
    with localcontext(EXACT):
        return _read_exactly(text)


def _read_exactly(text: str | bytes) -> tuple[float, tuple[str, ReportedPayment] | None]:
    event: Any = json.loads(text, parse_float=Decimal)
    ended_s = datetime.fromisoformat(event["timestampEnd"].replace("Z", "+00:00")).timestamp()
    payment = event["payment"]
    if payment is None or payment["reused"]:
        return ended_s, None
    booked, proof = payment["amountEnvelope"], payment["proofValue"]
    reported = ReportedPayment(
        amount_msat=_whole(payment["amountMsat"]),
        fee_msat=_whole(payment["feeMsat"]),
        booked_minor_units=None if booked is None else Decimal(booked),
        currency=None if booked is None else str(payment["amountEnvelopeCurrency"]),
        proof=None if proof is None else str(proof),
    )
    if reported.booked_minor_units is not None and not abs(reported.booked_minor_units) < MAX_FIGURE:
        raise ValueError("no amount")
    return ended_s, (str(payment["paymentHash"]), reported)


def _whole(amount_msat: object) -> int:
    """Return ``amount_msat`` if it is an integer of plausible size.

    Raises: ValueError otherwise. A line that was tampered with may hold a number so long that printing it takes all memory.
    """
    if type(amount_msat) is not int or abs(amount_msat) >= MAX_FIGURE:
        raise ValueError("no amount in msat")
    return amount_msat
