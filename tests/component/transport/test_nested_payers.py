"""Hooks, copies, threads, adapters with a payer of their own: no way around a budget, and no token or net where it mustn't be."""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from requests.adapters import BaseAdapter, HTTPAdapter

from routeweiler_sync import (
    BudgetError,
    BudgetExceededError,
    PaywallAdapter,
    Policy,
    PolicyDeniedError,
    PolicyRule,
    RuleMatch,
    Session,
    payment_of,
)
from routeweiler_sync.testing import FakeLnd, Paywall
from routeweiler_sync.transport.foreign_adapters import handle_foreign_response
from tests.support.accounts import Books

DENIES_ALL = Policy(rules=[PolicyRule("nobody", when=RuleMatch(url_matches="*"), deny=True)])


def pickled(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))


WAYS = [copy.copy, copy.deepcopy, pickled]


@pytest.fixture
def environ(lnd: FakeLnd, books: Books) -> dict[str, str]:
    return {
        **lnd.environ,
        "ROUTEWEILER_LEDGER": os.fspath(books.ledger_path),
        "ROUTEWEILER_TRACE": os.fspath(books.trace_path),
        "ROUTEWEILER_NETWORK": "bitcoin-regtest",
    }


def set_all(monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], **more: str) -> None:
    for name, value in {**environ, **more}.items():
        monkeypatch.setenv(name, value)


# Hooks that bring an answer of somebody else's


def asks_instead(url: str, of: str) -> Callable[..., requests.Response | None]:
    """A hook as programs have it that turn to a mirror: what comes from ``of`` is replaced by what ``url`` answers."""

    def hook(response: requests.Response, **kwargs: Any) -> requests.Response | None:
        if response.url != of:
            return None
        request = response.request.copy()
        request.url, request.hooks = url, {"response": []}
        return response.connection.send(request, **kwargs)  # type: ignore[attr-defined, no-any-return]

    return hook


def test_a_402_that_a_hook_has_from_another_origin_is_paid_there(either_session, lnd: FakeLnd, books: Books) -> None:
    """What the mirror sold was taken for a token of the first: paid for, sent to the wrong one, and never delivered."""
    with Paywall(lnd) as first, Paywall(lnd) as mirror:
        mirror.content = b"the mirror's"
        free = first.url_for("/free")
        response = either_session.get(free, hooks={"response": [asks_instead(mirror.url, free)]})
        assert (response.status_code, response.url, response.content) == (200, mirror.url, b"the mirror's")
        assert not [request for request in first.requests if request.authorized]
        assert [row.origin for row in books.rows] == [mirror.base_url]
    books.check()


def test_what_a_hook_has_brought_is_paid_for_in_the_sessions_way(session, paywall: Paywall, books: Books) -> None:
    """Its certificates and proxies hold for the paid request, also where the prepared one is sent by hand."""
    seen: list[dict[str, Any]] = []

    class Notes(HTTPAdapter):
        def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:  # type: ignore[override]
            seen.append(kwargs)
            return super().send(request, **kwargs)

    session.mount("http://", Notes())
    session.verify, session.proxies = False, {"ftp": "http://127.0.0.1:9"}
    free = paywall.url_for("/free")
    hooks = {"response": [asks_instead(paywall.url, free)]}
    response = session.send(session.prepare_request(requests.Request("GET", free, hooks=hooks)))
    assert (response.status_code, response.content) == (200, paywall.content)
    assert len(seen) == 3
    assert all(how["verify"] is False and how["proxies"] == session.proxies for how in seen)
    books.check()


# The net


def requests_of(response: requests.Response) -> Iterator[requests.PreparedRequest]:
    for each in (response, *response.history):
        yield from (request for request in (each.request, each.next) if request is not None)


