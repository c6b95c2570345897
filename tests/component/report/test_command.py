"""``routeweiler-sync report`` as a process: the table, the CSV file, which files it reads and writes, and how it fails."""

from __future__ import annotations

import csv
import io
import os
import re
import stat
import sys
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path

import pytest

from routeweiler_sync import BudgetEnvelope, Routeweiler, StaticRate, TraceSink
from routeweiler_sync.report import sheet
from routeweiler_sync.testing import FakeLnd, Paywall
from routeweiler_sync.trace import TracePayment
from tests.support.accounts import Books
from tests.support.cli_process import Command
from tests.support.trace_events import paid_event


def rows_of(text: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text.decode("utf-8"), newline="")))


def test_without_anything_bought_it_says_so(command: Command, tmp_path: Path) -> None:
    """The first thing that a new user tries: no error, no file."""
    assert command("report") == 0
    assert command.out.decode() == "Nothing was bought yet.\n"
    assert command("report", "--json") == 0
    assert command.json["spentMsat"] == 0
    assert not command.books.ledger_path.exists()


def test_the_csv_has_a_row_for_each_payment_and_adds_up(
    command: Command, make_session: Callable[..., Routeweiler], lnd: FakeLnd, tmp_path: Path
) -> None:
    """The bookkeeper's file: exact decimals, the rate of each payment, and the sum that left the node."""
    envelope = BudgetEnvelope("usd", cap_minor_units=10_000, cap_currency="usd")
    lnd.fee_msat = 1_001
    with Paywall(lnd, price_msat=1_000_000, dynamic=True) as wall:
        for price in (50_000, 60_000):
            with make_session(budget_envelope=envelope, fmv_provider=StaticRate(price)) as session:
                session.get(wall.url_for(f"/{price}"))
                session.get(wall.url_for(f"/{price}"))  # by the token
        make_session(budget_envelope=BudgetEnvelope("sat", cap_minor_units=10_000)).get(wall.url_for("/sat"))
    file = tmp_path / "report.csv"
    assert command("report", "--csv", str(file)) == 0
    text = file.read_bytes()
    assert text.startswith(",".join(sheet.COLUMNS).encode() + b"\r\n")
    assert text.count(b"\n") == text.count(b"\r\n") == 4
    rows = rows_of(text)
    assert sum(Decimal(row["spent_sat"]) for row in rows) * 1000 == lnd.spent_msat
    assert {row["payment_hash"] for row in rows} == {each.payment_hash for each in lnd.payments}
    assert [(row["booked_amount"], row["booked_currency"], row["btc_price"]) for row in rows] == [
        ("0.5005005", "USD", "50000"),
        ("0.6006006", "USD", "60000"),
        ("1001.001", "sat", ""),
    ]
    assert [(row["amount_sat"], row["fee_sat"]) for row in rows] == [("1000", "1.001")] * 3
    assert all(row["origin"] == wall.url.rpartition("/")[0] or row["origin"] in wall.url for row in rows)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 or os.name == "nt"
    assert command("report", "--csv", "-") == 0
    assert command.out == text


