"""Two layers that both could pay: one call, one payment, whoever of them makes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import requests
from requests.adapters import BaseAdapter, HTTPAdapter
from urllib3.util.retry import Retry

from routeweiler_sync import Routeweiler, RouteweilerError, TokenRefusedError
from routeweiler_sync.paywall import negotiation
from routeweiler_sync.testing import FakeLnd, Paywall

from .conftest import Books, Paying

#: A habit that switches paying off where it isn't minded.
LISTS_402 = Retry(total=2, status_forcelist=[402, 503], backoff_factor=0)


class Behind(BaseAdapter):
    """An adapter around another, as recorders, loggers and limiters are."""

    def __init__(self, inner: BaseAdapter) -> None:
        super().__init__()
        self.behind = inner
        self.seen: list[int] = []

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:  # type: ignore[override]
        response = self.behind.send(request, **kwargs)
        self.seen.append(response.status_code)
        return response

    def close(self) -> None:
        self.behind.close()


class Hidden(Behind):
    """One that doesn't show what is behind it."""

    def __init__(self, inner: BaseAdapter) -> None:
        super().__init__(inner)
        self.behind = None  # type: ignore[assignment]
        self.send_behind = inner.send

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:  # type: ignore[override]
        return self.send_behind(request, **kwargs)

    def close(self) -> None:
        pass


def raises(response: requests.Response, **kwargs: Any) -> None:
    response.raise_for_status()


def calls(session: requests.Session, paywall: Paywall) -> None:
    """Free, bought, used, redirected to."""
    session.hooks["response"] = [raises]
    assert session.get(paywall.url_for("/free")).status_code == 200
    assert session.get(paywall.url).content == paywall.content
    assert session.get(paywall.url).content == paywall.content
    assert session.get(paywall.url_for("/redirect?to=" + paywall.url)).content == paywall.content


@pytest.mark.parametrize("around", [Behind, Hidden], ids=["seen through", "hidden"])
def test_our_adapter_behind_another(paying: Paying, paywall: Paywall, books: Books, around: type[Behind]) -> None:
    """The session pays what comes through adapters that aren't ours; the one that is behind it has paid already."""
    session = paying()
    session.mount("http://", around(paying.adapter(max_retries=LISTS_402)))
    calls(session, paywall)
    books.once()


def test_another_adapter_around_one_that_isnt_ours(session: requests.Session, paywall: Paywall, books: Books) -> None:
    """The session pays, and the adapter in between sees each request that goes out."""
    adapter = Behind(HTTPAdapter())
    session.mount("http://", adapter)
    calls(session, paywall)
    assert adapter.seen == [200, 402, 200, 200, 302, 200]
    books.once()