def test_the_net_stays_on_nothing(either_session, paywall: Paywall) -> None:
    """Nor on what a response of the history says would come next, nor where a hook's own error ends the call."""
    kept: list[requests.Response] = []

    def breaks(response: requests.Response, **kwargs: Any) -> None:
        kept.append(response)
        raise ValueError

    for url in (paywall.url, paywall.url, paywall.url_for("/redirect?to=" + paywall.url)):
        with pytest.raises(ValueError):
            either_session.get(url, hooks={"response": breaks})
    twice = paywall.url_for("/redirect?to=" + paywall.url_for("/redirect?to=" + paywall.url))
    kept += [either_session.get(twice), either_session.get(twice, allow_redirects=False)]
    assert not [
        request for response in kept for request in requests_of(response) if handle_foreign_response in request.hooks["response"]
    ]


# Limits and quotes in every layer


@pytest.mark.parametrize("sats", [5, 50])
def test_a_limit_holds_for_an_adapter_with_a_payer_of_its_own(
    make_session, paywall: Paywall, lnd: FakeLnd, tmp_path: Path, sats: int
) -> None:
    """The block says what its calls spend at most, whoever of the session's pays."""
    session = make_session()
    session.mount("http://", PaywallAdapter(funding=[lnd.funding()], ledger=tmp_path / "other.db"))
    with session.limit(sats=sats) as limit:
        if sats == 5:
            with pytest.raises(BudgetExceededError):
                session.get(paywall.url)
            assert lnd.payments == []
        else:
            assert session.get(paywall.url).status_code == 200
            assert limit.spent_msat == 10_000


def test_a_quote_of_a_session_that_sends_in_threads(make_session, lnd: FakeLnd, paywall: Paywall, books: Books) -> None:
    """The thread knew nothing of the question, and bought."""
    futures = pytest.importorskip("requests_futures.sessions")
    from routeweiler_sync import Routeweiler

    kind: Any = type("Paying", (futures.FuturesSession, Routeweiler), {})
    seen: list[int] = []
    with kind(funding=[lnd.funding()], ledger=books.ledger_path) as session:
        session.hooks["response"] = [lambda response, **kwargs: seen.append(response.status_code)]
        quote = session.quote("GET", paywall.url_for("/redirect?to=" + paywall.url))
        assert (quote.url, quote.amount_msat) == (paywall.url, 10_000)
        assert session.quote("GET", paywall.url_for("/free")) is None
        assert lnd.payments == []
        assert session.get(paywall.url).result(60).status_code == 200
    assert seen == [302, 200, 200]  # its own hooks are asked as in any call


# Copies and pickles of the environment's session