def test_a_month_is_told_of_alone_and_each_agent_in_it(command: Command, write_trace: Callable[..., Path]) -> None:
    """The bill of October would need a subtraction by hand; and the time of the last call isn't the end of what was looked at."""
    october, november = (
        paid_event(
            f"r{month}",
            agent_id="crawler",
            timestamp_end=datetime(2026, month, 1, tzinfo=timezone.utc),
            payment=TracePayment(payment_hash=f"{month:064x}", amount_msat=month * 1_000),
        )
        for month in (10, 11)
    )
    sources = ("--trace", str(write_trace(october, november)))
    assert command("report", *sources, "--since", "2026-10-01", "--until", "2026-11-01") == 0
    told = command.out.decode()
    assert re.search(r"^from +2026-10-01 00:00:00 UTC\nuntil +2026-11-01 00:00:00 UTC\nspent +10 sat$", told, re.MULTILINE), told
    assert re.search(r"^AGENT +PAYMENTS +FEES_SAT +SPENT_SAT\ncrawler +1 +0 +10$", told, re.MULTILINE), told
    assert command("report", *sources, "--json", "--since", "2026-10-02") == 0
    assert (command.json["payments"], command.json["spentMsat"], command.json["until"]) == (1, 11_000, None)
    assert [(each["agentId"], each["spentMsat"]) for each in command.json["byAgent"]] == [("crawler", 11_000)]
    assert command("report", *sources, "--since", "2026-10-02") == 0
    until = re.search(r"^until +(\S+ \S+) UTC$", command.out.decode(), re.MULTILINE)
    assert until is not None
    assert abs(datetime.now(timezone.utc) - datetime.fromisoformat(f"{until[1]}+00:00")) < timedelta(minutes=5), "until now"
    assert command("report", *sources, "--until", "2026-10-01") == 0
    assert command.out.decode() == "Nothing was bought before then.\n"
    for words in (("report",), ("payments", "list")):
        assert command(*words, "--since", "2026-11-01", "--until", "2026-10-01") == 2
        assert b"--until is before --since" in command.err


FORMULAS = (
    "=1+1",
    "+1",
    "-1",
    "@SUM(A1)",
    "|cmd",
    "%0A",
    "  =1",
    "\t=1",
    "＝1",
    "a\r\n=1",
    'a",=1',
    "a;=1",
    'a"; "@x',
    "a;;＝1",
    '=HYPERLINK("x")',
)


def test_no_cell_is_a_formula_and_every_row_has_all_cells(command: Command, write_trace: Callable[..., Path]) -> None:
    """A server chooses the description. A spreadsheet would run it."""
    events = []
    for number, text in enumerate(FORMULAS):
        event = paid_event(f"r{number}").to_json_dict()
        event["challenge"]["description"] = event["challenge"]["network"] = event["envelopeId"] = event["fundingSource"] = text
        event["payment"]["fmvQuality"] = event["payment"]["amountEnvelopeCurrency"] = text
        event["payment"]["paymentHash"] = f"{number:064x}"
        events.append(event)
    assert command("report", "--csv", "-", "--trace", str(write_trace(*events))) == 0
    rows = rows_of(command.out)
    assert len(rows) == len(FORMULAS)
    for row in rows:
        assert list(row) == list(sheet.COLUMNS)
        assert None not in row.values()
        for cell in row.values():
            for part in (cell.lstrip(), *(part.lstrip(' "') for part in cell.split(";"))):  # as in much of Europe
                assert not part.startswith(("=", "+", "-", "@", "|", "%", "\t", "\r", "\n", "＝"))
            assert cell.isprintable()


