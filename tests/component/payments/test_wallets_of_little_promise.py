"""Wallets that promise less than lnd: what they call failed may yet be paid, and their fees are what they take.

The wallet under test is the fake node's, with the words or the fees of such a wallet put in their place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from routeweiler_sync import (
    BudgetEnvelope,
    BudgetExceededError,
    ChallengeExpiredError,
    FundingError,
    LightningFundingSource,
    PaymentPendingError,
    PaymentState,
    Routeweiler,
)
from routeweiler_sync.funding.replies import WalletAnswer, WalletReply
from routeweiler_sync.payments import lifecycle
from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.accounts import Books

pytestmark = pytest.mark.usefixtures("asks_at_once")

PRICE_MSAT, FEE_MSAT = 10_000, 1_000


class Loose:
    """A `WalletClient` whose "failed" and "not found" aren't final. ``hides``: payments look as if they had failed."""

    def __init__(self, lnd: FakeLnd) -> None:
        self._inner, self.hides = lnd.client(), False
        self.check_ready, self.get_info = self._inner.check_ready, self._inner.get_info

    def _said(self, answer: WalletAnswer) -> WalletAnswer:
        so_far = WalletAnswer(reply=WalletReply.FAILED_SO_FAR, reason="the wallet says failed")
        unpaid = answer.reply in (WalletReply.FAILED, WalletReply.NOT_FOUND)
        return so_far if unpaid or (self.hides and answer.reply is WalletReply.SUCCEEDED) else answer

    def send(self, bolt11: str, **kwargs: Any) -> WalletAnswer:
        return self._said(self._inner.send(bolt11, **kwargs))

    def track(self, payment_hash: bytes, **kwargs: Any) -> WalletAnswer:
        return self._said(self._inner.track(payment_hash, **kwargs))


class Dear(Loose):
    """A wallet that takes up to ``cap_msat`` in fees, whatever an order says, and tells no fee."""

    def __init__(self, lnd: FakeLnd, cap_msat: Any) -> None:
        super().__init__(lnd)
        self.cap_msat = cap_msat

    def own_fee_cap_msat(self, bolt11: str, *, timeout_s: float) -> Any:
        if isinstance(self.cap_msat, Exception):
            raise self.cap_msat
        return self.cap_msat

    def _said(self, answer: WalletAnswer) -> WalletAnswer:
        return replace(answer, fee_msat=None) if answer.reply is WalletReply.SUCCEEDED else answer


def through(wallet: object, **kwargs: Any) -> list[LightningFundingSource]:
    return [LightningFundingSource(client=wallet, network="bitcoin-regtest", **kwargs)]  # type: ignore[arg-type]


