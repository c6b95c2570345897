"""``routeweiler-sync budget``, as a user runs it: a process of its own, on the ledger, trace and node of real purchases."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import requests

from routeweiler_sync import (
    BudgetEnvelope,
    BudgetExceededError,
    EnvelopeFrozenError,
    Ledger,
    LedgerError,
    PaymentState,
    Routeweiler,
    RouteweilerError,
    TraceSink,
)
from routeweiler_sync.cli.audit import Accounts
from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.accounts import Books
from tests.support.cli_process import NO_NODE, TIMEOUT_S, Command, bare_environ
from tests.support.crashing_buyer import DIED

LIST_PERMISSIONS = ("/lnrpc.Lightning/GetInfo", "/lnrpc.Lightning/ListPayments")


@pytest.fixture
def command(tmp_path: Path, lnd: FakeLnd, books: Books) -> Command:
    return Command(tmp_path, lnd, books)


@pytest.fixture
def dynamic(lnd: FakeLnd) -> Iterator[Paywall]:
    """Each path is sold for itself."""
    with Paywall(lnd, price_msat=10_000, dynamic=True) as wall:
        yield wall


def edit(path: Path, sql: str, *parameters: object) -> None:
    """Change a database as somebody with a database tool would."""
    with closing(sqlite3.connect(path)) as connection, connection:
        assert connection.execute(sql, parameters).rowcount >= 1


def kinds(command: Command) -> list[str]:
    return [found["kind"] for found in command.json["differences"]]


# audit


def test_accounts_that_agree(command: Command, session: Routeweiler, dynamic: Paywall, lnd: FakeLnd) -> None:
    """The everyday answer, and what a nightly job goes by: exit code 0, and nothing is changed, paid or sent."""
    lnd.fee_msat = 1_234
    for path in ("/a", "/b", "/a"):
        session.get(dynamic.url_for(path))
    sends = lnd.calls["SendPaymentV2"]
    assert command("budget", "audit", LND_MACAROON_PATH=lnd.bake_macaroon(*LIST_PERMISSIONS)) == 0
    said = command.out.decode()
    assert "2 payments, 2 paid, 22.468 sat with fees" in said
    assert "other programs" not in said, "every payment of the node's is in this ledger"
    assert said.rstrip().endswith("The accounts agree.")
    assert command("budget", "audit", "--json") == 0
    outcome = command.json
    assert (outcome["agrees"], outcome["complete"], outcome["differences"], outcome["open"]) == (True, True, [], [])
    assert (outcome["spentMsat"], outcome["traceCompared"], outcome["nodeCompared"]) == (lnd.spent_msat, 2, 2)
    assert lnd.calls["SendPaymentV2"] == sends


@pytest.mark.slow
def test_an_sqlite_trace_is_found_out(
    command: Command, make_session: Callable[..., Routeweiler], paywall: Paywall, tmp_path: Path
) -> None:
    """Both kinds of traces are compared; several are compared together."""
    trace = tmp_path / "trace.db"
    make_session(trace_sink=TraceSink.sqlite(trace)).get(paywall.url)
    assert command("budget", "audit", "--trace", str(trace), "--json") == 0
    assert command.json["traceCompared"] == 1
    edit(trace, "UPDATE trace_events SET payload = replace(payload, '\"feeMsat\":0', '\"feeMsat\":1')")
    assert command("budget", "audit", "--trace", str(trace), "--json") == 1
    assert kinds(command) == ["trace_amount"]


@pytest.mark.slow
def test_a_payment_that_no_budget_counts_is_shown_first_with_what_to_do(
    command: Command, session: Routeweiler, paywall: Paywall, books: Books, lnd: FakeLnd
) -> None:
    """The user abandons a payment that hangs, and the node makes it after all: nobody else would ever notice."""
    lnd.hang_next()
    session._payer.payment_timeout_s = 1.2
    with pytest.raises(RouteweilerError):
        session.get(paywall.url)
    (row,) = books.rows
    assert command("budget", "audit", "--json") == 0
    (open_,) = command.json["open"]
    assert (open_["paymentHash"], open_["state"], open_["node"]) == (row.payment_hash, "open", "IN_FLIGHT, 10 sat")
    books.ledger.forget(row.payment_hash, abandon=True)
    assert command("budget", "audit", "--json") == 0
    assert [each["state"] for each in command.json["open"]] == ["dead"]
    lnd.release()
    assert command("budget", "audit") == 1
    said = command.out.decode()
    assert row.payment_hash in said
    assert "dead, 10 sat" in said
    assert "SUCCEEDED, 10 sat + 0 sat fee" in said
    assert "Lower the envelope's limits" in said
    assert said.rstrip().endswith("The accounts differ in 1 place.")


@pytest.mark.slow
def test_a_crash_between_paying_and_booking_is_found_and_recovered_from(
    command: Command, make_session: Callable[..., Routeweiler], paywall: Paywall, books: Books, lnd: FakeLnd
) -> None:
    """The audit says `session.recover()`: then that has to help."""
    crash(paywall.url, books, lnd, "Source.send:after")
    assert command("budget", "audit", "--json") == 1
    assert kinds(command) == ["paid_not_booked"]
    assert "session.recover()" in command.json["differences"][0]["toDo"]
    make_session().recover()
    assert command("budget", "audit", "--json") == 0


@pytest.mark.slow
def test_a_payment_that_a_crash_kept_from_the_trace_is_found_once_it_is_old(
    command: Command, make_session: Callable[..., Routeweiler], paywall: Paywall, books: Books, lnd: FakeLnd
) -> None:
    """A call may still be waiting for its page; but not for ever."""
    crash(paywall.url, books, lnd, "CallRecord.finish:before")
    assert command("budget", "audit", "--json") == 3  # there is no trace yet
    books.trace_path.touch()
    assert command("budget", "audit", "--json") == 0
    edit(books.ledger_path, "UPDATE payments SET settled_at_ms = settled_at_ms - 900000")
    edit(books.ledger_path, "UPDATE spends SET bucket = bucket - 3")
    assert command("budget", "audit", "--json") == 1
    assert kinds(command) == ["untold"]
    make_session().recover()
    assert command("budget", "audit", "--json") == 0


@pytest.mark.slow
def test_what_is_changed_in_the_ledger_is_found(command: Command, session: Routeweiler, paywall: Paywall, books: Books) -> None:
    """The ledger alone tells it, without node or trace."""
    session.get(paywall.url)
    edit(books.ledger_path, "UPDATE envelopes SET settled_micro = 0")
    assert command("budget", "audit", "--no-node", "--json", ROUTEWEILER_TRACE="") == 1
    (found,) = command.json["differences"]
    assert (found["kind"], found["envelopeId"]) == ("envelope_total", "default")
    assert found["says"] == {"envelope": "settled 0 sat", "payments": "settled 10 sat"}
    assert [command.json["compared"][name][:12] for name in ("trace", "node")] == ["not compared"] * 2
    assert command.json["complete"]  # what was left out on purpose isn't missing


@pytest.mark.slow
def test_a_damaged_preimage_neither_stops_the_audit_nor_is_shown(
    command: Command, session: Routeweiler, paywall: Paywall, books: Books
) -> None:
    """Every other command refuses such a ledger: this one is there to say what is wrong with it."""
    session.get(paywall.url)
    good = books.rows[0].preimage
    edit(books.ledger_path, "UPDATE payments SET preimage = ?", "ab" * 32)
    command.look_for_secrets = lambda: None  # type: ignore[method-assign]  # it reads the rows, which can't be read now
    assert command("budget", "audit") == 1
    said = command.out.decode() + command.err.decode()
    assert "doesn't fit its payment hash" in said
    assert good not in said
    assert "ab" * 32 not in said


@pytest.mark.slow
@pytest.mark.parametrize("limits", ["{s3cret", "[]", '{"s3cret": 1}', '{"id": "default", "cap_currency": "s3cret"}', "[" * 100_000])
def test_damaged_limits_of_an_envelope_are_said_and_not_shown(
    command: Command, session: Routeweiler, dynamic: Paywall, books: Books, lnd: FakeLnd, limits: str
) -> None:
    """Else a purchase ends with an error that isn't ours, and the command that should say what is wrong with a traceback."""
    session.get(dynamic.url_for("/a"))
    edit(books.ledger_path, "UPDATE envelopes SET limits = ?", limits)
    assert command("budget", "show") == 3
    assert b"damaged" in command.err
    assert b"s3cret" not in command.out + command.err
    assert command("budget", "audit", "--json") == 1
    assert kinds(command) == ["envelope_limits"]
    assert b"s3cret" not in command.out + command.err
    with Routeweiler(funding=[lnd.funding()], ledger=books.ledger_path, budget_envelope="default") as by_id:
        with pytest.raises(LedgerError, match="damaged") as refused:
            by_id.get(dynamic.url_for("/b"))
        assert (refused.value.spent, "s3cret" in str(refused.value), len(lnd.payments)) == (False, False, 1)
    assert session.get(dynamic.url_for("/b")).status_code == 200  # as the advice says: it is given the limits, and writes them anew
    assert command("budget", "audit", "--json") == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        "currency = 'usd', btc_price = 's3cret'",
        "currency = 'usd', btc_price = NULL",
        "currency = 's3cret'",
        "amount_msat = 's3cret'",
        "settled_at_ms = 99999999999999999",
    ],
)
def test_a_row_that_holds_no_figures_is_named(
    command: Command, session: Routeweiler, paywall: Paywall, books: Books, lnd: FakeLnd, change: str
) -> None:
    """Else the audit ends with a traceback that names nothing, and a purchase that meets the row with an error that isn't ours."""
    session.get(paywall.url)
    (row,) = books.rows
    edit(books.ledger_path, f"UPDATE payments SET {change}")
    command.look_for_secrets = lambda: None  # type: ignore[method-assign]  # it reads the rows, which can't be read now
    assert command("budget", "audit") == 3
    said = command.out.decode() + command.err.decode()
    assert f"row {row.payment_hash} is damaged" in said
    assert "s3cret" not in said
    assert "Traceback" not in said
    if "amount" not in change:  # that is nothing to a call that uses the token
        with pytest.raises(LedgerError, match="is damaged"):
            list(books.ledger.payments())


