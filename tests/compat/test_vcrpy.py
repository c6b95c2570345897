"""vcrpy records below `requests`, at http.client: it sees all. What to set is in docs/reference/compatibility.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import requests

from routeweiler_sync.testing import Paywall
from tests.support.compat_walk import walk

from .conftest import PREIMAGE_CHARS, Books, Paying, documented, library

vcr = library("vcr")

FILTERED: dict[str, Any] = {"filter_headers": ["authorization"]}


#: The cassette holds the paid page alone.
PAGES_ALONE: dict[str, Any] = documented("vcrpy")["settings"]


def raising(session: Any) -> Any:
    session.hooks["response"] = [lambda response, **kwargs: response.raise_for_status()]
    return session


def test_the_whole_way_while_recording(session: requests.Session, paywall: Paywall, books: Books, tmp_path: Path) -> None:
    """vcrpy stands between urllib3 and the socket: it must not get in the way of a payment, nor of gRPC to the node."""
    with vcr.use_cassette(tmp_path / "all.yaml", record_mode="all", **PAGES_ALONE):
        walk(session, paywall, books)
    books.assert_no_secret_in(tmp_path / "all.yaml")


def test_pages_alone_are_replayed_without_a_wallet(paying: Paying, paywall: Paywall, books: Books, tmp_path: Path) -> None:
    """A build machine has no node and no ledger: with the 402 left out of the cassette, the first request gets the page."""
    cassette = tmp_path / "pages.yaml"
    with vcr.use_cassette(cassette, **PAGES_ALONE):
        bought = raising(paying()).get(paywall.url)
        assert (bought.content, [each.status_code for each in bought.history]) == (paywall.content, [402])
    books.assert_no_secret_in(cassette)
    asked = len(paywall.requests)
    poor = raising(paying(funding=[], ledger=tmp_path / "none.db", trace_sink=None))
    with vcr.use_cassette(cassette, record_mode="none", **PAGES_ALONE) as played:
        response = poor.get(paywall.url)
        assert (response.content, response.history, response.payment) == (paywall.content, [], None)
        assert played.all_played
    assert len(paywall.requests) == asked
    assert not (tmp_path / "none.db").exists()
    books.once()


def test_filtered_headers_keep_the_preimage_out(paying: Paying, paywall: Paywall, books: Books, tmp_path: Path) -> None:
    """`filter_headers=["authorization"]` is the manual's word on secrets: nothing that opens a page is in the cassette."""
    cassette = tmp_path / "filtered.yaml"
    with vcr.use_cassette(cassette, **FILTERED):
        assert raising(paying()).get(paywall.url).content == paywall.content
    assert b"402" in cassette.read_bytes()
    books.assert_no_secret_in(cassette, of=PREIMAGE_CHARS)
    books.once()


def test_a_replayed_402_pays_nothing_again(paying: Paying, paywall: Paywall, books: Books, tmp_path: Path) -> None:
    """The cassette gives the old invoice: its row is in the ledger, its token is there, and the node isn't asked."""
    cassette = tmp_path / "filtered.yaml"
    with vcr.use_cassette(cassette, **FILTERED):
        raising(paying()).get(paywall.url)
    orders, asked = len(books.lnd.orders), len(paywall.requests)
    with vcr.use_cassette(cassette, record_mode="none", **FILTERED) as played:
        replayed = raising(paying(funding=[])).get(paywall.url)
        assert (replayed.content, replayed.payment.reused) == (paywall.content, True)
        assert played.all_played
    assert (len(books.lnd.orders), len(paywall.requests)) == (orders, asked)
    # The token that a replay met is as good as before.
    assert raising(paying(funding=[])).get(paywall.url).payment.reused
    assert [each.status for each in paywall.requests] == [402, 200, 200]
    books.once()


def test_a_replay_on_a_machine_without_the_ledger(paying: Paying, paywall: Paywall, books: Books, tmp_path: Path) -> None:
    """The 402 of a cassette wants a wallet: without one the call says so and nothing is spent."""
    cassette = tmp_path / "filtered.yaml"
    with vcr.use_cassette(cassette, **FILTERED):
        raising(paying()).get(paywall.url)
    poor = paying(funding=[], ledger=tmp_path / "none.db", trace_sink=None)
    with vcr.use_cassette(cassette, record_mode="none", **FILTERED), pytest.raises(requests.RequestException) as caught:
        raising(poor).get(paywall.url)
    assert caught.value.spent is False
    books.once()


def test_decorated(paying: Paying, paywall: Paywall, books: Books, tmp_path: Path) -> None:
    """`@my_vcr.use_cassette` on a test, with a `VCR` configured once, is how most programs have it."""
    my_vcr = vcr.VCR(cassette_library_dir=str(tmp_path / "cassettes"), serializer="json", **PAGES_ALONE)

    @my_vcr.use_cassette("decorated.json")
    def run() -> bytes:
        return bytes(raising(paying()).post(paywall.url_for("/redirect?status=308&to=" + paywall.url), data=b"body").content)

    assert run() == paywall.content
    asked = len(paywall.requests)
    assert run() == paywall.content
    assert len(paywall.requests) == asked
    books.assert_no_secret_in(tmp_path / "cassettes")
    books.once()


def test_new_episodes(paying: Paying, paywall: Paywall, books: Books, tmp_path: Path) -> None:
    """What the cassette holds is played, what is new is fetched, with the token, and recorded."""
    cassette = tmp_path / "episodes.yaml"
    for paths in (["/one"], ["/one", "/two"]):
        with vcr.use_cassette(cassette, record_mode="new_episodes", **PAGES_ALONE):
            session = raising(paying())
            for path in paths:
                assert session.get(paywall.url_for(path)).content == paywall.content
    assert [each.path for each in paywall.requests if each.paid] == ["/one", "/two"]
    books.assert_no_secret_in(cassette)
    books.once()


def test_record_mode_none_lets_nothing_out(session: requests.Session, paywall: Paywall, books: Books, tmp_path: Path) -> None:
    """A page that isn't in the cassette is an error of vcrpy's, and no request and no payment."""
    cassette = tmp_path / "pages.yaml"
    with vcr.use_cassette(cassette, **PAGES_ALONE):
        raising(session).post(paywall.url, data=b"body")
    assert [(each.status, each.body) for each in paywall.requests] == [(402, b"body"), (200, b"body")]
    with (
        vcr.use_cassette(cassette, record_mode="none", **PAGES_ALONE),
        pytest.raises(vcr.errors.CannotOverwriteExistingCassetteException),
    ):
        session.get(paywall.url_for("/elsewhere"))
    assert len(paywall.requests) == 2
    books.once()
