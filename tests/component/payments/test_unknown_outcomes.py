"""Promises 1 and 2: unknown is not failed. Whatever breaks, a need is paid once, and what was paid is found again and used."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from routeweiler_sync import (
    FundingError,
    InvoicePaymentError,
    PaymentPendingError,
    PaymentState,
    PreimageMismatchError,
    TokenRefusedError,
)
from routeweiler_sync.payments import checks
from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.accounts import Books


@pytest.mark.parametrize("when", ["before_init", "after_init", "in_flight", "after_paying"])
def test_a_broken_stream_is_asked_about_not_paid_again(session, paywall: Paywall, lnd: FakeLnd, books: Books, when) -> None:
    """Peers read a dropped stream as "failed", and pay again."""
    lnd.drop_next(when)
    assert session.get(paywall.url).status_code == 200
    assert len(lnd.payments) == 1
    assert lnd.calls["TrackPaymentV2"] >= 1
    books.check()


def test_a_node_that_restarts_in_mid_payment_costs_one_payment(session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """The stream breaks and the node is away for a while; the payment went through."""
    lnd.hang_next()
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(session.get, paywall.url)
        lnd.wait_for(lambda node: bool(node.payments))
        lnd.stop()
        lnd.release()
        lnd.start()
        assert call.result(60).status_code == 200
    books.check()


@pytest.mark.slow
def test_a_payment_in_flight_is_pending_and_then_found(make_session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """A payment that takes longer than the call must neither be given up nor made twice; its reservation stays."""
    lnd.hang_next()
    impatient = make_session(payment_timeout=1.5)
    with pytest.raises(PaymentPendingError) as caught:
        impatient.get(paywall.url)
    assert caught.value.spent is None
    assert caught.value.payment_hash == lnd.payments[0].payment_hash
    (row,) = books.rows
    assert row.state is PaymentState.OPEN
    assert books.ledger.envelope("default").reserved_minor_units == 20
    (line,) = books.lines
    assert line["payment"] is None
    assert row.payment_hash in line["outcome"]["error"]["message"]
    with pytest.raises(PaymentPendingError):
        impatient.get(paywall.url)
    lnd.release()
    response = make_session().get(paywall.url)
    assert response.status_code == 200
    assert len(lnd.payments) == 1
    assert lnd.payments[0].sends == 1
    books.check()


@pytest.mark.parametrize("reason", ["NO_ROUTE", "TIMEOUT", "INSUFFICIENT_BALANCE", "INCORRECT_PAYMENT_DETAILS", "ERROR"])
def test_a_failed_payment_frees_its_reservation_and_the_next_call_may_buy(
    session, paywall: Paywall, lnd: FakeLnd, books: Books, reason: str
) -> None:
    """lnd's FAILED is final where the one order was answered: the reservation returns, the next call may buy."""
    lnd.fail_next(reason)
    with pytest.raises(InvoicePaymentError) as caught:
        session.get(paywall.url)
    assert caught.value.failure_reason == reason
    assert caught.value.spent is False
    assert books.ledger.envelope("default").reserved_minor_units == 0
    assert [row.state for row in books.rows] == [PaymentState.DEAD]
    assert session.get(paywall.url).status_code == 200
    assert [p.status for p in lnd.payments] == ["FAILED", "SUCCEEDED"]
    books.check()