def test_an_id_that_cant_be_written_is_refused(books: Books, lnd: FakeLnd, paywall: Paywall) -> None:
    """Else the call ends with an error that isn't ours."""
    with (
        Routeweiler(funding=[lnd.funding()], ledger=books.ledger_path, budget_envelope="half \ud800") as session,
        pytest.raises(LedgerError, match="UTF-8") as refused,
    ):
        session.get(paywall.url)
    assert (refused.value.spent, lnd.payments) == (False, [])


@pytest.mark.slow
def test_a_line_taken_out_of_the_trace_is_found(command: Command, session: Routeweiler, dynamic: Paywall, books: Books) -> None:
    """Who sums the trace would count too little. What is older than its first line may be in another file: said, not guessed."""
    for path in ("/a", "/b", "/c"):
        session.get(dynamic.url_for(path))
    first, second, third = books.trace_path.read_text().splitlines(keepends=True)
    books.trace_path.write_text(first + third)
    assert command("budget", "audit", "--json") == 1
    assert kinds(command) == ["missing_in_trace"]
    books.trace_path.write_text(third)
    rotated = books.trace_path.with_name("trace.1")
    rotated.write_text(first + second)
    assert command("budget", "audit", "--json") == 0
    assert any("Older than the trace's first line" in note for note in command.json["notes"])
    assert command("budget", "audit", "--trace", str(rotated), "--trace", str(books.trace_path), "--json") == 0
    assert command.json["traceCompared"] == 3
    assert command.json["notes"] == []


