"""requests-futures: calls in threads and in processes, over a session of ours or as one."""

from __future__ import annotations

import pickle
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any

import pytest
import requests
from urllib3.util.retry import Retry

from routeweiler_sync import payment_of
from routeweiler_sync.testing import Paywall

from .conftest import Books, Paying, library

library("requests_futures")

from requests_futures.sessions import FuturesSession  # noqa: E402


def note(seen: list[int]) -> Any:
    return lambda response, **kwargs: seen.append(response.status_code)


def test_a_session_behind_it(session: requests.Session, paywall: Paywall, books: Books) -> None:
    """Eight calls at once for what costs something: one buys, and no hook sees the 402."""
    seen: list[int] = []
    with FuturesSession(session=session, max_workers=8) as futures:
        calls = [futures.get(paywall.url, hooks={"response": note(seen)}) for _ in range(8)]
        responses = [call.result(60) for call in as_completed(calls)]
    assert [response.status_code for response in responses] == [200] * 8
    assert [response.payment.reused for response in responses].count(False) == 1
    assert seen == [200] * 8
    assert session.get(paywall.url).payment.reused  # not closed with it
    books.once()


@pytest.mark.parametrize("order", ["before", "behind"])
def test_as_one_class(paying: Paying, paywall: Paywall, books: Books, order: str) -> None:
    """It calls ``Session.request`` unbound, past all that a class of ours would do there."""
    bases = (FuturesSession, paying.Session) if order == "before" else (paying.Session, FuturesSession)
    kind: Any = type("Paying", bases, {})
    with kind(max_workers=16, **paying.kwargs) as session:
        session.hooks["response"] = [lambda response, **kwargs: response.raise_for_status()]
        calls = [session.get(paywall.url) for _ in range(16)]
        assert [call.result(60).status_code for call in calls] == [200] * 16
        call = session.get(paywall.url_for("/redirect?to=" + paywall.url))
        assert payment_of(call.result(60)).reused
    books.once()


def test_an_executor_of_threads_of_ones_own(paying: Paying, paywall: Paywall, books: Books) -> None:
    """Two sessions share an executor and the ledger: still one buys."""
    with ThreadPoolExecutor(6) as executor:
        sessions = [FuturesSession(executor=executor, session=paying()) for _ in range(2)]
        calls = [session.get(paywall.url) for session in sessions for _ in range(6)]
        assert [call.result(60).status_code for call in calls] == [200] * 12
    books.once()


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_an_executor_of_processes(session: requests.Session, paywall: Paywall, books: Books, method: str) -> None:
    """Each call takes the session along by pickle, and hands the response back by one."""
    with ProcessPoolExecutor(2, mp_context=get_context(method)) as executor:
        futures = FuturesSession(executor=executor, session=session)
        calls = [futures.get(paywall.url) for _ in range(4)]
        responses = [call.result(120) for call in calls]
    assert [(response.status_code, response.content) for response in responses] == [(200, paywall.content)] * 4
    assert not [response for response in responses if "Authorization" in response.request.headers]
    books.assert_no_secret_in(pickle.dumps(responses))
    books.once()


def test_retries_that_it_sets_on_the_adapter(session: requests.Session, paywall: Paywall, books: Books) -> None:
    """It writes ``max_retries`` into adapters that are there: with 402 in the list, urllib3 would keep the 402 to itself."""
    retries = Retry(total=2, status_forcelist=[402, 503], backoff_factor=0)
    with FuturesSession(session=session, adapter_kwargs={"max_retries": retries, "pool_maxsize": 20}) as futures:
        assert futures.get(paywall.url).result(60).status_code == 200
        paywall.answer_next(503, times=2)
        assert futures.get(paywall.url).result(60).status_code == 200
    assert [request.status for request in paywall.requests] == [402, 200, 503, 503, 200]
    books.once()


def test_a_refusal_comes_out_of_the_future(paying: Paying, paywall: Paywall, books: Books) -> None:
    """As the error that it is, with whether money was spent."""
    paywall.price = 5_000
    with FuturesSession(session=paying()) as futures:
        error = futures.get(paywall.url).exception(60)
    assert isinstance(error, requests.RequestException)
    assert getattr(error, "spent", None) is False
    assert books.lnd.payments == []
