"""Promises 3 and 4 for what was begun before: who says no isn't paid for, and what changes while a call is under way counts."""

from __future__ import annotations

import time
from decimal import Decimal
from typing import Any

import pytest

from routeweiler_sync import (
    BudgetEnvelope,
    BudgetExceededError,
    ChallengeExpiredError,
    EnvelopeFrozenError,
    PaymentPendingError,
    PaymentState,
    Policy,
    PolicyDeniedError,
    PolicyRule,
    RouteweilerError,
    RuleMatch,
)
from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.accounts import Books

pytestmark = pytest.mark.usefixtures("asks_at_once")

DENY = Policy(rules=[PolicyRule("no", when=RuleMatch(url_matches="*"), deny=True)])
DEAR = Policy(rules=[PolicyRule("cheap ones", when=RuleMatch(url_matches="*"), max_per_call_minor_units=1)])


def begin(make_session: Any, paywall: Paywall, lnd: FakeLnd, **kwargs: Any) -> None:
    """A purchase whose order was lost on its way to the node."""
    lnd.drop_next("before_init", times=5)
    with pytest.raises(PaymentPendingError):
        make_session(payment_timeout=1, **kwargs).get(paywall.url)
    lnd.clear_faults()
    assert not lnd.payments


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"confirm": lambda quote: False}, id="confirm"),
        pytest.param({"policy": DENY}, id="policy"),
        pytest.param({"policy": DEAR}, id="policy's limit"),
        pytest.param({"budget_envelope": BudgetEnvelope("o", allowed_origins_glob=())}, id="origins"),
        pytest.param({"budget_envelope": BudgetEnvelope("r", allowed_rails=())}, id="rails"),
        pytest.param({"budget_envelope": BudgetEnvelope("p", per_call_minor_units=1)}, id="per call"),
        pytest.param({}, id="frozen"),
    ],
)
def test_a_no_from_confirm_also_holds_for_an_order_that_another_call_began(
    make_session, paywall: Paywall, lnd: FakeLnd, books: Books, settings, request
) -> None:
    """Else a row left by a crash is a way around every limit: the next session that meets it sends its order."""
    begin(make_session, paywall, lnd)
    if not settings:
        books.ledger.freeze("default")
    with pytest.raises(PaymentPendingError) as caught:
        make_session(**settings).get(paywall.url)
    assert caught.value.spent is None
    assert "isn't sent again" in str(caught.value)
    assert "Nothing was spent" not in str(caught.value)
    assert (lnd.payments, [row.state for row in books.rows]) == ([], [PaymentState.OPEN])
    if not settings:
        books.ledger.thaw("default")
    assert make_session().get(paywall.url).status_code == 200
    assert len(lnd.payments) == 1
    books.check()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("allows", "refuses"),
    [
        pytest.param({"cap_minor_units": 20}, {"cap_minor_units": 19}, id="cap"),
        pytest.param({"per_call_minor_units": 20}, {"per_call_minor_units": 19}, id="call"),
        pytest.param({"per_hour_minor_units": 20}, {"per_hour_minor_units": 19}, id="hour"),
        pytest.param({"per_day_minor_units": 20}, {"per_day_minor_units": 19}, id="day"),
        pytest.param({"fee": 10_000}, {"fee": 9_999}, id="fee limit"),
        pytest.param({"sats": 20}, {"sats": 19}, id="limit()"),
    ],
)
def test_an_order_leaves_again_only_within_the_limits_of_the_session_that_sends_it(
    make_session, paywall: Paywall, lnd: FakeLnd, books: Books, allows: dict[str, int], refuses: dict[str, int]
) -> None:
    """Else a row of 10 sat, and up to 10 sat of routing, is paid by a session that may spend less."""

    def call(bounds: dict[str, int]) -> Any:
        kind, value = next(iter(bounds.items()))
        if kind == "fee":
            return make_session(funding=[lnd.funding(max_fee_msat=value)]).get(paywall.url)
        if kind == "sats":
            session = make_session()
            with session.limit(sats=value) as limit:
                try:
                    return session.get(paywall.url)
                finally:
                    assert limit.reserved_msat == 0
        return make_session(budget_envelope=BudgetEnvelope("own", **bounds)).get(paywall.url)

    lnd.fee_msat = 9_500
    begin(make_session, paywall, lnd)
    with pytest.raises(PaymentPendingError, match="isn't sent again") as caught:
        call(refuses)
    assert caught.value.spent is None
    assert (lnd.payments, books.rows[0].envelope_id) == ([], "default")
    assert call(allows).status_code == 200
    assert lnd.spent_msat == 19_500
    books.check()


@pytest.mark.slow
def test_orders_that_leave_again_count_together(make_session, lnd: FakeLnd, books: Books) -> None:
    """Else each of them fits by itself, and all of them together are far above the cap of the session that sent them."""
    with Paywall(lnd, price_msat=10_000, dynamic=True) as wall:
        lnd.drop_next("before_init", times=None)
        for page in range(3):
            with pytest.raises(PaymentPendingError):
                make_session(payment_timeout=1).get(wall.url_for(f"/{page}"))
        lnd.clear_faults()
        session = make_session(budget_envelope=BudgetEnvelope("own", cap_minor_units=25), payment_timeout=5)
        outcomes = [outcome(lambda page=page: session.get(wall.url_for(f"/{page}"))) for page in range(3)]
        assert outcomes == [200, PaymentPendingError, PaymentPendingError]
        assert lnd.spent_msat == 10_000
        assert [row.envelope_id for row in books.rows] == ["own", "default", "default"]
        books.check(finished=False)


