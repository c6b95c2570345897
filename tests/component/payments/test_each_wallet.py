"""Purchases over each wallet, with everything that can go wrong between buyer and wallet: one payment, no lost token, true books.

The books are held against the wallet's own list, to the msat (`Books`). What a wallet can't promise is told apart by the traits of
`ContractWallet`: one whose "failed" isn't final gets no second order, so where its order may be lost, the call stays pending.
"""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import requests

from routeweiler_sync import LightningFundingSource, PaymentPendingError, PaymentState, Routeweiler, RouteweilerError, TraceSink
from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.accounts import Books
from tests.support.crashing_buyer import DIED
from tests.support.fake_wallets import FAKE_WALLETS, FakeWallet, fake_wallet
from tests.support.tcp_relay import Wire
from tests.support.wallet_buyers import Buyers
from tests.support.wallet_contract import NETWORK, PATIENCE_S, Recipe, ready

pytestmark = [pytest.mark.usefixtures("asks_at_once"), pytest.mark.timeout(180)]

THREADS = 64
#: How long a call waits for a wallet that doesn't answer, in these tests.
SHORT_S = 2.0
#: Calls that a need may take after a fault until its page is there.
CALLS_MAX = 4
SEED = 15
#: How many moments of a purchase a buyer is killed at, by the bytes between it and its wallet.
KILLS = 8
#: What a child is made to do at a point of the code.
POINTS = [
    f"{point}:{side}"
    for point in ("Ledger.open_payment", "Source.send", "Ledger.change", "PaywallHandler._resend", "Ledger.mark")
    for side in ("before", "after")
]
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system doesn't fork")


