"""requests-oauthlib: a request has one Authorization, and two who want it."""

from __future__ import annotations

import json
import time
from typing import Any
from urllib.parse import parse_qs

import pytest
import requests

from routeweiler_sync.testing import Paywall

from .conftest import Books, Paying, library

library("requests_oauthlib")

from oauthlib.oauth2 import WebApplicationClient  # noqa: E402
from requests_oauthlib import OAuth1, OAuth1Session, OAuth2, OAuth2Session  # noqa: E402

KEYS = ("key", "secret", "token", "token secret")
TOKEN = {"access_token": "bearer-secret", "token_type": "Bearer", "expires_in": 3600}


@pytest.fixture(autouse=True)
def _loopback_is_safe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OAUTHLIB_INSECURE_TRANSPORT", "1")


def words(paywall: Paywall) -> list[tuple[int, str]]:
    """Of each request, what was answered, and the scheme of the caller's own Authorization."""
    return [(request.status, request.headers.get("Authorization", "").split(" ")[0]) for request in paywall.requests]


def test_a_signature_in_the_header(session: requests.Session, paywall: Paywall, books: Books) -> None:
    """Each call goes out signed, anew; on the 402 the token takes the signature's place. No call but the first pays."""
    session.auth = OAuth1(*KEYS)
    for _ in range(3):
        assert session.get(paywall.url, params={"q": "a b"}).status_code == 200
    assert words(paywall) == [(402, "OAuth"), (200, "")] * 3
    nonces = {request.headers["Authorization"].partition("oauth_nonce=")[2][:12] for request in paywall.requests[::2]}
    assert len(nonces) == 3
    books.once()


def test_a_signature_in_the_query(session: requests.Session, paywall: Paywall, books: Books) -> None:
    """There it stays: a server that wants both gets both. (The paid retry is the same request: it repeats the nonce.)"""
    session.auth = OAuth1(*KEYS, signature_type="query")
    session.hooks["response"] = [lambda response, **kwargs: response.raise_for_status()]
    assert session.get(paywall.url, params={"q": "a b"}).status_code == 200
    refused, paid = paywall.requests
    assert refused.query == paid.query
    assert parse_qs(paid.query)["oauth_signature"]
    assert paid.paid
    assert session.get(paywall.url).payment.reused
    assert parse_qs(paywall.requests[-1].query)["oauth_nonce"] != parse_qs(paid.query)["oauth_nonce"]
    books.once()


def test_a_signature_in_the_body(session: requests.Session, paywall: Paywall, books: Books) -> None:
    """A form that is signed is sent again to the byte."""
    session.auth = OAuth1(*KEYS, signature_type="body")
    session.mount("http://", requests.adapters.HTTPAdapter())
    session.hooks["response"] = [lambda response, **kwargs: response.raise_for_status()]
    assert session.post(paywall.url, data={"q": "a b"}).status_code == 200
    refused, paid = paywall.requests
    assert refused.body == paid.body
    assert parse_qs(paid.body.decode())["oauth_signature"]
    assert paid.headers["Content-Type"] == "application/x-www-form-urlencoded"
    books.once()


def test_an_oauth1_session_that_is_wrapped(paying: Paying, paywall: Paywall, books: Books) -> None:
    """It signs anew after a redirect, in `rebuild_auth`; what it signs still pays."""
    session = paying.wrap(OAuth1Session(*KEYS))
    assert session.get(paywall.url).status_code == 200
    assert session.get(paywall.url_for("/redirect?to=" + paywall.url)).status_code == 200
    assert words(paywall)[:2] == [(402, "OAuth"), (200, "")]
    assert (302, "OAuth") in words(paywall)
    books.once()


@pytest.mark.parametrize("order", ["before", "behind", "wrapped"])
def test_an_oauth2_session(paying: Paying, paywall: Paywall, books: Books, order: str) -> None:
    """The bearer goes out first, the token on the 402: a server in front sells the page, and doesn't see who it is for."""
    if order == "wrapped":
        session = paying.wrap(OAuth2Session("client", token=TOKEN))
    else:
        bases = (OAuth2Session, paying.Session) if order == "before" else (paying.Session, OAuth2Session)
        session = paying.closing(type("Client", bases, {})(client_id="client", token=TOKEN, **paying.kwargs))
    for _ in range(2):
        assert session.get(paywall.url).status_code == 200
    assert words(paywall) == [(402, "Bearer"), (200, "")] * 2
    books.once()


def test_a_bearer_in_the_query(paying: Paying, paywall: Paywall, books: Books) -> None:
    """Where the server wants both, the bearer goes where the token doesn't."""
    client = WebApplicationClient("client", default_token_placement="query")
    session = paying.wrap(OAuth2Session(client=client, token=TOKEN))
    session.hooks["response"] = [lambda response, **kwargs: response.raise_for_status()]
    assert session.get(paywall.url).status_code == 200
    assert session.get(paywall.url).payment.reused
    assert all(request.query == "access_token=bearer-secret" for request in paywall.requests)
    assert len(paywall.requests) == 3
    books.once()


def test_a_bearer_that_is_refreshed(paying: Paying, paywall: Paywall, books: Books) -> None:
    """The token endpoint costs something itself: it is paid with the refresh, and the call goes on with the new bearer."""
    fresh = {**TOKEN, "access_token": "fresh"}
    paywall.respond = lambda request: (200, {"Content-Type": "application/json"}, json.dumps(fresh).encode())
    told: list[Any] = []
    session = paying.wrap(
        OAuth2Session(
            "client",
            token={**TOKEN, "refresh_token": "again", "expires_at": time.time() - 10},
            auto_refresh_url=paywall.url_for("/token"),
            auto_refresh_kwargs={"client_id": "client"},
            token_updater=told.append,
        )
    )
    assert session.get(paywall.url).status_code == 200
    assert told[0]["access_token"] == "fresh"
    assert session.token["access_token"] == "fresh"
    refused, refreshed, *rest = paywall.requests
    assert refused.body == refreshed.body
    assert parse_qs(refreshed.body.decode())["refresh_token"] == ["again"]
    assert rest[0].headers["Authorization"] == "Bearer fresh"
    books.once()


def test_oauth2_as_auth(session: requests.Session, paywall: Paywall, books: Books) -> None:
    """`auth=OAuth2(token=…)` of one call."""
    auth = OAuth2("client", token=TOKEN)
    for _ in range(2):
        assert session.get(paywall.url, auth=auth).status_code == 200
    assert words(paywall) == [(402, "Bearer"), (200, "")] * 2
    books.once()
