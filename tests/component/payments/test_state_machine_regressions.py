"""What the walks of `test_state_machine` found, each as a plain test."""

from __future__ import annotations

import threading

import pytest
import requests

from routeweiler_sync import PreimageMismatchError, TokenRefusedError
from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.accounts import Books


@pytest.mark.slow
def test_a_token_that_was_never_accepted_is_not_reported_as_expired(session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """Told to "call again for a new one", a caller goes round in circles: nothing is bought until this token is forgotten."""
    paywall.faults.refuse_tokens = True
    with pytest.raises(TokenRefusedError, match=r"later calls offer them again\..*forget") as caught:
        session.get(paywall.url)
    assert caught.value.payment_hash == lnd.payments[0].payment_hash
    assert "its time was over" not in str(caught.value)
    books.check()


def test_a_second_payment_of_a_call_without_a_fitting_preimage_is_in_the_trace(lnd: FakeLnd, books: Books, make_session) -> None:
    """A call pays on one hop, is redirected and pays on another, whose preimage doesn't fit: that payment was in no trace line, its
    row was marked as reported, and ledger and trace never added up again.
    """
    with Paywall(lnd, price_msat=10_000) as behind, Paywall(lnd, price_msat=4_000, service="front") as front:

        def redirect(request: object) -> tuple[int, dict[str, str], bytes]:
            lnd.wrong_preimage_next()
            return 302, {"Location": behind.url}, b""

        front.respond = redirect
        with pytest.raises(PreimageMismatchError) as caught:
            make_session().get(front.url)
    payments = [line["payment"] for line in books.lines]
    assert [payment["amountMsat"] for payment in payments] == [4_000, 10_000]
    assert payments[1]["paymentHash"] == caught.value.payment_hash
    assert payments[1]["proofValue"] is None
    assert books.lines[1]["url"] == behind.url
    books.check()


def test_nothing_is_bought_for_a_challenge_of_a_401_alone(session, lnd: FakeLnd, books: Books) -> None:
    """A server that refuses a token with 401 and a new challenge was paid at once, though no 402 had asked for it: what the page
    costs without a token, or whether it costs anything, nobody had asked.
    """
    with Paywall(lnd, sells="once", refuses=401, refuses_with="challenge") as paywall:
        session.get(paywall.url)
        session.get(paywall.url)
        assert [request.status for request in paywall.requests] == [402, 200, 401, 402, 200]
    books.check()


def test_an_origin_that_leaves_two_payments_without_a_page_is_refused_until_one_comes(make_session, lnd, books: Books) -> None:
    """Each call to a server that takes the money and hangs would cost a payment. That it "refused" tokens would be untrue, and the
    page that was paid for is the way out.
    """
    with Paywall(lnd, price_msat=3_000, sells="path") as paywall:
        session, works_again = make_session(), threading.Event()

        def hang(request: object) -> tuple[int, dict[str, str], bytes]:
            works_again.wait(60)
            return 200, {}, b"paid content\n"

        paywall.respond = hang
        for path in ("/1", "/2"):
            with pytest.raises(requests.ReadTimeout):
                session.get(paywall.url_for(path), timeout=1)
        works_again.set()
        with pytest.raises(TokenRefusedError, match=r"has never sent a page that was paid for.*met errors or no answer") as caught:
            session.get(paywall.url_for("/3"))
        assert "calls for /" in str(caught.value)
        assert len(lnd.payments) == 2
        for path in ("/1", "/3"):
            assert session.get(paywall.url_for(path)).status_code == 200
    assert len(lnd.payments) == 3
    books.check()
