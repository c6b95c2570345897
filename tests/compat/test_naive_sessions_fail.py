"""The tests of this folder are worth something: a naive way fails each of them, and yet it isn't simply broken."""

from __future__ import annotations

import pytest

from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support import naive_sessions as naive

from .conftest import REQUIRED


@pytest.mark.parametrize("name", naive.SESSIONS)
def test_a_naive_way_pays(name: str, lnd: FakeLnd, paywall: Paywall) -> None:
    """If it couldn't do even this, the failures under it would tell nothing."""
    naive.Wallet.shared.clear()
    with naive.SESSIONS[name](funding=[lnd.funding()]) as session:
        assert session.get(paywall.url_for("/free")).payment is None
        first = session.get(paywall.url)
        assert (first.content, first.payment.reused) == (paywall.content, False)
        assert [each.status_code for each in first.history] == [402]
        second = session.post(paywall.url, data=b"body")
        assert (second.content, second.payment.reused, second.history) == (paywall.content, True, [])
        assert [(each.status, each.body) for each in paywall.requests[1:]] == [(402, b""), (200, b""), (200, b"body")]
        assert len(lnd.payments) == 1


@pytest.mark.skipif(not REQUIRED, reason="takes minutes: with ROUTEWEILER_REQUIRE_COMPAT=1")
@pytest.mark.timeout(900)
def test_each_test_fails_with_a_naive_way() -> None:
    """A test that anything passes guards nothing, and nobody would know."""
    count, unguarded = naive.passed_by_all()
    assert count > len(naive.SESSIONS)
    assert unguarded == []
