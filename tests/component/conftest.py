"""A fake lnd, a paywall and sessions on real sockets, and the check that all accounts agree."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from requests.adapters import HTTPAdapter

from routeweiler_sync import Routeweiler, TraceSink
from routeweiler_sync.payments import lifecycle
from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.accounts import Books
from tests.support.fake_wallets import FAKE_WALLETS, FakeWallet, fake_wallet
from tests.support.wallet_market import WalletMarket


@pytest.fixture
def lnd() -> Iterator[FakeLnd]:
    with FakeLnd() as node:
        yield node


@pytest.fixture
def paywall(lnd: FakeLnd) -> Iterator[Paywall]:
    with Paywall(lnd, price_msat=10_000) as wall:
        yield wall


@pytest.fixture
def asks_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who meets an unfinished purchase of an earlier call asks the wallet at once. No other process is about to finish it."""
    monkeypatch.setattr(lifecycle, "LEAVE_ALONE_S", 0.0)


@pytest.fixture
def books(tmp_path: Path, lnd: FakeLnd) -> Books:
    return Books(tmp_path, lnd)


@pytest.fixture(params=FAKE_WALLETS)
def each_wallet(request: pytest.FixtureRequest, lnd: FakeLnd) -> Iterator[FakeWallet]:
    """Each kind of wallet in its turn; behind it, ``lnd`` pays."""
    with fake_wallet(request.param, lnd) as wallet:
        yield wallet


@pytest.fixture
def market(tmp_path: Path, each_wallet: FakeWallet, paywall: Paywall) -> WalletMarket:
    """Each kind of wallet in its turn, a paywall, and their accounts."""
    return WalletMarket(tmp_path, each_wallet, paywall)


@pytest.fixture
def make_session(books: Books, lnd: FakeLnd) -> Iterator[Callable[..., Routeweiler]]:
    """A session on the test's ledger and trace; keyword arguments replace Routeweiler's."""
    made: list[Routeweiler] = []

    def make(**kwargs: Any) -> Routeweiler:
        arguments: dict[str, Any] = {
            "funding": [lnd.funding()],
            "ledger": books.ledger_path,
            "trace_sink": TraceSink.jsonl(books.trace_path),
        }
        made.append(Routeweiler(**arguments | kwargs))
        return made[-1]

    yield make
    for session in made:
        session.close()


@pytest.fixture
def session(make_session: Callable[..., Routeweiler]) -> Routeweiler:
    return make_session()


@pytest.fixture(params=["our adapter", "another's adapter"])
def either_session(request: pytest.FixtureRequest, session: Routeweiler) -> Routeweiler:
    """A session, and one whose user has mounted adapters of his own: what it sends goes another way."""
    if request.param != "our adapter":
        session.mount("http://", HTTPAdapter())
        session.mount("https://", HTTPAdapter())
    return session
