"""A report on a mixed account, character for character: every kind of event, odd values, payments that several sources have.

``python -m tests.component.report.test_known_report`` writes the expected files anew. Look at what has changed in them.
"""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from random import Random
from typing import Any

from routeweiler_sync.cli.report import _as_json
from routeweiler_sync.ledger.statement import StatementLine
from routeweiler_sync.report import account as account_module, sheet
from routeweiler_sync.report.account import Account
from routeweiler_sync.report.figures import figures_of

KNOWN = Path(__file__).parent / "known"
START = datetime(2026, 1, 1, tzinfo=timezone.utc)
EVENTS, PAYMENTS, LINES = 1_500, 220, 90
#: Most values are plain: an event with one of the odd ones isn't unreadable for another one.
ODD_ONE_IN = 12

ORIGINS = ["https://api1.example", "https://api2.example:8443", "http://API3.example:80", "https://user:hush@api4.example"]
ODD_URLS = [None, 17, "", "not a url", "https://[::1", "ftp://a.example/x", "https://a.example"]
PATHS = ["/", "/v1/page", "/a;=b", "/%20/x?key=hush#part", "", "/" + "x" * 600, "/@me", "/../up"]
TEXTS = ["page", "=1+1", "one;=2", "ü€", "\ud800", 'say "hi", twice', "two\nlines\r", "ab" * 32, "x" * 400, "@a", "", " -1", "a,b"]
NODES = ["02" * 33, "03" + "11" * 32]
ODD = [5, True, 1, 1.5, {"a": 1}, [1, "x"], "=cmd", 'quo"te', "\ud800", ""]
AMOUNTS = [0, 1, 999, 1_000, 10_500, 1_000_000, 123_456_789]
ODD_AMOUNTS = [-1, True, 1.5, "7", None, 2**62, 10**30]
BOOKED: list[Any] = [None, 1, 0.25, "12.345678", "0.0000019", 100_000]
ODD_BOOKED = ["NaN", -1, "x", "1e400", True, [1], 2**70]


class Draw:
    """Values drawn from lists, the same ones in every version of Python."""

    def __init__(self, seed: int) -> None:
        self.below = Random(seed).randrange

    def one(self, values: Sequence[Any], odd: Sequence[Any] = ()) -> Any:
        values = odd if odd and not self.below(ODD_ONE_IN) else values
        return values[self.below(len(values))]

    def hash(self) -> str:
        return f"{self.below(PAYMENTS) * 7919 % 1_000_003:064x}"[::-1]

    def time(self, number: int) -> str:
        at = START + timedelta(seconds=number * 7_001, microseconds=self.below(10**6))
        if not self.below(6):
            return at.astimezone(timezone(timedelta(hours=self.below(9) - 4))).isoformat()
        text = at.isoformat(timespec="microseconds").replace("+00:00", "Z")
        return self.one([text], [text[:-1], text[:10], "", 5, None])

    def url(self) -> Any:
        return self.one([self.one(ORIGINS) + self.one(PATHS)], ODD_URLS)


def events() -> Iterator[str]:
    """The lines of a trace."""
    draw = Draw(1)
    for number in range(EVENTS):
        payment_hash = draw.one([draw.hash()], ["ab", draw.hash().upper(), "zz" * 32, None])
        payment = {
            "paymentHash": payment_hash,
            "amountMsat": draw.one(AMOUNTS, ODD_AMOUNTS),
            "feeMsat": draw.one(AMOUNTS[:4], ODD_AMOUNTS),
            "amountEnvelope": draw.one(BOOKED, ODD_BOOKED),
            "amountEnvelopeCurrency": draw.one(["sat", "usd", "eur", None], ODD),
            "fmvQuality": draw.one(["exact", "stale", None], ODD),
            "settlementLatencyMs": draw.one([None, 0, 42, 5_000, 2**40], ODD_AMOUNTS),
            "reused": draw.one([False, False, True], [1, None]),
        }
        challenge = {
            "url": draw.url(),
            "network": draw.one(["bitcoin", None], ODD),
            "paymentHash": payment_hash,
            "description": draw.one([*TEXTS, None, f"page {number}"], ODD),
        }
        error = {"code": draw.one(["timeout", "budget", "=x"], ODD), "message": draw.one(TEXTS)}
        event = {
            "requestId": f"r{draw.below(EVENTS * 2)}",
            "envelopeId": draw.one(["default", "other", None], ODD),
            "url": draw.url(),
            "method": draw.one(["GET"], ["RECOVER", None]),
            "challenge": draw.one([challenge, challenge, None]),
            "fundingSource": draw.one([*NODES, None], ODD),
            "payment": draw.one([payment, payment, payment, None]),
            "outcome": {
                "httpStatus": draw.one([200, 402, 500, None]),
                "serviceDelivered": draw.one([True, False]),
                "serviceLatencyMs": draw.one([None, 3, 900], ODD_AMOUNTS),
                "error": draw.one([None, None, error]),
            },
            "timestampEnd": draw.time(number),
        }
        if not draw.below(9):
            event["parentRequestId"] = f"r{number}"
        if not draw.below(40):
            del event[draw.one(sorted(event))]
        yield json.dumps(event)
        if not draw.below(50):
            yield draw.one(["{", "[]", "null", '{"requestId":1}', "  ", json.dumps(event)[:-9], f" {json.dumps(event)} "])


