"""A single payment's credential opens the page once, for whoever sends it first: it isn't bought where others can read it."""

from __future__ import annotations

from typing import Any

import pytest
import requests
import responses

from routeweiler_sync import PaywallAdapter, Policy, PolicyDeniedError, PolicyRule, RuleMatch
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


@pytest.mark.parametrize("way", ["argument", "session", "environment", "foreign adapter", "adapter"])
@pytest.mark.parametrize(
    ("proxy", "paid"),
    [
        ("http://proxy.example:3128", False),
        ("proxy.example:3128", False),
        ("https://user:pw@proxy.example", False),
        ("socks5h://10.0.0.1:1080", False),
        ("http://127.0.0.1:3128", True),
        ("localhost:3128", True),
    ],
)
def test_a_proxy_of_another_machine_isnt_this_machine(
    make_session, lnd: FakeLnd, tmp_path, monkeypatch: pytest.MonkeyPatch, proxy: str, paid: bool, way: str
) -> None:
    """If failing: the proxy, and whoever listens before it, reads the credential for what seems to be this machine's own server."""
    monkeypatch.delenv(ALLOW, raising=False)
    session = make_session()
    if way == "environment":
        for name in ("http_proxy", "HTTP_PROXY"):
            monkeypatch.setenv(name, proxy)
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
    elif way == "session":
        session.proxies = {"http": proxy}
    elif way == "foreign adapter":
        session.mount("http://", requests.adapters.HTTPAdapter())
    elif way == "adapter":
        session = requests.Session()
        session.mount("http://", PaywallAdapter(funding=[lnd.funding()], ledger=tmp_path / "other.db"))
    given: dict[str, Any] = {} if way in ("session", "environment") else {"proxies": {"http": proxy}}
    with responses.RequestsMock() as mock:
        add_paywall(mock, "http://localhost:8080", lnd, scheme="Payment")
        if paid:
            assert session.get("http://localhost:8080/page", **given).status_code == 200
        else:
            with pytest.raises(PolicyDeniedError, match=r"proxy of another machine.*NO_PROXY.*" + ALLOW) as caught:
                session.get("http://localhost:8080/page", **given)
            assert caught.value.spent is False
            assert "pw" not in str(caught.value)
    assert len(lnd.payments) == paid


def test_a_charge_that_is_owed_isnt_presented_through_a_proxy(make_session, lnd: FakeLnd) -> None:
    """If failing: what was paid for without the proxy is shown to it by the next call."""
    proxies = {"http": "http://proxy.example:3128"}
    with responses.RequestsMock() as mock:
        paywall = add_paywall(mock, "http://localhost:8080", lnd, scheme="Payment", receipts="never")
        paywall.respond = lambda request: (503, {}, b"")
        assert make_session().get("http://localhost:8080/page").status_code == 503
        paywall.respond = None
        with pytest.raises(PolicyDeniedError):
            make_session().get("http://localhost:8080/page", proxies=proxies)
        assert make_session().get("http://localhost:8080/page").status_code == 200
        assert [request.paid for request in paywall.requests] == [False, True, False, False, True]
    assert len(lnd.payments) == 1


def test_https_may_go_through_any_proxy(make_session, lnd: FakeLnd) -> None:
    """If failing: nobody behind a company's proxy can pay."""
    with responses.RequestsMock() as mock:
        add_paywall(mock, "https://api.example", lnd, scheme="Payment")
        session = make_session()
        assert session.get("https://api.example/page", proxies={"https": "http://proxy.example:3128"}).status_code == 200
