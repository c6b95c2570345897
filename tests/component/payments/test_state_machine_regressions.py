"""What the walks of `test_state_machine` found, each as a plain test."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest

from routeweiler_sync import PreimageMismatchError, Routeweiler, TokenRefusedError
from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.accounts import Books


class CrossingPaywall(Paywall):
    """Refuses the first offer of a token; while that answer is on its way, ``served`` happens."""

    served: Callable[[], object] = staticmethod(lambda: None)

    def answer(self, method: str, target: str, headers: Iterable[tuple[str, str]], body: bytes) -> Any:
        reply = super().answer(method, target, headers, body)
        if reply.status == 402 and len(self.requests) == 2:
            self.served()
        return reply


def test_a_refusal_that_crosses_with_a_taking_costs_no_token(lnd: FakeLnd, books: Books, make_session) -> None:
    """Settlement lags: of two threads with the same new token one is refused, the other served a moment later. Read as "refused,
    though taken before", the refusal had the call retire a good token, and pay for a second one.
    """
    with CrossingPaywall(lnd, price_msat=10_000) as paywall:
        paywall.faults.settle_lag = 1
        paywall.served = lambda: books.ledger.mark(books.rows[0].payment_hash, accepted=True)  # type: ignore[method-assign]
        session: Routeweiler = make_session()
        assert session.get(paywall.url).status_code == 200
        assert [request.status for request in paywall.requests] == [402, 402, 200]
    assert len(lnd.payments) == 1
    books.check()


def test_a_token_that_was_never_taken_isnt_told_as_over(session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """Told to "call again for a new one", a caller goes round in circles: nothing is bought until this token is forgotten."""
    paywall.faults.refuse_tokens = True
    with pytest.raises(TokenRefusedError, match=r"later calls offer them again\..*forget") as caught:
        session.get(paywall.url)
    assert caught.value.payment_hash == lnd.payments[0].payment_hash
    assert "its time was over" not in str(caught.value)
    books.check()


def test_a_second_payment_of_a_call_without_a_fitting_preimage_is_in_the_trace(lnd: FakeLnd, books: Books, make_session) -> None:
    """A call pays on one hop, is redirected and pays on another, whose preimage doesn't fit: that payment was in no trace line, its row
    was marked as reported, and ledger and trace never added up again.
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
