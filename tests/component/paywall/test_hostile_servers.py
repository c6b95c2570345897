"""What a hostile server, a hasty caller or an odd machine may try. Each of these once worked."""

from __future__ import annotations

import os
from typing import Any

import pytest
import requests

from routeweiler_sync import (
    BudgetEnvelope,
    BudgetExceededError,
    ChallengeMismatchError,
    Policy,
    PolicyMaxPerCallExceededError,
    PolicyRule,
    RuleMatch,
    TokenRefusedError,
)
from routeweiler_sync.testing import FakeLnd, Paywall
from routeweiler_sync.testing._paywall_logic import PaywallRequest
from tests.support.accounts import Books
from tests.support.http_server import server


def invoice_on(payment_hash: str) -> str:
    """Anybody can sign an invoice on a payment hash that they have seen."""
    import time

    import bolt11
    from bolt11.models.tags import Tag, TagChar, Tags

    tags = Tags([Tag(TagChar.payment_hash, payment_hash), Tag(TagChar.payment_secret, "11" * 32), Tag(TagChar.description, "x")])
    invoice = bolt11.Bolt11(currency="bcrt", amount_msat=bolt11.MilliSatoshi(1_000), date=int(time.time()), tags=tags)
    return bolt11.encode(invoice, "42" * 32)


# -- tokens of others ---------------------------------------------------------------------------------------------------------


def test_a_server_that_repeats_anothers_payment_hash_gets_no_token(session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """With an invoice on a hash that it has merely seen, any server could ask for the token of another: it opens their door."""
    session.get(paywall.url)
    seen: list[str | None] = []

    def evil(handler: Any) -> Any:
        seen.append(handler.headers.get("Authorization"))
        challenge = f'L402 token="x", invoice="{invoice_on(books.rows[0].payment_hash)}"'
        return 402, [("WWW-Authenticate", challenge)], b""

    with server(evil) as url, pytest.raises(ChallengeMismatchError) as caught:
        session.get(url)
    assert caught.value.spent is False
    assert seen == [None]
    books.check()


@pytest.mark.slow
def test_a_server_that_repeats_an_unfinished_payments_hash_gets_no_order(
    make_session, paywall: Paywall, lnd: FakeLnd, books: Books
) -> None:
    """With an invoice on a hash that it has merely seen, a server could ask for what another is being paid for at this moment."""
    lnd.hang_next()
    with pytest.raises(requests.RequestException):
        make_session(payment_timeout=1).get(paywall.url)
    challenge = f'L402 token="x", invoice="{invoice_on(books.rows[0].payment_hash)}"'
    with server(lambda handler: (402, [("WWW-Authenticate", challenge)], b"")) as url, pytest.raises(ChallengeMismatchError):
        make_session(payment_timeout=5).get(url)
    lnd.release()


# -- answers that cost no token -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        (401, {"WWW-Authenticate": 'Basic realm="shop"'}, b"log in"),
        (402, {}, b"quota used up"),
        (402, {"WWW-Authenticate": 'Payment id="1", method="card"'}, b""),
    ],
)
def test_an_answer_that_isnt_about_the_token_doesnt_cost_it(session, paywall: Paywall, lnd: FakeLnd, books: Books, answer) -> None:
    """The application behind the paywall has 401s and 402s of its own: each would throw a good token away and buy another."""
    session.get(paywall.url)
    paywall.answer_next(answer[0], headers=answer[1], body=answer[2])
    response = session.get(paywall.url)
    assert (response.status_code, response.content) == (answer[0], answer[2])
    assert session.get(paywall.url).status_code == 200
    assert len(lnd.payments) == 1
    books.check()


def test_after_a_bare_401_the_same_token_is_offered_again_before_anything_is_bought(
    session, paywall: Paywall, lnd: FakeLnd, books: Books
) -> None:
    """A 401 without a word may be about the token or not: the same token is offered once more."""
    session.get(paywall.url)
    paywall.answer_next(401)
    response = session.get(paywall.url)
    assert response.status_code == 200
    assert response.payment.reused
    assert len(lnd.payments) == 1
    books.check()


def test_two_things_under_one_scope_are_each_bought_once(make_session, lnd: FakeLnd, books: Books) -> None:
    """Tokens that open ?id=1 or ?id=2 are both of the path's scope: to retire one for the other would pay for every call."""
    invoices: dict[str, Any] = {}

    def shop(handler: Any) -> Any:
        item = handler.path
        _, _, credential = (handler.headers.get("Authorization") or "").partition(" ")
        token, _, preimage = credential.partition(":")
        known = invoices.get(token)
        if known is not None and known[0] == item and known[1].preimage.hex() == preimage:
            return 200, [], item.encode()
        invoice = lnd.invoice(1_000)
        token = f"token-{len(invoices)}"
        invoices[token] = (item, invoice)
        return 402, [("WWW-Authenticate", f'L402 token="{token}", invoice="{invoice.bolt11}"')], b""

    with server(shop) as url:
        session = make_session()
        for number in (1, 2, 1, 2, 3, 1):
            assert session.get(f"{url}/item?id={number}").content == f"/item?id={number}".encode()
        assert make_session().get(f"{url}/item?id=2").status_code == 200
    assert sum(payment.status == "SUCCEEDED" for payment in lnd.payments) == 3
    books.check()


# -- redirects ----------------------------------------------------------------------------------------------------------------


