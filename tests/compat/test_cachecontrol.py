"""CacheControl mounts adapters of its own: the session's net pays above them, and nothing of a token is kept in the cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from routeweiler_sync.testing import Paywall
from tests.support.compat_walk import walk

from .conftest import Books, Paying, library

cachecontrol = library("cachecontrol")
library("filelock")

MAX_AGE = {"Cache-Control": "max-age=600"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "cache"
    made.mkdir()
    return made


def by_wrapper(session: requests.Session, folder: Path, **kwargs: Any) -> Any:
    """`CacheControl(session, cache=FileCache(…))`."""
    from cachecontrol.caches.file_cache import FileCache

    return cachecontrol.CacheControl(session, cache=FileCache(folder / "web"), **kwargs)


def by_adapter(session: requests.Session, folder: Path, **kwargs: Any) -> Any:
    """`session.mount("http://", CacheControlAdapter(…))`."""
    from cachecontrol.caches import SeparateBodyFileCache

    session.mount("http://", cachecontrol.CacheControlAdapter(cache=SeparateBodyFileCache(folder / "web"), **kwargs))
    return session


@pytest.fixture(params=[by_wrapper, by_adapter], ids=lambda way: way.__name__)
def cached(request: pytest.FixtureRequest, session: requests.Session, folder: Path) -> Callable[..., Any]:
    def make(**kwargs: Any) -> Any:
        made = request.param(session, folder, **kwargs)
        made.hooks["response"] = [lambda response, **kwargs: response.raise_for_status()]
        return made

    return make


def test_the_whole_way(cached: Callable[..., Any], paywall: Paywall, books: Books, folder: Path) -> None:
    """`CacheControl(session)` puts its adapters in place of ours: paying would be off, and nobody told."""
    walk(cached(), paywall, books)


def test_a_paid_page_is_kept(cached: Callable[..., Any], paywall: Paywall, books: Books, folder: Path) -> None:
    """The page that was bought comes from the cache the next time, and a 402 never does."""
    session = cached()
    paywall.respond = lambda request: (200, MAX_AGE, b"page")
    bought = session.get(paywall.url)
    assert (bought.content, bought.from_cache, bought.payment.reused) == (b"page", False, False)
    assert [each.status_code for each in bought.history] == [402]
    kept = session.get(paywall.url)
    assert (kept.content, kept.from_cache) == (b"page", True)
    assert [each.status for each in paywall.requests] == [402, 200]
    assert len(books.lines) == 2
    books.assert_no_secret_in(folder)
    books.once()


def test_etags(cached: Callable[..., Any], paywall: Paywall, books: Books, folder: Path) -> None:
    """A 304 is the server's word on a page that was bought: the token goes along with the question."""
    session = cached()
    met = []

    def respond(request: Any) -> tuple[int, dict[str, str], bytes]:
        met.append(request.headers.get("If-None-Match"))
        return (304, {"ETag": '"1"'}, b"") if met[-1] == '"1"' else (200, {"ETag": '"1"'}, b"page")

    paywall.respond = respond
    assert session.get(paywall.url).content == b"page"
    again = session.get(paywall.url)
    assert (again.content, again.from_cache) == (b"page", True)
    assert met == [None, '"1"']
    books.assert_no_secret_in(folder)
    books.once()


def test_a_heuristic(cached: Callable[..., Any], paywall: Paywall, books: Books, folder: Path) -> None:
    """`ExpiresAfter(days=1)` makes everything worth keeping: not the 402, whose invoice would be offered for a day."""
    from cachecontrol.heuristics import ExpiresAfter

    session = cached(heuristic=ExpiresAfter(days=1))
    for _ in range(3):
        assert session.get(paywall.url).content == paywall.content
    assert [each.status for each in paywall.requests] == [402, 200]
    books.assert_no_secret_in(folder)
    books.once()


def test_pages_that_vary_by_authorization(cached: Callable[..., Any], paywall: Paywall, books: Books, folder: Path) -> None:
    """`Vary: Authorization` has CacheControl write the header's value down, to compare: a token on disk."""
    session = cached()
    paywall.respond = lambda request: (200, {**MAX_AGE, "Vary": "Accept, Authorization"}, b"page")
    for _ in range(2):
        assert session.get(paywall.url).content == b"page"
    books.assert_no_secret_in(folder)
    books.once()


def test_one_adapter_that_keeps_and_pays(paying: Paying, paywall: Paywall, books: Books, folder: Path) -> None:
    """`class X(CacheControlAdapter, PaywallAdapter)` on a plain session: both are HTTPAdapters, and each calls the next."""
    from cachecontrol.caches.file_cache import FileCache

    paying_adapter = type(paying.adapter())

    class Both(cachecontrol.CacheControlAdapter, paying_adapter):  # type: ignore[misc, valid-type]
        pass

    plain = paying.closing(requests.Session())
    plain.mount("http://", Both(cache=FileCache(folder / "web"), **paying.kwargs))
    paywall.respond = lambda request: (200, {**MAX_AGE, "Vary": "Authorization"} if request.path == "/vary" else MAX_AGE, b"page")
    bought = plain.get(paywall.url)
    assert (bought.content, [each.status_code for each in bought.history]) == (b"page", [402])
    assert plain.get(paywall.url).from_cache
    assert plain.get(paywall.url_for("/vary")).content == b"page"
    assert [each.status for each in paywall.requests] == [402, 200, 200]
    books.assert_no_secret_in(folder)
    books.once()


def test_a_session_with_a_cache_is_wrapped(paying: Paying, paywall: Paywall, books: Books, folder: Path) -> None:
    """`wrap(CacheControl(requests.Session()))`: their adapters stay, and what comes through them is paid."""
    paywall.respond = lambda request: (200, MAX_AGE, b"page")
    session = paying.wrap(by_wrapper(requests.Session(), folder))
    session.hooks["response"] = [lambda response, **kwargs: response.raise_for_status()]
    assert session.get(paywall.url_for("/redirect?to=" + paywall.url)).content == b"page"
    assert session.get(paywall.url).from_cache
    assert [each.status for each in paywall.requests] == [302, 402, 200]
    books.assert_no_secret_in(folder)
    books.once()
