"""The figures: equal to lnd's own, each payment once, from any number of ledgers and traces."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from routeweiler_sync import BudgetEnvelope, InvoicePaymentError, Ledger, LedgerError, Routeweiler, StaticRate, TraceSink
from routeweiler_sync.report.account import Account
from routeweiler_sync.report.figures import Figures
from routeweiler_sync.report.read import report_of
from routeweiler_sync.testing import FakeLnd, Paywall
from routeweiler_sync.trace import TraceChallenge, TraceOutcome, TracePayment
from routeweiler_sync.trace.reader import LINE_BYTES_MAX
from tests.support.accounts import Books
from tests.support.cli_process import Command
from tests.support.ledger_builders import Clock, die, draw, hash_of, intent, limits, settle
from tests.support.trace_events import HASH, failed_event, free_event, paid_event


def figures(*sources: Path | Ledger, since: datetime | None = None, until: datetime | None = None) -> Figures:
    """The figures of ledgers (``Ledger`` or ``.db``) and traces (all other paths)."""
    ledgers = [Ledger.open(each) for each in sources if isinstance(each, Ledger) or each.suffix == ".db"]
    traces = [each for each in sources if isinstance(each, Path) and each.suffix != ".db"]
    with report_of(ledgers, traces, since=since, until=until) as (_, found):
        return found()


def paid(n: int, *, amount_msat: int = 1_000, fee_msat: int = 0, **changes: Any) -> Any:
    """The event of a call that made the n-th payment."""
    payment = TracePayment(payment_hash=hash_of(n), amount_msat=amount_msat, fee_msat=fee_msat, settlement_latency_ms=n)
    challenge = TraceChallenge(scheme="L402", url=f"https://shop.example/{n}?key=hush", network="bitcoin", description=f"page {n}")
    return paid_event(f"paid-{n}", **{"payment": payment, "challenge": challenge, **changes})


def test_the_figures_are_those_of_lnd(
    command: Command, session: Routeweiler, lnd: FakeLnd, books: Books, make_session: Callable[..., Routeweiler]
) -> None:
    """A bill that differs from what left the channels, by a fee or a failure, is worth nothing."""
    with Paywall(lnd, price_msat=10_500, dynamic=True) as wall:
        for fee_msat, path in ((0, "/a"), (1_234, "/b"), (1_000, "/c"), (0, "/a")):
            lnd.fee_msat = fee_msat
            session.get(wall.url_for(path))
        lnd.fail_next()
        with pytest.raises(InvoicePaymentError):
            session.get(wall.url_for("/d"))
    succeeded = [each for each in lnd.payments if each.status == "SUCCEEDED"]
    assert command("report", "--json") == 0
    told = command.json
    assert told["spentMsat"] == lnd.spent_msat == sum(each.amount_msat + each.fee_msat for each in succeeded)
    assert (told["payments"], told["feesMsat"], told["amountMsat"]) == (len(succeeded), 2_234, 31_500)
    assert told["spentMsat"] == books.ledger.spending().total_msat == sum(each["spentMsat"] for each in told["byOrigin"])
    assert told["notPaid"] == [{"code": "failed_for_good", "payments": 1}]
    assert {name: told["calls"][name] for name in ("all", "paid", "reused", "failed")} == {
        "all": 5,
        "paid": 3,
        "reused": 1,
        "failed": 1,
    }
    assert [each["code"] for each in told["failures"]] == ["invoice_payment_failed"]
    assert command("report") == 0
    assert "33.734 sat" in command.out.decode()


def test_a_payment_in_several_ledgers_and_traces_counts_once(
    session: Routeweiler, make_session: Callable[..., Routeweiler], lnd: FakeLnd, books: Books, tmp_path: Path
) -> None:
    """Backups, rotated and merged traces: whoever gives too many of them must not pay twice on paper."""
    both = tmp_path / "trace.sqlite3"
    with Paywall(lnd, price_msat=10_000, dynamic=True) as wall:
        session.get(wall.url_for("/a"))
        books.ledger.close()
        session.close()
        shutil.copy(books.ledger_path, tmp_path / "backup.db")
        make_session(trace_sink=TraceSink.sqlite(both)).get(wall.url_for("/b"))
    shutil.copy(books.trace_path, tmp_path / "rotated.jsonl")
    sources = [books.ledger_path, tmp_path / "backup.db", books.trace_path, tmp_path / "rotated.jsonl", both]
    found = figures(*sources)
    assert (found.spent.payments, found.spent.total_msat, found.calls.all) == (2, lnd.spent_msat, 2)
    assert figures(*reversed(sources)).spent == found.spent
    assert figures(books.trace_path, both).spent == found.spent, "traces alone say the same"
    assert figures(books.ledger_path).spent == found.spent, "and so does the ledger"


def test_the_word_that_it_was_paid_counts_whoever_says_it(tmp_path: Path, write_trace: Callable[..., Path]) -> None:
    """An old backup says open, and a trace knows better. The other way round, a ledger's amounts are the booked ones."""
    old = Ledger.open(tmp_path / "old.db")
    for n in (1, 2):
        old.open_payment(intent(n, amount_msat=5_000), draw(limits()))
    settle(old, 2, fee_msat=70)
    trace = write_trace(paid(1, amount_msat=5_000, fee_msat=30), paid(2, amount_msat=9_999))
    found = figures(tmp_path / "old.db", trace)
    assert (found.spent.payments, found.spent.amount_msat, found.spent.fee_msat) == (2, 10_000, 100)
    assert found.unfinished.payments == 0
    assert {each.description for each in found.newest} == {"page 1", "page 2"}
    assert found.settlement is not None
    assert found.settlement.count == 2


