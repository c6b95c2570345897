"""Purchases over each wallet, with everything that can go wrong between buyer and wallet: one payment, no lost token, true books.

The books are held against the wallet's own list, to the msat (`Books`). What a wallet can't promise is told apart by the traits of
`ContractWallet`: one whose "failed" isn't final gets no second order, so where its order may be lost, the call stays pending.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import requests

from routeweiler_sync import BudgetEnvelope, BudgetExceededError, PaymentPendingError, RouteweilerError
from routeweiler_sync.testing import FakeLnd, Paywall
from tests.support.crashing_buyer import DIED
from tests.support.fake_wallets import fake_wallet
from tests.support.tcp_relay import Wire
from tests.support.wallet_buyers import Buyers
from tests.support.wallet_contract import PATIENCE_S, Recipe, closing, ready
from tests.support.wallet_market import WalletMarket

pytestmark = [pytest.mark.usefixtures("asks_at_once"), pytest.mark.timeout(600)]

THREADS = 64
#: How long a call waits for a wallet that doesn't answer, in these tests.
SHORT_S = 2.0
#: How long it waits for an answer that may come.
ANSWER_S = 4.0
#: An order that was held gets so long to do its harm.
LATE_S = 0.5
SEED = 15
#: How many moments of a purchase a buyer is killed at, by the bytes between it and its wallet.
KILLS = 100 if os.environ.get("ROUTEWEILER_DEEP_TESTS") == "1" else 8
#: What a child is made to do at a point of the code.
POINTS = [
    f"{point}:{side}"
    for point in ("Ledger.open_payment", "Source.send", "Ledger.change", "PaywallHandler.resend", "Ledger.mark")
    for side in ("before", "after")
]
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system doesn't fork")


def begin(market: WalletMarket, buyers: Buyers, *, recipe: Recipe | None = None, point: str | None = None) -> int:
    """A process that buys the page. Returns its id."""
    books = market.books
    return buyers.begin(recipe or market.wallet.recipe, market.paywall.url, books.ledger_path, books.trace_path, point)


def finish(market: WalletMarket, *, payments: int = 1) -> None:
    """What a buyer has left is finished by the next calls, for one payment."""
    end = market.call(payment_timeout=PATIENCE_S if market.wallet.sends_again else SHORT_S)
    if isinstance(end, PaymentPendingError) and not market.wallet.sends_again:
        assert len(market.paid) == payments - 1
        market.until_served_long_after()
    market.until_served()
    market.check(payments=payments)


@pytest.fixture(scope="module")
def buyers() -> Iterator[Buyers]:
    with Buyers() as buyers:
        yield buyers


# Nothing goes wrong


def test_a_page_is_bought_once_and_had_again_for_nothing(market: WalletMarket) -> None:
    """The least that a wallet is for."""
    with market.session() as session:
        for reused in (False, True, True):
            response = session.get(market.paywall.url)
            assert (response.status_code, response.payment.reused) == (200, reused)
        [listed] = market.payments
        assert session.spent_msat == listed.amount_msat + listed.fee_msat
    market.check()


def test_many_threads_that_want_one_page_pay_once(market: WalletMarket) -> None:
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


# What the wallet itself may charge


def test_a_fee_that_no_order_can_limit_is_reserved_or_refused_before_paying(market: WalletMarket) -> None:
    """A wallet that takes more than the budget has left would break it, and there is no order that forbids it to."""
    wallet, price_msat = market.wallet, market.paywall.price_msat
    if wallet.keeps_fee_limit:
        pytest.skip("an order's fee limit holds here")
    cap_msat = wallet.client.own_fee_cap_msat(wallet.make_invoice(price_msat), timeout_s=PATIENCE_S)
    most_sat = (price_msat + cap_msat) // 1_000
    refused = market.call(budget_envelope=BudgetEnvelope("tight", per_call_minor_units=most_sat - 1))
    assert isinstance(refused, BudgetExceededError), refused
    assert refused.spent is False
    assert not market.payments
    assert not market.books.rows
    assert not any(envelope.reserved_minor_units for envelope in market.books.ledger.envelopes())
    served = market.call(budget_envelope=BudgetEnvelope("fits", per_call_minor_units=most_sat))
    assert isinstance(served, requests.Response), served
    [row] = market.books.rows
    assert row.max_fee_msat == cap_msat
    market.check()


def test_a_fee_that_is_not_told_is_booked_as_the_most_that_it_can_be(tmp_path: Path, lnd: FakeLnd, paywall: Paywall) -> None:
    """Booked as nothing, such fees would add up beside the budget."""
    with fake_wallet("nwc", lnd) as wallet:
        wallet.fake.tells_fees = wallet.fake.looks_up_fees = False  # type: ignore[attr-defined]
        market = WalletMarket(tmp_path, wallet, paywall)
        assert market.until_served().status_code == 200
        [row] = market.books.rows
        cap_msat = wallet.client.own_fee_cap_msat(row.bolt11, timeout_s=PATIENCE_S)
        assert row.fee_msat == row.max_fee_msat == cap_msat
        [envelope] = market.books.ledger.envelopes()
        assert envelope.settled_minor_units * 1_000 == row.amount_msat + cap_msat
        assert envelope.reserved_minor_units == 0


# Between the buyer and the wallet


@pytest.mark.slow
def test_an_answer_that_is_lost_costs_nothing(market: WalletMarket) -> None:
    """The wallet has paid and nobody heard it: a second payment, or a lost token, would be the user's loss."""
    with market.wallet.lose_answer(times=1):
        first = market.call(payment_timeout=ANSWER_S)
    assert isinstance(first, (requests.Response, PaymentPendingError)), first
    market.until_served()
    market.check()