def two(paying: Paying, lnd: FakeLnd, tmp_path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments of two payers that have nothing in common but the node."""
    return dict(paying.kwargs), {"funding": [lnd.funding()], "ledger": tmp_path / "other.db"}


@pytest.mark.parametrize("on", [requests.Session, Routeweiler], ids=["plain", "paying"])
def test_two_payers_one_behind_the_other(
    paying: Paying, paywall: Paywall, lnd: FakeLnd, tmp_path: Path, books: Books, on: type[requests.Session]
) -> None:
    """Two budgets, two ledgers: the one that meets the 402 first pays, and the other never hears of it."""
    mine, other = two(paying, lnd, tmp_path)
    session = paying.closing(on() if on is requests.Session else on(**other))
    session.mount("http://", Behind(paying.adapter(**mine, max_retries=LISTS_402)))
    calls(session, paywall)
    books.once()


def test_a_payer_on_the_adapter_and_one_of_the_session(
    paying: Paying, paywall: Paywall, lnd: FakeLnd, tmp_path: Path, books: Books
) -> None:
    """The adapter's own holds where it is mounted, the session's everywhere else."""
    mine, other = two(paying, lnd, tmp_path)
    session = paying(**other | {"trace_sink": None})
    session.mount(paywall.base_url, paying.adapter(**mine))
    calls(session, paywall)
    books.once()
    with Paywall(lnd) as elsewhere:
        assert session.get(elsewhere.url).status_code == 200
    assert len(lnd.payments) == 2
    assert len(books.rows) == 1


@pytest.mark.slow
def test_a_server_that_takes_no_token(
    paying: Paying, paywall: Paywall, lnd: FakeLnd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worst that can come through two layers: paid for, and a 402 again. The second must not take it for a first one."""
    monkeypatch.setattr(negotiation, "OFFER_AGAIN_S", 0.5)
    mine, other = two(paying, lnd, tmp_path)
    paywall.faults.refuse_tokens = True
    session = paying(**other | {"trace_sink": None})
    session.mount("http://", Hidden(paying.adapter(**mine)))
    for _ in range(2):
        with pytest.raises(TokenRefusedError) as caught:
            session.get(paywall.url)
        assert caught.value.spent is True
    assert len(lnd.payments) == 1


def test_a_layer_that_was_refused_to_pay(paying: Paying, paywall: Paywall, lnd: FakeLnd, tmp_path: Path, books: Books) -> None:
    """What the one budget refuses isn't paid from the other."""
    mine, other = two(paying, lnd, tmp_path)
    paywall.price = 5_000
    session = paying(**other | {"trace_sink": None, "budget_envelope": None})
    session.mount("http://", Behind(paying.adapter(**mine)))
    with pytest.raises(RouteweilerError) as caught:
        session.get(paywall.url)
    assert caught.value.spent is False
    assert lnd.payments == []


def test_a_session_of_its_own_while_requests_pays(
    paying: Paying, paywall: Paywall, books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`install()` for the libraries, and a session for oneself: they share what they have, and don't pay on top of each other."""
    paying.install(monkeypatch)
    calls(paying(), paywall)
    assert requests.get(paywall.url).status_code == 200
    calls(requests.Session(), paywall)
    session = requests.Session()
    session.mount("http://", HTTPAdapter(max_retries=Retry(total=1)))
    calls(session, paywall)
    books.once()


def test_a_session_in_a_hook_of_another(paying: Paying, paywall: Paywall, books: Books) -> None:
    """A hook that asks for something from in there makes a call of its own, which ends before the first goes on."""
    paywall.add_service("/inner", name="inner", price_msat=3_000)
    inner = paying()
    seen: list[Any] = []

    def hook(response: requests.Response, **kwargs: Any) -> None:
        response.raise_for_status()
        if not seen:
            seen.append(None)
            seen[0] = inner.get(paywall.url_for("/inner")).payment

    session = paying()
    session.hooks["response"] = [hook]
    assert session.get(paywall.url).payment.amount_msat == 10_000
    assert seen[0].amount_msat == 3_000
    assert [payment.amount_msat for payment in books.lnd.payments] == [10_000, 3_000]
    books.check()


def test_auth_that_asks_over_the_same_session(session: requests.Session, paywall: Paywall, books: Books) -> None:
    """A login that is fetched when it is needed, as OAuth clients do it, by the session that needs it."""
    fetched: list[str] = []

    def auth(request: requests.PreparedRequest) -> requests.PreparedRequest:
        if not fetched:
            fetched.append("")
            fetched[0] = session.get(paywall.url_for("/login"), auth=lambda bare: bare).text
        request.headers["X-Login"] = str(len(fetched[0]))
        return request

    session.hooks["response"] = [raises]
    assert session.get(paywall.url, auth=auth).content == paywall.content
    assert {request.headers.get("X-Login") for request in paywall.requests if request.path == "/paid"} == {
        str(len(paywall.content))
    }
    books.once()


def test_cached_over_it(paying: Paying, paywall: Paywall, books: Books, tmp_path: Path) -> None:
    """A cached session with our adapters in it: the cache holds what was paid for, and neither the 402 nor the token."""
    requests_cache = pytest.importorskip("requests_cache")
    session = requests_cache.CachedSession(str(tmp_path / "cache"), backend="filesystem", allowable_codes=(200, 402))
    session.mount("http://", Behind(paying.adapter()))
    session.hooks["response"] = [raises]
    first, second = (session.get(paywall.url) for _ in range(2))
    assert (first.from_cache, second.from_cache) == (False, True)
    assert first.content == second.content == paywall.content
    assert len(paywall.requests) == 2
    session.close()
    books.assert_no_secret_in(tmp_path / "cache")
    books.once()