def test_unfinished_and_failed_payments_are_not_spent(tmp_path: Path) -> None:
    """What isn't known yet is shown beside the sums, with the most that it may cost."""
    ledger = Ledger.open(tmp_path / "ledger.db")
    for n in (1, 2, 3):
        ledger.open_payment(intent(n, amount_msat=5_000, fee_cap_msat=700), draw(limits()))
    settle(ledger, 1)
    die(ledger, 2)
    found = figures(ledger)
    assert (found.spent.total_msat, found.unfinished.total_msat, found.dead) == (5_000, 5_700, (("failed_for_good", 1),))
    assert [each.hash.hex() for each in found.unfinished_oldest] == [hash_of(3)]


def test_since_and_until_count_what_was_paid_from_the_one_and_before_the_other(
    tmp_path: Path, write_trace: Callable[..., Path]
) -> None:
    """Also where a trace, whose call ended later, dates a payment of the ledger after that."""
    from routeweiler_sync.ledger.sqlite import SqliteStore

    clock = Clock()
    ledger = Ledger(SqliteStore(tmp_path / "ledger.db"), clock=clock)
    for n in (1, 2):
        ledger.open_payment(intent(n), draw(limits()))
        settle(ledger, n)
        clock.now_s += 3_600
    second = datetime.fromtimestamp(clock.now_s - 3_600, tz=timezone.utc)
    trace = write_trace(
        paid(1, timestamp_end=second + timedelta(seconds=9)), free_event("old", timestamp_end=second - timedelta(1))
    )
    found = figures(ledger, trace, since=second)
    assert (found.spent.payments, found.calls.all) == (1, 1)
    assert [each.hash.hex() for each in found.newest] == [hash_of(2)]
    assert found.spent.total_msat == ledger.spending(since=second).total_msat
    assert figures(ledger, trace, since=second + timedelta(seconds=1)).newest == ()
    early = figures(ledger, trace, until=second)
    assert (early.spent.payments, early.calls.all) == (1, 1)
    assert [each.hash.hex() for each in early.newest] == [hash_of(1)]
    assert figures(ledger, trace, since=second, until=second).is_empty
    assert figures(ledger, trace, since=second, until=second + timedelta(seconds=1)).spent == found.spent


def test_agents_have_their_sums_if_there_are_any(tmp_path: Path, write_trace: Callable[..., Path]) -> None:
    """Whoever pays for several agents couldn't say which of them spent it; and who has none would be shown an empty table."""
    from routeweiler_sync.report import page, sheet

    ledger = Ledger.open(tmp_path / "ledger.db")
    for n, agent in enumerate(("crawler", None, "crawler")):
        ledger.open_payment(replace(intent(n), agent_id=agent), None)
        settle(ledger, n)
    trace = write_trace(paid(0, agent_id="another"), paid(3, agent_id="<reader>", amount_msat=5_000), name="agents.jsonl")
    found = figures(ledger, trace)
    sums = [(name, each.payments, each.total_msat) for name, each in found.by_agent]
    assert sums == [("crawler", 2, 20_000), (None, 1, 10_000), ("<reader>", 1, 5_000)], "the ledger's word counts"
    assert (found.agents, found.other_agents.payments) == (3, 0)
    assert sum((each.total_msat for _, each in found.by_agent), 0) == found.spent.total_msat
    html = page.html(found)
    assert html.count("crawler") == html.count("&lt;reader&gt;") == 1
    assert 'id="agents"' in html
    with report_of([Ledger.open(tmp_path / "ledger.db")], [trace]) as (account, _):
        rows = list(csv.reader(io.StringIO(_csv_of(account), newline="")))
    assert rows[0][-1] == sheet.COLUMNS[-1] == "agent"
    assert sorted(row[-1] for row in rows[1:]) == ["", "<reader>", "crawler", "crawler"]
    none = figures(write_trace(paid(5, agent_id=None)))
    assert (none.by_agent, none.agents) == ((), 0)
    assert 'id="agents"' not in page.html(none)


