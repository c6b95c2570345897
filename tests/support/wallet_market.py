"""One wallet, one paywall, and the accounts of all who take part: what tests over any wallet buy in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import requests

from routeweiler_sync import LightningFundingSource, PaymentState, Routeweiler, RouteweilerError, TraceSink
from routeweiler_sync.payments import lifecycle
from routeweiler_sync.testing import Paywall

from .accounts import Books
from .fake_wallets import FakeWallet
from .wallet_contract import NETWORK, PATIENCE_S

#: Calls that a need may take after a fault until its page is there.
CALLS_MAX = 4
#: Longer than any invoice lives.
LONG_S = 10**6


@contextmanager
def long_after() -> Iterator[None]:
    """Inside, all invoices count as long expired where a wallet says that they aren't paid."""
    with patch.object(lifecycle, "OUTLIVED_S", -LONG_S):
        yield


class WalletMarket:
    """One wallet, one paywall, and the accounts of all who take part."""

    def __init__(self, folder: Path, wallet: FakeWallet, paywall: Paywall) -> None:
        self.wallet, self.paywall = wallet, paywall
        self.books = Books(folder, self)  # type: ignore[arg-type]

    @property
    def payments(self) -> list[Any]:
        """The wallet's own list, which the books are held against."""
        return self.wallet.own_list()

    @property
    def paid(self) -> set[str]:
        return {payment.payment_hash for payment in self.payments if payment.status == "SUCCEEDED"}

    def source(self, client: Any = None) -> LightningFundingSource:
        return LightningFundingSource(client=client or self.wallet.client, network=NETWORK)

    def session(self, *, client: Any = None, source: Any = None, payment_timeout: float = PATIENCE_S, **more: Any) -> Routeweiler:
        return Routeweiler(
            funding=[source or self.source(client)],
            ledger=self.books.ledger_path,
            trace_sink=TraceSink.jsonl(self.books.trace_path),
            payment_timeout=payment_timeout,
            **more,
        )

    def call(self, **options: Any) -> requests.Response | RouteweilerError:
        """One call by a session of its own. An error of ours is an end like any other."""
        with self.session(**options) as session:
            try:
                return session.get(self.paywall.url, timeout=PATIENCE_S)
            except RouteweilerError as error:
                return error

    def until_served(self) -> requests.Response:
        """Calls until the page is there."""
        answers: list[Any] = []
        while len(answers) < CALLS_MAX:
            answers.append(self.call())
            if isinstance(answers[-1], requests.Response):
                assert answers[-1].status_code == 200
                return answers[-1]
        raise AssertionError(f"the page never came: {answers!r}")

    def until_served_long_after(self) -> requests.Response:
        """As `until_served`, with each invoice long expired: a wallet's "not paid so far" ends a row then."""
        with long_after():
            return self.until_served()

    def forget(self) -> None:
        """The page must be bought anew."""
        ledger = self.books.ledger
        ledger.forget(*(row.payment_hash for row in self.books.rows if row.state is PaymentState.SETTLED))

    def check(self, *, payments: int = 1) -> None:
        """So many payments were made in all, the ledger and the trace know them, and the token that was paid for opens the page."""
        assert len(self.paid) == payments, self.payments
        self.books.check()
        assert self.until_served().payment.reused  # type: ignore[attr-defined]
        assert len(self.paid) == payments