@pytest.mark.slow
def test_failed_while_an_order_is_unanswered_isnt_final(session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """The first order is lost on its way, as far as anybody knows; the second is answered FAILED. A new invoice could be paid
    beside the first, were that still to arrive: the scope sticks to its invoice, and the next call sends it again.
    """
    lnd.drop_next("before_init")
    lnd.fail_next("NO_ROUTE")
    with pytest.raises(PaymentPendingError) as caught:
        session.get(paywall.url)
    assert caught.value.spent is None
    (row,) = books.rows
    assert (row.state, row.sends_ever, row.sends_unanswered) == (PaymentState.FAILED, 2, 1)
    assert row.reserved_micro > 0
    assert session.get(paywall.url).payment.payment_hash == row.payment_hash
    assert len(lnd.payments) == 1
    books.check()


@pytest.mark.slow
def test_failed_after_an_unanswered_order_sticks_to_its_invoice(make_session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """The order in the air would start the failed payment anew: buying with a new invoice then pays twice."""
    lnd.hold_orders()
    with pytest.raises(PaymentPendingError):
        make_session(payment_timeout=1.2).get(paywall.url)  # order 1 is in the air
    with ThreadPoolExecutor(1) as pool:
        lnd.fail_next("NO_ROUTE", times=2)
        call = pool.submit(make_session().get, paywall.url)
        lnd.wait_for(lambda node: node.held_orders >= 2)
        lnd.deliver_orders()
        error = call.exception(60)
    # Both orders were read and both failed, but only one answer reached a living caller.
    assert isinstance(error, PaymentPendingError | InvoicePaymentError)
    (row,) = books.rows
    if isinstance(error, PaymentPendingError):
        assert row.state is PaymentState.FAILED
        assert row.reserved_micro > 0
    lnd.clear_faults()
    assert make_session().get(paywall.url).status_code == 200
    assert sum(p.status == "SUCCEEDED" for p in lnd.payments) == 1
    books.check()


@pytest.mark.slow
def test_an_unanswered_order_ends_only_once_the_node_says_that_the_invoice_expired(
    make_session, paywall: Paywall, lnd: FakeLnd, books: Books
) -> None:
    """Nothing but lnd's own word ends an unanswered order's row; then the next call may buy anew."""
    lnd.hold_orders()
    with pytest.raises(PaymentPendingError):
        make_session(payment_timeout=1.2).get(paywall.url)
    lnd.clock_offset_s = 7_200
    lnd.deliver_orders()
    lnd.wait_for(lambda node: node.held_orders == 0)
    with pytest.raises(requests.RequestException):
        make_session().get(paywall.url)
    assert [row.state for row in books.rows] == [PaymentState.DEAD]
    lnd.clock_offset_s = 0
    assert make_session().get(paywall.url).status_code == 200
    books.check()


def test_a_refusal_before_the_start_spends_nothing(session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """A macaroon without the right to pay: nothing was started, the row is dead, the next call is free to buy."""
    lnd.refuse_next("permission denied")
    with pytest.raises(FundingError) as caught:
        session.get(paywall.url)
    assert caught.value.spent is False
    assert Path(lnd.macaroon_path).read_bytes().hex() not in str(caught.value)
    assert [row.state for row in books.rows] == [PaymentState.DEAD]
    assert session.get(paywall.url).status_code == 200
    books.check()


@pytest.mark.slow
def test_an_error_that_proves_nothing_is_pending(make_session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """An INTERNAL error isn't a refusal: the payment may have begun."""
    lnd.refuse_next("something went wrong", code="INTERNAL", times=None)
    with pytest.raises(PaymentPendingError):
        make_session(payment_timeout=2).get(paywall.url)
    lnd.clear_faults()
    assert make_session().get(paywall.url).status_code == 200
    assert len(lnd.payments) == 1
    books.check()


def test_a_preimage_that_doesnt_fit_is_booked_and_reported(session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """The money is gone; it must be in the totals, and the next call must not spend it again."""
    lnd.wrong_preimage_next()
    for _ in range(2):
        with pytest.raises(PreimageMismatchError) as caught:
            session.get(paywall.url)
        assert caught.value.spent is True
    (row,) = books.rows
    assert (row.state, row.preimage) == (PaymentState.SETTLED, None)
    assert len(lnd.payments) == 1
    books.check()
    books.ledger.forget(row.payment_hash)
    assert session.get(paywall.url).status_code == 200


@pytest.mark.parametrize("bare_401", [False, True])
def test_an_expired_token_is_replaced_once(session, paywall: Paywall, lnd: FakeLnd, books: Books, bare_401) -> None:
    """A token that was taken and is refused now has expired: retired, and one new one bought, within the same call."""
    session.get(paywall.url)
    paywall.faults.bare_401 = bare_401
    paywall.revoke_tokens()
    response = session.get(paywall.url)
    assert response.status_code == 200
    assert not response.payment.reused
    assert len(lnd.payments) == 2
    assert [row.state for row in books.rows] == [PaymentState.RETIRED, PaymentState.SETTLED]
    books.check()


@pytest.mark.slow
def test_a_token_that_expired_while_its_payment_hung_says_so_and_the_next_call_buys(
    make_session, paywall: Paywall, lnd: FakeLnd, books: Books, monkeypatch
) -> None:
    """A crash or a slow payment may outlast a short token. One call doesn't pay twice for it, and its error sends nobody astray."""
    monkeypatch.setattr(checks, "MIN_TOKEN_LIFE_S", 0)
    paywall.service.valid_for_s = 2
    lnd.hang_next()
    with pytest.raises(PaymentPendingError):
        make_session(payment_timeout=1.2).get(paywall.url)
    (row,) = books.rows
    paywall.wait_for(lambda: time.time() > row.valid_until + 1)
    lnd.release()
    session = make_session()
    with pytest.raises(TokenRefusedError, match="call again for a new one") as caught:
        session.get(paywall.url)
    assert caught.value.spent is True
    assert caught.value.payment_hash == row.payment_hash
    assert "later calls offer" not in str(caught.value)
    assert session.get(paywall.url).status_code == 200
    assert len(lnd.payments) == 2
    books.check()


def test_a_repeated_invoice_is_never_sent_twice(session, make_session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """A cache or a cassette repeats a 402: its invoice is in the ledger, nothing is sent for it again."""
    paywall.faults.repeat_invoice = True
    assert session.get(paywall.url).status_code == 200
    assert make_session().get(paywall.url_for("/other-path")).status_code == 200
    lnd.fail_next()
    paywall.revoke_tokens()
    with pytest.raises(TokenRefusedError):
        session.get(paywall.url)
    assert lnd.calls["SendPaymentV2"] == 1
    books.check()


def test_a_row_abandoned_under_a_call_leaves_it_in_doubt(session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """The user's word ends the row, not lnd's: to say "nothing was spent" would be a guess, and here it is wrong."""
    lnd.hang_next()
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(session.get, paywall.url)
        lnd.wait_for(lambda node: bool(node.payments))
        books.ledger.forget(lnd.payments[0].payment_hash, abandon=True)
        lnd.release(fail="NO_ROUTE")
        error = call.exception(60)
    assert isinstance(error, PaymentPendingError)
    assert error.spent is None
    books.check()


def test_a_payment_abandoned_and_made_after_all_is_booked(session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """The money is gone, whatever the user thought: it must be in the totals, and its token must serve."""
    lnd.hang_next()
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(session.get, paywall.url)
        lnd.wait_for(lambda node: bool(node.payments))
        books.ledger.forget(lnd.payments[0].payment_hash, abandon=True)
        assert books.ledger.envelope("default").reserved_minor_units == 0
        lnd.release()
        assert call.result(60).status_code == 200
    assert books.ledger.envelope("default").settled_minor_units == 10
    books.check()