@pytest.fixture
def long_expired(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it, and every invoice counts as long expired."""
    return lambda: monkeypatch.setattr(lifecycle, "OUTLIVED_S", -10_000)


def test_what_such_a_wallet_calls_failed_stays_open_and_is_never_sent_again(
    make_session: Callable[..., Routeweiler], paywall: Paywall, lnd: FakeLnd, books: Books
) -> None:
    """Else the wallet settles the first order after all, and a second order or another invoice is paid beside it."""
    session = make_session(funding=through(Loose(lnd)))
    lnd.fail_next("NO_ROUTE")
    for _ in range(3):
        with pytest.raises(PaymentPendingError) as pending:
            session.get(paywall.url)
        assert "the wallet says failed" in str(pending.value)
        session.recover()
    assert len(lnd.orders) == 1
    (row,) = books.rows
    assert (row.state, row.sends_ever) == (PaymentState.OPEN, 1)


def test_a_lost_order_is_not_sent_again(
    make_session: Callable[..., Routeweiler], paywall: Paywall, lnd: FakeLnd, books: Books
) -> None:
    """Else the first order arrives late, and a wallet that doesn't refuse the second one pays both."""
    session = make_session(funding=through(Loose(lnd)), payment_timeout=5)
    lnd.drop_next("before_init")
    with pytest.raises(PaymentPendingError):
        session.get(paywall.url)
    with pytest.raises(PaymentPendingError):
        session.get(paywall.url)
    assert [row.sends_ever for row in books.rows] == [1]
    assert len(lnd.payments) == 0


def test_its_row_ends_when_the_invoice_has_long_expired(
    make_session: Callable[..., Routeweiler], paywall: Paywall, lnd: FakeLnd, books: Books, long_expired: Callable[[], None]
) -> None:
    """Else a page that one payment failed for could never be bought again, and its reservation would stay for ever."""
    session = make_session(funding=through(Loose(lnd)))
    lnd.fail_next("NO_ROUTE")
    with pytest.raises(PaymentPendingError):
        session.get(paywall.url)
    long_expired()
    with pytest.raises(ChallengeExpiredError) as ended:
        session.get(paywall.url)
    assert ended.value.spent is False
    assert "isn't paid" in str(ended.value)
    assert session.get(paywall.url).status_code == 200
    assert sorted(row.state.value for row in books.rows) == ["dead", "settled"]
    books.check()


def test_what_is_paid_after_all_is_booked(
    make_session: Callable[..., Routeweiler], paywall: Paywall, lnd: FakeLnd, books: Books, long_expired: Callable[[], None]
) -> None:
    """Else money that a wallet has spent after its "failed" would be in no account."""
    wallet = Loose(lnd)
    session = make_session(funding=through(wallet))
    wallet.hides = True
    with pytest.raises(PaymentPendingError):
        session.get(paywall.url)
    long_expired()
    (ended,) = session.recover()
    assert ended.state is PaymentState.DEAD
    wallet.hides = False
    (booked,) = session.recover()
    assert (booked.state, booked.fee_msat) == (PaymentState.SETTLED, lnd.payments[0].fee_msat)
    assert session.get(paywall.url).payment.reused
    books.check()


@pytest.mark.parametrize("wait", ["call", "recover"])
def test_the_time_that_has_passed_alone_ends_no_row(
    make_session: Callable[..., Routeweiler],
    paywall: Paywall,
    lnd: FakeLnd,
    books: Books,
    long_expired: Callable[[], None],
    wait: str,
) -> None:
    """Else a payment that is in flight for hours would be given up, and paid."""
    session = make_session(funding=through(Loose(lnd)), payment_timeout=3)
    lnd.hang_next()
    with pytest.raises(PaymentPendingError):
        session.get(paywall.url)
    long_expired()
    if wait == "call":
        with pytest.raises(PaymentPendingError):
            session.get(paywall.url)
    else:
        session.recover()
    lnd.release()
    assert session.get(paywall.url).status_code == 200
    assert len(lnd.payments) == 1
    books.check()


def test_fees_that_the_wallet_sets_itself_are_reserved_and_booked(
    make_session: Callable[..., Routeweiler], paywall: Paywall, lnd: FakeLnd, books: Books
) -> None:
    """Else more could be spent than was reserved, and the limits wouldn't hold."""
    session = make_session(funding=through(Dear(lnd, 7_000)))
    response = session.get(paywall.url)
    (row,) = books.rows
    assert (row.max_fee_msat, row.fee_msat, response.payment.fee_msat) == (7_000, 7_000, 7_000)


@pytest.mark.parametrize(
    ("envelope", "source"),
    [
        pytest.param({}, {"max_fee_msat": 6_999}, id="the source's limit"),
        pytest.param({"per_call_minor_units": 16}, {}, id="per call"),
        pytest.param({"cap_minor_units": 16}, {}, id="the cap"),
        pytest.param({"per_day_minor_units": 16}, {}, id="per day"),
    ],
)
def test_fees_that_dont_fit_are_refused_before_paying(
    make_session: Callable[..., Routeweiler],
    paywall: Paywall,
    lnd: FakeLnd,
    books: Books,
    envelope: dict[str, Any],
    source: dict[str, Any],
) -> None:
    """Else the wallet takes its fee, and the limit is broken by it: no order can lower what the wallet takes."""
    limits = BudgetEnvelope("tight", **{"cap_minor_units": 1_000, "cap_currency": "sat", **envelope})
    session = make_session(funding=through(Dear(lnd, 7_000), **source), budget_envelope=limits)
    with pytest.raises(BudgetExceededError, match="fees") as refused:
        session.get(paywall.url)
    assert refused.value.spent is False
    assert (lnd.orders, books.rows) == ([], [])
    assert all(each.reserved_minor_units == 0 for each in books.ledger.envelopes())


def test_fees_that_dont_fit_into_a_block_are_refused_before_paying(
    make_session: Callable[..., Routeweiler], paywall: Paywall, lnd: FakeLnd, books: Books
) -> None:
    """Else a block's limit would hold for every wallet but this one."""
    session = make_session(funding=through(Dear(lnd, 7_000)))
    with session.limit(sats=16) as limit, pytest.raises(BudgetExceededError):
        session.get(paywall.url)
    assert (lnd.orders, limit.spent_msat) == ([], 0)
    with session.limit(sats=17) as limit:
        assert session.get(paywall.url).status_code == 200
    assert limit.spent_msat == 17_000


@pytest.mark.parametrize("answer", [-1, True, 1.5, "1000", RuntimeError("boom"), FundingError("It is down.", advice="Wait.")])
def test_a_fee_limit_that_cant_be_read_stops_the_purchase(
    make_session: Callable[..., Routeweiler], paywall: Paywall, lnd: FakeLnd, books: Books, answer: Any
) -> None:
    """Else what the wallet may take would be guessed."""
    session = make_session(funding=through(Dear(lnd, answer)))
    with pytest.raises(FundingError) as refused:
        session.get(paywall.url)
    assert refused.value.spent is False
    assert (lnd.orders, books.rows) == ([], [])


def test_without_a_fee_limit_of_its_own_the_order_s_holds(
    make_session: Callable[..., Routeweiler], paywall: Paywall, lnd: FakeLnd, books: Books
) -> None:
    """Else a wallet that has the method, and nothing to say, could not pay."""
    limits = BudgetEnvelope("tight", cap_minor_units=12, cap_currency="sat")
    session = make_session(funding=through(Dear(lnd, None)), budget_envelope=limits)
    assert session.get(paywall.url).status_code == 200
    assert [row.max_fee_msat for row in books.rows] == [2_000]
