"""What all of the others rest on: a plain session, and what users hang on one."""

from __future__ import annotations

from typing import Any

import pytest
import requests
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

from routeweiler_sync import BudgetEnvelope
from routeweiler_sync.testing import Paywall

from .conftest import Books, Paying


def test_a_redirect_a_body_and_a_raise_for_status_hook(session: requests.Session, paywall: Paywall, books: Books) -> None:
    """`session.hooks["response"] = lambda r, **kw: r.raise_for_status()` is a common habit: the 402 is no error to it."""
    session.hooks["response"] = [lambda response, **kwargs: response.raise_for_status()]
    assert session.get(paywall.url_for("/free")).payment is None
    response = session.post(paywall.url_for("/redirect?status=307&to=" + paywall.url), data=b"body")
    assert (response.status_code, response.content) == (200, paywall.content)
    assert response.payment.amount_msat == 10_000
    assert not response.payment.reused
    assert [each.status_code for each in response.history] == [307, 402]
    assert [(each.status, each.body) for each in paywall.requests[1:]] == [(307, b"body"), (402, b"body"), (200, b"body")]
    assert session.get(paywall.url).payment.reused
    assert len(books.lines) == 3
    books.once()


@pytest.mark.parametrize("prefix", ["http://", "more specific"])
def test_an_adapter_of_the_users_still_pays(session: requests.Session, paywall: Paywall, books: Books, prefix: str) -> None:
    """`session.mount("https://", HTTPAdapter(max_retries=…))` is in every tutorial: it would switch paying off in silence."""
    adapter = HTTPAdapter(max_retries=3)
    session.mount(paywall.base_url + "/" if prefix == "more specific" else prefix, adapter)
    assert session.get_adapter(paywall.url) is adapter
    response = session.get(paywall.url)
    assert (response.status_code, response.content) == (200, paywall.content)
    assert [each.status_code for each in response.history] == [402]
    assert not response.payment.reused
    again = session.get(paywall.url_for("/redirect?to=" + paywall.url))
    assert again.payment.reused
    assert [each.status_code for each in again.history] == [302]
    assert len(books.lines) == 2
    books.once()


def test_a_hook_of_the_users_on_a_foreign_adapter(session: requests.Session, paywall: Paywall, books: Books) -> None:
    """Both habits at once: the hook comes after the payment here too, and sees each answer once."""
    seen: list[int] = []

    def hook(response: requests.Response, **kwargs: Any) -> None:
        seen.append(response.status_code)
        response.raise_for_status()

    session.mount("http://", HTTPAdapter())
    session.hooks["response"] = [hook]
    assert session.post(paywall.url, data=b"body").status_code == 200
    assert seen == [200]
    paywall.revoke_tokens()
    own: list[int] = []
    response = session.get(paywall.url, hooks={"response": lambda response, **kwargs: own.append(response.status_code)})
    assert (response.status_code, response.payment.reused) == (200, False)
    assert (seen, own) == ([200], [200])
    assert session.get(paywall.url).payment.reused
    assert seen == [200, 200]
    assert len(books.lnd.payments) == 2
    books.check()


def test_a_retry_that_lists_402(paying: Paying, paywall: Paywall, books: Books) -> None:
    """urllib3 would ask again until it gives up, and nothing would be bought. On an adapter of ours 402 is taken off the list."""
    plain = requests.Session()
    plain.mount("http://", paying.adapter(max_retries=Retry(total=2, status_forcelist=[402, 503], backoff_factor=0)))
    assert plain.get(paywall.url).status_code == 200
    plain.close()
    books.once()


def test_a_foreign_adapters_retry_that_lists_402_costs_nothing(session: requests.Session, paywall: Paywall, books: Books) -> None:
    """There urllib3 keeps the 402 to itself: nothing can be paid, and nothing is. Elsewhere the session pays as ever."""
    prefix = paywall.url_for("/kept")
    session.mount(prefix, HTTPAdapter(max_retries=Retry(total=2, status_forcelist=[402], backoff_factor=0)))
    with pytest.raises(requests.exceptions.RetryError):
        session.get(prefix)
    assert [each.status for each in paywall.requests] == [402, 402, 402]
    assert books.lnd.payments == []
    session.hooks["response"] = [lambda response, **kwargs: response.raise_for_status()]
    session.get(paywall.url)
    assert session.get(prefix).status_code == 200
    books.once()


def test_two_layers_pay_once(session: requests.Session, paying: Paying, paywall: Paywall, books: Books) -> None:
    """An adapter that pays on a session that pays, with a `Retry` besides: whoever gets the 402 first has seen to it for both."""
    session.mount("http://", paying.adapter(max_retries=Retry(total=2, status_forcelist=[402], backoff_factor=0)))
    session.hooks["response"] = [lambda response, **kwargs: response.raise_for_status()]
    bought = session.put(paywall.url, data=b"body")
    assert [each.status_code for each in bought.history] == [402]
    assert [(each.status, each.body) for each in paywall.requests] == [(402, b"body"), (200, b"body")]
    assert session.get(paywall.url).payment.reused
    books.once()


def test_what_the_inner_layer_refuses_the_outer_doesnt_buy(paying: Paying, paywall: Paywall, books: Books) -> None:
    """A budget on the adapter is there to be kept: a session with a wider one above it must not step in."""
    tight = BudgetEnvelope("tight", per_call_minor_units=1)
    session = paying()
    session.mount(paywall.url_for("/kept"), paying.adapter(budget_envelope=tight, unpayable="return"))
    assert session.get(paywall.url_for("/kept")).status_code == 402
    assert books.lnd.payments == []
    assert session.get(paywall.url).status_code == 200
    books.once()