@pytest.mark.parametrize("way", [copy.deepcopy, pickled], ids=lambda way: way.__name__)
@pytest.mark.parametrize("budget", ["5 sat/day", "5 sats/day"], ids=["small", "misspelt"])
def test_a_session_made_without_a_node_has_the_budget_of_where_it_wakes(
    way: Callable[[Any], Any], budget: str, environ, paywall: Paywall, lnd: FakeLnd, books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it was made nobody read the budget, for there was nothing to pay with: it woke with the default one, and no trace."""
    monkeypatch.setenv("ROUTEWEILER_BUDGET", budget)
    session = Session()
    set_all(monkeypatch, environ)
    with pytest.raises(BudgetError):
        way(session).get(paywall.url)
    assert lnd.payments == []
    assert len(books.lines) == 1
    assert session.get(paywall.url_for("/free")).status_code == 200
    assert len(books.lines) == 1  # the first is as it was


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_budget_that_isnt_understood_never_becomes_the_default_one(
    way: Callable[[Any], Any], environ, paywall: Paywall, lnd: FakeLnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variable is corrected, and a copy made: the misspelt one was forgotten, and 1 000 sat a call were allowed instead."""
    set_all(monkeypatch, environ, ROUTEWEILER_BUDGET="5 sats/day")
    session = Session()
    monkeypatch.setenv("ROUTEWEILER_BUDGET", "5 sat/day")
    for each in (way(session), session):
        with pytest.raises(BudgetError):
            each.get(paywall.url)
    assert lnd.payments == []


def test_a_copy_leaves_its_original_alone(environ, paywall: Paywall, lnd: FakeLnd, monkeypatch: pytest.MonkeyPatch) -> None:
    """The two share what they pay with. The environment has changed meanwhile: that was the original's node, too."""
    set_all(monkeypatch, environ)
    session = Session()
    for name in lnd.environ:
        monkeypatch.delenv(name)
    idle = Session()
    twin = copy.copy(session)
    assert session.get(paywall.url).status_code == 200
    assert payment_of(twin.get(paywall.url)).reused
    set_all(monkeypatch, environ)
    assert copy.copy(idle).get(paywall.url).status_code == 402
    assert idle.get(paywall.url).status_code == 402


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_an_adapter_that_has_lost_its_payer_isnt_the_environments(
    make_session, way: Callable[[Any], Any], environ, paywall: Paywall, lnd: FakeLnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plain session's copy has no policy and no budget of the Routeweiler whose adapter it had: nobody said that it may pay."""
    set_all(monkeypatch, environ)
    plain = requests.Session()
    plain.mount("http://", make_session(policy=DENIES_ALL).get_adapter(paywall.url))
    twin = way(plain)
    if way is copy.copy:
        with pytest.raises(PolicyDeniedError):
            twin.get(paywall.url)
    else:
        assert [each.get(paywall.url).status_code for each in (twin, pickled(twin))] == [402, 402]
    assert lnd.payments == []


def test_an_adapter_that_two_sessions_share_is_neithers(make_session, paywall: Paywall, lnd: FakeLnd) -> None:
    """It pays for the one that asks. A copy of the first made it the first's, whose budget then paid for the second."""
    one, other = make_session(), make_session(policy=DENIES_ALL)
    adapter = PaywallAdapter()
    one.mount("http://", adapter)
    other.mount("http://", adapter)
    copy.copy(one)
    with pytest.raises(PolicyDeniedError):
        other.get(paywall.url)
    assert lnd.payments == []


# Adapters in between


class Forwards(BaseAdapter):
    """An adapter that hands everything on to ``send``; ``in_thread``: in a thread of its own, as those do that bound the time."""

    def __init__(self, send: Callable[..., requests.Response], *, in_thread: bool = False) -> None:
        super().__init__()
        self.hands_on, self.in_thread = [send], in_thread  # in a list: nobody sees where it leads

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:  # type: ignore[override]
        if not self.in_thread:
            return self.hands_on[0](request, **kwargs)
        with ThreadPoolExecutor(1) as executor:
            return executor.submit(self.hands_on[0], request, **kwargs).result()

    def close(self) -> None:
        pass


@pytest.mark.parametrize("layer", ["session", "adapter", "adapter in a thread"])
def test_what_one_layer_hands_on_unpaid_isnt_paid_by_the_next(
    make_session, paywall: Paywall, lnd: FakeLnd, tmp_path: Path, layer: str
) -> None:
    """The inner one refuses and returns the 402. The outer took it for one that nobody had seen, paid, and never got the page."""
    inner = make_session(policy=DENIES_ALL, unpayable="return")
    outer = make_session(ledger=tmp_path / "outer.db", trace_sink=None)
    send = inner.send if layer == "session" else inner.get_adapter(paywall.url).send
    outer.mount("http://", Forwards(send, in_thread="thread" in layer))
    assert outer.get(paywall.url).status_code == 402
    assert lnd.payments == []


def test_an_adapter_with_a_thread_of_its_own(session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """Our adapter behind it, in that thread, knows of the limit and of the question what it would cost."""
    session.mount("http://", Forwards(session.get_adapter(paywall.url).send, in_thread=True))
    assert session.quote("GET", paywall.url).amount_msat == 10_000
    with session.limit(sats=5), pytest.raises(BudgetExceededError):
        session.get(paywall.url)
    assert lnd.payments == []
    with session.limit(sats=50) as limit:
        assert session.get(paywall.url).payment.reused is False
    assert limit.spent_msat == 10_000
    assert session.get(paywall.url).payment.reused
    books.check()
