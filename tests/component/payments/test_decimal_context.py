"""A program's decimal context is for the program's own numbers: whatever it is, prices, limits, books and texts are the same."""

from __future__ import annotations

import decimal
import threading
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest

from routeweiler_sync import (
    BudgetEnvelope,
    BudgetExceededError,
    Policy,
    PolicyMaxPerCallExceededError,
    PolicyRule,
    RuleMatch,
    StaticRate,
)
from routeweiler_sync._core.money import EXACT
from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.accounts import Books

_SIGNALS = list(decimal.Context().traps)
CONTEXTS = {
    "two digits": decimal.Context(prec=2),
    "all traps": decimal.Context(prec=1, Emax=1, Emin=-1, rounding=decimal.ROUND_UP, traps=_SIGNALS),
    "no traps": decimal.Context(prec=1, Emax=0, Emin=0, rounding=decimal.ROUND_DOWN, capitals=0, clamp=1, traps=[]),
}


@pytest.fixture(params=["two digits", "all traps", "no traps", "default context"])
def odd_context(request: pytest.FixtureRequest, lnd: FakeLnd) -> Iterator[decimal.Context]:
    """A decimal context for the test's thread, and in one case for all threads that begin from now on."""
    before, default = decimal.getcontext(), decimal.DefaultContext.copy()
    context = CONTEXTS.get(request.param, CONTEXTS["all traps"])
    names = ("prec", "Emax", "Emin", "rounding")
    if request.param == "default context":
        for name in names:
            setattr(decimal.DefaultContext, name, getattr(context, name))
        decimal.DefaultContext.traps.update(dict.fromkeys(_SIGNALS, True))
    decimal.setcontext(context.copy())
    yield context
    decimal.setcontext(before)
    for name in names:
        setattr(decimal.DefaultContext, name, getattr(default, name))
    decimal.DefaultContext.traps.update(default.traps)


@pytest.mark.parametrize(("currency", "minor_units"), [("sat", "12345.678"), ("usd", "740.740680"), ("jpy", "7.407407")])
def test_what_is_quoted_paid_and_booked_is_exact(
    make_session, lnd: FakeLnd, books: Books, odd_context: decimal.Context, currency: str, minor_units: str
) -> None:
    """A page of 12 345.678 sat would be refused, or booked as 13 000 sat."""
    price = {"usd": "60000", "jpy": "60000", "sat": "1"}[currency]
    envelope = BudgetEnvelope("b", cap_minor_units=4_000_000_000, cap_currency=currency, per_day_minor_units=3_000_000)
    done: list[Any] = []
    with Paywall(lnd, price_msat=12_345_678) as wall:
        session = make_session(budget_envelope=envelope, fmv_provider=StaticRate(price), confirm=lambda quote: bool(str(quote)))
        quote = session.quote("GET", wall.url)
        thread = threading.Thread(target=lambda: done.append(session.get(wall.url)))
        thread.start()
        thread.join()
        done.append(session.get(wall.url))
    assert [response.status_code for response in done] == [200, 200]
    assert str(quote.amount_minor_units) == minor_units.ljust(len(minor_units.partition(".")[0]) + 7, "0")
    (row,) = books.ledger.envelopes()
    used, headroom = row.settled_minor_units, row.headroom_minor_units
    books.audit(finished=True)
    decimal.setcontext(EXACT.copy())
    assert used == Decimal(minor_units)
    assert headroom == 3_000_000 - used
    assert Decimal(str(books.lines[-2]["payment"]["amountEnvelope"])) == used
    books.check()


def test_what_a_refusal_says_is_exact(make_session, lnd: FakeLnd, odd_context: decimal.Context) -> None:
    """An error would say that 13 000 sat were asked for, or be another error, of decimal's."""
    dear = Policy([PolicyRule("cheap", when=RuleMatch(url_matches="*"), max_per_call_minor_units=9)])
    with Paywall(lnd, price_msat=12_345_678) as wall:
        with pytest.raises(PolicyMaxPerCallExceededError, match=r"12345\.678 sat minor units"):
            make_session(policy=dear).get(wall.url)
        for limits in ({"per_call_minor_units": 10}, {"cap_minor_units": 10}, {"per_day_minor_units": 10}):
            envelope = BudgetEnvelope("b", **limits)
            with pytest.raises(BudgetExceededError, match=r"12345\.678 sat"):
                make_session(budget_envelope=envelope).get(wall.url)
    assert not lnd.orders
