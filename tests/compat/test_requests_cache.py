"""requests-cache: a paid page is kept and not paid for again, a 402 isn't kept, and no token lies in what is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import requests

import routeweiler_sync
from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.compat_walk import walk
from tests.support.http_server import server

from .conftest import Books, Paying, library

requests_cache = library("requests_cache")

BACKENDS = [("sqlite", "pickle"), ("sqlite", "json"), ("filesystem", "pickle"), ("filesystem", "json"), ("filesystem", "yaml")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "cache"
    made.mkdir()
    return made


def mixin_first(paying: Paying, **kwargs: Any) -> Any:
    """`class X(CacheMixin, Routeweiler)`: the manual's way. The cache is around the payment."""

    class Cached(requests_cache.CacheMixin, paying.Session):  # type: ignore[misc, name-defined]
        pass

    return paying.closing(Cached(**paying.kwargs | kwargs))


def mixin_second(paying: Paying, **kwargs: Any) -> Any:
    """`class X(Routeweiler, CachedSession)`: the payment is around the cache."""

    class Cached(paying.Session, requests_cache.CachedSession):  # type: ignore[misc, name-defined]
        pass

    return paying.closing(Cached(**paying.kwargs | kwargs))


def wrapped(paying: Paying, **kwargs: Any) -> Any:
    """`CachedSession.wrap(session)`: a session of theirs on our adapters."""
    return paying.closing(requests_cache.CachedSession.wrap(paying(), **kwargs))


WAYS = [mixin_first, mixin_second, wrapped]


@pytest.fixture(params=WAYS, ids=lambda way: way.__name__)
def cached(request: pytest.FixtureRequest, paying: Paying, folder: Path) -> Callable[..., Any]:
    """Makes a session with a cache in ``folder``, in one of the three ways."""

    def make(**kwargs: Any) -> Any:
        session = request.param(paying, **{"cache_name": folder / "cache", **kwargs})
        session.hooks["response"] = [lambda response, **kwargs: response.raise_for_status()]
        return session

    return make


def test_a_paid_page_is_kept(cached: Callable[..., Any], paywall: Paywall, books: Books, folder: Path) -> None:
    """A cache that asks again pays again, or at least asks; and one that kept the 402 would sell nothing any more."""
    session = cached()
    bought = session.get(paywall.url)
    assert (bought.content, bought.from_cache, bought.payment.reused) == (paywall.content, False, False)
    assert [each.status_code for each in bought.history] == [402]
    kept = session.get(paywall.url)
    assert (kept.content, kept.from_cache) == (paywall.content, True)
    assert getattr(kept, "payment", None) is None
    assert [each.status for each in paywall.requests] == [402, 200]
    assert {each.status_code for each in session.cache.filter()} == {200}
    books.assert_no_secret_in(folder)
    books.once()


def test_the_next_process_finds_it(cached: Callable[..., Any], paywall: Paywall, books: Books) -> None:
    """What is kept on disk serves without a node and without a ledger."""
    first = cached()
    first.post(paywall.url, data=b"body")
    first.get(paywall.url)
    first.close()
    asked = len(paywall.requests)
    session = cached()
    assert session.get(paywall.url).from_cache
    session.close()
    assert len(paywall.requests) == asked
    books.once()


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("serializer", ["pickle", "json"])
def test_a_token_that_a_402_repeats_isnt_kept(
    way: Callable[..., Any], serializer: str, paying: Paying, lnd: FakeLnd, books: Books, folder: Path
) -> None:
    """In its body, its cookies, a header: history is kept with the page, and so are the cookies of the request."""
    token = "dG9rZW4tb2YtdGhlLXBhZ2U+/w=="

    def answer(handler: Any) -> Any:
        if handler.headers["Authorization"]:
            return 200, [], b"page"
        line = f'L402 token="{token}", invoice="{lnd.invoice(1_000).bolt11}"'
        body = f'{{"t": "{token}"}}'.encode()
        return 402, [("WWW-Authenticate", line), ("X-T", token), ("Set-Cookie", f'x="{token}"; Path=/')], body

    session = way(paying, cache_name=folder / "cache", serializer=serializer)
    with server(answer) as url:
        assert session.get(url).content == b"page"
        assert session.get(url).from_cache
    session.close()
    books.assert_no_secret_in(folder)
    assert not any(token.encode() in each.read_bytes() for each in folder.rglob("*") if each.is_file())


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize(("backend", "serializer"), BACKENDS)
def test_no_token_lies_in_any_backend(
    way: Callable[..., Any], backend: str, serializer: str, paying: Paying, paywall: Paywall, books: Books, folder: Path
) -> None:
    """A cache is copied, shared and kept for years. A token in it opens what somebody else has paid for.

    Redirects too, and with a list of one's own of what is to be left out, which replaces the default and must name Authorization.
    """
    session = way(
        paying, cache_name=folder / "cache", backend=backend, serializer=serializer, ignored_parameters=["Authorization", "api_key"]
    )
    session.hooks["response"] = [lambda response, **kwargs: response.raise_for_status()]
    paywall.respond = lambda request: (
        (302, {"Location": paywall.url_for("/there")}, b"") if request.path == "/moved" else (200, {}, b"page")
    )
    for path in ("/paid", "/paid/2", f"/redirect?to={paywall.url}/3", "/moved"):
        assert session.get(paywall.url_for(path)).content == b"page"
    assert session.get(paywall.url).from_cache
    session.close()
    assert sum(each.stat().st_size for each in folder.rglob("*") if each.is_file()) > 1000
    books.assert_no_secret_in(folder)
    books.once()


