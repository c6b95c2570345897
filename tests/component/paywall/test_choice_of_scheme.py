"""Where a 402 offers L402 and a charge of the Payment scheme, one of them is paid: the one that the user's settings choose."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from routeweiler_sync import BudgetEnvelope, Policy, PolicyRule, RailNotSupportedError, RuleMatch
from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.accounts import Books

ALL = ("LSAT", "L402", "Payment")


def _policy(**rule: Any) -> Policy:
    return Policy([PolicyRule("it", when=RuleMatch(**({"url_matches": "*"} | rule.pop("when", {}))), **rule)])


@pytest.mark.parametrize(
    ("settings", "scheme"),
    [
        ({}, "L402"),
        ({"policy": _policy(prefer="mpp-lightning")}, "Payment"),
        ({"policy": _policy(prefer=["mpp-lightning", "l402"])}, "Payment"),
        ({"policy": _policy(prefer=["l402", "mpp-lightning"])}, "L402"),
        ({"policy": _policy(prefer=["card", "mpp-lightning"])}, "Payment"),
        ({"policy": _policy(prefer="mpp-lightning", when={"url_matches": "*/elsewhere"})}, "L402"),
        ({"policy": Policy(default_rail="mpp-lightning")}, "Payment"),
        ({"policy": _policy(deny=True, when={"scheme": "L402"})}, "Payment"),
        ({"policy": _policy(deny=True, when={"scheme": "payment"})}, "L402"),
        ({"budget_envelope": BudgetEnvelope("e", allowed_rails=["mpp-lightning"])}, "Payment"),
        ({"budget_envelope": BudgetEnvelope("e", allowed_rails=["l402"])}, "L402"),
        ({"budget_envelope": BudgetEnvelope("e", allowed_rails=["mpp-lightning", "l402"])}, "L402"),
        (
            {
                "policy": _policy(prefer=["mpp-lightning", "l402"]),
                "budget_envelope": BudgetEnvelope("e", allowed_rails=["l402"]),
            },
            "L402",
        ),
    ],
    ids=str,
)
def test_the_users_settings_choose(make_session, lnd: FakeLnd, books: Books, settings: dict[str, Any], scheme: str) -> None:
    """If failing: a payment is made by a scheme that the user keeps from it, or refused though the other was offered too."""
    with Paywall(lnd, scheme=ALL) as paywall:
        session = make_session(**settings)
        quote = session.quote("GET", paywall.url)
        assert session.get(paywall.url).status_code == 200
        assert [row.scheme for row in books.rows] == [scheme]
        assert quote is not None
        assert [payment.amount_msat for payment in lnd.payments] == [quote.amount_msat]


def test_an_envelope_in_the_ledger_chooses_too(make_session, lnd: FakeLnd, books: Books) -> None:
    """If failing: a session that names its envelope by id is refused what the envelope allows."""
    first = make_session(budget_envelope=BudgetEnvelope("stored", allowed_rails=["mpp-lightning"]))
    with Paywall(lnd, scheme=ALL) as paywall, Paywall(lnd, scheme=ALL) as other:
        assert first.get(paywall.url).status_code == 200
        assert make_session(budget_envelope="stored").get(other.url).status_code == 200
    assert [row.scheme for row in books.rows] == ["Payment", "Payment"]


def test_the_envelopes_around_it_choose_too(make_session, lnd: FakeLnd, books: Books) -> None:
    """If failing: an agent is refused what it may buy, since the envelope for all forbids the scheme that its own would take."""
    team = BudgetEnvelope("team", allowed_rails=["mpp-lightning"])
    scout = BudgetEnvelope("scout", parent=team)
    for envelope in (
        scout,
        "scout",
        BudgetEnvelope("writer", parent="team"),
        BudgetEnvelope("x", parent=replace(scout, parent="team")),
    ):
        with Paywall(lnd, scheme=ALL) as paywall:
            assert make_session(budget_envelope=envelope).get(paywall.url).status_code == 200
    assert [row.scheme for row in books.rows] == ["Payment"] * 4


@pytest.mark.parametrize(
    ("scheme", "settings"),
    [
        ("Payment", {"policy": _policy(prefer="l402")}),
        ("Payment", {"budget_envelope": BudgetEnvelope("e", allowed_rails=["l402"])}),
        (("LSAT", "L402"), {"policy": _policy(prefer="mpp-lightning")}),
        (("LSAT", "L402"), {"budget_envelope": BudgetEnvelope("e", allowed_rails=["mpp-lightning"])}),
        (ALL, {"budget_envelope": BudgetEnvelope("e", allowed_rails=["card"])}),
    ],
    ids=str,
)
def test_what_is_offered_alone_and_not_allowed_is_refused(
    make_session, lnd: FakeLnd, scheme: Any, settings: dict[str, Any]
) -> None:
    """If failing: money goes over a rail that the user excluded."""
    with Paywall(lnd, scheme=scheme) as paywall, pytest.raises(RailNotSupportedError) as caught:
        make_session(**settings).get(paywall.url)
    assert caught.value.spent is False
    assert not lnd.payments
    assert "Nothing was spent" in str(caught.value)


def test_a_session_pays_both_schemes_by_default(session, lnd: FakeLnd, books: Books) -> None:
    """If failing: servers of the newer scheme can't be paid without a setting."""
    with Paywall(lnd, scheme="Payment") as paywall:
        assert session.get(paywall.url).status_code == 200
    assert BudgetEnvelope("e").allowed_rails == ("l402", "mpp-lightning")
    assert [row.scheme for row in books.rows] == ["Payment"]


def test_nothing_is_sent_that_the_caller_didnt_send(session, lnd: FakeLnd) -> None:
    """If failing: servers see by a header which client this is, and answer it in another way than others."""
    with Paywall(lnd, scheme=ALL) as paywall:
        session.get(paywall.url)
        assert not [name for request in paywall.requests for name in request.headers if name.lower().startswith("accept-p")]