def _csv_of(account: Account) -> str:
    from routeweiler_sync.report import sheet

    file = io.StringIO(newline="")
    sheet.write(file, account)
    return file.getvalue()


def test_lines_that_are_no_events_are_counted_and_change_nothing(write_trace: Callable[..., Path]) -> None:
    """A torn line, another program's log, an amount that no wallet holds: the rest of the bill must stand."""
    good = paid(1).to_json_dict()
    payment = good["payment"]
    bad: list[Any] = [
        "{torn",
        "[]",
        "null",
        "x" * (2 * LINE_BYTES_MAX + 5),
        "[" * 100_000,
        {**good, "payment": {**payment, "amountMsat": -1}},
        {**good, "payment": {**payment, "amountMsat": 2**62}},
        {**good, "payment": {**payment, "amountMsat": "1000"}},
        {**good, "payment": {**payment, "amountMsat": True}},
        {**good, "payment": {**payment, "amountEnvelope": "NaN"}},
        {**good, "payment": {**payment, "amountEnvelope": "1e99"}},
        {**good, "payment": {**payment, "paymentHash": "ab"}},
        {**good, "payment": {**payment, "paymentHash": "<b>"}},
        {**good, "timestampEnd": "2026-03-01T12:00:00"},
        {**good, "timestampEnd": "yesterday"},
        {**good, "outcome": None},
    ]
    found = figures(write_trace(*bad, paid(2), good, free_event("free"), failed_event("no", request_id="failed")))
    assert (found.unreadable, found.spent.payments, found.calls.all) == (len(bad), 2, 4)
    assert {name: found.calls.counts[name] for name in ("paid", "free", "failed")} == {"paid": 2, "free": 1, "failed": 1}


def test_a_damaged_ledger_is_refused(tmp_path: Path) -> None:
    """Its sums would be wrong, and nobody would know by how much."""
    ledger = Ledger.open(tmp_path / "ledger.db")
    ledger.open_payment(intent(1), draw(limits()))
    settle(ledger, 1)
    ledger.close()
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as connection, connection:
        connection.execute("UPDATE payments SET fee_msat = 'a lot'")
    with pytest.raises(LedgerError, match="damaged"):
        figures(tmp_path / "ledger.db")


def test_sums_are_exact_beyond_64_bits(write_trace: Callable[..., Path]) -> None:
    """Forged amounts must not make the report fail, or silently wrong."""
    most = 2**62 - 1
    found = figures(write_trace(*(paid(n, amount_msat=most, fee_msat=most) for n in range(1, 9))))
    assert (found.spent.amount_msat, found.spent.total_msat) == (8 * most, 16 * most)
    assert sum(each.total_msat for each in found.by_price) == sum(each.total_msat for _, each in found.by_period) == 16 * most


@pytest.mark.parametrize(
    ("apart", "period"),
    [(timedelta(hours=5), "hour"), (timedelta(days=40), "day"), (timedelta(days=200), "week"), (timedelta(days=900), "month"),
     (timedelta(days=9_000), "year"), (timedelta(days=700_000), "century")],
)  # fmt: skip
def test_periods_have_no_gaps_and_lose_nothing(apart: timedelta, period: str, write_trace: Callable[..., Path]) -> None:
    """Whether a day or two millennia: the plot stays readable, and its bars add up."""
    end = datetime(2026, 3, 1, 12, 30, tzinfo=timezone.utc)
    found = figures(write_trace(paid(1, timestamp_end=end - apart), paid(2, timestamp_end=end, amount_msat=3_000)))
    assert found.period == period
    assert sum(each.payments for _, each in found.by_period) == 2
    assert (found.by_period[0][1].total_msat, found.by_period[-1][1].total_msat) == (1_000, 3_000)
    assert 2 <= len(found.by_period) <= 62


def test_many_origins_are_summed_up(write_trace: Callable[..., Path]) -> None:
    """The list stays short, and what isn't listed is in its last line."""

    def bought(n: int) -> Any:
        return paid(n, amount_msat=n * 1_000, challenge=TraceChallenge(scheme="L402", url=f"https://shop{n}.example/"))

    found = figures(write_trace(*(bought(n) for n in range(1, 31))))
    assert found.origins == 30
    assert [name for name, _ in found.by_origin][:2] == ["https://shop30.example", "https://shop29.example"]
    assert found.other_origins.payments == 30 - len(found.by_origin)
    assert found.other_origins + sum((each for _, each in found.by_origin), type(found.spent)()) == found.spent