def test_an_expired_page_is_fetched_with_the_token(cached: Callable[..., Any], paywall: Paywall, books: Books) -> None:
    """What is fetched anew was paid for: it must not be bought anew."""
    session = cached(cache_control=True, always_revalidate=True)
    met = []

    def respond(request: Any) -> tuple[int, dict[str, str], bytes]:
        met.append(request.headers.get("If-None-Match"))
        return (304, {"ETag": '"1"'}, b"") if met[-1] == '"1"' else (200, {"ETag": '"1"'}, b"page")

    paywall.respond = respond
    assert session.get(paywall.url).content == b"page"
    again = session.get(paywall.url)
    assert (again.content, again.from_cache) == (b"page", True)
    assert met == [None, '"1"']
    session.settings.always_revalidate = False
    with session.cache_disabled():
        assert session.get(paywall.url).payment.reused
    assert session.get(paywall.url, force_refresh=True).payment.reused
    books.once()


def test_a_402_that_cant_be_paid_isnt_kept(cached: Callable[..., Any], paying: Paying, paywall: Paywall, books: Books) -> None:
    """A refusal by the budget, kept, would outlast the budget."""
    from routeweiler_sync import BudgetEnvelope

    paying.kwargs["budget_envelope"] = BudgetEnvelope("tight", per_call_minor_units=1)
    with pytest.raises(routeweiler_sync.BudgetExceededError):
        cached().get(paywall.url)
    paying.kwargs["unpayable"] = "return"
    session = cached(stale_if_error=True)
    session.hooks["response"] = []
    assert session.get(paywall.url).status_code == 402
    assert list(session.cache.filter()) == []
    del paying.kwargs["budget_envelope"]
    session = cached()
    assert session.get(paywall.url).content == paywall.content
    books.once()


def test_a_stale_page_in_place_of_an_error(cached: Callable[..., Any], paying: Paying, paywall: Paywall, books: Books) -> None:
    """`stale_if_error=True` swallows ours too: the old page is better than none, and nothing is spent."""
    from routeweiler_sync import BudgetEnvelope

    session = cached()
    assert session.get(paywall.url).content == b"paid content\n"
    session.cache.reset_expiration(datetime(2020, 1, 1, tzinfo=timezone.utc))
    session.close()
    paywall.revoke_tokens()
    paywall.price_msat = 20_000
    paywall.content = b"new"
    paying.kwargs["budget_envelope"] = BudgetEnvelope("tight", per_call_minor_units=1)
    session = cached(stale_if_error=True)
    stale = session.get(paywall.url)
    assert (stale.content, stale.from_cache) == (b"paid content\n", True)
    assert books.lines[-1]["challenge"]["amountMsat"] == 20_000
    books.once()


@pytest.mark.parametrize("way", [mixin_first, mixin_second], ids=lambda way: way.__name__)
def test_one_call_leaves_one_line(way: Callable[..., Any], paying: Paying, paywall: Paywall, books: Books, folder: Path) -> None:
    """The mixins keep what a call is: free, paid, paid for before, redirected; the cache is off for the walk.

    (It reads a file for its key and leaves it at its start, whoever sends it: a file must stand there.)
    """
    session = way(paying, cache_name=folder / "cache", expire_after=0)
    with session.cache_disabled():
        walk(session, paywall, books, file_from=0)