class Market:
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

    def session(self, *, client: Any = None, payment_timeout: float = PATIENCE_S, **more: Any) -> Routeweiler:
        source = LightningFundingSource(client=client or self.wallet.client, network=NETWORK)
        return Routeweiler(
            funding=[source],
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


@pytest.fixture(params=FAKE_WALLETS)
def wallet(request: pytest.FixtureRequest, lnd: FakeLnd) -> Iterator[FakeWallet]:
    with fake_wallet(request.param, lnd) as wallet:
        yield wallet


@pytest.fixture
def market(tmp_path: Path, wallet: FakeWallet, paywall: Paywall) -> Market:
    return Market(tmp_path, wallet, paywall)


def begin(market: Market, buyers: Buyers, *, recipe: Recipe | None = None, point: str | None = None) -> int:
    """A process that buys the page. Returns its id."""
    books = market.books
    return buyers.begin(recipe or market.wallet.recipe, market.paywall.url, books.ledger_path, books.trace_path, point)


def finish(market: Market, *, payments: int = 1) -> None:
    """What a buyer has left is finished by the next calls, for one payment."""
    end = market.call(payment_timeout=PATIENCE_S if market.wallet.sends_again else SHORT_S)
    if isinstance(end, PaymentPendingError) and not market.wallet.sends_again:
        assert len(market.paid) == payments - 1
        market.outlive()
    market.until_served()
    market.check(payments=payments)


@pytest.fixture(scope="module")
def buyers() -> Iterator[Buyers]:
    with Buyers() as buyers:
        yield buyers


# Nothing goes wrong


def test_a_page_is_bought_once_and_had_again_for_nothing(market: Market) -> None:
    """The least that a wallet is for."""
    with market.session() as session:
        for reused in (False, True, True):
            response = session.get(market.paywall.url)
            assert (response.status_code, response.payment.reused) == (200, reused)
        [listed] = market.payments
        assert session.spent_msat == listed.amount_msat + listed.fee_msat
    market.check()


def test_many_threads_that_want_one_page_pay_once(market: Market) -> None:
    """A crawler's threads meet one paywall at the same moment."""
    barrier, ends = threading.Barrier(THREADS), list[Any]()

    def want() -> None:
        barrier.wait(PATIENCE_S)
        try:
            ends.append(session.get(market.paywall.url, timeout=PATIENCE_S).status_code)
        except RouteweilerError as error:
            ends.append(error)

    with market.session() as session:
        threads = [threading.Thread(target=want) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(2 * PATIENCE_S)
    assert ends == [200] * THREADS
    market.check()


# Between the buyer and the wallet


def test_an_answer_that_is_lost_costs_nothing(market: Market) -> None:
    """The wallet has paid and nobody heard it: a second payment, or a lost token, would be the user's loss."""
    with market.wallet.lose_answer(times=1):
        first = market.call()
    assert isinstance(first, (requests.Response, PaymentPendingError)), first
    market.until_served()
    market.check()


def test_an_order_that_is_lost_is_sent_again_only_where_the_wallet_refuses_a_second_one(market: Market) -> None:
    """It may arrive yet. A wallet that refuses duplicates gets the same invoice again; any other one gets nothing more."""
    with market.wallet.lose_order(times=1):
        first = market.call(payment_timeout=PATIENCE_S if market.wallet.sends_again else SHORT_S)
    if market.wallet.sends_again:
        assert isinstance(first, requests.Response), first
        market.check()
        return
    for end in (first, market.call(payment_timeout=SHORT_S)):
        assert isinstance(end, PaymentPendingError), end
        assert end.spent is None
    [row] = market.books.rows
    assert (row.unfinished, row.sends_ever) == (True, 1)
    assert not market.paid


def test_orders_that_are_all_lost_leave_the_call_pending(market: Market) -> None:
    """Said to be unpaid, the page would be bought with another invoice, and both orders might arrive."""
    with market.wallet.lose_order():
        end = market.call(payment_timeout=SHORT_S)
    assert isinstance(end, PaymentPendingError), end
    assert end.spent is None
    [row] = market.books.rows
    assert row.unfinished
    assert row.sends_ever == (2 if market.wallet.sends_again else 1)
    if market.wallet.sends_again:
        market.until_served()
        market.check()


def test_a_wallet_that_is_killed_in_the_midst_of_a_payment_is_asked_when_it_is_back(market: Market) -> None:
    """A reboot of the wallet's machine: its payment ends by itself, and the next call finds it."""
    wallet = market.wallet
    with wallet.hold():
        end = market.call(payment_timeout=SHORT_S)
        assert isinstance(end, PaymentPendingError), end
        wallet.stop()
        gone = market.call(payment_timeout=SHORT_S)
        assert isinstance(gone, PaymentPendingError), gone
        wallet.start()
        ready(wallet)
    market.until_served()
    market.check()


def test_a_wallet_that_is_gone_costs_nothing(market: Market) -> None:
    """No order has left: the user may be told that nothing was spent, unless the wallet can't be told from a slow one."""
    wallet = market.wallet
    wallet.stop()
    try:
        end = market.call(payment_timeout=SHORT_S)
    finally:
        wallet.start()
    assert isinstance(end, RouteweilerError)
    assert end.spent is False, end
    ready(wallet)
    market.until_served()
    market.check()


# The buyer dies


@forks
@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_a_buyer_that_dies_at_a_step_pays_once(market: Market, buyers: Buyers, point: str) -> None:
    """A killed worker is the commonest crash: its successor must find what it has paid, and pay for nothing twice."""
    begun = begin(market, buyers, point=point)
    assert buyers.ended() == DIED, begun
    finish(market)


@forks
@pytest.mark.slow
def test_a_buyer_that_is_killed_while_its_payment_is_in_flight_pays_once(market: Market, buyers: Buyers) -> None:
    """The wallet goes on without it."""
    with market.wallet.hold():
        pid = begin(market, buyers)
        market.wallet.lnd.wait_for(lambda lnd: any(payment.status == "IN_FLIGHT" for payment in lnd.payments))
        os.kill(pid, signal.SIGKILL)
        assert buyers.ended() == -signal.SIGKILL
    finish(market)


@forks
@pytest.mark.slow
def test_a_buyer_that_is_killed_at_any_byte_pays_once(market: Market, buyers: Buyers) -> None:
    """Half an order, or half an answer, is the state that no step of the code ends in."""
    wire = Wire(market.wallet.port)
    recipe = market.wallet.through(wire.port)
    dice, killed = random.Random(f"{SEED}:{market.wallet.recipe.name}"), 0
    try:
        before = sum(wire.passed.values())
        begin(market, buyers, recipe=recipe)
        assert buyers.ended() == 0
        total = sum(wire.passed.values()) - before
        for number in range(KILLS):
            market.forget()
            victim: list[int] = []
            known = threading.Event()

            def kill(victim: list[int] = victim, known: threading.Event = known) -> None:
                known.wait(PATIENCE_S)
                with suppress(ProcessLookupError):
                    os.kill(victim[0], signal.SIGKILL)

            wire.arm(dice.randrange(total * number // KILLS, total * (number + 1) // KILLS), kill)
            victim.append(begin(market, buyers, recipe=recipe))
            known.set()
            killed += buyers.ended() == -signal.SIGKILL
            wire.strike("rst")
            finish(market, payments=number + 2)
    finally:
        wire.close()
    assert killed >= KILLS // 2
