"""Does the diary pay once, stop at its limit, and survive what goes wrong? pytest finds the fixtures by itself."""

from __future__ import annotations

from pathlib import Path

import diary
import pytest

from routeweiler_sync import BudgetExceededError, HTTPError, Routeweiler
from routeweiler_sync.testing import FakeLnd, Paywall

CITIES = ["berlin", "paris", "rome"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "diary.txt"


def test_it_pays_for_each_city_once(paying_session: Routeweiler, paywall: Paywall, fake_lnd: FakeLnd, path: Path) -> None:
    for _ in range(2):
        assert diary.write(paying_session, paywall.base_url, CITIES, path) == 3
    assert [line.partition(":")[0] for line in path.read_text("utf-8").splitlines()] == CITIES
    assert fake_lnd.spent_sat == 10  # this paywall's token opens all of its pages
    assert len(paywall.paid_for("/rome")) == 1


def test_it_stops_at_100_sat(paying_session: Routeweiler, fake_lnd: FakeLnd, path: Path) -> None:
    with Paywall(fake_lnd, price_msat=40_000, sells="path") as shop:
        with pytest.raises(BudgetExceededError):
            diary.write(paying_session, shop.base_url, CITIES, path)
        assert not shop.paid_for("/rome")
    assert fake_lnd.spent_sat == 80
    assert len(path.read_text("utf-8").splitlines()) == 2  # what was paid for is kept


def test_a_payment_that_hangs_is_not_made_again(fake_lnd: FakeLnd, paywall: Paywall, tmp_path: Path, path: Path) -> None:
    fake_lnd.hang_next()
    with Routeweiler(funding=[fake_lnd.funding()], ledger=tmp_path / "ledger.db", payment_timeout=2) as session:
        assert diary.write(session, paywall.base_url, ["berlin"], path) == 0
    fake_lnd.wait_for(lambda node: len(node.payments) == 1)
    fake_lnd.release()
    with Routeweiler(funding=[fake_lnd.funding()], ledger=tmp_path / "ledger.db") as session:  # the next run
        assert diary.write(session, paywall.base_url, ["berlin"], path) == 1
    assert len(fake_lnd.payments) == 1


def test_a_page_that_does_not_come_is_not_paid_for_again(
    paying_session: Routeweiler, paywall: Paywall, fake_lnd: FakeLnd, path: Path
) -> None:
    paywall.answer_next(500)
    with pytest.raises(HTTPError):
        diary.write(paying_session, paywall.base_url, ["berlin"], path)
    assert diary.write(paying_session, paywall.base_url, ["berlin"], path) == 1
    assert len(fake_lnd.payments) == 1


def test_free_pages_cost_nothing(paying_session: Routeweiler, paywall: Paywall, fake_lnd: FakeLnd, path: Path) -> None:
    assert diary.write(paying_session, paywall.url_for("/free"), CITIES, path) == 3
    assert fake_lnd.payments == []
