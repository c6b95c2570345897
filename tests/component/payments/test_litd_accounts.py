"""Purchases with the macaroon of a litd account, over gRPC and REST: litd's words are understood, no row stays open for ever."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from routeweiler_sync import FundingError, PaymentPendingError, PaymentState, Routeweiler
from routeweiler_sync.funding.replies import WalletReply
from routeweiler_sync.testing import FakeLnd, Paywall
from routeweiler_sync.testing._lnd_accounts import FakeAccount
from tests.support.accounts import Books

PATIENCE_S = 30.0


@pytest.fixture
def account(lnd: FakeLnd) -> FakeAccount:
    return lnd.account(100_000)


@pytest.fixture(params=["gRPC", "REST"])
def client(request: pytest.FixtureRequest, lnd: FakeLnd, account: FakeAccount) -> Any:
    make = lnd.client if request.param == "gRPC" else lnd.rest_client
    return make(macaroon_path=account.macaroon_path)


@pytest.fixture
def session(make_session: Callable[..., Routeweiler], lnd: FakeLnd, client: Any) -> Routeweiler:
    return make_session(funding=[lnd.funding(client=client)])


def send(client: Any, invoice: Any, *, max_fee_msat: int = 1_000) -> Any:
    return client.send(invoice.bolt11, payment_hash=invoice.payment_hash, max_fee_msat=max_fee_msat, timeout_s=PATIENCE_S)


def track(client: Any, payment_hash: bytes) -> Any:
    return client.track(payment_hash, timeout_s=PATIENCE_S, follow=False)


def test_an_account_buys_and_reuses(session: Routeweiler, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """The account's balance is a budget that the node itself keeps."""
    assert [session.get(paywall.url).status_code for _ in range(3)] == [200] * 3
    assert len(lnd.payments) == 1
    books.check()


def test_an_unknown_hash_of_an_account_is_not_found(client: Any) -> None:
    """litd has a text of its own for it."""
    assert track(client, b"h" * 32).reply is WalletReply.NOT_FOUND
    assert client.track_payment(b"h" * 32).state == "unknown_hash"


@pytest.mark.usefixtures("asks_at_once")
@pytest.mark.parametrize("again", ["same page", "recover"])
def test_an_order_that_never_arrived_is_ended_by_the_next_call(
    make_session: Callable[..., Routeweiler], client: Any, paywall: Paywall, lnd: FakeLnd, books: Books, again: str
) -> None:
    """litd denies an order that it never had in words of its own. Not understood, the row would stay open, and its page blocked."""
    session = make_session(funding=[lnd.funding(client=client)], payment_timeout=2)
    lnd.drop_next("before_init", times=None)
    with pytest.raises(PaymentPendingError):
        session.get(paywall.url)
    lnd.clear_faults()
    assert [row.state for row in books.rows] == [PaymentState.OPEN]
    if again == "recover":
        lnd.clock_offset_s = 10_000
        session.recover()
        session.close()
    patient = make_session(funding=[lnd.funding(client=client)])
    lnd.clock_offset_s = 0
    assert patient.get(paywall.url).status_code == 200
    assert [row for row in books.rows if row.unfinished] == []
    assert len(lnd.payments) == 1
    books.check()


def test_an_account_that_is_too_small_spends_nothing_and_leaves_nothing_open(
    session: Routeweiler, paywall: Paywall, lnd: FakeLnd, books: Books, account: FakeAccount
) -> None:
    account.balance_msat = 5_000
    with pytest.raises(FundingError, match="balance insufficient") as caught:
        session.get(paywall.url)
    assert caught.value.spent is False
    assert [row.state for row in books.rows] == [PaymentState.DEAD]
    account.balance_msat = 1_000_000
    assert session.get(paywall.url).status_code == 200
    assert len(lnd.payments) == 1


def test_a_second_order_of_a_payment_in_flight_or_made_is_told_as_one(client: Any, lnd: FakeLnd) -> None:
    """The same invoice is sent again on any doubt."""
    lnd.hang_next()
    invoice = lnd.invoice(10_000)
    first = client.send(invoice.bolt11, payment_hash=invoice.payment_hash, max_fee_msat=1_000, timeout_s=1.5)
    assert first.reply is WalletReply.UNKNOWN
    assert send(client, invoice).reply is WalletReply.EXISTS
    lnd.release()
    assert send(client, invoice).reply is WalletReply.EXISTS
    assert track(client, invoice.payment_hash).reply is WalletReply.SUCCEEDED
    assert [payment.sends for payment in lnd.payments] == [1]  # litd has let no second order through


def test_a_failed_payment_may_start_anew(client: Any, lnd: FakeLnd) -> None:
    lnd.fee_msat = 500
    invoice = lnd.invoice(10_000)
    assert send(client, invoice, max_fee_msat=100).reply is WalletReply.FAILED
    assert track(client, invoice.payment_hash).reply is WalletReply.FAILED
    assert send(client, invoice).reply is WalletReply.SUCCEEDED


def test_an_order_that_lnd_refuses_is_told_as_without_an_account(client: Any, lnd: FakeLnd) -> None:
    expired = lnd.invoice(10_000, created_at=1_700_000_000)
    assert send(client, expired).reply is WalletReply.EXPIRED
    assert track(client, expired.payment_hash).reply is WalletReply.NOT_FOUND
    own = lnd.invoice(10_000, self_payment=True)
    assert send(client, own).reply is WalletReply.REFUSED


@pytest.mark.parametrize("fault", ["expired", "removed", "stopped"])
def test_an_account_that_may_not_be_used_is_noticed_before_the_order(
    session: Routeweiler, paywall: Paywall, lnd: FakeLnd, books: Books, account: FakeAccount, fault: str
) -> None:
    """litd says the same when a payment has begun already; only said before the order it proves that nothing was spent."""
    assert session.get(paywall.url).status_code == 200
    orders = lnd.calls["SendPaymentV2"]
    setattr(account, fault, True)
    with (
        Paywall(lnd, price_msat=10_000) as other,
        pytest.raises(FundingError, match=r"account that .* is for can't be used") as caught,
    ):
        session.get(other.url)
    assert caught.value.spent is False
    assert lnd.calls["SendPaymentV2"] == orders
    assert [row.state for row in books.rows if row.unfinished] == []


@pytest.mark.parametrize("fault", ["expired", "removed", "stopped"])
def test_an_account_that_ends_in_mid_payment_proves_nothing(
    client: Any, lnd: FakeLnd, account: FakeAccount, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """The order got through and litd refuses the answer: read as a refusal, the payment would be lost, and another one made."""
    monkeypatch.setattr(type(client), "check_ready", lambda self, timeout_s: None)
    setattr(account, fault, True)
    invoice = lnd.invoice(10_000)
    assert send(client, invoice).reply is WalletReply.UNKNOWN
    assert track(client, invoice.payment_hash).reply is WalletReply.UNKNOWN
