"""Reads what traces tell of payments, from files of either kind. What it means is for others: `routeweiler_sync.audit`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

_SQLITE_MAGIC = b"SQLite format 3\x00"
_BUSY_TIMEOUT_S = 5.0
#: Above any amount that a ledger's columns hold, in whatever unit.
MAX_FIGURE = 2**63


class TraceUnreadableError(Exception):
    """A trace file isn't there, or can't be read; says which and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedPayment:
    """What one line says of a payment. Amounts in msat; ``booked_minor_units`` of ``currency``: what the envelope was charged.

    ``proof`` is the preimage (hex), None in a redacted line.
    """

    amount_msat: int
    fee_msat: int
    booked_minor_units: Decimal | None
    currency: str | None
    proof: str | None = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceAccount:
    """What a trace tells: its payments by hash (not those whose tokens were used again), each with its distinct tellings.

    ``since_s``: the earliest end of a call in it, unix seconds: what was paid before may have been told in files that aren't here.
    ``unreadable``: lines that aren't events; a killed writer may leave one.
    """

    files: tuple[str, ...]
    payments: dict[str, tuple[ReportedPayment, ...]]
    since_s: float | None
    lines: int
    unreadable: int


def read_traces(paths: Iterable[str | os.PathLike[str]]) -> TraceAccount:
    """The account of all ``paths``, JSON lines or SQLite whatever their names. Writes nothing; TraceUnreadableError."""
    files = tuple(os.fspath(path) for path in paths)
    payments: dict[str, dict[ReportedPayment, None]] = {}
    since_s: float | None = None
    lines = unreadable = 0
    for text in (text for file in files for text in _texts(Path(file).expanduser())):
        try:
            ended_s, told = _read(text)
        except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError):
            unreadable += 1
            continue
        lines += 1
        since_s = ended_s if since_s is None else min(since_s, ended_s)
        if told is not None:
            payments.setdefault(told[0], {})[told[1]] = None
    return TraceAccount(
        files=files,
        payments={payment_hash: tuple(tellings) for payment_hash, tellings in payments.items()},
        since_s=since_s,
        lines=lines,
        unreadable=unreadable,
    )


def _texts(path: Path) -> Iterator[str | bytes]:
    """The JSON of each event of one file."""
    import sqlite3

    try:
        with path.open("rb") as file:
            if file.read(len(_SQLITE_MAGIC)) != _SQLITE_MAGIC:
                file.seek(0)
                yield from (line for line in file if line.strip())
                return
        uri = f"{path.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=_BUSY_TIMEOUT_S)) as connection:
            for (payload,) in connection.execute("SELECT payload FROM trace_events ORDER BY rowid"):
                yield payload
    except (OSError, sqlite3.Error) as error:
        why = getattr(error, "strerror", None) or error
        raise TraceUnreadableError(f"the trace {path} can't be read: {why}") from error


def _read(text: str | bytes) -> tuple[float, tuple[str, ReportedPayment] | None]:
    """When the call of an event ended, and the payment that it made, if any."""
    event: Any = json.loads(text, parse_float=Decimal)
    ended_s = datetime.fromisoformat(event["timestampEnd"].replace("Z", "+00:00")).timestamp()
    payment = event["payment"]
    if payment is None or payment["reused"]:
        return ended_s, None
    booked, proof = payment["amountEnvelope"], payment["proofValue"]
    told = ReportedPayment(
        amount_msat=_whole(payment["amountMsat"]),
        fee_msat=_whole(payment["feeMsat"]),
        booked_minor_units=None if booked is None else Decimal(booked),
        currency=None if booked is None else str(payment["amountEnvelopeCurrency"]),
        proof=None if proof is None else str(proof),
    )
    if told.booked_minor_units is not None and not abs(told.booked_minor_units) < MAX_FIGURE:
        raise ValueError("no amount")
    return ended_s, (str(payment["paymentHash"]), told)


def _whole(amount_msat: object) -> int:
    """A line that was changed may hold what would take a machine's whole memory to write out."""
    if type(amount_msat) is not int or abs(amount_msat) >= MAX_FIGURE:
        raise ValueError("no amount in msat")
    return amount_msat