@pytest.mark.parametrize("how", ["session", "command"])
def test_payments_of_calls_without_a_trace_are_said_and_no_difference(
    command: Command, session: Routeweiler, dynamic: Paywall, books: Books, lnd: FakeLnd, how: str
) -> None:
    """A ledger that a traced and an untraced program share would never agree, and nobody would look at the audit any more."""
    session.get(dynamic.url_for("/a"))
    if how == "session":
        with Routeweiler(funding=[lnd.funding()], ledger=books.ledger_path) as untraced:
            untraced.get(dynamic.url_for("/b"))
    else:
        assert command("get", dynamic.url_for("/b"), ROUTEWEILER_TRACE="") == 0, command.err
    session.get(dynamic.url_for("/b"))
    assert len(books.rows) == 2
    assert command("budget", "audit", "--json") == 0, command.json
    assert command.json["verdict"] == "The accounts agree."
    assert [note for note in command.json["notes"] if note.startswith("Made by calls without a trace")]


@pytest.mark.slow
def test_a_trace_from_another_ledger_is_found(command: Command, session: Routeweiler, paywall: Paywall, books: Books) -> None:
    """After a ledger was restored from an old backup, its budgets count too little."""
    session.get(paywall.url)
    edit(books.ledger_path, "DELETE FROM payments")
    edit(books.ledger_path, "UPDATE envelopes SET settled_micro = 0")
    edit(books.ledger_path, "DELETE FROM spends")
    assert command("budget", "audit", "--json") == 1
    assert kinds(command) == ["told_not_booked"]
    assert command.json["nodeForeign"] == {"payments": 1, "spentMsat": 10_000}


