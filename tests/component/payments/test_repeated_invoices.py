"""A server that repeats one invoice for ever: whatever became of its payment, an error of ours is raised, and nothing is paid."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import requests

from routeweiler_sync import (
    ChallengeExpiredError,
    FundingError,
    InvoicePaymentError,
    Ledger,
    PaymentPendingError,
    PreimageMismatchError,
    RouteweilerError,
    TokenRefusedError,
)
from routeweiler_sync.paywall import negotiation
from routeweiler_sync.testing import FakeLnd
from tests.support.accounts import Books
from tests.support.challenge_builders import macaroon, token
from tests.support.http_server import server


@pytest.fixture(autouse=True)
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(negotiation, "OFFER_AGAIN_S", 0.2)


@pytest.fixture(params=["never", "once", "401", "always"])
def repeating(request: pytest.FixtureRequest, lnd: FakeLnd) -> Iterator[str]:
    """The URL of a server that asks for one and the same invoice for ever, and takes its token never, once or always."""
    header: dict[str, str] = {}
    seen: list[str] = []

    def answer(handler: Any) -> tuple[int, list[tuple[str, str]], bytes]:
        if "Authorization" in handler.headers:
            seen.append(handler.path)
            if request.param == "always" or (request.param == "once" and len(seen) == 1):
                return 200, [], b"the page"
            if request.param == "401":
                return 401, [], b""
        if not header:
            invoice = lnd.invoice(10_000)
            opaque = token(macaroon(invoice.payment_hash))
            header["it"] = f'L402 macaroon="{opaque}", invoice="{invoice.bolt11}"'
        return 402, [("WWW-Authenticate", header["it"])], b""

    with ExitStack() as stack:
        yield stack.enter_context(server(answer))


def end_unpaid(lnd: FakeLnd, how: str) -> None:
    if how == "failed":
        lnd.fail_next("NO_ROUTE")
    elif how == "refused":
        lnd.refuse_next("permission denied")
    elif how == "expired":
        lnd.refuse_next("invoice expired. Valid until 2020-01-01")
    elif how == "wrong preimage":
        lnd.wrong_preimage_next()


def said(call: Callable[[], requests.Response]) -> type:
    """The class of the error, or of the response. Any error that isn't ours fails the test."""
    try:
        return type(call())
    except RouteweilerError as error:
        return type(error)


@pytest.mark.parametrize("deed", ["forget", "forget in another program", "retire"])
@pytest.mark.parametrize("session_is", ["the same", "another"])
def test_the_token_was_given_up(session_is: str, deed: str, repeating: str, make_session, lnd: FakeLnd, books: Books) -> None:
    """The session may still have the token in memory when another program has given it up."""
    session = make_session()
    said(lambda: session.get(repeating))
    ledger = books.ledger
    for row in ledger.payments():
        if deed == "retire":
            ledger.retire(row.payment_hash)
        else:
            ledger.forget(row.payment_hash)
        if deed == "forget in another program":
            ledger.forgotten.clear()
    again = session if session_is == "the same" else make_session()
    for url in (repeating, repeating, repeating + "/other"):
        assert said(lambda url=url: again.get(url)) in (TokenRefusedError, requests.Response)  # type: ignore[misc]
    assert len([payment for payment in lnd.payments if payment.status == "SUCCEEDED"]) == 1
    assert lnd.payments[0].sends == 1


@pytest.mark.parametrize(
    ("how", "error"),
    [
        ("failed", InvoicePaymentError),
        ("refused", FundingError),
        ("expired", ChallengeExpiredError),
        ("wrong preimage", PreimageMismatchError),
    ],
)
def test_the_payment_ended_without_a_token(how: str, error: type, repeating: str, make_session, lnd: FakeLnd, books: Books) -> None:
    """The invoice isn't sent again, and every call hears how its payment ended."""
    end_unpaid(lnd, how)
    session = make_session()
    assert said(lambda: session.get(repeating)) is error
    orders = len(lnd.orders)
    assert said(lambda: session.get(repeating)) is error
    assert said(lambda: make_session().get(repeating)) is error
    if how == "wrong preimage":
        Ledger.open(books.ledger_path).forget(books.rows[0].payment_hash)
        assert said(lambda: session.get(repeating)) is TokenRefusedError
    assert len(lnd.orders) == orders


def test_the_payment_was_abandoned(repeating: str, make_session, lnd: FakeLnd, books: Books) -> None:
    """Only the node knows what becomes of it; if it is paid after all, recover() finds the token."""
    lnd.hang_next()
    session = make_session(payment_timeout=0.6)
    assert said(lambda: session.get(repeating)) is PaymentPendingError
    books.ledger.forget(books.rows[0].payment_hash, abandon=True)
    assert said(lambda: session.get(repeating)) is PaymentPendingError
    lnd.release()
    assert [row.state.value for row in session.recover()] == ["settled"]
    assert said(lambda: session.get(repeating)) in (TokenRefusedError, requests.Response)
    assert lnd.payments[0].sends == 1
