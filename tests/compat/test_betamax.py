"""betamax: what was paid is recorded as a page, and no token with it; what is recorded is replayed without a wallet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from routeweiler_sync.testing import Paywall
from tests.support.compat_walk import walk

from .conftest import PREIMAGE_CHARS, Books, Paying, documented, library

betamax = library("betamax")


@pytest.fixture
def cassettes(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "cassettes"
    folder.mkdir()
    kept = dict(betamax.cassette.Cassette.default_cassette_options)
    yield folder
    betamax.cassette.Cassette.default_cassette_options.update(kept)


def test_the_whole_way_while_recording(session: requests.Session, paywall: Paywall, books: Books, cassettes: Path) -> None:
    """The recorder asks our adapter and makes an answer of its own from what it wrote down: the 402 isn't there, the rest is."""
    with betamax.Betamax(session, cassette_library_dir=str(cassettes)).use_cassette("all", record="all"):
        walk(session, paywall, books, has_history=False)
    books.assert_no_secret_in(cassettes)


def test_a_cassette_holds_no_token(session: requests.Session, paywall: Paywall, books: Books, cassettes: Path) -> None:
    """Cassettes are committed. A token in one can be used by whoever reads the repository."""
    session.hooks["response"] = [lambda response, **kwargs: response.raise_for_status()]
    with betamax.Betamax(session, cassette_library_dir=str(cassettes)).use_cassette("paid"):
        bought = session.get(paywall.url)
        assert (bought.content, bought.payment.reused) == (paywall.content, False)
        assert session.get(paywall.url_for("/paid/again")).content == paywall.content
        assert session.post(paywall.url, data={"a": "1"}).payment.reused
    books.assert_no_secret_in(cassettes)
    assert b"paid content" in (cassettes / "paid.json").read_bytes()
    books.once()


def test_a_cassette_is_replayed_without_a_wallet(paying: Paying, paywall: Paywall, books: Books, cassettes: Path) -> None:
    """A build machine has no node, no ledger and no paywall: what was bought once is there, and nothing is asked to pay."""
    with betamax.Betamax(paying(), cassette_library_dir=str(cassettes)).use_cassette("paid") as vcr:
        vcr.session.hooks["response"] = [lambda response, **kwargs: response.raise_for_status()]
        vcr.session.get(paywall.url)
        vcr.session.get(paywall.url)
    asked = len(paywall.requests)
    poor = paying(funding=[], ledger=cassettes / "none.db", trace_sink=None)
    options = {"record": "none", "allow_playback_repeats": True}
    with betamax.Betamax(poor, cassette_library_dir=str(cassettes)).use_cassette("paid", **options) as vcr:
        response = vcr.session.get(paywall.url)
        assert (response.status_code, response.content, response.payment) == (200, paywall.content, None)
        with pytest.raises(betamax.BetamaxError):
            vcr.session.get(paywall.url_for("/other"))
    assert len(paywall.requests) == asked
    assert not (cassettes / "none.db").exists()
    books.once()


def test_matching_on_headers_and_body(paying: Paying, paywall: Paywall, books: Books, cassettes: Path) -> None:
    """Were the token in the recorded request, a replay without one would find no match; and it would be on disk."""
    options: dict[str, Any] = {"match_requests_on": ["method", "uri", "headers", "body"]}
    with betamax.Betamax(paying(), cassette_library_dir=str(cassettes)).use_cassette("match", **options) as vcr:
        vcr.session.hooks["response"] = [lambda response, **kwargs: response.raise_for_status()]
        assert vcr.session.post(paywall.url, data=b"one").content == paywall.content
    with betamax.Betamax(paying(), cassette_library_dir=str(cassettes)).use_cassette("match", record="none", **options) as vcr:
        assert vcr.session.post(paywall.url, data=b"one").content == paywall.content
    books.assert_no_secret_in(cassettes)
    books.once()


def test_new_episodes(paying: Paying, paywall: Paywall, books: Books, cassettes: Path) -> None:
    """What is new is bought and recorded beside what was there."""
    for paths in (["/one"], ["/one", "/two"]):
        session = paying()
        session.hooks["response"] = [lambda response, **kwargs: response.raise_for_status()]
        with betamax.Betamax(session, cassette_library_dir=str(cassettes)).use_cassette("episodes", record="new_episodes"):
            for path in paths:
                assert session.get(paywall.url_for(path)).content == paywall.content
    assert [each.path for each in paywall.requests if each.paid] == ["/one", "/two"]
    books.assert_no_secret_in(cassettes)
    books.once()


def test_the_sessions_adapters_are_back_afterwards(
    session: requests.Session, paywall: Paywall, books: Books, cassettes: Path
) -> None:
    """What betamax puts aside must pay again when the cassette is out."""
    session.hooks["response"] = [lambda response, **kwargs: response.raise_for_status()]
    ours = session.get_adapter(paywall.url)
    with betamax.Betamax(session, cassette_library_dir=str(cassettes)).use_cassette("free"):
        session.get(paywall.url_for("/free"))
    assert session.get_adapter(paywall.url) is ours
    assert [each.status_code for each in session.get(paywall.url).history] == [402]
    books.once()


def test_a_recorder_around_a_foreign_adapter(session: requests.Session, paywall: Paywall, books: Books, cassettes: Path) -> None:
    """Nothing below the recorder pays: the session does, above it, and what it sends is written down. `before_record` helps.

    (It changes what the caller gets as well: the challenge must stay, and with it the token, which opens nothing by itself.)
    """
    session.hooks["response"] = [lambda response, **kwargs: response.raise_for_status()]
    for prefix in ("https://", "http://"):
        session.mount(prefix, requests.adapters.HTTPAdapter())

    kept = {name: list(hooks) for name, hooks in betamax.cassette.Cassette.hooks.items()}
    documented("betamax", Betamax=betamax.Betamax)
    try:
        with betamax.Betamax(session, cassette_library_dir=str(cassettes)).use_cassette("foreign"):
            assert session.get(paywall.url).content == paywall.content
    finally:
        betamax.cassette.Cassette.hooks.clear()
        betamax.cassette.Cassette.hooks.update(kept)
    books.assert_no_secret_in(cassettes, of=PREIMAGE_CHARS)
    books.once()