def outcome(call: Any) -> Any:
    try:
        return call().status_code
    except RouteweilerError as error:
        return type(error)


@pytest.mark.slow
def test_confirm_is_also_asked_for_an_order_that_another_call_began(
    make_session, paywall: Paywall, lnd: FakeLnd, books: Books
) -> None:
    """confirm is asked before each order that leaves, with what it would cost."""
    begin(make_session, paywall, lnd)
    quotes: list[Any] = []
    assert make_session(confirm=lambda quote: quotes.append(quote) or True).get(paywall.url).status_code == 200
    assert [(quote.payment_hash, quote.amount_msat) for quote in quotes] == [(books.rows[0].payment_hash, 10_000)]
    books.check()


@pytest.mark.slow
def test_tracking_a_payment_needs_no_confirmation(make_session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """What the node has paid already is everybody's: refusing it would lose the page and spare nothing."""
    lnd.hang_next()
    with pytest.raises(PaymentPendingError):
        make_session(payment_timeout=1).get(paywall.url)
    lnd.release()
    assert make_session(policy=DENY, confirm=lambda quote: False).get(paywall.url).status_code == 200
    books.check()


def test_a_frozen_envelope_stops_an_order_at_the_last_moment(make_session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """The freeze is looked at in the transaction that counts the send, not before it."""
    begin(make_session, paywall, lnd)
    payment_hash = books.rows[0].payment_hash
    sends = books.rows[0].sends_ever
    books.ledger.freeze("default")
    with pytest.raises(EnvelopeFrozenError):
        books.ledger.count_send(payment_hash)
    assert books.rows[0].sends_ever == sends


@pytest.mark.slow
def test_recover_books_what_is_abandoned_and_paid_after_all(make_session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """Else the money is gone, and neither the budget nor anybody knows."""
    lnd.hang_next()
    with pytest.raises(PaymentPendingError):
        make_session(payment_timeout=1).get(paywall.url)
    payment_hash = books.rows[0].payment_hash
    books.ledger.forget(payment_hash, abandon=True)
    session = make_session()
    assert session.recover() == []
    lnd.release()
    lnd.wait_for(lambda node: node.payments[0].status == "SUCCEEDED")
    assert [row.payment_hash for row in session.recover()] == [payment_hash]
    assert session.recover() == []
    books.check()


@pytest.mark.slow
def test_an_invoice_that_expires_meanwhile_isnt_paid(
    make_session, paywall: Paywall, lnd: FakeLnd, books: Books, monkeypatch
) -> None:
    """It would race its own expiry at the node."""
    issue = lnd.invoice
    monkeypatch.setattr(lnd, "invoice", lambda *args, **kwargs: issue(*args, **kwargs | {"expiry_s": 4}))

    def think(quote: Any) -> bool:
        while time.time() < quote.expires_at.timestamp() - 1:
            time.sleep(0.05)
        return True

    with pytest.raises(ChallengeExpiredError) as caught:
        make_session(confirm=think).get(paywall.url)
    assert caught.value.spent is False
    assert (lnd.orders, books.rows) == ([], [])


class Moving:
    """Bitcoin's price, in units of the currency."""

    quality = "test"

    def __init__(self) -> None:
        self.price = Decimal(50_000)

    def btc_price(self, currency: str) -> Decimal:
        return self.price


def test_the_rate_is_that_of_the_moment_of_paying(make_session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """A person may think for an hour: at the old price the limit would let through what is worth more."""
    prices = Moving()

    def rise(quote: Any) -> bool:
        prices.price *= 1_000
        return True

    envelope = BudgetEnvelope("fiat", cap_currency="usd", per_call_minor_units=5)
    with pytest.raises(BudgetExceededError):
        make_session(budget_envelope=envelope, fmv_provider=prices, confirm=rise).get(paywall.url)
    assert lnd.orders == []


def test_an_origin_that_is_closed_meanwhile_isnt_paid(make_session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """Changed limits take effect at once, the origins among them."""
    wide, narrow = BudgetEnvelope("e"), BudgetEnvelope("e", allowed_origins_glob=("*.example",), per_call_minor_units=0)
    books.ledger.bring(wide)

    def close(quote: Any) -> bool:
        books.ledger.bring(narrow)
        return True

    with pytest.raises(PolicyDeniedError):
        make_session(budget_envelope="e", confirm=close).get(paywall.url)
    assert (lnd.orders, books.rows) == ([], [])


def test_a_refused_sessions_limits_hold_for_the_others(make_session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """Who narrows an envelope, and is refused by it, has narrowed it for all."""
    books.ledger.bring(BudgetEnvelope("e"))
    narrow = BudgetEnvelope("e", allowed_origins_glob=("*.example",), per_call_minor_units=0)
    for envelope in (narrow, "e"):
        with pytest.raises(PolicyDeniedError):
            make_session(budget_envelope=envelope).get(paywall.url)
    assert books.ledger.envelope("e").limits == narrow
    assert lnd.orders == []