@pytest.mark.slow
def test_what_others_pay_over_the_node_is_no_difference(
    command: Command, session: Routeweiler, paywall: Paywall, lnd: FakeLnd
) -> None:
    """A node's owner buys other things as well; more of them than one page of the node's list holds."""
    session.get(paywall.url)
    lnd.fee_msat = 7
    client = lnd.client()
    for _ in range(130):
        client.pay_invoice(lnd.invoice(1_000).bolt11, max_fee_msat=10)
    client.close()
    assert command("budget", "audit", "--json") == 0
    assert command.json["nodeForeign"] == {"payments": 130, "spentMsat": 130 * 1_007}
    assert command.json["nodeCompared"] == 1


@pytest.mark.slow
def test_a_macaroon_without_the_right_is_told_and_the_rest_is_compared(
    command: Command, session: Routeweiler, paywall: Paywall, books: Books, lnd: FakeLnd
) -> None:
    """Paying doesn't need ListPayments, so a payer's macaroon hasn't got it. Silence would pass for agreement."""
    session.get(paywall.url)
    poor = lnd.bake_macaroon("/lnrpc.Lightning/GetInfo")
    assert command("budget", "audit", LND_MACAROON_PATH=poor) == 3
    said = command.out.decode()
    assert "uri:/lnrpc.Lightning/ListPayments" in said
    assert said.rstrip().endswith("As far as could be compared, the accounts agree; not compared: node.")
    edit(books.ledger_path, "UPDATE spends SET micro = 1")
    assert command("budget", "audit", "--json", LND_MACAROON_PATH=poor) == 1
    assert (kinds(command), command.json["complete"]) == (["envelope_window"], False)


def test_a_wallet_without_a_list_is_told_and_the_rest_is_compared(session: Routeweiler, paywall: Paywall, books: Books) -> None:
    """A wallet needn't have a list of its payments. Silence would pass for agreement, and a traceback for damage."""

    class Listless:
        def get_info(self) -> object:
            raise AssertionError("nothing is to be asked")

    session.get(paywall.url)
    accounts = Accounts(ledger=books.ledger, traces=[str(books.trace_path)], client=Listless())
    report = accounts.audit()
    assert (report.agrees, report.trace_compared, report.node_compared) == (True, 1, 0)
    assert accounts.unread == {"node": "Listless has no list of its payments. Without it, use --no-node."}


@pytest.mark.slow
@pytest.mark.parametrize("what", ["node", "trace", "variables"])
def test_an_account_that_cant_be_read_is_reported(
    command: Command, session: Routeweiler, paywall: Paywall, books: Books, lnd: FakeLnd, what: str
) -> None:
    """A job that is to compare three accounts mustn't end well with two."""
    session.get(paywall.url)
    environ: dict[str, str] = {}
    if what == "node":
        lnd.stop()
    elif what == "trace":
        books.trace_path.unlink()
    else:
        environ = {"LND_MACAROON_PATH": ""}
    assert command("budget", "audit", "--json", **environ) == 3
    assert command.json["agrees"]
    missing = "trace" if what == "trace" else "node"
    assert command.json["compared"][missing].startswith("not compared: ")
    assert command("budget", "audit", "--json", "--no-node", **environ) == (3 if what == "trace" else 0)


@pytest.mark.slow
def test_purchases_under_way_raise_no_alarm(
    command: Command, make_session: Callable[..., Routeweiler], dynamic: Paywall, lnd: FakeLnd
) -> None:
    """The accounts are taken one after the other, while programs pay: an audit that must be run at night is of little use."""
    session = make_session(budget_envelope=None)
    stop, count = threading.Event(), 0

    def buy() -> None:
        nonlocal count
        while not stop.is_set():
            session.get(dynamic.url_for(f"/{count}"))
            count += 1

    thread = threading.Thread(target=buy, daemon=True)
    thread.start()
    try:
        lnd.wait_for(lambda node: len(node.payments) >= 5)
        codes = [command("budget", "audit", "--json") for _ in range(4)]
    finally:
        stop.set()
        thread.join(TIMEOUT_S)
    assert codes == [0] * 4, command.out
    assert command.json["paid"] > 5