@pytest.mark.slow
def test_sources_that_are_named_are_all_that_is_read(
    command: Command, session: Routeweiler, make_session: Callable[..., Routeweiler], lnd: FakeLnd, books: Books, tmp_path: Path
) -> None:
    """A report on one team's trace has nothing of the user's own ledger."""
    other = tmp_path / "other.db"
    with Paywall(lnd, price_msat=10_000, dynamic=True) as wall:
        session.get(wall.url_for("/a"))
        make_session(ledger=tmp_path / "second.db", trace_sink=TraceSink.sqlite(other)).get(wall.url_for("/b"))
    assert command("report", "--json") == 0
    assert command.json["payments"] == 1
    assert command("report", "--json", "--trace", str(other)) == 0
    assert [each["kind"] for each in command.json["sources"]] == ["trace"]
    assert command("report", "--json", "--ledger", str(books.ledger_path), "--ledger", f"sqlite:///{tmp_path}/second.db") == 0
    assert (command.json["payments"], command.json["spentMsat"]) == (2, lnd.spent_msat)
    assert command("report", "--json", "--trace", str(books.trace_path), "--trace", str(other), "--since", "1h") == 0
    assert command.json["payments"] == 2
    assert command("report", "--json", "--since", "2999-01-01") == 0
    assert command.json["payments"] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--ledger", "none.db"), 2, "there is no ledger at"),
        (("--trace", "none.jsonl"), 2, "there is no trace at"),
        (("--ledger", "host=db password=hunter2"), 3, "isn't supported"),
        (("--since", "yesterday"), 2, "not a time"),
        (("--csv", "-", "--html", "-"), 2, "only one of"),
        (("--csv", "-", "--json"), 2, "only one of"),
        (("--csv", "x", "--html", "./x"), 2, "the same file"),
        (("--csv", "folder"), 1, "it is a folder"),
        (("--csv", "no/such/folder.csv"), 1, "its folder doesn't exist"),
        (("--csv", "ledger.db"), 1, "it is a database"),
        (("--csv", "ledger.db-wal"), 1, "it is a database"),
        (("--csv", "trace.jsonl", "--trace", "trace.jsonl"), 1, "the report is read from it"),
        (("--csv", "trace.jsonl"), 1, "the report is read from it"),
        (("--csv", "trace.jsonl", "--trace", "~/trace.jsonl"), 1, "the report is read from it"),
        (("--trace", "folder"), 3, "can't be read"),
        (("--ledger", "trace.jsonl"), 3, "The ledger"),
    ],
)
def test_what_cannot_be_read_or_written_is_named(
    arguments: tuple[str, ...], code: int, said: str, command: Command, session: Routeweiler, paywall: Paywall, tmp_path: Path
) -> None:
    """And nothing is changed: least of all the ledger that somebody gave as the file to write."""
    session.get(paywall.url)
    session.close()
    (tmp_path / "folder").mkdir()
    (tmp_path / "ledger.db-wal").touch()
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.*") if path.suffix in (".db", ".jsonl")}
    assert command("report", *arguments, HOME=str(tmp_path), USERPROFILE=str(tmp_path)) == code
    assert said in command.err.decode()
    assert "hunter2" not in command.err.decode()
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    assert not list(tmp_path.glob(".*part"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
def test_a_full_disk_leaves_the_old_file_and_no_litter(
    command: Command, session: Routeweiler, paywall: Paywall, tmp_path: Path
) -> None:
    """The report of last month must not be lost to one that couldn't be written."""
    session.get(paywall.url)
    assert command("report", "--csv", "/dev/full") == 1
    assert "No space left on device" in command.err.decode()
    file = tmp_path / "report.csv"
    file.write_text("last month")
    limited = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))"
    )
    folder = tmp_path / "limited"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(limited)
    names = set(os.listdir(tmp_path))
    assert command("report", "--csv", str(file), PYTHONPATH=f"{folder}:{command.environ()['PYTHONPATH']}") == 1
    assert "can't be written: File too large" in command.err.decode()
    assert (file.read_text(), set(os.listdir(tmp_path))) == ("last month", names)


def test_a_ledger_that_others_write_to_meanwhile_is_read(
    command: Command, session: Routeweiler, paywall: Paywall, books: Books
) -> None:
    """A report is made while programs pay: it waits for none of them, and none for it."""
    session.get(paywall.url)
    with books.ledger._store.transaction():
        assert command("report", "--json") == 0
    assert command.json["payments"] == 1


def test_a_trace_without_urls_keeps_them_out(
    command: Command, make_session: Callable[..., Routeweiler], paywall: Paywall, books: Books
) -> None:
    """url_mode="drop" is a promise. From such a trace alone, no host or path gets into any report."""
    make_session(trace_sink=TraceSink.jsonl(books.trace_path, url_mode="drop")).get(f"{paywall.url}?key=hush")
    assert command("report", "--csv", "-", "--trace", str(books.trace_path)) == 0
    (row,) = rows_of(command.out)
    assert (row["origin"], row["path"], row["spent_sat"]) == ("", "", "10")
    assert b"127.0.0.1" not in command.out
    assert command("report", "--trace", str(books.trace_path)) == 0
    assert b"127.0.0.1" not in command.out
    assert b"not in the trace" in command.out


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    """``--help`` and all other commands start as fast as before."""
    import subprocess

    script = (
        "import sys; from routeweiler_sync.cli import main; main(['report', '--help'], standalone_mode=False); "
        "print([each for each in ('matplotlib', 'jinja2', 'numpy', 'routeweiler_sync.report') if each in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "--html FILE" in done.stdout