def test_a_chain_of_redirects_is_one_call(make_session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """Five paid pages that lead to one another would spend five times what a call may."""
    for number in range(5):
        paywall.add_service(f"/{number}", name=f"page-{number}", price_msat=10_000)

    def respond(request: PaywallRequest) -> Any:
        number = int(request.path.strip("/"))
        return (302, {"Location": f"/{number + 1}"}, b"") if number < 4 else (200, {}, b"end")

    paywall.respond = respond
    session = make_session(budget_envelope=BudgetEnvelope("tight", per_call_minor_units=25))
    with pytest.raises(BudgetExceededError) as caught:
        session.get(paywall.url_for("/0"))
    assert caught.value.spent is True  # this call has paid for two pages
    assert "20 sat" in str(caught.value)
    assert lnd.spent_msat == 20_000
    books.check()


# -- guesses ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [400, 401, 403])
def test_a_post_is_never_sent_twice_for_a_guess(session, paywall: Paywall, lnd: FakeLnd, status: int) -> None:
    """The origin's only token goes along to pages that may be free; an order that is refused must not be placed again."""
    session.get(paywall.url)
    paywall.add_service("/orders", name="orders", price_msat=1_000)
    seen = []
    with server(lambda handler: (seen.append(handler.headers.get("Authorization")), (status, [], b"no"))[1]) as url:
        host = url
        book = session._payer.token_cache
        held = book.token_for_path(paywall.base_url, "/paid")[0]
        import dataclasses

        book.put(dataclasses.replace(held, origin=host))
        assert session.post(host + "/orders", data=b"order").status_code == status
        assert [s is None for s in seen] == ([True] if status != 401 else [True, False])  # a 401 may ask for a token
        seen.clear()
        assert session.get(host + "/free").status_code == status
        assert [s is None for s in seen] == [False, True]


# -- redirects and logins, again ----------------------------------------------------------------------------------------------


def test_a_chain_of_redirects_buys_one_token_of_a_scope(make_session, lnd: FakeLnd, books: Books) -> None:
    """402, paid, redirected to itself, 402 of the same scope, …: each hop is new, but the call is one. It bought 31 tokens."""
    from routeweiler_sync.testing._paywall_logic import mint

    def circle(handler: Any) -> Any:
        if "Authorization" in handler.headers and not handler.headers["Authorization"].endswith(state.get("spent", "-")):
            state["spent"] = handler.headers["Authorization"][-64:]
            return 302, [("Location", handler.path)], b""
        invoice = lnd.invoice(1_000)
        token = mint(os.urandom(32), os.urandom(32), invoice.payment_hash, ["services=s:0"])
        return 402, [("WWW-Authenticate", f'L402 macaroon="{token}", invoice="{invoice.bolt11}"')], b""

    state: dict[str, str] = {}
    with server(circle) as url, pytest.raises(requests.RequestException):
        make_session(budget_envelope=None).get(url)
    assert len(lnd.payments) == 1
    books.check()


@pytest.mark.slow
def test_a_redirect_in_front_of_the_paywall_takes_no_token(session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """A maintenance page answers everybody with 302: the token that the paywall refuses hasn't been taken by that."""
    paywall.faults.refuse_tokens = True
    with pytest.raises(TokenRefusedError):
        session.get(paywall.url)
    for _ in range(2):
        paywall.faults.refuse_tokens = False
        paywall.answer_next(302, headers={"Location": paywall.url_for("/free")})
        assert session.get(paywall.url).status_code == 200
        paywall.faults.refuse_tokens = True
        with pytest.raises(TokenRefusedError):
            session.get(paywall.url)
    assert len(lnd.payments) == 1
    books.check()


def test_a_login_behind_the_paywall_costs_no_token(session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """/me wants a login and says 401 without a word: as refusals of the token they cost a purchase each time."""
    paywall.respond = lambda request: (401, {}, b"log in") if request.path == "/me" else (200, {}, b"ok")
    for _ in range(3):
        assert session.get(paywall.url_for("/ok")).status_code == 200
        assert session.get(paywall.url_for("/me")).status_code == 401
    assert len(lnd.payments) == 1
    books.check()


def test_a_policys_limit_holds_over_redirects(make_session, paywall: Paywall, lnd: FakeLnd) -> None:
    """A chain of paid pages would spend as often what a rule allows for one call."""
    for number in range(3):
        paywall.add_service(f"/{number}", name=f"page-{number}", price_msat=10_000)
    paywall.respond = lambda request: (302, {"Location": f"/{int(request.path.strip('/')) + 1}"}, b"")
    rule = PolicyRule(name="cheap", when=RuleMatch(scheme="L402"), max_per_call_minor_units=15)
    with pytest.raises(PolicyMaxPerCallExceededError):
        make_session(policy=Policy(rules=[rule])).get(paywall.url_for("/0"))
    assert lnd.spent_msat == 10_000


def test_a_guessed_token_that_a_free_page_refuses_is_not_tried_again(session, paywall: Paywall, lnd: FakeLnd) -> None:
    """A free page that doesn't like the token answers as it does without it, and is asked once the next time."""
    session.get(paywall.url)
    seen = []

    def shy(handler: Any) -> Any:
        seen.append("Authorization" in handler.headers)
        return (403 if seen[-1] else 200), [], b"free"

    with server(shy) as url:
        import dataclasses

        held = session._payer.token_cache.token_for_path(paywall.base_url, "/paid")[0]
        session._payer.token_cache.put(dataclasses.replace(held, origin=url))
        for _ in range(2):
            response = session.get(url + "/page")
            assert (response.status_code, response.history) == (200, [])
    assert seen == [True, False, False]
