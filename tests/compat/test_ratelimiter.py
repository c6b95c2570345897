"""requests-ratelimiter: in front of ours, behind it, and as an adapter that isn't ours."""

from __future__ import annotations

from typing import Any

import pytest
import requests

from routeweiler_sync.testing import Paywall

from .conftest import Books, Paying, library

library("requests_ratelimiter")

from requests_ratelimiter import LimiterAdapter, LimiterMixin, LimiterSession  # noqa: E402


def raises(response: requests.Response, **kwargs: Any) -> None:
    response.raise_for_status()


def made(paying: Paying, how: str, **limits: Any) -> Any:
    if how == "wrapped":
        return paying.wrap(LimiterSession(**limits))
    bases = (LimiterMixin, paying.Session) if how == "before" else (paying.Session, LimiterMixin)
    if how == "behind":
        bases = (*bases, requests.Session)
    return paying.closing(type("Limited", bases, {})(**limits, **paying.kwargs))


@pytest.mark.parametrize("how", ["before", "behind", "wrapped"])
def test_a_limited_session(paying: Paying, paywall: Paywall, books: Books, how: str) -> None:
    """Both do their work: what is bought is bought once, and what is too much waits no longer than it may."""
    session = made(paying, how, per_minute=3, max_delay=0.05)
    session.hooks["response"] = [raises]
    assert not session.get(paywall.url).payment.reused
    assert session.get(paywall.url).payment.reused
    assert session.get(paywall.url).payment.reused
    before = len(paywall.requests)
    with pytest.raises(requests.Timeout, match="Rate limit"):
        session.get(paywall.url)
    assert len(paywall.requests) == before
    books.once()


@pytest.mark.parametrize("how", ["before", "behind"])
def test_a_429_on_the_paid_retry(paying: Paying, paywall: Paywall, books: Books, how: str) -> None:
    """The server's word is heard by the limiter, and the token is kept for when it is time again."""
    session = made(paying, how, per_minute=100, max_delay=0.05)
    paywall.answer_next(429)
    session.mount("http://", requests.adapters.HTTPAdapter())
    assert session.get(paywall.url).status_code == 429
    with pytest.raises(requests.Timeout, match="Rate limit"):
        session.get(paywall.url)
    assert paying().get(paywall.url).payment.reused
    books.once()


def test_the_limiters_adapter(session: requests.Session, paywall: Paywall, books: Books) -> None:
    """It isn't ours: the net pays. Each request that goes over the wire counts for it, the paid retry too."""
    session.mount("http://", LimiterAdapter(per_minute=4, max_delay=0.05))
    session.hooks["response"] = [raises]
    assert not session.get(paywall.url).payment.reused  # two
    assert session.get(paywall.url).payment.reused
    assert session.get(paywall.url).payment.reused
    with pytest.raises(requests.Timeout, match="Rate limit"):
        session.get(paywall.url)
    books.once()


def test_a_limit_that_keeps_the_paid_retry_back(session: requests.Session, paywall: Paywall, books: Books) -> None:
    """What is paid for isn't lost: the error is the limiter's, and the next call has the token."""
    session.mount("http://", LimiterAdapter(per_minute=1, max_delay=0.05))
    with pytest.raises(requests.Timeout, match="Rate limit"):
        session.get(paywall.url)
    assert len(books.lnd.payments) == 1
    session.mount("http://", LimiterAdapter(per_minute=100))
    assert session.get(paywall.url).payment.reused
    books.once()