def test_an_order_that_is_lost_is_sent_again_only_where_the_wallet_refuses_a_second_one(market: WalletMarket) -> None:
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
    # Long after the invoice has expired, what the wallet says of it ends the row, and the page is bought anew.
    market.until_served_long_after()
    assert {row.state.value for row in market.books.rows} == {"dead", "settled"}
    market.check()


@pytest.mark.slow
def test_orders_that_are_all_lost_leave_the_call_pending(market: WalletMarket) -> None:
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


@pytest.mark.slow
def test_an_order_that_arrives_late_is_no_second_payment(market: WalletMarket) -> None:
    """It may lie in a socket or in a relay while its sender has given up, and the next call has already paid."""
    wallet = market.wallet
    with Wire(wallet.port) as wire, closing(wallet.through(wire.port).build()) as client:
        source = market.source(client)
        source.ready(PATIENCE_S)  # connected, so that the order is what is held
        wire.hold()
        first = market.call(source=source, payment_timeout=SHORT_S)
        assert isinstance(first, PaymentPendingError), first
        second = market.call(payment_timeout=PATIENCE_S if wallet.sends_again else SHORT_S)
        assert isinstance(second, requests.Response if wallet.sends_again else PaymentPendingError), second
        wire.release(order_alone=True)
        time.sleep(LATE_S)  # nothing shows that it has come and was refused
    finish(market)


@pytest.mark.slow
def test_a_wallet_that_is_killed_in_the_midst_of_a_payment_is_asked_when_it_is_back(market: WalletMarket) -> None:
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


def test_a_wallet_that_is_gone_costs_nothing(market: WalletMarket) -> None:
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
def test_a_buyer_that_dies_at_a_step_pays_once(market: WalletMarket, buyers: Buyers, point: str) -> None:
    """A killed worker is the commonest crash: its successor must find what it has paid, and pay for nothing twice."""
    begun = begin(market, buyers, point=point)
    assert buyers.ended() == DIED, begun
    finish(market)


@forks
@pytest.mark.slow
def test_a_buyer_that_is_killed_while_its_payment_is_in_flight_pays_once(market: WalletMarket, buyers: Buyers) -> None:
    """The wallet goes on without it."""
    with market.wallet.hold():
        pid = begin(market, buyers)
        market.wallet.lnd.wait_for(lambda lnd: any(payment.status == "IN_FLIGHT" for payment in lnd.payments))
        os.kill(pid, signal.SIGKILL)
        assert buyers.ended() == -signal.SIGKILL
    finish(market)


@forks
@pytest.mark.slow
def test_a_buyer_that_is_killed_at_any_byte_pays_once(market: WalletMarket, buyers: Buyers) -> None:
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