def test_what_was_booked_is_added_up_by_currency(make_session: Callable[..., Routeweiler], lnd: FakeLnd, books: Books) -> None:
    """A bookkeeper's dollars are those of the day, at the rate of the payment, not of the report."""
    envelope = BudgetEnvelope("usd", cap_minor_units=10_000, cap_currency="usd")
    with Paywall(lnd, price_msat=10_000_000, dynamic=True) as wall:
        for price in (50_000, 60_000):
            session = make_session(budget_envelope=envelope, fmv_provider=StaticRate(price))
            session.get(wall.url_for(f"/{price}"))
    found = figures(books.ledger_path)
    (booked,) = found.booked
    assert (booked.currency, booked.payments, booked.micro) == ("usd", 2, 1_100 * 10**6)
    assert [each.btc_price for each in found.newest] == ["60000", "50000"]
    assert [each.row.settled_minor_units for each in found.envelopes] == [Decimal(1_100)]


def test_calls_that_paid_and_got_no_page_are_counted(write_trace: Callable[..., Path]) -> None:
    """Money that bought nothing yet is what a user wants to hear of first."""
    undelivered = replace(paid(1), outcome=TraceOutcome(http_status=500, service_delivered=False, service_latency_ms=3))
    found = figures(write_trace(undelivered, paid(2)))
    assert (found.calls.counts["undelivered"], found.calls.counts["paid"]) == (1, 2)


def test_a_recovery_is_a_payment_but_no_call(write_trace: Callable[..., Path]) -> None:
    """Else a crash would add to the number of pages that were asked for."""
    found = figures(write_trace(paid(1, method="RECOVER"), paid(2, parent_request_id="paid-1")))
    assert (found.spent.payments, found.calls.all, found.calls.counts["recovered"]) == (2, 0, 1)


def test_a_reused_token_adds_nothing(write_trace: Callable[..., Path]) -> None:
    """The token was paid for by another call, whose trace may not be among those that were given."""
    reused = paid_event("again", payment=TracePayment(payment_hash=HASH, amount_msat=10_000, reused=True))
    found = figures(write_trace(reused))
    assert (found.spent.payments, found.calls.counts["reused"]) == (0, 1)


def test_nothing_is_left_behind_and_nothing_is_created(tmp_path: Path) -> None:
    """A report of a ledger that isn't there is empty, and doesn't make one."""
    found = figures(tmp_path / "none.db", tmp_path / "none.jsonl")
    assert found.is_empty
    assert [each.missing for each in found.sources] == [True, True]
    assert list(tmp_path.iterdir()) == []


def test_merging_goes_on_beyond_a_batch(monkeypatch: pytest.MonkeyPatch, write_trace: Callable[..., Path]) -> None:
    """Payments are written in batches: one that comes again in a later batch must still count once."""
    from routeweiler_sync.report import account

    monkeypatch.setattr(account, "_BATCH", 7)
    with Account() as found:
        found.add_trace(write_trace(*(paid(n % 30 + 1, session_id=str(n)) for n in range(100))))
        assert next(found.query("SELECT COUNT(*) FROM payments")) == (30,)


def test_a_payment_with_a_url_that_cannot_be_read_counts(write_trace: Callable[..., Path]) -> None:
    """What was paid was paid, wherever: a URL that no parser takes mustn't hide it from the bill."""
    urls = ["http://[::1", "http://x:99999999/", "ftp://x/", "", "no url", "http://\ud800/", None]
    events = []
    for n, url in enumerate(urls, start=1):
        event = paid(n).to_json_dict()
        event["url"] = event["challenge"]["url"] = url
        events.append(event)
    found = figures(write_trace(*events))
    assert (found.spent.payments, found.unreadable) == (len(urls), 0)


def test_blanks_around_an_event_are_no_part_of_it_and_anything_else_makes_it_none(tmp_path: Path) -> None:
    """A trace that another program has passed on with other line ends would be empty; or half a line would count."""
    lines = [json.dumps(free_event(f"r{number}").to_json_dict()) for number in range(8)]
    good = [lines[0], f" {lines[1]}", f"{lines[2]}\r", f"\t{lines[3]} \t"]
    bad = [f"{lines[4]}x", f"{lines[5]}{lines[6]}", lines[7][:-1], lines[7][:40], '{"payment":', "{", "[]", "\ufeff" + lines[7]]
    path = tmp_path / "trace.jsonl"
    path.write_bytes("\n".join(good + bad).encode())
    with Account() as account:
        account.add_trace(path)
        assert (account.events, account.unreadable) == (len(good), len(bad))