@pytest.mark.slow
def test_a_hundred_purchases_with_failures_and_crashes_leave_no_difference(
    command: Command, make_session: Callable[..., Routeweiler], dynamic: Paywall, books: Books, lnd: FakeLnd
) -> None:
    """If the library's own bad days looked like damage, the audit would be of no use when there is some."""
    rng = random.Random(7)
    envelopes = [BudgetEnvelope("a", cap_minor_units=100_000), BudgetEnvelope("b", per_day_minor_units=100_000), None]
    points = [
        "Ledger.open_payment:after",
        "Source.send:after",
        "Ledger.change:after",
        "PaywallHandler.resend:before",
        "CallRecord.finish:before",
    ]
    for n in range(100):
        lnd.clear_faults()
        lnd.fee_msat = rng.choice([0, 1, 999, 1_000])
        dynamic.price_msat = rng.choice([1_000, 1_001, 25_000])
        url = dynamic.url_for(f"/{n if rng.random() < 0.8 else rng.randrange(n + 1)}")
        if n % 20 == 19:
            crash(url, books, lnd, points[n // 20])
            continue
        match rng.randrange(8):
            case 0:
                lnd.fail_next(rng.choice(["NO_ROUTE", "TIMEOUT"]))
            case 1:
                lnd.drop_next(rng.choice(["before_init", "after_init", "in_flight", "after_paying"]))
            case 2:
                lnd.refuse_next("permission denied")
            case 3:
                lnd.wrong_preimage_next()
            case 4:
                dynamic.answer_next(500)
        with make_session(budget_envelope=rng.choice(envelopes)) as session, suppress(requests.RequestException):
            session.get(url)
    lnd.clear_faults()
    session = make_session()
    session.recover()
    assert command("budget", "audit", "--json") == 0, command.out
    # Whoever died before the order left has left a row that only a call ends.
    unfinished = [row for row in books.rows if row.unfinished]
    assert {each["paymentHash"] for each in command.json["open"]} == {row.payment_hash for row in unfinished}
    for row in unfinished:
        assert session.get(row.origin + row.path).status_code == 200
    assert command("budget", "audit", "--json") == 0, command.out
    outcome = command.json
    assert outcome["open"] == []
    states = {row.state for row in books.rows}
    assert {PaymentState.SETTLED, PaymentState.DEAD} <= states
    assert outcome["payments"] >= 60
    assert outcome["nodeCompared"] == outcome["payments"]
    assert outcome["spentMsat"] == lnd.spent_msat
    assert outcome["nodeForeign"]["payments"] == 0
    books.check()


def crash(url: str, books: Books, lnd: FakeLnd, point: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.crashing_buyer", url, str(books.ledger_path), str(books.trace_path), point],
        env=bare_environ(**lnd.environ),
        timeout=TIMEOUT_S,
    )
    assert done.returncode in (DIED, 0)


# show, freeze, thaw


def test_show_tells_what_an_envelope_allows_and_has_counted(
    command: Command, make_session: Callable[..., Routeweiler], paywall: Paywall, books: Books, lnd: FakeLnd
) -> None:
    """Before a user gives a program more money, they look at what it has left."""
    lnd.fee_msat = 500
    envelope = BudgetEnvelope(
        "lab", cap_minor_units=100, per_call_minor_units=20, ttl_seconds=86_400, allowed_origins_glob=["127.0.0.1:*"]
    )
    make_session(budget_envelope=envelope).get(paywall.url)
    assert command("budget", "show", "lab") == 0
    said = " ".join(command.out.decode().split())
    for text in ("lab", "20 sat/call", "100 sat", "127.0.0.1:*", "10.5 sat", "89.5 sat", "UTC", "open"):
        assert text in said
    assert command("budget", "show", "--json", **NO_NODE) == 0
    (row,) = command.json
    assert row["id"] == "lab"
    assert (row["limits"]["capMinorUnits"], row["limits"]["perCallMinorUnits"]) == (100, 20)
    assert {name: Decimal(row[name]) for name in ("reservedMinorUnits", "settledMinorUnits", "headroomMinorUnits")} == {
        "reservedMinorUnits": Decimal(0),
        "settledMinorUnits": Decimal("10.5"),
        "headroomMinorUnits": Decimal("89.5"),
    }
    assert (row["frozen"], row["grantEndsAt"] > row["grantedAt"]) == (False, True)


@pytest.mark.slow
def test_agents_share_one_budget_and_each_is_shown_what_it_spent(
    command: Command, make_session: Callable[..., Routeweiler], dynamic: Paywall, books: Books, lnd: FakeLnd
) -> None:
    """Who lets several agents pay sees which of them it was, and stops them all by one command."""
    lnd.fee_msat = 500
    assert command("budget", "set", "team", "--per-day", "35") == 0
    assert command("budget", "set", "scout", "--per-call", "20", "--parent", "nobody's") == 2
    for agent in ("scout", "writer"):
        assert command("budget", "set", agent, "--per-call", "20", "--parent", "team") == 0
        assert "team: 35 sat/day" in command.out.decode()
    agents = {agent: make_session(budget_envelope=agent, agent_id=agent) for agent in ("scout", "writer")}
    for agent, path in (("scout", "/a"), ("scout", "/b"), ("writer", "/a"), ("writer", "/c")):
        agents[agent].get(dynamic.url_for(path))
    with pytest.raises(BudgetExceededError, match="'team'"):
        agents["scout"].get(dynamic.url_for("/d"))
    assert command("budget", "show", "team", "--by", "agent", "--json", **NO_NODE) == 0
    spent = [(row["agentId"], row["totalMsat"], row["feesMsat"], row["payments"]) for row in command.json]
    assert spent == [("scout", 21_000, 1_000, 2), ("writer", 10_500, 500, 1)]
    assert command("budget", "show", "--by", "agent") == 0
    assert "scout 21 1 2 writer 10.5 0.5 1" in " ".join(command.out.decode().split())
    assert command("budget", "list", "--json") == 0
    assert {row["id"]: (row["parentId"], row["headroomMinorUnits"]) for row in command.json} == {
        "scout": ("team", "3.5"),
        "team": (None, "3.5"),
        "writer": ("team", "3.5"),
    }
    assert command("budget", "audit", "--json") == 0
    assert command("payments", "list", "--json") == 0
    assert sorted(row["agentId"] for row in command.json) == ["scout", "scout", "writer"]
    edit(books.ledger_path, "UPDATE envelopes SET settled_micro = settled_micro - 1 WHERE id = 'team'")
    assert command("budget", "audit", "--json") == 1
    assert {found["envelopeId"] for found in command.json["differences"]} == {"team"}
    assert command("budget", "freeze", "team") == 0
    with pytest.raises(EnvelopeFrozenError, match="'team'"):
        agents["scout"].get(dynamic.url_for("/e"))
    assert command("budget", "show", "scout") == 0
    assert "frozen by team" in command.out.decode()
    assert command("budget", "thaw", "scout") == 0
    assert "isn't frozen any more, but 'team', in which it lies, is" in command.out.decode()
    assert command("budget", "thaw", "team") == 0
    page = ("get", dynamic.url_for("/f"), "--quiet")
    assert command(*page, ROUTEWEILER_ENVELOPE="writer", ROUTEWEILER_BUDGET="5 sat") == 2, "which of both holds isn't guessed"
    assert command(*page, ROUTEWEILER_ENVELOPE="writer", ROUTEWEILER_AGENT="writer") == 3, "the team's limit holds for commands too"
    assert "Raise the limit by routeweiler-sync budget set team --per-day N" in " ".join(command.err.decode().split())
    assert command("budget", "set", "team", "--per-day", "60") == 0
    assert command(*page, ROUTEWEILER_ENVELOPE="writer", ROUTEWEILER_AGENT="by hand") == 0
    assert command("budget", "show", "writer", "--by", "agent", "--json") == 0
    assert [row["agentId"] for row in command.json] == ["by hand", "writer"]
    assert command("budget", "set", "scout", "--no-parent") == 2, "what it has counted stays where it is"
    assert command("budget", "set", "none", "--cap", "9") == command("budget", "set", "x", "--parent", "none", "--json") == 0
    assert command.json[0]["parentId"] == "none", "a name like any other: else it would lie in nothing, and no outer limit hold"
    assert command("budget", "set", "x", "--parent", "none", "--no-parent") == 2
    assert command("budget", "set", "x", "--no-parent", "--json") == 0
    assert command.json[0]["parentId"] is None


def test_the_page_about_agents_does_what_it_says(
    command: Command, dynamic: Paywall, books: Books, lnd: FakeLnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else who follows it would have agents without the limit for all."""
    page = (Path(__file__).parents[3] / "docs" / "how-to" / "agents-budget.md").read_text(encoding="utf-8")
    lines = [line.partition("#")[0].split() for line in page.splitlines() if line.startswith("routeweiler-sync ")]
    programs = [block.partition("```")[0] for block in page.split("```python\n")[1:]]
    assert (len(lines), len(programs)) == (8, 2)
    for line in lines[:3]:
        assert command(*line[1:]) == 0
    for name, value in command.environ().items():
        monkeypatch.setenv(name, value)
    names: dict[str, Any] = {}
    for number, program in enumerate(programs):
        exec(program.replace('network="bitcoin"', 'network="bitcoin-regtest"'), names)
        names["scout"].get(dynamic.url_for(f"/{number}"))
        names["writer"].get(dynamic.url_for(f"/by writer {number}"))
    assert {row.id: str(row.settled_minor_units.normalize()) for row in books.ledger.envelopes()} == {
        "scout": "2E+1",
        "team": "4E+1",
        "writer": "2E+1",
    }
    for line in lines[3:]:
        assert command(*line[1:]) == 0


@pytest.mark.slow
def test_freeze_stops_every_session_and_thaw_lets_them_go_on(
    command: Command, make_session: Callable[..., Routeweiler], dynamic: Paywall, lnd: FakeLnd
) -> None:
    """The emergency brake has to hold in programs that run already."""
    session = make_session()
    session.get(dynamic.url_for("/a"))
    assert command("budget", "freeze", "default") == 0
    assert b"frozen" in command.out
    with pytest.raises(EnvelopeFrozenError):
        session.get(dynamic.url_for("/b"))
    assert session.get(dynamic.url_for("/a")).payment.reused
    assert command("budget", "show") == 0
    assert b"frozen" in command.out
    assert command("budget", "thaw", "default") == 0
    assert session.get(dynamic.url_for("/b")).status_code == 200


@pytest.mark.slow
def test_what_isnt_there_is_a_usage_error_and_nothing_is_made(command: Command, tmp_path: Path, books: Books) -> None:
    """Who freezes the wrong ledger believes to have frozen the right one."""
    for args in (["show", "default"], ["freeze", "default"], ["thaw", "default"], ["audit"]):
        assert command("budget", *args, "--ledger", str(tmp_path / "nothing.db")) == 2
        assert b"there is no ledger at" in command.err
    assert list(tmp_path.iterdir()) == []
    with closing(Ledger.open(books.ledger_path)) as ledger:
        assert ledger.unfinished() == []  # which makes the file
    for args in (["show", "lab"], ["freeze", "lab"], ["thaw", "lab"]):
        assert command("budget", *args) == 2
        assert b"holds no envelope 'lab'" in command.err
    assert command("budget", "show") == 0
    assert b"holds no envelope yet" in command.out


@pytest.mark.slow
def test_a_file_that_is_no_ledger_is_left_alone(command: Command, tmp_path: Path) -> None:
    """It may be somebody's photographs."""
    other = tmp_path / "other.db"
    with closing(sqlite3.connect(other)) as connection, connection:
        connection.execute("CREATE TABLE photographs (id)")
    before = other.read_bytes()
    for args in (["show"], ["audit"], ["freeze", "default"]):
        assert command("budget", *args, "--ledger", str(other)) == 3
        assert b"not a ledger" in command.err
    assert other.read_bytes() == before


@pytest.mark.slow
def test_an_envelopes_name_cant_command_the_terminal(
    command: Command, make_session: Callable[..., Routeweiler], paywall: Paywall
) -> None:
    """Whoever may name an envelope could else hide what the others have spent."""
    make_session(budget_envelope=BudgetEnvelope("a\x1b[2Jb[bold]\n")).get(paywall.url)
    assert command("budget", "show") == 0
    assert b"\x1b" not in command.out
    assert b"a\\x1b[2Jb[bold]\\n" in command.out.replace(b"\n", b"").replace(b" ", b"")
    assert command("budget", "show", "--json") == 0
    assert command.json[0]["id"] == "a\x1b[2Jb[bold]\n"
