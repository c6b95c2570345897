"""``get --dry-run``: the verdict is that of the call that would follow, and nothing is paid, sent or written for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.accounts import Books
from tests.support.cli_process import NO_NODE, Command

pytestmark = pytest.mark.slow


@pytest.fixture
def command(tmp_path: Path, lnd: FakeLnd, books: Books) -> Command:
    return Command(tmp_path, lnd, books)


def verdict(command: Command) -> str:
    """The last line of what was printed."""
    name, _, text = command.out.decode().splitlines()[-1].partition(" ")
    assert name == "verdict"
    return text.strip()


def test_what_would_be_paid_is_told_with_the_budget(command: Command, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """A price alone doesn't say what the call may cost, nor who pays it."""
    assert command("get", "--dry-run", paywall.url) == 0
    assert verdict(command) == "would be paid: at most 20 sat, from the budget default, of which 10000 sat are left"
    assert command.err == b""
    assert not books.ledger_path.exists()
    paywall.add_service("/other", name="other", price_msat=30_000)
    assert command("get", paywall.url_for("/other")) == 0
    assert command("get", "--dry-run", paywall.url) == 0
    assert "of which 9970 sat are left" in verdict(command)
    assert command("get", "--dry-run", "--json", paywall.url) == 0
    told = command.json["verdict"]
    assert (told["outcome"], told["budget"], told["budgetLeftMinorUnits"], told["node"]) == ("pay", "default", "9970", True)
    assert command("get", "--dry-run", paywall.url, ROUTEWEILER_BUDGET="none") == 0
    assert verdict(command) == "would be paid: at most 20 sat, without any limit (there is no budget)"
    assert command("get", "--dry-run", paywall.url, ROUTEWEILER_BUDGET="12 sat/call") == 0
    assert verdict(command) == "would be paid: at most 12 sat, from the budget default"
    assert len(lnd.payments) == 1
    books.check()


REFUSALS: dict[str, tuple[list[str], dict[str, str], str]] = {
    "call": ([], {"ROUTEWEILER_BUDGET": "9 sat/call"}, "per_call_minor_units=9"),
    "hour": ([], {"ROUTEWEILER_BUDGET": "35 sat/hour"}, "per_hour_minor_units=35"),
    "day": ([], {"ROUTEWEILER_BUDGET": "35 sat/day"}, "per_day_minor_units=35"),
    "cap": ([], {"ROUTEWEILER_BUDGET": "35 sat"}, "cap_minor_units=35"),
    "--max-sats": (["--max-sats", "9"], {}, "--max-sats 9"),
    "network": ([], {"ROUTEWEILER_NETWORK": "bitcoin"}, "The invoice is on bitcoin-regtest"),
}


@pytest.mark.parametrize("why", REFUSALS)
def test_what_would_be_refused_is_told_with_the_reason(
    command: Command, paywall: Paywall, lnd: FakeLnd, books: Books, why: str
) -> None:
    """A dry run that says yes to what the call then refuses is no use; nor is one that says no without a reason."""
    args, environ, reason = REFUSALS[why]
    paywall.add_service("/other", name="other", price_msat=30_000)
    assert command("get", paywall.url_for("/other")) == 0
    before = books.rows
    assert command("get", "--dry-run", *args, paywall.url, **environ) == 3
    assert verdict(command).startswith("would be refused: ")
    assert reason in verdict(command)
    assert command.out.startswith(b"price         10 sat\n"), "the price is to be seen all the same"
    assert reason.encode() in command.err
    assert command("get", "--dry-run", "--json", *args, paywall.url, **environ) == 3
    assert (command.json["verdict"]["outcome"], command.json["error"]["spent"]) == ("refuse", False)
    assert books.rows == before
    assert command("get", *args, paywall.url, **environ) == 3, "as the dry run has said"
    books.check()


def test_a_frozen_budget_is_told(command: Command, paywall: Paywall) -> None:
    """The freeze is in the ledger, not in the variables."""
    paywall.add_service("/other", name="other", price_msat=30_000)
    assert command("get", paywall.url_for("/other")) == 0
    assert command("budget", "freeze", "default") == 0
    assert command("get", "--dry-run", paywall.url) == 3
    assert "routeweiler-sync budget thaw default" in verdict(command)


def test_a_token_that_is_held_would_be_used_and_isn_t(command: Command, paywall: Paywall, lnd: FakeLnd) -> None:
    """A token that is good for one use would be used up by the question what it would cost."""
    assert command("get", paywall.url) == 0
    before = len(paywall.requests)
    assert command("get", "--dry-run", paywall.url, **NO_NODE) == 0
    assert verdict(command) == "nothing would be paid: a token that was paid for earlier would be used again"
    assert lnd.payments[0].payment_hash.encode() in command.out
    (request,) = paywall.requests[before:]
    assert "Authorization" not in request.headers
    assert command("get", "--dry-run", "--json", paywall.url) == 0
    told = command.json["verdict"]
    assert (told["outcome"], told["paymentHash"]) == ("token", lnd.payments[0].payment_hash)


def test_a_token_of_another_page_would_be_tried_first(command: Command, lnd: FakeLnd) -> None:
    """The call may cost nothing after all."""
    with Paywall(lnd, price_msat=10_000, sells="path") as wall:
        wall.faults.opaque_tokens = True
        assert command("get", wall.url_for("/one")) == 0
        assert command("get", "--dry-run", wall.url_for("/two")) == 0
    assert f"the token of payment {lnd.payments[0].payment_hash} would be tried, which costs nothing" in verdict(command)


def test_an_unfinished_payment_is_told(command: Command, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """The call would send its order again, or wait for it."""
    lnd.drop_next("before_init", times=None)
    assert command("get", paywall.url) == 5
    lnd.clear_faults()
    assert command("get", "--dry-run", paywall.url) == 5
    assert verdict(command).startswith("an earlier payment isn't finished")
    assert books.rows[0].payment_hash.encode() in command.out
    assert lnd.payments == []


def test_without_a_node_the_verdict_says_so(command: Command, paywall: Paywall) -> None:
    """'Would be paid' by whom?"""
    assert command("get", "--dry-run", paywall.url, **NO_NODE) == 0
    assert verdict(command).startswith("would be paid: at most 20 sat, from the budget default")
    assert "there is no node to pay with" in verdict(command)
    assert "ROUTEWEILER_LNDCONNECT" in verdict(command)


ANSWERS: dict[str, tuple[Callable[[Paywall], str], int, str]] = {
    "free": (lambda wall: wall.url_for("/free"), 0, "nothing to pay: HTTP 200 OK"),
    "an error": (lambda wall: (wall.stop(), wall.url)[1], 1, "would fail: "),
    "no URL": (lambda wall: "example.com", 2, "would fail: "),
}


@pytest.mark.parametrize("what", ANSWERS)
def test_other_answers_have_a_verdict_too(command: Command, paywall: Paywall, tmp_path: Path, what: str) -> None:
    """And a dry run writes no page, also where the page would be free."""
    url, code, text = ANSWERS[what]
    assert command("get", "--dry-run", "-o", "page", url(paywall)) == code
    assert verdict(command).startswith(text)
    assert not (tmp_path / "page").exists()


def test_the_dry_run_of_a_redirect_is_of_where_it_leads(command: Command, paywall: Paywall) -> None:
    """The price is asked by another URL than the one that was given."""
    assert command("get", "--dry-run", "--json", paywall.url_for(f"/redirect?to={paywall.url}")) == 0
    assert json.loads(command.out)["quote"]["amountMsat"] == 10_000
