"""Adapters and clients that several sessions share, mount, copy or close."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from routeweiler_sync import (
    BudgetEnvelope,
    BudgetExceededError,
    PaywallAdapter,
    Routeweiler,
)
from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.accounts import Books


def test_common_adapter_idioms_still_pay(make_session, paywall: Paywall, lnd: FakeLnd) -> None:
    """`Retry` with 402 in its list would answer the 402 itself; an adapter without a payer is given the session's."""
    session = make_session()
    retry = Retry(3, status_forcelist=[402, 503], allowed_methods=None)
    session.mount("http://", PaywallAdapter(max_retries=retry))
    assert session.get(paywall.url).status_code == 200
    assert retry.status_forcelist == [402, 503]
    assert session.get_adapter(paywall.url).max_retries.status_forcelist == {503}
    plain = HTTPAdapter()
    session.mount("http://", plain)
    assert session.get_adapter(paywall.url) is plain


def test_a_prepared_request_with_nothing_in_it(session, paywall: Paywall) -> None:
    """requests sends a PreparedRequest that was filled by hand."""
    session.get(paywall.url)
    request = requests.PreparedRequest()
    request.method, request.url = "GET", paywall.url
    assert requests.Session().send(request).status_code == 402
    assert session.send(request).status_code == 200


@pytest.mark.slow
def test_closing_one_session_leaves_the_others_their_node(make_session, paywall: Paywall, lnd: FakeLnd, books: Books) -> None:
    """Sessions of a worker pool share a client; each closes when its job is done."""
    shared = lnd.funding()
    paywall.add_service("/job", name="job", price_msat=1_000, dynamic=True)

    def job(number: int) -> int:
        with Routeweiler(funding=[shared], ledger=books.ledger_path) as session:
            return session.get(paywall.url_for(f"/job/{number}")).status_code

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(job, range(24))) == {200}
    books.check()


def test_a_plain_session_with_the_adapter_unpickles(make_session, paywall: Paywall) -> None:
    """Without its payer it is a plain HTTPAdapter."""
    import pickle

    plain = requests.Session()
    plain.mount("http://", PaywallAdapter(make_session()._payer))
    assert pickle.loads(pickle.dumps(plain)).get(paywall.url).status_code == 402


def test_a_copy_doesnt_take_over_its_originals_adapter(make_session, paywall: Paywall, lnd: FakeLnd) -> None:
    """A session with a budget of nothing, whose adapter another session shares, must not begin to pay from that one's."""
    import copy

    poor = make_session(budget_envelope=BudgetEnvelope("nothing", per_call_minor_units=0))
    rich = make_session()
    rich.adapters = poor.adapters
    copy.copy(rich)
    with pytest.raises(BudgetExceededError):
        poor.get(paywall.url)
    assert lnd.payments == []
