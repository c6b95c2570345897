"""What a call says afterwards: on its response, and in its one line of the trace; once for each payment."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from routeweiler_sync import (
    InvoicePaymentError,
    Ledger,
    LedgerError,
)
from routeweiler_sync.paywall import call_record as account
from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.accounts import Books


@pytest.mark.slow
def test_a_payment_is_reported_once_however_many_wait_for_it(make_session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """Each of them found it settled and untold, and told it again."""
    session = make_session()
    for _ in range(8):
        paywall.revoke_tokens()
        together = threading.Barrier(6)

        def call(_: int, together: threading.Barrier = together) -> int:
            together.wait()
            return session.get(paywall.url).status_code

        with ThreadPoolExecutor(6) as pool:
            assert set(pool.map(call, range(6))) == {200}
    told = [p["paymentHash"] for line in books.lines if (p := line["payment"]) and not p["reused"]]
    assert len(told) == len(set(told)) == len(lnd.payments)
    books.check()


def test_a_call_in_a_hook_is_a_call_of_its_own(session, paywall: Paywall, books: Books) -> None:
    """`head()` never follows redirects, and was taken for a redirect of the call whose hook it was in."""
    nested = []

    def hook(response: requests.Response, **kwargs: object) -> None:
        if not nested:
            nested.append(None)
            nested[0] = session.head(paywall.url)

    session.get(paywall.url_for("/free"), hooks={"response": hook})
    assert nested[0].status_code == 200
    assert sorted((line["method"], line["payment"] is not None) for line in books.lines) == [("GET", False), ("HEAD", True)]
    assert all("parentRequestId" not in line for line in books.lines)
    books.check()


def test_the_402s_are_in_history_after_redirects_too(session, paywall: Paywall) -> None:
    """What was paid on the way can be seen from the response."""
    response = session.get(paywall.url_for("/redirect?to=/paid"))
    assert [each.status_code for each in response.history] == [302, 402]
    assert all(hasattr(each, "payment") for each in response.history)


def test_a_trace_that_breaks_loses_no_response(make_session, paywall: Paywall, caplog) -> None:
    """The page has been paid for."""

    class Broken:
        def emit(self, event: object) -> bool:
            raise RuntimeError("broken")

        def close(self) -> None:
            pass

    assert make_session(trace_sink=Broken()).get(paywall.url).status_code == 200
    assert "broken" in caplog.text


def test_a_waiting_call_reports_only_what_it_has_paid_itself(make_session, paywall: Paywall, lnd: FakeLnd) -> None:
    """The buyer has paid on the hop before, and its error says so; those who wait for the same page have paid nothing."""
    paywall.add_service("/next", name="next", price_msat=1_000)
    paywall.respond = lambda request: (302, {"Location": "/next"}, b"") if request.path == "/first" else (200, {}, b"")
    session = make_session()
    lnd.hang_next()
    with ThreadPoolExecutor(2) as pool:
        buyer = pool.submit(session.get, paywall.url_for("/first"))
        lnd.wait_for(lambda node: len(node.payments) == 1)
        lnd.hang_next()
        lnd.release()
        lnd.wait_for(lambda node: len(node.payments) == 2)
        waiter = pool.submit(session.get, paywall.url_for("/next"))
        paywall.wait_for(lambda: sum(request.path == "/next" for request in paywall.requests) == 2)
        lnd.release(fail="NO_ROUTE")
        errors = [buyer.exception(60), waiter.exception(60)]
    assert isinstance(errors[0], InvoicePaymentError)
    assert errors[0].spent is True
    if errors[1] is not None:  # else it came a moment later, and bought
        assert isinstance(errors[1], InvoicePaymentError)
        assert errors[1].spent is False
        assert "has paid before" not in str(errors[1])


def test_a_payment_with_a_wrong_preimage_is_reported_once(session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """It moved money, once, however many waited for it."""
    lnd.wrong_preimage_next()
    together = threading.Barrier(8)

    def call(_: int) -> BaseException | None:
        together.wait()
        with pytest.raises(requests.RequestException) as caught:
            session.get(paywall.url)
        return caught.value

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(call, range(8)))
    told = [p["paymentHash"] for line in books.lines if (p := line["payment"]) and not p["reused"]]
    assert len(told) == 1
    books.check()


def test_a_payment_that_another_call_has_just_reported_is_not_reported_again(
    session, paywall: Paywall, lnd, books: Books, monkeypatch
) -> None:
    """Looking before claiming leaves a moment in which another tells of it and lets go."""
    lnd.wrong_preimage_next()
    claim = account.claim

    def after_another(payment_hash: str) -> bool:
        books.ledger.mark(payment_hash, reported=True)
        return claim(payment_hash)

    monkeypatch.setattr(account, "claim", after_another)
    with pytest.raises(requests.RequestException):
        session.get(paywall.url)
    assert [line["payment"] for line in books.lines] == [None]


@pytest.mark.slow
def test_a_recovery_that_breaks_off_reports_the_payments_it_ended(
    make_session, paywall: Paywall, lnd: FakeLnd, books: Books, monkeypatch
) -> None:
    """The second row's ledger write fails: the first row's payment must be told all the same, and by nobody else."""
    paywall.add_service("/two", name="two", price_msat=2_000)
    lnd.hang_next(times=2)
    session = make_session(payment_timeout=1)
    for path in ("/one", "/two"):
        with pytest.raises(requests.RequestException):
            session.get(paywall.url_for(path))
    lnd.release()
    change = Ledger.change
    calls = []

    def full(self: Ledger, *args: Any, **how: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise LedgerError("disk full")
        return change(self, *args, **how)

    monkeypatch.setattr(Ledger, "change", full)
    with pytest.raises(requests.RequestException):
        make_session().recover()
    monkeypatch.setattr(Ledger, "change", change)
    assert len([line for line in books.lines if line["payment"] and not line["payment"]["reused"]]) == 1
    make_session().recover()
    books.check()


def test_a_sink_of_the_users_that_returns_none_counts_as_having_written(make_session, paywall: Paywall, books: Books) -> None:
    """A sink of one's own may return None: that isn't "not written"."""

    class Silent:
        def emit(self, event: object) -> None:
            events.append(event)

        def close(self) -> None:
            pass

    events: list[Any] = []
    session = make_session(trace_sink=Silent())
    session.get(paywall.url)
    make_session(trace_sink=Silent()).get(paywall.url)
    assert [event.payment.reused for event in events] == [False, True]
