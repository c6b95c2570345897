"""A single payment's credential opens the page once, for whoever sends it first: it isn't bought where others can read it."""

from __future__ import annotations

from typing import Any

import pytest
import responses

from routeweiler_sync import Policy, PolicyDeniedError, PolicyRule, RuleMatch
from routeweiler_sync.testing import FakeLnd, Paywall, add_paywall

ALLOW = "ROUTEWEILER_ALLOW_HTTP_PAYMENT"
PREFERRED = Policy([PolicyRule("it", when=RuleMatch(url_matches="*"), prefer="mpp-lightning")])


@pytest.mark.parametrize(
    ("scheme", "settings", "value", "paid"),
    [
        ("Payment", {}, None, False),
        ("Payment", {}, "0", False),
        ("Payment", {}, "", False),
        ("Payment", {}, "no", False),
        ("Payment", {}, "1", True),
        ("Payment", {}, " True ", True),
        (("LSAT", "L402"), {}, None, True),
        (("LSAT", "L402", "Payment"), {}, None, True),
        (("LSAT", "L402", "Payment"), {"policy": PREFERRED}, None, False),
        (("LSAT", "L402", "Payment"), {"policy": PREFERRED}, "1", True),
    ],
    ids=str,
)
def test_over_plain_http_a_charge_is_bought_only_if_told(
    make_session,
    lnd: FakeLnd,
    monkeypatch: pytest.MonkeyPatch,
    scheme: Any,
    settings: dict[str, Any],
    value: str | None,
    paid: bool,
) -> None:
    """If failing: whoever listens on the way fetches the page that was paid for."""
    monkeypatch.delenv(ALLOW, raising=False)
    if value is not None:
        monkeypatch.setenv(ALLOW, value)
    with responses.RequestsMock() as mock:
        add_paywall(mock, "http://api.example", lnd, scheme=scheme)
        session = make_session(**settings)
        if paid:
            assert session.get("http://api.example/page").status_code == 200
        else:
            with pytest.raises(PolicyDeniedError, match=r"plain http.*Nothing was spent.*" + ALLOW) as caught:
                session.get("http://api.example/page")
            assert caught.value.spent is False
    assert len(lnd.payments) == paid


def test_over_plain_http_a_charge_that_is_owed_isnt_presented(make_session, lnd: FakeLnd, monkeypatch: pytest.MonkeyPatch) -> None:
    """If failing: what an earlier program was allowed to buy is shown to others on the way by a later one that isn't."""
    with responses.RequestsMock() as mock:
        paywall = add_paywall(mock, "http://api.example", lnd, scheme="Payment", receipts="never")
        paywall.respond = lambda request: (503, {}, b"")
        monkeypatch.setenv(ALLOW, "1")
        assert make_session().get("http://api.example/page").status_code == 503
        monkeypatch.delenv(ALLOW)
        with pytest.raises(PolicyDeniedError, match=ALLOW):
            make_session().get("http://api.example/page")
        paywall.respond = None
        monkeypatch.setenv(ALLOW, "1")
        assert make_session().get("http://api.example/page").status_code == 200
        assert [request.paid for request in paywall.requests] == [False, True, False, False, True]
    assert len(lnd.payments) == 1


def test_over_https_and_on_this_machine_a_charge_is_bought(session, lnd: FakeLnd) -> None:
    """If failing: programs that talk to a proxy of their own machine can't pay."""
    with responses.RequestsMock() as mock:
        add_paywall(mock, "https://api.example", lnd, scheme="Payment")
        assert session.get("https://api.example/page").status_code == 200
    with Paywall(lnd, scheme="Payment") as paywall:
        assert paywall.url.startswith("http://127.0.0.1")
        assert session.get(paywall.url).status_code == 200