def lines() -> Iterator[StatementLine]:
    """The payments of a ledger: some are in the trace too."""
    draw = Draw(2)
    for number in range(LINES):
        created_ms = 1_767_225_600_000 + number * 60_000_007
        state = draw.one(["settled", "settled", "settled", "retired", "open", "failed", "dead"])
        settled = state in ("settled", "retired")
        envelope_id = draw.one(["default", "other", None])
        yield StatementLine(
            payment_hash=draw.hash(),
            origin=draw.one(["https://api1.example", "https://books.example"]),
            path=draw.one(["/", "/v1/page", "/=x"]),
            state=state,
            node_pubkey=draw.one(NODES),
            network=draw.one(["bitcoin", "regtest"]),
            amount_msat=draw.one(AMOUNTS),
            max_fee_msat=5_000,
            fee_msat=draw.one(AMOUNTS[:4]) if settled else 0,
            envelope_id=envelope_id,
            currency=None if envelope_id is None else draw.one(["sat", "usd"]),
            btc_price=draw.one([None, "64000.12", "99999"]),
            rate_quality=draw.one(["exact", "stale", None]),
            settled_micro=draw.below(10**9) if settled else 0,
            failure_code=draw.one(["no_route", "expired"]) if state == "dead" else None,
            created_at_ms=created_ms,
            settled_at_ms=created_ms + draw.below(10**6) if settled else None,
            agent_id=(None, "crawler", "=reader")[number % 3],
        )


def told(folder: Path, *, ledger_first: bool = True, since_ms: int | None = None) -> dict[str, str]:
    """The report in all its forms: texts by the name of their file."""
    trace = folder / "trace.jsonl"
    trace.write_text("".join(f"{line}\n" for line in events()), encoding="utf-8")
    with Account(since_ms) as account:
        adding = [lambda: account.add_ledger(lines()), lambda: account.add_trace(trace)]
        for add in adding if ledger_first else adding[::-1]:
            add()
        file = io.StringIO(newline="")
        total = sheet.write(file, account)
        figures = figures_of(account, sources=(), envelopes=(), since=None, made_at=START)
        assert since_ms is not None or total == figures.spent
        named = (
            "at_ms",
            "rank",
            "origin",
            "path",
            "amount_msat",
            "fee_msat",
            "currency",
            "booked_micro",
            "btc_price",
            "description",
        )
        listed = (*figures.newest, *figures.unfinished_oldest)
        shown = [[each.hash.hex(), *(getattr(each, name) for name in named)] for each in listed]
        summary = {**_as_json(figures), "byPrice": [each.total_msat for each in figures.by_price], "shown": shown}
    return {"report.csv": file.getvalue(), "report.json": json.dumps(summary, indent=1) + "\n"}


def known(name: str) -> str:
    return (KNOWN / name).read_bytes().decode()


def test_a_report_stays_as_it_is(tmp_path: Path) -> None:
    """A quicker report would be another one: an amount, a merged payment, an order or a quote would differ."""
    assert told(tmp_path) == {name: known(name) for name in ("report.csv", "report.json")}


def test_the_sizes_of_what_is_remembered_change_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    """Payments with more origins than are remembered would get those of others."""
    monkeypatch.setattr(account_module, "_SERIES_MAX", 3)
    monkeypatch.setattr(account_module, "_BATCH", 7)
    assert told(tmp_path)["report.csv"] == known("report.csv")
    assert told(tmp_path)["report.json"] == known("report.json")


def test_the_order_of_the_sources_changes_no_amount(tmp_path: Path) -> None:
    """A ledger counts more than a trace also if it is read last."""
    assert told(tmp_path, ledger_first=False)["report.csv"] == known("report.csv")


def test_a_later_beginning_leaves_out_earlier_rows(tmp_path: Path) -> None:
    """The bill of one month would hold payments of another, or miss some."""
    rows = list(csv.reader(io.StringIO(known("report.csv"), newline="")))
    since = rows[len(rows) // 2][0]
    since_ms = int((datetime.fromisoformat(since.replace("Z", "+00:00")) - START).total_seconds() + START.timestamp()) * 1_000
    found = list(csv.reader(io.StringIO(told(tmp_path, since_ms=since_ms)["report.csv"], newline="")))
    assert found == [rows[0], *(row for row in rows[1:] if row[0] >= since)]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        for file_name, text in told(Path(name)).items():
            (KNOWN / file_name).write_bytes(text.encode())