def test_what_leaves_a_line(paying: Paying, paywall: Paywall, books: Books, folder: Path) -> None:
    """A sum over the trace is right in each way; what a call is differs, and docs/reference/compatibility.md tells how."""
    redirected = paywall.url_for("/redirect?to=" + paywall.url)
    for way, told in ((mixin_first, 1), (mixin_second, 2), (wrapped, 2)):
        before = len(books.lines)
        session = way(paying, cache_name=folder / way.__name__)
        session.hooks["response"] = [lambda response, **kwargs: response.raise_for_status()]
        assert not session.get(redirected).from_cache
        assert session.get(redirected).from_cache
        assert len(books.lines) - before == told, way.__name__
    books.once()


@pytest.fixture
def uninstalled() -> Iterator[None]:
    kept = requests.Session
    yield
    requests.Session = requests.sessions.Session = kept  # type: ignore[misc]


@pytest.mark.usefixtures("uninstalled")
def test_install_cache_with_a_paying_session(paying: Paying, paywall: Paywall, books: Books, folder: Path) -> None:
    """`install_cache(session_factory=…)` is the manual's way for scripts that can't be changed: it pays and keeps."""

    class Cached(requests_cache.CacheMixin, paying.Session):  # type: ignore[misc, name-defined]
        pass

    requests_cache.install_cache(folder / "cache", session_factory=Cached, **paying.kwargs)
    bought = requests.get(paywall.url_for("/redirect?to=" + paywall.url), timeout=20)
    assert (bought.content, [each.status_code for each in bought.history]) == (paywall.content, [302, 402])
    assert requests.get(paywall.url, timeout=20).from_cache is True
    assert requests.post(paywall.url, timeout=20).payment.reused
    with requests_cache.disabled():
        assert requests.get(paywall.url, timeout=20).status_code == 402
    requests_cache.get_cache().close()
    books.assert_no_secret_in(folder)
    books.once()


@pytest.mark.usefixtures("uninstalled")
def test_install_cache_and_our_names(paying: Paying, paywall: Paywall, books: Books, folder: Path) -> None:
    """Installed for `requests`, the cache doesn't reach our session: that pays and keeps nothing. `requests` doesn't pay."""
    session = paying()
    session.hooks["response"] = [lambda response, **kwargs: response.raise_for_status()]
    requests_cache.install_cache(folder / "cache")
    assert requests.get(paywall.url, timeout=20).status_code == 402
    assert session.get(paywall.url).content == paywall.content
    assert not hasattr(session.get(paywall.url), "from_cache")
    assert requests.get(paywall.url, timeout=20).status_code == 402
    requests_cache.uninstall_cache()
    assert paying().get(paywall.url).payment.reused
    assert [each.status for each in paywall.requests] == [402, 402, 200, 200, 402, 200]
    books.once()


@pytest.mark.usefixtures("uninstalled")
def test_installed_payment_under_an_installed_cache(
    paying: Paying, paywall: Paywall, books: Books, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two that patch `requests.Session`, one after the other: the cache wraps what pays, if it is told to."""
    paying.install(monkeypatch)
    paid = requests.Session

    class Cached(requests_cache.CacheMixin, paid):  # type: ignore[misc, valid-type]
        pass

    requests_cache.install_cache(folder / "cache", session_factory=Cached)
    assert requests.post(paywall.url, data=b"body", timeout=20).content == paywall.content
    assert requests.get(paywall.url_for("/redirect?to=" + paywall.url), timeout=20).from_cache is False
    assert requests.get(paywall.url_for("/redirect?to=" + paywall.url), timeout=20).from_cache is True
    requests_cache.get_cache().close()
    requests.Session = requests.sessions.Session = paid  # type: ignore[misc]
    books.assert_no_secret_in(folder)
    books.once()


def test_a_cached_session_of_the_users_is_wrapped(paying: Paying, paywall: Paywall, books: Books, folder: Path) -> None:
    """`wrap(session)`: what their session does, ours does too; it keeps what was paid for, and theirs still doesn't pay."""
    theirs = paying.closing(requests_cache.CachedSession(folder / "cache"))
    theirs.headers["X-Own"] = "1"
    session = paying.wrap(theirs)
    assert session.get(paywall.url).content == paywall.content
    assert paywall.requests[-1].headers["X-Own"] == "1"
    assert session.get(paywall.url).from_cache
    assert theirs.get(paywall.url).from_cache
    assert theirs.get(paywall.url_for("/other")).status_code == 402
    books.assert_no_secret_in(folder)
    books.once()
